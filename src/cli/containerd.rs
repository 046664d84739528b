//! `install --containerd`.

use std::path::PathBuf;

use clap::Args;

use super::absolute_path;

/// containerd's targets of `install` and `uninstall`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ContainerdTargets {
    /// Configure containerd: enable NRI in its configuration
    #[arg(long)]
    pub containerd: bool,
    /// With --containerd: add a runtime handler that refuses annotated containers if our hooks do not run
    #[arg(long, requires = "containerd")]
    pub strict: bool,
    /// The strict handler: an existing one, or the name of a new one that runs what the default handler runs
    #[arg(long, value_name = "NAME", default_value = "bpfman-hook", value_parser = handler)]
    pub handler: String,
    /// The base OCI spec that the strict handler extends with our hooks [default: the output of `ctr oci spec`]
    #[arg(long, value_name = "FILE", value_parser = absolute_path)]
    pub base_spec: Option<PathBuf>,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml", value_parser = absolute_path)]
    pub containerd_config: PathBuf,
}

impl Default for ContainerdTargets {
    fn default() -> Self {
        Self {
            containerd: false,
            strict: false,
            handler: "bpfman-hook".to_owned(),
            base_spec: None,
            containerd_config: "/etc/containerd/config.toml".into(),
        }
    }
}

/// Accepts a bare TOML key that is also a DNS label, which a RuntimeClass handler must be.
fn handler(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = (1..=63).contains(&text.len()) && text.chars().all(fits) && !text.starts_with('-') && !text.ends_with('-');
    if label { Ok(text.to_owned()) } else { Err("write at most 63 lower-case letters, digits and -".to_owned()) }
}
