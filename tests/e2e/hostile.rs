//! Root file systems that were made by somebody who wants the mount elsewhere.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::effects::bpffs_options;
use crate::support::bundle::Bundle;
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![
    sys_is_a_link_to_the_root,
    the_mount_point_is_a_link,
    the_mount_point_is_a_file,
    the_mount_point_is_absent_and_cannot_be_made,
    a_host_directory_is_on_the_way,
    a_shared_mount_is_on_the_way,
    a_path_outside_the_allowed_places,
    a_mount_point_that_can_be_made_is_made,
];

/// A container without /sys that wants a token.
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

fn the_mount_point_is_absent_and_cannot_be_made(world: &mut World) {
    // The root file system stays the host root's: the container's root must not write it.
    let bundle = without_sys(world, "absent").edit(|config| config["process"]["args"] = serde_json::json!(["/bin/true"]));
    let bundle = bundle.write();
    crate::support::lab::chown_tree(&bundle.dir.join("rootfs"), 0);
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    assert!(!ended.status.success(), "the container started");
    world.said(&ended, 1, &["/sys/fs/bpf"]);
    world.lab.residue();
}

fn a_host_directory_is_on_the_way(world: &mut World) {
    let host = world.lab.path("hostdir");
    make(&host.join("bpf"));
    let bundle = Bundle::new(&world.lab, "host-bind").ask("delegate", "maps").ask("bpffs-path", "/run/host/bpf");
    let bundle = bundle.mount("none", &host, "/run/host", &["bind", "rw"]);
    world.refused(bundle, 1, &["/run/host/bpf", "host"]);
}

fn a_shared_mount_is_on_the_way(world: &mut World) {
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

fn a_mount_point_that_can_be_made_is_made(world: &mut World) {
    let bundle = Bundle::new(&world.lab, "made").ask("delegate", "maps").ask("bpffs-path", "/run/deep/bpf");
    let bundle = bundle.script("echo ready; read go").write();
    let running = world.start(&bundle);
    let options = bpffs_options(Runtime::Runc.init(&world.lab, &bundle.id), "/run/deep/bpf");
    assert!(options.contains("delegate_cmds=map_create"), "{options}");
    running.finish();
    assert!(!bundle.dir.join("rootfs/run/deep/bpf").join("x").exists());
}
