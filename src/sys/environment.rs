//! The process's environment, which belongs to whoever called the runtime.

/// Forgets every variable: LD_*, HOME, proxies, whatever a stranger may have set.
///
/// Call it first thing, before any thread is started.
pub fn clear() {
    // SAFETY: clearenv(3) must not run beside another thread that reads or writes the environment; main calls this before
    // it starts one.
    unsafe { libc::clearenv() };
}
