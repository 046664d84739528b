//! One container: the state from the runtime and the configuration of its bundle.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::annotations::{Request, RequestError, names_a_container, resembles_ours};
use crate::model::config::{Capability, ContainerConfig, IdMapping, NamespaceKind, NamespaceSource};
use crate::model::delegation::Delegation;
use crate::model::engine::EngineError;
use crate::model::grant::Needs;
use crate::model::ids::{ContainerId, Pid};
use crate::model::podman::ContainerNames;
use crate::model::policy::{ContainerFacts, Engine};
use crate::model::record::Workload;
use crate::model::seccomp::Allowed;
use crate::model::state::{ContainerStatus, OciState};

pub use crate::model::grant::MissingRights;

/// A container as described by its state and its config.json.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id for it.
    pub id: ContainerId,
    /// The pid of the container's init, if the state has one.
    pub pid: Option<Pid>,
    /// The status at this stage.
    pub status: ContainerStatus,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root file system on the host, absolute: valid before the runtime's pivot_root.
    pub rootfs: PathBuf,
    /// The engine that created it.
    pub engine: Engine,
    /// Its place in Kubernetes; empty under podman and plain runtimes.
    pub workload: Workload,
    /// Labels of its pod, as passed by the NRI plugin in the hook's arguments. Annotations never set them, because
    /// anyone can write an annotation.
    pub labels: BTreeMap<String, String>,
    /// What the NRI plugin passed about the capabilities of the pod's containers; None if it passed nothing.
    pub pod_check: Option<PodCheck>,
    /// Its name in its pod, which per-container keys refer to; None if the engine gives none.
    pub name: Option<String>,
    /// Its names in podman, needed if an annotation names a container; the hook looks them up.
    pub podman: Option<ContainerNames>,
    /// `process.user`: uid and gid as the container sees them.
    pub user: (u32, u32),
    /// The id of its pod's sandbox, if the engine states it.
    pub sandbox: Option<String>,
    /// True if it is that sandbox. A sandbox is changed only if an annotation names it.
    pub is_sandbox: bool,
    /// The configuration. Its annotations are authoritative: those of the state are a copy that runtimes make.
    /// Namespaces, seccomp profile and root come from the same text, so that all decisions use one source.
    pub config: ContainerConfig,
}

/// The check for a pod whose containers share a user namespace and of which one requests a token at container scope:
/// none of them may have the capabilities with which a token gives access to kernel memory. The NRI plugin sees all
/// containers of the pod and passes this to their hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodCheck {
    /// This container is checked; another one of its pod may have started unchecked.
    This,
    /// Every container of the pod is checked before it starts.
    Every,
}

impl PodCheck {
    /// The value of `--pod-check`.
    pub fn word(self) -> &'static str {
        match self {
            Self::This => "this",
            Self::Every => "every",
        }
    }

    /// Parses a value of `--pod-check`; None if it is unknown.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::This, Self::Every].into_iter().find(|check| check.word() == word)
    }
}

/// Why a container must not start in a pod that has a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the container can have {capability}, and its pod requests a BPF token, with which it could read kernel memory in the shared user namespace: drop the capability, or set host-scope = true for the pod"
)]
pub struct PodCapability {
    /// The capability's name.
    pub capability: &'static str,
}

/// Why state and config.json do not describe a container that bpfman-hook supports.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// config.json cannot be parsed.
    #[error("read {} of container {id}: it is not an OCI configuration", .path.display())]
    Config {
        /// The container.
        id: ContainerId,
        /// The file.
        path: PathBuf,
        /// The parser's error, with its position.
        #[source]
        source: serde_json::Error,
    },
    /// The container is a virtual machine.
    #[error("container {id} is a virtual machine, whose kernel is not this one: use a runtime such as runc or crun")]
    VirtualMachine {
        /// The container.
        id: ContainerId,
    },
    /// The engine cannot be determined.
    #[error("determine the engine of container {id}")]
    Engine {
        /// The container.
        id: ContainerId,
        /// The cause.
        #[source]
        source: EngineError,
    },
}

