//! Makes a ring: setup flags, the probe, and errors that name the remedy.

use io_uring::{IoUring, Probe, opcode};
use std::io;

/// The longest queue of submissions that the kernel makes (`IORING_MAX_ENTRIES`, Linux `io_uring/io_uring.h`).
pub(super) const MOST_SUBMISSIONS: usize = 32_768;
/// The longest queue of completions that it makes (`IORING_MAX_CQ_ENTRIES`).
pub(super) const MOST_COMPLETIONS: usize = 2 * MOST_SUBMISSIONS;

/// Why no ring could be made.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A policy of the host refuses `io_uring_setup`.
    #[error(
        "io_uring is forbidden here: allow it with `sysctl kernel.io_uring_disabled=0`, or run the container \
         with a seccomp profile that permits io_uring_setup, io_uring_enter and io_uring_register \
         (Docker's and containerd's default profiles do not), or use --engine=poll"
    )]
    Forbidden,
    /// The kernel has no io_uring at all.
    #[error("this kernel has no io_uring; use --engine=poll")]
    Absent,
    /// The kernel's io_uring is too old.
    #[error("this kernel's io_uring lacks {0} (Linux {1} has it); use --engine=poll")]
    Lacks(&'static str, &'static str),
    /// The process may lock too little memory, or the host has none left.
    #[error("no memory for io_uring ({0}): raise `ulimit -l` (LimitMEMLOCK=) or lower --buffers")]
    Memory(io::Error),
    /// The set-up failed with any other error.
    #[error("io_uring set-up failed: {0}")]
    Other(#[from] io::Error),
}

/// Builds a ring of at least `entries` submissions and `completions` completions with the newest flags that the kernel
/// takes, and checks that every operation that a ring needs is there.
pub(super) fn build(entries: u32, completions: u32) -> Result<IoUring, RingError> {
    let io = newest(entries, completions)?;
    let mut probe = Probe::new();
    io.submitter().register_probe(&mut probe).map_err(classify)?;
    let needed = [
        (opcode::ReadMulti::CODE, "READ_MULTISHOT", "6.7"),
        (opcode::RecvMsgMulti::CODE, "multishot RECVMSG", "6.0"),
        (opcode::SendMsg::CODE, "SENDMSG", "5.3"),
        (opcode::Writev::CODE, "WRITEV", "5.1"),
        (opcode::PollAdd::CODE, "POLL_ADD", "5.1"),
    ];
    for (code, name, since) in needed {
        if !probe.is_supported(code) {
            return Err(RingError::Lacks(name, since));
        }
    }
    Ok(io)
}

/// Builds the ring with the newest flags that the kernel takes.
fn newest(entries: u32, completions: u32) -> Result<IoUring, RingError> {
    // Completions run inside our own `enter` only, so processors do not interrupt each other and more complete at once.
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_submit_all().setup_cqsize(completions);
    builder.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag().setup_defer_taskrun();
    let plain = builder.clone();
    let refused = match builder.setup_no_sqarray().build(entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => plain.build(entries),
        other => other,
    };
    refused.map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => RingError::Lacks("DEFER_TASKRUN", "6.1"),
        _ => classify(error),
    })
}

/// Gives an errno of set-up or registration its meaning.
pub(super) fn classify(error: io::Error) -> RingError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => RingError::Forbidden,
        Some(libc::ENOSYS) => RingError::Absent,
        Some(libc::ENOMEM) => RingError::Memory(error),
        _ => RingError::Other(error),
    }
}
