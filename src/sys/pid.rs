//! Other processes: each is held by a pidfd and read through one procfs directory, and never looked up by number
//! twice.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::model::ids::{Pid, ProcessIdentity};
use crate::sys::error::SysError;
pub use crate::sys::namespaces::{INITIAL_USER_NAMESPACE, Namespace, Namespaces, own_namespaces};

/// Larger than any file of `/proc/<pid>` that is read; a mountinfo with 50 000 lines has about 8 MiB.
const MAX_FILE: u64 = 32 << 20;

/// Why a process could not be held or read.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The process does not exist any more. A zombie counts as ended.
    #[error("process {0} has ended")]
    Gone(Pid),
    /// `/proc` belongs to another pid namespace than the one in which the number was looked up.
    #[error(
        "read process {0}: /proc is mounted for another pid namespace than the hook's; run the hook where /proc shows its own pid namespace"
    )]
    ForeignProc(Pid),
    /// A file of procfs is not as described in proc(5).
    #[error("read {file} of process {pid}: {problem}")]
    Unreadable {
        /// The process.
        pid: Pid,
        /// The file below `/proc/<pid>`.
        file: &'static str,
        /// The problem.
        problem: &'static str,
    },
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// A handle on one process. If the process ends and its number is reused, the handle still refers to the original
/// process. Closing it does not affect the process. It is close-on-exec, as pidfd_open(2) always sets it.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: Pid,
}

impl PidFd {
    /// Opens the process that currently has this number in our pid namespace.
    pub fn open(pid: Pid) -> Result<Self, ProcessError> {
        let raw = rustix::process::Pid::from_raw(pid.as_raw()).expect("a Pid is not zero");
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(fd) => Ok(Self { fd, pid }),
            // EINVAL and, since Linux 6.15, ENOENT: the number is that of a thread, not of a process.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Err(ProcessError::Gone(pid)),
            Err(errno) => Err(SysError::io("open a pidfd of process", pid.to_string())(errno).into()),
        }
    }

    /// Kills this process, and never another one that reused its number. Succeeds if the process has already ended.
    pub fn kill(&self) -> Result<(), SysError> {
        match rustix::process::pidfd_send_signal(&self.fd, rustix::process::Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(SysError::io("kill process", self.pid.to_string())(errno)),
        }
    }

    /// False once every thread of the process has ended, reaped or not: a zombie is not alive.
    pub fn is_alive(&self) -> Result<bool, SysError> {
        Ok(!self.ends_within(Duration::ZERO)?)
    }

    /// Waits for at most `patience` until the process has ended. Returns true if it has.
    pub fn ends_within(&self, patience: Duration) -> Result<bool, SysError> {
        let end = std::time::Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let timeout =
                Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
            // A pidfd becomes readable when the process ends (pidfd_open(2)).
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(SysError::io("poll the pidfd of process", self.pid.to_string())(errno)),
            }
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The fields of `/proc/<pid>/status` that are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessStatus {
    /// PPid: 0 if the parent is outside of our pid namespace.
    pub parent: u32,
    /// Real and effective uid, as seen from our user namespace.
    pub uid: (u32, u32),
    /// Real and effective gid.
    pub gid: (u32, u32),
    /// NSpid: its number in our pid namespace, then in each nested one down to its own.
    pub pids: Vec<u32>,
    /// CapEff.
    pub effective_capabilities: u64,
    /// Seccomp: 0 none, 1 strict, 2 filter; 0 on a kernel without it.
    pub seccomp: u32,
}

impl ProcessStatus {
    fn parse(text: &str) -> Option<Self> {
        let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
        let pair = |key: &str| {
            let mut numbers = line(key)?.split_whitespace().map(|word| word.parse().ok());
            Some((numbers.next()??, numbers.next()??))
        };
        Some(Self {
            parent: line("PPid")?.parse().ok()?,
            uid: pair("Uid")?,
            gid: pair("Gid")?,
            pids: line("NSpid")?.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?,
            effective_capabilities: u64::from_str_radix(line("CapEff")?, 16).ok()?,
            seccomp: line("Seccomp").map_or(Some(0), |word| word.parse().ok())?,
        })
    }
}

