//! The cache's own files.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::image::cache::reader::{Blob, Reader};
use crate::image::error::CacheError;
use crate::image::verify::{Attached, Body, SIMPLE_SIGNING, Signature};
use crate::model::bytecode::ImageVerdict;
use crate::model::ids::Digest;
use crate::model::policy::PolicyId;

/// The limit on stored verdicts of one image: those of the current policy and some earlier ones.
const MAX_VERDICTS: usize = 64;
/// The limit on stored tenants of one reference.
const MAX_TENANTS: usize = 16;
/// The limit on stored signatures of one image.
const MAX_EVIDENCE: usize = 8;

/// `refs/<hash>.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pointer {
    pub reference: String,
    pub digest: Digest,
    /// Seconds since 1970.
    pub pulled: u64,
    /// The tenants whose shares of the cache it uses.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tenants: BTreeSet<String>,
}

impl Pointer {
    /// Adds a tenant; false if it is known, or if there are too many.
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
    /// The digest of its object.
    pub object: Digest,
    /// Every blob in the order top, child, config, layer, object.
    pub blobs: Vec<Digest>,
    /// Size of all blobs in bytes.
    pub size: u64,
    /// Signatures that have satisfied a rule: after a change of the policy they are verified again without the network.
    pub evidence: Vec<Evidence>,
    /// Verdicts by rule and policy, oldest first.
    pub verdicts: Vec<StoredVerdict>,
}

/// A signature in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Evidence {
    /// The layout, as in verdicts.
    pub layout: String,
    /// The payload or bundle, a blob.
    pub blob: Digest,
    /// For simple signing: base64.
    pub signature: String,
    /// For a keyless signature of cosign 2: its certificate and log entry.
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
    /// The verdict of a rule under exactly this policy; `Some(None)`: it is not satisfied.
    pub fn verdict(&self, rule: &str, policy: PolicyId) -> Option<Option<ImageVerdict>> {
        self.verdicts.iter().rev().find(|known| known.rule == rule && known.policy == policy).map(|known| known.verdict.clone())
    }

    /// Adds a verdict, and replaces an older one for the same rule and policy.
    pub fn add_verdict(&mut self, rule: &str, policy: PolicyId, verdict: Option<ImageVerdict>) {
        self.verdicts.retain(|known| known.rule != rule || known.policy != policy);
        self.verdicts.push(StoredVerdict { rule: rule.to_owned(), policy, verdict });
        let surplus = self.verdicts.len().saturating_sub(MAX_VERDICTS);
        self.verdicts.drain(..surplus);
    }

    /// Adds a signature unless it is known.
    pub fn add_evidence(&mut self, evidence: Evidence) {
        if !self.evidence.contains(&evidence) {
            self.evidence.push(evidence);
            let surplus = self.evidence.len().saturating_sub(MAX_EVIDENCE);
            self.evidence.drain(..surplus);
        }
    }
}

impl CacheRecord {
    /// Signatures that have satisfied a rule.
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
    /// The stored form of a signature, and its blob. Only readable signatures are stored.
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

    /// Restores the signature from the blob's bytes.
    pub fn signature(&self, blob: Vec<u8>) -> Signature {
        let body = if self.layout == SIMPLE_SIGNING {
            Body::Simple { payload: blob, signature: self.signature.clone(), keyless: self.keyless.clone() }
        } else {
            Body::Bundle(blob)
        };
        Signature::of(body)
    }
}
