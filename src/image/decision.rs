//! Why an image may be loaded.

use crate::image::verify::Signature;
use crate::model::bytecode::ImageVerdict;

/// Why an image may be loaded.
#[derive(Debug)]
pub(crate) struct Decision {
    /// The rule's name.
    pub rule: String,
    /// What the rule established.
    pub verdict: ImageVerdict,
    /// The signature that satisfied it.
    pub evidence: Option<Signature>,
    /// The rules that precede it and are not satisfied.
    pub rejected: Vec<String>,
    /// False if all of this came from the cache.
    pub new: bool,
}
