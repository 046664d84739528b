//! Bytecode from an image: its bytes, its source, and why it may be loaded.

use serde::{Deserialize, Serialize};

use crate::model::ids::Digest;
use crate::model::reference::Reference;

/// When the registry is contacted. The names are those of bpfman and Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Resolves the tag at every start.
    Always,
    /// Uses the digest that the tag had when it was pulled.
    IfNotPresent,
    /// Never uses the network.
    Never,
}

impl PullPolicy {
    /// Parses a name; None if it is unknown.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "Always" => Some(Self::Always),
            "IfNotPresent" => Some(Self::IfNotPresent),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }
}

/// The result of verifying an image. Errors are reported as `ImageError` instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum ImageVerdict {
    /// A signature over the image's digest satisfied the rule.
    Verified {
        /// What satisfied the rule: the key's path or the identity.
        by: String,
        /// The layout of the signature: `simple-signing` (cosign 2) or `bundle` (cosign 3).
        layout: String,
    },
    /// The rule accepts the image unsigned. If a rule with signers covers the image too, signatures were searched for
    /// in every layout and none was found; otherwise none were searched for.
    Unsigned,
}

/// One object file with its provenance. Exactly `object` is loaded.
#[derive(Debug, Clone)]
pub struct Bytecode {
    /// The requested reference.
    pub reference: Reference,
    /// The digest to which the reference was resolved, once: the top-level manifest or index; for `file:` the object's
    /// own.
    pub digest: Digest,
    /// The digest of `object`.
    pub object_digest: Digest,
    /// The ELF object, at most 16 MiB.
    pub object: Vec<u8>,
    /// The name of the image rule that allowed it.
    pub rule: String,
    /// The result of that rule.
    pub verdict: ImageVerdict,
}
