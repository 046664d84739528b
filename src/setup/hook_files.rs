//! The texts of the files that `install` writes: one OCI hook file per stage, podman's drop-in, the mount unit,
//! tmpfiles.d.
//!
//! This module is their only source. `hooks.d/` and `packaging/` contain the same texts for distributions, and
//! `tests/layering.rs` compares them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::HookStage;
use crate::model::policy::Engine;
use crate::paths::Paths;

/// The only annotation pattern: it matches our keys and keys that resemble them (`model::annotations::resembles_ours`),
/// so that a misspelt key is refused and not ignored. There is only one, because the patterns of a hook file are ANDed:
/// with two, a container with only one kind of key would start without the hook.
pub const PATTERN: &str = r"(^|[^A-Za-z0-9])[Hh][Oo][Oo][Kk][Ss]?[^A-Za-z0-9/]*[Bb][Pp][Ff][Mm][Aa][Nn]";

/// Seconds after which a runtime kills the hook. The hook's own deadline is shorter, so that it can undo its changes.
pub const TIMEOUT: u64 = 30;

/// Where podman and CRI-O look for hook files by default.
pub const HOOKS_DIR: &str = "/usr/share/containers/oci/hooks.d";

/// Directory of the precreate hook. No other engine reads it: an engine that does not know a stage fails to start.
pub const PODMAN_HOOKS_DIR: &str = "/usr/share/bpfman-hook/podman-hooks.d";

/// podman's drop-in. containers.conf.d is read after containers.conf, in the order of the file names.
pub const PODMAN_DROP_IN: &str = "/etc/containers/containers.conf.d/50-bpfman-hook.conf";

/// The mount unit's name: the escaped mount point.
pub const MOUNT_UNIT: &str = r"run-bpfman\x2dhook-fs.mount";

/// The file name of a stage's hook file.
pub fn file_name(stage: HookStage) -> String {
    format!("50-bpfman-hook-{}.json", stage.word())
}

/// The path of a stage's hook file.
pub fn path(stage: HookStage) -> PathBuf {
    let directory = match stage {
        HookStage::Precreate => PODMAN_HOOKS_DIR,
        HookStage::CreateRuntime | HookStage::Poststop => HOOKS_DIR,
    };
    Path::new(directory).join(file_name(stage))
}

/// The stages with a hook file for containers without annotations.
pub const POLICED: [HookStage; 2] = [HookStage::Poststop, HookStage::CreateRuntime];

/// The path of the hook file of a stage for containers without annotations, which the policy may police.
pub fn police_path(stage: HookStage) -> PathBuf {
    Path::new(HOOKS_DIR).join(format!("51-bpfman-hook-police-{}.json", stage.word()))
}

/// The engines that read a hook file. A single engine is passed to the hook as `--engine`; with two, the hook derives
/// it from the bundle's path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Engines(pub BTreeSet<Engine>);

impl Engines {
    /// The engines that an installed hook file was written for.
    pub fn of_file(text: &str) -> Self {
        let hook: Value = serde_json::from_str(text).unwrap_or_default();
        let args: Vec<_> = hook["hook"]["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if args.first() != Some(&"bpfman-hook") {
            return Self::default();
        }
        let engine = args.iter().position(|arg| *arg == "--engine").and_then(|at| args.get(at + 1));
        Self(match engine.and_then(|word| Engine::from_word(word)) {
            Some(engine) => BTreeSet::from([engine]),
            None => BTreeSet::from([Engine::Podman, Engine::CriO]),
        })
    }

    fn single(&self) -> Option<Engine> {
        self.0.iter().next().copied().filter(|_| self.0.len() == 1)
    }
}

/// How hook files call the binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The installed binary.
    pub binary: PathBuf,
    /// The engines that read the files.
    pub engines: Engines,
    /// `--root`, if our directories are elsewhere.
    pub root: Option<PathBuf>,
}

impl Invocation {
    /// Our directories.
    pub fn paths(&self) -> Paths {
        self.root.as_deref().map_or_else(Paths::system, Paths::below)
    }
}

/// A stage's hook file, schema 1.0.0 (oci-hooks(5)).
pub fn hook(stage: HookStage, invocation: &Invocation) -> String {
    hook_when(stage, invocation, &[], &format!("\"annotations\": {{ {}: \".*\" }}", quoted(PATTERN)))
}

/// The hook file of a stage for containers without annotations. It runs for every container.
pub fn police_hook(stage: HookStage, invocation: &Invocation) -> String {
    let more: &[&str] = if stage == HookStage::CreateRuntime { &["--police"] } else { &[] };
    hook_when(stage, invocation, more, "\"always\": true")
}

