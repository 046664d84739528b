//! Parses the bpfman-hook annotations of a container into a [`Request`].

mod bpffs;
mod keys;
mod lex;
mod programs;
mod strays;
mod variables;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use keys::{AnnotationKey, Annotations, Audience, FoundAnnotation};
pub use keys::{KeyScope, key_words, names_a_container, resembles_ours};
use lex::LexError;
pub use lex::Position;
pub(super) use programs::kernel_place;
pub use programs::program_entries;
pub use variables::{global_value, map_size};

use crate::model::attach_point::{
    CgroupAttach, Direction, Order, PlaceOptions, ProbedProcess, ProgramKind, TracepointName, XdpMode,
};
use crate::model::bytecode::PullPolicy;
use crate::model::delegation::DelegationRequest;
use crate::model::podman::ContainerNames;
use crate::model::reference::Reference;
use crate::model::text::{nearest_hint, quoted};

/// The prefix of every bpfman-hook annotation.
pub const PREFIX: &str = "hook.bpfman.io/";

/// The request of one container. A request grants nothing; only the policy does.
///
/// docs/annotations.md describes the grammar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// The programs to load and attach.
    pub programs: ProgramsRequest,
    /// The scope of the annotation that names the programs, `programs` before `image`: programs that a pod-wide
    /// annotation attaches to the network namespace belong to the pod.
    pub programs_scope: KeyScope,
    /// Values for variables of the objects.
    pub globals: Vec<GlobalRequest>,
    /// Maps of the loaded programs that must appear in the container's bpffs.
    pub maps: Vec<MapRequest>,
    /// When to contact the registry; None leaves it to the policy.
    pub pull_policy: Option<PullPolicy>,
    /// The bpffs that the container gets.
    pub bpffs: BpffsRequest,
    /// What the container may load itself through the proxy of bpf(2); None without `delegate-via=proxy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<DelegationRequest>,
    /// What happens when the request cannot be fulfilled.
    pub on_failure: OnFailure,
    /// `map-size`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map_sizes: Vec<MapSize>,
    /// Names of other annotations that are variables of the objects if `globals` was cut at a comma. Not part of the
    /// request.
    #[serde(skip)]
    pub perhaps_globals: Vec<String>,
}

/// Which programs a request names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum ProgramsRequest {
    /// Neither `image` nor `programs`.
    None,
    /// `image` alone: every program of the image, attached as its ELF section says.
    All {
        /// The image.
        from: Reference,
    },
    /// `programs`, in the order written; at least one.
    Listed(Vec<ProgramRequest>),
}

/// One entry of `programs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProgramRequest {
    /// The object's location: `from=`, otherwise `image`.
    pub from: Reference,
    /// The function in the object.
    pub function: String,
    /// The kind and where to attach.
    pub attach: AttachRequest,
    /// `priority=` and `proceed-on=`; None if neither is written.
    pub order: Option<Order>,
}

/// Where an entry attaches. What it leaves out comes from the ELF section, or is a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
        /// `direction=`; None uses the section's.
        direction: Option<Direction>,
    },
    /// `cgroup_*:FUNCTION [attach=]`, `sock_ops:FUNCTION`
    Cgroup {
        /// The kind of the entry.
        kind: ProgramKind,
        /// `attach=`; None uses the section's.
        attach: Option<CgroupAttach>,
    },
    /// `tracepoint:FUNCTION[:category/name]`
    Tracepoint {
        /// TARGET; None uses the section's.
        target: Option<TracepointName>,
    },
    /// `raw_tracepoint:FUNCTION[:name]`
    RawTracepoint {
        /// TARGET; None uses the section's.
        target: Option<String>,
    },
    /// `tc:FUNCTION [iface=] [direction=]`
    Tc {
        /// `iface=`, default `eth0`.
        iface: InterfaceSelector,
        /// `direction=`; None uses the section's.
        direction: Option<Direction>,
    },
    /// `kprobe:FUNCTION[:function[+offset]]`, `kretprobe:FUNCTION[:function]`
    Kprobe {
        /// The function and the offset in bytes from its start; None uses the section's.
        target: Option<(String, u64)>,
        /// True for `kretprobe`.
        ret: bool,
    },
    /// `fentry:FUNCTION[:function]`, `fexit:…`, `lsm:FUNCTION[:hook]`
    Trampoline {
        /// The kind of the entry.
        kind: ProgramKind,
        /// TARGET; None uses the section's.
        target: Option<String>,
    },
    /// `uprobe:FUNCTION[:path-or-library] [symbol=] [offset=] [pid=]`, `uretprobe:…`
    Uprobe {
        /// TARGET; None uses the section's.
        target: Option<String>,
        /// `symbol=`; None uses the section's, or counts from the start of the file.
        symbol: Option<String>,
        /// `offset=`
        offset: u64,
        /// `pid=`, default `any`.
        process: ProbedProcess,
        /// True for `uretprobe`.
        ret: bool,
    },
    /// `TYPE:FUNCTION[:target] [options]` of the types that need no interface: sk_lookup, netfilter, tp_btf, iter,
    /// kprobe_multi and others.
    Told {
        /// The kind of the entry.
        kind: ProgramKind,
        /// TARGET; None uses the section's.
        target: Option<String>,
        /// The options.
        options: PlaceOptions,
    },
}

