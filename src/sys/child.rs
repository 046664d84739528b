//! Child roles: our own binary executed again for one task, with a socket as standard input and nothing else of ours.
//!
//! A role's word is its whole command line; `main` asks [`role_from_args`] before it looks at anything else. What was
//! inherited from the runtime ends here: no environment, no descriptors beside 0 to 2, `/` as working directory.

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

/// The first of the 2^22 user and group ids that confined children take; a child adds its pid, so that no two living ones
/// share an id and could signal or trace each other.
///
/// 65534 will not do: it is `nobody`, which NFS and other daemons run as, and what ids without a mapping look like. The
/// range 1879048192..2147483647 is given to nobody: systemd's table of ids (UIDS-GIDS) ends its container ranges just
/// below it, and login.defs and subordinate ids begin at 1000 and 100000 and stay far away.
pub const CONFINED_ID: u32 = 0x7b00_0000;

/// What a child is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Talks to registries and takes apart what they send, without any privilege.
    Fetch,
    /// Does one request by hand, for a service.
    Request,
    /// Deals with containers that were started without us, for the NRI plugin.
    Missed,
}

impl Role {
    const ALL: [Self; 3] = [Self::Fetch, Self::Request, Self::Missed];

    /// The one argument that selects the role: nothing that a person types, or that clap would take for a command.
    fn word(self) -> &'static str {
        match self {
            Self::Fetch => "@bpfman-hook-child:fetch",
            Self::Request => "@bpfman-hook-child:request",
            Self::Missed => "@bpfman-hook-child:missed",
        }
    }

    /// The name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Request => "request",
            Self::Missed => "missed",
        }
    }
}

/// The role that this process was started in; `args` begin with argv[0]. To be asked first in `main`, before anything is read.
pub fn role_from_args(args: &[OsString]) -> Option<Role> {
    match args {
        [_, word] => Role::ALL.into_iter().find(|role| word == role.word()),
        _ => None,
    }
}

/// Where a child's standard output and error go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// To /dev/null.
    Null,
    /// Where ours go. The reader of ours then waits for the child as well.
    Inherit,
}

/// A running child. Dropping it kills it with SIGKILL and reaps it.
#[derive(Debug)]
pub struct Child {
    role: Role,
    process: std::process::Child,
    pidfd: OwnedFd,
    socket: Socket,
    started: Instant,
}

impl Child {
    /// Executes /proc/self/exe, which stays the binary that runs now even after an upgrade has replaced the file.
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
        // It costs no vfork: in a static binary the standard library forks in any case.
        // SAFETY: the closure runs between fork and exec of a process that may have threads. It makes one system call,
        // touches no memory but its own stack, and allocates nothing.
        unsafe { command.pre_exec(close_on_exec) };
        let started = Instant::now();
        let process = command.spawn().map_err(SysError::io("start", format!("the {} process", role.name())))?;
        let pidfd = pidfd_of(&process).map_err(SysError::io("open a pidfd of", format!("the {} process", role.name())));
        let pidfd = match pidfd {
            Ok(pidfd) => pidfd,
            Err(error) => {
                let mut process = process;
                // Already reaped or not: there is nothing more to be done about it.
                let _ = process.kill().and_then(|()| process.wait());
                return Err(error);
            }
        };
        Ok(Self { role, process, pidfd, socket: ours, started })
    }

    /// Our end of the socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The child's pid, which stays its own until the child is dropped.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Receives one message of at most `limit` bytes.
    ///
    /// # Errors
    /// [`SysError::Deadline`] where none came in time, [`SysError::ChildGone`] where the child ended instead. The child is
    /// killed and reaped in both cases.
    pub fn recv(&mut self, what: &'static str, limit: usize, deadline: Instant) -> Result<SocketMessage, SysError> {
        let readable = wait_readable(self.socket.as_fd(), deadline).map_err(SysError::io("wait for", what))?;
        if !readable {
            self.kill();
            return Err(SysError::Deadline { role: self.role.name(), waited: self.started.elapsed() });
        }
        // Linux reports an end with unread data in its queue as a reset.
        match self.socket.recv(what, limit, Some(deadline)) {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(self.gone(deadline)),
            Err(SysError::Io { source, .. }) if source.kind() == io::ErrorKind::ConnectionReset => Err(self.gone(deadline)),
            Err(error) => Err(error),
        }
    }

    /// Waits for the child's end and returns its status; kills it at the deadline.
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

    /// The error for a child that closed its socket: it gets a moment to end by itself, so that its status can be told.
    fn gone(&mut self, deadline: Instant) -> SysError {
        let moment = Instant::now() + Duration::from_millis(500);
        match self.wait_until(deadline.min(moment)) {
            Ok(status) => SysError::ChildGone { role: self.role.name(), how: status.to_string() },
            Err(_) => SysError::ChildGone { role: self.role.name(), how: "closed its socket and was killed".into() },
        }
    }

    fn kill(&mut self) {
        // ESRCH: it ended by itself. It stays ours to reap either way.
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
    // The pid cannot have been given to another process: nobody but us reaps this child, and we have not.
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
    pidfd_open(pid, PidfdFlags::empty())
}

