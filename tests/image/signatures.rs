//! Every recorded signature case, from registries with and without referrers API, and from layouts made of the same
//! blobs.

use bpfman_hook::image::ImageError;
use bpfman_hook::model::bytecode::ImageVerdict;
use bpfman_hook::model::ids::Digest;
use bpfman_hook::model::policy::{Signer, Words};
use serde_json::{Value, json};

use crate::registry::{Behaviour, Registry, Reply};
use crate::world::{LayoutBuilder, OBJECT, World, data, digest_of, layout_of, repository, rule};

fn cases() -> Vec<Value> {
    let cases: Value = serde_json::from_slice(&std::fs::read(data("signatures/cases.json")).unwrap()).unwrap();
    cases.as_array().unwrap().clone()
}

/// The rules of a case's policy: one for its keys and identities, and another one if unsigned images are allowed.
fn world_of(case: &Value) -> World {
    let texts = |value: &Value| value.as_array().unwrap().clone();
    let mut world = World::new();
    let keys: Vec<String> = texts(&case["policy"]["keys"]).iter().map(|key| key.as_str().unwrap().to_owned()).collect();
    let mut signed = world.key_rule("signed", &keys.iter().map(String::as_str).collect::<Vec<_>>());
    let root = data("signatures").join(case["policy"]["trusted_root"].as_str().unwrap_or("trust/trusted_root.json"));
    let words = |of: &Value, key: &str| Words::Exact(of[key].as_str().unwrap().to_owned());
    world.keys.insert(root.clone(), std::fs::read(&root).unwrap());
    for identity in texts(&case["policy"]["identities"]) {
        signed.signed_by.push(Signer::Identity {
            identity: words(&identity, "identity"),
            issuer: words(&identity, "issuer"),
            trusted_root: root.clone(),
        });
    }
    signed.unsigned = false;
    world.rules.push(signed);
    if case["policy"]["allow_unsigned"] == true {
        world.rules.push(rule("unsigned", Vec::new()));
    }
    world
}

fn check(case: &Value, world: &World, reference: &str) {
    let id = case["id"].as_str().unwrap();
    let expected = case["expect"].as_str().unwrap();
    match (expected, world.fetch(reference)) {
        ("verified", Ok(got)) => {
            let layout = match case["by"].as_str().unwrap() {
                "legacy-key" | "legacy-keyless" => "simple-signing",
                "key-bundle" | "keyless-bundle" => "bundle",
                other => panic!("{id}: {other}"),
            };
            let texts = |list: &str, part: fn(&Value) -> String| -> Vec<String> {
                case["policy"][list].as_array().unwrap().iter().map(part).collect()
            };
            let mut signers = texts("keys", |key| data("signatures").join(key.as_str().unwrap()).display().to_string());
            signers.truncate(1);
            signers.extend(texts("identities", |of| {
                format!("{} ({})", of["identity"].as_str().unwrap(), of["issuer"].as_str().unwrap())
            }));
            let ImageVerdict::Verified { by, layout: found } = got.verdict else { panic!("{id}: {:?}", got.verdict) };
            assert!(found == layout && signers.contains(&by), "{id}: {found} {by}");
            assert_eq!(
                (got.rule.as_str(), got.digest.to_string().as_str()),
                ("signed", case["digest"].as_str().unwrap()),
                "{id}"
            );
            assert_eq!(got.object, OBJECT, "{id}");
            assert_eq!(got.object_digest, digest_of(OBJECT), "{id}");
        }
        ("unsigned-accepted", Ok(got)) => {
            assert_eq!((got.verdict, got.rule.as_str()), (ImageVerdict::Unsigned, "unsigned"), "{id}");
        }
        ("unsigned", Err(ImageError::Unsigned { .. })) | ("bad", Err(ImageError::BadSignature { .. })) => {}
        (expected, got) => panic!("{id}: expected {expected}, got {got:?}"),
    }
}

#[test]
fn every_case_in_a_registry() {
    let store = data("signatures/registry");
    let without = Registry::start(&store, Behaviour::default());
    let with = Registry::start(&store, Behaviour { native: Some(50), ..Behaviour::default() });
    for case in cases() {
        let native = case["serve"].as_array().is_some_and(|args| args.iter().any(|arg| arg == "--native"));
        let host = if native { with.host() } else { without.host() };
        let reference = format!("{host}/{}", case["image"].as_str().unwrap());
        check(&case, &world_of(&case), &reference);
    }
}

