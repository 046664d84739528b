//! `guard`.

use clap::{Args, Subcommand};

use super::Formatted;

/// `guard WHAT`.
#[derive(Debug, Clone, Subcommand)]
pub enum GuardCommand {
    /// Put the guard in force and prove it; run at boot by the unit that `install --guard` writes
    Load(GuardLoadArgs),
    /// End the guard; delegations that load programs are host scope again
    Unload,
    /// Say whether the guard is in force, and what it has refused
    Status(Formatted),
}

/// `guard load`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct GuardLoadArgs {
    /// Refuse programs that could run without a bound too: may_goto and bpf_loop
    #[arg(long)]
    pub bounded: bool,
}

/// `install --guard`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct GuardTarget {
    /// The guard of BPF tokens (LSM programs), now and at each boot; no engine by default
    #[arg(long)]
    pub guard: bool,
    /// With --guard: refuse programs that could run without a bound too
    #[arg(long, requires = "guard")]
    pub guard_bounded: bool,
}
