//! `token profile` of a container that the proxy serves: the processes of the proxy send what each call asked for to the
//! command's socket, while there is one. Datagrams in JSON, each a [`Recording`] of one call.

use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::lifecycle::proxy::ProxiedContainer;
use crate::model::ids::ContainerId;
use crate::model::recording::{CallEnd, Recording};
use crate::output::error::CommandError;
use crate::paths::Paths;
use crate::proxy::failure::FailedCall;
use crate::proxy::notes::Notes;
use crate::proxy::notified::CopiedArguments;
use crate::proxy::outcome::Outcome;
use crate::sys::seccomp_notify::{NotifiedThread, notice_interruptions, was_interrupted};
use crate::sys::{SysError, fsutil, pid};

/// How long the caller of a call may wait for room in the command's queue. What does not fit is counted.
const ROOM: Duration = Duration::from_millis(200);
/// The largest datagram, about the size of the queue that the kernel gives a socket.
const DATAGRAM_MAX: usize = 256 << 10;
/// How often to look whether the recording has to end.
const PATIENCE: Duration = Duration::from_millis(100);

/// The part of a proxy process that tells a recording command of calls.
pub(super) struct Reporter {
    socket: PathBuf,
    notes: Option<Notes>,
    missed: u64,
}

impl Reporter {
    pub(super) fn new(paths: &Paths, id: &ContainerId) -> Self {
        Self { socket: socket(paths, id), notes: None, missed: 0 }
    }

    /// True while a command records the container.
    pub(super) fn is_watched(&self) -> bool {
        fs::symlink_metadata(&self.socket).is_ok()
    }

    /// Tells of a call whose answer its caller still waits for.
    pub(super) fn tell(
        &mut self,
        caller: &mut NotifiedThread<'_>,
        copied: &CopiedArguments,
        performed: &Result<Outcome, FailedCall>,
    ) {
        let mut recording = Recording { missed: std::mem::take(&mut self.missed), ..Recording::default() };
        let end = match performed {
            Ok(outcome) => outcome.end(),
            Err(FailedCall { refused: Some(refused), .. }) => {
                recording.refuse(&refused.sentence);
                // Nothing is known of what the kernel would say.
                CallEnd::Unknown
            }
            Err(failure) => CallEnd::Failed(failure.errno),
        };
        match copied {
            CopiedArguments::Bpf(copied) => {
                recording.count(copied.attr.command.number());
                let notes = self.notes.get_or_insert_with(Notes::new);
                let not_passed_on = notes.everything.check(&copied.attr).err().map(|refusal| refusal.to_string());
                notes.note(&mut recording, caller, (&copied.attr, copied.instructions()), end, not_passed_on);
            }
            CopiedArguments::PerfEventOpen(_) => recording.perf_events += 1,
        }
        if let Err(error) = self.send(&recording) {
            self.missed = recording.missed.saturating_add(1);
            if error.kind() == io::ErrorKind::ConnectionRefused {
                // The command was killed.
                let _ = fs::remove_file(&self.socket);
            }
        }
    }

    fn send(&self, recording: &Recording) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(ROOM))?;
        socket.send_to(&serde_json::to_vec(recording)?, &self.socket).map(drop)
    }
}

fn socket(paths: &Paths, id: &ContainerId) -> PathBuf {
    paths.proxy_recordings().join(id.as_str())
}

/// The socket of a recording command, removed with it.
struct WatchedContainer {
    socket: UnixDatagram,
    path: PathBuf,
}

impl WatchedContainer {
    fn begin(paths: &Paths, id: &ContainerId) -> Result<Self, CommandError> {
        let (directory, path) = (paths.proxy_recordings(), socket(paths, id));
        fsutil::ensure_directory(&directory, 0o700).map_err(CommandError::doing("record a container"))?;
        if path.exists() && UnixDatagram::unbound().and_then(|other| other.connect(&path)).is_ok() {
            return Err(CommandError::new(format!("record container {id}: another command does; wait for its end")));
        }
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).map_err(SysError::io("listen at", path.display().to_string()))?;
        let watched = Self { socket, path };
        watched.socket.set_read_timeout(Some(PATIENCE)).map_err(SysError::io("limit the waiting at", watched.shown()))?;
        Ok(watched)
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    /// The next call; None if there was none for a while.
    fn next(&self, buffer: &mut [u8]) -> Result<Option<Recording>, SysError> {
        match self.socket.recv(buffer) {
            Ok(length) => Ok(Some(serde_json::from_slice(&buffer[..length]).unwrap_or_else(|_| {
                // Longer than the buffer.
                Recording { missed: 1, ..Recording::default() }
            }))),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(error) => Err(SysError::io("receive at", self.shown())(error)),
        }
    }
}

impl Drop for WatchedContainer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_dir(self.path.parent().unwrap_or(Path::new("/")));
    }
}

/// Records what a running container asks the proxy for, until the time is over, the container ends, or the user
/// interrupts it. `begun` is called once calls are recorded.
///
/// # Errors
/// If the socket cannot be made, or another command records the container.
pub fn watch(
    paths: &Paths,
    id: &ContainerId,
    container: &ProxiedContainer,
    time: Option<Duration>,
    begun: impl FnOnce(),
) -> Result<Recording, CommandError> {
    let watched = WatchedContainer::begin(paths, id)?;
    notice_interruptions();
    let (end, mut recording, mut buffer) =
        (time.map(|time| Instant::now() + time), Recording::default(), vec![0; DATAGRAM_MAX]);
    begun();
    loop {
        if let Some(call) = watched.next(&mut buffer)? {
            recording.merge(call);
            continue;
        }
        let is_over = end.is_some_and(|end| Instant::now() >= end) || was_interrupted();
        if is_over || !pid::is_alive(&container.init).map_err(CommandError::doing("record a container"))? {
            return Ok(recording);
        }
    }
}
