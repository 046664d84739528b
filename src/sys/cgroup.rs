//! The container's cgroup in the v2 hierarchy: its path, and whether it belongs to the container alone.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, fstat, fstatfs, openat};
use rustix::io::Errno;

use crate::model::facts::CgroupFact;
use crate::model::ids::Pid;
use crate::sys::error::SysError;
use crate::sys::fsutil::{self, OpenAs};
use crate::sys::mounts;
use crate::sys::pid::{self, Process, ProcessError};

/// `CGROUP2_SUPER_MAGIC`, include/uapi/linux/magic.h.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Maximum number of cgroups below a container's cgroup that are examined.
const MAX_CGROUPS: usize = 4096;

/// Why a container's cgroup could not be found or examined.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The process's cgroup is not below the visible cgroup2 mount.
    #[error("open cgroup {path}: it is outside of the hierarchy that the hook sees; run the hook in the host's cgroup namespace", path = .0.display())]
    NotVisible(PathBuf),
    /// The cgroup was removed while the process is still in it.
    #[error("open cgroup {path}: it was removed", path = .0.display())]
    Removed(PathBuf),
    /// The process was moved to another cgroup meanwhile.
    #[error("examine cgroup {path}: process {init} was moved to another cgroup meanwhile", path = path.display())]
    Moved {
        /// Its previous cgroup.
        path: PathBuf,
        /// The container's init.
        init: Pid,
    },
    /// There are too many cgroups below it.
    #[error("examine cgroup {path}: more than {MAX_CGROUPS} cgroups lie below it", path = .0.display())]
    TooMany(PathBuf),
    /// A process could not be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// A process's cgroup in the v2 hierarchy, from `/proc/<pid>/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPath {
    /// The path as shown in the reader's cgroup namespace: absolute, beginning with `/..` if it is outside of that
    /// namespace.
    pub path: PathBuf,
    /// True if the cgroup was removed.
    pub removed: bool,
}

/// Parses the line of the v2 hierarchy, `0::PATH` (cgroups(7)); None if the kernel does not have this hierarchy.
pub fn parse_v2(text: &str) -> Option<CgroupPath> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // A cgroup whose own name ends like this is indistinguishable from a removed one; it is then treated as removed,
    // which is an error.
    Some(match path.strip_suffix(" (deleted)") {
        Some(path) => CgroupPath { path: path.into(), removed: true },
        None => CgroupPath { path: path.into(), removed: false },
    })
}

/// The mounted v2 hierarchy: `/sys/fs/cgroup` on a unified host, `/sys/fs/cgroup/unified` on a hybrid one.
#[derive(Debug)]
pub struct Hierarchy {
    mount: OwnedFd,
    /// The mounted cgroup, as shown in our cgroup namespace.
    root: PathBuf,
}

impl Hierarchy {
    /// Its mounts in our own mount table, the one that shows most first.
    fn mounts() -> Result<Vec<mounts::MountPoint>, SysError> {
        let mut found: Vec<_> = mounts::own_mounts()?.into_iter().filter(|mount| mount.kind == "cgroup2").collect();
        found.sort_by_key(|mount| mount.root.components().count());
        Ok(found)
    }

    /// Finds it in our own mount table; None if it is not mounted. Of several mounts it takes the one that shows most
    /// of the hierarchy.
    pub fn find() -> Result<Option<Self>, SysError> {
        for mount in Self::mounts()? {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let Ok(fd) = openat(rustix::fs::CWD, &mount.point, flags, Mode::empty()) else { continue };
            // Another mount may cover it.
            let kind = fstatfs(&fd).map_err(SysError::io("find the file system of", mount.point.display().to_string()))?.f_type;
            if u64::try_from(kind).is_ok_and(|kind| kind == CGROUP2_SUPER_MAGIC) {
                return Ok(Some(Self { mount: fd, root: mount.root }));
            }
        }
        Ok(None)
    }

    /// Where it is mounted for this process; None if it is not.
    pub fn mount_point() -> Result<Option<PathBuf>, SysError> {
        Ok(Self::mounts()?.into_iter().next().map(|mount| mount.point))
    }

