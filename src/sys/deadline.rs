//! The deadlines of a process: a soft one that the code checks, and a hard one that takes effect on its own.

use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use crate::sys::clock;
use crate::sys::error::SysError;

/// The soft deadline has passed: the operation stops and the caller undoes its changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give up after {:.0} s, so that changes can be undone before the runtime kills the hook", .0.as_secs_f64())]
pub struct Expired(pub Duration);

/// How long final messages may take before the process ends without them.
const PATIENCE_FOR_WORDS: Duration = Duration::from_millis(500);

/// The deadlines of the process. A timer's signal enforces the hard one, whatever the process is blocked on: LMDB's
/// writer lock, a child that does not exit, a file system that hangs. A thread would cost a container's start more, and
/// cannot always be had. Start it once, at the beginning. Dropping it stops the timer.
///
/// The timer is ITIMER_REAL, which children do not inherit. Nothing is interrupted before the hard deadline.
#[derive(Debug)]
pub struct Deadline {
    started: Instant,
    soft: Duration,
    hard: Duration,
}

/// What happens at the hard deadline. It is reached by the signal handler, so it stays until the process ends.
struct HardEnd {
    status: i32,
    line: Vec<u8>,
    last_words: Box<dyn Fn() + Send + Sync>,
}

static HARD_END: AtomicPtr<HardEnd> = AtomicPtr::new(ptr::null_mut());

