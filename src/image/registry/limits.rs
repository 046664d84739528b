//! How long a registry may take, and how much it may send beside blobs.

use std::time::Duration;

/// For a TCP connection and its TLS handshake.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// For the answer to begin, and then for the next bytes of it.
pub(super) const SILENCE: Duration = Duration::from_secs(8);
/// The most that an error body or a token may take.
pub(super) const MAX_SMALL: usize = 64 << 10;
