//! Creating and opening a store.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

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
fn a_store_writable_by_others_is_refused() {
    let dir = filled();
    let path = dir.path().join(BOOT);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
    assert!(matches!(Store::open(dir.path(), BOOT), Err(StoreError::Directory(_))));
    fs::rename(&path, dir.path().join("moved")).unwrap();
    symlink(dir.path().join("moved"), &path).unwrap();
    assert!(matches!(Store::open(dir.path(), BOOT), Err(StoreError::Directory(_))));
}
