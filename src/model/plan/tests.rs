//! A table of requests against one small object, with the plan or the refusal for each.

use crate::model::annotations::{
    AttachRequest, BpffsRequest, GlobalRequest, GlobalValue, InterfaceSelector, KeyScope, MapAccess, MapRequest, OnFailure,
    ProgramRequest, ProgramsRequest, Request,
};
use crate::model::attach_point::{AttachPoint, CgroupAttach, Direction, Interface, ProgramKind, Scope, TracepointName};
use crate::model::bytecode::{Bytecode, ImageVerdict};
use crate::model::delegation::{Delegation, DelegationRequest, Preset};
use crate::model::facts::{CgroupFact, Facts, NamespaceFact, NetnsFact, UsernsFact};
use crate::model::ids::{ContainerId, Digest};
use crate::model::object::{GlobalFacts, GlobalType, MapFacts, ObjectFacts, ProgramFacts, SectionAttach};
use crate::model::plan::{Inputs, ObjectInput, OwnerPlan, Plan, PlanError, make};
use crate::model::policy::ContainerLimits;
use crate::model::program_signing::KernelSigning;
use crate::model::reach::GuardedContainer;
use crate::model::reference::Reference;

/// Everything that a case may change before planning.
struct Case {
    id: ContainerId,
    request: Request,
    facts: Facts,
    objects: Vec<ObjectInput>,
    delegation: Option<Delegation>,
    guarded: bool,
    host_scope: bool,
    limits: ContainerLimits,
    late_network: bool,
    foreign_cgroups: Option<String>,
}

impl Case {
    fn plan(&self) -> Result<Plan, PlanError> {
        make(&Inputs {
            id: &self.id,
            request: &self.request,
            facts: &self.facts,
            objects: &self.objects,
            guarded: self.guarded,
            delegation: self.delegation,
            host_scope: self.host_scope,
            limits: self.limits,
            user: (0, 0),
            late_network: self.late_network,
            foreign_cgroups: self.foreign_cgroups.clone(),
        })
    }
}

fn reference(name: &str) -> Reference {
    Reference::File { path: format!("/objects/{name}.o").into() }
}

fn program(function: &str, section: &str, declared: Option<SectionAttach>) -> ProgramFacts {
    ProgramFacts { function: function.to_owned(), section: section.to_owned(), declared }
}

fn map(name: &str, map_type: u32, max_entries: u32) -> MapFacts {
    MapFacts { name: name.to_owned(), map_type, key_size: 4, value_size: 8, max_entries, flags: 0, data_section: false }
}

fn global(name: &str, size: u32, ty: GlobalType) -> GlobalFacts {
    GlobalFacts { name: name.to_owned(), size, ty, read_only: true }
}

fn object(name: &str, n: u8, facts: ObjectFacts) -> ObjectInput {
    ObjectInput {
        bytecode: Bytecode {
            reference: reference(name),
            digest: Digest::from_bytes([n; 32]),
            object_digest: Digest::from_bytes([n; 32]),
            object: vec![n],
            rule: "rule".to_owned(),
            verdict: ImageVerdict::Unsigned,
        },
        facts,
        host_scope: false,
        signing: KernelSigning::default(),
    }
}

