//! The end of our time: a soft one that code asks for and undoes itself, and a hard one that needs nobody's help.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::clock;
use crate::sys::error::SysError;

/// The soft end has passed: whoever finds out stops, and the caller undoes what was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give up after {:.0} s, so that what was done can be undone before the runtime kills the hook", .0.as_secs_f64())]
pub struct Expired(pub Duration);

/// How long last words may take before the process ends without them.
const PATIENCE_FOR_WORDS: Duration = Duration::from_millis(500);

/// The process's deadline. One thread waits for the hard end, whatever the others are stuck in: LMDB's writer lock, a child
/// that does not end, a file system that hangs. Start it once, at the beginning; dropping it calls the end off, and the
/// thread ends by itself: no start of a container waits for it. Before the hard end it uses no signal, so no system
/// call of ours is interrupted.
pub struct Deadline {
    started: Instant,
    soft: Duration,
    hard: Duration,
    off: Arc<(Mutex<bool>, Condvar)>,
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadline").field("remaining", &self.remaining()).finish_non_exhaustive()
    }
}

impl Deadline {
    /// The soft end comes `soft` from now and the hard end `grace` later, the time for undoing. At the hard end `line` goes to
    /// standard error and `last_words` runs on the timer's thread, both together for half a second at most, and then the process
    /// ends with `status`, at once: no destructor runs, children that have asked for a parent-death signal get it.
    ///
    /// `last_words` may be held up by another thread: fork(2) for example holds the heap's lock while the kernel works on it.
    /// Neither the line nor the end takes a lock or allocates.
    pub fn start(
        soft: Duration,
        grace: Duration,
        status: u8,
        line: &str,
        last_words: impl FnOnce() + Send + 'static,
    ) -> Result<Self, SysError> {
        let status = i32::from(status);
        let line = line_of(line);
        Self::start_ending(soft, grace, move || {
            // Standard error may be a pipe that nobody reads, the log on a disk that hangs: words are not waited for.
            end_after_words(status);
            write_bytes(&line);
            last_words();
            // SAFETY: _exit(2) is always sound; it runs no code of ours.
            unsafe { libc::_exit(status) }
        })
    }

    fn start_ending(soft: Duration, grace: Duration, end: impl FnOnce() + Send + 'static) -> Result<Self, SysError> {
        let started = Instant::now();
        let hard = soft + grace;
        let off = Arc::new((Mutex::new(false), Condvar::new()));
        let seen = Arc::clone(&off);
        thread::Builder::new()
            .name("deadline".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || {
                let (called_off, changed) = &*seen;
                let mut guard = called_off.lock().unwrap_or_else(PoisonError::into_inner);
                while !*guard {
                    let left = hard.saturating_sub(started.elapsed());
                    if left.is_zero() {
                        drop(guard);
                        return end();
                    }
                    guard = changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            })
            .map_err(SysError::io("start the thread", "deadline"))?;
        Ok(Self { started, soft, hard, off })
    }

    /// Time until the soft end; zero once it has passed. Give this to whatever can wait for a limited time.
    pub fn remaining(&self) -> Duration {
        self.soft.saturating_sub(self.started.elapsed())
    }

    /// True once the soft end has passed.
    pub fn expired(&self) -> bool {
        self.remaining().is_zero()
    }

    /// An error once the soft end has passed, for use between two steps.
    pub fn check(&self) -> Result<(), Expired> {
        if self.expired() { Err(Expired(self.soft)) } else { Ok(()) }
    }

    /// Time until the hard end, for steps that undo.
    pub fn remaining_for_undoing(&self) -> Duration {
        self.hard.saturating_sub(self.started.elapsed())
    }

    /// When this process is gone for certain, in whole seconds since boot (CLOCK_BOOTTIME), as records keep it. A suspended
    /// host makes it later: our time does not run then, so others have to look whether we live and not at this alone.
    pub fn gone_by(&self) -> u64 {
        (clock::since_boot() + self.remaining_for_undoing()).as_secs() + 1
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let (called_off, changed) = &*self.off;
        *called_off.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }
}

/// Ends the process with `status` after [`PATIENCE_FOR_WORDS`], whatever its threads wait for. By a signal, because a thread
/// would have to be allocated; what a signal interrupts does not matter any more.
fn end_after_words(status: i32) {
    static STATUS: AtomicI32 = AtomicI32::new(0);
    extern "C" fn end(_signal: libc::c_int) {
        // SAFETY: _exit(2) is async-signal-safe.
        unsafe { libc::_exit(STATUS.load(Ordering::Relaxed)) }
    }
    STATUS.store(status, Ordering::Relaxed);
    let handler = end as extern "C" fn(libc::c_int) as libc::sighandler_t;
    let micros = libc::suseconds_t::try_from(PATIENCE_FOR_WORDS.as_micros()).unwrap_or(999_999);
    let (never, once) = (libc::timeval { tv_sec: 0, tv_usec: 0 }, libc::timeval { tv_sec: 0, tv_usec: micros });
    let timer = libc::itimerval { it_interval: never, it_value: once };
    // SAFETY: system calls on initialised memory of this frame; the handler only calls _exit. The set is written by sigemptyset
    // before it is read. None of them allocates or takes a lock.
    unsafe {
        let mut alarm = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(alarm.as_mut_ptr());
        libc::sigaddset(alarm.as_mut_ptr(), libc::SIGALRM);
        libc::signal(libc::SIGALRM, handler);
        // The process that started us may have blocked it.
        libc::pthread_sigmask(libc::SIG_UNBLOCK, alarm.as_ptr(), std::ptr::null_mut());
        libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut());
    }
}

