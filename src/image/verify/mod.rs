//! Signatures by public keys: (digest, signature, keys) -> what it is worth. No network, no files, no clock.
//!
//! Two layouts: cosign 2's simple signing, a payload with a detached signature beside it, and cosign 3's bundles, a signed
//! in-toto statement. Neither a transparency log entry nor a timestamp that a bundle carries is looked at: a rule that names
//! a key trusts whoever holds it, whenever they sign, and names no log or authority by which such an entry could be judged.
//! What is checked never depends on a bundle's hint of its key: every key of the rule is tried.

mod bundle;
mod key;
mod simple;

pub(crate) use key::Key;

use crate::model::ids::Digest;

/// The layouts by the words that verdicts have for them.
pub(crate) const SIMPLE_SIGNING: &str = "simple-signing";
/// See [`SIMPLE_SIGNING`].
pub(crate) const BUNDLE: &str = "bundle";

/// One signature as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signature {
    /// Its bytes, in one of the layouts.
    pub body: Body,
}

/// What a signature consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    /// cosign 2.
    Simple {
        /// What was signed: a JSON document that names the image's digest.
        payload: Vec<u8>,
        /// base64, over the payload's bytes.
        signature: String,
        /// True where a certificate stands beside it: a keyless signature.
        keyless: bool,
    },
    /// cosign 3: the bundle's JSON.
    Bundle(Vec<u8>),
    /// It is there and cannot be read.
    Unreadable(String),
}

/// What one signature is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It is over this digest and by this key (an index into the keys that were tried).
    Good(usize),
    /// It is none of ours: why.
    Bad(String),
    /// It is no signature of an image but an attestation about one: neither good nor bad.
    Attestation,
}

impl Signature {
    /// The word for its layout.
    pub fn layout(&self) -> &'static str {
        match self.body {
            Body::Simple { .. } => SIMPLE_SIGNING,
            Body::Bundle(_) | Body::Unreadable(_) => BUNDLE,
        }
    }

    /// Checks it against every key, in order.
    pub fn examine(&self, digest: &Digest, keys: &[Key]) -> Finding {
        match &self.body {
            Body::Simple { payload, signature, keyless } => simple::examine(payload, signature, *keyless, digest, keys),
            Body::Bundle(json) => bundle::examine(json, digest, keys),
            Body::Unreadable(why) => Finding::Bad(why.clone()),
        }
    }

    /// True where it says of itself that it is about `digest`. It proves nothing.
    pub fn claims(&self, digest: &Digest) -> bool {
        match &self.body {
            Body::Simple { payload, .. } => simple::claimed(payload).is_some_and(|claimed| claimed == *digest),
            Body::Bundle(json) => bundle::claims(json, digest),
            Body::Unreadable(_) => true,
        }
    }
}

impl Body {
    /// The layer that holds a signature of cosign 2, and its blob; None for others.
    pub fn simple_layer(&self) -> Option<(serde_json::Value, Vec<u8>)> {
        let Self::Simple { payload, signature, .. } = self else { return None };
        let layer = serde_json::json!({
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "digest": crate::image::hash(payload),
            "size": payload.len(),
            "annotations": { "dev.cosignproject.cosign/signature": signature },
        });
        Some((layer, payload.clone()))
    }
}

#[cfg(test)]
mod tests;
