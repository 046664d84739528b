//! The objects of tests/objects/sources, compiled on this machine: each is loaded by bpftool, which is libbpf, and by
//! bpfman-hook. Whatever bpftool loads on a kernel, bpfman-hook loads. `BLESS=1` writes the result into docs/kernels.md.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and prints what it found")]

#[allow(dead_code, reason = "the privileged tests use the rest")]
#[path = "../privileged/objects/bed.rs"]
mod bed;
mod build;
mod effects;
mod kinds;
mod share;
