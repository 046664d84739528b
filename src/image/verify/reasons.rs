//! What the verifier of keyless signatures says, in sentences for those who have to do something about it.
//!
//! Its errors name the category by a variant; what stands inside is meant for its authors, and here and there it is the debug text
//! of a library below. Where only that text tells two causes apart, words are looked for in it: the crate's version is pinned, and
//! each sentence has a forgery that must lead to it.

use sigstore_verify::error::{CertificateError, Error, TimestampError, TransparencyLogError};

use crate::image::verify::check::{Check, CheckFailure};

/// The first check that needs the trusted root: of a bundle that is not whole nothing further is known.
const FIRST: Check = Check::Timestamp;

/// Why a bundle does not hold; the sentences are about "it", the signature, and "the root", the trusted root.
pub(super) fn flaw(err: &Error) -> CheckFailure {
    match err {
        Error::Certificate(err) => certificate(err),
        Error::TransparencyLog(err) => log(err),
        Error::Timestamp(err) => timestamp(err),
        Error::Bundle(err) => bundle(err),
        Error::SignatureInvalid(_) => CheckFailure::new(
            Check::Signature,
            "the signature is not by the key of its certificate, or over other bytes; whoever made it must sign again",
        ),
        // Which image it is of was looked at before: this is the log's word for what was signed.
        Error::ArtifactMismatch(_) => {
            CheckFailure::new(Check::Entry, "its log entry is of other contents than those that were signed")
        }
        Error::InvalidTrustRoot(why) if why.contains("CT log") => CheckFailure::new(
            Check::Sct,
            "the root names no certificate log, so that nobody can tell whether its certificate was logged; \
             install the current trusted root of the instance that signed",
        ),
        Error::UnsupportedBundle(why) if why.contains("Rekor entry") => CheckFailure::new(
            Check::Entry,
            "its log entry is of a kind that does not go with this signature; signatures of cosign 2 are logged as hashedrekord, \
             those of cosign 3 as dsse 0.0.1, intoto 0.0.2 or hashedrekord 0.0.2",
        ),
        Error::UnsupportedBundle(why) if why.contains("digest algorithm") => {
            CheckFailure::new(Check::Entry, "its log entry is not by SHA-256, and no other digest is supported")
        }
        Error::UnsupportedBundle(_) | Error::UnsupportedArtifact(_) => {
            CheckFailure::new(Check::Format, "it is of a kind that is not supported").before(FIRST)
        }
        Error::Crypto(_) => CheckFailure::new(
            Check::Certificate,
            "the key of its certificate is of a kind that is not supported; sign with ECDSA P-256, the default of cosign",
        )
        .before(FIRST),
        _ => CheckFailure::new(Check::Format, "it contradicts itself and cannot be judged").before(FIRST),
    }
}

fn certificate(err: &CertificateError) -> CheckFailure {
    match err {
        CertificateError::Malformed(_) => CheckFailure::new(Check::Certificate, "its certificate cannot be read").before(FIRST),
        CertificateError::ChainInvalid(why) if why.contains("CertNotValidYet") => not_yet(),
        CertificateError::NotYetValid { .. } => not_yet(),
        CertificateError::ChainInvalid(why) if why.contains("CertExpired") => expired(),
        CertificateError::Expired { .. } => expired(),
        CertificateError::ChainInvalid(why) if why.contains("UnknownIssuer") => CheckFailure::new(
            Check::Certificate,
            "its certificate is by no authority of the root; if the instance that signed is to be believed, install its current \
             trusted root",
        ),
        CertificateError::ChainInvalid(why) if why.contains("InvalidSignature") => CheckFailure::new(
            Check::Certificate,
            "its certificate names an authority of the root that did not sign it: it is forged, or of another instance with the \
             same names",
        ),
        CertificateError::ChainInvalid(why) if why.contains("ExtendedKeyUsage") || why.contains("RequiredEku") => {
            CheckFailure::new(Check::Certificate, "its certificate is not for signing code")
        }
        CertificateError::NoValidAuthority { time } => CheckFailure::new(
            Check::Certificate,
            format!("it was signed at {time}, and no authority of the root was valid then; install the current trusted root"),
        ),
        CertificateError::Sct(why) if why.contains("missing SCT") || why.contains("no SCTs") => CheckFailure::new(
            Check::Sct,
            "its certificate has no time stamp of a certificate log (SCT), so that nobody could have noticed it being issued",
        ),
        CertificateError::Sct(why) if why.contains("multiple SCTs") => CheckFailure::new(
            Check::Sct,
            "its certificate has the time stamps of several certificate logs, and one is supported",
        ),
        CertificateError::Sct(why) if why.contains("signature verification failed") => CheckFailure::new(
            Check::Sct,
            "the time stamp in its certificate (SCT) is by no certificate log of the root; if the instance has a new log, install its \
             current trusted root",
        ),
        CertificateError::Sct(_) => CheckFailure::new(Check::Sct, "the time stamp in its certificate (SCT) cannot be read"),
        _ => CheckFailure::new(Check::Certificate, "its certificate does not lead to an authority of the root"),
    }
}

