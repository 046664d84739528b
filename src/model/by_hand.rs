//! What a person or a client of the service asks for by hand, and what comes back: one request, one reply.
//!
//! The command line and the service make a [`Request`]; `lifecycle::by_hand` carries it out and answers with a [`Reply`] or a
//! [`Failure`]. All of it is JSON, since the service hands each request to a process of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::attach_point::{AttachPoint, Direction, Order, ProgramKind, Scope, TracepointName, XdpMode};
use crate::model::bytecode::PullPolicy;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Load programs; they are not attached.
    Load(Load),
    /// Attach one loaded program.
    Attach(Attach),
    /// Detach links.
    Detach {
        /// Kernel ids of links.
        links: Vec<u32>,
        /// Links that are not there are no error.
        ignore_missing: bool,
    },
    /// Unload programs, with their links.
    Unload {
        /// Which.
        which: Which,
        /// Programs that are not there are no error.
        ignore_missing: bool,
    },
    /// List programs.
    List(Filter),
    /// One program.
    Get {
        /// Its kernel id.
        program: u32,
    },
    /// One link.
    GetLink {
        /// Its kernel id.
        link: u32,
    },
    /// Fetch and verify an image.
    Pull(Image),
}

/// Which programs to unload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// By kernel id.
    Programs(Vec<u32>),
    /// All of an application.
    Application(String),
}

/// Where programs come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// An object file of this host: whoever may load by hand vouches for it.
    File {
        /// Absolute.
        path: PathBuf,
    },
    /// A bytecode image, verified as policy says.
    Image(Image),
}

/// An image to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As in the annotation `image`.
    pub reference: String,
    /// When the registry is asked; None leaves it to policy.
    pub pull: Option<PullPolicy>,
    /// `user:password` for this registry, instead of what is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
}

/// One program to load: `TYPE:FUNCTION[:TARGET]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Its kind.
    pub kind: ProgramKind,
    /// The function in the object.
    pub function: String,
    /// The kernel function (fentry, fexit) or the LSM hook that it is loaded for; None takes the section's.
    pub target: Option<String>,
}

/// `load`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Where from.
    pub source: Source,
    /// Which programs; none: all of the object, as their sections say.
    pub programs: Vec<Wanted>,
    /// Values for variables: raw bytes by name.
    #[serde(default)]
    pub globals: BTreeMap<String, GlobalText>,
    /// Labels, for people and clients.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Who they belong to; None is the host.
    pub application: Option<String>,
    /// Kernel id of a program whose maps are used instead of new ones, where the names are the same.
    pub map_owner: Option<u32>,
}

/// A variable's value as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GlobalText {
    /// Hexadecimal bytes in memory order, as in bpfman.
    Bytes(String),
    /// As in the annotation `globals`, typed by the object's BTF.
    Typed(String),
}

/// `attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Kernel id of the program.
    pub program: u32,
    /// Where.
    pub place: Place,
    /// Labels of the link.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// A place as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Place {
    /// XDP.
    Xdp {
        /// The interface's name.
        iface: String,
        /// A file that names the network namespace, as `/run/netns/blue`; None is ours.
        netns: Option<PathBuf>,
        /// None leaves it to the driver.
        mode: Option<XdpMode>,
        /// Its place among others.
        order: Option<Order>,
    },
    /// A classifier, by tcx where the kernel has it.
    Tc {
        /// The interface's name.
        iface: String,
        /// As for XDP.
        netns: Option<PathBuf>,
        /// The side.
        direction: Direction,
        /// Its place among others.
        order: Option<Order>,
    },
    /// A tcx link.
    Tcx {
        /// The interface's name.
        iface: String,
        /// As for XDP.
        netns: Option<PathBuf>,
        /// The side.
        direction: Direction,
        /// Its place among others.
        order: Option<Order>,
    },
    /// A tracepoint.
    Tracepoint {
        /// Which.
        tracepoint: TracepointName,
    },
    /// A kernel function; a return probe where the program was loaded as one.
    Kprobe {
        /// The function.
        function: String,
        /// Bytes from its start.
        offset: u64,
    },
    /// A place in a program or library.
    Uprobe {
        /// A path, or the name of a library.
        target: String,
        /// The function; None where `offset` counts from the start of the file.
        function: Option<String>,
        /// Bytes.
        offset: u64,
        /// One process; None is every one.
        pid: Option<u32>,
        /// The process in whose root the target is looked for.
        container_pid: Option<u32>,
    },
    /// Where it was loaded for: fentry, fexit and LSM programs.
    Trampoline {
        /// Which of the three the client said.
        kind: ProgramKind,
    },
}

/// What `list` shows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filter {
    /// Of this kind only.
    pub kind: Option<ProgramKind>,
    /// Of this application only.
    pub application: Option<String>,
    /// With all of these labels.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Those that bpfman-hook did not load as well.
    #[serde(default)]
    pub all: bool,
    /// True: with links; false: without.
    pub attached: Option<bool>,
    /// Ask the kernel for each program; without it only the records are read.
    #[serde(default)]
    pub kernel: bool,
}

/// A loaded program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The kernel's id.
    pub id: u32,
    /// The function; the kernel's name for programs that are not ours.
    pub name: String,
    /// Its kind; None for programs that are not ours.
    #[serde(rename = "type")]
    pub kind: Option<ProgramKind>,
    /// What we know of it; None for programs that are not ours.
    pub ours: Option<Ours>,
    /// What the kernel says; None where it was not asked.
    pub kernel: Option<KernelProgram>,
}

