//! The real host: `/proc`, namespaces, cgroups, mounts.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Instant;

use crate::kernel::{KernelError, Places};
use crate::lifecycle::host::{Host, HostError, NeededFacts};
use crate::model::config::{NamespaceKind, NamespaceSource};
use crate::model::container::{Container, PodCheck};
use crate::model::facts::{CgroupFact, Facts, NetnsFact, UsernsFact};
use crate::model::ids::{ContainerId, Pid, ProcessIdentity};
use crate::model::plan::PlannedBpffs;
use crate::model::podman::PodCgroup;
use crate::model::policy::Engine;
use crate::sys::bpffs::{BpffsSpec, MapFile};
use crate::sys::pid::{self, Namespace, Namespaces, Process};
use crate::sys::{self, cgroup, clock, netns};

/// [`Host`] on Linux.
#[derive(Debug)]
pub struct LinuxHost {
    me: ProcessIdentity,
    until: Instant,
}

/// A container's init, held by pidfd, and the places in it that links need.
///
/// Dropping it closes the descriptors, so that nothing of the container is kept alive.
#[derive(Debug)]
pub struct Init {
    process: Process,
    namespaces: Namespaces,
    /// The namespaces of this process.
    own: Namespaces,
    /// True if it is in another user namespace than this process, and that namespace maps our root.
    maps_our_root: bool,
    netns: Option<OwnedFd>,
    cgroup: Option<OwnedFd>,
    root: Option<OwnedFd>,
}

impl LinuxHost {
    /// Reads the identity of this process once. `until` is the deadline for children in a container's
    /// namespaces.
    ///
    /// # Errors
    /// If `/proc` is not readable, or shows times of another time namespace than the host's.
    pub fn new(until: Instant) -> Result<Self, HostError> {
        pid::require_initial_time_namespace()?;
        Ok(Self { me: pid::own_identity()?, until })
    }

    /// Who owns the container's user namespace.
    ///
    /// A namespace that the configuration has the runtime create, and that is not ours, belongs to this container: it
    /// was created in this start, and no other process has had its name. Looking for other processes in it would take
    /// 1.8 µs for each process of the node, and would miss processes that join it later.
    fn provenance_of_userns(&self, init: &Init, container: &Container) -> UsernsFact {
        if init.namespaces.user == init.own.user {
            return UsernsFact::Host;
        }
        if init.maps_our_root {
            return UsernsFact::HostRoot;
        }
        let shared = |why| UsernsFact::Shared { why };
        match (container.config.namespace(NamespaceKind::User), container.pod_check) {
            (NamespaceSource::New, _) => UsernsFact::Own,
            (NamespaceSource::Joined(_), Some(PodCheck::Every)) => UsernsFact::CheckedPod,
            (NamespaceSource::Joined(_), Some(PodCheck::This)) => {
                shared("a container that shares the pod's user namespace was started while the NRI plugin did not check it")
            }
            (NamespaceSource::Joined(_), None) if container.sandbox.is_some() => {
                shared("the container shares its pod's user namespace")
            }
            (NamespaceSource::Joined(_), None) => shared("the container joins an existing user namespace"),
            (NamespaceSource::Runtime, _) => shared("config.json does not say how the container came to its user namespace"),
        }
    }

    /// Where the container's network namespace comes from.
    fn provenance(&self, init: &Init, container: &Container) -> Result<NetnsFact, HostError> {
        if init.namespaces.network == init.own.network {
            return Ok(NetnsFact::Host);
        }
        if let NamespaceSource::New = container.config.namespace(NamespaceKind::Network) {
            return Ok(NetnsFact::Own);
        }
        // A path: an engine created it for the container or its sandbox, or it belongs to something else.
        if matches!(container.engine, Engine::Containerd | Engine::CriO) {
            let pause = match container.config.namespace(NamespaceKind::Network) {
                NamespaceSource::Joined(path) => process_of(path, Some(init.namespaces.network)).map(|p| p.identity()),
                _ => None,
            };
            return Ok(NetnsFact::Sandbox { sandbox: container.sandbox.clone(), pause });
        }
        if let (Engine::Podman, Some(fact)) = (container.engine, self.podman_pod(init, container)?) {
            return Ok(fact);
        }
        let other = pid::processes_in_netns(init.namespaces.network, |pid| pid == init.process.pid())?;
        Ok(other.map_or(NetnsFact::Own, |other| NetnsFact::Foreign { other: other.get() }))
    }

