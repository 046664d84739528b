//! The rights that a container needs, besides the delegation, to use BPF itself: capabilities in its user namespace,
//! and a seccomp profile that allows bpf(2). createRuntime reports what is missing; precreate adds it if the policy
//! grants it.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::model::config::{Capability, ContainerConfig, NamespaceKind, NamespaceSource};
use crate::model::delegation::Delegation;
use crate::model::policy::Engine;
use crate::model::seccomp::{Allowed, Syscall};

/// The rights that a request needs in its container's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Capabilities, in the order of [`Capability::ALL`].
    pub capabilities: Vec<Capability>,
    /// System calls, bpf(2) first.
    pub syscalls: Vec<Syscall>,
}

/// Bits of `enum bpf_prog_type` that kernel/bpf/syscall.c, `is_net_admin_prog_type`, lists, and cgroup_skb, whose attach
/// needs the same capability: sched_cls sched_act xdp cgroup_skb cgroup_sock lwt_in lwt_out lwt_xmit sock_ops sk_skb
/// cgroup_device sk_msg cgroup_sock_addr lwt_seg6local flow_dissector cgroup_sysctl cgroup_sockopt ext netfilter.
const NET_ADMIN_PROGS: u64 = bits(&[3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 22, 23, 25, 28, 32]);
/// `is_perfmon_prog_type`: kprobe tracepoint perf_event raw_tracepoint raw_tracepoint_writable tracing struct_ops ext lsm.
const PERFMON_PROGS: u64 = bits(&[2, 5, 7, 17, 24, 26, 27, 28, 29]);
/// Types that attach through perf_event_open(2): tracepoint perf_event.
const PERF_EVENT_PROGS: u64 = bits(&[5, 7]);
/// Map types for which `map_create` requires CAP_NET_ADMIN: devmap sockmap xskmap sockhash devmap_hash.
const NET_ADMIN_MAPS: u64 = bits(&[14, 15, 17, 18, 25]);

const fn bits(values: &[u32]) -> u64 {
    let mut mask = 0;
    let mut i = 0;
    while i < values.len() {
        mask |= 1 << values[i];
        i += 1;
    }
    mask
}

impl Needs {
    /// The rights needed to use a token with this delegation (None: no token) and, if `shows_maps`, to read maps.
    pub fn of(delegation: Option<&Delegation>, shows_maps: bool) -> Self {
        let mut needs = Self::default();
        if let Some(delegation) = delegation {
            needs.capabilities.push(Capability::Bpf);
            if delegation.progs & NET_ADMIN_PROGS != 0 || delegation.maps & NET_ADMIN_MAPS != 0 {
                needs.capabilities.push(Capability::NetAdmin);
            }
            if delegation.progs & PERFMON_PROGS != 0 {
                needs.capabilities.push(Capability::Perfmon);
            }
        }
        if delegation.is_some() || shows_maps {
            needs.syscalls.push(Syscall::Bpf);
        }
        if delegation.is_some_and(|delegation| delegation.progs & PERF_EVENT_PROGS != 0) {
            needs.syscalls.push(Syscall::PerfEventOpen);
        }
        needs
    }

    /// Refuses a configuration that definitely lacks a right. A right that it may have (a seccomp rule on arguments,
    /// file capabilities) does not count as missing.
    ///
    /// `grant` is true if the policy sets `grant = true` for the container: a missing right then means that precreate
    /// did not add it.
    pub fn check(&self, config: &ContainerConfig, engine: Engine, grant: bool) -> Result<(), MissingRights> {
        let lacking = Self {
            capabilities: self.capabilities.iter().copied().filter(|c| config.can_have(*c) == Allowed::No).collect(),
            syscalls: self.syscalls.iter().copied().filter(|call| config.seccomp_allows(*call) == Allowed::No).collect(),
        };
        if lacking.is_empty() {
            Ok(())
        } else {
            Err(MissingRights { user: config.user.uid, engine, grant: Grant::of(config, &lacking, grant), lacking })
        }
    }

    fn is_empty(&self) -> bool {
        self.capabilities.is_empty() && self.syscalls.is_empty()
    }

    /// `CAP_BPF CAP_NET_ADMIN`
    fn capabilities(&self) -> String {
        self.capabilities.iter().map(|capability| capability.name()).collect::<Vec<_>>().join(" ")
    }