fn case(programs: Vec<(&str, AttachRequest)>) -> Case {
    let own = |inode| NamespaceFact { inode, shared_with_host: false };
    let lo = Interface { name: "lo".to_owned(), index: 1 };
    let eth0 = Interface { name: "eth0".to_owned(), index: 2 };
    let int = |size| GlobalType::Int { size, signed: false };
    Case {
        id: "web".parse().expect("id"),
        request: Request {
            programs: ProgramsRequest::Listed(
                programs
                    .into_iter()
                    .map(|(function, attach)| ProgramRequest {
                        from: reference("a"),
                        function: function.to_owned(),
                        attach,
                        order: None,
                    })
                    .collect(),
            ),
            programs_scope: KeyScope::Pod,
            globals: Vec::new(),
            maps: Vec::new(),
            pull_policy: None,
            bpffs: BpffsRequest::None,
            on_failure: OnFailure::Stop,
            proxy: None,
            map_sizes: Vec::new(),
            perhaps_globals: Vec::new(),
        },
        facts: Facts {
            net: own(1),
            mnt: own(2),
            pid: own(3),
            user: own(4),
            cgroup_ns: own(5),
            netns: NetnsFact::Own,
            netns_cookie: 9,
            interfaces: vec![lo, eth0],
            cgroup: Some(CgroupFact::Own { path: "/web".into(), id: 77 }),
            userns: UsernsFact::Own,
            wide_cgroup_mount: None,
            init: 500,
            cpus: 2,
        },
        objects: vec![object(
            "a",
            1,
            ObjectFacts {
                programs: vec![
                    program("pass", "xdp", Some(SectionAttach::Xdp)),
                    program("drop", "xdp", Some(SectionAttach::Xdp)),
                    program("seen", "tc", Some(SectionAttach::Tcx(None))),
                    program(
                        "out",
                        "cgroup_skb/egress",
                        Some(SectionAttach::Cgroup(ProgramKind::CgroupSkb, Some(CgroupAttach::Egress))),
                    ),
                    program("any", "cgroup/skb", Some(SectionAttach::Cgroup(ProgramKind::CgroupSkb, None))),
                    program("switch", "tracepoint", Some(SectionAttach::Tracepoint(None))),
                    program("odd", "mystery", None),
                ],
                maps: vec![map("counts", 2, 4), map("events", 27, 4096)],
                globals: vec![
                    global("rate", 4, int(4)),
                    global("bpfman_cgroup_id", 8, int(8)),
                    global("bpfman_userns", 8, int(8)),
                    global("bpfman_container_id", 3, GlobalType::Chars { len: 3 }),
                ],
                core: false,
                signed: false,
                executables: Default::default(),
            },
        )],
        delegation: None,
        guarded: false,
        host_scope: false,
        limits: ContainerLimits::default(),
        late_network: false,
        foreign_cgroups: None,
    }
}

fn every_interface() -> AttachRequest {
    AttachRequest::Tcx { iface: InterfaceSelector::All, direction: Some(Direction::Ingress) }
}

fn xdp(iface: &str) -> AttachRequest {
    AttachRequest::Xdp { iface: InterfaceSelector::Named(iface.to_owned()), mode: None }
}

fn tcx(direction: Option<Direction>) -> AttachRequest {
    AttachRequest::Tcx { iface: InterfaceSelector::Named("eth0".to_owned()), direction }
}

fn cgroup(attach: Option<CgroupAttach>) -> AttachRequest {
    AttachRequest::Cgroup { kind: ProgramKind::CgroupSkb, attach }
}

fn tracepoint() -> AttachRequest {
    let target = TracepointName { category: "sched".to_owned(), name: "sched_switch".to_owned() };
    AttachRequest::Tracepoint { target: Some(target) }
}

#[test]
fn a_plan_names_every_pin_and_attach_point() {
    let plan =
        case(vec![("pass", xdp("lo")), ("out", cgroup(None)), ("seen", tcx(Some(Direction::Egress)))]).plan().expect("plan");
    let [object] = &plan.container.objects[..] else { panic!("one object: {plan:?}") };
    assert_eq!(object.scope, Scope::Container);
    let programs: Vec<_> =
        object.programs.iter().map(|p| (p.function.as_str(), p.pin.as_str(), p.expected_attach_type)).collect();
    assert_eq!(programs, [("pass", "prog_1", 37), ("out", "prog_2", 1), ("seen", "prog_3", 47)]);
    let links: Vec<_> = plan.container.links.iter().map(|l| (l.pin.as_str(), l.program.as_str(), l.at.to_string())).collect();
    assert_eq!(
        links,
        [
            ("link_1", "prog_1", "lo".to_owned()),
            ("link_2", "prog_2", "egress".to_owned()),
            ("link_3", "prog_3", "eth0 egress".to_owned())
        ]
    );
    assert!(plan.netns.is_none() && plan.bpffs.is_none());
    assert_eq!(object.maps.iter().map(|m| m.pin.as_str()).collect::<Vec<_>>(), ["map_1", "map_2"]);
}

