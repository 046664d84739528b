//! The pre-installed plugin: a file in containerd's plugin directory, which containerd starts together with itself.
//!
//! On a booting node, the kubelet starts pods as soon as containerd answers, and a DaemonSet's plugin starts after
//! them. The file closes that gap: containerd starts it, and waits for it, before it serves its clients. A second
//! plugin changes nothing, because a container that has our hook does not get another.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::output::finding::{Finding, FindingStatus};
use crate::setup::containerd::config::Nri;
use crate::setup::hooks_dir::below;

/// The file name: the plugin's index and name (NRI, pkg/adaptation).
const NAME: &str = "10-bpfman-hook";

/// The default of `plugin_path`.
const DIRECTORY: &str = "/opt/nri/plugins";

const CHECK: &str = "containerd plugin file";

/// The path of the file.
pub fn path(nri: &Nri) -> PathBuf {
    nri.plugins.as_deref().unwrap_or(Path::new(DIRECTORY)).join(NAME)
}

/// The text of the file: a script, because NRI passes no arguments to a plugin.
pub fn text(binary: &Path, root: Option<&Path>) -> String {
    let root = root.map(|root| format!(" --root {}", quoted(root))).unwrap_or_default();
    format!(
        "#!/bin/sh\n\
         # Written by `bpfman-hook install --containerd`. The runtime starts it together with itself; it ends when this file is removed.\n\
         exec {}{root} nri --preinstalled-as \"$0\"\n",
        quoted(binary)
    )
}

/// Quotes a path as a word of a shell script.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// Checks whether the file exists and works, below `root`.
pub fn examine(nri: &Nri, root: &Path, again: &str) -> Finding {
    let path = path(nri);
    let (target, shown) = (below(root, &path), path.display());
    let bad = |status, detail: String| Finding::bad(CHECK, status, detail, again);
    // If the runtime serves no other plugins, nothing else adds our hooks.
    let status = if nri.no_connections { FindingStatus::Fail } else { FindingStatus::Warn };
    let Ok(meta) = fs::metadata(&target) else {
        let gap = "after a reboot annotated containers start without their programs until another plugin connects";
        return bad(status, format!("{shown} does not exist: {gap}"));
    };
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return bad(FindingStatus::Fail, format!("{shown} is not executable: containerd does not start it"));
    }
    match fs::read_to_string(&target).ok().as_deref().and_then(program) {
        Some(program) if !below(root, Path::new(program)).is_file() => {
            bad(FindingStatus::Fail, format!("{shown} runs {program}, which does not exist"))
        }
        _ => Finding::ok(CHECK, format!("{shown}, which containerd starts together with itself")),
    }
}

/// The program that the script runs; None if the script is not ours.
fn program(script: &str) -> Option<&str> {
    let line = script.lines().find_map(|line| line.strip_prefix("exec '"))?;
    line.split_once('\'').map(|(program, _)| program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packaged_file_is_the_same() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("nri/10-bpfman-hook");
        assert_eq!(fs::read_to_string(file).unwrap(), text(Path::new("/usr/local/bin/bpfman-hook"), None));
    }

    #[test]
    fn paths_are_quoted_for_the_shell() {
        let text = text(Path::new("/opt/it's here/bpfman-hook"), Some(Path::new("/srv/a b")));
        assert!(
            text.ends_with("exec '/opt/it'\\''s here/bpfman-hook' --root '/srv/a b' nri --preinstalled-as \"$0\"\n"),
            "{text}"
        );
    }

    #[test]
    fn a_file_that_would_not_run_is_reported() {
        let root = tempfile::tempdir().unwrap();
        let (open, closed) = (Nri::default(), Nri { no_connections: true, ..Nri::default() });
        let status = |nri: &Nri| examine(nri, root.path(), "again").status;
        assert_eq!((status(&open), status(&closed)), (FindingStatus::Warn, FindingStatus::Fail));
        let file = below(root.path(), &path(&open));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text(Path::new("/usr/local/bin/bpfman-hook"), None)).unwrap();
        assert_eq!(status(&open), FindingStatus::Fail, "it is not executable");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(status(&open), FindingStatus::Fail, "its program does not exist");
        let program = root.path().join("usr/local/bin/bpfman-hook");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::write(program, "").unwrap();
        assert_eq!((status(&open), status(&closed)), (FindingStatus::Ok, FindingStatus::Ok));
        let elsewhere = Nri { plugins: Some("/srv/plugins".into()), ..Nri::default() };
        assert_eq!(status(&elsewhere), FindingStatus::Warn);
    }
}
