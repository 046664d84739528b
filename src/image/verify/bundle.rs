//! cosign 3: a sigstore bundle v0.3 with a DSSE envelope around an in-toto statement.

use serde::Deserialize;
use sigstore_types::bundle::VerificationMaterialContent;
use sigstore_types::{Bundle, SignatureContent};

use crate::image::verify::Finding;
use crate::image::verify::key::{Key, signer};
use crate::image::verify::keyless::{self, Identities};
use crate::model::ids::Digest;

/// The payload type of in-toto statements.
const IN_TOTO: &str = "application/vnd.in-toto+json";
/// The only statement version that cosign 3 writes.
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// The predicate that makes a statement a signature of an image. Attestations (SLSA provenance, SBOMs) come in the same
/// bundles and say nothing about who wants the image to run.
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
    /// True where any of its subjects is this image.
    fn is_about(&self, digest: &Digest) -> bool {
        let hex = digest.hex();
        self.subject.iter().any(|subject| subject.digest.get("sha256").is_some_and(|sha256| *sha256 == hex))
    }
}

/// First the envelope's signature, then what the statement says. What says of itself that it is another predicate is an
/// attestation whoever signed it: nobody gains by that claim.
pub(crate) fn examine(json: &[u8], digest: &Digest, keys: &[Key]) -> Finding {
    let bad = |why: String| Finding::Bad(why);
    let bundle = match std::str::from_utf8(json)
        .map_err(|err| err.to_string())
        .and_then(|json| Bundle::from_json(json).map_err(|err| err.to_string()))
    {
        Ok(bundle) => bundle,
        Err(err) => return bad(format!("it is no sigstore bundle: {err}")),
    };
    let SignatureContent::DsseEnvelope(envelope) = &bundle.content else {
        return bad("it is a bundle over an artifact, not over an image".to_owned());
    };
    if envelope.payload_type != IN_TOTO {
        return bad(format!("its payload is of the type {:?}", envelope.payload_type.chars().take(100).collect::<String>()));
    }
    let statement: Statement = match serde_json::from_slice(envelope.payload.as_bytes()) {
        Ok(statement) => statement,
        Err(err) => return bad(format!("its payload is no in-toto statement: {err}")),
    };
    if statement.predicate != SIGN {
        return Finding::Attestation;
    }
    if !matches!(bundle.verification_material.content, VerificationMaterialContent::PublicKey(_)) {
        return bad("it is keyless, by a certificate, and the rule names keys alone".to_owned());
    }
    let Some(by) = signer(keys, &envelope.pae(), &envelope.signature.sig) else {
        return bad("it is by another key, or over other bytes".to_owned());
    };
    if statement.kind != STATEMENT {
        return bad(format!("its statement is of the type {:?}", statement.kind.chars().take(100).collect::<String>()));
    }
    if !statement.is_about(digest) {
        return bad("it is of another image".to_owned());
    }
    Finding::Good(by)
}

/// The same for a certificate, of what [`examine`] did not take for an attestation. None for a bundle by a key.
pub(crate) fn keyless(json: &[u8], digest: &Digest, identities: &[Identities]) -> Option<Result<String, String>> {
    let bundle = Bundle::from_json(std::str::from_utf8(json).ok()?).ok()?;
    let SignatureContent::DsseEnvelope(envelope) = &bundle.content else { return None };
    if envelope.payload_type != IN_TOTO
        || matches!(bundle.verification_material.content, VerificationMaterialContent::PublicKey(_))
    {
        return None;
    }
    let statement: Statement = serde_json::from_slice(envelope.payload.as_bytes()).ok()?;
    if statement.predicate != SIGN || statement.kind != STATEMENT {
        return Some(Err("its statement is no signature of an image".to_owned()));
    }
    if !statement.is_about(digest) {
        return Some(Err("it is of another image".to_owned()));
    }
    Some(keyless::bundle(&bundle, digest, identities))
}

/// True where its statement names `digest`, or where it cannot be read.
pub(crate) fn claims(json: &[u8], digest: &Digest) -> bool {
    let bundle = std::str::from_utf8(json).ok().and_then(|json| Bundle::from_json(json).ok());
    let statement = bundle.and_then(|bundle| match bundle.content {
        SignatureContent::DsseEnvelope(envelope) => serde_json::from_slice::<Statement>(envelope.payload.as_bytes()).ok(),
        _ => None,
    });
    statement.is_none_or(|statement| statement.is_about(digest))
}
