//! Keyless signatures of a Sigstore instance in the tests: the genuine one counts, and each one with a flaw is refused
//! for that flaw.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::keyless::Identities;
use super::{Attached, Body, Check, CheckOutcome, Signature, SignatureDescription, SignatureKind, SignatureResult, Signers};
use crate::model::policy::Words;
use sigstore_world::{Claim, Flaw, Instance};

#[path = "../../../tests/support/sigstore_world.rs"]
mod sigstore_world;

const CLAIM: Claim<'_> = Claim {
    identity: "https://forge.example/acme/probes/release@refs/tags/v1",
    issuer: "https://token.forge.example",
    digest: "sha256:1111111111111111111111111111111111111111111111111111111111111111",
};

fn signers(instance: &Instance, identity: &str, issuer: &str) -> Signers {
    let mut identities = Identities::parse(Path::new("root.json"), instance.trusted_root().as_bytes()).unwrap();
    let exactly = |text: &str| Words::Exact(text.to_owned()).matcher().unwrap();
    identities.add(exactly(identity), exactly(issuer));
    Signers { keys: Vec::new(), identities: vec![identities] }
}

fn bundle(instance: &Instance, claim: Claim<'_>, flaw: Flaw) -> Signature {
    Signature::of(Body::Bundle(instance.bundle(claim, flaw).to_string().into()))
}

fn attachment(instance: &Instance, claim: Claim<'_>, flaw: Flaw) -> Signature {
    let made = instance.attachment(claim, flaw);
    let keyless = Attached { certificate: made.certificate, chain: Some(made.chain), entry: Some(made.entry) };
    Signature::of(Body::Simple { payload: made.payload.into(), signature: made.signature, keyless: Some(keyless) })
}

fn bundle_of_rekor_2(instance: &Instance, claim: Claim<'_>, flaw: Flaw) -> Signature {
    Signature::of(Body::Bundle(instance.bundle_of_rekor_2(claim, flaw).to_string().into()))
}