/// Marks every descriptor but 0 to 2 close-on-exec, whoever opened it (Linux 5.11).
fn close_on_exec() -> io::Result<()> {
    // SAFETY: close_range takes three integers, and with CLOSE_RANGE_CLOEXEC it closes nothing before the exec.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a command run with `root` as its root directory, which needs CAP_SYS_CHROOT.
///
/// # Errors
/// Where the path has a zero byte.
pub fn enter_root(command: &mut Command, root: &std::path::Path) -> Result<(), SysError> {
    let path = std::ffi::CString::new(root.as_os_str().as_encoded_bytes())
        .map_err(|err| SysError::io("enter", root.display().to_string())(io::Error::other(err)))?;
    // SAFETY: the closure runs between fork and exec of a process that may have threads. It makes two system calls on
    // strings that were made before, and allocates nothing.
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

/// In a child: takes its socket, which is standard input, and leaves /dev/null in its place.
///
/// # Errors
/// Where standard input is no such socket: somebody typed the role's word.
pub fn parent_socket() -> Result<Socket, SysError> {
    let fd = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3).map_err(SysError::io("take", "standard input"))?;
    let socket = Socket::from_fd(fd)?;
    let null = File::open("/dev/null").map_err(SysError::io("open", "/dev/null"))?;
    // SAFETY: both are open descriptors; 0 is owned by nobody in this process, so that no handle of ours goes stale.
    if unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) } < 0 {
        return Err(SysError::io("close", "standard input")(io::Error::last_os_error()));
    }
    Ok(socket)
}

/// How much a confined child may use. Where the process has a lower limit already, that one stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildLimits {
    /// Bytes of address space; a thread's heap arena alone reserves 64 MiB of it.
    pub address_space: u64,
    /// Bytes of private memory that can be written.
    pub data: u64,
    /// Seconds of processor time, whatever the parent's deadline is.
    pub cpu: u64,
    /// Open descriptors.
    pub files: u64,
    /// Bytes in any one file it writes, memfds included. Writing beyond gives EFBIG.
    pub file_size: u64,
}

/// In a child: gives up every privilege for good. To be called before anything from outside is read and before a second
/// thread exists.
///
/// Afterwards the process has ids of its own ([`CONFINED_ID`] plus its pid), no groups, no capability in any set and none
/// to gain by exec, is not dumpable, so that not even processes of the same ids can look into it, and dies with the
/// thread that spawned it.
///
/// `parent` is the socket of [`parent_socket`]; the process at its other end must still be the parent.
///
/// # Errors
/// `Io` for the step that failed. The process may then have given up some privileges: it has to end. It needs CAP_SETUID,
/// CAP_SETGID and CAP_SETPCAP, and no others: all limits are only ever lowered.
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
    // SAFETY: SIG_IGN is no handler of ours, so nothing runs in signal context; no other thread exists.
    if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(fail("ignore SIGXFSZ in")(io::Error::last_os_error()));
    }

    // All of these need CAP_SETPCAP, so they come before the capabilities go.
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
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(fail("close to tracers"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(fail("tie to its parent"))?;
    let peer = rustix::net::sockopt::socket_peercred(parent.as_fd()).map_err(fail("ask for the parent of"))?;
    if getppid() != Some(peer.pid) {
        return Err(fail("confine")(io::Error::other("its parent is gone")));
    }
    check_confined(id)
}

/// Reads back what was set: the calls above are many, and a confinement that did not hold would be worse than none.
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

/// No groups, and `id` as real, effective, saved and file system id of user and group.
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
    fn only_the_exact_word_selects_a_role() {
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
    fn confined_ids_lie_where_nobody_else_has_any() {
        assert!(CONFINED_ID > 1_879_048_191 && CONFINED_ID + 0x3f_ffff < i32::MAX as u32);
    }
}
