//! Requests of administrators and clients that do not involve a container, and their replies: shared by the command
//! line and the gRPC service.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::annotations::{GlobalValue, MapSize};
use crate::model::attach_point::{CgroupAttach, Direction, Order, PlaceOptions, ProgramKind, TracepointName, UserProbe};
use crate::model::bytecode::PullPolicy;
use crate::model::credentials::Credential;
use crate::model::ids::OwnerNo;
use crate::model::policy::{ContainerLimits, StoreLimits};
use crate::model::reference::Reference;

/// One request with the rights of its caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManualRequest {
    /// `--root` of the requesting process.
    pub root: PathBuf,
    /// What the caller may do.
    pub bounds: CallerRights,
    /// The task.
    pub task: ManualTask,
}

/// The rights of a caller, as decided beforehand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerRights {
    /// The caller's name, for the record.
    pub caller: String,
    /// True if programs may reach the host.
    pub host_scope: bool,
    /// True if files may be in places that others than root can write: root requests it and decides for itself.
    pub any_file: bool,
    /// True if only programs that this caller loaded may be changed.
    pub own_only: bool,
    /// Names of the usable image rules; None for all.
    pub images: Option<Vec<String>>,
    /// Limits for everything that this caller loads; None for root, to whom no limits apply.
    pub limits: Option<ContainerLimits>,
    /// Limits for its share of the record store; None for root.
    pub store: Option<StoreLimits>,
}

/// The task of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManualTask {
    /// Loads programs of one object.
    Load(LoadTask),
    /// Removes one program with its links.
    Unload {
        /// Its kernel id.
        program: u32,
    },
    /// Attaches one loaded program.
    Attach(Attach),
    /// Removes one link.
    Detach {
        /// Its kernel id.
        link: u32,
    },
    /// Lists programs.
    List(ProgramFilter),
    /// Shows one program.
    Get {
        /// Its kernel id.
        program: u32,
    },
    /// Fetches an image into the cache.
    Pull(ImageSource),
}

/// Programs to load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadTask {
    /// The location of the object.
    pub source: ObjectSource,
    /// The programs of the object to load.
    pub programs: Vec<ProgramToLoad>,
    /// Values of variables.
    pub globals: BTreeMap<String, GlobalValue>,
    /// Sizes of maps, instead of those that the object declares.
    pub map_sizes: Vec<MapSize>,
    /// The caller's metadata for finding the programs.
    pub metadata: BTreeMap<String, String>,
    /// The program whose maps are used instead of the object's own.
    pub map_owner: Option<u32>,
    /// Attach points for programs that are attached right after loading.
    pub attach: Vec<AttachNew>,
}

/// A program that is attached right after loading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachNew {
    /// The index of the program among the programs of the load.
    pub program: usize,
    /// Where it attaches.
    pub place: AttachPlace,
}

/// The location of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectSource {
    /// A file on this host.
    File(PathBuf),
    /// An image.
    Image(ImageSource),
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSource {
    /// Its location.
    pub reference: Reference,
    /// When the registry is contacted.
    pub pull: PullPolicy,
    /// The credential for this request only; None uses those of the host.
    pub login: Option<Credential>,
}

/// One program to load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramToLoad {
    /// The function in the object.
    pub function: String,
    /// Its kind.
    pub kind: ProgramKind,
    /// The kernel function, for fentry and fexit.
    pub target: Option<String>,
}

/// A program to attach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Its kernel id.
    pub program: u32,
    /// Where it attaches.
    pub place: AttachPlace,
    /// The caller's metadata for finding the link.
    pub metadata: BTreeMap<String, String>,
}

/// Where to attach: names, which are resolved when the program is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachPlace {
    /// On an interface.
    Interface {
        /// xdp, tcx or tc.
        kind: ProgramKind,
        /// The interface's name.
        iface: String,
        /// The direction; None for xdp.
        direction: Option<Direction>,
        /// The order among other programs.
        order: Order,
        /// The file that names the network namespace; None for the host's.
        netns: Option<PathBuf>,
    },
    /// At a tracepoint.
    Tracepoint(TracepointName),
    /// At a kernel function.
    Kprobe {
        /// The function.
        function: String,
        /// Bytes from its start.
        offset: u64,
        /// True: at its return, whatever the program's section says.
        ret: bool,
    },
    /// At a place in a file.
    Uprobe {
        /// The place.
        probe: UserProbe,
        /// True: at the return, whatever the program's section says.
        ret: bool,
    },
    /// The function that it was loaded for: fentry, fexit.
    Trampoline(ProgramKind),
    /// On a cgroup.
    Cgroup {
        /// The attach type, for which the program must have been loaded.
        attach: CgroupAttach,
        /// The directory of the cgroup.
        cgroup: PathBuf,
    },
    /// A place that a type, a target and options tell.
    Told {
        /// The kind of program.
        kind: ProgramKind,
        /// The target; None for what the program was loaded for.
        target: Option<String>,
        /// The options.
        options: PlaceOptions,
        /// The file that names the network namespace; None for the host's.
        netns: Option<PathBuf>,
    },
}

