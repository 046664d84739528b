//! The image cache, by digest: `/var/cache/bpfman-hook`, an OCI layout with a few additional files.
//!
//! ```text
//! oci-layout, index.json, blobs/sha256/<hex>   every blob of every image and the objects, for us and for other tools
//! refs/<hash of a reference>.json              the digest that the reference resolved to when it was pulled
//! images/<hex>.json                            the object of an image, and the verdicts by rule and policy
//! flights/<hash of a reference>.lock           the lock of a running fetch: see fetch_lock.rs
//! ```
//!
//! A hit reads three small files and the object. The object is hashed again each time. The JSON files are trusted
//! because only the owner can write here; a directory with another owner is refused. The cache may be removed at any
//! time: what is missing or damaged is a miss.

mod fetch_lock;
mod images;
mod reader;
mod record;
mod share;
mod sweep;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use fetch_lock::FetchRequest;
pub use images::{CachedImage, CachedVerdict};
pub use reader::Cache;
pub(crate) use reader::{Blob, Reader};
pub(crate) use record::CacheRecord;
pub use sweep::{SweepSelection, Swept};
pub(crate) use write::NewImage;
