//! A signature as it was found, whom a rule names, and what the one is worth under the other.

use serde::Serialize;

use crate::image::verify::check::CheckFailure;
use crate::image::verify::key::PublicKey;
use crate::image::verify::keyless::{Attached, Identities};

/// The layouts by the words that verdicts have for them.
pub(crate) const SIMPLE_SIGNING: &str = "simple-signing";
/// See [`SIMPLE_SIGNING`].
pub(crate) const BUNDLE: &str = "bundle";

/// The annotations of a layer of cosign 2: the signature, base64.
pub(crate) const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// The certificate of a keyless one, PEM.
pub(crate) const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
/// What signed the certificate, PEM.
pub(crate) const CHAIN: &str = "dev.sigstore.cosign/chain";
/// The entry of the transparency log.
pub(crate) const ENTRY: &str = "dev.sigstore.cosign/bundle";

/// One signature as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signature {
    /// Its bytes, in one of the layouts.
    pub body: Body,
    /// Where it was; nothing depends on it.
    pub place: SignaturePlace,
}

/// Where signatures are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignaturePlace {
    /// Behind the tag `sha256-….sig` of cosign 2.
    SignatureTag,
    /// Listed by the registry's referrers API.
    Referrers,
    /// Listed behind the tag `sha256-…`, which stands in for that API.
    FallbackTag,
    /// In an OCI layout.
    Layout,
    /// In our own cache.
    #[default]
    Cache,
}

impl SignaturePlace {
    /// What people read.
    pub fn words(self) -> &'static str {
        match self {
            Self::SignatureTag => "the tag sha256-….sig",
            Self::Referrers => "the referrers API",
            Self::FallbackTag => "the tag sha256-…, in place of the referrers API",
            Self::Layout => "the layout",
            Self::Cache => "the cache",
        }
    }
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
        /// What makes it keyless: a certificate and a log entry.
        keyless: Option<Attached>,
    },
    /// cosign 3: the bundle's JSON.
    Bundle(Vec<u8>),
    /// It is there and cannot be read.
    Unreadable(String),
}

/// What one signature is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyResult {
    /// It is over this digest and by this key (an index into the keys that were tried).
    Good(usize),
    /// It is none of ours: why.
    Bad(CheckFailure),
    /// It is no signature of an image but an attestation about one: neither good nor bad.
    Attestation,
}

/// Whom a rule names.
#[derive(Debug, Default)]
pub(crate) struct Signers {
    /// Its keys.
    pub keys: Vec<PublicKey>,
    /// Its identities, by trusted root.
    pub identities: Vec<Identities>,
}

/// What one signature is worth under one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SignatureResult {
    /// It is over this digest, and by this key or identity.
    Good(String),
    /// It is by none of them, or worth nothing: why.
    Bad(CheckFailure),
    /// It is no signature of an image.
    Attestation,
}

impl Signature {
    /// One whose place is of no interest.
    pub fn of(body: Body) -> Self {
        Self { body, place: SignaturePlace::default() }
    }

    /// The word for its layout.
    pub fn layout(&self) -> &'static str {
        match self.body {
            Body::Simple { .. } => SIMPLE_SIGNING,
            Body::Bundle(_) | Body::Unreadable(_) => BUNDLE,
        }
    }
}

impl Body {
    /// The layer that holds a signature of cosign 2, and its blob; None for others.
    pub fn simple_layer(&self) -> Option<(serde_json::Value, Vec<u8>)> {
        let Self::Simple { payload, signature, keyless } = self else { return None };
        let mut annotations = serde_json::json!({ SIGNATURE: signature });
        if let Some(Attached { certificate, chain, entry }) = keyless {
            annotations[CERTIFICATE] = certificate.as_str().into();
            for (name, text) in [(CHAIN, chain), (ENTRY, entry)] {
                if let Some(text) = text {
                    annotations[name] = text.as_str().into();
                }
            }
        }
        let layer = serde_json::json!({
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "digest": crate::image::hash(payload),
            "size": payload.len(),
            "annotations": annotations,
        });
        Some((layer, payload.clone()))
    }
}
