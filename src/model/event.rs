//! Events as `events` prints them, derived from changes of the records.

use serde::{Deserialize, Serialize};

use crate::model::ids::{ContainerId, OwnerNo};
use crate::model::metrics_table::EventKind;
use crate::model::police::{PoliceMode, times};
use crate::model::proxy::{ListenerOf, ProxyProcess};
use crate::model::record::{LinkRecord, Owner, OwnerRecord, Phase, ProgramRecord, Workload};

/// Maximum size of the reason in an event, in bytes.
const REASON_MAX: usize = 512;

/// One event. Fields that do not apply are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// The time in RFC 3339 format, in UTC with nanoseconds; set when the event is written.
    pub time: String,
    /// The name of the [`EventKind`].
    #[serde(rename = "type")]
    pub what: String,
    /// Number of the owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<u64>,
    /// The container's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The network namespace's cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u64>,
    /// `--application` of a load without a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
    /// Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The container's name in its pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_name: Option<String>,
    /// The program's function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The kernel's id of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program_id: Option<u32>,
    /// The kernel's id of the link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_id: Option<u32>,
    /// The attach point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its digest; for a program of a workload, that of its instructions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The reason for a refusal; of a policed container, what was refused and how often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `workload` if the container's workload did it, through the proxy of bpf(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// How often it happened so far in this process of the proxy, if more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// What releases an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleasedBy {
    /// The end of its container or pod, the failure of its start, or a user.
    Request,
    /// gc, which found it dead.
    Gc,
}

impl Event {
    /// An event without an owner.
    pub fn new(what: EventKind) -> Self {
        Self { what: what.word().to_owned(), ..Self::default() }
    }

    fn of(what: EventKind, record: &OwnerRecord) -> Self {
        let mut this = Self { owner: Some(record.no.0), ..Self::new(what) };
        if let Some((_, workload)) = record.owner.workload() {
            this.namespace.clone_from(&workload.namespace);
            this.pod.clone_from(&workload.pod);
            this.container_name.clone_from(&workload.container);
        }
        match &record.owner {
            Owner::Container(container) => this.container = Some(container.id.to_string()),
            Owner::Netns(netns) => this.netns = Some(netns.cookie),
            Owner::Host(host) => this.application.clone_from(&host.application),
        }
        this
    }

    fn program(what: EventKind, record: &OwnerRecord, program: &ProgramRecord) -> Self {
        let image = record.images.get(program.image);
        Self {
            program: Some(program.function.clone()),
            program_id: program.id(),
            image: image.map(|image| image.reference.clone()),
            digest: image.map(|image| image.digest.to_string()),
            ..Self::of(what, record)
        }
    }

    fn link(what: EventKind, record: &OwnerRecord, link: &LinkRecord) -> Self {
        let program = record.programs.iter().find(|program| program.pin == link.program);
        Self {
            program: program.map(|program| program.function.clone()),
            program_id: program.and_then(ProgramRecord::id),
            link_id: link.id(),
            target: Some(format!("{} {}", link.at.word(), link.at)),
            ..Self::of(what, record)
        }
    }
}

/// A reason of limited length.
pub fn short_reason(reason: &str) -> String {
    reason[..reason.floor_char_boundary(REASON_MAX)].to_owned()
}

/// An event about what a container's workload did through the proxy `count` times. `owner` is absent without a grant.
pub fn by_workload(what: EventKind, id: &ContainerId, owner: Option<(OwnerNo, &Workload)>, count: u64) -> Event {
    Event {
        container: Some(id.to_string()),
        owner: owner.map(|(no, _)| no.0),
        namespace: owner.and_then(|(_, workload)| workload.namespace.clone()),
        pod: owner.and_then(|(_, workload)| workload.pod.clone()),
        container_name: owner.and_then(|(_, workload)| workload.container.clone()),
        origin: Some("workload".to_owned()),
        count: Some(count).filter(|count| *count > 1),
        ..Event::new(what)
    }
}

/// The event for a process of the proxy that ended before its listener.
pub fn proxy_lost(record: &OwnerRecord, lost: &ProxyProcess) -> Event {
    let of = match lost.of {
        ListenerOf::Container => "the container",
        ListenerOf::Exec => "an exec in the container",
    };
    let pid = lost.process.pid;
    let reason = format!("process {pid}, the proxy of {of}, has ended: its bpf(2) calls get ENOSYS");
    Event { reason: Some(reason), ..Event::of(EventKind::Lost, record) }
}

