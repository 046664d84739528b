//! Images from object file to running container: built, signed, pushed, fetched at a start, transferred to a machine
//! without a network.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::harness;
use crate::registry::{Behaviour, Registry};
use crate::support::bundle::Bundle;
use crate::support::docker_registry::DockerRegistry;
use crate::support::process::tool;
use crate::world::{CONTAINER_RULE, World, object_path};

crate::cases![
    an_image_built_here_starts_from_a_registry,
    an_exported_image_starts_without_a_registry,
    an_image_in_use_is_not_pruned,
    a_cosign_3_bundle_is_copied_between_registries,
];

/// Builds the demo object for two platforms into the world's layout, signs the index, and returns its reference there.
fn built(world: &mut World) -> String {
    let reference = world.images.reference("made");
    let object = object_path("demo");
    let files = ["amd64", "arm64"].map(|architecture| format!("linux/{architecture}={}", object.display()));
    let build = |world: &World| -> String {
        world.lab.ours(&["image", "build", "--quiet", &reference, &files[0], &files[1]]).trim().to_owned()
    };
    let digest = build(world);
    world.images.sign(&digest, &world.key);
    // The layout of these tests rewrites its index, without entries that other tools added.
    assert_eq!(build(world), digest, "the same objects make another image");
    reference
}

/// A policy that accepts the registry's images if the world's key signed them.
fn trust(world: &World, registry: &DockerRegistry) {
    world.lab.policy(&format!(
        "[[image]]\nrepository = \"{}/acme/*\"\nsigned-by = {{ key = \"{}\" }}\n{CONTAINER_RULE}",
        registry.host(),
        world.key.public.display()
    ));
}

/// Pushes the built image, and checks it with skopeo.
fn pushed(world: &mut World, registry: &DockerRegistry) -> String {
    let from = built(world);
    let name = format!("{}/acme/demo:v1", registry.host());
    let said: Value = world.lab.json(&["image", "push", &from, &name]);
    assert_eq!((&said["reference"], &said["signatures"]), (&name.clone().into(), &1.into()), "{said}");
    let again: Value = world.lab.json(&["image", "push", &from, &name]);
    assert_eq!((&again["blobs_sent"], &again["digest"]), (&0.into(), &said["digest"]), "{again}");
    let inspect = |more: &[&str], what: &str| {
        let mut command = Command::new("skopeo");
        command.args(["inspect", "--tls-verify=false"]).args(more).arg(format!("docker://{what}"));
        let text = tool(&mut command);
        serde_json::from_str::<Value>(&text).unwrap_or_else(|e| harness!("skopeo prints no JSON: {e}: {text}"))
    };
    assert_eq!(inspect(&["--raw"], &name)["manifests"].as_array().map(Vec::len), Some(2));
    let shown = inspect(&["--override-arch", "amd64"], &name);
    let programs: Value =
        shown["Labels"]["io.ebpf.programs"].as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    assert_eq!((&shown["Digest"], &programs["count_packets"]), (&said["digest"], &"xdp".into()), "{shown:#}");
    name
}

fn asking(world: &World, name: &str, image: &str) -> Bundle {
    let bundle = Bundle::new(&world.lab, name).ask("image", image).ask("programs", "xdp:count_packets iface=lo");
    bundle.script("echo ready; read go").write()
}

fn an_image_built_here_starts_from_a_registry(world: &mut World) {
    let registry = DockerRegistry::start(&world.lab.path("registry"));
    let name = pushed(world, &registry);
    trust(world, &registry);
    let bundle = asking(world, "made", &name);
    let running = world.start(&bundle);
    world.lab.expect_links(1, "the program of the built image is attached");
    let program = world.inspect(&bundle.id)[0]["programs"][0].clone();
    assert_eq!(program["verdict"], "verified", "{program:#}");
    running.finish();
}

fn an_exported_image_starts_without_a_registry(world: &mut World) {
    let registry = DockerRegistry::start(&world.lab.path("registry"));
    let name = pushed(world, &registry);
    trust(world, &registry);
    world.lab.ours(&["pull", &name]);
    let file = world.lab.path("carried.tar");
    world.lab.ours(&["image", "export", &name, &file.display().to_string()]);
    drop(registry);
    fs::remove_dir_all(world.lab.path("root/var/cache/bpfman-hook")).unwrap_or_else(|e| harness!("remove the cache: {e}"));
    world.lab.ours(&["image", "import", &file.display().to_string()]);
    let bundle = Bundle::new(&world.lab, "carried").ask("image", &name).ask("pull-policy", "Never");
    let bundle = bundle.ask("programs", "xdp:count_packets iface=lo").script("echo ready; read go").write();
    let running = world.start(&bundle);
    world.lab.expect_links(1, "the program of the carried image is attached");
    running.finish();
}

fn an_image_in_use_is_not_pruned(world: &mut World) {
    let registry = DockerRegistry::start(&world.lab.path("registry"));
    let name = pushed(world, &registry);
    trust(world, &registry);
    let running = world.start(&asking(world, "user", &name));
    let pruned = world.lab.json(&["image", "prune", "--all"]);
    assert_eq!(pruned["references"], serde_json::json!([]), "{pruned:#}");
    world.lab.expect_links(1, "the container has its program");
    running.finish();
    let pruned = world.lab.json(&["image", "prune", "--all"]);
    assert_eq!(pruned["references"], serde_json::json!([name]), "{pruned:#}");
}

fn a_cosign_3_bundle_is_copied_between_registries(world: &mut World) {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures");
    let key = fs::read(data.join("keys/cosign-v3.pub")).unwrap_or_else(|e| harness!("read the recorded key: {e}"));
    let key = world.lab.write("cosign-v3.pub", &key);
    world.lab.policy(&format!(
        "[[image]]\nrepository = \"**\"\nsigned-by = {{ key = \"{}\" }}\n[[container]]\nprograms = [\"xdp\"]\n",
        key.display()
    ));
    let recorded = Registry::start(&data.join("registry"), Behaviour::default());
    let from = format!("{}/bpf/key-v3:v1", recorded.host());
    world.lab.ours(&["pull", &from]);
    drop(recorded);
    // docker-registry has no referrers API: the push writes the fallback tag.
    let registry = DockerRegistry::start(&world.lab.path("registry"));
    let to = format!("{}/mirrored/key-v3:v1", registry.host());
    let said: Value = world.lab.json(&["image", "push", &from, &to]);
    assert_eq!(said["signatures"], 1, "{said}");
    let bundle = Bundle::new(&world.lab, "mirrored").ask("image", &to).ask("programs", "xdp:pass iface=lo");
    let bundle = bundle.script("echo ready; read go").write();
    let running = world.start(&bundle);
    let program = world.inspect(&bundle.id)[0]["programs"][0].clone();
    assert_eq!((program["verdict"].as_str(), program["layout"].as_str()), (Some("verified"), Some("bundle")), "{program:#}");
    running.finish();
}
