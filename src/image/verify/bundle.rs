//! cosign 3: a sigstore bundle v0.3 with a DSSE envelope around an in-toto statement.

use serde::Deserialize;
use sigstore_types::bundle::VerificationMaterialContent;
use sigstore_types::{Bundle, DsseEnvelope, SignatureContent};

use crate::image::verify::check::{Check, CheckFailure, short};
use crate::image::verify::key::{PublicKey, no_signer, signer};
use crate::image::verify::keyless::{self, Identities};
use crate::image::verify::reasons;
use crate::image::verify::signature::KeyResult;
use crate::model::ids::Digest;

/// The payload type of in-toto statements.
const IN_TOTO: &str = "application/vnd.in-toto+json";
/// The only statement version that cosign 3 writes.
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// The predicate that makes a statement a signature of an image. Attestations (SLSA provenance, SBOMs) come in the same
/// bundles and do not say who wants the image to run.
const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";

#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    digest: std::collections::BTreeMap<String, String>,
}

impl Statement {
    /// Checks that it is a statement of the supported version, about this image.
    fn signs(&self, digest: &Digest) -> Result<(), CheckFailure> {
        if self.kind != STATEMENT {
            let why = format!("its statement has the type {:?}", short(&self.kind));
            return Err(CheckFailure::new(Check::Statement, why));
        }
        if !self.is_about(digest) {
            return Err(CheckFailure::new(Check::Digest, "it is for another image"));
        }
        Ok(())
    }

    /// True if one of its subjects is this image.
    fn is_about(&self, digest: &Digest) -> bool {
        let hex = digest.hex();
        self.subject.iter().any(|subject| subject.digest.get("sha256").is_some_and(|sha256| *sha256 == hex))
    }
}

/// Reads a bundle. Log entries and time stamps of a bundle by a key are not evaluated, so they need not be readable:
/// they are left out if they cannot be read.
pub(super) fn parse(json: &[u8]) -> Result<Bundle, CheckFailure> {
    let text = std::str::from_utf8(json)
        .map_err(|_| CheckFailure::new(Check::Format, "it is not a sigstore bundle: it is not text"))?;
    Bundle::from_json(text).or_else(|err| without_evidence(json).ok_or_else(|| reasons::unreadable(&err)))
}

fn without_evidence(json: &[u8]) -> Option<Bundle> {
    let mut bundle: serde_json::Value = serde_json::from_slice(json).ok()?;
    let material = bundle.get_mut("verificationMaterial")?.as_object_mut()?;
    material.get("publicKey")?;
    material.retain(|name, _| name == "publicKey");
    Bundle::from_json(&bundle.to_string()).ok()
}

/// True if it is by a key that it does not contain.
pub(super) fn by_key(bundle: &Bundle) -> bool {
    matches!(bundle.verification_material.content, VerificationMaterialContent::PublicKey(_))
}

/// The statement of an envelope, unverified.
fn statement(bundle: &Bundle) -> Result<(&DsseEnvelope, Statement), CheckFailure> {
    let bad = |why: String| CheckFailure::new(Check::Statement, why);
    let SignatureContent::DsseEnvelope(envelope) = &bundle.content else {
        return Err(bad("it is a bundle for an artifact, not for an image".to_owned()));
    };
    if envelope.payload_type != IN_TOTO {
        return Err(bad(format!("its payload has the type {:?}", short(&envelope.payload_type))));
    }
    let statement = serde_json::from_slice(envelope.payload.as_bytes())
        .map_err(|err| bad(format!("its payload is not an in-toto statement: {}", short(&err.to_string()))))?;
    Ok((envelope, statement))
}

/// The predicate of an attestation, if it is one.
pub(super) fn predicate(json: &[u8]) -> Option<String> {
    let bundle = parse(json).ok()?;
    statement(&bundle).ok().map(|(_, statement)| statement.predicate).filter(|predicate| predicate != SIGN)
}

/// Verifies the envelope's signature first, then the statement. A bundle that claims another predicate is an
/// attestation, regardless of its signer: claiming another predicate gives no advantage.
pub(crate) fn examine(json: &[u8], digest: &Digest, keys: &[PublicKey]) -> KeyResult {
    by_keys(json, digest, keys).unwrap_or_else(KeyResult::Bad)
}

fn by_keys(json: &[u8], digest: &Digest, keys: &[PublicKey]) -> Result<KeyResult, CheckFailure> {
    let bundle = parse(json)?;
    let (envelope, statement) = statement(&bundle)?;
    if statement.predicate != SIGN {
        return Ok(KeyResult::Attestation);
    }
    if !by_key(&bundle) {
        return Err(CheckFailure::new(Check::Identity, keyless::KEYS_ALONE).before(Check::Digest));
    }
    let by = signer(keys, &envelope.pae(), &envelope.signature.sig).ok_or_else(|| no_signer(keys))?;
    statement.signs(digest)?;
    Ok(KeyResult::Good(by))
}

/// The same for a certificate, for bundles that [`examine`] did not classify as an attestation. None for a bundle by a
/// key.
pub(crate) fn keyless(json: &[u8], digest: &Digest, identities: &[Identities]) -> Option<Result<String, CheckFailure>> {
    let bundle = parse(json).ok().filter(|bundle| !by_key(bundle))?;
    let (_, statement) = statement(&bundle).ok()?;
    if statement.predicate != SIGN {
        return Some(Err(CheckFailure::new(Check::Statement, "its statement is not a signature of an image")));
    }
    Some(statement.signs(digest).and_then(|()| keyless::bundle(&bundle, digest, identities)))
}

/// True if its statement names `digest`, or if it cannot be read.
pub(crate) fn claims(json: &[u8], digest: &Digest) -> bool {
    let bundle = parse(json).ok();
    bundle.and_then(|bundle| statement(&bundle).ok().map(|(_, statement)| statement.is_about(digest))).unwrap_or(true)
}
