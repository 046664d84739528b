//! Several processes that use one store, and the death of one of them.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use super::*;
use crate::model::ids::ContainerId;

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
    store.patience = Duration::from_millis(30);
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
    store.patience = Duration::from_millis(1500);
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
