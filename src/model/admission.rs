//! Checks a request against the policy: everything that can be decided without network access and without the object.

use crate::model::annotations::{BpffsRequest, MapAccess, OnFailure, ProgramRequest, ProgramsRequest, Request};
use crate::model::attach_point::{ProgramKind, Scope};
use crate::model::bytecode::PullPolicy;
use crate::model::delegation::{Category, Delegation, DelegationRequest, Preset};
use crate::model::policy::{ContainerFacts, ContainerLimits, ContainerRule, ImageRule, Policy, Refusal};
use crate::model::proxy::ProxyGrant;
use crate::model::reach::TokenReach;
use crate::model::reference::Reference;
use crate::model::text::listed;

/// What the policy allows for one request. The request is allowed as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission<'a> {
    /// The container rule that decided.
    pub rule: &'a ContainerRule,
    /// Each reference of the request once, with the image rules that may allow it. The image must satisfy one of them;
    /// the rule that it satisfied decides in [`Admission::check_program`] and its siblings.
    pub images: Vec<(&'a Reference, Vec<&'a ImageRule>)>,
    /// The delegation; None if no token is requested.
    pub delegation: Option<Delegation>,
    /// What the container may do through the proxy of bpf(2); None if that is not requested.
    pub proxy: Option<ProxyGrant>,
    /// True if the container rule allows host scope. For programs the image's rule must allow it too; for a delegation
    /// only the container rule counts.
    pub host_scope: bool,
    /// When the registry is contacted: as the request says, otherwise the container rule, otherwise `IfNotPresent`.
    pub pull: PullPolicy,
    /// What happens if the request cannot be fulfilled.
    pub on_failure: OnFailure,
    /// True if precreate may add capabilities and seccomp rules.
    pub grant: bool,
    /// Limits for the container.
    pub limits: ContainerLimits,
}

/// Decides a request.
///
/// # Errors
/// The first refusal; [`examine`] finds all of them.
pub fn admit<'a>(policy: &'a Policy, facts: &ContainerFacts, request: &'a Request) -> Result<Admission<'a>, Refusal> {
    let Some(rule) = policy.container_rule(facts) else {
        return Err(passed_over(policy, None, facts, no_container_rule(facts)));
    };
    let (admission, refusals) = examine(policy, rule, request);
    match refusals.into_iter().next() {
        Some(refusal) => Err(passed_over(policy, Some(rule), facts, refusal)),
        None => Ok(admission),
    }
}

/// Adds to a refusal that an earlier rule names labels, if no labels are known: hook files and the strict handler pass
/// none to the hook.
fn passed_over(policy: &Policy, decided: Option<&ContainerRule>, facts: &ContainerFacts, refusal: Refusal) -> Refusal {
    if !facts.labels.is_empty() {
        return refusal;
    }
    let before = policy.containers.iter().take_while(|rule| decided.is_none_or(|decided| !std::ptr::eq(*rule, decided)));
    match before.into_iter().find(|rule| rule.matches.holds_but_for_labels(facts)) {
        Some(rule) => Refusal::LabelsUnknown { rule: rule.place.to_string(), refusal: Box::new(refusal) },
        None => refusal,
    }
}

/// What a failed or refused request does to its container: `continue` only if the request says so and the policy allows
/// it.
pub fn on_failure(policy: &Policy, facts: &ContainerFacts, request: &Request) -> OnFailure {
    match policy.container_rule(facts) {
        Some(rule) if rule.allows_on_failure(request.on_failure) => request.on_failure,
        _ => OnFailure::Stop,
    }
}

/// The refusal of a container that no rule matches.
pub fn no_container_rule(facts: &ContainerFacts) -> Refusal {
    Refusal::NoContainerRule { facts: facts.to_string() }
}

/// Checks a whole request under one container rule. The admission is valid only if there are no refusals; otherwise it
/// holds what would remain.
pub fn examine<'a>(policy: &'a Policy, rule: &'a ContainerRule, request: &'a Request) -> (Admission<'a>, Vec<Refusal>) {
    let mut refusals = Vec::new();
    refuse_programs(policy, rule, request, &mut refusals);
    let images = candidates(policy, rule, request, &mut refusals);
    let delegation = match &request.bpffs {
        BpffsRequest::Token { delegation, .. } => Some(delegated(rule, delegation, &mut refusals)),
        BpffsRequest::None | BpffsRequest::Private { .. } => None,
    };
    let proxy = request.proxy.as_ref().map(|asked| ProxyGrant {
        delegation: proxied(rule, asked, &mut refusals),
        helpers: rule.proxy.helpers.clone(),
        kfuncs: rule.proxy.kfuncs.clone(),
        instructions: rule.proxy.instructions.clone(),
        images: rule.proxy.images.clone(),
        host_scope: rule.host_scope,
        limits: policy.limits,
    });
    if !rule.allows_on_failure(request.on_failure) {
        refusals.push(Refusal::OnFailure { rule: rule.place.to_string() });
    }
    let admission = Admission {
        rule,
        images,
        delegation,
        proxy,
        host_scope: rule.host_scope,
        pull: request.pull_policy.or(rule.pull_policy).unwrap_or(PullPolicy::IfNotPresent),
        on_failure: request.on_failure,
        grant: rule.grant,
        limits: policy.limits,
    };
    (admission, refusals)
}

