//! The part of a bundle's config.json that bpfman-hook reads.
//!
//! It is not parsed with oci-spec, because its types copy the whole file into the heap (podman's lists 400 system calls
//! by name; that takes as long as most of a start), and because they fail on a capability or namespace type that is newer
//! than the crate (docs/decisions/0006). Unknown fields are skipped and `null` counts as absent, as in the runtimes,
//! which are written in Go and C.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use crate::model::seccomp::{Allowed, Seccomp, Syscall};

/// A capability that the workload may need to use BPF itself; capabilities(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// CAP_BPF: every use of a token.
    Bpf,
    /// CAP_NET_ADMIN: networking and cgroup types.
    NetAdmin,
    /// CAP_PERFMON: tracing types.
    Perfmon,
    /// CAP_SYS_ADMIN: substitutes for CAP_PERFMON wherever the kernel checks for that.
    SysAdmin,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bpf, Self::NetAdmin, Self::Perfmon, Self::SysAdmin];

    /// The name in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bpf => "CAP_BPF",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::SysAdmin => "CAP_SYS_ADMIN",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The members of [`Capability::ALL`] in one of the five sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Set(u8);

impl<'de> Deserialize<'de> for Set {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SeenConfig;
        impl<'de> Visitor<'de> for SeenConfig {
            type Value = Set;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of capability names")
            }

            fn visit_unit<E>(self) -> Result<Set, E> {
                Ok(Set(0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Set, A::Error> {
                let mut seen = 0;
                while let Some(name) = names.next_element::<Cow<'_, str>>()? {
                    for capability in Capability::ALL {
                        if name == capability.name() {
                            seen |= capability.bit();
                        }
                    }
                }
                Ok(Set(seen))
            }
        }
        deserializer.deserialize_any(SeenConfig)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
struct CapabilitySets {
    bounding: Set,
    permitted: Set,
    ambient: Set,
}

/// The kinds of namespaces that `linux.namespaces` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NamespaceKind {
    /// `user`
    User,
    /// `network`
    Network,
    /// `mount`
    Mount,
    /// `pid`
    Pid,
    /// `cgroup`
    Cgroup,
    /// `uts`
    Uts,
    /// `ipc`
    Ipc,
    /// `time`
    Time,
}

impl NamespaceKind {
    fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Network => "network",
            Self::Mount => "mount",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Time => "time",
        }
    }
}

/// The origin of a container's namespace according to its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceSource<'a> {
    /// Not listed: the runtime's own namespace.
    Runtime,
    /// Listed without a path: created for this container.
    New,
    /// Joined: an existing namespace.
    Joined(&'a Path),
}

/// One line of `uidMappings` or `gidMappings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct IdMapping {
    /// The first id inside.
    #[serde(rename = "containerID")]
    pub container: u32,
    /// The first id in the runtime's user namespace.
    #[serde(rename = "hostID")]
    pub host: u32,
    /// The number of ids.
    pub size: u32,
}

/// `process.user`: ids as the container sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct User {
    /// The uid.
    pub uid: u32,
    /// The gid.
    pub gid: u32,
}

/// One entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ConfigMount {
    /// The mount point in the container.
    pub destination: PathBuf,
    /// The file system's type; `bind` or empty for a bind mount.
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// The source of the mount.
    #[serde(default, deserialize_with = "or_default")]
    pub source: PathBuf,
    /// mount(8) options.
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<String>,
}

impl ConfigMount {
    /// True for a bind mount: by type or by option, like runtimes decide it.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|option| option == "bind" || option == "rbind")
    }
}

/// A container's config.json.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerConfig {
    /// `root.path`: absolute, or relative to the bundle.
    pub root: PathBuf,
    /// `process.user`; 0:0 if it is absent.
    pub user: User,
    /// `process.noNewPrivileges`
    pub no_new_privileges: bool,
    /// `linux.uidMappings`
    pub uid_mappings: Vec<IdMapping>,
    /// `linux.gidMappings`
    pub gid_mappings: Vec<IdMapping>,
    /// `linux.cgroupsPath`
    pub cgroups_path: Option<String>,
    /// `mounts`
    pub mounts: Vec<ConfigMount>,
    /// `linux.readonlyPaths`
    pub readonly_paths: Vec<PathBuf>,
    /// `annotations`
    pub annotations: BTreeMap<String, String>,
    /// True if `vm` is set: the runtime starts a virtual machine, and its pid is not a process of the container.
    pub vm: bool,
    namespaces: Vec<RawNamespace>,
    sets: CapabilitySets,
    seccomp: Option<Seccomp>,
}

