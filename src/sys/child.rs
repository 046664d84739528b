//! Child roles: our own binary executed again for one task, with a socket as standard input and nothing else
//! inherited.
//!
//! The word that selects a role is the whole command line; `main` calls [`role_from_args`] before it does anything
//! else. The child inherits nothing from the runtime: it has an empty environment, no descriptors except 0 to 2, and
//! `/` as its working directory.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Resource, Rlimit, Signal, getppid, getrlimit, pidfd_open, pidfd_send_signal,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit, umask,
};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, no_new_privs,
    set_capabilities, set_capabilities_secure_bits, set_no_new_privs,
};

use crate::sys::SysError;
use crate::sys::caps::{bound_children, drop_bounding};
use crate::sys::sock::{Socket, SocketMessage, wait_readable};

/// The first of the 2^22 user and group ids of confined children. A child adds its pid, so that no two living children
/// share an id and could signal or trace each other.
///
/// 65534 is unsuitable: it is `nobody`, which NFS and other daemons run as, and what unmapped ids appear as. The range
/// 1879048192..2147483647 is not allocated: systemd's table of ids (UIDS-GIDS) ends its container ranges just below
/// it, and the ids of login.defs and subordinate ids, which begin at 1000 and 100000, are far away.
pub const CONFINED_ID: u32 = 0x7b00_0000;

/// The task of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Talks to registries and unpacks what they send, without any privileges.
    Fetch,
    /// Runs one manual request for the service.
    Request,
    /// Handles containers that were started without the hook, for the NRI plugin.
    Missed,
    /// Tries what a BPF token can be used for, in namespaces of its own.
    Matrix,
}

impl Role {
    const ALL: [Self; 4] = [Self::Fetch, Self::Request, Self::Missed, Self::Matrix];

    /// The only argument, which selects the role: it must not be a word that a user types or that clap accepts as a
    /// command.
    fn word(self) -> &'static str {
        match self {
            Self::Fetch => "@bpfman-hook-child:fetch",
            Self::Request => "@bpfman-hook-child:request",
            Self::Missed => "@bpfman-hook-child:missed",
            Self::Matrix => "@bpfman-hook-child:matrix",
        }
    }

    /// The name of the role in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Request => "request",
            Self::Missed => "missed",
            Self::Matrix => "token matrix",
        }
    }
}

/// The role in which this process was started; `args` includes argv[0]. `main` must call it first, before anything is
/// read.
pub fn role_from_args(args: &[OsString]) -> Option<Role> {
    match args {
        [_, word] => Role::ALL.into_iter().find(|role| word == role.word()),
        _ => None,
    }
}

/// The destination of a child's standard output and error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// /dev/null.
    Null,
    /// The parent's. A reader of the parent's output then also waits for the child.
    Inherit,
}

/// A running child. Dropping it sends SIGKILL and reaps it.
#[derive(Debug)]
pub struct Child {
    role: Role,
    process: std::process::Child,
    pidfd: OwnedFd,
    socket: Socket,
    started: Instant,
}

impl Child {
    /// Executes /proc/self/exe, which is the running binary even if an upgrade has replaced the file.
    pub fn spawn(role: Role, output: Output) -> Result<Self, SysError> {
        bound_children()?;
        let (ours, theirs) = Socket::pair()?;
        let out = || match output {
            Output::Null => Stdio::null(),
            Output::Inherit => Stdio::inherit(),
        };
        let mut command = Command::new("/proc/self/exe");
        command.arg0("bpfman-hook").arg(role.word()).env_clear().current_dir("/");
        command.stdin(OwnedFd::from(theirs)).stdout(out()).stderr(out());
        // This does not cost a vfork: in a static binary the standard library forks in any case.
        // SAFETY: the closure runs between fork and exec of a process that may have threads. It makes one system call,
        // accesses only its own stack, and does not allocate.
        unsafe { command.pre_exec(close_on_exec) };
        let started = Instant::now();
        let process = command.spawn().map_err(|err| match err.raw_os_error() {
            Some(libc::EAGAIN) => SysError::NoProcess { role: role.name() },
            _ => SysError::io("start", format!("the {} process", role.name()))(err),
        })?;
        let pidfd = pidfd_of(&process).map_err(SysError::io("open a pidfd of", format!("the {} process", role.name())));
        let pidfd = match pidfd {
            Ok(pidfd) => pidfd,
            Err(error) => {
                let mut process = process;
                // Reaped or not: there is nothing more to do.
                let _ = process.kill().and_then(|()| process.wait());
                return Err(error);
            }
        };
        Ok(Self { role, process, pidfd, socket: ours, started })
    }

