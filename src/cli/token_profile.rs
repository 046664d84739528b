//! `token profile`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Formatted;
use crate::model::delegation::Spelling;

/// `token profile`.
#[derive(Debug, Clone, Args)]
pub struct TokenProfileArgs {
    /// Write the answer to this file instead of standard output, which COMMAND writes to as well
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
    /// Print only what is to be pasted: annotations or policy; for a token also systemd, incus, lxd or mount
    #[arg(long = "as", value_name = "SPELLING", value_parser = super::values::spelling(), requires = "via", conflicts_with = "output")]
    pub spelling: Option<Spelling>,
    /// For which way --as prints
    #[arg(long, value_enum, value_name = "WAY", requires = "spelling")]
    pub via: Option<ProfiledWay>,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
    /// Run COMMAND in this running container; without COMMAND, record what the container asks the proxy for
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
    /// Where the container's runtime keeps its state, if it was called with --root
    #[arg(long, value_name = "DIR", value_parser = super::absolute_path, requires = "container")]
    pub state: Option<PathBuf>,
    /// How long to record a container without COMMAND; otherwise until Ctrl-C or its end
    #[arg(long = "for", value_name = "SECONDS", requires = "container", conflicts_with = "command")]
    pub time: Option<u64>,
    /// The command to run and record, with everything that it starts: also `podman run …`
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "container")]
    pub command: Vec<OsString>,
}

/// How a container gets its rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProfiledWay {
    /// A BPF token: delegate in the policy
    Token,
    /// The proxy: proxy in the policy
    Proxy,
}
