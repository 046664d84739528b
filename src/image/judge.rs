//! Which rule an image satisfies, and what that rule found.
//!
//! Three results, never two: verified, unsigned, or an error. "Unsigned" is said only where every place that could hold a
//! signature was read and holds none. A rule with `unsigned = true` accepts an image in that case; where no other rule speaks
//! of the image, it accepts it without a look. A signature that satisfies no rule is never softened to "unsigned".

use std::path::Path;

use crate::image::Want;
use crate::image::error::ImageError;
use crate::image::source::Found;
use crate::image::verify::{Finding, Key, Signature};
use crate::model::bytecode::Verdict;
use crate::model::ids::Digest;
use crate::model::policy::{ImageRule, Signer};

/// The rules that can allow one image of one digest.
#[derive(Debug)]
pub(crate) struct Candidates<'a> {
    signed: Vec<&'a ImageRule>,
    unsigned: Vec<&'a ImageRule>,
}

/// Why an image may be loaded.
#[derive(Debug)]
pub(crate) struct Decision {
    /// The rule's name.
    pub rule: String,
    /// What it found.
    pub verdict: Verdict,
    /// The signature that satisfied it.
    pub evidence: Option<Signature>,
}

impl<'a> Candidates<'a> {
    /// Sorts out the rules that list other digests.
    pub fn new(want: &Want<'a>, image: &str, digest: &Digest) -> Result<Self, ImageError> {
        if want.rules.is_empty() {
            return Err(ImageError::NoRule { image: image.to_owned() });
        }
        let fits = |rule: &&&ImageRule| rule.digests.is_empty() || rule.digests.contains(digest);
        let fitting: Vec<&ImageRule> = want.rules.iter().filter(fits).copied().collect();
        if fitting.is_empty() {
            let rule = names(want.rules.iter().copied());
            return Err(ImageError::DigestNotListed { image: image.to_owned(), digest: *digest, rule });
        }
        let (unsigned, signed) = fitting.into_iter().partition(|rule| rule.unsigned);
        Ok(Self { signed, unsigned })
    }

    /// The decision where no signature is asked for.
    pub fn without_signatures(&self) -> Option<Decision> {
        let rule = self.unsigned.first().filter(|_| self.signed.is_empty())?;
        Some(Decision { rule: rule.name.clone(), verdict: Verdict::Unsigned, evidence: None })
    }

    /// The first rule for which `known` has a verdict already.
    pub fn known(&self, known: impl Fn(&str) -> Option<Verdict>) -> Option<Decision> {
        self.signed
            .iter()
            .chain(&self.unsigned)
            .find_map(|rule| Some(Decision { rule: rule.name.clone(), verdict: known(&rule.name)?, evidence: None }))
    }

    /// Examines what was found.
    pub fn decide(&self, want: &Want<'_>, image: &str, digest: &Digest, found: Found) -> Result<Decision, ImageError> {
        let mut reason = None;
        let mut bad = 0;
        for (nth, rule) in self.signed.iter().enumerate() {
            let keys = keys_of(rule, want, image)?;
            for signature in &found.signatures {
                match signature.examine(digest, &keys) {
                    Finding::Good(by) => {
                        let by = keys[by].path().display().to_string();
                        let verdict = Verdict::Verified { by, layout: signature.layout().to_owned() };
                        return Ok(Decision { rule: rule.name.clone(), verdict, evidence: Some(signature.clone()) });
                    }
                    Finding::Bad(why) => {
                        bad += usize::from(nth == 0);
                        reason.get_or_insert(why);
                    }
                    Finding::Attestation => {}
                }
            }
        }
        if let Some(trouble) = found.trouble {
            return Err(trouble);
        }
        let keyless = self.signed.iter().all(|rule| keys_in(rule).next().is_none());
        match (reason, self.unsigned.first()) {
            (None, Some(rule)) => Ok(Decision { rule: rule.name.clone(), verdict: Verdict::Unsigned, evidence: None }),
            _ if keyless => Err(keyless_not_yet(image)),
            (None, None) => Err(ImageError::Unsigned { image: image.to_owned(), rules: names(self.signed.iter().copied()) }),
            (Some(reason), _) => Err(ImageError::BadSignature {
                image: image.to_owned(),
                found: bad,
                rules: names(self.signed.iter().copied()),
                reason,
            }),
        }
    }
}

/// Refuses, before anything is opened or asked for, what no image could satisfy.
pub(crate) fn refuse_early(want: &Want<'_>, image: &str) -> Result<(), ImageError> {
    if want.rules.is_empty() {
        return Err(ImageError::NoRule { image: image.to_owned() });
    }
    if want.rules.iter().all(|rule| !rule.unsigned && keys_in(rule).next().is_none()) {
        return Err(keyless_not_yet(image));
    }
    Ok(())
}

fn keyless_not_yet(image: &str) -> ImageError {
    ImageError::NotYet {
        image: image.to_owned(),
        what: "keyless identities are",
        remedy: "sign the image with a key and name it in signed-by = { key = … }",
    }
}

fn keys_in(rule: &ImageRule) -> impl Iterator<Item = &Path> {
    rule.signed_by.iter().filter_map(|signer| match signer {
        Signer::Key(path) => Some(path.as_path()),
        Signer::Identity { .. } => None,
    })
}

fn keys_of(rule: &ImageRule, want: &Want<'_>, image: &str) -> Result<Vec<Key>, ImageError> {
    keys_in(rule)
        .map(|path| {
            let pem = want.keys.get(path).ok_or_else(|| "it was not read with the policy".to_owned());
            pem.and_then(|pem| Key::parse(path, pem)).map_err(|reason| ImageError::Key {
                image: image.to_owned(),
                path: path.to_owned(),
                reason,
            })
        })
        .collect()
}

fn names<'a>(rules: impl Iterator<Item = &'a ImageRule>) -> String {
    rules.map(|rule| rule.name.as_str()).collect::<Vec<_>>().join(" or ")
}
