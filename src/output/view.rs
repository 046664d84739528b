//! The types behind `-o json` and the tables: stable, documented in docs/operations.md, and separate from the form in
//! which records are stored.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::Serialize;

use crate::lifecycle::health::{Health, LostObject};
use crate::lifecycle::proxy_processes::SeenProxy;
use crate::model::annotations::MapAccess;
use crate::model::attach_point::{AttachPoint, ProgramKind, Scope, XdpMode};
use crate::model::bytecode::ImageVerdict;
use crate::model::delegation::{Category, Delegation};
use crate::model::ids::Digest;
use crate::model::police::PoliceRecord;
use crate::model::proxy::usage::{HeldObject, UsedKind};
use crate::model::proxy::{ListenerOf, ProxyRecord};
use crate::model::reach;
use crate::model::record::{MapRecord, OwnerRecord, Phase};
use crate::sys::clock;

/// The state of an owner: the phase of its record, or that its container is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerState {
    /// Recorded, not yet complete.
    Pending,
    /// Complete.
    Ready,
    /// Being released.
    Releasing,
    /// Refused, or released after a failure.
    Failed,
    /// Complete, but its container or pod is gone; gc releases it.
    Dead,
}

impl OwnerState {
    fn of(record: &OwnerRecord, health: &Health) -> Self {
        match record.phase {
            _ if health.dead.contains_key(&record.no) => Self::Dead,
            Phase::Pending => Self::Pending,
            Phase::Ready => Self::Ready,
            Phase::Releasing => Self::Releasing,
            Phase::Failed => Self::Failed,
        }
    }
}

/// The owner of a program or link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnerName {
    /// The record's number.
    pub no: u64,
    /// `container`, `netns` or `host`.
    pub kind: &'static str,
    /// The container's id, the namespace's cookie, or the application.
    pub id: String,
    /// The name by which users know it: podman's name, or `POD/CONTAINER`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl OwnerName {
    /// The owner of a record, without the engine's name for it.
    pub fn of(record: &OwnerRecord) -> Self {
        Self { no: record.no.0, kind: record.owner.kind(), id: record.owner.id(), name: None }
    }

    /// For a column of a table: the name, or the first digits of the id.
    pub fn short(&self) -> String {
        match (self.kind, &self.name) {
            (_, Some(name)) => name.clone(),
            ("container", None) => short_id(&self.id).to_owned(),
            ("host", None) if self.id.is_empty() => "host".to_owned(),
            ("host", None) => format!("app {}", self.id),
            (kind, None) => format!("{kind} {}", self.id),
        }
    }
}

/// The first 12 digits of an id, as podman and docker show it.
pub fn short_id(id: &str) -> &str {
    const DIGITS: usize = 12;
    let is_hexadecimal = id.len() > DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hexadecimal { &id[..DIGITS] } else { id }
}

/// One owner: a container, a pod's network namespace, or the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnerView<'a> {
    /// Number, kind, id and name.
    #[serde(flatten)]
    pub owner: OwnerName,
    /// `ready`, `pending`, `releasing`, `failed` or `dead`.
    pub state: OwnerState,
    /// Why it failed or is dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The end of the verifier's log, if the verifier rejected a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verifier_log: Option<String>,
    /// What could not be removed yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leftovers: Vec<String>,
    /// The container engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<&'static str>,
    /// Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Pod name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Container name in the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Pid of the init process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    /// The uid that the runtime runs as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_user: Option<u32>,
    /// The container's cgroup, if a program is attached to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The policy's rule that decided about its request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granted_by: Option<String>,
    /// Creation time, RFC 3339.
    pub created: String,
    /// The same in seconds since 1970.
    #[serde(skip)]
    pub created_at: u64,
    /// Programs with their links.
    pub programs: Vec<ProgramView<'a>>,
    /// Maps.
    pub maps: Vec<MapView>,
    /// The bpffs in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpffs: Option<BpffsView>,
    /// What the container may do through the proxy of bpf(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyView<'a>>,
    /// How its own bpf(2) calls are policed, and which were not allowed as of the last reading of the counters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub police: Option<&'a PoliceRecord>,
    /// Owner numbers of the network namespaces whose programs it holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<u64>,
    /// Owner numbers of the containers that hold it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<u64>,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProgramView<'a> {
    /// Kernel id; absent while the program is being loaded.
    pub id: Option<u32>,
    /// Function name.
    pub name: Cow<'a, str>,
    /// `xdp`, `cgroup_skb` …
    #[serde(rename = "type")]
    pub kind: ProgramKind,
    /// `container` or `host`.
    pub scope: Scope,
    /// Its owner.
    pub owner: OwnerName,
    /// The image reference as requested.
    pub image: Cow<'a, str>,
    /// The image's digest.
    pub digest: Cow<'a, str>,
    /// The image rule of the policy that allowed it.
    pub rule: Cow<'a, str>,
    /// The verdict of that rule: `verified` or `unsigned`.
    pub verdict: Cow<'a, str>,
    /// The key or identity that verified it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Cow<'a, str>>,
    /// The layout in which the signature was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Cow<'a, str>>,
    /// The kernel's statistics; only if requested (`--stats`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
    /// Why the kernel no longer has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<LostObject>,
    /// Its links.
    pub links: Vec<LinkView<'a>>,
}

