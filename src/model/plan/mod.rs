//! The complete, checked plan of what is done for one container, or for a load without a container.
//!
//! Only [`make`] creates a [`Plan`]; [`manual()`] plans a load without a container. Both are pure functions. They find
//! every mistake that a request can make about an object or a container, before anything is requested from the kernel.

mod attach;
mod error;
mod globals;
mod make;
mod manual;

pub use crate::model::plan::manual::{ManualInputs, SharedMaps, manual};
pub use attach::{foreign_network, no_own_cgroup};
pub use error::PlanError;
pub use make::{make, sized};

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use crate::model::annotations::{MapAccess, Request};
use crate::model::attach_point::{AttachPoint, NetnsRecord, Order, ProgramKind, Scope};
use crate::model::bytecode::Bytecode;
use crate::model::delegation::Delegation;
use crate::model::facts::Facts;
use crate::model::ids::{ContainerId, PinName};
use crate::model::object::ObjectFacts;
use crate::model::policy::ContainerLimits;
use crate::model::program_signing::KernelSigning;
use crate::model::reach::GuardedContainer;
use crate::model::record::{ImageRecord, Keeper};

/// Everything that a plan is based on.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The container's id, for `bpfman_container_id`.
    pub id: &'a ContainerId,
    /// Its request.
    pub request: &'a Request,
    /// The facts about it.
    pub facts: &'a Facts,
    /// The objects that the request names, each once.
    pub objects: &'a [ObjectInput],
    /// The delegation that the policy allows; None if the request needs no token.
    pub delegation: Option<Delegation>,
    /// True if the guard of tokens is in force.
    pub guarded: bool,
    /// True if the container rule allows host scope; the image rule must allow it too.
    pub host_scope: bool,
    /// Limits for one container.
    pub limits: ContainerLimits,
    /// `process.user` of config.json: uid and gid as the container sees them.
    pub user: (u32, u32),
    /// True if the engine configures the network after createRuntime.
    pub late_network: bool,
    /// Why the container sees cgroups other than its own, if it does.
    pub foreign_cgroups: Option<String>,
}

/// One object that a request names.
#[derive(Debug)]
pub struct ObjectInput {
    /// Its bytes and their source.
    pub bytecode: Bytecode,
    /// Its declarations.
    pub facts: ObjectFacts,
    /// True if the image rule that allowed it has `scope = "host"`.
    pub host_scope: bool,
    /// How the signatures of its programs are used.
    pub signing: KernelSigning,
}

/// One object to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedObject {
    /// Its source.
    pub image: ImageRecord,
    /// The bytes, ELF.
    pub bytes: Vec<u8>,
    /// The capabilities it is loaded with: container scope drops CAP_PERFMON and CAP_SYS_ADMIN.
    pub scope: Scope,
    /// The programs to load, in order; other programs of the object are omitted.
    pub programs: Vec<PlannedProgram>,
    /// Every map of the object that these programs or the request need, data sections included.
    pub maps: Vec<PlannedMap>,
    /// Values for variables in `.rodata` and `.data`: the name, and exactly as many bytes as the variable has.
    pub globals: Vec<(String, Vec<u8>)>,
    /// True if the object has CO-RE relocations.
    pub core: bool,
    /// How the signatures of its programs are used.
    pub signing: KernelSigning,
}

/// One program to load and pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedProgram {
    /// The function in the object.
    pub function: String,
    /// Its kind.
    pub kind: ProgramKind,
    /// `expected_attach_type` of BPF_PROG_LOAD, `enum bpf_attach_type`.
    pub expected_attach_type: u32,
    /// The kernel function (fentry, fexit) or LSM hook that it is loaded for.
    pub target: Option<String>,
    /// Its pin.
    pub pin: PinName,
}

/// One map to create and pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedMap {
    /// The name in the object.
    pub name: String,
    /// Its pin.
    pub pin: PinName,
    /// True if user space must not write to it after loading (BPF_MAP_FREEZE).
    pub freeze: bool,
    /// The pin of another owner's map that is used instead; None for a map of its own.
    pub reuse: Option<PathBuf>,
    /// True if the map of the same object that the pod's network namespace owns is used instead. `reuse` is set once
    /// that owner is known.
    pub from_pod: bool,
    /// True if it is also pinned under its own name, for programs that look for it there.
    pub named: bool,
    /// Its entries by the request, instead of those that the object declares.
    pub entries: Option<u32>,
    /// True if the request shows it in the container.
    pub shown: bool,
}

impl PlannedMap {
    /// True if the request is about this map, so that it must be created even if no program uses it.
    pub fn is_asked(&self) -> bool {
        self.shown || self.entries.is_some() || self.freeze || self.reuse.is_some() || self.from_pod
    }
}

/// One link to create and pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLink {
    /// The pin of the program.
    pub program: PinName,
    /// The program's function, for messages.
    pub function: String,
    /// Where it attaches.
    pub at: AttachPoint,
    /// The link's own pin.
    pub pin: PinName,
    /// Its order among other programs on the interface; None if not specified.
    pub order: Option<Order>,
    /// The network namespace of the interface.
    pub netns: Option<NetnsRecord>,
}

/// A bpffs to mount into the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedBpffs {
    /// The mount point in the container's root: absolute, normalised.
    pub path: PathBuf,
    /// Its delegation; None for a private bpffs.
    pub delegation: Option<Delegation>,
    /// How the guard binds its token; None without a guard, or if the container has no cgroup of its own.
    pub guarded: Option<GuardedContainer>,
    /// Maps to pin in it: our pin, the name of the file, the access.
    pub maps: Vec<(PinName, String, MapAccess)>,
    /// The owner of these files in the container's user namespace: uid and gid as the container sees them.
    pub user: (u32, u32),
}

/// What is created for one owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnerPlan {
    /// Objects to load.
    pub objects: Vec<PlannedObject>,
    /// Links to create afterwards, in order.
    pub links: Vec<PlannedLink>,
}

/// Everything that is done for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The part that the container owns.
    pub container: OwnerPlan,
    /// The part that the pod's network namespace owns, if the container is in a pod.
    pub netns: Option<OwnerPlan>,
    /// What keeps that owner alive while no container of the pod runs; None leaves it to the containers.
    pub keeper: Option<Keeper>,
    /// The bpffs.
    pub bpffs: Option<PlannedBpffs>,
}
