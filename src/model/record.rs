//! What the store keeps: who owns which objects, and how far it got.

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

/// Who owns programs, links and maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Owner {
    /// One container of one runtime user.
    Container {
        /// The id that the runtime gave it.
        id: ContainerId,
        /// Its bundle, which tells apart containers of the same id under different runtime roots.
        bundle: PathBuf,
        /// The uid that the runtime runs as.
        runtime_user: u32,
    },
    /// A pod's network namespace; containers hold references to it.
    Netns {
        /// The kernel's cookie of the namespace, unique within a boot (SO_NETNS_COOKIE).
        cookie: u64,
        /// The sandbox it belongs to, where the engine says.
        sandbox: Option<String>,
    },
    /// What a person loaded by hand.
    Host {
        /// `--application`.
        application: Option<String>,
        /// What belongs to the load.
        #[serde(default)]
        loaded: Box<LoadMetadata>,
    },
}

/// How far an owner got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Recorded, not yet complete: every pin it may have made is named.
    Pending,
    /// Complete.
    Ready,
    /// Being undone.
    Releasing,
    /// Refused or undone after a failure: nothing is left but the reason.
    Failed,
}

/// The process that works on a record; nobody else touches a Pending or Releasing owner while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The process.
    pub process: ProcessIdentity,
    /// Seconds since boot (CLOCK_BOOTTIME) at which it gives up by itself.
    pub deadline: u64,
}

/// One owner with everything that it has in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRecord {
    /// The record's number, which names its pin directory.
    pub no: OwnerNo,
    /// Who it is.
    pub owner: Owner,
    /// How far it got.
    pub phase: Phase,
    /// Who works on it, or worked on it last.
    pub actor: Actor,
    /// When it was made: seconds since 1970.
    pub created: u64,
    /// When it last changed: seconds since 1970.
    pub changed: u64,
    /// The container's init; None for other owners.
    pub init: Option<ProcessIdentity>,
    /// Digest over the request, to tell a repeated createRuntime from another one.
    pub request: Option<Digest>,
    /// What made the container.
    pub engine: Option<Engine>,
    /// The container's place in Kubernetes, where the engine says.
    pub workload: Option<Workload>,
    /// The container's cgroup, where a program sits on it.
    pub cgroup: Option<CgroupRecord>,
    /// Programs, in the order in which they were loaded.
    pub programs: Vec<ProgramRecord>,
    /// Maps of those programs.
    pub maps: Vec<MapRecord>,
    /// Links of those programs.
    pub links: Vec<LinkRecord>,
    /// The bpffs that was mounted into the container.
    pub bpffs: Option<BpffsRecord>,
    /// The images that the programs came from.
    pub images: Vec<ImageRecord>,
    /// For a container: the network namespaces whose programs it holds.
    pub holds: Vec<OwnerNo>,
    /// For a network namespace: the containers that hold it.
    pub holders: Vec<OwnerNo>,
    /// For a pod's network namespace: what keeps it while no container holds it; None until a container has started with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<Keeper>,
    /// Why it failed, in one sentence.
    pub failure: Option<String>,
    /// A Failed one whose container runs: it was started without us. It goes with its init.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missed: bool,
    /// The end of the verifier's log, where it was the verifier that refused: several lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier_log: Option<String>,
    /// What release could not undo yet, one sentence each.
    pub leftovers: Vec<String>,
}

impl OwnerRecord {
    /// A record of an owner that has nothing yet. `created` is in seconds since 1970, and the last change is the same.
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

/// By what is seen that a pod lives, so that what its network namespace owns outlives the restart of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeper {
    /// The sandbox's own process.
    Process(ProcessIdentity),
    /// The sandbox has none, as with CRI-O: the interfaces that its links are on, which go with the namespace.
    Interfaces,
}

/// A container's place in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Workload {
    /// The namespace.
    pub namespace: Option<String>,
    /// The pod.
    pub pod: Option<String>,
    /// The container's name in the pod.
    pub container: Option<String>,
}

/// A cgroup that programs sit on.
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
    /// How far it reaches: with which capabilities it was loaded.
    pub scope: Scope,
    /// The kernel function or LSM hook that it was loaded for; None for kinds that are told when they are attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Which of the owner's images it came from: index into `images`.
    pub image: usize,
    /// The kernel's id; None while Pending, and in a Ready record while it alone is unloaded.
    pub id: Option<u32>,
}

/// A map of a loaded program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRecord {
    /// Its pin.
    pub pin: PinName,
    /// The name in the object.
    pub name: String,
    /// Which of the owner's images it came from.
    pub image: usize,
    /// The kernel's id; None while Pending.
    pub id: Option<u32>,
    /// Where and how the container sees it.
    pub shown: Option<ShownMap>,
    /// True where user space must not write it (BPF_MAP_FREEZE): a container, for a pod's network namespace one of its pod, is shown
    /// it read-only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
}

/// A map in a container's bpffs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownMap {
    /// The file's name below the bpffs.
    pub file_name: String,
    /// What the container may do with it.
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
    /// Its place among others on one interface; None where nothing was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The network namespace of the interface; None for links that are nowhere in one, and in old records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<NetnsRecord>,
    /// What a person gave to find it by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The kernel's id; None while Pending, and in a Ready record while it alone is made or removed.
    pub id: Option<u32>,
}

impl LinkRecord {
    /// Notes the mode in which an XDP program runs.
    pub fn runs_in(&mut self, mode: Option<XdpMode>) {
        if let (AttachPoint::Xdp { mode: noted, .. }, Some(mode)) = (&mut self.at, mode) {
            *noted = Some(mode);
        }
    }
}

/// A bpffs in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BpffsRecord {
    /// Where in the container's root.
    pub path: PathBuf,
    /// What it delegates; None for a private one.
    pub delegation: Option<Delegation>,
}

/// An image that programs came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// As it was asked for, normalised and spelled out.
    pub reference: String,
    /// What it resolved to.
    pub digest: Digest,
    /// The object that was loaded.
    pub object: Digest,
    /// The image rule that allowed it.
    pub rule: String,
    /// What that rule found.
    pub verdict: ImageVerdict,
}

/// The init that a record names which does not decode, so that what its container has stays as long as it lives. Found by its text,
/// whatever is wrong elsewhere; a quote within a string of the record is written `\"`, so that no string can pretend to be it.
pub fn init_of_damaged(record: &[u8]) -> Option<ProcessIdentity> {
    const KEY: &[u8] = b"\"init\":{";
    let begin = record.windows(KEY.len()).position(|part| part == KEY)? + KEY.len() - 1;
    let rest = record.get(begin..)?;
    let end = rest.iter().position(|byte| *byte == b'}')?;
    serde_json::from_slice(rest.get(..=end)?).ok()
}

/// The container whose record this is, where it is JSON of another schema that [`OwnerRecord`] does not take: `poststop` knows a
/// container by its id alone.
pub fn container_of_damaged(record: &[u8]) -> Option<ContainerId> {
    let record: serde_json::Value = serde_json::from_slice(record).ok()?;
    record.get("owner")?.get("id")?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_init_of_a_damaged_record_is_what_its_text_says() {
        let cases: [(&str, Option<(u32, u64)>); 8] = [
            (r#"{"no":1,"owner":{"id":"a"},"init":{"pid":7,"start_time":99},"request":null}"#, Some((7, 99))),
            // Whatever is wrong before or behind it.
            ("{\"no\":\u{1},,\"init\":{\"pid\":7,\"start_time\":99},\"requ", Some((7, 99))),
            // A string is no key.
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
