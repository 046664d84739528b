//! The texts of the systemd units of the bpf(2) proxy. `packaging/systemd/` contains the same texts; docs/proxy.md
//! explains them.

use std::path::{Path, PathBuf};

use crate::proxy::CAPABILITIES;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;

/// The socket that runtimes connect to.
pub const SOCKET_UNIT: &str = "bpfman-hook-proxy.socket";

/// The service, of which each connection gets an instance.
pub const SERVICE_UNIT: &str = "bpfman-hook-proxy@.service";

/// The files and their texts, in the order in which they are written.
pub(crate) fn pieces(place: &InstallRoot) -> [(PathBuf, String); 2] {
    [(place.unit(SERVICE_UNIT), service_unit(&place.binary())), (place.unit(SOCKET_UNIT), socket_unit().to_owned())]
}

/// Writes the units and, if systemd runs, starts the socket. Does nothing if our directories are not the default ones.
pub(crate) fn install(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    if !place.has_units() {
        return Ok(());
    }
    for (path, text) in pieces(place) {
        work.write(&path, text.as_bytes(), 0o644)?;
    }
    if place.is_staged() {
        return Ok(());
    }
    if !work.by_systemd() {
        let what = "systemd does not run: under podman, precreate starts the proxy; elsewhere, something has to run \
                    `bpfman-hook proxy -` for each connection to /run/bpfman-hook/proxy.sock";
        work.step("advise", what, true);
        return Ok(());
    }
    work.systemctl(&["daemon-reload"])?;
    work.systemctl(&["enable", "--now", SOCKET_UNIT])
}

/// Stops the socket and removes both units. Processes that serve a container end with it.
pub(crate) fn uninstall(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    if !place.has_units() {
        return Ok(());
    }
    if is_installed(place) && !place.is_staged() && work.by_systemd() {
        work.systemctl(&["disable", "--now", SOCKET_UNIT])?;
    }
    for (path, _) in pieces(place) {
        work.remove(&path)?;
    }
    Ok(())
}

/// Whether the units exist: they need the binary.
pub(crate) fn is_installed(place: &InstallRoot) -> bool {
    [SERVICE_UNIT, SOCKET_UNIT].iter().any(|unit| place.has_unit(unit))
}

/// The socket unit.
pub fn socket_unit() -> &'static str {
    "\
# Runtimes pass the seccomp listeners of containers here; an exec in a container needs the socket too.
[Unit]
Description=Socket of the bpf(2) proxy (bpfman-hook)

[Socket]
ListenStream=/run/bpfman-hook/proxy.sock
# Only root may connect: the connection tells which container a listener belongs to.
SocketMode=0600
DirectoryMode=0755
Accept=yes
MaxConnections=4096
# A limit on the rate would make the socket fail for good, and with it every later start.
TriggerLimitIntervalSec=0
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"
}

/// The service unit.
pub fn service_unit(binary: &Path) -> String {
    let capabilities = CAPABILITIES.map(|capability| format!("{capability:?}")).join(" ");
    format!(
        "\
# One process per container and per exec; it ends with the last task of its seccomp filter.
[Unit]
Description=bpf(2) proxy of a container (bpfman-hook)
CollectMode=inactive-or-failed
RequiresMountsFor=/run/bpfman-hook/fs

[Service]
Type=exec
ExecStart={} proxy -
StandardInput=socket
StandardOutput=journal
StandardError=journal
# A listener that is lost cannot be had again: no Restart=.
UMask=0077
LimitNOFILE=4096
LimitMEMLOCK=infinity
# The objects of the container are charged to this process, and it works for the container: map-memory of the policy is
# the limit that refuses calls, and has to stay well below this one.
MemoryMax=1G
TasksMax=16
CPUWeight=20

# What the proxy needs, and no others.
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/run/bpfman-hook
ProtectHome=yes
PrivateDevices=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictRealtime=yes
RestrictNamespaces=net
RestrictAddressFamilies=AF_UNIX AF_NETLINK
SystemCallArchitectures=native
",
        binary.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_may_connect_and_a_lost_listener_is_not_replaced() {
        for line in ["SocketMode=0600", "Accept=yes", "TriggerLimitIntervalSec=0"] {
            assert!(socket_unit().lines().any(|found| found == line), "{line}");
        }
        let unit = service_unit(Path::new("/opt/x/bin/bpfman-hook"));
        assert!(unit.contains("\nExecStart=/opt/x/bin/bpfman-hook proxy -\nStandardInput=socket\n"));
        assert!(!unit.lines().any(|line| line.starts_with("Restart=")));
        for limit in ["MemoryMax=", "TasksMax=", "CPUWeight="] {
            assert!(unit.lines().any(|line| line.starts_with(limit)), "{limit}");
        }
        let line = unit.lines().find(|line| line.starts_with("CapabilityBoundingSet=")).unwrap();
        assert_eq!(line.split(' ').count(), CAPABILITIES.len());
    }
}
