//! Signatures of programs that the kernel checks: what a load has to do with them. docs/signing.md explains them.

use serde::{Deserialize, Serialize};

/// `kernel-signed` of an image rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelSigned {
    /// Signatures are passed to a kernel that checks them, if the node has a keyring.
    #[default]
    IfPossible,
    /// A program whose signature the kernel does not check is not loaded.
    Required,
}

impl KernelSigned {
    /// True for [`Self::IfPossible`].
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How the signatures in one object are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelSigning {
    /// What the image rule says.
    pub rule: KernelSigned,
    /// The serial number of the node's keyring; None if there is none.
    pub keyring: Option<i32>,
}
