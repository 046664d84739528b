//! A bpffs for a container: made in the container's user namespace, configured from outside, mounted in its mount namespace.
//!
//! Who may do what is the kernel's choice (kernel/bpf/inode.c): `fsopen` decides which user namespace the file system
//! belongs to, so it happens inside; `delegate_*` and the creation need CAP_SYS_ADMIN in the initial user namespace, so they
//! happen here; `move_mount` needs it in the container's mount namespace, so it happens inside again. A forked child
//! ([`inside`]) does the inner part, and the two talk over a socket:
//!
//! ```text
//! here                                            inside
//! fork                                            enter both namespaces, become container root, fsopen, find the target
//!                    <- what was found, the fs context
//! judge the target, fsconfig, fsmount
//!                    the mount ->
//!                                                 make missing directories, move_mount, open it anew, pin maps, mint a token
//!                    <- done
//! compare mountinfo
//!                    keep ->                      exit
//! ```
//!
//! Whatever ends this early, our own death included, closes the socket, and the child then takes the mount and the
//! directories away again. Nothing is held afterwards: a descriptor of the bpffs would keep all that is pinned in it alive
//! beyond the container's end.

mod inside;
mod place;
mod process;

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::time::Instant;

use rustix::fs::{AtFlags, StatxFlags, fstat, stat, statx};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount};

use crate::model::delegation::{Category, Delegation, ShownError};
use crate::sys::SysError;
use crate::sys::token::TokenError;
use inside::{Failed, Job, MAX_DEPTH, Report, Step, Verdict};
use process::Forked;

/// The inode of the initial user namespace's file, the same on every kernel (include/linux/proc_ns.h, PROC_USER_INIT_INO).
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// A map to appear as a file of the bpffs.
#[derive(Debug, Clone, Copy)]
pub struct MapFile<'a> {
    /// The map. Whether it may be written is the caller's business: the file's owner can change the file's mode.
    pub map: BorrowedFd<'a>,
    /// The file's name: no slash and no dot, which bpffs refuses.
    pub name: &'a str,
}

/// The bpffs to make. The caller has proved that the namespaces are the container's.
#[derive(Debug, Clone, Copy)]
pub struct Spec<'a> {
    /// The container's user namespace, an open `/proc/PID/ns/user`. It may be our own.
    pub user_ns: BorrowedFd<'a>,
    /// The container's mount namespace, an open `/proc/PID/ns/mnt`.
    pub mount_ns: BorrowedFd<'a>,
    /// The container's root directory as a path in that mount namespace: before pivot_root the host's path, after it `/`.
    pub root: &'a Path,
    /// Where in that root: absolute and normal. Components that are missing are made, mode 0755, as container root; they
    /// stay when the container ends, as the mount points that runtimes make do.
    pub target: &'a Path,
    /// What it delegates; an empty one makes a private bpffs.
    pub delegation: Delegation,
    /// Maps to pin in it: mode 0600.
    pub maps: &'a [MapFile<'a>],
    /// Owner of these files, uid and gid as the container sees them. The root directory belongs to container root, mode 1777.
    pub owner: (u32, u32),
}

/// What was mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mounted {
    /// The mount's id, the first word of its line in the container's mountinfo.
    pub mount_id: u32,
    /// The file system's device, major and minor.
    pub device: (u32, u32),
}

