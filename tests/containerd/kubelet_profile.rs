//! Pods that load programs themselves, with the `Localhost` profile of `install --proxy`: containerd 2.1 and 1.7 have no
//! NRI that could write a seccomp profile.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cri::EXITED;
use crate::node::{Node, Setup};
use crate::pod::{ContainerSpec, Pod, PodSpec};
use crate::support::bpf_proxy::{client, listen};
use crate::support::kernel::bpftool;
use crate::support::process::{eventually, tool};

crate::cases![a_pod_without_capabilities_loads_programs_itself];

crate::cases!(
    ON_1_7, Setup { containerd: 1, runtime: "runc" }, on_containerd_1_7:
    a_pod_without_capabilities_loads_programs_itself,
);

/// What the client says about a step: result and errno.
const OK: &str = "0 0";

/// Installs for the node's kubelet, and returns the profile. Without an installation there is none.
fn profile(node: &Node) -> PathBuf {
    let root = node.path("kubelet");
    fs::create_dir_all(&root).unwrap();
    let place = root.display().to_string();
    for check in [&[][..], &["--check"]] {
        let install = ["install", "--proxy", "--no-docs", "--no-timer", "--kubelet-root", &place];
        if let Some(ended) = node.ours(&[&install[..], check].concat()) {
            let profile = ended.stdout.lines().filter(|line| line.contains("seccomp/bpfman-hook.json")).count();
            assert_eq!(profile, 1, "{}{}", ended.stdout, ended.stderr);
        }
    }
    root.join("seccomp/bpfman-hook.json")
}

/// The client where a user of a container can execute it.
fn public_client(node: &Node) -> PathBuf {
    let path = node.path("client");
    fs::copy(client(), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn container(name: &str, profile: &Path, client: &Path) -> ContainerSpec {
    ContainerSpec::new(name).unprivileged().seccomp(profile).mount(client, "/client")
}

/// Runs steps of the client in a container.
fn steps(pod: &Pod, container: &str, expected: &[(&str, &str)]) {
    let words: Vec<_> = std::iter::once("/client").chain(expected.iter().map(|(step, _)| *step)).collect();
    let (_, said) = pod.exec(container, &words);
    for (step, answer) in expected {
        let line = said.lines().find_map(|line| line.strip_prefix(step)).map(str::trim);
        assert_eq!(line, Some(*answer), "{step}: {said}");
    }
}

fn xdp_links() -> usize {
    let links = bpftool(&["link", "show"]);
    links.as_array().into_iter().flatten().filter(|link| link["type"] == "xdp").count()
}

fn a_pod_without_capabilities_loads_programs_itself(node: &mut Node) {
    node.world.lab.policy("[[container]]\nmatch = { namespace = \"shop\" }\nproxy = [\"sockets\"]\n");
    node.kill_plugin();
    node.start_plugin();
    listen(&node.world.lab);
    let (profile, client) = (profile(node), public_client(node));
    let spec = PodSpec::new("web").annotate("main.hook.bpfman.io/delegate", "sockets");
    let web = spec.annotate("main.hook.bpfman.io/delegate-via", "proxy").run(node).unwrap();

    // Without the profile the container does not start, and the message says which one it needs.
    let bare = web.add(&ContainerSpec::new("main").unprivileged()).unwrap_err();
    assert!(bare.contains("needs a seccomp profile with bpfman-hook's listener"), "{bare}");

    let main = web.add(&container("main", &profile, &client).attempt(1).script("/client keep")).unwrap();
    // By the container's first process, on its own interface: the node's and the machine's have no program.
    eventually("the workload's link", Duration::from_secs(20), || (xdp_links() == 1).then_some(()));
    for host in [tool(node.inside("ip").args(["-d", "link"])), tool(std::process::Command::new("ip").args(["-d", "link"]))] {
        assert!(!host.contains("prog/xdp"), "{host}");
    }
    let said = web.oci(&main);
    assert_eq!(said["process"]["capabilities"]["bounding"].as_array().map_or(0, Vec::len), 0, "{said:#}");
    // An exec has a listener of its own. What reaches beyond the container is refused.
    steps(&web, &main, &[("map", OK), ("prog", OK), ("readkernel", "-1 13"), ("kprobe", "-1 1"), ("token", "-1 1")]);
    // The rest of the profile is containerd's: a process of the container cannot mount.
    let record = node.world.inspect(&main);
    let loaded = record[0]["proxy"]["objects"].to_string();
    assert!(loaded.contains("\"xdp\""), "{record:#}");
    // A container of the pod that did not ask is not served.
    let side = web.add(&container("side", &profile, &client)).unwrap();
    steps(&web, &side, &[("map", "-1 1")]);
    web.take(&main).unwrap();
    eventually("the end of the workload's link", Duration::from_secs(10), || (xdp_links() == 0).then_some(()));
    // A restart is served like the first start.
    let again = web.add(&container("main", &profile, &client).attempt(2)).unwrap();
    steps(&web, &again, &[("map", OK), ("xdp", OK)]);
    assert_ne!(web.status(&again).state, EXITED);
    web.remove().unwrap();
}
