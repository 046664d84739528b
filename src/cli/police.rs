//! `police`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `police WHAT`.
#[derive(Debug, Clone, Subcommand)]
pub enum PoliceCommand {
    /// Record which bpf(2) calls a container or a command makes, and print a rule that allows them
    Profile(PoliceProfileArgs),
}

/// `police profile`.
#[derive(Debug, Clone, Args)]
pub struct PoliceProfileArgs {
    /// The beginning of the id of a running container. Of one that is policed, the counters since its start are printed
    #[arg(value_name = "CONTAINER", required_unless_present = "run", conflicts_with = "run")]
    pub container: Option<String>,
    /// How long a container that is not policed is recorded, unless it ends before
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 60, conflicts_with = "run")]
    pub seconds: u64,
    /// The runtime's --root, if it is not one of the usual directories
    #[arg(long, value_name = "DIR", conflicts_with = "run")]
    pub state: Option<PathBuf>,
    /// Run COMMAND in a cgroup of its own and record it until it ends
    #[arg(long, requires = "command")]
    pub run: bool,
    /// The command and its arguments, after `--`
    #[arg(last = true, value_name = "COMMAND", requires = "run")]
    pub command: Vec<OsString>,
}

/// `install --police`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct PoliceTarget {
    /// With hook files: run for containers without annotations too, so that all can be policed
    #[arg(long)]
    pub police: bool,
}
