//! Files and directories of bpfman-hook, and safe access to directories of others.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, UTIME_NOW,
    chownat, fchmod, flock, fstat, fsync, mkdirat, openat, openat2, renameat, renameat_with, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::sys::error::SysError;
pub use crate::sys::memfd::{read_sealed, sealed_memfd};
pub use crate::sys::trusted::{ReadError, TrustError, TrustedRoot, read_capped, read_trusted_file};

/// Reads a regular text file of at most `max` bytes in a directory that the caller trusts, such as a bundle.
pub fn read_text(path: &Path, max: usize) -> Result<String, SysError> {
    // O_NONBLOCK: do not block on a fifo.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(CWD, path, flags, Mode::empty()).map_err(SysError::io("read", show(path)))?;
    let stat = fstat(&file).map_err(SysError::io("stat", show(path)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(SysError::io("read", show(path))(io::Error::other("it is not a regular file")));
    }
    let bytes = super::trusted::read_capped(std::fs::File::from(file), max)
        .map_err(|e| SysError::io("read", show(path))(io::Error::other(e)))?;
    String::from_utf8(bytes).map_err(|_| SysError::io("read", show(path))(io::Error::other("it is not UTF-8")))
}

/// Removes a file, a socket or a pin. Returns true if it existed; if it did not, that is not an error.
pub fn unlink_if_present(path: &Path) -> Result<bool, SysError> {
    removed(unlinkat(CWD, path, AtFlags::empty()), "remove", path)
}

/// Sets the times of a file to now.
///
/// # Errors
/// If it is missing or belongs to another user.
pub fn touch(path: &Path) -> Result<(), SysError> {
    let now = || Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now(), last_modification: now() };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(SysError::io("touch", path.display().to_string()))
}

/// Removes an empty directory. Returns true if it existed. A directory that is not empty is an error.
pub fn remove_dir_if_present(path: &Path) -> Result<bool, SysError> {
    removed(unlinkat(CWD, path, AtFlags::REMOVEDIR), "remove the directory", path)
}

fn removed(result: Result<(), Errno>, doing: &'static str, path: &Path) -> Result<bool, SysError> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(SysError::io(doing, show(path))(errno)),
    }
}

/// Writes a file atomically: it has all bytes and exactly `mode`, or is unchanged. A temporary file next to it is
/// written, synced and renamed over it. A symbolic link at `path` is replaced, not followed.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), SysError> {
    let directory = replace(path, &unique_beside(path), bytes, mode, RenameFlags::empty(), File::sync_all)?;
    fsync(&directory).map_err(SysError::io("sync the directory of", show(path)))
}

/// Like [`write_atomically`], for a file that does not exist yet: EEXIST if it does, also if another process creates it
/// meanwhile.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), SysError> {
    let directory = replace(path, &unique_beside(path), bytes, mode, RenameFlags::NOREPLACE, File::sync_all)?;
    fsync(&directory).map_err(SysError::io("sync the directory of", show(path)))
}

/// Like [`write_atomically`], but without waiting for the disk. The caller must hold a lock that keeps all other
/// writers of the directory out. Other processes never see a partial file, but after a power failure it may be empty
/// or have its old contents; [`bring_to_disk`] prevents that. The temporary name ends with `.new`, so that the next
/// writer replaces what a killed one left.
pub fn write_whole_alone(path: &Path, bytes: &[u8], mode: u32) -> Result<(), SysError> {
    replace(path, ".new", bytes, mode, RenameFlags::empty(), |_| Ok(())).map(drop)
}

/// The name of a file next to `path` that no other living process uses.
fn unique_beside(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}.{}.{}", std::process::id(), unique())
}

/// Writes the file `temporary` next to `path` and renames it. Returns their directory.
fn replace(
    path: &Path,
    temporary: &str,
    bytes: &[u8],
    mode: u32,
    how: RenameFlags,
    written: impl FnOnce(&File) -> io::Result<()>,
) -> Result<OwnedFd, SysError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(SysError::io("write", show(path))(Errno::ISDIR));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let directory = openat(CWD, parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(SysError::io("open the directory", show(parent)))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let open = || openat(&directory, temporary, flags, Mode::RUSR | Mode::WUSR);
    let opened = match open() {
        // Left by a process that was killed.
        Err(Errno::EXIST) => unlinkat(&directory, temporary, AtFlags::empty()).and_then(|()| open()),
        other => other,
    };
    let fd = opened.map_err(SysError::io("create a file next to", show(path)))?;
    let mut file = File::from(fd);
    let done = file
        .write_all(bytes)
        .and_then(|()| fchmod(&file, Mode::from_raw_mode(mode)).map_err(io::Error::from)) // past the umask
        .and_then(|()| written(&file))
        .and_then(|()| rename(&directory, temporary, name, how).map_err(io::Error::from))
        .map_err(SysError::io("write", show(path)));
    match done {
        Ok(()) => Ok(directory),
        Err(err) => {
            let _ = unlinkat(&directory, temporary, AtFlags::empty());
            Err(err)
        }
    }
}