/// The flags for opening a process's directory.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A living process, held by a pidfd and its procfs directory, both of which always refer to the same process. Its
/// namespaces, ids and cgroup may change, so each call reads them again. Once it has ended, every call returns
/// [`ProcessError::Gone`]. Dropping the value does not affect the process.
#[derive(Debug)]
pub struct Process {
    pidfd: PidFd,
    directory: OwnedFd,
    identity: ProcessIdentity,
}

/// Holds the process that currently has this number. After opening both the pidfd and the directory, it verifies that
/// they refer to the same process: a number is reused only after its process has ended, and this one had not ended.
/// The kernel's fdinfo of the pidfd in this `/proc` must show the same number, which proves that `/proc` belongs to
/// our pid namespace.
pub fn open_process(pid: Pid) -> Result<Process, ProcessError> {
    let pidfd = PidFd::open(pid)?;
    let directory = match openat(CWD, format!("/proc/{pid}"), DIRECTORY, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::SRCH) => return Err(absent(&pidfd)),
        Err(errno) => return Err(SysError::io("open", format!("/proc/{pid}"))(errno).into()),
    };
    let start_time =
        start_time(&read_file(&directory, pid, "stat")?).ok_or_else(|| unreadable(pid, "stat", "no start time"))?;
    let shown = format!("/proc/self/fdinfo/{}", pidfd.fd.as_raw_fd());
    let fdinfo = read_at(CWD, &shown).map_err(SysError::io("read", shown))?;
    match number_of_pidfd(&fdinfo) {
        Some(number) if number == i64::from(pid.get()) => {}
        Some(-1) => return Err(ProcessError::Gone(pid)),
        _ => return Err(ProcessError::ForeignProc(pid)),
    }
    if !pidfd.is_alive()? {
        return Err(ProcessError::Gone(pid));
    }
    Ok(Process { pidfd, directory, identity: ProcessIdentity { pid, start_time } })
}

/// The pidfd was opened, but `/proc/<pid>` was not: the process ended in between, or is not visible in this procfs.
fn absent(pidfd: &PidFd) -> ProcessError {
    match pidfd.is_alive() {
        Ok(true) => ProcessError::ForeignProc(pidfd.pid),
        Ok(false) => ProcessError::Gone(pidfd.pid),
        Err(err) => err.into(),
    }
}

/// True while exactly this process lives: a process with the same number and another start time is a different one,
/// and a zombie does not count.
pub fn is_alive(identity: &ProcessIdentity) -> Result<bool, ProcessError> {
    // A fast path for callers that check thousands of processes: it needs a quarter of the system calls of holding the
    // process. Any other result is verified with a pidfd: `/proc` may belong to another pid namespace, and a process
    // whose first thread has ended may have others.
    if shown_running(identity) {
        return Ok(true);
    }
    match open_process(identity.pid) {
        Ok(process) => Ok(process.identity.start_time == identity.start_time),
        Err(ProcessError::Gone(_)) => Ok(false),
        Err(err) => Err(err),
    }
}

/// Whether `/proc` shows exactly this process, with its first thread running.
fn shown_running(identity: &ProcessIdentity) -> bool {
    let mut stat = [0; 1024];
    let read = File::open(format!("/proc/{}/stat", identity.pid)).and_then(|mut file| file.read(&mut stat));
    let text = read.ok().and_then(|length| std::str::from_utf8(stat.get(..length)?).ok());
    text.is_some_and(|text| runs(text) && start_time(text) == Some(identity.start_time))
}

/// The identity of this process, for records of its actions.
pub fn own_identity() -> Result<ProcessIdentity, ProcessError> {
    let pid = Pid::new(std::process::id()).expect("our own pid is not zero");
    let own = openat(CWD, "/proc/self", DIRECTORY, Mode::empty()).map_err(SysError::io("open", "/proc/self"))?;
    let start_time = start_time(&read_file(&own, pid, "stat")?).ok_or_else(|| unreadable(pid, "stat", "no start time"))?;
    Ok(ProcessIdentity { pid, start_time })
}

