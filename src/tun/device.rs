//! Creating the device and its queues.

use super::TunError;
use super::error::check;
use super::steering::steer;
use crate::packet::ipv4::MAX_PACKET;
use crate::packet::vnet::VNET_LEN;
use std::ffi::CStr;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The kernel's limit of queues to one device (`MAX_TAP_QUEUES`, include/linux/if_tap.h).
pub const MAX_QUEUES: usize = 256;

const _: () = assert!(MAX_QUEUES == 256, "the text of TunError::BadQueues names the number");

/// Bytes that a read must offer so that no packet is cut: virtio-net header and the longest IPv4 packet.
pub const READ_SIZE: usize = VNET_LEN + MAX_PACKET;

/// `struct virtio_net_hdr` without the fields of later forms (include/uapi/linux/virtio_net.h).
const VNET_HEADER_SIZE: u8 = 10;

const _: () = assert!(VNET_HEADER_SIZE as usize == VNET_LEN, "the packet room decodes another header");

/// Most parts of one vectored write (`UIO_MAXIOV`, include/uapi/linux/uio.h).
const MAX_PARTS: usize = 1024;

/// Sets of `TUNSETOFFLOAD` bits, largest first. USO4 and USO6 (Linux 6.2) are only taken together.
const TSO: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const USO: u32 = TSO | libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Which offloads to ask of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TunOffload {
    /// All offloads that the kernel takes.
    #[default]
    Auto,
    /// Checksum and TCP segmentation, no UDP segmentation.
    Tso,
    /// No offload: the kernel hands out whole, checksummed packets only.
    Off,
}

impl fmt::Display for TunOffload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tso => "tso",
            Self::Off => "off",
        })
    }
}

impl TunOffload {
    fn candidates(self) -> &'static [u32] {
        match self {
            Self::Auto => &[USO, TSO, libc::TUN_F_CSUM, 0],
            Self::Tso => &[TSO, libc::TUN_F_CSUM, 0],
            Self::Off => &[0],
        }
    }
}

/// What the kernel may hand us: the offloads that it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Packets whose TCP or UDP checksum is still to be completed.
    pub checksum: bool,
    /// TCP super-packets, also those with CWR set.
    pub tso: bool,
    /// UDP super-packets (USO).
    pub uso: bool,
}

impl Offloads {
    fn from_bits(bits: u32) -> Self {
        let has = |wanted: u32| bits & wanted == wanted;
        Self { checksum: has(libc::TUN_F_CSUM), tso: has(TSO), uso: has(USO) }
    }
}

/// A TUN device that is ours for as long as one of its queues is open.
#[derive(Debug)]
pub struct Device {
    name: String,
    offloads: Offloads,
    queues: Vec<Queue>,
    steered: bool,
}

impl Device {
    /// Creates a device named by `pattern`, in which the kernel replaces `%d` by the first free number,
    /// with `queues` queues (1 ..= [`MAX_QUEUES`]) and the offloads that `want` asks for and the kernel takes.
    /// It is down and has no address.
    ///
    /// # Errors
    /// [`TunError`]; its text names the remedy.
    pub fn create(pattern: &str, queues: usize, want: TunOffload) -> Result<Self, TunError> {
        if !is_interface_name(pattern) {
            return Err(TunError::BadName { name: pattern.to_owned() });
        }
        if queues == 0 || queues > MAX_QUEUES {
            return Err(TunError::BadQueues { queues });
        }
        // The first queue is exclusive, since a fixed name must not join a device that somebody else reads.
        let (first, name) = Queue::attach(pattern, libc::IFF_TUN_EXCL)?;
        let mut device = Self { name, offloads: Offloads::default(), queues: vec![first], steered: false };
        for _ in 1..queues {
            let (queue, _) = Queue::attach(&device.name, 0)?;
            device.queues.push(queue);
        }
        device.offloads = device.set_offloads(want)?;
        device.steered = queues > 1 && steer(device.queues[0].as_fd()).is_ok();
        Ok(device)
    }