/// Renames within a directory. Without flags this is renameat(2), which every file system knows.
fn rename(directory: &OwnedFd, from: &str, to: &OsStr, how: RenameFlags) -> Result<(), Errno> {
    if how.is_empty() { renameat(directory, from, directory, to) } else { renameat_with(directory, from, directory, to, how) }
}

/// Syncs these files and directories to disk. This is done in parallel, because a journaling file system writes its
/// journal once for many. Paths that no longer exist are ignored.
pub fn bring_to_disk(paths: &[std::path::PathBuf]) -> Result<(), SysError> {
    let sync = |path: &Path| match File::open(path).and_then(|file| file.sync_all()) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(SysError::io("sync", show(path))(err)),
        _ => Ok(()),
    };
    std::thread::scope(|scope| {
        let start = |path| std::thread::Builder::new().spawn_scoped(scope, move || sync(path));
        let started: Vec<_> = paths.iter().map(|path| (path, start(path))).collect();
        let done = started.into_iter().map(|(path, started)| match started {
            Ok(thread) => thread.join().expect("a system call does not panic"),
            Err(_) => sync(path),
        });
        done.collect::<Vec<_>>().into_iter().collect()
    })
}

/// A number unique among the calls of this process.
fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What kind of object to open below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenAs {
    /// Anything, without opening it (O_PATH): to examine it, to mount on it, or as a starting point.
    Path,
    /// A directory, without opening it.
    DirectoryPath,
    /// A directory that can be listed; BPF_TOKEN_CREATE accepts this kind.
    Directory,
}

impl OpenAs {
    fn flags(self) -> OFlags {
        OFlags::CLOEXEC
            | match self {
                Self::Path => OFlags::PATH,
                Self::DirectoryPath => OFlags::PATH | OFlags::DIRECTORY,
                Self::Directory => OFlags::RDONLY | OFlags::DIRECTORY,
            }
    }
}

/// Opens `path` as a process with the root directory `root` would: absolute links, `..` and a leading `/` stay inside,
/// and procfs links that leave the path (magic links) are refused. For directory trees of other users.
pub fn open_beneath(root: impl AsFd, path: &Path, how: OpenAs) -> Result<OwnedFd, SysError> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: a rename or mount raced with resolving `..`, so that the kernel could not determine whether it stays
    // inside.
    let mut attempts = 0;
    loop {
        match openat2(root.as_fd(), path, how.flags(), Mode::empty(), resolve) {
            Err(Errno::AGAIN) if attempts < 64 => attempts += 1,
            other => return other.map_err(SysError::io("open beneath the root directory", show(path))),
        }
    }
}

/// Opens a directory as a root for lookups, by a trusted path: links, including those of procfs, are followed.
pub fn open_root(path: &Path) -> Result<OwnedFd, SysError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(SysError::io("open the root directory", show(path)))
}

