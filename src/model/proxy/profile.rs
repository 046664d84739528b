//! The seccomp rules that notify the proxy: written into profiles, and checked in a container's configuration.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::NotifiedCommand;
use crate::model::policy::Engine;
use crate::model::seccomp::{BpfRule, Seccomp};

/// `listenerMetadata` of our profiles. The number changes with the rules: a profile with older ones is refused.
pub const METADATA: &str = "bpfman-hook/2";

/// Commands that the caller makes itself, because they need a descriptor or a path that it has, and the kernel checks
/// its rights: MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY, OBJ_PIN, OBJ_GET, PROG_TEST_RUN,
/// OBJ_GET_INFO_BY_FD, MAP_LOOKUP_AND_DELETE_ELEM, MAP_FREEZE, MAP_LOOKUP_BATCH to MAP_DELETE_BATCH, LINK_UPDATE,
/// ITER_CREATE, LINK_DETACH, PROG_BIND_MAP.
pub const NATIVE: [u32; 18] = [1, 2, 3, 4, 6, 7, 10, 15, 21, 22, 24, 25, 26, 27, 29, 33, 34, 35];

/// The command without its flags, which Linux has since 7.2 (BPF_COMMON_ATTRS).
const COMMAND_MASK: u64 = 0xffff;

/// The sockets at which a process of bpfman-hook takes listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxySockets {
    /// The socket of systemd.
    pub shared: PathBuf,
    /// The directory of sockets that serve one container each, where systemd does not run.
    pub directory: PathBuf,
}

impl ProxySockets {
    /// True if a profile's `listenerPath` is one of them.
    pub fn include(&self, path: &str) -> bool {
        let path = Path::new(path);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_socket = name.ends_with(".sock") && !name.contains("..");
        path == self.shared || is_socket && path.parent() == Some(&self.directory)
    }
}

/// Why a container's seccomp profile does not notify the proxy of what it has to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyProfileError {
    /// No listener.
    #[error("delegate-via=proxy needs a seccomp profile with bpfman-hook's listener, and the container has none: {remedy}")]
    NoListener {
        /// What to do.
        remedy: &'static str,
    },
    /// Another listener.
    #[error(
        "delegate-via=proxy needs bpfman-hook's seccomp listener, and the container's profile has listenerPath {path:?}: {remedy}"
    )]
    OtherListener {
        /// Its path.
        path: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Other metadata.
    #[error(
        "the container's seccomp profile has listenerMetadata {found:?}, and this version of bpfman-hook writes {METADATA:?}: {remedy}"
    )]
    OtherMetadata {
        /// What it has.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A name that no system call has.
    #[error(
        "the container's seccomp profile names the system call {name:?}, which cannot be one: names have lower-case letters, digits and _; remove it, because the runtime could read it as another name than bpfman-hook does"
    )]
    OddName {
        /// The name.
        name: String,
    },
    /// perf_event_open(2) is not notified.
    #[error(
        "the container is granted programs for perf events, and its seccomp profile does not notify perf_event_open(2), or has another rule for it too: {remedy}"
    )]
    NoPerfEvents {
        /// What to do.
        remedy: &'static str,
    },
    /// Other rules for bpf(2).
    #[error("the rules for bpf(2) in the container's seccomp profile are not those that bpfman-hook writes: {remedy}")]
    OtherRules {
        /// What to do.
        remedy: &'static str,
    },
}

fn remedy(engine: Engine) -> &'static str {
    match engine {
        Engine::Podman => {
            "check precreate (bpfman-hook install --podman --check), or use --security-opt seccomp=FILE with the output of bpfman-hook proxy profile"
        }
        Engine::Containerd | Engine::CriO => {
            "set securityContext.seccompProfile to type Localhost with localhostProfile bpfman-hook.json, which bpfman-hook install --proxy writes"
        }
        Engine::Oci => "put the output of bpfman-hook proxy profile into linux.seccomp (docker: --security-opt seccomp=FILE)",
    }
}

/// This machine, as profiles name it.
pub const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

fn perf_event_remedy(engine: Engine) -> &'static str {
    match engine {
        Engine::Podman => {
            "check precreate (bpfman-hook install --podman --check), or use --security-opt seccomp=FILE with the output of bpfman-hook proxy profile --perf-events"
        }
        Engine::Containerd | Engine::CriO => {
            "make the Localhost profile with bpfman-hook proxy profile --perf-events --form oci"
        }
        Engine::Oci => {
            "put the output of bpfman-hook proxy profile --perf-events into linux.seccomp (docker: --security-opt seccomp=FILE)"
        }
    }
}

