//! Images from a registry: fetched and verified at a start, then served from the cache without network access.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::registry::{Behaviour, Registry};
use crate::support::bundle::Bundle;
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![
    an_image_that_cosign_2_signed_is_fetched_once,
    an_image_that_cosign_3_signed_is_fetched_once,
    an_image_that_another_key_signed_in_a_registry,
    an_uncached_image_with_pull_policy_never,
    an_image_that_an_identity_signed_is_fetched_once,
    an_image_of_another_identity_or_issuer,
    an_identity_is_verified_without_a_network,
];

/// The recorded registry: images with signatures made by cosign itself.
fn registry() -> Registry {
    Registry::start(&data("registry"), Behaviour::default())
}

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures").join(name)
}

/// Allows the images of these repositories if this signer signed them.
fn allow(world: &World, repositories: &str, signer: &str) {
    world.lab.policy(&format!(
        "[[image]]\nrepository = \"{repositories}\"\nsigned-by = {{ {signer} }}\n[[container]]\nprograms = [\"xdp\"]\n"
    ));
}

/// A recorded cosign key, in the form of a rule.
fn key(world: &World, name: &str) -> String {
    let name = format!("{name}.pub");
    let trusted = world.lab.write(&name, &fs::read(data("keys").join(&name)).expect("a key"));
    format!("key = \"{}\"", trusted.display())
}

/// The workflow that signed the recorded keyless images, and its OIDC issuer.
const WORKFLOW: &str = "https://github.com/acme/bpf/.github/workflows/release.yml@refs/heads/main";
const ISSUER: &str = "https://token.actions.githubusercontent.com";

/// An identity under the recorded trusted root, in the form of a rule.
fn identity(world: &World, identity: &str, issuer: &str) -> String {
    let root = fs::read(data("trust/trusted_root.json")).expect("a trusted root");
    let root = world.lab.write("trusted_root.json", &root);
    format!("identity = \"{identity}\", issuer = \"{issuer}\", trusted-root = \"{}\"", root.display())
}

/// A container that requests the XDP program of an image in the registry, which only this signer may have signed.
fn asking(world: &World, registry: &Registry, repository: &str, signer: &str) -> Bundle {
    allow(world, &format!("{}/bpf/*", registry.host()), signer);
    let image = format!("{}/bpf/{repository}:v1", registry.host());
    Bundle::new(&world.lab, repository).ask("image", &image).ask("programs", "xdp:pass iface=lo")
}

fn fetched_once(world: &mut World, repository: &str, signer: &str, layout: &str) {
    let registry = registry();
    let bundle = asking(world, &registry, repository, signer).script("echo ready; read go").write();
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
    let signer = key(world, "cosign-v2");
    fetched_once(world, "key-v2", &signer, "simple-signing");
}

fn an_image_that_cosign_3_signed_is_fetched_once(world: &mut World) {
    let signer = key(world, "cosign-v3");
    fetched_once(world, "key-v3", &signer, "bundle");
}

fn an_image_that_another_key_signed_in_a_registry(world: &mut World) {
    let registry = registry();
    let bundle = asking(world, &registry, "key-v2", &key(world, "wrong"));
    world.refused(bundle, 1, &["key-v2", "sign"]);
}

fn an_uncached_image_with_pull_policy_never(world: &mut World) {
    let registry = registry();
    let bundle = asking(world, &registry, "key-v2", &key(world, "cosign-v2"));
    let bundle = bundle.ask("pull-policy", "Never").script("echo started").write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    world.said(&ended, 1, &["not in the cache", "Never"]);
    assert_eq!(registry.requests(), Vec::<String>::new(), "Never asked the registry");
}

fn an_image_that_an_identity_signed_is_fetched_once(world: &mut World) {
    let signer = identity(world, WORKFLOW, ISSUER);
    fetched_once(world, "keyless", &signer, "bundle");
    fetched_once(world, "legacy-keyless", &signer, "simple-signing");
}

fn an_image_of_another_identity_or_issuer(world: &mut World) {
    let registry = registry();
    let by = format!("it is signed by {WORKFLOW} ({ISSUER})");
    for (repository, name, issuer) in
        [("keyless", "https://github.com/acme/bpf", ISSUER), ("legacy-keyless", WORKFLOW, "https://accounts.example.org")]
    {
        let bundle = asking(world, &registry, repository, &identity(world, name, issuer));
        world.refused(bundle, 1, &[&format!("{repository}:v1"), &by]);
    }
}

/// The recorded image and its keyless signature as a layout on disk.
fn layout(world: &World) -> PathBuf {
    let layout = world.lab.path("images/keyless");
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a directory below the lab");
    let write = |name: &Path, bytes: &[u8]| world.lab.write(&Path::new("images/keyless").join(name).to_string_lossy(), bytes);
    let repositories = fs::read(data("registry/repos.json")).expect("repos.json");
    let repositories: Value = serde_json::from_slice(&repositories).expect("repos.json is JSON");
    for blob in fs::read_dir(data("registry/blobs/sha256")).expect("the recorded blobs") {
        let blob = blob.expect("a blob").path();
        let name = Path::new("blobs/sha256").join(blob.file_name().expect("a digest"));
        write(&name, &fs::read(&blob).expect("a blob"));
    }
    let tags = repositories["bpf/keyless"]["tags"].as_object().expect("the repository has tags");
    let entries = tags.iter().map(|(tag, digest)| {
        let name = json!({ "org.opencontainers.image.ref.name": tag });
        json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1, "annotations": name })
    });
    let index = json!({ "schemaVersion": 2, "manifests": entries.collect::<Vec<_>>() });
    write(Path::new("index.json"), index.to_string().as_bytes());
    write(Path::new("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
    layout
}

fn an_identity_is_verified_without_a_network(world: &mut World) {
    let image = format!("oci:{}", layout(world).display());
    let asking = |world: &World, id: &str, name: &str| {
        allow(world, &image, &identity(world, name, ISSUER));
        let bundle = Bundle::new(&world.lab, id).ask("image", &format!("{image}:v1")).ask("programs", "xdp:pass iface=lo");
        // Only a loopback device that is down: fetching keys from the network is impossible.
        bundle.hook_through("createRuntime", r#"exec unshare --net "$@""#)
    };
    let bundle = asking(world, "offline", WORKFLOW).script("echo ready; read go").write();
    let running = world.start(&bundle);
    world.lab.expect_links(1, "the image's program is attached");
    let program = world.inspect(&bundle.id)[0]["programs"][0].clone();
    assert_eq!(program["verdict"].as_str(), Some("verified"), "{program:#}");
    running.finish();
    let bundle = asking(world, "stranger", "dev@example.org");
    world.refused(bundle, 1, &[&format!("it is signed by {WORKFLOW} ({ISSUER})")]);
}
