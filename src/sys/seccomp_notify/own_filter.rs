//! A command whose bpf(2) calls are notified to this process: between fork and exec the child installs a filter with a
//! listener and passes the listener over a socket. Everything that the command starts inherits the filter.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{NATIVE_ARCH, SYS_BPF, SYS_PERF_EVENT_OPEN, SeccompListener};
use crate::sys::SysError;
use crate::sys::context::ProcessContext;
use crate::sys::sock::{Socket, send_raw};

/// How long the child may take to pass the listener; it has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(10);

/// `SECCOMP_SET_MODE_FILTER`, and the flags NEW_LISTENER and WAIT_KILLABLE_RECV (Linux 5.19; uapi/linux/seccomp.h).
const SET_MODE_FILTER: libc::c_ulong = 1;
/// See [`SET_MODE_FILTER`].
const NEW_LISTENER: libc::c_ulong = 1 << 3;
/// See [`SET_MODE_FILTER`]. With it only a deadly signal interrupts a call that was received.
const WAIT_KILLABLE: libc::c_ulong = 1 << 5;

/// Offsets in `struct seccomp_data`: the number, the architecture, the low half of the first argument on a
/// little-endian machine.
const NUMBER: u32 = 0;
/// See [`NUMBER`].
const ARCH: u32 = 4;
/// See [`NUMBER`].
const COMMAND: u32 = 16;

/// Starts a command whose calls of bpf(2) with a command that is not in `native`, and of perf_event_open(2), are notified
/// to the returned listener. Calls of other architectures are not.
///
/// With `inside`, the command runs with what another process has, in its pid namespace: the child that is returned waits
/// for it there, and ends with its status.
///
/// Needs CAP_SYS_ADMIN, because the command keeps its right to set-user-id programs. SIGINT and SIGQUIT, which a terminal
/// sends to both processes, end only the command; later ones are told by [`was_interrupted`].
///
/// # Errors
/// If it cannot be started, or the filter cannot be installed: EBUSY if a filter with a listener applies already.
pub fn start_observed(
    words: &[OsString],
    native: &[u32],
    inside: Option<ProcessContext>,
) -> Result<(Child, SeccompListener), SysError> {
    let shown = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let (ours, theirs) = Socket::pair()?;
    let filter = filter(native);
    let mut command = Command::new(words.first().map(OsString::as_os_str).unwrap_or_default());
    command.args(words.iter().skip(1));
    if let Some(inside) = &inside {
        command.env_clear().envs(inside.environment().iter().map(|(key, value)| (key, value)));
    }
    let prepare = move || {
        inside.as_ref().map_or(Ok(()), ProcessContext::enter)?;
        // While it may: without CAP_SYS_ADMIN it would also need no_new_privs.
        install(&filter, theirs.as_fd())?;
        inside.as_ref().map_or(Ok(()), ProcessContext::restrict)
    };
    // SAFETY: the closure runs between fork and exec. It makes system calls on memory that was allocated before the fork,
    // and does not allocate.
    unsafe { command.pre_exec(prepare) };
    notice_interruptions();
    let mut child = command.spawn().map_err(SysError::io("run", shown))?;
    // Closes our copy of the child's end, so that a child that failed is the end of the stream.
    drop(command);
    let what = "the listener of the command's seccomp filter";
    let received = ours.recv(what, 1, Some(Instant::now() + PATIENCE)).and_then(|message| {
        let missing = || SysError::Message { what, problem: "the command did not pass it".to_owned() };
        let fd = message.and_then(|message| message.fds.into_iter().next()).ok_or_else(missing)?;
        SeccompListener::from_fd(fd)
    });
    match received {
        Ok(listener) => Ok((child, listener)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interruption(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Makes SIGINT and SIGQUIT known to [`was_interrupted`], instead of ending this process.
pub fn notice_interruptions() {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        let handler = note_interruption as extern "C" fn(libc::c_int);
        // SAFETY: the handler only stores to an atomic, which is safe in signal context. exec resets it in a child.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// True if SIGINT or SIGQUIT came since this was last asked.
pub fn was_interrupted() -> bool {
    INTERRUPTED.swap(false, Ordering::Relaxed)
}

/// Runs in the child.
fn install(filter: &[libc::sock_filter], socket: BorrowedFd<'_>) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
        filter: filter.as_ptr().cast_mut(),
    };
    let install = |flags: libc::c_ulong| {
        // SAFETY: `program` refers to `len` instructions, which the kernel copies.
        unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) }
    };
    let mut installed = install(NEW_LISTENER | WAIT_KILLABLE);
    if installed < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        installed = install(NEW_LISTENER);
    }
    let fd = i32::try_from(installed).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just created this descriptor, close-on-exec, so nothing else owns it.
    let listener = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(send_raw(socket, b"l", &[listener.as_fd()])?)
}

/// The filter: a program of the classic BPF.
fn filter(native: &[u32]) -> Vec<libc::sock_filter> {
    let allow = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW);
    let notify = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF);
    let load = |offset: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    // Skips the next instruction if it is equal, or unless it is.
    let skip_if = |value: u32| jump(value, 1, 0);
    let skip_unless = |value: u32| jump(value, 0, 1);
    let mut code = vec![load(ARCH), skip_if(NATIVE_ARCH), allow, load(NUMBER)];
    code.extend([skip_unless(SYS_PERF_EVENT_OPEN.cast_unsigned()), notify, skip_if(SYS_BPF.cast_unsigned()), allow]);
    // The command without its flags.
    code.extend([load(COMMAND), statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0xffff)]);
    for command in native {
        code.extend([skip_unless(*command), allow]);
    }
    code.push(notify);
    code
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    // All codes of classic BPF fit into 16 bits.
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { jt, jf, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter for a call.
    fn judged(filter: &[libc::sock_filter], arch: u32, number: u32, command: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let insn = filter[at];
            at += 1;
            match u32::from(insn.code) {
                code if code == libc::BPF_RET | libc::BPF_K => return insn.k,
                code if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => value &= insn.k,
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    at += usize::from(if value == insn.k { insn.jt } else { insn.jf });
                }
                _ => {
                    value = match insn.k {
                        NUMBER => number,
                        ARCH => arch,
                        COMMAND => command,
                        other => panic!("offset {other}"),
                    }
                }
            }
        }
    }

    #[test]
    fn only_bpf_and_perf_events_are_notified() {
        let filter = filter(&[1, 6]);
        let (bpf, perf) = (SYS_BPF.cast_unsigned(), SYS_PERF_EVENT_OPEN.cast_unsigned());
        let (allow, notify) = (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_USER_NOTIF);
        for (arch, number, command, expected) in [
            (NATIVE_ARCH, bpf, 0, notify),
            (NATIVE_ARCH, bpf, 1, allow),
            (NATIVE_ARCH, bpf, 6, allow),
            (NATIVE_ARCH, bpf, 5, notify),
            (NATIVE_ARCH, bpf, 0x1_0006, allow),
            (NATIVE_ARCH, bpf, 0x1_0005, notify),
            (NATIVE_ARCH, perf, 1, notify),
            (NATIVE_ARCH, 0, 5, allow),
            (0x4000_0003, bpf, 5, allow),
        ] {
            assert_eq!(judged(&filter, arch, number, command), expected, "{arch:#x} {number} {command:#x}");
        }
    }
}
