//! Loads programs with a BPF token, as a container would, to see whether the verifier accepts them. The programs never
//! run.
//!
//! A forked child creates its own user and mount namespaces, gets a bpffs there that delegates everything, mints a
//! token from it, and keeps CAP_BPF and CAP_NET_ADMIN in that user namespace and no other capabilities. It loads one
//! program after the other and sends the verifier's results. Nothing is mounted and no program is kept, so nothing
//! remains when it exits.

mod child;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

use crate::model::delegation::Delegation;
use crate::sys::SysError;
use crate::sys::sock::{Socket, recv_raw, retry, send_raw, wait_readable};

/// Maximum number of instructions of a program.
pub const MAX_INSTRUCTIONS: usize = 32;

/// A program to load.
#[derive(Debug, Clone, Default)]
pub struct Trial {
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// `enum bpf_attach_type`
    pub attach_type: u32,
    /// At most [`MAX_INSTRUCTIONS`].
    pub instructions: Vec<[u8; 8]>,
    /// The index of the `BPF_LD_IMM64` instruction that receives the descriptor of an array map with one value of 64
    /// bytes.
    pub map_at: Option<usize>,
    /// The index of the BTF that it is loaded with.
    pub btf: Option<usize>,
    /// Its `struct bpf_func_info` records.
    pub functions: Vec<[u32; 2]>,
}

/// The result of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialAnswer {
    /// The errno; None if the program was loaded. It is closed again.
    pub errno: Option<Errno>,
    /// The beginning of the verifier's log. Empty if the load failed before the verifier ran.
    pub log: String,
}

impl TrialAnswer {
    /// True if the verifier accepted the program.
    pub fn loaded(&self) -> bool {
        self.errno.is_none()
    }

    /// True if the log contains this text.
    pub fn says(&self, text: &str) -> bool {
        self.log.contains(text)
    }
}

/// Delegates everything: nothing else ever runs in this user namespace.
const EVERYTHING: Delegation = Delegation { cmds: u64::MAX, maps: u64::MAX, progs: u64::MAX, attachs: u64::MAX };

/// Tries to load every program and returns the results in the same order.
///
/// # Errors
/// If the namespaces, the bpffs or the token cannot be created (missing capabilities, no user namespaces, no BPF
/// tokens before Linux 6.9), or if `deadline` passes first. The child is gone in any case.
pub fn offer(btfs: &[Vec<u8>], trials: &[Trial], deadline: Instant) -> Result<Vec<TrialAnswer>, SysError> {
    offer_as(child::TrialJob::new(btfs, trials)?, deadline)
}

/// The same as [`offer`] by a child that also keeps CAP_PERFMON, which a container that may trace itself has.
///
/// # Errors
/// Those of [`offer`].
pub fn offer_with_perfmon(btfs: &[Vec<u8>], trials: &[Trial], deadline: Instant) -> Result<Vec<TrialAnswer>, SysError> {
    offer_as(child::TrialJob::new(btfs, trials)?.with_perfmon(), deadline)
}

fn offer_as(job: child::TrialJob<'_>, deadline: Instant) -> Result<Vec<TrialAnswer>, SysError> {
    let count = job.count();
    let mut forked = TrialChild::start(job)?;
    let (_, context) = forked.receive(deadline)?;
    let context = context.ok_or(Errno::BADMSG).map_err(fail("receive the bpffs of"))?;
    let mount = configure(&context)?;
    send_raw(forked.socket.as_fd(), &[0], &[mount.as_fd()]).map_err(fail("answer"))?;
    drop((mount, context));
    (0..count).map(|_| forked.receive(deadline).map(|(answer, _)| answer)).collect()
}

/// Creates the bpffs of a file system context from another user namespace, which delegates everything, and a mount of it
/// that is in no mount namespace.
pub(super) fn configure(context: &OwnedFd) -> Result<OwnedFd, SysError> {
    for (key, value) in EVERYTHING.mount_options() {
        fsconfig_set_string(context, key, &value).map_err(fail("set an option of the bpffs of"))?;
    }
    fsconfig_create(context).map_err(fail("create the bpffs of"))?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(fail("create a mount of the bpffs of"))
}

/// The parent's view of the child. Dropping it kills and reaps the child.
struct TrialChild {
    pid: Pid,
    pidfd: OwnedFd,
    socket: Socket,
    started: Instant,
}

impl TrialChild {
    fn start(job: child::TrialJob<'_>) -> Result<Self, SysError> {
        let (socket, theirs) = Socket::pair()?;
        let started = Instant::now();
        // SAFETY: other threads may exist, so until it exits the child may only do what is async-signal-safe.
        // `child::run` makes system calls on data prepared before the fork, does not allocate or take locks, and
        // leaves through _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            child::run(job, theirs.as_fd());
        }
        let pid = Pid::from_raw(pid).filter(|_| pid > 0);
        let pid = pid.ok_or_else(|| fail("fork")(std::io::Error::last_os_error()))?;
        drop(theirs);
        // Only this process reaps its children, so the pid still refers to the child.
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { pid, pidfd, socket, started }),
            Err(errno) => {
                // When the socket is closed, the child exits.
                drop(socket);
                let _ = retry(|| waitpid(Some(pid), WaitOptions::empty()));
                Err(fail("open a pidfd of")(errno))
            }
        }
    }

    /// Receives the next message: an answer, or the file system context, which comes with a descriptor.
    fn receive(&mut self, deadline: Instant) -> Result<(TrialAnswer, Option<OwnedFd>), SysError> {
        if Instant::now() >= deadline || !wait_readable(self.socket.as_fd(), deadline).map_err(fail("wait for"))? {
            return Err(SysError::Deadline { role: ROLE, waited: self.started.elapsed() });
        }
        let mut bytes = [0; child::MESSAGE_MAX];
        let (len, fd) = match recv_raw(self.socket.as_fd(), &mut bytes) {
            Err(Errno::CONNRESET) => (0, None),
            other => other.map_err(fail("receive from"))?,
        };
        let gone = || SysError::ChildGone { role: ROLE, how: "it closed its socket".to_owned() };
        let (errno, log) = bytes[..len].split_first_chunk::<4>().ok_or_else(gone)?;
        let errno = i32::from_ne_bytes(*errno);
        if errno < 0 {
            // The negated errno of a step before the first program.
            return Err(fail("prepare")(Errno::from_raw_os_error(-errno)));
        }
        let errno = (errno > 0).then(|| Errno::from_raw_os_error(errno));
        Ok((TrialAnswer { errno, log: String::from_utf8_lossy(log).into_owned() }, fd))
    }
}

impl Drop for TrialChild {
    fn drop(&mut self) {
        self.socket.shutdown();
        let _ = wait_readable(self.pidfd.as_fd(), Instant::now() + Duration::from_millis(200));
        // ESRCH: the child has already ended.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = retry(|| waitpid(Some(self.pid), WaitOptions::empty()));
    }
}

const ROLE: &str = "token trial";

fn fail<E: Into<std::io::Error>>(doing: &'static str) -> impl FnOnce(E) -> SysError {
    SysError::io(doing, "the token trial process")
}
