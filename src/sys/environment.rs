//! Resets process state inherited from the caller, which for a hook is a runtime and its callers. It also configures
//! the heap, which must be done equally early.

use std::io;
use std::os::fd::AsRawFd as _;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::umask;

/// Clears the environment (LD_*, HOME, proxies and anything else that the caller set) and sets the umask to 022.
///
/// Call it first, before any thread is started.
pub fn clear() {
    // SAFETY: clearenv(3) must not run concurrently with another thread that reads or writes the environment; main
    // calls this before it starts one.
    unsafe { libc::clearenv() };
    umask(Mode::WGRP | Mode::WOTH);
}

/// Resets SIGCHLD to its default. An ignored SIGCHLD is inherited across exec. If it is ignored, children cannot be
/// waited for: the kernel reaps them and waitpid(2) fails with ECHILD, so that a successful child would count as lost.
pub fn reset_child_signal() {
    // SAFETY: SIG_DFL installs no handler, so nothing runs in signal context. It fails only for invalid signal
    // numbers.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Replaces standard input, output and error with /dev/null, so that a process that waits for their end does not wait for
/// this one.
pub fn close_standard_streams() -> io::Result<()> {
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    for standard in 0..=2 {
        // SAFETY: `null` is open, and no handle in this process owns the standard descriptors, so none becomes stale.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes a write beyond RLIMIT_FSIZE fail with EFBIG, which has an error message, instead of ending the process
/// silently with a signal. Programs that we execute inherit this.
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN installs no handler, so nothing runs in signal context.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Makes all threads share one heap. Our threads live for a few system calls each, and glibc would map an arena of 64
/// MiB for every one of them.
///
/// Call it first, before any thread is started.
pub fn share_one_heap() {
    // SAFETY: mallopt(3) takes two integers and must not run concurrently with another thread's first allocation.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
