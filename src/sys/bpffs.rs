//! A bpffs for a container: created in the container's user namespace, configured from outside, mounted in its mount
//! namespace.
//!
//! The kernel determines which step needs which privileges (kernel/bpf/inode.c): `fsopen` decides which user namespace
//! the file system belongs to, so it runs inside. The options `delegate_*` and the creation need CAP_SYS_ADMIN in the
//! initial user namespace, so they run here. `move_mount` needs it in the container's mount namespace, so it runs
//! inside again. A forked child ([`inside`]) does the inner part and communicates over a socket:
//!
//! ```text
//! here                                            inside
//! fork                                            enter both namespaces, become container root, fsopen
//!                    <- inside (where the kernel has no statmount(2))
//! check the mounts on the path to the target
//!                    go on ->
//!                                                 find the target
//!                    <- what was found, the fs context
//! check the target, fsconfig, fsmount
//!                    the mount ->
//!                                                 create directories, move_mount, reopen, pin maps, mint a token
//!                    <- done
//! compare the mount and the token
//!                    keep ->                      exit
//! ```
//!
//! If anything ends this early, including our own death, the socket is closed, and the child then removes the mount
//! and the directories again. Nothing is held afterwards: a descriptor of the bpffs would keep everything pinned in it
//! alive beyond the end of the container.

pub(super) mod error;
mod filter;
mod inside;
mod message;
mod place;
mod process;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::time::Instant;

use rustix::fs::{AtFlags, StatxFlags, fstat, stat, statx};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount};

use crate::model::delegation::{Category, Delegation};
use crate::sys::SysError;
use crate::sys::bpf;
use crate::sys::mounts::MountPoint;
use crate::sys::statmount::NamespaceMounts;
use crate::sys::token::TokenError;
use error::MAX_DEPTH;
use inside::Job;
use message::{BpffsStep, CallFailure, ChildReport};
use place::MountTable;
use process::BpffsChild;

pub use error::BpffsError;

/// The inode of the initial user namespace, the same on every kernel (include/linux/proc_ns.h, PROC_USER_INIT_INO).
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// The source of our bpffs in the container's mount table, by which a second run for the same container recognizes it.
const SOURCE: &str = "bpfman-hook";

/// A map that appears as a file in the bpffs.
#[derive(Debug, Clone, Copy)]
pub struct MapFile<'a> {
    /// The map. The caller decides whether it is writable: the file's owner can change the file's mode.
    pub map: BorrowedFd<'a>,
    /// The file's name, without slashes and dots, which bpffs refuses.
    pub name: &'a str,
}

/// The bpffs to create. The caller has verified that the namespaces are the container's.
#[derive(Debug, Clone, Copy)]
pub struct BpffsSpec<'a> {
    /// The container's user namespace, an open `/proc/PID/ns/user`. It may be the caller's own.
    pub user_ns: BorrowedFd<'a>,
    /// The container's mount namespace, an open `/proc/PID/ns/mnt`.
    pub mount_ns: BorrowedFd<'a>,
    /// The container's root directory, opened with O_PATH through a process in that mount namespace
    /// ([`crate::sys::pid::Process::open_directory`]): the root file system before pivot_root, `/` after it.
    pub root: BorrowedFd<'a>,
    /// The mount point in that root, absolute and normal. Missing components are created as container root with mode
    /// 0755. They stay when the container ends, like the mount points that runtimes create.
    pub target: &'a Path,
    /// The delegation; an empty one creates a private bpffs.
    pub delegation: Delegation,
    /// Maps to pin in it, with mode 0600.
    pub maps: &'a [MapFile<'a>],
    /// Owner of these files: uid and gid as the container sees them. The root directory belongs to container root,
    /// mode 1777.
    pub owner: (u32, u32),
}

/// The result of [`mount`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mounted {
    /// The mount's id, the first field of its line in the container's mountinfo.
    pub mount_id: u32,
    /// The file system's device, major and minor.
    pub device: (u32, u32),
}