impl ProgramView<'_> {
    /// The function, marked if the kernel no longer has the program.
    pub fn shown_name(&self) -> String {
        match self.gone {
            Some(loss) => format!("{} ({})", self.name, loss.words()),
            None => self.name.to_string(),
        }
    }

    /// Adds the engine's name of the owner.
    pub fn named(mut self, name: Option<&String>) -> Self {
        let owners = self.links.iter_mut().map(|link| &mut link.owner).chain([&mut self.owner]);
        owners.for_each(|owner| owner.name = name.cloned());
        self
    }

    /// Adds what is lost of the program and of its links.
    pub fn with(mut self, health: &Health) -> Self {
        self.gone = self.id.and_then(|id| health.programs.get(&id).copied());
        for link in &mut self.links {
            link.gone = link.id.and_then(|id| health.links.get(&id).copied());
        }
        self
    }
}

/// The kernel's statistics about a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Run time in nanoseconds; 0 unless kernel.bpf_stats_enabled is 1.
    pub run_time_ns: u64,
    /// Run count; 0 unless kernel.bpf_stats_enabled is 1.
    pub run_count: u64,
    /// Kernel memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Instructions that the verifier processed.
    pub verified_instructions: u32,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkView<'a> {
    /// Kernel id; absent while the link is being created.
    pub id: Option<u32>,
    /// Kernel id of its program.
    pub program_id: Option<u32>,
    /// The program's function.
    pub program: Cow<'a, str>,
    /// Its owner.
    pub owner: OwnerName,
    /// Attach point.
    pub at: Cow<'a, AttachPoint>,
    /// Why it no longer runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<LostObject>,
}

impl LinkView<'_> {
    /// The attach point, with generic XDP mode and the reason why it is gone.
    pub fn place(&self) -> String {
        let mode = match &*self.at {
            AttachPoint::Xdp { mode: Some(XdpMode::Skb), .. } => " in generic mode (skb)",
            _ => "",
        };
        let gone = self.gone.map(|loss| format!(" ({})", loss.words())).unwrap_or_default();
        format!("{}{mode}{gone}", self.at)
    }
}

/// One map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MapView {
    /// Kernel id; absent while the map is being created.
    pub id: Option<u32>,
    /// Name in the object file.
    pub name: String,
    /// File name in the container's bpffs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shown_as: Option<String>,
    /// Access of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<MapAccess>,
}

/// The bpffs of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BpffsView {
    /// Path in the container's root.
    pub path: String,
    /// Delegation: mount options and their values; empty for a private bpffs.
    pub delegates: Vec<(String, String)>,
    /// The delegation in one line; None for a private bpffs.
    #[serde(skip)]
    pub summary: Option<String>,
}

/// What a container may do through the proxy of bpf(2), and what it has loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProxyView<'a> {
    /// Commands.
    pub cmds: Vec<String>,
    /// Map types.
    pub maps: Vec<String>,
    /// Program types.
    pub progs: Vec<String>,
    /// Attach types.
    pub attachs: Vec<String>,
    /// Helpers, without `bpf_`; absent if the scope decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub helpers: Option<Vec<&'static str>>,
    /// Kernel functions; absent if the scope decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kfuncs: Option<Vec<&'a str>>,
    /// The digests of the instructions that may be loaded, and verified images, as in the policy; absent if any may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<Vec<String>>,
    /// `container` or `host`.
    pub scope: Scope,
    /// The processes that serve it.
    pub processes: Vec<ProxyProcessView>,
    /// What it has loaded; some may have been closed since.
    pub objects: Vec<ProxiedObjectView<'a>>,
}

