//! Checks whether a bpffs may be mounted at a place, based on the mount on which the target directory was actually
//! found.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::message::OpenedTarget;
use super::{BpffsError, SOURCE};
use crate::sys::SysError;
use crate::sys::mounts::{MountPoint, parse_mountinfo};
use crate::sys::statmount::NamespaceMounts;

/// File systems that the kernel serves from memory: the only ones besides the container's root on which a bpffs may be
/// mounted.
const KINDS: [&str; 3] = ["sysfs", "tmpfs", "bpf"];

/// The mounts of the container. The ids by which mounts are looked up are those that statx(2) was asked for: unique ones
/// for the kernel, those of mountinfo otherwise.
#[derive(Debug)]
pub(super) enum MountTable {
    /// Asked for one at a time.
    Kernel(NamespaceMounts),
    /// The contents of mountinfo.
    Text(String),
}

impl MountTable {
    /// The mount with this id.
    pub(super) fn find(&self, id: u64) -> Result<Option<MountPoint>, SysError> {
        match self {
            Self::Kernel(mounts) => mounts.get(id),
            Self::Text(text) => find(text, id),
        }
    }
}

/// Checks the mounts on the path from the container's root to the target before the path is followed: on a file system
/// that a process, a network server or a device serves, a lookup can block forever, and a process blocked in it cannot
/// be killed.
///
/// `root` is the mount that the container's root directory is on, and whether that is its root. A mount beneath it, at a
/// point whose path ends like the target or one of its ancestors, may be on the path. If the root directory is that of
/// the mount, its point tells exactly; /proc/sys of a running container only ends like /sys.
pub(super) fn check_way(target: &str, (root_mount_id, whole): (u64, bool), theirs: &MountTable) -> Result<(), SysError> {
    let prefixes: Vec<&str> = target.match_indices('/').skip(1).map(|(at, _)| &target[..at]).chain([target]).collect();
    let serves = |mount: &MountPoint| {
        let point = mount.point.as_os_str().as_bytes();
        prefixes.iter().any(|prefix| point.ends_with(prefix.as_bytes())) && !KINDS.contains(&mount.kind.as_str())
    };
    let refuse = |mount: &MountPoint| {
        let root = if whole { theirs.find(root_mount_id)? } else { None };
        let on_path = |root: MountPoint| prefixes.iter().any(|prefix| mount.point == root.point.join(&prefix[1..]));
        if root.is_none_or(on_path) { Err(outside(target, mount)) } else { Ok(()) }
    };
    let text = match theirs {
        MountTable::Text(text) => text,
        MountTable::Kernel(mounts) => {
            return mounts.beneath(root_mount_id, |mount| if serves(&mount) { refuse(&mount) } else { Ok(()) });
        }
    };
    for line in text.lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        // The kernel escapes blanks and similar characters with a backslash and digits: such a line must be parsed.
        if !point.contains('\\') && !prefixes.iter().any(|prefix| point.ends_with(prefix)) {
            continue;
        }
        let Some(mount) = parse_mountinfo(line)?.into_iter().next() else { continue };
        if serves(&mount) && u64::from(mount.id) != root_mount_id && is_beneath(text, &mount, root_mount_id) {
            refuse(&mount)?;
        }
    }
    Ok(())
}

/// Whether a mount lies, at any depth, on the mount with this id.
fn is_beneath(mountinfo: &str, mount: &MountPoint, id: u64) -> bool {
    let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok());
    let parents: HashMap<u64, u64> = mountinfo
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((number(words.next())?, number(words.next())?))
        })
        .collect();
    let mut parent = u64::from(mount.parent);
    // The kernel's table has no cycles; the bound is for safety.
    for _ in 0..parents.len() {
        match parents.get(&parent) {
            _ if parent == id => return true,
            Some(next) => parent = *next,
            None => return false,
        }
    }
    parent == id
}

fn outside(target: &str, mount: &MountPoint) -> SysError {
    let mount = format!("{} at {}", mount.kind, mount.point.display());
    BpffsError::TargetHostMount { target: target.to_owned(), mount }.into()
}

