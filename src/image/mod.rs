//! Bytecode images: get, verify, keep, make, carry. The only user of the HTTP client and of the sigstore crates.
//!
//! ```text
//! reference ── host path ──> host.rs: every component trusted, bytes read once ──┐
//!     │                                                                          ├─> source.rs: blobs by digest, hashed
//!     └── registry ──> cache.rs: digest, verdict and object known? done          │
//!                          │ no                                                  │
//!                          └──> remote.rs <─ socket, sealed memory ─> fetch/ ────┘   the child: all network, no rights
//!
//! source.rs ──> verify/: signatures over the top-level digest ──> object.rs: layers -> one ELF object ──> cache.rs
//! ```
//!
//! What people do with images takes another way: pack.rs makes a parcel.rs of object files, library.rs takes one up from the cache, a
//! layout or an archive, and deliver.rs puts it down in another of these places.
//!
//! The digest that a reference stands for is established once; what follows is by digest. Signatures are checked before
//! anything below the top-level digest is unpacked or kept; it may travel together with them (ahead.rs). Everything is hashed by this process, whoever sent it.

mod access;
mod cache;
mod counters;
mod decide;
mod decision;
mod error;
mod examine;
mod found;
#[cfg(test)]
mod fuzz;
mod host;
mod linux;
mod oci;
mod prefetch;
mod registry;
mod remote;
mod search;
mod source;
pub mod transfer;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

pub use crate::image::examine::{Examination, Examined, RuleResult};
pub use crate::image::oci::object::ByteOrder;
pub use crate::image::registry::child as fetch_child;
pub use crate::image::transfer::image_set::{ImageDocument, ImageSet};
pub use crate::image::transfer::library::{Archive, Details, Labelled};
pub use crate::image::transfer::push::{Pushed, Target};
pub use crate::image::verify::signers::{UnusableSigner, unusable_key, unusable_signers, unusable_trusted_root};
pub use access::{AccessError, conf as registries_conf, examine as examine_registries};
pub use cache::{Cache, CachedImage, CachedVerdict, SweepSelection, Swept};
pub use error::{CacheError, ImageError, LayerError, RemoteError};
pub use linux::LinuxImages;
pub use remote::Worker;
pub use verify::{CertificateClaims, Check, CheckOutcome, Checked, LoggedEntry, SignatureKind, SignaturePlace};

use crate::model::bytecode::{Bytecode, PullPolicy};
use crate::model::ids::Digest;
use crate::model::policy::{ImageRule, PolicyId};
use crate::model::reference::Reference;
use crate::model::registries::RegistryConfig;

/// Compressed and decompressed, this is the most that a bytecode image may hold: 16 MiB, as in bpfman.
pub const MAX_OBJECT: usize = 16 << 20;
/// The most that a manifest, an index, a config or one signature may hold: 1 MiB.
pub const MAX_MANIFEST: usize = 1 << 20;

/// What is wanted: one reference under the rules that policy selected for it.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// Where the bytecode is.
    pub reference: &'a Reference,
    /// When the registry is asked; without meaning for host paths.
    pub pull: PullPolicy,
    /// The image rules that speak of this reference, in policy's order. Any satisfied one allows; none at all denies.
    pub rules: &'a [&'a ImageRule],
    /// The key files that the rules name, PEM, already read from trusted paths.
    pub keys: &'a BTreeMap<PathBuf, Vec<u8>>,
    /// The policy that the rules are of: cached verdicts of another one are not used.
    pub policy: PolicyId,
    /// How registries are spoken to.
    pub registries: &'a RegistryConfig,
    /// When to give up with [`ImageError::Timeout`].
    pub deadline: Instant,
    /// Whose share of the cache it takes: the Kubernetes namespace, or the client; empty for the image rule that allows it.
    pub tenant: &'a str,
    /// Which images are in use.
    pub in_use: InUse<'a>,
}

/// Tells which images are in use; asked only where the cache is full.
#[derive(Clone, Copy)]
pub struct InUse<'a>(pub &'a dyn Fn() -> BTreeSet<Digest>);

impl InUse<'_> {
    /// None that is known of.
    pub const NONE: InUse<'static> = InUse(&BTreeSet::new);
}

impl std::fmt::Debug for InUse<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InUse")
    }
}

/// Where bytecode comes from. [`LinuxImages`] is the real one.
pub trait Images {
    /// Gets an image, checks it against the rules and takes the object out of it. What is returned satisfies one of the
    /// rules; every doubt is an error.
    fn fetch(&self, want: &Want<'_>) -> Result<Bytecode, ImageError>;
}

/// The sha256 digest of some bytes.
pub(crate) fn hash(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}
