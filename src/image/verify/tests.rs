use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sigstore_crypto::KeyPair;

use super::keyless::Identities;
use super::*;

/// The image that the recorded signatures are for.
const DIGEST: &str = "sha256:161dc817fb990f4f5168adaa3aa3e98142fc7b2d1869fade5f356900675dff76";

fn data(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures").join(name);
    std::fs::read(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

fn digest() -> Digest {
    DIGEST.parse().unwrap()
}

fn keys(names: &[&str]) -> Vec<PublicKey> {
    names.iter().map(|name| PublicKey::parse(Path::new(name), &data(name)).unwrap()).collect()
}

fn bundle(name: &str) -> Signature {
    Signature::of(Body::Bundle(data(&format!("bundles/{name}.json"))))
}

fn simple(name: &str) -> Signature {
    let annotations: std::collections::BTreeMap<String, String> =
        serde_json::from_slice(&data(&format!("simplesigning/{name}/annotations.json"))).unwrap();
    Signature {
        place: SignaturePlace::default(),
        body: Body::Simple {
            payload: data(&format!("simplesigning/{name}/payload.json")),
            signature: annotations["dev.cosignproject.cosign/signature"].clone(),
            keyless: annotations.get(CERTIFICATE).map(|certificate| Attached {
                certificate: certificate.clone(),
                chain: annotations.get(CHAIN).cloned(),
                entry: annotations.get(ENTRY).cloned(),
            }),
        },
    }
}

fn why(finding: KeyResult) -> String {
    match finding {
        KeyResult::Bad(flaw) => flaw.why,
        other => panic!("{other:?}"),
    }
}

const V2: &str = "keys/cosign-v2.pub";
const V3: &str = "keys/cosign-v3.pub";
const WRONG: &str = "keys/wrong.pub";

#[test]
fn recorded_signatures_are_valid_only_for_their_key() {
    for (signature, key, other) in [
        (simple("key-v2"), V2, V3),
        (simple("key-v3-oldformat"), V3, V2),
        (simple("two-keys"), V2, V3),
        (simple("referrer-v2"), V2, V3),
        (bundle("key-v3"), V3, V2),
        (bundle("two-keys"), V3, V2),
        (bundle("tsa"), V3, V2),
    ] {
        assert_eq!(signature.examine(&digest(), &keys(&[key])), KeyResult::Good(0));
        assert_eq!(signature.examine(&digest(), &keys(&[WRONG, other, key])), KeyResult::Good(2), "every key is tried");
        assert!(why(signature.examine(&digest(), &keys(&[WRONG, other]))).contains("by another key"));
        assert!(why(signature.examine(&digest(), &[])).contains("the rule names only identities"), "no key, no signer");
        let of_another = Digest::from_bytes([1; 32]);
        assert!(why(signature.examine(&of_another, &keys(&[key]))).contains("for another image"));
    }
}

#[test]
fn a_copied_signature_is_for_the_image_it_names() {
    let copied = simple("key-v2-copied");
    assert_eq!(copied.examine(&digest(), &keys(&[V2])), KeyResult::Good(0));
    let image = "sha256:693715cf4852bd64d3c7088916d034e77d96817e065986aa3b2b0b9a12c74652".parse().unwrap();
    assert!(why(copied.examine(&image, &keys(&[V2]))).contains("for another image"));
    assert!(copied.claims(&digest()) && !copied.claims(&image));
}

#[test]
fn keyless_signatures_never_satisfy_a_key() {
    for name in ["keyless", "keyless-email", "keyless-multisubject", "keyless-proof", "keyless-sig", "keyless-expired"] {
        let finding = bundle(name).examine(&digest(), &keys(&[V2, V3]));
        assert!(why(finding).contains("the rule names only keys"), "{name}");
    }
    for name in ["legacy-keyless", "legacy-keyless-otherdigest"] {
        let finding = simple(name).examine(&digest(), &keys(&[V2, V3]));
        assert!(why(finding).contains("the rule names only keys"), "{name}");
    }
}

#[test]
fn every_key_type_of_cosign_is_supported() {
    let sign = |name: &str| Signature {
        place: SignaturePlace::default(),
        body: Body::Simple {
            payload: data("openssl/payload.json"),
            signature: String::from_utf8(data(&format!("openssl/{name}.sig"))).unwrap(),
            keyless: None,
        },
    };
    for (signature, key) in [("p384-sha256", "p384"), ("p384-sha384", "p384"), ("ed25519", "ed25519"), ("rsa2048", "rsa2048")] {
        let good = keys(&[&format!("openssl/{key}.pub")]);
        assert_eq!(sign(signature).examine(&digest(), &good), KeyResult::Good(0), "{signature}");
        let others: Vec<_> =
            ["p384", "ed25519", "rsa2048"].iter().filter(|k| **k != key).map(|k| format!("openssl/{k}.pub")).collect();
        let others = keys(&others.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(matches!(sign(signature).examine(&digest(), &others), KeyResult::Bad(_)), "{signature}");
    }
    let weak = sign("rsa2048-sha1").examine(&digest(), &keys(&["openssl/rsa2048.pub"]));
    assert!(matches!(weak, KeyResult::Bad(_)), "SHA-1 signatures do not count: {weak:?}");
}

#[test]
fn unusable_keys_are_refused() {
    let parse = |pem: &[u8]| PublicKey::parse(Path::new("k"), pem).unwrap_err();
    let pem = data(V2);
    assert!(!parse(b"").is_empty() && !parse(b"\xff\xfe").is_empty() && !parse(&pem[..60]).is_empty());
    let private = String::from_utf8(pem.clone()).unwrap().replace("PUBLIC KEY", "ENCRYPTED SIGSTORE PRIVATE KEY");
    assert!(parse(private.as_bytes()).contains("PUBLIC KEY"));
    for name in ["openssl/p521.pub", "openssl/rsa1024.pub"] {
        assert!(!parse(&data(name)).is_empty(), "{name}");
    }
}

#[test]
fn flipped_bits_anywhere_in_a_simple_signature_are_bad() {
    let Body::Simple { payload, signature, .. } = simple("key-v2").body else { unreachable!() };
    let keys = keys(&[V2]);
    for at in 0..payload.len() {
        let mut changed = payload.clone();
        changed[at] ^= 1;
        let changed = Body::Simple { payload: changed, signature: signature.clone(), keyless: None };
        assert!(matches!(Signature::of(changed).examine(&digest(), &keys), KeyResult::Bad(_)), "payload byte {at}");
    }
    let raw = STANDARD.decode(&signature).unwrap();
    for at in 0..raw.len() {
        let mut changed = raw.clone();
        changed[at] ^= 1;
        let changed = Body::Simple { payload: payload.clone(), signature: STANDARD.encode(changed), keyless: None };
        assert!(matches!(Signature::of(changed).examine(&digest(), &keys), KeyResult::Bad(_)), "signature byte {at}");
    }
    for signature in [String::new(), "!".to_owned(), STANDARD.encode([0; 64])] {
        let changed = Body::Simple { payload: payload.clone(), signature, keyless: None };
        assert!(matches!(Signature::of(changed).examine(&digest(), &keys), KeyResult::Bad(_)));
    }
}

/// A key of this test, which signs any content.
struct Signer {
    pair: KeyPair,
    keys: Vec<PublicKey>,
}

impl Signer {
    fn new() -> Self {
        let pair = KeyPair::generate_ecdsa_p256().unwrap();
        let der = pair.public_key_der().unwrap();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der.as_bytes()));
        let keys = vec![PublicKey::parse(Path::new("test.pub"), pem.as_bytes()).unwrap()];
        Self { pair, keys }
    }

    fn simple(&self, payload: &str) -> KeyResult {
        let signature = STANDARD.encode(self.pair.sign(payload.as_bytes()).unwrap().as_bytes());
        let body = Body::Simple { payload: payload.into(), signature, keyless: None };
        Signature::of(body).examine(&digest(), &self.keys)
    }

    fn bundle(&self, payload_type: &str, statement: &str, material: &str) -> Signature {
        let pae = format!("DSSEv1 {} {payload_type} {} {statement}", payload_type.len(), statement.len());
        let signature = STANDARD.encode(self.pair.sign(pae.as_bytes()).unwrap().as_bytes());
        let json = format!(
            r#"{{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{{"publicKey":{{"hint":"aGludA=="}}{material}}},
               "dsseEnvelope":{{"payload":"{}","payloadType":"{payload_type}","signatures":[{{"sig":"{signature}"}}]}}}}"#,
            STANDARD.encode(statement),
        );
        Signature::of(Body::Bundle(json.into()))
    }

    fn statement(&self, kind: &str, predicate: &str, subjects: &str) -> KeyResult {
        let statement =
            format!(r#"{{"_type":"{kind}","predicateType":"{predicate}","subject":[{subjects}],"predicate":{{}}}}"#);
        self.bundle("application/vnd.in-toto+json", &statement, "").examine(&digest(), &self.keys)
    }
}

