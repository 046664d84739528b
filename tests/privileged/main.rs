//! Tests on the real kernel: BPF objects, namespaces, bpffs, tokens. They need root and fail without it.

mod bpffs;
mod container;
mod fetch;
mod host;
#[path = "../support/registry.rs"]
mod registry;
