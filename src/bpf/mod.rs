//! Programs that the kernel runs for us: instructions, a loader, and the programs themselves.
//!
//! # Theory of operation
//!
//! A program is a constant of this room, written instruction by instruction, so that neither a compiler for BPF nor
//! an object file is needed. [`load_socket_filter`] hands it to bpf(2), where the kernel's verifier walks every path
//! through it, and returns a descriptor. The room that owns the device or socket attaches that descriptor to it; the
//! kernel then holds a reference of its own, and ours may be closed.
//!
//! ```text
//!   steering::PROGRAM ──► load_socket_filter ──► descriptor ──► tun: TUNSETSTEERINGEBPF
//! ```
//!
//! Nothing here is needed to carry packets. A kernel that refuses a program (no bpf(2), no CAP_BPF) leaves the
//! daemon with the kernel's own rule, and the caller says so.

mod instruction;
mod loader;
pub mod steering;

pub use instruction::Instruction;
pub use loader::load_socket_filter;

#[cfg(test)]
mod tests;
