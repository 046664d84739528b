//! Data that the NRI plugin passes to a child process for the record: containers that requested bpfman-hook but were
//! started without it, because NRI fails open, and containers that the plugin refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::admission::on_failure;
use crate::model::annotations::{OnFailure, Request};
use crate::model::ids::{ContainerId, Pid};
use crate::model::metrics_table::Reason;
use crate::model::policy::{ContainerFacts, OnMissed, Policy};

/// What the plugin passes to the child process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MissedContainers {
    /// `--root`.
    pub root: Option<PathBuf>,
    /// Containers of one Synchronize call that run without bpfman-hook.
    pub containers: Vec<Missed>,
    /// Containers that the plugin refused.
    pub refused: Vec<RefusedContainer>,
}

/// A container that the plugin refused: it was never created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedContainer {
    /// The id that the runtime intended for it.
    pub id: ContainerId,
    /// The facts that policy rules match.
    pub facts: ContainerFacts,
    /// The reason's category.
    pub reason: Reason,
    /// The reason, as shown in the pod's events.
    pub sentence: String,
}

/// A container that runs without bpfman-hook, as described by the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// The id.
    pub id: ContainerId,
    /// The pid of its init.
    pub pid: Pid,
    /// `linux.cgroupsPath` of its configuration.
    pub cgroups_path: String,
    /// The facts that policy rules match.
    pub facts: ContainerFacts,
    /// Its bpfman-hook annotations.
    pub annotations: BTreeMap<String, String>,
    /// A container of its pod that has a BPF token, which works for this container too: its capabilities should have
    /// been checked, whether or not it requests anything itself.
    pub token_of: Option<ContainerFacts>,
}

impl Missed {
    /// The policy's remedy, from the rule of this container and that of the container whose token it shares.
    pub fn remedy(&self, policy: &Policy) -> OnMissed {
        let for_token = self.token_of.as_ref().and_then(|facts| policy.container_rule(facts)).map(|rule| rule.on_missed);
        if for_token == Some(OnMissed::Kill) { OnMissed::Kill } else { self.remedy_of_request(policy) }
    }

    /// A request that cannot be parsed would have prevented the container's start. A request that may continue without
    /// its programs continues.
    fn remedy_of_request(&self, policy: &Policy) -> OnMissed {
        let Some(rule) = policy.container_rule(&self.facts) else { return OnMissed::Report };
        match Request::parse(&self.annotations, self.facts.container.as_deref()) {
            Ok(None) => OnMissed::Report,
            Ok(Some(request)) if on_failure(policy, &self.facts, &request) == OnFailure::Continue => OnMissed::Report,
            Ok(Some(_)) | Err(_) => rule.on_missed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::Engine;

    #[test]
    fn the_policy_decides_the_remedy() {
        let policy = Policy::parse(&[(
            "/p.toml".into(),
            "[[container]]\nmatch = { namespace = \"shop\" }\nprograms = [\"xdp\"]\non-missed = \"kill\"\non-failure = [\"continue\"]\n\
             [[container]]\nprograms = [\"xdp\"]\n"
                .into(),
        )])
        .unwrap();
        let image = ("hook.bpfman.io/image", "registry.example/x:v1");
        for (namespace, annotations, expected) in [
            ("shop", &[image][..], OnMissed::Kill),
            ("shop", &[image, ("hook.bpfman.io/prograns", "xdp:x")], OnMissed::Kill),
            ("shop", &[image, ("hook.bpfman.io/on-failure", "continue")], OnMissed::Report),
            ("shop", &[("other.hook.bpfman.io/image", "registry.example/x:v1")], OnMissed::Report),
            ("elsewhere", &[image], OnMissed::Report),
        ] {
            let missed = Missed {
                id: "web".parse().unwrap(),
                pid: Pid::new(7).unwrap(),
                cgroups_path: "/pods/web".into(),
                facts: ContainerFacts {
                    engine: Engine::Containerd,
                    namespace: Some(namespace.into()),
                    pod: Some("front".into()),
                    container: Some("web".into()),
                    labels: BTreeMap::new(),
                    runtime_user: 0,
                    userns: false,
                },
                annotations: annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
                token_of: None,
            };
            assert_eq!(missed.remedy(&policy), expected, "{namespace} {annotations:?}");
            // The rule that allowed the pod's token also decides for the containers that share it.
            let of = |namespace: &str| Some(ContainerFacts { namespace: Some(namespace.into()), ..missed.facts.clone() });
            let sharing = Missed { token_of: of("shop"), ..missed.clone() };
            assert_eq!(sharing.remedy(&policy), OnMissed::Kill, "{namespace} {annotations:?}");
            let sharing = Missed { token_of: of("elsewhere"), ..missed };
            assert_eq!(sharing.remedy(&policy), expected, "{namespace} {annotations:?}");
        }
    }
}
