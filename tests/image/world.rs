//! Shared helpers: a temporary directory with a cache, rules and keys, and ways to make layouts.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bpfman_hook::image::{ImageError, Images, InUse, LinuxImages, Want, Worker};
use bpfman_hook::model::attach_point::Scope;
use bpfman_hook::model::bytecode::{Bytecode, PullPolicy};
use bpfman_hook::model::ids::Digest;
use bpfman_hook::model::policy::{ImageRule, MapNames, NameSet, PolicyId, RepositoryPattern, Signer};
use bpfman_hook::model::reference::Reference;
use bpfman_hook::model::registries::RegistryConfig;
use sha2::{Digest as _, Sha256};

pub const OBJECT: &[u8] = include_bytes!("../data/images/pass.bpfel.o");

/// The files under tests/data.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// An error with all of its causes, as the user sees it.
pub fn sentence(err: &ImageError) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(this) = cause {
        text = format!("{text}: {this}");
        cause = this.source();
    }
    text
}

/// One test's directory, cache and policy.
pub struct World {
    pub dir: tempfile::TempDir,
    pub images: LinuxImages,
    pub rules: Vec<ImageRule>,
    pub keys: BTreeMap<PathBuf, Vec<u8>>,
    pub policy: PolicyId,
    pub pull: PullPolicy,
    pub registries: RegistryConfig,
    pub patience: Duration,
}

impl World {
    /// With rules that accept everything unsigned.
    pub fn unsigned() -> Self {
        let mut world = Self::new();
        world.rules = vec![rule("any", Vec::new())];
        world
    }

    /// With one rule that requires one of these keys, files of tests/data/signatures.
    pub fn signed(keys: &[&str]) -> Self {
        let mut world = Self::new();
        world.rules = vec![world.key_rule("signed", keys)];
        world
    }

    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let images = LinuxImages::new(&dir.path().join("cache"), dir.path()).with_worker(Worker::Thread);
        Self {
            dir,
            images,
            rules: Vec::new(),
            keys: BTreeMap::new(),
            policy: PolicyId(Digest::from_bytes([1; 32])),
            pull: PullPolicy::IfNotPresent,
            registries: RegistryConfig::default(),
            patience: Duration::from_secs(20),
        }
    }

    /// A rule with keys, which are read now, as the policy does.
    pub fn key_rule(&mut self, name: &str, keys: &[&str]) -> ImageRule {
        let signers = keys.iter().map(|key| {
            let path = data("signatures").join(key);
            self.keys.insert(path.clone(), std::fs::read(&path).unwrap());
            Signer::Key(path)
        });
        rule(name, signers.collect())
    }

    pub fn fetch(&self, reference: &str) -> Result<Bytecode, ImageError> {
        let reference: Reference = reference.parse().unwrap_or_else(|err| panic!("{reference}: {err}"));
        let rules: Vec<&ImageRule> = self.rules.iter().collect();
        self.images.fetch(&Want {
            reference: &reference,
            pull: self.pull,
            rules: &rules,
            keys: &self.keys,
            policy: self.policy,
            registries: &self.registries,
            deadline: Instant::now() + self.patience,
            tenant: "",
            in_use: InUse::NONE,
        })
    }

    pub fn error(&self, reference: &str) -> (ImageError, String) {
        match self.fetch(reference) {
            Ok(got) => panic!("{reference}: accepted by {} as {:?}", got.rule, got.verdict),
            Err(err) => {
                let text = sentence(&err);
                (err, text)
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A rule for every repository; without signers it accepts unsigned images.
pub fn rule(name: &str, signed_by: Vec<Signer>) -> ImageRule {
    ImageRule {
        name: name.to_owned(),
        repository: RepositoryPattern::parse("**").unwrap(),
        unsigned: signed_by.is_empty(),
        signed_by,
        scope: Scope::Container,
        kernel_signed: Default::default(),
        digests: BTreeSet::new(),
        globals: NameSet::All,
        maps: MapNames::All,
    }
}

/// The tags and manifests of one repository of a fixture store.
pub fn repository(store: &str, name: &str) -> serde_json::Value {
    let repos: serde_json::Value = serde_json::from_slice(&std::fs::read(data(store).join("repos.json")).unwrap()).unwrap();
    repos[name].clone()
}

/// A layout directory of one repository of a fixture store: every tag becomes a name.
pub fn layout_of(store: &str, repo: &str, to: &Path) {
    let mut layout = LayoutBuilder::new(to);
    let repository = repository(store, repo);
    for blob in std::fs::read_dir(data(store).join("blobs/sha256")).unwrap() {
        layout.blob(&std::fs::read(blob.unwrap().path()).unwrap());
    }
    for (tag, digest) in repository["tags"].as_object().unwrap() {
        layout.entry(digest.as_str().unwrap(), Some(tag));
    }
    layout.write();
}

/// Builds layouts piece by piece.
pub struct LayoutBuilder {
    root: PathBuf,
    pub entries: Vec<serde_json::Value>,
}

impl LayoutBuilder {
    pub fn new(root: &Path) -> Self {
        std::fs::create_dir_all(root.join("blobs/sha256")).unwrap();
        for dir in [root.to_owned(), root.join("blobs"), root.join("blobs/sha256")] {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { root: root.to_owned(), entries: Vec::new() }
    }

    pub fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = digest_of(bytes);
        write(&self.root.join("blobs/sha256").join(digest.hex()), bytes);
        digest
    }

    pub fn json(&self, value: &serde_json::Value) -> Digest {
        self.blob(value.to_string().as_bytes())
    }

    pub fn entry(&mut self, digest: &str, name: Option<&str>) {
        let mut entry = serde_json::json!({"digest": digest, "size": 1});
        if let Some(name) = name {
            entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        }
        self.entries.push(entry);
    }

    /// An artifact manifest around these layers: media type, bytes, annotations.
    pub fn artifact(&self, layers: &[(&str, &[u8], serde_json::Value)]) -> serde_json::Value {
        let layers: Vec<_> = layers
            .iter()
            .map(|(kind, bytes, annotations)| {
                serde_json::json!({"mediaType": kind, "digest": self.blob(bytes), "size": bytes.len(), "annotations": annotations})
            })
            .collect();
        serde_json::json!({"schemaVersion": 2, "layers": layers})
    }

    pub fn write(&self) {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": self.entries});
        write(&self.root.join("index.json"), index.to_string().as_bytes());
        write(&self.root.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
    }
}

/// Writes a file that other users cannot write, regardless of the umask.
pub fn write(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}
