//! Each operation is killed before each system call that changes something, and each of these calls is made to fail:
//! nothing may be left after `gc`, the next start or poststop, and no start may succeed without everything it
//! requested.
//!
//! `make test-some-faults` tries some of the calls, selected anew each time (`FAULT_SEED` repeats a selection); `make test-faults`
//! tries all.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod bench;
mod limits;
mod stepper;

#[path = "../privileged/container.rs"]
#[allow(dead_code, reason = "the privileged tests use more of it")]
mod container;
#[path = "../support/registry.rs"]
mod registry;
#[path = "../support/mod.rs"]
mod support;

use std::fs;

use bench::{Bench, each_fault};
use registry::{Behaviour, Registry};
use stepper::{Fault, step};
use support::lab::Lab;
use support::world::object_path;

#[test]
fn create_runtime() {
    let mut bench = Bench::new();
    let bench = &mut bench;
    let counted = {
        let pod = bench.container();
        let stepped = step(&mut bench.hook("createRuntime"), &pod.creating(), Fault::None);
        assert_eq!(stepped.status, Some(0), "{}", stepped.said);
        bench.complete(&pod, "without a fault");
        bench.end(pod, true);
        stepped.calls
    };
    each_fault("createRuntime", &counted, |turn, fault| {
        let pod = bench.container();
        let stepped = step(&mut bench.hook("createRuntime"), &pod.creating(), fault);
        let context = format!("createRuntime, {fault:?} {:?}: {:?} {}", stepped.hit, stepped.status, stepped.said);
        if stepped.status == Some(0) {
            bench.complete(&pod, &context);
        }
        assert!(!stepped.said.contains("damaged") && stepped.status != Some(101), "{context}");
        // A runtime that retries for the same init.
        if turn % 4 == 3 {
            let again = step(&mut bench.hook("createRuntime"), &pod.creating(), Fault::None);
            if again.status == Some(0) {
                bench.complete(&pod, &format!("{context}; again: {}", again.said));
            }
        }
        bench.end(pod, stepped.status == Some(0) || turn % 4 == 1);
        bench.recover(turn);
        bench.clean(&context);
        stepped.hit.is_some()
    });
}

#[test]
fn poststop() {
    let mut bench = Bench::new();
    let bench = &mut bench;
    let run = |bench: &mut Bench, fault| {
        let mut pod = bench.started();
        pod.stop();
        step(&mut bench.hook("poststop"), &pod.stopped(), fault)
    };
    let counted = run(bench, Fault::None).calls;
    bench.clean("without a fault");
    each_fault("poststop", &counted, |turn, fault| {
        let stepped = run(bench, fault);
        bench.recover(turn);
        bench.clean(&format!("poststop, {fault:?} {:?}: {:?} {}", stepped.hit, stepped.status, stepped.said));
        stepped.hit.is_some()
    });
}

#[test]
fn load() {
    let mut bench = Bench::new();
    let bench = &mut bench;
    let object = object_path("demo").display().to_string();
    let words = ["load", "file", "--path", &object, "--programs", "xdp:count_packets"];
    let unload = |lab: &Lab, context: &str| {
        let loaded = lab.json(&["list", "programs"]);
        let ids: Vec<String> =
            loaded.as_array().unwrap().iter().filter_map(|one| Some(one["id"].as_u64()?.to_string())).collect();
        for id in &ids {
            lab.ours(&["unload", id]);
        }
        assert!(ids.len() < 2, "{context}: {loaded:#}");
        ids.len()
    };
    let counted = step(&mut bench.world.lab.command(&words), "", Fault::None).calls;
    assert_eq!(unload(&bench.world.lab, "without a fault"), 1);
    each_fault("load", &counted, |turn, fault| {
        let stepped = step(&mut bench.world.lab.command(&words), "", fault);
        let context = format!("load, {fault:?} {:?}: {:?} {}", stepped.hit, stepped.status, stepped.said);
        assert_ne!(stepped.status, Some(101), "{context}");
        bench.recover(turn);
        let there = unload(&bench.world.lab, &context);
        match stepped.status {
            Some(0) => assert_eq!(there, 1, "{context}"),
            Some(_) => assert_eq!(there, 0, "{context}"),
            // Killed: before or after the commit.
            None => {}
        }
        bench.clean(&context);
        stepped.hit.is_some()
    });
}

#[test]
fn pull() {
    let mut bench = Bench::new();
    let bench = &mut bench;
    let store = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures/registry");
    let registry = Registry::start(&store, Behaviour::default());
    bench.world.lab.policy(&format!("[[image]]\nrepository = \"{}/bpf/*\"\nunsigned = true\n", registry.host()));
    let image = format!("{}/bpf/key-v2:v1", registry.host());
    let pull = |bench: &Bench, fault| step(&mut bench.world.lab.command(&["pull", &image]), "", fault);
    let forget = |bench: &Bench| {
        let cache = bench.world.lab.path("root/var/cache/bpfman-hook");
        if cache.exists() {
            fs::remove_dir_all(cache).unwrap();
        }
    };
    let first = pull(bench, Fault::None);
    assert_eq!(first.status, Some(0), "{}", first.said);
    each_fault("pull", &first.calls, |turn, fault| {
        forget(bench);
        let stepped = pull(bench, fault);
        let context = format!("pull, {fault:?} {:?}: {:?} {}", stepped.hit, stepped.status, stepped.said);
        assert_ne!(stepped.status, Some(101), "{context}");
        if turn.is_multiple_of(2) {
            bench.world.lab.ours(&["gc"]);
            bench.no_unfinished_image(&context);
        }
        // Leftovers do not prevent the next pull, and do not remain.
        let again = pull(bench, Fault::None);
        assert_eq!(again.status, Some(0), "{context}; again: {}", again.said);
        bench.world.lab.ours(&["image", "prune"]);
        bench.world.lab.ours(&["gc"]);
        bench.no_unfinished_image(&context);
        bench.clean(&context);
        stepped.hit.is_some()
    });
}