/// Why a bpffs could not be made for a container. Where nothing else is said, nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum BpffsError {
    /// Tokens exist only below the initial user namespace.
    #[error(
        "delegate BPF to the container: it has no user namespace, and a token is possible only in one; \
         give it one, under podman with --userns=auto or --uidmap"
    )]
    NoUserNamespace,
    /// Its user namespace has no root, so nobody could own the bpffs.
    #[error("become root of the container: its user namespace maps no user or group 0; map one")]
    NoRootUser {
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The mount namespace is our own.
    #[error("mount a bpffs for the container: it has no mount namespace of its own; give it one")]
    HostMountNamespace,
    /// `fsopen` needs both namespaces to belong together.
    #[error(
        "open a bpffs in the container's namespaces: its mount namespace does not belong to its user namespace; \
         create both with the container"
    )]
    NamespacesApart {
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A rootless runtime, or a hook without capabilities.
    #[error(
        "{doing} of the container's bpffs: that takes CAP_SYS_ADMIN in the initial user namespace; \
         run the runtime as root, or use the broker"
    )]
    NotAdministrator {
        /// The step: `set the option delegate_cmds`, `create the file system`.
        doing: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// No BPF tokens.
    #[error("delegate BPF to the container: the kernel has no BPF tokens; Linux 6.9 or newer is needed")]
    KernelTooOld,
    /// A value that this kernel does not take.
    #[error("set the option {key}={value} of the container's bpffs: the kernel refuses the value")]
    OptionRefused {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// The target is not an absolute, normal path below the root.
    #[error("mount a bpffs at {target}: the path is not absolute and normal, or has more than {MAX_DEPTH} components")]
    TargetPath {
        /// The target.
        target: String,
    },
    /// Not there, and container root may not make it.
    #[error(
        "mount a bpffs at {target}: the directory is missing and the container's root user cannot make it; \
         add it to the image or choose another bpffs-path"
    )]
    TargetMissing {
        /// The target.
        target: String,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A symbolic link on the way, which would lead elsewhere.
    #[error(
        "mount a bpffs at {target}: a symbolic link of the container's root file system is on the way; \
         replace it by a directory or choose another bpffs-path"
    )]
    TargetLink {
        /// The target.
        target: String,
    },
    /// A file.
    #[error("mount a bpffs at {target}: it, or what it lies in, is not a directory; choose another bpffs-path")]
    TargetNotDirectory {
        /// The target.
        target: String,
    },
    /// Not on the container's own ground.
    #[error(
        "mount a bpffs at {target}: it lies on a mount from outside the container ({mount}); \
         choose a bpffs-path on the container's root, /sys or a tmpfs of its own"
    )]
    TargetHostMount {
        /// The target.
        target: String,
        /// The mount: its point and kind of file system.
        mount: String,
    },
    /// The mount would appear elsewhere too.
    #[error(
        "mount a bpffs at {target}: mounts below {mount} are shared with other mount namespaces; \
         make it private or a slave (rootfsPropagation), or choose another bpffs-path"
    )]
    TargetShared {
        /// The target.
        target: String,
        /// The mount point.
        mount: String,
    },
    /// Somebody mounted something over it meanwhile.
    #[error("open the bpffs at {target} anew: another mount is there")]
    Covered {
        /// The target.
        target: String,
    },
    /// The kernel ignores keys that it does not know, so what it shows is compared with what was asked.
    #[error("check the bpffs at {target}: it delegates {found} instead of {wanted}")]
    OptionsDiffer {
        /// The target.
        target: String,
        /// What was asked.
        wanted: String,
        /// What mountinfo shows.
        found: String,
    },
    /// Mountinfo shows an option that we cannot read.
    #[error("check the bpffs at {target}")]
    OptionsUnread {
        /// The target.
        target: String,
        /// The option.
        #[source]
        source: ShownError,
    },
    /// A map could not be pinned, or not be given to the container's user.
    #[error("show the map {name} in the container's bpffs")]
    Map {
        /// The file's name.
        name: String,
        /// The errno: EINVAL where the container's user namespace does not map the owner.
        #[source]
        source: io::Error,
    },
    /// The proof failed: no token can be minted from the bpffs.
    #[error("prove the delegation at {target}")]
    Token {
        /// The target.
        target: String,
        /// Why.
        #[source]
        source: TokenError,
    },
    /// Something failed, and then the mount or a directory could not be taken away again.
    #[error("take the bpffs at {target} away again after a failure: it stays until the container ends")]
    LeftBehind {
        /// The target.
        target: String,
        /// The failure.
        #[source]
        source: Box<SysError>,
    },
}

