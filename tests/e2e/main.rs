//! The product on real runtimes and a real kernel: a bundle goes in, effects are looked at, and nothing may be left.
//!
//! Every case gets a [`World`] of its own and ends with the proof that nothing is left. `itself.rs` runs all of
//! them once more with the hooks taken out, and then each must fail: a case that still passes proves nothing.

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/referrers_api.rs"]
mod referrers_api;
#[path = "../support/registry.rs"]
mod registry;
#[allow(dead_code, reason = "what cosign 2 attaches is made by the real one here")]
#[path = "../support/sigstore_world.rs"]
mod sigstore_world;
#[path = "../support/tools.rs"]
mod tools;

mod manual;
mod callers;
mod capabilities;
mod concurrent;
mod crun;
mod effects;
mod failed_creates;
mod hostile;
mod images;
mod images_made;
mod instruments;
mod itself;
mod lifetimes;
mod places;
mod podman;
mod podman_pods;
mod pods;
mod private_registries;
mod prometheus;
mod registries;
mod requests;
mod signers;
mod watching;

use support::lab::Hooks;
use support::world;
use world::World;

/// One case: what is arranged, done and asserted.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    run: fn(&mut World),
}

/// Runs one case with our hooks, and proves that it leaves nothing.
fn check(run: fn(&mut World)) {
    let mut world = World::new(Hooks::Ours);
    run(&mut world);
    world.lab.residue();
}

/// Makes a test of each function, and the list that the test of the suite goes through. A case that is not listed is dead
/// code, which the compiler reports.
macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        pub const CASES: &[$crate::Case] =
            &[$($crate::Case { name: concat!(module_path!(), "::", stringify!($name)), run: $name }),+];

        mod with_hooks {
            $(#[test] fn $name() { $crate::check(super::$name); })+
        }
    };
}
use cases;
