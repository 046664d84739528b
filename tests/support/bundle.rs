//! OCI bundles: the output of `runc spec`, changed as a case needs it, with busybox as root file system.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::lab::{BINARY, Hooks, Lab, chown_tree};
use super::process::tool;
use crate::harness;

/// The first host id of the container's user namespace, which has 65536 of them.
pub const FIRST_ID: u32 = 100_000;

/// A bundle under construction.
#[derive(Debug)]
pub struct Bundle {
    /// The container's id.
    pub id: String,
    /// The directory with config.json and rootfs.
    pub dir: PathBuf,
    /// config.json.
    pub config: Value,
    userns: bool,
}

impl Bundle {
    /// A container with a user namespace, CAP_BPF and CAP_NET_ADMIN, our hooks and no annotation.
    pub fn new(lab: &Lab, name: &str) -> Self {
        let dir = lab.path("bundles").join(name);
        let rootfs = dir.join("rootfs");
        for part in ["bin", "proc", "sys", "dev", "run", "mnt", "tmp", "etc"] {
            let path = rootfs.join(part);
            fs::create_dir_all(&path).unwrap_or_else(|e| harness!("create {}: {e}", path.display()));
        }
        fs::copy(busybox(), rootfs.join("bin/busybox")).unwrap_or_else(|e| harness!("copy busybox: {e}"));
        for applet in ["sh", "cat", "ls", "nc", "id", "true", "echo", "sleep", "ip", "mount", "hexdump", "stat"] {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap_or_else(|e| harness!("link {applet}: {e}"));
        }
        tool(Command::new("runc").args(["spec", "-b"]).arg(&dir));
        let text = fs::read(dir.join("config.json")).unwrap_or_else(|e| harness!("read config.json: {e}"));
        let mut config: Value = serde_json::from_slice(&text).unwrap_or_else(|e| harness!("parse config.json: {e}"));
        config["process"]["terminal"] = json!(false);
        // A runtime cannot set limits without CAP_SYS_RESOURCE.
        config["process"]["rlimits"] = json!([]);
        config["process"]["env"] = json!(["PATH=/bin"]);
        let ids = json!([{ "containerID": 0, "hostID": FIRST_ID, "size": 65536 }]);
        config["linux"]["uidMappings"] = ids.clone();
        config["linux"]["gidMappings"] = ids;
        push(&mut config["linux"]["namespaces"], json!({ "type": "user" }));
        let id = format!("{}-{name}", lab.word());
        let mut bundle = Self { id, dir, config, userns: true }.capabilities(&["CAP_BPF", "CAP_NET_ADMIN"]);
        if lab.hooks == Hooks::Ours {
            bundle = bundle.hooks(lab, None);
        }
        bundle
    }

    /// Adds our hooks, as a plain OCI configuration names them.
    fn hooks(mut self, lab: &Lab, engine: Option<&str>) -> Self {
        let hook = |stage: &str| {
            json!([{
                "path": BINARY,
                "args": lab.hook_arguments(stage, engine),
                "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "timeout": 30,
            }])
        };
        self.config["hooks"] = json!({ "createRuntime": hook("createRuntime"), "poststop": hook("poststop") });
        self
    }

    /// Passes the engine to the hooks, as the hook files of `install` do.
    pub fn engine(self, lab: &Lab, engine: &str) -> Self {
        if lab.hooks == Hooks::Ours { self.hooks(lab, Some(engine)) } else { self }
    }

    /// Runs one of our hooks through a script, in which `"$@"` is the hook. Without our hooks, the script is not added
    /// either.
    pub fn hook_through(mut self, stage: &str, script: &str) -> Self {
        if let Some(hook) = self.config["hooks"][stage].get_mut(0) {
            let mut args = vec![json!("sh"), json!("-c"), json!(script), json!("sh"), hook["path"].clone()];
            args.extend(hook["args"].as_array().into_iter().flatten().skip(1).cloned());
            *hook = json!({ "path": "/bin/sh", "args": args, "env": hook["env"], "timeout": 60 });
        }
        self
    }

    /// One of our annotations; the key goes without the prefix.
    pub fn ask(self, key: &str, value: &str) -> Self {
        self.annotate(&format!("hook.bpfman.io/{key}"), value)
    }