impl Deadline {
    /// The soft deadline is `soft` from now, and the hard one `grace` later, which is the time for undoing changes. At
    /// the hard deadline, `line` is written to standard error and `last_words` runs in a copy of the process, both
    /// together for at most half a second. Then the process exits immediately with `status`: destructors do not run,
    /// and children that requested a parent-death signal receive it.
    ///
    /// `last_words` may fail: the signal may have interrupted a change of the heap. Writing the line and exiting do not
    /// take locks or allocate.
    pub fn start(
        soft: Duration,
        grace: Duration,
        status: u8,
        line: &str,
        last_words: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, SysError> {
        let (started, hard) = (Instant::now(), soft + grace);
        let end = HardEnd { status: status.into(), line: line_of(line), last_words: Box::new(last_words) };
        HARD_END.store(Box::into_raw(Box::new(end)), Ordering::Release);
        alarm_after(hard, at_hard_end).map_err(SysError::io("start the timer", "deadline"))?;
        Ok(Self { started, soft, hard })
    }

    /// Time until the soft deadline; zero once it has passed. Pass this to operations with a timeout.
    pub fn remaining(&self) -> Duration {
        self.soft.saturating_sub(self.started.elapsed())
    }

    /// True once the soft deadline has passed.
    pub fn expired(&self) -> bool {
        self.remaining().is_zero()
    }

    /// Returns an error once the soft deadline has passed. To be called between steps.
    pub fn check(&self) -> Result<(), Expired> {
        if self.expired() { Err(Expired(self.soft)) } else { Ok(()) }
    }

    /// Time until the hard deadline, for undo steps.
    pub fn remaining_for_undoing(&self) -> Duration {
        self.hard.saturating_sub(self.started.elapsed())
    }

    /// The time at which this process is certainly gone, in whole seconds since boot (CLOCK_BOOTTIME), as used in
    /// records. On a host that was suspended it is later: the deadline's clock stops during suspend, so other
    /// processes must also check whether this one is alive.
    pub fn gone_by(&self) -> u64 {
        (clock::since_boot() + self.remaining_for_undoing()).as_secs() + 1
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // Setting a timer to zero stops it, and does not fail.
        let _ = set_timer(Duration::ZERO);
    }
}

/// The handler of the timer's signal: it does not allocate or take a lock.
extern "C" fn at_hard_end(_signal: libc::c_int) {
    let end = HARD_END.load(Ordering::Acquire);
    // SAFETY: `Deadline::start` has stored a valid pointer before it set the timer, and the value is never freed.
    let Some(end) = (unsafe { end.as_ref() }) else { return };
    // Standard error may be a pipe without a reader, or the log on a disk that hangs: do not wait for them.
    end_after_words(end.status);
    write_bytes(&end.line);
    // SAFETY: a fork without the C library's handlers, which take locks. The copy has one thread, runs `last_words` and
    // leaves through _exit.
    let copy = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if copy == 0 {
        end_after_words(0);
        (end.last_words)();
        exit(0);
    }
    if let Ok(copy) = libc::pid_t::try_from(copy)
        && copy > 0
    {
        // SAFETY: waits for the child forked above, without a status.
        unsafe { libc::waitpid(copy, ptr::null_mut(), 0) };
    }
    exit(end.status);
}

/// Ends the process with `status` after [`PATIENCE_FOR_WORDS`], whatever it is blocked on.
fn end_after_words(status: i32) {
    static STATUS: AtomicI32 = AtomicI32::new(0);
    extern "C" fn end(_signal: libc::c_int) {
        exit(STATUS.load(Ordering::Relaxed));
    }
    STATUS.store(status, Ordering::Relaxed);
    // Without the timer, the process still ends when it has said its line.
    let _ = alarm_after(PATIENCE_FOR_WORDS, end);
}

fn exit(status: i32) -> ! {
    // SAFETY: _exit(2) is async-signal-safe, and does not run any of our code.
    unsafe { libc::_exit(status) }
}

/// Calls `handler` once `time` has passed. Does not allocate or take a lock.
fn alarm_after(time: Duration, handler: extern "C" fn(libc::c_int)) -> Result<(), io::Error> {
    // SAFETY: system calls on initialized memory of this frame; sigemptyset writes the set before it is read.
    unsafe {
        let mut alarm = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(alarm.as_mut_ptr());
        libc::sigaddset(alarm.as_mut_ptr(), libc::SIGALRM);
        if libc::signal(libc::SIGALRM, handler as libc::sighandler_t) == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
        // The parent process may have blocked it, and so does the handler itself.
        libc::pthread_sigmask(libc::SIG_UNBLOCK, alarm.as_ptr(), ptr::null_mut());
    }
    set_timer(time)
}

fn set_timer(time: Duration) -> Result<(), io::Error> {
    let seconds = libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX);
    let never = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let once = libc::timeval { tv_sec: seconds, tv_usec: time.subsec_micros().into() };
    let timer = libc::itimerval { it_interval: never, it_value: once };
    // SAFETY: reads `timer`, which outlives the call.
    let done = unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn line_of(line: &str) -> Vec<u8> {
    format!("{}\n", line.replace('\n', " ")).into_bytes()
}

/// Writes to standard error without taking a lock or allocating.
fn write_bytes(mut left: &[u8]) {
    while let Ok(written @ 1..) = rustix::io::write(io::stderr().as_fd(), left) {
        left = &left[written..];
    }
}

/// Writes one line to standard error without taking a lock and without waiting for a reader that is gone.
pub fn write_line(line: &str) {
    write_bytes(&line_of(line));
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Mutex;

    use super::*;

    const ROLE: &str = "DEADLINE_TEST_ROLE";

    #[test]
    fn the_soft_deadline_is_reported() {
        let soft = Duration::from_millis(40);
        let deadline = Deadline::start(soft, Duration::from_secs(60), 1, "late", || {}).unwrap();
        assert!(!deadline.expired() && deadline.check().is_ok() && deadline.remaining() <= soft);
        while !deadline.expired() {
            std::thread::yield_now();
        }
        assert_eq!(deadline.check(), Err(Expired(soft)));
        assert!(deadline.remaining_for_undoing() <= Duration::from_secs(60));
    }

    #[test]
    fn the_latest_end_time_is_published() {
        let deadline = Deadline::start(Duration::from_secs(20), Duration::from_secs(4), 1, "late", || {}).unwrap();
        let gone = deadline.gone_by();
        assert!((24..=26).contains(&(gone - clock::boot_seconds())), "{gone}");
    }

    /// Not 0, 1 or 101, which a process that ends otherwise could return.
    const STATUS: u8 = 7;

    #[test]
    fn child() {
        let Ok(role) = std::env::var(ROLE) else { return };
        let stuck = Mutex::new(());
        if role == "blocked" {
            // Inherited from the process that starts the hook.
            let mut all = std::mem::MaybeUninit::uninit();
            // SAFETY: sigfillset writes the set before pthread_sigmask reads it.
            unsafe {
                libc::sigfillset(all.as_mut_ptr());
                libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
            }
        }
        let line = "attach tcx \"count\"\nto eth0: out of time";
        let (dropped, stuck_words) = (role == "dropped", role != "stuck");
        let deadline = Deadline::start(Duration::from_millis(20), Duration::from_millis(20), STATUS, line, move || {
            if stuck_words {
                std::thread::sleep(Duration::from_secs(600));
            }
        })
        .unwrap();
        if dropped {
            drop(deadline);
            std::thread::sleep(Duration::from_millis(200));
            return;
        }
        let _held = stuck.lock().unwrap();
        let _stderr = io::stderr().lock();
        let _never = stuck.lock(); // deadlocks: this thread already holds it
    }

    #[test]
    fn a_dropped_deadline_has_no_effect() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sys::deadline::tests::child", "--nocapture"])
            .env(ROLE, "dropped")
            .output()
            .unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
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
