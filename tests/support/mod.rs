//! What the tests that need root share: a directory of their own, bundles, signed images, runtimes, the kernel's view.
//!
//! Two kinds of panic come out of here. One that begins with `harness:` says that the machine or a tool did not do its part;
//! every other one is a verdict on the product. The end-to-end suite's test of itself tells them apart.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod bundle;
pub mod docker_registry;
pub mod image;
pub mod kernel;
pub mod lab;
pub mod netns;
pub mod podman;
pub mod process;
pub mod runtime;
pub mod world;

/// Stops the test because the machine or a tool is at fault, not the product.
#[macro_export]
macro_rules! harness {
    ($($words:tt)*) => { panic!("harness: {}", format_args!($($words)*)) };
}
