//! Tests of the store on real directories, with other processes that write, read and are killed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use serde_json::json;

use super::*;
use crate::model::ids::{ContainerId, OwnerNo, Pid, ProcessIdentity};
use crate::model::record::{Actor, LinkRecord, Owner, OwnerRecord, Phase, ProgramRecord};

const BOOT: &str = "918e815e-d76e-4f50-946b-1d55d20e4d8a";
const ROLE: &str = "STORE_TEST_ROLE";
const STORES: &str = "STORE_TEST_STORES";

pub(super) fn record(no: OwnerNo, owner: Owner, phase: Phase, changed: u64) -> OwnerRecord {
    let process = ProcessIdentity { pid: Pid::new(4242).unwrap(), start_time: 99 };
    OwnerRecord { changed, init: Some(process), ..OwnerRecord::new(no, owner, phase, Actor { process, deadline: 30 }, 1) }
}

fn loaded(no: usize, id: Option<u32>) -> ProgramRecord {
    let json = json!({"pin": format!("prog_{no}"), "function": "f", "kind": "xdp", "scope": "container", "image": 0, "id": id});
    serde_json::from_value(json).unwrap()
}

fn attached(no: usize, id: Option<u32>) -> LinkRecord {
    let at = json!({"type": "fentry", "function": "f"});
    serde_json::from_value(json!({"pin": format!("link_{no}"), "program": format!("prog_{no}"), "at": at, "id": id})).unwrap()
}

fn container(id: &str) -> Owner {
    Owner::Container { id: id.parse().unwrap(), bundle: "/srv/bundle".into(), runtime_user: 0 }
}

fn netns(cookie: u64) -> Owner {
    Owner::Netns { cookie, sandbox: None }
}

/// Puts a new record and returns its number.
fn add(store: &Store, owner: Owner, phase: Phase, changed: u64) -> Result<OwnerNo, StoreError> {
    store.write(|txn| {
        let no = txn.next_no()?;
        txn.put(&record(no, owner, phase, changed))?;
        Ok(no)
    })
}

fn numbers(store: &Store) -> Vec<u64> {
    store.read(|txn| txn.owners()?.map(|record| Ok(record?.no.0)).collect::<Result<_, StoreError>>()).unwrap()
}

fn role(role: &str, stores: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "store::tests::child", "--nocapture"]).env(ROLE, role).env(STORES, stores);
    command
}

/// Starts a child process in a role and waits until it prints `ready`.
fn start(name: &str, stores: &Path) -> Child {
    let mut child = role(name, stores).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("ready")), "the child in role {name} ended early");
    child
}

/// The code of the child processes: this test binary is executed again with a role.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let stores = PathBuf::from(std::env::var(STORES).unwrap());
    let hold = || {
        println!("ready");
        std::io::stdout().flush().unwrap();
        let _ = std::io::stdin().read_line(&mut String::new());
    };
    match role.as_str() {
        "add" => {
            let store = Store::open(&stores, BOOT).unwrap();
            for round in 0..25 {
                add(&store, container(&format!("c{}", std::process::id())), Phase::Ready, round).unwrap();
            }
        }
        "write and hold" => {
            let store = Store::open(&stores, BOOT).unwrap();
            let _: Result<(), StoreError> = store.write(|txn| {
                let no = txn.next_no()?;
                txn.put(&record(no, container("half"), Phase::Pending, 1))?;
                hold();
                Ok(())
            });
        }
        "read and hold" => {
            let store = Store::open(&stores, BOOT).unwrap();
            let _: Result<(), StoreError> = store.read(|txn| {
                assert!(txn.get(OwnerNo(1))?.is_some());
                hold();
                Ok(())
            });
        }
        "use" => {
            let used = Store::open(&stores, BOOT).and_then(|store| {
                store.read(|txn| {
                    for record in txn.owners()? {
                        record?;
                    }
                    txn.phases(Phase::Ready)?;
                    Ok::<_, StoreError>(())
                })?;
                for _ in 0..3 {
                    add(&store, container("late"), Phase::Ready, 7)?;
                }
                Ok(())
            });
            if let Err(err) = used {
                eprintln!("bpfman-hook: {err}");
                std::process::exit(1);
            }
        }
        other => panic!("unknown role {other}"),
    }
}

