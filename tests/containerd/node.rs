//! A node: Debian's containerd in namespaces of its own, our plugin, and pods.
//!
//! containerd runs in a mount namespace with its own `/run` and overlays on `/etc`, `/opt` and `/usr/local`, and in its
//! own network namespace, so that all paths are those of production and the machine is not changed. Our store, policy
//! and images are those of the lab, below its `--root`; their paths are the same inside and outside.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;

use crate::cri::{self, Cri};
use crate::harness;
use crate::support::kernel::{self, Cgroups, cgroups};
use crate::support::lab::{BINARY, Hooks, pins};
use crate::support::process::{Ended, Running, ended, eventually, tool};
use crate::support::world::World;
use crate::workload;

/// The software of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// 2 is containerd 2.1 of Debian sid, 1 is containerd 1.7 of trixie.
    pub containerd: u32,
    /// runc or crun.
    pub runtime: &'static str,
}

/// The setup of most cases.
pub const USUAL: Setup = Setup { containerd: 2, runtime: "runc" };

/// NRI's socket in the node.
pub const SOCKET: &str = "/run/nri/nri.sock";

/// Timeout for the daemon, a plugin or a pod on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// A running node.
pub struct Node {
    pub world: World,
    pub setup: Setup,
    dir: PathBuf,
    holder: Running,
    daemon: Option<Running>,
    plugin: Option<Running>,
    has_image: bool,
}

impl Node {
    /// Starts containerd, and the plugin if the world has our hooks.
    pub fn new(world: World, setup: Setup) -> Self {
        let mut node = Self::bare(world, setup);
        node.start_daemon();
        node.start_plugin();
        node
    }

