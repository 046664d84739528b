//! Pods with their own user namespace and a BPF token: any process in it that has the capabilities could use the token.

use std::time::Duration;

use crate::cri::EXITED;
use crate::missed::{failures, wait_for_failure};
use crate::node::Node;
use crate::pod::{ContainerSpec, Pod, PodSpec};
use crate::support::process::eventually;

crate::cases![
    containers_of_a_pod_with_a_token_cannot_have_the_capabilities,
    unchecked_containers_are_recorded_and_killed_if_the_policy_says_so,
    without_the_plugin_a_pods_user_namespace_is_host_scope,
];

/// Adds to the container rule what a case needs, and makes the plugin load it.
fn allow(node: &mut Node, more: &str) {
    let rule = format!("[[container]]\nprograms = [\"xdp\"]\ndelegate = [\"maps\"]\n{more}\n");
    node.world.lab.policy(&format!("{}{rule}", node.world.image_rule()));
    node.kill_plugin();
    node.start_plugin();
}

/// A pod whose container `main` requests a token.
fn pod(name: &str) -> PodSpec {
    PodSpec::new(name).userns().annotate("main.hook.bpfman.io/delegate", "maps")
}

fn capable(name: &str, capability: &str) -> ContainerSpec {
    ContainerSpec::new(name).capability(capability)
}

fn has_token(pod: &Pod, container: &str) -> bool {
    pod.exec(container, &["cat", "/proc/mounts"]).1.contains("delegate_cmds")
}

fn containers_of_a_pod_with_a_token_cannot_have_the_capabilities(node: &mut Node) {
    allow(node, "");
    let web = pod("web").run(node).unwrap();
    for (attempt, capability) in ["PERFMON", "SYS_ADMIN"].into_iter().enumerate() {
        let attempt = u32::try_from(attempt).unwrap();
        // Before the token exists, and after.
        let early = web.create(&capable("early", capability).attempt(attempt)).unwrap();
        let error = web.start(&early).unwrap_err();
        assert!(error.contains(&format!("can have CAP_{capability}")) && error.contains("BPF token"), "{error}");
        web.take(&early).unwrap();
    }
    let plain = web.add(&ContainerSpec::new("plain")).unwrap();
    let main = web.add(&ContainerSpec::new("main")).unwrap();
    assert!(has_token(&web, &main) && !has_token(&web, &plain));
    let late = web.create(&capable("late", "PERFMON")).unwrap();
    let error = web.start(&late).unwrap_err();
    assert!(error.contains("can have CAP_PERFMON"), "{error}");
    // The requesting container itself, and one that starts after the plugin's restart.
    node.kill_plugin();
    node.start_plugin();
    let later = web.create(&capable("later", "SYS_ADMIN")).unwrap();
    let error = web.start(&later).unwrap_err();
    assert!(error.contains("can have CAP_SYS_ADMIN"), "{error}");
    web.take(&main).unwrap();
    let again = web.add(&ContainerSpec::new("main").attempt(1)).unwrap();
    assert!(has_token(&web, &again), "the plugin knows from Synchronize that all were checked");
    web.remove().unwrap();
    // No container is refused because of a token that the policy gives at host scope, or that was not requested.
    let other = PodSpec::new("other").userns().run(node).unwrap();
    other.add(&capable("main", "PERFMON")).unwrap();
    allow(node, "host-scope = true");
    let open = pod("open").run(node).unwrap();
    open.add(&capable("side", "PERFMON")).unwrap();
    let main = open.add(&ContainerSpec::new("main")).unwrap();
    assert!(has_token(&open, &main));
    // Now one container has not been checked.
    allow(node, "");
    open.take(&main).unwrap();
    let error = open.add(&ContainerSpec::new("main").attempt(1)).unwrap_err();
    assert!(error.contains("did not check it"), "{error}");
}

fn unchecked_containers_are_recorded_and_killed_if_the_policy_says_so(node: &mut Node) {
    allow(node, "");
    let web = pod("web").run(node).unwrap();
    let main = web.add(&ContainerSpec::new("main")).unwrap();
    assert!(has_token(&web, &main));
    node.kill_plugin();
    let missed = web.add(&capable("missed", "PERFMON")).unwrap();
    node.start_plugin();
    wait_for_failure(node, &missed, "its capabilities were not checked");
    assert_ne!(web.status(&missed).state, EXITED);
    web.take(&main).unwrap();
    let error = web.add(&ContainerSpec::new("main").attempt(1)).unwrap_err();
    assert!(error.contains("did not check it"), "{error}");
    web.remove().unwrap();

    allow(node, "on-missed = \"kill\"");
    let web = pod("web").run(node).unwrap();
    let main = web.add(&ContainerSpec::new("main")).unwrap();
    node.kill_plugin();
    let missed = web.add(&capable("missed", "PERFMON")).unwrap();
    node.start_plugin();
    eventually("the container to be killed", Duration::from_secs(15), || {
        let status = web.status(&missed);
        (status.state == EXITED).then(|| assert_eq!(status.exit_code, 137))
    });
    wait_for_failure(node, &missed, "killed, as the policy demands");
    assert_eq!(failures(node, &main).len(), 0);
    // Like the kubelet's restart, while the runtime still lists the killed container.
    web.take(&main).unwrap();
    let again = web.add(&ContainerSpec::new("main").attempt(1)).unwrap();
    assert!(has_token(&web, &again));
    let error = web.add(&capable("missed", "PERFMON").attempt(1)).unwrap_err();
    assert!(error.contains("can have CAP_PERFMON"), "{error}");
}

fn without_the_plugin_a_pods_user_namespace_is_host_scope(node: &mut Node) {
    allow(node, "");
    if let Some(ended) = node.ours(&["install", "--containerd", "--strict"]) {
        assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
    }
    node.restart_daemon();
    node.kill_plugin();
    let web = pod("web").handler("bpfman-hook").run(node).unwrap();
    let error = web.add(&ContainerSpec::new("main")).unwrap_err();
    assert!(error.contains("shares its pod's user namespace") && error.contains("host-scope = true"), "{error}");
    web.remove().unwrap();
    node.world.lab.policy("[[container]]\ndelegate = [\"maps\"]\nhost-scope = true\n");
    let web = pod("web").handler("bpfman-hook").run(node).unwrap();
    let main = web.add(&ContainerSpec::new("main")).unwrap();
    assert!(has_token(&web, &main));
}