/// Opens a regular file for reading as [`open_beneath`] does, and returns its size. The type is checked before the
/// file is opened, since opening a device or fifo may have side effects.
pub fn open_regular_beneath(root: impl AsFd, path: &Path) -> Result<(File, u64), SysError> {
    let found = open_beneath(root, path, OpenAs::Path)?;
    let fail = |error: io::Error| SysError::io("open beneath the root directory", show(path))(error);
    let stat = fstat(&found).map_err(|errno| fail(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(fail)?;
    Ok((file, stat.st_size.cast_unsigned()))
}

/// Creates a directory with `mode` if it is missing, its missing parents with 0755, and opens it. An existing one is
/// accepted only if it is a directory and not a symbolic link, belongs to the effective user, and is not writable by
/// other users. Mode bits beyond `mode` are removed.
pub fn ensure_directory(path: &Path, mode: u32) -> Result<OwnedFd, TrustError> {
    let made = match mkdirat(CWD, path, Mode::from_raw_mode(mode)) {
        Err(Errno::NOENT) => {
            let parent = path.parent().ok_or_else(|| TrustError::Missing(path.to_owned()))?;
            ensure_directory(parent, 0o755)?;
            mkdirat(CWD, path, Mode::from_raw_mode(mode))
        }
        other => other,
    };
    if let Err(errno) = made
        && errno != Errno::EXIST
    {
        return Err(TrustError::Io { doing: "create the directory", path: path.to_owned(), source: errno.into() });
    }
    open_own_directory(path, mode)?.ok_or_else(|| TrustError::Missing(path.to_owned()))
}

/// The second half of [`ensure_directory`]: opens such a directory, or returns None if it is missing.
pub fn open_own_directory(path: &Path, mode: u32) -> Result<Option<OwnedFd>, TrustError> {
    let io = |doing| move |errno: Errno| TrustError::Io { doing, path: path.to_owned(), source: errno.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match openat(CWD, path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        // A symbolic link also fails with ENOTDIR, since O_DIRECTORY is checked first.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Err(TrustError::Kind { path: path.to_owned(), component: path.to_owned(), wanted: "directory" });
        }
        Err(errno) => return Err(io("open the directory")(errno)),
    };
    let stat = fstat(&directory).map_err(io("stat"))?;
    if stat.st_uid != geteuid().as_raw() {
        return Err(TrustError::Owner { path: path.to_owned(), component: path.to_owned(), uid: stat.st_uid });
    }
    let is = Mode::from_raw_mode(stat.st_mode).as_raw_mode() & 0o7777;
    if is & 0o022 != 0 {
        return Err(TrustError::Writable { path: path.to_owned(), component: path.to_owned(), mode: is });
    }
    if is & !mode != 0 {
        fchmod(&directory, Mode::from_raw_mode(is & mode)).map_err(io("restrict the mode of"))?;
    }
    Ok(Some(directory))
}

/// Removes a directory tree without following symbolic links. Returns false if it does not exist.
pub fn remove_tree(path: &Path) -> Result<bool, SysError> {
    // The standard library uses openat(O_NOFOLLOW) and unlinkat, so that it cannot be led outside by a link
    // (CVE-2022-21658).
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(SysError::io("remove the directory", show(path))(err)),
    }
}

/// An exclusive lock on an open file or directory (flock(2)). It is released when this value is dropped, or by the
/// kernel when the process dies. It belongs to the open file description: a child that inherits the descriptor also
/// holds the lock, so the descriptor must be close-on-exec.
#[derive(Debug)]
pub struct FileLock<'a> {
    file: &'a OwnedFd,
}

impl<'a> FileLock<'a> {
    /// Waits for the lock without a timeout; the process's deadline limits it.
    pub fn wait(file: &'a OwnedFd, shown: &Path) -> Result<Self, SysError> {
        loop {
            match flock(file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { file }),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(SysError::io("lock", show(shown))(errno)),
            }
        }
    }

    /// Waits for the lock for at most `patience`, then returns None. It retries about every millisecond: flock(2) does
    /// not have a timeout except by a signal.
    pub fn wait_for(file: &'a OwnedFd, shown: &Path, patience: Duration) -> Result<Option<Self>, SysError> {
        let end = Instant::now() + patience;
        let mut pause = Duration::from_micros(50);
        loop {
            match flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Self { file })),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() >= end => return Ok(None),
                Err(Errno::WOULDBLOCK) => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(2));
                }
                Err(errno) => return Err(SysError::io("lock", show(shown))(errno)),
            }
        }
    }
}

impl Drop for FileLock<'_> {
    fn drop(&mut self) {
        let _ = flock(self.file, FlockOperation::Unlock);
    }
}

/// Creates the file at `path` if it is missing, locks it, and keeps the lock for as long as the descriptor is open.
/// None if another process holds the lock. A symbolic link is an error.
pub fn lock_while_open(path: &Path) -> Result<Option<OwnedFd>, SysError> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::from_raw_mode(0o600)).map_err(SysError::io("open", show(path)))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(SysError::io("lock", show(path))(errno)),
    }
}