    /// A node on which nothing runs yet.
    pub fn bare(world: World, setup: Setup) -> Self {
        world.mount_bpffs();
        let dir = world.lab.path("node");
        for part in
            ["run/nri", "etc", "opt", "local", "overlay/etc", "overlay/opt", "overlay/local", "bin", "cni", "logs", "nri"]
        {
            fs::create_dir_all(dir.join(part)).unwrap_or_else(|e| harness!("create {part}: {e}"));
        }
        let packages = packages();
        for program in ["containerd", "ctr", "containerd-shim-runc-v2"] {
            link(&packages.join(setup.containerd.to_string()).join(program), &dir.join("bin").join(program));
        }
        workload::write_archive(&dir.join("image.tar"));
        fs::write(dir.join("cni/10-lab.conflist"), network(&dir)).unwrap_or_else(|e| harness!("write the network: {e}"));
        // crun refuses hybrid hierarchies: it gets only version 1.
        let hide = match cgroups() {
            Cgroups::Hybrid(unified) if setup.runtime == "crun" => format!("umount -l {}", unified.display()),
            _ => "true".to_owned(),
        };
        let script = format!(
            "set -e; d={0}; mount --bind $d/run /run
             for part in etc opt:opt usr/local:local; do
               mount -t overlay -o lowerdir=/${{part%:*}},upperdir=$d/${{part#*:}},workdir=$d/overlay/${{part#*:}} lab /${{part%:*}}
             done
             mkdir -p /etc/containerd /usr/local/bin; ln -s $d/bin/* /usr/local/bin
             {hide}; ip link set lo up; echo ready; read end",
            dir.display()
        );
        let mut holder =
            Running::start(Command::new("unshare").args(["-m", "-n", "--propagation", "private", "sh", "-c", &script]));
        holder.hear("ready");
        Self { world, setup, dir, holder, daemon: None, plugin: None, has_image: false }
    }

    /// A command in the node's namespaces.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "-t", &self.holder.pid().to_string(), "--", program]);
        command
    }

    /// The node's network namespace.
    pub fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.pid()).into()
    }

    /// A path below the node's directory; it is the same inside and outside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The path outside of a path in the node's `/run`, `/etc`, `/opt` or `/usr/local`.
    pub fn outside(&self, path: &str) -> PathBuf {
        self.dir.join(path.trim_start_matches('/').trim_start_matches("usr/"))
    }

    /// containerd's configuration.
    pub fn configuration(&self) -> PathBuf {
        self.outside("/etc/containerd/config.toml")
    }

    /// Writes containerd's configuration if it does not exist, and starts containerd.
    pub fn start_daemon(&mut self) {
        let configuration = self.configuration();
        if !configuration.exists() {
            fs::write(&configuration, self.default_configuration()).unwrap_or_else(|e| harness!("configure containerd: {e}"));
        }
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display());
        // To a file: shims outlive the daemon, and would hold a pipe open.
        let script = format!("exec containerd --log-level info >>{} 2>&1", self.path("containerd.log").display());
        self.daemon = Some(Running::start(self.inside("sh").args(["-c", &script]).env("PATH", path)));
        eventually("containerd to answer", PATIENCE, || {
            if self.has_ended() {
                harness!("containerd has ended: {}", self.log());
            }
            let answer = self.cri().ok()?.call::<_, cri::VersionResponse>("Version", cri::Nothing {}).ok()?;
            assert!(answer.runtime_version.trim_start_matches('v').starts_with(&self.setup.containerd.to_string()));
            self.outside("/run/nri/nri.sock").exists().then_some(())
        });
        if !std::mem::replace(&mut self.has_image, true) {
            let import = ["-a", "/run/containerd/containerd.sock", "-n", "k8s.io", "images", "import"];
            tool(self.inside("/usr/local/bin/ctr").args(import).arg(self.path("image.tar")));
        }
    }

    fn has_ended(&mut self) -> bool {
        self.daemon.as_mut().is_none_or(Running::has_ended)
    }

    /// containerd's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("containerd.log")).unwrap_or_default()
    }

    /// Stops containerd; its pods keep running.
    pub fn stop_daemon(&mut self, signal: Signal) {
        if let Some(daemon) = self.daemon.take() {
            daemon.signal(signal);
            daemon.finish();
        }
    }

    /// Kills everything that runs on the node, like a power failure. Its files remain.
    pub fn crash(&mut self) {
        self.kill_plugin();
        self.stop_daemon(Signal::KILL);
        let (holder, own) = (self.holder.pid(), |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok());
        let namespace = own(holder);
        let processes = fs::read_dir("/proc").unwrap_or_else(|e| harness!("read /proc: {e}")).flatten();
        // Shims and the processes they wait for; the shims' children are the containers' inits, which end with their
        // cgroups.
        for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            let ours = pid != holder && namespace.is_some() && own(pid) == namespace;
            if let Some(pid) = i32::try_from(pid).ok().filter(|_| ours).and_then(rustix::process::Pid::from_raw) {
                _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        for cgroup in kernel::cgroups_named(&self.world.lab.word()) {
            kernel::remove_cgroup(&cgroup);
        }
    }

    /// Starts our plugin and waits until containerd has registered it; without our hooks nothing is started.
    pub fn start_plugin(&mut self) {
        let before = self.synchronized();
        if self.start_plugin_on(SOCKET) {
            self.wait_for_plugin(before);
        }
    }

    /// Restarts our plugin, with the current policy and additional arguments.
    pub fn restart_plugin(&mut self, more: &[&str]) {
        self.kill_plugin();
        let before = self.synchronized();
        if self.start_plugin_with(SOCKET, more) {
            self.wait_for_plugin(before);
        }
    }

    /// Whether a plugin runs.
    pub fn has_plugin(&self) -> bool {
        self.world.lab.hooks == Hooks::Ours
    }

    /// Starts our plugin on a socket without waiting; false without our hooks.
    pub fn start_plugin_on(&mut self, socket: &str) -> bool {
        self.start_plugin_with(socket, &[])
    }

    fn start_plugin_with(&mut self, socket: &str, more: &[&str]) -> bool {
        let ours = self.world.lab.hooks == Hooks::Ours;
        if ours {
            let mut command = self.inside(BINARY);
            command.arg("--root").arg(self.world.lab.root()).args(["nri", "--socket", socket]).args(more);
            self.plugin = Some(Running::start(&mut command));
        }
        ours
    }

    /// How often a plugin has connected and been synchronized.
    pub fn synchronized(&self) -> usize {
        // NRI 0.6 logs nothing more specific.
        self.log().matches("10-bpfman-hook\\\" connected").count()
    }

    /// Waits until the plugin has been synchronized once more.
    pub fn wait_for_plugin(&self, before: usize) {
        eventually("the plugin to be synchronized", PATIENCE, || (self.synchronized() > before).then_some(()));
    }

    /// Kills the plugin.
    pub fn kill_plugin(&mut self) {
        if let Some(mut plugin) = self.plugin.take() {
            plugin.kill();
            plugin.finish();
        }
    }

    /// Sends the plugin a signal.
    pub fn signal_plugin(&self, signal: Signal) {
        if let Some(plugin) = &self.plugin {
            plugin.signal(signal);
        }
    }

    /// Whether one of the plugin's sockets holds data that it has not read yet; true if no plugin runs.
    pub fn has_question(&self) -> bool {
        let Some(plugin) = &self.plugin else { return true };
        let fds = std::fs::read_dir(format!("/proc/{}/fd", plugin.pid())).unwrap_or_else(|error| crate::harness!("{error}"));
        let targets = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        let sockets: Vec<_> = targets.filter_map(|to| Some(to.to_str()?.strip_prefix("socket:[")?.replace(']', ""))).collect();
        // Netid, state, receive queue, send queue, local path, local inode.
        let listed = tool(self.inside("ss").arg("-xH"));
        listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|fields| {
            fields.get(2).is_some_and(|unread| *unread != "0")
                && fields.get(5).is_some_and(|inode| sockets.iter().any(|socket| socket == inode))
        })
    }

    /// The plugin's output so far.
    pub fn plugin_said(&self) -> String {
        self.plugin.as_ref().map(Running::stderr).unwrap_or_default()
    }

    /// Waits until the plugin's output contains these words.
    pub fn hear_plugin(&self, words: &str) {
        eventually(&format!("the plugin to say {words:?}"), Duration::from_secs(15), || {
            self.plugin_said().contains(words).then_some(())
        });
    }

    /// Stops containerd cleanly and starts it with its current configuration.
    pub fn restart_daemon(&mut self) {
        self.stop_daemon(Signal::TERM);
        self.start_daemon();
    }

    /// Runs our binary in the node on the lab's root; does nothing without our hooks.
    pub fn ours(&self, args: &[&str]) -> Option<Ended> {
        let mut command = self.inside(BINARY);
        command.arg("--root").arg(self.world.lab.root()).args(args);
        (self.world.lab.hooks == Hooks::Ours).then(|| ended(&mut command))
    }

    /// A new connection to containerd.
    pub fn cri(&self) -> Result<Cri, String> {
        Cri::connect(&self.outside("/run/containerd/containerd.sock"))
    }

    /// Connects to a closed port of a pod: this number of packets arrives on its eth0.
    pub fn knock(&self, ip: &str, times: u32) {
        let script = format!("for i in $(seq {times}); do busybox nc -w 2 {ip} 9 </dev/null; done 2>/dev/null; true");
        tool(self.inside("sh").args(["-c", &script]));
    }

    /// Removes the pods and stops the plugin and containerd. The lab finds anything that is left.
    pub fn end(&mut self) {
        if let Err(error) = self.remove_pods() {
            panic!("remove the pods: {error}");
        }
        // The plugin releases what pods own when it sees them end; without a plugin, gc does.
        if self.plugin.is_none() {
            self.world.lab.ours(&["gc"]);
        }
        eventually("what the pods owned to be released", Duration::from_secs(10), || {
            pins(&self.world.lab.bpffs()).is_empty().then_some(())
        });
        self.take_down();
    }

    fn remove_pods(&self) -> Result<(), String> {
        let cri = self.cri()?;
        let pods: cri::PodSandboxes = cri.call("ListPodSandbox", cri::Nothing {})?;
        for pod in pods.items {
            let _: cri::Nothing = cri.call("StopPodSandbox", pod.clone())?;
            let _: cri::Nothing = cri.call("RemovePodSandbox", pod)?;
        }
        Ok(())
    }

    fn take_down(&mut self) {
        self.kill_plugin();
        self.stop_daemon(Signal::TERM);
        self.holder.kill();
        for cgroup in kernel::cgroups_named(&self.world.lab.word()) {
            kernel::remove_cgroup(&cgroup);
        }
    }

    fn default_configuration(&self) -> String {
        let dir = self.dir.display();
        let (version, runtime, image, bin) = match self.setup.containerd {
            1 => (2, "io.containerd.grpc.v1.cri", "sandbox_image", "bin_dir = \"/usr/lib/cni\""),
            _ => (3, "io.containerd.cri.v1.runtime", "# sandbox_image", "bin_dirs = [\"/usr/lib/cni\"]"),
        };
        format!(
            r#"version = {version}
root = "{dir}/containerd"
state = "/run/containerd"

[grpc]
address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.internal.v1.opt']
path = "{dir}/containerd/opt"

[plugins.'io.containerd.nri.v1.nri']
disable = false
disable_connections = false
socket_path = "/run/nri/nri.sock"
plugin_path = "/opt/nri/plugins"
plugin_config_path = "/etc/nri/conf.d"
plugin_registration_timeout = "5s"
plugin_request_timeout = "2s"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{name}"

[plugins.'{runtime}']
{image} = "{name}"
disable_apparmor = true
# Root may lack CAP_SYS_RESOURCE.
restrict_oom_score_adj = true
enable_unprivileged_ports = false
enable_unprivileged_icmp = false
netns_mounts_under_state_dir = true

[plugins.'{runtime}'.cni]
conf_dir = "{dir}/cni"
{bin}

[plugins.'{runtime}'.containerd]
default_runtime_name = "{default}"

[plugins.'{runtime}'.containerd.runtimes.{default}]
runtime_type = "io.containerd.runc.v2"

[plugins.'{runtime}'.containerd.runtimes.{default}.options]
BinaryName = "{packages}/bin/{default}"
SystemdCgroup = false
"#,
            name = workload::IMAGE,
            default = self.setup.runtime,
            packages = packages().display(),
        )
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the plugin said:\n{}", self.plugin_said());
            let log = self.log();
            let last: Vec<_> = log.lines().rev().take(15).collect();
            eprintln!("containerd said last:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
            let _left = self.remove_pods();
        }
        self.take_down();
    }
}

/// Each pod gets its own interface eth0, whose peer is the node's.
fn network(dir: &Path) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"lab","plugins":[{{"type":"ptp","ipam":{{"type":"host-local","dataDir":"{}/ipam",
           "ranges":[[{{"subnet":"10.89.0.0/16"}}]]}}}}]}}"#,
        dir.display()
    )
}

fn link(target: &Path, path: &Path) {
    symlink(target, path).unwrap_or_else(|e| harness!("link {}: {e}", path.display()));
}

/// The directory of the unpacked packages.
fn packages() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/containerd/packages.sh");
        PathBuf::from(tool(&mut Command::new(script)).trim())
    })
}
