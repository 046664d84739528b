//! What a container needs in which a recorded workload runs: with a token, and with the proxy.

use std::collections::{BTreeMap, BTreeSet};

use super::{CallEnd, LibraryProbe, ProxyLimits, RecordedProgram, Recording, marks_library};
use crate::model::annotations::PREFIX;
use crate::model::delegation::{
    Category, Delegation, NeedReasons, NeededName, Spelling, TOKEN_USE, TokenNeeds, add_reason, attach_type_is_optional,
    helper_needs_perfmon, needs_net_admin, needs_perfmon, policy_rule, policy_set, policy_sets,
};
use crate::model::proxy::NotifiedCommand;
use crate::model::reach;

/// `enum bpf_cmd`
const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const BTF_LOAD: u32 = 18;
/// `enum bpf_map_type`
const ARRAY: u32 = 2;
/// `enum bpf_prog_type`
const SOCKET_FILTER: u32 = 1;
const TRACEPOINT: u32 = 5;
const CGROUP_SKB: u32 = 8;
const SYSCALL: u32 = 31;
/// `enum bpf_attach_type`
const NO_ATTACH_TYPE: u32 = 0;
/// probe_read_user, probe_read_kernel and their variants for text. Libraries replace them by older helpers if their probe
/// of the second is refused.
const READS: std::ops::RangeInclusive<u32> = 112..=115;
/// bpf_probe_read_kernel
const READ_KERNEL: u32 = 113;
/// What libbpf's probe of global variables creates.
const GLOBAL_DATA_MAP: &str = "libbpf_global";

/// What a recorded workload needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedNeeds {
    /// With a token.
    pub token: TokenNeeds,
    /// With the proxy.
    pub proxy: ProxyNeeds,
    /// What libraries tested that the workload does not need.
    pub probes: Vec<&'static str>,
    /// Calls that the kernel refused although nothing limited them, one phrase each.
    pub failed: Vec<String>,
}

/// What a rule for the proxy must contain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyNeeds {
    /// Commands, map types, program types and attach types.
    pub delegation: Delegation,
    /// Each name of it, then each helper and kfunc, with what needs it.
    pub names: Vec<NeededName>,
    /// The helpers that the programs call.
    pub helpers: BTreeSet<u32>,
    /// The functions of the kernel that they call.
    pub kfuncs: BTreeSet<String>,
    /// Why the rule needs `host-scope = true`, one sentence each; empty if it does not.
    pub host_scope: Vec<String>,
    /// What the proxy does not pass on, one sentence each.
    pub problems: Vec<String>,
}

impl ProxyNeeds {
    /// The annotations of a container, one line each.
    pub fn annotations(&self) -> String {
        format!("{}{PREFIX}delegate-via: proxy\n", Spelling::Annotations.write(&self.delegation, false))
    }

    /// The rule of a policy file, without its match.
    pub fn policy(&self) -> String {
        let mut sets = policy_sets(&self.delegation);
        let of_set = |set: &str| {
            let names = self.names.iter().filter(|needed| needed.set == set).map(|needed| needed.name.clone());
            names.collect::<Vec<_>>()
        };
        sets.push(policy_set("helpers", &of_set("helpers")));
        let kfuncs = of_set("kfuncs");
        if !kfuncs.is_empty() {
            sets.push(policy_set("kfuncs", &kfuncs));
        }
        policy_rule("proxy", &sets, !self.host_scope.is_empty())
    }
}

/// Needs that are being collected.
#[derive(Default)]
struct Collected {
    token: NeedReasons,
    proxy: NeedReasons,
    token_problems: Vec<String>,
    proxy_problems: Vec<String>,
    host_scope: Vec<String>,
    helpers: BTreeMap<u32, Vec<String>>,
    kfuncs: BTreeMap<String, Vec<String>>,
}

impl Collected {
    /// Both ways need a name.
    fn name(&mut self, category: Category, value: u32, reason: &str) {
        if value >= u64::BITS {
            let sentence = format!("{reason}: no delegation can contain the {} {value}", category.noun());
            add_reason(&mut self.token_problems, sentence.clone());
            add_reason(&mut self.proxy_problems, sentence);
            return;
        }
        self.token.name(category, value, reason);
        self.proxy.name(category, value, reason);
    }

