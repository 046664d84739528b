//! A host whose store has a container of Kubernetes, one of podman, a failed one and a program by hand, and whose cache
//! has an image. Nothing of it is in the kernel.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use bpfman_hook::model::delegation::Preset;
use bpfman_hook::model::record::OwnerRecord;
use bpfman_hook::paths::Paths;
use bpfman_hook::store::{Store, StoreError};
use bpfman_hook::sys::clock;
use serde_json::{Value, json};

/// The directory below which the host is.
pub struct World {
    dir: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        let etc = world.root().join("etc/bpfman-hook");
        fs::create_dir_all(&etc).unwrap();
        for directory in etc.ancestors().take(3) {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let storage = world.root().join("storage/overlay-containers");
        fs::create_dir_all(&storage).unwrap();
        let podman = "ab".repeat(32);
        fs::write(storage.join("containers.json"), json!([{"id": podman, "names": ["c1"]}]).to_string()).unwrap();

        let container = |id: &str, engine: &str, bundle: &Path, workload: Value, more: Value| {
            let mut container = json!({"kind": "container", "id": id, "bundle": bundle, "runtime_user": 0, "engine": engine,
                "workload": workload, "init": null, "request": null, "cgroup": null, "bpffs": null, "holds": []});
            container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            container
        };
        let unknown = || json!({"namespace": null, "pod": null, "container": null});
        let delegated = json!({
            "bpffs": {"path": "/sys/fs/bpf", "delegation": Preset::Networking.delegation()},
            // No process has this number.
            "init": {"pid": 4_194_305, "start_time": 7},
        });
        let pod = json!({"namespace": "shop", "pod": "front", "container": "web"});
        let by_hand = json!({"kind": "host", "application": "warehouse", "loaded": {"caller": "the command line",
            "reference": null, "globals": {}, "metadata": {}, "shares": null, "map_memory": 0}});
        let mut failed = record(container(&"cd".repeat(32), "podman", Path::new("/b/cd/userdata"), unknown(), json!({})), None);
        (failed["phase"], failed["failure"]) = (json!("failed"), json!("load the policy: it does not exist"));
        let records = [
            record(container("3f9c1b7a42d0", "containerd", Path::new("/b"), pod, json!({})), Some(71)),
            record(container(&podman, "podman", &storage.join(&podman).join("userdata"), unknown(), delegated), Some(72)),
            failed,
            record(by_hand, Some(4711)),
        ];
        let paths = Paths::below(world.root());
        fs::create_dir_all(&paths.run).unwrap();
        let store = Store::open(&paths.stores(), &clock::boot_id().unwrap()).unwrap();
        for record in records {
            let mut record: OwnerRecord = serde_json::from_value(record).unwrap();
            let put = store.write::<_, StoreError>(|txn| {
                record.no = txn.next_no()?;
                txn.put(&record)
            });
            put.unwrap();
        }
        let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images/pass.bpfel.o");
        let built = world.program().args(["image", "build", "registry.example/acme/pass:v1"]).arg(object).output().unwrap();
        assert!(built.status.success(), "{built:?}");
        world
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The program, which takes this directory for the host's.
    pub fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bpfman-hook"));
        command.arg("--root").arg(self.root());
        command
    }
}

fn record(owner: Value, program: Option<u32>) -> Value {
    let digest = format!("sha256:{}", "01".repeat(32));
    let programs = program.map(|id| {
        json!({"pin": "prog_0", "function": "count_packets", "kind": "cgroup_sock_addr", "scope": "container", "image": 0,
            "state": {"loaded": id}})
    });
    let links = program.map(|id| {
        json!({"pin": "link_0", "program": "prog_0", "state": {"attached": id + 10},
            "at": {"type": "xdp", "iface": {"index": 1, "name": "lo"}, "mode": null}})
    });
    json!({
        "no": 0, "owner": owner, "phase": "ready", "actor": {"process": {"pid": 400, "start_time": 1}, "deadline": 9},
        "created": 1700, "changed": 1700, "maps": [], "failure": null, "leftovers": [],
        "programs": Vec::from_iter(programs), "links": Vec::from_iter(links),
        "images": [{"reference": "registry.example/acme/observability/probes/count-packets:v1.2.3", "digest": digest,
            "object": digest, "rule": "acme", "verdict": {"verdict": "verified", "by": "/etc/bpfman-hook/keys/acme.pub",
            "layout": "bundle"}}],
    })
}
