//! The keys and identities of an image rule, parsed for the verifier.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::image::Want;
use crate::image::error::ImageError;
use crate::image::verify::key::PublicKey;
use crate::image::verify::keyless::Identities;
use crate::image::verify::signature::Signers;
use crate::model::policy::{ImageRule, Policy, Signer};

/// The signers of a rule, from the files that were read with the policy.
///
/// # Errors
/// The first key, pattern or trusted root that cannot be used: then every image that the rule is evaluated for is
/// refused.
pub(crate) fn signers_of(rule: &ImageRule, want: &Want<'_>, image: &str) -> Result<Signers, ImageError> {
    let mut signers = Signers::default();
    for signer in &rule.signed_by {
        let path = signer.file();
        let bytes = want.keys.get(path).ok_or_else(|| "it was not read with the policy".to_owned());
        match signer {
            Signer::Key(_) => {
                let key = bytes.and_then(|pem| PublicKey::parse(path, pem));
                let failed = |reason| ImageError::Key { image: image.to_owned(), path: path.to_owned(), reason };
                signers.keys.push(key.map_err(failed)?);
            }
            Signer::Identity { identity, issuer, .. } => {
                let failed = |reason| ImageError::Pattern { image: image.to_owned(), rule: rule.name.clone(), reason };
                let (identity, issuer) = (identity.matcher().map_err(failed)?, issuer.matcher().map_err(failed)?);
                if let Some(known) = signers.identities.iter_mut().find(|known| known.path() == path) {
                    known.add(identity, issuer);
                    continue;
                }
                let root = bytes.and_then(|json| Identities::parse(path, json));
                let failed = |reason| ImageError::TrustedRoot { image: image.to_owned(), path: path.to_owned(), reason };
                let mut root = root.map_err(failed)?;
                root.add(identity, issuer);
                signers.identities.push(root);
            }
        }
    }
    Ok(signers)
}

/// A key or trusted root that the verifier cannot use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {} cannot be used: {reason}; images of rules that name it are refused", path.display())]
pub struct UnusableSigner {
    /// `key` or `trusted root`.
    pub what: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The verifier's reason.
    pub reason: String,
}

/// The keys and trusted roots of a policy that would be refused at a start, in the order of the rules, each once; the
/// same parsers are used.
///
/// `files` contains the content of each file; a missing one could not be read, which the caller has already reported.
pub fn unusable_signers(policy: &Policy, files: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<UnusableSigner> {
    let mut found: Vec<UnusableSigner> = Vec::new();
    for signer in policy.images.iter().flat_map(|rule| &rule.signed_by) {
        let path = signer.file();
        let Some(bytes) = files.get(path) else { continue };
        let problem = match signer {
            Signer::Key(_) => unusable_key(path, bytes),
            Signer::Identity { .. } => unusable_trusted_root(path, bytes),
        };
        found.extend(problem.filter(|problem| !found.contains(problem)));
    }
    found
}

/// Why the verifier cannot use a public key; None if it can.
pub fn unusable_key(path: &Path, pem: &[u8]) -> Option<UnusableSigner> {
    let reason = PublicKey::parse(path, pem).err()?;
    Some(UnusableSigner { what: "key", path: path.to_owned(), reason })
}

/// Why the verifier cannot use a trusted root; None if it can.
pub fn unusable_trusted_root(path: &Path, json: &[u8]) -> Option<UnusableSigner> {
    let reason = Identities::parse(path, json).err()?;
    Some(UnusableSigner { what: "trusted root", path: path.to_owned(), reason })
}
