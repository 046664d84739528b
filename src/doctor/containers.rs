//! Checks for records without a living container, and for living containers without a record.

use std::collections::BTreeMap;
use std::io;

use crate::lifecycle::health::Health;
use crate::lifecycle::runtime_states::{RUNTIME_STATES, RunningContainer};
use crate::model::ids::{OwnerNo, Pid};
use crate::model::record::{ContainerOwner, Owner, OwnerRecord, Phase};
use crate::model::text::listed;
use crate::output::error::{AS_ROOT, CommandError};
use crate::output::finding::{Finding, FindingStatus};
use crate::sys::pid;

/// Reports living containers with our annotations and without a record: they started without bpfman-hook.
pub fn without_record(
    containers: io::Result<Vec<RunningContainer>>,
    records: &[OwnerRecord],
    alive: impl Fn(u32) -> bool,
) -> Vec<Finding> {
    let check = "containers";
    let containers = match containers {
        Ok(containers) => containers,
        Err(err) => return vec![Finding::bad(check, FindingStatus::Unknown, err.to_string(), AS_ROOT)],
    };
    let known = |id: &str| records.iter().any(|r| r.owner.container().is_some_and(|known| known.id.as_str() == id));
    let living: Vec<_> = containers.into_iter().filter(|container| alive(container.pid)).collect();
    let forgotten: Vec<_> = living.iter().filter(|container| container.asks && !known(&container.id)).collect();
    if forgotten.is_empty() {
        let asking = living.iter().filter(|container| container.asks).count();
        let places = RUNTIME_STATES.join(" ");
        return vec![Finding::ok(
            check,
            format!("{} running, {asking} with our annotations and a record ({places})", living.len()),
        )];
    }
    let finding = |container: &&RunningContainer| {
        let detail = format!(
            "{} (pid {}) has our annotations but no record: it started without bpfman-hook",
            container.id, container.pid
        );
        Finding::bad(check, FindingStatus::Warn, detail, "make sure that the hooks above are ok, then restart the container")
    };
    forgotten.iter().map(finding).collect()
}

/// Reports pin directories that no record names: the store was lost, or a release could not finish.
pub fn unowned(pinned: &[OwnerNo], records: &[OwnerRecord]) -> Vec<Finding> {
    let unowned = pinned.iter().filter(|no| !records.iter().any(|record| record.no == **no));
    let finding = |no: &OwnerNo| {
        let detail = format!("{} is pinned, but no record names it", no.directory());
        Finding::bad("pins", FindingStatus::Warn, detail, "run `bpfman-hook gc`")
    };
    unowned.map(finding).collect()
}

/// Reports owners whose pins are not in our bpffs: it was unmounted or covered, and what nothing else holds is gone. gc
/// has nothing to release there; only a new start, or a new load, pins again.
pub fn unpinned(pinned: &[OwnerNo], records: &[OwnerRecord]) -> Option<Finding> {
    const NAMED: usize = 4;
    let has_pins = |record: &&OwnerRecord| record.programs.iter().any(|program| program.id().is_some());
    let ready = records.iter().filter(|record| record.phase == Phase::Ready).filter(has_pins);
    let lost: Vec<String> =
        ready.filter(|record| !pinned.contains(&record.no)).map(|record| record.owner.to_string()).collect();
    let named = (!lost.is_empty()).then(|| listed(lost.iter().map(String::as_str), NAMED))?;
    let detail = format!("our bpffs does not have the pins of {named}: it was unmounted, or something is mounted over it");
    let remedy = "start these containers and pods again; `bpfman-hook unload` what was loaded by hand, and load it again";
    Some(Finding::bad("pins", FindingStatus::Fail, detail, remedy))
}

/// Reports programs and links that the kernel no longer has, and those whose interface or cgroup was removed.
pub fn lost(health: &Health, records: &[OwnerRecord]) -> Vec<Finding> {
    let problems = health.problems(records).into_iter();
    problems.map(|t| Finding::bad("records", FindingStatus::Warn, format!("{} is {}", t.what, t.why), t.remedy)).collect()
}

/// True if a process with this pid lives. Only the pid is compared: a runtime's record does not outlive a boot, and a
/// container that counts as living because its pid was reused is reported, not touched.
pub fn is_alive(number: u32) -> bool {
    Pid::new(number).is_ok_and(|pid| pid::open_process(pid).is_ok())
}

/// Reports records that no process will finish, and what a release could not undo. `alive` determines whether a process
/// lives, or why that cannot be determined.
pub fn stale(
    records: &[OwnerRecord],
    alive: impl Fn(&OwnerRecord, DecidingProcess) -> Result<bool, CommandError>,
) -> Vec<Finding> {
    let check = "records";
    let mut findings = Vec::new();
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for record in records {
        let (word, process) = match record.phase {
            Phase::Ready => ("ready", DecidingProcess::Init),
            Phase::Pending => ("pending", DecidingProcess::Actor),
            Phase::Releasing => ("releasing", DecidingProcess::Actor),
            Phase::Failed => ("failed", DecidingProcess::None),
        };
        *count.entry(word).or_default() += 1;
        let name = &record.owner;
        let gc = "run `bpfman-hook gc`";
        match (process, alive(record, process)) {
            (DecidingProcess::None, _) | (_, Ok(true)) => {}
            (DecidingProcess::Init, Ok(false)) => {
                findings.push(Finding::bad(
                    check,
                    FindingStatus::Warn,
                    format!("{name} is dead but still owns its programs"),
                    gc,
                ));
            }
            (DecidingProcess::Actor, Ok(false)) => {
                let detail = format!("{name} is {word}, but the process that worked on it is dead");
                findings.push(Finding::bad(check, FindingStatus::Warn, detail, gc));
            }
            (_, Err(error)) => findings.push(Finding::bad(check, FindingStatus::Unknown, format!("{name}: {error}"), AS_ROOT)),
        }
        if !record.leftovers.is_empty() {
            let detail = format!("{name} left behind: {}", record.leftovers.join("; "));
            findings.push(Finding::bad(check, FindingStatus::Warn, detail, gc));
        }
    }
    if findings.is_empty() {
        let counts: Vec<_> = count.iter().map(|(word, n)| format!("{n} {word}")).collect();
        let detail = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
        findings.push(Finding::ok(check, detail));
    }
    findings
}