/// The parent of this process in our own pid namespace; None if it is outside.
pub fn own_parent() -> Option<u32> {
    rustix::process::getppid().and_then(|parent| u32::try_from(parent.as_raw_nonzero().get()).ok())
}

/// The effective uid of this process, which is that of the runtime that started it.
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Returns an error unless this process is in the initial user namespace: delegating BPF and entering containers
/// created by others needs capabilities in that namespace, whatever capabilities a rootless runtime's own namespace
/// grants.
pub fn require_initial_user_namespace() -> Result<(), RootlessError> {
    match statat(CWD, "/proc/self/ns/user", AtFlags::empty()) {
        Ok(stat) if stat.st_ino != INITIAL_USER_NAMESPACE => Err(RootlessError),
        // If it cannot be determined, the first step that needs a capability reports it.
        _ => Ok(()),
    }
}

/// Returns an error unless this process is in the initial time namespace. In another one, the start times that `/proc`
/// shows are shifted by its offset (fs/proc/array.c, timens_add_boottime_ns), so that every recorded process would
/// count as gone.
pub fn require_initial_time_namespace() -> Result<(), TimeNamespaceError> {
    match statat(CWD, "/proc/self/ns/time", AtFlags::empty()) {
        Ok(stat) if stat.st_ino != INITIAL_TIME_NAMESPACE => Err(TimeNamespaceError),
        // A kernel without time namespaces has only one.
        _ => Ok(()),
    }
}

/// The inode of the initial time namespace: PROC_TIME_INIT_INO, include/linux/proc_ns.h, since Linux 5.6.
const INITIAL_TIME_NAMESPACE: u64 = 0xEFFF_FFFA;

/// This process runs in a time namespace other than the initial one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "determine which processes are alive: this process is in a time namespace, where their start times differ; \
     run bpfman-hook in the host's"
)]
pub struct TimeNamespaceError;

/// The runtime that started this process is rootless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the runtime is rootless, and capabilities in its user namespace cannot delegate BPF or attach programs; run the container as root"
)]
pub struct RootlessError;

impl Process {
    /// The pid and start time of the process.
    pub fn identity(&self) -> ProcessIdentity {
        self.identity
    }

    /// The pid in our pid namespace.
    pub fn pid(&self) -> Pid {
        self.identity.pid
    }

    /// The pidfd, for setns(2) and waiting.
    pub fn pidfd(&self) -> &PidFd {
        &self.pidfd
    }

    /// The inodes of the process's namespaces.
    pub fn namespaces(&self) -> Result<Namespaces, ProcessError> {
        Namespaces::read(self.directory.as_fd()).map_err(|errno| self.failed("read the namespaces of process", errno))
    }

    /// Opens one of the process's namespaces. The descriptor keeps the namespace alive after its last process; close
    /// it early.
    pub fn open_namespace(&self, kind: Namespace) -> Result<OwnedFd, ProcessError> {
        openat(&self.directory, kind.file(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| self.failed("open a namespace of process", errno))
    }

    /// Opens a directory as the process sees it, in its mount namespace and below its root, as a starting point for
    /// lookups.
    pub fn open_directory(&self, path: &Path) -> Result<OwnedFd, ProcessError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(&self.directory, "root", flags, Mode::empty())
            .map_err(|errno| self.failed("open the root of process", errno))?;
        Ok(super::fsutil::open_beneath(&root, path, super::fsutil::OpenAs::DirectoryPath)?)
    }