const NOTIFY: &str = "SCMP_ACT_NOTIFY";
const PERF_EVENT_OPEN: &str = "perf_event_open";

/// Our rules for bpf(2).
fn rules() -> Vec<BpfRule> {
    let rule = |action: &str, command: u32| BpfRule { action: action.to_owned(), mask: COMMAND_MASK, command: command.into() };
    let notified = NotifiedCommand::ALL.into_iter().map(|command| rule(NOTIFY, command.number()));
    notified.chain(NATIVE.into_iter().map(|command| rule("SCMP_ACT_ALLOW", command))).collect()
}

fn json_rules() -> impl Iterator<Item = Value> {
    rules().into_iter().map(|BpfRule { action, mask, command }| {
        let argument = json!({ "index": 0, "value": mask, "valueTwo": command, "op": "SCMP_CMP_MASKED_EQ" });
        json!({ "names": ["bpf"], "action": action, "args": [argument] })
    })
}

/// Checks that a container's profile has our listener, our metadata and exactly our rules for bpf(2); with
/// `perf_events` also that for perf_event_open(2).
pub fn check(
    profile: Option<&Seccomp>,
    engine: Engine,
    sockets: &ProxySockets,
    perf_events: bool,
) -> Result<(), ProxyProfileError> {
    let remedy = remedy(engine);
    let Some((profile, path)) = profile.and_then(|profile| Some((profile, profile.listener_path()?))) else {
        return Err(ProxyProfileError::NoListener { remedy });
    };
    if !sockets.include(path) {
        return Err(ProxyProfileError::OtherListener { path: path.to_owned(), remedy });
    }
    let metadata = profile.listener_metadata();
    if metadata != METADATA {
        return Err(ProxyProfileError::OtherMetadata { found: metadata.to_owned(), remedy });
    }
    if let Some(name) = profile.odd_name() {
        return Err(ProxyProfileError::OddName { name: name.to_owned() });
    }
    if perf_events && profile.perf_event_rules() != [Some(NOTIFY)] {
        return Err(ProxyProfileError::NoPerfEvents { remedy: perf_event_remedy(engine) });
    }
    let (mut found, mut ours) = (profile.bpf_rules(), rules().into_iter().map(Some).collect::<Vec<_>>());
    found.sort_unstable();
    ours.sort_unstable();
    if found == ours { Ok(()) } else { Err(ProxyProfileError::OtherRules { remedy }) }
}

/// Writes listener, metadata and rules into a profile, an object in the form of the runtime-spec, docker's or podman's.
/// Other rules for bpf(2) are removed: one without arguments would take precedence over all of ours. With `perf_events`
/// the same for perf_event_open(2), whose rules are otherwise left as they are.
///
/// None if it has another form, or another listener.
pub fn edit(profile: &mut Value, listener: &str, perf_events: bool) -> Option<()> {
    let profile = profile.as_object_mut()?;
    if profile.get("listenerPath").is_some_and(|path| !path.is_null() && path != "" && path != listener) {
        return None;
    }
    let syscalls = profile.entry("syscalls").or_insert(Value::Null);
    if syscalls.is_null() {
        *syscalls = json!([]);
    }
    let syscalls = syscalls.as_array_mut()?;
    let is_ours = |name: &Value| name == "bpf" || perf_events && name == PERF_EVENT_OPEN;
    for rule in syscalls.iter_mut() {
        if let Some(names) = rule.get_mut("names").and_then(Value::as_array_mut) {
            names.retain(|name| !is_ours(name));
        }
    }
    // docker's older form has one name.
    syscalls.retain(|rule| rule["names"].as_array().is_none_or(|names| !names.is_empty()) && !is_ours(&rule["name"]));
    syscalls.extend(json_rules());
    if perf_events {
        syscalls.push(json!({ "names": [PERF_EVENT_OPEN], "action": NOTIFY }));
    }
    profile.insert("listenerPath".to_owned(), json!(listener));
    profile.insert("listenerMetadata".to_owned(), json!(METADATA));
    Some(())
}