impl Container {
    /// Combines the state, the text of the bundle's config.json and the hook's `--engine`.
    pub fn parse(state: &OciState, config_json: &str, engine: Option<Engine>) -> Result<Self, ContainerError> {
        let id = || state.id.clone();
        let config = ContainerConfig::parse(config_json).map_err(|source| ContainerError::Config {
            id: id(),
            path: state.bundle.join("config.json"),
            source,
        })?;
        if config.vm || is_kata(&state.bundle, &config) {
            return Err(ContainerError::VirtualMachine { id: id() });
        }
        let unknown = |source| ContainerError::Engine { id: id(), source };
        let engine = Engine::of(&state.id, &state.bundle, config.cgroups_path.as_deref(), engine).map_err(unknown)?;
        let workload = engine.workload(&config.annotations).map_err(unknown)?;
        Ok(Self {
            id: state.id.clone(),
            pid: state.pid,
            status: state.status,
            bundle: state.bundle.clone(),
            rootfs: state.bundle.join(&config.root),
            engine,
            name: workload.container.clone(),
            workload,
            labels: BTreeMap::new(),
            pod_check: None,
            podman: None,
            user: (config.user.uid, config.user.gid),
            sandbox: engine.sandbox(&config.annotations).map(str::to_owned),
            is_sandbox: engine.is_sandbox(&config.annotations),
            config,
        })
    }

    /// The container's request; None if no annotation applies to it. Only annotations that name it apply to a sandbox.
    ///
    /// Callers that can recognise init and ephemeral containers (NRI) treat them like sandboxes; neither state nor
    /// config.json distinguishes them from regular containers.
    pub fn request(&self) -> Result<Option<Request>, RequestError> {
        let annotations = &self.config.annotations;
        if let Some(names) = &self.podman {
            return Ok(Request::parse_podman(annotations, names)?.filter(|request| !request.is_empty()));
        }
        let request = match (self.is_sandbox, &self.name) {
            (true, None) => None,
            (true, Some(name)) => Request::parse_named(annotations, name)?,
            (false, name) => Request::parse(annotations, name.as_deref())?,
        };
        Ok(request.filter(|request| !request.is_empty()))
    }

    /// The facts that policy rules match, for a runtime that runs as `runtime_user`.
    pub fn facts(&self, runtime_user: u32) -> ContainerFacts {
        let labels = self.labels.clone();
        ContainerFacts { labels, ..facts(&self.config, self.engine, &self.workload, runtime_user) }
    }

    /// Refuses a container of a pod with a token if it can have a capability with which that token gives access to
    /// kernel memory, even if the container itself requests nothing (kernel/bpf/token.c, `bpf_token_capable`:
    /// CAP_SYS_ADMIN substitutes for all capabilities).
    pub fn check_pod(&self) -> Result<(), PodCapability> {
        let found = [Capability::Perfmon, Capability::SysAdmin].into_iter().find(|c| self.config.can_have(*c) != Allowed::No);
        match (self.pod_check, found) {
            (Some(_), Some(capability)) => Err(PodCapability { capability: capability.name() }),
            _ => Ok(()),
        }
    }

    /// Refuses a request if the container lacks the rights to use what it requests.
    pub fn check_rights(&self, request: &Request, delegation: Option<&Delegation>, grant: bool) -> Result<(), MissingRights> {
        Needs::of(delegation, !request.maps.is_empty()).check(&self.config, self.engine, grant)
    }

    /// True if the engine configures the network after createRuntime: podman with a user namespace, whose network
    /// namespace has only `lo` until then.
    pub fn late_network(&self) -> bool {
        self.engine == Engine::Podman
            && self.config.namespace(NamespaceKind::User) != NamespaceSource::Runtime
            && self.config.namespace(NamespaceKind::Network) == NamespaceSource::New
    }

    /// Why the container sees cgroups other than its own, as far as its configuration shows.
    pub fn foreign_cgroups(&self) -> Option<String> {
        let mount = self.config.host_cgroup_mount()?;
        Some(format!("{} of the host is mounted at its {}", mount.source.display(), mount.destination.display()))
    }

    /// True if an annotation names a podman container, so that its names are needed.
    pub fn needs_podman_names(&self) -> bool {
        self.engine == Engine::Podman && self.config.annotations.keys().any(|key| names_a_container(key))
    }

    /// True if there is a bpfman-hook annotation. Cheap: nothing is parsed.
    pub fn asks(&self) -> bool {
        asks(self.config.annotations.keys())
    }
}

