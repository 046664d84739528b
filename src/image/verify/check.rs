//! The checks of a signature, one name each, and which of them failed.

use std::fmt;

use serde::Serialize;

/// One thing that must be true of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// It can be read, and its kind is supported.
    Format,
    /// The signed content says that it is a signature of an image.
    Statement,
    /// The signed content names this image's digest.
    Digest,
    /// RFC 3161 time stamps over the signature are by authorities of the trusted root.
    Timestamp,
    /// The log promised to add it, at a certain time: the signed entry timestamp of Rekor v1.
    Promise,
    /// The certificate was issued by an authority of the trusted root, for code signing.
    Certificate,
    /// The certificate was valid at each of the attested times.
    Validity,
    /// A certificate log of the trusted root has seen the certificate.
    Sct,
    /// The entry is in the tree that the log signed.
    Proof,
    /// A log of the trusted root signed that tree.
    Checkpoint,
    /// The signature was made by the key over the signed content.
    Signature,
    /// The log entry is for this signature, certificate and content.
    Entry,
    /// The rule names the signer.
    Identity,
}

impl Check {
    /// The text for display.
    pub fn words(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Statement => "statement",
            Self::Digest => "image digest",
            Self::Timestamp => "time stamp",
            Self::Promise => "log promise",
            Self::Certificate => "certificate chain",
            Self::Validity => "certificate validity",
            Self::Sct => "certificate log",
            Self::Proof => "inclusion proof",
            Self::Checkpoint => "log checkpoint",
            Self::Signature => "signature",
            Self::Entry => "log entry",
            Self::Identity => "identity",
        }
    }
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// It passed.
    Passed,
    /// It failed: this is why the signature does not count.
    Failed,
    /// There is nothing to check, and nothing is required.
    Absent,
    /// Present but not evaluated: a rule that names a key names no log or authority to check it against.
    Ignored,
    /// Another check failed before.
    NotReached,
}

/// One check and its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The check.
    pub check: Check,
    /// Its result.
    pub result: CheckOutcome,
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckFailure {
    /// The check that failed.
    pub check: Check,
    /// The first check that was not made, if that is an earlier one.
    unknown: Option<Check>,
    /// The message.
    pub why: String,
}

impl CheckFailure {
    /// A check that failed after the checks before it passed.
    pub fn new(check: Check, why: impl Into<String>) -> Self {
        Self { check, unknown: None, why: why.into() }
    }

    /// The same, but the checks from `check` on were not made either.
    pub fn before(self, check: Check) -> Self {
        Self { unknown: Some(check), ..self }
    }

    /// The same with another message.
    pub fn map(self, words: impl FnOnce(String) -> String) -> Self {
        Self { why: words(self.why), ..self }
    }

    /// The result of each check for one kind of signature, in the order of the checks.
    pub fn among(flaw: Option<&Self>, order: &[(Check, CheckOutcome)]) -> Vec<Checked> {
        let position = |check| order.iter().position(|(at, _)| *at == check).unwrap_or(order.len());
        let end = flaw.map_or(order.len(), |flaw| position(flaw.check).min(flaw.unknown.map_or(order.len(), position)));
        let result = |at: usize, check, outcome| match flaw {
            Some(flaw) if flaw.check == check => CheckOutcome::Failed,
            _ if at < end || outcome != CheckOutcome::Passed => outcome,
            _ => CheckOutcome::NotReached,
        };
        let each = order.iter().enumerate();
        each.map(|(at, (check, outcome))| Checked { check: *check, result: result(at, *check, *outcome) }).collect()
    }
}

impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Untrusted text, truncated if it is long.
pub(super) fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_that_were_not_made_are_never_reported_as_passed() {
        const ORDER: &[(Check, CheckOutcome)] = &[
            (Check::Format, CheckOutcome::Passed),
            (Check::Certificate, CheckOutcome::Passed),
            (Check::Validity, CheckOutcome::Passed),
            (Check::Timestamp, CheckOutcome::Absent),
            (Check::Identity, CheckOutcome::Passed),
        ];
        let results = |flaw: Option<CheckFailure>| -> Vec<_> {
            CheckFailure::among(flaw.as_ref(), ORDER).into_iter().map(|checked| checked.result).collect()
        };
        use CheckOutcome::{Absent, Failed, NotReached, Passed};
        assert_eq!(results(None), [Passed, Passed, Passed, Absent, Passed]);
        assert_eq!(results(Some(CheckFailure::new(Check::Validity, ""))), [Passed, Passed, Failed, Absent, NotReached]);
        let blind = CheckFailure::new(Check::Validity, "").before(Check::Certificate);
        assert_eq!(results(Some(blind)), [Passed, NotReached, Failed, Absent, NotReached]);
        // A check that this kind does not have: nothing is known to have passed.
        let foreign = CheckFailure::new(Check::Sct, "").before(Check::Format);
        assert_eq!(results(Some(foreign)), [NotReached, NotReached, NotReached, Absent, NotReached]);
    }
}
