//! One line of `doctor` or `install --check`: what was checked, its status, and the remedy.

use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::output::style::Style;

/// The longest word of a status.
const STATUS_WIDTH: usize = 7;

/// The status of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingStatus {
    /// As it should be.
    Ok,
    /// Not there, and nothing needs it.
    Absent,
    /// Works, but not completely or not for every user.
    Warn,
    /// Could not be determined.
    Unknown,
    /// Does not work.
    Fail,
}

impl FindingStatus {
    /// The word that is printed.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Absent => "absent",
            Self::Warn => "warn",
            Self::Unknown => "unknown",
            Self::Fail => "fail",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked: short and stable, so that scripts can select on it.
    pub check: String,
    /// The result.
    pub status: FindingStatus,
    /// What was found.
    pub detail: String,
    /// The remedy; only if the status is neither ok nor absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding without a problem.
    pub fn ok(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check: check.into(), status: FindingStatus::Ok, detail: detail.into(), remedy: None }
    }

    /// A finding about something that is deliberately or harmlessly not there.
    pub fn absent(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check: check.into(), status: FindingStatus::Absent, detail: detail.into(), remedy: None }
    }

    /// A finding with a problem and its remedy.
    pub fn bad(check: impl Into<String>, status: FindingStatus, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check: check.into(), status, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

/// Findings in the order in which they were added.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// Adds a finding.
    pub fn push(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    /// True if any finding failed: the exit status is 1.
    pub fn failed(&self) -> bool {
        self.0.iter().any(|finding| finding.status == FindingStatus::Fail)
    }

    /// Drops the findings without a problem.
    pub fn only_bad(mut self) -> Self {
        self.0.retain(|finding| finding.remedy.is_some());
        self
    }

    /// The JSON form: an array of objects with `check`, `status`, `detail` and, if not ok, `remedy`.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and unit variants are JSON")
    }
}

impl Findings {
    /// One line for each finding, and one for its remedy, with the colours and the width of the output.
    pub fn text(&self, style: Style) -> String {
        let width = self.0.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
        let indent = STATUS_WIDTH + 2 + width + 2;
        let mut text = String::new();
        for finding in &self.0 {
            let status = style.state(finding.status.word(), STATUS_WIDTH);
            // Writing to a string does not fail.
            _ = writeln!(text, "{status}  {:<width$}  {}", finding.check, style.wrapped(&finding.detail, indent));
            if let Some(remedy) = &finding.remedy {
                _ = writeln!(text, "{:indent$}-> {}", "", style.wrapped(remedy, indent + 3));
            }
        }
        text
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(Style::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_printed_on_its_own_line() {
        let mut findings = Findings::default();
        findings.push(Finding::ok("bpffs", "mounted"));
        findings.push(Finding::bad("policy files", FindingStatus::Fail, "line 3 is wrong", "correct it"));
        assert_eq!(
            findings.to_string(),
            "ok       bpffs         mounted\nfail     policy files  line 3 is wrong\n                       -> correct it\n"
        );
        assert!(findings.failed());
        let json: serde_json::Value = serde_json::from_str(&findings.json()).unwrap();
        assert_eq!(json[1]["status"], "fail");
        assert_eq!(json[0].get("remedy"), None);
        assert!(!Findings(vec![Finding::bad("x", FindingStatus::Warn, "y", "z")]).failed());
        let narrow = Style { colour: true, width: Some(48) };
        assert_eq!(
            Findings(vec![Finding::bad("x", FindingStatus::Warn, "one two three four five six seven eight", "do it")])
                .text(narrow),
            "\u{1b}[33mwarn   \u{1b}[0m  x  one two three four five six seven\n            eight\n            -> do it\n"
        );
        findings.push(Finding::absent("kprobes", "not there"));
        assert_eq!(findings.only_bad().0.len(), 1);
    }
}
