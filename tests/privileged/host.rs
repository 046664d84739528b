//! Our bpffs, the store on a full file system, and cgroups, on the real kernel.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use bpfman_hook::model::facts::CgroupFact;
use bpfman_hook::model::ids::{OwnerNo, Pid, ProcessIdentity};
use bpfman_hook::model::manual::LoadMetadata;
use bpfman_hook::model::record::{Actor, HostOwner, Owner, OwnerRecord, Phase};
use bpfman_hook::store::{Store, StoreError};
use bpfman_hook::sys::mounts::{self, MountError, MountPoint};
use bpfman_hook::sys::{cgroup, fsutil, pid};

use crate::helper_process;

const ROLE: &str = "HOST_TEST_ROLE";
const PLACE: &str = "HOST_TEST_PLACE";

/// A directory whose mounts are removed when the test ends, also if it fails.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        assert_eq!(fs::metadata("/proc/self").unwrap().uid(), 0, "run as root: make test-privileged");
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn mounted(&self) -> usize {
        mounts::own_mounts().unwrap().iter().filter(|mount| mount.point.starts_with(self.0.path())).count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let all = mounts::own_mounts().unwrap_or_default();
        for mount in all.iter().rev().filter(|mount| mount.point.starts_with(self.0.path())) {
            let _ = mounts::unmount(&mount.point);
        }
    }
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}

/// Runs this test binary again in a role, optionally under another program.
fn again(before: &[&str], role: &str, place: &Path) -> Command {
    let own = std::env::current_exe().unwrap();
    let mut words = before.iter().map(std::ffi::OsString::from).chain([own.into_os_string()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(["--exact", "host::host_process", "--nocapture"]).env(ROLE, role).env(PLACE, place);
    command
}

/// A helper process, not a test: it does what its role says.
#[test]
fn host_process() {
    let Some(role) = helper_process::task(ROLE) else { return };
    let place = PathBuf::from(std::env::var_os(PLACE).unwrap());
    match role.to_str().unwrap() {
        "ensure" => match mounts::ensure_bpffs(&place) {
            Ok(()) => println!("fit"),
            Err(err) => println!("refused: {err}"),
        },
        "look" => match mounts::require_sight_of_bpffs(&place) {
            Ok(()) => println!("in sight"),
            Err(err) => println!("refused: {err}"),
        },
        other => panic!("no role {other}"),
    }
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn our_bpffs_is_mounted_only_once() {
    let place = Place::new();
    let fs = place.path("run/bpfman-hook/fs");
    assert!(mounts::in_host_mount_namespace().unwrap(), "run the tests in the mount namespace of pid 1");
    let children: Vec<Child> = (0..4).map(|_| again(&[], "ensure", &fs).stdout(Stdio::piped()).spawn().unwrap()).collect();
    mounts::ensure_bpffs(&fs).unwrap();
    for child in children {
        assert!(said(&child.wait_with_output().unwrap()).contains("fit"));
    }
    assert_eq!(place.mounted(), 1);
    let mounts = mounts::own_mounts().unwrap();
    let ours = mounts.iter().find(|mount| mount.point == fs).unwrap();
    assert_eq!((ours.kind.as_str(), ours.root.as_path()), ("bpf", Path::new("/")));
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(ours.options.iter().any(|word| word == option), "{:?}", ours.options);
    }
    let metadata = fs::metadata(&fs).unwrap();
    // The kernel adds the sticky bit by itself (kernel/bpf/inode.c, bpf_fill_super).
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o1700, 0));
    assert_eq!(fs::metadata(fs.parent().unwrap()).unwrap().mode() & 0o7777, 0o755);
    fs::create_dir(fs.join("owner_1")).unwrap();
    mounts::ensure_bpffs(&fs).unwrap();
    assert!(fs.join("owner_1").is_dir(), "the second call mounted nothing over the first");
    assert!(mounts::unmount(&fs).unwrap() && !mounts::unmount(&fs).unwrap());
    assert!(!mounts::unmount(&place.path("none")).unwrap());
    assert_eq!(place.mounted(), 0);
}

