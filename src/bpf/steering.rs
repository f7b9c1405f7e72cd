//! The program that chooses a TUN queue for a packet, from the packet alone: by its addresses, and by the ports of
//! TCP and UDP unless the packet is a fragment.

use super::Instruction;
use super::instruction::Register::{R0, R1, R6, R7, R8};
use super::instruction::{
    and, copy, exit, is_sound, jump_if, jump_unless, load_u8, load_u16, load_u32, load_u32_behind,
    multiply_32, set, shift_left, shift_right_32, xor,
};

/// The steering program. R7 holds the hash so far, R8 the IPv4 header's length. The driver takes the result modulo
/// the number of queues.
pub const PROGRAM: [Instruction; 27] = [
    copy(R6, R1),
    // Anything but IPv4 (there should be none) goes to the first queue.
    load_u8(0),
    copy(R8, R0),
    and(R0, 0xf0),
    jump_unless(R0, 0x40, 20),
    and(R8, 0x0f),
    shift_left(R8, 2),
    // Both addresses.
    load_u32(12),
    copy(R7, R0),
    load_u32(16),
    multiply_32(R0, MULTIPLIER),
    xor(R7, R0),
    // A fragment has no ports, or its siblings have none: its addresses are all that counts.
    load_u16(6),
    and(R0, 0x3fff),
    jump_unless(R0, 0, 6),
    load_u8(9),
    jump_if(R0, PROTOCOL_TCP, 1),
    jump_unless(R0, PROTOCOL_UDP, 3),
    // Both ports.
    load_u32_behind(R8),
    multiply_32(R0, MULTIPLIER),
    xor(R7, R0),
    // The high bits of a product depend on all bits of both factors.
    copy(R0, R7),
    multiply_32(R0, MULTIPLIER),
    shift_right_32(R0, 16),
    exit(),
    set(R0, 0),
    exit(),
];

const _: () = assert!(is_sound(&PROGRAM), "a jump leads out of the program, or its end is open");

/// 2³² divided by the golden ratio (Knuth, TAOCP 6.4), as the signed immediate that it must be.
const MULTIPLIER: i32 = 0x9e37_79b1_u32.cast_signed();
const PROTOCOL_TCP: i32 = 6;
const PROTOCOL_UDP: i32 = 17;
