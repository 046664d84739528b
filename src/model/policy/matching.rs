//! Matches container rules against containers.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Engine;
use crate::model::text::listed;

/// The conditions of a container rule. They apply to facts, never to claims.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Match {
    /// The engine that created the container.
    pub engine: Option<Engine>,
    /// The Kubernetes namespace, from the engine's own annotation.
    pub namespace: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The container's name in its pod.
    pub container: Option<String>,
    /// Labels of the pod. The creator of a pod chooses them, so they are allowed only together with a namespace: they
    /// narrow a rule.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The uid that the runtime runs as.
    pub runtime_user: Option<u32>,
    /// Whether the container has its own user namespace.
    pub userns: Option<bool>,
}

/// The facts about a container that a rule's `match` is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFacts {
    /// The engine that created it.
    pub engine: Engine,
    /// The Kubernetes namespace, from this engine's own annotation.
    pub namespace: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The container's name in its pod.
    pub container: Option<String>,
    /// The pod's labels, as far as they are known: only from the NRI plugin, and only those that some rule names.
    pub labels: BTreeMap<String, String>,
    /// The uid that the runtime runs as.
    pub runtime_user: u32,
    /// Whether it has its own user namespace.
    pub userns: bool,
}

impl fmt::Display for ContainerFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "engine {}, runtime user {}", self.engine.word(), self.runtime_user)?;
        for (word, value) in [("namespace", &self.namespace), ("pod", &self.pod), ("container", &self.container)] {
            if let Some(value) = value {
                write!(f, ", {word} {value}")?;
            }
        }
        // The runtime's own labels repeat the fields above.
        let labels: Vec<_> = self
            .labels
            .iter()
            .filter(|(key, _)| !key.starts_with("io.kubernetes.") && !key.starts_with("io.cri-containerd."))
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if !labels.is_empty() {
            write!(f, ", labels {}", listed(labels.iter().map(String::as_str), 8))?;
        }
        f.write_str(if self.userns { ", with a user namespace" } else { ", without a user namespace" })
    }
}

impl Engine {
    /// True if the engine vouches for the Kubernetes namespace, pod and name of its containers.
    pub fn knows_pods(self) -> bool {
        matches!(self, Self::Containerd | Self::CriO)
    }
}

impl Match {
    /// True if all keys match. `namespace`, `pod`, `container` and `labels` never match under an engine that does not
    /// vouch for them, and an unknown label does not match.
    pub fn holds(&self, facts: &ContainerFacts) -> bool {
        let pod_key = |wanted: &Option<String>, fact: &Option<String>| match wanted {
            None => true,
            Some(wanted) => facts.engine.knows_pods() && fact.as_ref() == Some(wanted),
        };
        self.engine.is_none_or(|engine| engine == facts.engine)
            && pod_key(&self.namespace, &facts.namespace)
            && pod_key(&self.pod, &facts.pod)
            && pod_key(&self.container, &facts.container)
            && (self.labels.is_empty() || facts.engine.knows_pods())
            && self.labels.iter().all(|(key, value)| facts.labels.get(key) == Some(value))
            && self.runtime_user.is_none_or(|user| user == facts.runtime_user)
            && self.userns.is_none_or(|userns| userns == facts.userns)
    }

    /// True if all keys except `labels` match, and the rule has labels.
    pub fn holds_but_for_labels(&self, facts: &ContainerFacts) -> bool {
        !self.labels.is_empty() && Self { labels: BTreeMap::new(), ..self.clone() }.holds(facts)
    }

    /// True if no container can match: the rule asks for facts that its engine does not provide.
    pub fn is_impossible(&self) -> bool {
        let pod_key = self.namespace.is_some() || self.pod.is_some() || self.container.is_some();
        pod_key && self.engine.is_some_and(|engine| !engine.knows_pods())
    }
}
