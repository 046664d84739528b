//! What is checked of a signature, one word each, and at which of them it fails.

use std::fmt;

use serde::Serialize;

/// One thing that must be true of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// It can be read, and is of a kind that is known here.
    Format,
    /// What was signed says of itself that it is a signature of an image.
    Statement,
    /// What was signed names this image's digest.
    Digest,
    /// RFC 3161 time stamps over the signature are by authorities of the trusted root.
    Timestamp,
    /// The log promised to enter it, at a certain time: the signed entry timestamp of Rekor v1.
    Promise,
    /// The certificate comes from an authority of the trusted root, and is for signing code.
    Certificate,
    /// The certificate was valid at each time that is vouched for.
    Validity,
    /// A certificate log of the trusted root has seen the certificate.
    Sct,
    /// The entry is in the tree that the log signed.
    Proof,
    /// A log of the trusted root signed that tree.
    Checkpoint,
    /// The signature is the key's, over what was signed.
    Signature,
    /// The log's entry is of this signature, this certificate and these contents.
    Entry,
    /// The rule names who signed.
    Identity,
}

impl Check {
    /// What people read.
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

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// It holds.
    Passed,
    /// It does not: this is why the signature does not count.
    Failed,
    /// There is nothing to check, and nothing need be there.
    Absent,
    /// It is there and is not looked at: a rule that names a key names no log and no authority to judge it by.
    Ignored,
    /// Another check failed before.
    NotReached,
}

/// One check with what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The check.
    pub check: Check,
    /// What came of it.
    pub result: CheckOutcome,
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckFailure {
    /// The check that failed.
    pub check: Check,
    /// The first check of which nothing is known, where that is an earlier one.
    unknown: Option<Check>,
    /// The sentence for people.
    pub why: String,
}

impl CheckFailure {
    /// A check that failed, the ones before it being passed.
    pub fn new(check: Check, why: impl Into<String>) -> Self {
        Self { check, unknown: None, why: why.into() }
    }

    /// The same where the checks from `check` on have not been made either.
    pub fn before(self, check: Check) -> Self {
        Self { unknown: Some(check), ..self }
    }

    /// The same with the sentence made longer.
    pub fn map(self, words: impl FnOnce(String) -> String) -> Self {
        Self { why: words(self.why), ..self }
    }

    /// What came of each of the checks of one kind of signature, in the order in which they are made.
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

/// Text of strangers, cut where it gets long.
pub(super) fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_looked_at_is_never_called_passed() {
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
        // A check that is none of this kind's: nothing is known to hold.
        let foreign = CheckFailure::new(Check::Sct, "").before(Check::Format);
        assert_eq!(results(Some(foreign)), [NotReached, NotReached, NotReached, Absent, NotReached]);
    }
}
