//! What a person or a client asks for by hand, without a container, and the answers: shared by the command line and the gRPC service.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::annotations::GlobalValue;
use crate::model::attach_point::{Direction, Order, ProgramKind, TracepointName, UserProbe};
use crate::model::bytecode::PullPolicy;
use crate::model::credentials::Credential;
use crate::model::ids::OwnerNo;
use crate::model::policy::{ContainerLimits, StoreLimits};
use crate::model::reference::Reference;

/// One request, under the limits of whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManualRequest {
    /// `--root` of the process that asks.
    pub root: PathBuf,
    /// What the caller may do.
    pub bounds: CallerRights,
    /// What is asked.
    pub task: ManualTask,
}

/// What a caller may do, as it was judged before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerRights {
    /// Who asks, for the record.
    pub caller: String,
    /// True where programs may reach the host.
    pub host_scope: bool,
    /// True where files need not lie in places that only root can write: root asks, and decides for itself.
    pub any_file: bool,
    /// True where only what this caller loaded may be changed.
    pub own_only: bool,
    /// Names of the image rules that may be used; None for all.
    pub images: Option<Vec<String>>,
    /// How much all that this caller loads may be; None for root, whom nothing binds.
    pub limits: Option<ContainerLimits>,
    /// How much of the record store it may fill; None for root.
    pub store: Option<StoreLimits>,
}

/// What is asked.
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
    /// Brings an image into the cache.
    Pull(ImageSource),
}

/// Programs to load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadTask {
    /// Where the object is.
    pub source: ObjectSource,
    /// Which of its programs.
    pub programs: Vec<ProgramToLoad>,
    /// Values of variables.
    pub globals: BTreeMap<String, GlobalValue>,
    /// What the caller wants to find them by.
    pub metadata: BTreeMap<String, String>,
    /// The program whose maps are to stand in place of the object's own.
    pub map_owner: Option<u32>,
    /// Where to attach them at once.
    pub attach: Vec<AttachNew>,
}

/// A program that is attached when it is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachNew {
    /// Which of the programs of the load, by its place among them.
    pub program: usize,
    /// Where.
    pub place: AttachPlace,
}

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectSource {
    /// A file of this host.
    File(PathBuf),
    /// An image.
    Image(ImageSource),
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSource {
    /// Where it is.
    pub reference: Reference,
    /// When the registry is asked.
    pub pull: PullPolicy,
    /// What is shown to the registry for this request alone; None for what the host has.
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
    /// Where.
    pub place: AttachPlace,
    /// What the caller wants to find the link by.
    pub metadata: BTreeMap<String, String>,
}

/// Where to attach: names, which are looked up when it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachPlace {
    /// On an interface.
    Interface {
        /// xdp, tcx or tc.
        kind: ProgramKind,
        /// The interface's name.
        iface: String,
        /// The side; None for xdp.
        direction: Option<Direction>,
        /// Its place among others.
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
        /// At its return, whatever the program's section says.
        ret: bool,
    },
    /// At a place in a file.
    Uprobe {
        /// The place.
        probe: UserProbe,
        /// At the return, whatever the program's section says.
        ret: bool,
    },
    /// Where it was loaded for: fentry, fexit.
    Trampoline(ProgramKind),
}

/// Which programs to list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProgramFilter {
    /// `enum bpf_prog_type`.
    pub program_type: Option<u32>,
    /// True for ours alone.
    pub ours_only: bool,
    /// All of these metadata.
    pub metadata: BTreeMap<String, String>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManualReply {
    /// To load and list.
    Programs(Vec<ShownProgram>),
    /// To get.
    Program(Box<ShownProgram>),
    /// To attach: the link's kernel id.
    Attached {
        /// Its kernel id.
        link: u32,
    },
    /// To everything else.
    Done,
    /// It was not done.
    Failed(Failure),
}

/// One program as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownProgram {
    /// What the kernel says.
    pub kernel: KernelProgram,
    /// What the store says; None for programs that are not ours.
    pub ours: Option<OurProgram>,
}

/// What the kernel says of a program.
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
    /// The kernel's digest, hexadecimal.
    pub tag: String,
    /// Whether its licence lets it call every helper.
    pub gpl_compatible: bool,
    /// Its maps.
    pub map_ids: Vec<u32>,
    /// Its BTF.
    pub btf_id: u32,
    /// Bytes of its instructions.
    pub bytes_xlated: u32,
    /// Bytes of its machine code.
    pub bytes_jited: u32,
    /// Bytes of memory.
    pub bytes_memlock: u32,
    /// Instructions that the verifier went through.
    pub verified_insns: u32,
}

/// What the store says of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OurProgram {
    /// The function in the object.
    pub function: String,
    /// Where the object came from.
    pub reference: Option<Reference>,
    /// When its registry was to be asked.
    pub pull: Option<PullPolicy>,
    /// Kernel ids of its links.
    pub links: Vec<u32>,
    /// The values that were set.
    pub globals: BTreeMap<String, Vec<u8>>,
    /// Where its maps are pinned by their names.
    pub map_pin_path: PathBuf,
    /// The program whose maps it was given.
    pub map_owner: Option<u32>,
    /// Kernel ids of the programs that have these maps, itself among them.
    pub map_used_by: Vec<u32>,
    /// What the caller gave.
    pub metadata: BTreeMap<String, String>,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What sort of reason.
    pub code: FailureCode,
    /// The sentence, the same that the command line prints.
    pub message: String,
}

/// Sorts of reasons; gRPC has a code for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The request is wrong, whatever the state.
    InvalidArgument,
    /// There is no such program, link, interface or file.
    NotFound,
    /// Something in the state of the host or the kernel is in the way.
    FailedPrecondition,
    /// Policy says no.
    PermissionDenied,
    /// Too much.
    ResourceExhausted,
    /// It took too long.
    DeadlineExceeded,
    /// It may work later.
    Unavailable,
    /// The rest.
    Internal,
}

/// What the store keeps of a load by hand, beside the record's own fields.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoadMetadata {
    /// Who asked.
    pub caller: String,
    /// Where the object came from.
    pub reference: Option<Reference>,
    /// When its registry was to be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// The values that were set.
    pub globals: BTreeMap<String, Vec<u8>>,
    /// What the caller gave.
    pub metadata: BTreeMap<String, String>,
    /// Whose maps stand in place of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<MapShares>,
    /// Bytes that its own maps may take.
    #[serde(default)]
    pub map_memory: u64,
    /// True where limits bound who asked: not for root.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_client: bool,
}

/// Maps of another load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapShares {
    /// The program that was named, by its kernel id.
    pub program: u32,
    /// The owner that made them first, dead or alive: whoever has the same has the same maps.
    pub set: OwnerNo,
}

/// The key under which bpfman's clients name the application.
pub const APPLICATION: &str = "bpfman.io/application";
