//! What a container gets from the plugin: nothing, our hooks and its annotations, or a refusal. Decided without I/O,
//! except for reading the kept token reach.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use crate::kernel::guard;
use crate::lifecycle::token_reach;
use crate::model::admission::{admit, on_failure};
use crate::model::annotations::{OnFailure, PREFIX, Request};
use crate::model::bytecode::PullPolicy;
use crate::model::container::{PodCheck, asks};
use crate::model::ids::{IdError, Pid};
use crate::model::metrics_table::Reason;
use crate::model::missed::{Missed, RefusedContainer};
use crate::model::policy::{ContainerFacts, Engine, Policy};
use crate::model::reach::TokenReach;
use crate::nri::api::{
    Container, ContainerAdjustment, CreateContainerRequest, Hook, Hooks, LinuxContainerAdjustment, LinuxNamespace, OptionalInt,
    PodSandbox,
};
use crate::nri::seccomp;
use crate::setup::hook_files;
use crate::setup::hook_files::Invocation;
use crate::sys::error::chain;

/// The file to which crun writes the hooks' stderr (crun(1), "run.oci.hooks.stderr").
const CRUN_STDERR: &str = "run.oci.hooks.stderr";

/// Maximum number of containers of a pod whose images are prefetched; the hooks fetch the images of the others.
const NAMES_MAX: usize = 32;

/// Our annotations of a container and its pod; for a key in both, the container's value counts.
pub fn ours(pod: &PodSandbox, container: Option<&Container>) -> BTreeMap<String, String> {
    let container = container.into_iter().flat_map(|container| &container.annotations);
    let all = pod.annotations.iter().chain(container);
    all.filter(|(key, _)| asks([*key])).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Whether an annotation of ours applies to a container of this name: the pod's keys do, and its own.
fn speaks_to(key: &str, name: &str) -> bool {
    key.starts_with(PREFIX)
        || key.strip_prefix(name).is_some_and(|rest| rest.strip_prefix('.').is_some_and(|rest| rest.starts_with(PREFIX)))
}

pub fn has_userns(pod: &PodSandbox, container: Option<&Container>) -> bool {
    let user = |namespaces: &[LinuxNamespace]| namespaces.iter().any(|namespace| namespace.type_ == "user");
    user(&pod.linux.namespaces) || container.is_some_and(|container| user(&container.linux.namespaces))
}

/// The facts that policy rules match.
pub fn facts(pod: &PodSandbox, name: Option<&str>, container: Option<&Container>, engine: Engine) -> ContainerFacts {
    let known = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    ContainerFacts {
        engine,
        namespace: known(&pod.namespace),
        pod: known(&pod.name),
        container: name.and_then(known),
        labels: pod.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        // Runtimes with NRI run as root.
        runtime_user: 0,
        userns: has_userns(pod, container),
    }
}

/// Whether the container's configuration already has our hook: from the strict handler's base spec, or from an earlier
/// plugin.
pub fn has_our_hook(container: &Container, invocation: &Invocation) -> bool {
    our_hook(container, invocation).is_some()
}

/// Our hook in the container's configuration.
pub fn our_hook<'c>(container: &'c Container, invocation: &Invocation) -> Option<&'c Hook> {
    let ours = |hook: &&Hook| Path::new(&hook.path) == invocation.binary || hook.path.ends_with("/bpfman-hook");
    container.hooks.create_runtime.iter().find(ours)
}

/// A running container that requests something and does not have our hook, or why it cannot be identified. A request
/// that cannot be parsed counts too.
pub fn missed(
    pod: &PodSandbox,
    container: &Container,
    engine: Engine,
    invocation: &Invocation,
) -> Option<Result<Missed, IdError>> {
    let annotations = ours(pod, Some(container));
    if annotations.is_empty() || has_our_hook(container, invocation) {
        return None;
    }
    match Request::parse(&annotations, Some(&container.name)) {
        Ok(None) => return None,
        Ok(Some(asked)) if asked.is_empty() => return None,
        // A request that cannot be parsed would have been refused.
        Ok(Some(_)) | Err(_) => {}
    }
    Some(described(pod, container, engine))
}

