//! The last step of a child's confinement: restrictions that the kernel enforces even if the child is compromised.
//!
//! [Landlock](https://docs.kernel.org/userspace-api/landlock.html) removes access to the file system except for
//! reading a few paths, and to abstract sockets and signals if the kernel supports that. A [seccomp
//! filter](https://docs.kernel.org/userspace-api/seccomp_filter.html) allows only the system calls of an HTTP client.
//! Both apply until the process ends, and to every thread that it starts.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
    path_beneath_rules,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::sys::SysError;

/// What the sandbox restricts on this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sandbox {
    /// Whether Landlock restricts files; false on kernels without it, or if it is not among the active LSMs.
    pub landlock: bool,
}

/// Restricts this process, which must be single-threaded and have `no_new_privs` set.
///
/// Afterwards files can be read only at or below `readable` (if Landlock is available), nothing can be written,
/// created or executed, TCP ports cannot be listened on, and sockets can be IPv4 and IPv6 only. A refused system call
/// returns EPERM instead of killing the process: a library that probes for features continues, and an attacker does
/// not gain anything from the difference.
///
/// # Errors
/// If the kernel has seccomp or Landlock and rejects the restriction. The process must exit then.
pub fn close(readable: &[PathBuf]) -> Result<Sandbox, SysError> {
    let landlock = restrict_files(readable)?;
    let program = |filter: Result<BpfProgram, seccompiler::Error>| {
        filter.map_err(|err| SysError::io("build a seccomp filter for", "the child process")(io::Error::other(err)))
    };
    // clone3 passes its flags by pointer, which a filter cannot read: with ENOSYS, libc falls back to clone.
    let (missing, filter) = (program(without_clone3())?, program(client_calls())?);
    for filter in [&missing, &filter] {
        seccompiler::apply_filter(filter)
            .map_err(|err| SysError::io("filter the system calls of", "the child process")(io::Error::other(err)))?;
    }
    Ok(Sandbox { landlock })
}

/// Returns those of `paths` that exist, and the targets of links: Landlock checks the file, not the path to it.
pub fn with_targets(paths: &[&str]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for path in paths.iter().map(Path::new).filter(|path| path.exists()) {
        found.push(path.to_owned());
        found.extend(path.canonicalize().ok().filter(|target| target != path));
    }
    found
}

fn restrict_files(readable: &[PathBuf]) -> Result<bool, SysError> {
    let restricted = || -> Result<_, landlock::RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V6))?
            .handle_access(AccessNet::BindTcp)?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .add_rules(path_beneath_rules(readable, AccessFs::ReadFile | AccessFs::ReadDir))?
            .restrict_self()
    };
    let status =
        restricted().map_err(|err| SysError::io("restrict the files of", "the child process")(io::Error::other(err)))?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

type SeccompRules = BTreeMap<i64, Vec<SeccompRule>>;

fn filter(rules: SeccompRules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, seccompiler::Error> {
    let here = TargetArch::try_from(std::env::consts::ARCH)?;
    let program: BpfProgram = SeccompFilter::new(rules, otherwise, matched, here)?.try_into()?;
    Ok(program)
}

fn without_clone3() -> Result<BpfProgram, seccompiler::Error> {
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    filter(SeccompRules::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Allow, missing)
}

/// The calls that a single-threaded HTTP client, its resolver and the runtime's helper threads need.
const CALLS: &[i64] = &[
    // Files that are already open, and sockets.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_fcntl,
    libc::SYS_ftruncate,
    libc::SYS_memfd_create,
    libc::SYS_socketpair, // Both ends stay in this process; tokio creates one.
    libc::SYS_connect,
    libc::SYS_bind, // For a resolver's UDP sockets; Landlock blocks TCP ports.
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    // Memory and threads.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_clone3, // Handled by the first filter.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    // Signals and exit.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Variants of some of [`CALLS`], whose numbers exist only on older architectures.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[libc::SYS_poll, libc::SYS_epoll_wait, libc::SYS_stat, libc::SYS_lstat, libc::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

fn client_calls() -> Result<BpfProgram, seccompiler::Error> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let word = |argument, op, value: u64| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value);
    let bits = |set: i32| u64::from(set.unsigned_abs());
    let one = |condition| SeccompRule::new(vec![condition]);

    let mut rules: SeccompRules = CALLS.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    // No executable memory.
    let data_only = word(2, MaskedEq(bits(libc::PROT_EXEC)), 0)?;
    rules.insert(libc::SYS_mmap, vec![one(data_only.clone())?]);
    rules.insert(libc::SYS_mprotect, vec![one(data_only)?]);
    // Files are opened for reading only. O_TMPFILE contains O_DIRECTORY, and without write access it is an error.
    let writes = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND;
    rules.insert(libc::SYS_openat, vec![one(word(2, MaskedEq(bits(writes)), 0)?)?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![one(word(1, MaskedEq(bits(writes)), 0)?)?]);
    // No unix, netlink, packet or AF_ALG sockets.
    let families = [libc::AF_INET, libc::AF_INET6].map(|family| word(0, Eq, bits(family)).and_then(one));
    rules.insert(libc::SYS_socket, families.into_iter().collect::<Result<_, _>>()?);
    // Threads, but no processes.
    let thread = bits(libc::CLONE_THREAD);
    rules.insert(libc::SYS_clone, vec![one(SeccompCondition::new(0, SeccompCmpArgLen::Qword, MaskedEq(thread), thread)?)?]);
    // Non-blocking sockets only, no terminals or drivers.
    rules.insert(libc::SYS_ioctl, vec![one(word(1, Eq, libc::FIONBIO)?)?]);
    // Setting the names of threads.
    let name = word(0, Eq, bits(libc::PR_SET_NAME))?;
    rules.insert(libc::SYS_prctl, vec![one(name)?]);
    filter(rules, SeccompAction::Errno(libc::EPERM.unsigned_abs()), SeccompAction::Allow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_are_within_the_kernels_limit() {
        for program in [without_clone3().unwrap(), client_calls().unwrap()] {
            assert!((4..4096).contains(&program.len()), "{}", program.len());
        }
    }

    #[test]
    fn calls_that_gain_privileges_or_create_processes_are_not_allowed() {
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_bpf,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_io_uring_setup,
            libc::SYS_kill,
            libc::SYS_listen,
            libc::SYS_accept4,
            libc::SYS_keyctl,
            libc::SYS_openat2,
            libc::SYS_open_by_handle_at,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
        ] {
            assert!(!CALLS.contains(&call) && !OLDER.contains(&call), "{call}");
        }
    }

    #[test]
    fn links_are_resolved_for_the_rules() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let missing = dir.path().join("missing");
        let found = with_targets(&[link.to_str().unwrap(), missing.to_str().unwrap()]);
        assert_eq!(found, [link, file.canonicalize().unwrap()]);
    }
}
