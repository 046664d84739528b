//! Invalid or forbidden requests: the container is not created, and the pod's events show why.

use crate::node::Node;
use crate::pod::{ContainerSpec, PodSpec};

crate::cases![
    a_bad_annotation_is_refused_when_the_container_is_created,
    the_policy_refuses_when_the_container_is_created,
    the_policy_matches_properties_of_the_pod,
    problems_only_the_hook_can_see_are_refused_at_the_start,
];

pub fn a_bad_annotation_is_refused_when_the_container_is_created(node: &mut Node) {
    for (key, value, words) in [
        ("programs", "xpd:count_packets", &["hook.bpfman.io/programs", "xpd"][..]),
        ("prograns", "xdp:count_packets", &["prograns", "programs"]),
        ("bpffs-path", "/etc", &["bpffs-path", "/etc"]),
    ] {
        let pod = PodSpec::new("bad").ask("image", "registry.example/x").ask(key, value).run(node).unwrap();
        let error = pod.create(&ContainerSpec::new("main")).unwrap_err();
        assert!(error.contains("bpfman-hook: "), "{error}");
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
        pod.remove().unwrap();
    }
}

pub fn the_policy_refuses_when_the_container_is_created(node: &mut Node) {
    let image = node.world.signed("demo");
    for (pod, words) in [
        (PodSpec::new("unknown").ask("image", "registry.example/evil:v1").ask("programs", "xdp:x"), "registry.example/evil"),
        (PodSpec::new("kind").ask("image", &image).ask("programs", "kprobe:x:do_exit"), "kprobe"),
    ] {
        let pod = pod.run(node).unwrap();
        let error = pod.create(&ContainerSpec::new("main")).unwrap_err();
        assert!(error.contains("bpfman-hook: ") && error.contains(words), "{error}");
        pod.remove().unwrap();
    }
}

fn the_policy_matches_properties_of_the_pod(node: &mut Node) {
    let image = node.world.signed("demo");
    let rule = "[[container]]\nmatch = { engine = \"containerd\", namespace = \"shop\", labels = { tier = \"front\" } }\nprograms = [\"xdp\"]\n";
    node.world.lab.policy(&format!("{}{rule}", node.world.image_rule()));
    // The restart makes sure that the plugin reads the new policy.
    node.kill_plugin();
    node.start_plugin();
    let spec = PodSpec::new("web").ask("image", &image).ask("programs", "xdp:count_packets iface=eth0");
    let back = spec.clone().label("tier", "back").run(node).unwrap();
    let error = back.add(&ContainerSpec::new("main")).unwrap_err();
    assert!(error.contains("bpfman-hook: "), "{error}");
    back.remove().unwrap();
    let front = spec.label("tier", "front").run(node).unwrap();
    front.add(&ContainerSpec::new("main")).unwrap();
    node.world.lab.expect_links(1, "the pod that the rule is for");
}

fn problems_only_the_hook_can_see_are_refused_at_the_start(node: &mut Node) {
    let unsigned = {
        node.world.unsigned("counter");
        node.world.images.reference("counter")
    };
    let signed = node.world.signed("demo");
    for (pod, words) in [
        (PodSpec::new("unsigned").ask("image", &unsigned).ask("programs", "xdp:count"), "sign"),
        (PodSpec::new("absent").ask("image", &signed).ask("programs", "xdp:nobody"), "nobody"),
        (PodSpec::new("iface").ask("image", &signed).ask("programs", "xdp:count_packets iface=eth7"), "eth7"),
    ] {
        let pod = pod.run(node).unwrap();
        let main = pod.create(&ContainerSpec::new("main")).unwrap();
        let error = pod.start(&main).unwrap_err();
        assert!(error.contains(words), "{words:?} is not in: {error}");
        node.world.lab.expect_links(0, "nothing of a refused container is left");
        pod.remove().unwrap();
    }
}
