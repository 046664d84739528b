//! Waiting for a change in a directory.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::sys::error::SysError;

/// A watched directory.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Starts watching. Changes from now on wake up [`wait`](Self::wait), once or several times.
    pub fn directory(path: &Path) -> Result<Self, SysError> {
        let failed = SysError::io("watch", path.display().to_string());
        let begin = || {
            let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
            inotify::add_watch(&queue, path, what)?;
            Ok(queue)
        };
        begin().map(Self).map_err(|errno: rustix::io::Errno| failed(errno))
    }

    /// Waits for a change, for at most `patience`.
    pub fn wait(&self, patience: Duration) {
        let patience = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&patience));
        // The events themselves do not matter: the caller reads the directory.
        let mut buffer = [0; 4096];
        while rustix::io::read(&self.0, &mut buffer).is_ok_and(|length| length > 0) {}
    }
}
