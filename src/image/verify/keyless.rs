//! Keyless signatures: a short-lived certificate names the signer, a log entry the time. Everything is checked against
//! a trusted root on disk: the chain at the logged time, the certificate's own log, the promise, the proof and the
//! checkpoint of the entry, or a time stamp by an authority. No network is used.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sigstore_trust_root::TrustedRoot;
use sigstore_types::{Artifact, Bundle, DerCertificate, Sha256Hash};
use sigstore_verify::{VerificationPolicy, Verifier};

use crate::image::hash;
use crate::image::verify::check::{Check, CheckFailure, short};
use crate::image::verify::reasons;
use crate::model::ids::Digest;
use crate::model::policy::Matcher;

/// What cosign 2 attaches to a keyless signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attached {
    /// PEM.
    pub certificate: String,
    /// PEM, for other verifiers: here the trusted root is used instead.
    pub chain: Option<String>,
    /// The log's entry, JSON.
    pub entry: Option<String>,
}

/// A trusted root, and the identities under it that a rule names.
pub(crate) struct Identities {
    path: PathBuf,
    verifier: Verifier,
    names: Vec<(Matcher, Matcher)>,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities").field("path", &self.path).field("names", &self.names).finish_non_exhaustive()
    }
}

/// The limit on log entries and on time stamps of one signature: each costs at least one signature check before its
/// signer is known. Real ones have one or two.
const MAX_EVIDENCE: usize = 16;

impl Identities {
    /// Reads a trusted root; the error says what is wrong with it.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(json).map_err(|_| "it is not text".to_owned())?;
        let root =
            TrustedRoot::from_json(text).map_err(|err| format!("it is not a trusted root: {}", short(&err.to_string())))?;
        let verifier = Verifier::new(&root).map_err(|err| reasons::root(&err))?;
        Ok(Self { path: path.to_owned(), verifier, names: Vec::new() })
    }

    /// The trusted root's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds an identity with its issuer.
    pub fn add(&mut self, identity: Matcher, issuer: Matcher) {
        self.names.push((identity, issuer));
    }

    /// The signer if the rule names it; otherwise why not.
    fn signer<'a>(&self, artifact: impl Into<Artifact<'a>>, bundle: &Bundle) -> Result<String, CheckFailure> {
        let material = &bundle.verification_material;
        let evidence = material.tlog_entries.len().max(material.timestamp_verification_data.rfc3161_timestamps.len());
        if evidence > MAX_EVIDENCE {
            let why = format!("it has too many log entries or time stamps: {evidence}, more than the limit of {MAX_EVIDENCE}");
            return Err(CheckFailure::new(Check::Format, why).before(Check::Timestamp));
        }
        let result = self.verifier.verify(artifact, bundle, &VerificationPolicy::any_identity()).map_err(|err| {
            tracing::debug!(root = %self.path.display(), error = %err, "keyless signature is not valid");
            reasons::flaw(&err).map(|why| format!("it is not valid under {}: {why}", self.path.display()))
        })?;
        if !(result.certificate_verified() && result.sct_verified() && result.tlog_verified()) {
            return Err(CheckFailure::new(Check::Certificate, "its certificate or its log entry was not verified")
                .before(Check::Timestamp));
        }
        let (Some(identity), Some(issuer)) = (result.identity(), result.issuer()) else {
            let why = "its certificate names no issuer, or no e-mail address or URI (no other identity is supported)";
            return Err(CheckFailure::new(Check::Identity, why));
        };
        let identity = identity.as_str();
        let by = format!("{} ({})", short(identity), short(issuer));
        match self.names.iter().any(|(name, at)| name.fits(identity) && at.fits(issuer)) {
            true => Ok(by),
            false => Err(CheckFailure::new(Check::Identity, format!("it is signed by {by}, which the rule does not name"))),
        }
    }
}

