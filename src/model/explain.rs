//! Explains how the policy decides a request: for `policy explain`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::model::admission::{Admission, examine, no_container_rule};
use crate::model::annotations::{
    AttachRequest, BpffsRequest, InterfaceSelector, MapAccess, OnFailure, ProgramsRequest, Request,
};
use crate::model::attach_point::{ProgramKind, Scope, told_place};
use crate::model::bytecode::PullPolicy;
use crate::model::delegation::Delegation;
use crate::model::police::PoliceMode;
use crate::model::policy::{ContainerFacts, ContainerLimits, ImageRule, Policy, Signer};
use crate::model::reach::TokenReach;

/// The whole explanation. Its JSON form is stable: keys are added but never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// True if the policy refuses nothing. The checks in `checked_at_start` can still fail.
    pub allowed: bool,
    /// The container that was described.
    pub container: String,
    /// The container rule that decides.
    pub rule: Option<String>,
    /// The requested programs; one without a function stands for all programs of its image.
    pub programs: Vec<ExplainedProgram>,
    /// The images, with the rules that may allow each of them.
    pub images: Vec<ExplainedImage>,
    /// Variables to set.
    pub globals: Vec<String>,
    /// Maps to show, `name:ro as file`.
    pub maps: Vec<String>,
    /// The bpffs.
    pub bpffs: Option<ExplainedBpffs>,
    /// What the container may do through the proxy of bpf(2), as for the bpffs; None if that is not requested.
    pub proxy: Option<BTreeMap<&'static str, Vec<String>>>,
    /// The same, for one line.
    #[serde(skip)]
    pub proxied: Option<Delegation>,
    /// How the container's own bpf(2) calls are policed; None if they are not.
    pub police: Option<ExplainedPolice>,
    /// When the registry is contacted.
    pub pull_policy: PullPolicy,
    /// The effect of a failure.
    pub on_failure: OnFailure,
    /// True if precreate may add capabilities and seccomp rules.
    pub grant: bool,
    /// Limits for the container.
    pub limits: ContainerLimits,
    /// The refusals, one sentence each.
    pub refused: Vec<String>,
    /// Settings that are accepted but have no effect, one sentence each.
    pub warnings: Vec<String>,
    /// Checks that need the running container and are done at its start, one sentence each.
    pub checked_at_start: Vec<String>,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedProgram {
    /// Its kind; None if only the object tells.
    #[serde(rename = "type")]
    pub kind: Option<ProgramKind>,
    /// Its function; None for all programs of the image.
    pub function: Option<String>,
    /// Where it attaches, as far as the request specifies it.
    pub place: String,
    /// Its image.
    pub image: String,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedImage {
    /// The reference, normalised.
    pub reference: String,
    /// The rules that may allow it; empty if it is refused.
    pub rules: Vec<ExplainedRule>,
}

/// One image rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedRule {
    /// Its name.
    pub name: String,
    /// The repositories that it covers.
    pub repository: String,
    /// The signers; empty if no signature is required.
    pub signed_by: Vec<String>,
    /// How far its programs may reach.
    pub scope: Scope,
}

/// Policing, which needs no request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedPolice {
    /// `warn` or `enforce`.
    pub mode: PoliceMode,
    /// The names that are allowed, by the policy's key; without `helpers` or `kfuncs` any of them are.
    pub allows: BTreeMap<&'static str, Vec<String>>,
}

/// The bpffs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedBpffs {
    /// The mount point.
    pub path: PathBuf,
    /// The delegation, the kernel's names by `cmds`, `maps`, `progs`, `attachs`; None for a private bpffs.
    pub delegates: Option<BTreeMap<&'static str, Vec<String>>>,
    /// The same, for one line.
    #[serde(skip)]
    pub delegation: Option<Delegation>,
    /// The reach of the delegation on this kernel; None for a private bpffs.
    pub scope: Option<String>,
}

