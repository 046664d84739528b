//! The document that comes with a listener: runtime-spec, `containerProcessState`.

use std::os::fd::OwnedFd;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::model::ids::ContainerId;
use crate::model::proxy::ListenerOf;
use crate::model::proxy::profile::METADATA;
use crate::sys::error::chain;
use crate::sys::seccomp_notify::{Handover, SeccompListener};

/// The part of the document that is used. Its pids are not: for an exec, crun writes 0.
#[derive(Deserialize)]
struct ProcessState {
    #[serde(default)]
    fds: Vec<String>,
    #[serde(default)]
    metadata: String,
    state: ContainerState,
}

#[derive(Deserialize)]
struct ContainerState {
    id: String,
    #[serde(default)]
    status: String,
}

/// The name of the listener among the descriptors.
const SECCOMP_FD: &str = "seccompFd";

/// True for a complete JSON value.
pub(super) fn is_whole(document: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(document).is_ok()
}

/// The listener and the container that it belongs to.
///
/// # Errors
/// A sentence, if the document or the descriptors are not as the runtime-spec says.
pub(super) fn take_listener(handover: Handover) -> Result<(SeccompListener, ContainerId, ListenerOf), String> {
    let NamedListener { index, id, of } = parse(&handover.document)?;
    let mut fds = handover.fds;
    if index >= fds.len() {
        return Err("the runtime passed no listener with its state".to_owned());
    }
    let fd: OwnedFd = fds.swap_remove(index);
    let listener = SeccompListener::from_fd(fd).map_err(|error| chain(&error))?;
    Ok((listener, id, of))
}

#[derive(Debug, PartialEq)]
struct NamedListener {
    index: usize,
    id: ContainerId,
    of: ListenerOf,
}

fn parse(document: &[u8]) -> Result<NamedListener, String> {
    let state: ProcessState = serde_json::from_slice(document)
        .map_err(|error| format!("read the state that the runtime passed with its listener: {error}"))?;
    if state.metadata != METADATA {
        return Err(format!(
            "container {:?} has a seccomp profile with listenerMetadata {:?}, and this version of bpfman-hook writes {METADATA:?}: write the profile again",
            state.state.id, state.metadata
        ));
    }
    let id = state.state.id.parse().map_err(|error| format!("read the state that the runtime passed: {}", chain(&error)))?;
    let index = state.fds.iter().position(|name| name == SECCOMP_FD).ok_or("the runtime named no seccompFd")?;
    // A container that runs already has one listener more for each exec.
    let of = if state.state.status == "running" { ListenerOf::Exec } else { ListenerOf::Container };
    Ok(NamedListener { index, id, of })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_named_by_the_runtimes_state() {
        // crun 1.8.1 at exec, and runc 1.1.5 at create.
        let crun = br#"{"ociVersion":"1.0","fds":["seccompFd"],"pid":0,"metadata":"bpfman-hook/2","state":{"ociVersion":"1.0","id":"web","status":"running","pid":7,"bundle":"."}}"#;
        let runc = br#"{"ociVersion":"1.0.2-dev","fds":["other","seccompFd"],"pid":812,"metadata":"bpfman-hook/2","state":{"id":"web","status":"creating","pid":812,"bundle":"/b"}}"#;
        let id: ContainerId = "web".parse().unwrap();
        assert_eq!(parse(crun), Ok(NamedListener { index: 0, id: id.clone(), of: ListenerOf::Exec }));
        assert_eq!(parse(runc), Ok(NamedListener { index: 1, id, of: ListenerOf::Container }));
    }

    #[test]
    fn other_documents_are_refused() {
        for (document, part) in [
            ("{", "read the state"),
            (r#"{"fds":["seccompFd"],"metadata":"policy=x","state":{"id":"web"}}"#, "listenerMetadata \"policy=x\""),
            (r#"{"fds":["seccompFd"],"metadata":"bpfman-hook/2","state":{"id":"../x"}}"#, "read the state"),
            (r#"{"fds":[],"metadata":"bpfman-hook/2","state":{"id":"web"}}"#, "no seccompFd"),
            (r#"{"fds":["seccompFd"],"metadata":"bpfman-hook/2"}"#, "missing field `state`"),
        ] {
            let problem = parse(document.as_bytes()).unwrap_err();
            assert!(problem.contains(part), "{problem}");
        }
        let none = Handover {
            document: br#"{"fds":["seccompFd"],"metadata":"bpfman-hook/2","state":{"id":"web"}}"#.to_vec(),
            fds: Vec::new(),
        };
        assert!(take_listener(none).unwrap_err().contains("passed no listener"));
    }
}