impl AttachRequest {
    /// The kind of program of the entry.
    pub fn kind(&self) -> ProgramKind {
        match self {
            Self::Xdp { .. } => ProgramKind::Xdp,
            Self::Tcx { .. } => ProgramKind::Tcx,
            Self::Cgroup { kind, .. } => *kind,
            Self::Tracepoint { .. } => ProgramKind::Tracepoint,
            Self::RawTracepoint { .. } => ProgramKind::RawTracepoint,
            Self::Tc { .. } => ProgramKind::Tc,
            Self::Kprobe { ret: false, .. } => ProgramKind::Kprobe,
            Self::Kprobe { ret: true, .. } => ProgramKind::Kretprobe,
            Self::Trampoline { kind, .. } => *kind,
            Self::Uprobe { ret: false, .. } => ProgramKind::Uprobe,
            Self::Uprobe { ret: true, .. } => ProgramKind::Uretprobe,
            Self::Told { kind, .. } => *kind,
        }
    }
}

/// `iface=`: one interface by name, or all interfaces at the start of the container except `lo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum InterfaceSelector {
    /// An interface name, checked: 1 to 15 bytes without blanks, slashes and colons.
    Named(String),
    /// `*`
    All,
}

/// One entry of `globals`. The value gets its type later, from the object's BTF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GlobalRequest {
    /// The variable; never begins with `bpfman_`.
    pub name: String,
    /// The value as it was written.
    pub value: GlobalValue,
}

/// A value in `globals`, by its syntax.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GlobalValue {
    /// A word that may be an integer, a boolean or a string, depending on the variable's type: `10`, `0x1f`, `-3`,
    /// `true`, `eth0`.
    Word(String),
    /// A quoted word: a string, valid only for `char` arrays.
    Text(String),
    /// `[1 2 3]`
    Array(Vec<String>),
    /// `hex:00ff`
    Bytes(Vec<u8>),
}

/// One entry of `map-size`: the size of a map, instead of what the object declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapSize {
    /// The map's name in the object.
    pub name: String,
    /// Entries, or bytes of a ring buffer.
    pub entries: u32,
}

/// One entry of `maps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MapRequest {
    /// The map's name in the object.
    pub name: String,
    /// `:ro` (the default) or `:rw`.
    pub access: MapAccess,
    /// `as=`, by default the map's name with dots replaced by underscores.
    pub file_name: String,
}

/// Access of the container to a map that is shown to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MapAccess {
    /// The map is frozen: user space can no longer write to it.
    #[serde(rename = "ro")]
    ReadOnly,
    /// Reading and writing.
    #[serde(rename = "rw")]
    ReadWrite,
}

/// The bpffs that a container requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum BpffsRequest {
    /// None.
    None,
    /// Its own bpffs without delegation.
    Private {
        /// The mount point in the container's root: `/sys/fs/bpf` or a path below `/run` or `/mnt`, normalised.
        path: PathBuf,
    },
    /// A bpffs with delegation.
    Token {
        /// As above.
        path: PathBuf,
        /// The requested delegation.
        delegation: DelegationRequest,
    },
}

/// The effect of a failed request on its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The container does not start.
    #[default]
    Stop,
    /// The container starts; the failure is recorded and reported.
    Continue,
}

