//! seccomp user notifications: a filter reports system calls to the holder of its listener, who answers them
//! (seccomp_unotify(2)).

mod caller;
mod connection;
mod own_filter;

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::sys::SysError;

pub use caller::{NotifiedThread, thread_runs};
pub use connection::{Handover, peer_is_root, receive, take_stdin};
pub use own_filter::{notice_interruptions, start_observed, was_interrupted};

/// `AUDIT_ARCH_*` of 64-bit calls on this machine (uapi/linux/audit.h).
#[cfg(target_arch = "x86_64")]
pub const NATIVE_ARCH: u32 = 0xc000_003e;
/// See above.
#[cfg(target_arch = "aarch64")]
pub const NATIVE_ARCH: u32 = 0xc000_00b7;
/// The number of bpf(2) for calls of that architecture.
pub const SYS_BPF: i32 = libc::SYS_bpf as i32;
/// The number of perf_event_open(2), likewise.
pub const SYS_PERF_EVENT_OPEN: i32 = libc::SYS_perf_event_open as i32;

/// `struct seccomp_data`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct RawData {
    number: i32,
    arch: u32,
    instruction_pointer: u64,
    args: [u64; 6],
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct RawNotification {
    id: u64,
    pid: u32,
    flags: u32,
    data: RawData,
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct RawResponse {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// `struct seccomp_notif_addfd`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct RawAddFd {
    id: u64,
    flags: u32,
    source: u32,
    target: u32,
    target_flags: u32,
}

/// The ioctl numbers of uapi/linux/seccomp.h: `_IOWR('!', n, type)`, or `_IOW` for ID_VALID and ADDFD.
const fn request(direction: u64, number: u64, size: usize) -> libc::Ioctl {
    (direction << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | number) as libc::Ioctl
}
const RECV: libc::Ioctl = request(3, 0, size_of::<RawNotification>());
const SEND: libc::Ioctl = request(3, 1, size_of::<RawResponse>());
const ID_VALID: libc::Ioctl = request(1, 2, size_of::<u64>());
const ADDFD: libc::Ioctl = request(1, 3, size_of::<RawAddFd>());

/// `SECCOMP_ADDFD_FLAG_SEND`: the new descriptor is the result of the call, in one step (Linux 5.14).
const ADDFD_SEND: u32 = 1 << 1;

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`
const CONTINUE: u32 = 1;

/// A notified system call. The thread that made it waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    /// Identifies the call while it waits.
    pub id: u64,
    /// The thread, in our pid namespace; 0 if it is not visible there.
    pub tid: u32,
    /// The call's number.
    pub number: i32,
    /// The architecture whose numbers it uses: a thread can also make 32-bit calls.
    pub arch: u32,
    /// Its arguments.
    pub args: [u64; 6],
}

/// What a listener has to report.
#[derive(Debug)]
pub enum Reported {
    /// A call.
    Call(Notification),
    /// Nothing: the call was withdrawn in between, or none came in time.
    Nothing,
    /// No task with the filter is left.
    End,
}

/// The result of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// The thread has it.
    Delivered,
    /// The thread has ended, or a signal has interrupted the call.
    Withdrawn,
    /// The descriptor could not be installed: the thread still waits for an answer.
    NotInstalled(Errno),
}

/// The listener of a seccomp filter.
#[derive(Debug)]
pub struct SeccompListener(OwnedFd);

impl AsFd for SeccompListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl SeccompListener {
    /// Takes a descriptor that a runtime passed, and checks that it is a listener.
    ///
    /// # Errors
    /// If it is something else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SysError> {
        let listener = Self(fd);
        match listener.is_valid_raw(0) {
            // ENOENT: no call has this id, which only a listener can say.
            Ok(()) | Err(Errno::NOENT) => Ok(listener),
            Err(errno) => Err(SysError::io("use as a seccomp listener", "the descriptor of the runtime")(errno)),
        }
    }

    /// Waits for the next call; at most for `patience`, if there is one.
    ///
    /// # Errors
    /// If the listener cannot be read; nothing more will come of it.
    pub fn next(&self, patience: Option<Duration>) -> Result<Reported, SysError> {
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        let patience = patience.map(|patience| Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        });
        match poll(&mut ready, patience.as_ref()) {
            Ok(0) => return Ok(Reported::Nothing),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Reported::Nothing),
            Err(errno) => return Err(SysError::io("wait for", "a seccomp listener")(errno)),
        }
        let events = ready[0].revents();
        if !events.contains(PollFlags::IN) {
            let over = events.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
            return Ok(if over { Reported::End } else { Reported::Nothing });
        }
        // The kernel requires a struct of zeros.
        let mut raw = RawNotification::default();
        // SAFETY: `raw` is a seccomp_notif of the size in the request's number, and outlives the call.
        match unsafe { self.ioctl(RECV, (&raw mut raw).cast()) } {
            Ok(()) => {
                let RawNotification { id, pid, data, .. } = raw;
                Ok(Reported::Call(Notification { id, tid: pid, number: data.number, arch: data.arch, args: data.args }))
            }
            Err(Errno::NOENT | Errno::INTR) => Ok(Reported::Nothing),
            Err(errno) => Err(SysError::io("receive from", "a seccomp listener")(errno)),
        }
    }

    /// True while the thread waits: what was opened by its number before then belongs to it.
    pub fn is_waiting(&self, id: u64) -> bool {
        self.is_valid_raw(id).is_ok()
    }

    fn is_valid_raw(&self, id: u64) -> Result<(), Errno> {
        let mut id = id;
        // SAFETY: `id` is the u64 that the request takes, and outlives the call.
        unsafe { self.ioctl(ID_VALID, (&raw mut id).cast()) }
    }

    /// Answers with an errno.
    pub fn refuse(&self, id: u64, errno: i32) -> Answered {
        self.send(RawResponse { id, value: 0, error: -errno, flags: 0 })
    }

    /// Answers with a number that is not negative.
    pub fn answer(&self, id: u64, value: i64) -> Answered {
        self.send(RawResponse { id, value, error: 0, flags: 0 })
    }

    /// Has the kernel make the call as the thread made it. The thread can change what its arguments point to before the
    /// kernel reads it.
    pub fn pass_on(&self, id: u64) -> Answered {
        self.send(RawResponse { id, value: 0, error: 0, flags: CONTINUE })
    }

    fn send(&self, mut response: RawResponse) -> Answered {
        // SAFETY: `response` is a seccomp_notif_resp of the size in the request's number, and outlives the call.
        match unsafe { self.ioctl(SEND, (&raw mut response).cast()) } {
            Ok(()) => Answered::Delivered,
            // ENOENT: gone. Nothing else is possible for a response of zeros and a valid id.
            Err(_) => Answered::Withdrawn,
        }
    }

    /// Answers with a copy of a descriptor, which becomes the call's result.
    pub fn hand_over(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool) -> Answered {
        let flags = if close_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 };
        let source = fd.as_raw_fd().cast_unsigned();
        let mut request = RawAddFd { id, flags: ADDFD_SEND, source, target: 0, target_flags: flags };
        loop {
            // SAFETY: `request` is a seccomp_notif_addfd of the size in the request's number, and outlives the call.
            return match unsafe { self.ioctl(ADDFD, (&raw mut request).cast()) } {
                Ok(()) => Answered::Delivered,
                Err(Errno::NOENT) => Answered::Withdrawn,
                Err(Errno::INTR) => continue,
                Err(errno) => Answered::NotInstalled(errno),
            };
        }
    }

    /// # Safety
    /// `argument` must point to what `request` reads and writes.
    unsafe fn ioctl(&self, request: libc::Ioctl, argument: *mut libc::c_void) -> Result<(), Errno> {
        // SAFETY: guaranteed by the caller; the descriptor is open.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) };
        if done >= 0 {
            return Ok(());
        }
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_have_the_kernels_numbers() {
        assert_eq!([RECV, SEND, ID_VALID, ADDFD], [0xc050_2100, 0xc018_2101, 0x4008_2102, 0x4018_2103]);
    }

    #[test]
    fn only_a_listener_is_taken() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = SeccompListener::from_fd(null.into()).unwrap_err();
        assert!(error.to_string().contains("use as a seccomp listener"), "{error}");
    }
}
