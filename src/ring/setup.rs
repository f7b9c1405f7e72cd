//! Makes a ring: setup flags, the probe, and errors that name the remedy.

use super::sizes::Sizes;
use io_uring::{IoUring, Probe, opcode};
use std::io;

/// Why no ring could be made.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A policy of the host refuses `io_uring_setup`.
    #[error("{}, or use --engine=poll", self.cause())]
    Forbidden,
    /// The kernel has no io_uring at all.
    #[error("{}; use --engine=poll", self.cause())]
    Absent,
    /// The kernel's io_uring is too old.
    #[error("{}; use --engine=poll", self.cause())]
    Lacks(&'static str, &'static str),
    /// The process may lock too little memory, or the host has none left.
    #[error("{}", self.cause())]
    Memory(io::Error),
    /// The set-up failed with any other error.
    #[error("{}", self.cause())]
    Other(#[from] io::Error),
}

impl RingError {
    /// What is missing, and what would bring it; without the advice to do without.
    #[must_use]
    pub fn cause(&self) -> String {
        match self {
            RingError::Forbidden => "io_uring is forbidden here: allow it with `sysctl \
                kernel.io_uring_disabled=0`, or run the container with a seccomp profile that permits \
                io_uring_setup, io_uring_enter and io_uring_register (Docker's and containerd's default profiles do \
                not)"
                .to_owned(),
            RingError::Absent => "this kernel has no io_uring".to_owned(),
            RingError::Lacks(what, since) => {
                format!("this kernel's io_uring lacks {what} (Linux {since} has it)")
            }
            RingError::Memory(error) => {
                format!("no memory for io_uring ({error}): raise `ulimit -l` (LimitMEMLOCK=) or lower --buffers")
            }
            RingError::Other(error) => format!("io_uring set-up failed: {error}"),
        }
    }
}

/// Whether a ring of these sizes can be made here. The ring is gone when this returns.
///
/// # Errors
/// [`RingError`] names what is missing and the remedy.
pub fn probe(sizes: Sizes) -> Result<(), RingError> {
    let (entries, completions) = sizes.queues();
    build(entries, completions).map(drop)
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
