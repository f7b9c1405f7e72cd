//! Binding the socket.

use socket2::{Domain, Protocol, SockAddr, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `SO_MEMINFO` (include/uapi/asm-generic/socket.h), which the libc crate lacks.
const SO_MEMINFO: libc::c_int = 55;

/// How to bind a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketOptions {
    /// True to share the port with other sockets that say so too (`SO_REUSEPORT`); the kernel spreads flows over them.
    pub reuse_port: bool,
    /// Bytes of receive buffer to ask for; 0 leaves the kernel's default. The kernel doubles what it grants.
    pub receive_buffer: usize,
    /// Bytes of send buffer to ask for; 0 leaves the kernel's default.
    pub send_buffer: usize,
    /// True to ask for joined datagrams (`UDP_GRO`).
    pub gro: bool,
}

/// Why the socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Somebody else has the port.
    #[error("UDP port {} on {} is in use; another flanneld may be running", .address.port(), .address.ip())]
    InUse {
        /// The address asked for.
        address: SocketAddrV4,
    },
    /// No interface of this host has the address.
    #[error("cannot bind UDP port {} to {}: no interface of this host has that address", .address.port(), .address.ip())]
    NotAvailable {
        /// The address asked for.
        address: SocketAddrV4,
    },
    /// The port is below 1024 and the process lacks CAP_NET_BIND_SERVICE.
    #[error("no permission to bind UDP port {} on {}", .address.port(), .address.ip())]
    Permission {
        /// The address asked for.
        address: SocketAddrV4,
    },
    /// Another call failed, or a call failed for another reason.
    #[error("UDP socket {address}: {step}: {source}")]
    System {
        /// The call that failed.
        step: &'static str,
        /// The address asked for.
        address: SocketAddrV4,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A bound, unconnected, non-blocking IPv4 UDP socket.
#[derive(Debug)]
pub struct Socket {
    pub(super) inner: socket2::Socket,
    gro: bool,
}

impl Socket {
    /// Binds to `address`; port 0 takes any free one.
    ///
    /// # Errors
    /// [`UdpError`] says why. Buffer sizes and `UDP_GRO` are wishes, and a kernel may grant less without an error.
    pub fn bind(address: SocketAddrV4, options: SocketOptions) -> Result<Self, UdpError> {
        let failed = |step| move |source| UdpError::System { step, address, source };
        let inner =
            socket2::Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).map_err(failed("socket"))?;
        inner.set_nonblocking(true).map_err(failed("O_NONBLOCK"))?;
        if options.reuse_port {
            inner.set_reuse_port(true).map_err(failed("SO_REUSEPORT"))?;
        }
        if options.receive_buffer > 0 {
            let size = clamp(options.receive_buffer);
            set_option(&inner, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, size)
                .or_else(|_| set_option(&inner, libc::SOL_SOCKET, libc::SO_RCVBUF, size))
                .map_err(failed("SO_RCVBUF"))?;
        }
        if options.send_buffer > 0 {
            let size = clamp(options.send_buffer);
            set_option(&inner, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size)
                .or_else(|_| set_option(&inner, libc::SOL_SOCKET, libc::SO_SNDBUF, size))
                .map_err(failed("SO_SNDBUF"))?;
        }
        // ENOPROTOOPT before Linux 5.0: datagrams then come one by one, which is only slower.
        let gro = options.gro && set_option(&inner, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        inner.bind(&SockAddr::from(address)).map_err(|source| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => UdpError::InUse { address },
            Some(libc::EADDRNOTAVAIL) => UdpError::NotAvailable { address },
            Some(libc::EACCES) => UdpError::Permission { address },
            _ => UdpError::System { step: "bind", address, source },
        })?;
        Ok(Self { inner, gro })
    }

    /// Whether the kernel took `UDP_GRO`: a receive may then give joined datagrams.
    pub fn gro(&self) -> bool {
        self.gro
    }

    /// Where the socket is bound.
    ///
    /// # Errors
    /// What `getsockname` gives as its error.
    pub fn local_addr(&self) -> io::Result<SocketAddrV4> {
        let address = self.inner.local_addr()?;
        Ok(address.as_socket_ipv4().unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)))
    }

    /// Bytes of receive buffer, as the kernel counts them (twice what was asked for).
    #[cfg(test)]
    pub(super) fn receive_buffer(&self) -> io::Result<usize> {
        self.inner.recv_buffer_size()
    }

    /// Bytes of send buffer, as the kernel counts them (twice what was asked for).
    #[cfg(test)]
    pub(super) fn send_buffer(&self) -> io::Result<usize> {
        self.inner.send_buffer_size()
    }

    /// Datagrams that the kernel dropped because this socket's receive buffer was full (`SK_MEMINFO_DROPS`,
    /// include/uapi/linux/sock_diag.h); it wraps at 2^32.
    ///
    /// # Errors
    /// What `getsockopt` gives as its error.
    pub fn overflows(&self) -> io::Result<u32> {
        let mut info = [0_u32; 9];
        let mut len = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or(0);
        // SAFETY: `info` and `len` are live and exclusively ours for the call, and `len` is `info`'s size in
        // bytes: the kernel writes no more than that.
        let result = unsafe {
            libc::getsockopt(
                self.inner.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        debug_assert!(result != 0 || len as usize == size_of_val(&info), "the kernel gave {len} bytes");
        if result == 0 { Ok(info[8]) } else { Err(io::Error::last_os_error()) }
    }

    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// What `fcntl` gives as its error, such as EMFILE.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { inner: self.inner.try_clone()?, gro: self.gro })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// A size as the option takes it. The kernel itself allows half of that range, and without privilege no
/// more than `net.core.{r,w}mem_max`.
fn clamp(size: usize) -> libc::c_int {
    libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX)
}

/// Length of an int option.
#[expect(clippy::cast_possible_truncation, reason = "4 bytes")]
const INT_LEN: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;

fn set_option(
    socket: &socket2::Socket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let value = (&raw const value).cast();
    // SAFETY: setsockopt reads INT_LEN bytes through the pointer, which is to an int that outlives the call;
    // the descriptor is open for as long as `socket` is borrowed.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, INT_LEN) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads an int option.
pub(super) fn option(socket: &Socket, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let (mut value, mut len) = (0, INT_LEN);
    let pointer = (&raw mut value).cast();
    // SAFETY: getsockopt writes at most `len` bytes through the first pointer, which is to an int of that size,
    // and the new length through the second; both are exclusively ours and outlive the call.
    let result = unsafe { libc::getsockopt(socket.inner.as_raw_fd(), level, name, pointer, &raw mut len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
