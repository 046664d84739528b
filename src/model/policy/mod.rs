//! The administrator's policy: `/etc/bpfman-hook/policy.d/*.toml` and `policy.toml`, parsed.

mod client;
mod matching;
mod parse;
mod pattern;
mod raw;
mod refusal;
mod signer;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::annotations::{MapAccess, OnFailure};
use crate::model::attach_point::{ProgramKind, Scope};
use crate::model::bytecode::PullPolicy;
use crate::model::delegation::Delegation;
use crate::model::gate::{ContainerGate, HostGate};
use crate::model::ids::Digest;
use crate::model::police::Police;
use crate::model::program_signing::KernelSigned;
use crate::model::proxy::CallCeiling;
use crate::model::reference::Reference;
pub use client::{ClientAccount, ClientRefusal, ClientRule, ServiceClient, Verb};
pub use matching::{ContainerFacts, Match};
pub use parse::PolicyError;
pub use pattern::{PatternError, RepositoryPattern};
pub use refusal::{Refusal, rule_remedy};
pub use signer::{Matcher, Signer, TRUSTED_ROOT, Words};

/// The merged policy. `Policy::built_in` is the policy without any file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// In the order of the files; never empty: without `[[image]]` rules it holds the built-in rule.
    pub images: Vec<ImageRule>,
    /// In the order of the files; never empty: without `[[container]]` rules it holds the built-in rule.
    pub containers: Vec<ContainerRule>,
    /// In the order of the files. They decide who may use the service, not what is loaded, and do not count for the
    /// policy's identity.
    #[serde(skip)]
    pub clients: Vec<ClientRule>,
    /// `[gate]`: the executables that may load programs on the host; None without the section. It does not count for the
    /// policy's identity.
    #[serde(skip)]
    pub gate: Option<HostGate>,
    /// Limits for one container.
    pub limits: ContainerLimits,
    /// Limits for the data that gRPC clients make the record store keep. They do not count for the policy's identity.
    #[serde(skip)]
    pub store: StoreLimits,
}

/// `[[image]]`: which bytecode may be loaded; an image is allowed if it satisfies any rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageRule {
    /// The rule's name, unique; by default `image-3` for the third rule.
    pub name: String,
    /// The repositories that the rule covers.
    pub repository: RepositoryPattern,
    /// The signers; a signature of any one of them satisfies the rule.
    pub signed_by: Vec<Signer>,
    /// True: accepted without a signature. A rule has either signers or this.
    pub unsigned: bool,
    /// How far its programs may reach.
    pub scope: Scope,
    /// Whether the kernel has to check the signatures of its programs.
    #[serde(skip_serializing_if = "KernelSigned::is_default")]
    pub kernel_signed: KernelSigned,
    /// If not empty, only these digests are allowed.
    pub digests: BTreeSet<Digest>,
    /// The globals that a request may set.
    pub globals: NameSet,
    /// The maps that may be shown to a container.
    pub maps: MapNames,
}

/// A set of names, or every name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum NameSet {
    /// Every name.
    All,
    /// Only these; no name if empty.
    Only(BTreeSet<String>),
}

/// Which maps may be shown to a container, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum MapNames {
    /// Every map, read-only and read-write.
    All,
    /// Only these: the name, and whether read-write access is allowed too.
    Only(BTreeSet<(String, bool)>),
}

/// `[[container]]`: what a container may request; the first rule that matches decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerRule {
    /// Its location. It does not count for the policy's identity.
    #[serde(skip)]
    pub place: RuleLocation,
    /// The containers that the rule matches: all keys must match; an empty match applies to every container.
    pub matches: Match,
    /// Names of image rules; None means every image rule.
    pub images: Option<BTreeSet<String>>,
    /// The kinds that may be attached.
    pub programs: BTreeSet<ProgramKind>,
    /// True if host-scope programs and delegations are allowed.
    pub host_scope: bool,
    /// The upper limit of what may be delegated.
    pub delegate: Delegation,
    /// The upper limit of what the container may do through the proxy of bpf(2).
    #[serde(skip_serializing_if = "CallCeiling::is_empty")]
    pub proxy: CallCeiling,
    /// How the container's own bpf(2) calls are policed; None if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub police: Option<Police>,
    /// The executables that may load programs in the container; None if the list of the host counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<ContainerGate>,
    /// The values that a request may use for `on-failure`; `stop` is always allowed, even if it is not listed.
    pub on_failure: Vec<OnFailure>,
    /// What happens to a container that runs without what it requested. It does not count for the policy's identity.
    #[serde(skip)]
    pub on_missed: OnMissed,
    /// True if precreate may add capabilities and seccomp rules that the request needs.
    pub grant: bool,
    /// The pull policy for requests that have none.
    pub pull_policy: Option<PullPolicy>,
}

/// What happens to a container that was started without bpfman-hook, which can occur while the NRI plugin is not
/// connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnMissed {
    /// The container is recorded, counted and logged.
    #[default]
    Report,
    /// In addition its init is killed, unless the request allows the container to continue without its programs.
    Kill,
}

