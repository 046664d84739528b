//! The base spec of a strict handler: containerd's default spec with our hooks.
//!
//! `base_runtime_spec` replaces containerd's default spec (docs/cri/config.md), so the file has to contain that. `ctr
//! oci spec` prints it without asking the daemon.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

use crate::cli::HookStage;
use crate::model::policy::Engine;
use crate::setup::hook_files::TIMEOUT;
use crate::setup::hooks_dir::below;
use crate::sys::child::enter_root;
use crate::sys::error::chain;

/// The path of the base spec: next to containerd's configuration.
pub fn path(config: &Path) -> PathBuf {
    config.with_file_name("bpfman-hook-base.json")
}

/// Why the base spec cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum BaseSpecError {
    /// containerd's `ctr` is not installed.
    #[error("{} has no {program}; write containerd's default spec to a file (`ctr oci spec`) and name it with --base-spec", .root.display())]
    Missing {
        /// `ctr`.
        program: &'static str,
        /// The root directory that was searched.
        root: PathBuf,
    },
    /// `ctr` could not be run, or failed.
    #[error("run {} {arguments}: {problem}", .program.display())]
    Run {
        /// The program, as seen from its root.
        program: PathBuf,
        /// Its arguments.
        arguments: &'static str,
        /// What went wrong.
        problem: String,
    },
    /// The text is not an OCI spec.
    #[error("{from}: it is not an OCI spec: {problem}")]
    Spec {
        /// A file, or the command that printed it.
        from: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// The output of `ctr oci spec` on the host below `root`.
///
/// # Errors
/// [`BaseSpecError::Missing`], [`BaseSpecError::Run`].
pub fn default_spec(root: &Path) -> Result<String, BaseSpecError> {
    run(root, "ctr", &["oci", "spec"], "oci spec")
}

/// The version of the containerd that is installed below `root`: major and minor. None if containerd is not installed
/// or prints no version.
pub fn version(root: &Path) -> Option<(u32, u32)> {
    version_in(&run(root, "containerd", &["--version"], "--version").ok()?)
}

/// `containerd github.com/containerd/containerd v2.1.9 1234`, with or without the `v`.
fn version_in(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split_whitespace().nth(2)?.trim_start_matches('v').split('.');
    let mut number = || parts.next()?.parse().ok();
    Some((number()?, number()?))
}

fn run(root: &Path, program: &'static str, args: &[&str], arguments: &'static str) -> Result<String, BaseSpecError> {
    let places = ["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/opt/bin"].map(|dir| Path::new(dir).join(program));
    let found = places.into_iter().find(|path| below(root, path).is_file());
    let path = found.ok_or_else(|| BaseSpecError::Missing { program, root: root.to_owned() })?;
    let mut command = Command::new(&path);
    command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
    let failed = |problem: String| BaseSpecError::Run { program: path.clone(), arguments, problem };
    if root != Path::new("/") {
        // A program of the host needs the host's libraries.
        enter_root(&mut command, root).map_err(|err| failed(chain(&err)))?;
    }
    let output = command.output().map_err(|err: io::Error| failed(err.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, said.trim().lines().last().unwrap_or_default())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A default spec with our hooks, without the fields that belong to a single container.
///
/// # Errors
/// [`BaseSpecError::Spec`]; also if it contains other hooks at our stages.
pub fn with_hooks(spec: &str, from: &str, binary: &Path, root: Option<&Path>) -> Result<String, BaseSpecError> {
    let wrong = |problem: &str| BaseSpecError::Spec { from: from.to_owned(), problem: problem.to_owned() };
    let mut spec: Map<String, Value> = serde_json::from_str(spec).map_err(|err| wrong(&err.to_string()))?;
    if !spec.get("ociVersion").is_some_and(Value::is_string) || !spec.get("linux").is_some_and(Value::is_object) {
        return Err(wrong("it has no ociVersion or no linux object"));
    }
    for (part, key) in [("linux", "cgroupsPath"), ("process", "args")] {
        if let Some(part) = spec.get_mut(part).and_then(Value::as_object_mut) {
            part.remove(key);
        }
    }
    let hooks = spec.entry("hooks").or_insert_with(|| json!({}));
    let hooks = hooks.as_object_mut().ok_or_else(|| wrong("its hooks are not an object"))?;
    for stage in [HookStage::CreateRuntime, HookStage::Poststop] {
        let entries = hooks.entry(stage.word()).or_insert_with(|| json!([]));
        let entries = entries.as_array_mut().ok_or_else(|| wrong("a stage of its hooks is not an array"))?;
        entries.retain(|entry| entry["args"][0] != "bpfman-hook");
        entries.push(hook(stage, binary, root));
    }
    Ok(format!("{}\n", serde_json::to_string_pretty(&spec).expect("a map of values is JSON")))
}

/// One entry of `hooks` in config.json.
pub fn hook(stage: HookStage, binary: &Path, root: Option<&Path>) -> Value {
    let mut args =
        vec!["bpfman-hook".into(), "hook".into(), stage.word().into(), "--engine".into(), Engine::Containerd.word().into()];
    if let Some(root) = root {
        args.extend(["--root".to_owned(), root.to_string_lossy().into_owned()]);
    }
    json!({ "path": binary.to_string_lossy(), "args": args, "timeout": TIMEOUT })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{"ociVersion":"1.2.1","process":{"args":["sh"],"cwd":"/"},"linux":{"cgroupsPath":"/default","namespaces":[]},
        "hooks":{"createRuntime":[{"path":"/theirs"},{"path":"/old","args":["bpfman-hook","hook","createRuntime"]}]}}"#;

    #[test]
    fn our_hooks_are_added_once_and_the_rest_stays() {
        let binary = Path::new("/usr/local/bin/bpfman-hook");
        let once = with_hooks(SPEC, "a file", binary, None).unwrap();
        assert_eq!(with_hooks(&once, "a file", binary, None).unwrap(), once);
        let spec: Value = serde_json::from_str(&once).unwrap();
        assert_eq!(spec["hooks"]["createRuntime"].as_array().unwrap().len(), 2);
        assert_eq!(spec["hooks"]["createRuntime"][0]["path"], "/theirs");
        assert_eq!((&spec["linux"]["cgroupsPath"], &spec["process"]["args"]), (&Value::Null, &Value::Null));
        for stage in [HookStage::CreateRuntime, HookStage::Poststop] {
            let entry = spec["hooks"][stage.word()].as_array().unwrap().last().unwrap();
            let args: Vec<_> = entry["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
            let parsed = crate::cli::hook_fast_path(&args[1..]).unwrap();
            assert_eq!((parsed.stage, parsed.engine), (stage, Some(Engine::Containerd)));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "[]", "{}", r#"{"ociVersion":"1.0.0","linux":{},"hooks":[]}"#] {
            let error = with_hooks(text, "ctr oci spec", Path::new("/b"), None).unwrap_err().to_string();
            assert!(error.starts_with("ctr oci spec: it is not an OCI spec: "), "{error}");
        }
    }

    #[test]
    fn versions() {
        for (text, wanted) in [
            ("containerd github.com/containerd/containerd/v2 2.1.9~ds1 2.1.9~ds1-1\n", Some((2, 1))),
            ("containerd github.com/containerd/containerd v1.7.24 88bf19b\n", Some((1, 7))),
            ("containerd", None),
            ("containerd x dev y", None),
        ] {
            assert_eq!(version_in(text), wanted, "{text}");
        }
        assert_eq!(version(Path::new("/nowhere")), None);
    }
}