#[test]
fn facts_fill_the_variables_of_their_name() {
    let mut case = case(vec![("pass", xdp("lo"))]);
    case.facts.user.shared_with_host = true;
    case.request.globals.push(GlobalRequest { name: "rate".to_owned(), value: GlobalValue::Word("7".to_owned()) });
    let plan = case.plan().expect("plan");
    let value =
        |name: &str| plan.container.objects[0].globals.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()).expect("set");
    assert_eq!(value("rate"), 7u32.to_ne_bytes());
    assert_eq!(value("bpfman_cgroup_id"), 77u64.to_ne_bytes());
    assert_eq!(value("bpfman_userns"), 0u64.to_ne_bytes(), "a namespace shared with the host is 0");
    assert_eq!(value("bpfman_container_id"), b"we\0");
}

#[test]
fn all_interfaces_except_lo_and_image_alone() {
    let plan = case(vec![("pass", AttachRequest::Xdp { iface: InterfaceSelector::All, mode: None })]).plan().expect("plan");
    assert_eq!(plan.container.links.iter().map(|l| l.at.to_string()).collect::<Vec<_>>(), ["eth0"]);

    let mut all = case(Vec::new());
    all.request.programs = ProgramsRequest::All { from: reference("a") };
    all.objects[0].facts.programs.retain(|p| ["pass", "out"].contains(&p.function.as_str()));
    let plan = all.plan().expect("plan");
    assert_eq!(plan.container.links.iter().map(|l| l.at.to_string()).collect::<Vec<_>>(), ["eth0", "egress"]);
}

#[test]
fn network_programs_of_a_pod_belong_to_its_namespace() {
    let mut case = case(vec![("pass", xdp("lo")), ("out", cgroup(None))]);
    case.facts.netns = NetnsFact::Sandbox { sandbox: None, pause: None };
    let plan = case.plan().expect("plan");
    assert_eq!(plan.container.links.len(), 1);
    let netns = plan.netns.expect("the pod's part");
    assert!(matches!(netns.links[..], [ref l] if matches!(l.at, AttachPoint::Xdp { .. })));
}

#[test]
fn an_object_of_a_pod_has_one_set_of_maps() {
    let mut case = case(vec![("pass", xdp("lo")), ("out", cgroup(None))]);
    case.facts.netns = NetnsFact::Sandbox { sandbox: None, pause: None };
    case.request.bpffs = BpffsRequest::Private { path: "/sys/fs/bpf".into() };
    case.request.maps.push(MapRequest { name: "counts".to_owned(), access: MapAccess::ReadOnly, file_name: "c".to_owned() });
    let data = |name: &str| MapFacts { data_section: true, ..map(name, 2, 1) };
    case.objects[0].facts.maps.extend([data(".rodata"), data(".bss")]);
    let maps = |plan: &OwnerPlan| -> Vec<(String, bool, bool)> {
        plan.objects.iter().flat_map(|o| &o.maps).map(|m| (m.name.clone(), m.from_pod, m.freeze)).collect()
    };
    let expect = |list: &[(&str, bool, bool)]| list.iter().map(|(n, p, f)| ((*n).to_owned(), *p, *f)).collect::<Vec<_>>();
    let plan = case.plan().expect("plan");
    let shared = [("counts", true, true), ("events", true, false), (".rodata", false, false), (".bss", true, false)];
    assert_eq!(maps(&plan.container), expect(&shared));
    let of_the_pod = shared.map(|(name, _, frozen)| (name, false, frozen));
    assert_eq!(maps(&plan.netns.expect("the pod's part")), expect(&of_the_pod));

    // Without a program of its own the container is shown the pod's map.
    let ProgramsRequest::Listed(listed) = &mut case.request.programs else { unreachable!() };
    listed.pop();
    let plan = case.plan().expect("plan");
    assert!(plan.container.objects[0].programs.is_empty() && plan.container.objects[0].maps[0].from_pod);

    // A fact in a writable variable belongs to the container.
    case.objects[0].facts.globals[1].read_only = false;
    assert_eq!(case.objects[0].facts.globals[1].name, "bpfman_cgroup_id");
    let plan = case.plan().expect("plan");
    let own: Vec<_> = maps(&plan.container).into_iter().filter(|(_, pod, _)| !pod).map(|(name, _, _)| name).collect();
    assert_eq!(own, [".rodata", ".bss"]);

    // Without a pod there is nothing to share.
    case.facts.netns = NetnsFact::Own;
    assert!(maps(&case.plan().expect("plan").container).iter().all(|(_, pod, _)| !pod));
}

