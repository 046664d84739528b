//! Hostile manifests, layers, configs, objects and signatures: whatever a registry sends results in an error or stays
//! within the limits, never in a panic, and never in a valid signature.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::path::Path;

use super::MAX_OBJECT;
use super::verify::keyless::Identities;
use super::verify::{
    Attached, Body, CERTIFICATE, CHAIN, ENTRY, KeyResult, PublicKey, SIGNATURE, Signature, SignatureResult, Signers,
};
use crate::image::oci::document::{Choice, Document, choose};
use crate::image::oci::object::{ImageLabels, Unpacked, check, not_in_object, single, unpack};
use crate::model::policy::Words;
use mutate::{corpus, fuzz};

#[allow(clippy::duplicate_mod, reason = "layers do not use each other, their tests neither")]
#[path = "../../tests/support/mutate.rs"]
mod mutate;

/// The recorded registries' blobs that are JSON, or that are not.
fn blobs(json: bool) -> Vec<Vec<u8>> {
    let all = corpus(&["data/images/registry/blobs/sha256", "data/signatures/registry/blobs/sha256"]);
    all.into_iter().filter(|blob| blob.starts_with(b"{") == json).collect()
}

#[test]
fn a_seed_is_reproducible() {
    let make = |seed| mutate::mutate(&mut mutate::Random::new(seed), b"{\"a\": 1}", b"other");
    assert_eq!(make(7), make(7));
    let distinct: std::collections::BTreeSet<_> = (0..100).map(make).collect();
    assert!(distinct.len() > 50, "{}", distinct.len());
}

#[test]
fn manifests() {
    fuzz("manifests", &blobs(true), |bytes| match Document::parse(bytes) {
        Ok(Document::Manifest(manifest)) => {
            for layer in manifest.layers.iter().chain(&manifest.config).chain(&manifest.subject) {
                // An accepted digest is written as it was read.
                if let Ok(digest) = layer.digest() {
                    assert_eq!(digest.to_string(), layer.written_digest());
                }
            }
        }
        Ok(Document::Index(entries)) => {
            if let Choice::Entry(entry) = choose(&entries, "amd64") {
                drop(entry.digest());
            }
        }
        Err(problem) => assert!(!problem.is_empty() && problem.len() < 1024, "{problem}"),
    });
}

#[test]
fn layers() {
    let layers = blobs(false);
    assert!(layers.iter().any(|layer| layer.starts_with(&[0x1f, 0x8b])), "no gzip layer is recorded");
    fuzz("layers", &layers, |bytes| {
        if let Ok(Unpacked::Files(files)) = unpack(bytes.to_vec(), "layer") {
            let total: usize = files.objects.iter().map(|(_, object)| object.len()).sum();
            assert!(total <= MAX_OBJECT, "{total}");
            if let Ok((name, object)) = single(files, &ImageLabels::default()) {
                drop(check(&name, &object));
            }
        }
    });
}

#[test]
fn configs_and_objects() {
    let object = corpus(&["data/images/pass.bpfel.o"]).remove(0);
    fuzz("configs", &blobs(true), |bytes| drop(not_in_object(&ImageLabels::of_config(bytes), &object)));
    let labels = ImageLabels::of_config(
        br#"{"config":{"Labels":{"io.ebpf.programs":"{\"pass\":\"xdp\"}","io.ebpf.maps":"{\"m\":\"array\"}"}}}"#,
    );
    fuzz("objects", &[object], |bytes| {
        if check("pass.o", bytes).is_ok() {
            drop(not_in_object(&labels, bytes));
        }
    });
}

