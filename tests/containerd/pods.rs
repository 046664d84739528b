//! What the plugin does for pods of every kind.

use std::process::Command;
use std::time::Duration;

use crate::node::Node;
use crate::pod::{ContainerSpec, Pod, PodSpec};
use crate::support::kernel;
use crate::support::process::{eventually, tool};

crate::cases![
    only_annotated_pods_get_hooks_and_programs,
    an_annotation_can_name_a_container,
    a_containers_own_annotation_takes_precedence,
    a_container_sees_the_map_of_its_pods_programs,
    a_pod_with_a_user_namespace_gets_a_token,
    a_shared_pid_namespace_changes_nothing,
    on_the_hosts_network_only_container_programs_are_allowed,
    an_init_container_runs_before_the_others,
];

/// A pod that requests the packet counter on its eth0.
pub fn counted_pod(node: &mut Node, name: &str) -> PodSpec {
    let image = node.world.signed("demo");
    PodSpec::new(name).ask("image", &image).ask("programs", "xdp:count_packets iface=eth0")
}

/// Sends packets to a pod, and asserts that its program has counted them.
pub fn assert_counts(node: &Node, pod: &Pod, container: &str) {
    let maps = node.world.map_ids(container, "packets");
    let sum = || maps.iter().map(|map| kernel::sum(*map)).sum::<u64>();
    let before = sum();
    node.knock(&pod.ip, 5);
    eventually("the packets to be counted", Duration::from_secs(5), || (sum() >= before + 5).then_some(()));
}

fn only_annotated_pods_get_hooks_and_programs(node: &mut Node) {
    let asks = counted_pod(node, "asks").ask("programs", "xdp:count_packets iface=eth0; cgroup_skb:count_egress");
    let asks = asks.run(node).unwrap();
    let plain = PodSpec::new("plain").annotate("example.org/owner", "net").run(node).unwrap();
    let counted = asks.add(&ContainerSpec::new("main")).unwrap();
    let left = plain.add(&ContainerSpec::new("main")).unwrap();
    node.world.lab.expect_links(2, "only one of the two pods requested programs, two of them");
    assert_counts(node, &asks, &counted);
    assert_eq!(asks.oci(&counted)["hooks"]["createRuntime"].as_array().map(Vec::len), Some(1));
    assert!(plain.oci(&left).get("hooks").is_none(), "{}", plain.oci(&left)["hooks"]);
    let owned = kernel::bpftool(&["link", "show"]).to_string();
    assert!(owned.contains("xdp"), "{owned}");
    let inside = format!("/proc/{}/ns/net", asks.init(&counted));
    let attached = tool(Command::new("nsenter").arg(format!("--net={inside}")).args(["bpftool", "-j", "net"]));
    assert!(attached.contains("eth0"), "{attached}");
    let other = format!("/proc/{}/ns/net", plain.init(&left));
    let attached = tool(Command::new("nsenter").arg(format!("--net={other}")).args(["bpftool", "-j", "net"]));
    assert!(!attached.contains("eth0"), "{attached}");
    asks.remove().unwrap();
    node.world.lab.expect_links_soon(0, "the pod is gone");
}

pub fn an_annotation_can_name_a_container(node: &mut Node) {
    let image = node.world.signed("demo");
    let pod = PodSpec::new("web")
        .annotate("main.hook.bpfman.io/image", &image)
        .annotate("main.hook.bpfman.io/programs", "xdp:count_packets iface=eth0");
    let pod = pod.run(node).unwrap();
    let sidecar = pod.add(&ContainerSpec::new("sidecar")).unwrap();
    node.world.lab.expect_links(0, "the annotation does not apply to the sidecar");
    assert!(pod.oci(&sidecar).get("hooks").is_none());
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    node.world.lab.expect_links(1, "the annotation applies to main");
    assert_counts(node, &pod, &main);
}

