//! A node that boots, and one on which the plugin is replaced: with the pre-installed plugin the node is never without
//! a plugin.

use std::time::Duration;

use serde_json::Value;

use crate::cri::EXITED;
use crate::node::Node;
use crate::pod::{ContainerSpec, PodSpec};
use crate::pods::{assert_counts, counted_pod};
use crate::support::kernel;
use crate::support::process::eventually;

crate::cases![
    a_booting_node_starts_no_annotated_pod_without_hooks,
    a_refused_pod_stays_refused_while_the_plugin_is_replaced,
    a_missed_pod_without_a_matching_rule_is_recorded,
    check_reports_whether_the_plugin_is_connected,
    removing_leaves_nothing_on_the_node,
];

const PATIENCE: Duration = Duration::from_secs(15);

/// Installs for containerd, so that containerd starts the plugin itself.
fn install(node: &Node) {
    if let Some(ended) = node.ours(&["install", "--containerd", "--no-docs"]) {
        assert!(ended.status.success(), "install: {}{}", ended.stdout, ended.stderr);
    }
}

/// The failed requests of pods with this name, as `list containers` shows them.
fn failures(node: &Node, pod: &str) -> Vec<Value> {
    let Value::Array(all) = node.world.lab.json(&["list", "containers"]) else { panic!("no list") };
    all.into_iter().filter(|record| record["pod"] == pod && record["state"] == "failed").collect()
}

/// Waits until this number of policy refusals has been counted.
fn wait_for_refusals(node: &Node, number: usize) {
    let line = format!("bpfman_hook_refusals_total{{reason=\"policy\"}} {number}\n");
    eventually(&format!("{number} refusals to be counted"), PATIENCE, || {
        node.world.lab.ours(&["metrics"]).contains(&line).then_some(())
    });
}

/// A policy with a rule for a namespace other than the pods'.
fn for_others(node: &Node, more: &str) -> String {
    format!("{}[[container]]\nmatch = {{ namespace = \"elsewhere\" }}\nprograms = [\"xdp\"]\n{more}", node.world.image_rule())
}

pub fn a_booting_node_starts_no_annotated_pod_without_hooks(node: &mut Node) {
    install(node);
    let spec = counted_pod(node, "web");
    spec.run(node).unwrap().add(&ContainerSpec::new("main")).unwrap();
    node.crash();
    // Like the kubelet: immediately, before a DaemonSet's plugin runs.
    node.start_daemon();
    let pods: Vec<_> = (1..=3)
        .map(|number| {
            let pod = spec.clone().named(&format!("web-{number}")).run(node).unwrap();
            let main = pod.add(&ContainerSpec::new("main")).unwrap();
            (pod, main)
        })
        .collect();
    node.start_plugin();
    for (pod, main) in &pods {
        assert_counts(node, pod, main);
    }
    let (pod, _) = &pods[0];
    let beside = pod.add(&ContainerSpec::new("beside")).unwrap();
    assert_eq!(pod.oci(&beside)["hooks"]["createRuntime"].as_array().map(Vec::len), Some(1), "two plugins, one hook");
    assert!(failures(node, "web-1").is_empty() && failures(node, "web-3").is_empty());
}

fn a_refused_pod_stays_refused_while_the_plugin_is_replaced(node: &mut Node) {
    install(node);
    let image = node.world.signed("demo");
    node.world.lab.policy(&for_others(node, ""));
    node.kill_plugin();
    node.restart_daemon();
    node.start_plugin();
    let pod = PodSpec::new("web").ask("image", &image).ask("programs", "xdp:count_packets iface=eth0").run(node).unwrap();
    for attempt in 0..4 {
        // A rollout: the old plugin stops, the kubelet retries, the new plugin starts.
        match attempt {
            1 => node.kill_plugin(),
            3 => node.start_plugin(),
            _ => {}
        }
        let error = pod.create(&ContainerSpec::new("main").attempt(attempt)).unwrap_err();
        assert!(error.contains("bpfman-hook: no container rule"), "attempt {attempt}: {error}");
    }
    wait_for_refusals(node, 4);
    let failures = failures(node, "web");
    assert_eq!(failures.len(), 1, "one record for all retries of the kubelet: {failures:#?}");
    assert!(failures[0]["reason"].as_str().unwrap().contains("no container rule"), "{failures:#?}");
    assert_eq!(failures[0]["container"], "main");
    let events = node.world.lab.ours(&["events", "--filter", "type=refused", "-o", "json"]);
    assert_eq!(events.lines().filter(|line| line.contains("\"web\"")).count(), 4, "{events}");
}

