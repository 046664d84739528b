//! Runs one child per request: our own binary, which does the work and replies once.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use crate::sys::child::{Child, Output, Role};
use crate::sys::error::SysError;
use crate::sys::fsutil::{read_sealed, sealed_memfd};

/// Maximum size of a reply: the list of all programs on a host with tens of thousands of them.
const ANSWER_MAX: usize = 64 << 20;
/// Additional time for a child beyond its own deadline.
const PATIENCE: Duration = Duration::from_secs(5);

/// What happens to a child whose client has disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abandoned {
    /// It only reads or fetches: killed immediately.
    Kill,
    /// It changes state: it notices the disconnect, undoes its changes since the client never learns of them, and gets
    /// the time for that.
    Finish,
}

/// A running child, and what is held until it has ended.
struct RunningChild<H: Send + 'static> {
    child: Option<Child>,
    abandoned: Abandoned,
    deadline: Instant,
    held: Option<H>,
}

impl<H: Send + 'static> Drop for RunningChild<H> {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        if self.abandoned == Abandoned::Finish {
            child.socket().shutdown();
            let (deadline, held) = (self.deadline, self.held.take());
            tokio::task::spawn_blocking(move || {
                // It is killed and reaped at the deadline, regardless of its status.
                let _ = child.wait(deadline);
                drop(held);
            });
        }
    }
}

/// Sends one request to a new child and waits for its reply. Dropping the future abandons the child. `held`, for
/// example the request's slot, is dropped once the child has ended, abandoned or not.
///
/// # Errors
/// If the child cannot be started, ends without a reply, or takes longer than `time` plus the additional time.
pub async fn ask<H: Send + 'static>(
    role: Role,
    request: &[u8],
    time: Duration,
    abandoned: Abandoned,
    held: H,
) -> Result<Vec<u8>, SysError> {
    let deadline = Instant::now() + time + PATIENCE;
    let child = Child::spawn(role, Output::Inherit)?;
    let memory = sealed_memfd("request", request)?;
    child.socket().send(b"request", &[memory.as_fd()])?;
    let mut running = RunningChild { child: Some(child), abandoned, deadline, held: Some(held) };
    let child = running.child.as_mut().expect("taken only in drop");
    readable(child, deadline).await.map_err(SysError::io("wait for", "the answer"))?;
    // Either the socket is readable, or the deadline has passed: then this call notices at once and kills the child.
    let answer = child.recv("the answer", 64, Instant::now() + Duration::from_millis(1))?;
    let memory = answer
        .fds
        .first()
        .ok_or_else(|| SysError::Message { what: "the answer", problem: "it has no memory file".to_owned() })?;
    let bytes = read_sealed(memory, "the answer", ANSWER_MAX)?;
    // Without a receipt the child undoes its changes. A child that has already ended has nothing to undo.
    let _ = child.socket().send(b"taken", &[]);
    running.child = None;
    Ok(bytes)
}

/// Returns when the child has replied or ended, or at the deadline.
async fn readable(child: &Child, deadline: Instant) -> io::Result<()> {
    // tokio can watch any Unix socket for readiness; it does not read from this one.
    let socket = StdStream::from(child.socket().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket)?;
    match tokio::time::timeout_at(deadline.into(), socket.readable()).await {
        Ok(ready) => ready,
        Err(_) => Ok(()),
    }
}
