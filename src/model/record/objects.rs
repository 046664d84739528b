//! The objects of an owner: programs, maps and links, with their states, and the images that they came from.
//!
//! An object is in a record before it is in the kernel, and stays in the record until it is gone from the kernel.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::annotations::MapAccess;
use crate::model::attach_point::{AttachPoint, NetnsRecord, Order, ProgramKind, Scope, XdpMode};
use crate::model::bytecode::ImageVerdict;
use crate::model::ids::{Digest, PinName};

/// A program.
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
    /// Its state.
    pub state: ProgramState,
}

/// The state of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramState {
    /// It is being loaded.
    Loading,
    /// It is loaded; the kernel's id.
    Loaded(u32),
    /// It is being unloaded, while other programs of its owner stay; the kernel's id.
    Unloading(u32),
}

impl ProgramRecord {
    /// The kernel's id of a loaded program; None while it is being loaded or unloaded.
    pub fn id(&self) -> Option<u32> {
        match self.state {
            ProgramState::Loaded(id) => Some(id),
            ProgramState::Loading | ProgramState::Unloading(_) => None,
        }
    }
}

impl ProgramState {
    /// True while a process loads or unloads the program.
    pub fn is_unfinished(self) -> bool {
        match self {
            Self::Loading | Self::Unloading(_) => true,
            Self::Loaded(_) => false,
        }
    }
}

/// A map of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRecord {
    /// Its pin.
    pub pin: PinName,
    /// The name in the object.
    pub name: String,
    /// The image that it came from: index into the owner's `images`.
    pub image: usize,
    /// Its state.
    pub state: MapState,
    /// How the container sees it.
    pub shown: Option<ShownMap>,
    /// True if user space must not write to it (BPF_MAP_FREEZE), because it is shown read-only to a container (for a
    /// pod's network namespace: a container of its pod).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
}

/// The state of a map. It ends with its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MapState {
    /// It is being created.
    Creating,
    /// It exists; the kernel's id.
    Created(u32),
}

impl MapRecord {
    /// The kernel's id; None while it is being created.
    pub fn id(&self) -> Option<u32> {
        match self.state {
            MapState::Created(id) => Some(id),
            MapState::Creating => None,
        }
    }
}

/// A map in a container's bpffs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownMap {
    /// The file's name below the bpffs.
    pub file_name: String,
    /// The container's access to it.
    pub access: MapAccess,
}

/// A link: a program and where it attaches.
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
    /// The network namespace of the interface; None for links without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<NetnsRecord>,
    /// Metadata of the caller for finding the link.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Its state.
    pub state: LinkState,
}

/// The state of a link. The kernel gives an id to every link except a filter of the traffic control layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Its program is being attached.
    Attaching,
    /// Its program is attached; the kernel's id of the link.
    Attached(Option<u32>),
    /// Its program is being detached, while its owner stays; the kernel's id of the link.
    Detaching(Option<u32>),
}

impl LinkRecord {
    /// The kernel's id of an attached link, if it has one; None while it is being attached or detached.
    pub fn id(&self) -> Option<u32> {
        match self.state {
            LinkState::Attached(id) => id,
            LinkState::Attaching | LinkState::Detaching(_) => None,
        }
    }

    /// Records the mode in which an XDP program runs.
    pub fn runs_in(&mut self, mode: Option<XdpMode>) {
        if let (AttachPoint::Xdp { mode: noted, .. }, Some(mode)) = (&mut self.at, mode) {
            *noted = Some(mode);
        }
    }
}

impl LinkState {
    /// True while a process attaches or detaches the program.
    pub fn is_unfinished(self) -> bool {
        match self {
            Self::Attaching | Self::Detaching(_) => true,
            Self::Attached(_) => false,
        }
    }
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
