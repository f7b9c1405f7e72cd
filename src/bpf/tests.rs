//! Encoding against bytes composed by hand, and the programs against the kernel's verifier (needs root).

use super::instruction::Register::{R0, R6, R7, R8};
use super::instruction::{copy, exit, is_sound, jump_if, jump_unless, load_u32_behind, set};
use super::*;

#[test]
fn an_instruction_is_as_the_kernel_reads_it() {
    // SAFETY: an instruction is eight bytes without padding, and any value of them is a valid array of bytes.
    let bytes =
        |instruction: Instruction| unsafe { std::mem::transmute::<Instruction, [u8; 8]>(instruction) };
    assert_eq!(bytes(copy(R6, R7)), [0xbf, 0x76, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes(load_u32_behind(R8)), [0x40, 0x80, 0, 0, 0, 0, 0, 0]);
    let expected = [[0x55, 0].as_slice(), &3i16.to_ne_bytes(), &(-2i32).to_ne_bytes()].concat();
    assert_eq!(bytes(jump_unless(R0, -2, 3)).to_vec(), expected);
}

#[test]
fn a_program_that_runs_off_its_end_is_not_sound() {
    assert!(is_sound(&[jump_if(R0, 0, 1), set(R0, 0), exit()]));
    assert!(!is_sound(&[]));
    assert!(!is_sound(&[exit(), set(R0, 0)]));
    assert!(!is_sound(&[jump_if(R0, 0, 1), exit()]), "one beyond the last");
    assert!(!is_sound(&[jump_unless(R0, 0, -1), exit()]), "backward");
}

#[test]
fn the_kernel_takes_the_steering_program() {
    assert!(load_socket_filter(&steering::PROGRAM).is_ok());
}
