//! What a container's own use of BPF needs besides the delegation: capabilities in its user namespace and a seccomp profile
//! that lets bpf(2) through. Found missing at createRuntime, added by precreate where policy grants it.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::model::config::{Capability, Config, NamespaceKind, NamespaceSource};
use crate::model::delegation::Delegation;
use crate::model::policy::Engine;
use crate::model::seccomp::{Allowed, Syscall};

/// What a request needs in its container's configuration.
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
/// Map types that `map_create` wants CAP_NET_ADMIN for: devmap sockmap xskmap sockhash devmap_hash.
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
    /// What it takes to use a token with this delegation (None: no token), and to read maps where `shows_maps`.
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

    /// What the configuration certainly lacks. What it may lack (a rule on arguments, a file with capabilities) is not in it.
    pub fn missing(&self, config: &Config, engine: Engine) -> Vec<Missing> {
        let capabilities = self
            .capabilities
            .iter()
            .filter(|capability| config.can_have(**capability) == Allowed::No)
            .map(|capability| Missing { what: Lack::Capability(*capability), user: config.user.uid, engine });
        let syscalls = self.syscalls.iter().filter(|call| config.seccomp_allows(**call) == Allowed::No).map(|call| Missing {
            what: Lack::Syscall(*call),
            user: config.user.uid,
            engine,
        });
        capabilities.chain(syscalls).collect()
    }
}

/// One thing that a container lacks; displayed as a sentence with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What.
    pub what: Lack,
    user: u32,
    engine: Engine,
}

/// What can be lacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// A capability.
    Capability(Capability),
    /// A system call that the seccomp profile refuses.
    Syscall(Syscall),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            Lack::Capability(capability) => {
                let name = capability.name();
                let short = name.trim_start_matches("CAP_");
                write!(
                    f,
                    "user {} of the container cannot have {name}, without which the delegation is worth nothing: ",
                    self.user
                )?;
                match self.engine {
                    Engine::Podman => write!(f, "use --cap-add {short}, or grant = true in the policy"),
                    Engine::Containerd | Engine::CriO => write!(f, "add {short} to securityContext.capabilities.add"),
                    Engine::Oci if self.user == 0 => {
                        write!(
                            f,
                            "add it to bounding, effective and permitted in process.capabilities (docker: --cap-add {short})"
                        )
                    }
                    Engine::Oci => write!(f, "add it to all five sets, ambient included, in process.capabilities"),
                }
            }
            Lack::Syscall(call) => {
                let name = call.name();
                write!(f, "the container's seccomp profile refuses {name}(2): ")?;
                match self.engine {
                    Engine::Podman => {
                        write!(f, "use a profile that allows it (--security-opt seccomp=FILE), or grant = true in the policy")
                    }
                    Engine::Containerd | Engine::CriO => {
                        write!(f, "use a profile that allows it (securityContext.seccompProfile)")
                    }
                    Engine::Oci => {
                        write!(f, "allow it in linux.seccomp of config.json (docker: --security-opt seccomp=FILE)")
                    }
                }
            }
        }
    }
}

/// Why a configuration cannot be edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("add what the policy grants to the container's configuration: {field} is not what the runtime-spec says it is")]
pub struct GrantError {
    /// The field, as a path in config.json.
    pub field: &'static str,
}

/// What was added to a configuration; displayed as a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Granted(Needs);

impl Granted {
    /// True where nothing was added.
    pub fn is_empty(&self) -> bool {
        self.0.capabilities.is_empty() && self.0.syscalls.is_empty()
    }
}

impl fmt::Display for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let capabilities = self.0.capabilities.iter().map(|capability| capability.name().to_owned());
        let calls = self.0.syscalls.iter().map(|call| format!("{}(2)", call.name()));
        f.write_str(&capabilities.chain(calls).collect::<Vec<_>>().join(" "))
    }
}

