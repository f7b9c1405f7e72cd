//! Instructions as values: one function for each kind that our programs use.
//!
//! An opcode is composed as `linux/filter.h` does it, from class, size or operation, and source.

/// One instruction (`struct bpf_insn`, include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination register in the low half, source register in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () =
    assert!(size_of::<Instruction>() == 8, "the kernel steps through a program in units of 8 bytes");

/// The registers that our programs use. The kernel keeps R6 to R8 across packet loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    /// Receives what a packet load found, and holds the program's result at its end.
    R0 = 0,
    /// Holds the context, for a socket filter the packet, at the program's start.
    R1 = 1,
    /// Must hold the packet while packet loads run.
    R6 = 6,
    /// Free for the program.
    R7 = 7,
    /// Free for the program.
    R8 = 8,
}

use Register::R0;

const LOAD_U8: u8 = 0x30;
const LOAD_U16: u8 = 0x28;
const LOAD_U32: u8 = 0x20;
const LOAD_U32_BEHIND: u8 = 0x40;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const XOR: u8 = 0xaf;
const SHIFT_LEFT: u8 = 0x67;
const SHIFT_RIGHT_32: u8 = 0x74;
const MULTIPLY_32: u8 = 0x24;
const JUMP_IF: u8 = 0x15;
const JUMP_UNLESS: u8 = 0x55;
const EXIT: u8 = 0x95;

const fn encode(code: u8, to: Register, from: Register, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: (from as u8) << 4 | to as u8, offset, immediate }
}

/// Loads the byte at `at` of the packet into R0. A packet that is too short ends the program with 0.
pub(super) const fn load_u8(at: i32) -> Instruction {
    encode(LOAD_U8, R0, R0, 0, at)
}

/// Loads 16 bits as [`load_u8`] loads 8.
pub(super) const fn load_u16(at: i32) -> Instruction {
    encode(LOAD_U16, R0, R0, 0, at)
}

/// Loads 32 bits as [`load_u8`] loads 8.
pub(super) const fn load_u32(at: i32) -> Instruction {
    encode(LOAD_U32, R0, R0, 0, at)
}

/// Loads the 32 bits at the offset that `base` holds, as [`load_u8`] loads 8.
pub(super) const fn load_u32_behind(base: Register) -> Instruction {
    encode(LOAD_U32_BEHIND, R0, base, 0, 0)
}

/// Copies register `from` to register `to`.
pub(super) const fn copy(to: Register, from: Register) -> Instruction {
    encode(COPY, to, from, 0, 0)
}

/// Sets register `to` to `value`.
pub(super) const fn set(to: Register, value: i32) -> Instruction {
    encode(SET, to, R0, 0, value)
}

/// Keeps the bits of `mask` in register `to`.
pub(super) const fn and(to: Register, mask: i32) -> Instruction {
    encode(AND, to, R0, 0, mask)
}

/// Mixes register `from` into register `to` by exclusive or.
pub(super) const fn xor(to: Register, from: Register) -> Instruction {
    encode(XOR, to, from, 0, 0)
}

/// Shifts all 64 bits of register `to` left by `bits`.
pub(super) const fn shift_left(to: Register, bits: i32) -> Instruction {
    encode(SHIFT_LEFT, to, R0, 0, bits)
}

/// Shifts the low 32 bits of register `to` right by `bits` and clears the high ones.
pub(super) const fn shift_right_32(to: Register, bits: i32) -> Instruction {
    encode(SHIFT_RIGHT_32, to, R0, 0, bits)
}

/// Multiplies the low 32 bits of register `to` by `factor` and clears the high ones.
pub(super) const fn multiply_32(to: Register, factor: i32) -> Instruction {
    encode(MULTIPLY_32, to, R0, 0, factor)
}

/// Passes over `skip` instructions if register `of` equals `value`.
pub(super) const fn jump_if(of: Register, value: i32, skip: i16) -> Instruction {
    encode(JUMP_IF, of, R0, skip, value)
}

/// Passes over `skip` instructions unless register `of` equals `value`.
pub(super) const fn jump_unless(of: Register, value: i32, skip: i16) -> Instruction {
    encode(JUMP_UNLESS, of, R0, skip, value)
}

/// Ends the program; R0 is its result.
pub(super) const fn exit() -> Instruction {
    encode(EXIT, R0, R0, 0, 0)
}

/// Most instructions in a program that the kernel takes from a process without CAP_BPF (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// True if the program ends with an exit, and each jump leads forward to an instruction of the program: what the
/// verifier would refuse at run time fails to compile where this is asserted.
pub(super) const fn is_sound(program: &[Instruction]) -> bool {
    let ends = !program.is_empty() && program[program.len() - 1].code == EXIT;
    let mut at = 0;
    while at < program.len() {
        let Instruction { code, offset, .. } = program[at];
        let jumps = code == JUMP_IF || code == JUMP_UNLESS;
        let inside = offset >= 0 && at + 1 + (offset.unsigned_abs() as usize) < program.len();
        if jumps && !inside {
            return false;
        }
        at += 1;
    }
    ends && program.len() <= MAX_INSTRUCTIONS
}
