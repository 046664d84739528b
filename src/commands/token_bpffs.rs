//! What one process can do with its bpffs mounts: what they delegate, who mounted them, and why its calls fail.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::commands::token_names::{DelegatedName, delegated_names, names_table};
use crate::kernel::guard;
use crate::model::confinement::{Confinement, ConfinementProblem, SecurityModule};
use crate::model::delegation::Delegation;
use crate::model::ids::Pid;
use crate::model::reach::{GuardBinding, TokenReach};
use crate::model::record::{ContainerOwner, OwnerRecord};
use crate::model::token_diagnosis::{CallProblem, HeldBpffs, TokenHolder};
use crate::output::error::CommandError;
use crate::output::table::{Table, printable};
use crate::sys::fsutil::{OpenAs, open_beneath};
use crate::sys::lsm;
use crate::sys::mounts::{MountPoint, parse_mountinfo};
use crate::sys::pid::{self, Namespace, Process};
use crate::sys::token::{BpfToken, attempt};

/// A process and its delegated bpffs mounts. Its JSON form is stable: keys are added, but never renamed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Here {
    /// The process; None for the calling one.
    pub pid: Option<u32>,
    /// Its container, if it is one of ours.
    pub container: Option<String>,
    /// The container's record, and who decided about its request; None if it has none.
    pub record: Option<DecidedRecord>,
    /// The security module that confines the process, and its label; None if none does.
    pub confinement: Option<Confinement>,
    /// What the guard binds its token to; None without a guard in force, or without a user namespace.
    pub guard: Option<GuardBinding>,
    /// Each bpffs in its mount namespace that delegates something.
    pub bpffs: Vec<Delegated>,
    /// The calls that fail, or may fail, and why.
    pub problems: Vec<CallProblem>,
}

/// The record of a container, as far as it is about its rights.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct DecidedRecord {
    /// The number of its owner, as `inspect` takes it.
    pub owner: u64,
    /// What granted the rights: a rule of the policy, with its file and line. None in records of earlier versions.
    pub granted_by: Option<String>,
    /// Where the bpffs is mounted that the record is about.
    pub bpffs: Option<PathBuf>,
    /// Each name that was granted through the proxy; empty without it.
    pub proxy: Vec<DelegatedName>,
}

impl DecidedRecord {
    fn of(record: &OwnerRecord, container: &ContainerOwner, reach: Option<&TokenReach>) -> Self {
        let proxy = container.proxy.as_ref().map(|proxy| delegated_names(&proxy.grant.delegation, reach));
        Self {
            owner: record.no.0,
            granted_by: container.granted_by.as_ref().map(ToString::to_string),
            bpffs: container.bpffs.as_ref().map(|bpffs| bpffs.path.clone()),
            proxy: proxy.unwrap_or_default(),
        }
    }

    /// `owner 7, granted by the container rule at /etc/…:3`
    fn line(&self) -> String {
        let by = self.granted_by.as_ref().map(|by| format!(", granted by {}", printable(by)));
        format!("owner {}{}", self.owner, by.unwrap_or_default())
    }
}

/// A bpffs that delegates, and what prevents its use.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Delegated {
    /// Mount point below the process's root directory.
    pub path: PathBuf,
    /// What does not work there.
    pub hindrance: Option<ConfinementProblem>,
    /// Who mounted it: the mount's source, `bpfman-hook` for ours.
    pub mounted_by: String,
    /// Each delegated name.
    pub names: Vec<DelegatedName>,
}

impl Here {
    /// Examines a process, or the calling one. `reach` is what programs reach on this kernel, if that is known.
    /// `record` is that of its container, `guard` is [`crate::paths::Paths::guard`].
    pub fn look(
        pid: Option<u32>,
        record: Option<&OwnerRecord>,
        reach: Option<&TokenReach>,
        guard: &Path,
    ) -> Result<Self, CommandError> {
        let number = pid.unwrap_or_else(std::process::id);
        let process = Pid::new(number)?;
        let process = pid::open_process(process)?;
        let mounts = process.mountinfo()?;
        let mounts = parse_mountinfo(&mounts)?;
        let status = process.status()?;
        let userns = process.namespaces()?.inode(Namespace::User);
        let initial = userns == INITIAL_USER_NAMESPACE;
        let guard = match u32::try_from(userns) {
            Ok(userns) if !initial => guard::binding(guard, userns)?,
            _ => None,
        };
        let confinement = lsm::confinement(pid);
        let found = delegating(&mounts);
        let mut holder = TokenHolder {
            initial_user_namespace: initial,
            capabilities: status.effective_capabilities,
            seccomp: status.seccomp != 0,
            bpffs: found.iter().map(|at| held(&mounts, *at)).collect(),
        };
        for bpffs in holder.bpffs.iter_mut().filter(|bpffs| !bpffs.part && !bpffs.covered) {
            bpffs.tried = tried(&process, pid.is_none(), initial, &bpffs.path);
        }
        let bpffs = found.iter().zip(&holder.bpffs).filter_map(|(at, held)| {
            let mount = mounts.get(*at)?;
            Some(Delegated {
                hindrance: hindrance(confinement.as_ref(), &held.path, lsm::may_create),
                path: held.path.clone(),
                mounted_by: mount.source.clone(),
                names: held.delegation.map(|delegation| delegated_names(&delegation, reach)).unwrap_or_default(),
            })
        });
        let bpffs = bpffs.collect();
        let owner = record.and_then(|record| Some((record, record.owner.container()?)));
        Ok(Self {
            pid,
            container: owner.map(|(_, container)| container.id.to_string()),
            record: owner.map(|(record, container)| DecidedRecord::of(record, container, reach)),
            confinement,
            guard,
            bpffs,
            problems: holder.problems(),
        })
    }