/// Creates a bpffs as `spec` says, mounts it, pins the maps, verifies the delegation by minting one token, and closes
/// everything.
///
/// The target must lie on the container's root mount, on sysfs, on a tmpfs that is not also mounted in our own mount
/// namespace, or on the root of a bpffs, which it then covers. No component of the path may be a symbolic link, and
/// the mount below must not be shared. Waits until `deadline` at most. On timeout and on every other error the mount
/// is removed again.
pub fn mount(spec: &BpffsSpec<'_>, deadline: Instant) -> Result<Mounted, SysError> {
    let target = spec.target.display().to_string();
    let names = components(spec.target).ok_or_else(|| BpffsError::TargetPath { target: target.clone() })?;
    let enter_user = enter_user_ns(spec)?;
    if same_file(spec.mount_ns, "/proc/self/ns/mnt")? {
        return Err(BpffsError::HostMountNamespace.into());
    }
    let maps = spec
        .maps
        .iter()
        .map(|file| Ok((file.map.as_raw_fd(), CString::new(file.name).map_err(|_| bad_name(file.name))?)))
        .collect::<Result<Vec<_>, SysError>>()?;
    let mounts = NamespaceMounts::of(spec.mount_ns);
    let job = Job::new(spec, enter_user, names, maps, mounts.is_none())?;
    let mut child = BpffsChild::start(&job)?;
    match converse(spec, &target, mounts, &mut child, deadline).and_then(|mounted| child.keep().map(|()| mounted)) {
        Ok(mounted) => Ok(mounted),
        Err(error) if child.undo() => Err(error),
        Err(error) => Err(BpffsError::LeftBehind { target, source: Box::new(error) }.into()),
    }
}

/// The exchange from the child's first to its last report.
fn converse(
    spec: &BpffsSpec<'_>,
    target: &str,
    mounts: Option<NamespaceMounts>,
    child: &mut BpffsChild,
    deadline: Instant,
) -> Result<Mounted, SysError> {
    let ids = inside::mount_ids(mounts.is_some());
    let (root, whole) = inside::mount_of(spec.root, ids).map_err(SysError::io("stat", "the container's root"))?;
    if mounts.is_none() {
        // The mount table is the child's, so it has to be in the container's namespace.
        match child.report(deadline)?.0 {
            ChildReport::Inside => {}
            ChildReport::Failed(failed) => return Err(inner_error(spec, target, failed)),
            ChildReport::Opened(_) | ChildReport::Done => return Err(unexpected("a report of the bpffs process")),
        }
    }
    let read = |child: &BpffsChild| match mounts {
        Some(mounts) => Ok(MountTable::Kernel(mounts)),
        None => child.mountinfo().map(MountTable::Text),
    };
    let table = read(child)?;
    place::check_way(target, (root, whole), &table)?;
    // If the child is gone, its last report says why.
    let _ = child.consent();
    let (report, context) = child.report(deadline)?;
    let opened = match report {
        ChildReport::Opened(opened) => opened,
        ChildReport::Failed(failed) => return Err(inner_error(spec, target, failed)),
        ChildReport::Inside | ChildReport::Done => return Err(unexpected("a report of the bpffs process")),
    };
    let context = context.ok_or_else(|| unexpected("the file system context"))?;
    let below = place::decide(target, root, &opened, &table, || read_text("/proc/self/mountinfo"))?;
    let (mount, id, device) = create(spec, context, ids)?;
    child.hand_over(mount).map_err(SysError::io("send the mount to", "the bpffs process"))?;
    let token = match child.report(deadline)? {
        (ChildReport::Done, token) => token,
        (ChildReport::Failed(failed), _) => return Err(inner_error(spec, target, failed)),
        (ChildReport::Inside | ChildReport::Opened(_), _) => return Err(unexpected("a report of the bpffs process")),
    };
    let ours = on_top(&read(child)?, id, below)?.ok_or_else(|| BpffsError::Covered { target: target.to_owned() })?;
    check(&spec.delegation, target, token, || place::find(&child.mountinfo()?, ours.id.into()))?;
    Ok(Mounted { mount_id: ours.id, device })
}

