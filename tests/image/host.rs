//! Host paths: every image layout in a directory and in an archive, tampering, and write access by other users.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use bpfman_hook::image::ImageError;
use bpfman_hook::model::bytecode::ImageVerdict;
use serde_json::json;

use crate::signatures::tar_up;
use crate::world::{LayoutBuilder, OBJECT, World, data, digest_of, layout_of, repository, write};

/// Each image of the fixture store with its error message, or None if the object is accepted.
pub const IMAGES: [(&str, &str, Option<&str>); 14] = [
    ("img/umoci", "v1", None),
    ("img/docker-v2s2", "v1", None),
    ("img/podman", "v1", None),
    ("img/gzip", "v1", None),
    ("img/zstd", "v1", None),
    ("img/plain-tar", "v1", None),
    ("img/artifact-elf", "v1", None),
    ("img/gadget", "v1", None),
    ("img/index", "v1", None),
    ("img/index", "s390x", Some("is compiled for big-endian machines, but this one is little-endian")),
    ("img/buildx", "v1", None),
    ("img/buildx", "att", Some("it contains no BPF object")),
    ("img/two-objects", "v1", Some("it contains several objects, other.o, pass.o")),
    ("img/no-object", "v1", Some("it contains no BPF object, only README")),
];

#[test]
fn every_image_in_a_layout_and_in_an_archive() {
    for (repo, tag, problem) in IMAGES {
        let world = World::unsigned();
        layout_of("images/registry", repo, &world.path("layout"));
        tar_up(&world.path("layout"), &world.path("layout.tar"));
        let references = [
            format!("oci:{}:{tag}", world.path("layout").display()),
            format!("oci-archive:{}:{tag}", world.path("layout.tar").display()),
        ];
        for reference in references {
            match problem {
                None => {
                    let got = world.fetch(&reference).unwrap_or_else(|err| panic!("{repo}: {}", crate::world::sentence(&err)));
                    assert_eq!(got.object, OBJECT, "{reference}");
                    assert_eq!((got.verdict, got.rule.as_str()), (ImageVerdict::Unsigned, "any"));
                    let digest = repository("images/registry", repo)["tags"][tag].as_str().unwrap().to_owned();
                    assert_eq!(got.digest.to_string(), digest, "the top-level digest, also of an index");
                }
                Some(problem) => {
                    let (err, text) = world.error(&reference);
                    assert!(matches!(err, ImageError::Object { .. }) && text.contains(problem), "{reference}: {text}");
                    assert!(text.starts_with(&format!("read {reference}: ")), "{text}");
                }
            }
        }
        assert!(!world.path("cache").exists(), "host paths are not cached");
    }
}