/// Why a container's annotations are not a valid request. Each of these errors stops the container: `on-failure`
/// applies only to requests that can be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// An unknown bpfman-hook key.
    #[error("annotation {key} is unknown{hint}; known keys: {known}")]
    UnknownKey {
        /// The annotation, quoted.
        key: String,
        /// The nearest known key, or nothing.
        hint: String,
        /// All known keys.
        known: String,
    },
    /// A key for one container of a pod, but the runtime provides no container name to compare it with.
    #[error("annotation {key} names a container, but no container name is known here; write hook.bpfman.io/ before {word}")]
    NoContainerName {
        /// The annotation, quoted.
        key: String,
        /// The part after the slash, quoted.
        word: String,
    },
    /// A key that was probably meant to be ours.
    #[error("annotation {key} is misspelt: write hook.bpfman.io/KEY, or CONTAINER.hook.bpfman.io/KEY")]
    Misspelt {
        /// The annotation, quoted.
        key: String,
    },
    /// The rest of a value behind a comma, which podman turns into an annotation.
    #[error(
        "annotation {key} looks like the rest of a bpfman-hook value that was cut at a comma, as podman does: separate entries by ; and \
         names by : (or leave that annotation out)"
    )]
    CutOff {
        /// The annotation, quoted.
        key: String,
    },
    /// A value of the length to which `generate kube` cuts longer ones.
    #[error(
        "annotation {key} may have been cut: podman's generate kube leaves 63 characters of a value, and its kube play takes no more; \
         shorten it, or use podman run --pod"
    )]
    CutByGenerateKube {
        /// The annotation, quoted.
        key: String,
    },
    /// The part before our domain cannot be a container's name.
    #[error("annotation {key} begins with something that is not a container name: 1 to 63 of a-z 0-9 -")]
    ContainerLabel {
        /// The annotation, quoted.
        key: String,
    },
    /// A value violates the grammar, or contradicts another one.
    #[error("annotation {key}{}: {problem}", ErrorPlace(*.at))]
    Value {
        /// The annotation as written.
        key: String,
        /// The position in the value, if there is one.
        at: Option<Position>,
        /// What is wrong and, if known, what to write.
        problem: String,
    },
}

struct ErrorPlace(Option<Position>);

impl fmt::Display for ErrorPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Position { entry, column }) => write!(f, ", entry {entry}, column {column}"),
            None => Ok(()),
        }
    }
}

impl FoundAnnotation<'_> {
    fn error(&self, fault: LexError) -> RequestError {
        RequestError::Value { key: self.key.to_owned(), at: fault.at, problem: fault.problem }
    }

    /// Parses the value; errors get the key.
    fn parse<T>(&self, parse: impl FnOnce(&str) -> Result<T, LexError>) -> Result<T, RequestError> {
        parse(self.value).map_err(|fault| self.error(fault))
    }

    fn refuse<T>(&self, problem: &str) -> Result<T, RequestError> {
        Err(self.error(LexError::whole(problem)))
    }
}

impl Request {
    /// Parses the annotations that apply to a regular container: its own keys, and the pod's for those that it does not
    /// set itself. None if there is no bpfman-hook annotation; that takes one look at each key and no allocation.
    ///
    /// `container_name` is the name that the engine gives the container in its pod; without one, a key that names a
    /// container is an error.
    pub fn parse(annotations: &BTreeMap<String, String>, container_name: Option<&str>) -> Result<Option<Self>, RequestError> {
        Self::for_audience(annotations, Audience::Regular(container_name))
    }

    /// Parses the annotations that apply to a podman container with these names.
    pub fn parse_podman(annotations: &BTreeMap<String, String>, names: &ContainerNames) -> Result<Option<Self>, RequestError> {
        Self::for_audience(annotations, Audience::Podman(names))
    }

    /// Parses the annotations that apply to an init, ephemeral or sandbox container: only the keys that name it.
    pub fn parse_named(annotations: &BTreeMap<String, String>, container_name: &str) -> Result<Option<Self>, RequestError> {
        Self::for_audience(annotations, Audience::OnlyNamed(container_name))
    }

    fn for_audience(annotations: &BTreeMap<String, String>, audience: Audience<'_>) -> Result<Option<Self>, RequestError> {
        let Some(ours) = Annotations::gather(annotations, audience)? else { return Ok(None) };
        if let Some(key) = annotations.keys().find(|key| strays::is_cut_off(key)) {
            return Err(RequestError::CutOff { key: quoted(key) });
        }
        let mut request = Self::build(&ours)?;
        if !request.globals.is_empty() {
            request.perhaps_globals = annotations.keys().filter(|key| strays::is_variable(key)).cloned().collect();
        }
        Ok(Some(request))
    }

