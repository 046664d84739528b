//! What made a container, and the container's place in Kubernetes: facts that policy rules match, never claims.
//!
//! Annotations alone prove nothing: podman copies them from the workload's image, CRI-O from the pod. So the engine is known
//! by where the bundle lies and by the hook's own arguments, and of the annotations only those count that this engine
//! writes itself, last.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use crate::model::ids::ContainerId;
use crate::model::policy::Engine;
use crate::model::record::Workload;

/// Why it is not known what made a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The hook file and the bundle contradict each other.
    #[error("the hook was called with --engine {} but the bundle is where {} keeps its bundles: run `bpfman-hook install` for both", .argument.word(), .place.word())]
    Contradiction {
        /// `--engine`.
        argument: Engine,
        /// By the bundle's place.
        place: Engine,
    },
    /// An annotation by which another engine identifies its containers.
    #[error("annotation {key:?} identifies containers of another engine than {}: leave it out", .engine.word())]
    ForeignIdentity {
        /// The annotation.
        key: String,
        /// What made the container.
        engine: Engine,
    },
}

impl Engine {
    /// Every engine, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Containerd, Self::CriO, Self::Podman, Self::Oci];

    /// The word in policy files and for `--engine`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
            Self::Oci => "oci",
        }
    }

    /// The engine that a word names, or None.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.word() == word)
    }

    /// The engine that made the container, from its bundle, the hook's `--engine` and `linux.cgroupsPath`.
    ///
    /// The place wins where it is one that an engine keeps to itself; the argument counts elsewhere (podman with `--root`);
    /// with neither it is a runtime that was called directly.
    pub fn of(
        id: &ContainerId,
        bundle: &Path,
        cgroups_path: Option<&str>,
        argument: Option<Self>,
    ) -> Result<Self, EngineError> {
        match (by_place(id.as_str(), bundle, cgroups_path), argument) {
            (Some(place), Some(argument)) if place != argument => Err(EngineError::Contradiction { argument, place }),
            (Some(engine), _) | (None, Some(engine)) => Ok(engine),
            (None, None) => Ok(Self::Oci),
        }
    }

    /// The container's place in Kubernetes, by the annotations of this engine; empty under podman and plain runtimes.
    ///
    /// Errors where an annotation identifies containers of another engine.
    pub fn workload(self, annotations: &BTreeMap<String, String>) -> Result<Workload, EngineError> {
        let foreign =
            annotations.keys().find(|key| !self.may_write(key) && Self::ALL.into_iter().any(|e| e.identifies_by(key)));
        if let Some(key) = foreign {
            return Err(EngineError::ForeignIdentity { key: key.clone(), engine: self });
        }
        let text = |key: &str| annotations.get(key).filter(|value| !value.is_empty()).cloned();
        Ok(match self {
            // internal/cri/annotations of containerd, written after what `pod_annotations` lets through.
            Self::Containerd => Workload {
                namespace: text("io.kubernetes.cri.sandbox-namespace"),
                pod: text("io.kubernetes.cri.sandbox-name"),
                container: text("io.kubernetes.cri.container-name"),
            },
            // The kubelet's labels, which CRI-O writes after all else (internal/factory/container, SpecAddAnnotations). It does
            // not write `io.kubernetes.cri-o.Namespace` on containers, so that a pod's author could: never read it.
            Self::CriO => Workload {
                namespace: text("io.kubernetes.pod.namespace"),
                pod: text("io.kubernetes.pod.name"),
                container: text("io.kubernetes.container.name"),
            },
            Self::Podman | Self::Oci => Workload::default(),
        })
    }

    /// True for the container that holds a pod's namespaces and nothing else. podman marks its infra containers in no way that an image
    /// could not, and gives them no annotations of the pod's.
    pub fn is_sandbox(self, annotations: &BTreeMap<String, String>) -> bool {
        let key = match self {
            Self::Containerd => "io.kubernetes.cri.container-type",
            Self::CriO => "io.kubernetes.cri-o.ContainerType",
            Self::Podman | Self::Oci => return false,
        };
        annotations.get(key).is_some_and(|kind| kind == "sandbox")
    }

    /// The pod's sandbox, where this engine names it. Under podman it is a claim: an image may have made it (lifecycle/linux_host.rs).
    pub fn sandbox(self, annotations: &BTreeMap<String, String>) -> Option<&str> {
        let key = match self {
            Self::Containerd => "io.kubernetes.cri.sandbox-id",
            Self::CriO | Self::Podman => "io.kubernetes.cri-o.SandboxID",
            Self::Oci => return None,
        };
        annotations.get(key).map(String::as_str)
    }

    /// True for keys that tell this engine's containers apart.
    fn identifies_by(self, key: &str) -> bool {
        match self {
            Self::Containerd => key.strip_prefix("io.kubernetes.cri.").is_some_and(|rest| {
                matches!(
                    rest,
                    "container-type" | "container-name" | "sandbox-id" | "sandbox-name" | "sandbox-namespace" | "sandbox-uid"
                )
            }),
            Self::CriO => matches!(
                key,
                "io.kubernetes.cri-o.ContainerType"
                    | "io.kubernetes.cri-o.ContainerName"
                    | "io.kubernetes.cri-o.KubeName"
                    | "io.kubernetes.cri-o.Namespace"
                    | "io.kubernetes.cri-o.SandboxID"
                    | "io.kubernetes.cri-o.SandboxName"
                    | "io.kubernetes.pod.name"
                    | "io.kubernetes.pod.namespace"
                    | "io.kubernetes.pod.uid"
                    | "io.kubernetes.container.name"
            ),
            Self::Podman | Self::Oci => false,
        }
    }

    /// True for keys that this engine writes: its own, and under podman the two of CRI-O's that it sets in pods.
    fn may_write(self, key: &str) -> bool {
        let borrowed = matches!(key, "io.kubernetes.cri-o.ContainerType" | "io.kubernetes.cri-o.SandboxID");
        self.identifies_by(key) || (self == Self::Podman && borrowed)
    }
}