fn subject(hex: &str) -> String {
    format!(r#"{{"digest":{{"sha256":"{hex}"}}}}"#)
}

#[test]
fn a_signature_over_other_content_is_not_an_image_signature() {
    let signer = Signer::new();
    let payload = |kind: &str, digest: &str| {
        format!(
            r#"{{"critical":{{"identity":{{"docker-reference":""}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{kind}"}},"optional":null}}"#
        )
    };
    assert_eq!(signer.simple(&payload("cosign container image signature", DIGEST)), KeyResult::Good(0));
    for (payload, sentence) in [
        (payload("atomic container signature", DIGEST), "its type is"),
        (payload("cosign container image signature", &DIGEST.to_uppercase()), "another image"),
        (payload("cosign container image signature", &DIGEST[7..]), "another image"),
        (payload("cosign container image signature", ""), "another image"),
        ("{}".to_owned(), "not a simple-signing payload"),
        (DIGEST.to_owned(), "not a simple-signing payload"),
        (String::new(), "not a simple-signing payload"),
    ] {
        let finding = signer.simple(&payload);
        assert!(why(finding).contains(sentence), "{payload}");
    }
}

#[test]
fn a_statement_must_be_a_signature_of_this_image() {
    const V1: &str = "https://in-toto.io/Statement/v1";
    const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
    let signer = Signer::new();
    let this = subject(&DIGEST[7..]);
    let other = subject(&"0".repeat(64));
    assert_eq!(signer.statement(V1, SIGN, &this), KeyResult::Good(0));
    assert_eq!(signer.statement(V1, SIGN, &format!("{other},{this}")), KeyResult::Good(0), "any subject");
    for predicate in ["https://slsa.dev/provenance/v1", "https://spdx.dev/Document", "", "https://sigstore.dev/cosign/sign/v1/"]
    {
        assert_eq!(signer.statement(V1, predicate, &this), KeyResult::Attestation, "{predicate}");
    }
    assert!(why(signer.statement("https://in-toto.io/Statement/v0.1", SIGN, &this)).contains("has the type"));
    for subjects in [
        String::new(),
        other,
        r#"{"digest":{}}"#.to_owned(),
        "{}".to_owned(),
        format!(r#"{{"digest":{{"sha512":"{}"}}}}"#, &DIGEST[7..]),
    ] {
        assert!(why(signer.statement(V1, SIGN, &subjects)).contains("for another image"), "{subjects}");
    }
    let good = format!(r#"{{"_type":"{V1}","predicateType":"{SIGN}","subject":[{this}]}}"#);
    let other_type = signer.bundle("application/json", &good, "").examine(&digest(), &signer.keys);
    assert!(why(other_type).contains("payload has the type"));
    let no_json = signer.bundle("application/vnd.in-toto+json", "no json", "").examine(&digest(), &signer.keys);
    assert!(why(no_json).contains("not an in-toto statement"));
}

#[test]
fn log_entries_and_timestamps_do_not_matter_under_a_key() {
    let signer = Signer::new();
    let good = format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://sigstore.dev/cosign/sign/v1","subject":[{}]}}"#,
        subject(&DIGEST[7..])
    );
    let keyless: serde_json::Value = serde_json::from_slice(&data("bundles/keyless.json")).unwrap();
    let entries = keyless["verificationMaterial"]["tlogEntries"].to_string();
    let material = format!(r#","tlogEntries":{entries}"#);
    let logged = signer.bundle("application/vnd.in-toto+json", &good, &material);
    assert_eq!(logged.examine(&digest(), &signer.keys), KeyResult::Good(0));
    assert!(matches!(logged.examine(&digest(), &keys(&[V3])), KeyResult::Bad(_)));
}

#[test]
fn malformed_bundles_are_bad_and_never_panic() {
    let json = data("bundles/key-v3.json");
    let keys = keys(&[V3]);
    for cut in 0..json.len() {
        let finding = Signature::of(Body::Bundle(json[..cut].to_vec())).examine(&digest(), &keys);
        assert!(matches!(finding, KeyResult::Bad(_)), "cut at {cut}: {finding:?}");
    }
    for at in 0..json.len() {
        let mut changed = json.clone();
        changed[at] ^= 0x15;
        let finding = Signature::of(Body::Bundle(changed.clone())).examine(&digest(), &keys);
        // The hint and fields that are not read may change; the signed content may not.
        if finding == KeyResult::Good(0) {
            let text = String::from_utf8(changed).unwrap();
            let (before, after) = (String::from_utf8_lossy(&json), text);
            let payload = |text: &str| text.split("\"payload\":").nth(1).map(str::to_owned);
            assert_eq!(payload(&before), payload(&after), "byte {at}");
        }
    }
    let text = String::from_utf8(json).unwrap();
    let twice = text.replace(r#""signatures":["#, r#""signatures":[{"sig":"AAAA"},"#);
    assert!(matches!(Signature::of(Body::Bundle(twice.into())).examine(&digest(), &keys), KeyResult::Bad(_)));
}

/// The signers of a rule with this identity, issuer and trusted root.
fn named(identity: &str, issuer: &str, root: &str) -> Signers {
    let words = |text: &str| match text.strip_prefix('~') {
        Some(pattern) => crate::model::policy::Words::Regexp(pattern.to_owned()),
        None => crate::model::policy::Words::Exact(text.to_owned()),
    };
    let mut identities = Identities::parse(Path::new(root), &data(&format!("trust/{root}.json"))).unwrap();
    identities.add(words(identity).matcher().unwrap(), words(issuer).matcher().unwrap());
    Signers { keys: Vec::new(), identities: vec![identities] }
}

const WORKFLOW: &str = "https://github.com/acme/bpf/.github/workflows/release.yml@refs/heads/main";
const ACTIONS: &str = "https://token.actions.githubusercontent.com";

#[test]
fn keyless_signatures_are_valid_only_for_their_identity_and_issuer() {
    for signature in [bundle("keyless"), bundle("keyless-multisubject"), simple("legacy-keyless")] {
        for (identity, issuer) in
            [(WORKFLOW, ACTIONS), ("~https://github\\.com/acme/.*", ACTIONS), (WORKFLOW, "~https://token\\..*")]
        {
            let good = signature.decide(&digest(), &named(identity, issuer, "trusted_root"));
            assert_eq!(good, SignatureResult::Good(format!("{WORKFLOW} ({ACTIONS})")), "{identity} {issuer}");
        }
        for (identity, issuer) in [
            ("dev@example.org", ACTIONS),
            (WORKFLOW, "https://accounts.example.org"),
            ("~https://github.com/acme", ACTIONS),
            ("~github.*", ACTIONS),
            (WORKFLOW, "~token"),
        ] {
            let SignatureResult::Bad(flaw) = signature.decide(&digest(), &named(identity, issuer, "trusted_root")) else {
                panic!("{identity} {issuer}")
            };
            assert_eq!(flaw.why, format!("it is signed by {WORKFLOW} ({ACTIONS}), which the rule does not name"));
        }
        let of_another = signature.decide(&Digest::from_bytes([1; 32]), &named(WORKFLOW, ACTIONS, "trusted_root"));
        assert!(matches!(&of_another, SignatureResult::Bad(flaw) if flaw.why.contains("for another image")), "{of_another:?}");
        let other_root = signature.decide(&digest(), &named(WORKFLOW, ACTIONS, "trusted_root.other-ca"));
        assert!(matches!(&other_root, SignatureResult::Bad(flaw) if flaw.why.contains("is not valid under")), "{other_root:?}");
    }
}

#[test]
fn forged_keyless_signatures_are_bad() {
    let signers = named("~.*", "~.*", "trusted_root");
    for name in ["keyless-expired", "keyless-otherca", "keyless-proof", "keyless-sig"] {
        let found = bundle(name).decide(&digest(), &signers);
        assert!(matches!(&found, SignatureResult::Bad(flaw) if flaw.why.contains("is not valid under")), "{name}: {found:?}");
    }
    for (signature, path) in [(bundle("key-v3"), V3), (simple("key-v2"), V2)] {
        assert!(matches!(signature.decide(&digest(), &signers), SignatureResult::Bad(_)), "a key is not an identity");
        let both = Signers { keys: keys(&[path]), ..named(WORKFLOW, ACTIONS, "trusted_root") };
        assert_eq!(signature.decide(&digest(), &both), SignatureResult::Good(path.to_owned()));
    }
    let Body::Simple { payload, signature, keyless: Some(attached) } = simple("legacy-keyless").body else { unreachable!() };
    for changed in [
        Attached { entry: None, ..attached.clone() },
        Attached { entry: Some("{}".into()), ..attached.clone() },
        Attached { certificate: String::new(), ..attached.clone() },
        Attached {
            entry: attached.entry.as_ref().map(|entry| entry.replace("\"logIndex\":", "\"logIndex\":1")),
            ..attached.clone()
        },
    ] {
        let body = Body::Simple { payload: payload.clone(), signature: signature.clone(), keyless: Some(changed.clone()) };
        let found = Signature::of(body).decide(&digest(), &signers);
        assert!(matches!(found, SignatureResult::Bad(_)), "{changed:?}: {found:?}");
    }
}
