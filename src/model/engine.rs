//! Determines the engine of a container and the container's Kubernetes workload. Policy rules match these facts, never
//! claims.
//!
//! Annotations alone prove nothing: podman copies them from the image, CRI-O from the pod. The engine is therefore
//! determined from the location of the bundle and the hook's own arguments. Of the annotations only those count that
//! this engine itself writes, last.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use crate::model::ids::ContainerId;
use crate::model::policy::Engine;
use crate::model::record::Workload;

/// Why the engine of a container cannot be determined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The hook file and the location of the bundle contradict each other.
    #[error("the hook was called with --engine {} but the bundle is where {} keeps its bundles: run `bpfman-hook install` for both", .argument.word(), .place.word())]
    Contradiction {
        /// `--engine`.
        argument: Engine,
        /// The engine that the bundle's location indicates.
        place: Engine,
    },
    /// An annotation that identifies containers of another engine.
    #[error("annotation {key:?} identifies containers of an engine other than {}: remove it", .engine.word())]
    ForeignIdentity {
        /// The annotation.
        key: String,
        /// The container's engine.
        engine: Engine,
    },
}

impl Engine {
    /// Every engine, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Containerd, Self::CriO, Self::Podman, Self::Oci];

    /// The name in policy files and for `--engine`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
            Self::Oci => "oci",
        }
    }

    /// Parses a name; None if it is unknown.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.word() == word)
    }

    /// Determines the engine from the container's bundle, the hook's `--engine` and `linux.cgroupsPath`.
    ///
    /// The location takes precedence if only one engine uses it; elsewhere the argument counts (podman with `--root`).
    /// With neither, the runtime was called directly.
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

    /// The container's Kubernetes workload, from the annotations of this engine; empty under podman and plain runtimes.
    ///
    /// # Errors
    /// An annotation identifies containers of another engine.
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
            // The kubelet's labels, which CRI-O writes last (internal/factory/container, SpecAddAnnotations). CRI-O
            // does not write `io.kubernetes.cri-o.Namespace` on containers, so a pod's author could set it: never read
            // it.
            Self::CriO => Workload {
                namespace: text("io.kubernetes.pod.namespace"),
                pod: text("io.kubernetes.pod.name"),
                container: text("io.kubernetes.container.name"),
            },
            Self::Podman | Self::Oci => Workload::default(),
        })
    }

    /// True for the container that only holds a pod's namespaces. podman does not mark its infra containers in a way
    /// that an image could not, and does not give them the pod's annotations.
    pub fn is_sandbox(self, annotations: &BTreeMap<String, String>) -> bool {
        let key = match self {
            Self::Containerd => "io.kubernetes.cri.container-type",
            Self::CriO => "io.kubernetes.cri-o.ContainerType",
            Self::Podman | Self::Oci => return false,
        };
        annotations.get(key).is_some_and(|kind| kind == "sandbox")
    }

    /// The pod's sandbox, if this engine names it. Under podman this is a claim: it may come from the image
    /// (lifecycle/linux_host.rs).
    pub fn sandbox(self, annotations: &BTreeMap<String, String>) -> Option<&str> {
        let key = match self {
            Self::Containerd => "io.kubernetes.cri.sandbox-id",
            Self::CriO | Self::Podman => "io.kubernetes.cri-o.SandboxID",
            Self::Oci => return None,
        };
        annotations.get(key).map(String::as_str)
    }

    /// True for keys that identify containers of this engine.
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

    /// True for keys that this engine writes: its own, and for podman the two CRI-O keys that it sets in pods.
    fn may_write(self, key: &str) -> bool {
        let borrowed = matches!(key, "io.kubernetes.cri-o.ContainerType" | "io.kubernetes.cri-o.SandboxID");
        self.identifies_by(key) || (self == Self::Podman && borrowed)
    }
}

/// The directories where containerd keeps the bundles of its CRI plugin: its own default and those of k3s, k0s and
/// MicroK8s. Bundles of its other namespaces (`moby`, `default`) count as plain OCI.
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
    // containers/storage: <root>/<driver>-containers/<id>/userdata. Bundles of podman are below the graph root, those
    // of CRI-O below the run root, and so are those of `podman --transient-store`. There the cgroup's name decides,
    // which neither an image nor an annotation can choose.
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
    fn the_bundles_location_identifies_the_engine() {
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
    fn identity_comes_from_the_engines_own_keys() {
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
        assert!(!Engine::Podman.is_sandbox(&forged), "an image could skip what its user requested");
        assert!(Engine::CriO.is_sandbox(&forged));
        assert!(Engine::Oci.workload(&pod).is_err());
    }
}
