//! What will be done for one container, or for a person who loads programs by hand, complete and checked.
//!
//! [`make`] is the only way to a [`Plan`], [`by_hand`] to what a person's load becomes. Both are pure, and whatever a request can
//! get wrong about an object or a container is found here, before the kernel is asked for anything.

mod attach;
mod error;
mod globals;
mod make;
mod manual;

pub use crate::model::plan::manual::{ManualInputs, SharedMaps, manual};
pub use error::PlanError;
pub use make::{Inputs, ObjectInput, make};

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use crate::model::annotations::MapAccess;
use crate::model::attach_point::{AttachPoint, NetnsRecord, Order, ProgramKind, Scope};
use crate::model::delegation::Delegation;
use crate::model::ids::PinName;
use crate::model::record::{ImageRecord, Keeper};

/// One object to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedObject {
    /// Where it came from.
    pub image: ImageRecord,
    /// The bytes, ELF.
    pub bytes: Vec<u8>,
    /// With which capabilities it is loaded: container scope drops CAP_PERFMON and CAP_SYS_ADMIN.
    pub scope: Scope,
    /// The programs to load, in order; the object's others are left out.
    pub programs: Vec<PlannedProgram>,
    /// Every map of the object that these programs or the request need, data sections included.
    pub maps: Vec<PlannedMap>,
    /// Values for variables in `.rodata` and `.data`: name and bytes of exactly the variable's size.
    pub globals: Vec<(String, Vec<u8>)>,
    /// True where the object has CO-RE relocations.
    pub core: bool,
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

/// One map to make and pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedMap {
    /// The name in the object.
    pub name: String,
    /// Its pin.
    pub pin: PinName,
    /// True where user space must not write it any more once it is loaded (BPF_MAP_FREEZE).
    pub freeze: bool,
    /// The pin of another owner's map that stands in its place; None for one of its own.
    pub reuse: Option<PathBuf>,
    /// True where the map of the same object that the pod's network namespace owns stands in its place. `reuse` is filled in once that
    /// owner is known.
    pub from_pod: bool,
    /// True where it is pinned under its own name too, for those who look for it by that.
    pub named: bool,
}

/// One link to make and pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLink {
    /// The pin of the program.
    pub program: PinName,
    /// The program's function, for messages.
    pub function: String,
    /// Where.
    pub at: AttachPoint,
    /// The link's own pin.
    pub pin: PinName,
    /// Its place among others on one interface; None where nothing was said.
    pub order: Option<Order>,
    /// The network namespace of the interface.
    pub netns: Option<NetnsRecord>,
}

/// A bpffs to mount into the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedBpffs {
    /// Where in the container's root: absolute, normal.
    pub path: PathBuf,
    /// What it delegates; None for a private one.
    pub delegation: Option<Delegation>,
    /// Maps to pin in it: the pin among ours, the file's name, the access.
    pub maps: Vec<(PinName, String, MapAccess)>,
    /// Owner of those files in the container's user namespace: uid and gid as the container sees them.
    pub user: (u32, u32),
}

/// What one owner gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnerPlan {
    /// Objects to load.
    pub objects: Vec<PlannedObject>,
    /// Links to make afterwards, in order.
    pub links: Vec<PlannedLink>,
}

/// Everything that will be done for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the container itself owns.
    pub container: OwnerPlan,
    /// What the pod's network namespace owns, where the container is in a pod.
    pub netns: Option<OwnerPlan>,
    /// What keeps that owner while no container of the pod runs; None leaves it to the containers.
    pub keeper: Option<Keeper>,
    /// The bpffs.
    pub bpffs: Option<PlannedBpffs>,
}
