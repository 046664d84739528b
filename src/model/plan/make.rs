//! Makes a plan from a request, its objects and the facts about the container.

use std::collections::BTreeMap;

use crate::model::annotations::{BpffsRequest, KeyScope, MapAccess, MapSize, ProgramsRequest};
use crate::model::attach_point::{AttachPoint, NetnsRecord, Order, Scope};
use crate::model::bytecode::Bytecode;
use crate::model::facts::{CgroupFact, NetnsFact, UsernsFact};
use crate::model::ids::PinName;
use crate::model::object::{MapFacts, ObjectFacts, ProgramFacts};
use crate::model::plan::{
    Inputs, ObjectInput, OwnerPlan, Plan, PlanError, PlannedBpffs, PlannedLink, PlannedMap, PlannedObject, PlannedProgram,
    attach, globals,
};
use crate::model::program_signing::KernelSigning;
use crate::model::reach::GuardedContainer;
use crate::model::record::{ImageRecord, Keeper};
use crate::model::reference::Reference;
use crate::model::text::list;

/// BPF_MAP_TYPE_RINGBUF: readers move its consumer position by writing.
const RINGBUF: u32 = 27;
/// BPF_MAP_TYPE_USER_RINGBUF: user space is its producer.
const USER_RINGBUF: u32 = 31;
/// BPF_MAP_TYPE_STRUCT_OPS: BPF_MAP_FREEZE is ENOTSUPP (kernel/bpf/syscall.c, `map_freeze`).
const STRUCT_OPS: u32 = 26;

impl ObjectInput {
    fn name(&self) -> String {
        self.bytecode.reference.to_string()
    }
}

/// Makes the plan, or returns one sentence about why there is none.
pub fn make(inputs: &Inputs<'_>) -> Result<Plan, PlanError> {
    let wanted = wanted_programs(inputs)?;
    check_limits(inputs, &wanted)?;
    let values = globals::values(inputs)?;
    let shown = shown_maps(inputs)?;

    let in_pod = matches!(inputs.facts.netns, NetnsFact::Sandbox { .. }) && inputs.request.programs_scope == KeyScope::Pod;
    let mut plan = Plan { container: OwnerPlan::default(), netns: None, keeper: None, bpffs: None };
    let (pods, containers): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|w| in_pod && w.asked.kind().on_netns());
    plan.container = owner_plan(inputs, &containers, &values, &Maps::OfContainer { shown: &shown, pods: &pods })?;
    if !pods.is_empty() {
        let netns = owner_plan(inputs, &pods, &values, &Maps::OfPod { shown: &shown })?;
        plan.keeper = keeper(inputs, &netns);
        plan.netns = Some(netns);
    }
    plan.bpffs = bpffs(inputs, &plan.container)?;
    Ok(plan)
}

/// How to tell that the pod lives. A filter of the traffic control layer does not show whether its interface still
/// exists.
fn keeper(inputs: &Inputs<'_>, netns: &OwnerPlan) -> Option<Keeper> {
    match &inputs.facts.netns {
        NetnsFact::Sandbox { pause: Some(pause), .. } => Some(Keeper::Process(*pause)),
        NetnsFact::Sandbox { pause: None, .. } => {
            let tells = |at: &AttachPoint| matches!(at, AttachPoint::Xdp { .. } | AttachPoint::Tcx { .. });
            netns.links.iter().all(|link| tells(&link.at)).then_some(Keeper::Interfaces)
        }
        _ => None,
    }
}

/// One program of the request with its object.
struct RequestedProgram<'a> {
    object: usize,
    program: &'a ProgramFacts,
    asked: crate::model::annotations::AttachRequest,
    order: Option<&'a Order>,
}

