//! What `-o json` prints, and what the tables are drawn from: stable, documented in docs/operations.md, and apart from
//! the form in which records are stored.

use serde::Serialize;

use crate::model::annotations::MapAccess;
use crate::model::attach_point::{AttachPoint, ProgramKind, Scope};
use crate::model::bytecode::Verdict;
use crate::model::delegation::{Category, Delegation};
use crate::model::record::{Owner, OwnerRecord, Phase};

/// One owner: a container, a pod's network namespace, or the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnerView {
    /// The record's number.
    pub owner: u64,
    /// `container`, `netns` or `host`.
    pub kind: &'static str,
    /// The container's id, the namespace's cookie, or the application.
    pub id: String,
    /// `ready`, `pending`, `releasing` or `failed`.
    pub state: Phase,
    /// Why it failed.
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
    pub programs: Vec<ProgramView>,
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
pub struct ProgramView {
    /// The kernel's id; absent while it is being loaded.
    pub id: Option<u32>,
    /// The function.
    pub name: String,
    /// `xdp`, `cgroup_skb` …
    #[serde(rename = "type")]
    pub kind: ProgramKind,
    /// `container` or `host`.
    pub scope: Scope,
    /// Number of the owner.
    pub owner: u64,
    /// The image, as it was asked for.
    pub image: String,
    /// Its digest.
    pub digest: String,
    /// The policy's image rule that allowed it.
    pub rule: String,
    /// What that rule found.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Its links.
    pub links: Vec<LinkView>,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkView {
    /// The kernel's id; absent while it is being made.
    pub id: Option<u32>,
    /// The kernel id of its program.
    pub program_id: Option<u32>,
    /// The program's function.
    pub program: String,
    /// Number of the owner.
    pub owner: u64,
    /// Where it attaches.
    pub at: AttachPoint,
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

impl OwnerView {
    /// The view of one record.
    pub fn new(record: &OwnerRecord) -> Self {
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
            state: record.phase,
            reason: record.failure.clone(),
            verifier_log: record.verifier_log.clone(),
            leftovers: record.leftovers.clone(),
            engine: record.engine.map(|e| e.word()),
            namespace: workload.namespace,
            pod: workload.pod,
            container: workload.container,
            pid: record.init.map(|init| init.pid.get()),
            bundle,
            created: record.created,
            programs: programs(record),
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

fn programs(record: &OwnerRecord) -> Vec<ProgramView> {
    let view = |program: &crate::model::record::ProgramRecord| {
        let image = record.images.get(program.image)?;
        let links = record.links.iter().filter(|l| l.program == program.pin);
        Some(ProgramView {
            id: program.id,
            name: program.function.clone(),
            kind: program.kind,
            scope: program.scope,
            owner: record.no.0,
            image: image.reference.clone(),
            digest: image.digest.to_string(),
            rule: image.rule.clone(),
            verdict: image.verdict.clone(),
            links: links
                .map(|link| LinkView {
                    id: link.id,
                    program_id: program.id,
                    program: program.function.clone(),
                    owner: record.no.0,
                    at: link.at.clone(),
                })
                .collect(),
        })
    };
    record.programs.iter().filter_map(view).collect()
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
