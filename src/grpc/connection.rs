//! Accepts and counts connections, with the peer credentials that the kernel reports.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::grpc::authority::AuthorityFilter;
use crate::grpc::idle::Idle;
use crate::grpc::limits::handshakes::{Handshake, Handshakes};
use crate::sys::activation::Listener;
use crate::sys::peer::{self, PeerCredentials};

/// Maximum number of open connections of one non-root uid, and of all authenticated TCP clients together.
const CONNECTIONS_MAX: usize = 64;
/// Maximum number of open connections of all clients except root. One client gets at most half of the remaining ones,
/// so that a few clients cannot take all of them.
const ALL_MAX: usize = 512;
/// Delay before a retry when descriptors or memory ran out.
const PAUSE: Duration = Duration::from_millis(50);

/// The unit for which connections and requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Root of this host. Not limited: root could stop the service as well.
    Root,
    /// A user of this host, or root of another user namespace.
    Uid(u32),
    /// All TCP clients together.
    Tcp,
}

/// The number of connections of each origin.
#[derive(Debug, Clone, Default)]
pub struct Count(Arc<Mutex<HashMap<Origin, usize>>>);

/// One counted connection.
#[derive(Debug)]
struct ConnectionSlot {
    count: Count,
    origin: Origin,
}

impl Count {
    /// None if the origin has reached its limit.
    fn take(&self, origin: Origin) -> Option<ConnectionSlot> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = open.iter().filter(|(origin, _)| **origin != Origin::Root).map(|(_, count)| count).sum();
        let share = CONNECTIONS_MAX.min(ALL_MAX.saturating_sub(all).div_ceil(2));
        let count = open.entry(origin).or_default();
        if origin != Origin::Root && *count >= share {
            return None;
        }
        *count += 1;
        Some(ConnectionSlot { count: self.clone(), origin })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut open = self.count.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.origin);
            }
        }
    }
}

/// A connection with its peer.
#[derive(Debug)]
pub struct ClientConnection<S> {
    stream: S,
    peer: Peer,
    count: Count,
    state: Mutex<ConnectionState>,
}

/// The state of a connection.
#[derive(Debug)]
enum ConnectionState {
    /// The client has not presented a certificate yet.
    Handshake(Handshake),
    /// It is counted.
    Open { _slot: ConnectionSlot },
    /// The limit was reached.
    Refused,
}

/// The peer as the socket reports it; a TLS client is identified by its certificate later.
#[derive(Debug, Clone)]
pub enum Peer {
    /// A process on this host.
    Unix(Arc<PeerCredentials>),
    /// A TCP client.
    Tcp,
}

impl Peer {
    /// The origin that it is counted for.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Unix(peer) if peer.uid == 0 && peer.same_user_namespace => Origin::Root,
            Self::Unix(peer) => Origin::Uid(peer.uid),
            Self::Tcp => Origin::Tcp,
        }
    }
}

impl<S> Connected for ClientConnection<S> {
    type ConnectInfo = Peer;

