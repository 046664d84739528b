//! The names that engines give their containers, for listings. No record has podman's and docker's names: a start
//! would have to look for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::model::policy::Engine;
use crate::model::record::ContainerOwner;
use crate::sys::fsutil;

/// A host with a thousand containers has a file of about 500 kB.
const INDEX_MAX: usize = 64 << 20;
/// docker's description of one container has about 4 kB.
const DOCKER_MAX: usize = 4 << 20;
/// Where docker describes its containers, below the root directory.
const DOCKER: &str = "/var/lib/docker/containers";

/// One entry of podman's index.
#[derive(Deserialize)]
struct IndexedContainer {
    id: String,
    #[serde(default)]
    names: Vec<String>,
}

/// docker's description of a container.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerContainer {
    name: String,
}

/// Looks up names, and reads podman's index once for each of its directories.
#[derive(Debug, Default)]
pub struct EngineNames {
    indexes: BTreeMap<PathBuf, BTreeMap<String, String>>,
}

impl EngineNames {
    /// The name by which users know the container: `POD/CONTAINER` in Kubernetes, podman's or docker's name. None if
    /// there is none, or if the engine has forgotten the container.
    pub fn of(&mut self, container: &ContainerOwner) -> Option<String> {
        let workload = &container.workload;
        match (&workload.pod, &workload.container) {
            (Some(pod), Some(name)) => return Some(format!("{pod}/{name}")),
            (None, Some(name)) => return Some(name.clone()),
            (Some(_) | None, None) => {}
        }
        if container.engine == Engine::Podman {
            let directory = container.bundle.parent()?.parent()?;
            let index = self.indexes.entry(directory.to_owned()).or_insert_with(|| index(directory));
            return index.get(container.id.as_str()).cloned();
        }
        let of_docker = container.bundle.iter().any(|part| part == "moby");
        of_docker.then(|| docker_name(Path::new(DOCKER), container.id.as_str())).flatten()
    }
}

/// The names in the index of a storage directory (containers/storage, `containers.go`): containers of `--rm` are in
/// the volatile one. Empty if there is none.
fn index(directory: &Path) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for file in ["containers.json", "volatile-containers.json"] {
        let Ok(text) = fsutil::read_text(&directory.join(file), INDEX_MAX) else { continue };
        let Ok(entries) = serde_json::from_str::<Vec<IndexedContainer>>(&text) else { continue };
        names.extend(entries.into_iter().filter_map(|entry| Some((entry.id, entry.names.into_iter().next()?))));
    }
    names
}

fn docker_name(containers: &Path, id: &str) -> Option<String> {
    let text = fsutil::read_text(&containers.join(id).join("config.v2.json"), DOCKER_MAX).ok()?;
    let described: DockerContainer = serde_json::from_str(&text).ok()?;
    Some(described.name.trim_start_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::record::Workload;

    #[test]
    fn a_container_has_the_name_that_its_engine_shows() {
        let root = tempfile::tempdir().unwrap();
        let storage = root.path().join("overlay-containers");
        fs::create_dir_all(&storage).unwrap();
        fs::write(storage.join("containers.json"), r#"[{"id":"ab","names":["c1"],"image":"x"},{"id":"ef"}]"#).unwrap();
        fs::write(storage.join("volatile-containers.json"), r#"[{"id":"cd","names":["c2"]}]"#).unwrap();
        let container = |id: &str, engine, bundle: PathBuf, [pod, name]: [Option<&str>; 2]| {
            let workload = Workload { namespace: None, pod: pod.map(str::to_owned), container: name.map(str::to_owned) };
            ContainerOwner::new(id.parse().unwrap(), bundle, 0, engine, workload)
        };
        let mut names = EngineNames::default();
        for (id, name) in [("ab", Some("c1")), ("cd", Some("c2")), ("ef", None), ("gh", None)] {
            let podmans = container(id, Engine::Podman, storage.join(id).join("userdata"), [None; 2]);
            assert_eq!(names.of(&podmans).as_deref(), name, "{id}");
        }
        let pods = container("ab", Engine::Containerd, "/b".into(), [Some("front"), Some("web")]);
        assert_eq!(names.of(&pods).as_deref(), Some("front/web"));
        assert_eq!(names.of(&container("ab", Engine::Oci, "/b".into(), [None; 2])), None);

        fs::create_dir(root.path().join("ab")).unwrap();
        fs::write(root.path().join("ab/config.v2.json"), r#"{"ID":"ab","Name":"/brave_euler"}"#).unwrap();
        assert_eq!(docker_name(root.path(), "ab").as_deref(), Some("brave_euler"));
    }
}
