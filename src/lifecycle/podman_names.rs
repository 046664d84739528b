//! The names that podman gives a container, for keys that name one.

use serde::Deserialize;

use crate::lifecycle::linux_host::process_of;
use crate::model::config::{NamespaceKind, NamespaceSource};
use crate::model::container::Container;
use crate::model::podman::{ContainerNames, PodCgroup};
use crate::sys::{conmon, fsutil};

/// podman's configuration of an infra container has about 20 kB.
const CONFIG_MAX: usize = 16 << 20;

#[derive(Deserialize)]
struct Infra {
    #[serde(default)]
    hostname: Option<String>,
}

/// The container's names; None if they cannot be determined, and a key that names a container is then refused.
///
/// podman's name is on the command line of conmon. The pod's name is the host name of its infra container, in the
/// configuration that podman wrote next to ours: a member's image cannot influence it.
pub fn names(container: &Container) -> Option<ContainerNames> {
    let name = conmon::container_name(container.id.as_str())?;
    let Some(pod) = PodCgroup::of(container.config.cgroups_path.as_deref()?, container.id.as_str()) else {
        return Some(ContainerNames::new(&name, None));
    };
    let NamespaceSource::Joined(path) = container.config.namespace(NamespaceKind::Network) else { return None };
    let process = process_of(path, None)?;
    let cgroup = process.cgroup_text().ok()?;
    let infra = pod.member(&cgroup)?;
    let containers = container.bundle.parent()?.parent()?;
    let config = fsutil::read_text(&containers.join(infra).join("userdata/config.json"), CONFIG_MAX).ok()?;
    let infra: Infra = serde_json::from_str(&config).ok()?;
    Some(ContainerNames::new(&name, infra.hostname.as_deref()))
}