/// The process that decides whether a record is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecidingProcess {
    /// The container's init.
    Init,
    /// The bpfman-hook process that worked on it.
    Actor,
    /// None: the record is only kept for reference.
    None,
}

/// Asks the host about the process that decides about a record. An owner without an init (a network namespace) lives as
/// long as it has holders.
pub fn decides(record: &OwnerRecord, process: DecidingProcess) -> Result<bool, CommandError> {
    let identity = match process {
        DecidingProcess::None => return Ok(true),
        DecidingProcess::Actor => record.actor.process,
        DecidingProcess::Init => match &record.owner {
            Owner::Container(ContainerOwner { init: Some(init), .. }) => *init,
            Owner::Container(_) | Owner::Host(_) => return Ok(true),
            Owner::Netns(netns) => return Ok(!netns.holders.is_empty()),
        },
    };
    pid::require_initial_time_namespace()?;
    Ok(pid::is_alive(&identity)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{OwnerNo, ProcessIdentity};
    use crate::model::policy::Engine;
    use crate::model::record::{Actor, Workload};

    fn record(id: &str, phase: Phase) -> OwnerRecord {
        let process = ProcessIdentity { pid: Pid::new(7).unwrap(), start_time: 9 };
        let container = ContainerOwner::new(id.parse().unwrap(), "/srv/web".into(), 0, Engine::Oci, Workload::default());
        let owner = Owner::Container(ContainerOwner { init: Some(process), ..container });
        OwnerRecord::new(OwnerNo(1), owner, phase, Actor { process, deadline: 0 }, 0)
    }

    #[test]
    fn a_living_annotated_container_needs_a_record() {
        let running = || {
            let states = [("asks", 11, true), ("crunning", 14, true), ("nolabels", 13, false), ("plain", 12, false)];
            let running = |(id, pid, asks): (&str, u32, bool)| RunningContainer {
                id: id.to_owned(),
                pid,
                start_time: None,
                bundle: None,
                asks,
            };
            states.map(running).to_vec()
        };
        let decide = |records: &[OwnerRecord], living: &[u32]| -> Vec<(FindingStatus, String)> {
            let findings = without_record(Ok(running()), records, |pid| living.contains(&pid));
            findings.into_iter().map(|f| (f.status, f.detail)).collect()
        };
        let all = [11, 12, 13, 14];
        let both = decide(&[], &all);
        assert_eq!(both.len(), 2);
        assert!(both[0].1.starts_with("asks (pid 11)") && both[1].1.starts_with("crunning (pid 14)"), "{both:?}");
        assert_eq!(decide(&[record("asks", Phase::Ready), record("crunning", Phase::Failed)], &all)[0].0, FindingStatus::Ok);
        assert_eq!(decide(&[], &[12, 13])[0].0, FindingStatus::Ok);
        assert_eq!(decide(&[record("asks", Phase::Ready)], &all).len(), 1);
        let failed = without_record(Err(io::ErrorKind::PermissionDenied.into()), &[], |_| true);
        assert_eq!(failed[0].status, FindingStatus::Unknown);
    }

    #[test]
    fn records_of_dead_owners_are_stale() {
        use DecidingProcess::{Actor, Init};
        let decide = |record: OwnerRecord, dead: &[DecidingProcess]| {
            let findings = stale(&[record], |_, process| Ok(!dead.contains(&process)));
            findings.into_iter().map(|f| (f.status, f.detail)).collect::<Vec<_>>()
        };
        let ok = |detail: &str| vec![(FindingStatus::Ok, detail.to_owned())];
        assert_eq!(decide(record("web", Phase::Ready), &[Actor]), ok("1 ready"));
        assert_eq!(decide(record("web", Phase::Failed), &[Actor, Init]), ok("1 failed"));
        assert_eq!(decide(record("web", Phase::Pending), &[Init]), ok("1 pending"));
        assert_eq!(decide(record("web", Phase::Ready), &[Init])[0].1, "container web is dead but still owns its programs");
        for phase in [Phase::Pending, Phase::Releasing] {
            assert_eq!(decide(record("web", phase), &[Actor])[0].0, FindingStatus::Warn);
        }
        let mut left = record("web", Phase::Releasing);
        left.leftovers = vec!["unpin link_3: busy".to_owned()];
        assert_eq!(decide(left, &[]), [(FindingStatus::Warn, "container web left behind: unpin link_3: busy".to_owned())]);
        assert_eq!(stale(&[], |_, _| Ok(true))[0].detail, "none");
        assert_eq!(
            stale(&[record("web", Phase::Ready)], |_, _| Err(CommandError::new("no")))[0].status,
            FindingStatus::Unknown
        );
    }

    #[test]
    fn a_process_is_identified_by_its_pid() {
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(0) && !is_alive(u32::MAX));
    }
}
