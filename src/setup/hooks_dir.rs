//! Which hook files an engine reads: its configuration files, its directories, and which file overrides which.
//!
//! Verified with podman 4.3.1: `hooks_dir` of a later file replaces that of an earlier one, containers.conf.d is read
//! after containers.conf, a directory that does not exist is not an error, a file with an unknown stage prevents every
//! container from starting, and a file whose program does not exist is silently skipped.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::model::policy::Engine;
use crate::setup::hook_files::HOOKS_DIR;

/// The directories of one engine; a file in a later directory overrides one of the same name in an earlier directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HooksDir {
    /// In the order in which they are read.
    pub directories: Vec<PathBuf>,
    /// The configuration file that set them; None for the engine's default.
    pub source: Option<PathBuf>,
}

/// Why the directories of an engine cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum HooksDirError {
    /// A file or directory cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// A configuration file is not TOML, or `hooks_dir` is not a list.
    #[error("read hooks_dir in {}: {problem}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// The configuration files of an engine, in the order in which they are read, and the tables that contain `hooks_dir`.
fn configuration(engine: Engine) -> (&'static [&'static str], &'static str, &'static [&'static str]) {
    match engine {
        Engine::CriO => (&["/etc/crio/crio.conf"], "/etc/crio/crio.conf.d", &["crio", "runtime"]),
        _ => (
            &["/usr/share/containers/containers.conf", "/etc/containers/containers.conf"],
            "/etc/containers/containers.conf.d",
            &["engine"],
        ),
    }
}

impl HooksDir {
    /// The directories of the engine when run by root, with every path below `root`; the files in `except` are ignored.
    pub fn of(engine: Engine, root: &Path, except: &[&Path]) -> Result<Self, HooksDirError> {
        let (files, drop_ins, tables) = configuration(engine);
        let mut paths: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
        let names = names(&below(root, Path::new(drop_ins)))?;
        paths.extend(names.into_iter().filter(|name| name.ends_with(".conf")).map(|name| Path::new(drop_ins).join(name)));

        let mut found = Self { directories: vec![HOOKS_DIR.into()], source: None };
        for path in paths.into_iter().filter(|path| !except.contains(&path.as_path())) {
            let text = match fs::read_to_string(below(root, &path)) {
                Ok(text) => text,
                Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(HooksDirError::Read { path, source }),
            };
            found.apply(path, &text, tables)?;
        }
        Ok(found)
    }

    fn apply(&mut self, path: PathBuf, text: &str, tables: &[&str]) -> Result<(), HooksDirError> {
        let bad = |problem: String| HooksDirError::Config { path: path.clone(), problem };
        let mut table: Table = text.parse().map_err(|err: toml::de::Error| bad(err.message().to_owned()))?;
        for name in tables {
            table = match table.remove(*name) {
                Some(Value::Table(inner)) => inner,
                _ => return Ok(()),
            };
        }
        let Some(list) = table.remove("hooks_dir") else { return Ok(()) };
        let list = list.as_array().ok_or_else(|| bad("it is not a list".to_owned()))?;
        let mut directories = Vec::new();
        let mut append = false;
        for entry in list {
            match entry {
                Value::String(directory) => directories.push(PathBuf::from(directory)),
                // podman 5: `hooks_dir = ["/a", {append = true}]`.
                Value::Table(attributes) => append = attributes.get("append").and_then(Value::as_bool).unwrap_or(append),
                _ => return Err(bad("an entry is not a path".to_owned())),
            }
        }
        if append {
            self.directories.append(&mut directories);
        } else {
            self.directories = directories;
        }
        self.source = Some(path);
        Ok(())
    }

    /// The effective hook files, by file name: of two with the same name, that in the later directory.
    pub fn files(&self, root: &Path) -> Result<BTreeMap<String, PathBuf>, HooksDirError> {
        let mut files = BTreeMap::new();
        for directory in &self.directories {
            for name in names(&below(root, directory))? {
                if name.ends_with(".json") {
                    files.insert(name.clone(), directory.join(name));
                }
            }
        }
        Ok(files)
    }
}

/// An absolute path below another root directory.
pub fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The names in a directory, sorted; none if the directory does not exist.
fn names(directory: &Path) -> Result<Vec<String>, HooksDirError> {
    let read = |source| HooksDirError::Read { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(source) => return Err(read(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(read)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = below(root, Path::new(path));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn podman(root: &Path) -> Vec<String> {
        let found = HooksDir::of(Engine::Podman, root, &[]).unwrap();
        found.directories.iter().map(|d| d.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn later_files_replace_earlier_ones() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(podman(root), [HOOKS_DIR]);
        write(root, "/usr/share/containers/containers.conf", "[engine]\nhooks_dir = [\"/a\"]\n");
        assert_eq!(podman(root), ["/a"]);
        write(root, "/etc/containers/containers.conf", "[engine]\nruntime = \"runc\"\n[containers]\nhooks_dir = [\"/no\"]\n");
        assert_eq!(podman(root), ["/a"]);
        write(root, "/etc/containers/containers.conf.d/60-y.conf", "[engine]\nhooks_dir = [\"/y\"]\n");
        write(root, "/etc/containers/containers.conf.d/50-x.conf", "[engine]\nhooks_dir = [\"/x\"]\n");
        write(root, "/etc/containers/containers.conf.d/70-z.conf.bak", "not toml");
        assert_eq!(podman(root), ["/y"]);
        let except = Path::new("/etc/containers/containers.conf.d/60-y.conf");
        let found = HooksDir::of(Engine::Podman, root, &[except]).unwrap();
        assert_eq!(found.directories, [PathBuf::from("/x")]);
        assert_eq!(found.source, Some("/etc/containers/containers.conf.d/50-x.conf".into()));
        write(root, "/etc/containers/containers.conf.d/80-more.conf", "[engine]\nhooks_dir = [\"/m\", {append = true}]\n");
        assert_eq!(podman(root), ["/y", "/m"]);
        for bad in ["[engine", "[engine]\nhooks_dir = \"/a\"\n", "[engine]\nhooks_dir = [1]\n"] {
            write(root, "/etc/containers/containers.conf.d/90-bad.conf", bad);
            assert!(matches!(HooksDir::of(Engine::Podman, root, &[]), Err(HooksDirError::Config { .. })), "{bad}");
        }
        // CRI-O has its own configuration files.
        let crio = |root| HooksDir::of(Engine::CriO, root, &[]).unwrap().directories;
        assert_eq!(crio(root), [PathBuf::from(HOOKS_DIR)]);
        write(root, "/etc/crio/crio.conf.d/10-x.conf", "[crio.runtime]\nhooks_dir = [\"/c\"]\n");
        assert_eq!(crio(root), [PathBuf::from("/c")]);
    }

    #[test]
    fn the_later_directory_wins_by_file_name() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "/a/50-x.json", "");
        write(root, "/a/60-y.json", "");
        write(root, "/a/notes.txt", "");
        write(root, "/b/50-x.json", "");
        let hooks = HooksDir { directories: vec!["/a".into(), "/none".into(), "/b".into()], source: None };
        let files = hooks.files(root).unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files["50-x.json"], Path::new("/b/50-x.json"));
        assert_eq!(files["60-y.json"], Path::new("/a/60-y.json"));
    }
}
