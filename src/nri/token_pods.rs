//! Pods whose containers share a user namespace, and that request a BPF token.
//!
//! A token works for every process in its user namespace, with the capabilities that this process has there. So in such
//! a pod, no container may have those that give access to kernel memory. NRI does not report a container's
//! capabilities, but config.json does: every container of the pod gets our hook, which refuses a container that can
//! have them, and the hook that creates a token is passed whether all others were checked. This module therefore only
//! keeps track of the containers that were not checked.

use std::collections::BTreeMap;

use crate::model::annotations::{BpffsRequest, PREFIX, Request};
use crate::model::container::PodCheck;
use crate::model::ids::ProcessIdentity;
use crate::model::missed::Missed;
use crate::model::policy::{ContainerFacts, Engine, Policy};
use crate::nri::adjust;
use crate::nri::adjust::our_hook;
use crate::nri::api::{Container, ContainerState, PodSandbox};
use crate::setup::hook_files::Invocation;
use crate::sys::pid;

/// For each such pod, by its id, the containers that were not checked, with their inits if known.
#[derive(Debug, Default)]
pub struct TokenPods(BTreeMap<String, BTreeMap<String, Option<ProcessIdentity>>>);

/// What a Synchronize reports about one such pod.
#[derive(Debug, Default)]
pub struct FoundPod {
    /// A container that requests a token, and was started as part of a checked pod.
    token: Option<ContainerFacts>,
    /// Containers that were not checked, and the descriptions of those that run. The others may still be started.
    unchecked: Vec<(String, Option<Missed>)>,
}

/// Whether a pod is one of these: its containers share a user namespace, and an annotation of the pod requests a token.
/// A pod's annotations do not change after it was created, so that already the first container is checked for the sake
/// of the last.
pub fn is_one(pod: &PodSandbox, container: &Container) -> bool {
    let asks_for_token = |(key, value): (&String, &String)| {
        let Some((name, rest)) = key.split_once(PREFIX) else { return false };
        let ours = name.is_empty() || name.ends_with('.') && !name.contains('/');
        ours && (rest.starts_with("delegate") || rest == "bpffs" && value.contains("token"))
    };
    adjust::has_userns(pod, Some(container)) && pod.annotations.iter().any(asks_for_token)
}

impl TokenPods {
    /// The check of a container that is being created, for its hook; None if it is not checked.
    ///
    /// No check is needed if no rule delegates to this pod at container scope. Such a container counts as not checked,
    /// because the policy may change, and so does one with a hook that this plugin did not add.
    pub fn check(
        &mut self,
        pod: &PodSandbox,
        container: &Container,
        engine: Engine,
        policy: Option<&Policy>,
        hooked: bool,
    ) -> Option<PodCheck> {
        if !is_one(pod, container) {
            return None;
        }
        let unchecked = self.0.entry(pod.id.clone()).or_default();
        let facts = adjust::facts(pod, None, Some(container), engine);
        if hooked || !policy.is_some_and(|policy| policy.delegates_at_container_scope(&facts)) {
            unchecked.insert(container.id.clone(), None);
            return None;
        }
        // A container that has ended does not matter, although the runtime keeps it until the kubelet removes it. One
        // whose state cannot be determined counts as alive.
        unchecked.retain(|_, init| init.is_none_or(|init| pid::is_alive(&init).unwrap_or(true)));
        Some(if unchecked.is_empty() { PodCheck::Every } else { PodCheck::This })
    }

    /// Forgets a removed container.
    pub fn forget_container(&mut self, pod: &str, container: &str) {
        if let Some(unchecked) = self.0.get_mut(pod) {
            unchecked.remove(container);
        }
    }

    /// Forgets a removed pod.
    pub fn forget_pod(&mut self, pod: &str) {
        self.0.remove(pod);
    }

    /// Records what a Synchronize reported about a pod, and returns the containers that run unchecked and share the
    /// user namespace of a token.
    pub fn know(&mut self, id: &str, found: FoundPod) -> Vec<Missed> {
        let unchecked = self.0.entry(id.to_owned()).or_default();
        for (container, running) in &found.unchecked {
            let init = running.as_ref().and_then(|missed| pid::open_process(missed.pid).ok());
            unchecked.insert(container.clone(), init.map(|process| process.identity()));
        }
        let Some(token_of) = found.token else { return Vec::new() };
        let running = found.unchecked.into_iter().filter_map(|(_, running)| running);
        running.map(|missed| Missed { token_of: Some(token_of.clone()), ..missed }).collect()
    }
}