/// The events for a change of one record. `acquired`: the record was complete once, which a Releasing record does not
/// show. `by`: what releases the owner, if the record is deleted.
pub fn between(before: Option<&OwnerRecord>, after: Option<&OwnerRecord>, acquired: bool, by: ReleasedBy) -> Vec<Event> {
    if let Some(Owner::Host(_)) = after.or(before).map(|record| &record.owner) {
        return manual(before, after);
    }
    let phase = |record: Option<&OwnerRecord>| record.map(|record| record.phase);
    let gone = match by {
        ReleasedBy::Request => EventKind::Released,
        ReleasedBy::Gc => EventKind::Collected,
    };
    match (before, after) {
        (_, Some(record)) if record.phase == Phase::Ready && phase(before) != Some(Phase::Ready) => {
            vec![Event::of(EventKind::Acquired, record)]
        }
        (_, Some(record)) if record.phase == Phase::Failed && phase(before) != Some(Phase::Failed) => {
            let reason = record.failure.as_deref().map(short_reason);
            let kind = if record.owner.is_missed() { EventKind::Missed } else { EventKind::Refused };
            vec![Event { reason, ..Event::of(kind, record) }]
        }
        (Some(before), Some(record)) if record.phase == Phase::Ready => policed(before, record),
        (Some(record), None) if acquired => vec![Event::of(gone, record)],
        _ => Vec::new(),
    }
}

/// One event for each value of which more uses were refused than before.
fn policed(before: &OwnerRecord, after: &OwnerRecord) -> Vec<Event> {
    let of = |record: &OwnerRecord| record.owner.container().and_then(|container| container.police.clone());
    let Some(police) = of(after) else { return Vec::new() };
    let known = of(before).map(|police| police.refused).unwrap_or_default();
    let mut events = Vec::new();
    for call in police.refused {
        let counted = known.iter().find(|known| known.set == call.set && known.name == call.name);
        let more = call.refused.saturating_sub(counted.map_or(0, |known| known.refused));
        if more > 0 {
            let refused = match police.mode {
                PoliceMode::Warn => "would be refused",
                PoliceMode::Enforce => "refused",
            };
            let reason = format!("{} {}: {refused}, {}", call.set.noun(), call.name, times(more));
            events.push(Event { reason: Some(reason), ..Event::of(EventKind::Policed, after) });
        }
    }
    events
}

