//! Files and records that are damaged.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use super::*;

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
    assert!(matches!(add(&store, container("web"), Phase::Ready, 1), Err(StoreError::Damaged { .. })));
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