/// Sets the options, creates the file system, and creates a mount of it that is not in any namespace yet. Closes the
/// context. Also returns the mount's id and the file system's device.
fn create(spec: &BpffsSpec<'_>, context: OwnedFd, ids: StatxFlags) -> Result<(OwnedFd, u64, (u32, u32)), SysError> {
    // Kernels before Linux 5.14 ignore it, like any other option that bpffs does not know (kernel/bpf/inode.c,
    // bpf_parse_param).
    fsconfig_set_string(&context, "source", SOURCE).map_err(SysError::io("name", "the container's bpffs"))?;
    for (key, value) in spec.delegation.mount_options() {
        // After a refused value the context is still usable with the previous options, so the first error must be
        // returned.
        fsconfig_set_string(&context, key, &value).map_err(|errno| match errno {
            Errno::PERM => BpffsError::NotAdministrator { doing: format!("set the option {key}"), source: errno.into() },
            _ => BpffsError::OptionRefused { key: key.into(), value, source: errno.into() },
        })?;
    }
    fsconfig_create(&context).map_err(|errno| match errno {
        Errno::PERM => BpffsError::NotAdministrator { doing: "create the file system".into(), source: errno.into() }.into(),
        _ => SysError::io("create", "the container's bpffs")(errno),
    })?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(SysError::io("create a mount of", "the container's bpffs"))?;
    let stat = statx(&mount, c"", AtFlags::EMPTY_PATH, ids).map_err(SysError::io("stat", "the container's bpffs"))?;
    Ok((mount, stat.stx_mnt_id, (stat.stx_dev_major, stat.stx_dev_minor)))
}

/// The bpffs with this id, if it lies on the mount that was checked.
fn on_top(table: &MountTable, id: u64, below: u32) -> Result<Option<MountPoint>, SysError> {
    Ok(table.find(id)?.filter(|mount| mount.kind == "bpf" && mount.root == Path::new("/") && mount.parent == below))
}

/// Compares the delegation that the kernel shows with the requested one, because the kernel ignores unknown keys.
/// The minted token shows it; before Linux 6.17, the bpffs in the mount table does.
fn check(
    wanted: &Delegation,
    target: &str,
    token: Option<OwnedFd>,
    mount: impl FnOnce() -> Result<Option<MountPoint>, SysError>,
) -> Result<(), SysError> {
    let Some(token) = token else {
        // Nothing was delegated, so no key can have been ignored.
        return if wanted.is_empty() { Ok(()) } else { Err(unexpected("a report of the bpffs process")) };
    };
    let target = || target.to_owned();
    let (found, same) = if let Ok(found) = bpf::token_info(token.as_fd()) {
        (found, found == *wanted)
    } else {
        let mount = mount()?.ok_or_else(|| BpffsError::Covered { target: target() })?;
        let found = Delegation::from_mount_options(&mount.super_options.join(","))
            .map_err(|source| BpffsError::OptionsUnread { target: target(), source })?;
        (found, is_shown(found, *wanted))
    };
    if same {
        return Ok(());
    }
    Err(BpffsError::OptionsDiffer { target: target(), wanted: wanted.to_string(), found: found.to_string() }.into())
}

/// Whether the kernel shows what was requested. It accepts a mask with bits beyond its own enumerations and does not
/// show those (kernel/bpf/inode.c, `seq_print_delegate_opts`): a preset names types that are newer than this kernel.
/// The enumerations have no gaps, so only bits above the highest one shown may be missing.
fn is_shown(found: Delegation, wanted: Delegation) -> bool {
    Category::ALL.into_iter().all(|category| {
        let (found, wanted) = (found.mask(category), wanted.mask(category));
        let missing = wanted & !found;
        let newer = found != 0 && missing.trailing_zeros() > found.ilog2();
        found & !wanted == 0 && (missing == 0 || newer)
    })
}

