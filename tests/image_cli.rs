//! `image …` as users see it: what is printed, what is refused and with which message. No registry and no root.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

#[allow(dead_code, reason = "one flaw is enough here")]
#[path = "support/sigstore_world.rs"]
mod sigstore_world;

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

    /// The output of a command that succeeds.
    fn good(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success() && output.stderr.is_empty(), "image {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.good(&format!("{line} -o json"))).unwrap()
    }

    /// The only line of a command that fails.
    fn bad(&self, line: &str) -> String {
        let output = self.run(line);
        let sentence = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), sentence.lines().count()), (Some(1), 1), "image {line}: {sentence}");
        sentence
    }
}

#[test]
fn an_image_is_built_inspected_exported_and_removed() {
    let world = World::new();
    let digest = world.good("build ghcr.io/acme/pass:v1 pass.bpfel.o");
    assert_eq!(world.good("build oci:./layout:v1 pass.bpfel.o"), digest, "the same object makes the same image");
    let shown = world.json("inspect ghcr.io/acme/pass:v1");
    assert_eq!(shown["digest"].as_str().unwrap(), digest.trim());
    assert_eq!(shown["programs"][0]["name"], "pass");
    assert_eq!(shown["programs"][0]["type"], "xdp");
    assert_eq!(shown["maps"][0]["type"], "array");
    assert_eq!(shown["labels"]["differences"], serde_json::json!([]));
    assert_eq!((&shown["license"], &shown["kernel"]), (&"GPL".into(), &"5.9".into()));
    let table = world.good("inspect oci:layout:v1");
    assert!(table.contains("labels      agree with the object") && table.contains("XDP links"), "{table}");

    let exported = world.good("export ghcr.io/acme/pass:v1 oci-archive:out.tar");
    assert!(exported.starts_with(&digest) && exported.contains("exported without signatures"), "{exported}");
    let gone = world.json("rm ghcr.io/acme/pass:v1");
    assert_eq!(gone["references"], serde_json::json!(["ghcr.io/acme/pass:v1"]));
    assert_eq!(world.json("list"), serde_json::json!([]));
    let imported = world.json("import out.tar");
    assert_eq!((&imported[0]["digest"], &imported[0]["verdict"]), (&digest.trim().into(), &"unsigned".into()), "{imported}");
    assert_eq!(world.good("list --quiet"), digest);
    for other_name in [&["images"][..], &["list", "images"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bpfman-hook"));
        let output = command.arg("--root").arg(world.dir.path()).args(other_name).args(["-o", "json"]).output().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), world.json("list"), "{other_name:?}");
    }
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
fn verify_reports_whether_an_image_would_be_accepted() {
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
    assert!(world.bad("verify oci:layout:v1").contains("no [[image]] rule of the policy applies to it"));
    assert!(world.bad("verify oci:layout:v1 --key nowhere.pub").contains("read key nowhere.pub"));
}

/// Adds a blob to the layout of these tests, and returns its descriptor.
fn blob(world: &World, bytes: &[u8], media_type: &str) -> Value {
    let hex = sigstore_crypto::sha256(bytes).to_hex();
    fs::write(world.dir.path().join("layout/blobs/sha256").join(&hex), bytes).unwrap();
    serde_json::json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() })
}

/// Adds a manifest to the layout's index: bundles refer to the image, attachments have a name.
fn add(world: &World, manifest: &Value, name: Option<&str>) {
    let mut entry = blob(world, manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    if let Some(name) = name {
        entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": name });
    }
    let path = world.dir.path().join("layout/index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["manifests"].as_array_mut().unwrap().push(entry);
    fs::write(path, index.to_string()).unwrap();
}

fn add_bundle(world: &World, digest: &str, bundle: &str) {
    const TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": TYPE,
        "config": blob(world, b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [blob(world, bundle.as_bytes(), TYPE)],
        "subject": { "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1 },
    });
    add(world, &manifest, None);
}

fn add_attachment(world: &World, digest: &str, made: &sigstore_world::Attachment) {
    let mut layer = blob(world, made.payload.as_bytes(), "application/vnd.dev.cosign.simplesigning.v1+json");
    layer["annotations"] = serde_json::json!({
        "dev.cosignproject.cosign/signature": made.signature,
        "dev.sigstore.cosign/certificate": made.certificate,
        "dev.sigstore.cosign/chain": made.chain,
        "dev.sigstore.cosign/bundle": made.entry,
    });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": blob(world, b"{}", "application/vnd.oci.image.config.v1+json"),
        "layers": [layer],
    });
    add(world, &manifest, Some(&format!("{}.sig", digest.replace(':', "-"))));
}

