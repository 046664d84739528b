//! The unit that makes the node's keyring for programs at boot, if the node has certificates. docs/signing.md explains the
//! keyring.

use std::path::{Path, PathBuf};

use crate::kernel::{Feature, Support, features};
use crate::lifecycle::program_keyring;
use crate::paths::Paths;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;

/// The unit.
pub const SERVICE_UNIT: &str = "bpfman-hook-keyring.service";

/// The file and its text.
pub(crate) fn pieces(place: &InstallRoot) -> [(PathBuf, String); 1] {
    [(place.mount_unit().with_file_name(SERVICE_UNIT), service_unit(&place.binary()))]
}

/// Makes the keyring, and writes the unit that does so at each boot. Without certificates it does nothing.
pub(crate) fn install(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    let paths = place.own_root().map_or_else(Paths::system, Paths::below);
    if place.is_staged() || !program_keyring::has_certificates(&paths) {
        return Ok(());
    }
    if let Support::No(why) = features::probe(Feature::ProgramSignatures) {
        work.step("advise", format!("no keyring for programs: this kernel does not check their signatures ({why})"), true);
        return Ok(());
    }
    if !work.dry_run {
        program_keyring::make(&paths)?;
    }
    work.step("make", "the node's keyring for programs", true);
    if !place.has_units() {
        return Ok(());
    }
    super::write(&pieces(place), work)?;
    if !work.by_systemd() {
        let line = format!("{} image keyring", place.binary().display());
        work.step("advise", format!("systemd does not run: have `{line}` run at each boot"), true);
        return Ok(());
    }
    super::start(&[SERVICE_UNIT], work)
}

/// Removes the unit. The keyring stays until the next boot; it gives no rights.
pub(crate) fn uninstall(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    if !is_installed(place) {
        return Ok(());
    }
    super::remove(&pieces(place), true, &[SERVICE_UNIT], place, work)
}

/// Whether the unit exists: it needs the binary.
pub(crate) fn is_installed(place: &InstallRoot) -> bool {
    place.staged(&place.mount_unit().with_file_name(SERVICE_UNIT)).exists()
}

/// The unit.
pub fn service_unit(binary: &Path) -> String {
    format!(
        "\
# Makes the keyring by which the kernel checks signatures of BPF programs, before containers start.
[Unit]
Description=Keyring for signatures of BPF programs (bpfman-hook)
RequiresMountsFor=/run/bpfman-hook
Before=bpfman-hook-gate.service containerd.service crio.service podman.service podman-restart.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={} image keyring
UMask=0077
TimeoutStartSec=60

[Install]
WantedBy=multi-user.target
",
        binary.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_makes_the_keyring() {
        let unit = service_unit(Path::new("/opt/x/bin/bpfman-hook"));
        assert!(unit.contains("\nExecStart=/opt/x/bin/bpfman-hook image keyring\n"));
    }
}
