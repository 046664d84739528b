//! podman as root, with a store, hooks and locks of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use super::bundle::busybox;
use super::kernel::{Cgroups, cgroups};
use super::lab::{BINARY, Hooks, Lab};
use super::process::tool;
use super::runtime::{Runtime, without_cgroup2};
use crate::harness;

/// The image of the containers: only busybox.
pub const IMAGE: &str = "localhost/busybox:test";

/// The settings that keep podman within the lab. Without limits of its own it needs CAP_SYS_RESOURCE; with file locks
/// it does not share /dev/shm with the host's podman.
const CONFIGURATION: &str = r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
infra_image = "localhost/busybox:test"
infra_command = "/bin/pause"
"#;

/// The command of a pod's infra container.
const PAUSE: &str = "#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 1; done\n";

/// podman in one lab.
#[derive(Debug)]
pub struct Podman {
    dir: PathBuf,
    runtime: Runtime,
}

impl Podman {
    /// Makes the store, the image and the hook files.
    pub fn new(lab: &Lab, runtime: Runtime) -> Self {
        let dir = lab.path("podman");
        for part in ["hooks.d", "precreate.d", "rootfs/bin"] {
            fs::create_dir_all(dir.join(part)).unwrap_or_else(|e| harness!("create {part}: {e}"));
        }
        fs::write(dir.join("containers.conf"), CONFIGURATION).unwrap_or_else(|e| harness!("write containers.conf: {e}"));
        let podman = Self { dir, runtime };
        if lab.hooks == Hooks::Ours {
            podman.hook_file(lab, "hooks.d", "createRuntime");
            podman.hook_file(lab, "hooks.d", "poststop");
        }
        fs::copy(busybox(), podman.dir.join("rootfs/bin/busybox")).unwrap_or_else(|e| harness!("copy busybox: {e}"));
        for applet in ["sh", "cat", "ls", "nc", "id", "true", "echo", "ip", "sleep"] {
            std::os::unix::fs::symlink("busybox", podman.dir.join("rootfs/bin").join(applet))
                .unwrap_or_else(|e| harness!("link {applet}: {e}"));
        }
        let pause = podman.dir.join("rootfs/bin/pause");
        fs::write(&pause, PAUSE).unwrap_or_else(|e| harness!("write {}: {e}", pause.display()));
        fs::set_permissions(&pause, fs::Permissions::from_mode(0o755)).unwrap_or_else(|e| harness!("chmod pause: {e}"));
        let tarball = podman.dir.join("rootfs.tar");
        tool(
            Command::new("tar")
                .arg("-C")
                .arg(podman.dir.join("rootfs"))
                .args(["--owner=0", "--group=0", "-cf"])
                .arg(&tarball)
                .arg("."),
        );
        tool(podman.command(&["import", "-q", "-c", "CMD [\"/bin/pause\"]"]).arg(&tarball).arg(IMAGE));
        podman
    }

    /// Adds the precreate stage, which only podman has.
    pub fn with_precreate(self, lab: &Lab) -> Self {
        if lab.hooks == Hooks::Ours {
            self.hook_file(lab, "precreate.d", "precreate");
        }
        self
    }

    /// A podman command.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match (self.runtime, cgroups()) {
            (Runtime::Crun, Cgroups::Hybrid(unified)) => without_cgroup2(&unified, "podman"),
            _ => Command::new("podman"),
        };
        command.env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        for (flag, part) in [
            ("--root", "store"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
            ("--hooks-dir", "hooks.d"),
            ("--hooks-dir", "precreate.d"),
        ] {
            command.arg(flag).arg(self.dir.join(part));
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", self.runtime.name()]).args(args);
        command
    }

    /// `podman run` of a script in the foreground, with standard input.
    pub fn run(&self, lab: &Lab, name: &str, flags: &[&str], script: &str) -> Command {
        let name = format!("{}-{name}", lab.word());
        let mut command = self.command(&["run", "--rm", "-i", "--network", "none", "--name", &name, "--hostname", "lab"]);
        command.args(flags).args([IMAGE, "/bin/sh", "-c", script]);
        command
    }

    /// Adds a hook of another program to a stage of every container, and returns its file.
    pub fn other_hook(&self, stage: &str, program: &str) -> PathBuf {
        let file = json!({
            "version": "1.0.0",
            "hook": { "path": program },
            "when": { "always": true },
            "stages": [stage],
        });
        let path = self.dir.join("hooks.d/90-other.json");
        fs::write(&path, file.to_string()).unwrap_or_else(|e| harness!("write {}: {e}", path.display()));
        path
    }

    fn hook_file(&self, lab: &Lab, directory: &str, stage: &str) {
        let file = json!({
            "version": "1.0.0",
            "hook": { "path": BINARY, "args": lab.hook_arguments(stage, Some("podman")), "timeout": 30 },
            "when": { "annotations": { r"(^|[^A-Za-z0-9])[Hh][Oo][Oo][Kk][Ss]?[^A-Za-z0-9/]*[Bb][Pp][Ff][Mm][Aa][Nn]": "" } },
            "stages": [stage],
        });
        let path = self.dir.join(directory).join(format!("50-bpfman-hook-{stage}.json"));
        fs::write(&path, file.to_string()).unwrap_or_else(|e| harness!("write {}: {e}", path.display()));
    }
}
