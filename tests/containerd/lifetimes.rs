//! Ends and restarts while pods run: of containers, of the plugin, of containerd itself.

use std::time::Duration;

use rustix::process::Signal;

use crate::cri::EXITED;
use crate::node::Node;
use crate::pod::{ContainerSpec, PodSpec};
use crate::pods::{assert_counts, counted_pod};
use crate::support::kernel;
use crate::support::process::{PATIENCE, eventually};

crate::cases![
    the_pods_program_outlives_a_restart_in_place,
    an_annotation_for_one_container_ends_with_it,
    a_missed_container_is_killed_if_the_policy_says_so,
    hooks_work_after_the_plugin_is_killed,
    a_plugin_killed_during_a_request_is_noticed,
    a_pod_keeps_running_while_the_plugin_is_replaced,
    containerd_restarts_under_a_pod,
    a_hung_plugin_is_noticed,
];

pub fn the_pods_program_outlives_a_restart_in_place(node: &mut Node) {
    let pod = counted_pod(node, "web").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    let map = node.world.map_id(&main, "packets");
    let sidecar = pod.add(&ContainerSpec::new("sidecar")).unwrap();
    node.world.lab.expect_links(1, "two containers share their pod's network");
    pod.take(&main).unwrap();
    assert_counts(node, &pod, &sidecar);
    pod.take(&sidecar).unwrap();
    node.world.lab.expect_links(1, "no container runs, and the pod is still there");
    let before = kernel::sum(map);
    node.knock(&pod.ip, 5);
    assert!(kernel::sum(map) >= before + 5, "its program counts on");
    let again = pod.add(&ContainerSpec::new("main").attempt(1)).unwrap();
    assert_eq!(node.world.map_id(&again, "packets"), map, "it is still the pod's program");
    assert_counts(node, &pod, &again);
    pod.remove().unwrap();
    node.world.lab.expect_links(0, "the pod is gone");
}

fn an_annotation_for_one_container_ends_with_it(node: &mut Node) {
    let image = node.world.signed("demo");
    let pod = PodSpec::new("web")
        .annotate("main.hook.bpfman.io/image", &image)
        .annotate("main.hook.bpfman.io/programs", "xdp:count_packets iface=eth0");
    let pod = pod.run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    pod.add(&ContainerSpec::new("other")).unwrap();
    node.world.lab.expect_links(1, "main has its program");
    pod.take(&main).unwrap();
    node.world.lab.expect_links(0, "main is gone");
}

fn hooks_work_after_the_plugin_is_killed(node: &mut Node) {
    let pod = counted_pod(node, "web").run(node).unwrap();
    let main = pod.create(&ContainerSpec::new("main")).unwrap();
    node.kill_plugin();
    pod.start(&main).unwrap();
    assert_counts(node, &pod, &main);
    pod.take(&main).unwrap();
    assert_eq!(node.world.lab.records().len(), 0, "poststop needs no plugin either");
    node.world.lab.expect_links(1, "the pod keeps what it owns");
    pod.remove().unwrap();
    node.start_plugin();
    node.world.lab.expect_links_soon(0, "the next plugin releases what ended while none ran");
}

pub fn a_pod_keeps_running_while_the_plugin_is_replaced(node: &mut Node) {
    let pod = counted_pod(node, "web").run(node).unwrap();
    node.kill_plugin();
    node.start_plugin();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &pod, &main);
    // NRI fails open without a plugin; the next plugin reports it.
    node.kill_plugin();
    let missed = pod.add(&ContainerSpec::new("missed")).unwrap();
    assert!(pod.oci(&missed).get("hooks").is_none());
    node.start_plugin();
    assert_is_reported(node, &missed);
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
    node.world.lab.expect_links_soon(0, "the pod is gone");
}

fn a_plugin_killed_during_a_request_is_noticed(node: &mut Node) {
    let pod = counted_pod(node, "web").run(node).unwrap();
    let missed = std::thread::scope(|scope| {
        node.signal_plugin(Signal::STOP);
        let beside = pod.beside(node);
        let creation = scope.spawn(move || beside.create(&ContainerSpec::new("main")));
        eventually("containerd to wait for the plugin's answer", PATIENCE, || node.has_question().then_some(()));
        node.signal_plugin(Signal::KILL);
        creation.join().unwrap().unwrap()
    });
    pod.start(&missed).unwrap();
    assert!(pod.oci(&missed).get("hooks").is_none(), "NRI fails open");
    node.restart_plugin(&[]);
    assert_is_reported(node, &missed);
    let second = pod.add(&ContainerSpec::new("second")).unwrap();
    assert_counts(node, &pod, &second);
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
    assert_is_reported(node, &missed);
    assert_ne!(pod.status(&missed).state, EXITED, "it is not killed unless policy says so");
    let second = pod.add(&ContainerSpec::new("second")).unwrap();
    assert_counts(node, &pod, &second);
}

/// Asserts that the plugin reports a container that runs without hooks, and that it is listed as failed.
fn assert_is_reported(node: &Node, container: &str) {
    node.hear_plugin(container);
    let listed = eventually("the record of the missed container", Duration::from_secs(15), || {
        let all = node.world.lab.json(&["list", "containers"]);
        all.as_array().into_iter().flatten().find(|record| record["id"] == *container).cloned()
    });
    assert_eq!(listed["state"], "failed", "{listed:#}");
}

fn a_missed_container_is_killed_if_the_policy_says_so(node: &mut Node) {
    node.world.allow("on-missed = \"kill\"\n");
    let spec = counted_pod(node, "web");
    node.kill_plugin();
    let pod = spec.run(node).unwrap();
    let missed = pod.add(&ContainerSpec::new("main")).unwrap();
    let plain = PodSpec::new("plain").run(node).unwrap();
    let other = plain.add(&ContainerSpec::new("main")).unwrap();
    node.start_plugin();
    let status = eventually("the missed container to be killed", Duration::from_secs(15), || {
        Some(pod.status(&missed)).filter(|status| status.state == EXITED)
    });
    assert_eq!(status.exit_code, 128 + 9);
    assert_ne!(plain.status(&other).state, EXITED, "an unannotated container lives on");
    // Like the kubelet.
    let again = pod.add(&ContainerSpec::new("main").attempt(1)).unwrap();
    assert_counts(node, &pod, &again);
}