/// Checks the directory that the child found or, if the target is missing, the one in which it will be created.
/// `root_mount_id` is the mount that the container's root directory is on.
///
/// `ours` reads the mountinfo of this process: a tmpfs that is mounted here too was bind mounted into the container
/// from outside. Returns the id of the mount in mountinfo.
pub(super) fn decide(
    target: &str,
    root_mount_id: u64,
    opened: &OpenedTarget,
    theirs: &MountTable,
    ours: impl FnOnce() -> Result<String, SysError>,
) -> Result<u32, SysError> {
    let lost = || SysError::Message {
        what: "the container's mount table",
        problem: format!("it lacks the mount that {target} is on"),
    };
    let mount = theirs.find(opened.mount_id)?.ok_or_else(lost)?;
    if mount.kind == "bpf" && mount.source == SOURCE && opened.at_mount_root && opened.missing == 0 {
        return Err(BpffsError::MountedBefore { target: target.to_owned() }.into());
    }
    let own_ground = opened.mount_id == root_mount_id
        || mount.root == Path::new("/")
            && match mount.kind.as_str() {
                "sysfs" => true,
                "tmpfs" => !ours()?.lines().any(|line| device_of(line) == Some(mount.device)),
                // A bpffs of the host that came with its /sys. Covering its root does not change anything in it.
                "bpf" => opened.at_mount_root && opened.missing == 0,
                _ => false,
            };
    if !own_ground {
        return Err(outside(target, &mount));
    }
    if mount.propagation.shared.is_some() {
        let mount = mount.point.display().to_string();
        return Err(BpffsError::TargetShared { target: target.to_owned(), mount }.into());
    }
    Ok(mount.id)
}

/// Returns the mount with this id. Only its line is parsed: a host may have thousands.
pub(super) fn find(mountinfo: &str, id: u64) -> Result<Option<MountPoint>, SysError> {
    let line = mountinfo.lines().find(|line| line.split(' ').next().and_then(|word| word.parse().ok()) == Some(id));
    Ok(line.map(parse_mountinfo).transpose()?.and_then(|mounts| mounts.into_iter().next()))
}