impl Explanation {
    /// Explains a request; None if it has no bpfman-hook annotation and the policy does not police the container.
    ///
    /// `reach` returns what this kernel allows a token to reach, None if that is unknown. It is called only if programs
    /// can be loaded with the token.
    pub fn of(
        policy: &Policy,
        facts: &ContainerFacts,
        annotations: &BTreeMap<String, String>,
        reach: impl FnOnce() -> Option<TokenReach>,
    ) -> Option<Self> {
        let mut explanation = Self::blank(policy, facts);
        let request = match Request::parse(annotations, facts.container.as_deref()) {
            Ok(Some(request)) => request,
            Ok(None) => {
                policy.container_rule(facts).filter(|rule| rule.police.is_some())?;
                Request::nothing()
            }
            Err(error) => {
                explanation.refused.push(error.to_string());
                return Some(explanation);
            }
        };
        let Some(rule) = policy.container_rule(facts) else {
            explanation.refused.push(no_container_rule(facts).to_string());
            return Some(explanation);
        };
        let (admission, refusals) = examine(policy, rule, &request);
        explanation.rule = Some(rule.place.to_string());
        explanation.programs = programs(&request);
        explanation.images = admission
            .images
            .iter()
            .map(|(reference, rules)| ExplainedImage {
                reference: reference.to_string(),
                rules: rules.iter().map(|rule| ExplainedRule::of(rule)).collect(),
            })
            .collect();
        explanation.globals = request.globals.iter().map(|global| global.name.clone()).collect();
        explanation.maps = request
            .maps
            .iter()
            .map(|map| {
                let access = if map.access == MapAccess::ReadOnly { "ro" } else { "rw" };
                format!("{}:{access} as {}", map.name, map.file_name)
            })
            .collect();
        let reach = match admission.delegation {
            Some(delegation) if delegation.loads_programs() => reach(),
            _ => None,
        };
        explanation.bpffs = match &request.bpffs {
            BpffsRequest::None => None,
            BpffsRequest::Private { path } => {
                Some(ExplainedBpffs { path: path.clone(), delegates: None, delegation: None, scope: None })
            }
            BpffsRequest::Token { path, .. } => Some(ExplainedBpffs {
                path: path.clone(),
                delegates: admission.delegation.as_ref().map(Delegation::by_word),
                delegation: admission.delegation,
                scope: admission.delegation.as_ref().map(|delegation| token_scope(delegation, reach.as_ref())),
            }),
        };
        explanation.proxied = admission.proxy.as_ref().map(|grant| grant.delegation);
        explanation.proxy = explanation.proxied.as_ref().map(Delegation::by_word);
        explanation.police = rule.police.as_ref().map(|police| ExplainedPolice { mode: police.mode, allows: police.allowed() });
        explanation.pull_policy = admission.pull;
        explanation.on_failure = admission.on_failure;
        explanation.grant = admission.grant;
        explanation.refused.extend(refusals.iter().map(ToString::to_string));
        if let Some(reach) = &reach
            && let Err(refusal) = admission.check_token_reach(|| reach.clone())
        {
            explanation.refused.push(refusal.to_string());
        }
        if admission.delegation.is_some() && !facts.userns {
            explanation.refused.push("a BPF token needs a container with a user namespace of its own".to_owned());
        }
        explanation.allowed = explanation.refused.is_empty();
        explanation.warnings = request.without_effect();
        explanation.checked_at_start = checked_at_start(&request, &admission, reach.as_ref());
        Some(explanation)
    }

    fn blank(policy: &Policy, facts: &ContainerFacts) -> Self {
        Self {
            allowed: false,
            container: facts.to_string(),
            rule: None,
            programs: Vec::new(),
            images: Vec::new(),
            globals: Vec::new(),
            maps: Vec::new(),
            bpffs: None,
            proxy: None,
            proxied: None,
            police: None,
            pull_policy: PullPolicy::IfNotPresent,
            on_failure: OnFailure::Stop,
            grant: false,
            limits: policy.limits,
            refused: Vec::new(),
            warnings: Vec::new(),
            checked_at_start: Vec::new(),
        }
    }
}

impl ExplainedRule {
    /// An image rule for a listing.
    pub fn of(rule: &ImageRule) -> Self {
        Self {
            name: rule.name.clone(),
            repository: rule.repository.to_string(),
            signed_by: rule.signed_by.iter().map(Signer::to_string).collect(),
            scope: rule.scope,
        }
    }
}