/// The facts that policy rules match, before the container exists (precreate).
pub fn facts(config: &ContainerConfig, engine: Engine, workload: &Workload, runtime_user: u32) -> ContainerFacts {
    ContainerFacts {
        engine,
        namespace: workload.namespace.clone(),
        pod: workload.pod.clone(),
        container: workload.container.clone(),
        labels: BTreeMap::new(),
        runtime_user,
        userns: config.namespace(NamespaceKind::User) != NamespaceSource::Runtime && !maps_host_root(config),
    }
}

/// True if a new user namespace maps the host's user or group 0, as far as the configuration shows: its root is then
/// the host's.
fn maps_host_root(config: &ContainerConfig) -> bool {
    let host_root = |map: &IdMapping| map.host == 0 && map.size > 0;
    config.uid_mappings.iter().chain(&config.gid_mappings).any(host_root)
}

/// True if a key is ours or looks as if it was meant to be (such a key is refused): `hook.bpfman.io/…`,
/// `<container>.hook.bpfman.io/…` and similar ones.
pub fn asks<'a>(keys: impl IntoIterator<Item = &'a String>) -> bool {
    keys.into_iter().any(|key| resembles_ours(key))
}

/// Kata Containers sets these on containers in its machines, whose pid is that of a shim.
fn is_kata(bundle: &Path, config: &ContainerConfig) -> bool {
    bundle.starts_with("/run/kata-containers")
        || config.annotations.keys().any(|key| key.starts_with("io.katacontainers.pkg.oci."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::annotations::PREFIX;
    use crate::model::seccomp::Syscall;

    fn data(name: &str) -> String {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
    }

    fn state(bundle: &str) -> OciState {
        OciState::parse(&format!(r#"{{"ociVersion":"1.0","id":"web","pid":7,"bundle":"{bundle}","status":"created"}}"#))
            .unwrap()
    }

    fn container(config: &str) -> Container {
        let engine = config.starts_with("podman").then_some(Engine::Podman);
        Container::parse(&state("/srv/web"), &data(&format!("config/{config}.json")), engine).unwrap()
    }

    #[test]
    fn recorded_configurations_parse() {
        use Allowed::{No, Unknown, Yes};
        // file, bpf(2), perf_event_open(2), CAP_BPF, user namespace of its own, host's network, host's cgroups
        for (file, bpf, perf, cap, userns, hostnet, cgroups) in [
            ("runc-1.1.5_spec", Yes, Yes, No, false, false, false),
            ("runc-1.1.5_spec-rootless", Yes, Yes, No, true, true, true),
            ("crun-1.8.1_spec", Yes, Yes, No, false, false, false),
            ("runc-1.1.5_userns", Yes, Yes, Yes, true, false, false),
            ("podman-4.3.1_default", No, No, No, false, false, false),
            ("podman-4.3.1_userns", No, No, Yes, true, false, false),
            ("podman-4.3.1_user1000", No, No, Yes, false, false, false),
            ("podman-4.3.1_unconfined", Yes, Yes, No, false, false, false),
            ("podman-4.3.1_privileged", Yes, Yes, Yes, false, false, false),
            ("podman-4.3.1_hostnet", No, No, No, true, true, true),
            ("podman-4.3.1_pod", No, No, No, false, false, false),
        ] {
            let c = container(file).config;
            assert_eq!(c.seccomp_allows(Syscall::Bpf), bpf, "{file}");
            assert_eq!(c.seccomp_allows(Syscall::PerfEventOpen), perf, "{file}");
            assert_eq!(c.can_have(Capability::Bpf), cap, "{file}");
            assert_eq!(c.namespace(NamespaceKind::User) == NamespaceSource::New, userns, "{file}");
            assert_eq!(c.namespace(NamespaceKind::Network) == NamespaceSource::Runtime, hostnet, "{file}");
            assert_eq!(c.host_cgroup_mount().is_some(), cgroups, "{file}");
            assert_eq!(!c.uid_mappings.is_empty(), userns, "{file}");
            assert_ne!(cap, Unknown);
        }
        assert_eq!(container("podman-4.3.1_user1000").config.user.uid, 1000);
        assert!(container("podman-4.3.1_pod").config.annotations.contains_key("io.kubernetes.cri-o.SandboxID"));
    }

    #[test]
    fn a_container_of_a_checked_pod_must_not_have_the_capabilities() {
        let with = |bounding: &str, uid: u32, check| {
            let text = format!(
                r#"{{"root":{{"path":"r"}},"process":{{"user":{{"uid":{uid},"gid":0}},"capabilities":{{"bounding":["CAP_BPF"{bounding}]}}}}}}"#
            );
            Container { pod_check: check, ..Container::parse(&state("/srv/web"), &text, None).unwrap() }
        };
        for check in [PodCheck::This, PodCheck::Every] {
            assert_eq!(PodCheck::from_word(check.word()), Some(check));
            assert_eq!(with("", 0, Some(check)).check_pod(), Ok(()));
            for capability in ["CAP_PERFMON", "CAP_SYS_ADMIN"] {
                // File capabilities may give it to a user who does not have it.
                for uid in [0, 1000] {
                    let container = with(&format!(r#","{capability}""#), uid, Some(check));
                    assert_eq!(container.check_pod(), Err(PodCapability { capability }));
                }
                assert_eq!(with(&format!(r#","{capability}""#), 0, None).check_pod(), Ok(()));
                assert!(PodCapability { capability }.to_string().len() <= 285);
            }
        }
    }

    #[test]
    fn policy_ignores_a_user_namespace_that_maps_host_root() {
        for (host, size, userns) in [(100_000, 65536, true), (1, 65536, true), (0, 1, false), (0, u32::MAX, false)] {
            for (uids, gids) in [((host, size), (7, 1)), ((7, 1), (host, size))] {
                let map = |(host, size): (u32, u32)| format!(r#"[{{"containerID":0,"hostID":{host},"size":{size}}}]"#);
                let text = format!(
                    r#"{{"root":{{"path":"r"}},"linux":{{"namespaces":[{{"type":"user"}}],"uidMappings":{},"gidMappings":{}}}}}"#,
                    map(uids),
                    map(gids)
                );
                let container = Container::parse(&state("/srv/web"), &text, None).unwrap();
                assert_eq!(container.facts(0).userns, userns, "{text}");
            }
        }
    }

    #[test]
    fn a_podman_pod_is_not_a_kubernetes_pod() {
        let text = data("config/podman-4.3.1_pod.json");
        let bundle = "/var/lib/containers/storage/overlay-containers/web/userdata";
        let c = Container::parse(&state(bundle), &text, None).unwrap();
        assert_eq!((c.engine, c.workload), (Engine::Podman, Workload::default()));
        assert!(c.sandbox.is_some());
        assert!(matches!(c.config.namespace(NamespaceKind::Network), NamespaceSource::Joined(_)));
        let error = Container::parse(&state("/srv/web"), &text, None).unwrap_err();
        assert!(matches!(error, ContainerError::Engine { source: EngineError::ForeignIdentity { .. }, .. }));
    }

    #[test]
    fn a_containerd_container_has_a_kubernetes_workload() {
        let text = data("oci-state/containerd-2.1.9_runc-1.3.6_config_userns.json");
        let c = Container::parse(&state("/run/containerd/io.containerd.runtime.v2.task/k8s.io/web"), &text, None).unwrap();
        assert_eq!(c.engine, Engine::Containerd);
        assert_eq!((c.workload.namespace.as_deref(), c.name.as_deref()), (Some("lab"), Some("main")));
        assert_eq!((c.is_sandbox, c.asks()), (false, true));
        assert_eq!(c.rootfs, Path::new("/run/containerd/io.containerd.runtime.v2.task/k8s.io/web/rootfs"));
        let elsewhere = Container::parse(&state("/srv/web"), &text, Some(Engine::Containerd)).unwrap();
        assert_eq!(elsewhere.workload.namespace.as_deref(), Some("lab"));
        assert!(Container::parse(&state("/srv/web"), &text, Some(Engine::Podman)).is_err());
    }

    #[test]
    fn engines_of_recorded_states_are_detected() {
        let config = r#"{"root":{"path":"rootfs"}}"#;
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/oci-state");
        let mut seen = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.ends_with(".json") || name.contains("_config_") {
                continue;
            }
            let state = OciState::parse(&data(&format!("oci-state/{name}"))).unwrap();
            let argument = if name.starts_with("podman") { Some(Engine::Podman) } else { None };
            let c = Container::parse(&state, config, argument).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            assert!(c.rootfs.is_absolute() && c.rootfs.ends_with("rootfs"), "{name}");
            if name.starts_with("podman") {
                assert_eq!(c.engine, Engine::Podman, "{name}");
            }
            seen += 1;
        }
        assert!(seen > 30, "{seen}");
    }

    #[test]
    fn incomplete_configurations() {
        let parse = |text: &str| Container::parse(&state("/srv/web"), text, None);
        for odd in [
            r#"{"root":{"path":"rootfs"}}"#,
            r#"{"root":{"path":"rootfs"},"vm":null,"linux":null,"process":null,"mounts":null,"annotations":null}"#,
            r#"{"root":{"path":"rootfs","x":1},"linux":{"namespaces":null,"seccomp":null,"uidMappings":null,"cgroupsPath":null},
                "process":{"user":{"uid":0},"capabilities":{"bounding":null},"noNewPrivileges":null},"mounts":[{"destination":"/a"}]}"#,
            r#"{"root":{"path":"rootfs"},"linux":{"namespaces":[{"type":"new-kind"}],"seccomp":{"defaultAction":"X"}}}"#,
        ] {
            assert!(parse(odd).is_ok(), "{odd}");
        }
        assert_eq!(parse(r#"{"root":{"path":"rootfs"}}"#).unwrap().rootfs, Path::new("/srv/web/rootfs"));
        assert_eq!(parse(r#"{"root":{"path":"/r"}}"#).unwrap().rootfs, Path::new("/r"));
        for bad in ["", "{}", "[]", r#"{"root":{}}"#, r#"{"root":{"path":"r"},"annotations":[1]}"#] {
            assert!(matches!(parse(bad), Err(ContainerError::Config { .. })), "{bad}");
        }
        for vm in [
            r#"{"root":{"path":"r"},"vm":{"kernel":{"path":"/vmlinuz"}}}"#,
            r#"{"root":{"path":"r"},"annotations":{"io.katacontainers.pkg.oci.container_type":"pod_container"}}"#,
        ] {
            assert!(matches!(parse(vm), Err(ContainerError::VirtualMachine { .. })), "{vm}");
        }
    }

    #[test]
    fn annotations_apply_to_a_sandbox_only_by_name() {
        let text = data("oci-state/containerd-2.1.9_runc-1.3.6_config_userns.json");
        let parse = |edit: &dyn Fn(&mut serde_json::Value)| {
            let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
            let annotations = &mut config["annotations"];
            for key in ["image", "programs", "maps.main"] {
                annotations.as_object_mut().unwrap().remove(&format!("hook.bpfman.io/{key}"));
            }
            annotations["hook.bpfman.io/bpffs"] = "private".into();
            edit(annotations);
            let bundle = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/web";
            Container::parse(&state(bundle), &config.to_string(), None).unwrap().request().unwrap()
        };
        assert!(parse(&|_| {}).is_some());
        let sandbox = |a: &mut serde_json::Value| a["io.kubernetes.cri.container-type"] = "sandbox".into();
        assert!(parse(&sandbox).is_none());
        assert!(
            parse(&|a| {
                sandbox(a);
                a.as_object_mut().unwrap().remove("io.kubernetes.cri.container-name");
            })
            .is_none()
        );
        assert!(
            parse(&|a| {
                sandbox(a);
                a["main.hook.bpfman.io/bpffs"] = "private".into();
            })
            .is_some()
        );
        // A key that only qualifies others requests nothing.
        assert!(
            parse(&|a| {
                a.as_object_mut().unwrap().remove("hook.bpfman.io/bpffs");
                a["hook.bpfman.io/on-failure"] = "stop".into();
            })
            .is_none()
        );
    }

    #[test]
    fn rights_and_paths_of_recorded_containers() {
        let with = |file: &str, annotations: &[(&str, &str)]| {
            let mut container = container(file);
            container.config.annotations.clear();
            for (key, value) in annotations {
                container.config.annotations.insert(format!("{PREFIX}{key}"), (*value).to_owned());
            }
            let request = container.request().unwrap().unwrap();
            (container, request)
        };
        let xdp = Delegation { cmds: 1, maps: 4, progs: 1 << 6, attachs: 1 };
        let (userns, token) = with("runc-1.1.5_userns", &[("delegate", "networking")]);
        assert_eq!(userns.check_rights(&token, Some(&xdp), false), Ok(()));
        assert_eq!((userns.late_network(), userns.foreign_cgroups()), (false, None));

        let (podman, token) = with("podman-4.3.1_userns", &[("delegate", "networking")]);
        let missing = podman.check_rights(&token, Some(&xdp), false).unwrap_err();
        assert!(missing.to_string().starts_with("the container's seccomp profile refuses bpf(2): "), "{missing}");
        assert!(podman.late_network());
        assert_eq!((podman.facts(7).userns, podman.facts(7).runtime_user, podman.facts(7).engine), (true, 7, Engine::Podman));

        // Maps are read with bpf(2), which needs no capability for that.
        let maps = [("image", "oci:/demo"), ("programs", "xdp:count"), ("maps", "packets")];
        let (default, request) = with("podman-4.3.1_default", &maps);
        assert!(
            default.check_rights(&request, None, false).unwrap_err().to_string().starts_with("the container's seccomp profile")
        );
        assert!(!default.late_network() && !default.facts(0).userns);
        let (unconfined, request) = with("podman-4.3.1_unconfined", &maps);
        assert_eq!(unconfined.check_rights(&request, None, false), Ok(()));

        let hostnet = container("podman-4.3.1_hostnet");
        assert!(!hostnet.late_network());
        assert_eq!(hostnet.foreign_cgroups().as_deref(), Some("/sys of the host is mounted at its /sys"));
    }

    #[test]
    fn our_keys_are_detected_without_parsing() {
        for (key, ours) in [
            ("hook.bpfman.io/image", true),
            ("web.hook.bpfman.io/image", true),
            ("hook.bpfman.io/", true),
            ("hook.bpfman.io.image", true),
            ("webhook.bpfman.io/image", false),
            ("", false),
        ] {
            assert_eq!(asks([&key.to_owned()]), ours, "{key}");
        }
    }

    #[test]
    fn capabilities_follow_capabilities_7() {
        use Allowed::{No, Unknown, Yes};
        // uid, no_new_privs, sets that contain CAP_BPF
        for (uid, nnp, sets, expected) in [
            (0, false, "", No),
            (0, false, "bounding", Yes),
            (0, true, "bounding", No),
            (0, true, "bounding permitted", Yes),
            (1000, false, "bounding", Unknown),
            (1000, false, "bounding permitted ambient", Yes),
            (1000, true, "bounding permitted", No),
            (1000, true, "bounding permitted ambient", Yes),
            (1000, false, "ambient permitted", No),
        ] {
            let sets = sets.split_whitespace().map(|s| format!(r#""{s}":["CAP_CHOWN","CAP_BPF"]"#)).collect::<Vec<_>>();
            let text = format!(
                r#"{{"root":{{"path":"r"}},"process":{{"user":{{"uid":{uid},"gid":0}},"noNewPrivileges":{nnp},"capabilities":{{{}}}}}}}"#,
                sets.join(",")
            );
            assert_eq!(ContainerConfig::parse(&text).unwrap().can_have(Capability::Bpf), expected, "{text}");
        }
    }

    #[test]
    fn bind_mounts_of_host_cgroups_are_found() {
        for (mount, found) in [
            (r#"{"destination":"/c","type":"bind","source":"/sys/fs/cgroup"}"#, true),
            (r#"{"destination":"/c","source":"/sys/fs/cgroup/unified/x","options":["bind"]}"#, true),
            (r#"{"destination":"/host","source":"/","options":["rbind"]}"#, true),
            (r#"{"destination":"/sys","type":"bind","source":"/sys/","options":["rbind","ro"]}"#, true),
            (r#"{"destination":"/host","source":"/","options":["bind"]}"#, false),
            (r#"{"destination":"/c","source":"/sys/fs/cgroupx","options":["rbind"]}"#, false),
            (r#"{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup"}"#, false),
            (r#"{"destination":"/d","source":"","options":["rbind"]}"#, false),
        ] {
            let config = ContainerConfig::parse(&format!(r#"{{"root":{{"path":"r"}},"mounts":[{mount}]}}"#)).unwrap();
            assert_eq!(config.host_cgroup_mount().is_some(), found, "{mount}");
        }
    }
}