    /// Any annotation.
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.config["annotations"][key] = json!(value);
        self
    }

    /// The container's command: a script for busybox's shell.
    pub fn script(mut self, script: &str) -> Self {
        self.config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        self
    }

    /// Adds capabilities to those of `runc spec`.
    pub fn capabilities(mut self, names: &[&str]) -> Self {
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            let mut all = vec!["CAP_KILL", "CAP_NET_BIND_SERVICE"];
            all.extend(names);
            self.config["process"]["capabilities"][set] = json!(all);
        }
        self
    }

    /// Removes the user namespace.
    pub fn without_userns(mut self) -> Self {
        self.userns = false;
        self = self.without_namespace("user");
        let linux = self.config["linux"].as_object_mut().expect("runc spec has `linux`");
        linux.remove("uidMappings");
        linux.remove("gidMappings");
        self
    }

    /// Removes a namespace, so that the container shares it with the runtime.
    pub fn without_namespace(mut self, kind: &str) -> Self {
        let all = self.config["linux"]["namespaces"].as_array_mut().expect("runc spec lists namespaces");
        all.retain(|one| one["type"] != kind);
        self
    }

    /// Adds a new namespace, or joins the one at a path.
    pub fn namespace(mut self, kind: &str, path: Option<&Path>) -> Self {
        self = self.without_namespace(kind);
        let one = match path {
            Some(path) => json!({ "type": kind, "path": path }),
            None => json!({ "type": kind }),
        };
        push(&mut self.config["linux"]["namespaces"], one);
        self
    }

    /// Sets the cgroup path.
    pub fn cgroup(mut self, path: &str) -> Self {
        self.config["linux"]["cgroupsPath"] = json!(path);
        self
    }

    /// Removes the mount at a destination.
    pub fn without_mount(mut self, destination: &str) -> Self {
        let all = self.config["mounts"].as_array_mut().expect("runc spec lists mounts");
        all.retain(|one| one["destination"] != destination);
        self
    }

    /// Adds a mount.
    pub fn mount(mut self, kind: &str, source: &Path, destination: &str, options: &[&str]) -> Self {
        push(
            &mut self.config["mounts"],
            json!({ "type": kind, "source": source, "destination": destination, "options": options }),
        );
        self
    }

    /// Mounts the binary under test into the container, as `/bpfman-hook`.
    pub fn with_binary(self, lab: &Lab) -> Self {
        // A copy: the container's root may not be able to reach the checkout.
        let copy = lab.path("bin/bpfman-hook");
        if !copy.exists() {
            fs::copy(BINARY, &copy).unwrap_or_else(|e| harness!("copy the binary: {e}"));
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap_or_else(|e| harness!("chmod: {e}"));
        }
        self.mount("none", &copy, "/bpfman-hook", &["bind", "ro"])
    }

    /// Sets a seccomp profile that allows everything but bpf(2).
    pub fn forbid_bpf(mut self) -> Self {
        self.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["bpf"], "action": "SCMP_ACT_ERRNO" }],
        });
        self
    }

    /// Changes the root file system.
    pub fn rootfs(self, change: impl FnOnce(&Path)) -> Self {
        change(&self.dir.join("rootfs"));
        self
    }

    /// Makes any other change of config.json.
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// Writes config.json and makes the container's root the owner of the root file system.
    pub fn write(self) -> Self {
        let text = serde_json::to_vec_pretty(&self.config).expect("a JSON value can be written");
        fs::write(self.dir.join("config.json"), text).unwrap_or_else(|e| harness!("write config.json: {e}"));
        if self.userns {
            chown_tree(&self.dir.join("rootfs"), FIRST_ID);
        }
        self
    }
}

fn push(list: &mut Value, item: Value) {
    list.as_array_mut().unwrap_or_else(|| harness!("not a list in config.json")).push(item);
}

/// A statically linked busybox.
pub fn busybox() -> PathBuf {
    let found = ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(PathBuf::from).find(|path| path.exists());
    found.unwrap_or_else(|| harness!("busybox is missing: apt-get install busybox-static"))
}
