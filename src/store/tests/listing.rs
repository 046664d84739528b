//! Iteration over all records.

use std::fs;

use super::*;

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
        let sorted = store.sort(|record| record.no.0 % 3 > 0).unwrap();
        assert_eq!(sorted.all.iter().map(|no| no.0).collect::<Vec<_>>(), listed, "{count}");
        let open: Vec<_> = sorted.all.into_iter().filter(|no| no.0 % 3 == 0).collect();
        assert_eq!(sorted.open, open, "{count}");
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
    let sorted = store.sort(|_| true).unwrap();
    assert_eq!((sorted.all.len(), sorted.open), (1098, vec![OwnerNo(701)]));
}
