//! Keyless signatures: a certificate of a few minutes says who signed, a log's entry says when. All of it is checked against
//! a trusted root on disk: the chain at the logged time, the certificate's own log, the promise, the proof and the checkpoint
//! of the entry, or a time stamp by an authority. Nothing here speaks to a network.

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

/// What stands beside a keyless signature of cosign 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attached {
    /// PEM.
    pub certificate: String,
    /// PEM, for those who need it: what is believed comes from the trusted root.
    pub chain: Option<String>,
    /// The log's entry, JSON.
    pub entry: Option<String>,
}

/// A trusted root, and whom of those that it vouches for a rule names.
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

/// The most log entries, and the most time stamps, of one signature: each costs a signature check or more before anything is known
/// of who made it. Real ones have one or two.
const MAX_EVIDENCE: usize = 16;

impl Identities {
    /// Reads a trusted root; the error says what is wrong with it.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(json).map_err(|_| "it is not text".to_owned())?;
        let root = TrustedRoot::from_json(text).map_err(|err| format!("it is no trusted root: {}", short(&err.to_string())))?;
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

    /// Who signed, if it is one of those; else why not.
    fn signer<'a>(&self, artifact: impl Into<Artifact<'a>>, bundle: &Bundle) -> Result<String, CheckFailure> {
        let material = &bundle.verification_material;
        let evidence = material.tlog_entries.len().max(material.timestamp_verification_data.rfc3161_timestamps.len());
        if evidence > MAX_EVIDENCE {
            let why = format!(
                "it carries more log entries or time stamps than we look at: {evidence}, where {MAX_EVIDENCE} are enough"
            );
            return Err(CheckFailure::new(Check::Format, why).before(Check::Timestamp));
        }
        let result = self.verifier.verify(artifact, bundle, &VerificationPolicy::any_identity()).map_err(|err| {
            tracing::debug!(root = %self.path.display(), error = %err, "keyless signature does not hold");
            reasons::flaw(&err).map(|why| format!("it does not hold under {}: {why}", self.path.display()))
        })?;
        if !(result.certificate_verified() && result.sct_verified() && result.tlog_verified()) {
            return Err(CheckFailure::new(Check::Certificate, "its certificate or its log entry was not verified")
                .before(Check::Timestamp));
        }
        let (Some(identity), Some(issuer)) = (result.identity(), result.issuer()) else {
            let why = "its certificate names no issuer, or nobody by an e-mail address or a URI, which alone are supported";
            return Err(CheckFailure::new(Check::Identity, why));
        };
        let identity = identity.as_str();
        let by = format!("{} ({})", short(identity), short(issuer));
        match self.names.iter().any(|(name, at)| name.fits(identity) && at.fits(issuer)) {
            true => Ok(by),
            false => Err(CheckFailure::new(Check::Identity, format!("it is by {by}, whom the rule does not name"))),
        }
    }
}

/// A bundle whose statement is about `digest`.
pub(crate) fn bundle(bundle: &Bundle, digest: &Digest, identities: &[Identities]) -> Result<String, CheckFailure> {
    let digest = Sha256Hash::from_hex(&digest.hex()).expect("a digest is hexadecimal");
    first(identities, |identities| identities.signer(digest, bundle))
}

/// A payload of cosign 2 with what is attached to it.
pub(crate) fn simple(
    payload: &[u8],
    signature: &str,
    attached: &Attached,
    identities: &[Identities],
) -> Result<String, CheckFailure> {
    let bundle = rebuilt(payload, signature, attached)?;
    first(identities, |identities| identities.signer(payload, &bundle))
}

/// The first root under which it is good; else what the root says that knows the signer, if one does.
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

/// What a rule says to a certificate if it names keys and no identities.
pub(super) const KEYS_ALONE: &str = "it is keyless, by a certificate, and the rule names keys alone";

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

/// The bundle that cosign 2 would have written, had it written bundles.
pub(super) fn rebuilt(payload: &[u8], signature: &str, attached: &Attached) -> Result<Bundle, CheckFailure> {
    let bad = |why: String| CheckFailure::new(Check::Format, why);
    let Some(entry) = attached.entry.as_deref() else {
        let why = "its certificate comes without an entry of a log, so that nothing says when it signed";
        return Err(CheckFailure::new(Check::Promise, why).before(Check::Timestamp));
    };
    let entry: LogEntry = serde_json::from_str(entry)
        .map_err(|err| bad(format!("its log entry is not as cosign writes it: {}", short(&err.to_string()))))?;
    let body = STANDARD.decode(&entry.payload.body).map_err(|_| bad("the body of its log entry is not base64".to_owned()))?;
    let body: Value = serde_json::from_slice(&body)
        .map_err(|err| bad(format!("the body of its log entry is no JSON: {}", short(&err.to_string()))))?;
    let log = hex::decode(&entry.payload.log_id).map_err(|_| bad("the id of its log is not hexadecimal".to_owned()))?;
    let certificate =
        DerCertificate::from_pem(&attached.certificate).map_err(|_| bad("its certificate is no PEM".to_owned()))?;
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
