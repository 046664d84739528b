//! `uninstall`: only the options of `install` that say what is removed, and from where.

use std::path::PathBuf;

use clap::Args;

use super::gate::GateTarget;
use super::guard::GuardTarget;
use super::nri::NriTarget;
use super::proxy::ProxyTarget;
use super::service::ServiceTarget;
use super::watch::MetricsTarget;
use super::{ContainerdTargets, Formatted, InstallTargets, absolute_path};

/// `uninstall`.
#[derive(Debug, Clone, Args)]
pub struct UninstallArgs {
    /// Only podman's hooks
    #[arg(long)]
    pub podman: bool,
    /// Only CRI-O's hooks
    #[arg(long)]
    pub crio: bool,
    /// Only what `install --containerd` added to containerd's configuration
    #[arg(long)]
    pub containerd: bool,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml", value_parser = absolute_path)]
    pub containerd_config: PathBuf,
    /// Only the gRPC service's units and socket
    #[arg(long)]
    pub service: bool,
    /// Only the socket and the units of the bpf(2) proxy
    #[arg(long)]
    pub proxy: bool,
    /// The kubelet's directory, for the seccomp profile of the proxy [default: /var/lib/kubelet, if it exists]
    #[arg(long, value_name = "DIR", value_parser = absolute_path)]
    pub kubelet_root: Option<PathBuf>,
    /// Only the guard of BPF tokens
    #[arg(long)]
    pub guard: bool,
    /// Only the gate
    #[arg(long)]
    pub gate: bool,
    /// Only the NRI plugin's unit
    #[arg(long)]
    pub nri: bool,
    /// Only the metrics units, group and timer
    #[arg(long)]
    pub metrics: bool,
    /// Also remove the policy, the keys, the image cache and this boot's state
    #[arg(long, conflicts_with_all = ["podman", "crio", "containerd", "service", "proxy", "guard", "gate", "nri", "metrics"])]
    pub purge: bool,
    /// Where `install` put the binary: PREFIX/bin [default: as for `install`]
    #[arg(long, value_name = "DIR", value_parser = absolute_path)]
    pub prefix: Option<PathBuf>,
    /// Remove what was staged below DIR; unmount and stop nothing
    #[arg(long, value_name = "DIR", value_parser = absolute_path)]
    pub destdir: Option<PathBuf>,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Format.
    #[command(flatten)]
    pub format: Formatted,
}

impl UninstallArgs {
    /// The same selection in the form of `install`.
    pub fn targets(&self) -> InstallTargets {
        InstallTargets {
            podman: self.podman,
            crio: self.crio,
            containerd: ContainerdTargets {
                containerd: self.containerd,
                containerd_config: self.containerd_config.clone(),
                ..ContainerdTargets::default()
            },
            service: ServiceTarget { service: self.service },
            proxy: ProxyTarget { proxy: self.proxy, kubelet_root: self.kubelet_root.clone() },
            guard: GuardTarget { guard: self.guard, ..GuardTarget::default() },
            gate: GateTarget { gate: self.gate, ..GateTarget::default() },
            nri: NriTarget { nri: self.nri },
            metrics: MetricsTarget { metrics: self.metrics, ..MetricsTarget::default() },
            prefix: self.prefix.clone(),
            destdir: self.destdir.clone(),
            dry_run: self.dry_run,
            format: self.format,
            ..InstallTargets::on("/".as_ref())
        }
    }
}
