//! The one system call that takes a program: bpf(2), `BPF_PROG_LOAD`.

use super::Instruction;
use super::instruction::is_sound;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `BPF_PROG_LOAD` and `BPF_PROG_TYPE_SOCKET_FILTER` (include/uapi/linux/bpf.h).
const PROG_LOAD: libc::c_int = 5;
const SOCKET_FILTER: u32 = 1;

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads; the kernel takes all that lies behind it as zero.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instructions: u32,
    program: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

const _: () = assert!(size_of::<LoadAttributes>() == 40, "the kernel's layout has no padding");

/// Loads `program`, which sees a packet from its IP header on.
///
/// # Errors
/// EPERM without CAP_BPF (CAP_SYS_ADMIN before Linux 5.8), ENOSYS without bpf(2), EINVAL or EACCES where the verifier
/// refuses the program.
pub fn load_socket_filter(program: &[Instruction]) -> io::Result<OwnedFd> {
    debug_assert!(is_sound(program), "the verifier would refuse this program");
    let attributes = LoadAttributes {
        kind: SOCKET_FILTER,
        instructions: u32::try_from(program.len()).unwrap_or(u32::MAX),
        program: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: bpf(BPF_PROG_LOAD) reads `size_of` bytes of attributes, the instructions and the licence; all are
    // initialised and outlive the call, and it writes nothing (no log).
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of_val(&attributes)) };
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
