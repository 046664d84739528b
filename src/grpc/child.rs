//! One request, one child: our own binary, which does the work and answers once.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use crate::sys::child::{Child, Output, Role};
use crate::sys::error::SysError;
use crate::sys::fsutil::{read_sealed, sealed_memfd};

/// The longest answer: the list of all programs of a host with tens of thousands.
const ANSWER_MAX: usize = 64 << 20;
/// For a child beyond its own deadline.
const PATIENCE: Duration = Duration::from_secs(5);

/// What happens to a child whose client has gone away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abandoned {
    /// It only looks, or fetches: killed at once.
    Kill,
    /// It changes something: it sees that nobody listens, undoes what the client would never know of, and gets the time for it.
    Finish,
}

/// A child at work, and what it holds until it has ended.
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
                // It is killed and reaped at the deadline, whatever its status.
                let _ = child.wait(deadline);
                drop(held);
            });
        }
    }
}

/// Sends one request to a new child and waits for its answer. Dropping the future abandons the child. `held` is dropped once the child
/// has ended, abandoned or not: its place in the line, for example.
///
/// # Errors
/// Where the child cannot be started, ends without an answer or takes longer than `time` and some patience.
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
    let child = running.child.as_mut().expect("it is taken only when it is dropped");
    readable(child, deadline).await.map_err(SysError::io("wait for", "the answer"))?;
    // It is readable, or the deadline has passed, which this finds out at once and kills the child for.
    let answer = child.recv("the answer", 64, Instant::now() + Duration::from_millis(1))?;
    let memory = answer
        .fds
        .first()
        .ok_or_else(|| SysError::Message { what: "the answer", problem: "it has no memory file".to_owned() })?;
    let bytes = read_sealed(memory, "the answer", ANSWER_MAX)?;
    // Without a receipt it takes back what it did. One that is gone already has nothing to take back.
    let _ = child.socket().send(b"taken", &[]);
    running.child = None;
    Ok(bytes)
}

/// Returns when the child has said something or has ended, or at the deadline.
async fn readable(child: &Child, deadline: Instant) -> io::Result<()> {
    // tokio watches any unix socket for readiness; what is read from it is the child's business.
    let socket = StdStream::from(child.socket().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket)?;
    match tokio::time::timeout_at(deadline.into(), socket.readable()).await {
        Ok(ready) => ready,
        Err(_) => Ok(()),
    }
}