/// Checks kinds and number of the programs that the request names.
fn refuse_programs(policy: &Policy, rule: &ContainerRule, request: &Request, refusals: &mut Vec<Refusal>) {
    let listed = match &request.programs {
        ProgramsRequest::None => return,
        _ if rule.programs.is_empty() => return refusals.push(Refusal::NoPrograms { rule: rule.place.to_string() }),
        ProgramsRequest::All { .. } => return,
        ProgramsRequest::Listed(listed) => listed,
    };
    if u32::try_from(listed.len()).map_or(true, |asked| asked > policy.limits.programs) {
        refusals.push(Refusal::TooManyPrograms { asked: listed.len(), limit: policy.limits.programs });
    }
    for program in listed {
        refusals.extend(refuse_kind(rule, &program.function, program.attach.kind()));
    }
}

fn refuse_kind(rule: &ContainerRule, function: &str, kind: ProgramKind) -> Option<Refusal> {
    let (function, place) = (function.to_owned(), rule.place.to_string());
    if !rule.programs.contains(&kind) {
        Some(Refusal::Kind { function, kind, rule: place })
    } else if kind.scope() == Scope::Host && !rule.host_scope {
        Some(Refusal::HostScopeContainer { function, kind, rule: place })
    } else {
        None
    }
}

/// The image rules for each reference that can still allow the request.
fn candidates<'a>(
    policy: &'a Policy,
    rule: &'a ContainerRule,
    request: &'a Request,
    refusals: &mut Vec<Refusal>,
) -> Vec<(&'a Reference, Vec<&'a ImageRule>)> {
    let mut images = Vec::new();
    for reference in request.references() {
        match rules_for(policy, rule, request, reference) {
            Ok(rules) => images.push((reference, rules)),
            Err(refusal) => {
                refusals.push(refusal);
                images.push((reference, Vec::new()));
            }
        }
    }
    if images.iter().all(|(_, rules)| !rules.is_empty()) {
        narrow_by_names(request, &mut images, refusals);
    }
    images
}

fn rules_for<'a>(
    policy: &'a Policy,
    rule: &ContainerRule,
    request: &Request,
    reference: &Reference,
) -> Result<Vec<&'a ImageRule>, Refusal> {
    let mut rules = policy.image_rules(rule, reference);
    if rules.is_empty() {
        let (rule, repository) = (rule.place.to_string(), reference.repository());
        return Err(match reference.on_host() {
            true => Refusal::HostPath { rule, reference: repository },
            false => Refusal::NoImageRule { rule, reference: repository },
        });
    }
    if rules.iter().all(|rule| !rule.unsigned && rule.signed_by.is_empty()) {
        return Err(Refusal::NoKeys { reference: reference.repository() });
    }
    match &request.programs {
        ProgramsRequest::Listed(programs) => {
            let of_host =
                |program: &&ProgramRequest| program.from == *reference && program.attach.kind().scope() == Scope::Host;
            if let (Some(program), true) = (programs.iter().find(of_host), rule.host_scope) {
                let would_do = listed(rules.iter().map(|rule| rule.name.as_str()), 4);
                rules.retain(|rule| rule.scope == Scope::Host);
                if rules.is_empty() {
                    return Err(host_scope_image(program.function.clone(), program.attach.kind(), reference, would_do));
                }
            }
        }
        // Only the object has its kinds: if host scope is allowed, rules that allow it too come first.
        ProgramsRequest::All { .. } if rule.host_scope => rules.sort_by_key(|rule| rule.scope != Scope::Host),
        ProgramsRequest::All { .. } | ProgramsRequest::None => {}
    }
    Ok(rules)
}

fn host_scope_image(function: String, kind: ProgramKind, reference: &Reference, image_rules: String) -> Refusal {
    Refusal::HostScopeImage { function, kind, reference: reference.repository(), image_rules }
}

