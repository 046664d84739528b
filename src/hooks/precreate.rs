//! `hook precreate`: podman passes a container's whole configuration to this hook before it creates the container, and
//! uses what the hook prints instead.
//!
//! The hook adds capabilities and seccomp rules that the policy grants (`grant = true`) and the request needs, see
//! [`crate::model::grant`]. If the request says `delegate-via=proxy`, it makes the seccomp profile notify the proxy of
//! bpf(2), and starts one where systemd has no socket for it. For every container with our annotations, it also adds our
//! poststop hook to the runtime's hooks, see [`crate::model::runtime_hooks`]. In all other cases, and on any error, it
//! prints its input byte for byte: podman drops the stderr of this stage, while createRuntime, which runs next, can report
//! the error.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::Value;

use crate::lifecycle::policy_files::{self, LoadedPolicy};
use crate::model::admission::admit;
use crate::model::annotations::Request;
use crate::model::config::ContainerConfig;
use crate::model::container::{asks, facts};
use crate::model::grant::{Granted, Needs, grant};
use crate::model::metrics_table;
use crate::model::metrics_table::{Outcome, Stage};
use crate::model::policy::{ContainerFacts, Engine};
use crate::model::proxy::profile;
use crate::model::runtime_hooks::add_poststop;
use crate::output::fail;
use crate::output::report::Report;
use crate::paths::Paths;
use crate::proxy::Launcher;
use crate::sys::{caps, export};

/// podman's configurations have about 20 kB.
const CONFIG_MAX: u64 = 16 << 20;

/// Reads a configuration on stdin and prints it, with what the policy grants.
///
/// Exits with 1 only if stdin or stdout fail; podman then refuses the container.
pub fn run(paths: &Paths, engine: Option<Engine>) -> ExitCode {
    let (started, mut text) = (Instant::now(), Vec::new());
    match io::stdin().lock().take(CONFIG_MAX + 1).read_to_end(&mut text) {
        Ok(_) if text.len() as u64 <= CONFIG_MAX => {}
        Ok(_) => return fail("read the container's configuration from standard input: it is larger than 16 MiB"),
        Err(error) => return fail(&format!("read the container's configuration from standard input: {error}")),
    }
    let text_of = std::str::from_utf8(&text).ok();
    // The proxy keeps the capabilities that this process gives up next. It does nothing until it is told its socket.
    let needs_own = text_of.is_some_and(|text| text.contains(VIA)) && !paths.proxy_socket().exists();
    let mut launcher = if needs_own { Launcher::start(paths).ok() } else { None };
    // This stage only reads untrusted annotations and files that root owns, which takes no capability.
    let limited = caps::limit_process(&[]).is_ok();
    let edited = text_of.filter(|_| limited).and_then(|text| {
        // The hook runs as the same user as podman.
        let user = std::fs::metadata("/proc/self").ok()?.uid();
        let listener = || match needs_own {
            true => launcher.take().and_then(Launcher::launch),
            false => Some(paths.proxy_socket()),
        };
        edit(text, engine.unwrap_or(Engine::Podman), user, || policy_files::load(paths).ok(), listener)
    });
    let report = Report::new(paths);
    if let Some(Edited { granted: Some(granted), .. }) = &edited {
        // Always logged, so that an administrator can find out where a capability comes from.
        report.note(None, &format!("precreate: the policy grants the container {granted}"));
    }
    if let Some(Edited { listener: Some(listener), .. }) = &edited {
        report.note(None, &format!("precreate: bpf(2) of the container goes to the proxy at {}", listener.display()));
    }
    let printed = edited.as_ref().map_or(text.as_slice(), |edited| edited.spec.as_bytes());
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(printed).and_then(|()| stdout.flush());
    if edited.is_some() || written.is_err() {
        let outcome = if written.is_ok() { Outcome::Done } else { Outcome::Failed };
        export::observe(metrics_table::run(Stage::Precreate, outcome), started.elapsed());
    }
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("write the container's configuration to standard output: {error}")),
    }
}

/// Part of the key of the annotation that asks for the proxy.
const VIA: &str = "hook.bpfman.io/delegate-via";

