//! Tests on the real kernel: BPF objects, namespaces, bpffs, tokens. They need root and fail without it.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod bpffs;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../support/bpftool.rs"]
mod bpftool;
mod built_in;
mod caps;
mod child;
mod container;
mod fetch;
mod gate;
mod guard;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../support/helper_process.rs"]
mod helper_process;
mod host;
mod objects;
mod police;
mod probes;
#[path = "../support/registry.rs"]
mod registry;
mod signatures;
mod token_matrix;
mod token_needs;
mod token_reach;
