//! `image …` as people see it: what is printed, what is refused and with which sentence. No registry and no root.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
        for name in ["pass.bpfel.o", "pass.bpfeb.o"] {
            fs::copy(images.join(name), dir.path().join(name)).unwrap();
        }
        for path in ["etc", "etc/bpfman-hook"] {
            fs::create_dir(dir.path().join(path)).unwrap();
            fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let policy = dir.path().join("etc/bpfman-hook/policy.toml");
        fs::write(&policy, "[[image]]\nname = \"acme\"\nrepository = \"ghcr.io/acme/*\"\nunsigned = true\n").unwrap();
        fs::set_permissions(policy, fs::Permissions::from_mode(0o644)).unwrap();
        Self { dir }
    }

    fn run(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bpfman-hook"));
        command.current_dir(self.dir.path()).stdin(Stdio::null()).arg("--root").arg(self.dir.path()).arg("image");
        command.args(line.split_whitespace()).output().unwrap()
    }

    /// What a command that succeeds prints.
    fn good(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success() && output.stderr.is_empty(), "image {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.good(&format!("{line} -o json"))).unwrap()
    }

    /// The one sentence of a command that fails.
    fn bad(&self, line: &str) -> String {
        let output = self.run(line);
        let sentence = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), sentence.lines().count()), (Some(1), 1), "image {line}: {sentence}");
        sentence
    }
}

#[test]
fn an_image_is_built_shown_carried_and_removed() {
    let world = World::new();
    let digest = world.good("build ghcr.io/acme/pass:v1 pass.bpfel.o");
    assert_eq!(world.good("build oci:./layout:v1 pass.bpfel.o"), digest, "the same object, the same image");
    let shown = world.json("inspect ghcr.io/acme/pass:v1");
    assert_eq!(shown["digest"].as_str().unwrap(), digest.trim());
    assert_eq!(shown["programs"][0]["name"], "pass");
    assert_eq!(shown["programs"][0]["type"], "xdp");
    assert_eq!(shown["maps"][0]["type"], "array");
    assert_eq!(shown["labels"]["differences"], serde_json::json!([]));
    assert_eq!((&shown["license"], &shown["kernel"]), (&"GPL".into(), &"5.9".into()));
    let table = world.good("inspect oci:layout:v1");
    assert!(table.contains("labels      agree with the object") && table.contains("XDP links"), "{table}");

    let exported = world.good("export ghcr.io/acme/pass:v1 out.tar");
    assert!(exported.starts_with(&digest) && exported.contains("no signature goes with it"), "{exported}");
    let gone = world.json("rm ghcr.io/acme/pass:v1");
    assert_eq!(gone["references"], serde_json::json!(["ghcr.io/acme/pass:v1"]));
    assert_eq!(world.json("list"), serde_json::json!([]));
    let imported = world.json("import out.tar");
    assert_eq!((&imported[0]["digest"], &imported[0]["verdict"]), (&digest.trim().into(), &"unsigned".into()), "{imported}");
    assert_eq!(world.good("list --quiet"), digest);
    let told = world.json("prune --all --dry-run");
    assert_eq!((&told["references"][0], world.good("list -q")), (&"ghcr.io/acme/pass:v1".into(), digest.clone()));
    assert_eq!(world.json("prune"), serde_json::json!({"references": [], "images": [], "blobs": 0, "bytes": 0}));
    assert_eq!(world.json("prune --all"), told);
    assert_eq!(world.good("list -q"), "");
    world.good("import out.tar ghcr.io/acme/other:v2");
    world.good(&format!("rm {digest}"));
    assert_eq!(fs::read_dir(world.dir.path().join("var/cache/bpfman-hook/blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn verify_tells_whether_an_image_would_be_taken() {
    let world = World::new();
    world.good("build oci:layout:v1 pass.bpfel.o");
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures/keys/cosign-v2.pub");
    let line = format!("verify oci:layout:v1 --key {}", keys.display());
    let output = world.run(&line);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("no signature in any layout") && text.contains("refused: ") && text.contains("it is not signed"),
        "{text}"
    );
    let output = world.run(&format!("{line} -o json"));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["signatures"], &found["verdict"]), (&serde_json::json!([]), &Value::Null), "{found}");
    assert!(world.bad("verify oci:layout:v1").contains("no image rule of the policy speaks of it"));
    assert!(world.bad("verify oci:layout:v1 --key nowhere.pub").contains("read key nowhere.pub"));
}