/// Maps a failure in the child to an error.
fn inner_error(spec: &BpffsSpec<'_>, target: &str, failed: CallFailure) -> SysError {
    let target = target.to_owned();
    let errno = Errno::from_raw_os_error(failed.errno);
    let source = || io::Error::from(errno);
    let error: SysError = match (failed.step, errno) {
        (BpffsStep::BecomeRoot, _) => BpffsError::NoRootUser { source: source() }.into(),
        (BpffsStep::OpenFs, Errno::PERM) => BpffsError::NamespacesApart { source: source() }.into(),
        (BpffsStep::Find | BpffsStep::MakeDirectory | BpffsStep::Reopen, Errno::LOOP) => {
            BpffsError::TargetLink { target: target.clone() }.into()
        }
        (BpffsStep::Find | BpffsStep::MakeDirectory | BpffsStep::Reopen, Errno::NOTDIR) => {
            BpffsError::TargetNotDirectory { target: target.clone() }.into()
        }
        (BpffsStep::MakeDirectory, _) => BpffsError::TargetMissing { target: target.clone(), source: source() }.into(),
        (BpffsStep::Covered, _) => BpffsError::Covered { target: target.clone() }.into(),
        (BpffsStep::Pin | BpffsStep::Give, _) => {
            let name = spec.maps.get(failed.index as usize).map_or_else(String::new, |file| file.name.to_owned());
            BpffsError::Map { name, source: source() }.into()
        }
        // The kernel had the root of a bpffs with options, so what it does not know is the command.
        (BpffsStep::Mint, Errno::INVAL) => BpffsError::KernelTooOld.into(),
        (BpffsStep::Mint, errno) => BpffsError::Token { target: target.clone(), source: TokenError::from_errno(errno) }.into(),
        (step, errno) => SysError::io(step.doing(), step.object(&target))(errno),
    };
    if failed.left { BpffsError::LeftBehind { target, source: Box::new(error) }.into() } else { error }
}

/// The user namespace to enter, or None if we are already in it. A delegation needs one other than the initial one.
fn enter_user_ns<'a>(spec: &BpffsSpec<'a>) -> Result<Option<BorrowedFd<'a>>, SysError> {
    let inode = fstat(spec.user_ns).map_err(SysError::io("stat", "the container's user namespace"))?.st_ino;
    if inode == INITIAL_USER_NAMESPACE && !spec.delegation.is_empty() {
        return Err(BpffsError::NoUserNamespace.into());
    }
    Ok(if same_file(spec.user_ns, "/proc/self/ns/user")? { None } else { Some(spec.user_ns) })
}

fn same_file(fd: BorrowedFd<'_>, path: &'static str) -> Result<bool, SysError> {
    let theirs = fstat(fd).map_err(SysError::io("stat", "a namespace of the container"))?;
    let ours = stat(path).map_err(SysError::io("stat", path))?;
    Ok((theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino))
}

/// The components of an absolute, normal path other than `/`.
fn components(path: &Path) -> Option<Vec<CString>> {
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) {
        return None;
    }
    let names = parts.map(|part| match part {
        Component::Normal(name) => CString::new(name.as_bytes()).ok(),
        _ => None,
    });
    let names = names.collect::<Option<Vec<_>>>()?;
    // `components` drops `.`, `//` and a trailing slash, which are not allowed in a normal path either.
    let normal: usize = names.iter().map(|name| name.as_bytes().len() + 1).sum();
    let fits = !names.is_empty() && names.len() <= MAX_DEPTH && normal == path.as_os_str().len();
    fits.then_some(names)
}

fn bad_name(name: &str) -> SysError {
    BpffsError::Map { name: name.escape_debug().to_string(), source: io::ErrorKind::InvalidInput.into() }.into()
}

fn unexpected(what: &'static str) -> SysError {
    SysError::Message { what, problem: "it is not the expected one".into() }
}

