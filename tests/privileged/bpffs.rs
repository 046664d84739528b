//! A bpffs for a container, on the real kernel: created, delegated, refused, undone.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use bpfman_hook::model::delegation::Delegation;
use bpfman_hook::sys::SysError;
use bpfman_hook::sys::bpf::{self, MapCreate, ObjectKind};
use bpfman_hook::sys::bpffs::{self, BpffsError, BpffsSpec, MapFile, Mounted};
use bpfman_hook::sys::token::probe::{Packets, probe};
use bpfman_hook::sys::token::{BpfToken, TokenError};
use rustix::process::Uid;

use crate::container::{Container, FIRST_ID, ForkedHook, Namespaces, in_child};

/// map_create, prog_load; hash, array; socket_filter, xdp; cgroup_inet_ingress, xdp.
const NETWORK: Delegation = Delegation { cmds: 0x21, maps: 0x6, progs: 0x42, attachs: 0x20_0000_0001 };
const NOTHING: Delegation = Delegation { cmds: 0, maps: 0, progs: 0, attachs: 0 };

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn mount(container: &Container, target: &str, delegation: Delegation) -> Result<Mounted, SysError> {
    mount_maps(container, target, delegation, &[], (0, 0))
}

fn mount_maps(
    container: &Container,
    target: &str,
    delegation: Delegation,
    maps: &[MapFile<'_>],
    owner: (u32, u32),
) -> Result<Mounted, SysError> {
    let (user_ns, mount_ns, root) = (container.namespace("user"), container.namespace("mnt"), container.open_root());
    let spec = BpffsSpec {
        user_ns: user_ns.as_fd(),
        mount_ns: mount_ns.as_fd(),
        root: root.as_fd(),
        target: Path::new(target),
        delegation,
        maps,
        owner,
    };
    bpffs::mount(&spec, soon())
}

/// Descriptors of this process on a file system.
fn descriptors_on((major, minor): (u32, u32)) -> Vec<String> {
    let device = rustix::fs::makedev(major, minor);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        if fs::metadata(entry.path()).is_ok_and(|meta| meta.dev() == device) {
            found.push(format!("{:?}", fs::read_link(entry.path())));
        }
    }
    found
}

/// A refused or undone attempt leaves nothing in the container or in this process.
fn assert_no_residue(container: &Container) {
    assert_eq!(container.bpffs_lines(), Vec::<String>::new());
    let ours = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = container.root.display().to_string();
    assert!(!ours.contains(&root), "{ours}");
    assert_eq!(processes_in(container), [container.pid()], "a bpffs process is left");
}

/// Processes that are in the container's mount namespace.
fn processes_in(container: &Container) -> Vec<u32> {
    let inode = |pid: u32| fs::metadata(format!("/proc/{pid}/ns/mnt")).ok().map(|meta| meta.ino());
    let theirs = inode(container.pid()).unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| inode(*pid) == Some(theirs)).collect()
}

/// Polls until `condition` holds.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_delegated_bpffs_yields_exactly_its_rights_inside() {
    let container = Container::start("");
    let mounted = mount(&container, "/sys/fs/bpf", NETWORK).unwrap();
    let lines = container.bpffs_lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let expected = format!("{}/sys/fs/bpf rw,nosuid,nodev,noexec", container.root.display());
    assert!(lines[0].contains(&expected), "{lines:?}");
    assert_eq!(lines[0].split(' ').next(), Some(mounted.mount_id.to_string().as_str()));
    assert_eq!(descriptors_on(mounted.device), Vec::<String>::new());

    let path = container.root.join("sys/fs/bpf");
    let (allowed, owner, mode) = container.inside(|| {
        let directory = fs::File::open(&path).unwrap();
        let token = BpfToken::mint(directory.as_fd()).unwrap();
        let meta = fs::metadata(&path).unwrap();
        (token.allowed().unwrap(), (meta.uid(), meta.gid()), meta.mode())
    });
    assert_eq!(allowed, NETWORK);
    assert_eq!(owner, (0, 0));
    assert_eq!(mode & 0o7777, 0o1777);
    // Seen from outside, the container's root owns it; and from outside no token can be created.
    let outside = fs::File::open(format!("/proc/{}/root{}", container.pid(), path.display())).unwrap();
    assert_eq!(outside.metadata().unwrap().uid(), FIRST_ID);
    assert!(matches!(BpfToken::mint(outside.as_fd()), Err(TokenError::Refused | TokenError::InitialUserNamespace)));
}

