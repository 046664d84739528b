//! The interface to processes, namespaces, cgroups, mounts and time.

use crate::kernel::{KernelError, Places};
use crate::model::container::Container;
use crate::model::facts::Facts;
use crate::model::ids::{ContainerId, Pid, ProcessIdentity};
use crate::model::plan::PlannedBpffs;
use crate::sys::SysError;
use crate::sys::cgroup::CgroupError;
use crate::sys::pid::{ProcessError, TimeNamespaceError};

/// Errors of the host's part.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The state has no pid, as at poststop.
    #[error(
        "the state names no process, but createRuntime needs the container's init; is the hook registered for another stage?"
    )]
    NoPid,
    /// The process in the state is not the init of a container at createRuntime.
    #[error("process {pid} in the state is not the init of a container: {why}")]
    NotInit {
        /// The pid.
        pid: u32,
        /// What is wrong with it.
        why: String,
    },
    /// A process cannot be shown to belong to a container.
    #[error("process {pid} cannot be shown to belong to container {id}: {why}")]
    NotProved {
        /// The process.
        pid: u32,
        /// The container.
        id: String,
        /// What was found.
        why: &'static str,
    },
    /// This process cannot determine which processes are alive.
    #[error(transparent)]
    TimeNamespace(#[from] TimeNamespaceError),
    /// A system call failed, or the bpffs could not be created.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The init has exited or cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The container's cgroup cannot be found or checked.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A map for the container is not where it was pinned.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// The facts that have to be gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeededFacts {
    /// The network namespace's provenance: a program attaches to it, or program types that attach to interfaces are
    /// delegated.
    pub network: bool,
    /// Its interfaces and its cookie: a program attaches to it.
    pub interfaces: bool,
    /// Who owns the user namespace: a token is requested.
    pub userns: bool,
    /// The cgroup: a program attaches to it, or reads its id.
    pub cgroup: bool,
    /// Whether the container sees cgroups of other containers.
    pub cgroup_mounts: bool,
    /// Its root directory: a program attaches to a file in it.
    pub root: bool,
}

/// The interface to processes, namespaces, cgroups, mounts and time. `LinuxHost` is the real implementation.
pub trait Host {
    /// A handle to a container's init, held so that its pid cannot be reused for another process.
    type Init;

    /// This process.
    fn me(&self) -> ProcessIdentity;

    /// Seconds since 1970.
    fn now(&self) -> u64;

    /// Seconds since boot, suspended time included.
    fn boottime(&self) -> u64;

    /// True if this very process still runs; a zombie does not. An error means that it cannot be determined.
    fn is_alive(&self, process: &ProcessIdentity) -> Result<bool, HostError>;

    /// Opens the container's init and verifies that it is one.
    fn open_init(&self, container: &Container) -> Result<Self::Init, HostError>;

    /// Opens a process that is claimed to be a container's.
    fn hold(&self, pid: Pid) -> Result<Self::Init, HostError>;

    /// Kills a process, once its cgroup has shown that it belongs to this container.
    fn kill(&self, init: &Self::Init, id: &ContainerId, cgroups_path: &str) -> Result<(), HostError>;

    /// The process behind the handle.
    fn identity(&self, init: &Self::Init) -> ProcessIdentity;

    /// The uid that the runtime runs as.
    fn runtime_user(&self) -> u32;

    /// True if the init is in another user namespace than this process, and its root is not ours.
    fn has_user_namespace(&self, init: &Self::Init) -> bool;

    /// The facts about the container that the plan needs.
    fn facts(&self, init: &mut Self::Init, container: &Container, need: NeededFacts) -> Result<Facts, HostError>;

    /// The places that links need; those for which `facts` was called.
    fn places<'a>(&self, init: &'a Self::Init) -> Places<'a>;

    /// Creates the bpffs, mounts it into the container, pins the maps in it and verifies the delegation. `directory`
    /// contains the owner's pins. On error nothing is left mounted.
    fn mount_bpffs(
        &self,
        init: &Self::Init,
        container: &Container,
        directory: &std::path::Path,
        bpffs: &PlannedBpffs,
    ) -> Result<(), HostError>;
}
