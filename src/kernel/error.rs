//! Why something with a BPF object did not work.

use crate::kernel::btf::BtfError;
use crate::kernel::link::LinkError;
use crate::kernel::object::ObjectError;
use crate::kernel::review::ReviewRefusal;
use crate::kernel::user_elf::UserElfError;
use crate::kernel::verifier::VerifierLog;
use crate::kernel::{Feature, Support};
use crate::model::attach_point::ProgramKind;
use crate::model::ids::PinName;
use crate::sys::{Errno, SysError};

/// The error of this layer. Messages name the object at hand; what the kernel said is the source.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The bytes are not an object that we can use.
    #[error("read the BPF object")]
    Object(#[from] ObjectError),
    /// The object does not have a program that was asked for.
    #[error("the object has no program {function:?}; it has {there}")]
    NoProgram {
        /// The function.
        function: String,
        /// The programs that there are, with commas.
        there: String,
    },
    /// A program that its author wrote for another place.
    #[error("program {function} is {declared} by its section {section:?}, not {asked}")]
    OtherKind {
        /// The function.
        function: String,
        /// The kind by its section.
        declared: ProgramKind,
        /// The section.
        section: String,
        /// The kind that was asked for.
        asked: ProgramKind,
    },
    /// A kind that this version does not load.
    #[error("load program {function}: {kind} is not supported by this version")]
    Unsupported {
        /// The function.
        function: String,
        /// The kind.
        kind: ProgramKind,
    },
    /// The program's functions, maps and types do not come together.
    #[error("link program {program}")]
    Link {
        /// The function.
        program: String,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// The program does what container scope does not allow.
    #[error(transparent)]
    BeyondContainer(#[from] ReviewRefusal),
    /// The object does not have a map that was asked for.
    #[error("the object has no map {map:?}; it has {there}")]
    NoMap {
        /// The map.
        map: String,
        /// The maps that there are, with commas.
        there: String,
    },
    /// The object does not have a variable that is to be set.
    #[error("the object has no global {name:?}; it has {there}")]
    NoGlobal {
        /// The variable.
        name: String,
        /// The variables that there are, with commas.
        there: String,
    },
    /// Bytes of another number than the variable takes.
    #[error("global {name} takes {size} bytes, not {given}")]
    GlobalSize {
        /// The variable.
        name: String,
        /// Bytes that it takes.
        size: u32,
        /// Bytes that were given.
        given: usize,
    },
    /// The kernel's own types, which CO-RE needs, are malformed.
    #[error("read the kernel's types for CO-RE")]
    KernelTypes(#[source] BtfError),
    /// The kernel did not make a map.
    #[error("create map {map}: {why}")]
    MapCreate {
        /// The map.
        map: String,
        /// What the errno means here.
        why: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A map that is to stand in place of the object's own is another one.
    #[error("share map {map}: this object has it with {differences}")]
    OtherMap {
        /// The map.
        map: String,
        /// What differs, with commas.
        differences: String,
    },
    /// A map that is to stand in place of the object's own is not to be had.
    #[error("share map {map}: open its pin {}", .pin.display())]
    SharedMap {
        /// The map.
        map: String,
        /// Its pin.
        pin: std::path::PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A map did not take its initial value or could not be frozen.
    #[error("{doing} map {map}")]
    Map {
        /// `fill` or `freeze`
        doing: &'static str,
        /// The map.
        map: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The verifier found the program wanting.
    #[error("load program {program}: the verifier refused it{}: {}", log.at(), log.reason)]
    Rejected {
        /// The function.
        program: String,
        /// What BPF_PROG_LOAD returned.
        errno: Errno,
        /// What the verifier said.
        log: VerifierLog,
    },
    /// The program does what only host scope may: the verifier would accept it with CAP_PERFMON.
    #[error("load program {program}: it needs host scope{}: {}{}", log.at(), log.reason, log.remedy())]
    NeedsHostScope {
        /// The function.
        program: String,
        /// What the verifier said.
        log: VerifierLog,
    },
    /// The program needs types that this kernel does not have.
    #[error("load program {program}: this kernel has no {missing}, which the program uses")]
    MissingTypes {
        /// The function.
        program: String,
        /// The types and members, with commas.
        missing: String,
        /// What the verifier said.
        log: VerifierLog,
    },
    /// The kernel refused the program without an explanation.
    #[error("load program {program}: {why}")]
    Refused {
        /// The function.
        program: String,
        /// What the errno means here.
        why: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The kernel is too old, or built or locked down without it.
    #[error("{doing}: this kernel has no {feature}, which came with Linux {} ({why})", feature.since())]
    Feature {
        /// What we were doing.
        doing: String,
        /// What is missing.
        feature: Feature,
        /// What the probe found.
        why: String,
    },
    /// The kernel did not attach a program.
    #[error("attach {kind} {program} to {place}{}", hint(why))]
    Attach {
        /// The kind of link.
        kind: &'static str,
        /// The function.
        program: String,
        /// The place.
        place: String,
        /// What the errno means here; empty where it speaks for itself.
        why: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The interface already has an XDP program.
    #[error(
        "attach xdp {program} to {iface}: another XDP program is on {iface} already{}, and an interface takes one until chains come",
        of(owner)
    )]
    XdpTaken {
        /// The function.
        program: String,
        /// The interface.
        iface: String,
        /// Whose that program is, where it is one of ours: filled in by who has the records. Else empty.
        owner: String,
    },
    /// The interface that was found when planning is gone, or has become another.
    #[error("attach {kind} {program} to {iface}: there is no interface {iface} any more")]
    InterfaceGone {
        /// The kind of link.
        kind: &'static str,
        /// The function.
        program: String,
        /// The interface.
        iface: String,
    },
    /// The kernel does not have a tracepoint.
    #[error("attach {kind} {program}: this kernel has no tracepoint {name}")]
    NoTracepoint {
        /// The kind of link.
        kind: &'static str,
        /// The function.
        program: String,
        /// The tracepoint.
        name: String,
    },
    /// The kernel does not have the function or hook that a program hangs on.
    #[error("{kind} {program}: this kernel has no {what}{module}")]
    NoKernelFunction {
        /// The kind.
        kind: ProgramKind,
        /// The function in the object.
        program: String,
        /// What is missing.
        what: String,
        /// The module that has it, as the rest of the sentence; or nothing.
        module: String,
    },
    /// The file that a uprobe is for cannot be opened, or does not have the symbol.
    #[error("attach {kind} {program}: {target:?}")]
    UserTarget {
        /// The kind of link.
        kind: &'static str,
        /// The function in the object.
        program: String,
        /// The file or library.
        target: String,
        /// Why.
        #[source]
        source: Box<UserElfError>,
    },
    /// A place that the caller did not open.
    #[error("attach {kind} {program}: the container's {what} is not open")]
    NoPlace {
        /// The kind of link.
        kind: &'static str,
        /// The function.
        program: String,
        /// `cgroup`, `network namespace`
        what: &'static str,
    },
    /// A pin could not be made, opened or removed.
    #[error("{doing} {pin}")]
    Pin {
        /// What we were doing.
        doing: &'static str,
        /// The pin's path.
        pin: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// An object could not be asked about itself.
    #[error("ask the kernel about {what}")]
    Info {
        /// The object.
        what: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A system call of the layer below.
    #[error(transparent)]
    Sys(#[from] SysError),
}

impl KernelError {
    /// The end of the verifier's log, in lines, where there is one.
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            Self::Rejected { log, .. } | Self::NeedsHostScope { log, .. } | Self::MissingTypes { log, .. } => Some(&log.tail),
            _ => None,
        }
    }

    pub(crate) fn pin(doing: &'static str, directory: &std::path::Path, pin: &PinName) -> impl FnOnce(Errno) -> Self {
        let pin = pin.path(directory).display().to_string();
        move |source| Self::Pin { doing, pin, source }
    }

    pub(crate) fn feature(doing: impl Into<String>, feature: Feature, support: Support) -> Self {
        let why = match support {
            Support::Yes => String::new(),
            Support::No(why) | Support::Unknown(why) => why,
        };
        Self::Feature { doing: doing.into(), feature, why }
    }
}

fn of(owner: &str) -> String {
    if owner.is_empty() { String::new() } else { format!(", which is {owner}'s") }
}

fn hint(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(": {why}") }
}