#[test]
fn a_store_is_created_once_and_stores_of_other_boots_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let stores = dir.path().join("run/store");
    assert!(Store::open_existing(&stores, BOOT).unwrap().is_none());
    assert!(!stores.exists(), "open_existing creates nothing");

    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "").unwrap();
    fs::create_dir_all(stores.join("old-boot/deep")).unwrap();
    symlink(&outside, stores.join("old-boot/deep/link")).unwrap();
    symlink(&outside, stores.join("link")).unwrap();
    fs::create_dir(stores.join(UNFINISHED)).unwrap();
    fs::write(stores.join("file"), "").unwrap();

    let store = Store::open(&stores, BOOT).unwrap();
    assert_eq!(fsutil::names_in(&stores).unwrap(), [PathBuf::from(BOOT)]);
    assert!(outside.join("kept").exists());
    assert_eq!(fs::metadata(&stores).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(store.path()).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(add(&store, container("web"), Phase::Pending, 1).unwrap(), OwnerNo(1));
    drop(store);
    assert_eq!(numbers(&Store::open(&stores, BOOT).unwrap()), [1]);
    assert_eq!(numbers(&Store::open_existing(&stores, BOOT).unwrap().unwrap()), [1]);
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
    let store = Store::open(dir.path(), BOOT).unwrap();
    store.write(|txn| txn.skip_to(OwnerNo(50))).unwrap();
    store.write(|txn| txn.skip_to(OwnerNo(20))).unwrap();
    assert_eq!(store.write(|txn| txn.next_no()).unwrap(), OwnerNo(51));
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
        Owner::Host { application: None, loaded: Box::default() },
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
                    // An id may be missing, and several records may have the same one.
                    let mut id = || u32::try_from(pick(5)).ok().filter(|id| *id > 0);
                    let (program, link) = (id(), id());
                    expected[at].programs.push(loaded(made, program));
                    expected[at].links.push(attached(made, link));
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
                        Owner::Container { id, .. } => assert_eq!(txn.by_container(id)?, of),
                        Owner::Netns { cookie, .. } => assert_eq!(txn.by_netns(*cookie)?, of),
                        Owner::Host { .. } => {}
                    }
                }
                for id in 1..5 {
                    let of = |has: &dyn Fn(&OwnerRecord) -> bool| -> Vec<OwnerRecord> {
                        expected.iter().filter(|record| has(record)).cloned().collect()
                    };
                    assert_eq!(txn.by_program(id)?, of(&|record| record.programs.iter().any(|p| p.id == Some(id))));
                    assert_eq!(txn.by_link(id)?, of(&|record| record.links.iter().any(|l| l.id == Some(id))));
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
fn processes_and_threads_write_concurrently() {
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..4).map(|_| role("add", dir.path()).stdout(Stdio::null()).spawn().unwrap()).collect();
    let store = Store::open(dir.path(), BOOT).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..25 {
                    add(&store, container("here"), Phase::Ready, round).unwrap();
                    store.read(|txn| txn.phases(Phase::Ready)).unwrap();
                }
            });
        }
    });
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(numbers(&store), (1..=200).collect::<Vec<_>>());
    assert_eq!(store.read(|txn| txn.by_container(&"here".parse::<ContainerId>().unwrap())).unwrap().len(), 100);
}

#[test]
fn a_killed_writer_leaves_no_changes_and_does_not_block_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    add(&store, container("web"), Phase::Ready, 1).unwrap();
    for round in 2..5 {
        let mut child = start("write and hold", dir.path());
        child.kill().unwrap();
        child.wait().unwrap();
        let before = Instant::now();
        assert_eq!(add(&store, container("web"), Phase::Ready, round).unwrap(), OwnerNo(round));
        assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
        assert!(store.read(|txn| txn.by_container(&"half".parse().unwrap())).unwrap().is_empty());
    }
}

#[test]
fn a_writer_that_keeps_the_lock_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), BOOT).unwrap();
    store.set_patience(Duration::from_millis(30));
    add(&store, container("web"), Phase::Ready, 1).unwrap();
    let mut child = start("write and hold", dir.path());
    let err = add(&store, container("web"), Phase::Ready, 2).unwrap_err();
    let StoreError::Busy { holder, .. } = &err else { panic!("{err}") };
    assert_eq!(*holder, format!("process {}", child.id()));
    assert_eq!(numbers(&store), [1], "reads still work");
    drop(child.stdin.take());
    child.wait().unwrap();
    add(&store, container("web"), Phase::Ready, 2).unwrap();
}

