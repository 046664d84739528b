//! What `-o json` prints, and what the tables are drawn from: stable, documented in docs/operations.md, and apart from
//! the form in which records are stored.

use std::borrow::Cow;

use serde::Serialize;

use crate::lifecycle::health::{Health, LostObject};
use crate::model::annotations::MapAccess;
use crate::model::attach_point::{AttachPoint, ProgramKind, Scope, XdpMode};
use crate::model::bytecode::ImageVerdict;
use crate::model::delegation::{Category, Delegation};
use crate::model::record::{Owner, OwnerRecord, Phase};

/// How an owner is: how far its record got, or that its container is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerState {
    /// Recorded, not yet complete.
    Pending,
    /// Complete.
    Ready,
    /// Being undone.
    Releasing,
    /// Refused or undone after a failure.
    Failed,
    /// Complete, and its container or pod is gone: gc releases it.
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

/// One owner: a container, a pod's network namespace, or the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnerView<'a> {
    /// The record's number.
    pub owner: u64,
    /// `container`, `netns` or `host`.
    pub kind: &'static str,
    /// The container's id, the namespace's cookie, or the application.
    pub id: String,
    /// `ready`, `pending`, `releasing`, `failed` or `dead`.
    pub state: OwnerState,
    /// Why it failed or is dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The end of the verifier's log, where the verifier refused a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verifier_log: Option<String>,
    /// What could not be removed yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leftovers: Vec<String>,
    /// What made the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<&'static str>,
    /// Its Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its name in the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The init's pid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// Programs with their links.
    pub programs: Vec<ProgramView<'a>>,
    /// Maps.
    pub maps: Vec<MapView>,
    /// The bpffs in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpffs: Option<BpffsView>,
    /// Numbers of the network namespaces whose programs it holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<u64>,
    /// Numbers of the containers that hold it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<u64>,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProgramView<'a> {
    /// The kernel's id; absent while it is being loaded.
    pub id: Option<u32>,
    /// The function.
    pub name: Cow<'a, str>,
    /// `xdp`, `cgroup_skb` …
    #[serde(rename = "type")]
    pub kind: ProgramKind,
    /// `container` or `host`.
    pub scope: Scope,
    /// Number of the owner.
    pub owner: u64,
    /// The image, as it was asked for.
    pub image: Cow<'a, str>,
    /// Its digest.
    pub digest: Cow<'a, str>,
    /// The policy's image rule that allowed it.
    pub rule: Cow<'a, str>,
    /// What that rule found: `verified` or `unsigned`.
    pub verdict: Cow<'a, str>,
    /// By which key or identity it was verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Cow<'a, str>>,
    /// In which layout the signature was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Cow<'a, str>>,
    /// What the kernel says about it now; only where it was asked (`--stats`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
    /// What became of it, where the kernel does not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<LostObject>,
    /// Its links.
    pub links: Vec<LinkView<'a>>,
}

impl ProgramView<'_> {
    /// With what is lost of it and of its links.
    pub fn with(mut self, health: &Health) -> Self {
        self.gone = self.id.and_then(|id| health.programs.get(&id).copied());
        for link in &mut self.links {
            link.gone = link.id.and_then(|id| health.links.get(&id).copied());
        }
        self
    }
}

/// What the kernel says about a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Nanoseconds that it ran; 0 unless kernel.bpf_stats_enabled is 1.
    pub run_time_ns: u64,
    /// How often it ran; likewise.
    pub run_count: u64,
    /// Bytes of kernel memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Instructions that the verifier went through.
    pub verified_instructions: u32,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkView<'a> {
    /// The kernel's id; absent while it is being made.
    pub id: Option<u32>,
    /// The kernel id of its program.
    pub program_id: Option<u32>,
    /// The program's function.
    pub program: Cow<'a, str>,
    /// Number of the owner.
    pub owner: u64,
    /// Where it attaches.
    pub at: Cow<'a, AttachPoint>,
    /// What became of it, where it does not run any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<LostObject>,
}

impl LinkView<'_> {
    /// Its place, with what there is to say about it.
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
    /// The kernel's id; absent while it is being made.
    pub id: Option<u32>,
    /// The name in the object.
    pub name: String,
    /// The file in the container's bpffs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shown_as: Option<String>,
    /// What the container may do with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<MapAccess>,
}

/// The bpffs in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BpffsView {
    /// Where in the container's root.
    pub path: String,
    /// What it delegates: mount options and their values; empty for a private one.
    pub delegates: Vec<(String, String)>,
}

impl<'a> OwnerView<'a> {
    /// The view of one record.
    pub fn new(record: &'a OwnerRecord, health: &Health) -> Self {
        let (kind, id, bundle) = match &record.owner {
            Owner::Container { id, bundle, .. } => {
                ("container", id.to_string(), Some(bundle.display().to_string()).filter(|bundle| !bundle.is_empty()))
            }
            Owner::Netns { cookie, .. } => ("netns", cookie.to_string(), None),
            Owner::Host { application, .. } => ("host", application.clone().unwrap_or_default(), None),
        };
        let workload = record.workload.clone().unwrap_or_default();
        Self {
            owner: record.no.0,
            kind,
            id,
            state: OwnerState::of(record, health),
            reason: record.failure.clone().or_else(|| health.dead.get(&record.no).cloned()),
            verifier_log: record.verifier_log.clone(),
            leftovers: record.leftovers.clone(),
            engine: record.engine.map(|e| e.word()),
            namespace: workload.namespace,
            pod: workload.pod,
            container: workload.container,
            pid: record.init.map(|init| init.pid.get()),
            bundle,
            created: record.created,
            programs: programs(record).map(|program| program.with(health)).collect(),
            maps: maps(record),
            bpffs: record.bpffs.as_ref().map(|bpffs| BpffsView {
                path: bpffs.path.display().to_string(),
                delegates: bpffs.delegation.as_ref().map(delegates).unwrap_or_default(),
            }),
            holds: record.holds.iter().map(|no| no.0).collect(),
            holders: record.holders.iter().map(|no| no.0).collect(),
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
            id: link.id,
            program_id: program.id,
            program: program.function.as_str().into(),
            owner: record.no.0,
            at: Cow::Borrowed(&link.at),
            gone: None,
        });
        Some(ProgramView {
            id: program.id,
            name: program.function.as_str().into(),
            kind: program.kind,
            scope: program.scope,
            owner: record.no.0,
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
    let view = |map: &crate::model::record::MapRecord| MapView {
        id: map.id,
        name: map.name.clone(),
        shown_as: map.shown.as_ref().map(|s| s.file_name.clone()),
        access: map.shown.as_ref().map(|s| s.access),
    };
    record.maps.iter().map(view).collect()
}
