//! cosign 2: "simple signing", github.com/sigstore/cosign specs/SIGNATURE_SPEC.md.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sigstore_types::SignatureBytes;

use crate::image::verify::Finding;
use crate::image::verify::key::{Key, signer};
use crate::image::verify::keyless::{self, Attached, Identities};
use crate::model::ids::Digest;

/// `critical.type` of the payload; other tools sign other things in the same form.
const TYPE: &str = "cosign container image signature";

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Image,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// First the signature over the payload's bytes, then what the payload says. `docker-reference` is not compared: an image may
/// be copied, and openssl users leave it empty; policy binds repositories to keys.
pub(crate) fn examine(payload: &[u8], signature: &str, keyless: bool, digest: &Digest, keys: &[Key]) -> Finding {
    let Ok(signature) = STANDARD.decode(signature) else {
        return Finding::Bad("its signature is not base64".to_owned());
    };
    let Some(by) = signer(keys, payload, &SignatureBytes::from_bytes(&signature)) else {
        return Finding::Bad(if keyless {
            "it is keyless, by a certificate, and the rule names keys alone".to_owned()
        } else {
            "it is by another key, or over other bytes".to_owned()
        });
    };
    about(payload, digest).map_or_else(Finding::Bad, |()| Finding::Good(by))
}

/// The same for a certificate: first who signed, then what.
pub(crate) fn keyless(
    payload: &[u8],
    signature: &str,
    attached: &Attached,
    digest: &Digest,
    identities: &[Identities],
) -> Result<String, String> {
    let by = keyless::simple(payload, signature, attached, identities)?;
    about(payload, digest).map(|()| by)
}

/// Whether a payload whose signature is good signs this image.
fn about(payload: &[u8], digest: &Digest) -> Result<(), String> {
    let payload: Payload =
        serde_json::from_slice(payload).map_err(|err| format!("its payload is no simple-signing payload: {err}"))?;
    if payload.critical.kind != TYPE {
        return Err(format!("its type is {:?}", short(&payload.critical.kind)));
    }
    if payload.critical.image.digest.parse::<Digest>() != Ok(*digest) {
        return Err(format!("it is of another image, {}", short(&payload.critical.image.digest)));
    }
    Ok(())
}

/// The digest that a payload names.
pub(crate) fn claimed(payload: &[u8]) -> Option<Digest> {
    serde_json::from_slice::<Payload>(payload).ok()?.critical.image.digest.parse().ok()
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}
