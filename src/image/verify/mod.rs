//! Verifies signatures by public keys and by identities: (digest, signature, signers) -> result. No network and no
//! files; the clock is only used to reject log entries from the future.
//!
//! Two layouts: cosign 2's simple signing, a payload with a detached signature, and cosign 3's bundles, a signed
//! in-toto statement. Under a key, a bundle's transparency log entries and time stamps are not evaluated: a rule that
//! names a key trusts its holder at any time, and names no log or authority by which such an entry could be checked. A
//! bundle's hint of its key is ignored: every key of the rule is tried.

mod account;
mod bundle;
mod check;
mod key;
pub(crate) mod keyless;
mod reasons;
mod signature;
pub mod signers;
mod simple;

pub(crate) use account::SignatureDescription;
pub use account::{CertificateClaims, LoggedEntry, SignatureKind};
pub(crate) use check::CheckFailure;
pub use check::{Check, CheckOutcome, Checked};
pub(crate) use key::PublicKey;
pub(crate) use keyless::Attached;
pub use signature::SignaturePlace;
pub(crate) use signature::{
    Body, CERTIFICATE, CHAIN, ENTRY, KeyResult, SIGNATURE, SIMPLE_SIGNING, Signature, SignatureResult, Signers,
};

use crate::model::ids::Digest;

impl Signature {
    /// Checks it against every key, in order.
    pub fn examine(&self, digest: &Digest, keys: &[PublicKey]) -> KeyResult {
        match &self.body {
            Body::Simple { payload, signature, keyless } => {
                simple::examine(payload, signature, keyless.is_some(), digest, keys)
            }
            Body::Bundle(json) => bundle::examine(json, digest, keys),
            Body::Unreadable(why) => KeyResult::Bad(CheckFailure::new(Check::Format, why.clone())),
        }
    }

    /// The fingerprint of the rule's key by which it counts.
    pub fn fingerprint(&self, digest: &Digest, signers: &Signers) -> Option<Digest> {
        match self.examine(digest, &signers.keys) {
            KeyResult::Good(by) => Some(signers.keys[by].fingerprint()),
            KeyResult::Bad(_) | KeyResult::Attestation => None,
        }
    }

    /// Checks it against the signers of a rule.
    pub fn decide(&self, digest: &Digest, signers: &Signers) -> SignatureResult {
        match self.examine(digest, &signers.keys) {
            KeyResult::Good(by) => SignatureResult::Good(signers.keys[by].path().display().to_string()),
            KeyResult::Attestation => SignatureResult::Attestation,
            KeyResult::Bad(why) if signers.identities.is_empty() => SignatureResult::Bad(why),
            KeyResult::Bad(why) => {
                let keyless = match &self.body {
                    Body::Simple { payload, signature, keyless: Some(attached) } => {
                        simple::keyless(payload, signature, attached, digest, &signers.identities)
                    }
                    Body::Bundle(json) => bundle::keyless(json, digest, &signers.identities).unwrap_or(Err(why)),
                    Body::Simple { .. } | Body::Unreadable(_) => Err(why),
                };
                keyless.map_or_else(SignatureResult::Bad, SignatureResult::Good)
            }
        }
    }

    /// True if it claims to be for `digest`, which is not proof.
    pub fn claims(&self, digest: &Digest) -> bool {
        match &self.body {
            Body::Simple { payload, .. } => simple::claimed(payload).is_some_and(|claimed| claimed == *digest),
            Body::Bundle(json) => bundle::claims(json, digest),
            Body::Unreadable(_) => true,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]
mod forgeries;
#[cfg(test)]
mod tests;
