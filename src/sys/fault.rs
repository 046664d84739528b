//! Handles memory faults in a memory-mapped file with an error message and exit status 1.
//!
//! A damaged mapped file can cause SIGBUS (a page that does not exist) or SIGSEGV (an invalid offset) in its reader.
//! The faulting code cannot be resumed, but the process can exit with a message. Otherwise the caller of a hook would
//! only see a signal number.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

/// SIGABRT is raised by assertions of a library built with them.
const SIGNALS: [libc::c_int; 3] = [libc::SIGBUS, libc::SIGSEGV, libc::SIGABRT];

/// The message, and the previous handler of each of [`SIGNALS`].
struct SavedHandlers {
    sentence: String,
    previous: [libc::sigaction; 3],
}

static GUARD: OnceLock<SavedHandlers> = OnceLock::new();

thread_local! {
    /// True while this thread reads the mapping.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Installs the handlers once per process: later calls do not change the message.
pub fn install(sentence: &str) {
    GUARD.get_or_init(|| {
        let mut previous = [zeroed(), zeroed(), zeroed()];
        for (signal, previous) in SIGNALS.into_iter().zip(&mut previous) {
            // SAFETY: a null second argument only queries; the third is valid for writing one sigaction.
            unsafe { libc::sigaction(signal, ptr::null(), previous) };
        }
        SavedHandlers { sentence: format!("bpfman-hook: {sentence}\n"), previous }
    });
    for signal in SIGNALS {
        let mut action = zeroed();
        action.sa_sigaction = on_fault as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        // On the alternate stack that std sets up for each thread, so that a stack overflow still reaches std's
        // handler.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `action` is initialized with a handler in the three-argument form that SA_SIGINFO requires; the
        // handler calls only async-signal-safe functions.
        unsafe { libc::sigaction(signal, &action, ptr::null_mut()) };
    }
}

/// Runs `work`, which reads the mapping: a fault of this thread meanwhile ends the process with the message.
pub fn inside<T>(work: impl FnOnce() -> T) -> T {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            INSIDE.set(self.0);
        }
    }
    let _reset = Reset(INSIDE.replace(true));
    work()
}

fn zeroed() -> libc::sigaction {
    // SAFETY: all zero bits are a valid sigaction: SIG_DFL, an empty mask, no flags, no restorer.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

extern "C" fn on_fault(signal: libc::c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let Some(guard) = GUARD.get() else { return };
    if INSIDE.try_with(Cell::get).unwrap_or(false) {
        // SAFETY: write(2) and _exit(2) are async-signal-safe; the message lives as long as the process.
        unsafe {
            libc::write(libc::STDERR_FILENO, guard.sentence.as_ptr().cast(), guard.sentence.len());
            libc::_exit(1);
        }
    }
    // Not a fault of the mapping: restore the previous handlers and return, so that the instruction faults again.
    for (known, previous) in SIGNALS.into_iter().zip(&guard.previous) {
        if known == signal {
            // SAFETY: `previous` is what the kernel returned for this signal.
            unsafe { libc::sigaction(signal, previous, ptr::null_mut()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Output;

    use super::*;
    use crate::helper_process;

    const ROLE: &str = "FAULT_TEST_ROLE";

    /// Runs one test of this binary in a separate process, since it ends that process.
    fn again(role: &str) -> Output {
        helper_process::command("sys::fault::tests::faulting_process", ROLE, role).output().unwrap()
    }

    fn fault() {
        // SAFETY: deliberately unsound: the read must fault, in a process that exists only for this.
        unsafe { ptr::read_volatile(ptr::without_provenance::<u8>(8)) };
    }

    #[test]
    fn faulting_process() {
        let Some(role) = helper_process::task(ROLE) else { return };
        match role.to_str() {
            Some("inside") => {
                install("use the store: it is damaged");
                inside(|| assert_eq!(1, 1));
                inside(fault);
            }
            Some("outside") => {
                install("use the store: it is damaged");
                inside(|| {});
                fault();
            }
            Some("other thread") => {
                install("use the store: it is damaged");
                inside(|| std::thread::spawn(fault).join()).unwrap();
            }
            other => panic!("no role {other:?}"),
        }
    }

    #[test]
    fn a_fault_inside_is_one_sentence_and_status_1() {
        let output = again("inside");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("bpfman-hook: use the store: it is damaged\n"), "{output:?}");
    }

    #[test]
    fn other_faults_still_kill_the_process() {
        for role in ["outside", "other thread"] {
            let output = again(role);
            assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{role}: {output:?}");
            assert!(!String::from_utf8_lossy(&output.stderr).contains("damaged"), "{role}: {output:?}");
        }
    }
}
