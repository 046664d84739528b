//! Namespaces, identified by their nsfs inodes.

use std::os::fd::{AsFd, BorrowedFd};

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