    fn limits(&mut self, limits: &ProxyLimits) {
        if let Some(why) = &limits.host_scope {
            add_reason(&mut self.host_scope, why.clone());
        }
        if let Some(why) = &limits.not_passed_on {
            add_reason(&mut self.proxy_problems, why.clone());
        }
    }

    fn helper(&mut self, number: u32, reason: &str) {
        add_reason(self.helpers.entry(number).or_default(), reason.to_owned());
    }
}

impl RecordedNeeds {
    /// Derives the needs. Calls that the kernel refused need nothing.
    pub fn of(recording: &Recording) -> Self {
        let mut all = Collected::default();
        maps(recording, &mut all);
        if recording.types.iter().any(|types| !types.probe && is_used(types.end)) {
            all.name(Category::Cmds, BTF_LOAD, "types; libbpf loads most objects without them");
        }
        programs(recording, &mut all);
        probes(recording, &mut all);
        attachments(recording, &mut all);
        others(recording, &mut all);
        if all.token != NeedReasons::default() {
            all.token.bpf(TOKEN_USE);
        }
        let delegation = all.proxy.delegation();
        let (mut names, _) = all.proxy.into_lists();
        let helpers = all.helpers.keys().copied().collect();
        names.extend(all.helpers.into_iter().map(|(number, reasons)| {
            let name = reach::helper(number).map_or_else(|| number.to_string(), |helper| helper.name.to_owned());
            NeededName { set: "helpers", name, reasons }
        }));
        let kfuncs = all.kfuncs.keys().cloned().collect();
        names.extend(all.kfuncs.into_iter().map(|(name, reasons)| NeededName { set: "kfuncs", name, reasons }));
        let (host_scope, problems) = (all.host_scope, all.proxy_problems);
        let left_out = [LibraryProbe::Loading, LibraryProbe::AttachTypes, LibraryProbe::ReadKernel, LibraryProbe::Other];
        let is_needed = |probe: LibraryProbe| probe == LibraryProbe::ReadKernel && reads_kernel(recording);
        let left_out = left_out.into_iter().filter(|probe| seen(recording, *probe) && !is_needed(*probe));
        Self {
            token: TokenNeeds::with(all.token, all.token_problems),
            proxy: ProxyNeeds { delegation, names, helpers, kfuncs, host_scope, problems },
            probes: left_out.map(LibraryProbe::what).collect(),
            failed: failed(recording),
        }
    }
}

fn is_used(end: CallEnd) -> bool {
    !matches!(end, CallEnd::Failed(_))
}

/// The programs of the workload itself that were loaded.
fn loaded(recording: &Recording) -> impl Iterator<Item = &RecordedProgram> {
    recording.programs.iter().filter(|program| program.probe.is_none() && is_used(program.end))
}

fn seen(recording: &Recording, probe: LibraryProbe) -> bool {
    recording.programs.iter().any(|program| program.probe == Some(probe))
}

fn reads_kernel(recording: &Recording) -> bool {
    loaded(recording).any(|program| program.helpers.iter().any(|helper| READS.contains(helper)))
}

fn shown(name: &str, program_type: u32) -> String {
    let name = if name.is_empty() { "a program without a name" } else { name };
    format!("{name} ({})", type_name(Category::Progs, program_type))
}

fn type_name(category: Category, value: u32) -> String {
    category.name(value).map_or_else(|| value.to_string(), str::to_owned)
}

fn maps(recording: &Recording, all: &mut Collected) {
    for map in recording.maps.iter().filter(|map| is_used(map.end) && !marks_library(&map.name)) {
        let shown = if map.name.is_empty() { "a map without a name" } else { &map.name };
        all.name(Category::Cmds, MAP_CREATE, shown);
        all.name(Category::Maps, map.map_type, shown);
        if needs_net_admin(Category::Maps, map.map_type) {
            all.token.net_admin(shown);
        }
        all.limits(&map.limits);
    }
}