/// The reach of a token with this delegation, for one line.
fn token_scope(delegation: &Delegation, reach: Option<&TokenReach>) -> String {
    if !delegation.host_scope().is_empty() {
        return "host: it includes types that reach the whole host on every kernel".to_owned();
    }
    if !delegation.loads_programs() {
        return "container: no program can be loaded with the token".to_owned();
    }
    match reach {
        None => "not known yet: run this as root, or `bpfman-hook doctor`".to_owned(),
        Some(reach) => match reach.delegation_beyond(delegation) {
            Some(beyond) => format!("host: {beyond}"),
            None => "container, on this kernel".to_owned(),
        },
    }
}

fn programs(request: &Request) -> Vec<ExplainedProgram> {
    match &request.programs {
        ProgramsRequest::None => Vec::new(),
        ProgramsRequest::All { from } => vec![ExplainedProgram {
            kind: None,
            function: None,
            place: "as their ELF sections say".to_owned(),
            image: from.to_string(),
        }],
        ProgramsRequest::Listed(programs) => programs
            .iter()
            .map(|program| ExplainedProgram {
                kind: Some(program.attach.kind()),
                function: Some(program.function.clone()),
                place: place(&program.attach),
                image: program.from.to_string(),
            })
            .collect(),
    }
}

fn place(attach: &AttachRequest) -> String {
    const SECTION: &str = "as its ELF section says";
    let interface = |iface: &InterfaceSelector| match iface {
        InterfaceSelector::Named(name) => name.clone(),
        InterfaceSelector::All => "all interfaces but lo".to_owned(),
    };
    match attach {
        AttachRequest::Xdp { iface, .. } => interface(iface),
        AttachRequest::Tcx { iface, direction } | AttachRequest::Tc { iface, direction } => {
            let direction = direction.map_or(SECTION.to_owned(), |direction| direction.to_string());
            format!("{} {direction}", interface(iface))
        }
        AttachRequest::Cgroup { attach, .. } => attach.map_or(SECTION, |attach| attach.word()).to_owned(),
        AttachRequest::Tracepoint { target: Some(target) } => format!("{}/{}", target.category, target.name),
        AttachRequest::RawTracepoint { target: Some(target) } => target.clone(),
        AttachRequest::Kprobe { target: Some((function, 0)), .. } => function.clone(),
        AttachRequest::Kprobe { target: Some((function, offset)), .. } => format!("{function}+{offset:#x}"),
        AttachRequest::Trampoline { target: Some(target), .. } => target.clone(),
        AttachRequest::Uprobe { target: Some(target), symbol, offset, .. } => match (symbol, offset) {
            (Some(symbol), 0) => format!("{target}:{symbol}"),
            (Some(symbol), offset) => format!("{target}:{symbol}+{offset:#x}"),
            (None, offset) => format!("{target}:{offset:#x}"),
        },
        AttachRequest::Told { kind, target, options } => {
            told_place(*kind, target.as_deref(), options).map_or_else(|_| SECTION.to_owned(), |at| at.to_string())
        }
        AttachRequest::Kprobe { target: None, .. }
        | AttachRequest::Trampoline { target: None, .. }
        | AttachRequest::Uprobe { target: None, .. } => SECTION.to_owned(),
        AttachRequest::Tracepoint { target: None } | AttachRequest::RawTracepoint { target: None } => SECTION.to_owned(),
    }
}

