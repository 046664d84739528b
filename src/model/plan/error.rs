//! Errors of planning.

use crate::model::attach_point::ProgramKind;
use crate::model::globals::GlobalError;

/// Why a request does not fit its objects, its container or its policy. Each error is a sentence for the author of the
/// annotation; nothing has been done yet when it occurs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The object has no such function.
    #[error("program {function:?} is not in {reference}; it has {known}")]
    NoSuchProgram {
        /// The function.
        function: String,
        /// The object.
        reference: String,
        /// The functions it has.
        known: String,
    },
    /// `image` without `programs`, and the object has no programs.
    #[error("{reference} contains no programs; request an image that has one")]
    NoPrograms {
        /// The object.
        reference: String,
    },
    /// The section declares another kind than the request.
    #[error("program {function:?} is {actual} by its section {section:?}, not {asked}")]
    OtherKind {
        /// The function.
        function: String,
        /// Its section.
        section: String,
        /// The kind that the section declares.
        actual: ProgramKind,
        /// The requested kind.
        asked: ProgramKind,
    },
    /// A kind that this version does not load.
    #[error("program {function:?} is {kind}, which this version does not support")]
    Unsupported {
        /// The function.
        function: String,
        /// The kind.
        kind: ProgramKind,
    },
    /// Neither the request nor the section specifies where the program attaches.
    #[error("section {section:?} of program {function:?} does not say where the program attaches; write {remedy}")]
    NoPlace {
        /// The function.
        function: String,
        /// Its section.
        section: String,
        /// What to write.
        remedy: String,
    },
    /// `attach=` belongs to another kind.
    #[error("program {function:?}: attach={attach} belongs to {belongs} programs, not to {kind}")]
    OtherAttach {
        /// The function.
        function: String,
        /// The word.
        attach: &'static str,
        /// The kind it is for.
        belongs: ProgramKind,
        /// The program's kind.
        kind: ProgramKind,
    },
    /// An interface that is not in the container's network namespace.
    #[error("attach {kind} {function:?}: the container has no interface {name:?}; it has {known}{hint}")]
    NoInterface {
        /// The kind.
        kind: ProgramKind,
        /// The function.
        function: String,
        /// The interface.
        name: String,
        /// The existing interfaces.
        known: String,
        /// A possible reason.
        hint: &'static str,
    },
    /// `iface=*`, but only `lo` exists.
    #[error("attach {kind} {function:?}: the container has no interface except lo{hint}")]
    NoInterfaces {
        /// The kind.
        kind: ProgramKind,
        /// The function.
        function: String,
        /// A possible reason.
        hint: &'static str,
    },
    /// Two XDP programs for one interface.
    #[error(
        "attach xdp {function:?} to {iface}: the request attaches {other:?} there too, and one interface takes only one XDP program; request one of them"
    )]
    TwoXdp {
        /// The second program.
        function: String,
        /// The first.
        other: String,
        /// The interface.
        iface: String,
    },
    /// A host-scope kind that the policy does not allow.
    #[error(
        "program {function:?}: {kind} reaches the whole host, which requires host-scope = true in the container's policy rule and scope = \"host\" in the image's"
    )]
    HostScopeKind {
        /// The function.
        function: String,
        /// The kind.
        kind: ProgramKind,
    },
    /// The place does not belong only to the container.
    #[error(
        "program {function:?}: {why}, so {kind} would reach beyond the container, which requires host-scope = true in the policy"
    )]
    HostScopePlace {
        /// The function.
        function: String,
        /// The kind.
        kind: ProgramKind,
        /// What is shared, and with whom.
        why: String,
    },
    /// The container is in the root cgroup.
    #[error(
        "program {function:?}: the container has no cgroup of its own in the v2 hierarchy, and {kind} on the root cgroup would reach the whole host; run it with a cgroup manager that creates one"
    )]
    RootCgroup {
        /// The function.
        function: String,
        /// The kind.
        kind: ProgramKind,
    },
    /// The container is in another cgroup than its configuration names.
    #[error("program {function:?}: the container is in cgroup {actual}, but its linux.cgroupsPath names {expected}")]
    OtherCgroup {
        /// The function.
        function: String,
        /// Where it is.
        actual: String,
        /// What was expected.
        expected: String,
    },
    /// An annotation with the name of a variable, next to `globals`.
    #[error(
        "annotation {name:?} has the name of a variable of the program, and podman seems to have cut globals at a comma: separate its \
         entries by ;, or leave this annotation out"
    )]
    CutGlobal {
        /// The annotation's key, which is also the variable's name.
        name: String,
    },
    /// A global that no object declares.
    #[error("globals: no program declares {name:?}; there are {known}")]
    NoSuchGlobal {
        /// The name.
        name: String,
        /// The declared globals.
        known: String,
    },
    /// A value that does not match its variable.
    #[error(transparent)]
    Global(#[from] GlobalError),
    /// A bpfman-hook variable that the object declares with another size.
    #[error("globals: {name}: {why}")]
    BadGlobal {
        /// The variable.
        name: String,
        /// The mismatch.
        why: String,
    },
    /// A map that no object declares.
    #[error("maps: no program has a map {name:?}; there are {known}")]
    NoSuchMap {
        /// The name.
        name: String,
        /// The declared maps.
        known: String,
    },
    /// A map that more than one object declares.
    #[error("maps: {name:?} is in {first} and in {second}; request a map that only one object has")]
    AmbiguousMap {
        /// The name.
        name: String,
        /// One object.
        first: String,
        /// Another.
        second: String,
    },
    /// A map that cannot be made read-only.
    #[error("maps: {name:?} cannot be shown read-only, because {why}; write {name}:rw if the policy allows it")]
    NotReadOnly {
        /// The name.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// More programs than the policy's limit.
    #[error(
        "{asked} programs are more than the {limit} that the policy allows for one container; raise programs under [limits]"
    )]
    TooManyPrograms {
        /// Number of requested programs.
        asked: usize,
        /// The limit.
        limit: u32,
    },
    /// More links than the policy's limit.
    #[error(
        "{asked} links are more than the {limit} that the policy allows for one container; name interfaces instead of iface=*, or raise links under [limits]"
    )]
    TooManyLinks {
        /// Number of requested links.
        asked: usize,
        /// The limit.
        limit: u32,
    },
    /// More map memory than the policy's limit.
    #[error(
        "the maps take {asked} bytes, more than the {limit} that the policy allows for one container; raise map-memory under [limits]"
    )]
    TooMuchMemory {
        /// Requested bytes.
        asked: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A kind that reaches the host, loaded without a container, while the caller or the image may not.
    #[error("program {function:?}: {kind} programs reach the host, and {who} does not allow host scope")]
    HostScopeManual {
        /// The function.
        function: String,
        /// The kind.
        kind: ProgramKind,
        /// The rule.
        who: String,
    },
    /// A map that the owner of the maps does not have.
    #[error("share the maps of program {program}: it has no map {map:?}; it has {known}")]
    NotShared {
        /// The kernel id of the program.
        program: u32,
        /// The map's name.
        map: String,
        /// The maps that it has.
        known: String,
    },
    /// A token without a user namespace.
    #[error(
        "delegate: the container has no user namespace of its own, and the kernel creates BPF tokens only in one; start the container with one (podman --userns=auto, hostUsers: false in Kubernetes, linux.uidMappings in config.json)"
    )]
    NoUserNamespace,
    /// A token in a user namespace whose root is the host's root.
    #[error(
        "delegate: the container's user namespace maps the host's user or group 0 and therefore does not isolate the container; map ids that the host does not use (podman --userns=auto, hostUsers: false in Kubernetes, linux.uidMappings in config.json)"
    )]
    HostRootMapped,
    /// A token in a user namespace that is shared with others.
    #[error(
        "delegate: {why}, and a token works for every container in it: give the container a user namespace of its own, run its pod with the NRI plugin, or set host-scope = true in its policy rule"
    )]
    SharedUserNamespace {
        /// How that was determined.
        why: &'static str,
    },
    /// Cgroup types delegated to a container that sees the host's cgroups.
    #[error(
        "delegate: cgroup attach types would reach every cgroup that the container can open: {why}; this requires host-scope = true in the policy"
    )]
    CgroupsVisible {
        /// What is visible.
        why: String,
    },
    /// The container's rule polices it, and it has no cgroup of its own.
    #[error("police bpf(2) calls: {why}; policing needs a cgroup of the container's own in the v2 hierarchy")]
    PoliceCgroup {
        /// Where it is.
        why: String,
    },
    /// The container's rule lists executables, and it has no cgroup of its own.
    #[error(
        "give the container its list of executables: {why}; this needs a cgroup of the container's own in the v2 hierarchy"
    )]
    GateCgroup {
        /// Where it is.
        why: String,
    },
    /// Host scope that the guard cannot bind to the container.
    #[error(
        "delegate: the guard grants host scope only to a container with a user namespace and a v2 cgroup of its own: {why}; give it both, or end the guard (bpfman-hook guard unload)"
    )]
    GuardedHostScope {
        /// What is not its own.
        why: String,
    },
    /// Networking types delegated to a container that uses a foreign network.
    #[error(
        "delegate: networking types would reach a network that is not the container's own: {why}; this requires host-scope = true in the policy"
    )]
    NetworkVisible {
        /// The owner of the network.
        why: String,
    },
    /// The same for programs that the container loads through the proxy.
    #[error(
        "delegate-via=proxy: networking types would reach a network that is not the container's own: {why}; that needs host-scope in policy"
    )]
    ProxyNetwork {
        /// The owner of the network.
        why: String,
    },
}
