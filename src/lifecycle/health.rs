//! Compares records with the kernel: dead owners, and objects that another process removed.
//!
//! The kernel is asked by id, because pins are not visible where our bpffs is hidden or was unmounted.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::kernel::Kernel;
use crate::kernel::inspect::{self, LinkInfo};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::host::Host;
use crate::lifecycle::proxy_processes::{self, SeenProxy};
use crate::model::ids::OwnerNo;
use crate::model::proxy::ListenerOf;
use crate::model::record::{LinkRecord, Owner, OwnerRecord, Phase, ProgramRecord};

/// What happened to a program or link of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LostObject {
    /// The kernel does not have the object: its pin was removed, or our bpffs was unmounted.
    Removed,
    /// The link's interface was removed, which detached the link.
    Interface,
    /// The link's cgroup was removed, which detached the link.
    Cgroup,
}

impl LostObject {
    /// The text for a table.
    pub fn words(self) -> &'static str {
        match self {
            Self::Removed => "gone: its pin was removed",
            Self::Interface => "gone: its interface is gone",
            Self::Cgroup => "gone: its cgroup is gone",
        }
    }

    /// The loss that the kernel's answer about a link means; `answer` is None if the kernel could not be asked.
    pub fn of_link(answer: Option<&LinkInfo>) -> Option<Self> {
        match answer {
            None => Some(Self::Removed),
            Some(LinkInfo { interface: Some(0), .. }) => Some(Self::Interface),
            Some(LinkInfo { cgroup: Some(0), .. }) => Some(Self::Cgroup),
            Some(_) => None,
        }
    }
}

/// Dead owners, lost objects, and the processes of proxies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// Why each dead owner counts as dead.
    pub dead: BTreeMap<OwnerNo, String>,
    /// Lost programs, by kernel id.
    pub programs: BTreeMap<u32, LostObject>,
    /// Lost links, by kernel id.
    pub links: BTreeMap<u32, LostObject>,
    /// The processes that serve the proxy of a container.
    pub proxies: BTreeMap<OwnerNo, Vec<SeenProxy>>,
}

/// One lost object of a living owner, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerProblem {
    /// The owner.
    pub no: OwnerNo,
    /// The object and its owner.
    pub what: String,
    /// What happened.
    pub why: &'static str,
    /// What to do.
    pub remedy: String,
}

impl Health {
    /// Asks the kernel about the programs and links of records. `program` and `link` look up an id: None means that the
    /// kernel has no such object. An object that cannot be looked up counts as present.
    pub fn of_objects<E>(
        records: &[OwnerRecord],
        program: impl Fn(u32) -> Result<bool, E>,
        link: impl Fn(u32) -> Result<Option<LinkInfo>, E>,
    ) -> Self {
        let mut health = Self::default();
        for record in records.iter().filter(|record| record.phase == Phase::Ready) {
            for id in record.programs.iter().filter_map(ProgramRecord::id) {
                if let Ok(false) = program(id) {
                    health.programs.insert(id, LostObject::Removed);
                }
            }
            for id in record.links.iter().filter_map(LinkRecord::id).filter(|id| *id < inspect::FILTERS) {
                if let Ok(answer) = link(id)
                    && let Some(loss) = LostObject::of_link(answer.as_ref())
                {
                    health.links.insert(id, loss);
                }
            }
        }
        health
    }

    /// The same for the running kernel, and for the processes of proxies.
    pub fn of_kernel_objects(records: &[OwnerRecord]) -> Self {
        let mut health = Self::of_objects(records, inspect::has_program, inspect::link_by_id);
        let seen = records.iter().map(|record| (record.no, proxy_processes::of(record)));
        health.proxies = seen.filter(|(_, processes)| !processes.is_empty()).collect();
        health
    }

    /// True if nothing is lost.
    fn is_whole(&self) -> bool {
        let lost = self.proxies.values().flatten().any(|seen| seen.lost);
        self.dead.is_empty() && self.programs.is_empty() && self.links.is_empty() && !lost
    }

    /// The lost objects of living owners; gc releases dead owners. A link of a lost program is reported with the
    /// program.
    pub fn problems(&self, records: &[OwnerRecord]) -> Vec<OwnerProblem> {
        let mut problems = Vec::new();
        for record in records.iter().filter(|record| !self.dead.contains_key(&record.no)) {
            let mut told = Vec::new();
            for program in &record.programs {
                if let Some((id, loss)) = program.id().and_then(|id| Some((id, self.programs.get(&id)?))) {
                    told.push(&program.pin);
                    problems.push(problem(record, format!("program {id} ({})", program.function), *loss, "unload", id));
                }
            }
            for link in record.links.iter().filter(|link| !told.contains(&&link.program)) {
                if let Some((id, loss)) = link.id().and_then(|id| Some((id, self.links.get(&id)?))) {
                    problems.push(problem(record, format!("link {id} on {}", link.at), *loss, "detach", id));
                }
            }
            for seen in self.proxies.get(&record.no).into_iter().flatten().filter(|seen| seen.lost) {
                let (of, remedy) = match seen.process.of {
                    ListenerOf::Container => ("", "start the container again"),
                    ListenerOf::Exec => (" for an exec", "run the exec again"),
                };
                problems.push(OwnerProblem {
                    no: record.no,
                    what: format!("the proxy{of} (process {}) of {}", seen.process.process.pid, record.owner),
                    why: "gone: its process has ended, and bpf(2) calls get ENOSYS",
                    remedy: remedy.to_owned(),
                });
            }
        }
        problems
    }
}

