//! Pods in Kubernetes manifests: what `policy explain --file` judges.

use std::collections::BTreeMap;

use serde_json::Value;

/// A pod, or the template of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestPod {
    /// Its namespace; None if the manifest names none.
    pub namespace: Option<String>,
    /// Its name, or that of the workload that makes it.
    pub name: String,
    /// All annotations.
    pub annotations: BTreeMap<String, String>,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// Its containers, init containers first.
    pub containers: Vec<String>,
    /// True with `hostUsers: false`.
    pub userns: bool,
}

/// Why a manifest cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The kubelet would refuse it too.
    #[error("{name}: the annotation {key} is not a string; put its value into quotes")]
    NotText {
        /// The pod.
        name: String,
        /// The annotation.
        key: String,
    },
    /// No document is a pod, or has a template of one.
    #[error("there is no pod in it, and nothing that makes pods")]
    NoPod,
}

/// The pods of the documents of a manifest: pods themselves, and the templates of Deployments, DaemonSets, StatefulSets,
/// Jobs, CronJobs and others that have `spec.template`.
pub fn pods(documents: &[Value]) -> Result<Vec<ManifestPod>, ManifestError> {
    let mut found = Vec::new();
    for document in documents {
        let items =
            document["items"].as_array().filter(|_| document["kind"].as_str().is_some_and(|kind| kind.ends_with("List")));
        match items {
            Some(items) => found.extend(pods(items)?),
            None => found.extend(pod(document)?),
        }
    }
    if found.is_empty() { Err(ManifestError::NoPod) } else { Ok(found) }
}

fn pod(document: &Value) -> Result<Option<ManifestPod>, ManifestError> {
    let spec = &document["spec"];
    let template = match document["kind"].as_str() {
        Some("Pod") => document,
        Some("CronJob") => &spec["jobTemplate"]["spec"]["template"],
        _ => &spec["template"],
    };
    let containers = ["initContainers", "containers"].map(|key| template["spec"][key].as_array());
    let containers: Vec<String> = containers
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|container| container["name"].as_str().map(str::to_owned))
        .collect();
    if containers.is_empty() {
        return Ok(None);
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let name = text(&document["metadata"]["name"]).or_else(|| text(&template["metadata"]["generateName"]));
    let name = name.unwrap_or_else(|| "pod".to_owned());
    let namespace = text(&template["metadata"]["namespace"]).or_else(|| text(&document["metadata"]["namespace"]));
    Ok(Some(ManifestPod {
        annotations: texts(&template["metadata"]["annotations"], &name)?,
        labels: texts(&template["metadata"]["labels"], &name)?,
        userns: template["spec"]["hostUsers"] == Value::Bool(false),
        namespace,
        name,
        containers,
    }))
}

fn texts(map: &Value, name: &str) -> Result<BTreeMap<String, String>, ManifestError> {
    let entries = map.as_object().into_iter().flatten();
    let text = |(key, value): (&String, &Value)| match value.as_str() {
        Some(value) => Ok((key.clone(), value.to_owned())),
        None => Err(ManifestError::NotText { name: name.to_owned(), key: key.clone() }),
    };
    entries.map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_found_in_whatever_makes_them() {
        let template = json!({
            "metadata": {"annotations": {"hook.bpfman.io/bpffs": "private"}, "labels": {"app": "web"}},
            "spec": {"hostUsers": false, "initContainers": [{"name": "first"}], "containers": [{"name": "web"}]},
        });
        let mut plain = template.clone();
        plain["kind"] = json!("Pod");
        plain["metadata"]["name"] = json!("front");
        plain["metadata"]["namespace"] = json!("shop");
        let deployment =
            json!({"kind": "Deployment", "metadata": {"name": "front", "namespace": "shop"}, "spec": {"template": template}});
        let cron = json!({"kind": "CronJob", "metadata": {"name": "front", "namespace": "shop"},
            "spec": {"jobTemplate": {"spec": {"template": template}}}});
        let list = json!({"kind": "List", "items": [deployment]});
        let service = json!({"kind": "Service", "metadata": {"name": "front"}, "spec": {"ports": []}});
        for document in [&plain, &deployment, &cron, &list] {
            let found = pods(&[service.clone(), document.clone()]).unwrap();
            assert_eq!(found.len(), 1, "{document}");
            assert_eq!((found[0].namespace.as_deref(), found[0].name.as_str()), (Some("shop"), "front"), "{document}");
            assert_eq!(found[0].containers, ["first", "web"]);
            assert!(
                found[0].userns && found[0].annotations["hook.bpfman.io/bpffs"] == "private" && found[0].labels["app"] == "web"
            );
        }
        assert_eq!(pods(&[service]), Err(ManifestError::NoPod));
        plain["metadata"]["annotations"]["hook.bpfman.io/globals"] = json!(7);
        assert!(pods(&[plain]).unwrap_err().to_string().contains("put its value into quotes"));
    }
}
