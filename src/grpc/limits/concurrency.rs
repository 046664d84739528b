//! Limits the number of concurrent requests: in total, and lower for each client, so that no client can take every
//! slot. Waiting requests are served in the order of arrival. Root has slots of its own, which other clients cannot
//! take. Requests that may use the network have slots of their own, since a registry can be arbitrarily slow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The resource that a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The kernel and the store: milliseconds.
    Local,
    /// Possibly a registry.
    Network,
}

impl Lane {
    /// Slots of all clients together, and of one client.
    fn places(self) -> (usize, usize) {
        match self {
            Self::Local => (8, 4),
            Self::Network => (32, 16),
        }
    }
}

/// The slots of one service.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    places: HashMap<(Lane, bool), Arc<Semaphore>>,
    clients: Mutex<HashMap<(String, Lane), Weak<Semaphore>>>,
}

/// A request's slot; released when dropped.
#[derive(Debug)]
pub struct RequestSlot {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl ConcurrencyLimit {
    /// With all slots free.
    pub fn new() -> Self {
        let lanes = [Lane::Local, Lane::Network].into_iter().flat_map(|lane| [(lane, false), (lane, true)]);
        let places = lanes.map(|(lane, root)| {
            let (all, own) = lane.places();
            ((lane, root), Arc::new(Semaphore::new(if root { own } else { all })))
        });
        Self { places: places.collect(), clients: Mutex::default() }
    }

    /// Waits for a slot; `root` for root of this host.
    pub async fn enter(&self, client: &str, root: bool, lane: Lane) -> RequestSlot {
        const OPEN: &str = "the semaphores are never closed";
        let own = self.of(client, lane).acquire_owned().await.expect(OPEN);
        let all = self.places[&(lane, root)].clone();
        RequestSlot { _all: all.acquire_owned().await.expect(OPEN), _own: own }
    }

    fn of(&self, client: &str, lane: Lane) -> Arc<Semaphore> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (client.to_owned(), lane);
        if let Some(known) = clients.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        // Waiting and running requests hold their client's semaphore; unused ones are removed.
        clients.retain(|_, semaphore| semaphore.strong_count() > 0);
        let new = Arc::new(Semaphore::new(lane.places().1));
        clients.insert(key, Arc::downgrade(&new));
        new
    }
}

impl Default for ConcurrencyLimit {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_client_leaves_slots_for_others_and_pulls_leave_slots_for_loads() {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            let gate = ConcurrencyLimit::new();
            let mut held = Vec::new();
            for _ in 0..Lane::Local.places().1 {
                held.push(gate.enter("a", false, Lane::Local).await);
            }
            let late = tokio::time::timeout(Duration::from_millis(20), gate.enter("a", false, Lane::Local)).await;
            assert!(late.is_err(), "a has reached its limit");
            let soon = |client, lane| tokio::time::timeout(Duration::from_secs(5), gate.enter(client, client == "root", lane));
            held.push(soon("b", Lane::Local).await.unwrap());
            held.push(soon("a", Lane::Network).await.unwrap());
            held.remove(0);
            held.push(soon("a", Lane::Local).await.unwrap());
            // Root gets a slot even if other clients hold all of theirs.
            for other in ["b", "b", "b"] {
                held.push(soon(other, Lane::Local).await.unwrap());
            }
            let late = tokio::time::timeout(Duration::from_millis(20), gate.enter("d", false, Lane::Local)).await;
            assert!(late.is_err(), "all slots are taken");
            held.push(soon("root", Lane::Local).await.unwrap());
            drop(held);
            drop(soon("c", Lane::Local).await.unwrap());
            assert_eq!(gate.clients.lock().unwrap().len(), 1, "unused semaphores are removed");
        });
    }
}