/// A changed configuration.
#[derive(Debug, PartialEq)]
struct Edited {
    /// The configuration.
    spec: String,
    /// What the policy grants; None if it grants nothing.
    granted: Option<Granted>,
    /// The proxy that its seccomp profile notifies of bpf(2); None without `delegate-via=proxy`.
    listener: Option<PathBuf>,
}

/// The edited configuration; None if it stays unchanged.
fn edit(
    text: &str,
    engine: Engine,
    runtime_user: u32,
    policy: impl FnOnce() -> Option<LoadedPolicy>,
    proxy: impl FnOnce() -> Option<PathBuf>,
) -> Option<Edited> {
    let config = ContainerConfig::parse(text).ok()?;
    if config.vm || !asks(config.annotations.keys()) {
        return None;
    }
    let mut spec: Value = serde_json::from_str(text).ok()?;
    // If the request is invalid, createRuntime reports it; keys that name a container are evaluated only there.
    let asked = engine.workload(&config.annotations).ok().and_then(|workload| {
        let request = Request::parse(&config.annotations, workload.container.as_deref()).ok()??;
        Some((request, facts(&config, engine, &workload, runtime_user)))
    });
    let (mut granted, mut listener) = (None, None);
    if let Some((request, facts)) = asked
        && let Some(loaded) = policy()
    {
        granted = what_policy_grants(&mut spec, &config, &request, &facts, &loaded);
        let proxied = admit(&loaded.policy, &facts, &request).ok().and_then(|admission| admission.proxy);
        listener = proxied.and_then(|grant| notify_proxy(&mut spec, grant.perf_events(), proxy));
    }
    let added = add_poststop(&mut spec);
    (added || granted.is_some() || listener.is_some()).then(|| Edited { spec: spec.to_string(), granted, listener })
}

/// Makes the seccomp profile notify the proxy; None if that is not possible, which createRuntime reports.
fn notify_proxy(spec: &mut Value, perf_events: bool, proxy: impl FnOnce() -> Option<PathBuf>) -> Option<PathBuf> {
    let linux = spec.as_object_mut()?.entry("linux").or_insert_with(|| serde_json::json!({})).as_object_mut()?;
    let seccomp = linux.entry("seccomp").or_insert(Value::Null);
    let mut profile = if seccomp.is_null() { profile::permissive() } else { seccomp.clone() };
    // A profile that cannot be edited needs no proxy.
    profile::edit(&mut profile.clone(), "", perf_events)?;
    let listener = proxy()?;
    profile::edit(&mut profile, listener.to_str()?, perf_events)?;
    *seccomp = profile;
    Some(listener)
}