#[test]
fn only_the_first_lock_timeout_takes_the_full_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), BOOT).unwrap();
    add(&store, container("web"), Phase::Ready, 1).unwrap();
    store.set_patience(Duration::from_millis(1500));
    let mut child = start("write and hold", dir.path());
    let took = |store: &Store| {
        let before = Instant::now();
        let err = add(store, container("web"), Phase::Ready, 2).unwrap_err();
        let StoreError::Busy { waited, .. } = err else { panic!("{err}") };
        (before.elapsed(), waited)
    };
    let (first, _) = took(&store);
    assert!(first >= Duration::from_millis(1500), "{first:?}");
    let (second, told) = took(&store);
    assert!(second < Duration::from_millis(700) && told >= Duration::from_millis(1500), "{second:?}, {told:?}");
    // A writer whose deadline has passed waits for one second.
    drop(store);
    let mut store = Store::open(dir.path(), BOOT).unwrap();
    store.give_up_by(Instant::now());
    let (soon, _) = took(&store);
    assert!((LAST_PATIENCE..PATIENCE / 2).contains(&soon), "{soon:?}");
    drop(child.stdin.take());
    child.wait().unwrap();
    add(&store, container("web"), Phase::Ready, 2).unwrap();
}

#[test]
fn an_environment_is_reopened_after_a_failed_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    add(&store, container("web"), Phase::Ready, 1).unwrap();
    let reading = store.read::<_, StoreError>(|_| {
        store.suspect.store(true, Ordering::Relaxed);
        Ok(numbers(&store))
    });
    assert_eq!(
        (reading.unwrap(), store.suspect.load(Ordering::Relaxed)),
        (vec![1], true),
        "not reopened while a transaction reads"
    );
    add(&store, container("web"), Phase::Ready, 2).unwrap();
    assert_eq!((numbers(&store).len(), store.suspect.load(Ordering::Relaxed)), (2, false));
}

#[test]
fn new_records_do_not_use_the_spare_pages() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    let no = add(&store, container("web"), Phase::Ready, 1).unwrap();
    let data = store.path().join(DATA_FILE);
    let length = fs::metadata(&data).unwrap();
    assert!(length.len() > SPARE && length.blocks() * 512 >= SPARE, "{length:?}");
    store.opened.write().unwrap().as_mut().unwrap().scarce = true;
    assert!(matches!(add(&store, container("web"), Phase::Ready, 2), Err(StoreError::Full(_))));
    let change = |txn: &mut WriteTxn<'_>| {
        let record = txn.get(no)?.unwrap();
        txn.put(&record)?;
        txn.delete(no)
    };
    assert!(store.write::<_, StoreError>(change).unwrap());
}

#[test]
fn write_errors_name_their_cause() {
    let dir = tempfile::tempdir().unwrap();
    let said = |errno: i32| {
        StoreError::from_heed("write", dir.path(), heed::Error::Io(io::Error::from_raw_os_error(errno))).to_string()
    };
    for (errno, words) in
        [(28, "No space left on device"), (122, "No space left on device"), (27, "RLIMIT_FSIZE"), (5, "write the record store")]
    {
        assert!(said(errno).contains(words), "{errno}: {}", said(errno));
    }
    let panic = StoreError::from_heed("write", dir.path(), heed::Error::Mdb(MdbError::Panic)).to_string();
    assert!(panic.contains("earlier write") && !panic.contains("damaged"), "{panic}");
}

#[test]
fn a_killed_reader_does_not_keep_old_pages() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    let no = add(&store, container("web"), Phase::Ready, 1).unwrap();
    drop(store);
    let mut child = start("read and hold", dir.path());
    child.kill().unwrap();
    child.wait().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    for changed in 0..500 {
        store.write(|txn| txn.put(&record(no, container("web"), Phase::Ready, changed))).unwrap();
    }
    let size = fs::metadata(store.path().join(DATA_FILE)).unwrap().len();
    assert!(size < SPARE + 64 * 4096, "500 transactions over one record made the file {size} bytes long");
}

#[test]
fn a_full_map_is_an_error_and_the_store_stays_usable() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_sized(dir.path(), BOOT, 1024 * 1024).unwrap();
    let refused = |store: &Store| (0..10_000).find_map(|at| add(store, container("web"), Phase::Ready, at).err());
    for round in 0..3 {
        let err = refused(&store).expect("10 000 records do not fit");
        assert!(matches!(err, StoreError::Full(_)), "{err}");
        assert!(err.to_string().contains("is full") && err.to_string().contains("bpfman-hook gc"), "{err}");
        let all = numbers(&store);
        assert!(all.len() > 1000, "{} records fit into the map", all.len());
        // As a release does: mark each record, then remove it, while the store is full.
        for no in &all {
            let no = OwnerNo(*no);
            store.write(|txn| txn.put(&record(no, container("web"), Phase::Releasing, round))).unwrap();
        }
        for no in all {
            assert!(store.write(|txn| txn.delete(OwnerNo(no))).unwrap());
        }
    }
}