fn programs(recording: &Recording, all: &mut Collected) {
    // A library whose probe of attach types is refused sends 0 for some of them.
    let probed = seen(recording, LibraryProbe::AttachTypes);
    for program in loaded(recording) {
        let shown = shown(&program.name, program.program_type);
        all.name(Category::Cmds, PROG_LOAD, &shown);
        all.name(Category::Progs, program.program_type, &shown);
        if program.attach_type == NO_ATTACH_TYPE {
            all.name(Category::Attachs, NO_ATTACH_TYPE, &format!("{shown}, which has no attach type"));
        } else {
            all.name(Category::Attachs, program.attach_type, &shown);
            if probed && attach_type_is_optional(program.program_type, program.attach_type) {
                let reason = format!("{shown}, loaded by libbpf without its attach type if its probe of them is refused");
                all.name(Category::Attachs, NO_ATTACH_TYPE, &reason);
            }
        }
        if program.program_type == SYSCALL {
            let sentence = format!("{shown} cannot be loaded with a token that bpfman-hook gives: syscall is never delegated");
            add_reason(&mut all.token_problems, sentence);
        }
        if needs_net_admin(Category::Progs, program.program_type) {
            all.token.net_admin(shown.clone());
        }
        let perfmon_helper = program.helpers.iter().find(|helper| helper_needs_perfmon(**helper));
        if needs_perfmon(program.program_type) {
            all.token.perfmon(shown.clone());
        } else if let Some(helper) = perfmon_helper.and_then(|helper| reach::helper(*helper)) {
            all.token.perfmon(format!("{shown}, which calls bpf_{}", helper.name));
        }
        for helper in &program.helpers {
            all.helper(*helper, &shown);
        }
        for kfunc in &program.kfuncs {
            add_reason(all.kfuncs.entry(kfunc.clone()).or_default(), shown.clone());
        }
        all.limits(&program.limits);
    }
}

/// The probes of libraries without which they do not load the workload's programs.
fn probes(recording: &Recording, all: &mut Collected) {
    let succeeded = |probe| recording.programs.iter().any(|program| program.probe == Some(probe) && is_used(program.end));
    if succeeded(LibraryProbe::GlobalData) {
        let what = "the library's probe of global variables";
        if recording.maps.iter().any(|map| map.name == GLOBAL_DATA_MAP && is_used(map.end)) {
            all.name(Category::Cmds, MAP_CREATE, what);
            all.name(Category::Maps, ARRAY, what);
        }
        all.name(Category::Cmds, PROG_LOAD, what);
        all.name(Category::Progs, SOCKET_FILTER, what);
        all.name(Category::Attachs, NO_ATTACH_TYPE, what);
    }
    if succeeded(LibraryProbe::ReadKernel) && reads_kernel(recording) {
        let what = "the library's probe of bpf_probe_read_kernel, without which it calls bpf_probe_read instead";
        all.name(Category::Progs, TRACEPOINT, what);
        all.name(Category::Attachs, NO_ATTACH_TYPE, what);
        all.helper(READ_KERNEL, what);
    }
    if succeeded(LibraryProbe::Loading) && loaded(recording).next().is_some() {
        // With a token libbpf does not try.
        let what = "libbpf's trial program, without which it loads nothing";
        all.proxy.name(Category::Progs, SOCKET_FILTER, what);
        all.proxy.name(Category::Attachs, NO_ATTACH_TYPE, what);
    }
}

/// The kernel asks the proxy for the attach type of each attachment, and of a token for nothing.
fn attachments(recording: &Recording, all: &mut Collected) {
    for attachment in recording.attachments.iter().filter(|attachment| is_used(attachment.end)) {
        let shown = format!("attaching {}", shown(&attachment.program, attachment.program_type));
        all.proxy.name(Category::Cmds, PROG_LOAD, shown.clone());
        all.proxy.name(Category::Progs, attachment.program_type, shown.clone());
        if let Some(attach_type) = attachment.attach_type {
            all.proxy.name(Category::Attachs, attach_type, shown.clone());
        }
        if attachment.program_type == CGROUP_SKB {
            all.token.net_admin(shown);
        }
        all.limits(&attachment.limits);
    }
}

/// Calls that neither a token nor the proxy makes possible.
fn others(recording: &Recording, all: &mut Collected) {
    let notified = |command: &u32| NotifiedCommand::ALL.iter().any(|known| known.number() == *command);
    let names: Vec<_> = recording
        .calls
        .keys()
        .filter(|command| !notified(command))
        .map(|command| type_name(Category::Cmds, *command))
        .collect();
    if !names.is_empty() {
        let sentence = format!(
            "the workload calls {}: the proxy's seccomp profile does not allow that, and a token rarely does (token probe --matrix)",
            names.join(", ")
        );
        add_reason(&mut all.token_problems, sentence.clone());
        add_reason(&mut all.proxy_problems, sentence);
    }
    if recording.perf_events > 0 {
        let sentence = "the workload calls perf_event_open(2), which a token does not cover".to_owned();
        add_reason(&mut all.token_problems, sentence);
    }
}

