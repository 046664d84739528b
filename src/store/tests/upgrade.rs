//! A store that was written with another schema.

use super::*;

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
fn a_record_of_schema_2_stays_usable() {
    const OLD: &str = r#"{"no":2,"owner":{"kind":"container","id":"second","bundle":"/b","runtime_user":0},"phase":"ready",
        "actor":{"process":{"pid":4242,"start_time":99},"deadline":30},"created":1,"changed":6,
        "init":{"pid":4242,"start_time":99},"request":null,"engine":"oci",
        "workload":{"namespace":null,"pod":null,"container":null},"cgroup":null,
        "programs":[{"pin":"prog_1","function":"f","kind":"xdp","scope":"container","image":0,"id":71}],"maps":[],"links":[],
        "bpffs":null,"images":[],"holds":[],"holders":[],"failure":null,"leftovers":[]}"#;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), BOOT).unwrap();
    for owner in [container("first"), container("second")] {
        add(&store, owner, Phase::Ready, 5).unwrap();
    }
    drop(store);
    written_by_another(dir.path(), 2, OLD);
    let store = Store::open(dir.path(), BOOT).unwrap();
    let found = store.read(|txn| txn.by_program(71)).unwrap();
    assert_eq!(found, store.read(|txn| txn.by_container(&"second".parse().unwrap())).unwrap());
    assert_eq!(store.read(|txn| txn.phases(Phase::Ready)).unwrap(), [OwnerNo(1), OwnerNo(2)]);
    store.write(|txn| txn.put(&found[0])).unwrap();
    let written = |txn: &mut WriteTxn<'_>| Ok::<_, StoreError>(txn.record_bytes(OwnerNo(2))?.map(<[u8]>::to_vec));
    let text = String::from_utf8(store.write(written).unwrap().unwrap()).unwrap();
    assert!(text.contains(r#""state":{"loaded":71}"#), "{text}");
}
