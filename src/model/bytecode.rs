//! Bytecode as it comes out of an image: bytes, where they came from, and why they may be loaded.

use serde::{Deserialize, Serialize};

use crate::model::ids::Digest;
use crate::model::reference::Reference;

/// When the registry is asked. The words are bpfman's and Kubernetes'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Ask for the tag's digest at every start.
    Always,
    /// Use the digest that the tag had when it was pulled.
    IfNotPresent,
    /// Never use the network.
    Never,
}

impl PullPolicy {
    /// The policy that a word names, or None.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "Always" => Some(Self::Always),
            "IfNotPresent" => Some(Self::IfNotPresent),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }
}

/// What was established about an image's signatures. An error is neither: it is an `ImageError`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum ImageVerdict {
    /// A signature over the image's digest satisfied the rule.
    Verified {
        /// By what: the key's path or the identity.
        by: String,
        /// In which layout it was found: `simple-signing` (cosign 2) or `bundle` (cosign 3).
        layout: String,
    },
    /// The rule accepts the image unsigned. Where a rule with signers speaks of the image too, signatures were looked for
    /// and there is none in any layout; else none was looked for.
    Unsigned,
}

/// One object file with its provenance. What is loaded is exactly `object`.
#[derive(Debug, Clone)]
pub struct Bytecode {
    /// What was asked for.
    pub reference: Reference,
    /// The digest that the reference resolved to, once: the top-level manifest or index; for `file:` the object's own.
    pub digest: Digest,
    /// The digest of `object`.
    pub object_digest: Digest,
    /// The ELF object, 16 MiB at most.
    pub object: Vec<u8>,
    /// Name of the image rule that allowed it.
    pub rule: String,
    /// What that rule found.
    pub verdict: ImageVerdict,
}