#[test]
fn every_case_in_a_layout() {
    for case in &cases() {
        let image = case["image"].as_str().unwrap();
        let (repo, tag) = image.split_once(['@', ':']).unwrap();
        // A layout has no digest references, and referrers without a list are found by their subject.
        let tag = if tag.starts_with("sha256") { "v1" } else { tag };
        let world = world_of(case);
        let path = world.path("layout");
        layout_of("signatures/registry", repo, &path);
        if case["id"] == "referrer-simplesigning" {
            let mut index: Value = serde_json::from_slice(&std::fs::read(path.join("index.json")).unwrap()).unwrap();
            for digest in repository("signatures/registry", repo)["manifests"].as_array().unwrap() {
                index["manifests"].as_array_mut().unwrap().push(json!({"digest": digest, "size": 1}));
            }
            crate::world::write(&path.join("index.json"), index.to_string().as_bytes());
        }
        check(case, &world, &format!("oci:{}:{tag}", path.display()));
        tar_up(&path, &world.path("layout.tar"));
        check(case, &world, &format!("oci-archive:{}:{tag}", world.path("layout.tar").display()));
    }
}

/// Packs a layout as `skopeo copy … oci-archive:` does.
pub fn tar_up(layout: &std::path::Path, to: &std::path::Path) {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all("", layout).unwrap();
    crate::world::write(to, &tar.into_inner().unwrap());
}

/// `cosign save` sets no names and marks entries by `kind`: derived from cosign's source, pkg/oci/layout.
#[test]
fn layouts_as_cosign_save_writes_them() {
    let key_v2 = repository("signatures/registry", "bpf/key-v2");
    let image = key_v2["tags"]["v1"].as_str().unwrap();
    let tag = format!("{}.sig", image.replace(':', "-"));
    let signature = key_v2["tags"][&tag].as_str().unwrap();
    let entry = |digest: &str, kind: &str| json!({"digest": digest, "size": 1, "annotations": {"kind": format!("dev.cosignproject.cosign/{kind}")}});
    for (entries, verified) in [
        (vec![entry(image, "image"), entry(signature, "sigs")], true),
        (vec![entry(image, "imageIndex"), entry(signature, "sigs")], true),
        (vec![entry(image, "image")], false),
        // Attestations are stored beside it and are not signatures.
        (vec![entry(image, "image"), entry(signature, "atts")], false),
    ] {
        let world = World::signed(&["keys/cosign-v2.pub"]);
        let path = world.path("layout");
        layout_of("signatures/registry", "bpf/key-v2", &path);
        let index = json!({"schemaVersion": 2, "manifests": entries});
        crate::world::write(&path.join("index.json"), index.to_string().as_bytes());
        match world.fetch(&format!("oci:{}", path.display())) {
            Ok(got) => assert!(verified && got.object == OBJECT, "{index}"),
            Err(ImageError::Unsigned { .. }) => assert!(!verified, "{index}"),
            Err(err) => panic!("{index}: {}", crate::world::sentence(&err)),
        }
    }
}

/// Signatures of other images in the same layout are not bad signatures of this image.
#[test]
fn a_layout_of_several_images_keeps_their_signatures_apart() {
    let mut world = World::signed(&["keys/cosign-v2.pub"]);
    world.rules.push(rule("unsigned", Vec::new()));
    let path = world.path("layout");
    layout_of("signatures/registry", "bpf/key-v2", &path);
    let key_v2 = repository("signatures/registry", "bpf/key-v2");
    let signed = key_v2["tags"]["v1"].as_str().unwrap().to_owned();
    let signature = key_v2["tags"][format!("{}.sig", signed.replace(':', "-"))].as_str().unwrap().to_owned();
    let mut layout = LayoutBuilder::new(&path);
    let other = layout.json(&layout.artifact(&[("application/x-object", OBJECT, json!({}))]));
    layout.entry(&signed, Some("signed"));
    layout.entry(&other.to_string(), Some("other"));
    layout.entries.push(json!({"digest": signature, "size": 1, "annotations": {"kind": "dev.cosignproject.cosign/sigs"}}));
    layout.write();
    let signed = world.fetch(&format!("oci:{}:signed", path.display())).unwrap();
    assert!(matches!(signed.verdict, ImageVerdict::Verified { .. }));
    let other = world.fetch(&format!("oci:{}:other", path.display())).unwrap();
    assert_eq!(other.verdict, ImageVerdict::Unsigned);
}

