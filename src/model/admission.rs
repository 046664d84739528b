//! A request against the policy: everything that can be decided before any network and without the object.

use crate::model::annotations::{BpffsRequest, MapAccess, OnFailure, ProgramRequest, ProgramsRequest, Request};
use crate::model::attach_point::{ProgramKind, Scope};
use crate::model::bytecode::PullPolicy;
use crate::model::delegation::{Category, Delegation, DelegationRequest, Preset};
use crate::model::policy::{ContainerFacts, ContainerRule, ImageRule, Limits, Policy, Refusal};
use crate::model::reach::{Guard, TokenReach};
use crate::model::reference::Reference;
use crate::model::words::listed;

/// What policy allows of one request, which is all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission<'a> {
    /// The container rule that decided.
    pub rule: &'a ContainerRule,
    /// Each reference of the request once, with the image rules that may allow it. One that its image satisfies suffices; which one that
    /// was decides what [`Admission::check_program`] and its siblings say.
    pub images: Vec<(&'a Reference, Vec<&'a ImageRule>)>,
    /// What is to be delegated; None where no token is asked for.
    pub delegation: Option<Delegation>,
    /// True where the container rule allows host scope. An image's rule has to as well for its programs; for delegation this one alone
    /// counts.
    pub host_scope: bool,
    /// When the registry is asked: the request's word, else the container rule's, else `IfNotPresent`.
    pub pull: PullPolicy,
    /// What happens when the request can not be fulfilled.
    pub on_failure: OnFailure,
    /// True where precreate may add capabilities and seccomp rules.
    pub grant: bool,
    /// Bounds for the container.
    pub limits: Limits,
}

/// Decides a request.
///
/// # Errors
/// The first thing that policy says no to; [`examine`] finds them all.
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

/// Adds to a refusal that a rule before the one that decided names labels, where none are known: hook files and the strict handler tell a
/// hook no labels.
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

/// What a request that fails or is refused does to its container: `continue` only where it says so and policy allows it.
pub fn on_failure(policy: &Policy, facts: &ContainerFacts, request: &Request) -> OnFailure {
    match policy.container_rule(facts) {
        Some(rule) if rule.allows_on_failure(request.on_failure) => request.on_failure,
        _ => OnFailure::Stop,
    }
}

/// The refusal of a container that no rule is for.
pub fn no_container_rule(facts: &ContainerFacts) -> Refusal {
    Refusal::NoContainerRule { facts: facts.to_string() }
}

/// Goes through a whole request under one container rule. The admission counts only where there are no refusals; else it says what
/// would remain.
pub fn examine<'a>(policy: &'a Policy, rule: &'a ContainerRule, request: &'a Request) -> (Admission<'a>, Vec<Refusal>) {
    let mut refusals = Vec::new();
    refuse_programs(policy, rule, request, &mut refusals);
    let images = candidates(policy, rule, request, &mut refusals);
    let delegation = match &request.bpffs {
        BpffsRequest::Token { delegation, .. } => Some(delegated(rule, delegation, &mut refusals)),
        BpffsRequest::None | BpffsRequest::Private { .. } => None,
    };
    if !rule.allows_on_failure(request.on_failure) {
        refusals.push(Refusal::OnFailure { rule: rule.place.to_string() });
    }
    let admission = Admission {
        rule,
        images,
        delegation,
        host_scope: rule.host_scope,
        pull: request.pull_policy.or(rule.pull_policy).unwrap_or(PullPolicy::IfNotPresent),
        on_failure: request.on_failure,
        grant: rule.grant,
        limits: policy.limits,
    };
    (admission, refusals)
}

/// Kinds and numbers, as far as the request names them.
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

/// The image rules for each reference that can still allow what is asked of it.
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
        // Its kinds are in the object alone: where host scope is allowed, rules that allow it too come first.
        ProgramsRequest::All { .. } if rule.host_scope => rules.sort_by_key(|rule| rule.scope != Scope::Host),
        ProgramsRequest::All { .. } | ProgramsRequest::None => {}
    }
    Ok(rules)
}

fn host_scope_image(function: String, kind: ProgramKind, reference: &Reference, image_rules: String) -> Refusal {
    Refusal::HostScopeImage { function, kind, reference: reference.repository(), image_rules }
}