#[test]
fn every_blob_of_a_layout_is_checked_and_named_if_changed() {
    let parts = |repo: &str| {
        let repository = repository("signatures/registry", repo);
        repository["manifests"].as_array().unwrap().iter().map(|d| d.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // Index, child, config, layer, in the order in which the index references them; the error names the part.
    let index = repository("images/registry", "img/index");
    let child = index["tags"]["amd64"].as_str().unwrap().to_owned();
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(data("images/registry/blobs/sha256").join(&child[7..])).unwrap()).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap().to_owned();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    let top = index["tags"]["v1"].as_str().unwrap().to_owned();
    let wanted = [(&top, "manifest"), (&child, "manifest for this platform"), (&config, "config"), (&layer, "layer")];
    for (digest, part) in wanted {
        for change in ["flip", "remove", "empty"] {
            let world = World::unsigned();
            let layout = world.path("layout");
            layout_of("images/registry", "img/index", &layout);
            let path = layout.join("blobs/sha256").join(&digest[7..]);
            change_file(&path, change);
            let (err, text) = world.error(&format!("oci:{}:v1", layout.display()));
            let fits = match change {
                "remove" => matches!(err, ImageError::MissingBlob { .. }),
                _ => matches!(err, ImageError::Tampered { .. }),
            };
            assert!(fits && text.contains(part) && text.contains(digest.as_str()), "{part} {change}: {text}");
        }
    }
    // Signature manifests, payloads and bundles: a changed one is not a signature, and the image never counts as
    // "unsigned".
    for (repo, key) in [("bpf/key-v2", "keys/cosign-v2.pub"), ("bpf/key-v3", "keys/cosign-v3.pub")] {
        let top = repository("signatures/registry", repo)["tags"]["v1"].as_str().unwrap().to_owned();
        let mut blobs = parts(repo);
        blobs.retain(|digest| *digest != top);
        for manifest in blobs.clone() {
            let text = std::fs::read(data("signatures/registry/blobs/sha256").join(&manifest[7..])).unwrap();
            let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
            blobs.extend(manifest["layers"].as_array().into_iter().flatten().map(|l| l["digest"].as_str().unwrap().to_owned()));
        }
        for digest in blobs {
            for change in ["flip", "remove", "empty"] {
                let mut world = World::signed(&[key]);
                world.rules.push(crate::world::rule("unsigned", Vec::new()));
                let layout = world.path("layout");
                layout_of("signatures/registry", repo, &layout);
                assert!(world.fetch(&format!("oci:{}:v1", layout.display())).is_ok());
                change_file(&layout.join("blobs/sha256").join(&digest[7..]), change);
                let (_, text) = world.error(&format!("oci:{}:v1", layout.display()));
                assert!(text.contains(&digest), "{repo} {digest} {change}: {text}");
            }
        }
    }
}

fn change_file(path: &Path, change: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    match change {
        "flip" => bytes[0] ^= 1,
        "empty" => bytes.clear(),
        _ => return std::fs::remove_file(path).unwrap(),
    }
    write(path, &bytes);
}

#[test]
fn object_files_are_their_own_digest_and_cannot_be_signed() {
    let world = World::unsigned();
    let path = world.path("pass.o");
    write(&path, OBJECT);
    let got = world.fetch(&format!("file:{}", path.display())).unwrap();
    assert_eq!((got.digest, got.object_digest), (digest_of(OBJECT), digest_of(OBJECT)));
    assert_eq!(got.object, OBJECT);
    let signed = World::signed(&["keys/cosign-v2.pub"]);
    write(&signed.path("pass.o"), OBJECT);
    let (err, text) = signed.error(&format!("file:{}", signed.path("pass.o").display()));
    assert!(matches!(err, ImageError::Unsigned { .. }), "{text}");
    for (name, bytes, sentence) in [
        ("empty.o", b"".to_vec(), "empty.o is not an ELF object"),
        ("x86.o", [&OBJECT[..18], &[62, 0], &OBJECT[20..]].concat(), "for machine 62, not a BPF object"),
        ("big.o", include_bytes!("../data/images/pass.bpfeb.o").to_vec(), "big-endian"),
        ("large.o", vec![0; (16 << 20) + 1], "larger than the limit of 16777216 bytes"),
    ] {
        write(&world.path(name), &bytes);
        let (_, text) = world.error(&format!("file:{}", world.path(name).display()));
        assert!(text.contains(sentence), "{name}: {text}");
    }
    assert!(matches!(world.error(&format!("file:{}", world.path("none.o").display())).0, ImageError::NotFound { .. }));
}

/// A user who can write a component of a host path could choose what root loads.
#[test]
fn host_paths_that_other_users_can_change_are_refused_by_component() {
    type Change = fn(&World);
    fn chmod(world: &World, name: &str, mode: u32) {
        std::fs::set_permissions(world.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let table: [(&str, Change, &str); 9] = [
        ("a layout that others can write", |w| chmod(w, "a/layout", 0o777), "a/layout has mode 0777"),
        ("a directory on the way", |w| chmod(w, "a", 0o775), "/a has mode 0775"),
        ("a sticky directory on the way", |w| chmod(w, "a", 0o1777), "/a has mode 1777"),
        ("the directory of blobs", |w| chmod(w, "a/layout/blobs/sha256", 0o757), "blobs/sha256 has mode 0757"),
        ("the index", |w| chmod(w, "a/layout/index.json", 0o666), "index.json has mode 0666"),
        (
            "a link instead of the layout",
            |w| {
                std::fs::rename(w.path("a/layout"), w.path("a/real")).unwrap();
                symlink("real", w.path("a/layout")).unwrap();
            },
            "a/layout is a symbolic link",
        ),
        (
            "a link on the way",
            |w| {
                std::fs::rename(w.path("a"), w.path("b")).unwrap();
                symlink("b", w.path("a")).unwrap();
            },
            "/a is a symbolic link",
        ),
        (
            "a link instead of the index",
            |w| {
                std::fs::rename(w.path("a/layout/index.json"), w.path("a/index")).unwrap();
                symlink(w.path("a/index"), w.path("a/layout/index.json")).unwrap();
            },
            "index.json is a symbolic link",
        ),
        (
            "a directory instead of the index",
            |w| {
                std::fs::remove_file(w.path("a/layout/index.json")).unwrap();
                std::fs::create_dir(w.path("a/layout/index.json")).unwrap();
            },
            "index.json is not a regular file",
        ),
    ];
    for (what, change, sentence) in table {
        let world = World::unsigned();
        std::fs::create_dir(world.path("a")).unwrap();
        chmod(&world, "a", 0o755);
        layout_of("images/registry", "img/gzip", &world.path("a/layout"));
        let reference = format!("oci:{}:v1", world.path("a/layout").display());
        assert!(world.fetch(&reference).is_ok(), "{what}: before");
        change(&world);
        let (err, text) = world.error(&reference);
        assert!(matches!(err, ImageError::HostPath { .. }) && text.contains(sentence), "{what}: {text}");
    }
    let world = World::unsigned();
    let fifo = std::process::Command::new("mkfifo").args(["-m", "600"]).arg(world.path("fifo")).status().unwrap();
    assert!(fifo.success());
    let (_, text) = world.error(&format!("file:{}", world.path("fifo").display()));
    assert!(text.contains("is not a regular file"), "{text}");
    // A path outside of the trusted root, as seen by an installation below --root.
    let (err, text) = world.error("file:/etc/passwd");
    assert!(matches!(err, ImageError::HostPath { .. }), "{text}");
}

#[test]
fn tags_of_layouts_mean_one_image_or_are_an_error() {
    let world = World::unsigned();
    let path = world.path("layout");
    let mut layout = LayoutBuilder::new(&path);
    let one = layout.json(&layout.artifact(&[("application/x-object", OBJECT, json!({}))])).to_string();
    let two = layout.json(&layout.artifact(&[("application/x-object", OBJECT, json!({"n": "2"}))])).to_string();
    layout.entry(&one, Some("v1"));
    layout.entry(&two, Some("docker.io/acme/probe:v2"));
    layout.write();
    let at = |tag: &str| format!("oci:{}{tag}", path.display());
    assert_eq!(world.fetch(&at(":v1")).unwrap().digest.to_string(), one);
    assert_eq!(world.fetch(&at(":v2")).unwrap().digest.to_string(), two, "a whole reference ends with its tag");
    assert!(matches!(world.error(&at(":v3")).0, ImageError::NotFound { .. }));
    let (err, text) = world.error(&at(""));
    assert!(matches!(err, ImageError::Ambiguous { .. }) && text.contains("v1, docker.io/acme/probe:v2"), "{text}");
    layout.entries.pop();
    layout.entry(&two, None);
    layout.entry(&format!("sha256:{}", "0".repeat(64)), Some(&format!("sha256-{}.sig", "0".repeat(64))));
    layout.write();
    assert_eq!(world.fetch(&at("")).unwrap().digest.to_string(), one, "the only one with a name");
    layout.entry(&two, Some("v1"));
    layout.write();
    assert!(matches!(world.error(&at(":v1")).0, ImageError::Ambiguous { .. }), "one name, two images");
    assert!(matches!(world.error(&format!("oci:{}", world.path("none").display())).0, ImageError::NotFound { .. }));
    assert!(matches!(world.error(&format!("oci-archive:{}", world.path("none").display())).0, ImageError::NotFound { .. }));
    // What `podman save` and `docker save` write by default.
    let docker = world.path("docker");
    std::fs::create_dir(&docker).unwrap();
    write(&docker.join("manifest.json"), b"[]");
    tar_up(&docker, &world.path("docker.tar"));
    for reference in [format!("oci:{}", docker.display()), format!("oci-archive:{}", world.path("docker.tar").display())] {
        let (error, text) = world.error(&reference);
        assert!(
            matches!(error, ImageError::DockerArchive { .. }) && text.contains("podman save --format oci-archive"),
            "{text}"
        );
    }
    for junk in ["", "[]", "{}", "junk", r#"{"manifests":[],"layers":[]}"#] {
        write(&path.join("index.json"), junk.as_bytes());
        assert!(matches!(world.error(&at(":v1")).0, ImageError::Malformed { .. } | ImageError::NotFound { .. }), "{junk}");
    }
    write(&world.path("junk.tar"), &[b'x'; 2048]);
    let (err, text) = world.error(&format!("oci-archive:{}", world.path("junk.tar").display()));
    assert!(matches!(err, ImageError::Malformed { part: "archive", .. }), "{text}");
}

#[test]
fn malformed_layouts_and_archives_are_refused() {
    let layer = "application/vnd.oci.image.layer.v1.tar";
    let world = World::unsigned();
    let path = world.path("layout");
    let reference = format!("oci:{}:v1", path.display());
    let mut layout = LayoutBuilder::new(&path);
    let one = layout.artifact(&[(layer, OBJECT, json!({}))]);
    let one_digest = layout.json(&one);
    let two_layers = layout.artifact(&[(layer, OBJECT, json!({})), (layer, b"x", json!({}))]);
    let several =
        layout.artifact(&[("a/b", OBJECT, json!({})), ("a/c", OBJECT, json!({"org.opencontainers.image.title": "two.o"}))]);
    let bomb = layout.artifact(&[("a/b", &vec![0; (16 << 20) + 1], json!({}))]);
    let entry = |digest: &str, arch: &str| json!({"digest": digest, "platform": {"os": "linux", "architecture": arch}});
    let for_others = json!({"schemaVersion": 2, "manifests": [entry(&one_digest.to_string(), "s390x"), entry(&one_digest.to_string(), "riscv64")]});
    let mut nested = json!({"schemaVersion": 2, "manifests": [{"digest": one_digest.to_string()}]});
    for _ in 0..3 {
        let inner = layout.json(&nested);
        nested = json!({"schemaVersion": 2, "manifests": [{"digest": inner.to_string()}]});
    }
    let sha512 = json!({"schemaVersion": 2, "layers": [{"mediaType": layer, "digest": format!("sha512:{}", "0".repeat(128))}]});
    let endless = json!({"schemaVersion": 2, "annotations": {"x": "y".repeat(1 << 20)}, "layers": []});
    for (document, sentence) in [
        (two_layers, "it has 2 layers; a bytecode image has one"),
        (several, "it contains several objects, layer 1, two.o"),
        (bomb, "its layer is larger than the limit of 16777216 bytes"),
        (for_others, "it has no image for linux/amd64, only for linux/s390x, linux/riscv64; build it for this platform"),
        (nested, "nested too deeply"),
        (sha512, "is not sha256: followed by"),
        (endless, "its manifest is larger than the limit of 1048576 bytes"),
        (json!({"schemaVersion": 2, "layers": []}), "it contains no BPF object"),
        (json!({"schemaVersion": 2, "manifests": []}), "it has no image for linux/amd64; build it for this platform"),
    ] {
        layout.entries.clear();
        let digest = layout.json(&document);
        layout.entry(&digest.to_string(), Some("v1"));
        layout.write();
        let (_, text) = world.error(&reference);
        assert!(text.contains(sentence), "{sentence}: {text}");
    }
    // Two levels of index, as buildx and multi-platform archives have.
    let index = json!({"schemaVersion": 2, "manifests": [entry(&one_digest.to_string(), "amd64")]});
    let outer = json!({"schemaVersion": 2, "manifests": [{"digest": layout.json(&index).to_string()}]});
    layout.entries.clear();
    let digest = layout.json(&outer);
    layout.entry(&digest.to_string(), Some("v1"));
    layout.write();
    assert_eq!(world.fetch(&reference).unwrap().object, OBJECT);
}