/// An array map of one u64.
fn counter() -> OwnedFd {
    let map = MapCreate {
        name: "sys_test",
        map_type: 2,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        flags: 0,
        extra: 0,
        numa_node: 0,
        kernel_value: 0,
        module: None,
        inner: None,
        types: None,
        token: None,
        exclusive: None,
    };
    bpf::map_create(&map).unwrap()
}

#[test]
fn maps_are_files_of_the_containers_user_and_end_with_the_container() {
    let container = Container::start("");
    let map = counter();
    bpf::map_update(map.as_fd(), &0_u32.to_ne_bytes(), &42_u64.to_ne_bytes()).unwrap();
    let files = [MapFile { map: map.as_fd(), name: "counter" }];
    let mounted = mount_maps(&container, "/sys/fs/bpf", NOTHING, &files, (1000, 1001)).unwrap();
    assert_eq!(descriptors_on(mounted.device), Vec::<String>::new());
    let path = container.root.join("sys/fs/bpf/counter");
    let (owner, mode, value) = container.inside(|| {
        let meta = fs::metadata(&path).unwrap();
        rustix::thread::set_thread_res_uid(Uid::from_raw(1000), Uid::from_raw(1000), Uid::from_raw(1000)).unwrap();
        // Without any capability, as the file's owner.
        let map = bpf::open_pin(&path).unwrap();
        ((meta.uid(), meta.gid()), meta.mode() & 0o7777, bpf::map_lookup(map.as_fd(), &0_u32.to_ne_bytes()).unwrap())
    });
    assert_eq!((owner, mode, value), ((1000, 1001), 0o600, 42_u64.to_ne_bytes().to_vec()));

    // Now only the pin in the container holds the map; when that is removed, nothing does.
    let id = bpf::map_info(map.as_fd()).unwrap().id;
    drop(map);
    assert!(bpf::ids(ObjectKind::Map).unwrap().contains(&id));
    drop(container);
    eventually("the map dies with the container", || !bpf::ids(ObjectKind::Map).unwrap().contains(&id));
}

#[test]
fn a_workload_can_load_and_attach_with_its_token_and_count_traffic() {
    let container = Container::start("ip link set lo up");
    let tcx = Delegation { progs: NETWORK.progs | 1 << 3, attachs: NETWORK.attachs | 1 << 46, ..NETWORK };
    mount(&container, "/sys/fs/bpf", tcx).unwrap();
    let path = container.root.join("sys/fs/bpf");
    let (steps, works, allowed, before, after) = container.inside(|| {
        let probe = probe(&path, "lo");
        let before = probe.packets().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..5 {
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        }
        let after = probe.packets().unwrap();
        let numbers = |p: Packets| (p.xdp.unwrap(), p.tcx.unwrap());
        (format!("{:?}", probe.steps), probe.works(), probe.allowed, numbers(before), numbers(after))
    });
    assert!(works, "{steps}");
    assert_eq!(allowed, Some(tcx));
    assert_eq!((before, after), ((0, 0), (5, 5)));
}

