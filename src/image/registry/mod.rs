//! The child that talks to registries: all network traffic, TLS, DNS and HTTP happens here, without privileges.
//!
//! The parent requests several items in one message and gets each one in sealed memory, or an error; uploads are passed
//! in sealed memory too. Nothing that this child returns is trusted: the parent hashes and verifies it.

mod auth;
mod challenge;
pub(crate) mod error;
mod fault;
mod http;
mod limits;
pub(crate) mod protocol;
mod read;
mod redirects;
mod upload;

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::image::access::Access;
use crate::image::error::RemoteError;
use crate::image::registry::http::RegistryClient;
use crate::image::registry::protocol::{FetchAnswer, FetchMessage, FetchReply, MAX_MESSAGE, Put, RegistryItem};
use crate::image::{MAX_MANIFEST, MAX_OBJECT};
use crate::sys::SysError;
use crate::sys::child::{ChildLimits, confine, parent_socket};
use crate::sys::error::chain;
use crate::sys::fsutil::{read_sealed, sealed_memfd};
use crate::sys::sandbox;
use crate::sys::sock::{Socket, SocketMessage};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Resource limits of the child. Most of the address space is reserved and never touched: thread arenas, TLS tables. A
/// body of [`MAX_OBJECT`] that grows while it arrives takes three times its size.
const LIMITS: ChildLimits =
    ChildLimits { address_space: 1 << 30, data: 192 << 20, cpu: 300, files: 64, file_size: (MAX_OBJECT + MAX_MANIFEST) as u64 };

/// Everything that the child may read: the configuration of name resolution, the certificate authorities of the
/// distributions, and the seed of the TLS library.
const READABLE: &[&str] = &[
    "/dev/random",
    "/dev/urandom",
    "/proc/sys/kernel/hostname",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/ssl",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/cert.pem",
    "/etc/pki",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ca-certificates",
    "/usr/lib/ssl",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/pki",
    "/var/lib/ca-certificates",
];

/// The size limit of the certificate authorities of one registry, which may be several files.
const MAX_AUTHORITIES: usize = 4 * MAX_MANIFEST;

/// The limit on concurrent requests, by their maximum sizes in units of [`MAX_MANIFEST`]: one layer, the config and the
/// signature lookups fit at once. Bodies take three times their size while they grow, and [`LIMITS`] leaves room for
/// that.
const ROOM: u32 = 24;
/// The units that a small body takes, so that the number of connections is limited too.
const SMALL: u32 = 2;

/// Main function of the child role `fetch`: confines itself, closes the sandbox, then serves until the parent closes
/// the socket. A child that cannot confine itself answers its first request with the reason, and nothing else.
pub fn child() -> ExitCode {
    let Ok(socket) = parent_socket() else { return ExitCode::FAILURE };
    let confined = confine(&socket, LIMITS).and_then(|()| sandbox::close(&sandbox::with_targets(READABLE)));
    let served = match confined.map(drop) {
        Ok(()) => serve(&socket),
        Err(err) => refuse(&socket, &err),
    };
    // The parent learns from the socket what is wrong; standard error belongs to the parent.
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn refuse(socket: &Socket, err: &SysError) -> Result<(), SysError> {
    // Read first: if the process exits with unread data in its queue, the parent gets a reset before the answer.
    socket.recv("a request", MAX_MESSAGE, None)?;
    let problem = chain(err);
    reply(socket, 0, Err(RemoteError::Unconfined { problem }))
}

/// Answers requests on `socket` until the other end is closed.
///
/// # Errors
/// Only what makes the socket or the runtime unusable; a failed registry request is an answer.
pub fn serve(socket: &Socket) -> Result<(), SysError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SysError::io("start", "the fetch child's runtime"))?;
    let mut client: Option<Arc<RegistryClient>> = None;
    let mut reports = false;
    while let Some(message) = socket.recv("a request", MAX_MESSAGE, None)? {
        let answer = match FetchMessage::from_bytes(&message.bytes) {
            Ok(FetchMessage::Read { wants }) => match &client {
                Some(client) => {
                    runtime.block_on(read(client, wants, socket, reports))?;
                    continue;
                }
                None => Err(nonsense("no repository was opened".to_owned())),
            },
            Ok(FetchMessage::Open { access, patience, progress }) => open(*access, patience, &message).map(|opened| {
                (client, reports) = (Some(Arc::new(opened)), progress);
                None
            }),
            Ok(ask) => runtime.block_on(put(client.as_deref(), ask, &message)),
            Err(problem) => Err(nonsense(problem)),
        };
        reply(socket, 0, answer)?;
    }
    Ok(())
}

type FetchedItem = Result<Option<Vec<u8>>, RemoteError>;

