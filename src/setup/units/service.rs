//! The texts of the gRPC service's systemd units. `packaging/systemd/` contains the same texts; docs/service.md
//! explains each line.

use std::path::{Path, PathBuf};

use crate::hooks::stage::CAPABILITIES;
use crate::setup::error::InstallError;
use crate::setup::place::InstallRoot;
use crate::setup::steps::Installer;
use crate::sys::accounts::gid_of;

/// The socket that starts the service.
pub const SOCKET_UNIT: &str = "bpfman-hook.socket";

/// The service.
pub const SERVICE_UNIT: &str = "bpfman-hook.service";

/// The group that may connect, if it exists.
pub const GROUP: &str = "bpfman";

/// The files and their texts, in the order in which they are written.
fn files(place: &InstallRoot, group: bool) -> [(PathBuf, String); 2] {
    [(place.unit(SERVICE_UNIT), service_unit(&place.binary())), (place.unit(SOCKET_UNIT), socket_unit(group))]
}

/// Writes the units and, if systemd runs, starts the socket. Does nothing if our directories are not the default ones.
pub(crate) fn install(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    if !place.has_units() {
        return Ok(());
    }
    super::write(&pieces(place), work)?;
    if place.is_staged() || !work.by_systemd() {
        return Ok(());
    }
    super::start(&[SOCKET_UNIT], work)
}

/// Stops socket and service and removes their units.
pub(crate) fn uninstall(place: &InstallRoot, work: &mut Installer<'_>) -> Result<(), InstallError> {
    super::remove(&files(place, false), is_installed(place), &[SOCKET_UNIT, SERVICE_UNIT], place, work)
}

/// The files and their expected texts.
pub(crate) fn pieces(place: &InstallRoot) -> [(PathBuf, String); 2] {
    files(place, gid_of(GROUP).is_some())
}

/// Whether the units exist: they need the binary.
pub(crate) fn is_installed(place: &InstallRoot) -> bool {
    [SERVICE_UNIT, SOCKET_UNIT].iter().any(|unit| place.has_unit(unit))
}

/// The socket unit. A group that does not exist would prevent it from starting, so it is set only if it exists.
pub fn socket_unit(group: bool) -> String {
    let group = if group { format!("SocketGroup={GROUP}\n") } else { String::new() };
    format!(
        "\
# bpfman's gRPC API on demand: the first client starts the service, which ends when it is idle.
[Unit]
Description=Sockets of bpfman's gRPC API (bpfman-hook)

[Socket]
ListenStream=/run/bpfman-hook/bpfman.sock
# The default path of bpfman's own clients.
ListenStream=/run/bpfman-sock/bpfman.sock
SocketMode=0660
{group}DirectoryMode=0755
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"
    )
}

/// The service unit.
pub fn service_unit(binary: &Path) -> String {
    let capabilities = CAPABILITIES.map(|capability| format!("{capability:?}")).join(" ");
    format!(
        "\
# Started by its socket; it keeps nothing in memory and may be killed at any time.
[Unit]
Description=bpfman's gRPC API (bpfman-hook)
Requires={SOCKET_UNIT}
After={SOCKET_UNIT}
# The service has its own mount namespace, in which it must not mount the bpffs: the mount unit does.
RequiresMountsFor=/run/bpfman-hook/fs

[Service]
Type=exec
ExecStart={} system service
# Running requests may finish; the service signals its children, systemd does not.
KillMode=mixed
TimeoutStopSec=75
UMask=0077
# Before Linux 5.11, BPF memory counted against this limit.
LimitMEMLOCK=infinity

# The capabilities that the hook needs, and no others.
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/run/bpfman-hook -/var/cache/bpfman-hook
CacheDirectory=bpfman-hook
CacheDirectoryMode=0700
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
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service bpf perf_event_open seccomp
SystemCallFilter=landlock_create_ruleset landlock_add_rule landlock_restrict_self
SystemCallErrorNumber=EPERM
",
        binary.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_set_only_if_it_exists() {
        assert!(!socket_unit(false).contains("SocketGroup"));
        assert!(socket_unit(true).contains("\nSocketGroup=bpfman\nDirectoryMode"));
    }

    #[test]
    fn the_unit_runs_the_installed_binary_with_the_hooks_capabilities() {
        let unit = service_unit(Path::new("/opt/x/bin/bpfman-hook"));
        assert!(unit.contains("\nExecStart=/opt/x/bin/bpfman-hook system service\n"));
        let line = unit.lines().find(|line| line.starts_with("CapabilityBoundingSet=")).unwrap();
        assert_eq!(line.split(' ').count(), CAPABILITIES.len());
        assert!(line.contains("CAP_SYS_ADMIN CAP_BPF"));
        // systemd implements these with a seccomp filter that refuses openat2, which every open of untrusted paths
        // needs; DynamicUser implies the first.
        assert!(!["RestrictSUIDSGID", "DynamicUser"].iter().any(|word| unit.contains(word)));
    }
}
