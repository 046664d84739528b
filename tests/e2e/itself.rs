//! Tests the suite itself: without our hooks in the configuration, every case must fail.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

use crate::Case;
use crate::support::lab::Hooks;
use crate::world::World;

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

fn all() -> impl Iterator<Item = &'static Case> {
    [
        crate::callers::CASES,
        crate::capabilities::CASES,
        crate::concurrent::CASES,
        crate::counts::CASES,
        crate::crun::CASES,
        crate::effects::CASES,
        crate::failed_creates::CASES,
        crate::hostile::CASES,
        crate::images::CASES,
        crate::images_made::CASES,
        crate::lifetimes::CASES,
        crate::places::CASES,
        crate::pods::CASES,
        crate::podman::CASES,
        crate::policing::CASES,
        crate::podman_pods::CASES,
        crate::private_registries::CASES,
        crate::prometheus::CASES,
        crate::proxy::CASES,
        crate::proxy_images::CASES,
        crate::proxy_operation::CASES,
        crate::proxy_attacks::CASES,
        crate::proxy_fuzz::CASES,
        crate::proxy_tracing::CASES,
        crate::registries::CASES,
        crate::requests::CASES,
        crate::tokens::CASES,
        crate::watching::CASES,
    ]
    .into_iter()
    .flatten()
}

#[test]
fn without_hooks_every_case_fails() {
    let loud = take_hook();
    set_hook(Box::new(move |panic| {
        if !EXPECTED.get() {
            loud(panic);
        }
    }));
    let mut wrong = Vec::new();
    for case in all() {
        EXPECTED.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut world = World::new(Hooks::Removed);
            (case.run)(&mut world);
        }));
        EXPECTED.set(false);
        match outcome {
            Ok(()) => wrong.push(format!("{} passes without the hooks that it is about", case.name)),
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