    /// Called once per connection, after the handshake: from then on it counts as an authenticated connection.
    fn connect_info(&self) -> Peer {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, ConnectionState::Handshake(_)) {
            *state = self
                .count
                .take(self.peer.origin())
                .map_or(ConnectionState::Refused, |slot| ConnectionState::Open { _slot: slot });
        }
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientConnection<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let closed = match self.state.get_mut().unwrap_or_else(PoisonError::into_inner) {
            ConnectionState::Handshake(handshake) => handshake.poll_cut(context).is_ready(),
            ConnectionState::Open { .. } => false,
            ConnectionState::Refused => true,
        };
        if closed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientConnection<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The stream of a client on this host.
pub type UnixClient = AuthorityFilter<UnixStream>;

/// The connections of all listeners of one kind.
#[derive(Debug)]
pub struct Incoming<S>(mpsc::Receiver<ClientConnection<S>>);

impl<S> Stream for Incoming<S> {
    type Item = io::Result<ClientConnection<S>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

/// Starts tasks that accept Unix and TCP connections, each kind only if there is such a listener. Must be called within
/// the tokio runtime.
///
/// # Errors
/// If a socket cannot be watched.
pub fn accept(listeners: Vec<Listener>, idle: &Idle) -> io::Result<Accepting> {
    let count = Count::default();
    let (to_root, root) = mpsc::channel(1);
    let (to_unix, unix) = mpsc::channel(1);
    let (to_tcp, tcp) = mpsc::channel(1);
    let mut tasks = Tasks(Vec::new());
    let (mut any_unix, mut any_tcp) = (false, false);
    for listener in listeners {
        let (count, idle) = (count.clone(), idle.clone());
        let (to_root, to_others) = (to_root.clone(), to_unix.clone());
        tasks.0.push(match listener {
            Listener::Unix(listener) => {
                any_unix = true;
                let listener = UnixListener::from_std(listener)?;
                tokio::spawn(accept_unix(listener, count, idle, to_root, to_others))
            }
            Listener::Tcp(listener) => {
                any_tcp = true;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                tokio::spawn(accept_tcp(listener, count, idle, to_tcp.clone()))
            }
        });
    }
    let unix = any_unix.then_some((Incoming(root), Incoming(unix)));
    Ok(Accepting { unix, tcp: any_tcp.then_some(Incoming(tcp)), tasks })
}

/// The result of [`accept`].
#[derive(Debug)]
pub struct Accepting {
    /// Clients on this host: root, and the others.
    pub unix: Option<(Incoming<UnixClient>, Incoming<UnixClient>)>,
    /// Clients that must present a certificate.
    pub tcp: Option<Incoming<TcpStream>>,
    /// The accepting tasks.
    pub tasks: Tasks,
}

/// The accepting tasks; dropping them closes the listeners.
#[derive(Debug)]
pub struct Tasks(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

async fn accept_unix(
    listener: UnixListener,
    count: Count,
    idle: Idle,
    to_root: mpsc::Sender<ClientConnection<UnixClient>>,
    to_others: mpsc::Sender<ClientConnection<UnixClient>>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let peer = match peer::credentials(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "refuse a connection with an unknown peer");
                continue;
            }
        };
        let uid = peer.uid;
        let peer = Peer::Unix(Arc::new(peer));
        let Some(slot) = count.take(peer.origin()) else {
            tracing::warn!(uid, "refuse a connection: its uid has too many open");
            continue;
        };
        idle.touch();
        let to = if peer.origin() == Origin::Root { &to_root } else { &to_others };
        let (state, stream) = (Mutex::new(ConnectionState::Open { _slot: slot }), AuthorityFilter::new(stream));
        if to.send(ClientConnection { stream, peer, count: count.clone(), state }).await.is_err() {
            return;
        }
    }
}

async fn accept_tcp(
    listener: tokio::net::TcpListener,
    count: Count,
    idle: Idle,
    to: mpsc::Sender<ClientConnection<TcpStream>>,
) {
    let handshakes = Handshakes::default();
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Small responses must not be delayed (Nagle); failure is harmless.
        let _ = stream.set_nodelay(true);
        idle.touch();
        let state = Mutex::new(ConnectionState::Handshake(handshakes.begin(address.ip())));
        if to.send(ClientConnection { stream, peer: Peer::Tcp, count: count.clone(), state }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_uid_has_a_limit_and_root_has_none() {
        let count = Count::default();
        let held: Vec<_> = (0..CONNECTIONS_MAX).map(|_| count.take(Origin::Uid(7)).unwrap()).collect();
        assert!(count.take(Origin::Uid(7)).is_none());
        assert!(count.take(Origin::Uid(8)).is_some());
        let root: Vec<_> = (0..2 * CONNECTIONS_MAX).map(|_| count.take(Origin::Root).unwrap()).collect();
        // Clients that take as many as they can still leave some for the next client.
        let others: Vec<_> = (100..110).flat_map(|uid| std::iter::from_fn(move || Some(uid)).take(CONNECTIONS_MAX)).collect();
        let others: Vec<_> = others.into_iter().filter_map(|uid| count.take(Origin::Uid(uid))).collect();
        assert!(others.len() < ALL_MAX && count.take(Origin::Uid(9)).is_some(), "{}", others.len());
        drop((held, root, others));
        assert!(count.take(Origin::Uid(7)).is_some());
        assert!(count.0.lock().unwrap().is_empty());
    }
}
