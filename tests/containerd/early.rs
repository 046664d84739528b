//! Work that is done before a container is created: prefetching images during or before the sandbox's creation, and
//! facts that only the plugin knows.

use std::fs::{self, File};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness;
use crate::node::Node;
use crate::pod::{ContainerSpec, PodSpec};
use crate::registry::{Behaviour, Registry, Reply};
use crate::support::kernel;
use crate::support::process::eventually;

crate::cases![
    the_hook_joins_a_fetch_that_the_sandbox_started,
    pre_pulled_images_are_cached_before_any_pod,
    labels_narrow_a_rule,
];

const PATIENCE: Duration = Duration::from_secs(15);

fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/signatures").join(name)
}

/// Runs a closure in a network namespace.
fn within<T: Send>(netns: &File, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(netns.as_fd(), kind)
                .unwrap_or_else(|e| harness!("enter the node's network namespace: {e}"));
            act()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A registry in the node's network; it must be stopped from there as well.
struct Remote {
    registry: Option<Registry>,
    netns: File,
}

impl Deref for Remote {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        self.registry.as_ref().unwrap()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let registry = self.registry.take();
        within(&self.netns, || drop(registry));
    }
}

/// A registry in the node's network that withholds blobs while the gate is closed, and the policy that allows its
/// image.
fn registry(node: &Node, gate: &Arc<AtomicBool>) -> (Remote, String) {
    let gate = Arc::clone(gate);
    let hold = move |request: &crate::registry::Request| {
        let begun = Instant::now();
        while request.target.contains("/blobs/") && !gate.load(Ordering::SeqCst) && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        Reply::Normal
    };
    let behaviour = Behaviour { hook: Some(Box::new(hold)), ..Behaviour::default() };
    let netns = File::open(node.netns()).unwrap_or_else(|e| harness!("open the node's network namespace: {e}"));
    let registry = Some(within(&netns, || Registry::start(&recorded("registry"), behaviour)));
    let registry = Remote { registry, netns };
    let key = fs::read(recorded("keys/cosign-v2.pub")).unwrap_or_else(|e| harness!("read a key: {e}"));
    let key = node.world.lab.write("cosign-v2.pub", &key);
    node.world.lab.policy(&format!(
        "[[image]]\nrepository = \"{}/bpf/*\"\nsigned-by = {{ key = \"{}\" }}\n[[container]]\nprograms = [\"xdp\"]\n",
        registry.host(),
        key.display()
    ));
    let image = format!("{}/bpf/key-v2:v1", registry.host());
    (registry, image)
}

fn contents(registry: &Registry) -> Vec<String> {
    registry.requests().into_iter().filter(|target| target.contains("/blobs/")).collect()
}

fn assert_fetched_once(registry: &Registry) {
    let all = contents(registry);
    let mut each = all.clone();
    each.sort();
    each.dedup();
    assert_eq!(all.len(), each.len(), "something was fetched twice: {all:?}");
}

fn the_hook_joins_a_fetch_that_the_sandbox_started(node: &mut Node) {
    let gate = Arc::new(AtomicBool::new(false));
    let (registry, image) = registry(node, &gate);
    node.restart_plugin(&[]);
    let pod = PodSpec::new("web").ask("image", &image).ask("programs", "xdp:pass iface=eth0").run(node).unwrap();
    eventually("the sandbox's fetch to begin", PATIENCE, || (!contents(&registry).is_empty()).then_some(()));
    // The plugin responds although the image has not been fetched.
    let begun = Instant::now();
    let main = pod.create(&ContainerSpec::new("main")).unwrap();
    let created = begun.elapsed();
    assert_eq!(node.world.lab.json(&["list", "images"]).as_array().map(Vec::len), Some(0), "nothing can have come yet");
    assert!(created < Duration::from_secs(2), "CreateContainer took {created:?}");
    let root = node.world.lab.root();
    let opened = std::thread::scope(|scope| {
        let opener = scope.spawn(|| {
            let begun = Instant::now();
            let mut waits = false;
            while !waits && begun.elapsed() < PATIENCE {
                waits = kernel::processes_of(&root).iter().any(|(_, line)| line.contains("createRuntime"));
            }
            gate.store(true, Ordering::SeqCst);
            waits
        });
        pod.start(&main).unwrap();
        opener.join().unwrap()
    });
    assert!(opened, "the hook was never seen");
    node.world.lab.expect_links(1, "the container has its program");
    assert_fetched_once(&registry);
}

fn pre_pulled_images_are_cached_before_any_pod(node: &mut Node) {
    let gate = Arc::new(AtomicBool::new(true));
    let (registry, image) = registry(node, &gate);
    let list = node.world.lab.write("pre-pull", format!("# for every node\n{image}\n").as_bytes());
    node.restart_plugin(&["--pre-pull", &list.display().to_string()]);
    eventually("the image to be in the cache", PATIENCE, || {
        let images = node.world.lab.json(&["list", "images"]);
        images.as_array().is_some_and(|images| !images.is_empty()).then_some(())
    });
    registry.clear();
    let never = [("image", image.as_str()), ("programs", "xdp:pass iface=eth0"), ("pull-policy", "Never")];
    let pod = never.iter().fold(PodSpec::new("web"), |pod, (key, value)| pod.ask(key, value)).run(node).unwrap();
    pod.add(&ContainerSpec::new("main")).unwrap();
    node.world.lab.expect_links(1, "the container has its program");
    assert_eq!(registry.requests(), Vec::<String>::new());
}

fn labels_narrow_a_rule(node: &mut Node) {
    let image = node.world.signed("demo");
    node.world.lab.policy(&format!(
        "{}[[container]]\nmatch = {{ namespace = \"shop\", labels = {{ tier = \"edge\" }} }}\nprograms = [\"xdp\"]\n\
         [[container]]\nmatch = {{ namespace = \"shop\" }}\nprograms = [\"cgroup_skb\"]\n",
        node.world.image_rule()
    ));
    node.restart_plugin(&[]);
    let spec = |name: &str| PodSpec::new(name).ask("image", &image).ask("programs", "xdp:count_packets iface=eth0");
    let edge = spec("edge").label("tier", "edge").run(node).unwrap();
    edge.add(&ContainerSpec::new("main")).unwrap();
    node.world.lab.expect_links(1, "the label is there");
    // An annotation cannot replace a label.
    let pods = [
        spec("other").label("tier", "core"),
        spec("none").annotate("tier", "edge"),
        spec("forged").annotate("labels", "tier=edge"),
    ];
    for pod in pods {
        let pod = pod.run(node).unwrap();
        let error = pod.add(&ContainerSpec::new("main")).unwrap_err();
        assert!(error.contains("does not allow xdp programs"), "{error}");
        pod.remove().unwrap();
    }
}
