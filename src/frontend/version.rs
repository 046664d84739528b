//! `version`: of the program and of what it shares with others.

use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{Format, Formatted};
use crate::frontend::print;
use crate::store;

#[derive(Serialize)]
struct Version {
    version: &'static str,
    /// Of the records; another one is refused.
    store: u32,
    /// Of the hook files, oci-hooks(5).
    hooks: &'static str,
}

/// Prints the versions.
pub fn run(format: Formatted) -> ExitCode {
    let version = Version { version: env!("CARGO_PKG_VERSION"), store: store::SCHEMA, hooks: "1.0.0" };
    print(&match format.output {
        Format::Table => format!("bpfman-hook {} (store {}, hook files {})\n", version.version, version.store, version.hooks),
        Format::Json => {
            format!("{}\n", serde_json::to_string_pretty(&version).expect("strings and numbers are JSON"))
        }
    })
}