#[test]
fn shown_maps_are_pinned_and_frozen() {
    let mut case = case(vec![("pass", xdp("lo"))]);
    case.request.bpffs = BpffsRequest::Private { path: "/sys/fs/bpf".into() };
    case.request.maps.push(MapRequest { name: "counts".to_owned(), access: MapAccess::ReadOnly, file_name: "c".to_owned() });
    let plan = case.plan().expect("plan");
    assert!(plan.container.objects[0].maps[0].freeze && !plan.container.objects[0].maps[1].freeze);
    let bpffs = plan.bpffs.expect("bpffs");
    assert_eq!(bpffs.maps.iter().map(|(pin, file, _)| (pin.as_str(), file.as_str())).collect::<Vec<_>>(), [("map_1", "c")]);
}

#[test]
fn host_scope_needs_both_rules() {
    let mut case = case(vec![("switch", tracepoint())]);
    for (container, image, allowed) in [(false, false, false), (true, false, false), (false, true, false), (true, true, true)] {
        case.host_scope = container;
        case.objects[0].host_scope = image;
        let planned = case.plan();
        assert_eq!(planned.is_ok(), allowed, "container {container}, image {image}: {planned:?}");
        if let Ok(plan) = planned {
            assert_eq!(plan.container.objects[0].scope, Scope::Host);
        }
    }
}

