//! Hostile root file systems that try to redirect the mount.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::effects::bpffs_options;
use crate::support::bundle::Bundle;
use crate::support::kernel;
use crate::support::process::tool;
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![
    sys_is_a_link_to_the_root,
    the_mount_point_is_a_link,
    the_mount_point_is_a_file,
    the_mount_point_is_missing_and_cannot_be_created,
    a_host_directory_is_on_the_path,
    a_shared_mount_is_on_the_path,
    a_path_outside_the_allowed_places,
    a_missing_mount_point_is_created,
    an_unresponsive_file_system_is_on_the_path,
    another_containers_user_namespace,
    the_hosts_root_is_mapped,
    more_links_than_the_policy_allows,
];

/// A container without /sys that requests a token.
fn without_sys(world: &World, name: &str) -> Bundle {
    Bundle::new(&world.lab, name).without_mount("/sys").without_mount("/sys/fs/cgroup").ask("delegate", "maps")
}

fn make(path: &Path) {
    fs::create_dir_all(path).expect("a directory in a new root file system");
}

fn sys_is_a_link_to_the_root(world: &mut World) {
    let bundle = without_sys(world, "sys-link").rootfs(|root| {
        fs::remove_dir(root.join("sys")).expect("the bundle has an empty sys");
        symlink("/", root.join("sys")).expect("a link in a new root file system");
        make(&root.join("fs/bpf"));
    });
    world.refused(bundle, 1, &["/sys/fs/bpf", "link"]);
}

fn the_mount_point_is_a_link(world: &mut World) {
    let bundle = without_sys(world, "bpf-link").rootfs(|root| {
        make(&root.join("sys/fs"));
        symlink("/etc", root.join("sys/fs/bpf")).expect("a link in a new root file system");
    });
    world.refused(bundle, 1, &["/sys/fs/bpf", "link"]);
}

fn the_mount_point_is_a_file(world: &mut World) {
    let bundle = without_sys(world, "bpf-file").rootfs(|root| {
        make(&root.join("sys/fs"));
        fs::write(root.join("sys/fs/bpf"), b"").expect("a file in a new root file system");
    });
    world.refused(bundle, 1, &["/sys/fs/bpf", "directory"]);
}

fn the_mount_point_is_missing_and_cannot_be_created(world: &mut World) {
    // The root file system stays owned by the host's root, so that the container's root cannot write it.
    let bundle = without_sys(world, "absent").edit(|config| config["process"]["args"] = serde_json::json!(["/bin/true"]));
    let bundle = bundle.write();
    crate::support::lab::chown_tree(&bundle.dir.join("rootfs"), 0);
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    assert!(!ended.status.success(), "the container started");
    world.said(&ended, 1, &["/sys/fs/bpf"]);
    world.lab.residue();
}

fn a_host_directory_is_on_the_path(world: &mut World) {
    let host = world.lab.path("hostdir");
    make(&host.join("bpf"));
    let bundle = Bundle::new(&world.lab, "host-bind").ask("delegate", "maps").ask("bpffs-path", "/run/host/bpf");
    let bundle = bundle.mount("none", &host, "/run/host", &["bind", "rw"]);
    world.refused(bundle, 1, &["/run/host/bpf", "host"]);
}

fn a_shared_mount_is_on_the_path(world: &mut World) {
    let bundle = Bundle::new(&world.lab, "shared").ask("delegate", "maps").ask("bpffs-path", "/mnt/bpf");
    let bundle = bundle.mount("tmpfs", Path::new("tmpfs"), "/mnt", &["shared"]);
    world.refused(bundle, 1, &["/mnt/bpf", "shared"]);
}

fn a_path_outside_the_allowed_places(world: &mut World) {
    for (name, path) in [("etc", "/etc/bpf"), ("dots", "/run/../etc/bpf")] {
        let bundle = Bundle::new(&world.lab, name).ask("delegate", "maps").ask("bpffs-path", path);
        world.refused(bundle, 2, &["bpffs-path", path]);
    }
}

