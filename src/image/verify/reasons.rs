//! Turns errors of the keyless verifier into messages with a remedy.
//!
//! The verifier's errors name the category by a variant; their text is meant for its authors, and sometimes is the
//! debug text of a library. If only the text tells two causes apart, it is searched for keywords: the crate's version
//! is pinned, and each message has a forgery in the tests that must produce it.

use sigstore_verify::error::{CertificateError, Error, TimestampError, TransparencyLogError};

use crate::image::verify::check::{Check, CheckFailure};

/// The first check that needs the trusted root: for an incomplete bundle nothing further is known.
const FIRST: Check = Check::Timestamp;

/// Why a bundle is not valid; in the messages, "it" is the signature, and "the root" the trusted root.
pub(super) fn flaw(err: &Error) -> CheckFailure {
    match err {
        Error::Certificate(err) => certificate(err),
        Error::TransparencyLog(err) => log(err),
        Error::Timestamp(err) => timestamp(err),
        Error::Bundle(err) => bundle(err),
        Error::SignatureInvalid(_) => CheckFailure::new(
            Check::Signature,
            "the signature was not made by the key of its certificate, or is over other bytes; sign again",
        ),
        // The image was checked before: this is the log's digest of the signed content.
        Error::ArtifactMismatch(_) => CheckFailure::new(Check::Entry, "its log entry is for other content than was signed"),
        Error::InvalidTrustRoot(why) if why.contains("CT log") => CheckFailure::new(
            Check::Sct,
            "the root names no certificate log, so it is unknown whether its certificate was logged; \
             install the current trusted root of the instance that signed",
        ),
        Error::UnsupportedBundle(why) if why.contains("Rekor entry") => CheckFailure::new(
            Check::Entry,
            "the kind of its log entry does not match this signature; signatures of cosign 2 are logged as hashedrekord, \
             those of cosign 3 as dsse 0.0.1, intoto 0.0.2 or hashedrekord 0.0.2",
        ),
        Error::UnsupportedBundle(why) if why.contains("digest algorithm") => {
            CheckFailure::new(Check::Entry, "its log entry does not use SHA-256, and no other digest is supported")
        }
        Error::UnsupportedBundle(_) | Error::UnsupportedArtifact(_) => {
            CheckFailure::new(Check::Format, "its kind is not supported").before(FIRST)
        }
        Error::Crypto(_) => CheckFailure::new(
            Check::Certificate,
            "the key type of its certificate is not supported; sign with ECDSA P-256, the default of cosign",
        )
        .before(FIRST),
        _ => CheckFailure::new(Check::Format, "it is inconsistent and cannot be verified").before(FIRST),
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
            "its certificate is not from an authority of the root; if the instance that signed is trusted, install its current \
             trusted root",
        ),
        CertificateError::ChainInvalid(why) if why.contains("InvalidSignature") => CheckFailure::new(
            Check::Certificate,
            "its certificate names an authority of the root that did not sign it: it is forged, or from another instance with the \
             same names",
        ),
        CertificateError::ChainInvalid(why) if why.contains("ExtendedKeyUsage") || why.contains("RequiredEku") => {
            CheckFailure::new(Check::Certificate, "its certificate is not for code signing")
        }
        CertificateError::NoValidAuthority { time } => CheckFailure::new(
            Check::Certificate,
            format!("it was signed at {time}, but no authority of the root was valid then; install the current trusted root"),
        ),
        CertificateError::Sct(why) if why.contains("missing SCT") || why.contains("no SCTs") => CheckFailure::new(
            Check::Sct,
            "its certificate has no time stamp of a certificate log (SCT), so its issuance was not logged publicly",
        ),
        CertificateError::Sct(why) if why.contains("multiple SCTs") => CheckFailure::new(
            Check::Sct,
            "its certificate has the time stamps of several certificate logs (SCTs), but only one is supported",
        ),
        CertificateError::Sct(why) if why.contains("signature verification failed") => CheckFailure::new(
            Check::Sct,
            "the time stamp in its certificate (SCT) is not from a certificate log of the root; if the instance has a new log, install its \
             current trusted root",
        ),
        CertificateError::Sct(_) => CheckFailure::new(Check::Sct, "the time stamp in its certificate (SCT) cannot be read"),
        _ => CheckFailure::new(Check::Certificate, "its certificate does not chain to an authority of the root"),
    }
}

fn not_yet() -> CheckFailure {
    CheckFailure::new(Check::Validity, "it was logged or time-stamped before its certificate was valid")
        .before(Check::Certificate)
}

fn expired() -> CheckFailure {
    CheckFailure::new(Check::Validity, "it was logged or time-stamped after its certificate had expired; sign again")
        .before(Check::Certificate)
}

