//! The product on real runtimes and a real kernel: a bundle is run, its effects are checked, and nothing may be left
//! behind.
//!
//! Every case gets a [`World`] of its own and ends with the check that nothing is left. `itself.rs` runs all of them
//! once more without the hooks, and then each must fail: a case that still passes proves nothing.

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

mod callers;
mod capabilities;
mod concurrent;
mod counts;
mod crun;
mod docker;
mod effects;
mod failed_creates;
mod guarded;
mod hostile;
mod images;
mod images_made;
mod instruments;
mod itself;
mod lifetimes;
mod manual;
mod places;
mod podman;
mod podman_pods;
mod pods;
mod policing;
mod private_registries;
mod profile;
mod prometheus;
mod proxy;
mod proxy_attacks;
mod proxy_fuzz;
mod proxy_images;
mod proxy_operation;
mod proxy_tracing;
mod registries;
mod requests;
mod signers;
mod tokens;
mod watching;

use support::lab::Hooks;
use support::world;
use world::World;

/// One case: setup, actions and assertions.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    run: fn(&mut World),
}

/// Runs one case with our hooks, and checks that it leaves nothing behind.
fn check(run: fn(&mut World)) {
    let mut world = World::new(Hooks::Ours);
    run(&mut world);
    world.lab.residue();
}

/// Generates a test for each function, and the list that the suite's own test iterates over. A case that is not listed
/// is dead code, which the compiler reports.
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