/// A name that a request uses, of a variable or a map.
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

/// Drops the rules that do not let the request use all of its names. Which of several objects has a name is not known yet: there a name
/// needs one rule of any object, rules that allow more come first, and the rest is checked when the objects are known.
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

/// What is delegated under the rule's ceiling.
fn delegated(rule: &ContainerRule, request: &DelegationRequest, refusals: &mut Vec<Refusal>) -> Delegation {
    let place = || rule.place.to_string();
    let asked = request.under(&rule.delegate);
    if rule.delegate.is_empty() {
        refusals.push(Refusal::NothingDelegated { rule: place() });
        return Delegation::default();
    }
    let above = asked.without(&rule.delegate);
    if !above.is_empty() {
        let remedy = Preset::that_has(&above).map_or("them".to_owned(), |preset| format!("the preset \"{preset}\""));
        refusals.push(Refusal::Delegation { names: names(&above), remedy, rule: place() });
    } else if let Some(problem) = asked.useless() {
        refusals.push(Refusal::UselessDelegation { rule: place(), problem });
    }
    let beyond = asked.host_scope();
    if !beyond.is_empty() && !rule.host_scope {
        refusals.push(Refusal::HostScopeDelegation { names: names(&beyond), rule: place() });
    }
    asked.without(&above)
}

/// The word of the largest preset within a delegation that stays in the container on this kernel; `maps` always does.
fn smaller(reach: &TokenReach, delegation: &Delegation, guard: Guard) -> &'static str {
    let fits = |preset: Preset| {
        let part = preset.delegation();
        delegation.contains(&part) && part.host_scope().is_empty() && reach.delegation_beyond(&part, guard).is_none()
    };
    let found = Preset::ALL.into_iter().rev().find(|(preset, _)| preset.delegation().loads_programs() && fits(*preset));
    found.map_or("maps", |(_, word)| word)
}

/// Names for a sentence, program types first: they are what people think of.
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
    /// The candidate image rules for a reference; empty for one that the request does not name.
    pub fn rules(&self, reference: &Reference) -> &[&'a ImageRule] {
        self.images.iter().find(|(known, _)| *known == reference).map_or(&[], |(_, rules)| rules)
    }

    /// The rule of that name among the candidates for a reference, as an image that was checked names it.
    pub fn image_rule(&self, reference: &Reference, name: &str) -> Option<&'a ImageRule> {
        self.rules(reference).iter().find(|rule| rule.name == name).copied()
    }

    /// Whether a program of an object that `image` allowed may be loaded: for those whose kind only the object tells.
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

    /// Whether this kernel's verdict decides about the delegation: host scope is not allowed, and programs can be loaded with it of types
    /// that are not host scope on every kernel.
    pub fn needs_token_reach(&self) -> bool {
        let decides = |delegation: Delegation| delegation.loads_programs() && delegation.host_scope().is_empty();
        !self.host_scope && self.delegation.is_some_and(decides)
    }

    /// Whether what is delegated stays in the container on this kernel. `reach` is asked only where
    /// [`Self::needs_token_reach`] says so.
    ///
    /// # Errors
    /// [`Refusal::TokenReach`], with what is reached, by which function, and the preset that would do.
    pub fn check_token_reach(&self, reach: impl FnOnce() -> TokenReach, guard: Guard) -> Result<(), Refusal> {
        let Some(delegation) = self.delegation.filter(|_| self.needs_token_reach()) else { return Ok(()) };
        let reach = reach();
        match reach.delegation_beyond(&delegation, guard) {
            None => Ok(()),
            Some(beyond) => Err(Refusal::TokenReach {
                smaller: smaller(&reach, &delegation, guard),
                beyond: beyond.to_string(),
                rule: self.rule.place.to_string(),
            }),
        }
    }

    /// Whether the container's capabilities leave its token harmless to others; `names` are those that any of its processes can come to
    /// have, as config.json spells them.
    ///
    /// The kernel gives bpf_probe_read_kernel to every program type, socket filters included, if the loader has CAP_PERFMON or
    /// CAP_SYS_ADMIN in the user namespace of its token (kernel/bpf/helpers.c, `bpf_base_func_proto`; seen on 6.18). So with one of them
    /// the smallest delegation is host scope.
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

    /// Whether a variable of an object that `image` allowed may be set.
    pub fn check_global(&self, reference: &Reference, image: &ImageRule, name: &str) -> Result<(), Refusal> {
        check_global(reference, image, name)
    }

    /// Whether a map of an object that `image` allowed may be shown.
    pub fn check_map(&self, reference: &Reference, image: &ImageRule, name: &str, access: MapAccess) -> Result<(), Refusal> {
        check_name(Name::Map(name, access), reference, image)
    }
}

