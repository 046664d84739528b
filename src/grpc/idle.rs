//! Decides when the service exits: some time after the last request, never while one runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Counts requests. Open connections without requests do not count.
#[derive(Debug, Clone)]
pub struct Idle {
    state: Arc<Mutex<IdleState>>,
    changed: Arc<Notify>,
    timeout: Option<Duration>,
}

#[derive(Debug)]
struct IdleState {
    running: usize,
    /// When the last request ended or the last connection was accepted, whichever is later.
    since: Instant,
}

/// A running request; ends when dropped.
#[derive(Debug)]
pub struct Busy(Idle);

impl Idle {
    /// Idle from now on; without a timeout it never expires.
    pub fn new(timeout: Option<Duration>) -> Self {
        let state = IdleState { running: 0, since: Instant::now() };
        Self { state: Arc::new(Mutex::new(state)), changed: Arc::new(Notify::new()), timeout }
    }

    fn state<T>(&self, change: impl FnOnce(&mut IdleState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request starts.
    pub fn begin(&self) -> Busy {
        self.state(|state| state.running += 1);
        Busy(self.clone())
    }

    /// A connection was accepted: a request is expected, and the timeout restarts.
    pub fn touch(&self) {
        self.state(|state| state.since = Instant::now());
    }

    /// The number of running requests.
    pub fn running(&self) -> usize {
        self.state(|state| state.running)
    }

    /// Returns once nothing has run for the whole timeout.
    pub async fn expired(&self) {
        let Some(timeout) = self.timeout else { return std::future::pending().await };
        loop {
            // Registered before the check, so that the end of a request is not missed.
            let changed = self.changed.notified();
            let (running, until) = self.state(|state| (state.running, state.since + timeout));
            if running > 0 {
                changed.await;
            } else if until <= Instant::now() {
                return;
            } else {
                tokio::time::sleep_until(until).await;
            }
        }
    }

    /// Waits for running requests, and for `closed`, which is when every connection is closed. A client that has not
    /// yet seen the shutdown may still send a request, which is served like the others; only if none arrives for the
    /// time `close` are the connections cut.
    pub async fn drain(&self, all: Duration, close: Duration, closed: impl Future<Output = ()>) {
        let silent = async {
            loop {
                self.quiet().await;
                let quiet_since = self.state(|state| state.since);
                tokio::time::sleep(close).await;
                if self.state(|state| state.running == 0 && state.since == quiet_since) {
                    return;
                }
            }
        };
        // A client that disconnected may have left a child behind that undoes its changes.
        let all_gone = async {
            closed.await;
            self.quiet().await;
        };
        tokio::select! {
            () = all_gone => {}
            () = silent => {}
            () = tokio::time::sleep(all) => {}
        }
    }

    /// Returns once no request runs.
    pub async fn quiet(&self) {
        loop {
            let changed = self.changed.notified();
            if self.running() == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state(|state| {
            state.running -= 1;
            state.since = Instant::now();
        });
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(work: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work);
    }

    #[test]
    fn a_running_request_keeps_it_busy_and_its_end_starts_the_timeout() {
        run(async {
            let idle = Idle::new(Some(Duration::from_millis(60)));
            let busy = idle.begin();
            let expired = tokio::time::timeout(Duration::from_millis(200), idle.expired()).await;
            assert!(expired.is_err());
            let ended = Instant::now();
            drop(busy);
            idle.expired().await;
            assert!(ended.elapsed() >= Duration::from_millis(60));
        });
    }

    #[test]
    fn without_a_timeout_it_never_expires() {
        run(async {
            let idle = Idle::new(None);
            assert!(tokio::time::timeout(Duration::from_millis(50), idle.expired()).await.is_err());
        });
    }

    #[test]
    fn a_late_request_is_served_before_connections_are_cut() {
        run(async {
            let idle = Idle::new(None);
            let (all, close) = (Duration::from_secs(20), Duration::from_millis(100));
            let done = Arc::new(Mutex::new(false));
            let late = async {
                tokio::time::sleep(close / 2).await;
                let busy = idle.begin();
                tokio::time::sleep(close * 3).await;
                *done.lock().unwrap() = true;
                drop(busy);
                std::future::pending().await
            };
            idle.drain(all, close, late).await;
            assert!(*done.lock().unwrap());
            // A hanging request does not delay it forever, and it returns at once when the connections are closed.
            let busy = idle.begin();
            idle.drain(close, close, std::future::pending()).await;
            drop(busy);
            idle.drain(all, all, std::future::ready(())).await;
        });
    }

    #[test]
    fn quiet_waits_for_the_last_request() {
        run(async {
            let idle = Idle::new(None);
            idle.quiet().await;
            let busy = idle.begin();
            assert!(tokio::time::timeout(Duration::from_millis(50), idle.quiet()).await.is_err());
            drop(busy);
            idle.quiet().await;
        });
    }
}