fn not_yet() -> CheckFailure {
    CheckFailure::new(Check::Validity, "it was logged or stamped before its certificate was valid").before(Check::Certificate)
}

fn expired() -> CheckFailure {
    CheckFailure::new(Check::Validity, "it was logged or stamped after its certificate had expired; sign again")
        .before(Check::Certificate)
}

fn log(err: &TransparencyLogError) -> CheckFailure {
    const UNKNOWN: &str = "its entry is in a log that the root does not name; if the instance that signed has a new log, install its \
                           current trusted root";
    match err {
        TransparencyLogError::UnknownLog { .. } => CheckFailure::new(Check::Promise, UNKNOWN),
        TransparencyLogError::InclusionProof(_) => {
            CheckFailure::new(Check::Proof, "the proof that its entry is in the log (inclusion proof) does not hold")
        }
        TransparencyLogError::Checkpoint(why) if why.contains("No matching") => CheckFailure::new(
            Check::Checkpoint,
            "the state of the log that its proof leads to (checkpoint) is signed by no log of the root; if the instance that signed \
             has a new log, install its current trusted root",
        ),
        TransparencyLogError::Checkpoint(why) if why.contains("No valid") => CheckFailure::new(
            Check::Checkpoint,
            "the state of the log that its proof leads to (checkpoint) is not signed by the log that it names",
        ),
        TransparencyLogError::Checkpoint(_) => {
            CheckFailure::new(Check::Checkpoint, "the state of the log that its proof leads to (checkpoint) cannot be read")
        }
        TransparencyLogError::InclusionPromise(why) if why.contains("No log key") => CheckFailure::new(Check::Promise, UNKNOWN),
        TransparencyLogError::InclusionPromise(_) => CheckFailure::new(
            Check::Promise,
            "the log's promise to enter it (signed entry timestamp) is not signed by the log, or is of another entry",
        ),
        TransparencyLogError::EntryMismatch(_) => {
            CheckFailure::new(Check::Entry, "its log entry is of another signature, another certificate or other contents")
        }
        TransparencyLogError::IntegratedTime(why) if why.contains("future") => {
            CheckFailure::new(Check::Promise, "its log entry is from the future; is the clock of this machine right?")
        }
        TransparencyLogError::IntegratedTime(_) => {
            CheckFailure::new(Check::Validity, "it was logged while its certificate was not valid").before(Check::Certificate)
        }
        _ => CheckFailure::new(Check::Entry, "its log entry cannot be read"),
    }
}

