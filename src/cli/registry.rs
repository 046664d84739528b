//! Registry flags.

use std::path::PathBuf;

use clap::Args;

/// Flags of the commands that contact registries.
#[derive(Clone, Default, Args)]
pub struct RegistryArgs {
    /// user:password in base64, for the registries of the named images; visible to other users in the process list
    #[arg(long, value_name = "BASE64", conflicts_with = "authfile")]
    pub registry_auth: Option<String>,
    /// The same in the form of podman and skopeo
    #[arg(long, value_name = "USER:PASSWORD", conflicts_with_all = ["authfile", "registry_auth"])]
    pub creds: Option<String>,
    /// Use only this auth file [default: podman's and docker's]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

impl RegistryArgs {
    /// True if any of the flags is set.
    pub fn any(&self) -> bool {
        self.registry_auth.is_some() || self.creds.is_some() || self.authfile.is_some()
    }
}

/// Registry credentials as given on the command line; `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryAuth(pub String);

impl RegistryAuth {
    /// Accepts any text: clap would print a value that fails to parse.
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
