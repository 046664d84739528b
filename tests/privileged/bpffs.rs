//! A bpffs for a container, on the real kernel: made, delegated, refused, undone.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use bpfman_hook::model::delegation::Delegation;
use bpfman_hook::sys::SysError;
use bpfman_hook::sys::bpffs::{self, BpffsError, MapFile, Mounted, Spec};
use bpfman_hook::sys::token::{Token, TokenError};

use crate::container::{Container, FIRST_ID, Namespaces, in_child};

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
    let (user_ns, mount_ns) = (container.namespace("user"), container.namespace("mnt"));
    let spec = Spec {
        user_ns: user_ns.as_fd(),
        mount_ns: mount_ns.as_fd(),
        root: &container.root,
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

/// Nothing of a refused or undone attempt is in the container or here.
fn assert_no_residue(container: &Container) {
    assert_eq!(container.bpffs_lines(), Vec::<String>::new());
    let ours = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = container.root.display().to_string();
    assert!(!ours.contains(&root), "{ours}");
    for entry in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let children = fs::read_to_string(entry.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let path = format!("/proc/{child}/ns/mnt");
            let same = fs::metadata(path).ok().map(|m| m.ino())
                == Some(fs::metadata(format!("/proc/{}/ns/mnt", container.pid())).unwrap().ino());
            assert!(!same || child == container.pid().to_string(), "the bpffs process {child} is left");
        }
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
        let token = Token::mint(directory.as_fd()).unwrap();
        let meta = fs::metadata(&path).unwrap();
        (token.allowed().unwrap(), (meta.uid(), meta.gid()), meta.mode())
    });
    assert_eq!(allowed, NETWORK);
    assert_eq!(owner, (0, 0));
    assert_eq!(mode & 0o7777, 0o1777);
    // Seen from outside, it is the container's root that owns it; and from outside no token can be minted.
    let outside = fs::File::open(format!("/proc/{}/root{}", container.pid(), path.display())).unwrap();
    assert_eq!(outside.metadata().unwrap().uid(), FIRST_ID);
    assert!(matches!(Token::mint(outside.as_fd()), Err(TokenError::Refused | TokenError::InitialUserNamespace)));
}

#[test]
fn the_file_system_dies_with_the_container() {
    let container = Container::start("");
    let pid = container.pid();
    mount(&container, "/sys/fs/bpf", NETWORK).unwrap();
    let alive = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!("/proc/{pid}/"));
    assert!(!alive());
    drop(container);
    assert!(!Path::new(&format!("/proc/{pid}/mountinfo")).exists());
}

#[test]
fn a_private_bpffs_gives_no_token() {
    let container = Container::start("");
    mount(&container, "/sys/fs/bpf", NOTHING).unwrap();
    let path = container.root.join("sys/fs/bpf");
    let said = container.inside(|| Token::mint(fs::File::open(&path).unwrap().as_fd()).unwrap_err().to_string());
    assert_eq!(said, TokenError::NothingDelegated.to_string());
}

#[test]
fn missing_directories_are_made_by_container_root_and_stay_empty_of_us_on_failure() {
    let container = Container::start("");
    mount(&container, "/run/bpf/deep", NETWORK).unwrap();
    for made in ["run/bpf", "run/bpf/deep"] {
        let meta = fs::symlink_metadata(container.root.join(made)).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (FIRST_ID, 0o755), "{made}");
    }
    // No id of the container's for the owner of a map: fails after the mount, the deepest that undoing has to reach.
    let other = Container::start("");
    let map = fs::File::open("/dev/null").unwrap();
    let files = [MapFile { map: map.as_fd(), name: "counter" }];
    let error = mount_maps(&other, "/run/bpf/deep", NETWORK, &files, (0, 0)).unwrap_err();
    assert!(matches!(&error, SysError::Bpffs(BpffsError::Map { name, .. }) if name == "counter"), "{error:?}");
    assert!(!other.root.join("run/bpf").exists());
    assert_no_residue(&other);
}

#[test]
fn a_root_beneath_closed_directories_is_reached() {
    let container = Container::start("");
    fs::set_permissions(container.directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    mount(&container, "/sys/fs/bpf", NETWORK).unwrap();
}

#[test]
fn a_tmpfs_of_the_containers_own_is_fine() {
    let container = Container::start("mount -t tmpfs -o size=64k tmpfs $R/run");
    mount(&container, "/run/bpf", NETWORK).unwrap();
}

#[test]
fn a_bpffs_from_the_host_is_covered() {
    let container = Container::start("mount -t tmpfs tmpfs $R/mnt");
    // One bpffs over the other, as with the host's /sys in a container that shares the host's network.
    let first = mount(&container, "/sys/fs/bpf", NOTHING).unwrap();
    let second = mount(&container, "/sys/fs/bpf", NETWORK).unwrap();
    assert_ne!(first.mount_id, second.mount_id);
    let path = container.root.join("sys/fs/bpf");
    assert_eq!(container.inside(|| Token::mint(fs::File::open(&path).unwrap().as_fd()).unwrap().allowed().unwrap()), NETWORK);
}

/// What a hostile or careless root file system gets.
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
fn our_own_mount_namespace_is_refused() {
    let container = Container::start("");
    let user_ns = container.namespace("user");
    let own = fs::File::open("/proc/self/ns/mnt").unwrap();
    let spec = Spec {
        user_ns: user_ns.as_fd(),
        mount_ns: own.as_fd(),
        root: &container.root,
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
    let (user_ns, mount_ns) = (a.namespace("user"), b.namespace("mnt"));
    let spec = Spec {
        user_ns: user_ns.as_fd(),
        mount_ns: mount_ns.as_fd(),
        root: &b.root,
        target: Path::new("/run"),
        delegation: NETWORK,
        maps: &[],
        owner: (0, 0),
    };
    let error = bpffs::mount(&spec, soon()).unwrap_err();
    assert!(matches!(error, SysError::Bpffs(BpffsError::NamespacesApart { .. })), "{error:?}");
    assert_no_residue(&b);
}

/// As a hook of a rootless runtime: root in the container's user namespace, nobody outside.
#[test]
fn without_rights_in_the_initial_namespace_the_broker_is_named() {
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
    assert!(said.0 && said.1.contains("set the option delegate_cmds") && said.1.contains("broker"), "{said:?}");
    assert_no_residue(&container);
}

#[test]
fn a_deadline_that_has_passed_leaves_nothing() {
    let container = Container::start("");
    let (user_ns, mount_ns) = (container.namespace("user"), container.namespace("mnt"));
    let spec = Spec {
        user_ns: user_ns.as_fd(),
        mount_ns: mount_ns.as_fd(),
        root: &container.root,
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