/// A running container as the child of `missed.rs` needs it, or why it cannot be identified.
pub fn described(pod: &PodSandbox, container: &Container, engine: Engine) -> Result<Missed, IdError> {
    Ok(Missed {
        id: container.id.parse()?,
        pid: Pid::new(container.pid)?,
        cgroups_path: container.linux.cgroups_path.clone(),
        facts: facts(pod, Some(&container.name), Some(container), engine),
        annotations: ours(pod, Some(container)),
        token_of: None,
    })
}

/// Why a container is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdjustmentRefusal {
    /// The class of the reason.
    pub reason: Reason,
    /// The text for the pod's events.
    pub sentence: String,
}

impl AdjustmentRefusal {
    /// The record of a container with this refusal; None if the runtime gave it no valid id.
    pub fn of(&self, request: &CreateContainerRequest, engine: Engine) -> Option<RefusedContainer> {
        let (pod, container) = (&*request.pod, &*request.container);
        Some(RefusedContainer {
            id: container.id.parse().ok()?,
            facts: facts(pod, Some(&container.name), Some(container), engine),
            reason: self.reason,
            sentence: self.sentence.clone(),
        })
    }
}

/// The adjustment of a container that is being created; None leaves it unchanged. A container without a request gets
/// the hook if `check` is set; the hook then only gets that argument.
///
/// # Errors
/// Why it is refused. The hook decides again, so that a policy that has just changed is never bypassed.
pub fn adjust(
    request: &CreateContainerRequest,
    engine: Engine,
    policy: Result<&Policy, &str>,
    check: Option<PodCheck>,
    invocation: &Invocation,
) -> Result<Option<ContainerAdjustment>, AdjustmentRefusal> {
    let (pod, container) = (&*request.pod, &*request.container);
    let annotations = ours(pod, Some(container));
    let facts = facts(pod, Some(&container.name), Some(container), engine);
    // A policy that cannot be read polices nothing; the plugin reports that.
    let polices = policy.is_ok_and(|policy| policy.may_police(&facts));
    if has_our_hook(container, invocation) && !(annotations.is_empty() && polices)
        || annotations.is_empty() && check.is_none() && !polices
    {
        return Ok(None);
    }
    let hook = |stage: crate::cli::HookStage, labels: &[String], police: bool| Hook {
        path: invocation.binary.to_string_lossy().into_owned(),
        args: arguments(stage, engine, labels, check, police, invocation),
        timeout: Some(OptionalInt { value: hook_files::TIMEOUT.cast_signed(), ..Default::default() }).into(),
        ..Default::default()
    };
    // In the hook's arguments, because an annotation could be forged; and only labels that a rule uses, because there
    // may be many.
    let told: Vec<String> = match policy.map(Policy::label_keys).unwrap_or_default() {
        keys if keys.is_empty() => Vec::new(),
        keys => facts.labels.iter().filter(|(key, _)| keys.contains(key.as_str())).map(|(k, v)| format!("{k}={v}")).collect(),
    };
    let asked = match Request::parse(&annotations, Some(&container.name)) {
        Ok(Some(asked)) if !asked.is_empty() => asked,
        Ok(_) if check.is_none() && !polices => return Ok(None),
        Ok(_) => {
            let poststop = polices.then(|| hook(crate::cli::HookStage::Poststop, &[], false)).into_iter().collect();
            let create_runtime = vec![hook(crate::cli::HookStage::CreateRuntime, if polices { &told } else { &[] }, polices)];
            let hooks = Hooks { create_runtime, poststop, ..Default::default() };
            return Ok(Some(ContainerAdjustment { hooks: Some(hooks).into(), ..Default::default() }));
        }
        Err(error) => return Err(AdjustmentRefusal { reason: Reason::Input, sentence: chain(&error) }),
    };
    let policy = policy.map_err(|sentence| AdjustmentRefusal { reason: Reason::Input, sentence: sentence.to_owned() })?;
    // If this kernel's token reach is not known yet, the hook probes it; there is no time for that here.
    let kept = || {
        let paths = invocation.paths();
        let guarded = guard::is_in_force(&paths.guard());
        if guarded { Some(TokenReach { guarded, ..TokenReach::default() }) } else { token_reach::kept(&paths.token_reach()) }
    };
    let judged = admit(policy, &facts, &asked).and_then(|admission| {
        if let Some(reach) = admission.needs_token_reach().then(kept).flatten() {
            admission.check_token_reach(|| reach)?;
        }
        Ok(admission.proxy)
    });
    if let Err(refusal) = &judged
        // If the request lets it start without its programs, the hook reports and records that.
        && on_failure(policy, &facts, &asked) == OnFailure::Stop
    {
        return Err(AdjustmentRefusal { reason: Reason::Policy, sentence: chain(refusal) });
    }
    let proxied = judged.ok().flatten();
    let hooks = Hooks {
        create_runtime: vec![hook(crate::cli::HookStage::CreateRuntime, &told, false)],
        poststop: vec![hook(crate::cli::HookStage::Poststop, &told, false)],
        ..Default::default()
    };
    let mut annotations: HashMap<_, _> = annotations.into_iter().filter(|(key, _)| speaks_to(key, &container.name)).collect();
    if engine == Engine::Containerd && !container.annotations.contains_key(CRUN_STDERR) {
        // Without this annotation crun discards the hooks' stderr; with it crun writes it to its own stderr. Other
        // runtimes ignore it.
        annotations.insert(CRUN_STDERR.to_owned(), "/dev/stderr".to_owned());
    }
    let linux = proxied.and_then(|grant| notify_proxy(container, invocation, grant.perf_events()));
    Ok(Some(ContainerAdjustment { annotations, hooks: Some(hooks).into(), linux: linux.into(), ..Default::default() }))
}