fn hook_when(stage: HookStage, invocation: &Invocation, more: &[&str], when: &str) -> String {
    // precreate is only for podman, whichever engines read the other files.
    let engine = if stage == HookStage::Precreate { Some(Engine::Podman) } else { invocation.engines.single() };
    let root = invocation.root.as_ref().map(|root| root.to_string_lossy());
    let mut args = vec!["bpfman-hook", "hook", stage.word()];
    args.extend(engine.into_iter().flat_map(|engine| ["--engine", engine.word()]));
    args.extend(root.iter().flat_map(|root| ["--root", root]));
    args.extend(more);
    let args: Vec<_> = args.into_iter().map(quoted).collect();
    format!(
        "{{\n  \"version\": \"1.0.0\",\n  \"hook\": {{\n    \"path\": {},\n    \"args\": [{}],\n    \"timeout\": {TIMEOUT}\n  }},\n  \"when\": {{\n    \
         {when}\n  }},\n  \"stages\": [{}]\n}}\n",
        quoted(&invocation.binary.to_string_lossy()),
        args.join(", "),
        quoted(stage.word()),
    )
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// podman's drop-in. Its `hooks_dir` replaces the previous setting, so it repeats that.
pub fn drop_in(before: &[PathBuf]) -> String {
    let mut text = "# Written by `bpfman-hook install --podman`. A later file that sets hooks_dir replaces this list.\n[engine]\nhooks_dir = [\n"
        .to_owned();
    let ours = Path::new(PODMAN_HOOKS_DIR);
    // A JSON string is a valid TOML basic string.
    for directory in before.iter().map(PathBuf::as_path).filter(|directory| *directory != ours).chain([ours]) {
        writeln!(text, "  {},", quoted(&directory.to_string_lossy())).expect("writing to a String succeeds");
    }
    text.push_str("]\n");
    text
}

/// The mount unit of our bpffs.
pub fn mount_unit() -> String {
    "\
# The bpffs for bpfman-hook's pins. It is mounted before any engine starts, because podman with a user namespace runs hooks in
# a private mount namespace, where a mount made by the hook would vanish with the runtime.
[Unit]
Description=BPF file system of bpfman-hook
DefaultDependencies=no
Conflicts=umount.target
Before=local-fs.target umount.target
Before=containerd.service crio.service docker.service podman.service podman-restart.service

[Mount]
What=bpf
Where=/run/bpfman-hook/fs
Type=bpf
Options=mode=0700,nosuid,nodev,noexec
DirectoryMode=0755

[Install]
WantedBy=local-fs.target
"
    .to_owned()
}

/// tmpfiles.d: the directories of one boot, and the cache.
pub fn tmpfiles() -> String {
    "\
# tmpfiles.d(5): directories of bpfman-hook
d /run/bpfman-hook 0755 root root -
d /var/cache/bpfman-hook 0700 root root -
"
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engines(list: &[Engine]) -> Engines {
        Engines(list.iter().copied().collect())
    }

    fn call(binary: &Path, list: &[Engine]) -> Invocation {
        Invocation { binary: binary.to_owned(), engines: engines(list), root: None }
    }

    #[test]
    fn a_hook_file_names_its_engine() {
        let binary = Path::new("/usr/local/bin/bpfman-hook");
        for list in [&[Engine::Podman][..], &[Engine::CriO], &[Engine::Podman, Engine::CriO]] {
            for stage in [HookStage::CreateRuntime, HookStage::Poststop] {
                let text = hook(stage, &call(binary, list));
                assert_eq!(Engines::of_file(&text), engines(list), "{text}");
                let json: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(json["hook"]["timeout"], TIMEOUT);
                assert_eq!(json["stages"], serde_json::json!([stage.word()]));
                assert_eq!(json["when"], serde_json::json!({ "annotations": { PATTERN: ".*" } }));
                // The fast path reads the engine from the file.
                let args: Vec<_> =
                    json["hook"]["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned()).collect();
                let parsed = crate::cli::hook_fast_path(&args[1..]).unwrap();
                assert_eq!((parsed.stage, parsed.engine), (stage, (list.len() == 1).then_some(list[0])));
            }
        }
        let precreate: Value = serde_json::from_str(&hook(HookStage::Precreate, &call(binary, &[]))).unwrap();
        assert_eq!(precreate["hook"]["args"][4], "podman");
        let elsewhere = Invocation { root: Some("/srv/r".into()), ..call(binary, &[Engine::CriO]) };
        let json: Value = serde_json::from_str(&hook(HookStage::Poststop, &elsewhere)).unwrap();
        let args: Vec<_> = json["hook"]["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
        let parsed = crate::cli::hook_fast_path(&args[1..]).unwrap();
        assert_eq!((parsed.engine, parsed.root), (Some(Engine::CriO), Some("/srv/r".into())));
        for foreign in ["", "{}", r#"{"hook":{"args":["other"]}}"#] {
            assert_eq!(Engines::of_file(foreign), Engines::default());
        }
    }

    #[test]
    fn paths_with_quotes_stay_one_path() {
        let binary = Path::new("/opt/a \"b\"\\c/bin/bpfman-hook");
        let json: Value = serde_json::from_str(&hook(HookStage::Poststop, &call(binary, &[]))).unwrap();
        assert_eq!(json["hook"]["path"], binary.to_str().unwrap());
        let text = drop_in(&[binary.to_owned()]);
        let value: toml::Table = toml::from_str(&text).unwrap();
        let list = value["engine"]["hooks_dir"].as_array().unwrap();
        assert_eq!(list[0].as_str(), binary.to_str());
        assert_eq!(list[1].as_str(), Some(PODMAN_HOOKS_DIR));
        assert_eq!(drop_in(&[PODMAN_HOOKS_DIR.into()]).matches(PODMAN_HOOKS_DIR).count(), 1);
    }
}