/// The events for loads without a container: loaded, attached, detached, unloaded.
fn manual(before: Option<&OwnerRecord>, after: Option<&OwnerRecord>) -> Vec<Event> {
    let links = |record: Option<&OwnerRecord>| -> Vec<LinkRecord> { record.map(|r| r.links.clone()).unwrap_or_default() };
    let programs =
        |record: Option<&OwnerRecord>| -> Vec<ProgramRecord> { record.map(|r| r.programs.clone()).unwrap_or_default() };
    let (old_links, new_links) = (links(before), links(after));
    let (old_programs, new_programs) = (programs(before), programs(after));
    let mut found = Vec::new();
    let has_link = |all: &[LinkRecord], id| all.iter().any(|link| link.id() == Some(id));
    let has_program = |all: &[ProgramRecord], id| all.iter().any(|program| program.id() == Some(id));
    if let Some(record) = before {
        for link in old_links.iter().filter(|link| link.id().is_some_and(|id| !has_link(&new_links, id))) {
            found.push(Event::link(EventKind::Detached, record, link));
        }
        for program in old_programs.iter().filter(|program| program.id().is_some_and(|id| !has_program(&new_programs, id))) {
            found.push(Event::program(EventKind::Unloaded, record, program));
        }
    }
    if let Some(record) = after {
        for program in new_programs.iter().filter(|program| program.id().is_some_and(|id| !has_program(&old_programs, id))) {
            found.push(Event::program(EventKind::Loaded, record, program));
        }
        for link in new_links.iter().filter(|link| link.id().is_some_and(|id| !has_link(&old_links, id))) {
            found.push(Event::link(EventKind::Attached, record, link));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(owner: &str, phase: &str, links: &str) -> OwnerRecord {
        let text = format!(
            r#"{{"no":7,"owner":{owner},"phase":"{phase}","actor":{{"process":{{"pid":1,"start_time":1}},"deadline":1}},
            "created":1,"changed":1,"programs":[],"maps":[],"links":[{links}],"images":[],"failure":"no such thing",
            "leftovers":[]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn events_of_a_containers_lifecycle() {
        let container = r#"{"kind":"container","id":"web","bundle":"/b","runtime_user":0,"engine":"oci","init":null,"request":null,
            "workload":{"namespace":null,"pod":null,"container":null},"cgroup":null,"bpffs":null,"holds":[]}"#;
        let of = |phase: &str| record(container, phase, "");
        let (pending, ready, releasing, failed) = (of("pending"), of("ready"), of("releasing"), of("failed"));
        let (request, gc) = (ReleasedBy::Request, ReleasedBy::Gc);
        for (before, after, acquired, by, expected) in [
            (None, Some(&pending), false, request, &[][..]),
            (Some(&pending), Some(&ready), true, request, &["acquired"]),
            (Some(&ready), Some(&ready), true, request, &[]),
            (Some(&ready), Some(&releasing), false, request, &[]),
            (Some(&releasing), None, true, request, &["released"]),
            (Some(&releasing), None, true, gc, &["collected"]),
            // A start that failed was never acquired.
            (Some(&releasing), None, false, request, &[]),
            (None, Some(&failed), false, request, &["refused"]),
            (Some(&failed), Some(&failed), false, request, &[]),
            (Some(&failed), None, false, request, &[]),
        ] {
            let told = between(before, after, acquired, by);
            let words: Vec<_> = told.iter().map(|event| event.what.as_str()).collect();
            assert_eq!(words, expected, "{:?} -> {:?}", before.map(|r| r.phase), after.map(|r| r.phase));
            assert!(told.iter().all(|event| event.container.as_deref() == Some("web")));
        }
        assert_eq!(between(None, Some(&failed), false, request)[0].reason.as_deref(), Some("no such thing"));
    }

    #[test]
    fn refused_calls_of_a_policed_container_are_events() {
        let of = |police: &str| {
            let container = format!(
                r#"{{"kind":"container","id":"web","bundle":"/b","runtime_user":0,"engine":"oci","init":null,"request":null,
                "workload":{{"namespace":"shop","pod":null,"container":"agent"}},"cgroup":null,"bpffs":null,"police":{police},"holds":[]}}"#
            );
            record(&container, "ready", "")
        };
        let call = |set: &str, name: &str, refused: u64| {
            format!(r#"{{"set":"{set}","name":"{name}","seen":{refused},"refused":{refused}}}"#)
        };
        let mode = |mode: &str, calls: &[String]| of(&format!(r#"{{"mode":"{mode}","refused":[{}]}}"#, calls.join(",")));
        let (xdp, more) = (call("progs", "xdp", 2), call("progs", "xdp", 5));
        let clean = mode("enforce", &[]);
        for (before, after, expected) in [
            (&clean, mode("enforce", &[]), vec![]),
            (&clean, mode("enforce", std::slice::from_ref(&xdp)), vec!["program type xdp: refused, 2 times"]),
            (&mode("enforce", std::slice::from_ref(&xdp)), mode("enforce", std::slice::from_ref(&xdp)), vec![]),
            (
                &mode("warn", &[xdp]),
                mode("warn", &[call("cmds", "60", 1), more]),
                vec!["bpf command 60: would be refused, once", "program type xdp: would be refused, 3 times"],
            ),
        ] {
            let told = between(Some(before), Some(&after), true, ReleasedBy::Request);
            let reasons: Vec<_> = told.iter().map(|event| event.reason.as_deref().unwrap_or_default()).collect();
            assert_eq!(reasons, expected);
            assert!(told.iter().all(|event| event.what == "policed" && event.container.as_deref() == Some("web")));
            assert!(told.iter().all(|event| event.container_name.as_deref() == Some("agent")));
        }
    }

    #[test]
    fn events_of_loads_without_a_container_name_program_and_link() {
        let host =
            r#"{"kind":"host","application":"shop","loaded":{"caller":"root","reference":null,"globals":{},"metadata":{}}}"#;
        let program = r#"{"pin":"prog_0","function":"count","kind":"xdp","scope":"host","image":0,"state":{"loaded":71}}"#;
        let link = |state: &str| {
            let at = r#"{"type":"xdp","iface":{"index":2,"name":"eth0"},"mode":null}"#;
            format!(r#"{{"pin":"link_0","program":"prog_0","at":{at},"state":{state}}}"#)
        };
        let of = |program: &str, links: &str| {
            let mut record = record(host, "ready", links);
            record.programs = serde_json::from_str(&format!("[{program}]")).unwrap();
            record
        };
        let pending = of(&program.replace(r#"{"loaded":71}"#, r#""loading""#), "");
        let loaded = of(program, "");
        let [attaching, attached, detaching] =
            [r#""attaching""#, r#"{"attached":81}"#, r#"{"detaching":81}"#].map(|state| of(program, &link(state)));
        for (before, after, expected) in [
            (None, Some(&pending), &[][..]),
            (Some(&pending), Some(&loaded), &["loaded"]),
            (Some(&loaded), Some(&attaching), &[]),
            (Some(&attaching), Some(&attached), &["attached"]),
            (Some(&attached), Some(&detaching), &["detached"]),
            (Some(&detaching), Some(&loaded), &[]),
            // The kernel refused to detach it.
            (Some(&detaching), Some(&attached), &["attached"]),
            (Some(&attached), Some(&attached), &[]),
            // The links go first.
            (Some(&attached), None, &["detached", "unloaded"]),
            (Some(&loaded), None, &["unloaded"]),
            (Some(&pending), None, &[]),
        ] {
            let told = between(before, after, false, ReleasedBy::Request);
            let words: Vec<_> = told.iter().map(|event| event.what.as_str()).collect();
            assert_eq!(words, expected);
            for event in told {
                assert_eq!((event.application.as_deref(), event.program.as_deref()), (Some("shop"), Some("count")));
                assert_eq!(event.program_id, Some(71));
                let of_link = matches!(event.what.as_str(), "attached" | "detached");
                assert_eq!(
                    (event.link_id, event.target.as_deref()),
                    if of_link { (Some(81), Some("xdp eth0")) } else { (None, None) }
                );
            }
        }
    }
}