/// What the store knows of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ours {
    /// The owner in words: `the host`, `application web`, `container 4f…`.
    pub owner: String,
    /// `--application`.
    pub application: Option<String>,
    /// Labels.
    pub metadata: BTreeMap<String, String>,
    /// The image or `file:` reference it came from.
    pub source: String,
    /// What that was, sha256.
    pub digest: String,
    /// With which rights it was loaded.
    pub scope: Scope,
    /// The kernel function or hook that it was loaded for.
    pub target: Option<String>,
    /// Variables that were set: hexadecimal bytes in memory order.
    pub globals: BTreeMap<String, String>,
    /// Kernel id of the program whose maps it was told to use.
    pub map_owner: Option<u32>,
    /// Kernel ids of the other programs that use the maps it was loaded with.
    pub map_used_by: Vec<u32>,
    /// Where its pins are.
    pub pins: PathBuf,
    /// Its links.
    pub links: Vec<Link>,
}

/// What the kernel says about a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelProgram {
    /// At most 15 characters.
    pub name: String,
    /// `enum bpf_prog_type`
    pub program_type: u32,
    /// When it was loaded: seconds since 1970.
    pub loaded_at: u64,
    /// The kernel's digest over the instructions, hexadecimal.
    pub tag: String,
    /// Whether its licence is compatible with the GPL.
    pub gpl_compatible: bool,
    /// Ids of its maps.
    pub map_ids: Vec<u32>,
    /// Id of its BTF; 0 without.
    pub btf_id: u32,
    /// Bytes of instructions.
    pub bytes_xlated: u32,
    /// Bytes of machine code; 0 where it is interpreted.
    pub bytes_jited: u32,
    /// Bytes of kernel memory, as the kernel estimates.
    pub bytes_memlock: u64,
    /// Instructions that the verifier went through.
    pub verified_insns: u32,
    /// Nanoseconds that it ran; 0 unless statistics are on.
    pub run_time_ns: u64,
    /// How often it ran; 0 unless statistics are on.
    pub run_count: u64,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The kernel's id.
    pub id: u32,
    /// Kernel id of its program.
    pub program: u32,
    /// The program's function.
    pub program_name: String,
    /// Where it attaches.
    pub at: AttachPoint,
    /// Its place among others.
    pub order: Option<Order>,
    /// The file that named the network namespace.
    pub netns: Option<PathBuf>,
    /// Labels.
    pub metadata: BTreeMap<String, String>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The programs that were loaded, in the order in which they were asked for.
    Loaded {
        /// With what the kernel says of them.
        programs: Vec<Program>,
    },
    /// The link that was made.
    Attached {
        /// The link.
        link: Link,
    },
    /// Kernel ids of the links that were removed.
    Detached {
        /// Ids.
        links: Vec<u32>,
    },
    /// Kernel ids of the programs that were unloaded.
    Unloaded {
        /// Ids.
        programs: Vec<u32>,
    },
    /// Programs that fit the filter, by kernel id.
    Listed {
        /// They.
        programs: Vec<Program>,
    },
    /// One program.
    Got {
        /// The program.
        program: Box<Program>,
    },
    /// One link.
    GotLink {
        /// The link.
        link: Link,
    },
    /// An image is in the cache.
    Pulled {
        /// The digest that the reference stands for.
        digest: String,
        /// Programs of the object: function and kind, where its section says one.
        programs: BTreeMap<String, Option<ProgramKind>>,
    },
}

/// The class of a failure, in gRPC's words (google.rpc.Code).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request itself is wrong.
    InvalidArgument,
    /// What it names is not there.
    NotFound,
    /// What it would make is there.
    AlreadyExists,
    /// The host, the kernel or another owner is in the way.
    FailedPrecondition,
    /// Policy or rights do not allow it.
    PermissionDenied,
    /// A limit is reached.
    ResourceExhausted,
    /// The time is over.
    DeadlineExceeded,
    /// Somebody else is at work on it: try again.
    Unavailable,
    /// Our fault, or the kernel's.
    Internal,
}

/// Why a request was not done. Nothing of it is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its class.
    pub code: Code,
    /// The sentence that the command line prints.
    pub message: String,
}

impl Failure {
    /// A failure of this class.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_survive_the_way() {
        let load = Request::Load(Load {
            source: Source::File { path: "/x.o".into() },
            programs: vec![Wanted { kind: ProgramKind::Xdp, function: "pass".into(), target: None }],
            globals: [("rate".to_owned(), GlobalText::Bytes("0a".into()))].into(),
            metadata: BTreeMap::new(),
            application: Some("web".into()),
            map_owner: None,
        });
        let place = Place::Xdp { iface: "lo".into(), netns: None, mode: None, order: None };
        let attach = Request::Attach(Attach { program: 7, place, metadata: BTreeMap::new() });
        for request in [load, attach, Request::Unload { which: Which::Programs(vec![1]), ignore_missing: true }] {
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request, "{text}");
        }
        let failure: Result<Reply, Failure> = Err(Failure::new(Code::NotFound, "program 7 is not one of ours"));
        let text = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Result<Reply, Failure>>(&text).unwrap(), failure);
    }
}