/// The location of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleLocation {
    /// The built-in rule, which applies if the files have none.
    BuiltIn,
    /// No file: root asked for it with `token create`, and no policy decides about a process that is in no container.
    Root,
    /// In a file, starting at a line counted from 1.
    Line {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
    },
}

impl fmt::Display for RuleLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("the built-in container rule"),
            Self::Root => f.write_str("root, with token create"),
            Self::Line { file, line } => write!(f, "the container rule at {}:{line}", file.display()),
        }
    }
}

/// What created a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// containerd's CRI plugin.
    Containerd,
    /// CRI-O.
    CriO,
    /// podman.
    Podman,
    /// A runtime that was called directly.
    Oci,
}

/// `[limits]`, per container, checked before anything is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerLimits {
    /// Programs of one request.
    pub programs: u32,
    /// Links of one request: one for each place that a program is attached to, so an entry with `iface=*` may count for
    /// several.
    pub links: u32,
    /// Bytes of all maps of one request.
    pub map_memory: u64,
}

/// How many bytes of the record store clients of the gRPC service may fill: metadata, globals, names, links and
/// everything else that is kept of a load. The store holds 1 GiB; what clients cannot fill remains for containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreLimits {
    /// One load with its links.
    pub load: u64,
    /// All loads of one client.
    pub client: u64,
    /// All loads of all clients.
    pub clients: u64,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { load: 256 << 10, client: 4 << 20, clients: 32 << 20 }
    }
}

/// The identity of a policy: sha256 over the merged policy and every key and trusted root that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyId(pub Digest);

impl NameSet {
    /// True if the set contains the name.
    pub fn allow(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }
}

impl MapNames {
    /// True if the map may be shown with this access.
    pub fn allow(&self, name: &str, access: MapAccess) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => {
                names.iter().any(|(known, writable)| known == name && (*writable || access == MapAccess::ReadOnly))
            }
        }
    }
}

impl ImageRule {
    /// The name of the rule that applies without `[[image]]` rules; no rule in a file may use it.
    pub const BUILT_IN: &'static str = "built-in";

    /// Every image in every registry that a key of the administrator signed; no host path. Without keys no image
    /// satisfies it.
    fn built_in() -> Self {
        Self {
            name: Self::BUILT_IN.to_owned(),
            repository: RepositoryPattern::every_registry(),
            signed_by: Vec::new(),
            unsigned: false,
            scope: Scope::Container,
            kernel_signed: KernelSigned::default(),
            digests: BTreeSet::new(),
            globals: NameSet::All,
            maps: MapNames::All,
        }
    }

    /// True if the rule allows an image with this digest.
    pub fn allows_digest(&self, digest: &Digest) -> bool {
        self.digests.is_empty() || self.digests.contains(digest)
    }

    /// The key files of its signers.
    pub fn keys(&self) -> impl Iterator<Item = &Path> {
        self.signed_by.iter().filter_map(|signer| match signer {
            Signer::Key(path) => Some(path.as_path()),
            Signer::Identity { .. } => None,
        })
    }
}

impl ContainerRule {
    /// Container-scope programs of every kind, and nothing else.
    fn built_in() -> Self {
        let kinds = ProgramKind::ALL.into_iter().map(|(kind, _)| kind);
        Self {
            place: RuleLocation::BuiltIn,
            matches: Match::default(),
            images: None,
            programs: kinds.filter(|kind| kind.scope() == Scope::Container).collect(),
            host_scope: false,
            delegate: Delegation::default(),
            proxy: CallCeiling::default(),
            police: None,
            gate: None,
            on_failure: vec![OnFailure::Stop],
            on_missed: OnMissed::Report,
            grant: false,
            pull_policy: None,
        }
    }

    /// True if the rule watches over what the container does itself, also without a request.
    pub fn supervises(&self) -> bool {
        self.police.is_some() || self.gate.is_some()
    }

    /// True if a request may use this value for `on-failure`.
    pub fn allows_on_failure(&self, on_failure: OnFailure) -> bool {
        on_failure == OnFailure::Stop || self.on_failure.contains(&on_failure)
    }
}

impl Default for ContainerLimits {
    /// 64 programs, 256 links and 64 MiB of maps.
    fn default() -> Self {
        Self { programs: 64, links: 256, map_memory: 64 << 20 }
    }
}

impl Policy {
    /// The labels that container rules name: those that must be passed to the hook.
    pub fn label_keys(&self) -> BTreeSet<&str> {
        self.containers.iter().flat_map(|rule| rule.matches.labels.keys()).map(String::as_str).collect()
    }

    /// The policy without any file: container-scope programs of images signed by one of `keys`, and no delegation.
    #[cfg(test)]
    pub fn built_in(keys: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut policy = Self {
            images: vec![ImageRule::built_in()],
            containers: vec![ContainerRule::built_in()],
            clients: Vec::new(),
            gate: None,
            limits: ContainerLimits::default(),
            store: StoreLimits::default(),
        };
        policy.trust(keys);
        policy
    }