/// A process that serves the calls of a container or of an exec in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProxyProcessView {
    /// Its pid.
    pub pid: u32,
    /// `container` or `exec`.
    pub of: ListenerOf,
    /// True if it has ended although tasks may be left: their calls get ENOSYS.
    pub lost: bool,
}

/// An object that a container loaded through the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProxiedObjectView<'a> {
    /// `program`, `map`, `btf` or `link`.
    pub kind: UsedKind,
    /// Kernel id.
    pub id: u32,
    /// The kernel's name of the type of a program or map, or of a link's program; absent for BTF.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kernel_type: Option<String>,
    /// The name that the workload gave it; absent if it gave none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// The digest of a program's instructions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Where a link is attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attached_to: Option<&'a str>,
}

impl<'a> ProxyView<'a> {
    fn new(record: &'a ProxyRecord, processes: &[SeenProxy]) -> Self {
        let process = |SeenProxy { process, lost }: &SeenProxy| ProxyProcessView {
            pid: process.process.pid.get(),
            of: process.of,
            lost: *lost,
        };
        let grant = &record.grant;
        let helpers = |numbers: &BTreeSet<u32>| numbers.iter().filter_map(|n| Some(reach::helper(*n)?.name)).collect();
        Self {
            cmds: grant.delegation.names(Category::Cmds),
            maps: grant.delegation.names(Category::Maps),
            progs: grant.delegation.names(Category::Progs),
            attachs: grant.delegation.names(Category::Attachs),
            helpers: grant.helpers.as_ref().map(helpers),
            instructions: grant.instructions.as_ref().map(|digests| {
                let images = grant.images.iter().map(|pattern| format!("image:{pattern}"));
                digests.iter().map(ToString::to_string).chain(images).collect()
            }),
            kfuncs: grant.kfuncs.as_ref().map(|names| names.iter().map(String::as_str).collect()),
            scope: scope_of(record),
            processes: processes.iter().map(process).collect(),
            objects: record.objects.iter().map(ProxiedObjectView::new).collect(),
        }
    }
}

impl<'a> ProxiedObjectView<'a> {
    fn new(object: &'a HeldObject) -> Self {
        let category = match object.kind {
            UsedKind::Program | UsedKind::Link => Some(Category::Progs),
            UsedKind::Map => Some(Category::Maps),
            UsedKind::Btf => None,
        };
        let named = |category: Category| {
            let name = category.name(object.kernel_type);
            name.map_or_else(|| object.kernel_type.to_string(), str::to_owned)
        };
        let name = Some(object.name.as_str()).filter(|name| !name.is_empty());
        let (kernel_type, attached_to) = (category.map(named), object.place.as_deref());
        Self { kind: object.kind, id: object.id, kernel_type, name, digest: object.digest, attached_to }
    }

    /// The type, or `-`.
    pub fn type_word(&self) -> &str {
        self.kernel_type.as_deref().unwrap_or("-")
    }

    /// For a line of a listing: `program 71 xdp count`.
    pub fn line(&self) -> String {
        let id = self.id.to_string();
        let digest = self.digest.map(|digest| digest.to_string());
        let (kind, name, place) = (self.kernel_type.as_deref(), self.name, self.attached_to);
        let parts = [Some(self.kind.word()), Some(id.as_str()), kind, name, digest.as_deref(), place];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// A program or link in a listing that a container's workload loaded itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkloadObjectView<'a> {
    /// The object.
    #[serde(flatten)]
    pub object: ProxiedObjectView<'a>,
    /// `container` or `host`: the scope of what the container was granted.
    pub scope: Scope,
    /// Its owner.
    pub owner: OwnerName,
    /// `workload`
    pub origin: &'static str,
    /// The kernel's statistics; only if requested (`--stats`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
}

/// The objects of a kind that a container's workload loaded through the proxy.
pub fn by_workload(record: &OwnerRecord, kind: UsedKind) -> impl Iterator<Item = WorkloadObjectView<'_>> {
    let proxy = record.owner.container().and_then(|container| container.proxy.as_ref());
    proxy.into_iter().flat_map(move |proxy| {
        let objects = proxy.objects.iter().filter(move |object| object.kind == kind);
        objects.map(|object| WorkloadObjectView {
            object: ProxiedObjectView::new(object),
            scope: scope_of(proxy),
            owner: OwnerName::of(record),
            origin: "workload",
            stats: None,
        })
    })
}

