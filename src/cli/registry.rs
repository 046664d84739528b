//! What a person says to registries.

use std::path::PathBuf;

use clap::Args;

/// Flags of the commands that ask registries.
#[derive(Clone, Default, Args)]
pub struct RegistryArgs {
    /// user:password in base64, for the registries that are named; visible to others in the list of processes
    #[arg(long, value_name = "BASE64", conflicts_with = "authfile")]
    pub registry_auth: Option<String>,
    /// The same as podman and skopeo take it
    #[arg(long, value_name = "USER:PASSWORD", conflicts_with_all = ["authfile", "registry_auth"])]
    pub creds: Option<String>,
    /// An auth file, and no other; by default podman's and docker's
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

impl RegistryArgs {
    /// True where any of them was written.
    pub fn any(&self) -> bool {
        self.registry_auth.is_some() || self.creds.is_some() || self.authfile.is_some()
    }
}

/// What is shown to a registry, as it was written; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryAuth(pub String);

impl RegistryAuth {
    /// Whatever it is: clap would print what does not parse.
    pub fn take(text: &str) -> Result<Self, std::convert::Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryAuth(…)")
    }
}

impl std::fmt::Debug for RegistryArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryArgs").field("authfile", &self.authfile).finish_non_exhaustive()
    }
}