/// Sets the mode and group of a socket that this process has just created, and returns its inode. This is done by
/// descriptor: a user who can write the directory could have replaced the socket with a link to another file of root.
///
/// # Errors
/// Also if there is no socket of ours at the path.
pub fn adopt_socket(path: &Path, mode: u32, group: Option<u32>) -> Result<u64, SysError> {
    let failed = |doing: &'static str| move |error: io::Error| SysError::io(doing, show(path))(error);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed("open")(errno.into()))?;
    let stat = fstat(&socket).map_err(|errno| failed("stat")(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || stat.st_uid != geteuid().as_raw() {
        return Err(failed("use")(io::Error::other("it was replaced by another file")));
    }
    let magic = format!("/proc/self/fd/{}", socket.as_raw_fd());
    std::fs::set_permissions(magic, std::os::unix::fs::PermissionsExt::from_mode(mode)).map_err(failed("set the mode of"))?;
    if let Some(group) = group {
        chownat(&socket, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)
            .map_err(|errno| failed("set the group of")(errno.into()))?;
    }
    Ok(stat.st_ino)
}

/// How often to read a list that may be incomplete.
const LOOKS: usize = 10;

/// Which process holds the [`FileLock`] on a file, if `/proc/locks` shows it. A process outside of our pid namespace
/// has no number there, and some file systems show another device there than stat(2) does.
pub fn lock_holder(file: impl AsFd) -> Option<u32> {
    let stat = fstat(file).ok()?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let file = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    // The kernel writes the list in pieces and counts lines: if one disappears meanwhile, another one is skipped.
    (0..LOOKS).find_map(|_| holder(&std::fs::read_to_string("/proc/locks").ok()?, &file))
}

/// Lines look like `1: FLOCK  ADVISORY  WRITE 708 00:13:11154 0 EOF`; waiting processes have `->` before the kind.
fn holder(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&file)).then(|| words.get(4)?.parse().ok()).flatten()
    })
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

/// Extends a file to at least `size` bytes and allocates blocks for every byte, so that writing to a mapping of it
/// cannot raise SIGBUS for lack of space. It never shortens the file. A file system without fallocate(2) is not an
/// error.
pub fn reserve(file: impl AsFd, size: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// What is free on a file system for users other than root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeSpace {
    /// Bytes.
    pub bytes: u64,
    /// Inodes; None if the file system does not count them.
    pub inodes: Option<u64>,
}

/// What is free on the file system that holds `path`; None if it does not say.
pub fn free_space(path: &Path) -> Option<FreeSpace> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let inodes = (stat.f_files > 0).then_some(stat.f_favail);
    Some(FreeSpace { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes })
}

/// Whether the file system that holds `path` is almost full: less space is left than a write of LMDB needs.
pub fn is_full(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) < 64 << 10)
}