/// A bundle whose statement is about `digest`.
pub(crate) fn bundle(bundle: &Bundle, digest: &Digest, identities: &[Identities]) -> Result<String, CheckFailure> {
    let digest = Sha256Hash::from_hex(&digest.hex()).expect("a digest is hexadecimal");
    first(identities, |identities| identities.signer(digest, bundle))
}

/// A payload of cosign 2 with its attachments.
pub(crate) fn simple(
    payload: &[u8],
    signature: &str,
    attached: &Attached,
    identities: &[Identities],
) -> Result<String, CheckFailure> {
    let bundle = rebuilt(payload, signature, attached)?;
    first(identities, |identities| identities.signer(payload, &bundle))
}

/// The first root under which it is valid; otherwise the result of the root that knows the signer, if there is one.
fn first(
    identities: &[Identities],
    check: impl Fn(&Identities) -> Result<String, CheckFailure>,
) -> Result<String, CheckFailure> {
    let mut flaw: Option<CheckFailure> = None;
    for identities in identities {
        match check(identities) {
            Ok(by) => return Ok(by),
            Err(found) if flaw.is_none() || found.check == Check::Identity => flaw = Some(found),
            Err(_) => {}
        }
    }
    Err(flaw.unwrap_or_else(|| CheckFailure::new(Check::Identity, KEYS_ALONE).before(Check::Timestamp)))
}

/// The result for a certificate under a rule that names keys and no identities.
pub(super) const KEYS_ALONE: &str = "it is keyless (signed with a certificate), but the rule names only keys";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LogEntry {
    signed_entry_timestamp: String,
    payload: VerifiedLog,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VerifiedLog {
    body: String,
    integrated_time: i64,
    log_index: i64,
    #[serde(rename = "logID")]
    log_id: String,
}

/// The equivalent bundle of a keyless signature of cosign 2, which did not write bundles.
pub(super) fn rebuilt(payload: &[u8], signature: &str, attached: &Attached) -> Result<Bundle, CheckFailure> {
    let bad = |why: String| CheckFailure::new(Check::Format, why);
    let Some(entry) = attached.entry.as_deref() else {
        let why = "its certificate comes without a log entry, so the time of signing is unknown";
        return Err(CheckFailure::new(Check::Promise, why).before(Check::Timestamp));
    };
    let entry: LogEntry = serde_json::from_str(entry)
        .map_err(|err| bad(format!("its log entry is not in cosign's format: {}", short(&err.to_string()))))?;
    let body = STANDARD.decode(&entry.payload.body).map_err(|_| bad("the body of its log entry is not base64".to_owned()))?;
    let body: Value = serde_json::from_slice(&body)
        .map_err(|err| bad(format!("the body of its log entry is not JSON: {}", short(&err.to_string()))))?;
    let log = hex::decode(&entry.payload.log_id).map_err(|_| bad("the id of its log is not hexadecimal".to_owned()))?;
    let certificate =
        DerCertificate::from_pem(&attached.certificate).map_err(|_| bad("its certificate is not PEM".to_owned()))?;
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1",
        "verificationMaterial": {
            "x509CertificateChain": { "certificates": [{ "rawBytes": STANDARD.encode(certificate.as_bytes()) }] },
            "tlogEntries": [{
                "logIndex": entry.payload.log_index.to_string(),
                "logId": { "keyId": STANDARD.encode(log) },
                "kindVersion": { "kind": body["kind"], "version": body["apiVersion"] },
                "integratedTime": entry.payload.integrated_time.to_string(),
                "inclusionPromise": { "signedEntryTimestamp": entry.signed_entry_timestamp },
                "canonicalizedBody": entry.payload.body,
            }],
        },
        "messageSignature": {
            "messageDigest": { "algorithm": "SHA2_256", "digest": STANDARD.encode(hex::decode(hash(payload).hex()).expect("a digest is hexadecimal")) },
            "signature": signature,
        },
    });
    Bundle::from_json(&bundle.to_string()).map_err(|err| reasons::unreadable(&err))
}
