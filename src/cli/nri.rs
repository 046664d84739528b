//! Arguments of `nri`.

use std::path::PathBuf;

use clap::Args;

use super::absolute_path;

/// `nri`.
#[derive(Debug, Clone, Args)]
pub struct NriArgs {
    /// The runtime's socket; a connection that the runtime passes (NRI_PLUGIN_SOCKET) takes precedence
    #[arg(long, value_name = "PATH", default_value = "/var/run/nri/nri.sock", value_parser = absolute_path)]
    pub socket: PathBuf,
    /// The plugin's index, 00 to 99
    #[arg(long, value_name = "NN", default_value = "10", value_parser = index)]
    pub idx: String,
    /// The plugin's name
    #[arg(long, default_value = "bpfman-hook", value_parser = name)]
    pub name: String,
    /// Images to fetch and verify at startup: a reference, or the path of a file with one reference per line
    #[arg(long, value_name = "REF|FILE")]
    pub pre_pull: Vec<String>,
    /// The binary that the hooks run, as a path on the host [default: this binary]
    #[arg(long, value_name = "PATH", value_parser = absolute_path)]
    pub binary: Option<PathBuf>,
    /// Do not connect to the runtime: fetch what --pre-pull names and run gc every minute; for CRI-O, where hook files
    /// do the rest
    #[arg(long, conflicts_with = "socket")]
    pub no_connect: bool,
    /// Check whether this node's plugin is connected to the runtime, or with --no-connect whether hook files, binary
    /// and policy are in place; exit 1 if not
    #[arg(long)]
    pub check: bool,
    /// The host's root directory, for --no-connect --check
    #[arg(long, value_name = "DIR", default_value = "/", value_parser = absolute_path)]
    pub host: PathBuf,
    /// The file from which the runtime started the plugin; the plugin exits when it is removed
    #[arg(long, value_name = "PATH", hide = true, value_parser = absolute_path)]
    pub preinstalled_as: Option<PathBuf>,
}

/// `install --nri`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct NriTarget {
    /// The NRI plugin's unit, started; no engine by default
    #[arg(long)]
    pub nri: bool,
}

fn index(text: &str) -> Result<String, String> {
    let fits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
    if fits { Ok(text.to_owned()) } else { Err("write two digits".to_owned()) }
}

fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
    if !text.is_empty() && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("write letters, digits and _.+-".to_owned())
    }
}
