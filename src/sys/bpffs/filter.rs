//! The seccomp filter of the forked child.
//!
//! The parent builds the filter before the fork. [`close`] makes a single call in the child, which does not allocate.

use std::collections::BTreeMap;
use std::io;

use rustix::io::Errno;
use rustix::thread::set_no_new_privs;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::sys::SysError;
use crate::sys::token::last_errno;

/// Calls that are allowed with any arguments.
const CALLS: &[i64] = &[
    libc::SYS_umask,
    libc::SYS_setns,
    libc::SYS_openat2,
    libc::SYS_statx,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_fsopen,
    libc::SYS_move_mount,
    libc::SYS_umount2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_fchdir,
    libc::SYS_fchownat,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_close,
    libc::SYS_exit_group,
    // The Rust runtime's SIGSEGV handler restores the default action, which then ends the process.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
];

/// BPF_OBJ_PIN and BPF_TOKEN_CREATE of `enum bpf_cmd`.
const BPF_COMMANDS: [u64; 2] = [6, 36];

/// Builds the filter. All other calls fail with EPERM.
///
/// # Errors
/// If seccompiler does not support this architecture.
pub(super) fn program() -> Result<BpfProgram, SysError> {
    build().map_err(|error| SysError::io("build a seccomp filter for", "the bpffs process")(io::Error::other(error)))
}

fn build() -> Result<BpfProgram, seccompiler::Error> {
    let first_is = |value: u64| -> Result<SeccompRule, seccompiler::Error> {
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
        Ok(SeccompRule::new(vec![condition])?)
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_bpf, BPF_COMMANDS.into_iter().map(first_is).collect::<Result<_, _>>()?);
    rules.insert(libc::SYS_prctl, vec![first_is(libc::PR_SET_DUMPABLE.unsigned_abs().into())?]);
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let here = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, refused, SeccompAction::Allow, here)?.try_into()?)
}

/// Sets no_new_privs and installs the filter for the rest of the process's life. On a kernel without seccomp this is
/// skipped.
pub(super) fn close(program: &BpfProgram) -> Result<(), Errno> {
    set_no_new_privs(true)?;
    // struct sock_fprog and struct sock_filter, include/uapi/linux/filter.h. seccompiler's instruction has the layout
    // of the latter.
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the kernel copies `len` instructions from `filter`, both of which outlive the call, and does not write.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    // Only a failed call has set errno, and 0 is not an errno.
    if done == 0 {
        return Ok(());
    }
    match last_errno() {
        Errno::NOSYS | Errno::INVAL => Ok(()),
        errno => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the code of a child in a separate process; it may only make system calls.
    fn forked(run: impl FnOnce() -> i32) -> i32 {
        // SAFETY: other threads may exist: the child only makes system calls and leaves through _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let status = run();
            // SAFETY: ends this process.
            unsafe { libc::_exit(status) };
        }
        let mut status = 0;
        // SAFETY: waits for the child forked above and writes one integer.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert!(libc::WIFEXITED(status), "{status:x}");
        libc::WEXITSTATUS(status)
    }

    #[test]
    fn unlisted_calls_are_refused() {
        let program = program().unwrap();
        let parent = std::process::id().cast_signed();
        let refused = |call: libc::c_long, first: libc::c_long| {
            // SAFETY: these calls take integers only; those that the filter lets through fail or change nothing.
            let done = unsafe { libc::syscall(call, first, 0, 0, 0) };
            done == -1 && last_errno() == Errno::PERM
        };
        let status = forked(|| {
            // SAFETY: errno's address is valid for the life of the thread. This simulates a process in which no call
            // has failed yet.
            unsafe { *libc::__errno_location() = 0 };
            if close(&program).is_err() {
                return 1;
            }
            let others = [
                (libc::SYS_execve, 0),
                (libc::SYS_kill, parent.into()),
                (libc::SYS_ptrace, 0),
                (libc::SYS_clone, 0),
                (libc::SYS_socket, 1),
                (libc::SYS_bpf, 5),
                (libc::SYS_prctl, libc::PR_CAPBSET_READ.into()),
            ];
            let others = others.into_iter().all(|(call, first)| refused(call, first));
            // The error must be the kernel's, not the filter's.
            let ours = !refused(libc::SYS_statx, -1) && !refused(libc::SYS_umask, 0o22);
            i32::from(!others) * 2 + i32::from(!ours) * 4
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn the_filter_is_short() {
        let length = program().unwrap().len();
        assert!(length < 256, "{length} instructions");
    }
}