#[test]
fn a_lock_that_any_user_can_take_is_not_waited_for() {
    let place = Place::new();
    let fs = place.path("run/bpfman-hook/fs");
    let run = fsutil::ensure_directory(fs.parent().unwrap(), 0o755).unwrap();
    let _lock = fsutil::FileLock::wait(&run, &fs).unwrap();
    let mut asking = again(&[], "ensure", &fs).stdout(Stdio::piped()).spawn().unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while asking.try_wait().unwrap().is_none() && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let ended = asking.try_wait().unwrap().is_some();
    let _gone = asking.kill();
    assert!(ended, "it waits for another user's lock");
    assert!(said(&asking.wait_with_output().unwrap()).contains("fit"));
}

#[test]
fn in_a_private_mount_namespace_our_bpffs_is_used_but_never_mounted() {
    let place = Place::new();
    let fs = place.path("run/bpfman-hook/fs");
    let private = ["unshare", "--mount", "--propagation", "private"];
    let refused = said(&again(&private, "ensure", &fs).output().unwrap());
    assert!(refused.contains("refused: mount") && refused.contains(r"run-bpfman\x2dhook-fs.mount"), "{refused}");
    mounts::ensure_bpffs(&fs).unwrap();
    assert!(said(&again(&private, "ensure", &fs).output().unwrap()).contains("fit"));
    assert_eq!(place.mounted(), 1);
}

/// As `gc` looks for pins in the plugin's pod, whose mount namespace is not the host's.
#[test]
fn pins_are_out_of_sight_only_if_the_host_sees_them() {
    let place = Place::new();
    let fs = place.path("run/bpfman-hook/fs");
    let private = ["unshare", "--mount", "--propagation", "private"];
    let look = |before: &[&str]| said(&again(before, "look", &fs).output().unwrap());
    assert!(look(&private).contains("in sight"), "it is mounted nowhere, so that there are no pins");
    mounts::ensure_bpffs(&fs).unwrap();
    assert!(look(&private).contains("in sight"), "the new namespace has a copy of the mount");
    let at = fs.to_str().unwrap();
    let hidden = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "umount \"$0\" && exec \"$@\"", at];
    let refused = look(&hidden);
    assert!(refused.contains("refused: look for our pins"), "{refused}");
    assert!(look(&[]).contains("in sight"));
}

#[test]
fn another_mount_in_its_place_is_refused() {
    let place = Place::new();
    let fs = place.path("fs");
    fs::create_dir(&fs).unwrap();
    let at = fs.to_str().unwrap();
    for (what, mount) in [
        ("another file system", ["-t", "tmpfs", "none", at].as_slice()),
        ("lets other users in", ["-t", "bpf", "none", at].as_slice()),
        ("belongs to uid 7", ["-t", "bpf", "-o", "mode=0700,uid=7", "none", at].as_slice()),
    ] {
        run("mount", mount);
        let err = mounts::ensure_bpffs(&fs).unwrap_err();
        assert!(matches!(err, MountError::Unfit { .. }) && err.to_string().contains(what), "{err}");
        assert!(mounts::unmount(&fs).unwrap());
    }
    // A directory of another bpffs is not our mount.
    run("mount", &["-t", "bpf", "-o", "mode=0700", "none", at]);
    let inner = fs.join("inner");
    fs::create_dir(&inner).unwrap();
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(mounts::ensure_bpffs(&inner).unwrap_err().to_string().contains("directory of another bpffs"));
    fs::set_permissions(&fs, fs::Permissions::from_mode(0o700)).unwrap();
    mounts::ensure_bpffs(&fs).unwrap();
}

fn record(no: OwnerNo, changed: u64) -> OwnerRecord {
    let process = ProcessIdentity { pid: Pid::new(1).unwrap(), start_time: 1 };
    OwnerRecord {
        changed,
        ..OwnerRecord::new(
            no,
            Owner::Host(HostOwner { application: Some("a".repeat(700)), loaded: LoadMetadata::default() }),
            Phase::Ready,
            Actor { process, deadline: 0 },
            0,
        )
    }
}

fn add(store: &Store) -> Result<OwnerNo, StoreError> {
    store.write(|txn| {
        let no = txn.next_no()?;
        txn.put(&record(no, 1))?;
        Ok(no)
    })
}