/// The name of a variable or map that a request uses.
#[derive(Clone, Copy)]
enum Name<'a> {
    Global(&'a str),
    Map(&'a str, MapAccess),
}

impl Name<'_> {
    fn allowed_by(self, rule: &ImageRule) -> bool {
        match self {
            Self::Global(name) => rule.globals.allow(name),
            Self::Map(name, access) => rule.maps.allow(name, access),
        }
    }

    fn refusal(self, references: String) -> Refusal {
        match self {
            Self::Global(name) => Refusal::Global { name: name.to_owned(), references },
            Self::Map(name, access) => {
                let access = if access == MapAccess::ReadOnly { "ro" } else { "rw" };
                Refusal::Map { name: name.to_owned(), access, references }
            }
        }
    }
}

/// Drops the rules that do not allow all names of the request. With several objects it is not yet known which of them
/// has a name: then one rule of any object must allow the name, rules that allow more come first, and the rest is
/// checked once the objects are known.
fn narrow_by_names(request: &Request, images: &mut [(&Reference, Vec<&ImageRule>)], refusals: &mut Vec<Refusal>) {
    let globals = request.globals.iter().map(|global| Name::Global(&global.name));
    let maps = request.maps.iter().map(|map| Name::Map(&map.name, map.access));
    let names: Vec<Name<'_>> = globals.chain(maps).collect();
    let references = images.iter().map(|(reference, _)| reference.repository()).collect::<Vec<_>>();
    let references = listed(references.iter().map(String::as_str), 2);
    if let [(_, rules)] = images {
        for name in names {
            let narrowed: Vec<&ImageRule> = rules.iter().copied().filter(|rule| name.allowed_by(rule)).collect();
            match narrowed.is_empty() {
                true => refusals.push(name.refusal(references.clone())),
                false => *rules = narrowed,
            }
        }
        return;
    }
    for name in &names {
        if !images.iter().any(|(_, rules)| rules.iter().any(|rule| name.allowed_by(rule))) {
            refusals.push(name.refusal(references.clone()));
        }
    }
    for (_, rules) in images {
        rules.sort_by_key(|rule| names.iter().filter(|name| !name.allowed_by(rule)).count());
    }
}

/// The part of the requested delegation that the rule allows with a token.
fn delegated(rule: &ContainerRule, request: &DelegationRequest, refusals: &mut Vec<Refusal>) -> Delegation {
    if rule.delegate.is_empty() {
        refusals.push(Refusal::NothingDelegated { rule: rule.place.to_string() });
        return Delegation::default();
    }
    within(rule, "delegate", &rule.delegate, request, refusals)
}

/// The part of the requested delegation that the rule allows through the proxy.
fn proxied(rule: &ContainerRule, request: &DelegationRequest, refusals: &mut Vec<Refusal>) -> Delegation {
    if rule.proxy.is_empty() {
        refusals.push(Refusal::NothingProxied { rule: rule.place.to_string() });
        return Delegation::default();
    }
    within(rule, "proxy", &rule.proxy.delegation, request, refusals)
}

/// The part of the requested delegation within a ceiling, which is the rule's `key`.
fn within(
    rule: &ContainerRule,
    key: &'static str,
    ceiling: &Delegation,
    request: &DelegationRequest,
    refusals: &mut Vec<Refusal>,
) -> Delegation {
    let place = || rule.place.to_string();
    let asked = request.under(ceiling);
    let above = asked.without(ceiling);
    if !above.is_empty() {
        let remedy = Preset::that_has(&above).map_or("them".to_owned(), |preset| format!("the preset \"{preset}\""));
        refusals.push(Refusal::Delegation { key, names: names(&above), remedy, rule: place() });
    } else if let Some(problem) = asked.useless() {
        refusals.push(Refusal::UselessDelegation { rule: place(), problem });
    }
    let beyond = asked.host_scope();
    if !beyond.is_empty() && !rule.host_scope {
        refusals.push(Refusal::HostScopeDelegation { names: names(&beyond), rule: place() });
    }
    asked.without(&above)
}

/// The name of the largest preset within a delegation that stays in the container on this kernel; `maps` always does.
fn smaller(reach: &TokenReach, delegation: &Delegation) -> &'static str {
    let fits = |preset: Preset| {
        let part = preset.delegation();
        delegation.contains(&part) && part.host_scope().is_empty() && reach.delegation_beyond(&part).is_none()
    };
    let found = Preset::ALL.into_iter().rev().find(|(preset, _)| preset.delegation().loads_programs() && fits(*preset));
    found.map_or("maps", |(_, word)| word)
}

