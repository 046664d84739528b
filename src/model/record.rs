//! The records of the store: which owner has which objects, and in which phase it is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::annotations::MapAccess;
use crate::model::attach_point::{AttachPoint, NetnsRecord, Order, ProgramKind, Scope, XdpMode};
use crate::model::bytecode::ImageVerdict;
use crate::model::delegation::Delegation;
use crate::model::ids::{ContainerId, Digest, OwnerNo, PinName, ProcessIdentity};
use crate::model::manual::LoadMetadata;
use crate::model::policy::Engine;

/// The owner of programs, links and maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Owner {
    /// One container of one runtime user.
    Container {
        /// The id that the runtime gave it.
        id: ContainerId,
        /// Its bundle, which distinguishes containers with the same id under different runtime roots.
        bundle: PathBuf,
        /// The uid that the runtime runs as.
        runtime_user: u32,
    },
    /// A pod's network namespace; containers hold references to it.
    Netns {
        /// The kernel's cookie of the namespace, unique within a boot (SO_NETNS_COOKIE).
        cookie: u64,
        /// The sandbox that it belongs to, if the engine states it.
        sandbox: Option<String>,
    },
    /// Programs that an administrator or client loaded without a container.
    Host {
        /// `--application`.
        application: Option<String>,
        /// The metadata of the load.
        #[serde(default)]
        loaded: Box<LoadMetadata>,
    },
}

/// The phase of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Recorded but not complete: every pin that it may have created is listed.
    Pending,
    /// Complete.
    Ready,
    /// Being undone.
    Releasing,
    /// Refused, or undone after a failure: only the reason is left.
    Failed,
}

/// The process that works on a record. While it lives, no other process changes an owner that is Pending or Releasing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The process.
    pub process: ProcessIdentity,
    /// Seconds since boot (CLOCK_BOOTTIME) at which it gives up.
    pub deadline: u64,
}

/// One owner with everything that it has in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRecord {
    /// The record's number, which names its pin directory.
    pub no: OwnerNo,
    /// The owner.
    pub owner: Owner,
    /// Its phase.
    pub phase: Phase,
    /// The process that works on it, or did so last.
    pub actor: Actor,
    /// Creation time: seconds since 1970.
    pub created: u64,
    /// Time of the last change: seconds since 1970.
    pub changed: u64,
    /// The container's init; None for other owners.
    pub init: Option<ProcessIdentity>,
    /// Digest of the request, which tells whether a createRuntime is a repetition.
    pub request: Option<Digest>,
    /// The container's engine.
    pub engine: Option<Engine>,
    /// The container's Kubernetes workload, if the engine states it.
    pub workload: Option<Workload>,
    /// The container's cgroup, if a program is attached to it.
    pub cgroup: Option<CgroupRecord>,
    /// Programs, in the order of their loading.
    pub programs: Vec<ProgramRecord>,
    /// Maps of those programs.
    pub maps: Vec<MapRecord>,
    /// Links of those programs.
    pub links: Vec<LinkRecord>,
    /// The bpffs that was mounted into the container.
    pub bpffs: Option<BpffsRecord>,
    /// The images that the programs came from.
    pub images: Vec<ImageRecord>,
    /// For a container: the network namespaces whose programs it keeps alive.
    pub holds: Vec<OwnerNo>,
    /// For a network namespace: the containers that keep it alive.
    pub holders: Vec<OwnerNo>,
    /// For a pod's network namespace: what keeps it alive while no container holds it; None until a container has
    /// started with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<Keeper>,
    /// Why it failed, in one sentence.
    pub failure: Option<String>,
    /// True for a Failed owner whose container runs because it was started without bpfman-hook. The record is removed
    /// when its init ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missed: bool,
    /// The end of the verifier's log, if the verifier refused a program: several lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier_log: Option<String>,
    /// What could not be released yet, one sentence each.
    pub leftovers: Vec<String>,
}

impl OwnerRecord {
    /// An empty record for an owner. `created` is in seconds since 1970; the time of the last change is the same.
    pub fn new(no: OwnerNo, owner: Owner, phase: Phase, actor: Actor, created: u64) -> Self {
        Self {
            no,
            owner,
            phase,
            actor,
            created,
            changed: created,
            init: None,
            request: None,
            engine: None,
            workload: None,
            cgroup: None,
            programs: Vec::new(),
            maps: Vec::new(),
            links: Vec::new(),
            bpffs: None,
            images: Vec::new(),
            holds: Vec::new(),
            holders: Vec::new(),
            keeper: None,
            failure: None,
            missed: false,
            verifier_log: None,
            leftovers: Vec::new(),
        }
    }
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

/// A loaded program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramRecord {
    /// Its pin.
    pub pin: PinName,
    /// The function in the object.
    pub function: String,
    /// Its kind.
    pub kind: ProgramKind,
    /// Its scope: with which capabilities it was loaded.
    pub scope: Scope,
    /// The kernel function or LSM hook that it was loaded for; None for kinds that get it when they are attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The image that it came from: index into the owner's `images`.
    pub image: usize,
    /// The kernel's id; None while Pending, and in a Ready record while only this program is being unloaded.
    pub id: Option<u32>,
}