    /// True if its pid namespace has this inode or is a descendant, at any depth, of the one that has it.
    pub fn is_within_pid_namespace(&self, inode: u64) -> Result<bool, ProcessError> {
        // _IO(0xb7, 2), include/uapi/linux/nsfs.h
        const NS_GET_PARENT: libc::Ioctl = 0xb702;
        let mut namespace = self.open_namespace(Namespace::Pid)?;
        loop {
            let stat =
                rustix::fs::fstat(&namespace).map_err(SysError::io("stat the pid namespace of process", self.shown()))?;
            if stat.st_ino == inode {
                return Ok(true);
            }
            // SAFETY: NS_GET_PARENT takes no argument and touches no memory; `namespace` is an open descriptor.
            let parent = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) };
            if parent < 0 {
                // EPERM: the parent is outside of our own pid namespace, or does not exist (ioctl_nsfs(2)).
                return match io::Error::last_os_error() {
                    err if err.raw_os_error() == Some(libc::EPERM) => Ok(false),
                    err => Err(SysError::io("find the parent of the pid namespace of process", self.shown())(err).into()),
                };
            }
            // SAFETY: the kernel has just created this descriptor for us, close-on-exec (fs/nsfs.c, open_related_ns).
            namespace = unsafe { OwnedFd::from_raw_fd(parent) };
        }
    }

    /// The contents of `/proc/<pid>/cgroup`.
    pub fn cgroup_text(&self) -> Result<String, ProcessError> {
        read_file(&self.directory, self.pid(), "cgroup")
    }

    /// The contents of `/proc/<pid>/mountinfo`.
    pub fn mountinfo(&self) -> Result<String, ProcessError> {
        read_file(&self.directory, self.pid(), "mountinfo")
    }

    /// The contents of `/proc/<pid>/uid_map` or `gid_map`.
    pub(super) fn id_map(&self, file: &'static str) -> Result<String, ProcessError> {
        read_file(&self.directory, self.pid(), file)
    }

    /// The contents of `/proc/<pid>/status`.
    pub(super) fn status_text(&self) -> Result<String, ProcessError> {
        read_file(&self.directory, self.pid(), "status")
    }

    /// The contents of `/proc/<pid>/environ`: the variables that it was executed with, each with a NUL.
    pub(super) fn environment(&self) -> Result<Vec<u8>, ProcessError> {
        let file = openat(&self.directory, "environ", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut bytes = Vec::new();
        let read = file.map_err(io::Error::from).and_then(|file| File::from(file).take(MAX_FILE).read_to_end(&mut bytes));
        read.map_err(|error| failed(self.pid(), "read the environment of process", error))?;
        Ok(bytes)
    }

    /// True if its user namespace maps user or group 0 of ours, as an identity map does (user_namespaces(7): the
    /// second column is relative to the reader's namespace).
    pub fn maps_our_root(&self) -> Result<bool, ProcessError> {
        for file in ["uid_map", "gid_map"] {
            let map = self.id_map(file)?;
            if maps_zero(&map).ok_or_else(|| unreadable(self.pid(), file, "expected three numbers per line"))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The current ids, capabilities and parent.
    pub fn status(&self) -> Result<ProcessStatus, ProcessError> {
        let text = self.status_text()?;
        ProcessStatus::parse(&text).ok_or_else(|| unreadable(self.pid(), "status", "a line of proc(5) is missing"))
    }

    fn shown(&self) -> String {
        self.pid().to_string()
    }

    fn failed(&self, doing: &'static str, errno: Errno) -> ProcessError {
        failed(self.pid(), doing, errno.into())
    }
}

fn failed(pid: Pid, doing: &'static str, err: io::Error) -> ProcessError {
    match err.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => ProcessError::Gone(pid),
        _ => SysError::io(doing, pid.to_string())(err).into(),
    }
}

fn unreadable(pid: Pid, file: &'static str, problem: &'static str) -> ProcessError {
    ProcessError::Unreadable { pid, file, problem }
}

fn read_file(directory: &OwnedFd, pid: Pid, file: &'static str) -> Result<String, ProcessError> {
    read_below(directory, file).map_err(|err| failed(pid, "read a file below /proc of process", err))
}

/// Reads a text file of procfs. Bytes that are not UTF-8 (program names, mount points) become U+FFFD.
fn read_below(directory: &OwnedFd, path: &str) -> io::Result<String> {
    read_at(directory.as_fd(), path)
}

fn read_at(directory: BorrowedFd<'_>, path: &str) -> io::Result<String> {
    let file = File::from(openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    // procfs reports a size of 0, and without an initial capacity the file would be read in pieces of 32 bytes.
    let mut bytes = Vec::with_capacity(2048);
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(err) => String::from_utf8_lossy(err.as_bytes()).into_owned(),
    })
}