/// Names for a message, program types first, because users know those best.
fn names(delegation: &Delegation) -> String {
    let order = [Category::Progs, Category::Cmds, Category::Maps, Category::Attachs];
    let words = order.into_iter().filter_map(|category| {
        let names = delegation.names(category);
        let shown = listed(names.iter().map(String::as_str), 2);
        (!names.is_empty()).then(|| format!("{} {shown}", category.word()))
    });
    words.collect::<Vec<_>>().join("; ")
}

impl<'a> Admission<'a> {
    /// The candidate image rules for a reference; empty if the request does not name it.
    pub fn rules(&self, reference: &Reference) -> &[&'a ImageRule] {
        self.images.iter().find(|(known, _)| *known == reference).map_or(&[], |(_, rules)| rules)
    }

    /// The candidate rule with this name for a reference; a checked image records the name.
    pub fn image_rule(&self, reference: &Reference, name: &str) -> Option<&'a ImageRule> {
        self.rules(reference).iter().find(|rule| rule.name == name).copied()
    }

    /// Decides whether a program of an object that `image` allowed may be loaded, for programs whose kind only the
    /// object tells.
    pub fn check_program(
        &self,
        reference: &Reference,
        image: &ImageRule,
        function: &str,
        kind: ProgramKind,
    ) -> Result<(), Refusal> {
        match refuse_kind(self.rule, function, kind) {
            Some(refusal) => Err(refusal),
            None if kind.scope() == Scope::Host && image.scope != Scope::Host => {
                Err(host_scope_image(function.to_owned(), kind, reference, image.name.clone()))
            }
            None => Ok(()),
        }
    }

    /// True if the delegation depends on what tokens reach on this kernel: host scope is not allowed, and the
    /// delegation permits loading programs, none of a type that is host scope on every kernel.
    pub fn needs_token_reach(&self) -> bool {
        let decides = |delegation: Delegation| delegation.loads_programs() && delegation.host_scope().is_empty();
        !self.host_scope && self.delegation.is_some_and(decides)
    }

    /// Decides whether the delegation stays in the container on this kernel. `reach` is called only if
    /// [`Self::needs_token_reach`] is true.
    ///
    /// # Errors
    /// [`Refusal::TokenReach`] with what is reached, through which function, and the preset that would be allowed.
    pub fn check_token_reach(&self, reach: impl FnOnce() -> TokenReach) -> Result<(), Refusal> {
        let Some(delegation) = self.delegation.filter(|_| self.needs_token_reach()) else { return Ok(()) };
        let reach = reach();
        match reach.delegation_beyond(&delegation) {
            None => Ok(()),
            Some(beyond) => Err(Refusal::TokenReach {
                smaller: smaller(&reach, &delegation),
                beyond: beyond.to_string(),
                rule: self.rule.place.to_string(),
            }),
        }
    }

    /// Decides whether the container's capabilities keep its token harmless to others. `names` are the capabilities
    /// that any of its processes can obtain, spelled as in config.json.
    ///
    /// The kernel gives bpf_probe_read_kernel to every program type, socket filters included, if the loader has
    /// CAP_PERFMON or CAP_SYS_ADMIN in the user namespace of its token (kernel/bpf/helpers.c, `bpf_base_func_proto`;
    /// seen on 6.18). With one of them, even the smallest delegation is therefore host scope.
    pub fn check_capabilities<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<(), Refusal> {
        const READS_KERNEL: [&str; 2] = ["CAP_PERFMON", "CAP_SYS_ADMIN"];
        if self.delegation.is_none_or(|delegation| delegation.progs == 0) || self.host_scope {
            return Ok(());
        }
        match names.into_iter().find_map(|name| READS_KERNEL.into_iter().find(|known| *known == name)) {
            Some(capability) => Err(Refusal::KernelReads { capability, rule: self.rule.place.to_string() }),
            None => Ok(()),
        }
    }

    /// Decides whether a variable of an object that `image` allowed may be set.
    pub fn check_global(&self, reference: &Reference, image: &ImageRule, name: &str) -> Result<(), Refusal> {
        check_global(reference, image, name)
    }

    /// Decides whether a map of an object that `image` allowed may be shown.
    pub fn check_map(&self, reference: &Reference, image: &ImageRule, name: &str, access: MapAccess) -> Result<(), Refusal> {
        check_name(Name::Map(name, access), reference, image)
    }
}

/// Decides whether a variable of an object that `image` allowed may be set by a client or workload that policy binds.
pub fn check_global(reference: &Reference, image: &ImageRule, name: &str) -> Result<(), Refusal> {
    check_name(Name::Global(name), reference, image)
}

fn check_name(name: Name<'_>, reference: &Reference, image: &ImageRule) -> Result<(), Refusal> {
    if name.allowed_by(image) { Ok(()) } else { Err(name.refusal(reference.repository())) }
}

#[cfg(test)]
mod tests;
