//! Which queue a packet leaves by, so that a flow never changes its queue.
//!
//! By itself the driver moves a flow to the queue through which its replies are written (`tun_flow_update`),
//! and packets already waiting in the old queue are then overtaken. A program of ours (`TUNSETSTEERINGEBPF`)
//! replaces that rule by a hash of the packet alone: addresses, and the ports of TCP and UDP unless the packet
//! is a fragment.

use super::device::{Queue, check};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `TUNSETSTEERINGEBPF`, `_IOR('T', 224, int)` (include/uapi/linux/if_tun.h).
const TUNSETSTEERINGEBPF: libc::c_ulong = 0x8004_54e0;
/// `BPF_PROG_LOAD` and `BPF_PROG_TYPE_SOCKET_FILTER` (include/uapi/linux/bpf.h).
const PROG_LOAD: libc::c_int = 5;
const SOCKET_FILTER: u32 = 1;

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination register in the low half, source register in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

/// Opcodes as `linux/filter.h` composes them: class, size or operation, source.
mod code {
    pub(super) const MOV64_REG: u8 = 0xbf;
    pub(super) const MOV64_IMM: u8 = 0xb7;
    pub(super) const LD_ABS_BYTE: u8 = 0x30;
    pub(super) const LD_ABS_HALF: u8 = 0x28;
    pub(super) const LD_ABS_WORD: u8 = 0x20;
    pub(super) const LD_IND_WORD: u8 = 0x40;
    pub(super) const AND64_IMM: u8 = 0x57;
    pub(super) const LSH64_IMM: u8 = 0x67;
    pub(super) const XOR64_REG: u8 = 0xaf;
    pub(super) const MUL32_IMM: u8 = 0x24;
    pub(super) const RSH32_IMM: u8 = 0x74;
    pub(super) const JEQ_IMM: u8 = 0x15;
    pub(super) const JNE_IMM: u8 = 0x55;
    pub(super) const EXIT: u8 = 0x95;
}

/// r6: the packet (where `LD_ABS` looks), r7: the hash so far, r8: the IPv4 header's length. `LD_ABS` and
/// `LD_IND` put their result into r0, and end the program with 0 where the packet is too short. The driver
/// takes the result modulo the number of queues.
const PROGRAM: [Instruction; 27] = [
    op(code::MOV64_REG, 0x16, 0, 0),
    // Anything but IPv4 (there should be none) goes to the first queue.
    op(code::LD_ABS_BYTE, 0, 0, 0),
    op(code::MOV64_REG, 0x08, 0, 0),
    op(code::AND64_IMM, 0x00, 0, 0xf0),
    op(code::JNE_IMM, 0x00, 20, 0x40),
    op(code::AND64_IMM, 0x08, 0, 0x0f),
    op(code::LSH64_IMM, 0x08, 0, 2),
    // Both addresses.
    op(code::LD_ABS_WORD, 0, 0, 12),
    op(code::MOV64_REG, 0x07, 0, 0),
    op(code::LD_ABS_WORD, 0, 0, 16),
    op(code::MUL32_IMM, 0x00, 0, MULTIPLIER),
    op(code::XOR64_REG, 0x07, 0, 0),
    // A fragment has no ports, or its siblings have none.
    op(code::LD_ABS_HALF, 0, 0, 6),
    op(code::AND64_IMM, 0x00, 0, 0x3fff),
    op(code::JNE_IMM, 0x00, 6, 0),
    op(code::LD_ABS_BYTE, 0, 0, 9),
    op(code::JEQ_IMM, 0x00, 1, 6),
    op(code::JNE_IMM, 0x00, 3, 17),
    // Both ports.
    op(code::LD_IND_WORD, 0x80, 0, 0),
    op(code::MUL32_IMM, 0x00, 0, MULTIPLIER),
    op(code::XOR64_REG, 0x07, 0, 0),
    // The high bits of a product depend on all bits of both.
    op(code::MOV64_REG, 0x70, 0, 0),
    op(code::MUL32_IMM, 0x00, 0, MULTIPLIER),
    op(code::RSH32_IMM, 0x00, 0, 16),
    op(code::EXIT, 0, 0, 0),
    op(code::MOV64_IMM, 0x00, 0, 0),
    op(code::EXIT, 0, 0, 0),
];

/// 2³² divided by the golden ratio (Knuth, TAOCP 6.4), as the signed immediate that it must be.
const MULTIPLIER: i32 = 0x9e37_79b1_u32.cast_signed();

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads; the kernel takes the rest as zero.
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

/// Gives the device of `queue` our rule.
///
/// # Errors
/// EPERM without CAP_BPF, ENOSYS without bpf(2), EINVAL on kernels before 4.16: the driver's own rule stays.
pub(super) fn steer(queue: &Queue) -> io::Result<()> {
    let program = load()?;
    let fd = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads one int through the pointer, the descriptor of a program; `fd` is one
    // and outlives the call. The driver takes a reference of its own.
    check(unsafe { libc::ioctl(queue.as_fd().as_raw_fd(), TUNSETSTEERINGEBPF, &raw const fd) })
}

fn load() -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        kind: SOCKET_FILTER,
        instructions: u32::try_from(PROGRAM.len()).unwrap_or(u32::MAX),
        program: PROGRAM.as_ptr() as u64,
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
    check(fd)?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
