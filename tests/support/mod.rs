//! Shared by the tests that need root: a directory of their own, bundles, signed images, runtimes, the kernel's state.
//!
//! There are two kinds of panics. One that begins with `harness:` means that the machine or a tool failed; every other
//! one means that the product failed. The end-to-end suite's test of itself distinguishes them.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod bpf_proxy;
pub mod bpftool;
pub mod bundle;
pub mod docker;
pub mod docker_registry;
pub mod helper_process;
pub mod image;
pub mod kernel;
pub mod lab;
pub mod netns;
pub mod podman;
pub mod process;
pub mod runtime;
pub mod world;

/// Stops the test because the machine or a tool failed, not the product.
#[macro_export]
macro_rules! harness {
    ($($words:tt)*) => { panic!("harness: {}", format_args!($($words)*)) };
}
