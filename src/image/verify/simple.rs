//! cosign 2: "simple signing", github.com/sigstore/cosign specs/SIGNATURE_SPEC.md.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sigstore_types::SignatureBytes;

use crate::image::verify::check::{Check, CheckFailure, short};
use crate::image::verify::key::{PublicKey, no_signer, signer};
use crate::image::verify::keyless::{self, Attached, Identities};
use crate::image::verify::signature::KeyResult;
use crate::model::ids::Digest;

/// `critical.type` of the payload; other tools sign other things in the same format.
const TYPE: &str = "cosign container image signature";

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: SimpleImage,
}

#[derive(Deserialize)]
struct SimpleImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Verifies the signature over the payload's bytes first, then the payload. `docker-reference` is not compared: an
/// image may be copied, and openssl users leave it empty; the policy binds repositories to keys.
pub(crate) fn examine(payload: &[u8], signature: &str, keyless: bool, digest: &Digest, keys: &[PublicKey]) -> KeyResult {
    by_keys(payload, signature, keyless, digest, keys).map_or_else(KeyResult::Bad, KeyResult::Good)
}

fn by_keys(payload: &[u8], signature: &str, keyless: bool, digest: &Digest, keys: &[PublicKey]) -> Result<usize, CheckFailure> {
    let signature = STANDARD.decode(signature).map_err(|_| CheckFailure::new(Check::Format, "its signature is not base64"))?;
    let by = signer(keys, payload, &SignatureBytes::from_bytes(&signature)).ok_or_else(|| match keyless {
        true => CheckFailure::new(Check::Identity, keyless::KEYS_ALONE).before(Check::Timestamp),
        false => no_signer(keys),
    })?;
    about(payload, digest).map(|()| by)
}

/// The same for a certificate: first the signer, then the content.
pub(crate) fn keyless(
    payload: &[u8],
    signature: &str,
    attached: &Attached,
    digest: &Digest,
    identities: &[Identities],
) -> Result<String, CheckFailure> {
    let by = keyless::simple(payload, signature, attached, identities)?;
    about(payload, digest).map(|()| by)
}

/// Checks whether a payload with a valid signature is for this image.
fn about(payload: &[u8], digest: &Digest) -> Result<(), CheckFailure> {
    let bad = |why: String| CheckFailure::new(Check::Statement, why);
    let payload: Payload = serde_json::from_slice(payload)
        .map_err(|err| bad(format!("its payload is not a simple-signing payload: {}", short(&err.to_string()))))?;
    if payload.critical.kind != TYPE {
        return Err(bad(format!("its type is {:?}", short(&payload.critical.kind))));
    }
    if payload.critical.image.digest.parse::<Digest>() != Ok(*digest) {
        let why = format!("it is for another image, {}", short(&payload.critical.image.digest));
        return Err(CheckFailure::new(Check::Digest, why));
    }
    Ok(())
}

/// The digest that a payload names.
pub(crate) fn claimed(payload: &[u8]) -> Option<Digest> {
    serde_json::from_slice::<Payload>(payload).ok()?.critical.image.digest.parse().ok()
}