/// A map of a loaded program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRecord {
    /// Its pin.
    pub pin: PinName,
    /// The name in the object.
    pub name: String,
    /// The image that it came from: index into the owner's `images`.
    pub image: usize,
    /// The kernel's id; None while Pending.
    pub id: Option<u32>,
    /// How the container sees it.
    pub shown: Option<ShownMap>,
    /// True if user space must not write to it (BPF_MAP_FREEZE), because it is shown read-only to a container (for a
    /// pod's network namespace: a container of its pod).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
}

/// A map in a container's bpffs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownMap {
    /// The file's name below the bpffs.
    pub file_name: String,
    /// The container's access to it.
    pub access: MapAccess,
}

/// An attached program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// Its pin.
    pub pin: PinName,
    /// The pin of its program.
    pub program: PinName,
    /// Where it attaches.
    pub at: AttachPoint,
    /// Its order among other programs on the interface; None if not specified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The network namespace of the interface; None for links without one, and in old records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<NetnsRecord>,
    /// Metadata of the caller for finding the link.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The kernel's id; None while Pending, and in a Ready record while only this link is being created or removed.
    pub id: Option<u32>,
}

impl LinkRecord {
    /// Records the mode in which an XDP program runs.
    pub fn runs_in(&mut self, mode: Option<XdpMode>) {
        if let (AttachPoint::Xdp { mode: noted, .. }, Some(mode)) = (&mut self.at, mode) {
            *noted = Some(mode);
        }
    }
}

/// A bpffs in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BpffsRecord {
    /// The mount point in the container's root.
    pub path: PathBuf,
    /// Its delegation; None for a private bpffs.
    pub delegation: Option<Delegation>,
}

/// An image that programs came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The requested reference, normalised.
    pub reference: String,
    /// The digest to which it was resolved.
    pub digest: Digest,
    /// The object that was loaded.
    pub object: Digest,
    /// The image rule that allowed it.
    pub rule: String,
    /// The result of that rule.
    pub verdict: ImageVerdict,
}

/// The init in a record that cannot be decoded, so that its container keeps what it has while it lives. It is found by
/// its text, whatever is wrong elsewhere. A quote within a string of the record is written `\"`, so no string can
/// imitate it.
pub fn init_of_damaged(record: &[u8]) -> Option<ProcessIdentity> {
    const KEY: &[u8] = b"\"init\":{";
    let begin = record.windows(KEY.len()).position(|part| part == KEY)? + KEY.len() - 1;
    let rest = record.get(begin..)?;
    let end = rest.iter().position(|byte| *byte == b'}')?;
    serde_json::from_slice(rest.get(..=end)?).ok()
}

/// The container id in a record that is valid JSON but does not match [`OwnerRecord`]: `poststop` knows a container
/// only by its id.
pub fn container_of_damaged(record: &[u8]) -> Option<ContainerId> {
    let record: serde_json::Value = serde_json::from_slice(record).ok()?;
    record.get("owner")?.get("id")?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_init_of_a_damaged_record_is_found_by_its_text() {
        let cases: [(&str, Option<(u32, u64)>); 8] = [
            (r#"{"no":1,"owner":{"id":"a"},"init":{"pid":7,"start_time":99},"request":null}"#, Some((7, 99))),
            // Errors before or after it do not matter.
            ("{\"no\":\u{1},,\"init\":{\"pid\":7,\"start_time\":99},\"requ", Some((7, 99))),
            // A string is not a key.
            (r#"{"bundle":"\"init\":{\"pid\":8,\"start_time\":1}","init":{"pid":7,"start_time":99}}"#, Some((7, 99))),
            (r#"{"no":1,"init":null}"#, None),
            (r#"{"init":{"pid":0,"start_time":99}}"#, None),
            (r#"{"init":{"pid":7,"start_"#, None),
            (r#"{"init":{"pid":7,"start_tXme":99}}"#, None),
            ("", None),
        ];
        for (text, expected) in cases {
            let found = init_of_damaged(text.as_bytes()).map(|init| (init.pid.get(), init.start_time));
            assert_eq!(found, expected, "{text}");
        }
    }
}
