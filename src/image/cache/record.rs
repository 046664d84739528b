//! The cache's own files.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::image::cache::reader::{Blob, Reader};
use crate::image::error::CacheError;
use crate::image::verify::{Attached, Body, SIMPLE_SIGNING, Signature};
use crate::model::bytecode::ImageVerdict;
use crate::model::ids::Digest;
use crate::model::policy::PolicyId;

/// Verdicts that are kept of one image: of the present policy and some before it.
const MAX_VERDICTS: usize = 64;
/// Tenants that are kept of one reference.
const MAX_TENANTS: usize = 16;
/// Signatures that are kept of one image.
const MAX_EVIDENCE: usize = 8;

/// `refs/<hash>.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pointer {
    pub reference: String,
    pub digest: Digest,
    /// Seconds since 1970.
    pub pulled: u64,
    /// Whose shares of the cache it takes.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tenants: BTreeSet<String>,
}

impl Pointer {
    /// Adds a tenant; false where it is known, or there are too many.
    pub fn add_tenant(&mut self, tenant: &str) -> bool {
        self.tenants.len() < MAX_TENANTS && self.tenants.insert(tenant.to_owned())
    }
}

/// `images/<hex>.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CacheRecord {
    /// The top-level digest.
    pub digest: Digest,
    /// The media type and size of the top-level document, for index.json.
    pub media_type: String,
    pub top_size: u64,
    /// The object in it.
    pub object: Digest,
    /// Every blob in the order top, child, config, layer, object.
    pub blobs: Vec<Digest>,
    /// Bytes of all blobs.
    pub size: u64,
    /// Signatures that satisfied a rule once: a changed policy judges them anew without the network.
    pub evidence: Vec<Evidence>,
    /// What was found, by rule and policy; the newest last.
    pub verdicts: Vec<StoredVerdict>,
}

/// A signature in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Evidence {
    /// The layout's word.
    pub layout: String,
    /// The payload or bundle, a blob.
    pub blob: Digest,
    /// For simple signing: base64.
    pub signature: String,
    /// For a keyless one of cosign 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyless: Option<Attached>,
}

/// One verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredVerdict {
    pub rule: String,
    pub policy: PolicyId,
    /// None: the rule is not satisfied.
    pub verdict: Option<ImageVerdict>,
}

impl CacheRecord {
    /// What is known of a rule under exactly this policy; Some(None): that it is not satisfied.
    pub fn verdict(&self, rule: &str, policy: PolicyId) -> Option<Option<ImageVerdict>> {
        self.verdicts.iter().rev().find(|known| known.rule == rule && known.policy == policy).map(|known| known.verdict.clone())
    }

    /// Adds a verdict, in the place of an older one of the same rule and policy.
    pub fn add_verdict(&mut self, rule: &str, policy: PolicyId, verdict: Option<ImageVerdict>) {
        self.verdicts.retain(|known| known.rule != rule || known.policy != policy);
        self.verdicts.push(StoredVerdict { rule: rule.to_owned(), policy, verdict });
        let surplus = self.verdicts.len().saturating_sub(MAX_VERDICTS);
        self.verdicts.drain(..surplus);
    }

    /// Adds a signature if it is new.
    pub fn add_evidence(&mut self, evidence: Evidence) {
        if !self.evidence.contains(&evidence) {
            self.evidence.push(evidence);
            let surplus = self.evidence.len().saturating_sub(MAX_EVIDENCE);
            self.evidence.drain(..surplus);
        }
    }
}

impl CacheRecord {
    /// Signatures that satisfied a rule once.
    pub fn signatures(&self, reader: &Reader<'_>) -> Result<Vec<Signature>, CacheError> {
        let mut signatures = Vec::new();
        for evidence in &self.evidence {
            if let Blob::Whole(blob) = reader.blob(&evidence.blob)? {
                signatures.push(evidence.signature(blob));
            }
        }
        Ok(signatures)
    }
}

impl Evidence {
    /// A signature as it is kept, and the blob that goes with it. Only signatures that could be read are kept.
    pub fn of(signature: &Signature) -> Option<(Self, &[u8])> {
        let (blob, signed, keyless) = match &signature.body {
            Body::Simple { payload, signature, keyless } => (payload, signature.clone(), keyless.clone()),
            Body::Bundle(json) => (json, String::new(), None),
            Body::Unreadable(_) => return None,
        };
        let evidence =
            Self { layout: signature.layout().to_owned(), blob: crate::image::hash(blob), signature: signed, keyless };
        Some((evidence, blob))
    }

    /// The signature again, from the blob's bytes.
    pub fn signature(&self, blob: Vec<u8>) -> Signature {
        let body = if self.layout == SIMPLE_SIGNING {
            Body::Simple { payload: blob, signature: self.signature.clone(), keyless: self.keyless.clone() }
        } else {
            Body::Bundle(blob)
        };
        Signature::of(body)
    }
}