fn a_containers_own_annotation_takes_precedence(node: &mut Node) {
    let image = node.world.signed("demo");
    let pod = PodSpec::new("web").ask("image", &image).ask("programs", "cgroup_skb:count_egress");
    let pod = pod.run(node).unwrap();
    let main = ContainerSpec::new("main").ask("programs", "xdp:count_packets iface=eth0");
    let main = pod.add(&main).unwrap();
    assert_counts(node, &pod, &main);
    node.world.lab.expect_links(1, "only the container's own annotation counts");
}

fn a_container_sees_the_map_of_its_pods_programs(node: &mut Node) {
    let pod = counted_pod(node, "shown")
        .ask("programs", "xdp:count_packets iface=eth0; cgroup_skb:count_egress")
        .ask("maps", "packets");
    let pod = pod.run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    let other = pod.add(&ContainerSpec::new("other")).unwrap();
    let mut maps = [node.world.map_ids(&main, "packets"), node.world.map_ids(&other, "packets")].concat();
    maps.sort();
    maps.dedup();
    assert_eq!(maps.len(), 1, "both containers and their pod have one map");
    let arrived = || kernel::slot(maps[0], 0);
    let before = arrived();
    node.knock(&pod.ip, 5);
    eventually("the packets to be counted", Duration::from_secs(5), || (arrived() >= before + 5).then_some(()));
    for container in [&main, &other] {
        let (status, said) = pod.exec(container, &["ls", "/sys/fs/bpf/packets"]);
        assert_eq!(status, 0, "{said}");
    }
    node.world.lab.expect_links(3, "one program on eth0, one on the cgroup of each");
}

pub fn a_pod_with_a_user_namespace_gets_a_token(node: &mut Node) {
    node.world.allow("host-scope = true");
    let pod = counted_pod(node, "userns").ask("delegate", "sockets").userns();
    let pod = pod.run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main").with_binary()).unwrap();
    let (_, map) = pod.exec(&main, &["cat", "/proc/self/uid_map"]);
    assert!(map.contains("1000000"), "{map}");
    let (status, said) = pod.exec(&main, &["/bpfman-hook", "token", "probe"]);
    assert_eq!(status, 0, "{said}");
    assert_counts(node, &pod, &main);
}

fn a_shared_pid_namespace_changes_nothing(node: &mut Node) {
    let pod = counted_pod(node, "shared").shared_pid();
    let pod = pod.run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    let other = pod.add(&ContainerSpec::new("other")).unwrap();
    assert_counts(node, &pod, &main);
    let (_, seen) = pod.exec(&other, &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr -d '\\0' 2>/dev/null; echo /proc/[0-9]*"]);
    assert!(seen.matches("/proc/").count() > 3, "{seen}");
    pod.take(&main).unwrap();
    assert_counts(node, &pod, &other);
}

fn on_the_hosts_network_only_container_programs_are_allowed(node: &mut Node) {
    let image = node.world.signed("demo");
    let pod = PodSpec::new("host").host_network().ask("image", &image);
    let refused = pod.clone().ask("programs", "xdp:count_packets iface=lo").run(node).unwrap();
    let error = refused.add(&ContainerSpec::new("main")).unwrap_err();
    assert!(error.contains("on the host's network"), "{error}");
    refused.remove().unwrap();
    let pod = pod.ask("programs", "cgroup_skb:count_egress").run(node).unwrap();
    pod.add(&ContainerSpec::new("main")).unwrap();
    node.world.lab.expect_links(1, "the container's cgroup is its own");
}

fn an_init_container_runs_before_the_others(node: &mut Node) {
    let pod = counted_pod(node, "steps").run(node).unwrap();
    for name in ["first", "second"] {
        let init = pod.add(&ContainerSpec::new(name).script("exit 7")).unwrap();
        eventually("the init container to end", Duration::from_secs(20), || {
            let status = pod.status(&init);
            (status.state == crate::cri::EXITED).then(|| assert_eq!(status.exit_code, 7))
        });
        pod.take(&init).unwrap();
    }
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &pod, &main);
    node.world.lab.expect_links(1, "one program on eth0");
}
