//! Trusted files, which decide what is allowed: they are read only if no user except root could have written them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use rustix::process::geteuid;

/// What to do about a path that others can write. A sticky directory, such as /tmp, is meant to be writable.
fn unwritable(mode: u32) -> &'static str {
    const STICKY: u32 = 0o1000;
    if mode & STICKY != 0 { "put the file elsewhere" } else { "remove that permission" }
}

/// Why a file or directory is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It does not exist. Some callers treat this as "not configured".
    #[error("read {}: it does not exist", .0.display())]
    Missing(PathBuf),
    /// The path is relative or contains `.`, `..` or `//`.
    #[error("read {}: the path is not absolute and normal; write it without ., .. and //", .0.display())]
    NotNormal(PathBuf),
    /// A component of the path is a symbolic link.
    #[error("read {path}: {link} is a symbolic link; use the path that it points to", path = path.display(), link = link.display())]
    SymbolicLink {
        /// The path to read.
        path: PathBuf,
        /// The component.
        link: PathBuf,
    },
    /// A component of the path or the file itself has another owner.
    #[error("{} belongs to uid {uid}; change its owner to root", .component.display())]
    Owner {
        /// The path to read. It is not in the message, which names only the path that must be corrected.
        path: PathBuf,
        /// The component.
        component: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// A component of the path or the file itself is writable by group or others.
    #[error("{} has mode {mode:04o} and is writable by users other than root; {remedy}", .component.display(), remedy = unwritable(*.mode))]
    Writable {
        /// The path to read. It is not in the message, which names only the path that must be corrected.
        path: PathBuf,
        /// The component.
        component: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file with secrets is readable by group or others.
    #[error("{} has mode {mode:04o} and contains secrets that users other than root can read; set its mode to 0600", .component.display())]
    Readable {
        /// The file.
        component: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not of the requested kind, a regular file or a directory.
    #[error("{} is not a {wanted}", .component.display())]
    Kind {
        /// The path to read. It is not in the message, which names only the path that must be corrected.
        path: PathBuf,
        /// The component.
        component: PathBuf,
        /// `regular file` or `directory`.
        wanted: &'static str,
    },
    /// It is larger than the limit.
    #[error("read {path}: it is larger than {max} bytes", path = path.display())]
    TooLarge {
        /// The path to read.
        path: PathBuf,
        /// The limit in bytes.
        max: usize,
    },
    /// A system call failed.
    #[error("{doing} {path}", path = path.display())]
    Io {
        /// The operation.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// The errno.
        #[source]
        source: io::Error,
    },
}

/// The directory below which every component is checked.
///
/// Trusted means: owned by root (or by the effective user if that is not root), and writable neither by group nor by
/// others, regardless of the sticky bit. With a POSIX ACL, the group bits are its mask, so an ACL that lets others
/// write is refused too. Permissions granted in other ways (CAP_DAC_OVERRIDE, another namespace with the same file
/// system) are not detected.
#[derive(Debug)]
pub struct TrustedRoot {
    directory: OwnedFd,
    path: PathBuf,
}

impl TrustedRoot {
    /// The root of the file system.
    pub fn system() -> Result<Self, TrustError> {
        Self::at(Path::new("/"))
    }

    /// A directory given on the command line (`--root DIR`). The directory itself must be trusted; its parents are not
    /// checked, because the user who runs the command chose it. Symbolic links in its path are followed.
    pub fn at(path: &Path) -> Result<Self, TrustError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(path, path, errno, DIRECTORY))?;
        check(directory.as_fd(), path, path, FileType::Directory)?;
        Ok(Self { directory, path: path.to_owned() })
    }

    /// Opens the directory `path`, which begins with this root's path, and checks every component. The descriptor can
    /// be listed and is close-on-exec.
    pub fn open_directory(&self, path: &Path) -> Result<OwnedFd, TrustError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = self.walk(path, flags, DIRECTORY)?;
        check(directory.as_fd(), path, path, FileType::Directory)?;
        Ok(directory)
    }

    /// Reads the regular file `path`, which begins with this root's path, and checks every component.
    pub fn read_file(&self, path: &Path, max: usize) -> Result<Vec<u8>, TrustError> {
        self.read(path, max, |_| Ok(()))
    }

    /// Like [`read_file`](Self::read_file), for a file with secrets: it must not be readable by other users either.
    pub fn read_secret(&self, path: &Path, max: usize) -> Result<Vec<u8>, TrustError> {
        self.read(path, max, |mode| match mode.intersects(Mode::RWXG | Mode::RWXO) {
            true => Err(TrustError::Readable { component: path.to_owned(), mode: mode.as_raw_mode() }),
            false => Ok(()),
        })
    }

    /// Opens the file once, so that the file that is read is the one that was checked. `mode` is checked before the
    /// general requirements, because its message for secrets is stricter.
    fn read(&self, path: &Path, max: usize, mode: impl FnOnce(Mode) -> Result<(), TrustError>) -> Result<Vec<u8>, TrustError> {
        // O_NONBLOCK: opening a fifo without a writer must not block before fstat shows what it is.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(self.walk(path, flags, FILE)?);
        let stat =
            fstat(&file).map_err(|errno| TrustError::Io { doing: "stat", path: path.to_owned(), source: errno.into() })?;
        mode(Mode::from_raw_mode(stat.st_mode))?;
        check(file.as_fd(), path, path, FileType::RegularFile)?;
        read_capped(file, max).map_err(|err| match err {
            ReadError::TooLarge { max } => TrustError::TooLarge { path: path.to_owned(), max },
            ReadError::Io(source) => TrustError::Io { doing: "read", path: path.to_owned(), source },
        })
    }

    /// Opens `path` component by component. The last one is opened with `flags` and not checked.
    fn walk(&self, path: &Path, flags: OFlags, wanted: &'static str) -> Result<OwnedFd, TrustError> {
        let names = components(&self.path, path).ok_or_else(|| TrustError::NotNormal(path.to_owned()))?;
        let Some((last, parents)) = names.split_last() else {
            return open(self.directory.as_fd(), Path::new("."), flags).map_err(|errno| failed(path, path, errno, wanted));
        };
        let mut shown = self.path.clone();
        let mut directory = None;
        for name in parents {
            shown.push(name);
            let from = directory.as_ref().map_or(self.directory.as_fd(), OwnedFd::as_fd);
            let next = open(from, Path::new(name), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)
                .map_err(|errno| failed(path, &shown, errno, DIRECTORY))?;
            check(next.as_fd(), path, &shown, FileType::Directory)?;
            directory = Some(next);
        }
        let from = directory.as_ref().map_or(self.directory.as_fd(), OwnedFd::as_fd);
        open(from, Path::new(last), flags).map_err(|errno| failed(path, path, errno, wanted))
    }
}