/// The seccomp profile that notifies the proxy of bpf(2), unless the container has it already.
fn notify_proxy(container: &Container, invocation: &Invocation, perf_events: bool) -> Option<LinuxContainerAdjustment> {
    let socket = invocation.paths().proxy_socket();
    let profile = seccomp::notifying(container.linux.seccomp_policy.as_ref(), socket.to_str()?, perf_events)?;
    Some(LinuxContainerAdjustment { seccomp_policy: Some(profile).into(), ..Default::default() })
}

fn arguments(
    stage: crate::cli::HookStage,
    engine: Engine,
    labels: &[String],
    check: Option<PodCheck>,
    police: bool,
    invocation: &Invocation,
) -> Vec<String> {
    let mut args = vec!["bpfman-hook", "hook", stage.word(), "--engine", engine.word()];
    if stage == crate::cli::HookStage::CreateRuntime {
        args.extend(labels.iter().flat_map(|label| ["--label", label]));
        args.extend(check.iter().flat_map(|check| ["--pod-check", check.word()]));
        args.extend(police.then_some("--police"));
    }
    let root = invocation.root.as_ref().map(|root| root.to_string_lossy());
    args.extend(root.iter().flat_map(|root| ["--root", root]));
    args.into_iter().map(str::to_owned).collect()
}

