//! The NRI plugin and the strict handler on a real containerd: pods are created like the kubelet creates them, their
//! effects are checked, and nothing may be left behind.
//!
//! Every case gets a [`Node`] of its own, with a containerd that nothing else uses. `itself.rs` runs all of them once
//! more without our plugin, and then each must fail: a case that still passes proves nothing.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/registry.rs"]
mod registry;

mod cri;
mod node;
mod pod;
mod workload;

mod proxy;

mod boot;
mod crowds;
mod early;
mod installed;
mod itself;
mod kubelet_profile;
mod lifetimes;
mod measure;
mod missed;
mod pods;
mod policing;
mod protocol;
mod refusals;
mod token_pods;
mod variants;

use node::{Node, Setup};
use support::lab::Hooks;
use support::world::World;

/// One case: setup, actions and assertions.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    setup: Setup,
    run: fn(&mut Node),
}

impl Case {
    /// Runs the case, and checks that it leaves nothing behind.
    fn check(&self) {
        let mut node = Node::new(World::new(Hooks::Ours), self.setup);
        (self.run)(&mut node);
        node.end();
        node.world.lab.residue();
    }
}

/// Generates a test for each function, and the list that the suite's own test iterates over. A case that is not listed
/// is dead code, which the compiler reports.
macro_rules! cases {
    ($list:ident, $setup:expr, $tests:ident: $($name:ident),+ $(,)?) => {
        pub const $list: &[$crate::Case] = &[$($crate::Case {
            name: concat!(module_path!(), "::", stringify!($tests), "::", stringify!($name)),
            setup: $setup,
            run: $name,
        }),+];

        mod $tests {
            $(#[test] fn $name() {
                let case = super::$list.iter().find(|case| case.name.ends_with(concat!("::", stringify!($name))));
                case.expect("the case is listed").check();
            })+
        }
    };
    ($($name:ident),+ $(,)?) => { $crate::cases!(CASES, $crate::node::USUAL, with_runc: $($name),+); };
}
use cases;