/// Makes a bpffs as `spec` says, mounts it, pins the maps, proves the delegation by minting one token, and closes everything.
///
/// The target must lie on the container's root mount, on sysfs, on a tmpfs that is not also mounted in our own mount
/// namespace, or on the root of a bpffs (which it then covers); no symbolic link may be on the way, and the mount below must
/// not be shared. Waits until `deadline` at most; then, and on every other error, what was mounted is taken away again.
pub fn mount(spec: &Spec<'_>, deadline: Instant) -> Result<Mounted, SysError> {
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
    let job = Job::new(spec, enter_user, names, maps)?;
    let mut child = Forked::start(&job)?;
    let result = converse(spec, &target, &mut child, deadline);
    match result {
        Ok(mounted) => {
            child.verdict(Verdict::Keep).map_err(SysError::io("answer", "the bpffs process"))?;
            child.finish(deadline)?;
            Ok(mounted)
        }
        Err(error) => Err(if child.undo() { error } else { BpffsError::LeftBehind { target, source: Box::new(error) }.into() }),
    }
}

/// Everything between the child's first and its last report.
fn converse(spec: &Spec<'_>, target: &str, child: &mut Forked, deadline: Instant) -> Result<Mounted, SysError> {
    let (report, context) = child.report(deadline)?;
    let opened = match report {
        Report::Opened(opened) => opened,
        Report::Failed(failed) => return Err(inner_error(spec, target, failed)),
        Report::Done => return Err(unexpected("a report of the bpffs process")),
    };
    let context = context.ok_or_else(|| unexpected("the file system context"))?;
    place::judge(target, &opened, &child.mountinfo()?, || read_text("/proc/self/mountinfo"))?;
    let (mount, mounted) = create(spec, context)?;
    child.hand_over(mount).map_err(SysError::io("send the mount to", "the bpffs process"))?;
    match child.report(deadline)?.0 {
        Report::Done => {}
        Report::Failed(failed) => return Err(inner_error(spec, target, failed)),
        Report::Opened(_) => return Err(unexpected("a report of the bpffs process")),
    }
    check(spec, target, mounted, &child.mountinfo()?)?;
    Ok(mounted)
}

