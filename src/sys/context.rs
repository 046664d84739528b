//! What a process runs with: namespaces, root directory, cgroups, users and capabilities. A child takes over those of
//! another process between fork and exec, like an exec of a container runtime.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::sys::SysError;
use crate::sys::mounts;
use crate::sys::pid::{self, Process, ProcessError};

/// Everything that a child takes over from a process, read once.
#[derive(Debug)]
pub struct ProcessContext {
    process: OwnedFd,
    namespaces: libc::c_int,
    root: OwnedFd,
    directory: OwnedFd,
    /// `cgroup.procs` of its cgroups, open for writing.
    cgroups: Vec<File>,
    ids: ProcessIds,
    environment: Vec<(OsString, OsString)>,
}

/// The ids and rights of a process, as numbers in its own user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ProcessIds {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    inheritable: u64,
    permitted: u64,
    bounding: u64,
    ambient: u64,
    no_new_privileges: bool,
}

impl ProcessContext {
    /// Reads the context of a living process. Its environment is the one that it was executed with, its user and
    /// capabilities are those that it has now.
    ///
    /// # Errors
    /// If the process has ended, or a file of procfs is not as proc(5) says.
    pub fn of(process: &Process) -> Result<Self, ProcessError> {
        let number = process.pid();
        let open = |name: &str| {
            let path = format!("/proc/{number}/{name}");
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, &path, flags, Mode::empty()).map_err(SysError::io("open", path))
        };
        let (root, directory) = (open("root")?, open("cwd")?);
        let user = if process.namespaces()?.user == pid::own_namespaces()?.user { 0 } else { libc::CLONE_NEWUSER };
        let others = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        let malformed = |file| ProcessError::Unreadable { pid: number, file, problem: "it is not as proc(5) says" };
        let [uids, gids] = [process.id_map("uid_map")?, process.id_map("gid_map")?];
        let ids = ProcessIds::parse(&process.status_text()?, &uids, &gids).ok_or_else(|| malformed("status"))?;
        let context = Self {
            process: rustix::io::dup(process.pidfd()).map_err(SysError::io("copy", "a pidfd"))?,
            namespaces: user | others | libc::CLONE_NEWCGROUP,
            root,
            directory,
            cgroups: cgroups(&process.cgroup_text()?)?,
            ids,
            environment: variables(&process.environment()?),
        };
        // What was opened by number is the process's if it still runs.
        match process.pidfd().is_alive()? {
            true => Ok(context),
            false => Err(ProcessError::Gone(number)),
        }
    }

    /// The variables that the process was executed with.
    pub fn environment(&self) -> &[(OsString, OsString)] {
        &self.environment
    }

    /// Takes over the namespaces, the directories and the cgroups. Returns in a new process, which alone is in the pid
    /// namespace; the calling one waits for its end and ends like it.
    ///
    /// For a child between fork and exec: it makes system calls on memory that was allocated before, and allocates
    /// nothing.
    pub(super) fn enter(&self) -> io::Result<()> {
        for file in &self.cgroups {
            // SAFETY: the descriptor is open, and the text has one byte.
            check(unsafe { libc::write(file.as_raw_fd(), c"0".as_ptr().cast(), 1) } == 1)?;
        }
        // SAFETY: takes a descriptor and flags; this process has one thread.
        check(unsafe { libc::setns(self.process.as_raw_fd(), self.namespaces) } == 0)?;
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            0 => {}
            child if child > 0 => wait_for(child),
            _ => return Err(io::Error::last_os_error()),
        }
        rustix::process::fchdir(&self.root)?;
        // SAFETY: the path is a text with a NUL.
        check(unsafe { libc::chroot(c".".as_ptr()) } == 0)?;
        // A directory that the process can no longer reach by a path is no reason to fail.
        Ok(rustix::process::fchdir(&self.directory)?)
    }

    /// Takes over the user and the capabilities. As [`Self::enter`], after which it is called.
    pub(super) fn restrict(&self) -> io::Result<()> {
        let ids = &self.ids;
        for number in 0..u64::BITS {
            if ids.bounding >> number & 1 == 0 {
                // SAFETY: takes integers. The kernel refuses numbers that it does not know, and those are the last ones.
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
            }
        }
        // SAFETY: takes integers.
        check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1 as libc::c_ulong, 0, 0, 0) } == 0)?;
        // SAFETY: the list has as many entries as is said.
        let groups = unsafe { libc::setgroups(ids.groups.len(), ids.groups.as_ptr()) };
        // A user namespace of an unprivileged user may not allow it (user_namespaces(7)); then there are no others.
        check(groups == 0 || ids.groups.is_empty())?;
        // SAFETY: takes integers.
        check(unsafe { libc::setresgid(ids.gid, ids.gid, ids.gid) } == 0)?;
        // SAFETY: takes integers.
        check(unsafe { libc::setresuid(ids.uid, ids.uid, ids.uid) } == 0)?;
        let set = CapabilitySet::from_bits_retain;
        let sets =
            CapabilitySets { effective: set(ids.permitted), permitted: set(ids.permitted), inheritable: set(ids.inheritable) };
        set_capabilities(None, sets)?;
        for number in (0..u64::BITS).filter(|number| ids.ambient >> number & 1 == 1) {
            let (raise, number) = (libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, libc::c_ulong::from(number));
            // SAFETY: takes integers.
            check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, number, 0, 0) } == 0)?;
        }
        if ids.no_new_privileges {
            // SAFETY: takes integers.
            check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as libc::c_ulong, 0, 0, 0) } == 0)?;
        }
        Ok(())
    }
}

