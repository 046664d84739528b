//! Facts about a running container, collected before planning.

use std::path::PathBuf;

use crate::model::attach_point::Interface;
use crate::model::ids::ProcessIdentity;

/// One namespace of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceFact {
    /// The inode of its file in nsfs, by which user space and BPF programs identify it.
    pub inode: u64,
    /// True if it is the hook's own namespace, which means that the container shares it with the host.
    pub shared_with_host: bool,
}

/// The container's cgroup in the v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupFact {
    /// A cgroup that holds only processes of this container.
    Own {
        /// Below the cgroup2 mount.
        path: PathBuf,
        /// The directory's inode.
        id: u64,
    },
    /// The root cgroup, or no cgroup in the v2 hierarchy.
    Root,
    /// A cgroup that also holds processes that do not belong to the container.
    Shared {
        /// Below the cgroup2 mount.
        path: PathBuf,
        /// One of the foreign processes.
        other: u32,
    },
    /// Another cgroup than `linux.cgroupsPath` names.
    Elsewhere {
        /// Below the cgroup2 mount.
        path: PathBuf,
        /// The cgroup that the configuration names.
        expected: String,
    },
}

/// The origin of the container's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsFact {
    /// Created for this container.
    Own,
    /// Created for its sandbox and shared with the other containers of the pod.
    Sandbox {
        /// The id of the sandbox, if the engine states it.
        sandbox: Option<String>,
        /// The sandbox's own process, if it has one.
        pause: Option<ProcessIdentity>,
    },
    /// The host's.
    Host,
    /// One that contains a process from outside this container.
    Foreign {
        /// One of those processes.
        other: u32,
    },
}

/// The owner of the container's user namespace. The kernel gives the rights of a token to every process in its user
/// namespace that has the capabilities (kernel/bpf/token.c, `bpf_token_capable`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsernsFact {
    /// The host's.
    Host,
    /// One that maps the host's user or group 0 (an identity map, for example): its root is the host's, with access to
    /// all of its files.
    HostRoot,
    /// Created for this container.
    Own,
    /// Created for its pod; the NRI plugin has the capabilities of all containers of the pod checked.
    CheckedPod,
    /// One that other containers use, or may use.
    Shared {
        /// How that was determined.
        why: &'static str,
    },
}

/// Facts about the running container, collected before planning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The network namespace.
    pub net: NamespaceFact,
    /// The mount namespace.
    pub mnt: NamespaceFact,
    /// The pid namespace.
    pub pid: NamespaceFact,
    /// The user namespace.
    pub user: NamespaceFact,
    /// The owner of the user namespace; [`UsernsFact::Host`] if no token is requested.
    pub userns: UsernsFact,
    /// The cgroup namespace.
    pub cgroup_ns: NamespaceFact,
    /// The origin of the network namespace.
    pub netns: NetnsFact,
    /// The network namespace's cookie (SO_NETNS_COOKIE).
    pub netns_cookie: u64,
    /// Its interfaces; empty if no program needs one.
    pub interfaces: Vec<Interface>,
    /// The cgroup; None if nothing needs it.
    pub cgroup: Option<CgroupFact>,
    /// A mount point in the container that shows cgroups other than its own.
    pub wide_cgroup_mount: Option<PathBuf>,
    /// The init's pid in the host's pid namespace.
    pub init: u32,
    /// Number of CPUs for which per-CPU maps are created.
    pub cpus: u64,
}

impl Facts {
    /// The id of the container's own cgroup; 0 if it has none.
    pub fn own_cgroup_id(&self) -> u64 {
        match &self.cgroup {
            Some(CgroupFact::Own { id, .. }) => *id,
            _ => 0,
        }
    }
}
