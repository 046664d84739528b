//! A referrers API in front of Debian's docker-registry, which has none; all other requests are forwarded.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};

use crate::harness;
use crate::support::docker_registry::DockerRegistry;

/// A registry with the API; runs until dropped.
#[derive(Debug)]
pub struct WithReferrers {
    host: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _behind: DockerRegistry,
}

struct Proxy {
    behind: String,
    data: PathBuf,
}

impl WithReferrers {
    /// Starts both.
    pub fn start(dir: &Path) -> Self {
        let behind = DockerRegistry::start(dir);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|e| harness!("find a port: {e}"));
        let host = listener.local_addr().unwrap_or_else(|e| harness!("find the port: {e}")).to_string();
        let proxy = Arc::new(Proxy { behind: behind.host().to_owned(), data: dir.join("data/docker/registry/v2") });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let proxy = proxy.clone();
                // A broken connection is the client's to report.
                thread::spawn(move || drop(proxy.serve(client)));
            }
        });
        Self { host, stop, thread: Some(thread), _behind: behind }
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl Drop for WithReferrers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(&self.host));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// The head of a request or a response, with header names in lower case.
struct Head {
    first: String,
    fields: BTreeMap<String, String>,
}

impl Head {
    fn read(from: &mut impl BufRead) -> std::io::Result<Self> {
        let mut line = || -> std::io::Result<String> {
            let mut line = String::new();
            from.read_line(&mut line)?;
            Ok(line.trim_end().to_owned())
        };
        let mut head = Self { first: line()?, fields: BTreeMap::new() };
        loop {
            let line = line()?;
            let Some((name, value)) = line.split_once(':') else { return Ok(head) };
            head.fields.insert(name.to_lowercase(), value.trim().to_owned());
        }
    }

    fn text(&self) -> String {
        let fields: String = self.fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{}\r\n{fields}\r\n", self.first)
    }
}

impl Proxy {
    /// Serves one request of a connection, which is closed afterwards.
    fn serve(&self, client: TcpStream) -> std::io::Result<()> {
        let mut from = BufReader::new(client.try_clone()?);
        let mut to = client;
        let mut head = Head::read(&mut from)?;
        let target = head.first.split(' ').nth(1).unwrap_or_default().to_owned();
        if let Some((repository, digest)) = target.strip_prefix("/v2/").and_then(|rest| rest.split_once("/referrers/")) {
            let digest = digest.split('?').next().unwrap_or_default();
            let index = json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": self.referrers(repository, digest),
            });
            let index = index.to_string();
            let kind = "application/vnd.oci.image.index.v1+json";
            return write!(
                to,
                "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{index}",
                index.len()
            );
        }
        let mut body = Vec::new();
        if head.first.starts_with("PUT ") && target.contains("/manifests/") {
            let length = head.fields.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            from.by_ref().take(length).read_to_end(&mut body)?;
        }
        head.fields.insert("connection".into(), "close".into());
        let mut behind = TcpStream::connect(&self.behind)?;
        behind.write_all(head.text().as_bytes())?;
        behind.write_all(&body)?;
        let mut up = behind.try_clone()?;
        thread::spawn(move || drop(std::io::copy(&mut from, &mut up)));
        let mut answer = BufReader::new(behind);
        let mut head = Head::read(&mut answer)?;
        let manifest: Value = serde_json::from_slice(&body).unwrap_or_default();
        if let Some(subject) = manifest["subject"]["digest"].as_str() {
            head.fields.insert("oci-subject".into(), subject.to_owned());
        }
        to.write_all(head.text().as_bytes())?;
        std::io::copy(&mut answer, &mut to)?;
        to.shutdown(std::net::Shutdown::Both)
    }

    /// The manifests of a repository that refer to a digest, from the registry's files.
    fn referrers(&self, repository: &str, digest: &str) -> Vec<Value> {
        let revisions = self.data.join("repositories").join(repository).join("_manifests/revisions/sha256");
        let entries = fs::read_dir(revisions).into_iter().flatten().flatten();
        let descriptor = |hex: String| -> Option<Value> {
            let bytes = fs::read(self.data.join("blobs/sha256").join(hex.get(..2)?).join(&hex).join("data")).ok()?;
            let manifest: Value = serde_json::from_slice(&bytes).ok()?;
            (manifest["subject"]["digest"] == digest).then(|| {
                json!({
                    "mediaType": manifest["mediaType"],
                    "digest": format!("sha256:{hex}"),
                    "size": bytes.len(),
                    "artifactType": manifest["artifactType"],
                    "annotations": manifest["annotations"],
                })
            })
        };
        entries.filter_map(|entry| descriptor(entry.file_name().to_string_lossy().into_owned())).collect()
    }
}
