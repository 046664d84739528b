//! Signatures of real signers: cosign 2 and cosign 3 sign images that we, skopeo and oras made, in registries without
//! and with the referrers API; we verify them, and cosign verifies what we push. A case whose signer is not available
//! is skipped, with a visible message.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness;
use crate::referrers_api::WithReferrers;
use crate::sigstore_world::{Claim, Flaw, Instance};
use crate::support::docker_registry::DockerRegistry;
use crate::support::lab::{Hooks, Lab};
use crate::support::process::{Ended, ended, tool};
use crate::support::world::object_path;
use crate::tools::{Cosign, Oras};

/// Pushes an image of the demo object for two platforms, built for the first push; returns its name by digest.
fn pushed(lab: &Lab, host: &str, repository: &str) -> String {
    let layout = format!("oci:{}:v1", lab.path("built").display());
    if !lab.path("built").exists() {
        let object = object_path("demo");
        let files = ["amd64", "arm64"].map(|architecture| format!("linux/{architecture}={}", object.display()));
        lab.ours(&["image", "build", "--quiet", &layout, &files[0], &files[1]]);
    }
    let name = format!("{host}/{repository}");
    let digest = lab.ours(&["image", "push", "--quiet", &layout, &format!("{name}:v1")]);
    format!("{name}@{}", digest.trim())
}

/// The output of `image verify` for these signers, and whether a rule is satisfied.
fn verified(lab: &Lab, image: &str, signers: &[&str]) -> (bool, Value) {
    let Ended { status, stdout, stderr } =
        ended(&mut lab.command(&[&["image", "verify", "-o", "json", image], signers].concat()));
    let found: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("image verify {image}: {e}: {stdout}{stderr}"));
    assert_eq!(status.code(), Some(i32::from(found["verdict"].is_null())), "{found:#}");
    (status.success(), found)
}

fn with_key(lab: &Lab, cosign: &Cosign, image: &str, key: &str) -> (bool, Value) {
    verified(lab, image, &["--key", &cosign.path(&format!("{key}.pub")).display().to_string()])
}

/// One property of each signature, in the order in which the signatures were found.
fn each<'a>(found: &'a Value, path: &str) -> Vec<&'a str> {
    let signatures = found["signatures"].as_array().into_iter().flatten();
    signatures.map(|signature| signature.pointer(path).and_then(Value::as_str).unwrap_or_default()).collect()
}

/// Runs a test in a lab, and checks that it leaves nothing behind.
fn in_a_lab(test: fn(&Lab)) {
    let lab = Lab::new(Hooks::Removed);
    test(&lab);
    lab.residue();
}

const P256: &[&str] = &["ecparam", "-name", "prime256v1", "-genkey", "-noout"];

#[test]
fn keys_of_every_kind_sign_with_both_releases() {
    in_a_lab(|lab| {
        const WHAT: &str = "keys of every kind by real signers";
        let Some(three) = Cosign::three(lab, WHAT) else { return };
        let two = Cosign::two(lab, WHAT);
        let registry = DockerRegistry::start(&lab.path("registry"));
        three.import("stranger", P256);
        // Debian's cosign 3 cannot verify its own signatures with a P-384 or Ed25519 key: it signs and verifies with
        // different hashes.
        let kinds: [(&str, &[&str], bool, bool); 4] = [
            ("p256", P256, true, true),
            ("p384", &["ecparam", "-name", "secp384r1", "-genkey", "-noout"], true, false),
            ("ed25519", &["genpkey", "-algorithm", "ed25519"], false, false),
            ("rsa", &["genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048"], true, true),
        ];
        for (key, made_by, of_three, to_three) in kinds {
            three.import(key, made_by);
            let mut signed = vec![
                ("three", "sigstore bundle v0.3", "fallback-tag", of_three, to_three),
                ("three-as-two", "cosign 2 attachment", "signature-tag", of_three, to_three),
            ];
            signed.extend(two.as_ref().map(|_| ("two", "cosign 2 attachment", "signature-tag", true, true)));
            for (how, format, place, good, to_three) in signed {
                let image = pushed(lab, registry.host(), &format!("{key}/{how}"));
                match (how, &two) {
                    ("two", Some(two)) => two.sign(key, &image),
                    ("three", _) => three.sign(key, &image),
                    _ => three.sign_as_two(key, &image),
                }
                let (counts, found) = with_key(lab, &three, &image, key);
                let context = format!("{key} {how}: {found:#}");
                assert_eq!(
                    (counts, each(&found, "/format"), each(&found, "/place")),
                    (good, vec![format], vec![place]),
                    "{context}"
                );
                assert_eq!(each(&found, "/kind"), ["key"], "{context}");
                if !good {
                    assert!(each(&found, "/rules/0/reason")[0].contains("Ed25519ph, which is not supported"), "{context}");
                }
                assert_eq!(three.takes(key, &image), to_three, "what cosign 3 says of {key} {how}");
                let (counts, found) = with_key(lab, &three, &image, "stranger");
                assert!(
                    !counts && each(&found, "/rules/0/reason") == ["it is signed by another key, or over other bytes"],
                    "{found:#}"
                );
            }
        }
    });
}