/// The checks that remain after the policy's decision.
fn checked_at_start(request: &Request, admission: &Admission<'_>, reach: Option<&TokenReach>) -> Vec<String> {
    let mut open = Vec::new();
    let kinds: Vec<ProgramKind> = match &request.programs {
        ProgramsRequest::Listed(programs) => programs.iter().map(|program| program.attach.kind()).collect(),
        ProgramsRequest::All { .. } => {
            open.push("every program of the image is of a kind that the container rule allows".to_owned());
            Vec::new()
        }
        ProgramsRequest::None => Vec::new(),
    };
    if !admission.images.is_empty() {
        open.push("each image satisfies one of its rules, by signature and digest".to_owned());
    }
    let delegation = admission.delegation.unwrap_or_default();
    let host = if admission.host_scope { ", or the image's rule has scope = \"host\"" } else { "" };
    if kinds.iter().any(|kind| kind.on_netns()) {
        open.push(format!("the network namespace was made for the container or its pod{host}"));
    }
    if kinds.iter().any(|kind| kind.on_cgroup()) {
        open.push(format!("the cgroup is the container's own and holds no other processes{host}"));
    }
    if delegation.reaches_cgroups() && !admission.host_scope {
        open.push(
            "a token for cgroup programs: the container has a cgroup namespace of its own and sees no cgroups of the host"
                .to_owned(),
        );
    }
    if delegation.reaches_netns() && !admission.host_scope {
        open.push("a token for network programs: the network namespace was made for the container or its pod".to_owned());
    }
    if admission.delegation.is_some() {
        open.push("a token: the container has CAP_BPF, and its seccomp profile allows bpf(2)".to_owned());
    }
    if delegation.progs != 0 && !admission.host_scope && reach.is_none_or(|reach| !reach.guarded) {
        open.push(
            "a token: the container has neither CAP_PERFMON nor CAP_SYS_ADMIN, with which it could read kernel memory"
                .to_owned(),
        );
    }
    if let Some(grant) = &admission.proxy {
        open.push("the proxy: the container's seccomp profile has bpfman-hook's listener and rules".to_owned());
        if grant.delegation.reaches_netns() && !grant.host_scope {
            open.push("the proxy: the network namespace was made for the container or its pod".to_owned());
        }
    }
    if admission.rule.police.is_some() {
        open.push("policing: the kernel calls LSM programs, and the container has a v2 cgroup of its own".to_owned());
    }
    if !request.maps.is_empty() {
        open.push("the maps exist, can be shown as requested, and the seccomp profile allows bpf(2)".to_owned());
    }
    open
}