/// Creates a store with some owners and closes it.
fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    for at in 0..60 {
        let mut record = record(OwnerNo(0), container(&format!("c{at}")), Phase::Ready, at);
        record.failure = Some("x".repeat(if at % 10 == 0 { 6000 } else { 900 }));
        store
            .write(|txn| {
                record.no = txn.next_no()?;
                txn.put(&record)
            })
            .unwrap();
    }
    for no in 1..20 {
        store.write(|txn| txn.delete(OwnerNo(no))).unwrap();
    }
    dir
}

/// Opens, lists and writes in another process, which must exit with 0, or with 1 and an error message about the store.
fn used(stores: &Path, what: &str) -> Output {
    let output = role("use", stores).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.signal(), None, "{what}: {said}");
    match output.status.code() {
        Some(0) => {}
        Some(1) => assert!(said.contains("the record store /") || said.contains("of the store /"), "{what}: {said}"),
        code => panic!("{what}: exit {code:?}: {said}"),
    }
    output
}

#[test]
fn damage_is_reported_when_the_store_is_opened() {
    let write = |at: u64, bytes: &'static [u8]| {
        move |data: &Path| {
            File::options().write(true).open(data).unwrap().write_all_at(bytes, at).unwrap();
        }
    };
    // Only the newest meta page is checked in full.
    let both = |at: u64, bytes: &'static [u8]| {
        move |data: &Path| {
            write(at, bytes)(data);
            write(4096 + at, bytes)(data);
        }
    };
    let cut = |size: u64| move |data: &Path| File::options().write(true).open(data).unwrap().set_len(size).unwrap();
    type Damage = Box<dyn Fn(&Path)>;
    let cases: Vec<(&str, Damage, &str)> = vec![
        ("empty", Box::new(cut(0)), "ends within its first page"),
        ("within the first page", Box::new(cut(100)), "ends within its first page"),
        ("one page", Box::new(cut(4096)), "ends within its second page"),
        ("garbage", Box::new(|data| fs::write(data, vec![0xa5; 65536]).unwrap()), "is not an LMDB meta page"),
        ("zeros", Box::new(|data| fs::write(data, vec![0; 65536]).unwrap()), "is not an LMDB meta page"),
        ("version", Box::new(write(20, &[9])), "unsupported format version"),
        ("page size 0", Box::new(write(40, &[0; 4])), "invalid page size"),
        ("page size 2^30", Box::new(write(40, &[0, 0, 0, 0x40])), "invalid page size"),
        ("other page size", Box::new(write(4096 + 40, &[0, 0x20, 0, 0])), "differ in their page size"),
        ("last page", Box::new(both(136, &[0xff; 7])), "more pages than the map has"),
        ("root", Box::new(both(16 + 72 + 40, &[0xee; 7])), "the root of a tree is outside"),
        ("depth", Box::new(both(16 + 72 + 6, &[0xff, 0xff])), "the root of a tree is outside"),
        ("missing", Box::new(|data| fs::remove_file(data).unwrap()), "data.mdb is missing"),
        ("no lock", Box::new(|data| fs::remove_file(data.with_file_name(LOCK_FILE)).unwrap()), "lock.mdb is missing"),
        ("short lock", Box::new(|data| fs::write(data.with_file_name(LOCK_FILE), "").unwrap()), "lock.mdb is truncated"),
    ];
    for (what, damage, sentence) in cases {
        let dir = filled();
        damage(&dir.path().join(BOOT).join(DATA_FILE));
        let err = Store::open(dir.path(), BOOT).unwrap_err();
        assert!(matches!(err, StoreError::Damaged { .. }) && err.to_string().contains(sentence), "{what}: {err}");
        assert!(err.to_string().ends_with("remove that directory and run bpfman-hook gc"), "{err}");
        let again = Store::open(dir.path(), BOOT);
        assert!(again.is_err(), "{what}: a damaged store must not be replaced silently");
    }
}

