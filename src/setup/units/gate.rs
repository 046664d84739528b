//! The unit that `install --gate` writes: it puts the policy's gate in force at boot. docs/gate.md explains the gate.

use std::fs;
use std::path::{Path, PathBuf};

use crate::commands::gate::rules;
use crate::lifecycle::gate;
use crate::paths::Paths;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;

/// The unit.
pub const SERVICE_UNIT: &str = "bpfman-hook-gate.service";

/// The file and its text.
pub(crate) fn pieces(place: &InstallRoot, warn: bool) -> [(PathBuf, String); 1] {
    [(place.mount_unit().with_file_name(SERVICE_UNIT), service_unit(&place.binary(), warn))]
}

/// Puts the gate in force, which proves that it does not refuse this program, and writes the unit that does so at each boot.
pub(crate) fn install(warn: bool, place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    if !place.is_staged() {
        if !work.dry_run {
            let paths = paths(place);
            let rules = rules(&paths, !warn).map_err(|error| InstallError::GateRules(error.to_string()))?;
            gate::seal(&place.binary());
            gate::load(&paths, &rules, Some(&place.binary()))?;
        }
        work.step("load", "the gate of executables", true);
    }
    if !place.has_units() {
        return Ok(());
    }
    super::write(&pieces(place, warn), work)?;
    if place.is_staged() {
        return Ok(());
    }
    if !work.by_systemd() {
        let line = format!("{} gate load{}", place.binary().display(), option(warn));
        work.step("advise", format!("systemd does not run: have `{line}` run at each boot"), true);
        return Ok(());
    }
    super::start(&[SERVICE_UNIT], work)
}

/// Removes the unit and ends the gate.
pub(crate) fn uninstall(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    super::remove(&pieces(place, false), is_installed(place), &[SERVICE_UNIT], place, work)?;
    if place.is_staged() {
        return Ok(());
    }
    let directory = paths(place).gate();
    let was_there = if work.dry_run {
        crate::kernel::gate::is_pinned(&directory)
    } else {
        gate::unload(&directory).map_err(InstallError::EndGate)?
    };
    work.step("unload", "the gate of executables", was_there);
    Ok(())
}

/// Whether the unit exists: it needs the binary.
pub(crate) fn is_installed(place: &InstallRoot) -> bool {
    place.staged(&place.mount_unit().with_file_name(SERVICE_UNIT)).exists()
}

/// Whether the unit that exists only counts.
pub(crate) fn only_counts(place: &InstallRoot) -> bool {
    let path = place.staged(&place.mount_unit().with_file_name(SERVICE_UNIT));
    fs::read_to_string(path).is_ok_and(|text| text.contains(option(true)))
}

fn paths(place: &InstallRoot) -> Paths {
    place.own_root().map_or_else(Paths::system, Paths::below)
}

fn option(warn: bool) -> &'static str {
    if warn { " --warn" } else { "" }
}

/// The unit. Nothing is done when it stops: `gate unload` ends the gate.
pub fn service_unit(binary: &Path, warn: bool) -> String {
    format!(
        "\
# Puts the policy's gate in force, before containers start: only listed executables load BPF programs.
[Unit]
Description=Gate of executables that load BPF programs (bpfman-hook)
RequiresMountsFor=/run/bpfman-hook/fs
Before=containerd.service crio.service podman.service podman-restart.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={} gate load{}
UMask=0077
TimeoutStartSec=60

[Install]
WantedBy=multi-user.target
",
        binary.display(),
        option(warn),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_loads_the_gate_and_stopping_it_does_not_end_it() {
        let unit = service_unit(Path::new("/opt/x/bin/bpfman-hook"), true);
        assert!(unit.contains("\nExecStart=/opt/x/bin/bpfman-hook gate load --warn\n"));
        assert!(unit.contains("\nRemainAfterExit=yes\n") && !unit.contains("ExecStop"));
    }
}