fn wanted_programs<'a>(inputs: &'a Inputs<'_>) -> Result<Vec<RequestedProgram<'a>>, PlanError> {
    let mut wanted = Vec::new();
    match &inputs.request.programs {
        ProgramsRequest::None => {}
        ProgramsRequest::All { from } => {
            let object = object_of(inputs, from);
            for program in &inputs.objects[object].facts.programs {
                wanted.push(RequestedProgram { object, program, asked: attach::from_section(program)?, order: None });
            }
            if wanted.is_empty() {
                return Err(PlanError::NoPrograms { reference: inputs.objects[object].name() });
            }
        }
        ProgramsRequest::Listed(entries) => {
            for entry in entries {
                let object = object_of(inputs, &entry.from);
                let programs = &inputs.objects[object].facts.programs;
                let program = programs.iter().find(|p| p.function == entry.function).ok_or_else(|| {
                    let known = list(programs.iter().map(|p| p.function.as_str()));
                    PlanError::NoSuchProgram {
                        function: entry.function.clone(),
                        reference: inputs.objects[object].name(),
                        known,
                    }
                })?;
                attach::check_kind(entry.attach.kind(), program)?;
                wanted.push(RequestedProgram { object, program, asked: entry.attach.clone(), order: entry.order.as_ref() });
            }
        }
    }
    for one in &wanted {
        let (function, kind) = (&one.program.function, one.asked.kind());
        if !kind.supported() {
            return Err(PlanError::Unsupported { function: function.clone(), kind });
        }
        let host_scope = inputs.host_scope && inputs.objects[one.object].host_scope;
        if kind.scope() == Scope::Host && !host_scope {
            return Err(PlanError::HostScopeKind { function: function.clone(), kind });
        }
        attach::check_place(function, kind, inputs.facts, host_scope)?;
    }
    Ok(wanted)
}

fn object_of(inputs: &Inputs<'_>, reference: &Reference) -> usize {
    inputs
        .objects
        .iter()
        .position(|o| o.bytecode.reference == *reference)
        .expect("the caller fetches every reference that the request names")
}

fn check_limits(inputs: &Inputs<'_>, wanted: &[RequestedProgram<'_>]) -> Result<(), PlanError> {
    if u32::try_from(wanted.len()).map_or(true, |n| n > inputs.limits.programs) {
        return Err(PlanError::TooManyPrograms { asked: wanted.len(), limit: inputs.limits.programs });
    }
    // Checked before the places are computed: `iface=*` is every interface of a network that a workload may have
    // created.
    let links = wanted.iter().fold(0usize, |sum, one| sum.saturating_add(attach::count(&one.asked, inputs.facts)));
    if u32::try_from(links).map_or(true, |n| n > inputs.limits.links) {
        return Err(PlanError::TooManyLinks { asked: links, limit: inputs.limits.links });
    }
    let maps = || inputs.objects.iter().flat_map(|object| &object.facts.maps);
    let sizes = &inputs.request.map_sizes;
    if let Some(size) = sizes.iter().find(|size| !maps().any(|map| map.name == size.name)) {
        let known = list(maps().filter(|map| !map.data_section).map(|map| map.name.as_str()));
        return Err(PlanError::NoSuchMap { name: size.name.clone(), known });
    }
    let memory = maps().fold(0u64, |sum, map| sum.saturating_add(sized(sizes, map).memory(inputs.facts.cpus)));
    if memory > inputs.limits.map_memory {
        return Err(PlanError::TooMuchMemory { asked: memory, limit: inputs.limits.map_memory });
    }
    Ok(())
}

/// The size that a request gives a map; None if it gives none.
pub(super) fn entries_of(sizes: &[MapSize], map: &MapFacts) -> Option<u32> {
    sizes.iter().find(|size| size.name == map.name).map(|size| size.entries)
}

/// A map with the size that the request gives it.
pub fn sized(sizes: &[MapSize], map: &MapFacts) -> MapFacts {
    MapFacts { max_entries: entries_of(sizes, map).unwrap_or(map.max_entries), ..map.clone() }
}

/// For each map to show: its object, the name of its file, and the access of the container.
type Shown<'a> = BTreeMap<(usize, &'a str), (&'a str, MapAccess)>;

fn shown_maps<'a>(inputs: &'a Inputs<'_>) -> Result<Shown<'a>, PlanError> {
    let mut shown = Shown::new();
    for wanted in &inputs.request.maps {
        let found: Vec<(usize, &MapFacts)> = inputs
            .objects
            .iter()
            .enumerate()
            .filter_map(|(n, o)| o.facts.maps.iter().find(|m| m.name == wanted.name).map(|m| (n, m)))
            .collect();
        match found.as_slice() {
            [] => {
                let maps = inputs.objects.iter().flat_map(|o| &o.facts.maps).filter(|m| !m.data_section);
                let known = list(maps.map(|m| m.name.as_str()));
                return Err(PlanError::NoSuchMap { name: wanted.name.clone(), known });
            }
            [(object, map)] => {
                if wanted.access == MapAccess::ReadOnly {
                    freezable(map).map_err(|why| PlanError::NotReadOnly { name: map.name.clone(), why })?;
                }
                shown.insert((*object, map.name.as_str()), (wanted.file_name.as_str(), wanted.access));
            }
            [(first, _), (second, _), ..] => {
                return Err(PlanError::AmbiguousMap {
                    name: wanted.name.clone(),
                    first: inputs.objects[*first].name(),
                    second: inputs.objects[*second].name(),
                });
            }
        }
    }
    Ok(shown)
}

fn freezable(map: &MapFacts) -> Result<(), &'static str> {
    match map.map_type {
        RINGBUF => Err("its readers move the consumer position by writing"),
        USER_RINGBUF => Err("user space is its producer"),
        STRUCT_OPS => Err("the kernel does not freeze struct_ops maps"),
        _ => Ok(()),
    }
}

