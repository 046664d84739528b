//! The kernel's state, as `bpftool` and mountinfo report it: nothing here uses the product's own code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::process::tool;
use crate::harness;

/// Every BPF object of the machine, by kind and id, with a line that describes it.
#[derive(Debug, Clone, Default)]
pub struct Objects(BTreeMap<(&'static str, u64), String>);

impl Objects {
    /// Queries `bpftool`.
    pub fn now() -> Self {
        let mut all = BTreeMap::new();
        for kind in ["prog", "map", "link"] {
            for object in bpftool(&[kind, "show"]).as_array().into_iter().flatten() {
                let Some(id) = object["id"].as_u64() else {
                    harness!("bpftool {kind} show gave an object without id: {object}")
                };
                let name = object["name"].as_str().unwrap_or_default();
                // systemd has cgroup programs of its own, which come and go with its units.
                if !name.starts_with("sd_") {
                    let what = object["type"].as_str().unwrap_or_default();
                    all.insert((kind, id), format!("{kind} {id} {what} {name}"));
                }
            }
        }
        Self(all)
    }

    /// The objects that did not exist before.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.iter().filter(|(key, _)| !before.0.contains_key(*key)).map(|(_, line)| line.clone()).collect()
    }

    /// Whether a program, map or link with this id exists.
    pub fn has(&self, kind: &'static str, id: u64) -> bool {
        self.0.contains_key(&(kind, id))
    }
}

/// Runs `bpftool -j`. Objects may disappear while it lists them, which it reports as an error: then it is run again.
pub fn bpftool(args: &[&str]) -> Value {
    for _ in 0..20 {
        let ended = super::process::ended(Command::new("bpftool").arg("-j").args(args));
        if let Ok(answer) = serde_json::from_str::<Value>(&ended.stdout)
            && ended.status.success()
            && answer.get("error").is_none()
        {
            return answer;
        }
        if ended.stdout.trim().is_empty() && ended.status.success() {
            return Value::Array(Vec::new());
        }
    }
    harness!("bpftool -j {args:?} gave no answer in 20 tries")
}

/// A link as the kernel describes it.
pub fn link(id: u64) -> Value {
    bpftool(&["link", "show", "id", &id.to_string()])
}

/// The sum of all values of a map of 64-bit counters, regardless of its keys.
pub fn sum(map: u64) -> u64 {
    let dump = bpftool(&["map", "dump", "id", &map.to_string()]);
    let Some(entries) = dump.as_array() else { harness!("bpftool map dump id {map}: {dump}") };
    entries.iter().flat_map(entry_values).sum()
}

/// The sum of the per-CPU values of one entry of a counter array.
pub fn slot(map: u64, index: usize) -> u64 {
    let dump = bpftool(&["map", "dump", "id", &map.to_string()]);
    dump.get(index).map_or_else(|| harness!("bpftool map dump id {map}: {dump}"), |entry| entry_values(entry).into_iter().sum())
}

fn entry_values(entry: &Value) -> Vec<u64> {
    let raw = |value: &Value| -> Option<u64> {
        let bytes = value.as_array()?;
        let mut eight = [0u8; 8];
        for (to, from) in eight.iter_mut().zip(bytes) {
            *to = u8::from_str_radix(from.as_str()?.trim_start_matches("0x"), 16).ok()?;
        }
        Some(u64::from_ne_bytes(eight))
    };
    match entry.get("values").and_then(Value::as_array) {
        Some(per_cpu) => per_cpu.iter().filter_map(|one| raw(&one["value"])).collect(),
        None => raw(&entry["value"]).into_iter().collect(),
    }
}

/// The mount points of this mount namespace with their types.
pub fn mounts() -> BTreeSet<(PathBuf, String)> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_else(|e| harness!("read mountinfo: {e}"));
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = left.split(' ').nth(4)?.replace("\\040", " ");
            Some((PathBuf::from(point), right.split(' ').next()?.to_owned()))
        })
        .collect()
}

/// Every process whose arguments, working directory or root file system are at a path or below it.
pub fn processes_of(path: &Path) -> Vec<(u32, String)> {
    let needle = path.to_string_lossy().into_owned();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap_or_else(|e| harness!("read /proc: {e}")).flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let directory = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        // A container has its own root: the mount on `/`, whose fourth field is its path in its file system.
        let mounts = std::fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        let root = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words.get(4) == Some(&"/"));
        let rooted = root.is_some_and(|words| words[3].contains(&name));
        if arguments.contains(&needle) || directory.starts_with(path) || rooted {
            found.push((pid, arguments));
        }
    }
    found
}

/// Directories below a cgroup mount, of any hierarchy, whose name contains a word.
pub fn cgroups_named(word: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((directory, depth)) = todo.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(word) {
                found.push(entry.path());
            } else if depth < 5 {
                todo.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

/// Kills the processes in a cgroup and below it, and removes the empty cgroups.
pub fn remove_cgroup(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    for pid in std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    for _ in 0..200 {
        if std::fs::remove_dir(directory).is_ok() || !directory.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Where the version 2 hierarchy is mounted, and whether version 1 hierarchies exist beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroups {
    /// Only version 2, at /sys/fs/cgroup.
    Unified,
    /// Version 1 hierarchies, and version 2 at this path.
    Hybrid(PathBuf),
}

/// How this machine mounts its cgroups.
pub fn cgroups() -> Cgroups {
    match mounts().into_iter().find(|(_, kind)| kind == "cgroup2") {
        Some((point, _)) if point == Path::new("/sys/fs/cgroup") => Cgroups::Unified,
        Some((point, _)) => Cgroups::Hybrid(point),
        None => harness!("no cgroup2 file system is mounted"),
    }
}

/// The directory of the version 2 hierarchy.
pub fn cgroup2() -> PathBuf {
    match cgroups() {
        Cgroups::Unified => PathBuf::from("/sys/fs/cgroup"),
        Cgroups::Hybrid(point) => point,
    }
}

/// Whether this kernel supports BPF tokens: bpffs accepts `delegate_cmds` since 6.9.
pub fn has_tokens() -> bool {
    let release = tool(Command::new("uname").arg("-r"));
    let mut numbers = release.split(['.', '-']).map_while(|word| word.trim().parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 9)
}