fn check(done: bool) -> io::Result<()> {
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for a child and ends with its status. Signals of the terminal are for the child alone.
fn wait_for(child: libc::pid_t) -> ! {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: SIG_IGN installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // Among them is the pipe whose end tells that the command was executed.
    // SAFETY: takes integers. Nothing in this process uses a descriptor any more.
    unsafe { libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, 0 as libc::c_uint) };
    let mut status = 0;
    loop {
        // SAFETY: `status` is writable.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if waited == child || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            break;
        }
    }
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
    // SAFETY: ends this process without running anything.
    unsafe { libc::_exit(code) }
}

/// Opens `cgroup.procs` of each hierarchy that is mounted here, from a text of `/proc/PID/cgroup`.
fn cgroups(text: &str) -> Result<Vec<File>, SysError> {
    let mounts = mounts::own_mounts()?;
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let mount = mounts.iter().find(|mount| match controllers {
            "" => mount.kind == "cgroup2",
            _ => {
                mount.kind == "cgroup"
                    && controllers.split(',').all(|word| mount.super_options.iter().any(|option| option == word))
            }
        });
        let Some(mount) = mount else { continue };
        let Ok(below) = Path::new(path).strip_prefix(&mount.root) else { continue };
        let path = mount.point.join(below).join("cgroup.procs");
        found.push(File::options().write(true).open(&path).map_err(SysError::io("open", path.display().to_string()))?);
    }
    Ok(found)
}

fn variables(environ: &[u8]) -> Vec<(OsString, OsString)> {
    let pairs = environ.split(|byte| *byte == 0).filter_map(|entry| {
        let at = entry.iter().position(|byte| *byte == b'=')?;
        Some((OsStr::from_bytes(&entry[..at]).to_owned(), OsStr::from_bytes(&entry[at + 1..]).to_owned()))
    });
    pairs.filter(|(key, _)| !key.is_empty()).collect()
}

impl ProcessIds {
    /// Reads `/proc/PID/status`, which shows numbers of our user namespace, with the maps of its own.
    fn parse(status: &str, uids: &str, gids: &str) -> Option<Self> {
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
        let first = |key: &str| line(key)?.split_whitespace().next()?.parse().ok();
        let set = |key: &str| u64::from_str_radix(line(key)?, 16).ok();
        let groups = line("Groups")?.split_whitespace().map(|word| inside(gids, word.parse().ok()?));
        Some(Self {
            uid: inside(uids, first("Uid")?)?,
            gid: inside(gids, first("Gid")?)?,
            groups: groups.collect::<Option<_>>()?,
            inheritable: set("CapInh")?,
            permitted: set("CapPrm")?,
            bounding: set("CapBnd")?,
            ambient: set("CapAmb")?,
            no_new_privileges: line("NoNewPrivs") == Some("1"),
        })
    }
}

/// The number in a user namespace of an id of ours, by a text of `uid_map` or `gid_map`.
fn inside(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().map(|word| word.parse::<u32>().ok());
        let (inside, outside, count) = (words.next()??, words.next()??, words.next()??);
        let offset = id.checked_sub(outside).filter(|offset| *offset < count)?;
        inside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tsh\nUid:\t100033\t100033\t100033\t100033\nGid:\t100000\t100000\t100000\t100000\n\
        Groups:\t100000 100005 \nCapInh:\t0000000000000000\nCapPrm:\t0000008000001000\nCapEff:\t0000000000000000\n\
        CapBnd:\t000000ffffffffff\nCapAmb:\t0000000000001000\nNoNewPrivs:\t1\n";

    #[test]
    fn ids_are_those_of_the_process_s_own_user_namespace() {
        let map = "         0     100000      65536\n";
        let ids = ProcessIds::parse(STATUS, map, map).unwrap();
        let expected = ProcessIds {
            uid: 33,
            gid: 0,
            groups: vec![0, 5],
            inheritable: 0,
            permitted: 1 << 39 | 1 << 12,
            bounding: (1 << 40) - 1,
            ambient: 1 << 12,
            no_new_privileges: true,
        };
        assert_eq!(ids, expected);
        // A user that the namespace does not have.
        assert_eq!(ProcessIds::parse(STATUS, "0 200000 65536\n", map), None);
        assert_eq!(inside("0 0 4294967295\n", 7), Some(7));
        assert_eq!(inside("0 1000 1\n1 100000 65536\n", 100_001), Some(2));
    }

    #[test]
    fn variables_are_split() {
        let found = variables(b"PATH=/bin:/usr/bin\0EMPTY=\0=odd\0none\0A=b=c\0");
        let found: Vec<_> = found.iter().map(|(key, value)| (key.to_str().unwrap(), value.to_str().unwrap())).collect();
        assert_eq!(found, [("PATH", "/bin:/usr/bin"), ("EMPTY", ""), ("A", "b=c")]);
    }

    #[test]
    fn the_context_of_this_process_is_read() {
        let own = pid::open_process(crate::model::ids::Pid::new(std::process::id()).unwrap()).unwrap();
        let context = ProcessContext::of(&own).unwrap();
        assert_eq!(context.namespaces & libc::CLONE_NEWUSER, 0);
        assert!(context.environment().iter().any(|(key, _)| key == "PATH"));
    }
}
