//! `instructions = ["image:…"]`: a workload loads programs of verified images itself, with an unmodified libbpf, and no others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness;
use crate::proxy::proxied;
use crate::registry::{Behaviour, Registry};
use crate::support::bpf_proxy::listen;
use crate::support::bundle::Bundle;
use crate::support::process::tool;
use crate::support::runtime::Runtime;
use crate::world::{World, object_bytes, object_path};

crate::cases![
    programs_of_verified_images_are_loaded_and_no_others,
    programs_of_images_in_the_cache_are_loaded,
    the_types_of_a_containers_own_maps_are_shown,
];

/// Objects of container scope: with functions, global variables, and CO-RE relocations.
const OBJECTS: [&str; 9] = ["cgroup_skb", "connect4", "counter", "demo", "one_xdp", "one_xdp_core", "sock", "subprogs", "wide"];

/// A directory in which a container without capabilities pins, and the container with bpftool of the host.
fn with_bpftool(world: &World, name: &str, objects: &Path, script: &str) -> (Bundle, PathBuf) {
    let pins = world.lab.path("pins");
    fs::create_dir(&pins).unwrap_or_else(|e| harness!("create {}: {e}", pins.display()));
    tool(Command::new("mount").args(["-t", "bpf", "-o", "mode=1777", "bpf"]).arg(&pins));
    let mut bundle = proxied(world, name, "sockets:networking:cgroup").edit(|config| {
        config["process"]["env"] = json!(["PATH=/bin:/usr/sbin:/usr/bin"]);
        config["root"]["readonly"] = json!(false);
    });
    for part in ["/usr", "/lib", "/lib64"] {
        bundle = bundle.mount("bind", Path::new(part), part, &["rbind", "ro"]);
    }
    let bundle = bundle
        .mount("bind", objects, "/objects", &["bind", "ro"])
        .mount("bind", &pins, "/pins", &["rbind", "rw"])
        .script(script)
        .write();
    (bundle, pins)
}

/// Loads every object of a directory, one after the other, and returns those that were loaded, and all output.
fn loaded(world: &World, name: &str, objects: &Path) -> (Vec<String>, String) {
    let script = "for o in /objects/*.o; do n=${o##*/}; n=${n%.o}; mkdir /pins/$n; echo \"object $n\" >&2
        bpftool prog loadall $o /pins/$n && echo \"loaded $n\"; rm -r /pins/$n; done";
    let (bundle, pins) = with_bpftool(world, name, objects, script);
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    tool(Command::new("umount").arg(&pins));
    fs::remove_dir(&pins).unwrap_or_else(|e| harness!("remove {}: {e}", pins.display()));
    let names = ended.stdout.lines().filter_map(|line| line.strip_prefix("loaded ")).map(str::to_owned);
    (names.collect(), format!("{}\n{}\n{}", ended.stdout, ended.stderr, world.lab.log()))
}

fn rule(images: &[String]) -> String {
    format!("[[container]]\nproxy = {{ presets = [\"sockets\", \"networking\", \"cgroup\"], instructions = {images:?} }}\n")
}

fn programs_of_verified_images_are_loaded_and_no_others(world: &mut World) {
    listen(&world.lab);
    let objects = world.lab.path("objects");
    fs::create_dir(&objects).unwrap_or_else(|e| harness!("create {}: {e}", objects.display()));
    let mut images = Vec::new();
    for name in OBJECTS {
        images.push(format!("image:{}", world.signed(name)));
        fs::copy(object_path(name), objects.join(format!("{name}.o"))).unwrap_or_else(|e| harness!("copy {name}: {e}"));
    }
    // One instruction of a program is another one: it drops what the image's program passes.
    let mut changed = object_bytes("one_xdp");
    // w0 = XDP_PASS; sections of instructions are aligned to them.
    let pass = [0xb4, 0, 0, 0, 2, 0, 0, 0];
    let at = changed.chunks_exact(8).position(|insn| insn == pass).unwrap_or_else(|| harness!("one_xdp has no XDP_PASS"));
    changed[at * 8 + 4] = 1;
    fs::write(objects.join("changed.o"), &changed).unwrap_or_else(|e| harness!("write: {e}"));
    world.unsigned("client");
    images.push(format!("image:{}", world.images.reference("client")));
    fs::copy(object_path("client"), objects.join("client.o")).unwrap_or_else(|e| harness!("copy client: {e}"));
    world.lab.policy(&format!("{}{}", world.image_rule(), rule(&images)));
    let (names, said) = loaded(world, "images", &objects);
    assert_eq!(names, OBJECTS, "{said}");
    for name in ["changed", "client"] {
        let of_object = said.split_once(&format!("object {name}\n")).map_or("", |(_, rest)| rest);
        let of_object = of_object.split("\nobject ").next().unwrap_or_default();
        assert!(of_object.contains("nor of a verified image"), "{name}: {said}");
    }
    let unsigned = format!("programs of {} may not be loaded", world.images.reference("client"));
    // With a journal the log is there.
    if !Path::new("/run/systemd/journal/socket").exists() {
        assert!(said.contains(&unsigned), "the unsigned image is not mentioned: {said}");
    }
    // Signed images that the rule does not name give nothing.
    world.lab.policy(&format!("{}{}", world.image_rule(), rule(&[])));
    let (names, said) = loaded(world, "none", &objects);
    assert_eq!(names, [""; 0], "{said}");
}

