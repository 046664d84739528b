//! The text of the plugin's systemd unit. `packaging/systemd/` contains the same text.

use std::path::{Path, PathBuf};

use crate::cli::ContainerdTargets;
use crate::model::policy::Engine;
use crate::setup::containerd::install::is_installed_at;
use crate::setup::error::InstallError;
use crate::setup::hook_files::MOUNT_UNIT;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;

/// The unit's name.
pub const UNIT: &str = "bpfman-hook-nri.service";

/// The unit's path.
pub(crate) fn path(place: &InstallRoot) -> PathBuf {
    place.unit(UNIT)
}

fn files(place: &InstallRoot) -> [(PathBuf, String); 1] {
    [(path(place), text(&place.binary(), connects(place)))]
}

/// Writes the unit and, if systemd runs, starts the plugin. Does nothing if our directories are not the default ones.
pub(crate) fn install(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    if !place.has_units() {
        return Ok(());
    }
    super::write(&files(place), work)?;
    if place.is_staged() || !work.by_systemd() {
        return Ok(());
    }
    super::start(&[UNIT], work)
}

/// Stops the plugin and removes its unit.
pub(crate) fn uninstall(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    super::remove(&files(place), is_installed(place), &[UNIT], place, work)
}

/// Whether the unit exists: it needs the binary.
pub(crate) fn is_installed(place: &InstallRoot) -> bool {
    place.has_unit(UNIT)
}

/// Whether the plugin connects. It does not if our hook files are CRI-O's, because CRI-O starts no pod while a plugin
/// connects and a container is being stopped.
pub(crate) fn connects(place: &InstallRoot) -> bool {
    let containerd = &ContainerdTargets::default().containerd_config;
    !place.installed_for().0.contains(&Engine::CriO) || is_installed_at(place, containerd)
}

/// The unit's text.
pub fn text(binary: &Path, connects: bool) -> String {
    let mode = if connects { "" } else { " --no-connect" };
    format!(
        "\
# The NRI plugin. It reconnects when the runtime restarts; systemd restarts it when it dies.
[Unit]
Description=NRI plugin of bpfman-hook
StartLimitIntervalSec=0
Documentation=man:bpfman-hook-nri(1)
After=containerd.service crio.service
Wants={MOUNT_UNIT}
After={MOUNT_UNIT}

[Service]
ExecStart={} nri{mode}
Restart=always
RestartSec=1
MemoryMax=256M
OOMScoreAdjust=-900
# Children that fetch and release outlive a restart of the plugin.
KillMode=process

[Install]
WantedBy=multi-user.target
",
        binary.display()
    )
}