#[derive(Deserialize)]
struct RawConfig {
    root: RawRoot,
    #[serde(default)]
    process: Option<RawProcess>,
    #[serde(default)]
    linux: Option<RawLinux>,
    #[serde(default, deserialize_with = "or_default")]
    mounts: Vec<ConfigMount>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    vm: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct RawRoot {
    path: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawProcess {
    user: Option<User>,
    capabilities: Option<CapabilitySets>,
    no_new_privileges: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawLinux {
    namespaces: Option<Vec<RawNamespace>>,
    uid_mappings: Option<Vec<IdMapping>>,
    gid_mappings: Option<Vec<IdMapping>>,
    cgroups_path: Option<String>,
    seccomp: Option<Seccomp>,
    readonly_paths: Option<Vec<PathBuf>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RawNamespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: Option<PathBuf>,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl ContainerConfig {
    /// Parses a config.json.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let raw: RawConfig = serde_json::from_str(text)?;
        let process = raw.process.unwrap_or_default();
        let linux = raw.linux.unwrap_or_default();
        Ok(Self {
            root: raw.root.path,
            user: process.user.unwrap_or_default(),
            no_new_privileges: process.no_new_privileges.unwrap_or_default(),
            uid_mappings: linux.uid_mappings.unwrap_or_default(),
            gid_mappings: linux.gid_mappings.unwrap_or_default(),
            cgroups_path: linux.cgroups_path.filter(|path| !path.is_empty()),
            mounts: raw.mounts,
            readonly_paths: linux.readonly_paths.unwrap_or_default(),
            annotations: raw.annotations,
            vm: raw.vm.is_some(),
            namespaces: linux.namespaces.unwrap_or_default(),
            sets: process.capabilities.unwrap_or_default(),
            seccomp: linux.seccomp,
        })
    }

    /// The origin of one of the container's namespaces.
    pub fn namespace(&self, kind: NamespaceKind) -> NamespaceSource<'_> {
        match self.namespaces.iter().find(|namespace| namespace.kind == kind.word()) {
            None => NamespaceSource::Runtime,
            Some(RawNamespace { path: Some(path), .. }) if !path.as_os_str().is_empty() => NamespaceSource::Joined(path),
            Some(_) => NamespaceSource::New,
        }
    }

    /// Decides whether the container's processes can have a capability.
    ///
    /// capabilities(7), "Transformation of capabilities during execve": uid 0 gets the bounding set at every exec, or
    /// with no_new_privs only what it already has. Other users get their ambient set, and what file capabilities add
    /// within the bounding set, which no_new_privs prevents. File capabilities are not part of the configuration.
    pub fn can_have(&self, capability: Capability) -> Allowed {
        let has = |set: Set| set.0 & capability.bit() != 0;
        match (has(self.sets.bounding), self.user.uid, self.no_new_privileges) {
            (false, ..) => Allowed::No,
            (true, 0, false) => Allowed::Yes,
            (true, 0, true) if has(self.sets.permitted) => Allowed::Yes,
            (true, uid, _) if uid != 0 && has(self.sets.ambient) => Allowed::Yes,
            (true, _, true) => Allowed::No,
            (true, _, false) => Allowed::Unknown,
        }
    }

    /// Decides whether the container's seccomp profile allows a system call; without a profile all are allowed.
    pub fn seccomp_allows(&self, call: Syscall) -> Allowed {
        self.seccomp.as_ref().map_or(Allowed::Yes, |seccomp| seccomp.allows(call))
    }

    /// The container's seccomp profile.
    pub fn seccomp(&self) -> Option<&Seccomp> {
        self.seccomp.as_ref()
    }

    /// The mount that exposes the host's cgroup file system in the container, as far as the configuration shows: a bind
    /// mount of /sys/fs/cgroup, of a path below it, or a recursive one of a directory above it.
    ///
    /// Paths are compared as text; a source that is a symbolic link can only be found in the container's mountinfo.
    pub fn host_cgroup_mount(&self) -> Option<&ConfigMount> {
        let cgroup = Path::new("/sys/fs/cgroup");
        self.mounts.iter().filter(|mount| mount.is_bind()).find(|mount| {
            let source: PathBuf = mount.source.components().filter(|part| *part != Component::CurDir).collect();
            let recursive = mount.options.iter().any(|option| option == "rbind");
            source.starts_with(cgroup) || (cgroup.starts_with(&source) && source.is_absolute() && recursive)
        })
    }
}
