//! A container's annotations under our prefix, parsed into a [`Request`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::attach_point::{CgroupAttach, Direction, ProgramKind, TracepointName, XdpMode};
use crate::model::bytecode::PullPolicy;
use crate::model::delegation::DelegationRequest;
use crate::model::reference::Reference;

/// The prefix of every annotation of ours.
pub const PREFIX: &str = "hook.bpfman.io/";

/// What one container asks for. A request grants nothing; only policy does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The programs to load and attach.
    pub programs: ProgramsRequest,
    /// Values for variables of the objects.
    pub globals: Vec<GlobalRequest>,
    /// Maps of the loaded programs that are to appear in the container's bpffs.
    pub maps: Vec<MapRequest>,
    /// When to ask the registry; None leaves it to policy.
    pub pull_policy: Option<PullPolicy>,
    /// The bpffs that the container gets.
    pub bpffs: BpffsRequest,
    /// What happens when the request cannot be fulfilled.
    pub on_failure: OnFailure,
}

/// Which programs a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramsRequest {
    /// Neither `image` nor `programs`.
    None,
    /// `image` alone: every program of the image, attached as its ELF section says.
    All {
        /// The image.
        from: Reference,
    },
    /// `programs`, in the order they were written; at least one.
    Listed(Vec<ProgramRequest>),
}

/// One entry of `programs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramRequest {
    /// Where the object is: `from=`, else `image`.
    pub from: Reference,
    /// The function in the object.
    pub function: String,
    /// Kind and place.
    pub attach: AttachRequest,
}

/// The place that an entry asks for; what it leaves out comes from the ELF section or is a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachRequest {
    /// `xdp:FUNCTION [iface=] [mode=]`
    Xdp {
        /// `iface=`, default `eth0`.
        iface: InterfaceSelector,
        /// `mode=`; None leaves it to the driver.
        mode: Option<XdpMode>,
    },
    /// `tcx:FUNCTION [iface=] [direction=]`
    Tcx {
        /// `iface=`, default `eth0`.
        iface: InterfaceSelector,
        /// `direction=`; None takes the section's.
        direction: Option<Direction>,
    },
    /// `cgroup_*:FUNCTION [attach=]`, `sock_ops:FUNCTION`
    Cgroup {
        /// The kind that was written.
        kind: ProgramKind,
        /// `attach=`; None takes the section's.
        attach: Option<CgroupAttach>,
    },
    /// `tracepoint:FUNCTION[:category/name]`
    Tracepoint {
        /// TARGET; None takes the section's.
        target: Option<TracepointName>,
    },
    /// `raw_tracepoint:FUNCTION[:name]`
    RawTracepoint {
        /// TARGET; None takes the section's.
        target: Option<String>,
    },
}

impl AttachRequest {
    /// The kind of program that was written.
    pub fn kind(&self) -> ProgramKind {
        match self {
            Self::Xdp { .. } => ProgramKind::Xdp,
            Self::Tcx { .. } => ProgramKind::Tcx,
            Self::Cgroup { kind, .. } => *kind,
            Self::Tracepoint { .. } => ProgramKind::Tracepoint,
            Self::RawTracepoint { .. } => ProgramKind::RawTracepoint,
        }
    }
}

/// `iface=`: one interface by name, or all that are there at start but `lo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceSelector {
    /// An interface name, checked: 1 to 15 bytes without blanks, slash and colon.
    Named(String),
    /// `*`
    All,
}

/// One entry of `globals`: the value is typed by the object's BTF, later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalRequest {
    /// The variable; never begins with `bpfman_`.
    pub name: String,
    /// The value as it was written.
    pub value: GlobalValue,
}

/// A value in `globals`, by how it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GlobalValue {
    /// A word that may be an integer, a boolean or a string, by the variable's type: `10`, `0x1f`, `-3`, `true`, `eth0`.
    Word(String),
    /// A quoted word: a string.
    Text(String),
    /// `[1 2 3]`
    Array(Vec<String>),
    /// `hex:00ff`
    Bytes(Vec<u8>),
}

/// One entry of `maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapRequest {
    /// The map's name in the object.
    pub name: String,
    /// `:ro` (the default) or `:rw`.
    pub access: MapAccess,
    /// `as=`, default the map's name with dots as underscores.
    pub file_name: String,
}

/// What the container may do with a map that is shown to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MapAccess {
    /// The map is frozen: nobody writes it from user space any more.
    #[serde(rename = "ro")]
    ReadOnly,
    /// Reading and writing.
    #[serde(rename = "rw")]
    ReadWrite,
}

/// The bpffs that a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BpffsRequest {
    /// None.
    None,
    /// A bpffs of its own without delegation.
    Private {
        /// Where in the container's root: `/sys/fs/bpf` or a path beneath `/run` or `/mnt`, normal.
        path: PathBuf,
    },
    /// A bpffs with delegation.
    Token {
        /// As above.
        path: PathBuf,
        /// What is to be delegated.
        delegation: DelegationRequest,
    },
}

/// What a failed request does to its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The container does not start.
    #[default]
    Stop,
    /// The container starts; the failure is recorded and shown.
    Continue,
}
