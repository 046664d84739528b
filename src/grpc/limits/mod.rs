//! Limits on what one client of the service can take from the others.

pub mod admission;
pub mod concurrency;
pub mod handshakes;
pub mod request_bytes;
