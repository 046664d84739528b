//! The records of the store: which owner has which objects, and in which phase it is.

mod objects;
mod owner;
mod stored;

use serde::{Deserialize, Serialize};

use crate::model::ids::{OwnerNo, ProcessIdentity};
pub use objects::{ImageRecord, LinkRecord, LinkState, MapRecord, MapState, ProgramRecord, ProgramState, ShownMap};
pub use owner::{BpffsRecord, CgroupRecord, ContainerOwner, HostOwner, Keeper, NetnsOwner, Owner, Workload};
pub use stored::{container_of_damaged, decode, init_of_damaged};

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

/// The process that works on a record. While it lives, no other process changes an owner that is Pending or Releasing,
/// or that has an unfinished object.
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
    /// Programs, in the order of their loading.
    pub programs: Vec<ProgramRecord>,
    /// Maps of those programs.
    pub maps: Vec<MapRecord>,
    /// Links of those programs.
    pub links: Vec<LinkRecord>,
    /// The images that the programs came from.
    pub images: Vec<ImageRecord>,
    /// Why it failed, in one sentence.
    pub failure: Option<String>,
    /// The end of the verifier's log, if the verifier refused a program: several lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifier_log: Option<String>,
    /// What could not be released yet, one sentence each.
    pub leftovers: Vec<String>,
}

impl OwnerRecord {
    /// A record of an owner without objects. `created` is in seconds since 1970; the time of the last change is the
    /// same.
    pub fn new(no: OwnerNo, owner: Owner, phase: Phase, actor: Actor, created: u64) -> Self {
        Self {
            no,
            owner,
            phase,
            actor,
            created,
            changed: created,
            programs: Vec::new(),
            maps: Vec::new(),
            links: Vec::new(),
            images: Vec::new(),
            failure: None,
            verifier_log: None,
            leftovers: Vec::new(),
        }
    }

    /// True if the record is Ready and its actor is loading, unloading, attaching or detaching one of its objects, or
    /// died while it did.
    pub fn has_unfinished(&self) -> bool {
        let unfinished = self.links.iter().any(|link| link.state.is_unfinished())
            || self.programs.iter().any(|program| program.state.is_unfinished());
        self.phase == Phase::Ready && unfinished
    }
}