    /// The same without the prefix and separated by commas, as `--cap-add` and Kubernetes expect them.
    fn short(&self) -> String {
        self.capabilities().replace("CAP_", "").replace(' ', ",")
    }

    /// `bpf(2) perf_event_open(2)`
    fn calls(&self) -> String {
        self.syscalls.iter().map(|call| format!("{}(2)", call.name())).collect::<Vec<_>>().join(" ")
    }
}

/// The rights that a container lacks for its request. Displayed as one sentence with the remedy for its engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingRights {
    /// The missing rights.
    pub lacking: Needs,
    user: u32,
    engine: Engine,
    grant: Grant,
}

/// Why precreate did not add the missing rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grant {
    /// The policy does not set `grant = true`.
    NotAllowed,
    /// Capabilities are added only in a new user namespace, see [`grant`].
    NoNewUserNamespace,
    /// Its hook file is not in a directory that podman reads, or the hook failed.
    NotRun,
}

impl Grant {
    fn of(config: &ContainerConfig, lacking: &Needs, allowed: bool) -> Self {
        match allowed {
            false => Self::NotAllowed,
            true if !lacking.capabilities.is_empty() && config.namespace(NamespaceKind::User) != NamespaceSource::New => {
                Self::NoNewUserNamespace
            }
            true => Self::NotRun,
        }
    }
}

impl std::error::Error for MissingRights {}

impl fmt::Display for MissingRights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lacking, user, engine, grant } = self;
        let mut lacks = Vec::new();
        let mut remedies = Vec::new();
        if !lacking.capabilities.is_empty() {
            lacks.push(format!("user {user} of the container cannot have {}", lacking.capabilities()));
            remedies.push(match engine {
                Engine::Podman => format!("use --cap-add {}", lacking.short()),
                // In a Pod, users other than root get no ambient capabilities.
                Engine::Containerd | Engine::CriO if *user != 0 => {
                    format!("run it as uid 0 with capabilities.add [{}] or give its program file capabilities", lacking.short())
                }
                Engine::Containerd | Engine::CriO => format!("set securityContext.capabilities.add [{}]", lacking.short()),
                Engine::Oci if *user == 0 => "add them to bounding, effective and permitted (docker: --cap-add)".to_owned(),
                Engine::Oci => "add them to all five sets, ambient included".to_owned(),
            });
        }
        if !lacking.syscalls.is_empty() {
            lacks.push(format!("the container's seccomp profile refuses {}", lacking.calls()));
            remedies.push(match engine {
                Engine::Podman => "use a profile that allows it (--security-opt seccomp=FILE)".to_owned(),
                Engine::Containerd | Engine::CriO => "set a securityContext.seccompProfile that allows it".to_owned(),
                Engine::Oci => "allow it in linux.seccomp (docker: --security-opt seccomp=FILE)".to_owned(),
            });
        }
        write!(f, "{}: {}", lacks.join(", and "), remedies.join(" and "))?;
        if engine.knows_pods() && lacking.syscalls.is_empty() {
            // A pod-wide key also applies to init and ephemeral containers, which runtimes do not mark as such.
            f.write_str("; a key NAME.hook.bpfman.io/... applies to one container only")?;
        }
        match grant {
            _ if *engine != Engine::Podman => Ok(()),
            Grant::NotAllowed => f.write_str(", or grant = true in the policy"),
            Grant::NoNewUserNamespace => {
                f.write_str("; grant = true works only with a new user namespace (--userns=auto, --uidmap)")
            }
            Grant::NotRun => {
                f.write_str("; grant = true is set, but precreate did not run: bpfman-hook install --podman --check")
            }
        }
    }
}

/// Why a configuration cannot be edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("add the granted rights to the container's configuration: {field} does not follow the OCI runtime-spec")]
pub struct GrantError {
    /// The field, as a path in config.json.
    pub field: &'static str,
}

/// The rights added to a configuration; displayed as a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Granted(Needs);

impl Granted {
    /// True if nothing was added.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let granted = [self.0.capabilities(), self.0.calls()];
        f.write_str(granted.join(" ").trim())
    }
}

