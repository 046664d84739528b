//! Examines each signature of an image and reports why it counts or does not. Nothing is stored, and nothing below the
//! top-level document is fetched.

use serde::Serialize;

use crate::image::decide::{CandidateRules, refuse_early};
use crate::image::error::ImageError;
use crate::image::found::{FoundSignatures, checked};
use crate::image::host::{HostBlob, LayoutFiles};
use crate::image::oci::layout::Layout;
use crate::image::source::BlobSource;
use crate::image::verify::signers::signers_of;
use crate::image::verify::{
    CertificateClaims, Checked, LoggedEntry, Signature, SignatureDescription, SignatureKind, SignaturePlace, SignatureResult,
    Signers,
};
use crate::image::{LinuxImages, MAX_MANIFEST, Want, hash};
use crate::model::bytecode::ImageVerdict;
use crate::model::ids::Digest;
use crate::model::reference::{Reference, RegistryReference};
use crate::sys::error::chain;
use crate::sys::fsutil::TrustedRoot;

/// How the signatures of an image relate to some rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Examination {
    /// The normalized reference.
    pub reference: String,
    /// The digest that it currently resolves to.
    pub digest: Digest,
    /// Every signature that was found, in the order in which rules examine them.
    pub signatures: Vec<Examined>,
    /// Why there may be more than these.
    #[serde(rename = "trouble")]
    pub problem: Option<String>,
    /// The rule that is satisfied, if any.
    pub rule: Option<String>,
    /// The verdict of that rule.
    pub verdict: Option<ImageVerdict>,
    /// Why no rule is satisfied, as at a container's start.
    pub refused: Option<String>,
}

/// One signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Examined {
    /// Where it was found.
    pub place: SignaturePlace,
    /// Its layout, named as in verdicts.
    pub layout: &'static str,
    /// The format's own name.
    pub format: String,
    /// Its kind.
    pub kind: SignatureKind,
    /// The digest of its blob.
    pub blob: Option<Digest>,
    /// The claims of a keyless signature's certificate.
    pub certificate: Option<CertificateClaims>,
    /// The predicate of an attestation.
    pub predicate: Option<String>,
    /// Its entries in logs.
    pub log: Vec<LoggedEntry>,
    /// How many time stamps it has.
    pub timestamps: usize,
    /// The result for each rule that requires signatures.
    pub rules: Vec<RuleResult>,
}

/// The result of one signature under one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleResult {
    /// The rule.
    pub rule: String,
    /// The signer, if the rule names it.
    pub by: Option<String>,
    /// The signer's key, if it is one: the digest of its SubjectPublicKeyInfo.
    pub fingerprint: Option<Digest>,
    /// Why it does not count.
    pub reason: Option<String>,
    /// The checks, in this order.
    pub checks: Vec<Checked>,
}

impl LinuxImages {
    /// Searches for signatures as at a container's start, registries included, and reports the result of each.
    pub fn examine(&self, want: &Want<'_>) -> Result<Examination, ImageError> {
        let image = want.reference.to_string();
        refuse_early(want, &image)?;
        let (digest, found) = match want.reference {
            Reference::File { path } => {
                let bytes = match crate::image::host::read(&self.root(&image)?, path, crate::image::MAX_OBJECT, &image)? {
                    HostBlob::Bytes(bytes) => bytes,
                    HostBlob::Missing | HostBlob::TooLarge => return Err(ImageError::NotFound { image }),
                };
                (hash(&bytes), FoundSignatures::default())
            }
            Reference::Layout { path, tag } => {
                let root = TrustedRoot::at(path).map_err(|source| ImageError::HostPath { image: image.clone(), source })?;
                let layout = Layout::open(LayoutFiles::directory(root, path), &image)?;
                let digest = layout.resolve(tag.as_deref())?;
                (digest, layout.signatures(&digest))
            }
            Reference::Archive { path, tag } => {
                let layout = crate::image::Archive::read(path)?.layout(&image)?;
                let digest = layout.resolve(tag.as_deref())?;
                (digest, layout.signatures(&digest))
            }
            Reference::Registry(at) => self.ask(want, &image, at)?,
        };
        decided_on(want, image, digest, found)
    }

    fn ask(&self, want: &Want<'_>, image: &str, at: &RegistryReference) -> Result<(Digest, FoundSignatures), ImageError> {
        let mut remote = self.remote(image, at, want.registries, want.deadline)?;
        let digest = match (&at.digest, &at.tag) {
            (Some(digest), _) => {
                checked(image, "manifest", digest, MAX_MANIFEST, remote.manifest(&digest.to_string())?)?;
                *digest
            }
            (None, tag) => match remote.manifest(tag.as_deref().unwrap_or("latest"))? {
                HostBlob::Bytes(bytes) => hash(&bytes),
                HostBlob::Missing => return Err(ImageError::NotFound { image: image.to_owned() }),
                HostBlob::TooLarge => {
                    return Err(ImageError::TooLarge { image: image.to_owned(), part: "manifest", limit: MAX_MANIFEST });
                }
            },
        };
        let found = BlobSource::Remote(remote, self.cache().clone()).signatures(&digest);
        Ok((digest, found))
    }
}

fn decided_on(want: &Want<'_>, image: String, digest: Digest, found: FoundSignatures) -> Result<Examination, ImageError> {
    let mut examination = Examination {
        digest,
        signatures: Vec::new(),
        problem: found.problem.as_ref().map(|err| chain(err)),
        rule: None,
        verdict: None,
        refused: None,
        reference: image,
    };
    let image = examination.reference.clone();
    let decided = CandidateRules::new(want, &image, &digest).and_then(|candidates| {
        examination.signatures = candidates.results(want, &image, &digest, &found)?;
        match candidates.without_signatures() {
            Some(decision) => Ok(decision),
            None => candidates.decide(want, &image, &digest, found),
        }
    });
    match decided {
        Ok(decision) => (examination.rule, examination.verdict) = (Some(decision.rule), Some(decision.verdict)),
        Err(err) => examination.refused = Some(chain(&err)),
    }
    Ok(examination)
}

impl CandidateRules<'_> {
    /// The result of each signature for each rule that requires signatures.
    fn results(
        &self,
        want: &Want<'_>,
        image: &str,
        digest: &Digest,
        found: &FoundSignatures,
    ) -> Result<Vec<Examined>, ImageError> {
        let mut signers = Vec::new();
        for rule in &self.signed {
            signers.push((rule.name.as_str(), signers_of(rule, want, image)?));
        }
        let result = |account: &SignatureDescription, signature: &Signature, (rule, signers): &(&str, Signers)| {
            let result = signature.decide(digest, signers);
            let checks = account.checks(&result);
            let fingerprint = signature.fingerprint(digest, signers);
            let (by, reason) = match result {
                SignatureResult::Good(by) => (Some(by), None),
                SignatureResult::Bad(flaw) => (None, Some(flaw.why)),
                SignatureResult::Attestation => {
                    (None, Some("it is an attestation about the image, not a signature of it".to_owned()))
                }
            };
            RuleResult { rule: (*rule).to_owned(), by, fingerprint, reason, checks }
        };
        let examined = found.signatures.iter().map(|signature| {
            let account = SignatureDescription::of(signature);
            let rules = signers.iter().map(|signers| result(&account, signature, signers)).collect();
            Examined {
                place: signature.place,
                layout: signature.layout(),
                format: account.format,
                kind: account.kind,
                blob: account.blob,
                certificate: account.claimed,
                predicate: account.predicate,
                log: account.logged,
                timestamps: account.timestamps,
                rules,
            }
        });
        Ok(examined.collect())
    }
}