#[test]
fn impossible_plans_are_refused_with_the_reason() {
    type Change = fn(&mut Case);
    type Asked = Vec<(&'static str, AttachRequest)>;
    let table: Vec<(Asked, Change, &str)> = vec![
        (vec![("nope", xdp("lo"))], |_| {}, "program \"nope\" is not in file:/objects/a.o; it has pass, drop, seen"),
        (vec![("out", xdp("lo"))], |_| {}, "program \"out\" is cgroup_skb by its section \"cgroup_skb/egress\", not xdp"),
        (vec![("pass", xdp("eth7"))], |_| {}, "no interface \"eth7\"; it has lo, eth0"),
        (
            vec![("pass", xdp("eth0"))],
            |c| {
                c.facts.interfaces.truncate(1);
                c.late_network = true;
            },
            "podman configures the network of a container with a user namespace only after its hooks have run",
        ),
        (vec![("pass", xdp("lo")), ("drop", xdp("lo"))], |_| {}, "one interface takes only one XDP program"),
        (
            vec![("seen", tcx(None))],
            |_| {},
            "does not say where the program attaches; write direction=ingress or direction=egress",
        ),
        (vec![("any", cgroup(None))], |_| {}, "write attach="),
        (vec![("out", cgroup(Some(CgroupAttach::Connect4)))], |_| {}, "attach=connect4 belongs to cgroup_sock_addr"),
        (vec![("switch", tracepoint())], |_| {}, "tracepoint reaches the whole host"),
        (vec![("out", cgroup(None))], |c| c.facts.cgroup = Some(CgroupFact::Root), "no cgroup of its own"),
        (
            vec![("out", cgroup(None))],
            |c| c.facts.cgroup = Some(CgroupFact::Shared { path: "/s".into(), other: 42 }),
            "process 42, which does not belong to the container, is also in its cgroup /s",
        ),
        (
            vec![("out", cgroup(None))],
            |c| c.facts.cgroup = Some(CgroupFact::Elsewhere { path: "/x".into(), expected: "/y".to_owned() }),
            "is in cgroup /x, but its linux.cgroupsPath names /y",
        ),
        (vec![("pass", xdp("lo"))], |c| c.facts.netns = NetnsFact::Host, "on the host's network"),
        (vec![("pass", xdp("lo"))], |c| c.facts.netns = NetnsFact::Foreign { other: 43 }, "process 43"),
        (vec![("pass", xdp("lo"))], |c| c.limits.programs = 0, "more than the 0 that the policy allows"),
        (
            vec![("seen", every_interface()), ("pass", xdp("lo"))],
            |c| c.limits.links = 1,
            "2 links are more than the 1 that the policy",
        ),
        (vec![("pass", xdp("lo"))], |c| c.limits.map_memory = 4096, "the maps take 4144 bytes, more than the 4096"),
        (
            vec![("pass", xdp("lo"))],
            |c| c.request.globals.push(GlobalRequest { name: "speed".to_owned(), value: GlobalValue::Word("1".to_owned()) }),
            "no program declares \"speed\"; there are rate",
        ),
        (
            vec![("pass", xdp("lo"))],
            |c| c.request.perhaps_globals = vec!["team".to_owned(), "rate".to_owned()],
            "annotation \"rate\" has the name of a variable",
        ),
        (
            vec![("pass", xdp("lo"))],
            |c| {
                c.request.maps.push(MapRequest {
                    name: "cnt".to_owned(),
                    access: MapAccess::ReadOnly,
                    file_name: "c".to_owned(),
                })
            },
            "no program has a map \"cnt\"; there are counts, events",
        ),
        (
            vec![("pass", xdp("lo"))],
            |c| {
                c.request.maps.push(MapRequest {
                    name: "events".to_owned(),
                    access: MapAccess::ReadOnly,
                    file_name: "e".to_owned(),
                })
            },
            "cannot be shown read-only",
        ),
        (
            vec![("pass", xdp("lo"))],
            |c| {
                let twin = object("b", 2, c.objects[0].facts.clone());
                c.objects.push(twin);
                c.request.maps.push(MapRequest {
                    name: "counts".to_owned(),
                    access: MapAccess::ReadOnly,
                    file_name: "c".to_owned(),
                });
            },
            "is in file:/objects/a.o and in file:/objects/b.o",
        ),
        (
            vec![("pass", xdp("lo"))],
            |c| c.objects[0].facts.globals[1].size = 4,
            "bpfman_cgroup_id: it has 4 bytes in the object",
        ),
        (
            vec![],
            |c| {
                token(c, Preset::Networking);
                c.facts.userns = UsernsFact::Host;
            },
            "creates BPF tokens only in one",
        ),
        (
            vec![],
            |c| {
                token(c, Preset::Maps);
                c.facts.userns = UsernsFact::Shared { why: "the container shares its pod's user namespace" };
            },
            "shares its pod's user namespace, and a token works for every container in it",
        ),
        (
            vec![],
            |c| {
                token(c, Preset::Maps);
                c.facts.userns = UsernsFact::HostRoot;
                c.host_scope = true;
            },
            "maps the host's user or group 0",
        ),
        (
            vec![],
            |c| {
                token(c, Preset::Networking);
                c.facts.netns = NetnsFact::Host;
            },
            "on the host's network",
        ),
        (
            vec![],
            |c| {
                token(c, Preset::Cgroup);
                c.facts.cgroup_ns.shared_with_host = true;
            },
            "shares the host's cgroup namespace",
        ),
        (
            vec![],
            |c| {
                token(c, Preset::Cgroup);
                c.foreign_cgroups = Some("config.json mounts the host's cgroups at /cg".to_owned());
            },
            "mounts the host's cgroups at /cg",
        ),
        (
            vec![],
            |c| {
                token(c, Preset::Cgroup);
                c.facts.cgroup = Some(CgroupFact::Root);
            },
            "it is in the root cgroup",
        ),
        (
            vec![],
            |c| {
                token(c, Preset::Cgroup);
                c.facts.cgroup = Some(CgroupFact::Shared { path: "/web".into(), other: 12 });
            },
            "process 12, which does not belong to the container",
        ),
        (
            vec![],
            |c| {
                token(c, Preset::Cgroup);
                c.facts.wide_cgroup_mount = Some("/mnt/all".into());
            },
            "mounted at its /mnt/all",
        ),
    ];
    for (programs, change, phrase) in table {
        let mut case = case(programs);
        change(&mut case);
        match case.plan() {
            Ok(plan) => panic!("{phrase}: planned {plan:?}"),
            Err(error) => assert!(error.to_string().contains(phrase), "wanted {phrase:?}, got {error}"),
        }
    }
}

fn token(case: &mut Case, preset: Preset) {
    case.request.bpffs = BpffsRequest::Token { path: "/sys/fs/bpf".into(), delegation: DelegationRequest::default() };
    case.delegation = Some(preset.delegation());
}

#[test]
fn a_token_needs_one_container_or_a_checked_pod() {
    let shared = UsernsFact::Shared { why: "the container joins an existing user namespace" };
    for (userns, host_scope, allowed) in [
        (UsernsFact::Own, false, true),
        (UsernsFact::CheckedPod, false, true),
        (shared.clone(), false, false),
        (shared, true, true),
        (UsernsFact::Host, true, false),
        (UsernsFact::HostRoot, true, false),
    ] {
        // Even with the smallest delegation: sharing is checked independently of what is delegated.
        let mut case = case(Vec::new());
        token(&mut case, Preset::Maps);
        (case.facts.userns, case.host_scope) = (userns.clone(), host_scope);
        assert_eq!(case.plan().is_ok(), allowed, "{userns:?} {host_scope}");
    }
}

#[test]
fn messages_about_user_namespaces_fit_a_runtimes_line() {
    for why in [
        "a container that shares the pod's user namespace was started while the NRI plugin did not check it",
        "the container joins an existing user namespace",
    ] {
        let said = PlanError::SharedUserNamespace { why }.to_string();
        assert!(said.len() <= 285, "{} bytes: {said}", said.len());
    }
    for said in [PlanError::HostRootMapped.to_string(), PlanError::NoUserNamespace.to_string()] {
        assert!(said.len() <= 285, "{} bytes: {said}", said.len());
    }
}

#[test]
fn the_guard_binds_a_token_to_the_containers_own_cgroup() {
    type Change = fn(&mut Facts);
    type Bound = Result<Option<bool>, &'static str>;
    let cases: [(Change, bool, Bound); 6] = [
        (|_| {}, false, Ok(Some(false))),
        (|_| {}, true, Ok(Some(true))),
        (|facts| facts.cgroup = Some(CgroupFact::Root), false, Ok(None)),
        (|facts| facts.cgroup = Some(CgroupFact::Root), true, Err("it is in the root cgroup")),
        (|facts| facts.userns = UsernsFact::CheckedPod, false, Ok(None)),
        (|facts| facts.userns = UsernsFact::CheckedPod, true, Err("its user namespace is not its own")),
    ];
    for (n, (change, host_scope, expected)) in cases.into_iter().enumerate() {
        let mut case = case(Vec::new());
        token(&mut case, if host_scope { Preset::Tracing } else { Preset::Probes });
        (case.guarded, case.host_scope) = (true, host_scope);
        change(&mut case.facts);
        match (case.plan(), expected) {
            (Ok(plan), Ok(bound)) => {
                let expected = bound.map(|host_scope| GuardedContainer { userns: 4, cgroup: 77, host_scope });
                assert_eq!(plan.bpffs.unwrap().guarded, expected, "{n}");
            }
            (Err(error), Err(phrase)) => {
                let said = error.to_string();
                assert!(said.contains(phrase) && said.len() <= 285, "{n}: {} bytes: {said}", said.len());
            }
            (planned, _) => panic!("{n}: {planned:?}"),
        }
        case.guarded = false;
        assert_eq!(case.plan().unwrap().bpffs.unwrap().guarded, None, "{n}: without a guard nothing is bound");
    }
}
