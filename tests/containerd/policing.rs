//! Policing and the guard with the NRI plugin. A kernel that calls no LSM programs refuses both with the sentence that says
//! what is missing; tests/vm/containers.sh runs the same tests on one that does.

use std::path::PathBuf;
use std::sync::OnceLock;

use bpfman_hook::kernel::{Feature, Support, features};
use serde_json::Value;

use crate::node::Node;
use crate::pod::{ContainerSpec, PodSpec};
use crate::support::bpf_proxy::compiled;
use crate::support::process::ended;

crate::cases![pods_are_policed_without_annotations];

#[test]
fn the_guard_lets_containers_beside_a_token_have_capabilities() {
    let case = crate::Case { name: "guard", setup: crate::node::USUAL, run: capabilities_beside_a_token };
    case.check();
}

/// Why this kernel calls no LSM programs; None if it does.
fn missing() -> Option<String> {
    match features::probe(Feature::Lsm) {
        Support::Yes => None,
        Support::No(why) | Support::Unknown(why) => Some(why),
    }
}

/// A container with tests/e2e/bpf_client.c.
fn with_client(name: &str) -> ContainerSpec {
    static CLIENT: OnceLock<PathBuf> = OnceLock::new();
    ContainerSpec::new(name).mount(CLIENT.get_or_init(|| compiled("bpf_client")), "/client")
}

fn pods_are_policed_without_annotations(node: &mut Node) {
    let matched = "match = { namespace = \"shop\", container = \"main\", labels = { tier = \"back\" } }";
    let police = "police = { mode = \"enforce\", cmds = [\"map_create\"], maps = [\"array\"] }";
    node.world.lab.policy(&format!("[[container]]\n{matched}\n{police}\n"));
    node.restart_plugin(&[]);
    let pod = PodSpec::new("web").label("tier", "back").run(node).unwrap();
    let side = pod.add(&with_client("side")).unwrap();
    assert_eq!(pod.exec(&side, &["/client", "map:1"]).1, "map:1 0 0\n", "no rule polices it");
    if let Some(why) = missing() {
        let main = pod.create(&with_client("main")).unwrap();
        let error = pod.start(&main).unwrap_err();
        let sentence = "police the container's bpf(2) calls: judge each call: this kernel has no LSM programs";
        assert!(error.contains(sentence) && error.contains(&why), "{error}");
        println!("refused as it should be: {error}");
        return;
    }
    let main = pod.add(&with_client("main")).unwrap();
    assert_eq!(pod.exec(&main, &["/client", "map:2", "map:1"]).1, "map:2 0 0\nmap:1 -1 1\n");
    let lab = &node.world.lab;
    lab.ours(&["gc"]);
    let events = lab.ours(&["events", "-F", "type=policed", "-o", "json"]);
    let event: Value = serde_json::from_str(events.lines().next().unwrap_or_default()).unwrap();
    for (key, value) in [("namespace", "shop"), ("pod", "web"), ("container_name", "main"), ("container", &main)] {
        assert_eq!(event[key], value, "{event:#}");
    }
    assert_eq!(event["reason"], "map type hash: refused, once");
    let page = lab.ours(&["metrics"]);
    let sample = page.lines().find(|line| line.starts_with("bpfman_hook_policed_calls_total{")).unwrap();
    assert!(sample.contains("namespace=\"shop\",pod=\"web\",container=\"main\",mode=\"enforce\""), "{sample}");
}

fn capabilities_beside_a_token(node: &mut Node) {
    let rule = "[[container]]\ndelegate = [\"maps\", \"probes\"]\n";
    node.world.lab.policy(rule);
    let loaded = ended(&mut node.world.lab.command(&["guard", "load"]));
    if let Some(why) = missing() {
        let sentence = "put the guard in force: judge what is loaded with a token: this kernel has no LSM programs";
        assert!(!loaded.status.success() && loaded.stderr.contains(sentence) && loaded.stderr.contains(&why), "{loaded:?}");
        println!("no guard, as it should be: {}", loaded.stderr);
        return;
    }
    assert!(loaded.status.success(), "{}", loaded.stderr);
    node.restart_plugin(&[]);
    // The plugin admits what is container scope with the guard, and the hook both containers.
    let pod = PodSpec::new("web").userns().annotate("main.hook.bpfman.io/delegate", "probes").run(node).unwrap();
    let side = pod.add(&with_client("side").capability("PERFMON")).unwrap();
    let main = pod.add(&with_client("main").capability("SYS_ADMIN")).unwrap();
    let (_, said) = pod.exec(&main, &["/client", "token:/sys/fs/bpf", "prog:1:0", "helper:1:113"]);
    assert_eq!(said, "token:/sys/fs/bpf 0 0\nprog:1:0 0 0\nhelper:1:113 -1 1\n");
    // The other one finds the token's bpffs by the process of the first one, if at all; its capability is of no use.
    assert!(!pod.exec(&side, &["cat", "/proc/mounts"]).1.contains("delegate_cmds"));
    pod.remove().unwrap();
    node.world.lab.ours(&["guard", "unload"]);
}