/// Field 22 of `/proc/<pid>/stat`. Field 2 is the program's name in parentheses and may itself contain blanks and
/// parentheses, so counting starts after the last closing one.
pub(super) fn start_time(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Field 3 of the same file: whether the thread has not ended.
pub(super) fn runs(stat: &str) -> bool {
    stat.rsplit_once(')').is_some_and(|(_, after)| !after.trim_start().starts_with(['Z', 'X']))
}

/// Whether a range in the second column of a uid_map begins with 0; None if a line does not consist of three numbers.
fn maps_zero(map: &str) -> Option<bool> {
    let mut found = false;
    for line in map.lines() {
        let mut words = line.split_ascii_whitespace().map(|word| word.parse::<u32>().ok());
        let (_inside, outside, count) = (words.next()??, words.next()??, words.next()??);
        found |= outside == 0 && count > 0;
    }
    Some(found)
}

/// `Pid:` of a pidfd's fdinfo: the number in the pid namespace of the procfs, 0 if it has none there, -1 once it is
/// reaped (pidfd_open(2)).
fn number_of_pidfd(fdinfo: &str) -> Option<i64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

/// The numbers of all processes that `/proc` shows, including this one. Some may have ended when this returns.
pub fn all_processes() -> Result<Vec<Pid>, SysError> {
    let listed = |err: io::Error| SysError::io("list", "/proc")(err);
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(listed)? {
        let name = entry.map_err(listed)?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse().ok()).and_then(|number| Pid::new(number).ok()));
    }
    Ok(pids)
}

/// Returns a process that is not `known` and whose main thread is in the network namespace with this inode, if `/proc`
/// shows one. Processes that end meanwhile or whose namespaces cannot be read are ignored, and so are single threads
/// in another namespace.
pub fn processes_in_netns(inode: u64, known: impl Fn(Pid) -> bool) -> Result<Option<Pid>, SysError> {
    let found = all_processes()?.into_iter().find(|pid| {
        let there = statat(CWD, format!("/proc/{pid}/ns/net"), AtFlags::empty()).is_ok_and(|stat| stat.st_ino == inode);
        there && !known(*pid)
    });
    Ok(found)
}

