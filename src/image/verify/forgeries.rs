//! Keyless signatures of an instance of the tests' own: the true one counts, and each with one flaw is refused for that flaw.

use std::path::Path;

use super::{Attached, Body, Identities, Judgement, Signature, Signers};
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
    Signature { body: Body::Bundle(instance.bundle(claim, flaw).to_string().into()) }
}

fn attachment(instance: &Instance, claim: Claim<'_>, flaw: Flaw) -> Signature {
    let made = instance.attachment(claim, flaw);
    let keyless = Attached { certificate: made.certificate, chain: Some(made.chain), entry: Some(made.entry) };
    Signature { body: Body::Simple { payload: made.payload.into(), signature: made.signature, keyless: Some(keyless) } }
}

fn refused(signature: &Signature, digest: &str, signers: &Signers) -> String {
    let found = signature.judge(&digest.parse().unwrap(), signers);
    assert!(matches!(found, Judgement::Bad(_)), "{found:?}");
    let Judgement::Bad(why) = found else { unreachable!("it was looked at") };
    why
}

#[test]
fn the_true_one_is_good_for_its_image_identity_issuer_and_root_alone() {
    let (instance, another) = (Instance::new(), Instance::new());
    let good = signers(&instance, CLAIM.identity, CLAIM.issuer);
    let by = format!("{} ({})", CLAIM.identity, CLAIM.issuer);
    for make in [bundle, attachment] {
        let signature = make(&instance, CLAIM, Flaw::None);
        assert_eq!(signature.judge(&CLAIM.digest.parse().unwrap(), &good), Judgement::Good(by.clone()));
        let other = CLAIM.digest.replace('1', "2");
        assert!(refused(&signature, &other, &good).contains("of another image"));
        for (identity, issuer) in [
            ("https://forge.example/acme/probes/release@refs/tags/v", CLAIM.issuer),
            ("https://forge.example/acme/probes/release@refs/tags/v11", CLAIM.issuer),
            (CLAIM.identity, "https://token.forge.example/"),
        ] {
            let why = refused(&signature, CLAIM.digest, &signers(&instance, identity, issuer));
            assert_eq!(why, format!("it is by {by}, whom the rule does not name"));
        }
        // The same names, other keys.
        let why = refused(&make(&another, CLAIM, Flaw::None), CLAIM.digest, &good);
        assert!(why.starts_with("it does not hold under root.json: "), "{why}");
    }
}

#[test]
fn each_flaw_is_found() {
    let instance = Instance::new();
    let good = signers(&instance, CLAIM.identity, CLAIM.issuer);
    for (flaw, words) in [
        (Flaw::Authority, "certificate chain is invalid"),
        (Flaw::NoTimestamp, "missing SCT"),
        (Flaw::Timestamp, "SCT signature verification failed"),
        (Flaw::Signature, "invalid signature: "),
        (Flaw::Promise, "invalid inclusion promise"),
        (Flaw::Entry, "hash"),
        (Flaw::Early, "CertNotValidYet"),
        (Flaw::Late, "CertExpired"),
    ] {
        for make in [bundle, attachment] {
            let why = refused(&make(&instance, CLAIM, flaw), CLAIM.digest, &good);
            assert!(why.starts_with("it does not hold under root.json: ") && why.contains(words), "{flaw:?}: {why}");
        }
    }
    // Of a bundle alone: cosign 2 attaches no proof.
    for (flaw, words) in [
        (Flaw::NoPromise, "no verified timestamp"),
        (Flaw::Proof, "invalid inclusion proof"),
        (Flaw::Checkpoint, "invalid checkpoint"),
        (Flaw::NoEntry, "must have an inclusion proof"),
    ] {
        let why = refused(&bundle(&instance, CLAIM, flaw), CLAIM.digest, &good);
        assert!(why.contains(words), "{flaw:?}: {why}");
    }
}