/// Adds to the configuration what the policy grants; None if it grants nothing.
fn what_policy_grants(
    spec: &mut Value,
    config: &ContainerConfig,
    request: &Request,
    facts: &ContainerFacts,
    loaded: &LoadedPolicy,
) -> Option<Granted> {
    let admission = admit(&loaded.policy, facts, request).ok().filter(|admission| admission.grant)?;
    let needs = Needs::of(admission.delegation.as_ref(), !request.maps.is_empty());
    grant(spec, config, &needs).ok().filter(|granted| !granted.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Capability;
    use crate::model::ids::Digest;
    use crate::model::policy::{Policy, PolicyId};
    use crate::model::seccomp::{Allowed, Syscall};

    const GRANTING: &str = r#"
        [[image]]
        repository = "oci:/srv/demo"
        unsigned = true
        [[container]]
        match = { engine = "podman" }
        programs = ["xdp"]
        delegate = ["networking"]
        grant = true
    "#;

    fn policy(text: &str) -> Option<LoadedPolicy> {
        let policy = Policy::parse(&[(PathBuf::from("policy.toml"), text.to_owned())]).unwrap();
        Some(LoadedPolicy { policy, keys: Default::default(), id: PolicyId(Digest::from_bytes([0; 32])) })
    }

    /// A recorded configuration with exactly these annotations of ours.
    fn with(file: &str, annotations: &[(&str, &str)]) -> String {
        let path = format!("{}/tests/data/config/{file}.json", env!("CARGO_MANIFEST_DIR"));
        let mut spec: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let all = spec["annotations"].as_object_mut().unwrap();
        all.retain(|key, _| !key.contains("hook.bpfman.io"));
        all.extend(annotations.iter().map(|(key, value)| (format!("hook.bpfman.io/{key}"), (*value).into())));
        spec.to_string()
    }

    fn edited(text: &str, policy_text: &str) -> Option<(Value, Granted)> {
        let edited = edit(text, Engine::Podman, 0, || policy(policy_text), || None)?;
        Some((serde_json::from_str(&edited.spec).unwrap(), edited.granted.unwrap()))
    }

    #[test]
    fn an_annotated_container_also_gets_the_poststop_hook() {
        let ours = serde_json::json!([{ "path": "/b", "args": ["bpfman-hook", "hook", "createRuntime"] }]);
        let hooked = |annotations: &[(&str, &str)]| {
            let mut spec: Value = serde_json::from_str(&with("podman-4.3.1_default", annotations)).unwrap();
            spec["hooks"]["createRuntime"] = ours.clone();
            edit(&spec.to_string(), Engine::Podman, 0, || None, || None)
                .map(|edited| serde_json::from_str::<Value>(&edited.spec).unwrap())
        };
        let spec = hooked(&[("image", "oci:/srv/demo"), ("programs", "xdp:count")]).unwrap();
        assert_eq!(spec["hooks"]["poststop"][0]["args"][2], "poststop");
        assert_eq!(hooked(&[]), None);
    }

    #[test]
    fn what_the_policy_grants_is_added() {
        let text = with("podman-4.3.1_hostnet", &[("delegate", "networking")]);
        let (spec, granted) = edited(&text, GRANTING).unwrap();
        assert_eq!(granted.to_string(), "CAP_BPF CAP_NET_ADMIN bpf(2)");
        let config = ContainerConfig::parse(&spec.to_string()).unwrap();
        for capability in [Capability::Bpf, Capability::NetAdmin] {
            assert_eq!(config.can_have(capability), Allowed::Yes);
        }
        assert_eq!(config.can_have(Capability::Perfmon), Allowed::No);
        assert_eq!(config.seccomp_allows(Syscall::Bpf), Allowed::Yes);
        assert_eq!(config.seccomp_allows(Syscall::PerfEventOpen), Allowed::No);
        // --cap-add has already added the capabilities.
        let (_, granted) = edited(&with("podman-4.3.1_userns", &[("delegate", "networking")]), GRANTING).unwrap();
        assert_eq!(granted.to_string(), "bpf(2)");
        // Maps need neither a capability nor a user namespace.
        let maps = [("image", "oci:/srv/demo"), ("programs", "xdp:count"), ("maps", "packets")];
        let (spec, granted) = edited(&with("podman-4.3.1_default", &maps), GRANTING).unwrap();
        assert_eq!(granted.to_string(), "bpf(2)");
        assert_eq!(ContainerConfig::parse(&spec.to_string()).unwrap().can_have(Capability::Bpf), Allowed::No);
    }

    #[test]
    fn every_other_configuration_is_unchanged() {
        let token = [("delegate", "networking")];
        let without_grant = GRANTING.replace("grant = true", "");
        let without_ceiling = GRANTING.replace("delegate = [\"networking\"]", "");
        let for_others = GRANTING.replace("podman", "cri-o");
        for (case, text, policy) in [
            ("no annotation", with("podman-4.3.1_hostnet", &[]), GRANTING),
            ("no grant", with("podman-4.3.1_hostnet", &token), &without_grant),
            ("no delegation", with("podman-4.3.1_hostnet", &token), &without_ceiling),
            ("another container's rule", with("podman-4.3.1_hostnet", &token), &for_others),
            ("the built-in policy", with("podman-4.3.1_hostnet", &token), ""),
            ("a bad annotation", with("podman-4.3.1_hostnet", &[("delegate", "nonsense")]), GRANTING),
            ("an unknown key", with("podman-4.3.1_hostnet", &[("delegat", "networking")]), GRANTING),
            ("a private bpffs", with("podman-4.3.1_hostnet", &[("bpffs", "private")]), GRANTING),
            ("nothing missing", with("podman-4.3.1_unconfined", &[("bpffs", "private")]), GRANTING),
            ("a claim to be a Kubernetes container", claim(&token), GRANTING),
            ("not JSON", "{".to_owned(), GRANTING),
            ("not a configuration", "[]".to_owned(), GRANTING),
        ] {
            assert_eq!(edited(&text, policy), None, "{case}");
        }
        let text = with("podman-4.3.1_hostnet", &token);
        assert_eq!(edit(&text, Engine::Podman, 0, || None, || None), None, "no policy can be loaded");
    }

    fn claim(annotations: &[(&str, &str)]) -> String {
        let mut spec: Value = serde_json::from_str(&with("podman-4.3.1_hostnet", annotations)).unwrap();
        spec["annotations"]["io.kubernetes.pod.namespace"] = "monitoring".into();
        spec.to_string()
    }

    #[test]
    fn the_profile_of_a_proxied_container_notifies_the_proxy() {
        const PROXYING: &str = "[[container]]\nproxy = [\"sockets\"]\n";
        let socket = PathBuf::from("/run/bpfman-hook/proxy/1.sock");
        let via = [("delegate", "sockets"), ("delegate-via", "proxy")];
        for file in ["podman-4.3.1_default", "podman-4.3.1_unconfined"] {
            let found = edit(&with(file, &via), Engine::Podman, 0, || policy(PROXYING), || Some(socket.clone())).unwrap();
            assert_eq!((found.granted, &found.listener), (None, &Some(socket.clone())), "{file}");
            let config = ContainerConfig::parse(&found.spec).unwrap();
            let sockets = profile::ProxySockets { shared: "/x".into(), directory: "/run/bpfman-hook/proxy".into() };
            assert_eq!(profile::check(config.seccomp(), Engine::Podman, &sockets, false), Ok(()), "{file}");
            // Everything else of the profile is unchanged.
            let before: Value = serde_json::from_str(&with(file, &via)).unwrap();
            let after: Value = serde_json::from_str(&found.spec).unwrap();
            assert_eq!(before["process"], after["process"]);
        }
        let unasked = || -> Option<PathBuf> { unreachable!("no proxy is needed") };
        let listener = |annotations: &[(&str, &str)], text: &str| {
            let edited = edit(&with("podman-4.3.1_default", annotations), Engine::Podman, 0, || policy(text), unasked);
            edited.and_then(|edited| edited.listener)
        };
        assert_eq!(listener(&[("delegate", "sockets")], PROXYING), None);
        assert_eq!(listener(&via, "[[container]]\nproxy = [\"maps\"]\n"), None, "above the ceiling");
        assert_eq!(listener(&via, ""), None);
    }

    #[test]
    fn no_capability_is_added_without_its_own_user_namespace() {
        // There it would be a capability on the host; createRuntime reports that a token is impossible.
        for file in ["podman-4.3.1_default", "podman-4.3.1_pod", "podman-4.3.1_user1000"] {
            assert_eq!(edited(&with(file, &[("delegate", "networking")]), GRANTING), None, "{file}");
        }
        let mut joined: Value = serde_json::from_str(&with("podman-4.3.1_hostnet", &[("delegate", "networking")])).unwrap();
        for namespace in joined["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "user" {
                namespace["path"] = "/proc/1/ns/user".into();
            }
        }
        assert_eq!(edited(&joined.to_string(), GRANTING), None);
    }

    #[test]
    fn unknown_fields_and_large_numbers_survive() {
        let mut spec: Value = serde_json::from_str(&with("podman-4.3.1_hostnet", &[("delegate", "networking")])).unwrap();
        spec["futureField"] = serde_json::json!({ "a": [1, -2, null, "\u{e4}\n\u{1f980}"], "b": u64::MAX, "c": i64::MIN });
        let (mut after, _) = edited(&spec.to_string(), GRANTING).unwrap();
        let strip = |value: &mut Value| {
            value["process"].as_object_mut().unwrap().remove("capabilities");
            value["linux"].as_object_mut().unwrap().remove("seccomp");
        };
        strip(&mut after);
        strip(&mut spec);
        assert_eq!(after, spec);
    }
}
