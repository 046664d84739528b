//! Pods and containers like those of the kubelet.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::cri::{self, Cri};
use crate::node::Node;
use crate::support::lab::BINARY;
use crate::workload::IMAGE;

/// The first host id of a pod's user namespace.
const FIRST_ID: u32 = 1_000_000;

/// The specification of a pod.
#[derive(Debug, Clone)]
pub struct PodSpec {
    name: String,
    namespace: String,
    handler: String,
    annotations: HashMap<String, String>,
    labels: HashMap<String, String>,
    userns: bool,
    network: i32,
    pid: i32,
}

impl PodSpec {
    /// A pod of the namespace `shop` with its own network and without annotations.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            handler: String::new(),
            annotations: HashMap::new(),
            labels: HashMap::new(),
            userns: false,
            network: cri::POD,
            pid: cri::CONTAINER,
        }
    }

    /// A copy with another name.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// One of our annotations; the key goes without the prefix.
    pub fn ask(self, key: &str, value: &str) -> Self {
        self.annotate(&format!("hook.bpfman.io/{key}"), value)
    }

    /// Any annotation.
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The handler of a RuntimeClass.
    pub fn handler(mut self, name: &str) -> Self {
        name.clone_into(&mut self.handler);
        self
    }

    /// `hostUsers: false`.
    pub fn userns(mut self) -> Self {
        self.userns = true;
        self
    }

    /// `hostNetwork: true`.
    pub fn host_network(mut self) -> Self {
        self.network = cri::NODE;
        self
    }

    /// `shareProcessNamespace: true`.
    pub fn shared_pid(mut self) -> Self {
        self.pid = cri::POD;
        self
    }

    fn namespaces(&self) -> cri::NamespaceOption {
        let ids = vec![cri::IdMapping { host_id: FIRST_ID, container_id: 0, length: 65536 }];
        let user = cri::UserNamespace { mode: cri::POD, uids: ids.clone(), gids: ids };
        cri::NamespaceOption { network: self.network, pid: self.pid, userns_options: self.userns.then_some(user) }
    }

    fn config(&self, node: &Node) -> cri::PodSandboxConfig {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let labels = [("io.kubernetes.pod.name", &self.name), ("io.kubernetes.pod.namespace", &self.namespace)];
        let mut labels: HashMap<_, _> = labels.map(|(key, value)| (key.to_owned(), value.clone())).into();
        labels.extend(self.labels.clone());
        let security = cri::LinuxSandboxSecurityContext { namespace_options: Some(self.namespaces()) };
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: self.name.clone(),
                uid: format!("uid-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
                namespace: self.namespace.clone(),
            }),
            hostname: if self.network == cri::NODE { String::new() } else { self.name.clone() },
            log_directory: node.path("logs").display().to_string(),
            labels,
            annotations: self.annotations.clone(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", node.world.lab.word()),
                security_context: Some(security),
            }),
        }
    }

    /// RunPodSandbox.
    ///
    /// # Errors
    /// The text that the pod's events would show; the same below.
    pub fn run(&self, node: &Node) -> Result<Pod, String> {
        let cri = node.cri()?;
        let config = self.config(node);
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: self.handler.clone() };
        let cri::Id { id } = cri.call("RunPodSandbox", request)?;
        let status: cri::PodSandboxStatusResponse =
            cri.call("PodSandboxStatus", cri::StatusRequest { id: id.clone(), verbose: false })?;
        let ip = status.status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default();
        Ok(Pod { id, ip, spec: self.clone(), config, cri })
    }
}

/// The specification of a container.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    name: String,
    attempt: u32,
    annotations: HashMap<String, String>,
    script: String,
    mounts: Vec<cri::Mount>,
    capabilities: Vec<String>,
    dropped: Vec<String>,
    user: Option<i64>,
    seccomp: Option<String>,
}

impl ContainerSpec {
    /// A container that has CAP_BPF and CAP_NET_ADMIN and sleeps.
    pub fn new(name: &str) -> Self {
        let script = "exec sleep 1000000".to_owned();
        let capabilities = ["BPF", "NET_ADMIN"].map(str::to_owned).to_vec();
        Self {
            name: name.to_owned(),
            attempt: 0,
            annotations: HashMap::new(),
            script,
            mounts: Vec::new(),
            capabilities,
            dropped: Vec::new(),
            user: None,
            seccomp: None,
        }
    }

    /// A user without any capability.
    pub fn unprivileged(mut self) -> Self {
        self.capabilities.clear();
        self.dropped = vec!["ALL".to_owned()];
        self.user = Some(65534);
        self
    }

    /// The seccomp profile of a file on the node.
    pub fn seccomp(mut self, file: &Path) -> Self {
        self.seccomp = Some(file.display().to_string());
        self
    }

    /// Shows a file of the node in the container.
    pub fn mount(mut self, from: &Path, to: &str) -> Self {
        let host_path = from.display().to_string();
        self.mounts.push(cri::Mount { container_path: to.to_owned(), host_path, readonly: true });
        self
    }

    /// Its command: a script for busybox's shell.
    pub fn script(mut self, script: &str) -> Self {
        script.clone_into(&mut self.script);
        self
    }

    /// An annotation of the container itself; device plugins set such annotations, users never do.
    pub fn ask(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(format!("hook.bpfman.io/{key}"), value.to_owned());
        self
    }

    /// The number of previous attempts.
    pub fn attempt(mut self, number: u32) -> Self {
        self.attempt = number;
        self
    }

