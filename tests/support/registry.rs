//! A read-only registry over plain HTTP on its own loopback port, served from a fixture store by threads that end with
//! it.
//!
//! A store is a directory with `repos.json` (`{"repo": {"tags": {tag: digest}, "manifests": [digest, …]}}`) and
//! `blobs/sha256/<hex>`. Deviations of real registries are implemented by hooks: see [`Behaviour`].

#![allow(dead_code, reason = "each suite that serves images uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The response to one request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// The registry's normal response.
    Normal,
    /// This status with an error body.
    Status(u16),
    /// 200 with this body.
    Body(Vec<u8>),
    /// 200 and a header that announces this length, then this body, then the end.
    Announce(u64, Vec<u8>),
    /// This status, these headers and an empty body.
    Headers(u16, Vec<(String, String)>),
    /// No response for a long time.
    Stall,
    /// 200 and a body that arrives slowly, byte by byte.
    Drip(Vec<u8>),
    /// The connection is closed.
    Hangup,
}

/// A connection, encrypted or not.
trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

type Hook = Box<dyn Fn(&Request) -> Reply + Send + Sync>;

/// One request as seen by hooks.
#[derive(Debug, Clone)]
pub struct Request {
    /// Path and query.
    pub target: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
}

/// Differences from docker-registry 2.8, which has no referrers API.
#[derive(Default)]
pub struct Behaviour {
    /// Enables the referrers API, with this many entries per page, and hides the fallback tags.
    pub native: Option<usize>,
    /// Called first for every request.
    pub hook: Option<Hook>,
}

/// A running registry.
pub struct Registry {
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Store {
    root: PathBuf,
    repos: BTreeMap<String, Value>,
    behaviour: Behaviour,
    log: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Registry {
    /// Over plain HTTP.
    pub fn start(store: &Path, behaviour: Behaviour) -> Self {
        Self::serve("127.0.0.1:0", store, behaviour, None)
    }

    /// Over TLS, with the certificate of tests/data/tls, which is for 127.0.0.1 and localhost.
    pub fn start_tls(store: &Path, behaviour: Behaviour) -> Self {
        Self::start_tls_at("127.0.0.1:0", store, behaviour)
    }

    /// The same on another loopback address.
    pub fn start_tls_at(address: &str, store: &Path, behaviour: Behaviour) -> Self {
        Self::serve(address, store, behaviour, Some(tls(false)))
    }

    /// The same for clients that present a certificate of the CA of tests/data/tls.
    pub fn start_mutual(store: &Path, behaviour: Behaviour) -> Self {
        Self::serve("127.0.0.1:0", store, behaviour, Some(tls(true)))
    }

    fn serve(address: &str, store: &Path, behaviour: Behaviour, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind(address).expect("a loopback port");
        let address = listener.local_addr().expect("the port");
        let log = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let repos = std::fs::read(store.join("repos.json")).expect("repos.json");
        let store = Arc::new(Store {
            root: store.to_owned(),
            repos: serde_json::from_slice(&repos).expect("repos.json is JSON"),
            behaviour,
            log: log.clone(),
            stop: stop.clone(),
        });
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if store.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), store, tls) = (stream, store.clone(), tls.clone()) else { continue };
                let mut first = [0];
                std::thread::spawn(move || match tls {
                    None => store.connection(Box::new(stream)),
                    // What Go's server does with plain HTTP on a TLS port.
                    Some(_) if stream.peek(&mut first).is_ok_and(|read| read == 1) && first[0] != 0x16 => {
                        let _ = read_head(&mut BufReader::new(&stream));
                        let said = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
                        let _ = (&stream).write_all(said);
                    }
                    Some(config) => {
                        let session = rustls::ServerConnection::new(config).expect("the configuration is complete");
                        store.connection(Box::new(rustls::StreamOwned::new(session, stream)));
                    }
                });
            }
        });
        Self { address, log, stop, thread: Some(thread) }
    }

    /// `127.0.0.1:port`
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The targets of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.log.lock().expect("no panic holds it").clone()
    }

    /// Forgets the requests so far.
    pub fn clear(&self) {
        self.log.lock().expect("no panic holds it").clear();
    }
}