/// The number of pages decides whether the store counts as full.
#[test]
fn a_huge_page_count_is_an_error_not_an_overflow() {
    let dir = filled();
    let data = dir.path().join(BOOT).join(DATA_FILE);
    let file = File::options().write(true).open(&data).unwrap();
    for page in [0, 4096] {
        // md_branch_pages of our table.
        file.write_all_at(&(1_u64 << 60).to_ne_bytes(), page + 16 + 72 + 8).unwrap();
    }
    let store = Store::open(dir.path(), BOOT).unwrap();
    assert!(matches!(add(&store, container("web"), Phase::Ready, 1), Err(StoreError::Full(_))));
}

#[test]
fn a_truncated_file_is_an_error_and_never_a_signal() {
    let pages = fs::metadata(filled().path().join(BOOT).join(DATA_FILE)).unwrap().len() / 4096;
    let mut refused = 0;
    for pages in 2..pages {
        let dir = filled();
        File::options().write(true).open(dir.path().join(BOOT).join(DATA_FILE)).unwrap().set_len(pages * 4096 + 7).unwrap();
        refused += i32::from(!used(dir.path(), &format!("{pages} pages")).status.success());
    }
    assert!(refused > 10, "only {refused} of {pages} truncations were detected");
}

#[test]
fn garbage_in_any_page_is_an_error_and_never_a_signal() {
    let pages = fs::metadata(filled().path().join(BOOT).join(DATA_FILE)).unwrap().len() / 4096;
    let mut refused = 0;
    for page in 2..pages {
        for (from, byte) in [(10, 0xff), (16, 0x5a), (12, 0x00)] {
            let dir = filled();
            let file = File::options().write(true).open(dir.path().join(BOOT).join(DATA_FILE)).unwrap();
            file.write_all_at(&vec![byte; 4096 - from], page * 4096 + u64::try_from(from).unwrap()).unwrap();
            refused += i32::from(!used(dir.path(), &format!("page {page} from {from} with {byte:#x}")).status.success());
        }
    }
    assert!(refused > 10, "only {refused} of {pages} damaged pages were detected");
}

#[test]
fn a_record_that_does_not_decode_is_named_and_can_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    for id in ["one", "two", "three"] {
        add(&store, container(id), Phase::Ready, 1).unwrap();
    }
    let data = store.path().join(DATA_FILE);
    drop(store);
    let mut bytes = fs::read(&data).unwrap();
    let needle = b"{\"no\":2,";
    let found: Vec<_> = bytes.windows(needle.len()).enumerate().filter(|(_, part)| part == needle).map(|(at, _)| at).collect();
    assert!(!found.is_empty());
    for at in found {
        bytes[at] = b'!';
    }
    fs::write(&data, bytes).unwrap();

    let store = Store::open(dir.path(), BOOT).unwrap();
    let err = store.read(|txn| txn.get(OwnerNo(2))).unwrap_err();
    assert!(matches!(err, StoreError::Record { no: OwnerNo(2), .. }), "{err}");
    let listed: Vec<bool> =
        store.read(|txn| Ok::<_, StoreError>(txn.owners()?.map(|record| record.is_ok()).collect())).unwrap();
    assert_eq!(listed, [true, false, true]);
    assert!(store.write(|txn| txn.delete(OwnerNo(2))).unwrap());
    assert_eq!(store.read(|txn| txn.by_container(&"two".parse().unwrap())).unwrap(), []);
    assert_eq!(store.read(|txn| txn.phases(Phase::Ready)).unwrap(), [OwnerNo(1), OwnerNo(3)]);
}

#[test]
fn many_records_are_listed_in_order_despite_concurrent_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    let mut made = 0;
    for count in [0, 1, 255, 256, 257, 1100] {
        while made < count {
            add(&store, container(&format!("c{made}")), Phase::Ready, 1).unwrap();
            made += 1;
        }
        let listed: Vec<u64> = store.records().map(|record| record.unwrap().no.0).collect();
        assert_eq!(listed, numbers(&store), "{count}");
        let prefetch: Vec<u64> = store.with_records(|records| records.map(|record| record.unwrap().no.0).collect());
        assert_eq!(prefetch, listed, "{count}");
        let first = store.with_records(|records| records.take(3).count());
        assert_eq!(first, made.min(3), "{count}");
    }
    // Delete some that are already read and some that follow, and add one at the end.
    let mut listed = Vec::new();
    for record in store.records() {
        let no = record.unwrap().no;
        listed.push(no.0);
        if no.0 == 300 {
            let gone = [OwnerNo(20), OwnerNo(700), OwnerNo(1100)];
            store.write(|txn| gone.iter().try_for_each(|no| txn.delete(*no).map(|_| ()))).unwrap();
            add(&store, container("late"), Phase::Ready, 1).unwrap();
        }
    }
    let expected: Vec<u64> = (1..=1101).filter(|no| ![700, 1100].contains(no)).collect();
    assert_eq!(listed, expected);
    let data = store.path().join(DATA_FILE);
    drop(store);
    let text = fs::read(&data).unwrap();
    let needle = b"{\"no\":701,";
    let mut bytes = text.clone();
    for (at, _) in text.windows(needle.len()).enumerate().filter(|(_, part)| part == needle) {
        bytes[at] = b'!';
    }
    assert_ne!(bytes, text);
    fs::write(&data, bytes).unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    let (records, damaged): (Vec<_>, Vec<_>) = store.records().partition(Result::is_ok);
    assert_eq!((records.len(), damaged.len()), (1097, 1));
    assert!(matches!(damaged[0], Err(StoreError::Record { no: OwnerNo(701), .. })), "{damaged:?}");
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

