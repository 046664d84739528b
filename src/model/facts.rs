//! What was found out about a running container before planning.

use std::path::PathBuf;

use crate::model::attach_point::Interface;
use crate::model::ids::ProcessIdentity;

/// One namespace of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceFact {
    /// The inode of its file in nsfs, which user space and BPF programs know it by.
    pub inode: u64,
    /// True where it is the hook's own, so that the container shares it with the host.
    pub shared_with_host: bool,
}

/// The container's cgroup in the v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupFact {
    /// A cgroup that holds this container's processes alone.
    Own {
        /// Below the cgroup2 mount.
        path: PathBuf,
        /// The directory's inode.
        id: u64,
    },
    /// The root cgroup, or none at all in the v2 hierarchy.
    Root,
    /// A cgroup that also holds others: the pids that do not belong to the container.
    Shared {
        /// Below the cgroup2 mount.
        path: PathBuf,
        /// One of the foreign processes.
        other: u32,
    },
    /// Not the cgroup that `linux.cgroupsPath` names.
    Elsewhere {
        /// Below the cgroup2 mount.
        path: PathBuf,
        /// What the configuration names.
        expected: String,
    },
}

/// How the container came to its network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsFact {
    /// Made for this container.
    Own,
    /// Made for its sandbox, which other containers of the pod share.
    Sandbox {
        /// The sandbox, where the engine says.
        sandbox: Option<String>,
        /// The sandbox's own process, where it has one.
        pause: Option<ProcessIdentity>,
    },
    /// The host's.
    Host,
    /// One that a process outside this container lives in.
    Foreign {
        /// One of those processes.
        other: u32,
    },
}

/// Whose the container's user namespace is, which is whose a BPF token in it is: the kernel gives the rights of a token to
/// every process of its user namespace that has the capabilities (kernel/bpf/token.c, `bpf_token_capable`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsernsFact {
    /// The host's.
    Host,
    /// One that maps the host's root user or group, an identity map among them: its root is the host's, with all of its files.
    HostRoot,
    /// Made for this container.
    Own,
    /// Made for its pod, of which the NRI plugin has every container's capabilities checked.
    CheckedPod,
    /// One that other containers are in, or may be.
    Shared {
        /// How that is known.
        why: &'static str,
    },
}

/// What was found out about the running container before planning.
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
    /// Whose the user namespace is; [`UsernsFact::Host`] where no token is asked for.
    pub userns: UsernsFact,
    /// The cgroup namespace.
    pub cgroup_ns: NamespaceFact,
    /// How the container came to its network namespace.
    pub netns: NetnsFact,
    /// The network namespace's cookie (SO_NETNS_COOKIE).
    pub netns_cookie: u64,
    /// Its interfaces; empty where no program asks for one.
    pub interfaces: Vec<Interface>,
    /// The cgroup; None where nothing asks for it.
    pub cgroup: Option<CgroupFact>,
    /// A mount point in the container that shows other cgroups than its own.
    pub wide_cgroup_mount: Option<PathBuf>,
    /// The init's pid in the host's pid namespace.
    pub init: u32,
    /// CPUs that per-CPU maps are made for.
    pub cpus: u64,
}

impl Facts {
    /// The id of the container's own cgroup; 0 where it has none.
    pub fn own_cgroup_id(&self) -> u64 {
        match &self.cgroup {
            Some(CgroupFact::Own { id, .. }) => *id,
            _ => 0,
        }
    }
}