/// The exit status and output of `image verify -o json`.
fn verified(world: &World, options: &str) -> (Option<i32>, Value) {
    let output = world.run(&format!("verify oci:layout:v1 {options} -o json"));
    let found = serde_json::from_slice(&output.stdout).unwrap_or_else(|err| panic!("{options}: {err}: {output:?}"));
    (output.status.code(), found)
}

#[test]
fn verify_explains_each_signature() {
    use sigstore_world::{Claim, Flaw, Instance};
    let world = World::new();
    let digest = world.good("build oci:layout:v1 pass.bpfel.o").trim().to_owned();
    let claim = Claim { identity: "https://forge.example/acme@v1", issuer: "https://token.example", digest: &digest };
    let (instance, another) = (Instance::new(), Instance::new());
    fs::write(world.dir.path().join("root.json"), instance.trusted_root()).unwrap();
    add_bundle(&world, &digest, &instance.bundle(claim, Flaw::Proof).to_string());
    add_bundle(&world, &digest, &instance.bundle_of_rekor_2(claim, Flaw::None).to_string());
    add_bundle(&world, &digest, &another.bundle(claim, Flaw::None).to_string());
    add_bundle(&world, &digest, "{}");
    add_attachment(&world, &digest, &instance.attachment(claim, Flaw::None));

    let who = "--certificate-identity https://forge.example/acme@v1 --certificate-oidc-issuer https://token.example";
    let (status, found) = verified(&world, &format!("{who} --trusted-root root.json"));
    assert_eq!((status, found["verdict"]["verdict"].as_str()), (Some(0), Some("verified")), "{found:#}");
    let signatures = found["signatures"].as_array().unwrap();
    let result = |signature: &Value, check: &str| {
        let checks = signature["rules"][0]["checks"].as_array().unwrap();
        let checked = checks.iter().find(|checked| checked["check"] == check);
        checked.map_or("none", |checked| checked["result"].as_str().unwrap()).to_owned()
    };
    let expected = [
        ("bundle", "sigstore bundle v0.3", "keyless", Some("the proof that its entry is in the log")),
        ("bundle", "sigstore bundle v0.3", "keyless", None),
        ("bundle", "sigstore bundle v0.3", "keyless", Some("its entry is in a log that the root does not name; ")),
        ("bundle", "sigstore bundle", "unreadable", Some("it is not a sigstore bundle: ")),
        ("simple-signing", "cosign 2 attachment", "keyless", None),
    ];
    assert_eq!(signatures.len(), expected.len(), "{found:#}");
    for (signature, (layout, format, kind, reason)) in signatures.iter().zip(expected) {
        assert_eq!(
            (&signature["layout"], &signature["format"], &signature["kind"], &signature["place"]),
            (&layout.into(), &format.into(), &kind.into(), &"layout".into()),
            "{signature:#}"
        );
        let result = &signature["rules"][0];
        match reason {
            None => assert_eq!(result["by"], "https://forge.example/acme@v1 (https://token.example)", "{signature:#}"),
            Some(words) => assert!(result["reason"].as_str().unwrap().contains(words), "{signature:#}"),
        }
        if kind == "keyless" {
            assert_eq!(signature["certificate"]["identity"], claim.identity);
            assert_eq!(signature["certificate"]["issuer"], claim.issuer);
        }
    }
    let results = |check| signatures.iter().map(|signature| result(signature, check)).collect::<Vec<_>>();
    assert_eq!(results("proof"), ["failed", "passed", "not-reached", "none", "absent"]);
    assert_eq!(results("timestamp"), ["absent", "passed", "absent", "none", "absent"]);
    assert_eq!(results("promise"), ["passed", "absent", "failed", "none", "passed"]);
    assert_eq!(results("identity"), ["not-reached", "passed", "not-reached", "none", "passed"]);
    assert_eq!(signatures[0]["log"][0]["kind"], "dsse 0.0.1");
    assert_eq!(signatures[1]["log"][0], serde_json::json!({ "kind": "hashedrekord 0.0.2", "index": 1, "time": null }));
    assert_eq!(signatures[4]["log"][0]["time"], "2025-06-01T00:01:00Z");

    let text = String::from_utf8(world.run(&format!("verify oci:layout:v1 {who} --trusted-root root.json")).stdout).unwrap();
    for line in [
        "signature 2\n  found       in the layout\n  format      sigstore bundle v0.3\n",
        "  certificate says https://forge.example/acme@v1 (https://token.example)\n",
        "  counts for rule of the command line: by https://forge.example/acme@v1 (https://token.example)\n    passed: format, statement, image digest, time stamp, certificate chain, ",
        "    failed: inclusion proof\n    not checked: log checkpoint, signature, log entry, identity\n",
        "verified: by https://forge.example/acme@v1 (https://token.example), under rule of the command line\n",
    ] {
        assert!(text.contains(line), "{line}\n---\n{text}");
    }

    // The same with regular expressions, and arguments that do not fit together.
    for (options, good) in [
        ("--certificate-identity-regexp https://forge.example/.* --certificate-oidc-issuer https://token.example", true),
        ("--certificate-identity-regexp https://forge.example/.* --certificate-oidc-issuer-regexp .*", true),
        ("--certificate-identity-regexp https://forge.example --certificate-oidc-issuer-regexp .*", false),
        ("--certificate-identity https://forge.example/acme@v1 --certificate-oidc-issuer https://token", false),
    ] {
        let (status, found) = verified(&world, &format!("{options} --trusted-root root.json"));
        assert_eq!(status, Some(i32::from(!good)), "{options}: {found:#}");
        assert_eq!(found["verdict"].is_null(), !good, "{options}: {found:#}");
    }
    for options in [
        "--certificate-identity x",
        "--certificate-oidc-issuer x",
        "--trusted-root root.json",
        "--certificate-identity x --certificate-identity-regexp x --certificate-oidc-issuer x",
        "--certificate-identity x --certificate-oidc-issuer x --certificate-oidc-issuer-regexp x",
    ] {
        assert_eq!(world.run(&format!("verify oci:layout:v1 {options}")).status.code(), Some(2), "{options}");
    }
    let (who, keys) = ("--certificate-oidc-issuer x --certificate-identity", Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(world.bad(&format!("verify oci:layout:v1 {who} x --trusted-root no.json")).contains("read trusted root no.json: "));
    fs::write(world.dir.path().join("empty.json"), "{}").unwrap();
    let (status, found) = verified(&world, &format!("{who} x --trusted-root empty.json"));
    assert!(status == Some(1) && found["refused"].as_str().unwrap().contains("empty.json"), "{found:#}");
    let (_, found) = verified(&world, &format!("{who}-regexp ( --trusted-root root.json"));
    assert!(found["refused"].as_str().unwrap().contains("is not a regular expression"), "{found:#}");

    // A key does not apply to a certificate.
    let key = keys.join("tests/data/signatures/keys/cosign-v3.pub");
    let (status, found) = verified(&world, &format!("--key {}", key.display()));
    assert_eq!(status, Some(1));
    let reason = &found["signatures"][1]["rules"][0]["reason"];
    assert_eq!(reason, "it is keyless (signed with a certificate), but the rule names only keys");
}

/// Under a key, the log entries and time stamps of a bundle are ignored, good or bad, and the output says so.
#[test]
fn verify_reports_what_is_ignored_under_a_key() {
    let world = World::new();
    let digest = world.good("build oci:layout:v1 pass.bpfel.o").trim().to_owned();
    let pair = sigstore_crypto::KeyPair::generate_ecdsa_p256().unwrap();
    fs::write(world.dir.path().join("own.pub"), pair.public_key_der().unwrap().to_pem()).unwrap();
    let statement = format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://sigstore.dev/cosign/sign/v1","subject":[{{"digest":{{"sha256":"{}"}}}}]}}"#,
        &digest[7..]
    );
    let (statement, kind) = (statement.as_bytes(), "application/vnd.in-toto+json");
    let pae = sigstore_types::pae(kind, statement);
    let base64 = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let material = |more: Value| {
        let mut material = serde_json::json!({ "publicKey": { "hint": "aGludA==" } });
        material.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": material,
            "dsseEnvelope": {
                "payload": base64(statement),
                "payloadType": kind,
                "signatures": [{ "sig": base64(pair.sign(&pae).unwrap().as_bytes()) }],
            },
        })
    };
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures/bundles/keyless.json");
    let recorded: Value = serde_json::from_slice(&fs::read(recorded).unwrap()).unwrap();
    let stamps = serde_json::json!({ "rfc3161Timestamps": [{ "signedTimestamp": base64(b"nonsense") }] });
    for more in [
        serde_json::json!({}),
        serde_json::json!({ "tlogEntries": recorded["verificationMaterial"]["tlogEntries"] }),
        serde_json::json!({ "tlogEntries": [{ "kindVersion": { "kind": "nonsense", "version": "9" } }] }),
        serde_json::json!({ "timestampVerificationData": stamps }),
        serde_json::json!({ "timestampVerificationData": 7 }),
    ] {
        add_bundle(&world, &digest, &material(more).to_string());
    }
    let (status, found) = verified(&world, "--key own.pub");
    assert_eq!(status, Some(0), "{found:#}");
    let results: Vec<(&str, &str)> = found["signatures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|signature| {
            assert_eq!((&signature["kind"], &signature["rules"][0]["by"]), (&"key".into(), &"own.pub".into()), "{signature:#}");
            let checks = signature["rules"][0]["checks"].as_array().unwrap();
            let result = |name| checks.iter().find(|checked| checked["check"] == name).unwrap()["result"].as_str().unwrap();
            (result("entry"), result("timestamp"))
        })
        .collect();
    assert_eq!(
        results,
        [("absent", "absent"), ("ignored", "absent"), ("ignored", "absent"), ("absent", "ignored"), ("absent", "absent"),]
    );
    let fingerprint = sigstore_crypto::sha256(pair.public_key_der().unwrap().as_bytes()).to_hex();
    let text = world.good("verify oci:layout:v1 --key own.pub");
    let counts = format!("  counts for rule of the command line: by own.pub, the key sha256:{fingerprint}\n");
    assert!(text.contains(&counts) && text.contains("present, but not checked under a key: log entry\n"), "{text}");
    // None of that makes another key's signature count.
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures/keys/cosign-v3.pub");
    let (status, found) = verified(&world, &format!("--key {}", other.display()));
    assert_eq!(status, Some(1));
    for signature in found["signatures"].as_array().unwrap() {
        assert_eq!(signature["rules"][0]["reason"], "it is signed by another key, or over other bytes", "{signature:#}");
    }
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
fn refusals_name_a_remedy() {
    let world = World::new();
    fs::write(world.dir.path().join("junk.o"), "#!/bin/sh\n").unwrap();
    fs::write(world.dir.path().join("junk.tar"), "#!/bin/sh\n").unwrap();
    world.good("build oci-archive:nameless.tar pass.bpfel.o");
    world.good("build oci-archive:foreign.tar:v1 pass.bpfel.o");
    for (line, parts) in [
        ("build pass pass.bpfel.o", &["has no registry; write docker.io/"][..]),
        ("build ghcr.io/acme/pass:v1 missing.o", &["read missing.o", "No such file"]),
        ("build ghcr.io/acme/pass:v1 junk.o", &["junk.o is not an ELF object"]),
        ("build ghcr.io/acme/pass:v1 junk.tar", &["must end in .o"]),
        ("build ghcr.io/acme/pass:v1 linux/s390x=pass.bpfel.o", &["little-endian", "s390x is not"]),
        ("build ghcr.io/acme/pass:v1 linux/vax=pass.bpfel.o", &["is not an image platform", "linux/amd64"]),
        ("build ghcr.io/acme/pass:v1 pass.bpfel.o pass.bpfeb.o", &["is not known", "write linux/amd64=pass.bpfel.o"]),
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
        (
            "import nameless.tar",
            &["none of its images has a registry name", "image import nameless.tar registry/repository:tag"],
        ),
        ("import nameless.tar ghcr.io/stranger/x:v1", &["no [[image]] rule of the policy applies to it"]),
        ("import nameless.tar oci:/x", &["not a valid name in the cache"]),
    ] {
        let sentence = world.bad(line);
        assert!(parts.iter().all(|part| sentence.contains(part)), "image {line}: {sentence}");
    }
    assert!(!world.dir.path().join("out.tar").exists());
    assert_eq!(world.good("list -q"), "", "nothing that was refused is in the cache");
}
