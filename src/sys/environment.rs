//! What a process gets from whoever started it, and had better not keep: for a hook that is a runtime, and its caller's caller.
//! And its heap, which has to be settled as early.

use rustix::fs::Mode;
use rustix::process::umask;

/// Forgets every variable (LD_*, HOME, proxies, whatever a stranger may have set) and the umask, which becomes 022.
///
/// Call it first thing, before any thread is started.
pub fn clear() {
    // SAFETY: clearenv(3) must not run beside another thread that reads or writes the environment; main calls this before
    // it starts one.
    unsafe { libc::clearenv() };
    umask(Mode::WGRP | Mode::WOTH);
}

/// Takes back that SIGCHLD is ignored, which is inherited over exec. Where it is, no child can be waited for: the kernel
/// reaps it and waitpid(2) says ECHILD, so that a child which did its work would count as one that was lost.
pub fn reset_child_signal() {
    // SAFETY: SIG_DFL is no handler of ours, so nothing runs in signal context. It fails for numbers that are no signals only.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Makes a file that becomes larger than RLIMIT_FSIZE an error of the write (EFBIG), which has a sentence, and not a signal that
/// ends the process without a word. Programs that we start inherit it.
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN is no handler of ours, so nothing runs in signal context.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Keeps all threads on one heap. Each of ours lives for a few system calls, and glibc would map an arena of 64 MiB for it.
///
/// Call it first thing, before any thread is started.
pub fn share_one_heap() {
    // SAFETY: mallopt(3) takes two numbers and must not run beside another thread's first allocation.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
