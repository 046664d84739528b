//! `install --containerd`.

use std::path::PathBuf;

use clap::Args;

use super::absolute_path;

/// What to do for containerd.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ContainerdTargets {
    /// For containerd: NRI switched on in its configuration
    #[arg(long)]
    pub containerd: bool,
    /// With --containerd: a runtime handler that starts no annotated container without our hooks
    #[arg(long, requires = "containerd")]
    pub strict: bool,
    /// The strict handler: an existing one, or a new one that runs what the default handler runs
    #[arg(long, value_name = "NAME", default_value = "bpfman-hook", value_parser = handler)]
    pub handler: String,
    /// The default OCI spec that the strict handler adds our hooks to [default: what `ctr oci spec` prints]
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

/// A bare key of TOML that is a label of DNS, as a RuntimeClass' handler has to be.
fn handler(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = (1..=63).contains(&text.len()) && text.chars().all(fits) && !text.starts_with('-') && !text.ends_with('-');
    if label { Ok(text.to_owned()) } else { Err("write lower-case letters, digits and -, 63 at most".to_owned()) }
}
