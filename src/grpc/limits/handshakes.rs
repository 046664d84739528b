//! TCP connections that have not presented a certificate yet. Their number is limited, in total and for each source.
//! When a limit is reached, the oldest one is closed for the new one: a client with a certificate needs milliseconds,
//! so silent connections do not lock clients out.

use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// Maximum number of handshakes, all sources together.
const ALL_MAX: usize = 128;
/// Maximum number of handshakes of one source.
const SOURCE_MAX: usize = 32;

/// The handshakes of one service, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Handshakes(Arc<Mutex<HandshakeState>>);

#[derive(Debug, Default)]
struct HandshakeState {
    next: u64,
    pending: Vec<Pending>,
}

/// Dropping it closes the connection.
#[derive(Debug)]
struct Pending {
    number: u64,
    source: IpAddr,
    _end: oneshot::Sender<()>,
}

/// One handshake; ends when dropped.
#[derive(Debug)]
pub struct Handshake {
    all: Handshakes,
    number: u64,
    cut: oneshot::Receiver<()>,
}

impl Handshakes {
    /// A connection from `address` starts its handshake.
    pub fn begin(&self, address: IpAddr) -> Handshake {
        let (end, cut) = oneshot::channel();
        let source = network(address);
        let mut state = self.state();
        if state.of(source) >= SOURCE_MAX {
            state.close_oldest_of(source);
        } else if state.pending.len() >= ALL_MAX
            && let Some(largest) = state.pending.iter().map(|other| other.source).max_by_key(|source| state.of(*source))
        {
            state.close_oldest_of(largest);
        }
        let number = state.next;
        state.next += 1;
        state.pending.push(Pending { number, source, _end: end });
        Handshake { all: self.clone(), number, cut }
    }

    fn state(&self) -> MutexGuard<'_, HandshakeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HandshakeState {
    fn of(&self, source: IpAddr) -> usize {
        self.pending.iter().filter(|other| other.source == source).count()
    }

    fn close_oldest_of(&mut self, source: IpAddr) {
        if let Some(oldest) = self.pending.iter().position(|other| other.source == source) {
            self.pending.remove(oldest);
        }
    }
}

impl Handshake {
    /// Ready once the connection is to be closed.
    pub fn poll_cut(&mut self, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.cut).poll(context).map(drop)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.all.state().pending.retain(|other| other.number != self.number);
    }
}

/// An IPv4 address, or the /64 network of an IPv6 address, since one host has all of its 2^64 addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn is_cut(handshake: &mut Handshake) -> bool {
        handshake.poll_cut(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_oldest_handshake_of_the_same_source_is_closed() {
        let all = Handshakes::default();
        let source = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut first: Vec<_> = (0..=SOURCE_MAX).map(|_| all.begin(source(1))).collect();
        assert!(is_cut(&mut first[0]) && first[1..].iter_mut().all(|one| !is_cut(one)));
        // Other sources, until the limit is reached: the largest source loses a handshake, not the newest client.
        let mut others: Vec<_> = (0..ALL_MAX - SOURCE_MAX).map(|n| all.begin(source(2 + n as u8))).collect();
        let mut new = all.begin(source(255));
        assert!(is_cut(&mut first[1]) && !is_cut(&mut first[2]));
        assert!(others.iter_mut().all(|one| !is_cut(one)) && !is_cut(&mut new));
        drop((first, others, new));
        assert!(all.state().pending.is_empty());
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let at = |text: &str| network(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
    }
}
