//! The seam to processes, namespaces, cgroups, mounts and time.

use crate::kernel::{KernelError, Places};
use crate::model::container::Container;
use crate::model::facts::Facts;
use crate::model::ids::{ContainerId, Pid, ProcessIdentity};
use crate::model::plan::PlannedBpffs;
use crate::sys::SysError;
use crate::sys::cgroup::CgroupError;
use crate::sys::pid::{ProcessError, TimeNamespaceError};

/// Why the host's part did not work.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The state has no pid, as at poststop.
    #[error(
        "the state names no process, but createRuntime needs the container's init; is the hook registered for another stage?"
    )]
    NoPid,
    /// The process that the state names is not what createRuntime runs on.
    #[error("process {pid} of the state is not the init of a container: {why}")]
    NotInit {
        /// The pid.
        pid: u32,
        /// What is wrong with it.
        why: String,
    },
    /// A process is not proved to be a container's.
    #[error("process {pid} is not proved to be of container {id}: {why}")]
    NotProved {
        /// The process.
        pid: u32,
        /// The container.
        id: String,
        /// What was seen.
        why: &'static str,
    },
    /// Which processes live cannot be told from here.
    #[error(transparent)]
    TimeNamespace(#[from] TimeNamespaceError),
    /// A system call failed, or the bpffs could not be made.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The init is gone or cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The container's cgroup cannot be found or judged.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A map that the container is to see is not where it was pinned.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Which facts are worth gathering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeededFacts {
    /// The network namespace's provenance: some program sits on it, or programs that could are delegated.
    pub network: bool,
    /// Its interfaces and its cookie: some program sits on it.
    pub interfaces: bool,
    /// Whose the user namespace is: a token is asked for.
    pub userns: bool,
    /// The cgroup: some program sits on it, or wants to know its id.
    pub cgroup: bool,
    /// Whether it sees cgroups of others.
    pub cgroup_mounts: bool,
    /// Its root directory: some program is for a file in it.
    pub root: bool,
}

/// The seam to processes, namespaces, cgroups, mounts and time. `LinuxHost` is the real one.
pub trait Host {
    /// A container's init, held so that its pid cannot come to mean another process.
    type Init;

    /// This process.
    fn me(&self) -> ProcessIdentity;

    /// Seconds since 1970.
    fn now(&self) -> u64;

    /// Seconds since boot, suspended time included.
    fn boottime(&self) -> u64;

    /// True where this very process still runs; a zombie does not. An error is "could not tell".
    fn is_alive(&self, process: &ProcessIdentity) -> Result<bool, HostError>;

    /// Takes hold of the container's init and proves that it is one.
    fn open_init(&self, container: &Container) -> Result<Self::Init, HostError>;

    /// Takes hold of a process that is said to be a container's.
    fn hold(&self, pid: Pid) -> Result<Self::Init, HostError>;

    /// Kills a process, once its cgroup has proved that it is of this container.
    fn kill(&self, init: &Self::Init, id: &ContainerId, cgroups_path: &str) -> Result<(), HostError>;

    /// The process behind the handle.
    fn identity(&self, init: &Self::Init) -> ProcessIdentity;

    /// The uid that the runtime runs as.
    fn runtime_user(&self) -> u32;

    /// True where the init is in another user namespace than we are, and its root is not ours.
    fn has_user_namespace(&self, init: &Self::Init) -> bool;

    /// What the plan has to know about the container.
    fn facts(&self, init: &mut Self::Init, container: &Container, need: NeededFacts) -> Result<Facts, HostError>;

    /// The places that links need; those that `facts` was asked for.
    fn places<'a>(&self, init: &'a Self::Init) -> Places<'a>;

    /// Makes the bpffs, mounts it into the container, pins the maps in it and proves the delegation. `directory` is where the
    /// owner's pins are. On error nothing is left mounted.
    fn mount_bpffs(
        &self,
        init: &Self::Init,
        container: &Container,
        directory: &std::path::Path,
        bpffs: &PlannedBpffs,
    ) -> Result<(), HostError>;
}