    /// The lines that `token explain` adds for the calling process: empty if there is nothing to report.
    pub fn hindrances(&self) -> String {
        let hindrances = self.bpffs.iter().filter_map(|bpffs| bpffs.hindrance.as_ref());
        let lines: String = hindrances.map(|hindrance| format!("  {hindrance}\n")).collect();
        if lines.is_empty() { lines } else { format!("\nThis process\n{lines}") }
    }

    /// Everything about a process, for a terminal.
    pub fn text(&self) -> String {
        let mut text = match (self.pid, &self.container) {
            (Some(pid), Some(container)) => format!("Process {pid}, container {}\n", printable(container)),
            (Some(pid), None) => format!("Process {pid}\n"),
            (None, _) => "This process\n".to_owned(),
        };
        for bpffs in &self.bpffs {
            let of_record = self.record.as_ref().filter(|record| record.bpffs.as_ref() == Some(&bpffs.path));
            let by = match (bpffs.mounted_by.as_str(), of_record) {
                ("bpfman-hook", Some(record)) => format!("bpfman-hook ({})", record.line()),
                ("bpfman-hook", None) => "bpfman-hook".to_owned(),
                _ => "another program".to_owned(),
            };
            text.push_str(&format!("\n{}, mounted by {by}, delegates\n", printable(&bpffs.path.display().to_string())));
            text.push_str(&names_table(&bpffs.names));
            if let Some(hindrance) = &bpffs.hindrance {
                text.push_str(&format!("{hindrance}\n"));
            }
        }
        if let Some(record) = self.record.as_ref().filter(|record| !record.proxy.is_empty()) {
            text.push_str(&format!("\nThe proxy ({}) passes on\n{}", record.line(), names_table(&record.proxy)));
        }
        if let Some(binding) = self.guard.filter(|_| !self.bpffs.is_empty()) {
            text.push_str(&format!("\n{binding}\n"));
        }
        for (certain, heading) in [(true, "Fails"), (false, "May fail")] {
            let problems: Vec<_> = self.problems.iter().filter(|problem| problem.certain == certain).collect();
            if problems.is_empty() {
                continue;
            }
            let mut table = Table::new(&["CALL", "ERRNO", "WHY", "REMEDY"]);
            for problem in problems {
                let because = printable(&problem.because);
                table.row([problem.call.to_owned(), problem.errno.to_owned(), because, problem.remedy.to_owned()]);
            }
            text.push_str(&format!("\n{heading}\n{table}"));
        }
        text
    }
}

/// The inode of the initial user namespace (include/linux/proc_ns.h, PROC_USER_INIT_INO).
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// The places of the bpffs mounts that delegate something, or that we made.
fn delegating(mounts: &[MountPoint]) -> Vec<usize> {
    let delegates = |mount: &MountPoint| mount.super_options.iter().any(|option| option.starts_with("delegate_"));
    let bpffs = mounts.iter().enumerate().filter(|(_, mount)| mount.kind == "bpf" && delegates(mount));
    bpffs.map(|(at, _)| at).collect()
}

fn held(mounts: &[MountPoint], at: usize) -> HeldBpffs {
    let Some(mount) = mounts.get(at) else { return HeldBpffs::default() };
    HeldBpffs {
        path: mount.point.clone(),
        delegation: Delegation::from_mount_options(&mount.super_options.join(",")).ok(),
        part: mount.root != Path::new("/"),
        covered: mounts.iter().skip(at + 1).any(|later| later.point == mount.point),
        read_only: mount.options.iter().any(|option| option == "ro"),
        tried: None,
    }
}

