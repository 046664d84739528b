//! Signatures as they are found, the signers of a rule, and the results.

use std::collections::HashMap;

use oci_spec::image::Descriptor;
use serde::Serialize;

use crate::image::oci::written::descriptor_of;
use crate::image::verify::check::CheckFailure;
use crate::image::verify::key::PublicKey;
use crate::image::verify::keyless::{Attached, Identities};

/// The names of the layouts in verdicts.
pub(crate) const SIMPLE_SIGNING: &str = "simple-signing";
/// See [`SIMPLE_SIGNING`].
pub(crate) const BUNDLE: &str = "bundle";

/// The annotation of a layer of cosign 2 with the signature, base64.
pub(crate) const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// The certificate of a keyless signature, PEM.
pub(crate) const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
/// The certificate's chain, PEM.
pub(crate) const CHAIN: &str = "dev.sigstore.cosign/chain";
/// The entry of the transparency log.
pub(crate) const ENTRY: &str = "dev.sigstore.cosign/bundle";

/// One signature as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signature {
    /// Its bytes, in one of the layouts.
    pub body: Body,
    /// Where it was found; not used for verification.
    pub place: SignaturePlace,
}

/// Where signatures are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignaturePlace {
    /// Under the tag `sha256-….sig` of cosign 2.
    SignatureTag,
    /// Listed by the registry's referrers API.
    Referrers,
    /// Listed under the tag `sha256-…`, the fallback for that API.
    FallbackTag,
    /// In an OCI layout.
    Layout,
    /// In our own cache.
    #[default]
    Cache,
}

impl SignaturePlace {
    /// The text for display.
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
        /// The signed content: a JSON document that names the image's digest.
        payload: Vec<u8>,
        /// base64, over the payload's bytes.
        signature: String,
        /// For a keyless signature: a certificate and a log entry.
        keyless: Option<Attached>,
    },
    /// cosign 3: the bundle's JSON.
    Bundle(Vec<u8>),
    /// It exists but cannot be read.
    Unreadable(String),
}

/// The result of one signature under some keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyResult {
    /// It is for this digest and by this key (an index into the keys that were tried).
    Good(usize),
    /// It does not count: why.
    Bad(CheckFailure),
    /// It is an attestation about an image, not a signature: neither good nor bad.
    Attestation,
}

/// The signers that a rule names.
#[derive(Debug, Default)]
pub(crate) struct Signers {
    /// Its keys.
    pub keys: Vec<PublicKey>,
    /// Its identities, by trusted root.
    pub identities: Vec<Identities>,
}

/// The result of one signature under one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SignatureResult {
    /// It is for this digest, and by this key or identity.
    Good(String),
    /// It is by another signer, or not valid: why.
    Bad(CheckFailure),
    /// It is not a signature of an image.
    Attestation,
}

impl Signature {
    /// A signature without a place.
    pub fn of(body: Body) -> Self {
        Self { body, place: SignaturePlace::default() }
    }

    /// The name of its layout.
    pub fn layout(&self) -> &'static str {
        match self.body {
            Body::Simple { .. } => SIMPLE_SIGNING,
            Body::Bundle(_) | Body::Unreadable(_) => BUNDLE,
        }
    }
}

impl Body {
    /// The layer that contains a signature of cosign 2, and its blob; None for others.
    pub fn simple_layer(&self) -> Option<(Descriptor, Vec<u8>)> {
        let Self::Simple { payload, signature, keyless } = self else { return None };
        let mut annotations = vec![(SIGNATURE, signature)];
        if let Some(Attached { certificate, chain, entry }) = keyless {
            annotations.push((CERTIFICATE, certificate));
            annotations.extend(chain.as_ref().map(|chain| (CHAIN, chain)));
            annotations.extend(entry.as_ref().map(|entry| (ENTRY, entry)));
        }
        let annotations: HashMap<_, _> = annotations.into_iter().map(|(name, text)| (name.to_owned(), text.clone())).collect();
        let mut layer = descriptor_of("application/vnd.dev.cosign.simplesigning.v1+json".into(), payload);
        layer.set_annotations(Some(annotations));
        Some((layer, payload.clone()))
    }
}