/// Adds to a configuration what it lacks of `needs`, and nothing else. On an error the configuration is left partly
/// edited.
///
/// If capabilities are needed, nothing is added unless the container gets a new user namespace: otherwise they would be
/// capabilities on the host. A user namespace that is joined by its path may be the host's by the time it is joined.
///
/// A capability goes into bounding, effective and permitted. For a user other than root it must also be in inheritable
/// and ambient: such a process loses all but its ambient set when the runtime executes the workload (capabilities(7)).
/// For root it must not: a non-empty inheritable set was CVE-2022-24769.
///
/// A system call is removed from every other rule before a rule that allows it is added: of two different actions for
/// one call libseccomp takes the first, or rejects the second. Rules that depend on arguments, or leave the decision to
/// a listener or tracer, are kept.
pub fn grant(spec: &mut Value, config: &ContainerConfig, needs: &Needs) -> Result<Granted, GrantError> {
    if !needs.capabilities.is_empty() && config.namespace(NamespaceKind::User) != NamespaceSource::New {
        return Ok(Granted::default());
    }
    let added = Needs {
        capabilities: needs.capabilities.iter().copied().filter(|c| config.can_have(*c) != Allowed::Yes).collect(),
        syscalls: needs.syscalls.iter().copied().filter(|call| config.seccomp_allows(*call) == Allowed::No).collect(),
    };
    for capability in &added.capabilities {
        add_capability(spec, capability.name(), config.user.uid)?;
    }
    for call in &added.syscalls {
        allow(spec, call.name())?;
    }
    Ok(Granted(added))
}

fn add_capability(spec: &mut Value, name: &str, uid: u32) -> Result<(), GrantError> {
    let process = member(spec, "process", "process", || json!({}))?;
    let sets = member(process, "capabilities", "process.capabilities", || json!({}))?;
    let names: &[&str] = if uid == 0 {
        &["bounding", "effective", "permitted"]
    } else {
        &["bounding", "effective", "inheritable", "permitted", "ambient"]
    };
    for set in names {
        let list = member(sets, set, "process.capabilities", || json!([]))?;
        let list = list.as_array_mut().ok_or(GrantError { field: "process.capabilities" })?;
        if !list.iter().any(|present| present == name) {
            list.push(json!(name));
        }
    }
    Ok(())
}

fn allow(spec: &mut Value, name: &str) -> Result<(), GrantError> {
    let bad = || GrantError { field: "linux.seccomp.syscalls" };
    let linux = member(spec, "linux", "linux", || json!({}))?;
    let seccomp = member(linux, "seccomp", "linux.seccomp", || json!({}))?;
    let rules = member(seccomp, "syscalls", "linux.seccomp.syscalls", || json!([]))?.as_array_mut().ok_or_else(bad)?;
    for rule in rules.iter_mut() {
        let names = rule.get_mut("names").and_then(Value::as_array_mut).ok_or_else(bad)?;
        names.retain(|listed| listed != name);
    }
    rules.retain(|rule| rule["names"].as_array().is_some_and(|names| !names.is_empty()));
    rules.push(json!({ "names": [name], "action": "SCMP_ACT_ALLOW" }));
    Ok(())
}