    /// The network of a podman pod, if the container has one: the infra container is its sandbox.
    ///
    /// The evidence: podman put the container into a pod's cgroup and gave it the network namespace of a process in the
    /// same cgroup, whose container is the one that podman's annotation names as the sandbox. A process from outside
    /// the pod makes it a foreign namespace. An image can overwrite the annotation, in which case its namespace counts
    /// as foreign: the image does not know the id that it would have to name.
    fn podman_pod(&self, init: &Init, container: &Container) -> Result<Option<NetnsFact>, HostError> {
        let cgroups_path = container.config.cgroups_path.as_deref().unwrap_or_default();
        let (Some(pod), NamespaceSource::Joined(path)) =
            (PodCgroup::of(cgroups_path, container.id.as_str()), container.config.namespace(NamespaceKind::Network))
        else {
            return Ok(None);
        };
        let netns = init.namespaces.network;
        let Some(infra) = process_of(path, Some(netns)) else { return Ok(None) };
        let cgroup = infra.cgroup_text()?;
        let Some(sandbox) = pod.member(&cgroup).filter(|id| container.sandbox.as_deref() == Some(*id)) else {
            return Ok(None);
        };
        let in_pod = |pid| pid::open_process(pid).and_then(|p| p.cgroup_text()).is_ok_and(|text| pod.member(&text).is_some());
        let foreign = pid::processes_in_netns(netns, |pid| pid == init.process.pid() || in_pod(pid))?;
        Ok(Some(match foreign {
            Some(other) => NetnsFact::Foreign { other: other.get() },
            None => NetnsFact::Sandbox { sandbox: Some(sandbox.to_owned()), pause: Some(infra.identity()) },
        }))
    }
}

/// The process behind `/proc/<pid>/ns/net`; with `netns`, only if it is in the network namespace with this inode.
pub(super) fn process_of(path: &Path, netns: Option<u64>) -> Option<Process> {
    let number = path.strip_prefix("/proc").ok()?.to_str()?.strip_suffix("/ns/net")?;
    let process = pid::open_process(Pid::new(number.parse().ok()?).ok()?).ok()?;
    let there = match netns {
        Some(netns) => process.namespaces().ok()?.network == netns,
        None => true,
    };
    there.then_some(process)
}

impl Host for LinuxHost {
    type Init = Init;

    fn me(&self) -> ProcessIdentity {
        self.me
    }

    fn now(&self) -> u64 {
        clock::unix_seconds()
    }

    fn boottime(&self) -> u64 {
        clock::boot_seconds()
    }

    fn is_alive(&self, process: &ProcessIdentity) -> Result<bool, HostError> {
        Ok(pid::is_alive(process)?)
    }

    fn open_init(&self, container: &Container) -> Result<Init, HostError> {
        let pid = container.pid.ok_or(HostError::NoPid)?;
        let process = pid::open_process(pid)?;
        let (namespaces, own) = (process.namespaces()?, pid::own_namespaces()?);
        let not_init = |why: &str| HostError::NotInit { pid: pid.get(), why: why.to_owned() };
        if namespaces.mount == own.mount {
            return Err(not_init("it is in bpfman-hook's mount namespace"));
        }
        let asks = |kind| matches!(container.config.namespace(kind), NamespaceSource::New);
        for (kind, name, namespace) in [
            (NamespaceKind::User, "user", Namespace::User),
            (NamespaceKind::Network, "network", Namespace::Network),
            (NamespaceKind::Pid, "pid", Namespace::Pid),
        ] {
            if asks(kind) && namespaces.inode(namespace) == own.inode(namespace) {
                return Err(not_init(&format!("config.json gives it its own {name} namespace, but it is in bpfman-hook's")));
            }
        }
        let maps_our_root = namespaces.user != own.user && process.maps_our_root()?;
        Ok(Init { process, namespaces, own, maps_our_root, netns: None, cgroup: None, root: None })
    }

    fn hold(&self, pid: Pid) -> Result<Init, HostError> {
        let process = pid::open_process(pid)?;
        let (namespaces, own) = (process.namespaces()?, pid::own_namespaces()?);
        Ok(Init { process, namespaces, own, maps_our_root: false, netns: None, cgroup: None, root: None })
    }

