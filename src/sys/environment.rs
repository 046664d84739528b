//! What a short-lived process settles once, before it starts a thread: its environment, which belongs to whoever called the
//! runtime, and its heap.

/// Forgets every variable: LD_*, HOME, proxies, whatever a stranger may have set.
///
/// Call it first thing, before any thread is started.
pub fn clear() {
    // SAFETY: clearenv(3) must not run beside another thread that reads or writes the environment; main calls this before
    // it starts one.
    unsafe { libc::clearenv() };
}

/// Keeps all threads on one heap. Each of ours lives for a few system calls, and glibc would map an arena of 64 MiB for it.
///
/// Call it first thing, before any thread is started.
pub fn share_one_heap() {
    // SAFETY: mallopt(3) takes two numbers and must not run beside another thread's first allocation.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