#[test]
fn undelegated_commands_are_refused_and_named() {
    let container = Container::start("ip link set lo up");
    // XDP programs, but not their attach type, and no tcx.
    mount(&container, "/sys/fs/bpf", Delegation { progs: 1 << 1 | 1 << 6, attachs: 1, ..NETWORK }).unwrap();
    let path = container.root.join("sys/fs/bpf");
    let steps = container.inside(|| serde_json::to_value(&probe(&path, "lo").steps).unwrap());
    let meaning = |stage: &str| {
        let step = steps.as_array().unwrap().iter().find(|step| step["stage"] == stage).unwrap();
        (step["outcome"].as_str().unwrap().to_owned(), step["meaning"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(meaning("load-socket-filter").0, "done");
    assert!(meaning("load-xdp").1.contains("delegate-attachs"), "{steps}");
    assert!(meaning("load-tcx").1.contains("delegate-progs"), "{steps}");
    assert_eq!(meaning("attach-xdp").0, "skipped");
}

/// The hook can be killed at any moment. What it leaves is a complete bpffs or none, and no process.
#[test]
fn a_killed_hook_leaves_no_half_mount() {
    let container = Container::start("mount -t tmpfs tmpfs $R/mnt");
    let mut whole = 0;
    for round in 0..40_u64 {
        let target = format!("/mnt/a/bpf{round}");
        let hook = ForkedHook::start(|| {
            let _ = mount(&container, &target, NETWORK);
        });
        hook.kill_after(Duration::from_micros(round * 100));
        eventually("no process of ours is left in the container", || processes_in(&container) == [container.pid()]);
        let path = container.root.join(&target[1..]);
        let line = format!(" {} ", path.display());
        let found: Vec<_> = container.bpffs_lines().into_iter().filter(|l| l.contains(&line)).collect();
        assert!(found.len() <= 1, "{found:?}");
        if found.is_empty() {
            let left = container.inside(|| path.exists());
            assert!(!left, "round {round}: the directory is left without the mount");
        } else {
            whole += 1;
            let allowed =
                container.inside(|| BpfToken::mint(fs::File::open(&path).unwrap().as_fd()).unwrap().allowed().unwrap());
            assert_eq!(allowed, NETWORK, "round {round}");
        }
    }
    // A round of 0 microseconds is always early enough; a test that never killed anything in time would prove nothing.
    assert!(whole < 40);
}

#[test]
fn a_private_bpffs_gives_no_token() {
    let container = Container::start("");
    mount(&container, "/sys/fs/bpf", NOTHING).unwrap();
    let path = container.root.join("sys/fs/bpf");
    let said = container.inside(|| BpfToken::mint(fs::File::open(&path).unwrap().as_fd()).unwrap_err().to_string());
    assert_eq!(said, TokenError::NothingDelegated.to_string());
}

#[test]
fn missing_directories_are_created_by_container_root_and_left_empty_on_failure() {
    let container = Container::start("");
    mount(&container, "/run/bpf/deep", NETWORK).unwrap();
    for made in ["run/bpf", "run/bpf/deep"] {
        let meta = fs::symlink_metadata(container.root.join(made)).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (FIRST_ID, 0o755), "{made}");
    }
    // The container does not map this user, which shows only after the mount: the latest point from which everything
    // must be undone.
    let other = Container::start("");
    let map = counter();
    let files = [MapFile { map: map.as_fd(), name: "counter" }];
    let error = mount_maps(&other, "/run/bpf/deep", NETWORK, &files, (70_000, 0)).unwrap_err();
    assert!(matches!(&error, SysError::Bpffs(BpffsError::Map { name, .. }) if name == "counter"), "{error:?}");
    assert!(!other.root.join("run/bpf").exists());
    assert_no_residue(&other);
}

#[test]
fn a_root_below_inaccessible_directories_is_reached() {
    let container = Container::start("");
    fs::set_permissions(container.directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    mount(&container, "/sys/fs/bpf", NETWORK).unwrap();
}

#[test]
fn a_tmpfs_of_the_container_is_accepted() {
    let container = Container::start("mount -t tmpfs -o size=64k tmpfs $R/run");
    mount(&container, "/run/bpf", NETWORK).unwrap();
}

#[test]
fn a_bpffs_from_the_host_is_covered() {
    // Like the host's /sys in a container that shares the host's network.
    let container = Container::start("mount -t tmpfs tmpfs $R/mnt");
    let (target, pid) = (container.root.join("sys/fs/bpf"), container.pid().to_string());
    let status = std::process::Command::new("nsenter")
        .args(["--mount", "--target", &pid, "mount", "-t", "bpf", "bpf"])
        .arg(&target)
        .status();
    assert!(status.unwrap().success(), "mount a bpffs as the host does");
    mount(&container, "/sys/fs/bpf", NETWORK).unwrap();
    // A bpffs that we created is not covered.
    let again = mount(&container, "/sys/fs/bpf", NETWORK).unwrap_err();
    assert!(again.to_string().contains("already has a bpffs"), "{again}");
    let path = container.root.join("sys/fs/bpf");
    assert_eq!(
        container.inside(|| BpfToken::mint(fs::File::open(&path).unwrap().as_fd()).unwrap().allowed().unwrap()),
        NETWORK
    );
}

/// The result for hostile or broken root file systems.
#[test]
fn hostile_targets_are_refused_and_nothing_is_left() {
    type Prepare = fn(&Path);
    type Case = (&'static str, &'static str, Prepare, &'static str, fn(&BpffsError) -> bool);
    const CASES: [Case; 12] = [
        (
            "/sys is a link to /",
            "/sys/fs/bpf",
            |root| {
                fs::remove_dir(root.join("sys")).unwrap();
                symlink("/", root.join("sys")).unwrap();
            },
            "mkdir -p $R/fs/bpf",
            |e| matches!(e, BpffsError::TargetLink { .. }),
        ),
        (
            "the target is a link to /etc",
            "/run/bpf",
            |root| symlink("/etc", root.join("run/bpf")).unwrap(),
            "",
            |e| matches!(e, BpffsError::TargetLink { .. }),
        ),
        (
            "a link out of the root",
            "/run/bpf",
            |root| symlink("../../../..", root.join("run/bpf")).unwrap(),
            "",
            |e| matches!(e, BpffsError::TargetLink { .. }),
        ),
        (
            "a magic link",
            "/mnt/bpf",
            |root| symlink("/proc/self/root", root.join("mnt/bpf")).unwrap(),
            "",
            |e| matches!(e, BpffsError::TargetLink { .. }),
        ),
        (
            "a dangling link where a directory would be made",
            "/run/bpf/deep",
            |root| symlink("/nowhere", root.join("run/bpf")).unwrap(),
            "",
            |e| matches!(e, BpffsError::TargetLink { .. }),
        ),
        (
            "a file",
            "/run/bpf",
            |root| fs::write(root.join("run/bpf"), "").unwrap(),
            "",
            |e| matches!(e, BpffsError::TargetNotDirectory { .. }),
        ),
        (
            "a file on the way",
            "/run/bpf/deep",
            |root| fs::write(root.join("run/bpf"), "").unwrap(),
            "",
            |e| matches!(e, BpffsError::TargetNotDirectory { .. }),
        ),
        (
            "missing in a directory of the host's root",
            "/run/bpf",
            |root| chown(root.join("run"), Some(0), Some(0)).unwrap(),
            "",
            |e| matches!(e, BpffsError::TargetMissing { .. }),
        ),
        (
            "missing on sysfs, where nobody can make directories",
            "/sys/fs/mine",
            |_| (),
            "",
            |e| matches!(e, BpffsError::TargetMissing { .. }),
        ),
        (
            "a bind mount from the host",
            "/mnt/bpf",
            |_| (),
            "mount --bind /usr $R/mnt",
            |e| matches!(e, BpffsError::TargetHostMount { .. }),
        ),
        (
            "the host's tmpfs, whole",
            "/mnt",
            |_| (),
            "mount --bind /dev/shm $R/mnt",
            |e| matches!(e, BpffsError::TargetHostMount { mount, .. } if mount.starts_with("tmpfs at ")),
        ),
        (
            "a shared mount",
            "/mnt/bpf",
            |_| (),
            "mount -t tmpfs tmpfs $R/mnt; mkdir $R/mnt/bpf; mount --make-shared $R/mnt",
            |e| matches!(e, BpffsError::TargetShared { .. }),
        ),
    ];
    for (name, target, prepare, setup, expected) in CASES {
        let container = Container::with(Namespaces::UserMountNet, prepare, setup);
        let error = mount(&container, target, NETWORK).expect_err(name);
        let SysError::Bpffs(inner) = &error else { panic!("{name}: {error:?}") };
        assert!(expected(inner), "{name}: {error:?}");
        assert!(error.to_string().contains(target), "{name}: {error}");
        assert_no_residue(&container);
    }
}

/// The process that enters the container has no_new_privs and a seccomp filter before it is inside. It lives for a
/// millisecond, so the test looks for it while many are started.
/// looked for while many come and go.
#[test]
fn the_process_inside_is_confined() {
    let container = Container::start("");
    let done = std::sync::atomic::AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut seen = Vec::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for pid in processes_in(&container).into_iter().filter(|pid| *pid != container.pid()) {
                    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                    // A process that is exiting shows little.
                    if status.contains("VmSize:") {
                        seen.push((status.contains("NoNewPrivs:\t1"), status.contains("Seccomp:\t2")));
                    }
                }
            }
            seen
        });
        let made = (0..100).try_for_each(|number| mount(&container, &format!("/run/bpf{number}"), NETWORK).map(drop));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let seen = looking.join().unwrap();
        made.unwrap();
        seen
    });
    assert!(!seen.is_empty(), "no process was seen in the container");
    assert!(seen.iter().all(|confined| *confined == (true, true)), "{seen:?}");
}

