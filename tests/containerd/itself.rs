//! Tests the suite itself: without our plugin and our installation, every case must fail.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

use crate::Case;
use crate::node::Node;
use crate::support::lab::Hooks;
use crate::support::world::World;

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

fn all() -> impl Iterator<Item = &'static Case> {
    [
        crate::boot::CASES,
        crate::crowds::CASES,
        crate::early::CASES,
        crate::installed::CASES,
        crate::kubelet_profile::CASES,
        crate::kubelet_profile::ON_1_7,
        crate::lifetimes::CASES,
        crate::missed::CASES,
        crate::pods::CASES,
        crate::policing::CASES,
        crate::protocol::CASES,
        crate::refusals::CASES,
        crate::variants::ON_CRUN,
        crate::variants::ON_1_7,
    ]
    .into_iter()
    .flatten()
}

#[test]
fn without_our_plugin_every_case_fails() {
    let loud = take_hook();
    set_hook(Box::new(move |panic| {
        if !EXPECTED.get() {
            loud(panic);
        }
    }));
    let mut wrong = Vec::new();
    for case in all() {
        let mut node = Node::new(World::new(Hooks::Removed), case.setup);
        EXPECTED.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut node)));
        EXPECTED.set(false);
        match outcome {
            Ok(()) => wrong.push(format!("{} passes without the plugin that it is about", case.name)),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
                if text.contains("harness: ") {
                    wrong.push(format!("{}: {text}", case.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