fn failed(recording: &Recording) -> Vec<String> {
    let errno = |end| match end {
        CallEnd::Failed(errno) => Some(errno),
        CallEnd::Done | CallEnd::Unknown => None,
    };
    let mut failed = Vec::new();
    for program in recording.programs.iter().filter(|program| program.probe.is_none()) {
        if let Some(errno) = errno(program.end) {
            failed.push(format!("prog_load of {}: errno {errno}", shown(&program.name, program.program_type)));
        }
    }
    for map in &recording.maps {
        if let Some(errno) = errno(map.end) {
            failed.push(format!("map_create of {} ({}): errno {errno}", map.name, type_name(Category::Maps, map.map_type)));
        }
    }
    for attachment in &recording.attachments {
        if let Some(errno) = errno(attachment.end)
            // libraries also probe kinds of links, with programs that have no name.
            && !attachment.program.is_empty()
        {
            failed.push(format!("attaching {}: errno {errno}", shown(&attachment.program, attachment.program_type)));
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::super::{RecordedAttachment, RecordedMap, RecordedTypes};
    use super::*;

    fn program(name: &str, program_type: u32, attach_type: u32, helpers: &[u32]) -> RecordedProgram {
        RecordedProgram {
            name: name.into(),
            program_type,
            attach_type,
            helpers: helpers.iter().copied().collect(),
            kfuncs: BTreeSet::new(),
            probe: None,
            end: CallEnd::Done,
            limits: ProxyLimits::default(),
        }
    }

    fn probe(probe: LibraryProbe, program_type: u32) -> RecordedProgram {
        RecordedProgram { probe: Some(probe), ..program("", program_type, 0, &[]) }
    }

    fn map(name: &str, map_type: u32) -> RecordedMap {
        RecordedMap { name: name.into(), map_type, end: CallEnd::Done, limits: ProxyLimits::default() }
    }

    fn attachment(name: &str, program_type: u32, attach_type: u32) -> RecordedAttachment {
        RecordedAttachment {
            program: name.into(),
            program_type,
            attach_type: Some(attach_type),
            end: CallEnd::Done,
            limits: ProxyLimits::default(),
        }
    }

    #[test]
    fn both_ways_get_what_they_ask_for() {
        let xdp = Recording {
            programs: vec![
                probe(LibraryProbe::Other, 1),
                probe(LibraryProbe::Loading, 1),
                probe(LibraryProbe::AttachTypes, 9),
                program("count", 6, 37, &[1]),
            ],
            maps: vec![map("libbpf_mmap", 2), map("packets", 1)],
            attachments: vec![attachment("count", 6, 37)],
            ..Recording::default()
        };
        // A call of its own without a name is no probe, unless a library was seen.
        let bare = Recording { programs: vec![program("", 1, 0, &[])], ..Recording::default() };
        let data = Recording {
            programs: vec![probe(LibraryProbe::GlobalData, 1), program("f", 30, 36, &[])],
            maps: vec![map("libbpf_global", 2), map("f.rodata", 2)],
            types: vec![RecordedTypes { probe: true, end: CallEnd::Done }],
            ..Recording::default()
        };
        let reads = Recording {
            programs: vec![probe(LibraryProbe::ReadKernel, 5), program("leak", 3, 46, &[113])],
            types: vec![RecordedTypes { probe: false, end: CallEnd::Done }],
            ..Recording::default()
        };
        let attached = Recording { attachments: vec![attachment("old", 8, 0)], ..Recording::default() };
        let cases = [
            (
                &xdp,
                "cmds map_create prog_load, maps hash, progs xdp, attachs cgroup_inet_ingress xdp; CAP_BPF CAP_NET_ADMIN",
                "cmds map_create prog_load, maps hash, progs socket_filter xdp, attachs cgroup_inet_ingress xdp; {1}",
            ),
            (
                &bare,
                "cmds prog_load, progs socket_filter, attachs cgroup_inet_ingress; CAP_BPF",
                "cmds prog_load, progs socket_filter, attachs cgroup_inet_ingress; {}",
            ),
            (
                &data,
                "cmds map_create prog_load, maps array, progs socket_filter sk_lookup, attachs cgroup_inet_ingress sk_lookup; CAP_BPF",
                "cmds map_create prog_load, maps array, progs socket_filter sk_lookup, attachs cgroup_inet_ingress sk_lookup; {}",
            ),
            (
                &reads,
                "cmds prog_load btf_load, progs sched_cls tracepoint, attachs cgroup_inet_ingress tcx_ingress; CAP_BPF CAP_NET_ADMIN CAP_PERFMON",
                "cmds prog_load btf_load, progs sched_cls tracepoint, attachs cgroup_inet_ingress tcx_ingress; {113}",
            ),
            (&attached, "; CAP_BPF CAP_NET_ADMIN", "cmds prog_load, progs cgroup_skb, attachs cgroup_inet_ingress; {}"),
            (&Recording::default(), "; ", "; {}"),
        ];
        for (recording, token, proxy) in cases {
            let needs = RecordedNeeds::of(recording);
            let capabilities: Vec<_> = needs.token.capabilities.iter().map(|capability| capability.name).collect();
            let shown = |delegation: &Delegation| if delegation.is_empty() { String::new() } else { delegation.to_string() };
            assert_eq!(format!("{}; {}", shown(&needs.token.delegation), capabilities.join(" ")), token);
            assert_eq!(format!("{}; {:?}", shown(&needs.proxy.delegation), needs.proxy.helpers), proxy);
        }
        let needs = RecordedNeeds::of(&xdp);
        assert_eq!(needs.probes, ["a trial program", "attach types", "other features"]);
        let reason = |set: &str, name: &str| {
            let found = needs.proxy.names.iter().find(|needed| (needed.set, needed.name.as_str()) == (set, name));
            found.map(|needed| needed.reasons.join("; "))
        };
        assert_eq!(reason("helpers", "map_lookup_elem").as_deref(), Some("count (xdp)"));
        assert_eq!(reason("progs", "xdp").as_deref(), Some("count (xdp); attaching count (xdp)"));
        let policy = "[[container]]\nproxy = { cmds = [\"map_create\", \"prog_load\"], maps = [\"hash\"], \
                      progs = [\"socket_filter\", \"xdp\"], attachs = [\"cgroup_inet_ingress\", \"xdp\"], \
                      helpers = [\"map_lookup_elem\"] }\n";
        assert_eq!(needs.proxy.policy(), policy);
        assert!(needs.proxy.annotations().ends_with("delegate-via: proxy\n"));
    }

    #[test]
    fn what_failed_is_listed_and_needs_nothing() {
        let recording = Recording {
            programs: vec![RecordedProgram { end: CallEnd::Failed(13), ..program("count", 6, 37, &[1]) }],
            maps: vec![RecordedMap { end: CallEnd::Failed(22), ..map("m", 35) }],
            ..Recording::default()
        };
        let needs = RecordedNeeds::of(&recording);
        assert!(needs.token.delegation.is_empty() && needs.proxy.delegation.is_empty() && needs.proxy.helpers.is_empty());
        assert_eq!(needs.failed, ["prog_load of count (xdp): errno 13", "map_create of m (rhash): errno 22"]);
    }

    #[test]
    fn what_cannot_be_given_is_said() {
        let limits = ProxyLimits { host_scope: Some("needs host scope".into()), not_passed_on: Some("not passed on".into()) };
        let recording = Recording {
            programs: vec![RecordedProgram { limits, ..program("run", 31, 0, &[]) }, program("member", 27, 70, &[])],
            calls: [(5, 2), (11, 1), (16, 3)].into(),
            perf_events: 1,
            ..Recording::default()
        };
        let needs = RecordedNeeds::of(&recording);
        assert_eq!(needs.proxy.host_scope, ["needs host scope"]);
        let (token, proxy) = (needs.token.problems.join("\n"), needs.proxy.problems.join("\n"));
        for part in ["syscall is never delegated", "attach type 70", "prog_get_next_id, prog_query", "perf_event_open"] {
            assert!(token.contains(part), "{part}: {token}");
        }
        for part in ["not passed on", "attach type 70", "prog_get_next_id, prog_query"] {
            assert!(proxy.contains(part), "{part}: {proxy}");
        }
    }
}