#[test]
fn paths_that_are_not_normal_are_refused() {
    let container = Container::start("");
    for target in ["", "/", "sys/fs/bpf", "/sys/../etc", "/sys/./fs", "//sys", "/sys/", "/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q"] {
        let error = mount(&container, target, NETWORK).unwrap_err();
        assert!(matches!(error, SysError::Bpffs(BpffsError::TargetPath { .. })), "{target}: {error:?}");
    }
    assert_no_residue(&container);
}

#[test]
fn without_a_user_namespace_there_is_a_bpffs_but_no_token() {
    let container = Container::with(Namespaces::MountOnly, |_| (), "");
    let error = mount(&container, "/sys/fs/bpf", NETWORK).unwrap_err();
    assert!(matches!(error, SysError::Bpffs(BpffsError::NoUserNamespace)), "{error:?}");
    assert!(error.to_string().contains("--userns=auto"), "{error}");
    assert_no_residue(&container);
    mount(&container, "/sys/fs/bpf", NOTHING).unwrap();
    assert_eq!(container.bpffs_lines().len(), 1);
}

#[test]
fn the_hosts_mount_namespace_is_refused() {
    let container = Container::start("");
    let user_ns = container.namespace("user");
    let (own, root) = (fs::File::open("/proc/self/ns/mnt").unwrap(), container.open_root());
    let spec = BpffsSpec {
        user_ns: user_ns.as_fd(),
        mount_ns: own.as_fd(),
        root: root.as_fd(),
        target: Path::new("/run"),
        delegation: NETWORK,
        maps: &[],
        owner: (0, 0),
    };
    let error = bpffs::mount(&spec, soon()).unwrap_err();
    assert!(matches!(error, SysError::Bpffs(BpffsError::HostMountNamespace)), "{error:?}");
}

