use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::thread;

use super::*;
use crate::helper_process;
use crate::model::metrics_table::{EventKind, Outcome, SLOTS, Stage, event, run};

fn export() -> (tempfile::TempDir, Export) {
    let dir = tempfile::tempdir().unwrap();
    let export = Export::open(&dir.path().join("export")).unwrap();
    (dir, export)
}

#[test]
fn two_hundred_threads_lose_no_count() {
    let (dir, _) = export();
    let path = dir.path().join("export");
    let slot = event(EventKind::Acquired);
    // Each thread has its own mapping, like separate processes; they also race to create the file.
    thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| {
                let export = Export::open(&path).unwrap();
                for _ in 0..100 {
                    export.count(slot, 1);
                }
                export.observe(run(Stage::CreateRuntime, Outcome::Done), Duration::from_millis(3));
            });
        }
    });
    let counters = read_counters(&path).unwrap();
    assert_eq!(counters[slot.0], 20_000);
    let (bucket, sum) = metrics_table::bucket(run(Stage::CreateRuntime, Outcome::Done), 3_000_000);
    assert_eq!((counters[bucket.0], counters[sum.0]), (200, 600_000_000));
    assert_eq!(fs::metadata(path.join(COUNTERS)).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "no temporary file is left");
}

const CHILD: &str = "EXPORT_TEST_DIRECTORY";
const PROCESSES: u64 = 24;
const EACH: u64 = 500;

/// A helper process, not a test: each process of the next test.
#[test]
fn counting_process() {
    let Some(path) = helper_process::task(CHILD) else { return };
    let export = Export::open(Path::new(&path)).unwrap();
    for _ in 0..EACH {
        export.count(event(EventKind::Loaded), 1);
        export.observe(run(Stage::Poststop, Outcome::Done), Duration::from_micros(700));
        export.append("{\"one\":\"line\"}\n");
    }
}