    /// The parent's end of the socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The child's pid. It is not reused until the value is dropped.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Receives one message of at most `limit` bytes.
    ///
    /// # Errors
    /// [`SysError::Deadline`] if no message came in time, [`SysError::ChildGone`] if the child ended instead. In both
    /// cases the child is killed and reaped.
    pub fn recv(&mut self, what: &'static str, limit: usize, deadline: Instant) -> Result<SocketMessage, SysError> {
        let readable = wait_readable(self.socket.as_fd(), deadline).map_err(SysError::io("wait for", what))?;
        if !readable {
            self.kill();
            return Err(SysError::Deadline { role: self.role.name(), waited: self.started.elapsed() });
        }
        // Linux reports ECONNRESET if the other end was closed with unread data in its queue.
        match self.socket.recv(what, limit, Some(deadline)) {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(self.gone(deadline)),
            Err(SysError::Io { source, .. }) if source.kind() == io::ErrorKind::ConnectionReset => Err(self.gone(deadline)),
            Err(error) => Err(error),
        }
    }

    /// Waits for the child to exit and returns its status; kills it at the deadline.
    pub fn wait(mut self, deadline: Instant) -> Result<ExitStatus, SysError> {
        self.wait_until(deadline)
    }

    fn wait_until(&mut self, deadline: Instant) -> Result<ExitStatus, SysError> {
        let object = || format!("the {} process", self.role.name());
        let ended = wait_readable(self.pidfd.as_fd(), deadline).map_err(SysError::io("wait for", object()))?;
        if !ended {
            self.kill();
            return Err(SysError::Deadline { role: self.role.name(), waited: self.started.elapsed() });
        }
        self.process.wait().map_err(SysError::io("reap", object()))
    }

    /// The error for a child that closed its socket. It waits briefly for the child to exit, so that its status can be
    /// reported.
    fn gone(&mut self, deadline: Instant) -> SysError {
        let moment = Instant::now() + Duration::from_millis(500);
        match self.wait_until(deadline.min(moment)) {
            Ok(status) => SysError::ChildGone { role: self.role.name(), how: status.to_string() },
            Err(_) => SysError::ChildGone { role: self.role.name(), how: "closed its socket and was killed".into() },
        }
    }

    fn kill(&mut self) {
        // ESRCH: it has already ended. It must be reaped in either case.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn pidfd_of(process: &std::process::Child) -> Result<OwnedFd, rustix::io::Errno> {
    // The pid cannot have been reused: only this process reaps the child, and it has not done so yet.
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
    pidfd_open(pid, PidfdFlags::empty())
}

/// Marks every descriptor except 0 to 2 close-on-exec (Linux 5.11).
fn close_on_exec() -> io::Result<()> {
    // SAFETY: close_range takes three integers, and with CLOSE_RANGE_CLOEXEC it closes nothing before the exec.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a command run with `root` as its root directory, which needs CAP_SYS_CHROOT.
///
/// # Errors
/// If the path contains a zero byte.
pub fn enter_root(command: &mut Command, root: &std::path::Path) -> Result<(), SysError> {
    let path = std::ffi::CString::new(root.as_os_str().as_encoded_bytes())
        .map_err(|err| SysError::io("enter", root.display().to_string())(io::Error::other(err)))?;
    // SAFETY: the closure runs between fork and exec of a process that may have threads. It makes two system calls on
    // strings created before the fork, and does not allocate.
    unsafe {
        command.pre_exec(move || {
            if libc::chroot(path.as_ptr()) < 0 || libc::chdir(c"/".as_ptr()) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok(())
}

/// In a child: takes its socket, which is standard input, and puts /dev/null in its place.
///
/// # Errors
/// If standard input is not such a socket, for example because a user typed the role's word.
pub fn parent_socket() -> Result<Socket, SysError> {
    let fd = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3).map_err(SysError::io("take", "standard input"))?;
    let socket = Socket::from_fd(fd)?;
    let null = File::open("/dev/null").map_err(SysError::io("open", "/dev/null"))?;
    // SAFETY: both are open descriptors. No handle in this process owns descriptor 0, so none becomes stale.
    if unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) } < 0 {
        return Err(SysError::io("close", "standard input")(io::Error::last_os_error()));
    }
    Ok(socket)
}

/// Resource limits of a confined child. A lower limit that the process already has is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildLimits {
    /// Address space in bytes; the heap arena of a thread alone reserves 64 MiB of it.
    pub address_space: u64,
    /// Private writable memory in bytes.
    pub data: u64,
    /// CPU time in seconds, independent of the parent's deadline.
    pub cpu: u64,
    /// Open descriptors.
    pub files: u64,
    /// Size in bytes of any file that it writes, memfds included. Writing beyond it fails with EFBIG.
    pub file_size: u64,
}

/// In a child: gives up all privileges permanently. It must be called before any untrusted input is read and before a
/// second thread exists.
///
/// Afterwards the process has its own ids ([`CONFINED_ID`] plus its pid), no groups, no capabilities in any set, and
/// cannot gain any by exec. It is not dumpable, so that even processes with the same ids cannot trace it, and it dies
/// with the thread that spawned it.
///
/// `parent` is the socket of [`parent_socket`]; the process at its other end must still be the parent.
///
/// # Errors
/// `Io` for the step that failed. The process may then have given up some privileges and must exit. It needs
/// CAP_SETUID, CAP_SETGID and CAP_SETPCAP, and no others: limits are only ever lowered.
pub fn confine(parent: &Socket, limits: ChildLimits) -> Result<(), SysError> {
    fn fail<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> SysError {
        SysError::io(step, "the child process")
    }
    let threads = fs::read_dir("/proc/self/task").map_err(fail("count the threads of"))?.count();
    if threads != 1 {
        return Err(fail("confine")(io::Error::other(format!("{threads} threads are running"))));
    }
    umask(rustix::fs::Mode::from_raw_mode(0o077));
    lower(Resource::As, limits.address_space)?;
    lower(Resource::Data, limits.data)?;
    lower(Resource::Cpu, limits.cpu)?;
    lower(Resource::Nofile, limits.files)?;
    lower(Resource::Fsize, limits.file_size)?;
    lower(Resource::Core, 0)?;
    // SAFETY: SIG_IGN installs no handler, so nothing runs in signal context; there is no other thread.
    if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(fail("ignore SIGXFSZ in")(io::Error::last_os_error()));
    }

