//! The public part of an owner's record, readable by everyone in the group: what metrics need. It has no paths of
//! bundles, no pids, no reasons and no verifier log.

use serde::{Deserialize, Serialize};

use crate::model::attach_point::Scope;
use crate::model::police::PoliceRecord;
use crate::model::proxy::ProxyRecord;
use crate::model::proxy::usage::UsedKind;
use crate::model::record::{OwnerRecord, Workload};

/// One owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicOwner {
    /// The record's number.
    pub no: u64,
    /// `container`, `netns`, `host`.
    pub kind: String,
    /// Container id, cookie or application.
    pub id: String,
    /// Creation time: seconds since 1970.
    pub created: u64,
    /// The container's engine, or empty.
    pub engine: String,
    /// Kubernetes namespace, or empty.
    pub namespace: String,
    /// Pod, or empty.
    pub pod: String,
    /// The container's name in the pod, or empty.
    pub container: String,
    /// True if it has a delegated bpffs.
    pub delegated: bool,
    /// What its workload loaded through the proxy; None without a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxied: Option<ProxiedCounts>,
    /// The number of its maps.
    pub maps: usize,
    /// The images.
    pub images: Vec<PublicImage>,
    /// The programs.
    pub programs: Vec<PublicProgram>,
    /// The links.
    pub links: Vec<PublicLink>,
    /// How it is policed, and the calls that were not allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub police: Option<PoliceRecord>,
}

/// Numbers of objects that a workload loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProxiedCounts {
    /// Programs.
    pub programs: u64,
    /// Maps.
    pub maps: u64,
    /// BTF objects.
    pub btf: u64,
    /// Links.
    pub links: u64,
}

impl ProxiedCounts {
    fn of(proxy: &ProxyRecord) -> Self {
        let mut counts = Self::default();
        for object in &proxy.objects {
            *match object.kind {
                UsedKind::Program => &mut counts.programs,
                UsedKind::Map => &mut counts.maps,
                UsedKind::Btf => &mut counts.btf,
                UsedKind::Link => &mut counts.links,
            } += 1;
        }
        counts
    }
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicImage {
    /// The requested reference.
    pub reference: String,
    /// The digest to which it was resolved.
    pub digest: String,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicProgram {
    /// The kernel's id.
    pub id: u32,
    /// The function.
    pub name: String,
    /// `xdp` …
    pub kind: String,
    /// `container` or `host`.
    pub scope: String,
    /// Index into the images.
    pub image: usize,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicLink {
    /// The kernel's id.
    pub id: u32,
    /// The kernel's id of its program.
    pub program: u32,
    /// `xdp` …
    pub kind: String,
}

impl PublicOwner {
    /// The public part of a record.
    pub fn of(record: &OwnerRecord) -> Self {
        let (engine, workload) = match record.owner.workload() {
            Some((engine, workload)) => (engine.word(), workload.clone()),
            None => ("", Workload::default()),
        };
        let bpffs = record.owner.container().and_then(|container| container.bpffs.as_ref());
        let programs = record.programs.iter().filter_map(|program| {
            Some(PublicProgram {
                id: program.id()?,
                name: program.function.clone(),
                kind: program.kind.word().to_owned(),
                scope: match program.scope {
                    Scope::Container => "container".to_owned(),
                    Scope::Host => "host".to_owned(),
                },
                image: program.image,
            })
        });
        let links = record.links.iter().filter_map(|link| {
            let program = record.programs.iter().find(|program| program.pin == link.program)?;
            Some(PublicLink { id: link.id()?, program: program.id()?, kind: link.at.word().to_owned() })
        });
        Self {
            no: record.no.0,
            kind: record.owner.kind().to_owned(),
            id: record.owner.id(),
            created: record.created,
            engine: engine.to_owned(),
            namespace: workload.namespace.unwrap_or_default(),
            pod: workload.pod.unwrap_or_default(),
            container: workload.container.unwrap_or_default(),
            delegated: bpffs.is_some_and(|bpffs| bpffs.delegation.is_some()),
            proxied: record.owner.container().and_then(|container| container.proxy.as_deref()).map(ProxiedCounts::of),
            maps: record.maps.len(),
            images: (record.images.iter())
                .map(|image| PublicImage { reference: image.reference.clone(), digest: image.digest.to_string() })
                .collect(),
            programs: programs.collect(),
            links: links.collect(),
            police: record.owner.container().and_then(|container| container.police.clone()),
        }
    }
}
