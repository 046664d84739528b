//! Running containers as runtimes recorded them, whether they were started with bpfman-hook or not.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::model::container::asks;

/// Where runc and crun keep their state when called directly by root, by podman, containerd, docker and CRI-O. A
/// runtime with another `--root` is not found.
pub const RUNTIME_STATES: [&str; 6] = [
    "/run/runc",
    "/run/crun",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/runc/default",
    "/run/docker/runtime-runc/moby",
    "/run/k3s/containerd/runc/k8s.io",
];

/// A running container as its runtime recorded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningContainer {
    /// Its id.
    pub id: String,
    /// Its init.
    pub pid: u32,
    /// When its init started, in clock ticks since boot; None if the runtime did not record it.
    pub start_time: Option<u64>,
    /// Its bundle; None if the runtime did not record it.
    pub bundle: Option<PathBuf>,
    /// True if it has one of our annotations.
    pub asks: bool,
}

/// The fields that we read of runc's `state.json` (libcontainer's State and Config).
#[derive(Deserialize)]
struct RuncState {
    init_process_pid: i64,
    #[serde(default)]
    init_process_start: Option<u64>,
    config: RuncConfig,
}

#[derive(Deserialize)]
struct RuncConfig {
    #[serde(default)]
    labels: Option<Vec<String>>,
}

/// The fields that we read of crun's `status`.
#[derive(Deserialize)]
struct CrunStatus {
    pid: i64,
    #[serde(default, rename = "process-start-time")]
    start_time: Option<u64>,
    bundle: PathBuf,
}

#[derive(Deserialize)]
struct CrunAnnotations {
    #[serde(default)]
    annotations: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// The containers that runtimes of this host have recorded, with every path below `root`, including dead ones.
///
/// # Errors
/// If a directory cannot be read.
pub fn recorded(root: &Path) -> io::Result<Vec<RunningContainer>> {
    let mut found = Vec::new();
    for directory in RUNTIME_STATES {
        found.extend(recorded_in(&below(root, Path::new(directory)), root)?);
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

/// The containers of one runtime, whose `--root` is `directory`; none if it does not exist.
///
/// # Errors
/// If the directory cannot be read.
pub fn recorded_in(directory: &Path, root: &Path) -> io::Result<Vec<RunningContainer>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(io::Error::new(err.kind(), format!("{}: {err}", directory.display()))),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let id = entry.file_name().to_string_lossy().into_owned();
        found.extend(runc(&id, &entry.path()).or_else(|| crun(&id, &entry.path(), root)));
    }
    Ok(found)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn runc(id: &str, directory: &Path) -> Option<RunningContainer> {
    let state: RuncState = serde_json::from_str(&fs::read_to_string(directory.join("state.json")).ok()?).ok()?;
    let labels: Vec<(&str, &str)> = state.config.labels.iter().flatten().filter_map(|label| label.split_once('=')).collect();
    // runc adds its own label after the annotations.
    let bundle = labels.iter().rev().find(|(key, _)| *key == "bundle").map(|(_, path)| PathBuf::from(path));
    let keys: Vec<String> = labels.iter().map(|(key, _)| (*key).to_owned()).collect();
    Some(RunningContainer {
        id: id.to_owned(),
        pid: u32::try_from(state.init_process_pid).ok()?,
        start_time: state.init_process_start,
        bundle,
        asks: asks(&keys),
    })
}

fn crun(id: &str, directory: &Path, root: &Path) -> Option<RunningContainer> {
    let status: CrunStatus = serde_json::from_str(&fs::read_to_string(directory.join("status")).ok()?).ok()?;
    let config = fs::read_to_string(below(root, &status.bundle.join("config.json"))).ok()?;
    let config: CrunAnnotations = serde_json::from_str(&config).ok()?;
    let keys: Vec<String> = config.annotations.into_iter().flatten().map(|(key, _)| key).collect();
    Some(RunningContainer {
        id: id.to_owned(),
        pid: u32::try_from(status.pid).ok()?,
        start_time: status.start_time,
        bundle: Some(status.bundle),
        asks: asks(&keys),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As runc 1.1.5 and crun 1.8.1 write their files: the fields that are read and some that are not.
    fn sample_states() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = below(root.path(), Path::new(path));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let state = |pid: u32, labels: &str| {
            format!(
                r#"{{"id":"x","init_process_pid":{pid},"init_process_start":292868,"config":{{"labels":{labels},"rootless_euid":false}},"rootless":false}}"#
            )
        };
        write("/run/runc/asks/state.json", &state(11, r#"["hook.bpfman.io/bpffs=token=1","bundle=/srv/asks"]"#));
        write("/run/containerd/runc/k8s.io/plain/state.json", &state(12, r#"["bundle=/srv/plain"]"#));
        write("/run/runc/nolabels/state.json", &state(13, "null"));
        write("/run/runc/broken/state.json", "{");
        write(
            "/run/crun/crunning/status",
            r#"{"pid":14,"process-start-time":7,"cgroup-path":"/x","bundle":"/srv/crunning","owner":"root"}"#,
        );
        write("/srv/crunning/config.json", r#"{"annotations":{"main.hook.bpfman.io/image":"x","other":"y"}}"#);
        root
    }

    #[test]
    fn containers_of_each_runtime_are_found() {
        let root = sample_states();
        let found = recorded(root.path()).unwrap();
        let shown: Vec<_> = found.iter().map(|c| (c.id.as_str(), c.pid, c.start_time, c.asks)).collect();
        assert_eq!(
            shown,
            [
                ("asks", 11, Some(292_868), true),
                ("crunning", 14, Some(7), true),
                ("nolabels", 13, Some(292_868), false),
                ("plain", 12, Some(292_868), false)
            ]
        );
        let bundles: Vec<_> = found.iter().map(|c| c.bundle.as_ref().and_then(|path| path.to_str())).collect();
        assert_eq!(bundles, [Some("/srv/asks"), Some("/srv/crunning"), None, Some("/srv/plain")]);
        assert_eq!(recorded(&root.path().join("none")).unwrap(), []);
    }
}
