//! `proxy`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `proxy WHAT`.
#[derive(Debug, Clone, Subcommand)]
pub enum ProxyCommand {
    /// Serve the seccomp listener that a runtime passes over the connection on stdin; run by systemd
    #[command(name = "-")]
    Serve,
    /// Print a seccomp profile whose listener is the proxy
    Profile(ProxyProfileArgs),
    /// Take the listeners of one container at PATH; run by precreate
    #[command(hide = true)]
    OwnSocket {
        /// The socket
        #[arg(value_name = "PATH", value_parser = super::absolute_path)]
        path: PathBuf,
    },
}

/// `proxy profile`.
#[derive(Debug, Clone, Args)]
pub struct ProxyProfileArgs {
    /// The profile to add the rules to, in the form of docker, podman or the runtime-spec [default: one that allows
    /// everything else]
    #[arg(value_name = "FILE")]
    pub base: Option<PathBuf>,
    /// The form to print
    #[arg(long, value_enum, value_name = "FORM", default_value_t)]
    pub form: ProfileForm,
    /// Notify perf_event_open(2) too: for containers that are granted kprobe, tracepoint or perf_event programs
    #[arg(long)]
    pub perf_events: bool,
}

/// The form of a seccomp profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ProfileForm {
    /// As FILE: for docker and podman (--security-opt seccomp=)
    #[default]
    Same,
    /// The runtime-spec's, for containers without added capabilities: for Localhost profiles and config.json
    Oci,
    /// The Localhost profile of install --proxy: containerd's default profile with the rules; without FILE
    Kubelet,
}

/// `install --proxy`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
pub struct ProxyTarget {
    /// The socket and the units of the bpf(2) proxy; no engine by default
    #[arg(long)]
    pub proxy: bool,
    /// The kubelet's directory, for the seccomp profile of --proxy [default: /var/lib/kubelet, if it exists]
    #[arg(long, value_name = "DIR", requires = "proxy", value_parser = super::absolute_path)]
    pub kubelet_root: Option<PathBuf>,
}