fn scope_of(proxy: &ProxyRecord) -> Scope {
    if proxy.grant.host_scope { Scope::Host } else { Scope::Container }
}

impl<'a> OwnerView<'a> {
    /// Adds the engine's name of the container.
    pub fn named(mut self, name: Option<&String>) -> Self {
        self.owner.name = name.cloned();
        self.programs = self.programs.into_iter().map(|program| program.named(name)).collect();
        self
    }

    /// The view of one record.
    pub fn new(record: &'a OwnerRecord, health: &Health) -> Self {
        let container = record.owner.container();
        let (engine, workload) = record.owner.workload().unzip();
        let workload = workload.cloned().unwrap_or_default();
        Self {
            owner: OwnerName::of(record),
            state: OwnerState::of(record, health),
            reason: record.failure.clone().or_else(|| health.dead.get(&record.no).cloned()),
            verifier_log: record.verifier_log.clone(),
            leftovers: record.leftovers.clone(),
            engine: engine.map(|engine| engine.word()),
            namespace: workload.namespace,
            pod: workload.pod,
            container: workload.container,
            pid: record.owner.init().map(|init| init.pid.get()),
            bundle: container.map(|c| c.bundle.display().to_string()).filter(|bundle| !bundle.is_empty()),
            runtime_user: container.map(|c| c.runtime_user),
            cgroup: container.and_then(|c| c.cgroup.as_ref()).map(|cgroup| cgroup.path.display().to_string()),
            granted_by: container.and_then(|c| c.granted_by.as_ref()).map(ToString::to_string),
            created: clock::utc(record.created),
            created_at: record.created,
            programs: programs(record).map(|program| program.with(health)).collect(),
            maps: maps(record),
            bpffs: container.and_then(|c| c.bpffs.as_ref()).map(|bpffs| BpffsView {
                path: bpffs.path.display().to_string(),
                delegates: bpffs.delegation.as_ref().map(delegates).unwrap_or_default(),
                summary: bpffs.delegation.as_ref().map(Delegation::summary),
            }),
            proxy: container
                .and_then(|c| c.proxy.as_ref())
                .map(|proxy| ProxyView::new(proxy, health.proxies.get(&record.no).map_or(&[][..], Vec::as_slice))),
            police: container.and_then(|c| c.police.as_ref()),
            holds: record.owner.holds().iter().map(|no| no.0).collect(),
            holders: record.owner.holders().iter().map(|no| no.0).collect(),
        }
    }
}

fn delegates(delegation: &Delegation) -> Vec<(String, String)> {
    Category::ALL
        .into_iter()
        .filter(|category| delegation.mask(*category) != 0)
        .map(|category| (category.mount_option().to_owned(), delegation.names(category).join(":")))
        .collect()
}

/// The programs of a record.
pub fn programs(record: &OwnerRecord) -> impl Iterator<Item = ProgramView<'_>> {
    record.programs.iter().filter_map(|program| {
        let image = record.images.get(program.image)?;
        let (verdict, by, layout) = match &image.verdict {
            ImageVerdict::Verified { by, layout } => ("verified", Some(by), Some(layout)),
            ImageVerdict::Unsigned => ("unsigned", None, None),
        };
        let links = record.links.iter().filter(|link| link.program == program.pin);
        let links = links.map(|link| LinkView {
            id: link.id(),
            program_id: program.id(),
            program: program.function.as_str().into(),
            owner: OwnerName::of(record),
            at: Cow::Borrowed(&link.at),
            gone: None,
        });
        Some(ProgramView {
            id: program.id(),
            name: program.function.as_str().into(),
            kind: program.kind,
            scope: program.scope,
            owner: OwnerName::of(record),
            image: image.reference.as_str().into(),
            digest: image.digest.to_string().into(),
            rule: image.rule.as_str().into(),
            verdict: verdict.into(),
            by: by.map(|by| by.as_str().into()),
            layout: layout.map(|layout| layout.as_str().into()),
            stats: None,
            gone: None,
            links: links.collect(),
        })
    })
}

fn maps(record: &OwnerRecord) -> Vec<MapView> {
    let view = |map: &MapRecord| MapView {
        id: map.id(),
        name: map.name.clone(),
        shown_as: map.shown.as_ref().map(|s| s.file_name.clone()),
        access: map.shown.as_ref().map(|s| s.access),
    };
    record.maps.iter().map(view).collect()
}
