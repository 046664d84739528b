//! Refusals of the policy.

use std::fmt;

use crate::model::attach_point::ProgramKind;

/// What to do about an image to which no `[[image]]` rule applies: the rule to add.
pub fn rule_remedy(reference: &impl fmt::Display) -> String {
    let reference = reference.to_string();
    if reference.starts_with("quay.io/bpfman-bytecode/") {
        return "`bpfman-hook init --bpfman --dry-run` prints the rule for bpfman's images".to_owned();
    }
    let above = reference.split('@').next().and_then(|name| name.rsplit_once('/')).map_or("", |(above, _)| above);
    format!("add one with repository = \"{above}/*\" and signed-by, as `bpfman-hook init` writes it")
}

/// A request that the policy does not allow: what was requested, which rule decides, and what would allow it.
///
/// `rule` is a [`super::RuleLocation`] as text. `bpfman-hook policy explain` shows the same together with all rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The policy has container rules, and none of them matches this container.
    #[error("no container rule of the policy matches this container ({facts}); see bpfman-hook policy explain")]
    NoContainerRule {
        /// The container.
        facts: String,
    },
    /// A rule for this container's pod was skipped, because it names labels and the pod's labels are unknown.
    #[error("{refusal}; {rule} is skipped: it names labels, and the pod's labels are unknown without the NRI plugin")]
    LabelsUnknown {
        /// The rule that was skipped.
        rule: String,
        /// The refusal of the rule that decides instead.
        refusal: Box<Refusal>,
    },
    /// No image rule covers the reference.
    #[error("no image rule under {rule} names {reference}; add an [[image]] with this repository and signed-by")]
    NoImageRule {
        /// The container rule.
        rule: String,
        /// The repository of the reference, without a tag.
        reference: String,
    },
    /// The reference is a path on the host, and no image rule names it.
    #[error(
        "{reference} is a path on the host, and no image rule under {rule} names it or a directory above it; add an [[image]] that does"
    )]
    HostPath {
        /// The container rule.
        rule: String,
        /// The repository of the reference, without a tag.
        reference: String,
    },
    /// The policy has neither image rules nor keys.
    #[error(
        "{reference}: the policy has no [[image]] rules and there is no key to verify it with; put public keys into /etc/bpfman-hook/keys, or write [[image]] rules"
    )]
    NoKeys {
        /// The repository of the reference, without a tag.
        reference: String,
    },
    /// The container rule does not list the kind of program.
    #[error("program {function}: {rule} does not allow {kind} programs; add \"{kind}\" to its programs")]
    Kind {
        /// The function, or the image if all of its programs are requested.
        function: String,
        /// Its kind.
        kind: ProgramKind,
        /// The container rule.
        rule: String,
    },
    /// The container rule allows no programs.
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
        /// The image rules that would apply otherwise.
        image_rules: String,
    },
    /// No image rule for the request's images allows this variable to be set.
    #[error("no image rule for {references} allows a request to set {name}; add it to globals of the rule")]
    Global {
        /// The variable.
        name: String,
        /// The images.
        references: String,
    },
    /// No image rule for the request's images allows this map to be shown.
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
    /// The container rule allows nothing through the proxy.
    #[error("{rule} allows nothing with delegate-via=proxy; add proxy = [ … ] to a [[container]] rule")]
    NothingProxied {
        /// The container rule.
        rule: String,
    },
    /// The request exceeds the delegation limit.
    #[error("{rule} does not delegate {names}; request less, or add {remedy} to its {key}")]
    Delegation {
        /// The rule's key: `delegate` or `proxy`.
        key: &'static str,
        /// The names above the limit.
        names: String,
        /// The preset that contains them, or `them`.
        remedy: String,
        /// The container rule.
        rule: String,
    },
    /// Within the limit, the part that `any` stands for has no effect.
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
        /// The names that reach beyond it.
        names: String,
        /// The container rule.
        rule: String,
    },
    /// On this kernel a program loaded with the token reaches beyond the container.
    #[error("{beyond}; {rule} has no host-scope = true: add it, or request delegate={smaller}")]
    TokenReach {
        /// Which part of the delegation reaches what, through which function.
        beyond: String,
        /// The preset that stays in the container.
        smaller: &'static str,
        /// The container rule.
        rule: String,
    },
    /// The container would have a token together with a capability that gives it access to all kernel memory.
    #[error(
        "a BPF token and {capability} together give access to all kernel memory, and {rule} has no host-scope = true; run the container without {capability}"
    )]
    KernelReads {
        /// The capability.
        capability: &'static str,
        /// The container rule.
        rule: String,
    },
    /// `on-failure=continue`, which the policy does not allow.
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
