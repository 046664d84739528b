//! The kinds of owners, and what only one of them has.

use std::fmt;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::model::delegation::Delegation;
use crate::model::gate::GatedContainer;
use crate::model::ids::{ContainerId, Digest, OwnerNo, ProcessIdentity};
use crate::model::manual::LoadMetadata;
use crate::model::police::PoliceRecord;
use crate::model::policy::{ContainerFacts, Engine, RuleLocation};
use crate::model::proxy::ProxyRecord;
use crate::model::reach::GuardedContainer;

/// The owner of programs, links and maps. Its text names it in messages and tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Owner {
    /// One container of one runtime user.
    Container(ContainerOwner),
    /// A pod's network namespace; containers hold references to it.
    Netns(NetnsOwner),
    /// The host, for programs that an administrator or client loaded without a container.
    Host(HostOwner),
}

/// The tag of an [`Owner`].
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OwnerKind {
    Container,
    Netns,
    Host,
}

/// Reads an owner whose tag comes first, as it is written, in one pass. The derived implementation copies all fields
/// before it looks at the tag, which takes half of the time for reading a record.
impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OwnerVisitor)
    }
}

struct OwnerVisitor;

impl OwnerVisitor {
    fn read<'de, D: Deserializer<'de>>(kind: OwnerKind, fields: D) -> Result<Owner, D::Error> {
        Ok(match kind {
            OwnerKind::Container => Owner::Container(ContainerOwner::deserialize(fields)?),
            OwnerKind::Netns => Owner::Netns(NetnsOwner::deserialize(fields)?),
            OwnerKind::Host => Owner::Host(HostOwner::deserialize(fields)?),
        })
    }
}

impl<'de> Visitor<'de> for OwnerVisitor {
    type Value = Owner;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an owner with a `kind`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Owner, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "kind" && fields.is_empty() {
                let kind = map.next_value()?;
                return Self::read(kind, MapAccessDeserializer::new(map));
            }
            fields.insert(name, map.next_value()?);
        }
        // The tag comes later if the record is of another schema, or was read by way of a `Value`.
        let kind = fields.remove("kind").ok_or_else(|| A::Error::missing_field("kind"))?;
        let kind = OwnerKind::deserialize(kind).map_err(A::Error::custom)?;
        Self::read(kind, Value::Object(fields)).map_err(A::Error::custom)
    }
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerOwner {
    /// The id that the runtime gave it.
    pub id: ContainerId,
    /// Its bundle, which distinguishes containers with the same id under different runtime roots; empty if unknown.
    pub bundle: PathBuf,
    /// The uid that the runtime runs as.
    pub runtime_user: u32,
    /// Its engine.
    pub engine: Engine,
    /// Its Kubernetes workload, as far as the engine states it.
    pub workload: Workload,
    /// Its init; None if it was refused.
    pub init: Option<ProcessIdentity>,
    /// Digest of the request, which tells whether a createRuntime is a repetition; None if it was refused or missed.
    pub request: Option<Digest>,
    /// Its cgroup, if a program is attached to it.
    pub cgroup: Option<CgroupRecord>,
    /// The bpffs that was mounted into it.
    pub bpffs: Option<Box<BpffsRecord>>,
    /// What it was granted through the proxy of bpf(2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Box<ProxyRecord>>,
    /// How its bpf(2) calls are policed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub police: Option<PoliceRecord>,
    /// The container rule that decided about its request; None if it was refused, or recorded by an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted_by: Option<Box<RuleLocation>>,
    /// How the guard binds its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarded: Option<GuardedContainer>,
    /// Its list of executables in the gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gated: Option<Box<GatedContainer>>,
    /// The network namespaces whose programs it keeps alive.
    pub holds: Vec<OwnerNo>,
    /// True for a Failed owner whose container runs because it was started without bpfman-hook. The record is removed
    /// when its init ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missed: bool,
}

/// A pod's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsOwner {
    /// The kernel's cookie of the namespace, unique within a boot (SO_NETNS_COOKIE).
    pub cookie: u64,
    /// The sandbox that it belongs to, if the engine states it.
    pub sandbox: Option<String>,
    /// The engine of the container that attached its programs.
    pub engine: Engine,
    /// The Kubernetes workload of that container.
    pub workload: Workload,
    /// Digest of what that container requested for it. Containers with the same request hold it too.
    pub request: Digest,
    /// The containers that keep it alive.
    pub holders: Vec<OwnerNo>,
    /// What keeps it alive while no container holds it; None until a container has started with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<Keeper>,
}

/// A load without a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostOwner {
    /// `--application`.
    pub application: Option<String>,
    /// The metadata of the load.
    pub loaded: LoadMetadata,
}

/// How to tell that a pod lives, so that what its network namespace owns survives the restart of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeper {
    /// The sandbox's own process.
    Process(ProcessIdentity),
    /// The sandbox has no process, as with CRI-O: the interfaces of its links, which disappear with the namespace.
    Interfaces,
}

