//! A recording proxy between the plugin and containerd, through which a test can change or insert messages.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use prost::Message;

use crate::harness;

/// The connection on which the runtime calls the plugin, and the one on which the plugin calls the runtime.
pub const PLUGIN: u32 = 1;
pub const RUNTIME: u32 = 2;

/// ttrpc's message types.
pub const REQUEST: u8 = 1;
pub const RESPONSE: u8 = 2;

/// The Go side rejects longer frames.
const FRAME_MAX: usize = 4096;

/// ttrpc's envelopes.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    #[prost(string, tag = "1")]
    pub service: String,
    #[prost(string, tag = "2")]
    pub method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    #[prost(int64, tag = "4")]
    pub timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Response {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

/// One message of ttrpc.
#[derive(Debug, Clone)]
pub struct Said {
    pub by_plugin: bool,
    pub connection: u32,
    pub stream: u32,
    pub kind: u8,
    pub body: Vec<u8>,
}

impl Said {
    /// Decodes it as a request; the method is empty if it is not a request.
    pub fn request(&self) -> Request {
        if self.kind == REQUEST { Request::decode(&*self.body).unwrap_or_default() } else { Request::default() }
    }

    fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.body.len()).unwrap().to_be_bytes();
        [&length[..], &self.stream.to_be_bytes(), &[self.kind, 0], &self.body].concat()
    }
}

/// The recorded messages.
#[derive(Debug, Default)]
pub struct Heard {
    pub said: Vec<Said>,
    /// The longest frame payload that the plugin sent.
    pub longest: usize,
}

/// Changes a message that the runtime sends.
pub type Change = fn(&mut Request);

/// The proxy. It runs until both ends have disconnected.
pub struct Proxy(Arc<Shared>);

struct Shared {
    heard: Mutex<Heard>,
    change: Change,
    plugin: Mutex<Option<UnixStream>>,
}

impl Proxy {
    /// Listens for the plugin on one socket, and connects to the runtime on the other.
    pub fn start(listen: &Path, runtime: &Path, change: Change) -> Self {
        let listener = UnixListener::bind(listen).unwrap_or_else(|e| harness!("listen on {}: {e}", listen.display()));
        let shared = Arc::new(Shared { heard: Mutex::default(), change, plugin: Mutex::default() });
        let (kept, runtime) = (Arc::clone(&shared), runtime.to_owned());
        thread::spawn(move || {
            for plugin in listener.incoming().flatten() {
                // If the runtime is down, closing the connection tells the plugin so.
                let Ok(runtime) = UnixStream::connect(&runtime) else { continue };
                *shared.plugin.lock().unwrap() = plugin.try_clone().ok();
                for (from, to, by_plugin) in
                    [(plugin.try_clone(), runtime.try_clone(), true), (runtime.try_clone(), plugin.try_clone(), false)]
                {
                    let (from, to, shared) = (from.unwrap(), to.unwrap(), Arc::clone(&shared));
                    thread::spawn(move || {
                        let _end = shared.carry(&from, &to, by_plugin);
                        let _both = [&from, &to].map(|end| end.shutdown(std::net::Shutdown::Both));
                    });
                }
            }
        });
        Self(kept)
    }

    /// The messages recorded so far.
    pub fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.heard.lock().unwrap()
    }

    /// Calls the plugin in place of the runtime; the response is recorded, and the runtime does not see it.
    pub fn call(&self, stream: u32, method: &str, payload: Vec<u8>) {
        assert!(stream >= OURS && stream % 2 == 1);
        let request =
            Request { service: "nri.pkg.api.v1alpha1.Plugin".to_owned(), method: method.to_owned(), payload, timeout: 0 };
        let said = Said { by_plugin: false, connection: PLUGIN, stream, kind: REQUEST, body: request.encode_to_vec() };
        let plugin = self.0.plugin.lock().unwrap();
        let plugin = plugin.as_ref().expect("the plugin is connected");
        write_frames(plugin, PLUGIN, &said.bytes()).unwrap();
    }
}

/// Streams from here on belong to the test.
pub const OURS: u32 = 1_000_001;

impl Shared {
    /// Forwards messages from one end to the other, until either disconnects.
    fn carry(&self, mut from: &UnixStream, to: &UnixStream, by_plugin: bool) -> io::Result<()> {
        let mut parts = [Vec::new(), Vec::new()];
        loop {
            let mut header = [0; 8];
            from.read_exact(&mut header)?;
            let connection = u32::from_be_bytes(header[..4].try_into().unwrap());
            let mut payload = vec![0; u32::from_be_bytes(header[4..].try_into().unwrap()) as usize];
            from.read_exact(&mut payload)?;
            if by_plugin {
                let mut heard = self.heard.lock().unwrap();
                heard.longest = heard.longest.max(payload.len());
            }
            let part: &mut Vec<u8> = &mut parts[usize::from(connection == RUNTIME)];
            part.extend(payload);
            while let Some(mut said) = message(part, by_plugin, connection) {
                if !by_plugin && said.kind == REQUEST {
                    let mut request = said.request();
                    (self.change)(&mut request);
                    said.body = request.encode_to_vec();
                }
                let bytes = said.bytes();
                let foreign = said.stream < OURS;
                self.heard.lock().unwrap().said.push(said);
                if foreign {
                    let _one_writer = self.plugin.lock().unwrap();
                    write_frames(to, connection, &bytes)?;
                }
            }
        }
    }
}

/// Takes the first message from the buffer, if it is complete.
fn message(part: &mut Vec<u8>, by_plugin: bool, connection: u32) -> Option<Said> {
    let length = u32::from_be_bytes(part.get(..4)?.try_into().unwrap()) as usize;
    let stream = u32::from_be_bytes(part.get(4..8)?.try_into().unwrap());
    let kind = *part.get(8)?;
    let body = part.get(10..10 + length)?.to_vec();
    part.drain(..10 + length);
    Some(Said { by_plugin, connection, stream, kind, body })
}

fn write_frames(mut to: &UnixStream, connection: u32, bytes: &[u8]) -> io::Result<()> {
    for payload in bytes.chunks(FRAME_MAX) {
        let length = u32::try_from(payload.len()).unwrap();
        to.write_all(&[&connection.to_be_bytes()[..], &length.to_be_bytes(), payload].concat())?;
    }
    Ok(())
}
