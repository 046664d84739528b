//! Concurrent fetches of one image, and interrupted fetches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bpfman_hook::image::ImageError;
use bpfman_hook::model::bytecode::PullPolicy;

use crate::registry::{Behaviour, Registry, Reply};
use crate::world::{World, data, repository};

#[test]
fn concurrent_pulls_of_one_image_fetch_it_once() {
    for pull in [PullPolicy::IfNotPresent, PullPolicy::Always] {
        let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
        let reference = format!("{}/bpf/key-v3:v1", registry.host());
        let mut world = World::signed(&["keys/cosign-v3.pub"]);
        world.fetch(&reference).unwrap();
        let alone = registry.requests().len();
        registry.clear();
        std::fs::remove_dir_all(world.path("cache")).unwrap();
        world.pull = pull;
        let gate = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    gate.wait();
                    world.fetch(&reference).unwrap();
                });
            }
        });
        let blobs: Vec<String> = registry.requests().into_iter().filter(|request| request.contains("/blobs/")).collect();
        let mut once = blobs.clone();
        once.sort();
        once.dedup();
        assert_eq!(blobs.len(), once.len(), "{blobs:?}");
        if pull == PullPolicy::IfNotPresent {
            assert_eq!(registry.requests().len(), alone, "{:?}", registry.requests());
        }
    }
}

#[test]
fn blobs_fetched_before_an_interruption_are_not_fetched_again() {
    for part in ["layer", "config"] {
        one_that_is_interrupted(part);
    }
}

fn one_that_is_interrupted(part: &str) {
    let broken = Arc::new(AtomicBool::new(true));
    let flag = broken.clone();
    let manifest = repository("images/registry", "img/gzip")["tags"]["v1"].as_str().unwrap().to_owned();
    let manifest = std::fs::read(data("images/registry/blobs/sha256").join(&manifest[7..])).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let descriptor = if part == "layer" { &manifest["layers"][0] } else { &manifest["config"] };
    let missing = descriptor["digest"].as_str().unwrap().to_owned();
    let name = missing.clone();
    let hook = move |request: &crate::registry::Request| {
        let cut = flag.load(Ordering::SeqCst) && request.target.ends_with(&name);
        if cut { Reply::Status(500) } else { Reply::Normal }
    };
    let registry = Registry::start(&data("images/registry"), Behaviour { hook: Some(Box::new(hook)), ..Behaviour::default() });
    let reference = format!("{}/img/gzip:v1", registry.host());
    let world = World::unsigned();
    let (error, _) = world.error(&reference);
    assert!(matches!(error, ImageError::Remote { .. }), "{error:?}");
    broken.store(false, Ordering::SeqCst);
    registry.clear();
    world.fetch(&reference).unwrap();
    let blobs: Vec<String> = registry.requests().into_iter().filter(|request| request.contains("/blobs/")).collect();
    assert!(blobs.len() == 1 && blobs[0].ends_with(&missing), "{part}: {blobs:?}");
}

#[test]
fn a_pull_to_the_cache_reports_that_it_cannot_be_stored() {
    let registry = Registry::start(&data("images/registry"), Behaviour::default());
    let reference = format!("{}/img/gzip:v1", registry.host());
    let mut world = World::unsigned();
    world.fetch(&reference).unwrap();
    // A directory in place of a file of the cache.
    std::fs::remove_file(world.path("cache/index.json")).unwrap();
    std::fs::create_dir(world.path("cache/index.json")).unwrap();
    world.pull = PullPolicy::Always;
    world
        .fetch(&reference)
        .unwrap_or_else(|error| panic!("a start does not need the cache: {}", crate::world::sentence(&error)));
    world.images = world.images.clone().to_keep();
    let (error, text) = world.error(&reference);
    assert!(matches!(error, ImageError::Cache { .. }), "{text}");
}

/// Both processes want one image at the same time, and the rule of the one that fetches it refuses it.
#[test]
fn a_waiter_under_other_rules_gets_its_own_verdict() {
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = asked.clone();
    let hook = move |request: &crate::registry::Request| {
        if request.target.contains("/manifests/v1") && count.fetch_add(1, Ordering::SeqCst) == 0 {
            std::thread::sleep(std::time::Duration::from_millis(700));
        }
        Reply::Normal
    };
    let registry = Registry::start(&data("images/registry"), Behaviour { hook: Some(Box::new(hook)), ..Behaviour::default() });
    let reference = format!("{}/img/gzip:v1", registry.host());
    let open = World::unsigned();
    let mut strict = World::signed(&["keys/cosign-v3.pub"]);
    strict.images = open.images.clone();
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| strict.error(&reference).1);
        while asked.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        open.fetch(&reference).unwrap_or_else(|error| panic!("{}", crate::world::sentence(&error)));
        let refused = refused.join().unwrap();
        assert!(refused.contains("it is not signed"), "{refused}");
    });
    assert!(asked.load(Ordering::SeqCst) >= 2, "{}", asked.load(Ordering::SeqCst));
}