/// Whose maps a plan uses. If an object has programs in the pod's network namespace and also programs or shown maps of
/// the container, there is one set of maps, the pod's: the container is shown what every program of its request writes.
enum Maps<'a> {
    OfContainer { shown: &'a Shown<'a>, pods: &'a [RequestedProgram<'a>] },
    OfPod { shown: &'a Shown<'a> },
}

impl Maps<'_> {
    /// True if the object is loaded only for its maps.
    fn of_shown_object(&self, object: usize) -> bool {
        match self {
            Self::OfContainer { shown, .. } => shown.keys().any(|(shown, _)| *shown == object),
            Self::OfPod { .. } => false,
        }
    }

    /// True if the map belongs to the pod. Each load has its own data sections with facts about the container:
    /// `.rodata`, and all data sections of an object that declares such a fact outside of it.
    fn is_pods(&self, object: usize, facts: &ObjectFacts, map: &MapFacts) -> bool {
        let Self::OfContainer { pods, .. } = self else { return false };
        let writable_fact = || facts.globals.iter().any(|global| !global.read_only && globals::is_fact(&global.name));
        let own = map.data_section && (map.name.contains(".rodata") || writable_fact());
        !own && pods.iter().any(|wanted| wanted.object == object)
    }

    fn frozen(&self, object: usize, map: &MapFacts) -> bool {
        self.access(object, map) == Some(MapAccess::ReadOnly)
    }

    fn is_shown(&self, object: usize, map: &MapFacts) -> bool {
        self.access(object, map).is_some()
    }

    /// How the container is shown a map; None if it is not.
    fn access(&self, object: usize, map: &MapFacts) -> Option<MapAccess> {
        let (Self::OfContainer { shown, .. } | Self::OfPod { shown }) = self;
        shown.get(&(object, map.name.as_str())).map(|(_, access)| *access)
    }
}