/// The identity of a container in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Workload {
    /// The namespace.
    pub namespace: Option<String>,
    /// The pod.
    pub pod: Option<String>,
    /// The container's name in the pod.
    pub container: Option<String>,
}

/// A cgroup to which programs are attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupRecord {
    /// Below the cgroup2 mount, as in /proc/<pid>/cgroup.
    pub path: PathBuf,
    /// The kernel's cgroup id: the directory's inode.
    pub id: u64,
}

/// A bpffs in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BpffsRecord {
    /// The mount point in the container's root.
    pub path: PathBuf,
    /// Its delegation; None for a private bpffs.
    pub delegation: Option<Delegation>,
}

impl ContainerOwner {
    /// A container that has nothing yet.
    pub fn new(id: ContainerId, bundle: PathBuf, runtime_user: u32, engine: Engine, workload: Workload) -> Self {
        Self {
            id,
            bundle,
            runtime_user,
            engine,
            workload,
            init: None,
            request: None,
            cgroup: None,
            bpffs: None,
            proxy: None,
            police: None,
            granted_by: None,
            guarded: None,
            gated: None,
            holds: Vec::new(),
            missed: false,
        }
    }

    /// A container of which only the facts that policy rules match are known.
    pub fn of_facts(id: ContainerId, facts: &ContainerFacts) -> Self {
        let workload =
            Workload { namespace: facts.namespace.clone(), pod: facts.pod.clone(), container: facts.container.clone() };
        Self::new(id, PathBuf::new(), facts.runtime_user, facts.engine, workload)
    }
}

impl Owner {
    /// `container`, `netns` or `host`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Container(_) => "container",
            Self::Netns(_) => "netns",
            Self::Host(_) => "host",
        }
    }

    /// The container's id, the namespace's cookie, or the application, which may be empty.
    pub fn id(&self) -> String {
        match self {
            Self::Container(container) => container.id.to_string(),
            Self::Netns(netns) => netns.cookie.to_string(),
            Self::Host(host) => host.application.clone().unwrap_or_default(),
        }
    }

    /// The container; None for other owners.
    pub fn container(&self) -> Option<&ContainerOwner> {
        if let Self::Container(container) = self { Some(container) } else { None }
    }

    /// A container's init; None for other owners.
    pub fn init(&self) -> Option<ProcessIdentity> {
        self.container()?.init
    }

    /// True for a container that was started without bpfman-hook.
    pub fn is_missed(&self) -> bool {
        self.container().is_some_and(|container| container.missed)
    }

    /// The engine and the workload of a container or a pod; None for the host.
    pub fn workload(&self) -> Option<(Engine, &Workload)> {
        match self {
            Self::Container(container) => Some((container.engine, &container.workload)),
            Self::Netns(netns) => Some((netns.engine, &netns.workload)),
            Self::Host(_) => None,
        }
    }

    /// The network namespaces whose programs a container keeps alive; empty for other owners.
    pub fn holds(&self) -> &[OwnerNo] {
        self.container().map(|container| &container.holds[..]).unwrap_or_default()
    }

    /// The containers that keep a network namespace's programs alive; empty for other owners.
    pub fn holders(&self) -> &[OwnerNo] {
        if let Self::Netns(netns) = self { &netns.holders } else { &[] }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(container) => write!(f, "container {}", container.id),
            Self::Netns(NetnsOwner { cookie, sandbox: Some(sandbox), .. }) => {
                write!(f, "network namespace {cookie} of sandbox {sandbox}")
            }
            Self::Netns(netns) => write!(f, "network namespace {}", netns.cookie),
            Self::Host(HostOwner { application: Some(application), .. }) => write!(f, "application {application}"),
            Self::Host(_) => f.write_str("the host"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_named_by_its_kind_and_id() {
        let netns = |sandbox: Option<&str>| {
            Owner::Netns(NetnsOwner {
                cookie: 9,
                sandbox: sandbox.map(str::to_owned),
                engine: Engine::CriO,
                workload: Workload::default(),
                request: Digest::from_bytes([1; 32]),
                holders: Vec::new(),
                keeper: None,
            })
        };
        let host = |application: Option<&str>| {
            Owner::Host(HostOwner { application: application.map(str::to_owned), loaded: LoadMetadata::default() })
        };
        let web = ContainerOwner::new("web".parse().unwrap(), "/b".into(), 0, Engine::Podman, Workload::default());
        for (owner, name) in [
            (Owner::Container(web), "container web"),
            (netns(Some("box")), "network namespace 9 of sandbox box"),
            (netns(None), "network namespace 9"),
            (host(Some("shop")), "application shop"),
            (host(None), "the host"),
        ] {
            assert_eq!(owner.to_string(), name);
        }
    }
}