#[test]
fn the_referrers_api_is_used_where_a_registry_has_it() {
    in_a_lab(|lab| {
        const WHAT: &str = "real signers with the referrers API";
        let Some(three) = Cosign::three(lab, WHAT) else { return };
        let registry = WithReferrers::start(&lab.path("registry"));
        let without = DockerRegistry::start(&lab.path("without"));
        three.import("own", P256);
        let image = pushed(lab, registry.host(), "acme/demo");
        three.sign("own", &image);
        let (counts, found) = with_key(lab, &three, &image, "own");
        assert!(counts && each(&found, "/place") == ["referrers"], "{found:#}");
        if let Some(two) = Cosign::two(lab, WHAT) {
            two.sign("own", &image);
            let (counts, found) = with_key(lab, &three, &image, "own");
            assert!(counts && each(&found, "/place") == ["signature-tag", "referrers"], "{found:#}");
        }

        // To a registry without the API, and from there to one with it: cosign finds what we push.
        lab.policy(&format!(
            "[[image]]\nrepository = \"**\"\nsigned-by = {{ key = \"{}\" }}\n",
            three.path("own.pub").display()
        ));
        let name = |host: &str, repository: &str| format!("{host}/{repository}:v1");
        let tag = name(registry.host(), "acme/demo");
        lab.ours(&[
            "image",
            "build",
            "--quiet",
            "--push",
            &name(without.host(), "first/demo"),
            &object_path("demo").display().to_string(),
        ]);
        let (from, between, to) =
            (name(without.host(), "first/demo"), name(registry.host(), "second/demo"), name(without.host(), "third/demo"));
        three.sign("own", &by_digest(lab, &from));
        for (from, to, place) in [(&from, &between, "referrers"), (&between, &to, "fallback-tag")] {
            lab.ours(&["pull", from]);
            lab.ours(&["image", "push", from, to]);
            assert!(three.takes("own", &by_digest(lab, to)), "cosign 3 finds no signature that we pushed to {to}");
            let (counts, found) = with_key(lab, &three, to, "own");
            assert!(counts && each(&found, "/place") == [place], "{to}: {found:#}");
        }
        // Only this machine's platform of an index is pulled; the signed digest remains that of the index.
        let pulled = lab.json(&["pull", &tag]);
        assert_eq!(
            (pulled[0]["digest"].as_str(), pulled[0]["verdict"].as_str()),
            (image.split_once('@').map(|(_, d)| d), Some("verified"))
        );
    });
}

/// The name by digest of the image behind a tag.
fn by_digest(lab: &Lab, name: &str) -> String {
    let Ended { stdout, stderr, .. } = ended(&mut lab.command(&["image", "verify", "-o", "json", name]));
    let found: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("image verify {name}: {e}: {stderr}"));
    let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
    format!("{repository}@{}", found["digest"].as_str().unwrap_or_else(|| panic!("{found:#}")))
}