fn owner_plan(
    inputs: &Inputs<'_>,
    wanted: &[RequestedProgram<'_>],
    values: &[Vec<(String, Vec<u8>)>],
    whose: &Maps<'_>,
) -> Result<OwnerPlan, PlanError> {
    let mut plan = OwnerPlan::default();
    let (mut programs, mut maps, mut links) = (0, 0, 0);
    let mut xdp: BTreeMap<u32, &str> = BTreeMap::new();
    for (n, object) in inputs.objects.iter().enumerate() {
        let mine: Vec<&RequestedProgram<'_>> = wanted.iter().filter(|w| w.object == n).collect();
        if mine.is_empty() && !whose.of_shown_object(n) {
            continue;
        }
        // If both rules allow host scope, the programs may read kernel memory; otherwise the verifier refuses that.
        let scope = if inputs.host_scope && object.host_scope { Scope::Host } else { Scope::Container };
        let mut planned = self::object(&object.bytecode, &object.facts, scope, object.signing);
        planned.globals = values[n].clone();
        for map in &object.facts.maps {
            maps += 1;
            planned.maps.push(PlannedMap {
                name: map.name.clone(),
                pin: PinName::map(maps),
                freeze: whose.frozen(n, map),
                reuse: None,
                from_pod: whose.is_pods(n, &object.facts, map),
                named: false,
                entries: entries_of(&inputs.request.map_sizes, map),
                shown: whose.is_shown(n, map),
            });
        }
        for one in mine {
            let (places, expected_attach_type, target) =
                attach::places(&one.asked, one.order, one.program, inputs.facts, inputs.late_network)?;
            // Each entry is a separate program: one function may be loaded for two attach types.
            programs += 1;
            let pin = PinName::program(programs);
            let function = one.program.function.clone();
            planned.programs.push(PlannedProgram {
                function: function.clone(),
                kind: one.asked.kind(),
                expected_attach_type,
                target,
                pin: pin.clone(),
            });
            for at in places {
                if let AttachPoint::Xdp { iface, .. } = &at
                    && let Some(other) = xdp.insert(iface.index, &one.program.function)
                {
                    return Err(PlanError::TwoXdp { function, other: other.to_owned(), iface: iface.name.clone() });
                }
                links += 1;
                let netns = at.interface().map(|_| NetnsRecord { cookie: inputs.facts.netns_cookie, path: None });
                plan.links.push(PlannedLink {
                    program: pin.clone(),
                    function: function.clone(),
                    at,
                    pin: PinName::link(links),
                    order: one.order.cloned(),
                    netns,
                });
            }
        }
        plan.objects.push(planned);
    }
    Ok(plan)
}

/// An object for which nothing is planned yet.
pub(super) fn object(bytecode: &Bytecode, facts: &ObjectFacts, scope: Scope, signing: KernelSigning) -> PlannedObject {
    PlannedObject {
        image: ImageRecord {
            reference: bytecode.reference.to_string(),
            digest: bytecode.digest,
            object: bytecode.object_digest,
            rule: bytecode.rule.clone(),
            verdict: bytecode.verdict.clone(),
        },
        bytes: bytecode.object.clone(),
        scope,
        programs: Vec::new(),
        maps: Vec::new(),
        globals: Vec::new(),
        core: facts.core,
        signing,
    }
}

/// A grant applies to one container: below host scope its token must be of no use to other containers. This holds for
/// every token, even with the smallest delegation, because the policy names containers and not user namespaces.
fn check_userns(inputs: &Inputs<'_>) -> Result<(), PlanError> {
    match &inputs.facts.userns {
        UsernsFact::Host => Err(PlanError::NoUserNamespace),
        UsernsFact::HostRoot => Err(PlanError::HostRootMapped),
        UsernsFact::Shared { why } if !inputs.host_scope => Err(PlanError::SharedUserNamespace { why }),
        UsernsFact::Own | UsernsFact::CheckedPod | UsernsFact::Shared { .. } => Ok(()),
    }
}

fn bpffs(inputs: &Inputs<'_>, container: &OwnerPlan) -> Result<Option<PlannedBpffs>, PlanError> {
    let path = match &inputs.request.bpffs {
        BpffsRequest::None => return Ok(None),
        BpffsRequest::Private { path } | BpffsRequest::Token { path, .. } => path.clone(),
    };
    if let Some(delegation) = &inputs.delegation {
        check_userns(inputs)?;
        if delegation.reaches_netns()
            && !inputs.host_scope
            && let Some(why) = attach::foreign_network(inputs.facts)
        {
            return Err(PlanError::NetworkVisible { why });
        }
        if delegation.reaches_cgroups()
            && !inputs.host_scope
            && let Some(why) = attach::foreign_cgroup(inputs.facts).or_else(|| inputs.foreign_cgroups.clone())
        {
            return Err(PlanError::CgroupsVisible { why });
        }
    }
    let guarded = guarded(inputs)?;
    let shown = shown_maps(inputs)?;
    let mut maps = Vec::new();
    for ((object, name), (file_name, access)) in &shown {
        let digest = inputs.objects[*object].bytecode.object_digest;
        let planned = container.objects.iter().filter(|o| o.image.object == digest).flat_map(|o| &o.maps);
        for map in planned.filter(|m| m.name == *name) {
            maps.push((map.pin.clone(), (*file_name).to_owned(), *access));
        }
    }
    Ok(Some(PlannedBpffs { path, delegation: inputs.delegation, guarded, maps, user: inputs.user }))
}

/// How the guard binds the token: to a cgroup, if the container has one and a user namespace of its own. Otherwise it is
/// bound to the user namespace alone, which the guard does for every token; then no host scope can be granted, because the
/// inode of a user namespace is used again after its end.
fn guarded(inputs: &Inputs<'_>) -> Result<Option<GuardedContainer>, PlanError> {
    let (true, Some(delegation)) = (inputs.guarded, &inputs.delegation) else { return Ok(None) };
    let facts = inputs.facts;
    let why = match (&facts.userns, &facts.cgroup, u32::try_from(facts.user.inode)) {
        (UsernsFact::Own, Some(CgroupFact::Own { id, .. }), Ok(userns)) => {
            return Ok(Some(GuardedContainer { userns, cgroup: *id, host_scope: inputs.host_scope }));
        }
        (UsernsFact::Own, ..) => attach::foreign_cgroup(facts).unwrap_or_else(|| "its cgroup is not known".to_owned()),
        _ => "its user namespace is not its own".to_owned(),
    };
    if delegation.host_scope().is_empty() { Ok(None) } else { Err(PlanError::GuardedHostScope { why }) }
}
