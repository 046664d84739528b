//! The arguments of `init`.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

/// `init`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(group(ArgGroup::new("signer").required(true)))]
pub struct InitArgs {
    /// Allow images that this cosign public key signed; the file is copied to /etc/bpfman-hook/keys
    #[arg(long, value_name = "FILE", group = "signer")]
    pub key: Option<PathBuf>,
    /// Allow images that this identity signed without a key: an e-mail address, or the URI of a workflow
    #[arg(long, value_name = "IDENTITY", group = "signer", requires = "issuer")]
    pub identity: Option<String>,
    /// The OIDC issuer of --identity
    #[arg(long, value_name = "URL", requires = "identity")]
    pub issuer: Option<String>,
    /// Allow bpfman's public images, quay.io/bpfman-bytecode
    #[arg(long, group = "signer", conflicts_with = "repository")]
    pub bpfman: bool,
    /// Only images of these repositories: * is one component, ** any number of them
    #[arg(long, value_name = "PATTERN", default_value = "**")]
    pub repository: String,
    /// The trusted root of the Sigstore instance, for --identity and --bpfman; copied to /etc/bpfman-hook
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    pub trusted_root: Option<PathBuf>,
    /// Print the policy, and write nothing
    #[arg(long)]
    pub dry_run: bool,
}