#[test]
fn images_of_other_tools_are_signed_and_pulled() {
    in_a_lab(|lab| {
        const WHAT: &str = "images of other tools by real signers";
        let (Some(three), Some(oras)) = (Cosign::three(lab, WHAT), Oras::get(WHAT)) else { return };
        let two = Cosign::two(lab, WHAT);
        let registry = DockerRegistry::start(&lab.path("registry"));
        three.import("own", P256);
        lab.policy(&format!(
            "[[image]]\nrepository = \"{}/**\"\nsigned-by = {{ key = \"{}\" }}\n",
            registry.host(),
            three.path("own.pub").display()
        ));
        let object = object_path("demo");
        let layout = lab.path("layout").display().to_string();
        lab.ours(&["image", "build", "--quiet", &format!("oci:{layout}:v1"), &object.display().to_string()]);
        for (nth, signer) in [Some(&three), two.as_ref()].into_iter().flatten().enumerate() {
            let name = |tool: &str| format!("{}/{tool}/demo{nth}:v1", registry.host());
            let of_skopeo = name("skopeo");
            let copy = ["copy", "--quiet", "--dest-tls-verify=false"];
            tool(Command::new("skopeo").args(copy).arg(format!("oci:{layout}:v1")).arg(format!("docker://{of_skopeo}")));
            let of_docker = name("docker");
            let convert = ["copy", "--quiet", "--format=v2s2", "--src-tls-verify=false", "--dest-tls-verify=false"];
            tool(
                Command::new("skopeo").args(convert).arg(format!("docker://{of_skopeo}")).arg(format!("docker://{of_docker}")),
            );
            let of_oras = name("oras");
            fs::copy(&object, lab.path("demo.o")).unwrap_or_else(|e| harness!("copy the object: {e}"));
            let file = ["demo.o:application/vnd.ebpf.object", "--artifact-type", "application/vnd.ebpf.bytecode.v1"];
            oras.must(&lab.path(""), &[&["push", "--plain-http", &of_oras], &file[..]].concat());
            for image in [&of_skopeo, &of_docker, &of_oras] {
                let Ended { status, stderr, .. } = ended(&mut lab.command(&["pull", image]));
                assert!(
                    !status.success() && stderr.contains("it is not signed"),
                    "{image} before it is signed: {status} {stderr}"
                );
                signer.sign("own", &by_digest(lab, image));
                let pulled = lab.json(&["pull", image]);
                assert_eq!(pulled[0]["verdict"], "verified", "{image}: {pulled:#}");
                let shown = lab.json(&["image", "inspect", image]);
                assert_eq!(shown["programs"][0]["name"], "count_packets", "{image}: {shown:#}");
            }
            // What is known about a digest is known under all its names.
            lab.ours(&["image", "prune", "--all"]);
        }
    });
}