impl FoundPod {
    /// Notes one container of a Synchronize.
    pub fn note(&mut self, pod: &PodSandbox, container: &Container, engine: Engine, invocation: &Invocation) {
        let runs = match container.state.enum_value() {
            Ok(ContainerState::CONTAINER_RUNNING | ContainerState::CONTAINER_PAUSED) => true,
            Ok(ContainerState::CONTAINER_CREATED) => false,
            _ => return,
        };
        match check_of(container, invocation) {
            Some(PodCheck::Every) if asks_for_token(pod, container) => {
                self.token = Some(adjust::facts(pod, Some(&container.name), Some(container), engine));
            }
            Some(_) => {}
            None => {
                let running = runs.then(|| adjust::described(pod, container, engine).ok()).flatten();
                self.unchecked.push((container.id.clone(), running));
            }
        }
    }
}

/// The check that our hook in a container's configuration was given.
fn check_of(container: &Container, invocation: &Invocation) -> Option<PodCheck> {
    let args = &our_hook(container, invocation)?.args;
    let at = args.iter().position(|word| word == "--pod-check")?;
    PodCheck::from_word(args.get(at + 1)?)
}

fn asks_for_token(pod: &PodSandbox, container: &Container) -> bool {
    let request = Request::parse(&adjust::ours(pod, Some(container)), Some(&container.name));
    matches!(request, Ok(Some(Request { bpffs: BpffsRequest::Token { .. }, .. })))
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;

    use super::*;
    use crate::nri::api::{CreateContainerRequest, Hook};
    use crate::setup::hook_files::Engines;

    const MAPS: &str = "[[container]]\ndelegate = [\"maps\"]\n";

    fn policy(text: &str) -> Policy {
        Policy::parse(&[("/p.toml".into(), text.to_owned())]).unwrap()
    }

    fn invocation() -> Invocation {
        Invocation { binary: "/usr/local/bin/bpfman-hook".into(), engines: Engines::default(), root: None }
    }

    /// A pod with a user namespace and these annotations, and one of its containers.
    fn recorded(annotations: &[(&str, &str)]) -> (PodSandbox, Container) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/nri/containerd-2.1.9_CreateContainer_userns.bin");
        let request = CreateContainerRequest::parse_from_bytes(&std::fs::read(path).unwrap()).unwrap();
        let (mut pod, mut container) = (request.pod.unwrap(), request.container.unwrap());
        pod.annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        container.annotations.clear();
        (pod, container)
    }

    fn named(container: &Container, name: &str) -> Container {
        Container { id: name.to_owned(), name: name.to_owned(), ..container.clone() }
    }

    #[test]
    fn annotations_and_user_namespace_make_a_token_pod() {
        for (key, value, expected) in [
            ("hook.bpfman.io/delegate", "maps", true),
            ("main.hook.bpfman.io/delegate-cmds", "map_create", true),
            ("hook.bpfman.io/bpffs", "token", true),
            ("hook.bpfman.io/bpffs", "private", false),
            ("hook.bpfman.io/image", "registry.example/x", false),
            ("example.org/delegate", "maps", false),
            ("example.org/hook.bpfman.io/delegate", "maps", false),
        ] {
            let (mut pod, mut container) = recorded(&[(key, value)]);
            assert_eq!(is_one(&pod, &container), expected, "{key}");
            pod.linux.mut_or_insert_default().namespaces.clear();
            container.linux.mut_or_insert_default().namespaces.clear();
            assert!(!is_one(&pod, &container), "{key} on the host's user namespace");
        }
    }

    #[test]
    fn every_container_is_checked_if_one_may_get_a_token_at_container_scope() {
        let (pod, container) = recorded(&[("main.hook.bpfman.io/delegate", "maps")]);
        let (narrow, wide) = (policy(MAPS), policy(&format!("{MAPS}host-scope = true\n")));
        let mut pods = TokenPods::default();
        let mut check = |name: &str, policy: Option<&Policy>, hooked| {
            pods.check(&pod, &named(&container, name), Engine::Containerd, policy, hooked)
        };
        assert_eq!(check("side", Some(&narrow), false), Some(PodCheck::Every));
        assert_eq!(check("main", Some(&narrow), false), Some(PodCheck::Every));
        // Under host scope no container is checked, so that a later token below host scope cannot rely on a check.
        assert_eq!(check("open", Some(&wide), false), None);
        assert_eq!(check("main", Some(&narrow), false), Some(PodCheck::This));
        pods.forget_container(&pod.id, "open");
        let mut check =
            |name: &str, policy, hooked| pods.check(&pod, &named(&container, name), Engine::Containerd, policy, hooked);
        assert_eq!(check("main", Some(&narrow), false), Some(PodCheck::Every));
        for (name, policy, hooked) in [("strict", Some(&narrow), true), ("broken", None, false)] {
            assert_eq!(check(name, policy, hooked), None, "{name}");
            assert_eq!(check("main", Some(&narrow), false), Some(PodCheck::This), "{name}");
        }
        pods.forget_pod(&pod.id);
        assert_eq!(pods.check(&pod, &container, Engine::Containerd, Some(&narrow), false), Some(PodCheck::Every));
        let (plain, container) = recorded(&[]);
        assert_eq!(pods.check(&plain, &container, Engine::Containerd, Some(&narrow), false), None);
        assert_eq!(pods.0.len(), 1, "pods without requests are not tracked");
    }

    #[test]
    fn a_synchronize_finds_unchecked_containers() {
        let (pod, container) = recorded(&[("main.hook.bpfman.io/delegate", "maps")]);
        use ContainerState::{CONTAINER_CREATED as CREATED, CONTAINER_RUNNING as RUNNING, CONTAINER_STOPPED as STOPPED};
        let container = |name: &str, state: ContainerState, told: Option<&str>| {
            let mut container = named(&container, name);
            container.state = state.into();
            container.pid = if state == CREATED { 0 } else { std::process::id() };
            let args = told.iter().flat_map(|word| ["bpfman-hook", "hook", "createRuntime", "--pod-check", word]);
            let hook = Hook {
                path: "/usr/local/bin/bpfman-hook".into(),
                args: args.map(str::to_owned).collect(),
                ..Default::default()
            };
            container.hooks.mut_or_insert_default().create_runtime = told.map(|_| hook).into_iter().collect();
            container
        };
        let side = |state| container("side", state, None);
        let main = container("main", RUNNING, Some("every"));
        let narrow = policy(MAPS);
        for (containers, missed, check) in [
            (vec![main.clone()], vec![], PodCheck::Every),
            (vec![main.clone(), container("side", RUNNING, Some("this"))], vec![], PodCheck::Every),
            (vec![main.clone(), side(RUNNING)], vec!["side"], PodCheck::This),
            // It may still be started, and there is no process to kill.
            (vec![main.clone(), side(CREATED)], vec![], PodCheck::This),
            (vec![main.clone(), side(STOPPED)], vec![], PodCheck::Every),
            // Without a token at container scope there is nothing to protect.
            (vec![container("main", RUNNING, Some("this")), side(RUNNING)], vec![], PodCheck::This),
            (vec![container("main", STOPPED, Some("every")), side(RUNNING)], vec![], PodCheck::This),
        ] {
            let (mut pods, mut found) = (TokenPods::default(), FoundPod::default());
            containers.iter().for_each(|container| found.note(&pod, container, Engine::Containerd, &invocation()));
            let told = pods.know(&pod.id, found);
            let ids: Vec<_> = told.iter().map(|missed| missed.id.as_str()).collect();
            assert_eq!(ids, missed, "{containers:?}");
            let of = |missed: &Missed| missed.token_of.as_ref().and_then(|facts| facts.container.clone());
            assert!(told.iter().all(|missed| of(missed).as_deref() == Some("main")));
            let next = pods.check(&pod, &named(&main, "next"), Engine::Containerd, Some(&narrow), false);
            assert_eq!(next, Some(check), "{containers:?}");
        }
    }

    #[test]
    fn a_container_that_has_ended_does_not_count() {
        let (pod, container) = recorded(&[("main.hook.bpfman.io/delegate", "maps")]);
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let mut side = named(&container, "side");
        (side.state, side.pid) = (ContainerState::CONTAINER_RUNNING.into(), child.id());
        let (mut pods, mut found) = (TokenPods::default(), FoundPod::default());
        found.note(&pod, &side, Engine::Containerd, &invocation());
        assert!(pods.know(&pod.id, found).is_empty());
        let narrow = policy(MAPS);
        let mut next = || pods.check(&pod, &container, Engine::Containerd, Some(&narrow), false);
        assert_eq!(next(), Some(PodCheck::This));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(next(), Some(PodCheck::Every));
    }
}