fn line_of(line: &str) -> Vec<u8> {
    format!("{}\n", line.replace('\n', " ")).into_bytes()
}

/// Writes to standard error without a lock and without memory.
fn write_bytes(mut left: &[u8]) {
    while let Ok(written @ 1..) = rustix::io::write(io::stderr().as_fd(), left) {
        left = &left[written..];
    }
}

/// Writes one line to standard error without any lock and without waiting for a reader that is gone.
pub fn write_line(line: &str) {
    write_bytes(&line_of(line));
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc;

    use super::*;

    const ROLE: &str = "DEADLINE_TEST_ROLE";

    #[test]
    fn the_soft_end_is_told_and_the_hard_end_comes_by_itself() {
        let (sender, receiver) = mpsc::channel();
        let (soft, grace) = (Duration::from_millis(40), Duration::from_millis(60));
        let before = Instant::now();
        let deadline = Deadline::start_ending(soft, grace, move || sender.send(Instant::now()).unwrap()).unwrap();
        assert!(!deadline.expired() && deadline.check().is_ok() && deadline.remaining() <= soft);
        while !deadline.expired() {
            thread::yield_now();
        }
        assert_eq!(deadline.check(), Err(Expired(soft)));
        assert!(before.elapsed() >= soft && deadline.remaining_for_undoing() <= grace);
        let end = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(end - before >= soft + grace);
    }

    #[test]
    fn what_is_dropped_in_time_never_ends_anything() {
        let (sender, receiver) = mpsc::channel();
        drop(
            Deadline::start_ending(Duration::from_millis(20), Duration::from_millis(20), move || sender.send(()).unwrap())
                .unwrap(),
        );
        assert_eq!(receiver.recv(), Err(mpsc::RecvError), "the thread has ended and took the sender along");
    }

    #[test]
    fn others_are_told_when_we_are_gone() {
        let deadline = Deadline::start_ending(Duration::from_secs(20), Duration::from_secs(4), || {}).unwrap();
        let gone = deadline.gone_by();
        assert!((24..=26).contains(&(gone - clock::boot_seconds())), "{gone}");
    }

    /// Not 0, 1 or 101, which a process that ends otherwise could have.
    const STATUS: u8 = 7;

    #[test]
    fn child() {
        let Ok(role) = std::env::var(ROLE) else { return };
        let stuck = Mutex::new(());
        if role == "blocked" {
            // Inherited by the deadline's thread, like the signal mask of the process that starts us.
            let mut all = std::mem::MaybeUninit::uninit();
            // SAFETY: sigfillset writes the set before pthread_sigmask reads it.
            unsafe {
                libc::sigfillset(all.as_mut_ptr());
                libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
            }
        }
        let line = "attach tcx \"count\"\nto eth0: out of time";
        let _deadline = Deadline::start(Duration::from_millis(20), Duration::from_millis(20), STATUS, line, move || {
            if role != "stuck" {
                thread::sleep(Duration::from_secs(600));
            }
        })
        .unwrap();
        let _held = stuck.lock().unwrap();
        let _stderr = io::stderr().lock();
        let _never = stuck.lock(); // deadlocks: the same thread has it
    }

    #[test]
    fn a_stuck_process_says_one_line_and_ends() {
        for role in ["stuck", "mute", "blocked"] {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "sys::deadline::tests::child", "--nocapture"])
                .env(ROLE, role)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(STATUS.into()), "{role}: {output:?}");
            assert_eq!(String::from_utf8_lossy(&output.stderr), "attach tcx \"count\" to eth0: out of time\n", "{role}");
        }
    }
}
