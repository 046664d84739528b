//! Limits on how long a registry may take, and on what it may send besides blobs.

use std::time::Duration;

/// For a TCP connection and its TLS handshake.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// For the answer to begin, and between reads of it.
pub(super) const SILENCE: Duration = Duration::from_secs(8);
/// The size limit of an error body or a token, in bytes.
pub(super) const MAX_SMALL: usize = 64 << 10;
