//! The unit that `install --guard` writes: it puts the guard in force at boot. docs/guard.md explains the guard.

use std::fs;
use std::path::{Path, PathBuf};

use crate::lifecycle::guard;
use crate::paths::Paths;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;

/// The unit.
pub const SERVICE_UNIT: &str = "bpfman-hook-guard.service";

/// The file and its text.
pub(crate) fn pieces(place: &InstallRoot, bounded: bool) -> [(PathBuf, String); 1] {
    [(place.unit(SERVICE_UNIT), service_unit(&place.binary(), bounded))]
}

/// Puts the guard in force, which proves it, and writes the unit that does so at each boot.
pub(crate) fn install(bounded: bool, place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    if !place.is_staged() {
        if !work.dry_run {
            guard::load(&paths(place), bounded)?;
        }
        work.step("load", "the guard of BPF tokens", true);
    }
    if !place.has_units() {
        return Ok(());
    }
    super::write(&pieces(place, bounded), work)?;
    if place.is_staged() {
        return Ok(());
    }
    if !work.by_systemd() {
        let line = format!("{} guard load{}", place.binary().display(), option(bounded));
        work.step("advise", format!("systemd does not run: have `{line}` run at each boot"), true);
        return Ok(());
    }
    super::start(&[SERVICE_UNIT], work)
}

/// Removes the unit and ends the guard.
pub(crate) fn uninstall(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    super::remove(&pieces(place, false), is_installed(place), &[SERVICE_UNIT], place, work)?;
    if place.is_staged() {
        return Ok(());
    }
    let directory = paths(place).guard();
    let was_there = if work.dry_run { crate::kernel::guard::is_pinned(&directory) } else { guard::unload(&directory)? };
    work.step("unload", "the guard of BPF tokens", was_there);
    Ok(())
}

/// Whether the unit exists: it needs the binary.
pub(crate) fn is_installed(place: &InstallRoot) -> bool {
    place.has_unit(SERVICE_UNIT)
}

/// Whether the unit that exists refuses programs without a bound too.
pub(crate) fn is_bounded(place: &InstallRoot) -> bool {
    let path = place.staged(&place.unit(SERVICE_UNIT));
    fs::read_to_string(path).is_ok_and(|text| text.contains(option(true)))
}

fn paths(place: &InstallRoot) -> Paths {
    place.own_root().map_or_else(Paths::system, Paths::below)
}

fn option(bounded: bool) -> &'static str {
    if bounded { " --bounded" } else { "" }
}

/// The unit. Nothing is done when it stops: containers that have a token keep running.
pub fn service_unit(binary: &Path, bounded: bool) -> String {
    format!(
        "\
# Puts the guard of BPF tokens in force, before containers start.
[Unit]
Description=Guard of BPF tokens (bpfman-hook)
RequiresMountsFor=/run/bpfman-hook/fs
Before=containerd.service crio.service podman.service podman-restart.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={} guard load{}
UMask=0077
TimeoutStartSec=60

[Install]
WantedBy=multi-user.target
",
        binary.display(),
        option(bounded),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_loads_the_guard_and_stopping_it_does_not_end_it() {
        let unit = service_unit(Path::new("/opt/x/bin/bpfman-hook"), true);
        assert!(unit.contains("\nExecStart=/opt/x/bin/bpfman-hook guard load --bounded\n"));
        assert!(unit.contains("\nRemainAfterExit=yes\n") && !unit.contains("ExecStop"));
    }
}