    // All of these need CAP_SETPCAP, so they come before the capabilities are dropped.
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(bits).map_err(fail("lock the secure bits of"))?;
    clear_ambient_capability_set().map_err(fail("clear the ambient capabilities of"))?;
    drop_bounding(&[])?;

    let id = CONFINED_ID + (std::process::id() & 0x3f_ffff);
    set_ids(id)?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, none).map_err(fail("drop the capabilities of"))?;
    set_no_new_privs(true).map_err(fail("set no_new_privs of"))?;

    // A change of ids resets both of these, so they come after it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(fail("clear the dumpable flag of"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(fail("set the parent death signal of"))?;
    let peer = rustix::net::sockopt::socket_peercred(parent.as_fd()).map_err(fail("find the parent of"))?;
    if getppid() != Some(peer.pid) {
        return Err(fail("confine")(io::Error::other("its parent is gone")));
    }
    check_confined(id)
}

/// Verifies the result: an incomplete confinement that goes unnoticed would be worse than an error.
fn check_confined(id: u32) -> Result<(), SysError> {
    let fail = || SysError::io("check", "the confinement of the child process");
    let sets = capabilities(None).map_err(fail())?;
    let groups = rustix::process::getgroups().map_err(fail())?;
    let ids = [
        rustix::process::getuid().as_raw(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getgid().as_raw(),
        rustix::process::getegid().as_raw(),
    ];
    let held = ids == [id; 4]
        && groups.is_empty()
        && sets.effective.is_empty()
        && sets.permitted.is_empty()
        && sets.inheritable.is_empty()
        && no_new_privs().map_err(fail())?;
    if held { Ok(()) } else { Err(fail()(rustix::io::Errno::PERM)) }
}

fn lower(resource: Resource, to: u64) -> Result<(), SysError> {
    let hard = getrlimit(resource).maximum.map_or(to, |hard| hard.min(to));
    setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })
        .map_err(SysError::io("lower", format!("the limit {resource:?} of the child process")))
}

/// Drops all groups and sets the real, effective, saved and file system ids of user and group to `id`.
fn set_ids(id: u32) -> Result<(), SysError> {
    let check = |done: libc::c_int, step: &'static str| {
        if done == 0 { Ok(()) } else { Err(SysError::io(step, "the child process")(io::Error::last_os_error())) }
    };
    // SAFETY: a list of length 0 is never read.
    check(unsafe { libc::setgroups(0, std::ptr::null()) }, "drop the groups of")?;
    // SAFETY: takes integers only.
    check(unsafe { libc::setresgid(id, id, id) }, "change the group of")?;
    // SAFETY: takes integers only.
    check(unsafe { libc::setresuid(id, id, id) }, "change the user of")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_word_selects_a_child_role() {
        let role = |args: &[&str]| role_from_args(&args.iter().map(OsString::from).collect::<Vec<_>>());
        for known in Role::ALL {
            assert_eq!(role(&["bpfman-hook", known.word()]), Some(known));
            assert_eq!(role(&["bpfman-hook", known.word(), "more"]), None);
            assert_eq!(role(&[known.word()]), None);
        }
        assert_eq!(role(&[]), None);
        assert_eq!(role(&["bpfman-hook"]), None);
        assert_eq!(role(&["bpfman-hook", "fetch"]), None);
        assert_eq!(role(&["bpfman-hook", "hook", Role::Fetch.word()]), None);
    }

    #[test]
    fn confined_ids_are_outside_all_allocated_ranges() {
        assert!(CONFINED_ID > 1_879_048_191 && CONFINED_ID + 0x3f_ffff < i32::MAX as u32);
    }
}