/// Whether whoever is bound by policy may set a variable of an object that `image` allowed.
pub fn check_global(reference: &Reference, image: &ImageRule, name: &str) -> Result<(), Refusal> {
    check_name(Name::Global(name), reference, image)
}

fn check_name(name: Name<'_>, reference: &Reference, image: &ImageRule) -> Result<(), Refusal> {
    if name.allowed_by(image) { Ok(()) } else { Err(name.refusal(reference.repository())) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;
    use crate::model::annotations::PREFIX;
    use crate::model::delegation::Preset;
    use crate::model::policy::Engine;
    use crate::model::reach::{MemoryRead, TypeAnswer};

    const POLICY: &str = r#"
[[image]]
name = "acme"
repository = "ghcr.io/acme/*"
signed-by = { key = "/k.pub" }
[[image]]
name = "acme-host"
repository = "ghcr.io/acme/host"
signed-by = { key = "/h.pub" }
scope = "host"
globals = ["rate"]
maps = ["events", "stats:rw"]
[[image]]
name = "keyless"
repository = "ghcr.io/keyless/*"
signed-by = { identity = "i", issuer = "j" }
[[image]]
name = "demo"
repository = "oci:/usr/share/demo"
unsigned = true
globals = []
maps = []
[[container]]
match = { runtime-user = 0 }
programs = ["xdp", "tcx", "tracepoint"]
host-scope = true
delegate = ["networking", "tracing"]
on-failure = ["continue"]
pull-policy = "Never"
grant = true
[[container]]
match = { runtime-user = 1 }
images = ["acme", "acme-host"]
programs = ["xdp", "tracepoint"]
delegate = { presets = ["maps", "probes"], progs = ["xdp"], attachs = ["xdp"] }
[[container]]
match = { runtime-user = 2 }
[limits]
programs = 2
"#;

    /// Keys without our prefix, and values.
    type Written<'a> = &'a [(&'a str, &'a str)];

    fn facts(runtime_user: u32) -> ContainerFacts {
        ContainerFacts {
            engine: Engine::Podman,
            namespace: None,
            pod: None,
            container: None,
            labels: Default::default(),
            runtime_user,
            userns: true,
        }
    }

    fn policy() -> Policy {
        Policy::parse(&[(PathBuf::from("/p.toml"), POLICY.to_owned())]).unwrap_or_else(|error| panic!("{error}"))
    }

    fn request(annotations: Written<'_>) -> Request {
        let annotations: BTreeMap<String, String> =
            annotations.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect();
        Request::parse(&annotations, None).unwrap_or_else(|error| panic!("{error}")).expect("ours")
    }

    #[test]
    fn without_rules_and_keys_the_missing_key_is_named() {
        let request = request(&[("image", "ghcr.io/acme/x:v1")]);
        let refusal = admit(&Policy::built_in([]), &facts(0), &request).expect_err("nothing could verify it").to_string();
        assert!(
            refusal.contains("ghcr.io/acme/x") && refusal.contains("put public keys into /etc/bpfman-hook/keys"),
            "{refusal}"
        );
        assert!(admit(&Policy::built_in([PathBuf::from("/k.pub")]), &facts(0), &request).is_ok());
    }

    /// The names of the candidates, or the sentence of the refusal.
    fn decide(user: u32, annotations: Written<'_>) -> Result<Vec<Vec<String>>, String> {
        let (policy, request) = (policy(), request(annotations));
        let admission = admit(&policy, &facts(user), &request).map_err(|refusal| refusal.to_string())?;
        let names = |rules: &[&ImageRule]| rules.iter().map(|rule| rule.name.clone()).collect();
        Ok(admission.images.iter().map(|(_, rules)| names(rules)).collect())
    }

    #[test]
    fn candidates_are_what_can_still_allow_it() {
        let host = ("image", "ghcr.io/acme/host");
        let cases: [(u32, Written<'_>, &[&[&str]]); 11] = [
            (0, &[("image", "ghcr.io/acme/x"), ("programs", "xdp:a")], &[&["acme"]]),
            (0, &[host, ("programs", "xdp:a")], &[&["acme", "acme-host"]]),
            (0, &[host, ("programs", "xdp:a; tracepoint:b")], &[&["acme-host"]]),
            // Where only the object tells the kinds, the rule that allows more comes first.
            (0, &[host], &[&["acme-host", "acme"]]),
            (1, &[host], &[&["acme", "acme-host"]]),
            (0, &[host, ("programs", "xdp:a"), ("globals", "rate=1")], &[&["acme", "acme-host"]]),
            (0, &[host, ("programs", "xdp:a"), ("globals", "other=1")], &[&["acme"]]),
            (0, &[host, ("programs", "tracepoint:a"), ("globals", "rate=1"), ("maps", "events; stats:rw")], &[&["acme-host"]]),
            (0, &[("image", "oci:/usr/share/demo:v1")], &[&["demo"]]),
            (0, &[("delegate", "maps")], &[]),
            // Two objects: which of them declares the name is known later, so nothing is dropped and the more allowing rule is first.
            (
                0,
                &[("programs", "xdp:a from=oci:/usr/share/demo; tcx:b from=ghcr.io/acme/host"), ("globals", "other=1")],
                &[&["demo"], &["acme", "acme-host"]],
            ),
        ];
        for (user, annotations, expected) in cases {
            let decided = decide(user, annotations).unwrap_or_else(|refusal| panic!("{annotations:?}: {refusal}"));
            assert_eq!(decided, expected, "{annotations:?}");
        }
    }

    #[test]
    fn refusals_name_the_rule_and_what_would_allow_it() {
        let acme = ("image", "ghcr.io/acme/x");
        let [zero, one, two] = ["/p.toml:23", "/p.toml:31", "/p.toml:36"].map(|at| format!("the container rule at {at}"));
        let cases: [(u32, Written<'_>, String); 19] = [
            (
                3,
                &[acme],
                "no container rule of the policy matches this container (engine podman, runtime user 3, with a user namespace); see \
                 bpfman-hook policy explain"
                    .to_owned(),
            ),
            (
                0,
                &[("image", "ghcr.io/other/x:v1")],
                format!("no image rule under {zero} speaks of ghcr.io/other/x; add an [[image]] with this repository and signed-by"),
            ),
            (
                0,
                &[("image", "file:/etc/shadow")],
                format!(
                    "file:/etc/shadow is a path on the host, and no image rule under {zero} names it or a directory above it; add an \
                     [[image]] that does"
                ),
            ),
            (
                1,
                &[("image", "oci:/usr/share/demo")],
                format!(
                    "oci:/usr/share/demo is a path on the host, and no image rule under {one} names it or a directory above it; add \
                     an [[image]] that does"
                ),
            ),
            (2, &[acme], format!("{two} allows no programs; write programs = [ … ] in it")),
            (
                0,
                &[acme, ("programs", "cgroup_skb:a")],
                format!("program a: {zero} does not allow cgroup_skb programs; add \"cgroup_skb\" to its programs"),
            ),
            (
                1,
                &[acme, ("programs", "tracepoint:a")],
                format!("program a: tracepoint programs see the whole host, and {one} has no host-scope = true"),
            ),
            (
                0,
                &[acme, ("programs", "tracepoint:a")],
                "program a: tracepoint programs see the whole host, and no image rule for ghcr.io/acme/x has scope = \"host\" (acme has not)"
                    .to_owned(),
            ),
            (
                0,
                &[("image", "ghcr.io/acme/host"), ("programs", "tracepoint:a"), ("globals", "other=1")],
                "no image rule for ghcr.io/acme/host lets a request set other; add it to globals of the rule".to_owned(),
            ),
            (
                0,
                &[("image", "ghcr.io/acme/host"), ("programs", "tracepoint:a"), ("maps", "events:rw")],
                "no image rule for ghcr.io/acme/host lets the map events be shown rw; add \"events:rw\" to maps of the rule".to_owned(),
            ),
            (
                0,
                &[("image", "oci:/usr/share/demo"), ("maps", "events")],
                "no image rule for oci:/usr/share/demo lets the map events be shown ro; add \"events:ro\" to maps of the rule".to_owned(),
            ),
            (2, &[("delegate", "maps")], format!("{two} delegates nothing; a [[container]] rule with delegate = [ … ] would")),
            (2, &[("delegate-cmds", "any")], format!("{two} delegates nothing; a [[container]] rule with delegate = [ … ] would")),
            (
                1,
                &[("delegate", "networking")],
                format!(
                    "{one} does not delegate progs lwt_xmit, sk_reuseport and 3 more; maps devmap, xskmap and 1 more; \
                     attachs flow_dissector, sk_lookup and 3 more; ask for less, or add the preset \"networking\" to its \
                     delegate"
                ),
            ),
            (
                1,
                &[("delegate", "maps"), ("delegate-cmds", "map_create:prog_load:link_create")],
                format!("{one} does not delegate cmds link_create; ask for less, or add them to its delegate"),
            ),
            (
                0,
                &[("delegate", "maps"), ("delegate-progs", "any"), ("delegate-cmds", "map_create")],
                format!(
                    "what {zero} delegates of this request is of no use: program types without the command prog_load can not be used; add it \
                     to delegate-cmds"
                ),
            ),
            (
                1,
                &[acme, ("on-failure", "continue")],
                format!("{one} does not allow on-failure=continue; remove the annotation, or write on-failure = [\"continue\"] in a [[container]] rule"),
            ),
            (
                0,
                &[acme, ("programs", "xdp:a; tcx:b; tcx:c")],
                "3 programs are asked for, and a container may have 2; raise programs under [limits] of the policy".to_owned(),
            ),
            (
                0,
                &[("programs", "xdp:a from=oci:/usr/share/demo; tcx:b from=ghcr.io/acme/host"), ("maps", "x:rw"), ("globals", "rate=1")],
                "".to_owned(),
            ),
        ];
        for (user, annotations, sentence) in cases {
            match decide(user, annotations) {
                Ok(_) => assert_eq!(sentence, "", "{annotations:?} was admitted"),
                Err(refusal) => assert_eq!(refusal, sentence, "{annotations:?}"),
            }
        }
    }

    #[test]
    fn delegation_is_exactly_what_was_asked_or_the_ceiling() {
        let policy = policy();
        let delegation = |user, annotations: Written<'_>| {
            let request = request(annotations);
            admit(&policy, &facts(user), &request).map(|admission| admission.delegation)
        };
        let maps = Preset::Maps.delegation();
        let probes = maps.union(Preset::Probes.delegation());
        let ceiling = policy.containers[1].delegate;
        assert_eq!(delegation(0, &[("delegate", "networking")]), Ok(Some(Preset::Networking.delegation())));
        assert_eq!(delegation(1, &[("delegate", "maps")]), Ok(Some(maps)));
        let any = [("delegate-cmds", "any"), ("delegate-maps", "any"), ("delegate-progs", "any"), ("delegate-attachs", "any")];
        assert_eq!(delegation(1, &any), Ok(Some(ceiling)));
        let some = [("delegate", "maps:probes"), ("delegate-progs", "any"), ("delegate-attachs", "xdp")];
        assert_eq!(delegation(1, &some), Ok(Some(Delegation { progs: ceiling.progs, attachs: 1 << 37, ..probes })));
        assert_eq!(delegation(0, &[("bpffs", "private")]), Ok(None));
    }

    #[test]
    fn a_ceiling_beyond_the_container_needs_host_scope_even_if_the_files_did_not() {
        let mut policy = policy();
        policy.containers[1].delegate = Preset::Tracing.delegation();
        let request = request(&[("delegate", "tracing")]);
        let refusal = admit(&policy, &facts(1), &request).expect_err("host scope").to_string();
        assert!(refusal.starts_with("progs kprobe, tracepoint and 3 more can not be kept inside a container"), "{refusal}");
    }

    #[test]
    fn what_a_delegation_reaches_on_this_kernel_needs_host_scope() {
        let offers = |names: &[&str]| TypeAnswer::Offers(names.iter().map(|name| (*name).to_owned()).collect());
        let types = |of: &[(u32, &[&str])]| of.iter().map(|(at, names)| (*at, offers(names))).collect();
        let quiet: &[(u32, &[&str])] = &[(1, &[]), (12, &[]), (21, &[]), (22, &[]), (30, &[]), (32, &[])];
        let closed = TokenReach { types: types(&[quiet, &[(6, &["bpf_skc_lookup_tcp"])]].concat()), ..TokenReach::default() };
        let open = TokenReach { memory: vec![MemoryRead::RdonlyCast], ..closed.clone() };
        let sockets = "reaches sockets of other network namespaces and, with a sockmap, their TCP data on this kernel";
        type Case<'c> = (u32, &'c TokenReach, Written<'c>, Option<(&'c str, &'c str)>);
        let cases: [Case<'_>; 7] = [
            (1, &closed, &[("delegate", "probes")], None),
            (1, &closed, &[("delegate", "maps:probes"), ("delegate-progs", "xdp")], Some((sockets, "maps"))),
            (1, &closed, &[("delegate", "maps:probes"), ("delegate-progs", "xdp socket_filter")], Some((sockets, "probes"))),
            (1, &open, &[("delegate", "probes")], Some(("reaches kernel memory on this kernel (bpf_rdonly_cast)", "maps"))),
            (1, &open, &[("delegate", "maps")], None),
            (1, &TokenReach::default(), &[("delegate", "probes")], Some(("what the probes could not find out", "maps"))),
            (0, &open, &[("delegate", "probes")], None),
        ];
        for (user, reach, annotations, refused) in cases {
            let (policy, request) = (policy(), request(annotations));
            let admission = admit(&policy, &facts(user), &request).unwrap_or_else(|refusal| panic!("{refusal}"));
            let asked = std::cell::Cell::new(false);
            let found = || {
                asked.set(true);
                reach.clone()
            };
            let sentence = admission.check_token_reach(found, Guard::Absent).map_err(|refusal| refusal.to_string());
            assert_eq!(asked.get(), admission.needs_token_reach(), "{annotations:?}");
            match (sentence, refused) {
                (Ok(()), None) => {}
                (Err(sentence), Some((what, smaller))) => {
                    let end = format!("no host-scope = true: add it, or ask for delegate={smaller}");
                    assert!(sentence.contains(what) && sentence.ends_with(&end), "{sentence}");
                    assert!(sentence.len() < 285, "{}: {sentence}", sentence.len());
                }
                (found, wanted) => panic!("{annotations:?}: {found:?}, not {wanted:?}"),
            }
        }
    }

    #[test]
    fn the_rest_comes_from_request_and_rule() {
        let policy = policy();
        let plain = request(&[("image", "ghcr.io/acme/x")]);
        let admission = admit(&policy, &facts(0), &plain).expect("allowed");
        assert_eq!((admission.pull, admission.grant, admission.host_scope), (PullPolicy::Never, true, true));
        assert_eq!((admission.limits.programs, admission.on_failure), (2, OnFailure::Stop));
        let wordy = request(&[("image", "ghcr.io/acme/x"), ("pull-policy", "Always"), ("on-failure", "continue")]);
        let admission = admit(&policy, &facts(0), &wordy).expect("allowed");
        assert_eq!((admission.pull, admission.on_failure), (PullPolicy::Always, OnFailure::Continue));
        let other = request(&[("image", "ghcr.io/acme/x")]);
        assert_eq!(admit(&policy, &facts(1), &other).expect("allowed").pull, PullPolicy::IfNotPresent);
        assert_eq!(on_failure(&policy, &facts(0), &wordy), OnFailure::Continue);
        assert_eq!(on_failure(&policy, &facts(1), &wordy), OnFailure::Stop);
        assert_eq!(on_failure(&policy, &facts(9), &wordy), OnFailure::Stop);
    }

    #[test]
    fn what_only_the_object_tells_is_checked_afterwards() {
        let policy = policy();
        let request = request(&[("image", "ghcr.io/acme/host")]);
        let admission = admit(&policy, &facts(0), &request).expect("allowed");
        let reference = admission.images[0].0;
        let host = admission.image_rule(reference, "acme-host").expect("candidate");
        let plain = admission.image_rule(reference, "acme").expect("candidate");
        assert_eq!(admission.image_rule(reference, "demo"), None);
        assert_eq!(admission.check_program(reference, host, "a", ProgramKind::Tracepoint), Ok(()));
        assert!(matches!(
            admission.check_program(reference, plain, "a", ProgramKind::Tracepoint),
            Err(Refusal::HostScopeImage { .. })
        ));
        assert!(matches!(admission.check_program(reference, host, "a", ProgramKind::SockOps), Err(Refusal::Kind { .. })));
        assert_eq!(admission.check_global(reference, host, "rate"), Ok(()));
        assert!(admission.check_global(reference, host, "other").is_err());
        assert_eq!(admission.check_map(reference, host, "stats", MapAccess::ReadWrite), Ok(()));
        assert!(admission.check_map(reference, host, "events", MapAccess::ReadWrite).is_err());
        assert_eq!(admission.check_map(reference, plain, "anything", MapAccess::ReadWrite), Ok(()));
    }

    #[test]
    fn a_token_beside_a_capability_that_reads_kernel_memory_is_host_scope() {
        let policy = policy();
        let token = request(&[("delegate", "probes")]);
        let maps_only = request(&[("delegate-cmds", "map_create"), ("delegate-maps", "array")]);
        let private = request(&[("bpffs", "private")]);
        let cases = [
            (1, &token, &["CAP_BPF", "CAP_NET_ADMIN"][..], None),
            (1, &token, &["CAP_BPF", "CAP_PERFMON"], Some("CAP_PERFMON")),
            (1, &token, &["CAP_SYS_ADMIN", "CAP_BPF"], Some("CAP_SYS_ADMIN")),
            (1, &maps_only, &["CAP_BPF", "CAP_PERFMON"], None),
            (1, &private, &["CAP_SYS_ADMIN"], None),
            (0, &token, &["CAP_BPF", "CAP_PERFMON"], None),
        ];
        for (user, request, capabilities, refused) in cases {
            let admission = admit(&policy, &facts(user), request).unwrap_or_else(|refusal| panic!("{refusal}"));
            let result = admission.check_capabilities(capabilities.iter().copied());
            let expected = refused.map(|capability| {
                format!(
                    "a BPF token and {capability} together read any memory of the kernel, and the container rule at /p.toml:31 has no \
                     host-scope = true; run the container without {capability}"
                )
            });
            assert_eq!(result.err().map(|refusal| refusal.to_string()), expected, "{user} {capabilities:?}");
        }
    }

    #[test]
    fn the_built_in_policy_allows_container_scope_and_nothing_more() {
        let policy = Policy::built_in([PathBuf::from("/k.pub")]);
        let allowed = [
            &[("image", "ghcr.io/a/b")][..],
            &[("image", "ghcr.io/a/b"), ("programs", "xdp:a"), ("maps", "m:rw"), ("globals", "g=1")],
        ];
        for annotations in allowed {
            assert!(admit(&policy, &facts(0), &request(annotations)).is_ok(), "{annotations:?}");
        }
        let refused = [
            &[("image", "ghcr.io/a/b"), ("programs", "tracepoint:a")][..],
            &[("image", "file:/x.o")],
            &[("delegate", "maps")],
            &[("image", "ghcr.io/a/b"), ("on-failure", "continue")],
        ];
        for annotations in refused {
            assert!(admit(&policy, &facts(0), &request(annotations)).is_err(), "{annotations:?}");
        }
    }

    #[test]
    fn examine_finds_every_reason() {
        let policy = policy();
        let request = request(&[
            ("image", "ghcr.io/other/x"),
            ("programs", "xdp:a; tracepoint:b; tcx:c"),
            ("delegate", "tracing"),
            ("on-failure", "continue"),
        ]);
        let (_, refusals) = examine(&policy, &policy.containers[1], &request);
        let names: Vec<String> =
            refusals.iter().map(|r| format!("{r:?}").split([' ', '{']).next().unwrap_or_default().to_owned()).collect();
        assert_eq!(
            names,
            ["TooManyPrograms", "HostScopeContainer", "Kind", "NoImageRule", "Delegation", "HostScopeDelegation", "OnFailure"]
        );
    }
}
