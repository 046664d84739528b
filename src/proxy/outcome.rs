//! What a notified call returns.

use std::os::fd::OwnedFd;

use crate::model::recording::CallEnd;

/// The result of a call, or of a refusal.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A new descriptor.
    Descriptor(OwnedFd),
    /// 0
    Done,
    /// An errno.
    Errno(i32),
}

impl Outcome {
    /// How the call ended, for a recording.
    pub(super) fn end(&self) -> CallEnd {
        match self {
            Self::Descriptor(_) | Self::Done => CallEnd::Done,
            Self::Errno(errno) => CallEnd::Failed(*errno),
        }
    }
}
