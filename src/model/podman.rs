//! Recognises podman's pods by data that podman itself writes: the path of the cgroup, and the form that `generate
//! kube` gives to annotations.
//!
//! podman copies annotations of the image to the container, including those that mark the members of a pod, so they
//! prove nothing by themselves. `linux.cgroupsPath` and the cgroups of processes come from podman and the runtime.

/// The cgroup of a pod: the last component of its path, which contains the pod's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodCgroup<'a>(&'a str);

impl<'a> PodCgroup<'a> {
    /// The pod's cgroup in which `linux.cgroupsPath` places a container; None for a container without a pod, and for a
    /// pod that does not share its cgroup (`--share-parent=false`).
    ///
    /// `/libpod_parent/<pod>/libpod-<id>` under cgroupfs, `machine-libpod_pod_<pod>.slice:libpod:<id>` under systemd (podman 4.3.1,
    /// libpod/runtime_pod_linux.go and container_internal_linux.go).
    pub fn of(cgroups_path: &'a str, id: &str) -> Option<Self> {
        if let [slice, "libpod", named] = cgroups_path.split(':').collect::<Vec<_>>()[..] {
            let (_, pod) = slice.strip_suffix(".slice")?.rsplit_once("libpod_pod_")?;
            return (named == id && is_id(pod)).then_some(Self(slice));
        }
        let (parent, last) = cgroups_path.rsplit_once('/')?;
        let pod = parent.rsplit('/').next()?;
        (last.strip_prefix("libpod-") == Some(id) && is_id(pod)).then_some(Self(pod))
    }

    /// The container of this pod to which a process belongs, by its `/proc/<pid>/cgroup`; None for a process outside
    /// the pod.
    pub fn member(self, proc_cgroup: &str) -> Option<&str> {
        proc_cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(|path| {
            let mut parts = path.split('/').skip_while(|part| *part != self.0).skip(1);
            let id = parts.next()?.strip_prefix("libpod-")?;
            let id = id.strip_suffix(".scope").unwrap_or(id);
            is_id(id).then_some(id)
        })
    }
}

/// Ids of podman are 64 hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The names of a podman container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerNames {
    names: Vec<String>,
}

impl ContainerNames {
    /// The names that annotation keys may use: podman's, and the one from the file of `kube play`, which calls the
    /// container `web` of the pod `shop` `shop-web`. A pod written by `generate kube` has its name there twice.
    pub fn new(name: &str, pod: Option<&str>) -> Self {
        let mut names = vec![name.to_owned()];
        let short = |name: &str| Some(name.strip_prefix(pod?)?.strip_prefix('-')?.to_owned());
        while let Some(next) = names.last().filter(|_| names.len() < 3).and_then(|name| short(name)).filter(|n| !n.is_empty()) {
            names.push(next);
        }
        Self { names }
    }

    /// True if the container has this name.
    pub fn is(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_recognised_by_its_cgroup() {
        let (pod, id, infra) = ("8".repeat(64), "d".repeat(64), "9".repeat(64));
        let cgroupfs = format!("/libpod_parent/{pod}/libpod-{id}");
        let systemd = format!("machine-libpod_pod_{pod}.slice:libpod:{id}");
        for (path, cgroup) in [
            (&cgroupfs, format!("/libpod_parent/{pod}/libpod-{infra}")),
            (&cgroupfs, format!("/outer/libpod_parent/{pod}/libpod-{infra}/container")),
            (&systemd, format!("/machine.slice/machine-libpod_pod_{pod}.slice/libpod-{infra}.scope")),
            (&systemd, format!("/machine.slice/machine-libpod_pod_{pod}.slice/libpod-{infra}.scope/container")),
        ] {
            let found = PodCgroup::of(path, &id).unwrap();
            assert_eq!(found.member(&format!("4:memory:/\n0::{cgroup}\n")), Some(infra.as_str()), "{cgroup}");
            assert_eq!(found.member(&format!("9:name=systemd:{cgroup}\n0::/\n")), Some(infra.as_str()), "{cgroup}");
        }
        let found = PodCgroup::of(&cgroupfs, &id).unwrap();
        let other = "7".repeat(64);
        for outside in [
            String::new(),
            "0::/\n".to_owned(),
            format!("0::/libpod_parent/{other}/libpod-{infra}\n"),
            format!("0::/libpod_parent/libpod-{infra}\n"),
            format!("0::/libpod_parent/{pod}\n"),
            format!("0::/libpod_parent/{pod}/x/libpod-{infra}\n"),
            format!("0::/libpod_parent/{pod}/libpod-conmon-{infra}\n"),
        ] {
            assert_eq!(found.member(&outside), None, "{outside}");
        }
        for none in [
            String::new(),
            format!("/libpod_parent/libpod-{id}"),
            format!("machine.slice:libpod:{id}"),
            format!("/libpod_parent/{pod}/libpod-{infra}"),
            format!("machine-libpod_pod_{pod}.slice:libpod:{infra}"),
            format!("machine-libpod_pod_x.slice:libpod:{id}"),
            format!("/x/libpod-{id}"),
        ] {
            assert_eq!(PodCgroup::of(&none, &id), None, "{none}");
        }
    }

    #[test]
    fn a_container_also_has_its_name_from_the_file() {
        for (name, pod, called, not) in [
            ("web", None, &["web"][..], &["", "we"][..]),
            ("shop-web", Some("shop"), &["shop-web", "web"], &["shop", "-web", ""]),
            ("shop-shop-web", Some("shop"), &["shop-shop-web", "shop-web", "web"], &[]),
            ("shop-shop-shop-web", Some("shop"), &["shop-shop-web", "shop-web"], &["web"]),
            ("web", Some("shop"), &["web"], &["shop"]),
            ("shop-", Some("shop"), &["shop-"], &[""]),
            ("b-a", Some("web"), &["b-a"], &["a"]),
        ] {
            let names = ContainerNames::new(name, pod);
            assert!(called.iter().all(|name| names.is(name)) && !not.iter().any(|name| names.is(name)), "{name}: {names:?}");
        }
    }
}
