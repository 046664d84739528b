//! What `install --containerd` and the packages set up on a node: the strict handler, and the plugin that containerd
//! starts itself.

use std::fs;

use rustix::process::Signal;

use crate::node::Node;
use crate::pod::{ContainerSpec, PodSpec};
use crate::pods::{assert_counts, counted_pod};
use crate::support::process::tool;

crate::cases![
    the_strict_handler_works_without_plugin_and_refuses_without_binary,
    install_enables_nri_and_uninstall_restores_the_file,
    containerd_starts_the_plugin_itself,
];

/// Runs one of our commands, which must succeed; does nothing without an installation.
fn run(node: &Node, args: &[&str]) {
    if let Some(ended) = node.ours(args) {
        assert!(ended.status.success(), "bpfman-hook {args:?}: {}{}", ended.stdout, ended.stderr);
    }
}

fn the_strict_handler_works_without_plugin_and_refuses_without_binary(node: &mut Node) {
    run(node, &["install", "--containerd", "--strict"]);
    node.restart_daemon();
    // Together with the plugin, which leaves the container alone: one hook, not two.
    let pod = counted_pod(node, "both").handler("bpfman-hook").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_eq!(pod.oci(&main)["hooks"]["createRuntime"].as_array().map(Vec::len), Some(1));
    assert_counts(node, &pod, &main);
    pod.remove().unwrap();
    // containerd drops a hanging plugin; the handler does not need it.
    node.signal_plugin(Signal::STOP);
    let pod = counted_pod(node, "hung").handler("bpfman-hook").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &pod, &main);
    pod.remove().unwrap();
    node.kill_plugin();
    let bad = PodSpec::new("bad").handler("bpfman-hook").ask("programs", "nonsense").run(node).unwrap();
    let error = bad.add(&ContainerSpec::new("main")).unwrap_err();
    assert!(error.contains("nonsense"), "{error}");
    bad.remove().unwrap();
    let plain = PodSpec::new("plain").handler("bpfman-hook").run(node).unwrap();
    plain.add(&ContainerSpec::new("main")).unwrap();
    plain.remove().unwrap();
    // Without the binary, no container of this handler starts.
    tool(node.inside("mv").args(["/usr/local/bin/bpfman-hook", "/usr/local/bin/away"]));
    let pod = counted_pod(node, "alone").handler("bpfman-hook").run(node).unwrap();
    let error = pod.add(&ContainerSpec::new("main")).unwrap_err();
    assert!(error.contains("/usr/local/bin/bpfman-hook"), "{error}");
    pod.remove().unwrap();
    // Without a plugin, no event reports that a pod is gone: the next run that checks releases what the pod owned.
    node.world.lab.ours(&["gc"]);
    node.world.lab.expect_links(0, "every pod is gone");
}

fn install_enables_nri_and_uninstall_restores_the_file(node: &mut Node) {
    let configuration = node.configuration();
    let text = fs::read_to_string(&configuration).unwrap();
    let before = text.replace("disable = false", "disable = true # for now");
    if node.has_plugin() {
        fs::write(&configuration, &before).unwrap();
    }
    run(node, &["install", "--containerd", "--strict"]);
    run(node, &["install", "--containerd", "--strict", "--check"]);
    node.restart_daemon();
    let waiting = node.synchronized();
    let pod = counted_pod(node, "strict").handler("bpfman-hook").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &pod, &main);
    // The plugin was installed before NRI was enabled, and reconnects.
    if waiting == 1 {
        node.wait_for_plugin(waiting);
    }
    let ordinary = counted_pod(node, "ordinary").run(node).unwrap();
    let other = ordinary.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &ordinary, &other);
    pod.remove().unwrap();
    ordinary.remove().unwrap();
    let ended = node.ours(&["uninstall", "--containerd"]).expect("there is an installation");
    assert!(!ended.status.success() && ended.stderr.contains("restart containerd"), "{}", ended.stderr);
    assert_eq!(fs::read_to_string(&configuration).unwrap(), before, "byte for byte");
    node.kill_plugin();
    node.stop_daemon(Signal::TERM);
    let base = configuration.with_file_name("bpfman-hook-base.json");
    run(node, &["uninstall", "--containerd"]);
    assert!(!base.exists() && !node.outside("/usr/local/bin/bpfman-hook").exists());
    assert_eq!(fs::read_to_string(&configuration).unwrap(), before, "byte for byte");
    fs::write(&configuration, &text).unwrap();
    node.start_daemon();
}

fn containerd_starts_the_plugin_itself(node: &mut Node) {
    node.kill_plugin();
    run(node, &["install", "--containerd"]);
    node.restart_daemon();
    let pod = counted_pod(node, "web").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &pod, &main);
}
