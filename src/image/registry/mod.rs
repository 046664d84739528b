//! The child that speaks to registries: all network traffic, TLS, DNS and HTTP happens here, without any privilege.
//!
//! The parent asks for some things at once and gets the bytes of each in sealed memory, or a sentence; what is to be uploaded comes in
//! sealed memory too. Nothing that comes out of here is trusted: the parent hashes and verifies.

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

/// What the child may use. Address space is mostly reserved, never touched: thread arenas, TLS tables. A body of
/// [`MAX_OBJECT`] that grows while it arrives takes three times its size.
const LIMITS: ChildLimits =
    ChildLimits { address_space: 1 << 30, data: 192 << 20, cpu: 300, files: 64, file_size: (MAX_OBJECT + MAX_MANIFEST) as u64 };

/// All that the child may read: how names are resolved, where distributions keep the certificate authorities, and what
/// seeds the TLS library.
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

/// The most that the certificate authorities of one registry may take: several files of them.
const MAX_AUTHORITIES: usize = 4 * MAX_MANIFEST;

/// What may be on its way at once, by the most that it can take, in units of [`MAX_MANIFEST`]: a layer beside the config and the places of
/// signatures. While they grow, bodies take three times their size, and [`LIMITS`] leaves room for that.
const ROOM: u32 = 24;
/// What a small body takes of it: so that it is also a limit of connections.
const SMALL: u32 = 2;

/// The whole life of the child role `fetch`: confine, close the sandbox, then serve until the parent closes the socket. A child that cannot
/// confine itself answers its first question with the reason, and nothing else.
pub fn child() -> ExitCode {
    let Ok(socket) = parent_socket() else { return ExitCode::FAILURE };
    let confined = confine(&socket, LIMITS).and_then(|()| sandbox::close(&sandbox::with_targets(READABLE)));
    let served = match confined.map(drop) {
        Ok(()) => serve(&socket),
        Err(err) => refuse(&socket, &err),
    };
    // The parent sees from the socket what is wrong, and standard error is its own.
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn refuse(socket: &Socket, err: &SysError) -> Result<(), SysError> {
    // Read first: an end with something unread in its queue would reach the parent as a reset, before the answer.
    socket.recv("a question", MAX_MESSAGE, None)?;
    let problem = chain(err);
    reply(socket, 0, Err(RemoteError::Unconfined { problem }))
}

/// Answers questions on `socket` until its other end is closed.
///
/// # Errors
/// Only what makes the socket or the runtime unusable; whatever goes wrong with a registry is an answer.
pub fn serve(socket: &Socket) -> Result<(), SysError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SysError::io("start", "the fetch child's runtime"))?;
    let mut client: Option<Arc<RegistryClient>> = None;
    while let Some(message) = socket.recv("a question", MAX_MESSAGE, None)? {
        let answer = match FetchMessage::from_bytes(&message.bytes) {
            Ok(FetchMessage::Read { wants }) => match &client {
                Some(client) => {
                    runtime.block_on(read(client, wants, socket))?;
                    continue;
                }
                None => Err(nonsense("nothing was opened".to_owned())),
            },
            Ok(FetchMessage::Open { access, patience }) => open(*access, patience, &message).map(|opened| {
                client = Some(Arc::new(opened));
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

/// Says what came of one thing: bytes, or None for "opened" and for "there is none".
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

/// Reads several things at once and replies to each when it is there.
async fn read(client: &Arc<RegistryClient>, wants: Vec<RegistryItem>, socket: &Socket) -> Result<(), SysError> {
    let room = Arc::new(Semaphore::new(ROOM as usize));
    let mut running = JoinSet::new();
    for (nth, want) in wants.into_iter().enumerate() {
        let (client, room) = (client.clone(), room.clone());
        running.spawn(async move {
            let taken = room.acquire_many_owned(room_for(&want)).await.expect("nobody closes it");
            (nth, client.read(want).await, taken)
        });
    }
    while let Some(done) = running.join_next().await {
        let (nth, got, taken) = done.map_err(|err| SysError::io("run", "a request")(std::io::Error::other(err)))?;
        reply(socket, nth, got)?;
        // Its bytes are with the parent.
        drop(taken);
    }
    Ok(())
}

fn room_for(want: &RegistryItem) -> u32 {
    match want {
        RegistryItem::Blob { max, .. } => u32::try_from(max.div_ceil(MAX_MANIFEST)).unwrap_or(ROOM).clamp(SMALL, ROOM),
        RegistryItem::Manifest { .. } | RegistryItem::Referrers { .. } => SMALL,
    }
}

fn nonsense(problem: String) -> RemoteError {
    RemoteError::Nonsense { host: String::new(), what: "a question".into(), problem }
}

/// Sets up what follows.
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

/// Puts what comes along.
async fn put(client: Option<&RegistryClient>, ask: FetchMessage, message: &SocketMessage) -> FetchedItem {
    let client = client.ok_or_else(|| nonsense("nothing was opened".to_owned()))?;
    let bytes = message.fds.first().map(|fd| read_sealed(fd, "what is to be put", MAX_OBJECT)).transpose();
    let bytes = bytes.map_err(|err| nonsense(err.to_string()))?;
    let bytes = bytes.ok_or_else(|| nonsense("no bytes came along".to_owned()))?;
    let put: Put = match ask {
        FetchMessage::PutBlob { digest, from } => client.put_blob(&digest, from.as_deref(), bytes).await?,
        FetchMessage::PutManifest { reference, media_type } => client.put_manifest(&reference, &media_type, bytes).await?,
        FetchMessage::Open { .. } | FetchMessage::Read { .. } => return Err(nonsense("it puts nothing".to_owned())),
    };
    Ok(Some(serde_json::to_vec(&put).expect("two truths are JSON")))
}
