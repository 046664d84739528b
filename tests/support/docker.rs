//! docker of a newer Debian release, with our hooks: dockerd in a root file system, mount and network namespace of its own,
//! made by tests/lab/docker. The lab's directory and the binary under test have the same paths inside and outside.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::bundle::busybox;
use super::kernel;
use super::lab::{BINARY, Hooks, Lab};
use super::process::{Ended, Running, ended, eventually, tool};
use crate::harness;

/// The image of the containers: only busybox.
pub const IMAGE: &str = "lab:1";

/// For the daemon on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon and its containers. Both end with it.
#[derive(Debug)]
pub struct Docker {
    daemon: Running,
}

/// The wrapper of runc that docs/quickstart/docker.md shows, with the hooks of a lab.
fn wrapper(lab: &Lab) -> String {
    let page = include_str!("../../docs/quickstart/docker.md");
    let text = page.split_once("<<'SCRIPT'\n").and_then(|(_, rest)| rest.split_once("\nSCRIPT\n"));
    let (text, _) = text.unwrap_or_else(|| harness!("the wrapper is not in the page"));
    let args = format!("\"hook\", ., \"--root\", \"{}\"]", lab.root().display());
    let ours = text.replace("/usr/bin/bpfman-hook", BINARY).replace("\"hook\", .]", &args);
    assert!(ours.contains(BINARY) && ours.contains(&args), "harness: {text}");
    ours + "\n"
}

impl Docker {
    /// Starts dockerd of a suite with a runtime `bpfman`, which adds our hooks, and imports the image. Our bpffs must be
    /// mounted before.
    ///
    /// # Errors
    /// Why the packages cannot be had here.
    pub fn start(lab: &Lab, suite: &str) -> Result<Self, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/docker/packages.sh");
        let Ended { status, stdout, stderr } = ended(Command::new(script).arg(suite));
        let last = stdout.lines().last().unwrap_or_default();
        match status.code() {
            Some(0) => Ok(Self::in_tree(lab, Path::new(last))),
            Some(77) => Err(format!("no docker.io of Debian {suite}: {last}")),
            _ => harness!("tests/lab/docker/packages.sh {suite}: {status}: {stderr}"),
        }
    }

    fn in_tree(lab: &Lab, tree: &Path) -> Self {
        let dir = lab.path("docker");
        for part in ["upper", "work", "root", "data", "image/bin"] {
            fs::create_dir_all(dir.join(part)).unwrap_or_else(|e| harness!("create {part}: {e}"));
        }
        let runtime = lab.write("docker/runc-bpfman", wrapper(lab).as_bytes());
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap_or_else(|e| harness!("chmod: {e}"));
        let binaries = Path::new(BINARY).parent().unwrap_or(Path::new("/"));
        // Not only chroot: an exec of runc enters the mount namespace at its real root.
        let script = format!(
            "set -e; d={dir}; r=$d/root
             mount -t overlay -o lowerdir={tree},upperdir=$d/upper,workdir=$d/work lab $r
             for part in /proc /sys /dev {lab} {binaries}; do mkdir -p $r$part; mount --rbind $part $r$part; done
             mount -t tmpfs -o mode=0755 lab $r/run
             mkdir -p $r/var $r/mnt; ln -sfn ../run $r/var/run
             [ -e $r/usr/bin/sh ] || ln -s bash $r/usr/bin/sh
             ip link set lo up
             cd $r; pivot_root . mnt
             exec dockerd --data-root $d/data --iptables=false --ip6tables=false --bridge=none \\
               --cgroup-parent /{word} --exec-opt native.cgroupdriver=cgroupfs --add-runtime bpfman={runtime} \\
               -H unix:///run/docker.sock >>$d/log 2>&1",
            dir = dir.display(),
            tree = tree.display(),
            lab = lab.path("").display(),
            binaries = binaries.display(),
            word = lab.word(),
            runtime = runtime.display(),
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "-n", "--propagation", "private", "sh", "-c", &script]);
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display());
        let mut docker = Self { daemon: Running::start(command.env("PATH", path)) };
        let log = dir.join("log");
        eventually("dockerd to answer", PATIENCE, || {
            if docker.daemon.has_ended() {
                harness!("dockerd has ended: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            ended(&mut docker.command(&["version"])).status.success().then_some(())
        });
        fs::copy(busybox(), dir.join("image/bin/busybox")).unwrap_or_else(|e| harness!("copy busybox: {e}"));
        for applet in ["sh", "cat", "ls", "true", "echo", "sleep", "id"] {
            std::os::unix::fs::symlink("busybox", dir.join("image/bin").join(applet))
                .unwrap_or_else(|e| harness!("link {applet}: {e}"));
        }
        let archive: PathBuf = dir.join("image.tar");
        tool(
            Command::new("tar").arg("-C").arg(dir.join("image")).args(["--owner=0", "--group=0", "-cf"]).arg(&archive).arg("."),
        );
        tool(docker.command(&["import"]).arg(&archive).arg(IMAGE));
        docker
    }

    /// A docker command.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--root", "--wd=/", "-t", &self.daemon.pid().to_string(), "--", "docker"]);
        command.args(["-H", "unix:///run/docker.sock"]).args(args);
        command
    }

    /// `docker run` of a script in the foreground, with standard input and, if the lab has them, our hooks.
    pub fn run(&self, lab: &Lab, name: &str, flags: &[&str], script: &str) -> Command {
        let name = format!("{}-{name}", lab.word());
        let mut command = self.command(&["run", "--rm", "-i", "--network", "none", "--name", &name]);
        if lab.hooks == Hooks::Ours {
            command.args(["--runtime", "bpfman"]);
        }
        command.args(flags).args([IMAGE, "/bin/sh", "-c", script]);
        command
    }

    /// Ends the daemon, and containerd with it. The cgroup above those of the containers stays otherwise.
    pub fn stop(mut self, lab: &Lab) {
        self.daemon.signal(Signal::TERM);
        eventually("the end of dockerd", PATIENCE, || self.daemon.has_ended().then_some(()));
        kernel::cgroups_named(&lab.word()).iter().for_each(|cgroup| kernel::remove_cgroup(cgroup));
    }
}