#[test]
fn a_full_file_system_is_an_error_and_not_a_signal() {
    let place = Place::new();
    let run_dir = place.path("run");
    fs::create_dir(&run_dir).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=1m,mode=0755", "none", run_dir.to_str().unwrap()]);
    let (stores, filler) = (run_dir.join("store"), run_dir.join("filler"));
    let fill = || {
        let mut size = 1 << 20;
        while size > 0 {
            let mut file = fs::File::options().append(true).create(true).open(&filler).unwrap();
            while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
            size /= 2;
        }
    };

    fill();
    let err = Store::open(&stores, "boot").unwrap_err();
    assert!(err.to_string().contains("full") || format!("{err:?}").contains("StorageFull"), "{err:?}");
    fs::remove_file(&filler).unwrap();

    let store = Store::open(&stores, "boot").unwrap();
    let first = add(&store).unwrap();
    fill();
    let err = (0..2000).find_map(|_| add(&store).err()).expect("1 MiB does not hold 2000 records");
    assert!(matches!(err, StoreError::Full(_)), "{err}");
    assert!(store.read(|txn| txn.get(first)).unwrap().is_some(), "reading goes on");
    drop(store);
    // If the store is opened while there is no space, it can be read and deleted from; if it is opened afterwards, it
    // can be written.
    let store = Store::open(&stores, "boot").unwrap();
    assert!(store.write(|txn| txn.delete(first)).unwrap());
    drop(store);
    fs::remove_file(&filler).unwrap();
    let store = Store::open(&stores, "boot").unwrap();
    add(&store).unwrap();
    drop(store);
}

/// The mount point of the version 2 hierarchy.
fn cgroup2() -> PathBuf {
    let whole = |mount: &MountPoint| mount.kind == "cgroup2" && mount.root == Path::new("/");
    mounts::own_mounts().unwrap().into_iter().find(whole).expect("cgroup2 is mounted").point
}

fn children(process: &pid::Process) -> Vec<Pid> {
    crate::fetch::children(process.pid().get()).into_iter().map(|pid| Pid::new(pid).unwrap()).collect()
}

/// A cgroup of this test with its own processes, all removed afterwards.
struct Cgroup {
    path: PathBuf,
    directory: PathBuf,
    children: Vec<Child>,
}

impl Cgroup {
    fn new(name: &str) -> Self {
        let point = cgroup2();
        let path = PathBuf::from(format!("/bpfman-hook-test-{}-{name}", std::process::id()));
        let directory = point.join(path.strip_prefix("/").unwrap());
        fs::create_dir(&directory).unwrap();
        Self { path, directory, children: Vec::new() }
    }

    /// Starts a process and moves it into this cgroup, or below; returns a handle that pins it.
    fn start(&mut self, below: &str, program: &[&str]) -> pid::Process {
        let child = Command::new(program[0]).args(&program[1..]).stdin(Stdio::null()).spawn().unwrap();
        let number = child.id();
        self.children.push(child);
        self.put(below, number);
        pid::open_process(Pid::new(number).unwrap()).unwrap()
    }

    fn put(&self, below: &str, number: u32) {
        fs::write(self.directory.join(below).join("cgroup.procs"), number.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Everything in it, grandchildren too: cgroup.kill needs 5.14, which is older than what we support.
        let _ = fs::write(self.directory.join("cgroup.kill"), "1");
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while std::time::Instant::now() < end && self.directory.exists() {
            let _ = fs::remove_dir(self.directory.join("below"));
            let _ = fs::remove_dir(&self.directory);
        }
        assert!(!self.directory.exists(), "{} is left", self.directory.display());
    }
}

#[test]
fn a_cgroup_with_foreign_processes_is_not_the_containers_own() {
    let mut group = Cgroup::new("own");
    let init = group.start("", &["sleep", "60"]);
    let configured = group.path.to_str().unwrap().to_owned();
    let of = |configured: Option<&str>| cgroup::of_container(&init, configured).unwrap();
    let inode = fs::metadata(&group.directory).unwrap().ino();
    for expected in [None, Some(configured.as_str()), Some(configured.trim_start_matches('/'))] {
        let found = of(expected);
        assert_eq!(found.fact, CgroupFact::Own { path: group.path.clone(), id: inode }, "{expected:?}");
        assert_eq!(cgroup::id(found.directory.unwrap()).unwrap(), inode);
    }
    let elsewhere = CgroupFact::Elsewhere { path: group.path.clone(), expected: "/pods/web".to_owned() };
    assert_eq!(of(Some("/pods/web")).fact, elsewhere);

    fs::create_dir(group.directory.join("below")).unwrap();
    for below in ["", "below"] {
        let foreign = group.start(below, &["sleep", "60"]).pid().get();
        assert_eq!(of(None).fact, CgroupFact::Shared { path: group.path.clone(), other: foreign }, "{below}");
        let mut child = group.children.pop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(of(None).fact, CgroupFact::Own { .. }));
    }
}