/// The programs to list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProgramFilter {
    /// `enum bpf_prog_type`.
    pub program_type: Option<u32>,
    /// True for only those loaded by bpfman-hook.
    pub ours_only: bool,
    /// Metadata that must all match.
    pub metadata: BTreeMap<String, String>,
}

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManualReply {
    /// Reply to load and list.
    Programs(Vec<ShownProgram>),
    /// Reply to get.
    Program(Box<ShownProgram>),
    /// Reply to attach: the link's kernel id.
    Attached {
        /// Its kernel id.
        link: u32,
    },
    /// Reply to all other tasks.
    Done,
    /// The task failed.
    Failed(Failure),
}

/// One program in a reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownProgram {
    /// The kernel's information.
    pub kernel: KernelProgram,
    /// The store's information; None for programs that bpfman-hook did not load.
    pub ours: Option<OurProgram>,
}

/// The kernel's information about a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelProgram {
    /// Its id.
    pub id: u32,
    /// At most 15 characters.
    pub name: String,
    /// `enum bpf_prog_type`.
    pub program_type: u32,
    /// When it was loaded, RFC 3339.
    pub loaded_at: String,
    /// The kernel's hash of the program, hexadecimal.
    pub tag: String,
    /// True if its licence allows it to call every helper.
    pub gpl_compatible: bool,
    /// Its maps.
    pub map_ids: Vec<u32>,
    /// Its BTF.
    pub btf_id: u32,
    /// Bytes of its instructions.
    pub bytes_xlated: u32,
    /// Bytes of JIT-compiled code.
    pub bytes_jited: u32,
    /// Bytes of locked memory.
    pub bytes_memlock: u32,
    /// Instructions that the verifier processed.
    pub verified_insns: u32,
}

/// The store's information about a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OurProgram {
    /// The function in the object.
    pub function: String,
    /// The location of the object.
    pub reference: Option<Reference>,
    /// When its registry was to be contacted.
    pub pull: Option<PullPolicy>,
    /// Kernel ids of its links.
    pub links: Vec<u32>,
    /// The values set for its variables.
    pub globals: BTreeMap<String, Vec<u8>>,
    /// The directory where its maps are pinned by name.
    pub map_pin_path: PathBuf,
    /// The program whose maps it uses.
    pub map_owner: Option<u32>,
    /// Kernel ids of the programs that use these maps, including itself.
    pub map_used_by: Vec<u32>,
    /// The caller's metadata.
    pub metadata: BTreeMap<String, String>,
}

/// The failure of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of failure.
    pub code: FailureCode,
    /// The message, identical to that of the command line.
    pub message: String,
}

/// Kinds of failures; each has its gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The request is invalid, regardless of the state of the host.
    InvalidArgument,
    /// The program, link, interface or file does not exist.
    NotFound,
    /// The state of the host or the kernel prevents it.
    FailedPrecondition,
    /// The policy does not allow it.
    PermissionDenied,
    /// A limit is exceeded.
    ResourceExhausted,
    /// It took too long.
    DeadlineExceeded,
    /// It may succeed later.
    Unavailable,
    /// Any other reason.
    Internal,
}

/// The data that the store keeps of a load without a container, besides the record's own fields.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoadMetadata {
    /// The caller.
    pub caller: String,
    /// The location of the object.
    pub reference: Option<Reference>,
    /// When its registry was to be contacted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// The values set for its variables.
    pub globals: BTreeMap<String, Vec<u8>>,
    /// The caller's metadata.
    pub metadata: BTreeMap<String, String>,
    /// The load whose maps are used instead of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<MapShares>,
    /// The maximum size of its own maps in bytes.
    #[serde(default)]
    pub map_memory: u64,
    /// True if the caller is bound by limits; false for root.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_client: bool,
}

/// Maps of another load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapShares {
    /// The program named in the request, by its kernel id.
    pub program: u32,
    /// The owner that created the maps, alive or not: all loads with the same owner share the same maps.
    pub set: OwnerNo,
}

/// The metadata key with which bpfman's clients name the application.
pub const APPLICATION: &str = "bpfman.io/application";
