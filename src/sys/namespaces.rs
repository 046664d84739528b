//! Namespaces, identified by their nsfs inodes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use crate::model::facts::NamespaceFact;
use crate::sys::error::SysError;

/// The inode of the initial user namespace: PROC_USER_INIT_INO, include/linux/proc_ns.h, unchanged since Linux 3.8.
pub const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// The kinds of namespaces that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// `ns/user`
    User,
    /// `ns/mnt`
    Mount,
    /// `ns/net`
    Network,
    /// `ns/pid`: the namespace of the process itself.
    Pid,
    /// `ns/cgroup`
    Cgroup,
}

impl Namespace {
    /// The path below `/proc/<pid>`.
    pub fn file(self) -> &'static str {
        match self {
            Self::User => "ns/user",
            Self::Mount => "ns/mnt",
            Self::Network => "ns/net",
            Self::Pid => "ns/pid",
            Self::Cgroup => "ns/cgroup",
        }
    }
}

/// The inodes of a process's namespaces. Two processes are in the same namespace if and only if the inodes are equal,
/// while at least one of them is alive or holds it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the namespace of its name")]
pub struct Namespaces {
    pub user: u64,
    pub mount: u64,
    pub network: u64,
    pub pid: u64,
    pub cgroup: u64,
}

impl Namespaces {
    /// The inode of one kind of namespace.
    pub fn inode(&self, kind: Namespace) -> u64 {
        match kind {
            Namespace::User => self.user,
            Namespace::Mount => self.mount,
            Namespace::Network => self.network,
            Namespace::Pid => self.pid,
            Namespace::Cgroup => self.cgroup,
        }
    }

    /// The planning fact about one kind of namespace; `own` are the hook's namespaces.
    pub fn fact(&self, kind: Namespace, own: &Self) -> NamespaceFact {
        NamespaceFact { inode: self.inode(kind), shared_with_host: self.inode(kind) == own.inode(kind) }
    }

    pub(super) fn read(directory: BorrowedFd<'_>) -> Result<Self, Errno> {
        // Resolving the link needs PTRACE_MODE_READ on the process. Root in the initial user namespace has it unless
        // the process holds capabilities that we lack: pid 1 may, so it is never examined.
        let inode = |kind: Namespace| statat(directory, kind.file(), AtFlags::empty()).map(|stat| stat.st_ino);
        Ok(Self {
            user: inode(Namespace::User)?,
            mount: inode(Namespace::Mount)?,
            network: inode(Namespace::Network)?,
            pid: inode(Namespace::Pid)?,
            cgroup: inode(Namespace::Cgroup)?,
        })
    }
}

/// The namespaces of this process. Runtimes run createRuntime and poststop hooks in their own namespaces, so for a
/// hook these are the host's, except for the mount namespace under podman with a user namespace.
pub fn own_namespaces() -> Result<Namespaces, SysError> {
    let own = openat(CWD, "/proc/self", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(SysError::io("open", "/proc/self"))?;
    Namespaces::read(own.as_fd()).map_err(SysError::io("read the namespaces below", "/proc/self"))
}

/// The number in our pid namespace of a task that has `number` in another one. Before Linux 6.11 only if both are the
/// same.
///
/// # Errors
/// ESRCH if there is no such task, ENOTTY before Linux 6.11.
pub(super) fn number_of_task(namespace: BorrowedFd<'_>, number: u32) -> Result<u32, Errno> {
    // _IOR(0xb7, 6, int), include/uapi/linux/nsfs.h
    const NS_GET_PID_FROM_PIDNS: libc::Ioctl = 0x8004_b706;
    // SAFETY: NS_GET_PID_FROM_PIDNS takes the number itself and touches no memory; `namespace` is an open descriptor.
    let found = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PID_FROM_PIDNS, libc::c_ulong::from(number)) };
    if found >= 0 {
        return u32::try_from(found).map_err(|_| Errno::SRCH);
    }
    match Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO) {
        Errno::NOTTY => {
            let own = statat(CWD, format!("/proc/self/{}", Namespace::Pid.file()), AtFlags::empty())?.st_ino;
            if rustix::fs::fstat(namespace)?.st_ino == own { Ok(number) } else { Err(Errno::NOTTY) }
        }
        errno => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_of_our_own_namespace_keeps_its_number() {
        let own = std::fs::File::open("/proc/self/ns/pid").unwrap();
        let pid = std::process::id();
        assert_eq!(number_of_task(own.as_fd(), pid), Ok(pid));
        // Not a task: beyond PID_MAX_LIMIT.
        assert_eq!(number_of_task(own.as_fd(), 1 << 23).err(), Some(Errno::SRCH));
    }
}
