//! Containers that were started without our hooks: NRI fails open, and the next Synchronize finds them.

use std::time::Duration;

use serde_json::Value;

use crate::cri::EXITED;
use crate::node::Node;
use crate::pod::ContainerSpec;
use crate::pods::{assert_counts, counted_pod};
use crate::support::process::eventually;

crate::cases![a_missed_container_is_listed_once_until_it_ends, a_missed_container_is_killed_if_the_policy_says_so];

const PATIENCE: Duration = Duration::from_secs(15);

/// The recorded failures of one container.
pub fn failures(node: &Node, container: &str) -> Vec<Value> {
    let Value::Array(all) = node.world.lab.json(&["list", "containers"]) else { panic!("no list") };
    all.into_iter().filter(|record| record["id"] == *container && record["state"] == "failed").collect()
}

/// Waits for the only failure of a container whose reason contains these words.
pub fn wait_for_failure(node: &Node, container: &str, words: &str) {
    eventually(&format!("container {container} to be listed as {words:?}"), PATIENCE, || {
        let found = failures(node, container);
        assert!(found.len() < 2, "{found:#?}");
        found.iter().any(|record| record["reason"].as_str().is_some_and(|reason| reason.contains(words))).then_some(())
    });
}

fn a_missed_container_is_listed_once_until_it_ends(node: &mut Node) {
    let spec = counted_pod(node, "web");
    let pod = spec.run(node).unwrap();
    node.kill_plugin();
    let first = pod.add(&ContainerSpec::new("first")).unwrap();
    node.start_plugin();
    wait_for_failure(node, &first, "started it without bpfman-hook");
    // The next Synchronize finds this container again, and another one.
    node.kill_plugin();
    let second = pod.add(&ContainerSpec::new("second")).unwrap();
    node.start_plugin();
    wait_for_failure(node, &second, "delete its pod");
    assert_eq!(failures(node, &first).len(), 1);
    assert!(!node.plugin_said().contains(&first), "said once: {}", node.plugin_said());
    let metrics = node.world.lab.ours(&["metrics"]);
    assert!(metrics.contains("bpfman_hook_missed_total{remedy=\"reported\"} 2"), "{metrics}");
    // A container that is created now is not missed, and the record of a missed one is removed with its init.
    pod.take(&first).unwrap();
    let again = pod.add(&ContainerSpec::new("first").attempt(1)).unwrap();
    assert_counts(node, &pod, &again);
    eventually("the record of a container that is gone to go", PATIENCE, || failures(node, &first).is_empty().then_some(()));
    assert_eq!(failures(node, &second).len(), 1, "it runs still");
    pod.remove().unwrap();
    eventually("the record of the pod's last one to go", PATIENCE, || failures(node, &second).is_empty().then_some(()));
}

fn a_missed_container_is_killed_if_the_policy_says_so(node: &mut Node) {
    let spec = counted_pod(node, "web");
    node.world.allow("on-missed = \"kill\"");
    let (pod, plain) = (spec.run(node).unwrap(), crate::pod::PodSpec::new("plain").run(node).unwrap());
    node.kill_plugin();
    let missed = pod.add(&ContainerSpec::new("main")).unwrap();
    let other = plain.add(&ContainerSpec::new("main")).unwrap();
    node.start_plugin();
    eventually("the container to be killed", PATIENCE, || {
        let status = pod.status(&missed);
        (status.state == EXITED).then(|| assert_eq!(status.exit_code, 137))
    });
    wait_for_failure(node, &missed, "killed, as the policy demands");
    assert_ne!(plain.status(&other).state, EXITED, "it asked for nothing");
    // Like the kubelet.
    let again = pod.add(&ContainerSpec::new("main").attempt(1)).unwrap();
    assert_counts(node, &pod, &again);
}
