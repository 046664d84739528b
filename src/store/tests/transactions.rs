//! Records and indexes in one process.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::model::record::{HostOwner, LinkRecord, LinkState, ProgramRecord, ProgramState};

fn program(no: usize, state: ProgramState) -> ProgramRecord {
    let (pin, image) = (format!("prog_{no}"), 0);
    let json = json!({"pin": pin, "function": "f", "kind": "xdp", "scope": "container", "image": image, "state": state});
    serde_json::from_value(json).unwrap()
}

fn link(no: usize, state: LinkState) -> LinkRecord {
    let (pin, program, at) = (format!("link_{no}"), format!("prog_{no}"), json!({"type": "fentry", "function": "f"}));
    serde_json::from_value(json!({"pin": pin, "program": program, "at": at, "state": state})).unwrap()
}

#[test]
fn numbers_are_never_reused() {
    let dir = tempfile::tempdir().unwrap();
    let mut given = BTreeSet::new();
    for _ in 0..3 {
        let store = Store::open(dir.path(), BOOT).unwrap();
        for _ in 0..3 {
            let no = add(&store, container("web"), Phase::Ready, 1).unwrap();
            assert!(given.insert(no), "{no} twice");
            assert!(store.write(|txn| txn.delete(no)).unwrap());
            assert!(!store.write(|txn| txn.delete(no)).unwrap());
        }
    }
}

