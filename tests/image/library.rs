//! Images that are built here, inspected, and transferred from one machine to another.

use std::collections::BTreeMap;
use std::time::Instant;

use bpfman_hook::image::transfer::build;
use bpfman_hook::image::transfer::build::{Described, Input};
use bpfman_hook::image::{Archive, ImageError, ImageSet, InUse, Want};
use bpfman_hook::model::bytecode::{Bytecode, ImageVerdict, PullPolicy};
use bpfman_hook::model::reference::Reference;

use serde_json::json;

use crate::registry::{Behaviour, Registry};
use crate::world::{LayoutBuilder, OBJECT, World, data, digest_of, sentence};

fn reference(text: &str) -> Reference {
    text.parse().unwrap_or_else(|err| panic!("{text}: {err}"))
}

fn packed(architectures: &[&str]) -> ImageSet {
    let described = Described {
        programs: BTreeMap::from([("pass".to_owned(), "xdp".to_owned())]),
        maps: BTreeMap::from([("counter".to_owned(), "array".to_owned())]),
    };
    let input = |architecture: &&str| Input {
        architecture: (*architecture).to_owned(),
        name: "pass.o".into(),
        object: OBJECT.to_vec(),
        described: described.clone(),
    };
    let inputs: Vec<Input> = architectures.iter().map(input).collect();
    build::pack(&inputs, architectures.len() > 1, &Default::default())
}

fn import(world: &World, archive: &Archive, name: &str) -> Result<Bytecode, ImageError> {
    let (reference, rules) = (reference(name), world.rules.iter().collect::<Vec<_>>());
    let (_, digest) = archive.images().unwrap().remove(0);
    let want = Want {
        reference: &reference,
        pull: PullPolicy::IfNotPresent,
        rules: &rules,
        keys: &world.keys,
        policy: world.policy,
        registries: &world.registries,
        deadline: Instant::now() + world.patience,
        tenant: "",
        in_use: InUse::NONE,
    };
    world.images.import(&want, archive, &digest)
}

#[test]
fn a_built_image_is_read_back_from_every_location() {
    let native = build::native();
    let other = if native == "arm64" { "amd64" } else { "arm64" };
    for architectures in [&[native][..], &[other, native]] {
        let image_set = packed(architectures);
        let world = World::unsigned();
        for place in ["oci:@/layout:v1", "oci-archive:@/archive.tar:v1", "ghcr.io/acme/pass:v1"] {
            let place = place.replace('@', &world.dir.path().display().to_string());
            world.images.deliver(&image_set, &reference(&place), None).unwrap();
            let got = world.fetch(&place).unwrap_or_else(|err| panic!("{place}: {}", sentence(&err)));
            assert_eq!((got.digest, got.object.as_slice()), (image_set.digest, OBJECT), "{place}");
            let details = world.images.details(&reference(&place)).unwrap();
            assert_eq!(details.platforms.len(), architectures.len(), "{place}: {:?}", details.platforms);
            assert_eq!(details.labels.unwrap().programs["pass"], "xdp");
            assert_eq!(world.images.local(&reference(&place)).unwrap(), image_set, "{place}");
        }
    }
}

#[test]
fn an_image_only_for_other_machines_is_not_cached() {
    let other = if build::native() == "arm64" { "amd64" } else { "arm64" };
    let both = packed(&[other, if other == "amd64" { "riscv64" } else { "loong64" }]);
    let world = World::unsigned();
    let error = world.images.deliver(&both, &reference("ghcr.io/acme/pass:v1"), None).unwrap_err();
    assert!(matches!(error, ImageError::Platform { .. }), "{}", sentence(&error));
    assert!(world.images.cache().images().unwrap().is_empty());
}

#[test]
fn a_layout_keeps_its_other_images() {
    let world = World::unsigned();
    let at = |tag: &str| reference(&format!("oci:{}/layout:{tag}", world.dir.path().display()));
    let (one, two) = (packed(&["amd64"]), packed(&["amd64", "arm64"]));
    world.images.deliver(&one, &at("v1"), None).unwrap();
    world.images.deliver(&two, &at("v2"), None).unwrap();
    assert_eq!(world.images.local(&at("v1")).unwrap().digest, one.digest);
    assert_eq!(world.images.local(&at("v2")).unwrap().digest, two.digest);
    world.images.deliver(&two, &at("v1"), None).unwrap();
    assert_eq!(world.images.local(&at("v1")).unwrap().digest, two.digest);
}

#[test]
fn signatures_are_exported_to_a_machine_without_network() {
    for (repository, key, layout) in
        [("key-v2", "keys/cosign-v2.pub", "simple-signing"), ("key-v3", "keys/cosign-v3.pub", "bundle")]
    {
        let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
        let name = format!("{}/bpf/{repository}:v1", registry.host());
        let world = World::signed(&[key]);
        let pulled = world.fetch(&name).unwrap();
        let file = world.path("carried.tar");
        let image_set = world.images.local(&reference(&name)).unwrap();
        world.images.deliver(&image_set, &reference(&format!("oci-archive:{}", file.display())), Some(&name)).unwrap();
        drop(registry);

        let archive = Archive::read(&file).unwrap();
        assert_eq!(archive.images().unwrap(), [(Some(name.clone()), pulled.digest)]);
        let mut there = World::signed(&[key]);
        there.pull = PullPolicy::Never;
        assert!(matches!(there.error(&name).0, ImageError::NotCached { .. }));
        let imported = import(&there, &archive, &name).unwrap_or_else(|err| panic!("{name}: {}", sentence(&err)));
        assert_eq!((imported.digest, imported.object_digest), (pulled.digest, digest_of(OBJECT)));
        assert!(matches!(&imported.verdict, ImageVerdict::Verified { layout: found, .. } if found == layout), "{imported:?}");
        let started = there.fetch(&name).unwrap();
        assert_eq!((started.digest, started.verdict), (imported.digest, imported.verdict));
        // And from there to a third machine.
        assert_eq!(there.images.local(&reference(&name)).unwrap(), image_set);

        let foreign = World::signed(&["keys/wrong.pub"]);
        let refused = import(&foreign, &archive, &name).unwrap_err();
        assert!(matches!(refused, ImageError::BadSignature { .. }), "{}", sentence(&refused));
        assert!(foreign.images.cache().images().unwrap().is_empty());
    }
}