/// A profile that allows everything besides bpf(2): what a container without a profile has. It names the machine's other
/// system call tables too: a filter kills processes that use one it does not name.
pub fn permissive() -> Value {
    let architectures = match cfg!(target_arch = "aarch64") {
        true => ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"].as_slice(),
        false => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    };
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures })
}

/// Turns docker's or podman's form into that of the runtime-spec, for a container without added capabilities on the
/// machine `architecture` (`amd64`, `arm64`): a runtime ignores conditions (`includes`, `excludes`), so rules for added
/// capabilities or other machines would apply to every container.
pub fn to_runtime_spec(profile: &mut Value, architecture: &str) {
    let Some(profile) = profile.as_object_mut() else { return };
    if let Some(Value::Array(map)) = profile.remove("archMap") {
        let own = |entry: &&Value| {
            let name = entry["architecture"].as_str().unwrap_or_default();
            matches!((architecture, name), ("amd64", "SCMP_ARCH_X86_64") | ("arm64", "SCMP_ARCH_AARCH64"))
        };
        let mut all = Vec::new();
        for entry in map.iter().filter(own) {
            all.push(entry["architecture"].clone());
            all.extend(entry["subArchitectures"].as_array().cloned().unwrap_or_default());
        }
        profile.insert("architectures".to_owned(), Value::Array(all));
    }
    let has = |rule: &Value, kind: &str, what: &str| rule[kind][what].as_array().is_some_and(|list| !list.is_empty());
    let names_us =
        |rule: &Value, kind: &str| rule[kind]["arches"].as_array().is_some_and(|list| list.iter().any(|a| a == architecture));
    if let Some(rules) = profile.get_mut("syscalls").and_then(Value::as_array_mut) {
        rules.retain(|rule| {
            let other_machine = has(rule, "includes", "arches") && !names_us(rule, "includes");
            !has(rule, "includes", "caps") && !other_machine && !names_us(rule, "excludes")
        });
        for rule in rules.iter_mut().filter_map(Value::as_object_mut) {
            forget_conditions(rule);
        }
    }
}