#[test]
fn a_failed_transaction_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    let no = add(&store, container("web"), Phase::Ready, 1).unwrap();
    let refused = store.write(|txn| {
        txn.delete(no)?;
        txn.put(&record(OwnerNo(9), netns(5), Phase::Pending, 2))?;
        assert_eq!(
            txn.by_netns(5)?.iter().map(|record| record.no).collect::<Vec<_>>(),
            [OwnerNo(9)],
            "a transaction sees its own changes"
        );
        Err::<(), _>(StoreError::damaged(dir.path(), "made up"))
    });
    assert!(refused.is_err());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        store.write(|txn| -> Result<(), StoreError> {
            txn.delete(no)?;
            panic!("on purpose")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(numbers(&store), [1]);
    assert!(store.read(|txn| txn.by_netns(5)).unwrap().is_empty());
    assert_eq!(add(&store, netns(5), Phase::Ready, 1).unwrap(), OwnerNo(2), "the store is usable and the number is not lost");
}

#[test]
fn indexes_match_the_records_after_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    let owners = [
        container("a"),
        container("ab"),
        container(&"x".repeat(255)),
        netns(1),
        netns(256),
        Owner::Host(HostOwner { application: None, loaded: Default::default() }),
    ];
    let phases = [Phase::Pending, Phase::Ready, Phase::Releasing, Phase::Failed];
    let mut expected: Vec<OwnerRecord> = Vec::new();
    // A random walk over puts, changes and deletions, the same on every run (a linear congruential generator).
    let mut random = 1_u64;
    let mut pick = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % below
    };
    for step in 0..400 {
        let (owner, phase) = (owners[pick(owners.len())].clone(), phases[pick(4)]);
        let changed = u64::try_from(pick(50)).unwrap();
        match pick(3) {
            0 => {
                let no = add(&store, owner.clone(), phase, changed).unwrap();
                expected.push(record(no, owner, phase, changed));
            }
            1 if !expected.is_empty() => {
                let at = pick(expected.len());
                expected[at] = record(expected[at].no, owner, phase, changed);
                for _ in 0..pick(3) {
                    let made = expected[at].programs.len();
                    // Several records may have the same id. Objects without one are not found by id.
                    let mut id = || u32::try_from(pick(5)).unwrap();
                    let (of_program, of_link) = match (id(), id()) {
                        (0, 0) => (ProgramState::Loading, LinkState::Attaching),
                        (0, of_link) => (ProgramState::Unloading(of_link), LinkState::Detaching(Some(of_link))),
                        (of_program, 0) => (ProgramState::Loaded(of_program), LinkState::Attached(None)),
                        (of_program, of_link) => (ProgramState::Loaded(of_program), LinkState::Attached(Some(of_link))),
                    };
                    expected[at].programs.push(program(made, of_program));
                    expected[at].links.push(link(made, of_link));
                }
                store.write(|txn| txn.put(&expected[at])).unwrap();
            }
            2 if !expected.is_empty() => {
                let gone = expected.remove(pick(expected.len()));
                assert!(store.write(|txn| txn.delete(gone.no)).unwrap());
            }
            _ => {}
        }
        store
            .read(|txn| -> Result<(), StoreError> {
                assert_eq!(txn.owners()?.collect::<Result<Vec<_>, _>>()?, expected, "step {step}");
                for owner in &owners {
                    let of: Vec<_> = expected.iter().filter(|record| record.owner == *owner).cloned().collect();
                    match owner {
                        Owner::Container(container) => assert_eq!(txn.by_container(&container.id)?, of),
                        Owner::Netns(netns) => assert_eq!(txn.by_netns(netns.cookie)?, of),
                        Owner::Host(_) => {}
                    }
                }
                for id in 1..5 {
                    let of = |has: &dyn Fn(&OwnerRecord) -> bool| -> Vec<OwnerRecord> {
                        expected.iter().filter(|record| has(record)).cloned().collect()
                    };
                    assert_eq!(
                        txn.by_program(id)?,
                        of(&|record| record.programs.iter().any(|p| p.state == ProgramState::Loaded(id)))
                    );
                    assert_eq!(
                        txn.by_link(id)?,
                        of(&|record| record.links.iter().any(|l| l.state == LinkState::Attached(Some(id))))
                    );
                }
                for phase in phases {
                    let mut of: Vec<_> = expected
                        .iter()
                        .filter(|record| record.phase == phase)
                        .map(|record| (record.changed, record.no))
                        .collect();
                    of.sort_unstable();
                    assert_eq!(txn.phases(phase)?, of.into_iter().map(|(_, no)| no).collect::<Vec<_>>());
                }
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn failed_records_are_pruned_by_age_and_count() {
    for (older_than, max, left) in [
        (0, 10, vec![1, 2, 3, 4, 5, 6]),
        (30, 10, vec![1, 4, 5, 6]),
        (0, 2, vec![1, 5, 6]),
        (31, 3, vec![1, 5, 6]),
        (1000, 10, vec![1]),
        (0, 0, vec![1]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), BOOT).unwrap();
        add(&store, container("old"), Phase::Ready, 1).unwrap();
        for changed in [10, 20, 30, 40, 50] {
            add(&store, container("failed"), Phase::Failed, changed).unwrap();
        }
        let removed = store.write(|txn| txn.prune_failed(older_than, max)).unwrap();
        assert_eq!((numbers(&store), removed), (left.clone(), 6 - left.len()), "{older_than} {max}");
        let of = store.read(|txn| txn.by_container(&"failed".parse().unwrap())).unwrap();
        assert_eq!(of.len(), left.len() - 1);
    }
}

#[test]
fn containers_are_found_by_a_prefix_of_their_id() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    for owner in [container("web"), container("web-2"), netns(7), container("db"), container("web")] {
        add(&store, owner, Phase::Ready, 1).unwrap();
    }
    let long = "w".repeat(600);
    let cases: [(&str, &[u64]); 6] =
        [("web", &[1, 2, 5]), ("web-", &[2]), ("", &[1, 2, 4, 5]), ("x", &[]), ("7", &[]), (&long, &[])];
    for (start, expected) in cases {
        let mut found: Vec<u64> = store.read(|txn| txn.containers_with(start)).unwrap().iter().map(|no| no.0).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{start}");
    }
}

#[test]
fn some_in_phase_reaches_every_owner_over_time() {
    // All in the same second, one per second, and clusters in one second or in ten, with gaps between them.
    for changed in [|_| 7, |at| at, |at: u64| at / 10 * 1000, |at| at / 10 * 86_400 + at] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), BOOT).unwrap();
        for at in 0..40 {
            add(&store, container(&format!("c{at}")), Phase::Ready, changed(at)).unwrap();
        }
        let some = |turn, max| store.read(|txn| txn.some_in_phase(Phase::Ready, turn, max)).unwrap();
        let mut seen = BTreeSet::new();
        for turn in 0..400 {
            let found = some(turn, 8);
            assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 8, "each once: {found:?}");
            seen.extend(found);
        }
        assert_eq!(seen.len(), 40, "{seen:?}");
        assert_eq!(some(3, 100).len(), 40, "no more than there are");
        assert_eq!(store.read(|txn| txn.some_in_phase(Phase::Releasing, 3, 8)).unwrap(), []);
    }
}