#[test]
fn an_index_is_exported_without_what_the_cache_lacks() {
    let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
    let name = format!("{}/bpf/index:v1", registry.host());
    let world = World::unsigned();
    let pulled = world.fetch(&name).unwrap();
    let image_set = world.images.local(&reference(&name)).unwrap();
    assert_eq!((image_set.digest, image_set.left_out.as_slice()), (pulled.digest, &["linux/s390x".to_owned()][..]));
    let file = format!("oci-archive:{}/carried.tar", world.dir.path().display());
    world.images.deliver(&image_set, &reference(&file), Some(&name)).unwrap();
    let there = World::unsigned();
    let imported = import(&there, &Archive::read(&world.path("carried.tar")).unwrap(), &name).unwrap();
    assert_eq!(imported.digest, pulled.digest);
}

#[test]
fn a_digest_in_the_name_must_be_that_of_the_archive() {
    let world = World::unsigned();
    let file = format!("oci-archive:{}/x.tar", world.dir.path().display());
    world.images.deliver(&packed(&[build::native()]), &reference(&file), None).unwrap();
    let archive = Archive::read(&world.path("x.tar")).unwrap();
    let name = format!("ghcr.io/acme/pass@{}", digest_of(b"another"));
    assert!(matches!(import(&world, &archive, &name), Err(ImageError::Tampered { .. })));
}

#[test]
fn every_signature_is_examined_and_a_bad_one_does_not_hide_a_good_one() {
    let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
    let name = format!("{}/bpf/two-keys:v1", registry.host());
    for (key, counts) in [("keys/cosign-v2.pub", true), ("keys/cosign-v3.pub", true), ("keys/wrong.pub", false)] {
        let world = World::signed(&[key]);
        let (reference, rules) = (reference(&name), world.rules.iter().collect::<Vec<_>>());
        let want = Want {
            reference: &reference,
            pull: PullPolicy::Always,
            rules: &rules,
            keys: &world.keys,
            policy: world.policy,
            registries: &world.registries,
            deadline: Instant::now() + world.patience,
            tenant: "",
            in_use: InUse::NONE,
        };
        let found = world.images.examine(&want).unwrap();
        assert_eq!(found.signatures.len(), 2, "{found:#?}");
        let good = found.signatures.iter().filter(|signature| signature.rules[0].by.is_some()).count();
        assert_eq!((good, found.refused.is_none()), (usize::from(counts), counts), "{key}: {found:#?}");
        let told =
            found.signatures.iter().all(|signature| signature.rules[0].by.is_some() != signature.rules[0].reason.is_some());
        assert!(told && found.problem.is_none(), "{found:#?}");
        assert!(!world.path("cache").exists(), "examining stores nothing");
    }
}

/// Regardless of the tool that made it, and of what is beside the object in it.
#[test]
fn every_pulled_image_can_be_inspected() {
    let registry = Registry::start(&data("images/registry"), Behaviour::default());
    for (image, whole) in [
        ("umoci", true),
        ("docker-v2s2", true),
        ("podman", true),
        ("gzip", true),
        ("zstd", true),
        ("plain-tar", true),
        ("artifact-elf", true),
        ("gadget", true),
        // Of multi-platform images, the cache holds what this machine needs.
        ("index", false),
    ] {
        let world = World::unsigned();
        let name = format!("{}/img/{image}:v1", registry.host());
        let got = world.fetch(&name).unwrap_or_else(|err| panic!("{image}: {}", sentence(&err)));
        let details = world.images.details(&reference(&name)).unwrap_or_else(|err| panic!("{image}: {}", sentence(&err)));
        assert_eq!((details.digest, &details.object), (got.digest, &got.object), "{image}");
        let image_set = world.images.local(&reference(&name)).unwrap();
        assert_eq!(image_set.left_out.is_empty(), whole, "{image}: {:?}", image_set.left_out);
    }
}

/// An Inspektor Gadget image, whose WebAssembly layer is ignored.
#[test]
fn layers_without_bytecode_are_ignored() {
    let world = World::unsigned();
    let store = world.path("store");
    let layout = LayoutBuilder::new(&store);
    let manifest = layout.artifact(&[
        ("application/vnd.gadget.ebpf.program.v1+binary", OBJECT, json!({})),
        ("application/vnd.gadget.wasm.program.v1+binary", b"\0asm", json!({})),
    ]);
    let digest = layout.json(&manifest).to_string();
    let repos = json!({ "acme/gadget": { "tags": { "v1": digest }, "manifests": [digest] } });
    crate::world::write(&store.join("repos.json"), repos.to_string().as_bytes());
    let registry = Registry::start(&store, Behaviour::default());
    let name = format!("{}/acme/gadget:v1", registry.host());
    let got = world.fetch(&name).unwrap_or_else(|err| panic!("{}", sentence(&err)));
    let details = world.images.details(&reference(&name)).unwrap_or_else(|err| panic!("{}", sentence(&err)));
    assert_eq!(details.object, got.object);
    let image_set = world.images.local(&reference(&name)).unwrap();
    assert_eq!(image_set.left_out, ["application/vnd.gadget.wasm.program.v1+binary"]);
}