/// Adds to a configuration what it lacks of `needs`, and nothing else; on error the configuration is half edited.
///
/// Where capabilities are needed, nothing is added unless the container gets a user namespace of its own: elsewhere they
/// would be capabilities on the host. One that it joins by a path may be the host's by the time it is joined.
///
/// A capability goes into bounding, effective and permitted. For a user other than root it must be in inheritable and ambient
/// as well: such a process loses all but its ambient set when the runtime executes the workload (capabilities(7)). For root
/// it must not: an inheritable set that is not empty was CVE-2022-24769.
///
/// A system call is taken out of every other rule before one that allows it is added: of two different actions for one call
/// libseccomp takes the first, or refuses the second. One that a listener or tracer decides, or that depends on arguments, is
/// left to them.
pub fn grant(spec: &mut Value, config: &Config, needs: &Needs) -> Result<Granted, GrantError> {
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

/// The value of an object's key, made where it is absent or null.
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

    fn recorded(name: &str) -> (Value, Config) {
        let path = format!("{}/tests/data/config/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        (serde_json::from_str(&text).unwrap(), Config::parse(&text).unwrap())
    }

    /// The same in a user namespace of its own.
    fn in_userns(name: &str) -> (Value, Config) {
        let (mut spec, config) = recorded(name);
        if config.namespace(NamespaceKind::User) == NamespaceSource::Runtime {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        }
        let config = Config::parse(&spec.to_string()).unwrap();
        (spec, config)
    }

    fn progs(progs: u64) -> Delegation {
        Delegation { cmds: 1, maps: 0, progs, attachs: 1 }
    }

    #[test]
    fn needs_follow_what_is_delegated() {
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
    fn what_is_missing_has_a_remedy_for_its_engine() {
        let needs = Needs::of(Some(&progs(bits(&[6]))), false);
        let says =
            |name: &str, engine| needs.missing(&recorded(name).1, engine).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(says("runc-1.1.5_userns", Engine::Oci), Vec::<String>::new());
        let spec = says("runc-1.1.5_spec", Engine::Oci);
        assert_eq!(spec.len(), 2);
        assert!(spec[0].contains("CAP_BPF") && spec[0].contains("process.capabilities"), "{spec:?}");
        let podman = says("podman-4.3.1_default", Engine::Podman);
        assert_eq!(podman.len(), 3);
        assert!(podman[1].contains("--cap-add NET_ADMIN"), "{podman:?}");
        assert_eq!(
            podman[2],
            "the container's seccomp profile refuses bpf(2): use a profile that allows it (--security-opt seccomp=FILE), or grant = \
             true in the policy"
        );
        assert!(podman.iter().all(|sentence| sentence.len() < 200), "{podman:?}");
        let user = says("podman-4.3.1_user1000", Engine::Podman);
        assert!(user[0].starts_with("user 1000 of the container cannot have CAP_NET_ADMIN"), "{user:?}");
    }

    #[test]
    fn a_grant_adds_what_is_missing_and_nothing_else() {
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
            let granted = Config::parse(&after.to_string()).unwrap();
            assert_eq!(needs.missing(&granted, Engine::Podman), vec![], "{name}");
            assert!(needs.capabilities.iter().all(|c| granted.can_have(*c) == Allowed::Yes), "{name}");
            let mut again = after.clone();
            assert_eq!(grant(&mut again, &granted, &needs), Ok(Granted::default()), "{name}");
            assert_eq!(again, after);
            // All but the two places is as it was.
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
    fn the_profiles_other_calls_stay_refused() {
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
    fn a_listener_that_decides_is_not_passed_by() {
        let needs = Needs::of(None, true);
        for action in ["SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE"] {
            let mut spec = json!({ "root": { "path": "r" },
                "linux": { "seccomp": { "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{ "names": ["bpf"], "action": action }] } } });
            let config = Config::parse(&spec.to_string()).unwrap();
            assert_eq!(grant(&mut spec, &config, &needs), Ok(Granted::default()), "{action}");
        }
    }

    #[test]
    fn odd_configurations_are_refused_not_guessed() {
        let needs = Needs::of(Some(&progs(bits(&[6]))), false);
        let config = Config::parse(r#"{"root":{"path":"r"},"linux":{"namespaces":[{"type":"user"}]}}"#).unwrap();
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