/// The errno of BPF_TOKEN_CREATE, 0 for success; None if it cannot be tried.
fn tried(process: &Process, own: bool, initial: bool, path: &Path) -> Option<i32> {
    if initial {
        // The process's own problem is reported; nothing about the bpffs can be learnt.
        return None;
    }
    let directory = process.open_directory(path).ok()?;
    let root: OwnedFd = open_beneath(&directory, Path::new("."), OpenAs::Directory).ok()?;
    let errno = match own {
        true => BpfToken::mint(File::from(root).as_fd()).err().map(|error| error.errno()),
        false => {
            let namespace = process.open_namespace(Namespace::User).ok()?;
            attempt::try_inside(namespace.as_fd(), root.as_fd()).ok()?
        }
    };
    Some(errno.map_or(0, |errno| errno.raw_os_error()))
}

fn hindrance(
    confinement: Option<&Confinement>,
    path: &Path,
    may_create: impl Fn(&str, &Path) -> Option<bool>,
) -> Option<ConfinementProblem> {
    let confinement = confinement?;
    let pins = match confinement.module {
        SecurityModule::AppArmor => may_create(&confinement.label, path),
        SecurityModule::SeLinux => None,
    };
    confinement.hinders(path, pins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_refuses_or_may_refuse_pins_is_reported() {
        let said = |label: &str, pins| {
            let confinement = Confinement::apparmor(label);
            let bpffs = ["/sys/fs/bpf", "/run/bpf"].map(|path| Delegated {
                hindrance: hindrance(confinement.as_ref(), Path::new(path), |_, _| pins),
                path: path.into(),
                mounted_by: "bpfman-hook".into(),
                names: Vec::new(),
            });
            Here {
                pid: None,
                container: None,
                record: None,
                confinement,
                guard: None,
                bpffs: bpffs.into(),
                problems: Vec::new(),
            }
        };
        let refused = said("docker-default (enforce)", Some(false));
        assert!(refused.hindrances().starts_with("\nThis process\n  tokens work, but"), "{refused:?}");
        assert_eq!(refused.hindrances().lines().count(), 3);
        assert!(refused.text().contains("/sys/fs/bpf, mounted by bpfman-hook, delegates"));
        assert!(said("docker-default (enforce)", None).hindrances().contains("the default profiles of"));
        assert_eq!(said("ours (enforce)", Some(true)).hindrances(), "");
        assert_eq!(said("unconfined", None).hindrances(), "");
    }

    #[test]
    fn the_record_says_who_granted_it() {
        let delegated =
            |path: &str| Delegated { hindrance: None, path: path.into(), mounted_by: "bpfman-hook".into(), names: Vec::new() };
        let delegation = Delegation { cmds: 1, maps: 4, ..Delegation::default() };
        let record = DecidedRecord {
            owner: 7,
            granted_by: Some("the container rule at /etc/p.toml:3".into()),
            bpffs: Some("/sys/fs/bpf".into()),
            proxy: delegated_names(&delegation, None),
        };
        let bpffs = vec![delegated("/sys/fs/bpf"), delegated("/run/bpf")];
        let container = Some("web".to_owned());
        let here =
            Here { pid: Some(8), container, record: Some(record), confinement: None, guard: None, bpffs, problems: Vec::new() };
        let text = here.text();
        for line in [
            "Process 8, container web",
            "/sys/fs/bpf, mounted by bpfman-hook (owner 7, granted by the container rule at /etc/p.toml:3), delegates",
            "/run/bpf, mounted by bpfman-hook, delegates",
            "The proxy (owner 7, granted by the container rule at /etc/p.toml:3) passes on",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn mounts_are_examined() {
        let text = "30 1 0:5 / / rw - ext4 /dev/x rw\n\
                    31 30 0:6 / /sys/fs/bpf rw - bpf bpfman-hook rw,uid=100000,delegate_cmds=map_create,delegate_maps=array\n\
                    32 30 0:7 /part /run/bpf ro - bpf none rw,delegate_cmds=any\n\
                    33 30 0:8 / /run/other rw - bpf none rw\n\
                    34 30 0:9 / /run/bpf rw - tmpfs tmpfs rw\n";
        let mounts = parse_mountinfo(text).unwrap();
        let found = delegating(&mounts);
        assert_eq!(found, [1, 2]);
        let first = held(&mounts, 1);
        assert_eq!((first.part, first.covered, first.read_only), (false, false, false));
        assert_eq!(first.delegation, Some(Delegation { cmds: 1, maps: 4, ..Delegation::default() }));
        let second = held(&mounts, 2);
        assert_eq!((second.part, second.covered, second.read_only), (true, true, true));
    }

    #[test]
    fn a_missing_process_is_an_error() {
        assert_eq!(Here::look(None, None, None, Path::new("/nowhere")).unwrap().pid, None);
        assert!(Here::look(Some(u32::MAX), None, None, Path::new("/nowhere")).is_err());
        assert!(Here::look(Some(i32::MAX as u32), None, None, Path::new("/nowhere")).is_err());
    }
}
