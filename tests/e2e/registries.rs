//! Images from a registry: fetched and verified at a start, then served from the cache without a word to the network.

use std::fs;
use std::path::PathBuf;

use crate::registry::{Behaviour, Registry};
use crate::support::bundle::Bundle;
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![
    an_image_that_cosign_2_signed_is_fetched_once,
    an_image_that_cosign_3_signed_is_fetched_once,
    an_image_that_another_key_signed_in_a_registry,
    an_image_that_was_never_pulled_and_may_not_be,
];

/// The recorded registry: images with signatures that cosign itself made.
fn registry() -> Registry {
    Registry::start(&data("registry"), Behaviour::default())
}

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures").join(name)
}

/// A container that asks for the XDP program of an image in the registry, which only a cosign key may have signed.
fn asking(world: &World, registry: &Registry, repository: &str, key: &str) -> Bundle {
    let trusted = world.lab.write(&format!("{key}.pub"), &fs::read(data("keys").join(format!("{key}.pub"))).expect("a key"));
    world.lab.policy(&format!(
        "[[image]]\nrepository = \"{}/bpf/*\"\nsigned-by = {{ key = \"{}\" }}\n[[container]]\nprograms = [\"xdp\"]\n",
        registry.host(),
        trusted.display()
    ));
    let image = format!("{}/bpf/{repository}:v1", registry.host());
    Bundle::new(&world.lab, repository).ask("image", &image).ask("programs", "xdp:pass iface=lo")
}

fn fetched_once(world: &mut World, repository: &str, key: &str, layout: &str) {
    let registry = registry();
    let bundle = asking(world, &registry, repository, key).script("echo ready; read go").write();
    let running = world.start(&bundle);
    world.lab.expect_links(1, "the image's program is attached");
    let program = world.inspect(&bundle.id)[0]["programs"][0].clone();
    assert_eq!((program["verdict"].as_str(), program["layout"].as_str()), (Some("verified"), Some(layout)), "{program:#}");
    assert!(registry.requests().iter().any(|target| target.contains("/blobs/")), "{:?}", registry.requests());
    running.finish();

    registry.clear();
    let again = world.start(&bundle);
    world.lab.expect_links(1, "the cached image's program is attached");
    assert_eq!(registry.requests(), Vec::<String>::new(), "an image that is in the cache asked the registry");
    again.finish();
}

fn an_image_that_cosign_2_signed_is_fetched_once(world: &mut World) {
    fetched_once(world, "key-v2", "cosign-v2", "simple-signing");
}

fn an_image_that_cosign_3_signed_is_fetched_once(world: &mut World) {
    fetched_once(world, "key-v3", "cosign-v3", "bundle");
}

fn an_image_that_another_key_signed_in_a_registry(world: &mut World) {
    let registry = registry();
    let bundle = asking(world, &registry, "key-v2", "wrong");
    world.refused(bundle, 1, &["key-v2", "sign"]);
}

fn an_image_that_was_never_pulled_and_may_not_be(world: &mut World) {
    let registry = registry();
    let bundle = asking(world, &registry, "key-v2", "cosign-v2").ask("pull-policy", "Never").script("echo started").write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    world.said(&ended, 1, &["not in the cache", "Never"]);
    assert_eq!(registry.requests(), Vec::<String>::new(), "Never asked the registry");
}