    /// The name that the kernel gave, such as `flannel0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The offloads that the kernel took.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Whether a flow keeps its queue. With one queue it always does; with more it takes a program in the kernel, for
    /// which the process needs CAP_BPF (or CAP_SYS_ADMIN before Linux 5.8).
    pub fn keeps_flows(&self) -> bool {
        self.queues.len() == 1 || self.steered
    }

    /// The queues, in the order in which they were attached, which is the kernel's numbering.
    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// Gives the queues to their workers; the device goes when the last is dropped.
    pub fn into_queues(self) -> Vec<Queue> {
        self.queues
    }

    fn set_offloads(&self, want: TunOffload) -> Result<Offloads, TunError> {
        let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
        for &bits in want.candidates() {
            match self.queues[0].set_offload_bits(bits) {
                Ok(()) => return Ok(Offloads::from_bits(bits)),
                Err(error) => refusal = error,
            }
        }
        Err(TunError::System { step: "TUNSETOFFLOAD", name: self.name.clone(), source: refusal })
    }
}

/// One queue of a device: a non-blocking file whose every read and write is one packet with its header.
#[derive(Debug)]
pub struct Queue {
    file: File,
}

impl Queue {
    /// Reads one packet into `buffer`, which should hold [`READ_SIZE`] bytes: the driver silently cuts a longer packet.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; [`is_gone`](super::is_gone) when the device was deleted.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet, header first, gathered from at most 1024 `parts`.
    ///
    /// # Errors
    /// [`is_down`](super::is_down) when the device is down, [`is_gone`](super::is_gone) when it was deleted,
    /// EINVAL for a version other than 4 and 6 or a header that does not fit its packet.
    pub fn write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        debug_assert!(parts.len() <= MAX_PARTS, "parts beyond the limit are not written");
        (&self.file).write_vectored(parts)
    }

    /// Another descriptor of the same queue. The device stays as long as one is open.
    ///
    /// # Errors
    /// What `fcntl` gives as its error, such as EMFILE.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// Opens a file and ties it to the device of that name, which the kernel creates if there is none; gives the
    /// device's real name.
    fn attach(name: &str, extra: libc::c_int) -> Result<(Self, String), TunError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|error| TunError::open(name, error))?;
        let queue = Self { file };
        let name = queue.set_interface(name, extra).map_err(|error| TunError::attach(name, error))?;
        queue.set_header_size().map_err(|source| {
            let step = "TUNSETVNETHDRSZ";
            TunError::System { step, name: name.clone(), source }
        })?;
        Ok((queue, name))
    }

    fn set_interface(&self, name: &str, extra: libc::c_int) -> io::Result<String> {
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | extra;
        // The field is the low half of a flag word: IFF_TUN_EXCL is 0x8000, the sign bit.
        let [low, high, ..] = flags.to_le_bytes();
        let ifru_flags = libc::c_short::from_le_bytes([low, high]);
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags },
        };
        debug_assert!(name.len() < libc::IFNAMSIZ, "the name would be cut");
        // The last byte stays zero, since `create` has checked the length and the kernel's own names are as short.
        for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`; `request` is one, initialised in its name and
        // flags, which are all that the driver reads, and exclusively borrowed for the call.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        let bytes = request.ifr_name.map(|byte| u8::from_ne_bytes(byte.to_ne_bytes()));
        let name = CStr::from_bytes_until_nul(&bytes).map_err(io::Error::other)?;
        Ok(name.to_string_lossy().into_owned())
    }

    fn set_header_size(&self) -> io::Result<()> {
        let size = libc::c_int::from(VNET_HEADER_SIZE);
        // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer; `size` is one and outlives the call.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
    }

    fn set_offload_bits(&self, bits: u32) -> io::Result<()> {
        let bits = libc::c_ulong::from(bits);
        // SAFETY: TUNSETOFFLOAD takes its bits by value, as an unsigned long, and touches no memory of ours.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, bits) })
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// True if the kernel's rule (`dev_valid_name`, net/core/dev.c) takes the name; one `%d` is allowed.
fn is_interface_name(name: &str) -> bool {
    let plain = name.replacen("%d", "0", 1);
    let fits = (1..libc::IFNAMSIZ).contains(&name.len());
    let is_a_directory = plain == "." || plain == "..";
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    fits && !is_a_directory && !plain.contains(bad)
}