fn problem(record: &OwnerRecord, object: String, loss: LostObject, command: &str, id: u32) -> OwnerProblem {
    let what = format!("{object} of {}", record.owner);
    OwnerProblem { no: record.no, what, why: loss.words(), remedy: remedy(record, command, id) }
}

/// What to do about this owner's lost object; `command` removes an object that was made without a container.
pub fn remedy(record: &OwnerRecord, command: &str, id: u32) -> String {
    match &record.owner {
        Owner::Container(_) => "start the container again".to_owned(),
        Owner::Netns(_) => "start the pod again".to_owned(),
        Owner::Host(_) => format!("remove it with `bpfman-hook {command} {id}`"),
    }
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Determines whether an owner is dead and which of its objects are lost. Changes nothing; what cannot be
    /// determined counts as alive or present.
    pub fn health(&self, record: &OwnerRecord) -> Health {
        let mut health = Health::of_kernel_objects(std::slice::from_ref(record));
        self.note_if_dead(record, &mut health);
        health
    }

    /// Determines which of an owner's objects are lost and, only if there is one, whether the owner is dead.
    pub fn health_of_objects(&self, record: &OwnerRecord) -> Health {
        let mut health = Health::of_kernel_objects(std::slice::from_ref(record));
        if !health.is_whole() {
            self.note_if_dead(record, &mut health);
        }
        health
    }

    fn note_if_dead(&self, record: &OwnerRecord, health: &mut Health) {
        if record.phase == Phase::Ready
            && let Ok(Some(why)) = self.is_dead(record)
        {
            health.dead.insert(record.no, why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::attach_point::{AttachPoint, Interface, ProgramKind, Scope};
    use crate::model::ids::{Digest, Pid, PinName, ProcessIdentity};
    use crate::model::manual::LoadMetadata;
    use crate::model::policy::Engine;
    use crate::model::record::{Actor, ContainerOwner, HostOwner, LinkState, NetnsOwner, ProgramState, Workload};

    fn record(no: u64, owner: Owner, phase: Phase) -> OwnerRecord {
        let process = ProcessIdentity { pid: Pid::new(7).unwrap(), start_time: 1 };
        let id = u32::try_from(no).unwrap() * 10;
        OwnerRecord {
            programs: vec![ProgramRecord {
                pin: PinName::program(1),
                function: "count".into(),
                kind: ProgramKind::Xdp,
                scope: Scope::Container,
                target: None,
                image: 0,
                state: ProgramState::Loaded(id),
            }],
            links: vec![LinkRecord {
                pin: PinName::link(1),
                program: PinName::program(1),
                at: AttachPoint::Xdp { iface: Interface { name: "eth0".into(), index: 2 }, mode: None },
                order: None,
                netns: None,
                metadata: BTreeMap::new(),
                state: LinkState::Attached(Some(id + 1)),
            }],
            ..OwnerRecord::new(OwnerNo(no), owner, phase, Actor { process, deadline: 0 }, 0)
        }
    }

    #[test]
    fn the_remedy_for_a_lost_object_depends_on_its_owner() {
        let web = ContainerOwner::new("web".parse().unwrap(), "/b".into(), 0, Engine::Podman, Workload::default());
        let container = Owner::Container(web);
        let pod = Owner::Netns(NetnsOwner {
            cookie: 9,
            sandbox: None,
            engine: Engine::Podman,
            workload: Workload::default(),
            request: Digest::from_bytes([1; 32]),
            holders: Vec::new(),
            keeper: None,
        });
        let host = || Owner::Host(HostOwner { application: None, loaded: LoadMetadata::default() });
        let records = [
            record(1, container.clone(), Phase::Ready),
            record(2, pod, Phase::Ready),
            record(3, host(), Phase::Ready),
            record(4, host(), Phase::Ready),
            record(5, host(), Phase::Ready),
            record(6, container, Phase::Releasing),
        ];
        let info = |interface, cgroup| LinkInfo { id: 0, link_type: 6, program: 0, interface, cgroup };
        let mut health = Health::of_objects(
            &records,
            |id| if id == 40 { Err(()) } else { Ok(id != 10 && id != 60) },
            |id| match id {
                11 => Ok(None),
                21 => Ok(Some(info(None, Some(0)))),
                31 => Ok(Some(info(Some(0), None))),
                41 => Err(()),
                _ => Ok(Some(info(Some(2), Some(3)))),
            },
        );
        assert_eq!(health.programs, BTreeMap::from([(10, LostObject::Removed)]));
        let links = [(11, LostObject::Removed), (21, LostObject::Cgroup), (31, LostObject::Interface)];
        assert_eq!(health.links, BTreeMap::from(links));
        let told = |health: &Health| -> Vec<String> {
            health.problems(&records).into_iter().map(|t| format!("{}: {}; {}", t.what, t.why, t.remedy)).collect()
        };
        let expected = [
            "program 10 (count) of container web: gone: its pin was removed; start the container again",
            "link 21 on eth0 of network namespace 9: gone: its cgroup is gone; start the pod again",
            "link 31 on eth0 of the host: gone: its interface is gone; remove it with `bpfman-hook detach 31`",
        ];
        assert_eq!(told(&health), expected);
        health.dead.insert(OwnerNo(1), "its init is gone".to_owned());
        assert_eq!(told(&health), expected[1..], "gc releases dead owners");
    }
}