/// The names in a directory of ours, in no particular order.
pub fn names_in(path: &Path) -> Result<Vec<PathBuf>, SysError> {
    let failed = |err: io::Error| SysError::io("list", show(path))(err);
    std::fs::read_dir(path).map_err(failed)?.map(|entry| entry.map(|entry| entry.file_name().into()).map_err(failed)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_that_replaced_a_socket_is_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("s"), dir.path().join("victim"));
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        adopt_socket(&path, 0o660, Some(rustix::process::getegid().as_raw())).unwrap();
        assert_eq!(mode_of(&path), 0o660);
        fs::remove_file(&path).unwrap();
        fs::write(&victim, "").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&victim, &path).unwrap();
        assert!(adopt_socket(&path, 0o660, None).is_err());
        fs::remove_file(&path).unwrap();
        fs::hard_link(&victim, &path).unwrap();
        assert!(adopt_socket(&path, 0o660, None).is_err());
        assert_eq!(mode_of(&victim), 0o600);
    }

    fn mode_of(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn removing_a_missing_file_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let (file, sub) = (dir.path().join("f"), dir.path().join("d"));
        fs::write(&file, "").unwrap();
        fs::create_dir(&sub).unwrap();
        for there in [true, false] {
            assert_eq!(unlink_if_present(&file).unwrap(), there);
            assert_eq!(remove_dir_if_present(&sub).unwrap(), there);
        }
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join("x"), "").unwrap();
        assert!(remove_dir_if_present(&sub).is_err() && unlink_if_present(&sub).is_err());
        assert!(remove_tree(&sub).unwrap() && !remove_tree(&sub).unwrap());
    }

    #[test]
    fn an_atomic_write_replaces_the_file_and_sets_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("hook.json"), dir.path().join("precious"));
        for (bytes, mode) in [(&b"one"[..], 0o644), (b"two, longer", 0o755), (b"", 0o600)] {
            write_atomically(&path, bytes, mode).unwrap();
            assert_eq!((fs::read(&path).unwrap().as_slice(), mode_of(&path)), (bytes, mode));
        }
        fs::write(&target, "kept").unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&target, &path).unwrap();
        write_atomically(&path, b"new", 0o644).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"kept");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());

        fs::create_dir(dir.path().join("d")).unwrap();
        assert!(write_atomically(&dir.path().join("d"), b"", 0o644).is_err());
        assert!(write_atomically(Path::new("/"), b"", 0o644).is_err());
        let names = names_in(dir.path()).unwrap();
        assert_eq!(names.len(), 3, "no temporary file may be left: {names:?}");
    }

    #[test]
    fn lookups_stay_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        fs::create_dir_all(root.join("run")).unwrap();
        fs::write(dir.path().join("secret"), "host").unwrap();
        fs::write(root.join("secret"), "mine").unwrap();
        symlink("/", root.join("sys")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        let held = File::open(&root).unwrap();
        let read = |path: &str| open_regular_beneath(&held, Path::new(path)).map(|(file, _)| io::read_to_string(file).unwrap());
        for inside in ["secret", "/secret", "../secret", "run/../../secret", "sys/secret", "sys/sys/../secret"] {
            assert_eq!(read(inside).unwrap(), "mine", "{inside}");
        }
        assert!(read("magic/secret").is_err() && read("run/none").is_err());
        let proc = File::open("/proc/self").unwrap();
        assert!(open_beneath(&proc, Path::new("root"), OpenAs::Path).is_err(), "a magic link must be refused");
        assert!(open_beneath(&held, Path::new("secret"), OpenAs::DirectoryPath).is_err());
        assert!(open_beneath(&held, Path::new("run"), OpenAs::Directory).is_ok());
    }

    #[test]
    fn our_directories_are_accessible_to_us_only() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("run/bpfman-hook/store");
        ensure_directory(&deep, 0o700).unwrap();
        ensure_directory(&deep, 0o700).unwrap();
        assert_eq!((mode_of(&deep), mode_of(deep.parent().unwrap())), (0o700, 0o755));
        fs::set_permissions(&deep, fs::Permissions::from_mode(0o755)).unwrap();
        ensure_directory(&deep, 0o700).unwrap();
        assert_eq!(mode_of(&deep), 0o700);
        fs::set_permissions(&deep, fs::Permissions::from_mode(0o720)).unwrap();
        assert!(matches!(ensure_directory(&deep, 0o700), Err(TrustError::Writable { .. })));

        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "").unwrap();
        symlink(dir.path(), &link).unwrap();
        for path in [file, link] {
            assert!(matches!(ensure_directory(&path, 0o700), Err(TrustError::Kind { .. })), "{}", path.display());
        }
        if geteuid().is_root() {
            fs::set_permissions(&deep, fs::Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&deep, Some(12345), None).unwrap();
            assert!(matches!(ensure_directory(&deep, 0o700), Err(TrustError::Owner { uid: 12345, .. })));
        }
    }

    #[test]
    fn removing_a_tree_does_not_follow_links() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("deep")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        symlink(&outside, tree.join("deep/link")).unwrap();
        assert!(remove_tree(&tree).unwrap());
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn a_lock_is_exclusive_and_released_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let open = || OwnedFd::from(File::options().create(true).append(true).open(&path).unwrap());
        let (one, two) = (open(), open());
        let held = FileLock::wait(&one, &path).unwrap();
        assert_eq!(lock_holder(&two), Some(std::process::id()));
        let before = Instant::now();
        assert!(FileLock::wait_for(&two, &path, Duration::from_millis(20)).unwrap().is_none());
        assert!(before.elapsed() >= Duration::from_millis(20));
        drop(held);
        assert!(FileLock::wait_for(&two, &path, Duration::ZERO).unwrap().is_some());
        assert!(FileLock::wait_for(&one, &path, Duration::ZERO).unwrap().is_some(), "the second lock was released");
    }

    #[test]
    fn the_holder_of_a_lock_is_found_in_proc_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 00:13:7 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 2 00:13:7 0 EOF\n2: FLOCK  ADVISORY  WRITE 708 00:13:7 0 EOF\n3: FLOCK  ADVISORY  WRITE -1 fe:01:9 0 EOF\n";
        assert_eq!((holder(locks, "00:13:7"), holder(locks, "fe:01:9"), holder(locks, "00:13:8")), (Some(708), None, None));
    }

    #[test]
    fn reserving_extends_files_and_never_shortens_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, [7; 5000]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        reserve(&file, 100).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 5000);
        reserve(&file, 9000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 9000);
        assert!(fs::read(&path).unwrap()[..5000].iter().all(|byte| *byte == 7));
    }
}
