//! Why an image may be loaded.

use crate::image::verify::Signature;
use crate::model::bytecode::ImageVerdict;

/// Why an image may be loaded.
#[derive(Debug)]
pub(crate) struct Decision {
    /// The rule's name.
    pub rule: String,
    /// What it found.
    pub verdict: ImageVerdict,
    /// The signature that satisfied it.
    pub evidence: Option<Signature>,
    /// The rules before it, which were asked first and are not satisfied.
    pub rejected: Vec<String>,
    /// False where all of this was known already.
    pub new: bool,
}