#[test]
fn all_pages_of_referrers_are_read_and_malformed_ones_do_not_hide_a_good_one() {
    let store = data("signatures/registry");
    // One entry per page: the good signature is not on the first page.
    let paged = Registry::start(&store, Behaviour { native: Some(1), ..Behaviour::default() });
    let world = World::signed(&["keys/cosign-v3.pub"]);
    let got = world.fetch(&format!("{}/bpf/two-keys:v1", paged.host())).unwrap();
    assert!(matches!(got.verdict, ImageVerdict::Verified { .. }));

    // The list also contains junk: a manifest that does not parse, a missing one, an index, a foreign digest.
    let image = repository("signatures/registry", "bpf/key-v3")["tags"]["v1"].as_str().unwrap().to_owned();
    let good = "sha256:98735012997e518c2401aa6af6867609540e3195397eca8a1ebe3bae058f9f32";
    for junk in [
        json!({"digest": format!("sha256:{}", "1".repeat(64))}),
        json!({"digest": "sha512:00"}),
        json!({"digest": "junk"}),
        json!({"digest": image}),
    ] {
        let list = json!({"schemaVersion": 2, "manifests": [junk, {"digest": good}]}).to_string();
        let fallback = format!("/manifests/{}", image.replace(':', "-"));
        let registry = Registry::start(
            &store,
            Behaviour {
                hook: Some(Box::new(move |request| {
                    if request.target.ends_with(&fallback) { Reply::Body(list.clone().into_bytes()) } else { Reply::Normal }
                })),
                ..Behaviour::default()
            },
        );
        let world = World::signed(&["keys/cosign-v3.pub"]);
        let got = world.fetch(&format!("{}/bpf/key-v3:v1", registry.host()));
        assert!(got.is_ok(), "{junk}: {:?}", got.map_err(|err| crate::world::sentence(&err)));
        // The same junk beside a signature of an unknown key must not count as "no signature".
        let mut world = World::signed(&["keys/wrong.pub"]);
        world.rules.push(rule("unsigned", Vec::new()));
        world.error(&format!("{}/bpf/key-v3:v1", registry.host()));
    }
}

/// Faults at each signature location: none of them may count as "unsigned", and none may hide a good signature at
/// another location.
#[test]
fn an_unreadable_signature_location_never_counts_as_empty() {
    let store = data("signatures/registry");
    let digest = repository("signatures/registry", "bpf/unsigned")["tags"]["v1"].as_str().unwrap().replace(':', "-");
    let places = [format!("/manifests/{digest}.sig"), format!("/manifests/{digest}"), "/referrers/".to_owned()];
    for place in &places {
        for fault in [
            Reply::Status(401),
            Reply::Status(403),
            Reply::Status(429),
            Reply::Status(500),
            Reply::Status(503),
            Reply::Hangup,
            Reply::Body(b"<html>".to_vec()),
        ] {
            let (end, reply) = (place.clone(), fault.clone());
            let registry = Registry::start(
                &store,
                Behaviour {
                    hook: Some(Box::new(move |request| {
                        let hit = request.target.ends_with(&end) || (end == "/referrers/" && request.target.contains(&end));
                        if hit { reply.clone() } else { Reply::Normal }
                    })),
                    ..Behaviour::default()
                },
            );
            let mut world = World::signed(&["keys/cosign-v2.pub"]);
            world.rules.push(rule("unsigned", Vec::new()));
            let (err, text) = world.error(&format!("{}/bpf/unsigned:v1", registry.host()));
            let told = matches!(err, ImageError::Remote { .. } | ImageError::Malformed { .. });
            assert!(told, "{place} {fault:?}: {text}");
            // For two of the locations, cosign 2's signature is at another one, and good.
            if place != &places[0] {
                let got = world.fetch(&format!("{}/bpf/key-v2:v1", registry.host()));
                assert!(matches!(got, Ok(got) if matches!(got.verdict, ImageVerdict::Verified { .. })), "{place} {fault:?}");
            }
        }
    }
}

