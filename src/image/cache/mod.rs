//! What was fetched, by digest: `/var/cache/bpfman-hook`, an OCI layout with some things of ours in it.
//!
//! ```text
//! oci-layout, index.json, blobs/sha256/<hex>   every blob of every image and the objects, for us and for other tools
//! refs/<hash of a reference>.json              which digest the reference stood for when it was pulled
//! images/<hex>.json                            which object an image holds, and the verdicts by rule and policy
//! flights/<hash of a reference>.lock           who is fetching it: see flight.rs
//! ```
//!
//! A hit reads three small files and the object. The object is hashed again each time. What the json files say is believed
//! because nobody but the owner can write here; a directory of anybody else is refused. The whole may be removed at any time:
//! what is missing or damaged is a miss.

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