fn timestamp(err: &TimestampError) -> CheckFailure {
    match err {
        TimestampError::Invalid(why) if why.contains("no timestamp authorities") => CheckFailure::new(
            Check::Timestamp,
            "it carries a time stamp (RFC 3161), and the root names no time stamp authority; install the current trusted root of the \
             instance that signed",
        ),
        TimestampError::Invalid(why) if why.contains("mismatch") => {
            CheckFailure::new(Check::Timestamp, "its time stamp (RFC 3161) is of another signature")
        }
        TimestampError::OutsideAuthorityValidity { time } => CheckFailure::new(
            Check::Timestamp,
            format!("its time stamp (RFC 3161) says {time}, when the authority that made it was not valid"),
        ),
        TimestampError::NoVerifiedTimestamp(why) if why.contains("V2") => CheckFailure::new(
            Check::Timestamp,
            "nothing says when it was signed: its log is Rekor v2, which gives no times, and it carries no time stamp (RFC 3161); \
             sign with a time stamp authority",
        ),
        TimestampError::NoVerifiedTimestamp(_) => CheckFailure::new(
            Check::Promise,
            "nothing says when it was signed: it carries neither a log's promise (signed entry timestamp) nor a time stamp (RFC 3161)",
        ),
        _ => CheckFailure::new(
            Check::Timestamp,
            "its time stamp (RFC 3161) is by no authority of the root; if the instance that signed has a new one, install its current \
             trusted root",
        ),
    }
}

/// What is missing altogether.
fn bundle(err: &sigstore_verify::bundle::Error) -> CheckFailure {
    use sigstore_verify::bundle::Error;
    let flaw = match err {
        Error::MissingInclusionPromise(_) => CheckFailure::new(
            Check::Promise,
            "nothing says when it was signed: it carries no log's promise (signed entry timestamp), and bundles of this version need one",
        ),
        Error::MissingInclusionProof(_) | Error::MissingSigningTimeEvidence => CheckFailure::new(
            Check::Proof,
            "it is in no log: it carries no entry with an inclusion proof, and a keyless signature counts only where it was logged",
        ),
        Error::MissingCheckpoint => CheckFailure::new(
            Check::Checkpoint,
            "its inclusion proof comes without the state of the log that it leads to (checkpoint)",
        ),
        Error::LogIndexOutOfRange { .. } => {
            CheckFailure::new(Check::Proof, "its inclusion proof is of an entry beyond the end of the log")
        }
        Error::CheckpointRootMismatch => CheckFailure::new(
            Check::Checkpoint,
            "its inclusion proof leads to another state of the log than the one that the log signed (checkpoint)",
        ),
        Error::CertificateChainNotAllowed(_) => {
            CheckFailure::new(Check::Format, "it is a bundle v0.3 with a chain of certificates, where one certificate belongs")
        }
        _ => CheckFailure::new(Check::Format, "it is a bundle of a version that is not supported; those of v0.1 to v0.3 are"),
    };
    flaw.before(FIRST)
}

/// Why a bundle cannot be read.
pub(super) fn unreadable(err: &sigstore_types::Error) -> CheckFailure {
    let text = match err {
        sigstore_types::Error::Json(err) => err.to_string(),
        err => err.to_string(),
    };
    if let Some(kind) = text.split("unsupported Rekor entry format: ").nth(1) {
        let kind = kind.split(" at line").next().unwrap_or_default();
        let kind: String = kind.chars().filter(|c| !c.is_control()).take(60).collect();
        return CheckFailure::new(
            Check::Format,
            format!(
                "its log entry is of the kind {kind}, which is not supported; hashedrekord 0.0.1 and 0.0.2, dsse 0.0.1 and intoto 0.0.2 are"
            ),
        );
    }
    if text.contains("checkpoint") {
        return CheckFailure::new(Check::Format, "the state of the log that its proof leads to (checkpoint) cannot be read");
    }
    CheckFailure::new(Check::Format, format!("it is no sigstore bundle: {}", crate::image::verify::check::short(&text)))
}

/// What is wrong with a trusted root that is JSON.
pub(super) fn root(err: &Error) -> String {
    match err {
        Error::InvalidTrustRoot(why) if why.contains("empty certificate chain") => {
            "one of its authorities has no certificate".to_owned()
        }
        Error::InvalidTrustRoot(why) if why.contains("duplicate") => "it names the same log twice".to_owned(),
        Error::InvalidTrustRoot(_) => "one of its validity periods ends before it starts".to_owned(),
        Error::TrustedCertificate(_) => "the certificate of one of its authorities cannot be read".to_owned(),
        _ => "the key of one of its logs cannot be read or is of a kind that is not supported".to_owned(),
    }
}
