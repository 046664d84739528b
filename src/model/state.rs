//! The OCI state as runtimes actually write it.
//!
//! It is parsed leniently: crun's `ociVersion` is "1.0", its pid at `poststop` is 0, `root` is its own key and may be
//! relative to the bundle, its status may be "starting", and runc omits the pid (recordings in tests/data/oci-state).
//! docs/decisions/0006 says what oci-spec's types do with them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::model::ids::{ContainerId, IdError, Pid};

/// The state that a runtime writes to a hook's stdin: runtime-spec, "State".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciState {
    /// The container's id.
    pub id: ContainerId,
    /// The status, as far as it is known.
    pub status: ContainerStatus,
    /// The container's init in the hook's pid namespace; None if the runtime wrote 0 or nothing.
    pub pid: Option<Pid>,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The container's annotations.
    pub annotations: BTreeMap<String, String>,
}

/// The status of a container; only the names of the runtime-spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerStatus {
    /// `creating`: runc, at createRuntime.
    Creating,
    /// `created`: crun, at createRuntime.
    Created,
    /// `running`
    Running,
    /// `stopped`: at poststop.
    Stopped,
    /// A status of only one runtime, such as crun's `starting`.
    Other,
}

/// Why a text is not a state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not JSON, or a key is missing or has another type.
    #[error("read the container's state from standard input: it is not an OCI state")]
    Json(#[source] serde_json::Error),
    /// The id is invalid.
    #[error("read the container's state from standard input")]
    Id(#[source] IdError),
    /// The bundle is relative or empty.
    #[error("read the container's state from standard input: bundle {0:?} is not an absolute path")]
    Bundle(PathBuf),
}

#[derive(Deserialize)]
#[serde(expecting = "an object with id and bundle")]
struct RawState {
    id: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    pid: Option<i64>,
    bundle: PathBuf,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl OciState {
    /// Parses the text from a hook's stdin.
    pub fn parse(text: &str) -> Result<Self, StateError> {
        let raw: RawState = serde_json::from_str(text).map_err(StateError::Json)?;
        if !raw.bundle.is_absolute() {
            return Err(StateError::Bundle(raw.bundle));
        }
        Ok(Self {
            id: ContainerId::try_from(raw.id).map_err(StateError::Id)?,
            status: match raw.status.as_str() {
                "creating" => ContainerStatus::Creating,
                "created" => ContainerStatus::Created,
                "running" => ContainerStatus::Running,
                "stopped" => ContainerStatus::Stopped,
                _ => ContainerStatus::Other,
            },
            pid: raw.pid.and_then(|pid| u32::try_from(pid).ok()).and_then(|pid| Pid::new(pid).ok()),
            bundle: raw.bundle,
            annotations: raw.annotations.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every recorded state parses; the table has the expected values.
    #[test]
    fn recorded_states_are_parsed() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/oci-state");
        let mut seen = 0;
        for entry in std::fs::read_dir(directory).expect("recordings") {
            let path = entry.expect("entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).expect("name").to_owned();
            let is_state = ["createRuntime", "createContainer", "prestart", "poststart", "poststop", "startContainer"]
                .iter()
                .any(|stage| name.contains(stage));
            if !name.ends_with(".json") || !is_state {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("text");
            let state = OciState::parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
            seen += 1;
            assert!(state.bundle.is_absolute(), "{name}");
            if name.contains("poststop") {
                assert_eq!(state.status, ContainerStatus::Stopped, "{name}");
                assert_eq!(state.pid, None, "{name}");
            }
            if name.contains("createRuntime") && !name.contains("poststop") {
                assert!(matches!(state.status, ContainerStatus::Creating | ContainerStatus::Created), "{name}");
                assert!(state.pid.is_some(), "{name}");
            }
        }
        assert!(seen >= 30, "only {seen} recordings were read");
    }

    #[test]
    fn invalid_states_are_refused_with_the_reason() {
        let table = [
            ("", "not an OCI state"),
            ("[]", "not an OCI state"),
            ("{}", "not an OCI state"),
            (r#"{"id":"a","bundle":7}"#, "not an OCI state"),
            (r#"{"id":"../a","bundle":"/b"}"#, "read the container's state"),
            (r#"{"id":"a","bundle":"b"}"#, "not an absolute path"),
            (r#"{"id":"a","bundle":"/b","annotations":["x"]}"#, "not an OCI state"),
        ];
        for (text, phrase) in table {
            let error = OciState::parse(text).expect_err(text);
            assert!(error.to_string().contains(phrase), "{text}: {error}");
        }
    }

    #[test]
    fn zero_pids_and_unknown_statuses_are_accepted() {
        for (text, pid) in [("0", None), ("-1", None), ("null", None), ("4294967296", None), ("7", Some(7))] {
            let state =
                OciState::parse(&format!(r#"{{"id":"a","bundle":"/b","status":"starting","pid":{text}}}"#)).expect(text);
            assert_eq!(state.pid.map(Pid::get), pid, "{text}");
            assert_eq!(state.status, ContainerStatus::Other);
        }
    }
}