fn a_missing_mount_point_is_created(world: &mut World) {
    let bundle = Bundle::new(&world.lab, "made").ask("delegate", "maps").ask("bpffs-path", "/run/deep/bpf");
    let bundle = bundle.script("/bin/busybox mkdir /run/deep/bpf/x && echo ready; read go").write();
    let running = world.start(&bundle);
    let options = bpffs_options(Runtime::Runc.init(&world.lab, &bundle.id), "/run/deep/bpf");
    assert!(options.contains("delegate_cmds=map_create"), "{options}");
    running.finish();
    // The container's directory was in the bpffs, which is gone; the mount point below it is empty.
    let left: Vec<_> = fs::read_dir(bundle.dir.join("rootfs/run/deep/bpf")).expect("the mount point stays").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A FUSE file system whose daemon answers the mount's requests and then nothing.
struct Silent {
    point: std::path::PathBuf,
    daemon: Option<std::thread::JoinHandle<()>>,
}

/// The responses that a mount needs, include/uapi/linux/fuse.h: FUSE_INIT, and FUSE_GETATTR of a directory.
fn answer(request: &[u8]) -> Option<Vec<u8>> {
    let (mut body, unique) = (Vec::new(), request.get(8..16)?);
    match u32::from_ne_bytes(request.get(4..8)?.try_into().ok()?) {
        26 => {
            // Major and minor version of the protocol, the same readahead, and no optional features; 64 bytes.
            body.extend([7_u32, 31].map(u32::to_ne_bytes).concat());
            body.extend(&request[48..52]);
            body.extend([0_u32, 0x0009_000c, 1 << 16, 1].map(u32::to_ne_bytes).concat());
            body.resize(64, 0);
        }
        3 => {
            // Valid for an hour; inode 1; mode and link count of a directory.
            body.extend([3600_u64, 0, 1].map(u64::to_ne_bytes).concat());
            body.resize(16 + 60, 0);
            body.extend([0o40755_u32, 2].map(u32::to_ne_bytes).concat());
            body.resize(16 + 88, 0);
        }
        _ => return None,
    }
    let length = u32::try_from(16 + body.len()).ok()?;
    Some([&length.to_ne_bytes()[..], &[0; 4], unique, &body].concat())
}

impl Silent {
    fn mount(point: &Path) -> Self {
        use std::io::{Read as _, Write as _};
        make(point);
        let mut device = fs::File::options().read(true).write(true).open("/dev/fuse").expect("root opens /dev/fuse");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = std::ffi::CString::new(options).expect("no NUL");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("silent", point, "fuse", flags, options.as_c_str()).expect("root mounts FUSE");
        let daemon = std::thread::spawn(move || {
            let mut request = vec![0; 1 << 20];
            while let Ok(length) = device.read(&mut request) {
                if let Some(answer) = answer(&request[..length]) {
                    device.write_all(&answer).expect("the kernel takes the answer");
                }
            }
        });
        Self { point: point.to_owned(), daemon: Some(daemon) }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // Forced, so that processes waiting for a response get an error; then the daemon's read returns.
        let _gone = rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::FORCE);
        let _ended = self.daemon.take().map(std::thread::JoinHandle::join);
    }
}

fn an_unresponsive_file_system_is_on_the_path(world: &mut World) {
    let silent = Silent::mount(&world.lab.path("silent"));
    let bundle = Bundle::new(&world.lab, "silent").ask("delegate", "maps").ask("bpffs-path", "/mnt/volume/bpf");
    let bundle = bundle.mount("none", &silent.point, "/mnt/volume", &["rbind", "rw"]).script("echo started").write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    world.said(&ended, 1, &["/mnt/volume/bpf", "fuse at "]);
    // No process waits for it: the hook followed no path across the mount.
    let waiting = kernel::processes_of(&world.lab.path(""));
    assert!(waiting.is_empty(), "{waiting:?}");
    drop(silent);
    world.lab.residue();
}

fn another_containers_user_namespace(world: &mut World) {
    let first = Bundle::new(&world.lab, "first").script("echo ready; read go").write();
    let running = world.start(&first);
    let path = format!("/proc/{}/ns/user", Runtime::Runc.init(&world.lab, &first.id));
    let network = path.replace("/ns/user", "/ns/net");
    let joining = |name: &str| {
        let bundle = Bundle::new(&world.lab, name).ask("delegate", "maps");
        bundle.namespace("user", Some(Path::new(&path))).namespace("network", Some(Path::new(&network)))
    };
    let bundle = joining("joins").script("echo started").write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    assert!(!ended.stdout.contains("started"), "the container started");
    world.said(&ended, 1, &["joins an existing user namespace", "host-scope = true"]);
    world.allow("host-scope = true");
    let ended = Runtime::Runc.run(&world.lab, &joining("may").script("cat /proc/mounts").write());
    assert!(ended.stdout.contains("delegate_cmds"), "{} {}", ended.stdout, ended.stderr);
    running.finish();
}

fn the_hosts_root_is_mapped(world: &mut World) {
    for (name, maps) in [
        ("identity", serde_json::json!([{ "containerID": 0, "hostID": 0, "size": 4_294_967_295_u32 }])),
        (
            "behind",
            serde_json::json!([{ "containerID": 0, "hostID": 100_000, "size": 10 }, { "containerID": 10, "hostID": 0, "size": 1 }]),
        ),
    ] {
        for kind in ["uidMappings", "gidMappings"] {
            let bundle = |wants: &str| {
                let bundle = Bundle::new(&world.lab, &format!("{name}-{kind}-{wants}"));
                bundle.edit(|config| config["linux"][kind] = maps.clone())
            };
            world.allow("host-scope = true");
            world.refused(bundle("token").ask("delegate", "maps"), 1, &["maps the host's user or group 0"]);
            world.lab.policy("[[container]]\nmatch = { userns = true }\ndelegate = [\"maps\"]\n");
            world.refused(bundle("private").ask("bpffs", "private"), 1, &["no container rule", "without a user namespace"]);
        }
    }
}

fn more_links_than_the_policy_allows(world: &mut World) {
    let image = world.signed("demo");
    world.allow("[limits]\nlinks = 3");
    let netns = format!("{}-many", world.lab.word());
    tool(Command::new("ip").args(["netns", "add", &netns]));
    for number in 0..2 {
        let peers = [format!("a{number}"), format!("b{number}")];
        let link = ["-n", &netns, "link", "add", &peers[0], "type", "veth", "peer", "name", &peers[1]];
        tool(Command::new("ip").args(link));
    }
    let path = Path::new("/run/netns").join(&netns);
    let bundle = Bundle::new(&world.lab, "many").without_userns().namespace("network", Some(&path));
    let bundle = bundle.ask("image", &image).ask("programs", "xdp:count_packets iface=*").script("echo started").write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    tool(Command::new("ip").args(["netns", "del", &netns]));
    assert!(!ended.stdout.contains("started"), "the container started");
    world.said(&ended, 1, &["4 links are more than the 3", "links under [limits]"]);
    world.lab.residue();
}
