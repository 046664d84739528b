//! Bytecode images in OCI layouts, signed like cosign 2 signs them: openssl and sixty lines, no registry.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use serde_json::{Value, json};
use sha2::Digest;

use super::process::tool;
use crate::harness;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// The contents of one bytecode image.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Files of the only layer: name and bytes.
    pub files: Vec<(String, Vec<u8>)>,
    /// Function to type, for the label `io.ebpf.programs`.
    pub programs: BTreeMap<String, String>,
    /// Name to type, for the label `io.ebpf.maps`.
    pub maps: BTreeMap<String, String>,
    /// GOARCH.
    pub architecture: String,
}

impl Contents {
    /// An image of one object for this machine.
    pub fn object(bytes: &[u8]) -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            files: vec![("program.o".to_owned(), bytes.to_vec())],
            programs: BTreeMap::new(),
            maps: BTreeMap::new(),
            architecture: architecture.to_owned(),
        }
    }
}

/// The digests of an image's blobs, so that a test can corrupt each of them.
#[derive(Debug, Clone)]
pub struct Digests {
    pub manifest: String,
    pub config: String,
    pub layer: String,
}

/// The digests of a signature's blobs.
#[derive(Debug, Clone)]
pub struct SignatureDigests {
    pub manifest: String,
    pub payload: String,
}

/// An OCI image layout to which images are added.
#[derive(Debug)]
pub struct Layout {
    pub dir: PathBuf,
    manifests: Vec<Value>,
}

impl Layout {
    /// An empty layout in a new directory.
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap_or_else(|e| harness!("create {}: {e}", dir.display()));
        put(&dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
        let layout = Self { dir: dir.to_owned(), manifests: Vec::new() };
        layout.write_index();
        layout
    }

    /// The reference of a tag, as written in an annotation.
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    /// Adds an image under a tag.
    pub fn add(&mut self, tag: &str, contents: &Contents) -> Digests {
        let digests = self.put_image(contents);
        self.name(MANIFEST, &digests.manifest, tag);
        digests
    }

    /// Adds a multi-architecture image under a tag; returns the index's digest, which is the one to sign.
    pub fn add_index(&mut self, tag: &str, images: &[Contents]) -> String {
        let mut manifests = Vec::new();
        for contents in images {
            let digests = self.put_image(contents);
            let mut entry = self.descriptor(MANIFEST, &digests.manifest);
            entry["platform"] = json!({ "os": "linux", "architecture": contents.architecture });
            manifests.push(entry);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let digest = self.put_blob(index.to_string().as_bytes());
        self.name(INDEX, &digest, tag);
        digest
    }

    fn put_image(&self, contents: &Contents) -> Digests {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in &contents.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes.as_slice()).unwrap_or_else(|e| harness!("write a layer: {e}"));
        }
        let tar = tar.into_inner().unwrap_or_else(|e| harness!("finish a layer: {e}"));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        let layer = gzip.write_all(&tar).and_then(|()| gzip.finish()).unwrap_or_else(|e| harness!("compress a layer: {e}"));
        let layer_digest = self.put_blob(&layer);
        let config = json!({
            "architecture": contents.architecture,
            "os": "linux",
            "config": { "Labels": {
                "io.ebpf.programs": json!(contents.programs).to_string(),
                "io.ebpf.maps": json!(contents.maps).to_string(),
            } },
            "rootfs": { "type": "layers", "diff_ids": [digest_of(&tar)] },
        });
        let config_digest = self.put_blob(config.to_string().as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.descriptor(CONFIG, &config_digest),
            "layers": [self.descriptor(LAYER, &layer_digest)],
        });
        let manifest = self.put_blob(manifest.to_string().as_bytes());
        Digests { manifest, config: config_digest, layer: layer_digest }
    }

    /// Signs a digest, as `cosign sign --key` of version 2 does and `cosign save` stores it.
    pub fn sign(&mut self, digest: &str, key: &Key) -> SignatureDigests {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": "" },
                "image": { "docker-manifest-digest": digest },
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        let payload = payload.to_string();
        let signature = base64::engine::general_purpose::STANDARD.encode(key.sign(payload.as_bytes()));
        let payload_digest = self.put_blob(payload.as_bytes());
        let config =
            json!({ "architecture": "", "os": "", "config": {}, "rootfs": { "type": "layers", "diff_ids": [payload_digest] } });
        let config = self.put_blob(config.to_string().as_bytes());
        let mut layer = self.descriptor(SIMPLE_SIGNING, &payload_digest);
        layer["annotations"] = json!({ "dev.cosignproject.cosign/signature": signature });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.descriptor(CONFIG, &config),
            "layers": [layer],
        });
        let manifest = self.put_blob(manifest.to_string().as_bytes());
        self.name(MANIFEST, &manifest, &format!("{}.sig", digest.replace(':', "-")));
        SignatureDigests { manifest, payload: payload_digest }
    }

    /// Changes one byte in the middle of a blob.
    pub fn spoil(&self, digest: &str) {
        let path = self.blob(digest);
        let mut bytes = fs::read(&path).unwrap_or_else(|e| harness!("read {}: {e}", path.display()));
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        put(&path, &bytes);
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    fn put_blob(&self, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        put(&self.blob(&digest), bytes);
        digest
    }

    fn descriptor(&self, media_type: &str, digest: &str) -> Value {
        let size = fs::metadata(self.blob(digest)).unwrap_or_else(|e| harness!("size of {digest}: {e}")).len();
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }

    fn name(&mut self, media_type: &str, digest: &str, tag: &str) {
        let mut entry = self.descriptor(media_type, digest);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.manifests.push(entry);
        self.write_index();
    }

    fn write_index(&self) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests });
        put(&self.dir.join("index.json"), index.to_string().as_bytes());
    }
}

/// A P-256 key pair made by openssl.
#[derive(Debug)]
pub struct Key {
    secret: PathBuf,
    /// The public key, PEM.
    pub public: PathBuf,
}

impl Key {
    /// Makes a pair in a directory.
    pub fn new(dir: &Path, name: &str) -> Self {
        let key = Self { secret: dir.join(format!("{name}.key")), public: dir.join(format!("{name}.pub")) };
        tool(Command::new("openssl").args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"]).arg(&key.secret));
        tool(Command::new("openssl").args(["ec", "-pubout", "-in"]).arg(&key.secret).arg("-out").arg(&key.public));
        key
    }

    /// The DER signature over some bytes.
    fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        let mut command = Command::new("openssl");
        command.args(["dgst", "-sha256", "-sign"]).arg(&self.secret);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|e| harness!("start openssl: {e}"));
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        stdin.write_all(bytes).unwrap_or_else(|e| harness!("write to openssl: {e}"));
        drop(stdin);
        let output = child.wait_with_output().unwrap_or_else(|e| harness!("wait for openssl: {e}"));
        if !output.status.success() {
            harness!("openssl dgst ended with {}", output.status);
        }
        output.stdout
    }
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|e| harness!("write {}: {e}", path.display()));
}
