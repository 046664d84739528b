//! The image of every pod in these tests: a static busybox that sleeps, as sandbox and as workload.

use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::harness;
use crate::support::bundle::busybox;

/// The image's name.
pub const IMAGE: &str = "localhost/busybox:test";

const APPLETS: &[&str] = &["sh", "cat", "echo", "false", "ls", "nc", "readlink", "sleep", "stat", "true"];

/// Writes the image as an OCI archive, for `ctr images import`.
pub fn write_archive(path: &Path) {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(archive);
    std::fs::write(path, bytes).unwrap_or_else(|e| harness!("write {}: {e}", path.display()));
}

fn archive() -> Vec<u8> {
    let layer = layer();
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let config = config.to_string().into_bytes();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let layer = gzip.write_all(&layer).and_then(|()| gzip.finish()).unwrap_or_else(|e| harness!("compress a layer: {e}"));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar+gzip", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut named = descriptor("manifest.v1+json", &manifest);
    named["annotations"] = json!({ "io.containerd.image.name": IMAGE });
    let index = json!({ "schemaVersion": 2, "manifests": [named] });
    let mut archive = Archive::default();
    archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    for blob in [&config, &layer, &manifest] {
        archive.file(&format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob);
    }
    archive.file("index.json", 0o644, index.to_string().as_bytes());
    archive.end()
}

fn layer() -> Vec<u8> {
    let mut layer = Archive::default();
    for directory in ["bin", "dev", "etc", "mnt", "proc", "run", "sys", "tmp"] {
        layer.entry(directory, EntryType::Directory, 0o755, None, &[]);
    }
    let busybox = std::fs::read(busybox()).unwrap_or_else(|e| harness!("read busybox: {e}"));
    layer.file("bin/busybox", 0o755, &busybox);
    for applet in APPLETS {
        layer.entry(&format!("bin/{applet}"), EntryType::Symlink, 0o777, Some("busybox"), &[]);
    }
    layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    layer.end()
}

struct Archive(Builder<Vec<u8>>);

impl Default for Archive {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl Archive {
    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        self.entry(name, EntryType::Regular, mode, None, bytes);
    }

    fn entry(&mut self, name: &str, kind: EntryType, mode: u32, link: Option<&str>, bytes: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        let added = match link {
            Some(link) => self.0.append_link(&mut header, name, link),
            None => self.0.append_data(&mut header, name, bytes),
        };
        added.unwrap_or_else(|e| harness!("put {name} into an archive: {e}"));
    }

    fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap_or_else(|e| harness!("finish an archive: {e}"))
    }
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(bytes), "size": bytes.len() })
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