fn log(err: &TransparencyLogError) -> CheckFailure {
    const UNKNOWN: &str = "its entry is in a log that the root does not name; if the instance that signed has a new log, install its \
                           current trusted root";
    match err {
        TransparencyLogError::UnknownLog { .. } => CheckFailure::new(Check::Promise, UNKNOWN),
        TransparencyLogError::InclusionProof(_) => {
            CheckFailure::new(Check::Proof, "the proof that its entry is in the log (inclusion proof) is not valid")
        }
        TransparencyLogError::Checkpoint(why) if why.contains("No matching") => CheckFailure::new(
            Check::Checkpoint,
            "the log state of its proof (checkpoint) is not signed by a log of the root; if the instance that signed \
             has a new log, install its current trusted root",
        ),
        TransparencyLogError::Checkpoint(why) if why.contains("No valid") => CheckFailure::new(
            Check::Checkpoint,
            "the log state of its proof (checkpoint) is not signed by the log that it names",
        ),
        TransparencyLogError::Checkpoint(_) => {
            CheckFailure::new(Check::Checkpoint, "the log state of its proof (checkpoint) cannot be read")
        }
        TransparencyLogError::InclusionPromise(why) if why.contains("No log key") => CheckFailure::new(Check::Promise, UNKNOWN),
        TransparencyLogError::InclusionPromise(_) => CheckFailure::new(
            Check::Promise,
            "the log's promise to add it (signed entry timestamp) is not signed by the log, or is for another entry",
        ),
        TransparencyLogError::EntryMismatch(_) => {
            CheckFailure::new(Check::Entry, "its log entry is for another signature, certificate or content")
        }
        TransparencyLogError::IntegratedTime(why) if why.contains("future") => {
            CheckFailure::new(Check::Promise, "its log entry is from the future; check the clock of this machine")
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
            "it has a time stamp (RFC 3161), but the root names no time stamp authority; install the current trusted root of the \
             instance that signed",
        ),
        TimestampError::Invalid(why) if why.contains("mismatch") => {
            CheckFailure::new(Check::Timestamp, "its time stamp (RFC 3161) is for another signature")
        }
        TimestampError::OutsideAuthorityValidity { time } => CheckFailure::new(
            Check::Timestamp,
            format!("its time stamp (RFC 3161) says {time}, when its authority was not valid"),
        ),
        TimestampError::NoVerifiedTimestamp(why) if why.contains("V2") => CheckFailure::new(
            Check::Timestamp,
            "its time of signing is unknown: its log is Rekor v2, which records no times, and it has no time stamp (RFC 3161); \
             sign with a time stamp authority",
        ),
        TimestampError::NoVerifiedTimestamp(_) => CheckFailure::new(
            Check::Promise,
            "its time of signing is unknown: it has neither a log's promise (signed entry timestamp) nor a time stamp (RFC 3161)",
        ),
        _ => CheckFailure::new(
            Check::Timestamp,
            "its time stamp (RFC 3161) is not from an authority of the root; if the instance that signed has a new one, install its current \
             trusted root",
        ),
    }
}

/// What is missing entirely.
fn bundle(err: &sigstore_verify::bundle::Error) -> CheckFailure {
    use sigstore_verify::bundle::Error;
    let flaw = match err {
        Error::MissingInclusionPromise(_) => CheckFailure::new(
            Check::Promise,
            "its time of signing is unknown: it has no log's promise (signed entry timestamp), which bundles of this version require",
        ),
        Error::MissingInclusionProof(_) | Error::MissingSigningTimeEvidence => CheckFailure::new(
            Check::Proof,
            "it is not logged: it has no entry with an inclusion proof, and a keyless signature counts only if it was logged",
        ),
        Error::MissingCheckpoint => {
            CheckFailure::new(Check::Checkpoint, "its inclusion proof comes without its log state (checkpoint)")
        }
        Error::LogIndexOutOfRange { .. } => {
            CheckFailure::new(Check::Proof, "its inclusion proof is for an entry beyond the end of the log")
        }
        Error::CheckpointRootMismatch => CheckFailure::new(
            Check::Checkpoint,
            "its inclusion proof leads to another log state than the signed one (checkpoint)",
        ),
        Error::CertificateChainNotAllowed(_) => {
            CheckFailure::new(Check::Format, "it is a v0.3 bundle with a certificate chain instead of one certificate")
        }
        _ => CheckFailure::new(Check::Format, "its bundle version is not supported; v0.1 to v0.3 are"),
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
                "its log entry has the kind {kind}, which is not supported; hashedrekord 0.0.1 and 0.0.2, dsse 0.0.1 and intoto 0.0.2 are"
            ),
        );
    }
    if text.contains("checkpoint") {
        return CheckFailure::new(Check::Format, "the log state of its proof (checkpoint) cannot be read");
    }
    CheckFailure::new(Check::Format, format!("it is not a sigstore bundle: {}", crate::image::verify::check::short(&text)))
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
        _ => "the key of one of its logs cannot be read or its type is not supported".to_owned(),
    }
}