    /// Merges policy files in the given order: rules are appended, and of limits the last value counts. If the files
    /// have no rules of one kind, the built-in rule of that kind applies.
    ///
    /// # Errors
    /// The first mistake, with file and line. A policy with an error allows nothing.
    pub fn parse(files: &[(PathBuf, String)]) -> Result<Self, PolicyError> {
        parse::merge(files)
    }

    /// The built-in image rule, if the files have no image rules.
    pub fn built_in_images(&self) -> Option<&ImageRule> {
        self.images.iter().find(|rule| rule.name == ImageRule::BUILT_IN)
    }

    /// Makes the built-in image rule, if it applies, accept signatures by these keys.
    pub fn trust(&mut self, keys: impl IntoIterator<Item = PathBuf>) {
        if let Some(rule) = self.images.iter_mut().find(|rule| rule.name == ImageRule::BUILT_IN) {
            rule.signed_by.extend(keys.into_iter().map(Signer::Key));
        }
    }

    /// The key files and trusted roots that rules name, sorted, each once.
    pub fn trust_files(&self) -> BTreeSet<&Path> {
        self.images.iter().flat_map(|rule| &rule.signed_by).map(Signer::file).collect()
    }

    /// The rule that decides for a container: the first one that matches.
    pub fn container_rule(&self, facts: &ContainerFacts) -> Option<&ContainerRule> {
        self.containers.iter().find(|rule| rule.matches.holds(facts))
    }

    /// True if the rule that decides about a container may police it or give it a list of executables. Only whether it has a user namespace is not
    /// considered: this is asked before that is known.
    pub fn may_police(&self, facts: &ContainerFacts) -> bool {
        let decides = |userns| self.container_rule(&ContainerFacts { userns, ..facts.clone() });
        [false, true].into_iter().any(|userns| decides(userns).is_some_and(ContainerRule::supervises))
    }

    /// True if some container of a pod may get a token that must stay inside it: through a rule that delegates without
    /// `host-scope`. The container's name in `facts` is ignored.
    pub fn delegates_at_container_scope(&self, facts: &ContainerFacts) -> bool {
        for rule in &self.containers {
            let named = ContainerFacts { container: rule.matches.container.clone(), ..facts.clone() };
            if !rule.matches.holds(&named) {
                continue;
            }
            if !rule.delegate.is_empty() && !rule.host_scope {
                return true;
            }
            if rule.matches.container.is_none() {
                // It decides for all containers that no earlier rule names.
                return false;
            }
        }
        false
    }

    /// The image rules that cover a reference and that the container rule allows, in the policy's order.
    pub fn image_rules(&self, rule: &ContainerRule, reference: &Reference) -> Vec<&ImageRule> {
        let usable = |image: &&ImageRule| rule.images.as_ref().is_none_or(|names| names.contains(&image.name));
        self.images.iter().filter(usable).filter(|image| image.repository.matches(reference)).collect()
    }

    /// The merged policy in canonical form, for its identity: equal texts mean equal decisions. Locations and comments
    /// are not part of it.
    pub fn canonical(&self) -> String {
        serde_json::to_string(self)
            .expect("every part of a policy came from UTF-8 text, and no map has other keys than strings")
    }

    /// Warnings about settings that are valid but probably not intended, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for image in &self.images {
            for doubt in image.signed_by.iter().flat_map(Signer::doubts) {
                warnings.push(format!("image rule {} {doubt}", image.name));
            }
        }
        let mut all = None;
        for rule in &self.containers {
            if let Some(before) = all {
                warnings.push(format!("{} is never reached: {before} matches every container", rule.place));
            }
            if rule.matches == Match::default() {
                all = all.or(Some(&rule.place));
            }
            if rule.matches.is_impossible() {
                warnings
                    .push(format!("{} never matches: its engine does not report a namespace, pod or container", rule.place));
            }
            let host: Vec<&str> = rule
                .programs
                .iter()
                .filter(|kind| kind.scope() == Scope::Host && !rule.host_scope)
                .map(|kind| kind.word())
                .collect();
            if !host.is_empty() {
                warnings.push(format!("{} allows {} without effect: they need host-scope = true", rule.place, host.join(", ")));
            }
            if let Some(problem) = rule.delegate.useless().filter(|_| !rule.delegate.is_empty()) {
                warnings.push(format!("{} delegates without effect: {problem}", rule.place));
            }
            if let Some(problem) = rule.proxy.delegation.useless().filter(|_| !rule.proxy.is_empty()) {
                warnings.push(format!("{} allows the proxy without effect: {problem}", rule.place));
            }
            if rule.programs.is_empty() && rule.delegate.is_empty() && rule.proxy.is_empty() {
                warnings.push(format!("{} allows no programs and delegates nothing", rule.place));
            }
        }
        warnings
    }
}

#[cfg(test)]
mod tests;
