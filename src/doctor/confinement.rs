//! Security modules that confine containers, and what their policies mean for a delegated bpffs.

use std::io;
use std::path::Path;

use crate::model::confinement::{Confinement, SecurityModule};
use crate::model::record::{OwnerRecord, Phase};
use crate::output::finding::{Finding, FindingStatus};

/// What AppArmor does to containers with a token, if `/sys/kernel/security/lsm` lists it.
pub fn apparmor(modules: &io::Result<String>) -> Option<Finding> {
    let on = modules.as_ref().is_ok_and(|list| list.trim().split(',').any(|module| module == "apparmor"));
    let detail = "on: under the default profiles of docker, podman and containerd, tokens work, but pinning below /sys/fs/bpf is \
                  refused (EACCES, without an audit line); bpffs-path=/run/bpf or the profile of packaging/apparmor allows it";
    on.then(|| Finding::ok("apparmor", detail))
}

/// Living containers with a token that their confinement hinders.
pub fn containers(
    records: &[OwnerRecord],
    lives: impl Fn(&OwnerRecord) -> bool,
    confinement: impl Fn(u32) -> Option<Confinement>,
    may_create: impl Fn(&str, &Path) -> Option<bool>,
) -> Vec<Finding> {
    let decide = |record: &OwnerRecord| {
        let container = record.owner.container()?;
        let (init, bpffs) = (container.init?, container.bpffs.as_ref()?);
        if record.phase != Phase::Ready || bpffs.delegation.is_none() || !lives(record) {
            return None;
        }
        let confined = confinement(init.pid.get())?;
        let (check, pins) = match confined.module {
            SecurityModule::AppArmor => ("apparmor", may_create(&confined.label, &bpffs.path)),
            SecurityModule::SeLinux => ("selinux", None),
        };
        let hindrance = confined.hinders(&bpffs.path, pins)?;
        let detail = format!("{}: {}", record.owner, hindrance.problem);
        Some(Finding::bad(check, FindingStatus::Warn, detail, hindrance.remedy))
    };
    records.iter().filter_map(decide).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delegation::Delegation;
    use crate::model::ids::{OwnerNo, Pid, ProcessIdentity};
    use crate::model::policy::Engine;
    use crate::model::record::{Actor, BpffsRecord, ContainerOwner, Owner, Workload};

    fn owning(bpffs: BpffsRecord) -> OwnerRecord {
        let process = ProcessIdentity { pid: Pid::new(7).unwrap(), start_time: 9 };
        let web = ContainerOwner::new("web".parse().unwrap(), "/srv/web".into(), 0, Engine::Oci, Workload::default());
        let owner = Owner::Container(ContainerOwner { init: Some(process), bpffs: Some(Box::new(bpffs)), ..web });
        OwnerRecord::new(OwnerNo(1), owner, Phase::Ready, Actor { process, deadline: 0 }, 0)
    }

    #[test]
    fn apparmor_is_reported_if_it_is_on() {
        let judged = |list: &str| apparmor(&Ok(list.to_owned())).map(|finding| finding.status);
        assert_eq!(judged("lockdown,capability,apparmor,bpf\n"), Some(FindingStatus::Ok));
        assert_eq!(judged("lockdown,capability,bpf\n"), None);
        assert_eq!(apparmor(&Err(io::ErrorKind::NotFound.into())), None);
    }

    #[test]
    fn a_container_whose_profile_refuses_pinning_is_reported() {
        let with = |path: &str, delegation| owning(BpffsRecord { path: path.into(), delegation });
        let decide = |record: &OwnerRecord, lives: bool, label: &str, pins: Option<bool>| {
            let records = std::slice::from_ref(record);
            containers(records, |_| lives, |_| Confinement::apparmor(label), |_, _| pins).pop()
        };
        let token = with("/sys/fs/bpf", Some(Delegation::default()));
        let finding = decide(&token, true, "docker-default (enforce)", Some(false)).unwrap();
        assert_eq!(finding.status, FindingStatus::Warn);
        assert!(finding.detail.starts_with("container web: tokens work, but"), "{finding:?}");
        for (record, lives, label, pins) in [
            (&token, false, "docker-default (enforce)", Some(false)),
            (&token, true, "docker-default (enforce)", Some(true)),
            (&token, true, "unconfined", None),
            (&with("/run/bpf", Some(Delegation::default())), true, "docker-default (enforce)", None),
            (&with("/sys/fs/bpf", None), true, "docker-default (enforce)", None),
        ] {
            assert_eq!(decide(record, lives, label, pins), None, "{record:?} {lives} {label} {pins:?}");
        }
    }
}
