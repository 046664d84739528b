//! Decides which rule an image satisfies, and with which result.
//!
//! There are exactly three results: verified, unsigned, or an error. "Unsigned" is returned only if every place that
//! could hold a signature was read and holds none. A rule with `unsigned = true` then accepts the image; if no other
//! rule matches the image, it is accepted without searching for signatures. A signature that satisfies no rule is never
//! downgraded to "unsigned".

use crate::image::Want;
use crate::image::decision::Decision;
use crate::image::error::ImageError;
use crate::image::found::FoundSignatures;
use crate::image::verify::signers::signers_of;
use crate::image::verify::{Signature, SignatureResult};
use crate::model::bytecode::ImageVerdict;
use crate::model::ids::Digest;
use crate::model::policy::ImageRule;

/// The rules that can allow one image with one digest.
#[derive(Debug)]
pub(crate) struct CandidateRules<'a> {
    pub(super) signed: Vec<&'a ImageRule>,
    unsigned: Vec<&'a ImageRule>,
}

/// What is known about a rule: `None`: nothing; `Some(None)`: it is not satisfied.
type KnownVerdict = Option<Option<ImageVerdict>>;

impl<'a> CandidateRules<'a> {
    /// Leaves out the rules that list other digests.
    pub fn new(want: &Want<'a>, image: &str, digest: &Digest) -> Result<Self, ImageError> {
        if want.rules.is_empty() {
            return Err(ImageError::NoRule { image: image.to_owned() });
        }
        let fitting: Vec<&ImageRule> = want.rules.iter().filter(|rule| rule.allows_digest(digest)).copied().collect();
        if fitting.is_empty() {
            let rule = names(want.rules.iter().copied());
            return Err(ImageError::DigestNotListed { image: image.to_owned(), digest: *digest, rule });
        }
        let (unsigned, signed) = fitting.into_iter().partition(|rule| rule.unsigned);
        Ok(Self { signed, unsigned })
    }

    /// The decision if no signature is required.
    pub fn without_signatures(&self) -> Option<Decision> {
        let rule = self.unsigned.first().filter(|_| self.signed.is_empty())?;
        Some(known(&rule.name, ImageVerdict::Unsigned))
    }

    /// Decides from cached verdicts under this policy and from cached signatures, without asking a registry. None if
    /// they do not suffice. Rules are taken in the same order as in [`CandidateRules::decide`], so that the result does
    /// not depend on what happens to be cached.
    pub fn recall(
        &self,
        want: &Want<'_>,
        image: &str,
        digest: &Digest,
        known_of: impl Fn(&str) -> KnownVerdict,
        kept: impl FnOnce() -> Result<Vec<Signature>, ImageError>,
    ) -> Result<Option<Decision>, ImageError> {
        if let Some(decision) = self.without_signatures() {
            return Ok(Some(decision));
        }
        let mut rejected = Vec::new();
        for rule in &self.signed {
            match known_of(&rule.name) {
                Some(Some(verdict)) => return Ok(Some(known(&rule.name, verdict))),
                Some(None) => rejected.push(rule.name.clone()),
                None => {
                    // The cached signatures may satisfy it. If they do not, there may be new ones by now.
                    let signers = signers_of(rule, want, image)?;
                    for signature in kept()? {
                        if let SignatureResult::Good(by) = signature.decide(digest, &signers) {
                            return Ok(Some(verified(rule, by, &signature, rejected)));
                        }
                    }
                    return Ok(None);
                }
            }
        }
        let unsigned = self.unsigned.iter().find(|rule| known_of(&rule.name) == Some(Some(ImageVerdict::Unsigned)));
        Ok(unsigned.map(|rule| known(&rule.name, ImageVerdict::Unsigned)))
    }

    /// Decides by the signatures that were found.
    pub fn decide(
        &self,
        want: &Want<'_>,
        image: &str,
        digest: &Digest,
        found: FoundSignatures,
    ) -> Result<Decision, ImageError> {
        let mut reason = None;
        let mut bad = 0;
        let mut rejected = Vec::new();
        for (nth, rule) in self.signed.iter().enumerate() {
            let signers = signers_of(rule, want, image)?;
            for signature in &found.signatures {
                match signature.decide(digest, &signers) {
                    SignatureResult::Good(by) => {
                        // There are more signatures than could be read, and one of them may satisfy an earlier rule.
                        let rejected = if found.problem.is_none() { rejected } else { Vec::new() };
                        return Ok(verified(rule, by, signature, rejected));
                    }
                    SignatureResult::Bad(flaw) => {
                        bad += usize::from(nth == 0);
                        reason.get_or_insert(flaw.why);
                    }
                    SignatureResult::Attestation => {}
                }
            }
            rejected.push(rule.name.clone());
        }
        if let Some(problem) = found.problem {
            return Err(problem);
        }
        match (reason, self.unsigned.first()) {
            (None, Some(rule)) => Ok(Decision { rejected, new: true, ..known(&rule.name, ImageVerdict::Unsigned) }),
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

/// Refuses what no image could satisfy, before anything is opened or requested.
pub(crate) fn refuse_early(want: &Want<'_>, image: &str) -> Result<(), ImageError> {
    if want.rules.is_empty() {
        return Err(ImageError::NoRule { image: image.to_owned() });
    }
    if want.rules.iter().all(|rule| !rule.unsigned && rule.signed_by.is_empty()) {
        return Err(ImageError::NoKeys { image: image.to_owned() });
    }
    Ok(())
}

fn known(rule: &str, verdict: ImageVerdict) -> Decision {
    Decision { rule: rule.to_owned(), verdict, evidence: None, rejected: Vec::new(), new: false }
}

fn verified(rule: &ImageRule, by: String, signature: &Signature, rejected: Vec<String>) -> Decision {
    let verdict = ImageVerdict::Verified { by, layout: signature.layout().to_owned() };
    Decision { rule: rule.name.clone(), verdict, evidence: Some(signature.clone()), rejected, new: true }
}

fn names<'a>(rules: impl Iterator<Item = &'a ImageRule>) -> String {
    rules.map(|rule| rule.name.as_str()).collect::<Vec<_>>().join(" or ")
}