type Make = fn(&Instance, Claim<'_>, Flaw) -> Signature;

fn refused(signature: &Signature, digest: &str, signers: &Signers) -> String {
    let found = signature.decide(&digest.parse().unwrap(), signers);
    let checks = SignatureDescription::of(signature).checks(&found);
    let SignatureResult::Bad(flaw) = found else { unreachable!("{found:?}") };
    assert_no_debris(&flaw.why);
    // Exactly the failed check is reported, and no later check is reported as passed.
    let failed: Vec<_> =
        checks.iter().filter(|checked| checked.result == CheckOutcome::Failed).map(|checked| checked.check).collect();
    assert_eq!(failed, [flaw.check], "{}: {checks:?}", flaw.why);
    let behind = checks.iter().skip_while(|checked| checked.result != CheckOutcome::Failed).skip(1);
    assert!(behind.clone().all(|checked| checked.result != CheckOutcome::Passed), "{}: {checks:?}", flaw.why);
    flaw.why
}

/// No debug text of the library, and no truncated message.
fn assert_no_debris(why: &str) {
    for debris in ["Some(", "Error", "{", "}", "::", "\"", "Cert", "UnixTime", "\n"] {
        assert!(!why.contains(debris), "{debris} in: {why}");
    }
    assert!(!why.ends_with(['.', ':', ' ']), "{why}");
}

#[test]
fn a_genuine_signature_is_valid_only_for_its_image_identity_issuer_and_root() {
    let (instance, another) = (Instance::new(), Instance::new());
    let good = signers(&instance, CLAIM.identity, CLAIM.issuer);
    let by = format!("{} ({})", CLAIM.identity, CLAIM.issuer);
    for (make, absent) in [
        (bundle as Make, &[Check::Timestamp][..]),
        (bundle_of_rekor_2, &[Check::Promise]),
        (attachment, &[Check::Timestamp, Check::Proof, Check::Checkpoint]),
    ] {
        let signature = make(&instance, CLAIM, Flaw::None);
        let found = signature.decide(&CLAIM.digest.parse().unwrap(), &good);
        assert_eq!(found, SignatureResult::Good(by.clone()));
        let account = SignatureDescription::of(&signature);
        assert_eq!(account.kind, SignatureKind::Keyless);
        let claimed = account.claimed.clone().unwrap();
        assert_eq!((claimed.identity.as_deref(), claimed.issuer.as_deref()), (Some(CLAIM.identity), Some(CLAIM.issuer)));
        for checked in account.checks(&found) {
            let expected = if absent.contains(&checked.check) { CheckOutcome::Absent } else { CheckOutcome::Passed };
            assert_eq!(checked.result, expected, "{checked:?}");
        }
        let other = CLAIM.digest.replace('1', "2");
        assert!(refused(&signature, &other, &good).contains("for another image"));
        for (identity, issuer) in [
            ("https://forge.example/acme/probes/release@refs/tags/v", CLAIM.issuer),
            ("https://forge.example/acme/probes/release@refs/tags/v11", CLAIM.issuer),
            (CLAIM.identity, "https://token.forge.example/"),
        ] {
            let why = refused(&signature, CLAIM.digest, &signers(&instance, identity, issuer));
            assert_eq!(why, format!("it is signed by {by}, which the rule does not name"));
        }
        // The same names, but other keys.
        let why = refused(&make(&another, CLAIM, Flaw::None), CLAIM.digest, &good);
        assert!(why.starts_with("it is not valid under root.json: "), "{why}");
        let keys_alone = Signers::default();
        assert_eq!(
            refused(&signature, CLAIM.digest, &keys_alone),
            "it is keyless (signed with a certificate), but the rule names only keys"
        );
    }
}

const NO_LOG: &str =
    "it is not logged: it has no entry with an inclusion proof, and a keyless signature counts only if it was logged";
const EARLY: &str = "it was logged or time-stamped before its certificate was valid";
const LATE: &str = "it was logged or time-stamped after its certificate had expired; sign again";
const ENTRY: &str = "its log entry is for another signature, certificate or content";
const CONTENTS: &str = "its log entry is for other content than was signed";
const PROOF: &str = "the proof that its entry is in the log (inclusion proof) is not valid";
const CHECKPOINT: &str = "the log state of its proof (checkpoint) is not signed by the log that it names";

#[test]
fn each_flaw_is_found_and_explained() {
    let instance = Instance::new();
    let good = signers(&instance, CLAIM.identity, CLAIM.issuer);
    let check = |make: Make, flaw, sentence: &str| {
        let why = refused(&make(&instance, CLAIM, flaw), CLAIM.digest, &good);
        assert_eq!(why, format!("it is not valid under root.json: {sentence}"), "{flaw:?}");
    };
    for (flaw, sentence) in [
        (
            Flaw::Authority,
            "its certificate names an authority of the root that did not sign it: it is forged, or from another instance with the same names",
        ),
        (
            Flaw::NoTimestamp,
            "its certificate has no time stamp of a certificate log (SCT), so its issuance was not logged publicly",
        ),
        (
            Flaw::Timestamp,
            "the time stamp in its certificate (SCT) is not from a certificate log of the root; if the instance has a new log, install its \
             current trusted root",
        ),
        (Flaw::Signature, "the signature was not made by the key of its certificate, or is over other bytes; sign again"),
        (Flaw::Purpose, "its certificate is not for code signing"),
        (Flaw::Early, EARLY),
        (Flaw::Late, LATE),
    ] {
        for make in [bundle as Make, bundle_of_rekor_2, attachment] {
            check(make, flaw, sentence);
        }
    }
    for make in [bundle as Make, bundle_of_rekor_2, attachment] {
        for flaw in [Flaw::NoIdentity, Flaw::NoIssuer] {
            let why = refused(&make(&instance, CLAIM, flaw), CLAIM.digest, &good);
            let sentence = "its certificate names no issuer, or no e-mail address or URI (no other identity is supported)";
            assert_eq!(why, sentence, "{flaw:?}");
        }
    }
    let promise = "the log's promise to add it (signed entry timestamp) is not signed by the log, or is for another entry";
    for make in [bundle as Make, attachment] {
        check(make, Flaw::Promise, promise);
    }
    check(bundle, Flaw::Entry, ENTRY);
    check(attachment, Flaw::Entry, CONTENTS);
    check(bundle_of_rekor_2, Flaw::Entry, CONTENTS);
    // cosign 2 attaches no proof.
    for make in [bundle as Make, bundle_of_rekor_2] {
        check(make, Flaw::Proof, PROOF);
        check(make, Flaw::Checkpoint, CHECKPOINT);
        check(make, Flaw::NoEntry, NO_LOG);
    }
    check(
        bundle,
        Flaw::NoPromise,
        "its time of signing is unknown: it has neither a log's promise (signed entry timestamp) nor a time stamp (RFC 3161)",
    );
    check(
        bundle_of_rekor_2,
        Flaw::NoStamp,
        "its time of signing is unknown: its log is Rekor v2, which records no times, and it has no time stamp (RFC 3161); sign with a \
         time stamp authority",
    );
    check(
        bundle_of_rekor_2,
        Flaw::Stamp,
        "its time stamp (RFC 3161) is not from an authority of the root; if the instance that signed has a new one, install its current trusted \
         root",
    );
    check(bundle_of_rekor_2, Flaw::StampOfAnother, "its time stamp (RFC 3161) is for another signature");
}

/// If a trusted root lacks something that a signature needs, the message says what.
#[test]
fn an_outdated_trusted_root_is_reported() {
    let (instance, another) = (Instance::new(), Instance::new());
    let theirs: Value = serde_json::from_str(&another.trusted_root()).unwrap();
    let change = |part: &str, value: &Value| {
        let mut root: Value = serde_json::from_str(&instance.trusted_root()).unwrap();
        root[part] = value.clone();
        let mut identities = Identities::parse(Path::new("root.json"), root.to_string().as_bytes()).unwrap();
        let exactly = |text: &str| Words::Exact(text.to_owned()).matcher().unwrap();
        identities.add(exactly(CLAIM.identity), exactly(CLAIM.issuer));
        Signers { keys: Vec::new(), identities: vec![identities] }
    };
    let none = Value::Array(Vec::new());
    for (make, part, value, words) in [
        (bundle as Make, "tlogs", &none, "its entry is in a log that the root does not name; "),
        (bundle, "tlogs", &theirs["tlogs"], "its entry is in a log that the root does not name; "),
        (attachment, "tlogs", &theirs["tlogs"], "its entry is in a log that the root does not name; "),
        (
            bundle_of_rekor_2,
            "tlogs",
            &theirs["tlogs"],
            "the log state of its proof (checkpoint) is not signed by a log of the root; ",
        ),
        (bundle, "ctlogs", &none, "the root names no certificate log, "),
        (
            bundle,
            "ctlogs",
            &theirs["ctlogs"],
            "the time stamp in its certificate (SCT) is not from a certificate log of the root; ",
        ),
        (
            bundle,
            "certificateAuthorities",
            &none,
            "it was signed at 2025-06-01T00:01:00Z, but no authority of the root was valid then; ",
        ),
        (
            bundle,
            "certificateAuthorities",
            &theirs["certificateAuthorities"],
            "its certificate names an authority of the root that did not sign it: ",
        ),
        (
            bundle_of_rekor_2,
            "timestampAuthorities",
            &none,
            "it has a time stamp (RFC 3161), but the root names no time stamp authority; ",
        ),
        (
            bundle_of_rekor_2,
            "timestampAuthorities",
            &theirs["timestampAuthorities"],
            "its time stamp (RFC 3161) is not from an authority of the root; ",
        ),
    ] {
        let why = refused(&make(&instance, CLAIM, Flaw::None), CLAIM.digest, &change(part, value));
        assert!(why.starts_with(&format!("it is not valid under root.json: {words}")), "{part}: {why}");
    }
    let mut ended: Value = serde_json::from_str(&instance.trusted_root()).unwrap();
    ended["timestampAuthorities"][0]["validFor"]["end"] = "2025-01-01T00:00:00Z".into();
    let why = refused(
        &bundle_of_rekor_2(&instance, CLAIM, Flaw::None),
        CLAIM.digest,
        &change("timestampAuthorities", &ended["timestampAuthorities"]),
    );
    assert!(why.contains("says 2025-06-01T00:01:00Z, when its authority was not valid"), "{why}");
    let mut ended = instance.trusted_root();
    ended = ended
        .replace("\"start\":\"2024-01-01T00:00:00Z\"", "\"end\":\"2025-01-01T00:00:00Z\",\"start\":\"2024-01-01T00:00:00Z\"");
    let ended: Value = serde_json::from_str(&ended).unwrap();
    let old = |part: &str, words: &str| {
        let why = refused(&bundle(&instance, CLAIM, Flaw::None), CLAIM.digest, &change(part, &ended[part]));
        assert!(why.contains(words), "{part}: {why}");
    };
    old("tlogs", "its entry is in a log that the root does not name; ");
    old("ctlogs", "the time stamp in its certificate (SCT) is not from a certificate log of the root; ");
    old("certificateAuthorities", "no authority of the root was valid then; ");
}

/// Unparsable bundles, and those with excessive content, have a readable reason too.
#[test]
fn malformed_bundles_have_a_readable_reason() {
    let instance = Instance::new();
    let good = signers(&instance, CLAIM.identity, CLAIM.issuer);
    let bundle = instance.bundle(CLAIM, Flaw::None);
    let entry = bundle["verificationMaterial"]["tlogEntries"][0].clone();
    let stamp = instance.bundle_of_rekor_2(CLAIM, Flaw::None)["verificationMaterial"]["timestampVerificationData"].clone();
    let certificate = bundle["verificationMaterial"]["certificate"].clone();
    for (path, value, words) in [
        ("/mediaType", "application/vnd.dev.sigstore.bundle.v0.9+json".into(), "it is not a sigstore bundle: "),
        (
            "/verificationMaterial/tlogEntries/0/kindVersion/kind",
            "rfc3161".into(),
            "its log entry has the kind rfc3161/0.0.1, which is not supported; ",
        ),
        (
            "/verificationMaterial/tlogEntries",
            vec![entry.clone(); 17].into(),
            "it has too many log entries or time stamps: 17, ",
        ),
        (
            "/verificationMaterial/timestampVerificationData",
            serde_json::json!({ "rfc3161Timestamps": vec![stamp["rfc3161Timestamps"][0].clone(); 17] }),
            "it has too many log entries or time stamps: 17, ",
        ),
        (
            "/verificationMaterial/tlogEntries/0/inclusionProof/checkpoint/envelope",
            "nonsense".into(),
            "the log state of its proof (checkpoint) cannot be read",
        ),
        (
            "/verificationMaterial/tlogEntries/0/inclusionProof/treeSize",
            "1".into(),
            "it is not valid under root.json: its inclusion proof is for an entry beyond the end of the log",
        ),
        (
            "/verificationMaterial/tlogEntries/0/inclusionProof/rootHash",
            STANDARD.encode([7; 32]).into(),
            "it is not valid under root.json: its inclusion proof leads to another log state than the signed one (checkpoint)",
        ),
        (
            "/verificationMaterial/tlogEntries/0/integratedTime",
            "4102444800".into(),
            "it is not valid under root.json: the log's promise to add it ",
        ),
        (
            "/verificationMaterial/tlogEntries/0/canonicalizedBody",
            STANDARD.encode("{}").into(),
            "it is not valid under root.json: the log's promise to add it ",
        ),
        (
            "/verificationMaterial/certificate/rawBytes",
            STANDARD.encode("no certificate").into(),
            "it is not valid under root.json: its certificate cannot be read",
        ),
    ] {
        let mut changed = bundle.clone();
        let (at, name) = path.rsplit_once('/').unwrap();
        let parent = if at.is_empty() { &mut changed } else { changed.pointer_mut(at).unwrap() };
        parent[name] = value;
        let why = refused(&Signature::of(Body::Bundle(changed.to_string().into())), CLAIM.digest, &good);
        assert!(why.starts_with(words), "{path}: {why}");
    }
    let mut chained = bundle;
    chained["verificationMaterial"].as_object_mut().unwrap().remove("certificate");
    chained["verificationMaterial"]["x509CertificateChain"] = serde_json::json!({ "certificates": [certificate] });
    let why = refused(&Signature::of(Body::Bundle(chained.to_string().into())), CLAIM.digest, &good);
    assert!(why.contains("it is a v0.3 bundle with a certificate chain instead of one certificate"), "{why}");
}
