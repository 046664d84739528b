//! May a bpffs be mounted there? Decided on the mount that the target directory was really found on.

use std::path::Path;

use super::message::Opened;
use super::{BpffsError, SOURCE};
use crate::sys::SysError;
use crate::sys::mounts::{Mount, parse_mountinfo};

/// Judges the directory that the child found, or where the target is missing, the one that it will make it in.
///
/// `theirs` is the container's mountinfo; `ours` reads that of this process: a tmpfs that is mounted here too was bound into
/// the container from outside.
pub(super) fn judge(
    target: &str,
    opened: &Opened,
    theirs: &str,
    ours: impl FnOnce() -> Result<String, SysError>,
) -> Result<(), SysError> {
    let lost =
        || SysError::Message { what: "the container's mount table", problem: format!("it lacks the mount {target} is on") };
    let mount = find(theirs, opened.mount_id)?.ok_or_else(lost)?;
    if mount.kind == "bpf" && mount.source == SOURCE && opened.at_mount_root && opened.missing == 0 {
        return Err(BpffsError::MountedBefore { target: target.to_owned() }.into());
    }
    let own_ground = opened.mount_id == opened.root_mount_id
        || mount.root == Path::new("/")
            && match mount.kind.as_str() {
                "sysfs" => true,
                "tmpfs" => !ours()?.lines().any(|line| device_of(line) == Some(mount.device)),
                // A bpffs of the host's that came with its /sys. Covering its root touches nothing in it.
                "bpf" => opened.at_mount_root && opened.missing == 0,
                _ => false,
            };
    if !own_ground {
        let mount = format!("{} at {}", mount.kind, mount.point.display());
        return Err(BpffsError::TargetHostMount { target: target.to_owned(), mount }.into());
    }
    if mount.propagation.shared.is_some() {
        let mount = mount.point.display().to_string();
        return Err(BpffsError::TargetShared { target: target.to_owned(), mount }.into());
    }
    Ok(())
}

/// The mount with this id. Only its line is parsed: a host may have thousands.
pub(super) fn find(mountinfo: &str, id: u64) -> Result<Option<Mount>, SysError> {
    let line = mountinfo.lines().find(|line| line.split(' ').next().and_then(|word| word.parse().ok()) == Some(id));
    Ok(line.map(parse_mountinfo).transpose()?.and_then(|mounts| mounts.into_iter().next()))
}

/// The third word of a line, `major:minor`.
fn device_of(line: &str) -> Option<(u32, u32)> {
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a runtime leaves before pivot_root: the host's mounts, and the container's below its root file system.
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
99 90 0:55 / /lib/c/rootfs/run/bpf rw - bpf bpfman-hook rw,mode=1777
";
    const HOST: &str = "\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:25 / /run rw,nosuid shared:3 - tmpfs tmpfs rw
";

    fn verdict(opened: Opened) -> String {
        match judge("/mnt/x", &opened, CONTAINER, || Ok(HOST.to_owned())) {
            Ok(()) => "fine".into(),
            Err(SysError::Bpffs(BpffsError::TargetHostMount { mount, .. })) => format!("outside: {mount}"),
            Err(SysError::Bpffs(BpffsError::TargetShared { mount, .. })) => format!("shared: {mount}"),
            Err(other) => other.to_string(),
        }
    }

    fn on(mount_id: u64) -> Opened {
        Opened { mount_id, root_mount_id: 90, at_mount_root: false, missing: 0 }
    }

    #[test]
    fn the_containers_own_ground_is_its_root_sysfs_and_its_tmpfs() {
        for id in [90, 91, 92] {
            assert_eq!(verdict(on(id)), "fine", "{id}");
        }
    }

    #[test]
    fn what_comes_from_outside_is_refused() {
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
    fn shared_mounts_are_refused_also_as_the_root() {
        assert_eq!(verdict(on(96)), "shared: /lib/c/rootfs/mnt/shared");
        assert_eq!(verdict(Opened { root_mount_id: 96, ..on(96) }), "shared: /lib/c/rootfs/mnt/shared");
    }

    #[test]
    fn a_bpffs_is_covered_at_its_root_only() {
        assert_eq!(verdict(Opened { at_mount_root: true, ..on(97) }), "fine");
        assert_eq!(verdict(on(97)), "outside: bpf at /lib/c/rootfs/sys/fs/bpf");
        assert_eq!(verdict(Opened { at_mount_root: true, missing: 1, ..on(97) }), "outside: bpf at /lib/c/rootfs/sys/fs/bpf");
    }

    #[test]
    fn a_bpffs_of_ours_is_not_covered_by_a_second_one() {
        let said = verdict(Opened { at_mount_root: true, ..on(99) });
        assert!(said.contains("has one of ours already"), "{said}");
        // A directory in it is not ours to judge: it is outside.
        assert_eq!(verdict(on(99)), "outside: bpf at /lib/c/rootfs/run/bpf");
    }

    #[test]
    fn a_mount_that_the_table_lacks_is_an_error() {
        assert_eq!(verdict(on(9)), "receive the container's mount table: it lacks the mount /mnt/x is on");
    }
}
