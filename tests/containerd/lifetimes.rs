//! Who ends or goes away while pods run: containers, the plugin, containerd itself.

use rustix::process::Signal;

use crate::node::Node;
use crate::pod::ContainerSpec;
use crate::pods::{assert_counts, counted_pod};

crate::cases![
    the_pods_program_outlives_a_restart_in_place,
    a_plugin_that_is_killed_leaves_hooks_that_work,
    a_pod_goes_on_while_the_plugin_is_replaced,
    containerd_restarts_under_a_pod,
    a_hung_plugin_is_noticed,
];

pub fn the_pods_program_outlives_a_restart_in_place(node: &mut Node) {
    let pod = counted_pod(node, "web").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    let sidecar = pod.add(&ContainerSpec::new("sidecar")).unwrap();
    node.world.lab.expect_links(1, "two containers share their pod's network");
    let map = node.world.map_id(&sidecar, "packets");
    pod.take(&main).unwrap();
    node.world.lab.expect_links(1, "the pod is still there");
    assert_counts(node, &pod, &sidecar);
    let again = pod.add(&ContainerSpec::new("main").attempt(1)).unwrap();
    assert_eq!(node.world.map_id(&again, "packets"), map, "it is still the pod's program");
    assert_counts(node, &pod, &again);
}

fn a_plugin_that_is_killed_leaves_hooks_that_work(node: &mut Node) {
    let pod = counted_pod(node, "web").run(node).unwrap();
    let main = pod.create(&ContainerSpec::new("main")).unwrap();
    node.kill_plugin();
    pod.start(&main).unwrap();
    assert_counts(node, &pod, &main);
    pod.remove().unwrap();
    node.world.lab.expect_links(0, "poststop needs no plugin either");
}

pub fn a_pod_goes_on_while_the_plugin_is_replaced(node: &mut Node) {
    let pod = counted_pod(node, "web").run(node).unwrap();
    node.kill_plugin();
    node.start_plugin();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &pod, &main);
    // While it is away NRI fails open; the next one that comes says so.
    node.kill_plugin();
    let missed = pod.add(&ContainerSpec::new("missed")).unwrap();
    assert!(pod.oci(&missed).get("hooks").is_none());
    node.start_plugin();
    node.hear_plugin(&missed);
    assert!(!node.plugin_said().contains(&main), "{}", node.plugin_said());
}

pub fn containerd_restarts_under_a_pod(node: &mut Node) {
    let mut pod = counted_pod(node, "web").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    for signal in [Signal::TERM, Signal::KILL] {
        let before = node.synchronized();
        node.stop_daemon(signal);
        assert_counts(node, &pod, &main);
        node.start_daemon();
        node.wait_for_plugin(before);
        pod.reconnect(node);
        assert_counts(node, &pod, &main);
        let after = counted_pod(node, "after").run(node).unwrap();
        let other = after.add(&ContainerSpec::new("main")).unwrap();
        assert_counts(node, &after, &other);
        after.remove().unwrap();
    }
    node.world.lab.expect_links(1, "the first pod has its program");
    pod.remove().unwrap();
    node.world.lab.expect_links(0, "the pod is gone");
}

fn a_hung_plugin_is_noticed(node: &mut Node) {
    let spec = counted_pod(node, "web");
    let pod = spec.run(node).unwrap();
    let before = node.synchronized();
    node.signal_plugin(Signal::STOP);
    let missed = pod.add(&ContainerSpec::new("main")).unwrap();
    assert!(pod.oci(&missed).get("hooks").is_none(), "NRI fails open");
    node.signal_plugin(Signal::CONT);
    node.wait_for_plugin(before);
    node.hear_plugin(&missed);
    let second = pod.add(&ContainerSpec::new("second")).unwrap();
    assert_counts(node, &pod, &second);
}
