//! Describes a signature and the checks of its kind, to explain why it counts or does not. Not used when a container
//! starts.

use serde::Serialize;
use sigstore_crypto::{CertificateInfo, parse_certificate_info};
use sigstore_types::bundle::TransparencyLogEntry;
use sigstore_types::{Bundle, DerCertificate, MediaType};

use crate::image::hash;
use crate::image::verify::check::{Check, CheckFailure, CheckOutcome, Checked, short};
use crate::image::verify::signature::{Body, Signature, SignatureResult};
use crate::image::verify::{bundle, keyless};
use crate::model::ids::Digest;

/// The limit on log entries that are shown.
const MAX_TOLD: usize = 16;

/// What kind of signature something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureKind {
    /// By a key that a rule must name.
    Key,
    /// By a certificate that names the signer.
    Keyless,
    /// Not a signature: a statement about the image.
    Attestation,
    /// It cannot be read.
    Unreadable,
}

impl SignatureKind {
    /// The text for display.
    pub fn words(self) -> &'static str {
        match self {
            Self::Key => "by a key",
            Self::Keyless => "keyless, by a certificate",
            Self::Attestation => "attestation: a statement about the image, not a signature of it",
            Self::Unreadable => "not readable",
        }
    }
}

/// The claims of a certificate. The checks establish whether they are true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateClaims {
    /// The signer.
    pub identity: Option<String>,
    /// The issuer that vouches for the signer.
    pub issuer: Option<String>,
    /// Start of its validity.
    pub not_before: String,
    /// End of its validity.
    pub not_after: String,
}

/// A log entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoggedEntry {
    /// Its kind and version.
    pub kind: String,
    /// Its number in the log.
    pub index: i64,
    /// When the log says that it was added; Rekor v2 does not record it.
    pub time: Option<String>,
}

/// A signature, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SignatureDescription {
    /// The tool's name for the format.
    pub format: String,
    /// Its kind.
    pub kind: SignatureKind,
    /// The digest of its blob.
    pub blob: Option<Digest>,
    /// The claims of its certificate.
    pub claimed: Option<CertificateClaims>,
    /// The predicate of an attestation.
    pub predicate: Option<String>,
    /// Its log entries.
    pub logged: Vec<LoggedEntry>,
    /// How many RFC 3161 time stamps it has.
    pub timestamps: usize,
    /// Whether it has a log entry at all, readable or not.
    entry: bool,
    promise: bool,
    proof: bool,
    attached: bool,
}

impl SignatureDescription {
    /// Reads the description of a signature from its content.
    pub fn of(signature: &Signature) -> Self {
        match &signature.body {
            Body::Simple { payload, signature, keyless } => {
                let kind = if keyless.is_some() { SignatureKind::Keyless } else { SignatureKind::Key };
                let blank = Self::blank("cosign 2 attachment", kind, Some(payload));
                let Some(attached) = keyless else { return Self { attached: true, ..blank } };
                let certificate = DerCertificate::from_pem(&attached.certificate).ok();
                let claimed = certificate.and_then(|certificate| claimed(&certificate));
                let rebuilt = keyless::rebuilt(payload, signature, attached).ok();
                let evidence = rebuilt.map_or_else(|| Self::blank("", kind, None), |bundle| Self::carried(&bundle, kind));
                Self { format: blank.format, blob: blank.blob, claimed, attached: true, ..evidence }
            }
            Body::Bundle(json) => match bundle::parse(json) {
                Ok(bundle) => {
                    let predicate = bundle::predicate(json).map(|predicate| short(&predicate));
                    let kind = match () {
                        () if predicate.is_some() => SignatureKind::Attestation,
                        () if bundle::by_key(&bundle) => SignatureKind::Key,
                        () => SignatureKind::Keyless,
                    };
                    let claimed = bundle.signing_certificate().and_then(claimed);
                    let carried = Self::carried(&bundle, kind);
                    // For a bundle by a key, unreadable parts were left out.
                    let (entries, timestamps) = evidence(json);
                    let entry = entries > 0;
                    Self { claimed, predicate, blob: Some(hash(json)), entry, timestamps, ..carried }
                }
                Err(_) => Self::blank("sigstore bundle", SignatureKind::Unreadable, Some(json)),
            },
            Body::Unreadable(_) => Self::blank("unknown", SignatureKind::Unreadable, None),
        }
    }

