//! The parent's view of the forked child of [`super::mount`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, pidfd_open, pidfd_send_signal, waitpid};

use super::inside::{self, Job};
use super::message::{ChildReport, Exit, ParentVerdict, REPORT_SIZE};
use super::{read_text, unexpected};
use crate::sys::SysError;
use crate::sys::sock::{Socket, recv_raw, retry, send_raw, wait_readable};

/// How long a child may take to undo its changes after its socket is closed.
const UNDO_TIME: Duration = Duration::from_millis(500);

/// A running child. Dropping it lets the child undo its changes, then kills and reaps it.
#[derive(Debug)]
pub(super) struct BpffsChild {
    pid: Pid,
    pidfd: OwnedFd,
    socket: Socket,
    started: Instant,
    ended: Option<WaitStatus>,
}

impl BpffsChild {
    /// Forks without exec. docs/decisions/0002-fork-for-bpffs.md describes the benefit and the requirements on the
    /// child.
    pub(super) fn start(job: &Job<'_>) -> Result<Self, SysError> {
        let (socket, theirs) = Socket::pair()?;
        let started = Instant::now();
        // SAFETY: other threads may exist, so until it exits the child may only do what is async-signal-safe.
        // `inside::run` makes system calls on data prepared before the fork, does not allocate or take locks, does not
        // call runtime code that does, and leaves through _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            inside::run(job, theirs.as_fd());
        }
        let pid = Pid::from_raw(pid).filter(|_| pid > 0);
        let pid = pid.ok_or_else(|| SysError::io("fork", "the bpffs process")(io::Error::last_os_error()))?;
        drop(theirs);
        // Only this process reaps its children, so the pid still refers to the child.
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { pid, pidfd, socket, started, ended: None }),
            Err(errno) => {
                // When the socket is closed, the child exits.
                drop(socket);
                let _ = retry(|| waitpid(Some(pid), WaitOptions::empty()));
                Err(SysError::io("open a pidfd of", "the bpffs process")(errno))
            }
        }
    }

    /// Returns the next report and the descriptor that came with it.
    pub(super) fn report(&mut self, deadline: Instant) -> Result<(ChildReport, Option<OwnedFd>), SysError> {
        let fail = || SysError::io("receive a report of", "the bpffs process");
        // A fast child may have reported although the deadline has passed. This is still a timeout.
        if Instant::now() >= deadline || !wait_readable(self.socket.as_fd(), deadline).map_err(fail())? {
            return Err(self.late());
        }
        let mut bytes = [0; REPORT_SIZE];
        let received = match recv_raw(self.socket.as_fd(), &mut bytes) {
            // A child that ended without reading our last message: Linux reports that once, before what the child sent.
            Err(Errno::CONNRESET) => recv_raw(self.socket.as_fd(), &mut bytes),
            other => other,
        };
        let (len, fd) = match received {
            Err(Errno::CONNRESET) => (0, None),
            other => other.map_err(fail())?,
        };
        if len == 0 {
            self.reap_by(deadline.min(Instant::now() + UNDO_TIME));
            let how = self.ended.map_or_else(|| "it closed its socket".to_owned(), describe);
            return Err(SysError::ChildGone { role: "bpffs", how });
        }
        let report = (len == REPORT_SIZE).then(|| ChildReport::decode(&bytes)).flatten();
        Ok((report.ok_or_else(|| unexpected("a report of the bpffs process"))?, fd))
    }

    /// The container's mount table, read from the child, which is in its mount namespace.
    pub(super) fn mountinfo(&self) -> Result<String, SysError> {
        read_text(&format!("/proc/{}/mountinfo", self.pid.as_raw_nonzero()))
    }

    /// Sends the mount and closes our descriptor of it.
    pub(super) fn hand_over(&self, mount: OwnedFd) -> Result<(), Errno> {
        send_raw(self.socket.as_fd(), &[ParentVerdict::Keep as u8], &[mount.as_fd()])
    }

    /// Tells the child to continue.
    pub(super) fn consent(&self) -> Result<(), Errno> {
        send_raw(self.socket.as_fd(), &[ParentVerdict::Keep as u8], &[])
    }

    /// Tells the child to keep its changes and waits for it to exit, which is its only remaining step.
    pub(super) fn keep(&mut self) -> Result<(), SysError> {
        self.consent().map_err(SysError::io("answer", "the bpffs process"))?;
        self.reap_by(Instant::now() + UNDO_TIME);
        match self.ended {
            Some(status) if ended_as(status, Exit::Kept) => Ok(()),
            Some(status) => Err(SysError::ChildGone { role: "bpffs", how: describe(status) }),
            None => Err(self.late()),
        }
    }

    /// Tells the child to undo its changes. Returns false if something is left, or if the child did not exit in time
    /// and was killed.
    pub(super) fn undo(mut self) -> bool {
        self.socket.shutdown();
        self.reap_by(Instant::now() + UNDO_TIME);
        self.ended.is_some_and(|status| ended_as(status, Exit::Undone))
    }

    fn late(&self) -> SysError {
        SysError::Deadline { role: "bpffs", waited: self.started.elapsed() }
    }

    /// Reaps the child if it ends before `until`.
    fn reap_by(&mut self, until: Instant) {
        if self.ended.is_none() && wait_readable(self.pidfd.as_fd(), until).unwrap_or(false) {
            self.reap();
        }
    }

    fn reap(&mut self) {
        if let Ok(Some((_, status))) = retry(|| waitpid(Some(self.pid), WaitOptions::empty())) {
            self.ended = Some(status);
        }
    }
}

impl Drop for BpffsChild {
    fn drop(&mut self) {
        self.socket.shutdown();
        self.reap_by(Instant::now() + UNDO_TIME);
        if self.ended.is_none() {
            // ESRCH: the child has already ended.
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            self.reap();
        }
    }
}

fn ended_as(status: WaitStatus, exit: Exit) -> bool {
    status.exit_status() == Some(exit as i32)
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".into(),
    }
}