#[test]
fn attestations_are_not_signatures_and_nothing_hides_a_good_signature() {
    in_a_lab(|lab| {
        const WHAT: &str = "attestations and foreign signatures by real signers";
        let (Some(three), Some(oras)) = (Cosign::three(lab, WHAT), Oras::get(WHAT)) else { return };
        let two = Cosign::two(lab, WHAT);
        let registry = DockerRegistry::start(&lab.path("registry"));
        three.import("own", P256);
        three.import("stranger", P256);
        for signer in [Some(&three), two.as_ref()].into_iter().flatten() {
            let image = pushed(lab, registry.host(), &format!("attested/by{}", signer.major));
            signer.attest("own", &image);
            let (counts, found) = with_key(lab, &three, &image, "own");
            let refused = found["refused"].as_str().unwrap_or_default();
            assert!(!counts && refused.contains("it is not signed"), "cosign {}: {found:#}", signer.major);
            // cosign 2 keeps them behind a separate tag, which cannot hold signatures.
            let kinds: &[&str] = if signer.major == 3 { &["attestation"] } else { &[] };
            assert_eq!(each(&found, "/kind"), kinds, "cosign {}: {found:#}", signer.major);
            if signer.major == 3 {
                assert_eq!(each(&found, "/predicate"), ["https://example.com/made/v1"], "{found:#}");
            }
        }

        // A signature of one platform's manifest is not a signature of the index.
        let image = pushed(lab, registry.host(), "platform/demo");
        let (name, digest) = image.split_once("@sha256:").unwrap_or_else(|| harness!("{image} has no digest"));
        let index = fs::read(lab.path("built/blobs/sha256").join(digest)).unwrap_or_else(|e| harness!("read the index: {e}"));
        let index: Value = serde_json::from_slice(&index).unwrap_or_else(|e| harness!("parse the index: {e}"));
        let platform = format!("{name}@{}", index["manifests"][0]["digest"].as_str().unwrap_or_default());
        three.sign("own", &platform);
        assert!(with_key(lab, &three, &platform, "own").0, "the signature is good for {platform}");
        let (counts, found) = with_key(lab, &three, &image, "own");
        assert!(!counts && found["signatures"].as_array().is_some_and(Vec::is_empty), "{found:#}");

        let image = pushed(lab, registry.host(), "crowded/demo");
        let attach = |text: &str| attach(lab, &oras, &image, text);
        attach("no bundle");
        three.sign("stranger", &image);
        attach("{}");
        if let Some(two) = &two {
            two.sign("stranger", &image);
        }
        let (counts, found) = with_key(lab, &three, &image, "own");
        assert!(!counts && found["refused"].as_str().is_some_and(|why| why.contains("none of its signatures")), "{found:#}");
        three.attest("own", &image);
        let (counts, found) = with_key(lab, &three, &image, "own");
        assert!(!counts, "an attestation by the right key is no signature: {found:#}");
        let before = each(&found, "/kind").len();
        three.sign("own", &image);
        attach("more junk");
        let (counts, found) = with_key(lab, &three, &image, "own");
        assert!(counts && each(&found, "/kind").len() == before + 2, "{found:#}");
        let counted = each(&found, "/rules/0/by").iter().filter(|by| !by.is_empty()).count();
        assert_eq!(counted, 1, "{found:#}");
        // The same among the signatures of one tag.
        if let Some(two) = &two {
            let image = pushed(lab, registry.host(), "crowded/tag");
            for key in ["stranger", "own"] {
                two.sign(key, &image);
            }
            let (counts, found) = with_key(lab, &three, &image, "own");
            assert!(counts && each(&found, "/place") == ["signature-tag"; 2], "{found:#}");
        }
    });
}

