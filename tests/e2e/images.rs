//! Which bytecode is loaded, and which never reaches the kernel.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::bundle::Bundle;
use crate::support::image::{Contents, Key};
use crate::world::{CONTAINER_RULE, World, object_bytes};

crate::cases![
    an_image_that_does_not_exist,
    an_unsigned_image,
    an_image_that_another_key_signed,
    an_image_whose_manifest_was_changed,
    an_image_whose_config_was_changed,
    an_image_whose_layer_was_changed,
    an_image_whose_signature_was_changed,
    a_signature_moved_from_another_image,
    an_image_without_an_object,
    an_image_for_another_architecture,
    an_index_takes_this_machines_object,
    a_layout_that_the_policy_does_not_name,
    a_file_that_the_policy_does_not_name,
    a_layout_behind_a_link,
    a_layout_that_others_can_write,
    a_key_that_others_can_write,
    a_policy_that_does_not_parse,
];

/// A container that requests the packet counter of one image.
fn asking(world: &World, name: &str, image: &str) -> Bundle {
    Bundle::new(&world.lab, name).ask("image", image).ask("programs", "xdp:count_packets iface=lo")
}

fn an_image_that_does_not_exist(world: &mut World) {
    let image = world.images.reference("nothing");
    world.refused(asking(world, "missing", &image), 1, &["no such image"]);
}

fn an_unsigned_image(world: &mut World) {
    world.unsigned("demo");
    let image = world.images.reference("demo");
    world.refused(asking(world, "unsigned", &image), 1, &["it is not signed"]);
}

fn an_image_that_another_key_signed(world: &mut World) {
    let digests = world.unsigned("demo");
    let foreign = Key::new(&world.lab.path("bin"), "stranger");
    world.images.sign(&digests.manifest, &foreign);
    let image = world.images.reference("demo");
    world.refused(asking(world, "stranger", &image), 1, &["none of its signatures"]);
}

fn an_image_whose_manifest_was_changed(world: &mut World) {
    let digests = world.unsigned("demo");
    world.images.sign(&digests.manifest, &world.key);
    world.images.spoil(&digests.manifest);
    let image = world.images.reference("demo");
    world.refused(asking(world, "manifest", &image), 1, &["does not match its digest", "tampered"]);
}

fn an_image_whose_config_was_changed(world: &mut World) {
    let digests = world.unsigned("demo");
    world.images.sign(&digests.manifest, &world.key);
    world.images.spoil(&digests.config);
    let image = world.images.reference("demo");
    world.refused(asking(world, "config", &image), 1, &["does not match its digest", "tampered"]);
}

fn an_image_whose_layer_was_changed(world: &mut World) {
    let digests = world.unsigned("demo");
    world.images.sign(&digests.manifest, &world.key);
    world.images.spoil(&digests.layer);
    let image = world.images.reference("demo");
    world.refused(asking(world, "layer", &image), 1, &["does not match its digest", "tampered"]);
}

fn an_image_whose_signature_was_changed(world: &mut World) {
    let digests = world.unsigned("demo");
    let signature = world.images.sign(&digests.manifest, &world.key);
    world.images.spoil(&signature.payload);
    let image = world.images.reference("demo");
    world.refused(asking(world, "payload", &image), 1, &["none of its signatures"]);
}

fn a_signature_moved_from_another_image(world: &mut World) {
    // The signature of a harmless image, stored under the name of the requested image's signature.
    let harmless = world.unsigned("sock");
    let wanted = world.unsigned("demo");
    world.images.sign(&harmless.manifest, &world.key);
    let index = world.images.dir.join("index.json");
    let text = fs::read_to_string(&index).unwrap_or_default();
    let moved = text.replace(
        &format!("{}.sig", harmless.manifest.replace(':', "-")),
        &format!("{}.sig", wanted.manifest.replace(':', "-")),
    );
    assert_ne!(text, moved, "harness: the layout names no signature");
    world.lab.write("images/signed/index.json", moved.as_bytes());
    let image = world.images.reference("demo");
    world.refused(asking(world, "moved", &image), 1, &["none of its signatures"]);
}

fn an_image_without_an_object(world: &mut World) {
    let mut contents = Contents::object(b"");
    contents.files = vec![("README".to_owned(), b"no program here".to_vec())];
    let digests = world.images.add("empty", &contents);
    world.images.sign(&digests.manifest, &world.key);
    let image = world.images.reference("empty");
    world.refused(asking(world, "empty", &image), 1, &["it contains no BPF object", "README"]);
}

fn an_image_for_another_architecture(world: &mut World) {
    let mut contents = Contents::object(&object_bytes("demo"));
    contents.architecture = "s390x".to_owned();
    let digest = world.images.add_index("foreign", &[contents]);
    world.images.sign(&digest, &world.key);
    let image = world.images.reference("foreign");
    world.refused(asking(world, "foreign", &image), 1, &["it has no image for", "s390x"]);
}

fn an_index_takes_this_machines_object(world: &mut World) {
    let mut foreign = Contents::object(b"\x7fELF this is for another machine");
    foreign.architecture = "s390x".to_owned();
    let digest = world.images.add_index("both", &[foreign, Contents::object(&object_bytes("demo"))]);
    world.images.sign(&digest, &world.key);
    let image = world.images.reference("both");
    let bundle = asking(world, "index", &image).script("echo ready; read go").write();
    let running = world.start(&bundle);
    assert_eq!(world.link_ids(&bundle.id).len(), 1);
    assert!(world.inspect(&bundle.id).to_string().contains(&digest), "the record names the digest that was signed");
    running.finish();
}

fn a_layout_that_the_policy_does_not_name(world: &mut World) {
    let mut other = crate::support::image::Layout::new(&world.lab.path("images/other"));
    let digests = other.add("demo", &Contents::object(&object_bytes("demo")));
    other.sign(&digests.manifest, &world.key);
    let image = other.reference("demo");
    world.refused(asking(world, "unnamed", &image), 1, &["images/other", "policy"]);
}

fn a_file_that_the_policy_does_not_name(world: &mut World) {
    let file = world.lab.write("images/demo.o", &object_bytes("demo"));
    let image = format!("file:{}", file.display());
    world.refused(asking(world, "file", &image), 1, &["demo.o", "policy"]);
}

fn a_layout_behind_a_link(world: &mut World) {
    world.signed("demo");
    let link = world.lab.path("images/link");
    symlink(&world.images.dir, &link).expect("a link in a new directory");
    let rule = world.image_rule().replace("images/signed", "images/link");
    world.lab.policy(&format!("{rule}{CONTAINER_RULE}"));
    let image = format!("oci:{}:demo", link.display());
    world.refused(asking(world, "link", &image), 1, &["is a symbolic link"]);
}

fn a_layout_that_others_can_write(world: &mut World) {
    let image = world.signed("demo");
    fs::set_permissions(world.lab.path("images"), fs::Permissions::from_mode(0o777)).expect("root changes modes");
    world.refused(asking(world, "writable", &image), 1, &["is writable by users other than root"]);
}

fn a_key_that_others_can_write(world: &mut World) {
    let image = world.signed("demo");
    fs::set_permissions(&world.key.public, fs::Permissions::from_mode(0o666)).expect("root changes modes");
    world.refused(asking(world, "key", &image), 2, &["trusted.pub", "is writable by users other than root"]);
}

fn a_policy_that_does_not_parse(world: &mut World) {
    let image = world.signed("demo");
    world.lab.policy("[[image]\nname = 1\n");
    world.refused(asking(world, "policy", &image), 2, &["policy.toml"]);
}