/// Where containerd keeps the bundles of its CRI plugin: its own default and those of k3s, k0s and MicroK8s. Bundles of its
/// other namespaces (`moby`, `default`) are plain OCI.
const CONTAINERD_STATE: [&str; 4] =
    ["/run/containerd", "/run/k3s/containerd", "/run/k0s/containerd", "/var/snap/microk8s/common/run/containerd"];

fn by_place(id: &str, bundle: &Path, cgroups_path: Option<&str>) -> Option<Engine> {
    if bundle.components().any(|part| !matches!(part, Component::RootDir | Component::Normal(_))) {
        return None;
    }
    // /var/run is /run.
    let run = bundle.strip_prefix("/var/run").map(|rest| Path::new("/run").join(rest));
    let bundle = run.as_deref().unwrap_or(bundle);

    let below = |state: &str| Path::new(state).join("io.containerd.runtime.v2.task/k8s.io").join(id) == bundle;
    if CONTAINERD_STATE.iter().any(|state| below(state)) {
        return Some(Engine::Containerd);
    }
    // containers/storage: <root>/<driver>-containers/<id>/userdata. podman's bundles are below the graph root, CRI-O's below
    // the run root, and those of `podman --transient-store` too: there the name of the cgroup tells, which neither an
    // image nor an annotation chooses.
    let storage = bundle.parent()?.parent()?;
    let shape = bundle.file_name()? == "userdata"
        && bundle.parent()?.file_name()? == id
        && storage.file_name()?.to_str()?.ends_with("-containers");
    match storage.parent()?.to_str()? {
        "/var/lib/containers/storage" if shape => Some(Engine::Podman),
        "/run/containers/storage" if shape && is_crio_cgroup(cgroups_path.unwrap_or_default()) => Some(Engine::CriO),
        "/run/containers/storage" if shape => Some(Engine::Podman),
        _ => None,
    }
}