fn a_missed_pod_without_a_matching_rule_is_recorded(node: &mut Node) {
    let image = node.world.signed("demo");
    node.world.lab.policy(&for_others(node, ""));
    node.restart_plugin(&[]);
    let pod = PodSpec::new("web").ask("image", &image).ask("programs", "xdp:count_packets iface=eth0").run(node).unwrap();
    let error = pod.create(&ContainerSpec::new("main")).unwrap_err();
    assert!(error.contains("no container rule"), "{error}");
    node.kill_plugin();
    let missed = pod.add(&ContainerSpec::new("main").attempt(1)).unwrap();
    node.start_plugin();
    let recorded = |words: &str| {
        eventually(&format!("the container to be recorded: {words}"), PATIENCE, || {
            failures(node, "web")
                .iter()
                .any(|record| {
                    record["id"] == missed.as_str() && record["reason"].as_str().is_some_and(|reason| reason.contains(words))
                })
                .then_some(())
        });
    };
    recorded("started it without bpfman-hook");
    assert!(node.world.lab.ours(&["metrics"]).contains("bpfman_hook_missed_total{remedy=\"reported\"} 1"));
    // A rule that matches other containers gives them nothing, and decides what happens to a missed container.
    node.world.lab.policy(&for_others(node, "[[container]]\non-missed = \"kill\"\n"));
    node.restart_plugin(&[]);
    eventually("the container to be killed", PATIENCE, || (pod.status(&missed).state == EXITED).then_some(()));
}

fn check_reports_whether_the_plugin_is_connected(node: &mut Node) {
    let check = |node: &Node| node.ours(&["nri", "--check"]).expect("there is a plugin").status.success();
    let wait = |node: &Node, connected: bool| {
        eventually("the plugin to say what it is", PATIENCE, || (check(node) == connected).then_some(()));
        let line = format!("bpfman_hook_plugin_connected{{start=\"external\"}} {}\n", u8::from(connected));
        let page = node.world.lab.ours(&["metrics"]);
        assert!(page.contains(&line), "{page}");
    };
    wait(node, true);
    node.stop_daemon(rustix::process::Signal::TERM);
    wait(node, false);
    node.start_daemon();
    wait(node, true);
}

fn removing_leaves_nothing_on_the_node(node: &mut Node) {
    install(node);
    let pod = counted_pod(node, "web").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    node.restart_daemon();
    // While programs are loaded, `uninstall` removes everything that blocks new containers, and keeps what running ones
    // need.
    node.kill_plugin();
    let program = node.outside("/usr/local/bin/bpfman-hook");
    let refused = node.ours(&["uninstall"]).expect("there is an installation");
    assert!(!refused.status.success() && refused.stderr.contains("still have programs"), "{}", refused.stderr);
    assert!(program.exists() && !node.outside("/opt/nri/plugins/10-bpfman-hook").exists());
    let mut pod = pod;
    pod.reconnect(node);
    pod.take(&main).unwrap();
    pod.remove().unwrap();
    node.world.lab.ours(&["gc"]);
    let done = node.ours(&["uninstall"]).expect("there is an installation");
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    eventually("the plugin that containerd started to end", PATIENCE, || {
        let ours = kernel::processes_of(&node.world.lab.root());
        (!ours.iter().any(|(_, arguments)| arguments.contains("--preinstalled-as"))).then_some(())
    });
    // Without a restart of containerd: an annotated pod starts without hooks, since no plugin runs any more.
    let plain = counted_pod(node, "after").run(node).unwrap();
    plain.add(&ContainerSpec::new("main")).unwrap();
    plain.remove().unwrap();
    for directory in ["etc", "opt", "local"] {
        let left = crate::support::process::tool(
            std::process::Command::new("find").arg(node.path(directory)).args(["-name", "*bpfman*", "!", "-type", "c"]),
        );
        assert_eq!(left, "", "{directory}");
    }
    node.restart_daemon();
}
