//! Errors of the operations on BPF objects.

use crate::kernel::btf::BtfError;
use crate::kernel::features::{Feature, Support};
use crate::kernel::kconfig::ConfigurationError;
use crate::kernel::link::LinkError;
use crate::kernel::object_error::ObjectError;
use crate::kernel::review::ReviewRefusal;
use crate::kernel::user_elf::UserElfError;
use crate::kernel::verifier::VerifierLog;
use crate::model::attach_point::ProgramKind;
use crate::model::ids::PinName;
use crate::model::police::CountError;
use crate::sys::{Errno, SysError};

/// The error of this layer. Messages name the object in question; the kernel's errno is the source.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The bytes are not an object that we support.
    #[error("read the BPF object")]
    Object(#[from] ObjectError),
    /// The object does not have a requested program.
    #[error("the object has no program {function:?}; it has {there}")]
    NoProgram {
        /// The function.
        function: String,
        /// The existing programs, separated by commas.
        there: String,
    },
    /// The program's section declares another kind than the request.
    #[error("program {function} is {declared} by its section {section:?}, not {asked}")]
    OtherKind {
        /// The function.
        function: String,
        /// The kind by its section.
        declared: ProgramKind,
        /// The section.
        section: String,
        /// The requested kind.
        asked: ProgramKind,
    },
    /// The program's functions, maps and types cannot be linked.
    #[error("link program {program}")]
    Link {
        /// The function.
        program: String,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// A map with an initial element that the object does not have.
    #[error("read the BPF object")]
    Elements(#[source] LinkError),
    /// The program uses what container scope does not allow.
    #[error(transparent)]
    BeyondContainer(#[from] ReviewRefusal),
    /// The object does not have a requested map.
    #[error("the object has no map {map:?}; it has {there}")]
    NoMap {
        /// The map.
        map: String,
        /// The existing maps, separated by commas.
        there: String,
    },
    /// The object does not have the variable to set.
    #[error("the object has no global {name:?}; it has {there}")]
    NoGlobal {
        /// The variable.
        name: String,
        /// The existing variables, separated by commas.
        there: String,
    },
    /// The value does not have the variable's size.
    #[error("global {name} takes {size} bytes, not {given}")]
    GlobalSize {
        /// The variable.
        name: String,
        /// The size of the variable in bytes.
        size: u32,
        /// The size of the given value in bytes.
        given: usize,
    },
    /// A value of the kernel's configuration that the object reads cannot be had.
    #[error("read the kernel's configuration: {0}")]
    Configuration(#[from] ConfigurationError),
    /// The kernel's own types, which CO-RE needs, are malformed.
    #[error("read the kernel's types for CO-RE")]
    KernelTypes(#[source] BtfError),
    /// The kernel refused to create a map.
    #[error("create map {map}: {why}")]
    MapCreate {
        /// The map.
        map: String,
        /// What the errno means here.
        why: &'static str,
        /// The kernel's errno.
        #[source]
        source: Errno,
    },
    /// A map to be shared does not match the object's own declaration.
    #[error("share map {map}: this object has it with {differences}")]
    OtherMap {
        /// The map.
        map: String,
        /// The differences, separated by commas.
        differences: String,
    },
    /// A map to be shared cannot be opened.
    #[error("share map {map}: open its pin {}", .pin.display())]
    SharedMap {
        /// The map.
        map: String,
        /// Its pin.
        pin: std::path::PathBuf,
        /// The kernel's errno.
        #[source]
        source: Errno,
    },
    /// The initial value of a map could not be written, or the map could not be frozen.
    #[error("{doing} map {map}")]
    Map {
        /// `fill` or `freeze`
        doing: &'static str,
        /// The map.
        map: String,
        /// The kernel's errno.
        #[source]
        source: Errno,
    },
    /// The verifier refused the program.
    #[error("load program {program}: the verifier refused it{}: {}", log.at(), log.reason)]
    Rejected {
        /// The function.
        program: String,
        /// What BPF_PROG_LOAD returned.
        errno: Errno,
        /// The verifier's log.
        log: Box<VerifierLog>,
    },
    /// The program does what only host scope allows: the verifier would accept it with CAP_PERFMON.
    #[error("load program {program}: it needs host scope{}: {}{}", log.at(), log.reason, log.remedy())]
    NeedsHostScope {
        /// The function.
        program: String,
        /// The verifier's log.
        log: Box<VerifierLog>,
    },
    /// The program requires types that this kernel does not have.
    #[error("load program {program}: this kernel has no {missing}, which the program uses")]
    MissingTypes {
        /// The function.
        program: String,
        /// The types and members, separated by commas.
        missing: String,
        /// The verifier's log.
        log: Box<VerifierLog>,
    },
    /// The kernel refused the program without a verifier log.
    #[error("load program {program}: {why}")]
    Refused {
        /// The function.
        program: String,
        /// What the errno means here.
        why: &'static str,
        /// The kernel's errno.
        #[source]
        source: Errno,
    },
    /// The policy requires a signature that the kernel checks, and the object has none for the program.
    #[error(
        "load program {program}: the image rule has kernel-signed = \"required\", and the object has no signature of it; build the \
         image with --sign-programs"
    )]
    ProgramUnsigned {
        /// The function.
        program: String,
    },
    /// The policy requires a signature that the kernel checks, and the node has no keyring.
    #[error(
        "load program {program}: the image rule has kernel-signed = \"required\", and this node has no keyring; put certificates into \
         /etc/bpfman-hook/program-keys and run `bpfman-hook image keyring`"
    )]
    NoKeyring {
        /// The function.
        program: String,
    },
    /// The kernel does not accept the signature of a program.
    #[error("load program {program}: {why}")]
    SignatureRejected {
        /// The function.
        program: String,
        /// What the errno means here.
        why: &'static str,
        /// The kernel's errno.
        #[source]
        source: Errno,
    },
    /// Two programs use a map that is for one program.
    #[error("map {map} is for one program only (image sign --exclusive-map), and {programs} use it; load one of them")]
    Exclusive {
        /// The map.
        map: String,
        /// The programs.
        programs: String,
    },
    /// The kernel is too old, or built or locked down without the feature.
    #[error("{doing}: this kernel has no {feature}, which came with Linux {} ({why})", feature.since())]
    Feature {
        /// What we were doing.
        doing: String,
        /// The missing feature.
        feature: Feature,
        /// The result of the probe.
        why: String,
    },
    /// A rule lists executables, and no gate is in force that could judge them.
    #[error("the gate is not in force for containers; run `bpfman-hook gate load`, or `bpfman-hook install --gate`")]
    NoGate,
    /// A rule lists functions, and the kernel does not show the instructions of programs.
    #[error(
        "judge programs by the functions that they call: this kernel has no LSM hook bpf_prog_load (Linux 6.9); remove helpers and \
         kfuncs from the rule's police"
    )]
    NoLoadHook,
    /// The counters of a policed container were written by another version.
    #[error(transparent)]
    Counters(#[from] CountError),
    /// The kernel refused to attach a program.
    #[error("attach {kind} {program} to {place}{}", hint(why))]
    Attach {
        /// The kind of link.
        kind: &'static str,
        /// The function.
        program: String,
        /// The place.
        place: String,
        /// What the errno means here; empty if it needs no explanation.
        why: &'static str,
        /// The kernel's errno.
        #[source]
        source: Errno,
    },
    /// The interface already has an XDP program.
    #[error(
        "attach xdp {program} to {iface}: another XDP program is already on {iface}{}; one interface takes only one XDP program",
        of(owner)
    )]
    XdpTaken {
        /// The function.
        program: String,
        /// The interface.
        iface: String,
        /// The owner of that program if it is ours, filled in by the caller that has the records; otherwise empty.
        owner: String,
    },
    /// The interface that planning found is gone or was replaced by another one.
    #[error("attach {kind} {program} to {iface}: interface {iface} no longer exists")]
    InterfaceGone {
        /// The kind of link.
        kind: &'static str,
        /// The function.
        program: String,
        /// The interface.
        iface: String,
    },
    /// The kernel does not have the tracepoint.
    #[error("attach {kind} {program}: this kernel has no tracepoint {name}")]
    NoTracepoint {
        /// The kind of link.
        kind: &'static str,
        /// The function.
        program: String,
        /// The tracepoint.
        name: String,
    },
    /// The kernel does not have the function or hook that the program attaches to.
    #[error("{kind} {program}: this kernel has no {what}")]
    NoKernelFunction {
        /// The kind.
        kind: ProgramKind,
        /// The function in the object.
        program: String,
        /// The missing function or hook.
        what: String,
    },
    /// The target file of a uprobe cannot be opened, or does not have the symbol.
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
    /// The caller did not open the place to attach to.
    #[error("attach {kind} {program}: the container's {what} is not open")]
    NoPlace {
        /// The kind of link.
        kind: &'static str,
        /// The function.
        program: String,
        /// `cgroup`, `network namespace`
        what: &'static str,
    },
    /// A pin could not be created, opened or removed.
    #[error("{doing} {pin}")]
    Pin {
        /// What we were doing.
        doing: &'static str,
        /// The pin's path.
        pin: String,
        /// The kernel's errno.
        #[source]
        source: Errno,
    },
    /// The kernel's information about an object could not be read.
    #[error("read the kernel's information about {what}")]
    Info {
        /// The object.
        what: String,
        /// The kernel's errno.
        #[source]
        source: Errno,
    },
    /// An error of a system call, from `sys`.
    #[error(transparent)]
    Sys(#[from] SysError),
}

impl KernelError {
    /// The last lines of the verifier's log, if there is one.
    pub fn verifier_log(&self) -> Option<&str> {
        self.log().map(|log| log.tail.as_str())
    }

    /// The verifier's log, if there is one, up to a mebibyte of its end.
    pub fn whole_log(&self) -> Option<&str> {
        self.log().map(|log| log.whole.as_str())
    }

    fn log(&self) -> Option<&VerifierLog> {
        match self {
            Self::Rejected { log, .. } | Self::NeedsHostScope { log, .. } | Self::MissingTypes { log, .. } => Some(log),
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