#[test]
fn rules_are_tried_in_order_and_digests_bind() {
    let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
    let reference = format!("{}/bpf/two-keys:v1", registry.host());
    let digest: Digest = repository("signatures/registry", "bpf/two-keys")["tags"]["v1"].as_str().unwrap().parse().unwrap();
    let mut world = World::new();
    let (wrong, first, second) = (
        world.key_rule("wrong", &["keys/wrong.pub"]),
        world.key_rule("v2", &["keys/cosign-v2.pub"]),
        world.key_rule("v3", &["keys/wrong.pub", "keys/cosign-v3.pub"]),
    );
    world.rules = vec![wrong.clone(), first.clone(), second.clone()];
    assert_eq!(world.fetch(&reference).unwrap().rule, "v2");
    // Another order: the cache knows that v2 is satisfied, and must not prefer it because of that.
    world.rules = vec![wrong.clone(), second.clone(), first.clone()];
    assert_eq!(world.fetch(&reference).unwrap().rule, "v3");
    world.policy.0 = Digest::from_bytes([2; 32]);
    world.rules = vec![wrong.clone(), first, second.clone()];
    assert_eq!(world.fetch(&reference).unwrap().rule, "v2");
    registry.clear();
    assert_eq!(world.fetch(&reference).unwrap().rule, "v2");
    assert!(registry.requests().is_empty(), "that wrong is not satisfied is remembered too");

    let mut other = second.clone();
    other.digests.insert(Digest::from_bytes([9; 32]));
    world.rules = vec![other.clone()];
    let (err, text) = world.error(&reference);
    assert!(matches!(err, ImageError::DigestNotListed { .. }) && text.contains("rule v3"), "{text}");
    other.digests.insert(digest);
    world.rules = vec![other];
    assert_eq!(world.fetch(&reference).unwrap().rule, "v3");

    world.rules.clear();
    assert!(matches!(world.error(&reference).0, ImageError::NoRule { .. }), "an empty policy denies");
}

#[test]
fn an_unusable_identity_rule_is_an_error_that_names_it() {
    let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
    let mut world = World::new();
    let root = data("signatures/trust/trusted_root.json");
    let signer = |identity| Signer::Identity { identity, issuer: Words::Exact("y".into()), trusted_root: root.clone() };
    let reference = format!("{}/bpf/keyless:v1", registry.host());
    world.rules = vec![rule("keyless", vec![signer(Words::Exact("x".into()))])];
    let (err, text) = world.error(&reference);
    assert!(matches!(err, ImageError::TrustedRoot { .. }) && text.contains("trusted_root.json"), "{text}");
    world.keys.insert(root.clone(), b"{}".to_vec());
    let (err, text) = world.error(&reference);
    assert!(matches!(err, ImageError::TrustedRoot { .. } | ImageError::BadSignature { .. }), "{text}");
    world.keys.insert(root.clone(), std::fs::read(&root).unwrap());
    let (err, text) = world.error(&reference);
    let signed_by = "https://github.com/acme/bpf/.github/workflows/release.yml@refs/heads/main";
    assert!(matches!(err, ImageError::BadSignature { .. }) && text.contains(&format!("it is signed by {signed_by}")), "{text}");
    world.rules = vec![rule("keyless", vec![signer(Words::Regexp("(".into()))])];
    assert!(matches!(world.error(&reference).0, ImageError::Pattern { .. }));
}

/// A keyless signature of cosign 2 is cached with its certificate, so that it can be verified against a changed policy
/// without the network.
#[test]
fn cached_keyless_signatures_are_verified_again() {
    let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
    for image in ["bpf/keyless:v1", "bpf/legacy-keyless:v1"] {
        let case = cases().into_iter().find(|case| case["image"] == image && case["expect"] == "verified").unwrap();
        let mut world = world_of(&case);
        let reference = format!("{}/{image}", registry.host());
        world.fetch(&reference).unwrap();
        registry.clear();
        world.policy.0 = Digest::from_bytes([2; 32]);
        assert!(matches!(world.fetch(&reference).unwrap().verdict, ImageVerdict::Verified { .. }));
        assert_eq!(registry.requests(), Vec::<String>::new());
    }
}

#[test]
fn an_invalid_key_file_is_an_error_that_names_it() {
    let registry = Registry::start(&data("signatures/registry"), Behaviour::default());
    let mut world = World::signed(&["keys/cosign-v2.pub"]);
    for pem in world.keys.values_mut() {
        *pem = b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".to_vec();
    }
    let (err, text) = world.error(&format!("{}/bpf/key-v2:v1", registry.host()));
    assert!(matches!(err, ImageError::Key { .. }) && text.contains("cosign-v2.pub"), "{text}");
    world.keys.clear();
    assert!(matches!(world.error(&format!("{}/bpf/key-v2:v1", registry.host())).0, ImageError::Key { .. }));
}
