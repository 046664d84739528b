//! Containers that share a network namespace because they belong to one pod.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::bundle::Bundle;
use crate::support::process::{Running, ended, eventually, tool};
use crate::support::runtime::Runtime;
use crate::world::{TRAFFIC, TRAFFIC_PACKETS, World};

crate::cases![
    the_pod_owns_the_programs_of_its_network,
    a_pod_without_a_process_is_known_by_its_interfaces,
    two_different_programs_for_one_interface
];

/// The annotations by which CRI-O describes a container.
fn crio(world: &World, bundle: Bundle, kind: &str) -> Bundle {
    let sandbox = format!("{}-sandbox", world.lab.word());
    bundle
        .engine(&world.lab, "cri-o")
        .annotate("io.kubernetes.cri-o.ContainerType", kind)
        .annotate("io.kubernetes.cri-o.SandboxID", &sandbox)
        .annotate("io.kubernetes.cri-o.Namespace", "shop")
        .annotate("io.kubernetes.cri-o.KubeName", "web-0")
        .annotate("io.kubernetes.pod.name", "web-0")
        .annotate("io.kubernetes.pod.namespace", "shop")
        .annotate("io.kubernetes.container.name", kind)
}

/// The pod's sandbox, and the path of its network namespace.
fn sandbox(world: &World) -> (Running, String) {
    let bundle =
        crio(world, Bundle::new(&world.lab, "sandbox").without_userns(), "sandbox").script("echo ready; read go").write();
    let running = world.start(&bundle);
    let init = Runtime::Runc.init(&world.lab, &bundle.id);
    (running, format!("/proc/{init}/ns/net"))
}

fn member(world: &mut World, name: &str, netns: &str, programs: &str) -> Bundle {
    let image = world.signed("demo");
    let bundle = Bundle::new(&world.lab, name).without_userns().namespace("network", Some(Path::new(netns)));
    let bundle = bundle.ask("image", &image).ask("programs", programs);
    crio(world, bundle, "container").annotate("io.kubernetes.container.name", name)
}

fn the_pod_owns_the_programs_of_its_network(world: &mut World) {
    let (pause, netns) = sandbox(world);
    let programs = "xdp:count_packets iface=lo";
    let first = member(world, "first", &netns, programs).script(TRAFFIC).write();
    let second = member(world, "second", &netns, programs).script(TRAFFIC).write();
    let first_running = world.start(&first);
    world.lab.expect_links(1, "the first container attached it");
    let mut second_running = world.start(&second);
    world.lab.expect_links(1, "the second container joins the link of the first");
    drop(first_running.finish());
    world.lab.expect_links(1, "the link stays while the second container lives");
    second_running.say("go\n");
    second_running.hear("done");
    assert!(world.counted(&second.id, "packets") >= TRAFFIC_PACKETS, "the pod's program does not count any more");
    second_running.finish();
    world.lab.expect_links(1, "the link outlives the restart of the last container");
    let again = member(world, "again", &netns, programs).script(TRAFFIC).write();
    let running = world.start(&again);
    world.lab.expect_links(1, "the restarted container joins the link that is there");
    running.finish();
    pause.finish();
    world.lab.ours(&["gc"]);
    world.lab.expect_links(0, "the pod is gone, and its link with it");
}

/// CRI-O keeps a pod's network namespace with a mount, and runs no process for the sandbox.
fn a_pod_without_a_process_is_known_by_its_interfaces(world: &mut World) {
    let (pause, netns) = sandbox(world);
    let file = world.lab.write("netns", b"").display().to_string();
    tool(Command::new("mount").args(["--bind", &netns, &file]));
    pause.finish();
    let first = member(world, "first", &file, "xdp:count_packets iface=lo").script(TRAFFIC).write();
    world.start(&first).finish();
    assert!(world.lab.ours(&["gc"]).contains("nothing to release"));
    let doctor = ended(&mut world.lab.command(&["doctor"])).stdout;
    assert!(!doctor.contains("is dead"), "`doctor` and `gc` disagree about the pod: {doctor}");
    world.lab.expect_links(1, "the pod exists, although no process runs in it");
    let again = member(world, "again", &file, "xdp:count_packets iface=lo").script(TRAFFIC).write();
    let running = world.start(&again);
    world.lab.expect_links(1, "the restarted container joins the link that is there");
    running.finish();
    tool(Command::new("umount").arg(&file));
    eventually("the interfaces to go with their namespace", Duration::from_secs(10), || {
        world.lab.ours(&["gc"]).contains("its pod is gone").then_some(())
    });
    world.lab.expect_links(0, "the pod is gone, and its link with it");
}

fn two_different_programs_for_one_interface(world: &mut World) {
    let (pause, netns) = sandbox(world);
    let first = member(world, "first", &netns, "xdp:count_packets iface=lo").script(TRAFFIC).write();
    let running = world.start(&first);
    let image = world.signed("counter");
    let second = member(world, "second", &netns, "xdp:count iface=lo").ask("image", &image).script("echo started").write();
    let ended = Runtime::Runc.run(&world.lab, &second);
    assert!(!ended.stdout.contains("started"), "the second container started");
    world.said(&ended, 1, &["attach xdp to lo", &first.id]);
    running.finish();
    pause.finish();
    world.lab.ours(&["gc"]);
}