/// Signatures for another image, and keys that made none of them: none may count, whatever is changed.
#[test]
fn signatures() {
    let other = super::hash(b"another image");
    let pem = |name: &str| corpus(&[&format!("data/signatures/keys/{name}")]).remove(0);
    let signers: Vec<PublicKey> =
        ["cosign-v2.pub", "cosign-v3.pub"].iter().map(|name| PublicKey::parse(Path::new(name), &pem(name)).unwrap()).collect();
    let wrong = [PublicKey::parse(Path::new("wrong.pub"), &pem("wrong.pub")).unwrap()];
    let signed = "sha256:161dc817fb990f4f5168adaa3aa3e98142fc7b2d1869fade5f356900675dff76".parse().unwrap();
    let never = |signature: &Signature| {
        assert!(!matches!(signature.examine(&other, &signers), KeyResult::Good(_)), "for another image");
        assert!(!matches!(signature.examine(&signed, &wrong), KeyResult::Good(_)), "by another key");
        signature.claims(&other);
    };
    fuzz("bundles", &corpus(&["data/signatures/bundles"]), |bytes| never(&Signature::of(Body::Bundle(bytes.to_vec()))));
    let payload = corpus(&["data/signatures/simplesigning/key-v2/payload.json"]);
    let annotations = corpus(&["data/signatures/simplesigning/key-v2/annotations.json"]).remove(0);
    let annotations: std::collections::BTreeMap<String, String> = serde_json::from_slice(&annotations).unwrap();
    let signature = &annotations[SIGNATURE];
    fuzz("payloads", &payload, |bytes| {
        never(&Signature::of(Body::Simple { payload: bytes.to_vec(), signature: signature.clone(), keyless: None }));
    });
    fuzz("keys", &[pem("cosign-v2.pub"), pem("wrong.pub")], |bytes| drop(PublicKey::parse(Path::new("x.pub"), bytes)));
}

/// Keyless signatures, for another image under a rule that accepts their signers, and under a rule with other signers.
#[test]
fn keyless_signatures() {
    let other = super::hash(b"another image");
    let signed = "sha256:161dc817fb990f4f5168adaa3aa3e98142fc7b2d1869fade5f356900675dff76".parse().unwrap();
    let root = corpus(&["data/signatures/trust/trusted_root.json"]).remove(0);
    let signers = |identity: &str| {
        let mut identities = Identities::parse(Path::new("root.json"), &root).unwrap();
        let words = |text: &str| Words::Regexp(text.to_owned()).matcher().unwrap();
        identities.add(words(identity), words(".*"));
        Signers { keys: Vec::new(), identities: vec![identities] }
    };
    let (every, foreign) = (signers(".*"), signers("foreign-.*"));
    let never = |body: Body| {
        let signature = Signature::of(body);
        assert!(!matches!(signature.decide(&other, &every), SignatureResult::Good(_)), "for another image");
        assert!(!matches!(signature.decide(&signed, &foreign), SignatureResult::Good(_)), "by another identity");
    };
    let bundles = corpus(&["data/signatures/bundles"]);
    let good = Signature::of(Body::Bundle(corpus(&["data/signatures/bundles/keyless.json"]).remove(0)));
    assert!(matches!(good.decide(&signed, &every), SignatureResult::Good(_)), "the unchanged signature must count");
    fuzz("keyless-bundles", &bundles, |bytes| never(Body::Bundle(bytes.to_vec())));

    let recorded = |name: &str| corpus(&[&format!("data/signatures/simplesigning/legacy-keyless/{name}")]).remove(0);
    let (payload, annotations) = (recorded("payload.json"), recorded("annotations.json"));
    let body = |payload: &[u8], annotations: &std::collections::BTreeMap<String, String>| Body::Simple {
        payload: payload.to_vec(),
        signature: annotations.get(SIGNATURE).cloned().unwrap_or_default(),
        keyless: annotations.get(CERTIFICATE).cloned().map(|certificate| Attached {
            certificate,
            chain: annotations.get(CHAIN).cloned(),
            entry: annotations.get(ENTRY).cloned(),
        }),
    };
    let as_recorded: std::collections::BTreeMap<String, String> = serde_json::from_slice(&annotations).unwrap();
    let good = Signature::of(body(&payload, &as_recorded));
    assert!(matches!(good.decide(&signed, &every), SignatureResult::Good(_)), "the unchanged signature must count");
    fuzz("keyless-payloads", std::slice::from_ref(&payload), |bytes| never(body(bytes, &as_recorded)));
    fuzz("keyless-annotations", &[annotations], |bytes| {
        if let Ok(annotations) = serde_json::from_slice(bytes) {
            never(body(&payload, &annotations));
        }
    });
    fuzz("trusted-roots", std::slice::from_ref(&root), |bytes| drop(Identities::parse(Path::new("root.json"), bytes)));
}
