//! A full store, and writes that fail.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::*;

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
