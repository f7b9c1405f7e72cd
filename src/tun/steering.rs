//! Which queue a packet leaves by, so that a flow never changes its queue.
//!
//! By itself the driver moves a flow to the queue through which its replies are written (`tun_flow_update`), and
//! packets of the flow that still wait in the old queue are then overtaken. A program of ours ([`bpf::steering`])
//! replaces that rule by a hash of the packet alone.

use super::error::check;
use crate::bpf;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `TUNSETSTEERINGEBPF`, `_IOR('T', 224, int)` (include/uapi/linux/if_tun.h).
const TUNSETSTEERINGEBPF: libc::c_ulong = 0x8004_54e0;

/// Gives our rule to the device whose queue is `queue`.
///
/// # Errors
/// Those of [`bpf::load_socket_filter`], and EINVAL on kernels before 4.16: the driver's own rule then stays.
pub(super) fn steer(queue: BorrowedFd<'_>) -> io::Result<()> {
    let program = bpf::load_socket_filter(&bpf::steering::PROGRAM)?;
    let fd = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads one int through the pointer, the descriptor of a program; `fd` is one
    // and outlives the call. The driver takes a reference of its own.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETSTEERINGEBPF, &raw const fd) })
}
