//! What can go wrong with the device, and what the user can do about it.

use std::io;

/// Why the device could not be created.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The name does not fit the kernel's rule for interface names.
    #[error("{name:?} is not an interface name: 1 to 15 bytes, no '/', ':' or blank, at most one %d")]
    BadName {
        /// The pattern asked for.
        name: String,
    },
    /// The number of queues is outside 1 ..= [`MAX_QUEUES`](super::MAX_QUEUES).
    #[error("a TUN device has 1 to 256 queues, not {queues}")]
    BadQueues {
        /// The number asked for.
        queues: usize,
    },
    /// There is no TUN driver to open.
    #[error(
        "cannot open /dev/net/tun: {source}; load the driver (`modprobe tun`), or give the container the \
         device (`--device /dev/net/tun`)"
    )]
    NoDriver {
        /// What the kernel said: ENOENT, ENODEV or ENXIO.
        source: io::Error,
    },
    /// The process may not create TUN devices.
    #[error("no permission to create {name}: {source}; run as root or grant CAP_NET_ADMIN and /dev/net/tun")]
    Permission {
        /// The pattern asked for.
        name: String,
        /// What the kernel said: EPERM or EACCES.
        source: io::Error,
    },
    /// An interface of that name exists: joining it could share its queues with another process.
    #[error(
        "interface {name} exists already; another flanneld may be running, or remove the leftover with \
         `ip link del {name}`"
    )]
    Exists {
        /// The pattern asked for.
        name: String,
    },
    /// The kernel refused the flags: it lacks a feature, or a device with other flags is in the way.
    #[error(
        "the kernel refused {name} as a multi-queue TUN device with a virtio-net header: {source}; remove a \
         leftover single-queue device with `ip link del {name}` (IFF_MULTI_QUEUE needs Linux 3.8)"
    )]
    Refused {
        /// The pattern asked for.
        name: String,
        /// What the kernel said: EINVAL.
        source: io::Error,
    },
    /// Another call failed, or a call failed for another reason.
    #[error("{step} failed for {name}: {source}")]
    System {
        /// The call that failed.
        step: &'static str,
        /// The pattern asked for, or the device's name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl TunError {
    /// Reads a failure to open `/dev/net/tun`.
    pub(super) fn open(name: &str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Self::NoDriver { source },
            Some(libc::EPERM | libc::EACCES) => Self::Permission { name: name.to_owned(), source },
            _ => Self::System { step: "open(/dev/net/tun)", name: name.to_owned(), source },
        }
    }

    /// Reads a failure of `TUNSETIFF`.
    pub(super) fn attach(name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Permission { name, source },
            Some(libc::EBUSY | libc::EEXIST) => Self::Exists { name },
            Some(libc::EINVAL) => Self::Refused { name, source },
            _ => Self::System { step: "TUNSETIFF", name, source },
        }
    }
}

/// Whether a read or write failed because the device was deleted: this queue will never work again.
pub fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

/// Whether a write failed because the device is not up; it works again once it is.
pub fn is_down(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

/// Reads the result of a system call: a negative one says that `errno` holds the error.
pub(super) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