fn tls(mutual: bool) -> Arc<rustls::ServerConfig> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls");
    let chain = CertificateDer::pem_file_iter(data.join("server.pem")).expect("server.pem");
    let chain = chain.collect::<Result<_, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(data.join("server.key")).expect("server.key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has both versions");
    let builder = match mutual {
        false => builder.with_no_client_auth(),
        true => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(data.join("ca.pem")).expect("ca.pem")).expect("an authority");
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().expect("it has an authority"))
        }
    };
    Arc::new(builder.with_single_cert(chain, key).expect("key and certificate belong together"))
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Store {
    fn connection(&self, stream: Box<dyn Stream>) {
        let mut reader = BufReader::new(stream);
        // A TLS record in place of a request: Go's server answers like this, and most registries are written in Go.
        if reader.fill_buf().is_ok_and(|bytes| bytes.first() == Some(&0x16)) {
            let _ = reader
                .get_mut()
                .write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n");
            return;
        }
        while let Some(request) = read_request(&mut reader) {
            self.log.lock().expect("no panic holds it").push(request.target.clone());
            let reply = self.behaviour.hook.as_ref().map_or(Reply::Normal, |hook| hook(&request));
            let out = reader.get_mut();
            let written = match reply {
                Reply::Normal => self.normal(out, &request.target),
                Reply::Status(status) => respond(out, status, &error(status), "application/json", &[]),
                Reply::Body(body) => respond(out, 200, &body, "application/octet-stream", &[]),
                Reply::Announce(length, body) => {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                    let _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(&body));
                    return;
                }
                Reply::Headers(status, headers) => respond(out, status, b"", "text/plain", &headers),
                Reply::Stall => {
                    // Until the client gives up or the test ends.
                    let _ = reader.read(&mut [0]);
                    return;
                }
                Reply::Drip(body) => {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    let _ = out.write_all(head.as_bytes()).and_then(|()| out.flush());
                    for byte in body {
                        if self.stop.load(Ordering::SeqCst) || out.write_all(&[byte]).and_then(|()| out.flush()).is_err() {
                            return;
                        }
                        std::thread::sleep(std::time::Duration::from_millis(100));
                    }
                    return;
                }
                Reply::Hangup => return,
            };
            if written.is_err() {
                return;
            }
        }
    }

    fn normal(&self, out: &mut Box<dyn Stream>, target: &str) -> std::io::Result<()> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let missing = |out: &mut Box<dyn Stream>| respond(out, 404, &error(404), "application/json", &[]);
        let parts = path.strip_prefix("/v2/").and_then(|rest| {
            ["manifests", "blobs", "referrers"].iter().find_map(|kind| {
                let (repo, name) = rest.split_once(&format!("/{kind}/"))?;
                Some((repo, *kind, name))
            })
        });
        let Some((repo_name, kind, name)) = parts else { return missing(out) };
        let Some(repo) = self.repos.get(repo_name) else { return missing(out) };
        let known = |digest: &str| repo["manifests"].as_array().is_some_and(|all| all.iter().any(|d| d == digest));
        match kind {
            "blobs" => match self.blob(name) {
                Some(bytes) => respond(out, 200, &bytes, "application/octet-stream", &[]),
                None => missing(out),
            },
            "referrers" => {
                let Some(page) = self.behaviour.native else {
                    return respond(out, 404, b"404 page not found\n", "text/plain", &[]);
                };
                let all = self.referrers(repo, name);
                let from: usize = query.strip_prefix("from=").and_then(|n| n.parse().ok()).unwrap_or(0);
                let entries: Vec<_> = all.iter().skip(from).take(page).collect();
                let body = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
                let next = (from + page < all.len())
                    .then(|| ("Link".to_owned(), format!("<{path}?from={}>; rel=\"next\"", from + page)));
                respond(out, 200, body.as_bytes(), INDEX, next.as_slice())
            }
            _ => {
                let hidden = self.behaviour.native.is_some() && name.len() == 71 && name.starts_with("sha256-");
                let digest = if name.starts_with("sha256:") { Some(name) } else { repo["tags"][name].as_str() };
                match digest.filter(|digest| !hidden && known(digest)).and_then(|digest| self.blob(digest)) {
                    Some(bytes) => {
                        let parsed: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                        let kind = parsed["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
                        respond(out, 200, &bytes, kind, &[])
                    }
                    None => missing(out),
                }
            }
        }
    }

    fn referrers(&self, repo: &Value, subject: &str) -> Vec<Value> {
        let manifests = repo["manifests"].as_array().into_iter().flatten().filter_map(Value::as_str);
        manifests
            .filter_map(|digest| {
                let bytes = self.blob(digest)?;
                let manifest: Value = serde_json::from_slice(&bytes).ok()?;
                (manifest["subject"]["digest"] == subject)
                    .then(|| json!({"mediaType": manifest["mediaType"], "digest": digest, "size": bytes.len()}))
            })
            .collect()
    }

    fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        std::fs::read(self.root.join("blobs/sha256").join(digest.strip_prefix("sha256:")?)).ok()
    }
}

/// The lines of a request's head.
fn read_head(reader: &mut impl BufRead) -> Vec<String> {
    reader.lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect()
}

fn read_request(reader: &mut BufReader<Box<dyn Stream>>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let target = line.split(' ').nth(1)?.to_owned();
    let mut authorization = None;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|n| *n > 0)?;
        match header.trim_end().split_once(':') {
            None => return Some(Request { target, authorization }),
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => authorization = Some(value.trim().to_owned()),
            Some(_) => {}
        }
    }
}

fn error(status: u16) -> Vec<u8> {
    let code = match status {
        401 => "UNAUTHORIZED",
        403 => "DENIED",
        404 => "MANIFEST_UNKNOWN",
        429 => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    json!({"errors": [{"code": code, "message": "test registry"}]}).to_string().into_bytes()
}

fn respond(
    out: &mut Box<dyn Stream>,
    status: u16,
    body: &[u8],
    kind: &str,
    headers: &[(String, String)],
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    out.write_all(format!("{head}\r\n").as_bytes())?;
    out.write_all(body)?;
    out.flush()
}
