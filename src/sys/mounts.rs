//! The mount table, and the bpffs of bpfman-hook, which is mounted once, in the host's mount namespace only.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, fstatfs, openat, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, move_mount,
};
use rustix::process::geteuid;

use crate::sys::error::SysError;
use crate::sys::fsutil::{FileLock, TrustError, ensure_directory};

/// `BPF_FS_MAGIC`, include/uapi/linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Why the bpffs of bpfman-hook is not usable.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// This process is in a private mount namespace, where a mount would disappear together with the container's
    /// runtime.
    #[error(
        "mount {path}: the hook runs in a mount namespace that is not the host's; start the unit run-bpfman\\x2dhook-fs.mount first",
        path = .0.display()
    )]
    PrivateNamespace(PathBuf),
    /// This process is in a private mount namespace where our bpffs is not visible, so that missing pins prove
    /// nothing.
    #[error(
        "look for our pins in {path}: it is not mounted in this mount namespace, which is not the host's; run bpfman-hook gc on the host",
        path = .0.display()
    )]
    OutOfSight(PathBuf),
    /// Something other than a bpffs is mounted there, or a bpffs that other users can access.
    #[error("use {path} as our bpffs: {problem}", path = path.display())]
    Unfit {
        /// The mount point.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// The mount point is not accessible to root only.
    #[error(transparent)]
    Directory(#[from] TrustError),
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// How mounts below a mount propagate (Documentation/filesystems/sharedsubtree.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Propagation {
    /// `shared:N`: in peer group N.
    pub shared: Option<u32>,
    /// `master:N`: receives propagation from peer group N.
    pub master: Option<u32>,
    /// `propagate_from:N`: the closest group below our root from which it receives propagation.
    pub from: Option<u32>,
    /// `unbindable`
    pub unbindable: bool,
}

/// One line of `/proc/<pid>/mountinfo`, proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// The mount's id, unique among all namespaces while the mount exists.
    pub id: u32,
    /// The id of the parent mount.
    pub parent: u32,
    /// `major:minor` of the file system.
    pub device: (u32, u32),
    /// The directory of the file system that is mounted; not `/` for a bind mount of a subdirectory.
    pub root: PathBuf,
    /// The mount point, relative to the reader's root directory.
    pub point: PathBuf,
    /// Mount options: `rw`, `nosuid` …
    pub options: Vec<String>,
    /// How mounts below it propagate.
    pub propagation: Propagation,
    /// The file system type: `bpf`, `cgroup2`; with a subtype, as in `fuse.sshfs`.
    pub kind: String,
    /// The source: a device or an arbitrary word.
    pub source: String,
    /// Options of the file system: `delegate_cmds=…`.
    pub super_options: Vec<String>,
}

impl MountPoint {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (id, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let (major, minor) = words.next()?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        let (root, point) = (path(words.next()?), path(words.next()?));
        let options = list(words.next()?);
        let mut propagation = Propagation::default();
        // Optional fields, terminated by a dash; unknown ones must be ignored.
        loop {
            let word = words.next()?;
            match word.split_once(':') {
                Some(("shared", group)) => propagation.shared = Some(group.parse().ok()?),
                Some(("master", group)) => propagation.master = Some(group.parse().ok()?),
                Some(("propagate_from", group)) => propagation.from = Some(group.parse().ok()?),
                None if word == "-" => break,
                None if word == "unbindable" => propagation.unbindable = true,
                _ => {}
            }
        }
        let kind = text(words.next()?);
        // The source may be empty, which leaves an empty field; a line ends with the super options.
        let source = text(words.next()?);
        let super_options = list(words.next()?);
        Some(Self { id, parent, device, root, point, options, propagation, kind, source, super_options })
    }
}

/// Parses a mountinfo file. The lines are in mount order: of several mounts with the same mount point, the last one is
/// visible. The kernel extends the format only by optional fields, so a line that does not parse is an error.
pub fn parse_mountinfo(text: &str) -> Result<Vec<MountPoint>, SysError> {
    let bad =
        |line: &str| SysError::io("read the mount table at", format!("{line:?}"))(io::Error::from(io::ErrorKind::InvalidData));
    text.lines().map(|line| MountPoint::parse(line).ok_or_else(|| bad(line))).collect()
}

