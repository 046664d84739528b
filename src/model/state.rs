//! The OCI state as runtimes really write it.
//!
//! Our own lenient struct, since a strict one fails on real input: crun's `ociVersion` is "1.0", its `startContainer`
//! status is "starting", its pid at `poststop` is 0, `root` is its own key and may be relative to the bundle; runc leaves the
//! pid out (recordings in tests/data/oci-state).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::model::ids::{ContainerId, IdError, Pid};

/// What a runtime writes to a hook's stdin: runtime-spec, "State".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The container's id.
    pub id: ContainerId,
    /// The status, as far as we know the word.
    pub status: Status,
    /// The container's init in the hook's pid namespace; None where the runtime wrote 0 or nothing.
    pub pid: Option<Pid>,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The container's annotations.
    pub annotations: BTreeMap<String, String>,
}

/// The status of a container, runtime-spec's words and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `creating`: runc, at createRuntime.
    Creating,
    /// `created`: crun, at createRuntime.
    Created,
    /// `running`
    Running,
    /// `stopped`: at poststop.
    Stopped,
    /// A word of one runtime alone, as crun's `starting`.
    Other,
}

/// Why some text is not a state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not JSON, or a key is missing or of another type.
    #[error("read the container's state from standard input: it is not an OCI state")]
    Json(#[source] serde_json::Error),
    /// The id is not one.
    #[error("read the container's state from standard input")]
    Id(#[source] IdError),
    /// The bundle is relative or empty.
    #[error("read the container's state from standard input: bundle {0:?} is not an absolute path")]
    Bundle(PathBuf),
}

#[derive(Deserialize)]
struct Raw {
    id: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    pid: Option<i64>,
    bundle: PathBuf,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl State {
    /// Parses what stood on a hook's stdin.
    pub fn parse(text: &str) -> Result<Self, StateError> {
        let raw: Raw = serde_json::from_str(text).map_err(StateError::Json)?;
        if !raw.bundle.is_absolute() {
            return Err(StateError::Bundle(raw.bundle));
        }
        Ok(Self {
            id: ContainerId::try_from(raw.id).map_err(StateError::Id)?,
            status: match raw.status.as_str() {
                "creating" => Status::Creating,
                "created" => Status::Created,
                "running" => Status::Running,
                "stopped" => Status::Stopped,
                _ => Status::Other,
            },
            pid: raw.pid.and_then(|pid| u32::try_from(pid).ok()).and_then(|pid| Pid::new(pid).ok()),
            bundle: raw.bundle,
            annotations: raw.annotations.unwrap_or_default(),
        })
    }
}
