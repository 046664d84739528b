//! Attach points that are not the container's own: other cgroups, other network namespaces, other containers.

use std::fs;
use std::path::Path;
use std::process::Command;

use bpfman_hook::model::reach::{TokenReach, TypeAnswer};

use crate::support::bundle::Bundle;
use crate::support::kernel::{Cgroups, cgroup2, cgroups};
use crate::support::process::{Running, ended};
use crate::support::runtime::{Runtime, without_cgroup2};
use crate::world::{TRAFFIC, TRAFFIC_PACKETS, World};

crate::cases![
    the_root_cgroup,
    a_cgroup_that_others_are_in,
    a_cgroup_that_the_caller_is_in,
    the_hosts_network,
    another_containers_network,
    the_same_id_under_another_bundle,
    cgroup_types_are_delegated_only_in_an_own_cgroup,
];

fn on_cgroup(world: &mut World, name: &str) -> Bundle {
    let image = world.signed("demo");
    Bundle::new(&world.lab, name).ask("image", &image).ask("programs", "cgroup_skb:count_egress")
}

fn on_lo(world: &mut World, name: &str) -> Bundle {
    let image = world.signed("demo");
    Bundle::new(&world.lab, name).ask("image", &image).ask("programs", "xdp:count_packets iface=lo")
}

/// runc with the version 2 half hidden, so that it cannot create a cgroup for its container there. On hosts with only
/// version 2, the configuration names the root cgroup.
fn run_in_callers_cgroup(world: &World, bundle: &Bundle) -> Command {
    let command = Runtime::Runc.run_command(&world.lab, bundle);
    match cgroups() {
        Cgroups::Unified => command,
        Cgroups::Hybrid(unified) => {
            let mut hidden = without_cgroup2(&unified, "runc");
            hidden.args(command.get_args());
            hidden
        }
    }
}

fn the_root_cgroup(world: &mut World) {
    world.mount_bpffs();
    let mut bundle = on_cgroup(world, "root-cgroup").script("echo started");
    if cgroups() == Cgroups::Unified {
        bundle = bundle.cgroup("/");
    }
    let bundle = bundle.write();
    let ended = ended(&mut run_in_callers_cgroup(world, &bundle));
    assert!(!ended.stdout.contains("started"), "the container started");
    world.said(&ended, 1, &["root cgroup"]);
    world.lab.residue();
}

fn a_cgroup_that_others_are_in(world: &mut World) {
    let name = format!("{}-occupied", world.lab.word());
    let cgroup = cgroup2().join(&name);
    fs::create_dir(&cgroup).expect("root makes cgroups");
    let squatter = Running::start(Command::new("sleep").arg("600"));
    fs::write(cgroup.join("cgroup.procs"), squatter.pid().to_string()).expect("root moves processes");
    let bundle = on_cgroup(world, "occupied").cgroup(&format!("/{name}")).script("echo started").write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    assert!(!ended.stdout.contains("started"), "the container started");
    let pid = squatter.pid().to_string();
    drop(squatter);
    let _runc_may_have_removed_it = fs::remove_dir(&cgroup);
    world.said(&ended, 1, &["cgroup", &pid]);
    world.lab.residue();
}

fn a_cgroup_that_the_caller_is_in(world: &mut World) {
    let Cgroups::Hybrid(unified) = cgroups() else {
        println!("skipped: runc always makes a cgroup where there is only version 2");
        return the_root_cgroup(world);
    };
    world.mount_bpffs();
    let name = format!("{}-callers", world.lab.word());
    let cgroup = unified.join(&name);
    fs::create_dir(&cgroup).expect("root makes cgroups");
    let bundle = on_cgroup(world, "callers").script("echo started").write();
    let inner = run_in_callers_cgroup(world, &bundle);
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"echo $$ >"$0"/cgroup.procs && exec "$@""#])
        .arg(&cgroup)
        .arg(inner.get_program())
        .args(inner.get_args());
    let ended = ended(&mut command);
    let _left = fs::remove_dir(&cgroup);
    assert!(!ended.stdout.contains("started"), "the container started");
    world.said(&ended, 1, &["cgroup"]);
    world.lab.residue();
}