    /// Adds a capability; the name is without `CAP_`.
    pub fn capability(mut self, name: &str) -> Self {
        self.capabilities.push(name.to_owned());
        self
    }

    /// Mounts the binary under test into the container, as `/bpfman-hook`.
    pub fn with_binary(self) -> Self {
        self.mount(Path::new(BINARY), "/bpfman-hook")
    }

    fn config(&self, pod: &PodSpec) -> cri::ContainerConfig {
        let security = cri::LinuxContainerSecurityContext {
            capabilities: Some(cri::Capability {
                add_capabilities: self.capabilities.clone(),
                drop_capabilities: self.dropped.clone(),
            }),
            namespace_options: Some(pod.namespaces()),
            run_as_user: self.user.map(|value| cri::Int64Value { value }),
            seccomp: (self.seccomp.clone())
                .map(|localhost_ref| cri::SecurityProfile { profile_type: cri::LOCALHOST, localhost_ref }),
        };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: self.name.clone(), attempt: self.attempt }),
            image: Some(cri::ImageSpec { image: IMAGE.to_owned() }),
            command: vec!["/bin/sh".to_owned(), "-c".to_owned(), self.script.clone()],
            mounts: self.mounts.clone(),
            labels: HashMap::from([("io.kubernetes.container.name".to_owned(), self.name.clone())]),
            annotations: self.annotations.clone(),
            log_path: format!("{}-{}-{}.log", pod.name, self.name, self.attempt),
            linux: Some(cri::LinuxContainerConfig { security_context: Some(security) }),
        }
    }
}

/// A pod with a running sandbox.
pub struct Pod {
    pub id: String,
    /// Its address; empty on the host's network.
    pub ip: String,
    spec: PodSpec,
    config: cri::PodSandboxConfig,
    cri: Cri,
}

impl Pod {
    /// Reconnects after the daemon has been restarted.
    pub fn reconnect(&mut self, node: &Node) {
        self.cri = node.cri().unwrap_or_else(|error| crate::harness!("connect again: {error}"));
    }

    /// A handle to the same pod for another thread.
    pub fn beside(&self, node: &Node) -> Self {
        let cri = node.cri().unwrap_or_else(|error| crate::harness!("connect once more: {error}"));
        Self { id: self.id.clone(), ip: self.ip.clone(), spec: self.spec.clone(), config: self.config.clone(), cri }
    }

    /// CreateContainer.
    pub fn create(&self, container: &ContainerSpec) -> Result<String, String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(container.config(&self.spec)),
            sandbox_config: Some(self.config.clone()),
        };
        self.cri.call::<_, cri::Id>("CreateContainer", request).map(|answer| answer.id)
    }

    /// StartContainer.
    pub fn start(&self, container: &str) -> Result<(), String> {
        self.cri.call::<_, cri::Nothing>("StartContainer", id(container)).map(drop)
    }

    /// CreateContainer and StartContainer.
    pub fn add(&self, container: &ContainerSpec) -> Result<String, String> {
        let id = self.create(container)?;
        self.start(&id)?;
        Ok(id)
    }

    /// StopContainer and RemoveContainer.
    pub fn take(&self, container: &str) -> Result<(), String> {
        let request = cri::StopContainerRequest { container_id: container.to_owned(), timeout: 0 };
        let _: cri::Nothing = self.cri.call("StopContainer", request)?;
        self.cri.call::<_, cri::Nothing>("RemoveContainer", id(container)).map(drop)
    }

    /// StopPodSandbox and RemovePodSandbox, which stop its containers.
    pub fn remove(self) -> Result<(), String> {
        let _: cri::Nothing = self.cri.call("StopPodSandbox", id(&self.id))?;
        self.cri.call::<_, cri::Nothing>("RemovePodSandbox", id(&self.id)).map(drop)
    }

    /// Runs a command in a container, and returns its exit status and output.
    pub fn exec(&self, container: &str, command: &[&str]) -> (i32, String) {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let request = cri::ExecSyncRequest { container_id: container.to_owned(), cmd: command, timeout: 30 };
        let answer: cri::ExecSyncResponse =
            self.cri.call("ExecSync", request).unwrap_or_else(|error| panic!("run a command in {container}: {error}"));
        (answer.exit_code, String::from_utf8_lossy(&[answer.stdout, answer.stderr].concat()).into_owned())
    }

    /// State and exit status of a container.
    pub fn status(&self, container: &str) -> cri::ContainerStatus {
        self.verbose(container).0
    }

    /// The OCI configuration that a container was started with.
    pub fn oci(&self, container: &str) -> Value {
        self.verbose(container).1["runtimeSpec"].take()
    }

    /// The host's pid of its init.
    pub fn init(&self, container: &str) -> u32 {
        let pid = self.verbose(container).1["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.unwrap_or_else(|| panic!("container {container} has no pid"))
    }

    fn verbose(&self, container: &str) -> (cri::ContainerStatus, Value) {
        let request = cri::StatusRequest { id: container.to_owned(), verbose: true };
        let answer: cri::ContainerStatusResponse =
            self.cri.call("ContainerStatus", request).unwrap_or_else(|error| panic!("status of {container}: {error}"));
        let info = answer.info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
        (answer.status.unwrap_or_default(), info)
    }
}

fn id(id: &str) -> cri::Id {
    cri::Id { id: id.to_owned() }
}
