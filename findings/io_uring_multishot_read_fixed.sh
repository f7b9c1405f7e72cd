#!/usr/bin/env bash
# io-uring 0.7.15 (crates.io), 2026-11-27, Linux 6.7 or newer (multishot read).
# Source: the crate's documentation, https://docs.rs/io-uring/0.7.15/io_uring/opcode/struct.ReadMulti.html, and
#   io_uring_enter(2), IOSQE_FIXED_FILE.
# Behaviour: opcode::ReadMulti takes a registered file (types::Fixed) and puts its slot number into the entry, but
#   not the flag that says that the number is a slot. The kernel reads it as a file descriptor: with no such
#   descriptor the request ends in EBADF, and with one it would read from another file. opcode::Read on the same slot
#   works.
# Guess: every opcode whose constructor accepts types::Fixed sets IOSQE_FIXED_FILE, as Read and Write do.
set -euo pipefail

dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "read-multi-fixed"
version = "0.0.0"
edition = "2021"

[dependencies]
io-uring = "=0.7.15"
libc = "=0.2.177"
TOML
cat >"$dir/src/main.rs" <<'RUST'
use io_uring::{opcode, squeue, types::Fixed, IoUring};
use std::os::fd::AsRawFd;

/// Far above every descriptor of this process.
const SLOT: u32 = 900;
const GROUP: u16 = 7;

fn submit(ring: &mut IoUring, entry: squeue::Entry) -> i32 {
    unsafe { ring.submission().push(&entry).expect("room") };
    ring.submit_and_wait(1).expect("submit");
    ring.completion().next().expect("a completion").result()
}

fn main() {
    let mut ring = IoUring::new(8).expect("io_uring");
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    ring.submitter().register_files_sparse(1000).expect("table of files");
    ring.submitter().register_files_update(SLOT, &[reader.as_raw_fd()]).expect("registered");
    std::io::Write::write_all(&mut writer, b"hello").expect("written");

    let mut memory = vec![0u8; 64];
    let provide = opcode::ProvideBuffers::new(memory.as_mut_ptr(), 64, 1, GROUP, 0).build();
    assert!(submit(&mut ring, provide) >= 0, "a buffer for the multishot read");
    let multi = submit(&mut ring, opcode::ReadMulti::new(Fixed(SLOT), 0, GROUP).build());

    let mut buffer = [0u8; 64];
    let single = submit(&mut ring, opcode::Read::new(Fixed(SLOT), buffer.as_mut_ptr(), 64).build());
    println!("ReadMulti on a registered pipe: {multi}; Read on the same slot: {single}");
    let bad = -libc::EBADF;
    if multi != bad || single != 5 {
        println!("changed: expected {bad} and 5");
        std::process::exit(1);
    }
}
RUST
cargo run --quiet --manifest-path "$dir/Cargo.toml"