/// The registry images that a pod's annotations name and the policy allows for it: they are fetched while its sandbox
/// is set up. Invalid or refused requests are skipped, because CreateContainer reports them.
pub fn wanted(pod: &PodSandbox, engine: Engine, policy: &Policy) -> Vec<String> {
    let annotations = ours(pod, None);
    let named = annotations.keys().filter_map(|key| key.find(PREFIX).filter(|at| *at > 0).map(|at| &key[..at - 1]));
    let named: BTreeSet<&str> = named.collect();
    let mut images = Vec::new();
    // A pod's author must not be able to use up the time that all plugin calls of a runtime share.
    for name in named.into_iter().take(NAMES_MAX).map(Some).chain([None]) {
        // Containers that no key names only have the pod's keys.
        let heard = annotations.iter().filter(|(key, _)| speaks_to(key, name.unwrap_or_default()));
        let heard: BTreeMap<_, _> = heard.map(|(key, value)| (key.clone(), value.clone())).collect();
        let Ok(Some(asked)) = Request::parse(&heard, name) else { continue };
        let Ok(admission) = admit(policy, &facts(pod, name, None, engine), &asked) else { continue };
        if admission.pull == PullPolicy::Never {
            continue;
        }
        for (reference, _) in admission.images {
            let text = reference.to_string();
            if !reference.on_host() && !images.contains(&text) {
                images.push(text);
            }
        }
    }
    images
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message as _;

    fn recorded(name: &str) -> Vec<u8> {
        std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nri").join(name)).unwrap()
    }

    fn created(version: &str) -> CreateContainerRequest {
        CreateContainerRequest::parse_from_bytes(&recorded(&format!("containerd-{version}.bin"))).unwrap()
    }

    fn invocation() -> Invocation {
        Invocation { binary: "/usr/local/bin/bpfman-hook".into(), engines: hook_files::Engines::default(), root: None }
    }

    fn policy(text: &str) -> Policy {
        Policy::parse(&[("/etc/bpfman-hook/policy.toml".into(), text.to_owned())]).unwrap()
    }

    fn lenient() -> Policy {
        policy(
            "[[image]]\nrepository = \"registry.example/**\"\nunsigned = true\n[[container]]\nmatch = { engine = \"containerd\", \
             namespace = \"lab\", pod = \"demo\", container = \"main\" }\nprograms = [\"xdp\", \"tcx\"]\n",
        )
    }

    fn with(pod: &[(&str, &str)], own: &[(&str, &str)]) -> CreateContainerRequest {
        let mut request = created("2.1.9_CreateContainer");
        let replace = |map: &mut std::collections::HashMap<String, String>, new: &[(&str, &str)]| {
            map.retain(|key, _| !asks([key]));
            map.extend(new.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        };
        replace(&mut request.pod.mut_or_insert_default().annotations, pod);
        replace(&mut request.container.mut_or_insert_default().annotations, own);
        request
    }

    const IMAGE: (&str, &str) = ("hook.bpfman.io/image", "registry.example/net/pass:v1");
    const XDP: (&str, &str) = ("hook.bpfman.io/programs", "xdp:pass iface=eth0");

    #[test]
    fn recorded_requests_parse() {
        for (version, userns) in
            [("2.1.9_CreateContainer", false), ("2.1.9_CreateContainer_userns", true), ("1.7.24_CreateContainer", false)]
        {
            let request = created(version);
            let facts = facts(&request.pod, Some(&request.container.name), Some(&request.container), Engine::Containerd);
            assert_eq!((facts.namespace.as_deref(), facts.pod.as_deref()), (Some("lab"), Some("demo")), "{version}");
            assert_eq!((facts.container.as_deref(), facts.userns), (Some("main"), userns), "{version}");
            assert!(!ours(&request.pod, Some(&request.container)).is_empty(), "{version}");
        }
    }

    #[test]
    fn an_annotated_container_gets_hooks_and_its_annotations() {
        let policy = lenient();
        let request = with(
            &[IMAGE, XDP, ("main.hook.bpfman.io/on-failure", "stop"), ("other.hook.bpfman.io/bpffs", "nonsense")],
            &[("hook.bpfman.io/programs", "xdp:drop iface=eth0")],
        );
        let adjust = adjust(&request, Engine::Containerd, Ok(&policy), None, &invocation()).unwrap().unwrap();
        let keys: Vec<_> =
            adjust.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<BTreeMap<_, _>>().into_iter().collect();
        assert_eq!(
            keys,
            [
                IMAGE,
                ("hook.bpfman.io/programs", "xdp:drop iface=eth0"),
                ("main.hook.bpfman.io/on-failure", "stop"),
                (CRUN_STDERR, "/dev/stderr"),
            ],
            "the container's own value counts, and another container's keys are left out"
        );
        for (hooks, stage) in [(&adjust.hooks.create_runtime, "createRuntime"), (&adjust.hooks.poststop, "poststop")] {
            assert_eq!(hooks.len(), 1);
            assert_eq!(hooks[0].path, "/usr/local/bin/bpfman-hook");
            assert_eq!(hooks[0].args, ["bpfman-hook", "hook", stage, "--engine", "containerd"]);
            assert_eq!(hooks[0].timeout.value, 30);
            assert!(crate::cli::hook_fast_path(&hooks[0].args[1..]).is_some());
        }
        assert_eq!(adjust.hooks.create_container.len() + adjust.hooks.prestart.len() + adjust.hooks.start_container.len(), 0);
    }

    #[test]
    fn a_container_that_asks_for_the_proxy_gets_its_listener() {
        let policy = policy("[[container]]\nproxy = [\"sockets\"]\n");
        let asks = [("hook.bpfman.io/delegate", "sockets"), ("hook.bpfman.io/delegate-via", "proxy")];
        let adjusted = |request: &CreateContainerRequest| {
            adjust(request, Engine::Containerd, Ok(&policy), None, &invocation()).map(|adjust| adjust.unwrap())
        };
        let found = adjusted(&with(&asks, &[])).unwrap();
        let seccomp = &found.linux.seccomp_policy;
        assert_eq!(
            (seccomp.listener_path.as_str(), seccomp.listener_metadata.as_str()),
            ("/run/bpfman-hook/proxy.sock", "bpfman-hook/2")
        );
        // A runtime that tells the profile keeps the rest of it.
        let mut request = with(&asks, &[]);
        let told = crate::nri::api::LinuxSeccomp { default_action: "SCMP_ACT_ERRNO".to_owned(), ..Default::default() };
        request.container.mut_or_insert_default().linux.mut_or_insert_default().seccomp_policy = Some(told).into();
        assert_eq!(adjusted(&request).unwrap().linux.seccomp_policy.default_action, "SCMP_ACT_ERRNO");
        // Nothing else changes a profile.
        assert!(adjusted(&with(&[("hook.bpfman.io/delegate", "sockets")], &[])).is_err());
        let lenient = lenient();
        let programs =
            adjust(&with(&[IMAGE, XDP], &[]), Engine::Containerd, Ok(&lenient), None, &invocation()).unwrap().unwrap();
        assert!(programs.linux.is_none());
    }

    #[test]
    fn a_container_to_check_gets_the_hook_with_or_without_a_request() {
        let policy = lenient();
        let (asks, silent) = (with(&[IMAGE, XDP], &[]), with(&[], &[]));
        for check in [PodCheck::This, PodCheck::Every] {
            let told = ["--pod-check", check.word()];
            let asking = adjust(&asks, Engine::Containerd, Ok(&policy), Some(check), &invocation()).unwrap().unwrap();
            assert_eq!(asking.hooks.create_runtime[0].args[5..], told);
            assert_eq!(asking.hooks.poststop[0].args.len(), 5);
            // Checking capabilities needs no policy.
            let other = adjust(&silent, Engine::Containerd, Err("wrong"), Some(check), &invocation()).unwrap().unwrap();
            let args = &other.hooks.create_runtime[0].args;
            assert_eq!(args[5..], told);
            assert_eq!(crate::cli::hook_fast_path(&args[1..]).unwrap().pod_check, Some(check));
            assert!(other.annotations.is_empty() && other.hooks.poststop.is_empty());
        }
        assert!(crate::cli::hook_fast_path(&["hook", "createRuntime", "--pod-check", "nobody"]).is_none());
    }

    #[test]
    fn a_container_that_a_rule_polices_gets_the_hook_with_or_without_a_request() {
        let rule = "[[container]]\nmatch = { namespace = \"lab\", labels = { tier = \"edge\" } }\npolice = \"enforce\"\n";
        let policy =
            policy(&format!("{rule}programs = [\"xdp\"]\n[[image]]\nrepository = \"registry.example/**\"\nunsigned = true\n"));
        let adjusted = |request: &CreateContainerRequest, check| {
            adjust(request, Engine::Containerd, Ok(&policy), check, &invocation()).unwrap()
        };
        let mut silent = with(&[], &[]);
        assert_eq!(adjusted(&silent, None), None, "its pod does not have the label");
        let labels = || [("tier".to_owned(), "edge".to_owned())].into_iter().collect();
        silent.pod.mut_or_insert_default().labels = labels();
        let hooks = adjusted(&silent, None).unwrap().hooks;
        let args = &hooks.create_runtime[0].args;
        assert_eq!(args[5..], ["--label", "tier=edge", "--police"]);
        let parsed = crate::cli::hook_fast_path(&args[1..]).unwrap();
        assert!(parsed.police && parsed.labels.len() == 1);
        assert_eq!(hooks.poststop[0].args.len(), 5);
        let checked = adjusted(&silent, Some(PodCheck::This)).unwrap().hooks;
        assert_eq!(checked.create_runtime[0].args[5..], ["--label", "tier=edge", "--pod-check", "this", "--police"]);
        // The strict handler's hook ends at once for a container without a request.
        let ours = Hook { path: "/usr/local/bin/bpfman-hook".into(), ..Default::default() };
        let mut hooked = silent.clone();
        hooked.container.mut_or_insert_default().hooks.mut_or_insert_default().create_runtime.push(ours.clone());
        assert!(adjusted(&hooked, None).is_some());
        // With a request, the hook polices without being told.
        let mut asking = with(&[IMAGE, XDP], &[]);
        asking.pod.mut_or_insert_default().labels = labels();
        assert_eq!(adjusted(&asking, None).unwrap().hooks.create_runtime[0].args[5..], ["--label", "tier=edge"]);
        asking.container.mut_or_insert_default().hooks.mut_or_insert_default().create_runtime.push(ours);
        assert_eq!(adjusted(&asking, None), None);
        assert!(
            adjust(&silent, Engine::Containerd, Err("wrong"), None, &invocation()).unwrap().is_none(),
            "a policy that cannot be read polices nothing"
        );
    }

    #[test]
    fn labels_that_a_rule_names_are_passed_to_the_hook_as_arguments() {
        let policy = policy(
            "[[image]]\nrepository = \"registry.example/**\"\nunsigned = true\n[[container]]\nmatch = { namespace = \"lab\", \
             labels = { tier = \"edge\" } }\nprograms = [\"xdp\"]\n",
        );
        let mut request = with(&[IMAGE, XDP], &[]);
        assert!(
            adjust(&request, Engine::Containerd, Ok(&policy), None, &invocation())
                .unwrap_err()
                .sentence
                .contains("no container rule")
        );
        let labels = [("tier", "edge"), ("app", "web")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        request.pod.mut_or_insert_default().labels = labels.into();
        let adjust = adjust(&request, Engine::Containerd, Ok(&policy), None, &invocation()).unwrap().unwrap();
        let args = &adjust.hooks.create_runtime[0].args;
        assert_eq!(args[5..], ["--label", "tier=edge"]);
        let parsed = crate::cli::hook_fast_path(&args[1..]).unwrap();
        assert_eq!(parsed.labels, [("tier".to_owned(), "edge".to_owned())]);
        assert_eq!(adjust.hooks.poststop[0].args.len(), 5);
    }

    #[test]
    fn containers_of_cri_o_are_handled_in_the_same_way() {
        let policy = policy(
            "[[image]]\nrepository = \"registry.example/**\"\nunsigned = true\n[[container]]\nmatch = { engine = \"cri-o\", \
             namespace = \"lab\", pod = \"demo\", container = \"main\" }\nprograms = [\"xdp\"]\n",
        );
        // CRI-O has already added the pod's annotations to the container's own.
        let request = with(
            &[IMAGE, XDP],
            &[IMAGE, XDP, ("io.kubernetes.cri-o.ContainerType", "container"), ("io.kubernetes.cri-o.KubeName", "demo")],
        );
        let adjust = adjust(&request, Engine::CriO, Ok(&policy), None, &invocation()).unwrap().unwrap();
        assert_eq!(adjust.annotations.len(), 2);
        assert_eq!(adjust.hooks.create_runtime[0].args, ["bpfman-hook", "hook", "createRuntime", "--engine", "cri-o"]);
        // CRI-O's hooks.d added our hook before any plugin was called.
        let mut hooked = request.clone();
        let hook = Hook { path: "/usr/local/bin/bpfman-hook".into(), ..Default::default() };
        hooked.container.mut_or_insert_default().hooks.mut_or_insert_default().create_runtime.push(hook);
        assert_eq!(super::adjust(&hooked, Engine::CriO, Ok(&policy), None, &invocation()), Ok(None));
        assert!(
            super::adjust(&request, Engine::Containerd, Ok(&policy), None, &invocation()).is_err(),
            "the rule is for CRI-O"
        );
    }

    #[test]
    fn a_container_without_a_request_is_unchanged() {
        let unreadable = Err("the policy is wrong");
        let other = [("other.hook.bpfman.io/image", "registry.example/net/pass:v1")];
        for pod in [&[][..], &[("example.org/owner", "net")], &other] {
            let request = with(pod, &[]);
            assert_eq!(adjust(&request, Engine::Containerd, unreadable, None, &invocation()), Ok(None), "{pod:?}");
            assert!(missed(&request.pod, &request.container, Engine::Containerd, &invocation()).is_none(), "{pod:?}");
        }
    }

    #[test]
    fn a_container_that_has_our_hook_does_not_get_another() {
        let mut request = with(&[IMAGE, XDP], &[]);
        request.container.mut_or_insert_default().pid = 7;
        let without = missed(&request.pod, &request.container, Engine::Containerd, &invocation()).unwrap().unwrap();
        assert_eq!((without.id.as_str(), without.pid.get()), (request.container.id.as_str(), 7));
        assert!(without.cgroups_path.ends_with(&request.container.id), "{}", without.cgroups_path);
        assert_eq!(without.annotations.len(), 2);
        let hook = Hook { path: "/opt/bpfman/bpfman-hook".into(), ..Default::default() };
        request.container.mut_or_insert_default().hooks.mut_or_insert_default().create_runtime.push(hook);
        assert_eq!(adjust(&request, Engine::Containerd, Ok(&lenient()), None, &invocation()), Ok(None));
        assert!(missed(&request.pod, &request.container, Engine::Containerd, &invocation()).is_none());
    }

    #[test]
    fn invalid_and_forbidden_requests_are_refused_with_a_message() {
        let lenient = lenient();
        let nobody = policy("[[container]]\nmatch = { namespace = \"elsewhere\" }\nprograms = [\"xdp\"]\n");
        for (pod, policy, reason, says) in [
            (&[IMAGE, ("hook.bpfman.io/programs", "nonsense")][..], Ok(&lenient), Reason::Input, "nonsense"),
            (&[IMAGE, ("hook.bpfman.io/prograns", "xdp:pass")], Ok(&lenient), Reason::Input, "prograns"),
            (&[IMAGE, XDP], Ok(&nobody), Reason::Policy, "namespace lab"),
            (&[IMAGE, ("hook.bpfman.io/programs", "kprobe:pass:do_exit")], Ok(&lenient), Reason::Policy, "kprobe"),
            (&[("hook.bpfman.io/image", "evil.example/x"), XDP], Ok(&lenient), Reason::Policy, "evil.example"),
            (&[IMAGE, XDP], Err("load the policy: it is a symbolic link"), Reason::Input, "symbolic link"),
        ] {
            let request = with(pod, &[]);
            let refusal = adjust(&request, Engine::Containerd, policy, None, &invocation()).unwrap_err();
            assert!(refusal.sentence.contains(says), "{refusal:?}");
            assert_eq!(refusal.reason, reason, "{refusal:?}");
            let recorded = refusal.of(&request, Engine::Containerd).unwrap();
            assert_eq!((recorded.id.as_str(), recorded.facts.pod.as_deref()), (request.container.id.as_str(), Some("demo")));
        }
    }

    #[test]
    fn a_pod_with_many_container_names_does_not_delay_others() {
        let keys: Vec<String> = (0..4000).map(|n| format!("c{n}.hook.bpfman.io/image")).collect();
        let images: Vec<String> = (0..4000).map(|n| format!("registry.example/i{n}:v1")).collect();
        let named = keys.iter().map(String::as_str).zip(images.iter().map(String::as_str));
        let pod: Vec<_> = named.chain([IMAGE, XDP]).collect();
        let any =
            policy("[[image]]\nrepository = \"registry.example/**\"\nunsigned = true\n[[container]]\nprograms = [\"xdp\"]\n");
        let wanted = wanted(&with(&pod, &[]).pod, Engine::Containerd, &any);
        assert_eq!(wanted.len(), NAMES_MAX + 1);
        assert!(wanted.iter().any(|image| image == IMAGE.1), "the pod's own image is among them");
    }

    #[test]
    fn a_pods_allowed_images_are_prefetched() {
        let any =
            policy("[[image]]\nrepository = \"registry.example/**\"\nunsigned = true\n[[container]]\nprograms = [\"xdp\"]\n");
        let per_container = ("main.hook.bpfman.io/image", "registry.example/net/main:v2");
        let all = ["registry.example/net/main:v2", "registry.example/net/pass:v1"];
        for (pod, policy, expected) in [
            (&[IMAGE, XDP][..], &any, &all[1..]),
            (&[IMAGE, XDP, per_container], &any, &all),
            (&[IMAGE, XDP, ("hook.bpfman.io/pull-policy", "Never")], &any, &[]),
            (&[("hook.bpfman.io/image", "evil.example/x"), XDP], &any, &[]),
            (&[("hook.bpfman.io/image", "oci:/srv/x"), XDP], &any, &[]),
            (&[], &any, &[]),
        ] {
            let wanted = wanted(&with(pod, &[]).pod, Engine::Containerd, policy);
            assert_eq!(wanted, expected, "{pod:?}");
        }
    }
}
