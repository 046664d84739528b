//! What the NRI plugin saw and a child of its records: containers that asked for us and were started without us, since NRI fails
//! open, and containers that it refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::admission::on_failure;
use crate::model::annotations::{OnFailure, Request};
use crate::model::ids::{ContainerId, Pid};
use crate::model::metrics_table::Reason;
use crate::model::policy::{ContainerFacts, OnMissed, Policy};

/// What the plugin hands to the child that deals with it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MissedContainers {
    /// `--root`.
    pub root: Option<PathBuf>,
    /// Those of one Synchronize that run without us.
    pub containers: Vec<Missed>,
    /// Those that the plugin refused.
    pub refused: Vec<RefusedContainer>,
}

/// A container that the plugin refused: it was never made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedContainer {
    /// The id that the runtime had for it.
    pub id: ContainerId,
    /// What policy rules match.
    pub facts: ContainerFacts,
    /// Who found the reason.
    pub reason: Reason,
    /// The reason, as the pod's events show it.
    pub sentence: String,
}

/// One of them, as the runtime describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// The id.
    pub id: ContainerId,
    /// Its init.
    pub pid: Pid,
    /// `linux.cgroupsPath` of its configuration.
    pub cgroups_path: String,
    /// What policy rules match.
    pub facts: ContainerFacts,
    /// Those of its annotations that are ours.
    pub annotations: BTreeMap<String, String>,
    /// A container of its pod that has a BPF token, which works for this one too: its capabilities were to be checked, whether it asks
    /// for anything itself or not.
    pub token_of: Option<ContainerFacts>,
}

impl Missed {
    /// What policy wants done, by the rule of this container and by that of the one whose token it shares.
    pub fn remedy(&self, policy: &Policy) -> OnMissed {
        let for_token = self.token_of.as_ref().and_then(|facts| policy.container_rule(facts)).map(|rule| rule.on_missed);
        if for_token == Some(OnMissed::Kill) { OnMissed::Kill } else { self.remedy_of_request(policy) }
    }

    /// A request that could not have been understood would have kept the container from starting, and
    /// one that may go on without its programs goes on.
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
    fn what_policy_wants_done() {
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
            // The rule that gave the pod's token decides about those who share it.
            let of = |namespace: &str| Some(ContainerFacts { namespace: Some(namespace.into()), ..missed.facts.clone() });
            let sharing = Missed { token_of: of("shop"), ..missed.clone() };
            assert_eq!(sharing.remedy(&policy), OnMissed::Kill, "{namespace} {annotations:?}");
            let sharing = Missed { token_of: of("elsewhere"), ..missed };
            assert_eq!(sharing.remedy(&policy), expected, "{namespace} {annotations:?}");
        }
    }
}