    fn blank(format: &str, kind: SignatureKind, blob: Option<&Vec<u8>>) -> Self {
        Self {
            format: format.to_owned(),
            kind,
            blob: blob.map(|blob| hash(blob)),
            claimed: None,
            predicate: None,
            logged: Vec::new(),
            timestamps: 0,
            entry: false,
            promise: false,
            proof: false,
            attached: false,
        }
    }

    fn carried(bundle: &Bundle, kind: SignatureKind) -> Self {
        let material = &bundle.verification_material;
        let version = match bundle.media_type() {
            MediaType::Bundle0_1 => "0.1",
            MediaType::Bundle0_2 => "0.2",
            MediaType::Bundle0_3 => "0.3",
            _ => "unknown",
        };
        Self {
            logged: material.tlog_entries.iter().take(MAX_TOLD).map(logged).collect(),
            timestamps: material.timestamp_verification_data.rfc3161_timestamps.len(),
            promise: material.tlog_entries.iter().any(|entry| entry.inclusion_promise.is_some()),
            proof: material.tlog_entries.iter().any(|entry| entry.inclusion_proof.is_some()),
            ..Self::blank(&format!("sigstore bundle v{version}"), kind, None)
        }
    }

    /// The result of each check under one rule; an attestation is not checked.
    pub fn checks(&self, result: &SignatureResult) -> Vec<Checked> {
        use Check::{
            Certificate, Checkpoint, Digest, Entry, Format, Identity, Promise, Proof, Sct, Statement, Timestamp, Validity,
        };
        let flaw = match result {
            SignatureResult::Good(_) => None,
            SignatureResult::Bad(flaw) => Some(flaw),
            SignatureResult::Attestation => return Vec::new(),
        };
        let passed = |check| (check, CheckOutcome::Passed);
        let carried = |is: bool, outcome| if is { outcome } else { CheckOutcome::Absent };
        let order = match (self.kind, self.attached) {
            (SignatureKind::Attestation, _) => return Vec::new(),
            (SignatureKind::Unreadable, _) => vec![passed(Format)],
            (SignatureKind::Key, attached) => {
                let ignored = |is| carried(is, CheckOutcome::Ignored);
                let mut order = vec![passed(Format)];
                match attached {
                    true => order.extend([passed(Check::Signature), passed(Statement), passed(Digest)]),
                    false => order.extend([passed(Statement), passed(Check::Signature), passed(Digest)]),
                }
                order.extend([(Timestamp, ignored(self.timestamps > 0)), (Entry, ignored(self.entry))]);
                order
            }
            (SignatureKind::Keyless, attached) => {
                let needed = |is| carried(is, CheckOutcome::Passed);
                let mut order = vec![passed(Format)];
                let said = [passed(Statement), passed(Digest)];
                if !attached {
                    order.extend(said);
                }
                order.extend([
                    (Timestamp, needed(self.timestamps > 0)),
                    (Promise, needed(self.promise)),
                    passed(Certificate),
                    passed(Validity),
                    passed(Sct),
                    (Proof, needed(self.proof)),
                    (Checkpoint, needed(self.proof)),
                    passed(Check::Signature),
                    passed(Entry),
                    passed(Identity),
                ]);
                if attached {
                    order.extend(said);
                }
                order
            }
        };
        CheckFailure::among(flaw, &order)
    }
}

fn claimed(certificate: &DerCertificate) -> Option<CertificateClaims> {
    let CertificateInfo { identity, issuer, not_before, not_after, .. } = parse_certificate_info(certificate).ok()?;
    Some(CertificateClaims {
        identity: identity.map(|identity| short(identity.as_str())),
        issuer: issuer.map(|issuer| short(&issuer)),
        not_before: not_before.to_string(),
        not_after: not_after.to_string(),
    })
}

/// How many log entries and time stamps there are, whatever they contain.
fn evidence(json: &[u8]) -> (usize, usize) {
    let bundle: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
    let material = &bundle["verificationMaterial"];
    let many = |list: &serde_json::Value| list.as_array().map_or(0, Vec::len);
    (many(&material["tlogEntries"]), many(&material["timestampVerificationData"]["rfc3161Timestamps"]))
}

fn logged(entry: &TransparencyLogEntry) -> LoggedEntry {
    LoggedEntry {
        kind: format!("{} {}", entry.kind_version.kind(), entry.kind_version.version()),
        index: entry.log_index.as_i64(),
        time: entry.integrated_time.map(|time| time.to_string()),
    }
}