/// Changes the store as if a program with another schema had written it: other indexes, and `record` in place of
/// record 2.
fn written_by_another(stores: &Path, schema: u32, record: &str) {
    let store = Store::open(stores, BOOT).unwrap();
    store
        .write::<_, StoreError>(|txn| {
            for index in txn::INDEXES {
                for key in txn.keys(&[index])? {
                    txn.remove(&key)?;
                }
            }
            txn.insert(b"c another meaning", b"")?;
            txn.insert(&[&b"o"[..], &2_u64.to_be_bytes()].concat(), record.as_bytes())?;
            txn.insert(txn::SCHEMA_KEY, &schema.to_be_bytes())
        })
        .unwrap();
}

#[test]
fn a_store_with_another_schema_is_adopted() {
    const OTHER: &str =
        r#"{"no":2,"owner":{"kind":"container","id":"second","root":"/"},"init":{"pid":4242,"start_time":99},"state":7}"#;
    for schema in [SCHEMA - 1, SCHEMA + 1] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), BOOT).unwrap();
        for owner in [container("first"), container("second"), netns(3)] {
            add(&store, owner, Phase::Ready, 5).unwrap();
        }
        drop(store);
        written_by_another(dir.path(), schema, OTHER);
        let store = Store::open(dir.path(), BOOT).unwrap();
        store
            .read::<_, StoreError>(|txn| {
                let first = txn.by_container(&"first".parse().unwrap())?;
                assert_eq!(first.iter().map(|record| record.no).collect::<Vec<_>>(), [OwnerNo(1)]);
                assert_eq!(txn.by_netns(3)?.len(), 1);
                assert_eq!(txn.phases(Phase::Ready)?, [OwnerNo(1), OwnerNo(3)]);
                // poststop finds the record that does not decode, and its init is known.
                assert_eq!(txn.numbers_of_container(&"second".parse().unwrap())?, [OwnerNo(2)]);
                let error = txn.get(OwnerNo(2)).unwrap_err();
                assert!(matches!(error, StoreError::Record { init: Some(init), .. } if init.start_time == 99), "{error}");
                Ok(())
            })
            .unwrap();
        assert!(store.write(|txn| txn.delete(OwnerNo(2))).unwrap());
        assert_eq!(store.write(|txn| txn.next_no()).unwrap(), OwnerNo(4), "numbers are not reused");
        assert_eq!(store.write(|txn| Ok::<_, StoreError>(txn.keys(b"c")?.len())).unwrap(), 1, "the other's index is gone");
    }
}

#[test]
fn a_store_writable_by_others_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = filled();
    let path = dir.path().join(BOOT);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
    assert!(matches!(Store::open(dir.path(), BOOT), Err(StoreError::Directory(_))));
    fs::rename(&path, dir.path().join("moved")).unwrap();
    symlink(dir.path().join("moved"), &path).unwrap();
    assert!(matches!(Store::open(dir.path(), BOOT), Err(StoreError::Directory(_))));
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
        let mut seen = std::collections::BTreeSet::new();
        for turn in 0..400 {
            let found = some(turn, 8);
            assert_eq!(found.iter().collect::<std::collections::BTreeSet<_>>().len(), 8, "each once: {found:?}");
            seen.extend(found);
        }
        assert_eq!(seen.len(), 40, "{seen:?}");
        assert_eq!(some(3, 100).len(), 40, "no more than there are");
        assert_eq!(store.read(|txn| txn.some_in_phase(Phase::Releasing, 3, 8)).unwrap(), []);
    }
}