#[test]
fn concurrent_processes_lose_nothing() {
    let (dir, _) = export();
    let path = dir.path().join("export");
    let start = || {
        let mut command = helper_process::command("sys::export::tests::counting_process", CHILD, &path);
        command.stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let mut children: Vec<_> = (0..PROCESSES).map(|_| start()).collect();
    // A process that is killed at any moment must not affect the others.
    let mut killed = start();
    killed.kill().unwrap();
    killed.wait().unwrap();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let counters = read_counters(&path).unwrap();
    let (counted, least) = (counters[event(EventKind::Loaded).0], PROCESSES * EACH);
    assert!((least..=least + EACH).contains(&counted), "{counted}");
    let (bucket, sum) = metrics_table::bucket(run(Stage::Poststop, Outcome::Done), 700_000);
    assert!(counters[bucket.0] >= least && counters[sum.0] >= least * 700_000);
    let lines = fs::read_to_string(path.join(EVENTS)).unwrap();
    assert!(lines.lines().all(|line| line == "{\"one\":\"line\"}"), "a line is torn");
    assert!(lines.lines().count() as u64 >= least);
}

#[test]
fn a_foreign_counter_file_is_replaced_and_never_mapped() {
    let (dir, export) = export();
    let path = dir.path().join("export").join(COUNTERS);
    let victim = dir.path().join("victim");
    fs::write(&victim, vec![0; (2 + SLOTS) * 8]).unwrap();
    let makers: [&dyn Fn(); 5] = [
        &|| fs::write(&path, "short").unwrap(),
        &|| fs::write(&path, vec![0xff; (2 + SLOTS) * 8]).unwrap(),
        &|| symlink(&victim, &path).unwrap(),
        &|| rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
        &|| {
            fs::copy(&victim, &path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        },
    ];
    for (nth, make) in makers.iter().enumerate() {
        let _ = fs::remove_file(&path);
        make();
        let fresh = Export::open(&export.path).unwrap();
        fresh.count(event(EventKind::Refused), 7);
        assert_eq!(read_counters(&export.path).unwrap()[event(EventKind::Refused).0], 7, "{nth}");
        assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{nth}");
    }
    assert!(fs::read(&victim).unwrap().iter().all(|byte| *byte == 0), "the link must not be followed");
}

#[test]
fn an_unusable_directory_records_nothing_and_fails_nothing() {
    let (dir, export) = export();
    for name in [COUNTERS, EVENTS, OWNERS] {
        let path = dir.path().join("export").join(name);
        if name == OWNERS { fs::write(&path, "x").unwrap() } else { fs::create_dir(&path).unwrap() }
    }
    export.count(event(EventKind::Acquired), 1);
    export.append("line\n");
    export.put_owner_file(1, b"{}");
    assert!(!export.remove_owner_file(1));
    assert_eq!(read_counters(&export.path), None);
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Export::open(&open).is_none());
    symlink(dir.path().join("export"), dir.path().join("link")).unwrap();
    assert!(Export::open(&dir.path().join("link")).is_none());
}

#[test]
fn concurrent_events_are_complete_and_bounded() {
    let (dir, export) = export();
    let line = format!("{{\"{}\"}}\n", "x".repeat(997));
    thread::scope(|scope| {
        for _ in 0..8 {
            let (export, line) = (&export, &line);
            scope.spawn(move || {
                for _ in 0..400 {
                    export.append(line);
                }
            });
        }
    });
    let read = |name| fs::read_to_string(dir.path().join("export").join(name)).unwrap();
    let (new, old) = (read(EVENTS), read(OLD_EVENTS));
    for text in [&new, &old] {
        assert!(text.lines().all(|l| l.len() + 1 == line.len()), "a line is torn");
        assert!(text.len() as u64 <= MAX_EVENTS + 10 * line.len() as u64, "{}", text.len());
    }
    // 3.2 MB were written: at least one file was discarded, and the two most recent ones remain.
    assert!(old.len() as u64 > MAX_EVENTS, "rotated before it was full");
    let mode = fs::metadata(dir.path().join("export").join(EVENTS)).unwrap().mode();
    assert_eq!(mode & 0o137, 0, "{mode:o}: only the owner and the group have access");
}

#[test]
fn owner_files_are_replaced_atomically_and_removed() {
    let (dir, export) = export();
    export.put_owner_file(3, b"one");
    export.put_owner_file(3, b"two");
    export.put_owner_file(4, b"four");
    let owners = dir.path().join("export").join(OWNERS);
    assert_eq!(fs::read(owners.join("3")).unwrap(), b"two");
    fs::write(owners.join(".5.1.1"), b"left by a process that died").unwrap();
    fs::write(owners.join(NEW_OWNER_FILE), b"left by another process").unwrap();
    export.put_owner_file(4, b"5");
    assert!(!owners.join(NEW_OWNER_FILE).exists(), "the next owner file reuses its name");
    let mut owner_files = export.owner_files();
    owner_files.sort_unstable();
    assert_eq!(owner_files, [3, 4]);
    assert!(
        export.remove_owner_file(3)
            && !export.remove_owner_file(3)
            && export.remove_owner_file(4)
            && !export.remove_owner_file(4)
    );
}

#[test]
fn unfinished_files_of_killed_processes_are_removed() {
    let (dir, export) = export();
    export.put_owner_file(3, b"one");
    export.put_programs(b"[]");
    let path = dir.path().join("export");
    // Pids are below PID_MAX_LIMIT (2^22).
    let living = format!(".programs.{}.0", std::process::id());
    for name in ["owners/.new", "owners/.3.77.1", ".counters.4194305.0", ".programs.4194305.3", ".strange", &living] {
        fs::write(path.join(name), b"half").unwrap();
    }
    export.remove_unfinished();
    let mut left: Vec<_> = fsutil::names_in(&path).unwrap();
    left.sort();
    assert_eq!(left, [Path::new(&living), Path::new(OWNERS), Path::new(PROGRAMS)]);
    assert_eq!(fsutil::names_in(&path.join(OWNERS)).unwrap(), [Path::new("3")]);
}