fn programs_of_images_in_the_cache_are_loaded(world: &mut World) {
    listen(&world.lab);
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures");
    let registry = Registry::start(&data.join("registry"), Behaviour::default());
    let key = world.lab.write("cosign-v2.pub", &fs::read(data.join("keys/cosign-v2.pub")).expect("a key"));
    let signed =
        format!("[[image]]\nrepository = \"{}/bpf/*\"\nsigned-by = {{ key = \"{}\" }}\n", registry.host(), key.display());
    let pattern = format!("image:{}/bpf/*", registry.host());
    world.lab.policy(&format!("{signed}{}", rule(&[pattern.clone()])));
    let image = format!("{}/bpf/key-v2:v1", registry.host());
    world.lab.ours(&["pull", &image]);
    let Value::Array(images) = world.lab.json(&["image", "list"]) else { panic!("a list") };
    let digest = images[0]["object"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest").to_owned();
    let objects = world.lab.path("objects");
    fs::create_dir(&objects).unwrap_or_else(|e| harness!("create {}: {e}", objects.display()));
    let blob = world.lab.path("root/var/cache/bpfman-hook/blobs/sha256").join(digest);
    // The cache is only for root.
    fs::write(objects.join("pass.o"), fs::read(&blob).expect("a blob")).unwrap_or_else(|e| harness!("write: {e}"));
    let (names, said) = loaded(world, "cached", &objects);
    assert_eq!(names, ["pass"], "{said}");
    // It is what decides: without it in the cache, its programs are any others.
    world.lab.ours(&["image", "rm", &image]);
    let (names, said) = loaded(world, "removed", &objects);
    assert_eq!(names, [""; 0], "{said}");
    // Signed by another key.
    world.lab.ours(&["pull", &image]);
    let other = world.key.public.display().to_string();
    world.lab.policy(&format!("{}{}", signed.replace(&key.display().to_string(), &other), rule(&[pattern])));
    let (names, said) = loaded(world, "other-key", &objects);
    assert_eq!(names, [""; 0], "{said}");
}

fn the_types_of_a_containers_own_maps_are_shown(world: &mut World) {
    listen(&world.lab);
    world.lab.policy("[[container]]\nproxy = [\"sockets\", \"networking\", \"cgroup\"]\n");
    let objects = object_path("counter").parent().map(Path::to_owned).unwrap_or_default();
    let script =
        "bpftool prog loadall /objects/counter.bpf.o /pins/loaded pinmaps /pins/maps && echo load ok || echo load failed
        for m in /pins/maps/*; do bpftool -j map dump pinned $m; echo; done; rm -r /pins/*
        bpftool btf dump id 1 >/dev/null 2>&1 && echo types others || echo types own";
    let (bundle, pins) = with_bpftool(world, "types", &objects, script);
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    assert_eq!((ended.line("load "), ended.line("types ")), (Some("ok"), Some("own")), "{ended:?}");
    // bpftool formats values only with types.
    assert!(ended.stdout.contains("\"formatted\""), "{ended:?} {}", world.lab.log());
    tool(Command::new("umount").arg(&pins));
}