#[test]
fn several_platforms_make_an_index() {
    let world = World::new();
    let built = world.json("build oci:layout:v1 linux/amd64=pass.bpfel.o linux/arm64=pass.bpfel.o linux/s390x=pass.bpfeb.o");
    assert_eq!(built["platforms"], serde_json::json!(["linux/amd64", "linux/arm64", "linux/s390x"]));
    assert_eq!(world.json("inspect oci:layout:v1")["platforms"], built["platforms"]);
    for (from, to) in [("pass.bpfel.o", "probe_x86_bpfel.o"), ("pass.bpfeb.o", "probe_s390_bpfeb.o")] {
        fs::copy(world.dir.path().join(from), world.dir.path().join(to)).unwrap();
    }
    let built = world.json("build oci:layout:v2 probe_x86_bpfel.o probe_s390_bpfeb.o");
    assert_eq!(built["platforms"], serde_json::json!(["linux/amd64", "linux/s390x"]));
    assert_eq!(
        world.good("generate-build-args probe_x86_bpfel.o probe_s390_bpfeb.o"),
        "BC_AMD64_EL=probe_x86_bpfel.o\nBC_S390X_EB=probe_s390_bpfeb.o\nPROGRAMS={\"pass\":\"xdp\"}\nMAPS={\"counter\":\"array\"}\n"
    );
    assert!(world.good("generate-build-args pass.bpfel.o").starts_with("BYTECODE_FILE=pass.bpfel.o\nPROGRAMS="));
}

#[test]
fn refusals_say_what_to_do() {
    let world = World::new();
    fs::write(world.dir.path().join("junk.o"), "#!/bin/sh\n").unwrap();
    fs::write(world.dir.path().join("junk.tar"), "#!/bin/sh\n").unwrap();
    world.good("build oci-archive:nameless.tar pass.bpfel.o");
    world.good("build oci-archive:foreign.tar:v1 pass.bpfel.o");
    for (line, parts) in [
        ("build pass pass.bpfel.o", &["names no registry; write docker.io/"][..]),
        ("build ghcr.io/acme/pass:v1 missing.o", &["read missing.o", "No such file"]),
        ("build ghcr.io/acme/pass:v1 junk.o", &["junk.o is not an ELF object"]),
        ("build ghcr.io/acme/pass:v1 junk.tar", &["ends in .o"]),
        ("build ghcr.io/acme/pass:v1 linux/s390x=pass.bpfel.o", &["little-endian", "s390x is not"]),
        ("build ghcr.io/acme/pass:v1 linux/vax=pass.bpfel.o", &["no platform of images", "linux/amd64"]),
        ("build ghcr.io/acme/pass:v1 pass.bpfel.o pass.bpfeb.o", &["nothing says", "write linux/amd64=pass.bpfel.o"]),
        ("build ghcr.io/acme/pass:v1 linux/arm64=pass.bpfel.o linux/arm64=pass.bpfel.o", &["both for linux/arm64"]),
        ("build file:/x.o pass.bpfel.o", &["write registry/repository:tag"]),
        ("build ghcr.io/acme/pass:v1 pass.bpfel.o --to ghcr.io/acme/x", &["--to takes"]),
        ("inspect ghcr.io/acme/pass:v1", &["not in the cache", "bpfman-hook pull"]),
        ("inspect oci:nowhere", &["oci:"]),
        ("export ghcr.io/acme/pass:v1 out.tar", &["not in the cache"]),
        ("export file:/x.o out.tar", &["image build"]),
        ("rm ghcr.io/acme/pass:v1", &["not in the cache", "bpfman-hook images"]),
        ("rm oci:/x", &["only images from registries"]),
        ("import missing.tar", &["missing.tar", "No such file"]),
        ("import junk.tar", &["junk.tar"]),
        ("import nameless.tar", &["no image in it has a name", "image import nameless.tar registry/repository:tag"]),
        ("import nameless.tar ghcr.io/stranger/x:v1", &["no image rule of the policy speaks of it"]),
        ("import nameless.tar oci:/x", &["no name of the cache"]),
    ] {
        let sentence = world.bad(line);
        assert!(parts.iter().all(|part| sentence.contains(part)), "image {line}: {sentence}");
    }
    assert!(!world.dir.path().join("out.tar").exists());
    assert_eq!(world.good("list -q"), "", "nothing of what was refused is in the cache");
}