/// The value of an object's key, created if it is absent or null.
fn member<'a>(
    parent: &'a mut Value,
    key: &str,
    field: &'static str,
    new: impl FnOnce() -> Value,
) -> Result<&'a mut Value, GrantError> {
    let object: &mut Map<String, Value> = parent.as_object_mut().ok_or(GrantError { field })?;
    let value = object.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = new();
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(name: &str) -> (Value, ContainerConfig) {
        let path = format!("{}/tests/data/config/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        (serde_json::from_str(&text).unwrap(), ContainerConfig::parse(&text).unwrap())
    }

    /// The same configuration with a new user namespace.
    fn in_userns(name: &str) -> (Value, ContainerConfig) {
        let (mut spec, config) = recorded(name);
        if config.namespace(NamespaceKind::User) == NamespaceSource::Runtime {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        }
        let config = ContainerConfig::parse(&spec.to_string()).unwrap();
        (spec, config)
    }

    fn progs(progs: u64) -> Delegation {
        Delegation { cmds: 1, maps: 0, progs, attachs: 1 }
    }

    #[test]
    fn needs_follow_the_delegation() {
        use Capability::{Bpf, NetAdmin, Perfmon};
        use Syscall::PerfEventOpen;
        for (delegation, maps, capabilities, syscalls) in [
            (None, false, vec![], vec![]),
            (None, true, vec![], vec![Syscall::Bpf]),
            (Some(progs(bits(&[1]))), false, vec![Bpf], vec![Syscall::Bpf]),
            (Some(progs(bits(&[1, 6]))), false, vec![Bpf, NetAdmin], vec![Syscall::Bpf]),
            (Some(progs(bits(&[17]))), true, vec![Bpf, Perfmon], vec![Syscall::Bpf]),
            (Some(progs(bits(&[5, 17]))), false, vec![Bpf, Perfmon], vec![Syscall::Bpf, PerfEventOpen]),
            (Some(progs(bits(&[28]))), false, vec![Bpf, NetAdmin, Perfmon], vec![Syscall::Bpf]),
            (Some(Delegation { maps: bits(&[15]), ..progs(0) }), false, vec![Bpf, NetAdmin], vec![Syscall::Bpf]),
            (Some(Delegation { maps: bits(&[1, 2, 27]), ..progs(bits(&[1])) }), false, vec![Bpf], vec![Syscall::Bpf]),
        ] {
            assert_eq!(Needs::of(delegation.as_ref(), maps), Needs { capabilities, syscalls }, "{delegation:?}");
        }
    }

    #[test]
    fn missing_rights_come_with_a_remedy_for_the_engine() {
        let networking = Needs::of(Some(&progs(bits(&[6]))), false);
        let maps = Needs::of(None, true);
        let says = |needs: &Needs, name: &str, engine| needs.check(&recorded(name).1, engine, false).map_err(|e| e.to_string());
        assert_eq!(says(&networking, "runc-1.1.5_userns", Engine::Oci), Ok(()));
        assert_eq!(says(&maps, "runc-1.1.5_spec", Engine::Oci), Ok(()));
        for (needs, name, engine, sentence) in [
            (
                &networking,
                "runc-1.1.5_spec",
                Engine::Oci,
                "user 0 of the container cannot have CAP_BPF CAP_NET_ADMIN: add them to bounding, effective and permitted \
                 (docker: --cap-add)",
            ),
            (
                &networking,
                "podman-4.3.1_default",
                Engine::Podman,
                "user 0 of the container cannot have CAP_BPF CAP_NET_ADMIN, and the container's seccomp profile refuses bpf(2): \
                 use --cap-add BPF,NET_ADMIN and use a profile that allows it (--security-opt seccomp=FILE), or grant = true in \
                 the policy",
            ),
            (
                &networking,
                "podman-4.3.1_user1000",
                Engine::CriO,
                "user 1000 of the container cannot have CAP_NET_ADMIN, and the container's seccomp profile refuses bpf(2): run \
                 it as uid 0 with capabilities.add [NET_ADMIN] or give its program file capabilities and set a securityContext.seccompProfile that allows it",
            ),
            (
                &maps,
                "podman-4.3.1_default",
                Engine::Podman,
                "the container's seccomp profile refuses bpf(2): use a profile that allows it (--security-opt seccomp=FILE), or \
                 grant = true in the policy",
            ),
        ] {
            assert_eq!(says(needs, name, engine), Err(sentence.to_owned()));
        }
        // The longest sentence fits into the line that a runtime shows.
        let all = Needs::of(Some(&progs(bits(&[5, 6]))), true);
        for engine in Engine::ALL {
            let longest = says(&all, "podman-4.3.1_default", engine).unwrap_err();
            assert!(longest.len() < 285, "{longest}");
        }
    }

    #[test]
    fn an_existing_grant_is_not_suggested_as_remedy() {
        let networking = Needs::of(Some(&progs(bits(&[6]))), false);
        let maps = Needs::of(None, true);
        for (needs, (_, config), end) in [
            (
                &networking,
                recorded("podman-4.3.1_default"),
                "grant = true works only with a new user namespace (--userns=auto, --uidmap)",
            ),
            (&networking, in_userns("podman-4.3.1_default"), "but precreate did not run: bpfman-hook install --podman --check"),
            (&maps, recorded("podman-4.3.1_default"), "but precreate did not run: bpfman-hook install --podman --check"),
        ] {
            let sentence = needs.check(&config, Engine::Podman, true).unwrap_err().to_string();
            assert!(sentence.ends_with(end) && sentence.len() < 310, "{sentence}");
        }
    }

    #[test]
    fn a_grant_adds_only_what_is_missing() {
        let needs = Needs::of(Some(&progs(bits(&[5, 6]))), false);
        for name in [
            "runc-1.1.5_spec",
            "crun-1.8.1_spec",
            "podman-4.3.1_default",
            "podman-4.3.1_userns",
            "podman-4.3.1_user1000",
            "podman-4.3.1_unconfined",
            "podman-4.3.1_hostnet",
        ] {
            let (before, config) = in_userns(name);
            let mut after = before.clone();
            assert!(!grant(&mut after, &config, &needs).unwrap().is_empty(), "{name}");
            let granted = ContainerConfig::parse(&after.to_string()).unwrap();
            assert_eq!(needs.check(&granted, Engine::Podman, true), Ok(()), "{name}");
            assert!(needs.capabilities.iter().all(|c| granted.can_have(*c) == Allowed::Yes), "{name}");
            let mut again = after.clone();
            assert_eq!(grant(&mut again, &granted, &needs), Ok(Granted::default()), "{name}");
            assert_eq!(again, after);
            // Everything except these two fields is unchanged.
            let strip = |mut value: Value| {
                value["process"].as_object_mut().unwrap().remove("capabilities");
                value["linux"].as_object_mut().unwrap().remove("seccomp");
                value
            };
            assert_eq!(strip(after), strip(before), "{name}");
        }
    }

    #[test]
    fn root_keeps_an_empty_inheritable_set_and_others_get_an_ambient_one() {
        let needs = Needs::of(Some(&progs(bits(&[6]))), false);
        let (mut root, config) = in_userns("podman-4.3.1_default");
        grant(&mut root, &config, &needs).unwrap();
        assert_eq!(root["process"]["capabilities"].get("inheritable"), None);
        assert_eq!(root["process"]["capabilities"].get("ambient"), None);
        let (mut user, config) = in_userns("podman-4.3.1_user1000");
        grant(&mut user, &config, &needs).unwrap();
        assert_eq!(user["process"]["capabilities"]["ambient"], json!(["CAP_BPF", "CAP_NET_ADMIN"]));
        assert_eq!(user["process"]["capabilities"]["inheritable"], json!(["CAP_BPF", "CAP_NET_ADMIN"]));
    }

    #[test]
    fn a_grant_keeps_other_syscalls_refused() {
        let (mut spec, config) = recorded("podman-4.3.1_default");
        let refused = |spec: &Value, call: &str| {
            spec["linux"]["seccomp"]["syscalls"].as_array().unwrap().iter().any(|rule| {
                rule["action"] == "SCMP_ACT_ERRNO" && rule["names"].as_array().unwrap().iter().any(|name| name == call)
            })
        };
        assert!(refused(&spec, "bpf") && refused(&spec, "perf_event_open"));
        grant(&mut spec, &config, &Needs::of(None, true)).unwrap();
        assert!(!refused(&spec, "bpf") && refused(&spec, "perf_event_open") && refused(&spec, "lookup_dcookie"));
        assert_eq!(spec["process"], recorded("podman-4.3.1_default").0["process"]);
    }

    #[test]
    fn a_grant_keeps_seccomp_listener_rules() {
        let needs = Needs::of(None, true);
        for action in ["SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE"] {
            let mut spec = json!({ "root": { "path": "r" },
                "linux": { "seccomp": { "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{ "names": ["bpf"], "action": action }] } } });
            let config = ContainerConfig::parse(&spec.to_string()).unwrap();
            assert_eq!(grant(&mut spec, &config, &needs), Ok(Granted::default()), "{action}");
        }
    }

    #[test]
    fn malformed_configurations_are_refused() {
        let needs = Needs::of(Some(&progs(bits(&[6]))), false);
        let config = ContainerConfig::parse(r#"{"root":{"path":"r"},"linux":{"namespaces":[{"type":"user"}]}}"#).unwrap();
        for (text, field) in [
            (r#"{"process":[]}"#, "process.capabilities"),
            (r#"{"process":{"capabilities":["CAP_CHOWN"]}}"#, "process.capabilities"),
            ("[]", "process"),
        ] {
            let mut spec: Value = serde_json::from_str(text).unwrap();
            assert_eq!(grant(&mut spec, &config, &needs), Err(GrantError { field }), "{text}");
        }
    }
}
