//! Mandatory access control: the effect of a process's security label on its use of a bpffs.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::model::text::quoted;

/// The security module that confines a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SecurityModule {
    /// AppArmor, which decides by the path of a file.
    AppArmor,
    /// SELinux, which decides by the label of a file.
    SeLinux,
}

/// The confinement of a process, as shown in `/proc/PID/attr`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confinement {
    /// The module.
    pub module: SecurityModule,
    /// The AppArmor profile, or the SELinux context.
    pub label: String,
}

impl Confinement {
    /// Parses `/proc/PID/attr/apparmor/current`: the profile, a blank and its mode in parentheses
    /// (security/apparmor/label.c, `aa_label_snxprint`). None if the process is unconfined or its profile does not
    /// enforce.
    pub fn apparmor(text: &str) -> Option<Self> {
        let text = text.trim_end_matches(['\n', '\0']);
        let (profile, mode) = match text.strip_suffix(')').and_then(|rest| rest.rsplit_once(" (")) {
            Some((profile, mode)) => (profile, mode),
            None => (text, ""),
        };
        let free = profile.is_empty() || profile == "unconfined" || matches!(mode, "complain" | "unconfined");
        (!free).then(|| Self { module: SecurityModule::AppArmor, label: profile.to_owned() })
    }

    /// Parses `/proc/PID/attr/current` if AppArmor does not write it: an SELinux context `user:role:type[:level]`. None
    /// if SELinux does not confine, and for the domains that SELinux policies leave unconfined.
    pub fn selinux(text: &str) -> Option<Self> {
        let context = text.trim_end_matches(['\n', '\0']);
        let domain = context.split(':').nth(2)?;
        let free = matches!(domain, "unconfined_t" | "kernel_t" | "spc_t");
        (!free).then(|| Self { module: SecurityModule::SeLinux, label: context.to_owned() })
    }

    /// What prevents the process from using a bpffs at `path`; None if no problem is known.
    ///
    /// `pins` tells whether AppArmor allows it to create a file there, if that could be determined. The rule that
    /// denies it, `deny /sys/fs/[^c]*/** wklx`, is part of the default profiles of containers/common, moby and
    /// containerd.
    pub fn hinders(&self, path: &Path, pins: Option<bool>) -> Option<ConfinementProblem> {
        let (label, shown) = (quoted(&self.label), path.display());
        match self.module {
            SecurityModule::AppArmor if !path.starts_with("/sys/fs") || pins == Some(true) => None,
            SecurityModule::AppArmor => {
                let refuses = match pins {
                    Some(_) => "which refuses",
                    None => "and the default profiles of docker, podman and containerd refuse",
                };
                Some(ConfinementProblem {
                    problem: format!(
                        "tokens work, but the process runs under the AppArmor profile {label}, {refuses} to pin in {shown} (EACCES, without \
                         an audit line)"
                    ),
                    remedy: "request bpffs-path=/run/bpf, or use the profile of packaging/apparmor",
                })
            }
            SecurityModule::SeLinux => Some(ConfinementProblem {
                problem: format!("the process runs in the SELinux context {label}, which needs the permissions of tokens"),
                remedy: "load a policy module like the one in packaging/selinux",
            }),
        }
    }
}

/// A problem that the confinement causes, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfinementProblem {
    /// What does not work.
    pub problem: String,
    /// What to do.
    pub remedy: &'static str,
}

impl fmt::Display for ConfinementProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.problem, self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apparmor_labels_are_parsed() {
        for (text, profile) in [
            ("unconfined\n", None),
            ("unconfined", None),
            ("", None),
            ("containers-default-0.50.1 (enforce)\n", Some("containers-default-0.50.1")),
            ("docker-default (complain)\n", None),
            ("lxc-container-default (unconfined)\n", None),
            ("a//&:ns:b (mixed)\n", Some("a//&:ns:b")),
            ("strange (name) (kill)\n", Some("strange (name)")),
            ("no mode\n", Some("no mode")),
        ] {
            assert_eq!(Confinement::apparmor(text).map(|found| found.label).as_deref(), profile, "{text:?}");
        }
    }

    #[test]
    fn only_selinux_contexts_are_parsed() {
        for (text, context) in [
            ("system_u:system_r:container_t:s0:c1,c2\0", Some("system_u:system_r:container_t:s0:c1,c2")),
            ("unconfined_u:unconfined_r:unconfined_t:s0\n", None),
            ("system_u:system_r:kernel_t:s0\0", None),
            ("_\n", None),
            ("", None),
        ] {
            assert_eq!(Confinement::selinux(text).map(|found| found.label).as_deref(), context, "{text:?}");
        }
    }

    #[test]
    fn problems_are_reported_with_their_remedy() {
        let apparmor = Confinement::apparmor("docker-default (enforce)").unwrap();
        let said = |path: &str, pins| Some(apparmor.hinders(Path::new(path), pins)?.to_string());
        for (path, pins, expected) in [
            (
                "/sys/fs/bpf",
                None,
                Some("and the default profiles of docker, podman and containerd refuse to pin in /sys/fs/bpf"),
            ),
            ("/sys/fs/bpf", Some(false), Some("\"docker-default\", which refuses to pin in /sys/fs/bpf (EACCES")),
            ("/sys/fs/bpf", Some(true), None),
            ("/run/bpf", None, None),
            ("/run/bpf", Some(false), None),
            ("/sys/fsx", None, None),
        ] {
            match (said(path, pins), expected) {
                (None, None) => {}
                (Some(sentence), Some(words)) => {
                    assert!(sentence.contains(words) && sentence.contains("bpffs-path=/run/bpf"), "{sentence}");
                }
                (said, _) => panic!("{path} {pins:?}: {said:?}"),
            }
        }
        let selinux = Confinement::selinux("system_u:system_r:container_t:s0").unwrap();
        assert!(selinux.hinders(Path::new("/run/bpf"), None).unwrap().remedy.contains("packaging/selinux"));
    }
}
