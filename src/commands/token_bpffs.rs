//! What keeps one process from using its token: the security module that confines it, for each bpffs that delegates.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::model::confinement::{Confinement, ConfinementProblem, SecurityModule};
use crate::output::error::CommandError;
use crate::sys::lsm;
use crate::sys::mounts::parse_mountinfo;

/// A process and its delegated bpffs mounts.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Here {
    /// The process; None for the calling one.
    pub pid: Option<u32>,
    /// The security module that confines the process, and its label; None if none does.
    pub confinement: Option<Confinement>,
    /// Each bpffs in its mount namespace that delegates something.
    pub bpffs: Vec<Delegated>,
}

/// A bpffs that delegates, and what prevents its use.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Delegated {
    /// Mount point below the process's root directory.
    pub path: PathBuf,
    /// What does not work there.
    pub hindrance: Option<ConfinementProblem>,
}

impl Here {
    /// Examines a process, or the calling one.
    pub fn look(pid: Option<u32>) -> Result<Self, CommandError> {
        let process = pid.map_or("self".to_owned(), |pid| pid.to_string());
        let path = format!("/proc/{process}/mountinfo");
        let mounts = fs::read_to_string(&path).map_err(CommandError::doing(format!("read {path}")))?;
        let delegated: Vec<_> = parse_mountinfo(&mounts)?
            .into_iter()
            .filter(|mount| mount.kind == "bpf" && mount.super_options.iter().any(|option| option.starts_with("delegate_")))
            .map(|mount| mount.point)
            .collect();
        Ok(Self::decide(pid, lsm::confinement(pid), delegated, lsm::may_create))
    }

    fn decide(
        pid: Option<u32>,
        confinement: Option<Confinement>,
        delegated: Vec<PathBuf>,
        may_create: impl Fn(&str, &Path) -> Option<bool>,
    ) -> Self {
        let hindrance = |path: &Path| {
            let confinement = confinement.as_ref()?;
            let pins = match confinement.module {
                SecurityModule::AppArmor => may_create(&confinement.label, path),
                SecurityModule::SeLinux => None,
            };
            confinement.hinders(path, pins)
        };
        let bpffs = delegated.into_iter().map(|path| Delegated { hindrance: hindrance(&path), path }).collect();
        Self { pid, confinement, bpffs }
    }

    /// The lines that `token explain` adds; empty if there is nothing to report.
    pub fn text(&self) -> String {
        let hindrances = self.bpffs.iter().filter_map(|bpffs| bpffs.hindrance.as_ref());
        let lines: String = hindrances.map(|hindrance| format!("  {hindrance}\n")).collect();
        match (self.pid, lines.is_empty()) {
            (_, true) => String::new(),
            (Some(pid), _) => format!("\nProcess {pid}\n{lines}"),
            (None, _) => format!("\nThis process\n{lines}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_refuses_or_may_refuse_pins_is_reported() {
        let decide = |label: &str, pins| {
            let paths = ["/sys/fs/bpf", "/run/bpf"].map(PathBuf::from).into();
            Here::decide(Some(7), Confinement::apparmor(label), paths, move |_, _| pins)
        };
        let text = decide("docker-default (enforce)", Some(false)).text();
        assert!(text.starts_with("\nProcess 7\n  tokens work, but") && text.lines().count() == 3, "{text}");
        assert!(decide("docker-default (enforce)", None).text().contains("the default profiles of"));
        assert_eq!(decide("ours (enforce)", Some(true)).text(), "");
        assert_eq!(decide("unconfined", None).text(), "");
    }

    #[test]
    fn a_missing_process_is_an_error() {
        assert_eq!(Here::look(None).unwrap().pid, None);
        let error = Here::look(Some(u32::MAX)).unwrap_err().to_string();
        assert!(error.starts_with("read /proc/4294967295/mountinfo: "), "{error}");
    }
}
