//! What a notified call returns.

use std::os::fd::OwnedFd;

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