    /// Opens a cgroup below the mounted one.
    pub fn open_below(&self, path: &Path) -> Result<OwnedFd, CgroupError> {
        Ok(fsutil::open_beneath(&self.mount, path, OpenAs::Directory)?)
    }

    /// Opens a cgroup's directory by its path in the form of [`CgroupPath`]. The descriptor keeps the cgroup's id
    /// reserved, and a program attached through it is attached to exactly this cgroup, even if another one takes its
    /// name.
    pub fn open(&self, path: &Path) -> Result<OwnedFd, CgroupError> {
        let below = path.strip_prefix(&self.root).map_err(|_| CgroupError::NotVisible(path.to_owned()))?;
        if below.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(CgroupError::NotVisible(path.to_owned()));
        }
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        match fsutil::open_beneath(&self.mount, below, OpenAs::Directory) {
            Err(SysError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(CgroupError::Removed(path.to_owned()))
            }
            other => Ok(other?),
        }
    }
}

/// The kernel's id of a cgroup, as `bpf_get_current_cgroup_id` returns it. On 64-bit kernels it is the inode of the
/// directory (kernfs; include/linux/kernfs.h, `kernfs_ino`).
pub fn id(directory: impl AsFd) -> Result<u64, SysError> {
    Ok(fstat(directory).map_err(SysError::io("stat", "a cgroup's directory"))?.st_ino)
}

/// True if a descriptor is the directory of the cgroup with this id in the v2 hierarchy, or of a descendant. The
/// descriptor may come from another mount namespace, in which paths mean nothing to us.
pub fn is_within(directory: BorrowedFd<'_>, ancestor: u64) -> Result<bool, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut current = openat(directory, ".", flags, Mode::empty())?;
    // A bound on the depth of cgroups.
    for _ in 0..256 {
        let kind = fstatfs(&current)?.f_type;
        if !u64::try_from(kind).is_ok_and(|kind| kind == CGROUP2_SUPER_MAGIC) {
            // The walk left the hierarchy through the mount point.
            return Ok(false);
        }
        let here = fstat(&current)?.st_ino;
        if here == ancestor {
            return Ok(true);
        }
        let above = openat(&current, "..", flags, Mode::empty())?;
        if fstat(&above)?.st_ino == here {
            return Ok(false);
        }
        current = above;
    }
    Ok(false)
}

/// The pids in one cgroup, without those of its descendants; 0 for a process outside of our pid namespace.
pub fn pids(directory: impl AsFd) -> Result<Vec<u32>, SysError> {
    match read(directory.as_fd(), "cgroup.procs") {
        Ok(text) => Ok(numbers(&text)),
        // A threaded cgroup has threads but no processes of its own (cgroups(7)).
        Err(Errno::OPNOTSUPP) => {
            let threads = read(directory.as_fd(), "cgroup.threads").map_err(SysError::io("read", "cgroup.threads"))?;
            let mut pids: Vec<_> = numbers(&threads).into_iter().map(process_of_thread).collect();
            pids.sort_unstable();
            pids.dedup();
            Ok(pids)
        }
        // The cgroup was removed, so it has no processes.
        Err(Errno::NODEV | Errno::NOENT) => Ok(Vec::new()),
        Err(errno) => Err(SysError::io("read", "cgroup.procs")(errno)),
    }
}

