//! What a person says to registries.

use std::path::PathBuf;

use clap::Args;

/// Flags of the commands that ask registries.
#[derive(Clone, Default, Args)]
pub struct RegistryArgs {
    /// user:password in base64, for the registries that are named; visible to others in the list of processes
    #[arg(long, value_name = "BASE64", conflicts_with = "authfile")]
    pub registry_auth: Option<String>,
    /// An auth file, and no other; by default podman's and docker's
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

impl std::fmt::Debug for RegistryArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryArgs").field("authfile", &self.authfile).finish_non_exhaustive()
    }
}
