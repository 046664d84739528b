//! The code of the forked child.
//!
//! Everything in [`run`] must be safe between fork and exit of a multithreaded process: it makes system calls, and it
//! does not allocate, lock or panic. rustix makes its calls directly, without the C library.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsopen};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use super::{MAX_INSTRUCTIONS, Trial};
use crate::sys::SysError;
use crate::sys::bpf::after_fork::{Offered, array_map, load_btf, offer};
use crate::sys::sock::{recv_raw, send_raw};
use crate::sys::token::{create_raw, last_errno};

/// Maximum size of a message in bytes: an errno and the beginning of a log.
pub(super) const MESSAGE_MAX: usize = 4 + 1024;
/// Size of the verifier's log buffer in bytes. A truncated log is an error of its own (ENOSPC).
const LOG: usize = 64 * 1024;
/// Maximum number of BTFs that trials may refer to.
const MAX_BTFS: usize = 4;

/// Everything that the child needs, prepared before the fork.
#[derive(Debug)]
pub(super) struct TrialJob<'a> {
    btfs: &'a [Vec<u8>],
    trials: &'a [Trial],
    capabilities: CapabilitySet,
    log: Vec<u8>,
}

impl<'a> TrialJob<'a> {
    pub(super) fn new(btfs: &'a [Vec<u8>], trials: &'a [Trial]) -> Result<Self, SysError> {
        let fits = |trial: &Trial| {
            let wide = |at| at + 1 < trial.instructions.len();
            trial.instructions.len() <= MAX_INSTRUCTIONS
                && trial.map_at.is_none_or(wide)
                && trial.btf.is_none_or(|at| at < btfs.len())
        };
        if btfs.len() > MAX_BTFS || !trials.iter().all(fits) {
            return Err(SysError::Message {
                what: "a trial of a token",
                problem: "a program or its BTF exceeds the limits".into(),
            });
        }
        Ok(Self { btfs, trials, capabilities: CapabilitySet::BPF | CapabilitySet::NET_ADMIN, log: vec![0; LOG] })
    }

    pub(super) fn with_perfmon(self) -> Self {
        Self { capabilities: self.capabilities | CapabilitySet::PERFMON, ..self }
    }

    /// The number of answers.
    pub(super) fn count(&self) -> usize {
        self.trials.len()
    }
}

/// Runs the job and ends the process.
pub(super) fn run(mut job: TrialJob<'_>, socket: BorrowedFd<'_>) -> ! {
    if let Err(errno) = work(&mut job, socket) {
        // The parent may be gone, and then the answer is not needed.
        let _ = send_raw(socket, &(-errno.raw_os_error()).to_ne_bytes(), &[]);
    }
    // SAFETY: _exit ends the process immediately, without running exit handlers copied from the parent.
    unsafe { libc::_exit(0) }
}

fn work(job: &mut TrialJob<'_>, socket: BorrowedFd<'_>) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    set_no_new_privs(true)?;
    // SAFETY: takes an integer; this process has one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } != 0 {
        return Err(last_errno());
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let context = fsopen(c"bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
    send_raw(socket, &0i32.to_ne_bytes(), &[context.as_fd()])?;
    drop(context);
    let mut byte = [0];
    let mount = recv_raw(socket, &mut byte)?.1.ok_or(Errno::PIPE)?;
    let root = openat(&mount, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    drop(mount);
    let kept = job.capabilities;
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })?;
    let token = create_raw(root.as_fd())?;

    let map = array_map(token.as_fd());
    let mut btfs = [const { None }; MAX_BTFS];
    for (slot, bytes) in btfs.iter_mut().zip(job.btfs) {
        *slot = Some(load_btf(bytes, token.as_fd()));
    }
    let log = job.log.as_mut_slice();
    for trial in job.trials {
        if let Some(first) = log.first_mut() {
            *first = 0;
        }
        let btf = trial.btf.and_then(|at| btfs.get(at)).map_or(Ok(None), |btf| match btf {
            Some(Ok(btf)) => Ok(Some(btf.as_fd())),
            Some(Err(errno)) => Err(*errno),
            None => Err(Errno::BADF),
        });
        let map = match (trial.map_at, &map) {
            (None, _) => Ok(None),
            (Some(at), Ok(map)) => Ok(Some((at, map.as_fd()))),
            (Some(_), Err(errno)) => Err(*errno),
        };
        let errno = match (btf, map) {
            (Ok(btf), Ok(map)) => load(trial, btf, map, token.as_fd(), log).err().map_or(0, Errno::raw_os_error),
            (Err(errno), _) | (_, Err(errno)) => errno.raw_os_error(),
        };
        answer(socket, errno, log)?;
    }
    Ok(())
}

fn answer(socket: BorrowedFd<'_>, errno: i32, log: &[u8]) -> Result<(), Errno> {
    let mut message = [0; MESSAGE_MAX];
    let (head, text) = message.split_at_mut(4);
    head.copy_from_slice(&errno.to_ne_bytes());
    let mut len = 0;
    for (place, byte) in text.iter_mut().zip(log.iter().take_while(|byte| **byte != 0)) {
        *place = *byte;
        len += 1;
    }
    send_raw(socket, message.get(..4 + len).unwrap_or(&message), &[])
}

/// Loads the program and closes it again.
fn load(
    trial: &Trial,
    btf: Option<BorrowedFd<'_>>,
    map: Option<(usize, BorrowedFd<'_>)>,
    token: BorrowedFd<'_>,
    log: &mut [u8],
) -> Result<(), Errno> {
    let mut instructions = [[0u8; 8]; MAX_INSTRUCTIONS];
    for (to, from) in instructions.iter_mut().zip(&trial.instructions) {
        *to = *from;
    }
    if let Some((at, map)) = map
        && let Some([_, _, _, _, value @ ..]) = instructions.get_mut(at)
    {
        *value = map.as_raw_fd().to_ne_bytes();
    }
    let offered = Offered {
        program_type: trial.program_type,
        attach_type: trial.attach_type,
        instructions: instructions.get(..trial.instructions.len()).ok_or(Errno::TOOBIG)?,
        functions: btf.map(|btf| (btf, trial.functions.as_slice())),
    };
    offer(&offered, token, log).map(drop)
}