    fn kill(&self, init: &Init, id: &ContainerId, cgroups_path: &str) -> Result<(), HostError> {
        let unproved = |why| HostError::NotProved { pid: init.process.pid().get(), id: id.to_string(), why };
        if !cgroup::is_of_container(&init.process, id.as_str(), cgroups_path)? {
            return Err(unproved("it is not in that container's cgroup"));
        }
        if init.namespaces.mount == init.own.mount {
            return Err(unproved("it is in bpfman-hook's mount namespace"));
        }
        Ok(init.process.pidfd().kill()?)
    }

    fn identity(&self, init: &Init) -> ProcessIdentity {
        init.process.identity()
    }

    fn runtime_user(&self) -> u32 {
        pid::own_uid()
    }

    fn has_user_namespace(&self, init: &Init) -> bool {
        init.namespaces.user != init.own.user && !init.maps_our_root
    }

    fn facts(&self, init: &mut Init, container: &Container, need: NeededFacts) -> Result<Facts, HostError> {
        let fact = |kind| init.namespaces.fact(kind, &init.own);
        let mut facts = Facts {
            net: fact(Namespace::Network),
            mnt: fact(Namespace::Mount),
            pid: fact(Namespace::Pid),
            user: fact(Namespace::User),
            cgroup_ns: fact(Namespace::Cgroup),
            netns: NetnsFact::Own,
            netns_cookie: 0,
            interfaces: Vec::new(),
            cgroup: None,
            userns: UsernsFact::Host,
            wide_cgroup_mount: None,
            init: init.process.pid().get(),
            cpus: 1,
        };
        if need.network {
            facts.netns = self.provenance(init, container)?;
        }
        if need.interfaces {
            let netns = init.process.open_namespace(Namespace::Network)?;
            (facts.netns_cookie, facts.interfaces) = netns::survey(netns.as_fd())?;
            init.netns = Some(netns);
            facts.cpus = sys::cpus::possible();
        }
        if need.userns {
            facts.userns = self.provenance_of_userns(init, container);
        }
        if need.cgroup {
            let found = cgroup::of_container(&init.process, container.config.cgroups_path.as_deref())?;
            init.cgroup = found.directory;
            if let (true, CgroupFact::Own { path, .. }) = (need.cgroup_mounts, &found.fact) {
                facts.wide_cgroup_mount = cgroup::wide_mount(&init.process.mountinfo()?, &container.rootfs, path)?;
            }
            facts.cgroup = Some(found.fact);
        }
        if need.root {
            // Before pivot_root, the container's root is below the runtime's, and its volumes are already mounted
            // there.
            init.root = Some(init.process.open_directory(&container.rootfs)?);
        }
        Ok(facts)
    }

    fn places<'a>(&self, init: &'a Init) -> Places<'a> {
        Places {
            netns: init.netns.as_ref().map(|fd| fd.as_fd()),
            cgroup: init.cgroup.as_ref().map(|fd| fd.as_fd()),
            root: init.root.as_ref().map(|fd| fd.as_fd()),
            init: Some(init.process.pid().get()),
        }
    }

    fn mount_bpffs(&self, init: &Init, container: &Container, directory: &Path, bpffs: &PlannedBpffs) -> Result<(), HostError> {
        let user_ns = init.process.open_namespace(Namespace::User)?;
        let mount_ns = init.process.open_namespace(Namespace::Mount)?;
        let root = init.process.open_directory(&container.rootfs)?;
        let maps = bpffs
            .maps
            .iter()
            .map(|(pin, name, _)| Ok((crate::kernel::pins::open_map(directory, pin)?, name.as_str())))
            .collect::<Result<Vec<_>, KernelError>>()?;
        let files: Vec<_> = maps.iter().map(|(map, name)| MapFile { map: map.as_fd(), name }).collect();
        let spec = BpffsSpec {
            user_ns: user_ns.as_fd(),
            mount_ns: mount_ns.as_fd(),
            root: root.as_fd(),
            target: &bpffs.path,
            delegation: bpffs.delegation.unwrap_or_default(),
            maps: &files,
            owner: bpffs.user,
        };
        sys::bpffs::mount(&spec, self.until)?;
        Ok(())
    }
}