/// `slice:crio:<id>` under systemd, `<parent>/crio-<id>` under cgroupfs.
fn is_crio_cgroup(path: &str) -> bool {
    match path.split(':').collect::<Vec<_>>().as_slice() {
        [_, prefix, _] => *prefix == "crio",
        _ => path.rsplit('/').next().is_some_and(|last| last.starts_with("crio-")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "6a3f";

    fn of(bundle: &str, cgroup: Option<&str>, argument: Option<Engine>) -> Result<Engine, EngineError> {
        Engine::of(&ID.parse().unwrap(), Path::new(bundle), cgroup, argument)
    }

    #[test]
    fn the_bundles_place_names_the_engine() {
        let k8s = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/6a3f";
        let podman = "/var/lib/containers/storage/overlay-containers/6a3f/userdata";
        let run = "/run/containers/storage/overlay-containers/6a3f/userdata";
        for (bundle, cgroup, engine) in [
            (k8s, None, Engine::Containerd),
            ("/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/6a3f", None, Engine::Containerd),
            ("/var/run/containerd/io.containerd.runtime.v2.task/k8s.io/6a3f", None, Engine::Containerd),
            ("/run/containerd/io.containerd.runtime.v2.task/moby/6a3f", None, Engine::Oci),
            ("/run/containerd/io.containerd.runtime.v2.task/k8s.io/other", None, Engine::Oci),
            ("/run/containerd/io.containerd.runtime.v2.task/k8s.io/../../../../home/me/6a3f", None, Engine::Oci),
            ("/home/me/run/containerd/io.containerd.runtime.v2.task/k8s.io/6a3f", None, Engine::Oci),
            (podman, None, Engine::Podman),
            ("/var/lib/containers/storage/vfs-containers/6a3f/userdata", None, Engine::Podman),
            ("/var/lib/containers/storage/overlay-containers/other/userdata", None, Engine::Oci),
            (run, Some("kubepods.slice:crio:6a3f"), Engine::CriO),
            (run, Some("/kubepods/burstable/crio-6a3f"), Engine::CriO),
            (run, Some("machine.slice:libpod:6a3f"), Engine::Podman),
            (run, Some("/libpod_parent/libpod-6a3f"), Engine::Podman),
            (run, None, Engine::Podman),
            ("/srv/bundles/web", None, Engine::Oci),
            ("/", None, Engine::Oci),
        ] {
            assert_eq!(of(bundle, cgroup, None), Ok(engine), "{bundle}");
        }
        assert_eq!(of("/tmp/store/vfs-containers/6a3f/userdata", None, Some(Engine::Podman)), Ok(Engine::Podman));
        assert_eq!(of(podman, None, Some(Engine::Podman)), Ok(Engine::Podman));
        assert_eq!(
            of(podman, None, Some(Engine::CriO)),
            Err(EngineError::Contradiction { argument: Engine::CriO, place: Engine::Podman })
        );
    }

    #[test]
    fn identity_is_read_from_the_engines_own_keys() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let containerd: BTreeMap<_, _> = map(&[
            ("io.kubernetes.cri.sandbox-namespace", "lab"),
            ("io.kubernetes.cri.sandbox-name", "demo"),
            ("io.kubernetes.cri.container-name", "main"),
        ]);
        let crio: BTreeMap<_, _> = map(&[
            ("io.kubernetes.cri-o.Namespace", "forged"),
            ("io.kubernetes.pod.namespace", "lab"),
            ("io.kubernetes.pod.name", "demo"),
            ("io.kubernetes.container.name", "main"),
        ]);
        let lab = Workload { namespace: Some("lab".into()), pod: Some("demo".into()), container: Some("main".into()) };
        assert_eq!(Engine::Containerd.workload(&containerd), Ok(lab.clone()));
        assert_eq!(Engine::CriO.workload(&crio), Ok(lab));
        for (engine, annotations, key) in [
            (Engine::CriO, &containerd, "io.kubernetes.cri.container-name"),
            (Engine::Podman, &containerd, "io.kubernetes.cri.container-name"),
            (Engine::Oci, &crio, "io.kubernetes.container.name"),
            (Engine::Containerd, &crio, "io.kubernetes.container.name"),
        ] {
            assert_eq!(
                engine.workload(annotations),
                Err(EngineError::ForeignIdentity { key: key.to_owned(), engine }),
                "{engine:?}"
            );
        }
        let pod: BTreeMap<_, _> =
            map(&[("io.kubernetes.cri-o.SandboxID", "8d66"), ("io.kubernetes.cri-o.ContainerType", "container")]);
        assert_eq!(Engine::Podman.workload(&pod), Ok(Workload::default()));
        assert_eq!(Engine::Podman.sandbox(&pod), Some("8d66"));
        let forged = map(&[("io.kubernetes.cri-o.ContainerType", "sandbox")]);
        assert!(!Engine::Podman.is_sandbox(&forged), "an image would go without what its user asked for");
        assert!(Engine::CriO.is_sandbox(&forged));
        assert!(Engine::Oci.workload(&pod).is_err());
    }
}