fn the_hosts_network(world: &mut World) {
    let bundle = on_lo(world, "host-net").without_userns().without_namespace("network");
    world.refused(bundle, 1, &["host", "network"]);
}

fn another_containers_network(world: &mut World) {
    let victim = on_lo(world, "victim").script(TRAFFIC).write();
    let mut running = world.start(&victim);
    let init = Runtime::Runc.init(&world.lab, &victim.id);
    let intruder = on_lo(world, "intruder").without_userns();
    let intruder = intruder.namespace("network", Some(Path::new(&format!("/proc/{init}/ns/net"))));
    let intruder = intruder.script("echo started").write();
    let ended = Runtime::Runc.run(&world.lab, &intruder);
    assert!(!ended.stdout.contains("started"), "the container started");
    world.said(&ended, 1, &["network namespace"]);
    // The victim's program still counts.
    running.say("go\n");
    running.hear("done");
    assert!(world.counted(&victim.id, "packets") >= TRAFFIC_PACKETS);
    running.finish();
}

fn the_same_id_under_another_bundle(world: &mut World) {
    let first = on_lo(world, "first").script(TRAFFIC).write();
    let mut running = world.start(&first);
    let mut second = on_lo(world, "second").cgroup(&format!("/{}-second", world.lab.word())).script("echo started").write();
    second.id.clone_from(&first.id);
    // Another state directory, so that the runtime itself accepts the id.
    let mut command = Command::new("runc");
    command.arg("--root").arg(world.lab.path("runc-too")).args(["run", "-b"]).arg(&second.dir).arg(&second.id);
    let ended = ended(&mut command);
    assert!(!ended.stdout.contains("started"), "the second container started");
    world.said(&ended, 1, &["belongs to a living container in bundle"]);
    // The second container's poststop must not release anything of the first.
    running.say("go\n");
    running.hear("done");
    assert!(world.counted(&first.id, "packets") >= TRAFFIC_PACKETS);
    running.finish();
}

/// Stores, as root can, the verdict of a kernel whose cgroup programs are confined to the container: what such a kernel
/// requires of the container is the same everywhere.
fn keep_a_verdict_without_reach(world: &World) {
    let types = (1..64).map(|program_type| (program_type, TypeAnswer::Offers(Vec::new()))).collect();
    let reach = TokenReach { types, ..TokenReach::default() };
    let boot = bpfman_hook::sys::clock::boot_id().expect("/proc has it");
    let text = reach.keep(&boot, &bpfman_hook::sys::machine::kernel_release()).expect("nothing is undecided");
    let file = world.lab.path("root/run/bpfman-hook/token-reach.json");
    std::fs::create_dir_all(file.parent().expect("it has one")).expect("root can make it");
    std::fs::write(&file, text).expect("root can write it");
}

fn cgroup_types_are_delegated_only_in_an_own_cgroup(world: &mut World) {
    world.lab.policy("[[container]]\ndelegate = [\"cgroup\"]\n");
    keep_a_verdict_without_reach(world);
    let delegating = |world: &World, name: &str| {
        Bundle::new(&world.lab, name).ask("delegate", "cgroup").namespace("cgroup", None).script("echo started")
    };
    // A bind mount of the host's cgroups under an inconspicuous name: through a symbolic link, and through procfs.
    let link = world.lab.path("link");
    std::os::unix::fs::symlink(cgroup2(), &link).expect("a link in the test's directory");
    let through_proc = Path::new("/proc/self/root").join(cgroup2().strip_prefix("/").expect("an absolute path"));
    for (name, source) in [("through-link", &link), ("through-proc", &through_proc)] {
        let bundle = delegating(world, name).mount("none", source, "/mnt", &["bind", "ro"]);
        world.refused(bundle, 1, &["every cgroup", "/mnt"]);
    }
    // The namespace is the container's own, but shows all cgroups.
    let mut bundle = delegating(world, "in-root");
    if cgroups() == Cgroups::Unified {
        bundle = bundle.cgroup("/");
    }
    let bundle = bundle.write();
    let ended = ended(&mut run_in_callers_cgroup(world, &bundle));
    assert!(!ended.stdout.contains("started"), "the container started");
    world.said(&ended, 1, &["root cgroup"]);
    let bundle = delegating(world, "own").script("echo ready; read go").write();
    world.start(&bundle).finish();
}