impl fmt::Display for Explanation {
    /// One subject per line, then the refusals, then the remaining checks. `{:#}` spells out what is delegated.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "container", &self.container)?;
        line(f, "decided by", self.rule.as_deref().unwrap_or("nothing"))?;
        for program in &self.programs {
            let kind = program.kind.map_or("", ProgramKind::word);
            let function = program.function.as_deref().unwrap_or("all programs");
            let what = format!("{kind} {function}");
            line(f, "program", &format!("{}, {}, from {}", what.trim_start(), program.place, program.image))?;
        }
        for image in &self.images {
            let rules = image.rules.iter().map(|rule| match rule.signed_by.is_empty() {
                true => format!("{} (unsigned)", rule.name),
                false => format!("{} (signed by {})", rule.name, rule.signed_by.join(" or ")),
            });
            let rules = rules.collect::<Vec<_>>().join(", or ");
            line(f, "image", &format!("{}, by {}", image.reference, if rules.is_empty() { "no rule" } else { &rules }))?;
        }
        for (subject, names) in [("globals", &self.globals), ("maps", &self.maps)] {
            if !names.is_empty() {
                line(f, subject, &names.join(", "))?;
            }
        }
        if let Some(bpffs) = &self.bpffs {
            line(f, "bpffs", &bpffs.path.display().to_string())?;
            delegated(f, "delegates", bpffs.delegation.as_ref())?;
            if let Some(scope) = &bpffs.scope {
                line(f, "token scope", scope)?;
            }
        }
        delegated(f, "proxy", self.proxied.as_ref())?;
        if let Some(police) = &self.police {
            line(f, "police", &police.mode.to_string())?;
            for (word, names) in police.allows.iter().filter(|(_, names)| !names.is_empty()) {
                line(f, "allows", &format!("{word} {}", names.join(" ")))?;
            }
        }
        line(f, "on failure", if self.on_failure == OnFailure::Stop { "stop" } else { "continue" })?;
        line(f, "allowed", if self.allowed { "yes, as far as policy can tell" } else { "no" })?;
        for (subject, sentences) in
            [("refused", &self.refused), ("warning", &self.warnings), ("at start", &self.checked_at_start)]
        {
            for sentence in sentences {
                line(f, subject, sentence)?;
            }
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, subject: &str, text: &str) -> fmt::Result {
    writeln!(f, "{subject:<12}{text}")
}

/// A delegation in one line; with `{:#}` one line for each set, with every name.
fn delegated(f: &mut fmt::Formatter<'_>, subject: &str, delegation: Option<&Delegation>) -> fmt::Result {
    let Some(delegation) = delegation else { return Ok(()) };
    if !f.alternate() {
        return line(f, subject, &delegation.summary());
    }
    let sets = delegation.by_word();
    sets.iter()
        .filter(|(_, names)| !names.is_empty())
        .try_for_each(|(word, names)| line(f, subject, &format!("{word} {}", names.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::annotations::PREFIX;
    use crate::model::policy::Engine;
    use crate::model::reach::TypeAnswer;

    const POLICY: &str = r#"
[[image]]
name = "acme"
repository = "ghcr.io/acme/*"
signed-by = [{ key = "/k.pub" }, { key = "/l.pub" }]
[[container]]
match = { engine = "podman" }
programs = ["xdp", "cgroup_skb"]
delegate = ["networking", "sockets"]
"#;

    fn explain(engine: Engine, userns: bool, annotations: &[(&str, &str)]) -> Option<Explanation> {
        // A kernel that offers nothing to socket filters, and socket lookups to xdp.
        let offers = |names: &[&str]| TypeAnswer::Offers(names.iter().map(|name| (*name).to_owned()).collect());
        let types = BTreeMap::from([(1, offers(&[])), (6, offers(&["bpf_sk_lookup_tcp"]))]);
        explain_on(engine, userns, annotations, Some(TokenReach { types, ..TokenReach::default() }))
    }

    fn explain_on(
        engine: Engine,
        userns: bool,
        annotations: &[(&str, &str)],
        reach: Option<TokenReach>,
    ) -> Option<Explanation> {
        let policy = Policy::parse(&[(PathBuf::from("/p.toml"), POLICY.to_owned())]).unwrap_or_else(|error| panic!("{error}"));
        let facts = ContainerFacts {
            engine,
            namespace: None,
            pod: None,
            container: None,
            labels: Default::default(),
            runtime_user: 0,
            userns,
        };
        let annotations = annotations.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect();
        Explanation::of(&policy, &facts, &annotations, || reach)
    }

    #[test]
    fn an_allowed_request_is_explained() {
        let annotations = [
            ("image", "ghcr.io/acme/x"),
            ("programs", "xdp:count iface=lo; cgroup_skb:mark attach=egress"),
            ("globals", "rate=1"),
            ("maps", "events"),
            ("delegate-cmds", "prog_load:map_create"),
            ("delegate-progs", "socket_filter"),
            ("delegate-attachs", "cgroup_inet_ingress"),
        ];
        let explanation = explain(Engine::Podman, true, &annotations).expect("ours");
        let expected = "\
container   engine podman, runtime user 0, with a user namespace
decided by  the container rule at /p.toml:6
program     xdp count, lo, from ghcr.io/acme/x:latest
program     cgroup_skb mark, egress, from ghcr.io/acme/x:latest
image       ghcr.io/acme/x:latest, by acme (signed by /k.pub or /l.pub)
globals     rate
maps        events:ro as events
bpffs       /sys/fs/bpf
delegates   attachs cgroup_inet_ingress
delegates   cmds map_create prog_load
delegates   progs socket_filter
token scope container, on this kernel
on failure  stop
allowed     yes, as far as policy can tell
at start    each image satisfies one of its rules, by signature and digest
at start    the network namespace was made for the container or its pod
at start    the cgroup is the container's own and holds no other processes
at start    a token: the container has CAP_BPF, and its seccomp profile allows bpf(2)
at start    a token: the container has neither CAP_PERFMON nor CAP_SYS_ADMIN, with which it could read kernel memory
at start    the maps exist, can be shown as requested, and the seccomp profile allows bpf(2)
";
        assert_eq!(format!("{explanation:#}"), expected);
        let brief = "delegates   cmds map_create prog_load, progs socket_filter, attachs cgroup_inet_ingress\n";
        assert!(explanation.to_string().contains(brief), "{explanation}");
        let json = serde_json::to_value(&explanation).expect("plain data");
        assert_eq!(json["allowed"], true);
        assert_eq!(json["programs"][0]["type"], "xdp");
        assert_eq!(json["bpffs"]["delegates"]["cmds"][1], "prog_load");
        assert_eq!(json["images"][0]["rules"][0]["signed_by"][1], "/l.pub");
    }

    #[test]
    fn policing_is_explained_without_an_annotation() {
        let text = "[[container]]\nmatch = { engine = \"podman\" }\ndelegate = [\"maps\"]\n\
                    police = { mode = \"enforce\", cmds = [\"map_create\"], maps = [\"array\"], helpers = [] }\n";
        let policy = Policy::parse(&[(PathBuf::from("/p.toml"), text.to_owned())]).unwrap_or_else(|error| panic!("{error}"));
        let of = |engine, annotations: &BTreeMap<String, String>| {
            let labels = BTreeMap::new();
            let facts =
                ContainerFacts { engine, namespace: None, pod: None, container: None, labels, runtime_user: 0, userns: true };
            Explanation::of(&policy, &facts, annotations, || None)
        };
        let explanation = of(Engine::Podman, &BTreeMap::new()).expect("a rule polices it");
        let expected = "\
container   engine podman, runtime user 0, with a user namespace
decided by  the container rule at /p.toml:1
police      enforce
allows      cmds map_create
allows      maps array
on failure  stop
allowed     yes, as far as policy can tell
at start    policing: the kernel calls LSM programs, and the container has a v2 cgroup of its own
";
        assert_eq!(explanation.to_string(), expected);
        let json = serde_json::to_value(&explanation).expect("plain data");
        assert_eq!(json["police"]["mode"], "enforce");
        assert_eq!(json["police"]["allows"]["helpers"], serde_json::json!([]));
        assert!(json["police"]["allows"].get("kfuncs").is_none(), "any may be called");
        let asks = BTreeMap::from([(format!("{PREFIX}delegate"), "maps".to_owned())]);
        assert!(
            of(Engine::Podman, &asks).is_some_and(|explanation| explanation.police.is_some() && explanation.bpffs.is_some())
        );
        assert!(of(Engine::Oci, &BTreeMap::new()).is_none(), "no rule matches it");
    }

    #[test]
    fn the_token_scope_depends_on_the_kernel() {
        let sockets = [("delegate-cmds", "prog_load"), ("delegate-progs", "xdp"), ("delegate-attachs", "xdp")];
        let refused = explain(Engine::Podman, true, &sockets).expect("ours");
        let sentence = "progs xdp reaches sockets of other network namespaces and, with a sockmap, their TCP data on this kernel \
                        (bpf_sk_lookup_tcp); the container rule at /p.toml:6 has no host-scope = true: add it, or request \
                        delegate=maps";
        assert!(refused.refused.contains(&sentence.to_owned()), "{refused}");
        let unknown = explain_on(Engine::Podman, true, &[("delegate", "probes")], None).expect("ours");
        assert!(unknown.allowed && unknown.to_string().contains("token scope not known yet"), "{unknown}");
        let maps = explain_on(Engine::Podman, true, &[("delegate", "maps")], None).expect("ours");
        assert!(maps.allowed && maps.to_string().contains("token scope container: no program"), "{maps}");
    }

    #[test]
    fn every_refusal_is_listed() {
        let annotations =
            [("image", "ghcr.io/other/x"), ("programs", "tracepoint:f"), ("delegate", "tracing"), ("on-failure", "continue")];
        let explanation = explain(Engine::Podman, false, &annotations).expect("ours");
        assert!(!explanation.allowed);
        assert_eq!(explanation.refused.len(), 6, "{explanation}");
        assert!(explanation.refused[5].contains("user namespace"));
        let text = explanation.to_string();
        assert!(
            text.contains("image       ghcr.io/other/x:latest, by no rule\n") && text.contains("allowed     no\n"),
            "{text}"
        );
    }

    #[test]
    fn a_request_that_cannot_be_parsed_is_explained() {
        assert_eq!(explain(Engine::Podman, true, &[]), None);
        let unread = explain(Engine::Podman, true, &[("imgae", "x")]).expect("ours");
        assert!(!unread.allowed && unread.refused[0].contains("the nearest is image"), "{unread}");
        let nobody = explain(Engine::Oci, true, &[("image", "ghcr.io/acme/x")]).expect("ours");
        assert!(!nobody.allowed && nobody.refused[0].starts_with("no container rule"), "{nobody}");
        assert!(nobody.to_string().contains("decided by  nothing\n"));
    }
}
