//! What the host's administrator allows: `/etc/bpfman-hook/policy.d/*.toml` and `policy.toml`, parsed.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::annotations::OnFailure;
use crate::model::attach_point::{ProgramKind, Scope};
use crate::model::bytecode::PullPolicy;
use crate::model::delegation::Delegation;
use crate::model::ids::Digest;

/// The merged policy. `Policy::built_in` stands for no file at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// In the order of the files; never empty: no `[[image]]` is the built-in rule.
    pub images: Vec<ImageRule>,
    /// In the order of the files; never empty: no `[[container]]` is the built-in rule.
    pub containers: Vec<ContainerRule>,
    /// Bounds for one container.
    pub limits: Limits,
}

/// `[[image]]`: which bytecode may be loaded; any satisfied rule allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRule {
    /// The rule's name, unique; `image-3` where none was given.
    pub name: String,
    /// What it speaks of.
    pub repository: RepositoryPattern,
    /// Who must have signed.
    pub signed_by: Vec<Signer>,
    /// True: accepted without a signature. A rule has signers or this, never both or neither.
    pub unsigned: bool,
    /// How far its programs may reach.
    pub scope: Scope,
    /// Only these digests, where not empty.
    pub digests: BTreeSet<Digest>,
    /// Which globals a request may set.
    pub globals: Names,
    /// Which maps may be shown to a container.
    pub maps: MapNames,
}

/// A set of names that may be everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// Every name.
    All,
    /// These alone; none where empty.
    Only(BTreeSet<String>),
}

/// Which maps may be shown to a container, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapNames {
    /// Every map, read-only and read-write.
    All,
    /// These alone: name, and whether read-write is allowed too.
    Only(BTreeSet<(String, bool)>),
}

/// One party whose signature satisfies a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signer {
    /// A cosign public key, PEM, at this path.
    Key(PathBuf),
    /// A keyless identity; parsed and refused by name until keyless verification is there.
    Identity {
        /// The certificate's SAN.
        identity: String,
        /// The OIDC issuer.
        issuer: String,
    },
}

/// The `repository` of an image rule: `*` is one component, `**` is any number of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepositoryPattern(pub(in crate::model) String);

/// `[[container]]`: what a container may ask for; the first match decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRule {
    /// Which containers it speaks of: all keys must hold; empty matches every container.
    pub matches: Match,
    /// Names of image rules; None for every image rule.
    pub images: Option<BTreeSet<String>>,
    /// The kinds that may be attached.
    pub programs: BTreeSet<ProgramKind>,
    /// True where host-scope programs and delegations are allowed.
    pub host_scope: bool,
    /// The ceiling of what may be delegated.
    pub delegate: Delegation,
    /// What a request may say in `on-failure`.
    pub on_failure: Vec<OnFailure>,
    /// True where precreate may add capabilities and seccomp rules that the request needs.
    pub grant: bool,
    /// The pull policy where a request has none.
    pub pull_policy: Option<PullPolicy>,
}

/// Facts that a container rule can match, never claims.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// The engine that made the container.
    pub engine: Option<Engine>,
    /// The Kubernetes namespace, from the engine's own annotation.
    pub namespace: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The container's name in its pod.
    pub container: Option<String>,
    /// The uid that the runtime runs as.
    pub runtime_user: Option<u32>,
    /// Whether the container has a user namespace of its own.
    pub userns: Option<bool>,
}

/// What made a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// containerd's CRI plugin.
    Containerd,
    /// CRI-O.
    CriO,
    /// podman.
    Podman,
    /// A runtime called directly.
    Oci,
}

/// `[limits]`, per container, checked before the kernel is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Programs of one request.
    pub programs: u32,
    /// Bytes of all maps of one request.
    pub map_memory: u64,
}

/// The identity of a policy: sha256 over the merged policy and every key and trusted root it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyId(pub Digest);
