//! containerd's default seccomp profile, with the rules that notify the proxy.
//!
//! containerd makes its default profile when it creates a container, so there is no file to take it from.
//! `packaging/seccomp/` has the same profile as a file, and its README where it comes from.

use serde_json::Value;

use super::profile;

/// containerd's default for containers with its default capabilities.
const CONTAINERD: &str = include_str!("../../../packaging/seccomp/containerd-default.json");

/// The profile for pods, in the form of the runtime-spec, for the machine `architecture` (`amd64`, `arm64`).
pub fn kubelet(listener: &str, architecture: &str) -> Value {
    let mut profile = serde_json::from_str(CONTAINERD).expect("a test reads the profile");
    profile::to_runtime_spec(&mut profile, architecture);
    profile::edit(&mut profile, listener, false).expect("the profile has the form that a test checks, and no listener");
    profile
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::policy::Engine;
    use crate::model::proxy::profile::ProxySockets;
    use crate::model::seccomp::Seccomp;

    #[test]
    fn the_profile_is_containerds_with_our_rules() {
        let socket = "/run/bpfman-hook/proxy.sock";
        let sockets = ProxySockets { shared: socket.into(), directory: "/run/bpfman-hook/proxy".into() };
        for (architecture, own, other) in [("amd64", "arch_prctl", "set_tls"), ("arm64", "set_tls", "arch_prctl")] {
            let profile = kubelet(socket, architecture);
            let seccomp: Seccomp = serde_json::from_value(profile.clone()).unwrap();
            assert_eq!(profile::check(Some(&seccomp), Engine::Containerd, &sockets, false), Ok(()));
            assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
            let allowed: BTreeSet<_> = profile["syscalls"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW" && rule.get("args").is_none())
                .flat_map(|rule| rule["names"].as_array().unwrap())
                .filter_map(Value::as_str)
                .collect();
            for name in ["read", "openat", "execve", "chroot", own] {
                assert!(allowed.contains(name), "{name}");
            }
            // What containerd allows only with added capabilities, and what it has removed.
            for name in
                ["bpf", "mount", "setns", "unshare", "clone", "perf_event_open", "open_by_handle_at", "io_uring_setup", other]
            {
                assert!(!allowed.contains(name), "{name}");
            }
        }
    }
}
