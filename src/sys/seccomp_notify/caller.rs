//! The thread behind a notification: its memory, its descriptors and its namespaces, as long as it waits.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, openat2, statat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::{Notification, SeccompListener};
use crate::model::proxy::{TracedFile, TracedTask};
use crate::sys::namespaces::{Namespace, number_of_task};
use crate::sys::pid::{runs, start_time};

/// The thread that waits for the answer of a call.
///
/// Its number can belong to another thread as soon as it ends. So everything is first opened by the number, and used
/// only after the kernel has confirmed that the call still waits.
#[derive(Debug)]
pub struct NotifiedThread<'l> {
    listener: &'l SeccompListener,
    id: u64,
    tid: u32,
    memory: File,
    process: Option<OwnedFd>,
}

impl<'l> NotifiedThread<'l> {
    /// Holds the memory of the thread that made a call; None if it no longer waits.
    ///
    /// # Errors
    /// EACCES or EPERM if it cannot be read; ESRCH for a thread outside of our pid namespace.
    pub fn of(listener: &'l SeccompListener, call: &Notification) -> Result<Option<Self>, Errno> {
        if call.tid == 0 {
            return Err(Errno::SRCH);
        }
        let path = format!("/proc/{}/mem", call.tid);
        let opened = openat(CWD, path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        if !listener.is_waiting(call.id) {
            return Ok(None);
        }
        let memory = File::from(opened?);
        Ok(Some(Self { listener, id: call.id, tid: call.tid, memory, process: None }))
    }

    /// The thread's number.
    pub fn tid(&self) -> u32 {
        self.tid
    }

    /// Copies memory once.
    ///
    /// # Errors
    /// EFAULT if some of it is not mapped.
    pub fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        self.memory.read_exact_at(&mut bytes, address).map_err(|_| Errno::FAULT)?;
        Ok(bytes)
    }

