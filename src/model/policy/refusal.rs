//! What policy says no to.

use crate::model::attach_point::ProgramKind;

/// A request that policy does not allow: what was asked, which rule decides, and what would allow it.
///
/// `rule` is a [`super::Place`], spelled out. `bpfman-hook policy explain` shows the same with all rules beside it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Policy has container rules, and none is for this container.
    #[error("no container rule of the policy matches this container ({facts}); see bpfman-hook policy explain")]
    NoContainerRule {
        /// The container.
        facts: String,
    },
    /// A rule for this container's pod was passed over because it names labels, and none of the pod's is known.
    #[error("{refusal}; {rule} is skipped: it names labels, and the pod's labels are unknown without the NRI plugin")]
    LabelsUnknown {
        /// The rule that was passed over.
        rule: String,
        /// What the rule that decides instead says.
        refusal: Box<Refusal>,
    },
    /// No image rule speaks of the reference.
    #[error("no image rule under {rule} names {reference}; add an [[image]] with this repository and signed-by")]
    NoImageRule {
        /// The container rule.
        rule: String,
        /// The repository of the reference, without tag.
        reference: String,
    },
    /// The reference is a path on the host, and no image rule names it.
    #[error(
        "{reference} is a path on the host, and no image rule under {rule} names it or a directory above it; add an [[image]] that does"
    )]
    HostPath {
        /// The container rule.
        rule: String,
        /// The repository of the reference, without tag.
        reference: String,
    },
    /// There are neither image rules nor keys.
    #[error(
        "{reference}: the policy has no [[image]] rules and there is no key to verify it with; put public keys into /etc/bpfman-hook/keys, or write [[image]] rules"
    )]
    NoKeys {
        /// The repository of the reference, without tag.
        reference: String,
    },
    /// The container rule does not list the kind of program.
    #[error("program {function}: {rule} does not allow {kind} programs; add \"{kind}\" to its programs")]
    Kind {
        /// The function, or the image where all of its programs are asked for.
        function: String,
        /// Its kind.
        kind: ProgramKind,
        /// The container rule.
        rule: String,
    },
    /// The container rule allows no programs at all.
    #[error("{rule} allows no programs; write programs = [ … ] in it")]
    NoPrograms {
        /// The container rule.
        rule: String,
    },
    /// The kind of program reaches beyond the container, and the container rule does not allow that.
    #[error("program {function}: {kind} programs see the whole host, and {rule} has no host-scope = true")]
    HostScopeContainer {
        /// The function.
        function: String,
        /// Its kind.
        kind: ProgramKind,
        /// The container rule.
        rule: String,
    },
    /// The kind of program reaches beyond the container, and no image rule for it allows that.
    #[error("program {function}: {kind} programs see the whole host, and no image rule for {reference} has scope = \"host\" ({image_rules} {})", verb(.image_rules))]
    HostScopeImage {
        /// The function.
        function: String,
        /// Its kind.
        kind: ProgramKind,
        /// The repository of the reference.
        reference: String,
        /// The image rules that would else do.
        image_rules: String,
    },
    /// No image rule for the request's images lets this variable be set.
    #[error("no image rule for {references} allows a request to set {name}; add it to globals of the rule")]
    Global {
        /// The variable.
        name: String,
        /// The images.
        references: String,
    },
    /// No image rule for the request's images lets this map be shown.
    #[error(
        "no image rule for {references} allows the map {name} to be shown {access}; add \"{name}:{access}\" to maps of the rule"
    )]
    Map {
        /// The map.
        name: String,
        /// `ro` or `rw`.
        access: &'static str,
        /// The images.
        references: String,
    },
    /// The container rule delegates nothing.
    #[error("{rule} delegates nothing; add delegate = [ … ] to a [[container]] rule")]
    NothingDelegated {
        /// The container rule.
        rule: String,
    },
    /// More is asked for than the ceiling has.
    #[error("{rule} does not delegate {names}; request less, or add {remedy} to its delegate")]
    Delegation {
        /// What is above the ceiling, by name.
        names: String,
        /// The preset that has it, or `them`.
        remedy: String,
        /// The container rule.
        rule: String,
    },
    /// Under the ceiling, what `any` comes to is of no use.
    #[error("the part of this request that {rule} delegates has no effect: {problem}")]
    UselessDelegation {
        /// The container rule.
        rule: String,
        /// Why.
        problem: &'static str,
    },
    /// The delegation reaches beyond the container, and the container rule does not allow that.
    #[error(
        "{names} cannot be kept inside a container on any kernel, and {rule} has no host-scope = true; add that, or request less"
    )]
    HostScopeDelegation {
        /// What reaches beyond.
        names: String,
        /// The container rule.
        rule: String,
    },
    /// On this kernel a program that is loaded with the token reaches beyond the container.
    #[error("{beyond}; {rule} has no host-scope = true: add it, or request delegate={smaller}")]
    TokenReach {
        /// What of the delegation reaches what, by which function.
        beyond: String,
        /// The preset that stays in the container.
        smaller: &'static str,
        /// The container rule.
        rule: String,
    },
    /// A container that gets a token has a capability that turns it into a view of all kernel memory.
    #[error(
        "a BPF token and {capability} together give access to all kernel memory, and {rule} has no host-scope = true; run the container without {capability}"
    )]
    KernelReads {
        /// The capability.
        capability: &'static str,
        /// The container rule.
        rule: String,
    },
    /// `on-failure=continue` where policy does not allow it.
    #[error(
        "{rule} does not allow on-failure=continue; remove the annotation, or write on-failure = [\"continue\"] in a [[container]] rule"
    )]
    OnFailure {
        /// The container rule.
        rule: String,
    },
    /// More programs than a container may have.
    #[error("the request has {asked} programs, and a container may have {limit}; raise programs under [limits] of the policy")]
    TooManyPrograms {
        /// Programs of the request.
        asked: usize,
        /// The limit.
        limit: u32,
    },
}

fn verb(rules: &str) -> &'static str {
    if rules.contains(", ") { "do not" } else { "does not" }
}
