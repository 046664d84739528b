//! The starting point of most cases: a key, a layout for signed images, and a policy that trusts both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness;
use crate::support::bundle::Bundle;
use crate::support::image::{Contents, Digests, Key, Layout};
use crate::support::kernel;
use crate::support::lab::{Hooks, Lab};
use crate::support::process::{Ended, Running, tool};
use crate::support::runtime::{HookSaid, Runtime};

/// A lab with a key, a layout and a policy.
#[derive(Debug)]
pub struct World {
    pub lab: Lab,
    /// The key that the policy trusts.
    pub key: Key,
    /// The layout that the policy names.
    pub images: Layout,
}

impl World {
    /// Makes the lab, the key, the layout and the policy.
    pub fn new(hooks: Hooks) -> Self {
        let lab = Lab::new(hooks);
        let key = Key::new(&lab.path("bin"), "trusted");
        let images = Layout::new(&lab.path("images/signed"));
        let world = Self { lab, key, images };
        world.allow("");
        world
    }

    /// Writes the policy: the layout's images if the key signed them, every container-scope program type, `networking`,
    /// and what a case adds to the container rule.
    pub fn allow(&self, more: &str) {
        self.lab.policy(&format!("{}{}{more}\n", self.image_rule(), CONTAINER_RULE));
    }

    /// The image rule of the policy.
    pub fn image_rule(&self) -> String {
        format!(
            "[[image]]\nname = \"tests\"\nrepository = \"oci:{}\"\nsigned-by = {{ key = \"{}\" }}\n",
            self.images.dir.display(),
            self.key.public.display()
        )
    }

    /// Adds an image of one of the test objects, signed, and returns its reference.
    pub fn signed(&mut self, object: &str) -> String {
        let digests = self.unsigned(object);
        self.images.sign(&digests.manifest, &self.key);
        self.images.reference(object)
    }

    /// Adds an unsigned image of one of the test objects, under the object's name.
    pub fn unsigned(&mut self, object: &str) -> Digests {
        self.images.add(object, &Contents::object(&object_bytes(object)))
    }

    /// A bundle of a container that requests the two counters on `lo` and on its cgroup.
    pub fn counting(&mut self, name: &str) -> Bundle {
        let image = self.signed("demo");
        Bundle::new(&self.lab, name).ask("image", &image).ask("programs", "xdp:count_packets iface=lo; cgroup_skb:count_egress")
    }

    /// Mounts our bpffs, like the installed mount unit does before any engine runs.
    pub fn mount_bpffs(&self) {
        let path = self.lab.bpffs();
        for directory in [self.lab.path("root/run"), self.lab.path("root/run/bpfman-hook"), path.clone()] {
            fs::create_dir(&directory).unwrap_or_else(|e| harness!("create {}: {e}", directory.display()));
        }
        tool(Command::new("mount").args(["-t", "bpf", "-o", "nosuid,nodev,noexec,mode=0700", "bpf"]).arg(&path));
    }

    /// Starts a bundle with runc and waits until its script reports that it is ready.
    pub fn start(&self, bundle: &Bundle) -> Running {
        let mut running = Runtime::Runc.start(&self.lab, bundle);
        running.hear("ready");
        running
    }

    /// Asserts that a container does not start with runc, that our hook exits with this status and one message that
    /// contains these words, that the log has it too, and that nothing is left.
    pub fn refused(&self, bundle: Bundle, status: i32, words: &[&str]) {
        let bundle = bundle.script("echo started").write();
        let ended = Runtime::Runc.run(&self.lab, &bundle);
        assert!(!ended.status.success(), "the container started");
        assert!(!ended.stdout.contains("started"), "the container started");
        self.said(&ended, status, words);
        self.lab.residue();
    }

    /// Asserts our hook's message in runc's output.
    pub fn said(&self, ended: &Ended, status: i32, words: &[&str]) {
        let said = HookSaid::in_error_of_runc(&ended.stderr);
        let said = said.unwrap_or_else(|| panic!("no hook failed: {}", ended.stderr));
        let sentence = said.stderr.strip_suffix('\n').unwrap_or(&said.stderr);
        assert!(!sentence.is_empty() && !sentence.contains('\n'), "not one line: {:?}", said.stderr);
        assert!(said.stderr.len() <= 300, "{} bytes are more than 300: {sentence}", said.stderr.len());
        for word in words {
            assert!(sentence.contains(word), "{word:?} is not in: {sentence}");
        }
        assert_eq!(said.status, status, "exit status of the hook that said: {sentence}");
    }

    /// The record of a container, and those of the network namespaces whose programs it holds, as `inspect` shows them.
    pub fn inspect(&self, id: &str) -> Value {
        let shown = self.lab.json(&["inspect", id]);
        assert_eq!(shown[0]["id"], *id, "{shown:#}");
        shown
    }

    /// The kernel's id of a map of a container or of its pod.
    pub fn map_id(&self, id: &str, name: &str) -> u64 {
        self.map_ids(id, name)[0]
    }

    /// The kernel ids of the maps of this name that a container and its pod have, at least one.
    pub fn map_ids(&self, id: &str, name: &str) -> Vec<u64> {
        let shown = self.inspect(id);
        let owners = shown.as_array().into_iter().flatten();
        let maps = owners.flat_map(|owner| owner["maps"].as_array().into_iter().flatten());
        let ids: Vec<_> = maps.filter(|map| map["name"] == name).filter_map(|map| map["id"].as_u64()).collect();
        assert!(!ids.is_empty(), "no map {name} with an id in {shown:#}");
        ids
    }

    /// The kernel's ids of the links of a container, in the order of its programs.
    pub fn link_ids(&self, id: &str) -> Vec<u64> {
        let shown = self.inspect(id);
        let programs = shown[0]["programs"].as_array().into_iter().flatten();
        let links = programs.flat_map(|program| program["links"].as_array().into_iter().flatten());
        links.map(|link| link["id"].as_u64().unwrap_or_else(|| panic!("a link without id in {shown:#}"))).collect()
    }

    /// The sum of the counters of a container's map.
    pub fn counted(&self, id: &str, map: &str) -> u64 {
        kernel::sum(self.map_id(id, map))
    }
}

/// The container rule that most cases run under; a case may append keys.
pub const CONTAINER_RULE: &str = r#"[[container]]
programs = ["xdp", "tcx", "tc", "cgroup_skb", "cgroup_sock", "cgroup_sock_addr", "sock_ops"]
delegate = ["networking", "sockets"]
"#;

/// A script that reports that it runs, waits for a line, makes traffic on `lo`, reports that, and waits for another
/// line.
///
/// Each attempt to connect to a closed port is a SYN and a RST: two packets on `lo`, one egress each way.
pub const TRAFFIC: &str = "echo ready; read go; for i in 1 2 3 4 5; do nc -w 2 127.0.0.1 9 </dev/null; done 2>/dev/null; \
                           echo done; read go; exit 7";

/// Packets on `lo` that one run of [`TRAFFIC`] makes.
pub const TRAFFIC_PACKETS: u64 = 10;

/// The bytes of one of the objects in tests/bpf.
pub fn object_bytes(name: &str) -> Vec<u8> {
    let path = object_path(name);
    fs::read(&path).unwrap_or_else(|e| harness!("read {}: {e}", path.display()))
}

/// The path of one of the objects in tests/bpf.
pub fn object_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf").join(format!("{name}.bpf.o"))
}