    /// Copies a text of at most `max` bytes with its NUL, and returns it with the NUL.
    ///
    /// # Errors
    /// EFAULT if it is not mapped up to the NUL; EINVAL if it is longer.
    pub fn read_text(&self, address: u64, max: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; max];
        let mut filled = 0;
        // A mapping may end behind the NUL.
        while filled < max && !bytes[..filled].contains(&0) {
            match self.memory.read_at(&mut bytes[filled..], address.saturating_add(filled as u64)) {
                Ok(0) | Err(_) => return Err(Errno::FAULT),
                Ok(length) => filled += length,
            }
        }
        let end = bytes.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        bytes.truncate(end + 1);
        Ok(bytes)
    }

    /// Writes memory that the call's arguments name as output. Nothing is written once the call no longer waits; what
    /// was opened is the memory of the thread that made it in any case.
    ///
    /// # Errors
    /// EFAULT if it is not mapped for writing.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        if !self.listener.is_waiting(self.id) {
            return Ok(());
        }
        self.memory.write_all_at(bytes, address).map_err(|_| Errno::FAULT)
    }

    /// A copy of the thread's descriptor with this number.
    ///
    /// # Errors
    /// EBADF if it is not open.
    pub fn descriptor(&mut self, number: i32) -> Result<OwnedFd, Errno> {
        if self.process.is_none() {
            let process = self.open_process();
            if !self.listener.is_waiting(self.id) {
                return Err(Errno::SRCH);
            }
            self.process = Some(process?);
        }
        let process = self.process.as_ref().ok_or(Errno::SRCH)?;
        if number < 0 {
            return Err(Errno::BADF);
        }
        pidfd_getfd(process, number, PidfdGetfdFlags::empty())
    }

    /// A pidfd of the thread (Linux 6.9), or of its process, which has the same descriptors unless the thread has left
    /// them with unshare(2).
    fn open_process(&self) -> Result<OwnedFd, Errno> {
        let open = |number: u32, flags| {
            let number = i32::try_from(number).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
            pidfd_open(number, flags)
        };
        // PIDFD_THREAD is O_EXCL (uapi/linux/pidfd.h).
        match open(self.tid, PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned())) {
            Err(Errno::INVAL) => open(self.process_number()?, PidfdFlags::empty()),
            other => other,
        }
    }

    fn process_number(&self) -> Result<u32, Errno> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.tid)).map_err(|_| Errno::SRCH)?;
        let number = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
        number.and_then(|number| number.trim().parse().ok()).ok_or(Errno::SRCH)
    }

    /// The thread's network namespace, and its inode.
    ///
    /// # Errors
    /// ESRCH if the call no longer waits.
    pub fn network_namespace(&self) -> Result<(OwnedFd, u64), Errno> {
        let path = format!("/proc/{}/{}", self.tid, Namespace::Network.file());
        let opened = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        if !self.listener.is_waiting(self.id) {
            return Err(Errno::SRCH);
        }
        let namespace = opened?;
        let inode = rustix::fs::fstat(&namespace)?.st_ino;
        Ok((namespace, inode))
    }

    /// The inode of the thread's pid namespace. None if the call no longer waits.
    pub fn pid_namespace(&self) -> Option<u64> {
        let found = rustix::fs::stat(format!("/proc/{}/{}", self.tid, Namespace::Pid.file()));
        found.ok().map(|stat| stat.st_ino).filter(|_| self.listener.is_waiting(self.id))
    }

    /// The file that a path of the thread names (O_PATH). Below a root directory links of procfs are not followed: they
    /// would be resolved for this process.
    ///
    /// # Errors
    /// ESRCH if the call no longer waits; EINVAL for a path that does not begin at the root directory; as [`Self::task`];
    /// EXDEV if the path names a task in another mount namespace.
    pub fn file(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let number = |task| match task {
            TracedTask::Caller => Ok(self.tid),
            TracedTask::Number(number) => self.task_of_container(number),
        };
        let (link, below) = match TracedFile::of(path).ok_or(Errno::INVAL)? {
            TracedFile::BelowRoot(path) => (format!("/proc/{}/root", self.tid), Some(path)),
            TracedFile::BelowRootOf(task, path) => (format!("/proc/{}/root", number(task)?), Some(path)),
            TracedFile::Executable(task) => (format!("/proc/{}/exe", number(task)?), None),
        };
        let opened = openat(CWD, link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        if !self.listener.is_waiting(self.id) {
            return Err(Errno::SRCH);
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match below {
            Some(path) => openat2(opened?, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve),
            None => opened,
        }
    }

    /// As [`Self::task`], for a task that sees the same file systems as the caller.
    fn task_of_container(&self, number: u32) -> Result<u32, Errno> {
        let number = self.task(number)?;
        let mounts = |tid: u32| statat(CWD, format!("/proc/{tid}/{}", Namespace::Mount.file()), AtFlags::empty());
        if mounts(number)?.st_ino == mounts(self.tid)?.st_ino { Ok(number) } else { Err(Errno::XDEV) }
    }

    /// The number in our pid namespace of a task that has `number` in the thread's (Linux 6.11, unless both are the same).
    ///
    /// # Errors
    /// ESRCH if there is no such task, or the call no longer waits; ENOTTY before Linux 6.11.
    pub fn task(&self, number: u32) -> Result<u32, Errno> {
        let path = format!("/proc/{}/{}", self.tid, Namespace::Pid.file());
        let opened = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        if !self.listener.is_waiting(self.id) {
            return Err(Errno::SRCH);
        }
        number_of_task(opened?.as_fd(), number)
    }

    /// When the thread was started, in clock ticks since boot: with its number it identifies the thread. The number of a
    /// thread whose call was interrupted can belong to another one by now, which has another start.
    pub fn started_unless_gone(&self) -> Option<u64> {
        start_time(&std::fs::read_to_string(format!("/proc/{}/stat", self.tid)).ok()?)
    }
}

/// True while a thread with this number and start runs.
pub fn thread_runs(tid: u32, started: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat"));
    stat.is_ok_and(|stat| runs(&stat) && start_time(&stat) == Some(started))
}