/// Sets the options, creates the file system and a mount of it that is not in any namespace yet. The context is closed.
fn create(spec: &Spec<'_>, context: OwnedFd) -> Result<(OwnedFd, Mounted), SysError> {
    for (key, value) in spec.delegation.mount_options() {
        // A failing value leaves the context usable, with what was set before: only the first error says that it is not.
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
        .map_err(SysError::io("make a mount of", "the container's bpffs"))?;
    let stat =
        statx(&mount, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map_err(SysError::io("stat", "the container's bpffs"))?;
    let mount_id = u32::try_from(stat.stx_mnt_id).map_err(|_| unexpected("the id of the container's bpffs"))?;
    Ok((mount, Mounted { mount_id, device: (stat.stx_dev_major, stat.stx_dev_minor) }))
}

/// Compares what the kernel shows with what was asked: it ignores keys that it does not know.
fn check(spec: &Spec<'_>, target: &str, mounted: Mounted, mountinfo: &str) -> Result<(), SysError> {
    let gone = || BpffsError::Covered { target: target.to_owned() };
    let mount = place::find(mountinfo, mounted.mount_id.into())?.ok_or_else(gone)?;
    if mount.kind != "bpf" || mount.root != Path::new("/") {
        return Err(gone().into());
    }
    let found = Delegation::from_mount_options(&mount.super_options.join(","))
        .map_err(|source| BpffsError::OptionsUnread { target: target.to_owned(), source })?;
    if is_shown(found, spec.delegation) {
        return Ok(());
    }
    let (wanted, found) = (spec.delegation.to_string(), found.to_string());
    Err(BpffsError::OptionsDiffer { target: target.to_owned(), wanted, found }.into())
}

/// Whether what the kernel shows is what was asked. It takes a mask with values beyond its own enumerations and does not show
/// those (kernel/bpf/inode.c, `seq_print_delegate_opts`): a preset names types that are newer than this kernel. As the
/// enumerations have no gaps, only values above the highest that is shown may be missing.
fn is_shown(found: Delegation, wanted: Delegation) -> bool {
    Category::ALL.into_iter().all(|category| {
        let (found, wanted) = (found.mask(category), wanted.mask(category));
        let missing = wanted & !found;
        let newer = found != 0 && missing.trailing_zeros() > found.ilog2();
        found & !wanted == 0 && (missing == 0 || newer)
    })
}

/// What a failure inside means.
fn inner_error(spec: &Spec<'_>, target: &str, failed: Failed) -> SysError {
    let target = target.to_owned();
    let errno = Errno::from_raw_os_error(failed.errno);
    let source = || io::Error::from(errno);
    let error: SysError = match (failed.step, errno) {
        (Step::BecomeRoot, _) => BpffsError::NoRootUser { source: source() }.into(),
        (Step::OpenFs, Errno::PERM) => BpffsError::NamespacesApart { source: source() }.into(),
        (Step::Find | Step::MakeDirectory | Step::Reopen, Errno::LOOP) => {
            BpffsError::TargetLink { target: target.clone() }.into()
        }
        (Step::Find | Step::MakeDirectory | Step::Reopen, Errno::NOTDIR) => {
            BpffsError::TargetNotDirectory { target: target.clone() }.into()
        }
        (Step::MakeDirectory, _) => BpffsError::TargetMissing { target: target.clone(), source: source() }.into(),
        (Step::Covered, _) => BpffsError::Covered { target: target.clone() }.into(),
        (Step::Pin | Step::Give, _) => {
            let name = spec.maps.get(failed.index as usize).map_or_else(String::new, |file| file.name.to_owned());
            BpffsError::Map { name, source: source() }.into()
        }
        // The kernel had a bpffs root with options before it: what it does not know is the command.
        (Step::Mint, Errno::INVAL) => BpffsError::KernelTooOld.into(),
        (Step::Mint, errno) => BpffsError::Token { target: target.clone(), source: TokenError::from_errno(errno) }.into(),
        (step, errno) => SysError::io(step.doing(), step.object(spec.root, &target))(errno),
    };
    if failed.left { BpffsError::LeftBehind { target, source: Box::new(error) }.into() } else { error }
}

/// The user namespace to enter, or None where we are in it already. A delegation needs one that is not the initial one.
fn enter_user_ns<'a>(spec: &Spec<'a>) -> Result<Option<BorrowedFd<'a>>, SysError> {
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

/// The names of an absolute, normal path that is not `/` itself.
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
    // `components` drops `.`, `//` and a slash at the end: they do not belong in a normal path either.
    let normal: usize = names.iter().map(|name| name.as_bytes().len() + 1).sum();
    let fits = !names.is_empty() && names.len() <= MAX_DEPTH && normal == path.as_os_str().len();
    fits.then_some(names)
}

fn bad_name(name: &str) -> SysError {
    BpffsError::Map { name: name.escape_debug().to_string(), source: io::ErrorKind::InvalidInput.into() }.into()
}

fn unexpected(what: &'static str) -> SysError {
    SysError::Message { what, problem: "it is not what belongs here".into() }
}

/// A file of procfs. Mount points in it may have any bytes; what is looked for has ASCII only.
fn read_text(path: &str) -> Result<String, SysError> {
    // It says that its size is 0, and without room to begin with it would be read in pieces of 32 bytes.
    let mut bytes = Vec::with_capacity(16 * 1024);
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(SysError::io("read", path))?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

fn c_path(path: &OsStr) -> Result<CString, SysError> {
    CString::new(path.as_bytes()).map_err(|e| SysError::io("use", path.display().to_string())(io::Error::from(e)))
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
    fn only_what_is_newer_than_the_kernel_may_be_missing() {
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