/// The pids in a cgroup and all its descendants. `shown` is the path for messages.
pub fn pids_below(directory: impl AsFd, shown: &Path) -> Result<Vec<u32>, CgroupError> {
    let here = openat(&directory, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let mut waiting = vec![here.map_err(SysError::io("open", shown.display().to_string()))?];
    let (mut found, mut seen) = (Vec::new(), 0);
    while let Some(directory) = waiting.pop() {
        seen += 1;
        if seen > MAX_CGROUPS {
            return Err(CgroupError::TooMany(shown.to_owned()));
        }
        found.extend(pids(&directory)?);
        let listed = |errno| SysError::io::<Errno>("list the cgroups in", shown.display().to_string())(errno);
        for entry in Dir::read_from(&directory).map_err(listed)? {
            let entry = entry.map_err(listed)?;
            if entry.file_type() != FileType::Directory || matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            match openat(&directory, entry.file_name(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(below) => waiting.push(below),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(listed(errno).into()),
            }
        }
    }
    Ok(found)
}

fn read(directory: BorrowedFd<'_>, name: &str) -> Result<String, Errno> {
    let mut file = File::from(openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::IO))?;
    Ok(text)
}

fn numbers(text: &str) -> Vec<u32> {
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The process that a thread belongs to, or the thread's own number if it can no longer be determined.
fn process_of_thread(thread: u32) -> u32 {
    std::fs::read_to_string(format!("/proc/{thread}/status"))
        .ok()
        .and_then(|status| status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok())
        .unwrap_or(thread)
}

/// What `linux.cgroupsPath` of a container's configuration says about its cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected<'a> {
    /// The configuration leaves the cgroup to the runtime.
    Any,
    /// `/a/b`: this path below the mount, or a descendant.
    Path(&'a str),
    /// `a/b`: any path that contains these components.
    Within(&'a str),
    /// `slice:prefix:name`, the form for the systemd cgroup driver: any path that contains this unit.
    Unit(String),
}

impl<'a> Expected<'a> {
    fn from(cgroups_path: Option<&'a str>) -> Self {
        let Some(path) = cgroups_path.filter(|path| !path.is_empty()) else { return Self::Any };
        // As in runc and crun: two colons and no leading slash mean the systemd form.
        match path.split(':').collect::<Vec<_>>()[..] {
            [_slice, prefix, name] if !path.starts_with('/') => Self::Unit(match (prefix, name) {
                (_, name) if name.ends_with(".slice") => name.to_owned(),
                ("", name) => format!("{name}.scope"),
                (prefix, name) => format!("{prefix}-{name}.scope"),
            }),
            _ if path.starts_with('/') => Self::Path(path),
            _ => Self::Within(path),
        }
    }

    /// Like [`includes`](Self::includes), for a path as a cgroup namespace shows it: outside of the namespace, `..`
    /// stands for the common part.
    fn shows(&self, path: &Path) -> bool {
        let rest: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        let outside = path.components().any(|part| part == Component::ParentDir);
        match self {
            Self::Path(expected) if outside => !rest.as_os_str().is_empty() && Path::new(expected).ends_with(&rest),
            _ => self.includes(path),
        }
    }

    /// True for the cgroup itself and its descendants: crun puts the init of a systemd scope into the child cgroup
    /// `container`, so that the container can be given the scope as the root of its own hierarchy.
    fn includes(&self, path: &Path) -> bool {
        let normal = |text: &str| -> Option<PathBuf> {
            let parts = Path::new(text).components().filter(|part| *part != Component::RootDir);
            parts.map(|part| matches!(part, Component::Normal(_)).then_some(part)).collect()
        };
        let below_root = path.strip_prefix("/").unwrap_or(path);
        match self {
            Self::Any => true,
            Self::Path(expected) => normal(expected).is_some_and(|expected| below_root.starts_with(expected)),
            Self::Within(expected) => normal(expected).is_some_and(|expected| {
                let parts: Vec<_> = below_root.components().collect();
                let wanted: Vec<_> = expected.components().collect();
                !wanted.is_empty() && parts.windows(wanted.len()).any(|window| window == wanted)
            }),
            Self::Unit(unit) => below_root.components().any(|part| part.as_os_str() == unit.as_str()),
        }
    }
}

/// Verifies that a process belongs to the container with this id: it is in the cgroup that `linux.cgroupsPath` names,
/// or in a descendant, and that path is named after the id.
pub fn is_of_container(process: &Process, id: &str, cgroups_path: &str) -> Result<bool, ProcessError> {
    // CRI-O prefixes the id with its own name.
    let named = cgroups_path.rsplit([':', '/']).next().and_then(|last| last.strip_suffix(id));
    let named = named.is_some_and(|before| before.is_empty() || before.ends_with('-'));
    Ok(named && lies_in(&process.cgroup_text()?, cgroups_path))
}

/// Whether `/proc/<pid>/cgroup` shows a cgroup that `cgroups_path` names: in the v2 hierarchy, or in one of v1 if the
/// v2 entry says nothing.
fn lies_in(text: &str, cgroups_path: &str) -> bool {
    let expected = Expected::from(Some(cgroups_path));
    match parse_v2(text).filter(|found| found.path != Path::new("/")) {
        Some(found) => !found.removed && expected.shows(&found.path),
        None => text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| expected.shows(Path::new(path))),
    }
}

/// The result of [`of_container`].
#[derive(Debug)]
pub struct FoundCgroup {
    /// The cgroup and its users.
    pub fact: CgroupFact,
    /// Its directory, held open, if the cgroup is the container's own or shared.
    pub directory: Option<OwnedFd>,
}

/// Finds the cgroup of a container whose init process is held, and checks whether it is the container's alone: it is
/// the one that `linux.cgroupsPath` names, it is not the root, and it and its descendants contain only the init,
/// processes in the init's pid namespace and below, and the init's descendants. For a container that shares our pid
/// namespace, only its descendants count.
///
/// The result holds at the time of the call: a process that a privileged user moves there later is not detected.
pub fn of_container(init: &Process, cgroups_path: Option<&str>) -> Result<FoundCgroup, CgroupError> {
    let root = FoundCgroup { fact: CgroupFact::Root, directory: None };
    let Some(hierarchy) = Hierarchy::find()? else { return Ok(root) };
    let Some(CgroupPath { path, removed }) = parse_v2(&init.cgroup_text()?) else { return Ok(root) };
    if path == Path::new("/") {
        return Ok(root);
    }
    if removed {
        return Err(CgroupError::Removed(path));
    }
    let expected = Expected::from(cgroups_path);
    if !expected.includes(&path) {
        let expected = cgroups_path.unwrap_or_default().to_owned();
        return Ok(FoundCgroup { fact: CgroupFact::Elsewhere { path, expected }, directory: None });
    }
    let directory = hierarchy.open(&path)?;
    let id = id(&directory)?;
    let other = foreign_process(init, &directory, &path)?;
    // This check must come last: a cgroup with that path, opened, with the init still in it, is the init's cgroup.
    if parse_v2(&init.cgroup_text()?).is_none_or(|now| now.path != path || now.removed) {
        return Err(CgroupError::Moved { path, init: init.pid() });
    }
    let fact = match other {
        Some(other) => CgroupFact::Shared { path, other },
        None => CgroupFact::Own { path, id },
    };
    Ok(FoundCgroup { fact, directory: Some(directory) })
}

/// Returns where a container sees more of the v2 hierarchy than its own cgroup: a mount below `rootfs`, its future
/// root, of a cgroup that is neither `own` nor a descendant. The mount point is returned as the container will see it.
///
/// The kernel reports what a mount shows, independently of the name by which it was mounted: a symbolic link, or a
/// path through procfs.
pub fn wide_mount(mountinfo: &str, rootfs: &Path, own: &Path) -> Result<Option<PathBuf>, SysError> {
    // Mount points are shown without symbolic links.
    let rootfs = std::fs::canonicalize(rootfs).map_err(SysError::io("find", rootfs.display().to_string()))?;
    // crun puts the init of a systemd scope into the child cgroup `container`; the scope is the container's too.
    let scope =
        own.parent().filter(|scope| own.file_name().is_some_and(|name| name == "container") && *scope != Path::new("/"));
    // Parse only these lines: there may be thousands of others.
    let lines: String = mountinfo.lines().filter(|line| line.contains(" - cgroup2 ")).flat_map(|line| [line, "\n"]).collect();
    for mount in mounts::parse_mountinfo(&lines)? {
        if let Ok(point) = mount.point.strip_prefix(&rootfs)
            && !mount.root.starts_with(own)
            && Some(mount.root.as_path()) != scope
        {
            return Ok(Some(Path::new("/").join(point)));
        }
    }
    Ok(None)
}

/// A process in the cgroup or a descendant that does not belong to the container; 0 for one outside of our pid
/// namespace.
fn foreign_process(init: &Process, directory: &OwnedFd, path: &Path) -> Result<Option<u32>, CgroupError> {
    let (namespace, own) = (init.namespaces()?.pid, pid::own_namespaces()?.pid);
    for number in pids_below(directory, path)? {
        let Ok(pid) = Pid::new(number) else { return Ok(Some(number)) };
        if pid == init.pid() {
            continue;
        }
        let belongs = pid::open_process(pid).and_then(|process| {
            // A private pid namespace belongs to the container; our own contains every process.
            Ok((namespace != own && process.is_within_pid_namespace(namespace)?) || descends(process, init.pid())?)
        });
        match belongs {
            Ok(true) | Err(ProcessError::Gone(_)) => {}
            Ok(false) => return Ok(Some(number)),
            Err(err) => return Err(err.into()),
        }
    }
    Ok(None)
}

/// True if `ancestor` is among the ancestors of the process.
fn descends(process: Process, ancestor: Pid) -> Result<bool, ProcessError> {
    let mut process = process;
    // A bound on the depth of the process tree.
    for _ in 0..4096 {
        match Pid::new(process.status()?.parent) {
            Ok(parent) if parent == ancestor => return Ok(true),
            Ok(parent) => process = pid::open_process(parent)?,
            Err(_) => return Ok(false),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cgroup_of_the_hierarchy_is_within_one() {
        let directory = File::open("/").unwrap();
        assert_eq!(is_within(directory.as_fd(), fstat(&directory).unwrap().st_ino), Ok(false));
        let null = File::open("/dev/null").unwrap();
        assert_eq!(is_within(null.as_fd(), 1), Err(Errno::NOTDIR));
    }

    #[test]
    fn a_mount_that_shows_other_cgroups_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let wide = |cgroup: &str, at: &str, own: &str| {
            let table = format!(
                "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n90 27 0:50 / {0} rw - ext4 /dev/vda rw\n\
                 91 90 0:38 {cgroup} {0}{at} ro - cgroup2 cgroup2 rw\n",
                root.display()
            );
            wide_mount(&table, dir.path(), Path::new(own)).unwrap()
        };
        for (cgroup, own) in [("/web", "/web"), ("/web/below", "/web"), ("/a.scope", "/a.scope/container")] {
            assert_eq!(wide(cgroup, "/sys/fs/cgroup", own), None, "{cgroup} {own}");
        }
        for (cgroup, own) in
            [("/", "/web"), ("/webs", "/web"), ("/a.slice", "/a.slice/web"), ("/", "/container"), ("/../x", "/web")]
        {
            assert_eq!(wide(cgroup, "/mnt", own), Some("/mnt".into()), "{cgroup} {own}");
        }
    }

    #[test]
    fn a_process_is_identified_by_its_cgroup() {
        let systemd = "kubepods-besteffort-pod1.slice:cri-containerd:abc";
        for (text, cgroups_path, expected) in [
            ("0::/kubepods/pod1/abc\n", "/kubepods/pod1/abc", true),
            ("0::/kubepods/pod1/abc/below\n", "/kubepods/pod1/abc", true),
            ("0::/kubepods/pod1/abcd\n", "/kubepods/pod1/abc", false),
            ("0::/kubepods/pod1\n", "/kubepods/pod1/abc", false),
            ("0::/\n", "/kubepods/pod1/abc", false),
            ("0::/kubepods/pod1/abc (deleted)\n", "/kubepods/pod1/abc", false),
            ("0::/kubepods.slice/kubepods-besteffort-pod1.slice/cri-containerd-abc.scope\n", systemd, true),
            ("0::/kubepods.slice/cri-containerd-abcd.scope\n", systemd, false),
            // Paths as seen in the plugin's own cgroup namespace.
            ("0::/../../pod1/abc\n", "/kubepods/pod1/abc", true),
            ("0::/../../pod1/other\n", "/kubepods/pod1/abc", false),
            ("0::/..\n", "/kubepods/pod1/abc", false),
            ("0::/../cri-containerd-abc.scope\n", systemd, true),
            // A host with v1 only, and one whose v2 hierarchy has no processes.
            ("9:memory:/kubepods/pod1/abc\n1:name=systemd:/kubepods/pod1/abc\n", "/kubepods/pod1/abc", true),
            ("9:memory:/kubepods/pod1/abc\n0::/\n", "/kubepods/pod1/abc", true),
            ("9:memory:/elsewhere\n0::/\n", "/kubepods/pod1/abc", false),
            ("", "/kubepods/pod1/abc", false),
        ] {
            assert_eq!(lies_in(text, cgroups_path), expected, "{text} {cgroups_path}");
        }
    }

    #[test]
    fn the_v2_line_is_found_among_v1_lines() {
        let at = |path: &str, removed| Some(CgroupPath { path: path.into(), removed });
        for (text, expected) in [
            ("0::/\n", at("/", false)),
            (
                "9:name=systemd:/x\n4:memory:/y\n0::/machine.slice/libpod-1.scope/container\n",
                at("/machine.slice/libpod-1.scope/container", false),
            ),
            ("0::/web (deleted)\n", at("/web", true)),
            ("0::/../../web\n", at("/../../web", false)),
            ("0::/a b:c\n", at("/a b:c", false)),
            ("9:name=systemd:/\n4:memory:/\n", None),
            ("", None),
        ] {
            assert_eq!(parse_v2(text), expected, "{text}");
        }
    }

    #[test]
    fn configured_cgroups_include_their_descendants() {
        for (configured, path, included) in [
            (None, "/anything", true),
            (Some(""), "/anything", true),
            (Some("/a/b"), "/a/b", true),
            (Some("/a//b/"), "/a/b", true),
            (Some("/a/b"), "/a/b/container", true),
            (Some("/a/b"), "/a/bc", false),
            (Some("/a/b"), "/a", false),
            (Some("/a/b"), "/x/a/b", false),
            (Some("/a/../b"), "/b", false),
            (Some("a/b"), "/user.slice/a/b", true),
            (Some("a/b"), "/a/b/c", true),
            (Some("a/b"), "/a/x/b", false),
            (Some("b"), "/a/xb", false),
            (Some(".."), "/a", false),
            (Some("machine.slice:libpod:1f"), "/machine.slice/libpod-1f.scope", true),
            (Some("machine.slice:libpod:1f"), "/machine.slice/libpod-1f.scope/container", true),
            (Some("machine.slice:libpod:1f"), "/machine.slice/libpod-2f.scope", false),
            (Some("user.slice:libpod:1f"), "/user.slice/user-7.slice/user@7.service/user.slice/libpod-1f.scope/c", true),
            (Some(":crio:1f"), "/system.slice/crio-1f.scope", true),
            (Some("kubepods.slice::1f"), "/kubepods.slice/1f.scope", true),
            (Some("a.slice:x:b.slice"), "/a.slice/b.slice", true),
            (Some("/a:b:c"), "/a:b:c", true),
            (Some("/a:b:c"), "/b-c.scope", false),
            (Some("a:b"), "/x/a:b", true),
        ] {
            assert_eq!(Expected::from(configured).includes(Path::new(path)), included, "{configured:?} {path}");
        }
    }

    #[test]
    fn a_path_outside_of_the_mount_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("web")).unwrap();
        let hierarchy = |root: &str| Hierarchy { mount: File::open(dir.path()).unwrap().into(), root: root.into() };
        assert!(hierarchy("/").open(Path::new("/web")).is_ok());
        assert!(hierarchy("/..").open(Path::new("/../web")).is_ok());
        assert!(hierarchy("/pod").open(Path::new("/pod/web")).is_ok());
        assert!(hierarchy("/pod").open(Path::new("/pod")).is_ok());
        for (root, path) in [("/", "/../web"), ("/pod", "/web"), ("/pod", "/podweb"), ("/", "/web/../web")] {
            let err = hierarchy(root).open(Path::new(path)).unwrap_err();
            assert!(matches!(err, CgroupError::NotVisible(_)), "{root} {path}: {err}");
        }
        assert!(matches!(hierarchy("/").open(Path::new("/none")), Err(CgroupError::Removed(_))));
    }
}