/// Bundles of the tests' own Sigstore instance: cosign 3 and our verifier agree on each, so that what we reject is also
/// rejected by others, and what we accept is what users' tools make.
#[test]
fn cosign_3_agrees_with_us_on_the_tests_own_instance() {
    in_a_lab(|lab| {
        const WHAT: &str = "the tests' own Sigstore instance before a real verifier";
        let (Some(three), Some(oras)) = (Cosign::three(lab, WHAT), Oras::get(WHAT)) else { return };
        let registry = DockerRegistry::start(&lab.path("registry"));
        let instance = Instance::new();
        let root = three.path("trusted_root.json");
        fs::write(&root, instance.trusted_root()).unwrap_or_else(|e| harness!("write: {e}"));
        let root = root.display().to_string();
        let (identity, issuer) = ("https://forge.example/acme@v1", "https://token.forge.example");
        let who = ["--certificate-identity", identity, "--certificate-oidc-issuer", issuer, "--trusted-root", &root];
        type Make = fn(&Instance, Claim<'_>, Flaw) -> Value;
        let of_rekor_1: &[Flaw] = &[
            Flaw::None,
            Flaw::Authority,
            Flaw::Timestamp,
            Flaw::Signature,
            Flaw::Promise,
            Flaw::Proof,
            Flaw::Checkpoint,
            Flaw::Late,
        ];
        let of_rekor_2: &[Flaw] =
            &[Flaw::None, Flaw::Signature, Flaw::Proof, Flaw::Checkpoint, Flaw::Entry, Flaw::NoStamp, Flaw::Stamp];
        for (log, make, flaws) in
            [("rekor1", Instance::bundle as Make, of_rekor_1), ("rekor2", Instance::bundle_of_rekor_2, of_rekor_2)]
        {
            for flaw in flaws {
                let image = pushed(lab, registry.host(), &format!("{log}/{}", format!("{flaw:?}").to_lowercase()));
                let digest = image.split_once('@').map_or("", |(_, digest)| digest);
                let bundle = make(&instance, Claim { identity, issuer, digest }, *flaw);
                attach(lab, &oras, &image, &bundle.to_string());
                let (counts, found) = verified(lab, &image, &who);
                assert_eq!(counts, *flaw == Flaw::None, "{log} {flaw:?}: {found:#}");
                let theirs = three.run(&[&["verify"], &who[..], &[&image]].concat());
                // cosign 3.1 does not compare a Rekor v2 log entry with what was signed.
                let theirs_too = counts || (log, *flaw) == ("rekor2", Flaw::Entry);
                assert_eq!(theirs.status.success(), theirs_too, "{log} {flaw:?}: cosign says {}", theirs.stderr);
            }
        }
    });
}

/// Makes a registry list an artifact as a bundle of an image.
fn attach(lab: &Lab, oras: &Oras, image: &str, bundle: &str) {
    const KIND: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
    fs::write(lab.path("bundle.json"), bundle).unwrap_or_else(|e| harness!("write: {e}"));
    let spec = ["--plain-http", "--distribution-spec", "v1.1-referrers-tag", "--artifact-type", KIND];
    let file = format!("bundle.json:{KIND}");
    oras.must(&lab.path(""), &[&["attach"], &spec[..], &[image, &file]].concat());
}

/// Every command of docs/signing.md, exactly as documented. Commands that need the internet are only checked for their
/// flags.
#[test]
fn the_commands_of_the_documentation_work() {
    in_a_lab(|lab| {
        const WHAT: &str = "the commands of docs/signing.md";
        let (Some(three), Some(two)) = (Cosign::three(lab, WHAT), Cosign::two(lab, WHAT)) else { return };
        let registry = DockerRegistry::start(&lab.path("registry"));
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/signing.md"));
        let text = text.unwrap_or_else(|e| harness!("read docs/signing.md: {e}"));
        let commands: Vec<&str> = text
            .split("```")
            .skip(1)
            .step_by(2)
            .filter(|block| block.starts_with('\n'))
            .flat_map(str::lines)
            .filter(|line| !line.is_empty())
            .collect();
        let count = |word: &str| commands.iter().filter(|command| command.starts_with(word)).count();
        assert!(count("cosign ") >= 5 && count("bpfman-hook ") >= 1, "the test does not find the commands: {commands:?}");
        let mut signed = 0;
        for line in commands {
            let (command, remark) = line.split_once(" # ").unwrap_or((line, ""));
            let cosign = if remark.contains("cosign 3") { &three } else { &two };
            let image = pushed(lab, registry.host(), &format!("docs/n{signed}"));
            let command = command.replace("REGISTRY/REPO@sha256:…", &image);
            let words: Vec<&str> = command.split_whitespace().collect();
            match words.as_slice() {
                ["cosign", "trusted-root", args @ ..] => {
                    let Ended { stderr, .. } = cosign.run(&[&["trusted-root"], args].concat());
                    assert!(!stderr.contains("unknown") && !stderr.contains("usage"), "{line}: {stderr}");
                }
                ["cosign", args @ ..] => {
                    let Ended { status, stderr, .. } = cosign.run(args);
                    assert!(status.success(), "{line}: {status}: {stderr}");
                    if args[0] == "sign" {
                        signed += 1;
                        let (counts, found) = with_key(lab, &three, &image, "cosign");
                        assert!(counts, "{line}: {found:#}");
                        lab.ours(&["image", "verify", &image, "--key", &three.path("cosign.pub").display().to_string()]);
                    }
                }
                ["bpfman-hook", args @ ..] => {
                    cosign.sign("cosign", &image);
                    let mut command = lab.command(args);
                    let Ended { status, stderr, .. } = ended(command.current_dir(three.path("")));
                    assert!(status.success(), "{line}: {status}: {stderr}");
                }
                ["install", "-m", "0644", _, to] => assert!(to.starts_with("/etc/bpfman-hook/"), "{line}"),
                _ => panic!("the test does not know what to do with: {line}"),
            }
        }
        assert_eq!(signed, 2, "both ways of signing stand there");
    });
}
