//! The deadlines of a process: a soft one that the code checks, and a hard one that takes effect on its own.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::error::SysError;

/// The size of the thread's stack in bytes.
const STACK: usize = 64 * 1024;

/// How long final messages may take before the process ends without them.
const PATIENCE_FOR_WORDS: Duration = Duration::from_millis(500);

/// The deadlines of the process. A thread waits for the hard one, even if the others are blocked: on LMDB's writer
/// lock, a child that does not exit, a file system that hangs. Start it once, at the beginning of a process that ends
/// soon. Dropping it cancels the deadlines; the thread is not woken for that, and sleeps until the hard one. It does not
/// use signals before the hard deadline, so system calls are not interrupted. A timer's signal would not be enough: a
/// process that waits for a file system can only be killed.
#[derive(Debug)]
pub struct Deadline {
    started: Instant,
    soft: Duration,
    off: Arc<AtomicBool>,
}

/// What the thread of a deadline has.
struct Waiter {
    time: Duration,
    off: Arc<AtomicBool>,
    end: Box<dyn FnOnce() + Send>,
}

impl Deadline {
    /// The soft deadline is `soft` from now, and the hard one `grace` later, which is the time for undoing changes. At
    /// the hard deadline, `line` is written to standard error and `last_words` runs on the timer's thread, both
    /// together for at most half a second. Then the process exits immediately with `status`: destructors do not run,
    /// and children that requested a parent-death signal receive it.
    ///
    /// `last_words` may be blocked by another thread: fork(2), for example, holds the heap's lock while the kernel
    /// works on it. Writing the line and exiting do not take locks or allocate.
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
            // Standard error may be a pipe without a reader, or the log on a disk that hangs: do not wait for them.
            end_after_words(status);
            write_bytes(&line);
            last_words();
            // SAFETY: _exit(2) is always sound; it does not run any of our code.
            unsafe { libc::_exit(status) }
        })
    }

    fn start_ending(soft: Duration, grace: Duration, end: impl FnOnce() + Send + 'static) -> Result<Self, SysError> {
        let started = Instant::now();
        let off = Arc::new(AtomicBool::new(false));
        let waiter = Waiter { time: soft + grace, off: Arc::clone(&off), end: Box::new(end) };
        start_thread(Box::new(waiter)).map_err(SysError::io("start the thread", "deadline"))?;
        Ok(Self { started, soft, off })
    }

    /// Time until the soft deadline; zero once it has passed. Pass this to operations with a timeout.
    pub fn remaining(&self) -> Duration {
        self.soft.saturating_sub(self.started.elapsed())
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.off.store(true, Ordering::Relaxed);
    }
}

/// A thread without what `std::thread` gives one, which costs a start of a container a dozen system calls: a signal
/// stack, a name, a handle.
fn start_thread(waiter: Box<Waiter>) -> io::Result<()> {
    extern "C" fn wait(waiter: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the pointer is that of `Box::into_raw` below, and this thread is the only one that has it.
        let waiter = unsafe { Box::from_raw(waiter.cast::<Waiter>()) };
        thread::sleep(waiter.time);
        if !waiter.off.load(Ordering::Relaxed) {
            (waiter.end)();
        }
        std::ptr::null_mut()
    }
    let waiter = Box::into_raw(waiter);
    let mut attributes = std::mem::MaybeUninit::uninit();
    let mut thread = std::mem::MaybeUninit::uninit();
    // SAFETY: pthread_attr_init initializes the attributes, which are then only used here. `wait` takes over `waiter`
    // if the thread starts.
    let failed = unsafe {
        libc::pthread_attr_init(attributes.as_mut_ptr());
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK);
        libc::pthread_attr_setdetachstate(attributes.as_mut_ptr(), libc::PTHREAD_CREATE_DETACHED);
        let failed = libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), wait, waiter.cast());
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        failed
    };
    if failed == 0 {
        return Ok(());
    }
    // SAFETY: no thread was started, so this is still the only pointer.
    drop(unsafe { Box::from_raw(waiter) });
    Err(io::Error::from_raw_os_error(failed))
}

/// Ends the process with `status` after [`PATIENCE_FOR_WORDS`], whatever its threads are blocked on. It uses a signal,
/// because a thread would have to be allocated; it no longer matters what the signal interrupts.
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
    // SAFETY: system calls on initialized memory of this frame; the handler only calls _exit. sigemptyset writes the
    // set before it is read. None of them allocates or takes a lock.
    unsafe {
        let mut alarm = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(alarm.as_mut_ptr());
        libc::sigaddset(alarm.as_mut_ptr(), libc::SIGALRM);
        libc::signal(libc::SIGALRM, handler);
        // The parent process may have blocked it.
        libc::pthread_sigmask(libc::SIG_UNBLOCK, alarm.as_ptr(), std::ptr::null_mut());
        libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut());
    }
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
    use std::sync::{Mutex, mpsc};

    use super::*;
    use crate::helper_process;

    const ROLE: &str = "DEADLINE_TEST_ROLE";

    #[test]
    fn the_soft_deadline_is_reported_and_the_hard_one_takes_effect() {
        let (sender, receiver) = mpsc::channel();
        let (soft, grace) = (Duration::from_millis(40), Duration::from_millis(60));
        let before = Instant::now();
        let deadline = Deadline::start_ending(soft, grace, move || sender.send(Instant::now()).unwrap()).unwrap();
        assert!(deadline.remaining() <= soft);
        while !deadline.remaining().is_zero() {
            thread::yield_now();
        }
        assert!(before.elapsed() >= soft);
        let end = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(end - before >= soft + grace);
    }

    #[test]
    fn a_dropped_deadline_has_no_effect() {
        let (sender, receiver) = mpsc::channel();
        drop(
            Deadline::start_ending(Duration::from_millis(20), Duration::from_millis(20), move || sender.send(()).unwrap())
                .unwrap(),
        );
        assert_eq!(receiver.recv(), Err(mpsc::RecvError), "the thread has ended and dropped the sender");
    }

    /// Not 0, 1 or 101, which a process that ends otherwise could return.
    const STATUS: u8 = 7;

    #[test]
    fn stuck_process() {
        let Some(role) = helper_process::task(ROLE) else { return };
        let stuck = Mutex::new(());
        if role == "blocked" {
            // Inherited by the deadline's thread, like the signal mask of the process that starts it.
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
        let _never = stuck.lock(); // deadlocks: this thread already holds it
    }

    #[test]
    fn a_stuck_process_says_one_line_and_ends() {
        for role in ["stuck", "mute", "blocked"] {
            let output = helper_process::command("sys::deadline::tests::stuck_process", ROLE, role).output().unwrap();
            assert_eq!(output.status.code(), Some(STATUS.into()), "{role}: {output:?}");
            assert_eq!(String::from_utf8_lossy(&output.stderr), "attach tcx \"count\" to eth0: out of time\n", "{role}");
        }
    }
}