fn forget_conditions(rule: &mut Map<String, Value>) {
    for key in ["includes", "excludes", "comment"] {
        rule.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: &str = "/run/bpfman-hook/proxy.sock";

    fn sockets() -> ProxySockets {
        ProxySockets { shared: SOCKET.into(), directory: "/run/bpfman-hook/proxy".into() }
    }

    #[test]
    fn sockets_of_one_container_are_in_their_directory() {
        for (path, ours) in [
            (SOCKET, true),
            ("/run/bpfman-hook/proxy/0f.sock", true),
            ("/run/bpfman-hook/proxy/a/b.sock", false),
            ("/run/bpfman-hook/proxy", false),
            ("/run/bpfman-hook/proxy/..", false),
            ("/run/bpfman-hook/proxy/../x.sock", false),
            ("/run/bpfman-hook/proxy/..sock", false),
            ("/run/bpfman-hook/proxy/0f.lock", false),
            ("/run/bpfman-hook/proxy/0f.sock\0", false),
            ("proxy.sock", false),
        ] {
            assert_eq!(sockets().include(path), ours, "{path}");
        }
    }

    fn checked(profile: &Value) -> Result<(), ProxyProfileError> {
        let profile: Seccomp = serde_json::from_value(profile.clone()).unwrap();
        check(Some(&profile), Engine::Oci, &sockets(), false)
    }

    fn podmans() -> Value {
        let path = format!("{}/tests/data/config/podman-4.3.1_default.json", env!("CARGO_MANIFEST_DIR"));
        let spec: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        spec["linux"]["seccomp"].clone()
    }

    #[test]
    fn an_edited_profile_passes_the_check() {
        for mut profile in [permissive(), podmans(), json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": null })] {
            assert!(matches!(checked(&profile), Err(ProxyProfileError::NoListener { .. })));
            edit(&mut profile, SOCKET, false).unwrap();
            assert_eq!(checked(&profile), Ok(()));
            let once = profile.clone();
            edit(&mut profile, SOCKET, false).unwrap();
            assert_eq!(profile, once);
        }
    }

    #[test]
    fn rules_compare_the_command_without_its_flags() {
        let mut profile = permissive();
        edit(&mut profile, SOCKET, false).unwrap();
        let load = profile["syscalls"].as_array().unwrap().iter().find(|rule| rule["args"][0]["valueTwo"] == 5).unwrap();
        let expected = json!({ "names": ["bpf"], "action": "SCMP_ACT_NOTIFY",
            "args": [{ "index": 0, "value": 65535, "valueTwo": 5, "op": "SCMP_CMP_MASKED_EQ" }] });
        assert_eq!(*load, expected);
    }

    #[test]
    fn every_deviation_is_found() {
        type Change = fn(&mut Value);
        let cases: [(&str, Change); 8] = [
            ("names the system call \"bpf\\0\"", |profile| {
                let rule = json!({ "names": ["read", "bpf\u{0}"], "action": "SCMP_ACT_ALLOW" });
                profile["syscalls"].as_array_mut().unwrap().push(rule);
            }),
            ("listenerPath \"/x\"", |profile| profile["listenerPath"] = "/x".into()),
            ("has none", |profile| profile["listenerPath"] = "".into()),
            ("listenerMetadata \"\"", |profile| drop(profile.as_object_mut().unwrap().remove("listenerMetadata"))),
            ("are not those", |profile| drop(profile["syscalls"].as_array_mut().unwrap().pop())),
            ("are not those", |profile| {
                profile["syscalls"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({ "names": ["read", "bpf"], "action": "SCMP_ACT_ALLOW" }));
            }),
            ("are not those", |profile| profile["syscalls"][0]["args"][0]["op"] = "SCMP_CMP_EQ".into()),
            ("are not those", |profile| profile["syscalls"][0]["action"] = "SCMP_ACT_ALLOW".into()),
        ];
        for (part, change) in cases {
            let mut profile = permissive();
            edit(&mut profile, SOCKET, false).unwrap();
            change(&mut profile);
            let shown = checked(&profile).unwrap_err().to_string();
            assert!(shown.contains(part), "{shown}");
        }
        assert!(check(None, Engine::Podman, &sockets(), false).is_err());
    }

    #[test]
    fn perf_events_are_notified_where_they_are_granted() {
        let checked = |profile: &Value| {
            let profile: Seccomp = serde_json::from_value(profile.clone()).unwrap();
            check(Some(&profile), Engine::Oci, &sockets(), true)
        };
        let allowing = json!({ "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{ "names": ["read", "perf_event_open"], "action": "SCMP_ACT_ALLOW" }] });
        for mut profile in [permissive(), podmans(), allowing] {
            edit(&mut profile, SOCKET, false).unwrap();
            let refused = checked(&profile).unwrap_err();
            assert!(refused.to_string().contains("proxy profile --perf-events"), "{refused}");
            edit(&mut profile, SOCKET, true).unwrap();
            assert_eq!(checked(&profile), Ok(()));
            let once = profile.clone();
            edit(&mut profile, SOCKET, true).unwrap();
            assert_eq!(profile, once);
            // A container that is not granted any can have the same profile: the proxy refuses the calls.
            edit(&mut profile, SOCKET, false).unwrap();
            assert_eq!(checked(&profile), Ok(()));
            for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_NOTIFY"] {
                let mut other = profile.clone();
                let rule = json!({ "names": ["perf_event_open"], "action": action });
                other["syscalls"].as_array_mut().unwrap().push(rule);
                assert!(checked(&other).is_err(), "{action}");
            }
        }
    }

    #[test]
    fn another_listener_is_not_replaced() {
        let mut profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/other.sock" });
        assert_eq!(edit(&mut profile, SOCKET, false), None);
        assert_eq!(edit(&mut json!([]), SOCKET, false), None);
    }

    #[test]
    fn conditions_are_decided_for_the_runtime_spec() {
        let mut profile = json!({ "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [
                { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"] },
                { "architecture": "SCMP_ARCH_AARCH64", "subArchitectures": [] }],
            "syscalls": [
                { "names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "x", "includes": {}, "excludes": {} },
                { "names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } },
                { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": { "caps": ["CAP_SYS_ADMIN"] } },
                { "names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["amd64"] } },
                { "names": ["s390"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["s390"] } },
                { "names": ["not"], "action": "SCMP_ACT_ALLOW", "excludes": { "arches": ["amd64"] } }] });
        to_runtime_spec(&mut profile, "amd64");
        let allow = |name: &str| json!({ "names": [name], "action": "SCMP_ACT_ALLOW" });
        let expected = json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [allow("read"), allow("clone"), allow("arch_prctl")] });
        assert_eq!(profile, expected);
    }
}
