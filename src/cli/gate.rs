//! `gate`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Formatted;

/// `gate WHAT`.
#[derive(Debug, Clone, Subcommand)]
pub enum GateCommand {
    /// Put the policy's [gate] in force; run at boot by the unit that `install --gate` writes
    Load(GateLoadArgs),
    /// Refuse for some seconds, then only count; also if this program is killed
    Try(GateTryArgs),
    /// End the gate: every process that has the capabilities may load programs again
    Unload,
    /// Say whether the gate is in force, and which executables called that are not listed
    Status(Formatted),
    /// Enable fs-verity on files, which cannot be changed then, and print their digests
    Seal(GateSealArgs),
}

/// `gate load`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct GateLoadArgs {
    /// Refuse nothing, only count which executables are not listed
    #[arg(long)]
    pub warn: bool,
}

/// `gate try`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct GateTryArgs {
    /// For how long, at most a day
    #[arg(value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub seconds: u64,
}

/// `gate seal`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct GateSealArgs {
    /// The files; a file that is sealed already is only measured
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
}

/// `install --gate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct GateTarget {
    /// The policy's [gate] (LSM programs), now and at each boot; no engine by default
    #[arg(long)]
    pub gate: bool,
    /// With --gate: refuse nothing, only count
    #[arg(long, requires = "gate")]
    pub gate_warn: bool,
}