#[test]
fn the_inits_descendants_and_its_pid_namespace_belong_to_the_container() {
    // In our pid namespace: a shell and its children.
    let mut group = Cgroup::new("tree");
    let init = group.start("", &["sh", "-c", "sleep 60 & sleep 60 & wait"]);
    let both = wait_for(|| children(&init), |children| children.len() == 2);
    both.iter().for_each(|pid| group.put("", pid.get()));
    assert!(matches!(cgroup::of_container(&init, None).unwrap().fact, CgroupFact::Own { .. }));

    // In a pid namespace of its own: the init, and a process that entered it from outside and is not a descendant.
    let mut group = Cgroup::new("namespace");
    let outer = group.start("", &["unshare", "--pid", "--fork", "--kill-child", "sleep", "60"]);
    let inner = wait_for(|| children(&outer), |children| children.len() == 1)[0];
    let init = pid::open_process(inner).unwrap();
    group.put("", inner.get());
    let shared = CgroupFact::Shared { path: group.path.clone(), other: outer.pid().get() };
    assert_eq!(cgroup::of_container(&init, None).unwrap().fact, shared, "unshare itself does not belong to the container");
    fs::write(cgroup2().join("cgroup.procs"), outer.pid().to_string()).unwrap();
    let entered = group.start("", &["nsenter", "--pid", "--target", &inner.to_string(), "sleep", "60"]);
    // nsenter forks into the namespace and waits outside of it.
    let inside = wait_for(|| children(&entered), |children| children.len() == 1)[0];
    group.put("", inside.get());
    fs::write(cgroup2().join("cgroup.procs"), entered.pid().to_string()).unwrap();
    assert!(matches!(cgroup::of_container(&init, None).unwrap().fact, CgroupFact::Own { .. }));
    assert!(pid::open_process(inside).unwrap().is_within_pid_namespace(init.namespaces().unwrap().pid).unwrap());
    assert!(!entered.is_within_pid_namespace(init.namespaces().unwrap().pid).unwrap());
}

#[test]
fn the_root_cgroup_is_not_a_containers_own() {
    let own = pid::open_process(pid::own_identity().unwrap().pid).unwrap();
    let path = cgroup::parse_v2(&own.cgroup_text().unwrap()).unwrap().path;
    if path != Path::new("/") {
        println!("skipped: the test itself is in the cgroup {}", path.display());
        return;
    }
    let found = cgroup::of_container(&own, Some("/web")).unwrap();
    assert_eq!(found.fact, CgroupFact::Root);
    assert!(found.directory.is_none());
}

#[test]
fn a_process_in_a_network_namespace_of_its_own_is_found_there() {
    let mut child = Command::new("unshare").args(["--net", "sleep", "60"]).stdin(Stdio::null()).spawn().unwrap();
    let number = Pid::new(child.id()).unwrap();
    let own = pid::own_namespaces().unwrap().network;
    let process = pid::open_process(number).unwrap();
    let inode = wait_for(|| process.namespaces().unwrap().network, |inode| *inode != own);
    assert_eq!(pid::processes_in_netns(inode, |_| false).unwrap(), Some(number));
    assert_eq!(pid::processes_in_netns(inode, |pid| pid == number).unwrap(), None);
    let fact = process.namespaces().unwrap().fact(pid::Namespace::Network, &pid::own_namespaces().unwrap());
    assert!(!fact.shared_with_host && fact.inode == inode);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(pid::processes_in_netns(inode, |_| false).unwrap(), None);
    let _ = fsutil::names_in(Path::new("/proc/self/ns")).unwrap();
}

/// Polls until the result is good, for at most ten seconds.
fn wait_for<T>(ask: impl Fn() -> T, good: impl Fn(&T) -> bool) -> T {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let answer = ask();
        if good(&answer) {
            return answer;
        }
        assert!(std::time::Instant::now() < end, "it did not happen within ten seconds");
        std::thread::yield_now();
    }
}
