//! The child that speaks to registries: all network traffic, TLS, DNS and HTTP happens here, without any privilege.
//!
//! The parent asks for one thing at a time and gets bytes in sealed memory, or a sentence; what is to be uploaded comes in sealed
//! memory too. Nothing that comes out of here is
//! trusted: the parent hashes and verifies.

mod auth;
mod bounds;
mod http;
pub(crate) mod protocol;
mod upload;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::image::error::RemoteError;
use crate::image::{MAX_MANIFEST, MAX_OBJECT};
use crate::sys::SysError;
use crate::sys::child::{Limits, confine, parent_socket};
use crate::sys::fsutil::{read_sealed, sealed_memfd};
use crate::sys::sandbox;
use crate::sys::sock::{Message, Socket};
use http::Client;
pub(crate) use http::chain;
use protocol::{Answer, Ask, MAX_MESSAGE, Put};

/// What the child may use. Address space is mostly reserved, never touched: thread arenas, TLS tables. A body of
/// [`MAX_OBJECT`] that grows while it arrives takes three times its size.
const LIMITS: Limits =
    Limits { address_space: 1 << 30, data: 192 << 20, cpu: 300, files: 64, file_size: (MAX_OBJECT + MAX_MANIFEST) as u64 };

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
    let problem = http::chain(err);
    socket.send(&Answer::Failed(RemoteError::Unconfined { problem }).to_bytes(), &[])
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
    let mut client: Option<Client> = None;
    while let Some(message) = socket.recv("a question", MAX_MESSAGE, None)? {
        let (answer, bytes) = match answer(&runtime, &mut client, message) {
            Ok(Some(bytes)) => (Answer::Bytes, Some(bytes)),
            Ok(None) => (Answer::Nothing, None),
            Err(err) => (Answer::Failed(err), None),
        };
        let text = answer.to_bytes();
        let memory = bytes.map(|bytes| sealed_memfd("bpfman-hook-fetched", &bytes)).transpose()?;
        let memory = memory.as_ref().map(std::os::fd::AsFd::as_fd);
        socket.send(&text, memory.as_slice())?;
    }
    Ok(())
}

/// Does what one message asks for: bytes, or None for "opened" and for "there is none".
fn answer(
    runtime: &tokio::runtime::Runtime,
    client: &mut Option<Client>,
    message: Message,
) -> Result<Option<Vec<u8>>, RemoteError> {
    let nonsense = |problem: String| RemoteError::Nonsense { host: String::new(), what: "a question".into(), problem };
    let ask = Ask::from_bytes(&message.bytes).map_err(nonsense)?;
    if let Ask::Open { access, patience } = ask {
        let mut files = message.fds.iter();
        let mut file = |sent: bool, what| {
            let fd = if sent { files.next() } else { None };
            fd.map(|fd| read_sealed(fd, what, MAX_AUTHORITIES)).transpose().map_err(|err| nonsense(err.to_string()))
        };
        let authorities = file(access.authorities, "the certificate authorities")?;
        let identity = file(access.identity, "our certificate")?;
        let until = Instant::now() + Duration::from_millis(patience);
        *client = Some(Client::new(*access, authorities, identity, until)?);
        return Ok(None);
    }
    let sent = message.fds.first().map(|fd| read_sealed(fd, "what is to be put", MAX_OBJECT)).transpose();
    let sent = sent.map_err(|err| nonsense(err.to_string()))?;
    let client = client.as_mut().ok_or_else(|| nonsense("nothing was opened".to_owned()))?;
    runtime.block_on(async {
        match ask {
            Ask::Open { .. } => Ok(None),
            Ask::Manifest { reference } => client.manifest(&reference).await,
            Ask::Blob { digest, max } => client.blob(&digest, max.min(MAX_OBJECT)).await,
            Ask::Referrers { digest } => {
                let list = client.referrers(&digest).await?;
                Ok(list.map(|list| serde_json::to_vec(&list).expect("a list of strings is JSON")))
            }
            Ask::PutBlob { digest, from } => {
                let bytes = sent.ok_or_else(|| nonsense("no bytes came along".to_owned()))?;
                client.put_blob(&digest, from.as_deref(), bytes).await.map(put)
            }
            Ask::PutManifest { reference, media_type } => {
                let bytes = sent.ok_or_else(|| nonsense("no bytes came along".to_owned()))?;
                client.put_manifest(&reference, &media_type, bytes).await.map(put)
            }
        }
    })
}

fn put(put: Put) -> Option<Vec<u8>> {
    Some(serde_json::to_vec(&put).expect("two truths are JSON"))
}