/// The third field of a line, `major:minor`.
fn device_of(line: &str) -> Option<(u32, u32)> {
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mount table before pivot_root: the host's mounts, and the container's below its root file system.
    const CONTAINER: &str = "\
27 1 254:0 / / rw,relatime master:1 - ext4 /dev/vda rw
30 27 0:25 / /run rw,nosuid master:3 - tmpfs tmpfs rw
90 27 254:0 /lib/c/rootfs /lib/c/rootfs rw - ext4 /dev/vda rw
91 90 0:50 / /lib/c/rootfs/sys ro,nosuid - sysfs sysfs ro
92 90 0:51 / /lib/c/rootfs/run rw - tmpfs tmpfs rw,size=64k
93 90 254:0 /home/data /lib/c/rootfs/mnt/data rw - ext4 /dev/vda rw
94 90 0:25 / /lib/c/rootfs/mnt/run rw - tmpfs tmpfs rw
95 90 0:51 /part /lib/c/rootfs/mnt/part rw - tmpfs tmpfs rw
96 90 0:52 / /lib/c/rootfs/mnt/shared rw shared:7 - tmpfs tmpfs rw
97 91 0:53 / /lib/c/rootfs/sys/fs/bpf rw master:4 - bpf bpf rw,mode=700
98 90 0:54 / /lib/c/rootfs/mnt/nfs rw - nfs server:/export rw
99 94 0:55 / /lib/c/rootfs/mnt/run/fuse rw - fuse daemon rw,user_id=0
100 90 0:56 / /lib/c/rootfs/mnt/with\\040blank rw - fuse.sshfs daemon rw
101 27 0:57 / /share rw - fuse daemon rw
102 90 0:58 / /lib/c/rootfs/run/bpf rw - bpf bpfman-hook rw,mode=1777
";
    const HOST: &str = "\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:25 / /run rw,nosuid shared:3 - tmpfs tmpfs rw
";

    fn verdict(opened: OpenedTarget) -> String {
        verdict_below(90, opened)
    }

    fn verdict_below(root_mount_id: u64, opened: OpenedTarget) -> String {
        match decide("/mnt/x", root_mount_id, &opened, &MountTable::Text(CONTAINER.to_owned()), || Ok(HOST.to_owned())) {
            Ok(_) => "fine".into(),
            Err(SysError::Bpffs(BpffsError::TargetHostMount { mount, .. })) => format!("outside: {mount}"),
            Err(SysError::Bpffs(BpffsError::TargetShared { mount, .. })) => format!("shared: {mount}"),
            Err(other) => other.to_string(),
        }
    }

    fn on(mount_id: u64) -> OpenedTarget {
        OpenedTarget { mount_id, at_mount_root: false, missing: 0 }
    }

    #[test]
    fn the_containers_root_sysfs_and_tmpfs_are_accepted() {
        for id in [90, 91, 92] {
            assert_eq!(verdict(on(id)), "fine", "{id}");
        }
    }

    #[test]
    fn mounts_from_outside_are_refused() {
        let cases = [
            (93, "outside: ext4 at /lib/c/rootfs/mnt/data"),
            (94, "outside: tmpfs at /lib/c/rootfs/mnt/run"),
            (95, "outside: tmpfs at /lib/c/rootfs/mnt/part"),
            (98, "outside: nfs at /lib/c/rootfs/mnt/nfs"),
            (27, "outside: ext4 at /"),
        ];
        for (id, expected) in cases {
            assert_eq!(verdict(on(id)), expected, "{id}");
        }
    }

    #[test]
    fn file_systems_served_by_others_are_refused_before_the_path_is_followed() {
        let table = |text: &str| MountTable::Text(text.to_owned());
        // The container's root is a mount of its own, whether that is known or not.
        let way = |target: &str| {
            let said = [true, false].map(|whole| match check_way(target, (90, whole), &table(CONTAINER)) {
                Ok(()) => "fine".to_owned(),
                Err(SysError::Bpffs(BpffsError::TargetHostMount { mount, .. })) => mount,
                Err(other) => other.to_string(),
            });
            assert_eq!(said[0], said[1], "{target}");
            said[0].clone()
        };
        for target in ["/sys/fs/bpf", "/run/x", "/mnt/run/x", "/mnt/shared", "/mnt", "/mnt/nf", "/mnt/nfsd/x", "/home/x"] {
            assert_eq!(way(target), "fine", "{target}");
        }
        for (target, mount) in [
            ("/mnt/nfs", "nfs at /lib/c/rootfs/mnt/nfs"),
            ("/mnt/nfs/deep/x", "nfs at /lib/c/rootfs/mnt/nfs"),
            ("/mnt/data/x", "ext4 at /lib/c/rootfs/mnt/data"),
            ("/mnt/run/fuse/x", "fuse at /lib/c/rootfs/mnt/run/fuse"),
            ("/mnt/with blank/x", "fuse.sshfs at /lib/c/rootfs/mnt/with blank"),
        ] {
            assert_eq!(way(target), mount, "{target}");
        }
        // The container's own root may be served by a process: the runtime has already accessed it.
        let root = CONTAINER.replace("rootfs rw - ext4", "rootfs rw - fuse.fuse-overlayfs");
        assert!(check_way("/run/x", (90, true), &table(&root)).is_ok());
        // A mount of the host that cannot be reached from the container's root.
        assert!(check_way("/share/x", (90, true), &table(CONTAINER)).is_ok());
    }

    #[test]
    fn mounts_of_a_running_container_are_compared_exactly() {
        let text = "1 0 0:1 / / rw - overlay overlay rw\n2 1 0:2 / /proc rw - proc proc rw\n\
                    3 2 0:2 /sys /proc/sys ro - proc proc rw\n4 1 0:3 / /sys ro - sysfs sysfs rw\n";
        let table = MountTable::Text(text.to_owned());
        assert!(check_way("/sys/fs/bpf", (1, true), &table).is_ok());
        assert!(check_way("/proc/sys/x", (1, true), &table).is_err());
        assert!(check_way("/sys/fs/bpf", (1, false), &table).is_err(), "the root may be /proc");
    }

    #[test]
    fn shared_mounts_are_refused_even_as_the_root() {
        assert_eq!(verdict(on(96)), "shared: /lib/c/rootfs/mnt/shared");
        assert_eq!(verdict_below(96, on(96)), "shared: /lib/c/rootfs/mnt/shared");
    }

    #[test]
    fn a_bpffs_may_be_covered_only_at_its_root() {
        assert_eq!(verdict(OpenedTarget { at_mount_root: true, ..on(97) }), "fine");
        assert_eq!(verdict(on(97)), "outside: bpf at /lib/c/rootfs/sys/fs/bpf");
        assert_eq!(
            verdict(OpenedTarget { at_mount_root: true, missing: 1, ..on(97) }),
            "outside: bpf at /lib/c/rootfs/sys/fs/bpf"
        );
    }

    #[test]
    fn our_own_bpffs_is_not_covered_by_a_second_one() {
        let said = verdict(OpenedTarget { at_mount_root: true, ..on(102) });
        assert!(said.contains("already has a bpffs"), "{said}");
        // A directory in it is on a mount from outside.
        assert_eq!(verdict(on(102)), "outside: bpf at /lib/c/rootfs/run/bpf");
    }

    #[test]
    fn a_mount_missing_from_the_table_is_an_error() {
        assert_eq!(verdict(on(9)), "receive the container's mount table: it lacks the mount that /mnt/x is on");
    }
}