/// A descriptor of this process.
///
/// # Errors
/// ENOSYS before Linux 5.3, EMFILE.
pub fn own_pidfd() -> Result<OwnedFd, Errno> {
    pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper() -> (Child, Pid) {
        let child = Command::new("/bin/sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::new(child.id()).unwrap();
        (child, pid)
    }

    #[test]
    fn an_ended_first_thread_is_recognized_by_its_state() {
        for (rest, expected) in [("S 1", true), ("R 1", true), ("Z 1", false), ("X 0", false)] {
            for name in ["(sh)", "(x) Z 1 (y)", "())"] {
                assert_eq!(runs(&format!("12 {name} {rest}")), expected, "{name} {rest}");
            }
        }
        assert!(!runs("12"));
    }

    #[test]
    fn the_start_time_is_found_after_any_name() {
        let rest = "S 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 7 8 9";
        for name in ["(sh)", "(a b)", "(x) R 1 (y)", "())", "(\u{fffd})"] {
            assert_eq!(start_time(&format!("12 {name} {rest}")), Some(4242), "{name}");
        }
        for bad in ["", "12 (sh", "12 (sh) S 1 2", "12 (sh) S 1 2 3 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 x 7"] {
            assert_eq!(start_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_mapping_of_our_root_is_found() {
        let identity = "         0          0 4294967295\n";
        for (map, expected) in [
            (identity, Some(true)),
            ("         0     100000      65536\n", Some(false)),
            ("0 1000 1\n1 100000 65536\n", Some(false)),
            ("0 100000 1000\n1000 0 1\n", Some(true)),
            ("", Some(false)),
            ("0 0\n", None),
            ("0 x 1\n", None),
        ] {
            assert_eq!(maps_zero(map), expected, "{map:?}");
        }
        let own = open_process(own_identity().unwrap().pid).unwrap();
        assert!(own.maps_our_root().unwrap(), "our own namespace maps our own root");
    }

    #[test]
    fn status_is_parsed() {
        let text = "Name:\tx Uid: 9\nUmask:\t0022\nPPid:\t7\nUid:\t0\t100000\t0\t0\nGid:\t5\t6\t5\t5\nNSpid:\t812\t3\t1\nCapEff:\t000001fffeffffff\nSeccomp:\t2\n";
        let status = ProcessStatus::parse(text).unwrap();
        assert_eq!((status.parent, status.uid, status.gid, status.seccomp), (7, (0, 100_000), (5, 6), 2));
        assert_eq!((status.pids.as_slice(), status.effective_capabilities), (&[812, 3, 1][..], 0x1ff_feff_ffff));
        assert!(ProcessStatus::parse(&text.replace("PPid", "Ppid")).is_none());
    }

    #[test]
    fn a_living_process_is_opened_and_read() {
        let (mut child, pid) = sleeper();
        let process = open_process(pid).unwrap();
        assert!(is_alive(&process.identity()).unwrap());
        assert_eq!(process.namespaces().unwrap(), own_namespaces().unwrap());
        assert_eq!(process.status().unwrap().parent, std::process::id());
        assert!(process.cgroup_text().unwrap().contains("0::") && process.mountinfo().unwrap().contains(" / "));
        assert!(process.is_within_pid_namespace(process.namespaces().unwrap().pid).unwrap());
        assert!(!process.is_within_pid_namespace(1).unwrap());
        assert!(process.open_namespace(Namespace::Network).is_ok());

        child.kill().unwrap();
        assert!(process.pidfd().ends_within(Duration::from_secs(10)).unwrap());
        assert!(!is_alive(&process.identity()).unwrap(), "a zombie is dead");
        assert!(matches!(open_process(pid), Err(ProcessError::Gone(_))), "a zombie cannot be opened");
        child.wait().unwrap();
        assert!(!is_alive(&process.identity()).unwrap());
        assert!(matches!(process.status(), Err(ProcessError::Gone(_))));
        assert!(matches!(process.namespaces(), Err(ProcessError::Gone(_))));
    }

    #[test]
    fn the_same_number_with_another_start_time_is_another_process() {
        let own = own_identity().unwrap();
        assert!(is_alive(&own).unwrap());
        assert!(!is_alive(&ProcessIdentity { start_time: own.start_time + 1, ..own }).unwrap());
        // Above the largest pid_max that the kernel accepts (PID_MAX_LIMIT).
        assert!(!is_alive(&ProcessIdentity { pid: Pid::new(4_194_305).unwrap(), start_time: 1 }).unwrap());
    }

    #[test]
    fn a_thread_is_not_a_process() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            sender.send(rustix::thread::gettid()).unwrap();
            let _ = wait.recv();
        });
        let tid = Pid::new(u32::try_from(receiver.recv().unwrap().as_raw_nonzero().get()).unwrap()).unwrap();
        assert!(matches!(PidFd::open(tid), Err(ProcessError::Gone(_))));
        drop(done);
        thread.join().unwrap();
    }

    #[test]
    fn other_processes_in_a_network_namespace_are_found() {
        let own = own_namespaces().unwrap().network;
        let me = own_identity().unwrap().pid;
        let other = processes_in_netns(own, |pid| pid == me).unwrap();
        assert!(other.is_some_and(|pid| pid != me), "{other:?}");
        assert_eq!(processes_in_netns(own, |_| true).unwrap(), None);
        assert_eq!(processes_in_netns(1, |_| false).unwrap(), None);
    }

    #[test]
    fn the_pid_of_a_pidfd_is_parsed() {
        for (text, number) in [
            ("pos:\t0\nflags:\t02\nPid:\t42\nNSpid:\t42\n", Some(42)),
            ("Pid:\t-1\n", Some(-1)),
            ("Pid:\t0\n", Some(0)),
            ("pos:\t0\n", None),
        ] {
            assert_eq!(number_of_pidfd(text), number);
        }
    }
}
