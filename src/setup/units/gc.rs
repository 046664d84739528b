//! The timer that `install` writes: it runs `gc` every minute, for containers whose poststop did not run. podman runs
//! no poststop for a container whose creation failed after createRuntime, and a killed runtime runs none either.

use std::path::{Path, PathBuf};

use crate::hooks::stage::CAPABILITIES;
use crate::output::finding::{Finding, FindingStatus};
use crate::setup::compare::exact_file;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;

/// The service that the timer starts.
pub const SERVICE_UNIT: &str = "bpfman-hook-gc.service";

/// The timer.
pub const TIMER_UNIT: &str = "bpfman-hook-gc.timer";

/// The files and their texts, in the order in which they are written.
fn files(place: &InstallRoot) -> [(PathBuf, String); 2] {
    [(place.unit(SERVICE_UNIT), service_unit(&place.binary())), (place.unit(TIMER_UNIT), timer_unit().to_owned())]
}

/// Writes the units and starts the timer; without systemd it prints the line for cron. Does nothing if our directories
/// are not the default ones.
pub(crate) fn install(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    if !place.has_units() {
        return Ok(());
    }
    super::write(&files(place), work)?;
    if place.is_staged() {
        return Ok(());
    }
    if !work.by_systemd() {
        let line = format!("* * * * * root {} gc --quiet", place.binary().display());
        work.step("advise", format!("systemd does not run: write the line \"{line}\" to /etc/cron.d/bpfman-hook"), true);
        return Ok(());
    }
    super::start(&[TIMER_UNIT], work)
}

/// Stops the timer and removes both units.
pub(crate) fn uninstall(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    super::remove(&files(place), is_installed(place), &[TIMER_UNIT], place, work)
}

/// Whether the timer's unit exists.
fn is_installed(place: &InstallRoot) -> bool {
    place.has_unit(TIMER_UNIT)
}

/// Checks both units. Without them nothing is refused, but the leftovers of a failed creation stay until the next
/// annotated container starts.
pub(crate) fn check(place: &InstallRoot, again: &str) -> Vec<Finding> {
    if !is_installed(place) {
        let detail =
            "gc does not run periodically: the leftovers of a container whose creation failed stay until the next one starts";
        let remedy = format!("{again}, or have cron run `{} gc --quiet` every minute", place.binary().display());
        return vec![Finding::bad("gc timer", FindingStatus::Warn, detail, remedy)];
    }
    files(place).iter().map(|(path, text)| exact_file("gc timer", &place.staged(path), text, again)).collect()
}

/// The timer. A program outlives its container by at most a minute, five seconds of accuracy and one run.
pub fn timer_unit() -> &'static str {
    "\
# Releases the programs of containers whose poststop hook did not run.
[Unit]
Description=Release BPF programs of dead containers (bpfman-hook), every minute

[Timer]
OnActiveSec=60s
OnUnitActiveSec=60s
AccuracySec=5s

[Install]
WantedBy=timers.target
"
}

/// The service. `gc` exits with 1 while something is left, so that systemd shows the unit as failed.
pub fn service_unit(binary: &Path) -> String {
    let capabilities = CAPABILITIES.map(|capability| format!("{capability:?}")).join(" ");
    format!(
        "\
# Releases programs, links, maps and records of containers that ended without their poststop hook.
[Unit]
Description=Release BPF programs of dead containers (bpfman-hook)
Documentation=man:bpfman-hook-gc(1)
# If no annotated container has started since boot, there is nothing to check.
ConditionPathExists=/run/bpfman-hook/store
# The service has its own mount namespace, in which it must not mount the bpffs.
RequiresMountsFor=/run/bpfman-hook/fs

[Service]
Type=oneshot
ExecStart={} gc --quiet
UMask=0077
TimeoutStartSec=330
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/run/bpfman-hook
ProtectHome=read-only
PrivateDevices=yes
ProtectControlGroups=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictRealtime=yes
RestrictNamespaces=net mnt
RestrictAddressFamilies=AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service bpf
",
        binary.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_owner_is_found_within_ninety_seconds() {
        let seconds = |key: &str| -> u64 {
            let line = timer_unit().lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim_end_matches('s').parse().unwrap()
        };
        assert!(seconds("OnUnitActiveSec=") + seconds("AccuracySec=") <= 80, "there is time left for the run");
        assert!(seconds("OnActiveSec=") <= 60);
        assert!(service_unit(Path::new("/opt/x/bin/bpfman-hook")).contains("\nExecStart=/opt/x/bin/bpfman-hook gc --quiet\n"));
    }
}
