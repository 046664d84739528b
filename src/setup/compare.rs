//! Comparison of installed files with those of this version.

use std::fs;
use std::path::Path;

use crate::output::finding::{Finding, FindingStatus};

/// Checks that a file has exactly this text.
pub(crate) fn exact_file(name: &str, path: &Path, text: &str, again: &str) -> Finding {
    match fs::read_to_string(path) {
        Ok(present) if present == text => Finding::ok(name, path.display().to_string()),
        Ok(_) => Finding::bad(name, FindingStatus::Fail, format!("{} differs from this version's file", path.display()), again),
        Err(err) => Finding::bad(name, FindingStatus::Fail, format!("{}: {err}", path.display()), again),
    }
}