    fn build(ours: &Annotations<'_>) -> Result<Self, RequestError> {
        let image = ours.get(AnnotationKey::Image).map(|found| found.parse(parse_reference)).transpose()?;
        let listed = ours
            .get(AnnotationKey::Programs)
            .map(|found| found.parse(|value| programs::parse(value, image.as_ref())))
            .transpose()?;
        let programs = match (listed, image) {
            (Some(programs), _) => ProgramsRequest::Listed(programs),
            (None, Some(from)) => ProgramsRequest::All { from },
            (None, None) => ProgramsRequest::None,
        };
        let deciding = ours.get(AnnotationKey::Programs).or_else(|| ours.get(AnnotationKey::Image));
        let globals =
            ours.get(AnnotationKey::Globals).map(|found| found.parse(variables::globals)).transpose()?.unwrap_or_default();
        let maps = ours.get(AnnotationKey::Maps).map(|found| found.parse(variables::maps)).transpose()?.unwrap_or_default();
        let map_sizes =
            ours.get(AnnotationKey::MapSize).map(|found| found.parse(variables::map_sizes)).transpose()?.unwrap_or_default();
        for key in [AnnotationKey::Globals, AnnotationKey::Maps, AnnotationKey::MapSize] {
            if let (Some(found), ProgramsRequest::None) = (ours.get(key), &programs) {
                return found.refuse("it needs a program to apply to; add the annotation image or programs");
            }
        }
        let pull_policy = ours.get(AnnotationKey::PullPolicy).map(|found| found.parse(parse_pull_policy)).transpose()?;
        let on_failure =
            ours.get(AnnotationKey::OnFailure).map(|found| found.parse(parse_on_failure)).transpose()?.unwrap_or_default();
        let (bpffs, proxy) = bpffs::build(ours)?;
        Ok(Self {
            programs,
            programs_scope: deciding.map_or(KeyScope::Pod, |found| found.scope),
            globals,
            maps,
            map_sizes,
            pull_policy,
            bpffs,
            proxy,
            on_failure,
            perhaps_globals: Vec::new(),
        })
    }

    /// The request of a container without annotations of ours.
    pub fn nothing() -> Self {
        Self {
            programs: ProgramsRequest::None,
            programs_scope: KeyScope::Container,
            globals: Vec::new(),
            maps: Vec::new(),
            map_sizes: Vec::new(),
            pull_policy: None,
            bpffs: BpffsRequest::None,
            proxy: None,
            on_failure: OnFailure::default(),
            perhaps_globals: Vec::new(),
        }
    }

    /// True if there is nothing to do: only keys that qualify others are set, such as `on-failure` of a pod that
    /// requests nothing else.
    pub fn is_empty(&self) -> bool {
        self.programs == ProgramsRequest::None && self.bpffs == BpffsRequest::None && self.proxy.is_none()
    }

    /// Settings that are accepted but have no effect yet, one sentence each.
    pub fn without_effect(&self) -> Vec<String> {
        let ProgramsRequest::Listed(programs) = &self.programs else { return Vec::new() };
        let ordered = programs.iter().filter(|program| program.order.is_some());
        let sentence = |program: &ProgramRequest| {
            let kind = program.attach.kind();
            let why = match kind {
                ProgramKind::Xdp => "an interface takes only one XDP program",
                _ => "classifiers run in the order in which they were attached, but on kernels before 6.6",
            };
            format!("priority and proceed-on of {kind}:{} have no effect yet: {why}", program.function)
        };
        ordered.map(sentence).collect()
    }

    /// The references to fetch, each once, in the order of their first use.
    pub fn references(&self) -> Vec<&Reference> {
        let mut references = Vec::new();
        let named: Vec<&Reference> = match &self.programs {
            ProgramsRequest::None => Vec::new(),
            ProgramsRequest::All { from } => vec![from],
            ProgramsRequest::Listed(programs) => programs.iter().map(|program| &program.from).collect(),
        };
        for reference in named {
            if !references.contains(&reference) {
                references.push(reference);
            }
        }
        references
    }

    /// The request in canonical form: two texts are equal exactly if the requests are equal. A digest of it tells
    /// whether a request is repeated.
    pub fn canonical(&self) -> String {
        serde_json::to_string(self)
            .expect("every part of a request came from UTF-8 text, and no map has other keys than strings")
    }
}

fn parse_reference(value: &str) -> Result<Reference, LexError> {
    let word = lex::single(value)?;
    Reference::parse(&word.text).map_err(|error| word.fault(error.to_string()))
}

fn parse_pull_policy(value: &str) -> Result<PullPolicy, LexError> {
    const WORDS: [&str; 3] = ["IfNotPresent", "Always", "Never"];
    let word = lex::single(value)?;
    PullPolicy::from_word(&word.text).ok_or_else(|| {
        let hint = nearest_hint(&word.text, WORDS);
        word.fault(format!("it must be IfNotPresent, Always or Never, not {}{hint}", quoted(&word.text)))
    })
}

fn parse_on_failure(value: &str) -> Result<OnFailure, LexError> {
    let word = lex::single(value)?;
    match word.text.as_str() {
        "stop" => Ok(OnFailure::Stop),
        "continue" => Ok(OnFailure::Continue),
        other => Err(word.fault(format!("it must be stop or continue, not {}", quoted(other)))),
    }
}

#[cfg(test)]
mod tests;