#[test]
fn namespaces_that_do_not_belong_together_are_refused() {
    let (a, b) = (Container::start(""), Container::with(Namespaces::MountOnly, |_| (), ""));
    let (user_ns, mount_ns, root) = (a.namespace("user"), b.namespace("mnt"), b.open_root());
    let spec = BpffsSpec {
        user_ns: user_ns.as_fd(),
        mount_ns: mount_ns.as_fd(),
        root: root.as_fd(),
        target: Path::new("/run"),
        delegation: NETWORK,
        maps: &[],
        owner: (0, 0),
    };
    let error = bpffs::mount(&spec, soon()).unwrap_err();
    assert!(matches!(error, SysError::Bpffs(BpffsError::NamespacesApart { .. })), "{error:?}");
    assert_no_residue(&b);
}

/// Like a hook of a rootless runtime: root in the container's user namespace, an unprivileged user outside.
#[test]
fn without_rights_in_the_initial_namespace_the_error_says_who_must_run_the_runtime() {
    let container = Container::start("");
    let said = {
        let user = container.namespace("user");
        in_child(|| {
            let kind = rustix::thread::LinkNameSpaceType::User;
            rustix::thread::move_into_link_name_space(user.as_fd(), Some(kind)).unwrap();
            let error = mount(&container, "/sys/fs/bpf", NETWORK).unwrap_err();
            (matches!(error, SysError::Bpffs(BpffsError::NotAdministrator { .. })), error.to_string())
        })
    };
    assert!(
        said.0 && said.1.contains("set the option delegate_cmds") && said.1.contains("run the runtime as root"),
        "{said:?}"
    );
    assert_no_residue(&container);
}

#[test]
fn a_deadline_that_has_passed_leaves_nothing() {
    let container = Container::start("");
    let (user_ns, mount_ns, root) = (container.namespace("user"), container.namespace("mnt"), container.open_root());
    let spec = BpffsSpec {
        user_ns: user_ns.as_fd(),
        mount_ns: mount_ns.as_fd(),
        root: root.as_fd(),
        target: Path::new("/run/bpf"),
        delegation: NETWORK,
        maps: &[],
        owner: (0, 0),
    };
    let error = bpffs::mount(&spec, Instant::now()).unwrap_err();
    assert!(matches!(error, SysError::Deadline { .. }), "{error:?}");
    assert!(!container.root.join("run/bpf").exists());
    assert_no_residue(&container);
}