/// [`TrustedRoot::read_file`] below `/`.
pub fn read_trusted_file(path: &Path, max: usize) -> Result<Vec<u8>, TrustError> {
    TrustedRoot::system()?.read_file(path, max)
}

/// Why a stream could not be read completely.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream is longer than the limit.
    #[error("it is larger than {max} bytes")]
    TooLarge {
        /// The limit in bytes.
        max: usize,
    },
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a stream to its end, but at most `max` bytes: a longer stream is an error and never truncated silently.
pub fn read_capped(reader: impl Read, max: usize) -> Result<Vec<u8>, ReadError> {
    // Without an initial capacity, a file would be read in pieces of 32 bytes.
    let mut bytes = Vec::with_capacity(max.saturating_add(1).min(4096));
    reader.take((max as u64).saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > max { Err(ReadError::TooLarge { max }) } else { Ok(bytes) }
}

const FILE: &str = "regular file";
const DIRECTORY: &str = "directory";

/// The components below `root`, or None if `path` is not below it, not absolute or not normal. The result is compared
/// bytewise with the path, because `Path::components` hides `.` and `//`.
fn components<'a>(root: &Path, path: &'a Path) -> Option<Vec<&'a std::ffi::OsStr>> {
    let rest = path.strip_prefix(root).ok().filter(|_| path.is_absolute())?;
    let names = rest.components().map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    let names: Vec<_> = names.collect::<Option<_>>()?;
    let again: PathBuf = root.components().chain(rest.components()).collect();
    (again.as_os_str() == path.as_os_str()).then_some(names)
}

fn open(from: BorrowedFd<'_>, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::BENEATH;
    openat2(from, name, flags, Mode::empty(), resolve)
}

fn check(fd: BorrowedFd<'_>, path: &Path, component: &Path, wanted: FileType) -> Result<(), TrustError> {
    let path = path.to_owned();
    let stat = match fstat(fd) {
        Ok(stat) => stat,
        Err(errno) => return Err(TrustError::Io { doing: "stat", path, source: errno.into() }),
    };
    let component = component.to_owned();
    let mode = Mode::from_raw_mode(stat.st_mode);
    if FileType::from_raw_mode(stat.st_mode) != wanted {
        let wanted = if wanted == FileType::Directory { DIRECTORY } else { FILE };
        Err(TrustError::Kind { path, component, wanted })
    } else if stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
        Err(TrustError::Owner { path, component, uid: stat.st_uid })
    } else if mode.intersects(Mode::WGRP | Mode::WOTH) {
        Err(TrustError::Writable { path, component, mode: mode.as_raw_mode() })
    } else {
        Ok(())
    }
}

