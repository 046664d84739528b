//! The plugin's connection status for monitoring: a small file in `export/` that the plugin rewrites periodically.
//!
//! A file that is no longer updated means that its plugin has died. There is no lock for that, because readers of
//! `export/` could take it (docs/decisions/0008).

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::output::error::CommandError;
use crate::output::print;
use crate::sys::{clock, export};

/// How often a plugin rewrites its file.
const EACH: Duration = Duration::from_secs(5);
/// Age in seconds from which a file counts as a dead plugin's: three times [`EACH`], plus one.
const OLD: u64 = 16;

/// How a plugin was started, in NRI's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginStart {
    /// By the runtime, which passed its socket.
    PreInstalled,
    /// By systemd, Kubernetes or a user; it connects by itself.
    External,
}

impl PluginStart {
    /// All variants.
    pub const ALL: [Self; 2] = [Self::External, Self::PreInstalled];

    /// The label's value, and the suffix of the file name.
    pub fn word(self) -> &'static str {
        match self {
            Self::PreInstalled => "pre-installed",
            Self::External => "external",
        }
    }
}

/// The contents of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct StatusFile {
    connected: bool,
    /// The runtime's name and version.
    runtime: String,
    /// Seconds since boot.
    at: u64,
}

/// The status of one plugin.
#[derive(Debug, Clone)]
pub struct PluginStatus(Arc<StatusShared>);

#[derive(Debug)]
struct StatusShared {
    start: PluginStart,
    now: Mutex<StatusFile>,
    changed: Notify,
}

impl PluginStatus {
    /// A status that is not connected.
    pub fn new(start: PluginStart) -> Self {
        Self(Arc::new(StatusShared { start, now: Mutex::default(), changed: Notify::new() }))
    }

    /// The runtime has registered the plugin and synchronized its containers.
    pub fn connected(&self, runtime: String) {
        self.set(StatusFile { connected: true, runtime, at: 0 });
    }

    /// The connection has ended.
    pub fn disconnected(&self) {
        self.set(StatusFile::default());
    }

    fn set(&self, written: StatusFile) {
        *self.0.now.lock().unwrap_or_else(PoisonError::into_inner) = written;
        self.0.changed.notify_one();
    }

    /// Writes the file on every change and every [`EACH`], as long as the plugin lives.
    pub async fn publish(&self) -> std::convert::Infallible {
        loop {
            let mut written = self.0.now.lock().unwrap_or_else(PoisonError::into_inner).clone();
            written.at = clock::boot_seconds();
            let text = serde_json::to_vec(&written).expect("strings and numbers are JSON");
            if let Some(export) = export::here() {
                export.put_plugin(self.0.start.word(), &text);
            }
            // Whichever comes first.
            _ = tokio::time::timeout(EACH, self.0.changed.notified()).await;
        }
    }
}

/// A plugin that has run since boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPlugin {
    /// How it was started.
    pub start: PluginStart,
    /// The runtime that it is connected to; None if it is not connected, or has died.
    pub runtime: Option<String>,
}

/// The plugins that have run since boot, according to `export`.
pub fn plugins(export: &Path) -> Vec<SeenPlugin> {
    let now = clock::boot_seconds();
    let read = |start: PluginStart| {
        let text = fs::read_to_string(export.join(export::plugin_file(start.word()))).ok()?;
        let written: StatusFile = serde_json::from_str(&text).ok()?;
        let lives = written.connected && now.saturating_sub(written.at) <= OLD;
        Some(SeenPlugin { start, runtime: lives.then_some(written.runtime) })
    };
    PluginStart::ALL.into_iter().filter_map(read).collect()
}

/// `nri --check`: whether the external plugin, to which this check belongs, is connected.
pub fn check(export: &Path) -> Result<ExitCode, CommandError> {
    let seen = plugins(export);
    match seen.iter().find(|plugin| plugin.start == PluginStart::External) {
        Some(SeenPlugin { runtime: Some(runtime), .. }) => print(&format!("connected to {runtime}\n")),
        Some(_) => Err(CommandError::new(
            "the plugin is not connected to the runtime; check that NRI is enabled and that --socket is right",
        )),
        None => Err(CommandError::new("no plugin has run since boot")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outdated_or_disconnected_plugin_is_not_connected() {
        let directory = tempfile::tempdir().unwrap();
        let now = clock::boot_seconds();
        assert_eq!(plugins(directory.path()), []);
        for (connected, at, expected) in
            [(true, now, true), (true, now.saturating_sub(OLD + 2), now < OLD + 2), (false, now, false)]
        {
            let written = StatusFile { connected, runtime: "containerd v2.1.9".to_owned(), at };
            let file = directory.path().join(export::plugin_file("external"));
            fs::write(file, serde_json::to_vec(&written).unwrap()).unwrap();
            let seen = plugins(directory.path());
            assert_eq!(
                (seen.len(), seen[0].start, seen[0].runtime.is_some()),
                (1, PluginStart::External, expected),
                "{at} of {now}"
            );
        }
        fs::write(directory.path().join(export::plugin_file("external")), "{").unwrap();
        assert_eq!(plugins(directory.path()), []);
    }
}
