//! Creates a token in the user namespace of another process, to see whether its bpffs allows that, and closes it again.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, set_dumpable_behavior, set_parent_process_death_signal, waitpid,
};

use super::{create_raw, last_errno};
use crate::sys::SysError;
use crate::sys::sock::retry;

/// Exit status of a child that could not enter the namespace; errnos are smaller.
const NOT_ENTERED: i32 = 200;

/// The errno of BPF_TOKEN_CREATE with every capability in a user namespace, or None if it succeeds. `root` is the root
/// directory of a bpffs, opened for reading.
///
/// # Errors
/// If the namespace cannot be entered: this needs CAP_SYS_ADMIN in it, and it must not be the caller's own.
pub fn try_inside(user_ns: BorrowedFd<'_>, root: BorrowedFd<'_>) -> Result<Option<Errno>, SysError> {
    let fail = |doing| SysError::io(doing, "a process that tries to create a token");
    // SAFETY: other threads may exist, so until it exits the child may only do what is async-signal-safe. It makes system
    // calls on descriptors opened before the fork, does not allocate or take locks, and leaves through _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let status = attempt(user_ns, root);
        // SAFETY: _exit ends the process immediately, without running exit handlers copied from the parent.
        unsafe { libc::_exit(status) }
    }
    let pid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(|| fail("fork")(last_errno()))?;
    let status = retry(|| waitpid(Some(pid), WaitOptions::empty())).map_err(fail("wait for"))?;
    match status.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(None),
        Some(NOT_ENTERED) => Err(fail("enter the user namespace in")(Errno::PERM)),
        Some(errno) => Ok(Some(Errno::from_raw_os_error(errno))),
        None => Err(SysError::ChildGone { role: "token attempt", how: "it was killed".to_owned() }),
    }
}

/// Runs in the child, which the processes of the namespace must not be able to trace.
fn attempt(user_ns: BorrowedFd<'_>, root: BorrowedFd<'_>) -> i32 {
    let ready = set_parent_process_death_signal(Some(Signal::KILL)).is_ok()
        && set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok();
    // SAFETY: setns takes integers only; this process has one thread.
    if !ready || unsafe { libc::setns(user_ns.as_raw_fd(), libc::CLONE_NEWUSER) } != 0 {
        return NOT_ENTERED;
    }
    match create_raw(root) {
        Ok(_token) => 0,
        Err(errno) => errno.raw_os_error(),
    }
}