fn failed(path: &Path, component: &Path, errno: Errno, wanted: &'static str) -> TrustError {
    let (path, component) = (path.to_owned(), component.to_owned());
    match errno {
        Errno::NOENT => TrustError::Missing(path),
        Errno::LOOP => TrustError::SymbolicLink { path, link: component },
        // ENXIO: a socket, or a device without a driver.
        Errno::NOTDIR | Errno::NXIO | Errno::ISDIR => TrustError::Kind { path, component, wanted },
        errno => TrustError::Io { doing: "open", path: component, source: errno.into() },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Creates a trusted root in a temporary directory, with etc/policy.toml in it.
    fn fixture() -> (tempfile::TempDir, TrustedRoot, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let etc = dir.path().join("etc");
        fs::create_dir(&etc).unwrap();
        let file = etc.join("policy.toml");
        fs::write(&file, "abc").unwrap();
        mode(&etc, 0o755);
        mode(&file, 0o644);
        let root = TrustedRoot::at(dir.path()).unwrap();
        (dir, root, file)
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_trusted_file_is_read_up_to_the_limit() {
        let (_dir, root, file) = fixture();
        assert_eq!(root.read_file(&file, 3).unwrap(), b"abc");
        assert!(matches!(root.read_file(&file, 2), Err(TrustError::TooLarge { max: 2, .. })));
        assert!(root.open_directory(file.parent().unwrap()).is_ok());
        assert!(root.open_directory(&root.path).is_ok());
    }

    #[test]
    fn paths_that_are_not_normal_are_refused() {
        let (dir, root, _file) = fixture();
        let base = dir.path().display();
        for bad in [
            "etc/policy.toml".to_owned(),
            "/etc/passwd".to_owned(),
            format!("{base}/etc/./policy.toml"),
            format!("{base}/etc//policy.toml"),
            format!("{base}/etc/../etc/policy.toml"),
            format!("{base}/etc/policy.toml/"),
            format!("/{base}/etc/policy.toml"),
            String::new(),
        ] {
            assert!(matches!(root.read_file(Path::new(&bad), 9), Err(TrustError::NotNormal(_))), "{bad}");
        }
    }

    #[test]
    fn files_and_directories_writable_by_others_and_links_are_refused() {
        let (dir, root, file) = fixture();
        let etc = file.parent().unwrap();
        for bits in [0o664, 0o646, 0o602] {
            mode(&file, bits);
            assert!(matches!(root.read_file(&file, 9), Err(TrustError::Writable { mode, .. }) if mode == bits), "{bits:o}");
        }
        mode(&file, 0o600);
        for bits in [0o775, 0o757, 0o1777] {
            mode(etc, bits);
            let err = root.read_file(&file, 9).unwrap_err();
            assert!(matches!(&err, TrustError::Writable { component, .. } if component == etc), "{bits:o}: {err}");
            assert!(root.open_directory(etc).is_err(), "{bits:o}");
        }
        mode(etc, 0o755);

        let link = etc.join("link");
        symlink(&file, &link).unwrap();
        assert!(matches!(root.read_file(&link, 9), Err(TrustError::SymbolicLink { .. })));
        let linked = dir.path().join("also");
        symlink(etc, &linked).unwrap();
        let err = root.read_file(&linked.join("policy.toml"), 9).unwrap_err();
        assert!(matches!(&err, TrustError::SymbolicLink { link, .. } if *link == linked), "{err}");
        assert!(root.open_directory(&linked).is_err());
    }

    #[test]
    fn only_regular_files_are_read_without_blocking() {
        let (_dir, root, file) = fixture();
        let etc = file.parent().unwrap();
        let fifo = etc.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let socket = etc.join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        mode(&socket, 0o600);
        for path in [fifo.as_path(), &socket, etc] {
            let err = root.read_file(path, 9).unwrap_err();
            assert!(matches!(err, TrustError::Kind { wanted: FILE, .. }), "{}: {err}", path.display());
        }
        assert!(matches!(root.read_file(&etc.join("none"), 9), Err(TrustError::Missing(_))));
        assert!(matches!(root.read_file(&file.join("below"), 9), Err(TrustError::Kind { wanted: DIRECTORY, .. })));
        assert!(matches!(root.open_directory(&file), Err(TrustError::Kind { wanted: DIRECTORY, .. })));
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        if !geteuid().is_root() {
            return; // Only root can change a file's owner.
        }
        let (_dir, root, file) = fixture();
        std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
        assert!(matches!(root.read_file(&file, 9), Err(TrustError::Owner { uid: 12345, .. })));
        std::os::unix::fs::chown(&file, Some(0), None).unwrap();
        std::os::unix::fs::chown(file.parent().unwrap(), Some(12345), None).unwrap();
        assert!(matches!(root.read_file(&file, 9), Err(TrustError::Owner { uid: 12345, .. })));
    }

    #[test]
    fn the_temporary_directory_is_not_trusted_from_the_system_root() {
        let (_dir, _root, file) = fixture();
        assert!(read_trusted_file(&file, 9).is_err());
        assert!(TrustedRoot::system().unwrap().open_directory(Path::new("/proc")).is_ok());
    }

    #[test]
    fn a_capped_read_never_truncates() {
        assert_eq!(read_capped(&b"1234"[..], 4).unwrap(), b"1234");
        assert!(matches!(read_capped(&b"12345"[..], 4), Err(ReadError::TooLarge { max: 4 })));
        assert!(matches!(read_capped(io::repeat(0), 4096), Err(ReadError::TooLarge { .. })));
        assert_eq!(read_capped(&b""[..], 0).unwrap(), b"");
    }
}