/// Sends the result of one request: bytes, or None for "opened" and "not found".
fn reply(socket: &Socket, nth: usize, got: FetchedItem) -> Result<(), SysError> {
    let (answer, bytes) = match got {
        Ok(Some(bytes)) => (FetchAnswer::Bytes, Some(bytes)),
        Ok(None) => (FetchAnswer::Nothing, None),
        Err(err) => (FetchAnswer::Failed(err), None),
    };
    let memory = bytes.map(|bytes| sealed_memfd("bpfman-hook-fetched", &bytes)).transpose()?;
    let memory = memory.as_ref().map(AsFd::as_fd);
    socket.send(&FetchReply { nth, answer }.to_bytes(), memory.as_slice())
}

/// Reads several items concurrently and replies to each one when it arrives; `reports` says in between how much has.
async fn read(client: &Arc<RegistryClient>, wants: Vec<RegistryItem>, socket: &Socket, reports: bool) -> Result<(), SysError> {
    let room = Arc::new(Semaphore::new(ROOM as usize));
    let mut running = JoinSet::new();
    for (nth, want) in wants.into_iter().enumerate() {
        let (client, room) = (client.clone(), room.clone());
        running.spawn(async move {
            let taken = room.acquire_many_owned(room_for(&want)).await.expect("the semaphore is never closed");
            (nth, client.read(want).await, taken)
        });
    }
    loop {
        let done = match reports {
            true => match tokio::time::timeout(REPORT_EVERY, running.join_next()).await {
                Ok(done) => done,
                Err(_) => {
                    report(socket, client)?;
                    continue;
                }
            },
            false => running.join_next().await,
        };
        let Some(done) = done else { break };
        let (nth, got, taken) = done.map_err(|err| SysError::io("run", "a request")(std::io::Error::other(err)))?;
        reply(socket, nth, got)?;
        // The bytes have been passed to the parent.
        drop(taken);
    }
    Ok(())
}

/// How often the parent learns how much has arrived, if it wants to know.
const REPORT_EVERY: Duration = Duration::from_millis(100);

fn report(socket: &Socket, client: &RegistryClient) -> Result<(), SysError> {
    let [arrived, announced] = [&client.arrived.arrived, &client.arrived.announced].map(|bytes| bytes.load(Ordering::Relaxed));
    socket.send(&FetchReply { nth: 0, answer: FetchAnswer::Progress(arrived, announced) }.to_bytes(), &[])
}

fn room_for(want: &RegistryItem) -> u32 {
    match want {
        RegistryItem::Blob { max, .. } => u32::try_from(max.div_ceil(MAX_MANIFEST)).unwrap_or(ROOM).clamp(SMALL, ROOM),
        RegistryItem::Manifest { .. } | RegistryItem::Referrers { .. } => SMALL,
    }
}

fn nonsense(problem: String) -> RemoteError {
    RemoteError::Nonsense { host: String::new(), what: "a request".into(), problem }
}

/// Sets up the client for the following requests.
fn open(access: Access, patience: u64, message: &SocketMessage) -> Result<RegistryClient, RemoteError> {
    let mut files = message.fds.iter();
    let mut file = |sent: bool, what| {
        let fd = if sent { files.next() } else { None };
        fd.map(|fd| read_sealed(fd, what, MAX_AUTHORITIES)).transpose().map_err(|err| nonsense(err.to_string()))
    };
    let authorities = file(access.authorities, "the certificate authorities")?;
    let identity = file(access.identity, "our certificate")?;
    RegistryClient::new(access, authorities, identity, Instant::now() + Duration::from_millis(patience))
}

/// Uploads the attached bytes.
async fn put(client: Option<&RegistryClient>, ask: FetchMessage, message: &SocketMessage) -> FetchedItem {
    let client = client.ok_or_else(|| nonsense("no repository was opened".to_owned()))?;
    let bytes = message.fds.first().map(|fd| read_sealed(fd, "the upload", MAX_OBJECT)).transpose();
    let bytes = bytes.map_err(|err| nonsense(err.to_string()))?;
    let bytes = bytes.ok_or_else(|| nonsense("no bytes were attached".to_owned()))?;
    let put: Put = match ask {
        FetchMessage::PutBlob { digest, from } => client.put_blob(&digest, from.as_deref(), bytes).await?,
        FetchMessage::PutManifest { reference, media_type } => client.put_manifest(&reference, &media_type, bytes).await?,
        FetchMessage::Open { .. } | FetchMessage::Read { .. } => return Err(nonsense("it is not an upload".to_owned())),
    };
    Ok(Some(serde_json::to_vec(&put).expect("two booleans are JSON")))
}
