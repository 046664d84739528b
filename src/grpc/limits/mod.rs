//! What one client of the service may take from the others.

pub mod admission;
pub mod concurrency;
pub mod handshakes;
pub mod request_bytes;