/// The mounts visible to this process.
pub fn own_mounts() -> Result<Vec<MountPoint>, SysError> {
    parse_mountinfo(&read_lossy("/proc/self/mountinfo")?)
}

/// The mounts visible to pid 1; None if it is in our own namespace or its table cannot be read.
pub fn host_mounts() -> Option<Vec<MountPoint>> {
    if in_host_mount_namespace().ok()? {
        return None;
    }
    parse_mountinfo(&read_lossy("/proc/1/mountinfo").ok()?).ok()
}

fn read_lossy(path: &'static str) -> Result<String, SysError> {
    Ok(String::from_utf8_lossy(&fs::read(path).map_err(SysError::io("read", path))?).into_owned())
}

fn list(word: &str) -> Vec<String> {
    word.split(',').map(text).collect()
}

fn text(word: &str) -> String {
    String::from_utf8_lossy(&unescape(word)).into_owned()
}

fn path(word: &str) -> PathBuf {
    OsString::from_vec(unescape(word)).into()
}

/// Decodes the kernel's escapes: blank, tab, newline, backslash and, in some fields, `#` are written as a backslash
/// and three octal digits (fs/seq_file.c, `mangle_path`).
fn unescape(word: &str) -> Vec<u8> {
    let bytes = word.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| bytes.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(octal.unwrap_or(bytes[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    out
}

/// True if our mount namespace is the one of the visible pid 1, so that our mounts outlive the runtime that runs this
/// process. A mount belongs to exactly one namespace, and its id to exactly one mount while it exists. So the
/// namespaces are equal if and only if pid 1's mount table contains the mount of our own root directory.
///
/// `/proc/1/ns/mnt` would be more direct, but reading it takes more than root if pid 1 holds a capability that we
/// lack. mountinfo is readable by all users (fs/proc_namespace.c does not check ptrace permission).
///
/// Limits: it also returns false if pid 1 is hidden (`hidepid`) or has changed its root directory, that is, whenever
/// it is uncertain. If pid 1 is that of a container that runs containers, that container counts as the host.
pub fn in_host_mount_namespace() -> Result<bool, SysError> {
    let own = statx(CWD, "/", AtFlags::empty(), StatxFlags::MNT_ID).map_err(SysError::io("stat", "/"))?;
    match fs::read("/proc/1/mountinfo") {
        Ok(table) => Ok(ids(&String::from_utf8_lossy(&table)).contains(&own.stx_mnt_id)),
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(false),
        Err(err) => Err(SysError::io("read", "/proc/1/mountinfo")(err)),
    }
}

fn ids(mountinfo: &str) -> HashSet<u64> {
    mountinfo.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

/// Makes sure that our bpffs is mounted at `path`, accessible to root only: mode 0700, nosuid, nodev, noexec.
///
/// An existing one is used after its type, owner and mode were checked, also in a private mount namespace that
/// received a copy of it. Otherwise it is mounted, under a lock on the mount point, if this is the host's mount
/// namespace. In another namespace the mount would be invisible elsewhere and all pins would be lost when the runtime
/// exits (podman with a user namespace), so that is refused. The propagation is that of `/run`: if it is shared,
/// namespaces that receive propagation from the host get the mount too. Pins exist until the last mount of it is gone:
/// they outlive this process.
pub fn ensure_bpffs(path: &Path) -> Result<(), MountError> {
    if mounted_bpffs(path)? {
        return Ok(());
    }
    if !in_host_mount_namespace()? {
        return Err(MountError::PrivateNamespace(path.to_owned()));
    }
    // The lock is on the mount point, not on its parent directory, which every user could open and lock. If another
    // process has mounted it meanwhile, this is the root of that mount, to which the kernel gave the sticky bit.
    let point = ensure_directory(path, 0o1700)?;
    let _lock = FileLock::wait(&point, path)?;
    if mounted_bpffs(path)? {
        return Ok(());
    }
    mount_bpffs(point.as_fd()).map_err(SysError::io("mount a bpffs on", path.display().to_string()))?;
    if mounted_bpffs(path)? { Ok(()) } else { Err(unfit(path, "it is not there after mounting")) }
}

/// Returns an error if pins that are not found at `path` may still exist: in a private mount namespace without our
/// bpffs, or if something else is mounted over it. A missing bpffs in the host's namespace is not an error, and neither
/// is one that is visible nowhere, neither here nor in the host's mount table: then there are no pins. So `gc` works in
/// the plugin's pod before the first start of a container on the node, and in the pod that removes the installation.
pub fn require_sight_of_bpffs(path: &Path) -> Result<(), MountError> {
    if mounted_bpffs(path)? || in_host_mount_namespace()? {
        return Ok(());
    }
    // The table has paths without symbolic links.
    let real = fs::canonicalize(path);
    let is_there = |mount: &MountPoint| mount.point == path || real.as_ref().is_ok_and(|real| mount.point == *real);
    match host_mounts() {
        Some(mounts) if !mounts.iter().any(is_there) => Ok(()),
        _ => Err(MountError::OutOfSight(path.to_owned())),
    }
}

/// True if a usable bpffs is mounted, false if nothing is mounted; anything else is an error.
fn mounted_bpffs(path: &Path) -> Result<bool, MountError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match openat(CWD, path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::NOTDIR) => return Err(unfit(path, "it is not a directory; remove it")),
        Err(errno) => return Err(SysError::io("open", path.display().to_string())(errno).into()),
    };
    let io = |doing| SysError::io::<Errno>(doing, path.display().to_string());
    let of = statx(&directory, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map_err(io("stat"))?;
    // Our bpffs is a mount of its own; without this check a directory of another bpffs, or of any file system, could
    // take its place.
    let mount_root = of.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let kind = fstatfs(&directory).map_err(io("find the file system of"))?.f_type;
    let mode = u32::from(of.stx_mode) & 0o7777;
    match (u64::try_from(kind).is_ok_and(|kind| kind == BPF_FS_MAGIC), mount_root) {
        (false, false) => Ok(false),
        (false, true) => Err(unfit(path, "another file system is mounted there; unmount it")),
        (true, false) => Err(unfit(path, "it is a directory of another bpffs, not a mount of its own")),
        (true, true) if of.stx_uid != geteuid().as_raw() => {
            Err(unfit(path, &format!("it belongs to uid {}; mount it with uid=0", of.stx_uid)))
        }
        (true, true) if mode & 0o077 != 0 => {
            Err(unfit(path, &format!("its mode is {mode:04o}, which lets other users in; mount it with mode=0700")))
        }
        (true, true) => Ok(true),
    }
}

fn mount_bpffs(point: BorrowedFd<'_>) -> Result<(), Errno> {
    let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "bpfman-hook")?;
    fsconfig_set_string(&context, "mode", "0700")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount: OwnedFd = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mount, "", point, "", empty)
}

fn unfit(path: &Path, problem: &str) -> MountError {
    MountError::Unfit { path: path.to_owned(), problem: problem.to_owned() }
}

/// Unmounts the mount at `path`, without following a symbolic link. Returns true if something was mounted. EBUSY is an
/// error: open files keep a bpffs and all its pins alive, so it is never detached lazily.
pub fn unmount(path: &Path) -> Result<bool, SysError> {
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::INVAL) => Ok(false),
        Err(errno) => Err(SysError::io("unmount", path.display().to_string())(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as kernels write them: a delegated bpffs of a container, a hybrid host's cgroup2, a shared root, podman's
    /// overlay, a slave below it, a bind mount with blanks in its name, an automount without a source.
    const RECORDED: &str = "\
602 601 0:64 / /sys/fs/bpf rw,nosuid,nodev,noexec,relatime - bpf none rw,uid=100000,gid=100000,delegate_cmds=map_create:prog_load,delegate_maps=any
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
25 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
711 645 0:77 / / rw,relatime master:12 propagate_from:1 - overlay overlay rw,lowerdir=/var/lib/a:/var/lib/b
712 711 0:4 /sys /proc/sys ro,nosuid shared:7 master:3 - proc proc rw
88 25 8:2 /srv/a\\040b\\134c /mnt/tab\\011nl\\012 rw unbindable - ext4 /dev/disk/by-label/my\\040disk rw
90 25 0:41 / /x rw new:field also - autofs  rw,fd=5
91 25 0:42 / /remote rw - fuse.sshfs host:/srv rw,user_id=0
";

    #[test]
    fn recorded_lines_are_parsed() {
        let mounts = parse_mountinfo(RECORDED).unwrap();
        let at = |id: u32| mounts.iter().find(|mount| mount.id == id).unwrap();

        let bpf = at(602);
        assert_eq!(
            (bpf.kind.as_str(), bpf.point.as_path(), bpf.propagation),
            ("bpf", Path::new("/sys/fs/bpf"), Propagation::default())
        );
        let has = |mount: &MountPoint, option: &str| mount.super_options.iter().any(|found| found == option);
        assert!(has(bpf, "delegate_cmds=map_create:prog_load") && has(bpf, "rw") && !has(bpf, "delegate_progs"));
        assert_eq!(bpf.options, ["rw", "nosuid", "nodev", "noexec", "relatime"]);

        assert_eq!((at(41).kind.as_str(), at(41).parent, at(41).device), ("cgroup2", 31, (0, 38)));
        assert_eq!(at(25).propagation, Propagation { shared: Some(1), ..Propagation::default() });
        assert_eq!(at(711).propagation, Propagation { master: Some(12), from: Some(1), ..Propagation::default() });
        assert!(has(at(711), "lowerdir=/var/lib/a:/var/lib/b"), "{:?}", at(711).super_options);
        assert_eq!(at(712).propagation, Propagation { shared: Some(7), master: Some(3), ..Propagation::default() });
        assert_eq!(at(712).root, Path::new("/sys"));
        assert_eq!((at(88).root.as_path(), at(88).point.as_path()), (Path::new("/srv/a b\\c"), Path::new("/mnt/tab\tnl\n")));
        assert!(at(88).propagation.unbindable && at(88).source == "/dev/disk/by-label/my disk");
        assert_eq!((at(90).kind.as_str(), at(90).source.as_str()), ("autofs", ""));
        assert_eq!(at(91).kind, "fuse.sshfs");
    }

    #[test]
    fn incomplete_lines_are_errors() {
        for bad in [
            "602",
            "x 601 0:64 / /sys rw - bpf none rw",
            "602 601 0:64 / /sys rw shared:1 bpf none rw",
            "602 601 0:64 / /sys rw shared:x - bpf none rw",
            "602 601 064 / /sys rw - bpf none rw",
            "602 601 0:64 / /sys rw - bpf none",
        ] {
            assert!(parse_mountinfo(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_mountinfo("").unwrap(), []);
    }

    #[test]
    fn our_own_table_contains_our_root() {
        let own = statx(CWD, "/", AtFlags::empty(), StatxFlags::MNT_ID).unwrap().stx_mnt_id;
        assert!(own_mounts().unwrap().iter().any(|mount| u64::from(mount.id) == own && mount.point == Path::new("/")));
    }

    #[test]
    fn invalid_escapes_are_kept() {
        for (word, plain) in [("a\\04", "a\\04"), ("\\9", "\\9"), ("\\777", "\\777"), ("\\134040", "\\040"), ("\\043", "#")] {
            assert_eq!(unescape(word), plain.as_bytes(), "{word}");
        }
    }

    #[test]
    fn a_plain_directory_is_neither_a_bpffs_nor_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!mounted_bpffs(dir.path()).unwrap() && !mounted_bpffs(&dir.path().join("none")).unwrap());
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(matches!(mounted_bpffs(&dir.path().join("file")), Err(MountError::Unfit { .. })));
        assert!(matches!(mounted_bpffs(Path::new("/proc")), Err(MountError::Unfit { .. })));
    }
}
