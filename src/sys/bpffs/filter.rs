//! The system calls that the forked child may make.
//!
//! The parent builds the filter before the fork; [`close`] is one call of the child's, which allocates nothing.

use std::collections::BTreeMap;
use std::io;

use rustix::io::Errno;
use rustix::thread::set_no_new_privs;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::sys::SysError;
use crate::sys::token::last_errno;

/// Calls with any arguments.
const CALLS: &[i64] = &[
    libc::SYS_umask,
    libc::SYS_setns,
    libc::SYS_openat,
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
    // The runtime library's handler of SIGSEGV puts the default in its place, which ends the process.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
];

/// BPF_OBJ_PIN and BPF_TOKEN_CREATE of `enum bpf_cmd`.
const BPF_COMMANDS: [u64; 2] = [6, 36];

/// Builds the filter. Calls that are not in it are refused with EPERM.
///
/// # Errors
/// Where seccompiler does not know this machine.
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

/// Sets no_new_privs and puts the filter into force, for the rest of this process's life. A kernel without seccomp goes without it.
pub(super) fn close(program: &BpfProgram) -> Result<(), Errno> {
    set_no_new_privs(true)?;
    // struct sock_fprog and struct sock_filter, include/uapi/linux/filter.h; seccompiler's instruction has the latter's layout.
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the kernel copies `len` instructions from `filter`, both of which outlive the call, and writes nothing.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    // Only a call that failed has set errno, and 0 is no errno.
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

    /// Runs a piece of a child in a process of its own; it may make system calls only.
    fn forked(run: impl FnOnce() -> i32) -> i32 {
        // SAFETY: other threads may exist: the child makes system calls and leaves through _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let status = run();
            // SAFETY: ends this process.
            unsafe { libc::_exit(status) };
        }
        let mut status = 0;
        // SAFETY: waits for the child of the line above, and writes one integer.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert!(libc::WIFEXITED(status), "{status:x}");
        libc::WEXITSTATUS(status)
    }

    #[test]
    fn calls_that_are_not_in_the_list_are_refused() {
        let program = program().unwrap();
        let parent = std::process::id().cast_signed();
        let refused = |call: libc::c_long, first: libc::c_long| {
            // SAFETY: calls of integers alone; those that the filter lets through fail or change nothing.
            let done = unsafe { libc::syscall(call, first, 0, 0, 0) };
            done == -1 && last_errno() == Errno::PERM
        };
        let status = forked(|| {
            // SAFETY: errno's address is valid for the life of the thread. As in a process in which no call has failed yet.
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
            // The kernel's own answer to a null pointer, and not the filter's.
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