/// Reads a file of procfs. Mount points may contain arbitrary bytes; the parts that are searched are ASCII.
fn read_text(path: &str) -> Result<String, SysError> {
    // procfs reports a size of 0, and without an initial capacity the file would be read in pieces of 32 bytes.
    let mut bytes = Vec::with_capacity(16 * 1024);
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(SysError::io("read", path))?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

impl AsFd for MapFile<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_absolute_and_normal() {
        let names = |path: &str| {
            components(Path::new(path)).map(|names| names.iter().map(|n| n.to_str().unwrap().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(names("/sys/fs/bpf").unwrap(), ["sys", "fs", "bpf"]);
        assert_eq!(names("/run").unwrap(), ["run"]);
        for path in ["", "/", "run", "/run/", "//run", "/run//bpf", "/./run", "/run/.", "/run/..", "/run/../etc", "/run/b\0pf"]
        {
            assert_eq!(names(path), None, "{path:?}");
        }
        let deep = |depth: usize| "/d".repeat(depth);
        assert!(names(&deep(MAX_DEPTH)).is_some() && names(&deep(MAX_DEPTH + 1)).is_none());
    }

    #[test]
    fn the_mounted_options_are_compared_with_the_requested_ones() {
        let wanted = Delegation { cmds: 0x21, maps: 4, progs: 0x40, attachs: 0x20_0000_0001 };
        let said = |table: &str| {
            // Not a token, so that the mount table is used, as before Linux 6.17.
            let token = OwnedFd::from(File::open("/dev/null").unwrap());
            match check(&wanted, "/run/bpf", Some(token), || place::find(table, 99)) {
                Ok(()) => "fine".to_owned(),
                Err(error) => error.to_string(),
            }
        };
        let lies_on = |table: &str, below| on_top(&MountTable::Text(table.to_owned()), 99, below).unwrap().is_some();
        let shown = "rw,uid=100000,delegate_cmds=map_create:prog_load,delegate_maps=array,delegate_progs=xdp,\
                     delegate_attachs=cgroup_inet_ingress:xdp";
        let line = |options: &str| format!("90 1 0:1 / / rw - ext4 x rw\n99 91 0:60 / /r/run/bpf rw - bpf none {options}\n");
        assert_eq!(said(&line(shown)), "fine");
        assert_eq!(said("90 1 0:1 / / rw - ext4 x rw\n"), "reopen the bpffs at /run/bpf: another mount covers it");
        assert!(lies_on(&line(shown), 91) && !lies_on(&line(shown), 92));
        assert!(!lies_on("90 1 0:1 / / rw - ext4 x rw\n", 91));
        assert!(!lies_on(&line(shown).replace(" - bpf ", " - tmpfs "), 91));
        assert!(!lies_on(&line(shown).replace("0:60 / ", "0:60 /sub "), 91));
        // A mistyped key, which the kernel accepts: it delegates nothing.
        let less = said(&line(&shown.replace("delegate_progs", "delegate_prog")));
        assert!(less.starts_with("check the bpffs at /run/bpf: it delegates "), "{less}");
        // More than what was requested is also wrong.
        assert_ne!(said(&line(&shown.replace("=array", "=any"))), "fine");
        assert!(check(&Delegation::default(), "/run/bpf", None, || Ok(None)).is_ok());
        assert!(check(&wanted, "/run/bpf", None, || Ok(None)).is_err(), "no token came");
    }

    #[test]
    fn failures_in_the_child_are_mapped_to_errors() {
        let null = File::open("/dev/null").unwrap();
        let maps = [MapFile { map: null.as_fd(), name: "events" }];
        let spec = BpffsSpec {
            user_ns: null.as_fd(),
            mount_ns: null.as_fd(),
            root: null.as_fd(),
            target: Path::new("/run/bpf"),
            delegation: Delegation::default(),
            maps: &maps,
            owner: (0, 0),
        };
        let said = |step, errno: Errno, left| {
            inner_error(&spec, "/run/bpf", CallFailure { step, errno: errno.raw_os_error(), index: 0, left }).to_string()
        };
        assert!(said(BpffsStep::BecomeRoot, Errno::INVAL, false).contains("does not map user or group 0"));
        assert!(said(BpffsStep::Mint, Errno::INVAL, false).contains("6.9"));
        assert_eq!(said(BpffsStep::Mint, Errno::PERM, false), "verify the delegation at /run/bpf");
        assert_eq!(said(BpffsStep::Pin, Errno::EXIST, false), "pin the map events in the container's bpffs");
        assert!(said(BpffsStep::Give, Errno::INVAL, true).contains("stays until the container ends"));
    }

    #[test]
    fn only_types_newer_than_the_kernel_may_be_missing() {
        let maps = |maps| Delegation { cmds: 0b1, maps, ..Delegation::default() };
        for (found, wanted, shown) in [
            (0b0110, 0b0110, true),
            (0b0110, 0b1110, true),
            (0b0100, 0b0110, false),
            (0b0110, 0b0100, false),
            (0b0000, 0b0110, false),
            (u64::MAX, u64::MAX, true),
            (u64::MAX, 0b0110, false),
        ] {
            assert_eq!(is_shown(maps(found), maps(wanted)), shown, "{found:b} for {wanted:b}");
        }
    }
}
