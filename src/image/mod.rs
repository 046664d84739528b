//! Bytecode images: fetching, verifying, caching, building and moving. The only user of the HTTP client and of the
//! sigstore crates.
//!
//! ```text
//! reference ── host path ──> host.rs: every component trusted, bytes read once ──┐
//!     │                                                                          ├─> source.rs: blobs by digest, hashed
//!     └── registry ──> cache/:   digest, verdict and object known? done          │
//!                          │ no                                                  │
//!                          └──> remote.rs <─ socket, sealed memory ─> registry/ ─┘   the child: all network I/O, no privileges
//!
//! source.rs ──> verify/: signatures over the top-level digest ──> oci/: layers -> one ELF object ──> cache/
//! ```
//!
//! The commands for users work differently: transfer/build.rs makes an image set (image_set.rs) from object files,
//! library.rs reads one from the cache, a layout or an archive, and write.rs and push.rs write it to another place.
//!
//! A reference is resolved to a digest once; everything after that is by digest. Signatures are checked before anything
//! below the top-level digest is unpacked or cached; it may be fetched together with them (prefetch.rs). This process
//! hashes all content, whatever its source.

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
pub mod program_key;
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
pub use remote::{PullWatch, Worker};
pub use verify::{CertificateClaims, Check, CheckOutcome, Checked, LoggedEntry, SignatureKind, SignaturePlace};

use crate::model::bytecode::{Bytecode, PullPolicy};
use crate::model::ids::Digest;
use crate::model::policy::{ImageRule, PolicyId};
use crate::model::reference::Reference;
use crate::model::registries::RegistryConfig;

/// The size limit of a bytecode image, compressed and uncompressed: 16 MiB, as in bpfman.
pub const MAX_OBJECT: usize = 16 << 20;
/// The size limit of a manifest, an index, a config or one signature: 1 MiB.
pub const MAX_MANIFEST: usize = 1 << 20;

/// A request for an image: one reference, and the rules that the policy has for it.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// The location of the bytecode.
    pub reference: &'a Reference,
    /// When to ask the registry; without effect for host paths.
    pub pull: PullPolicy,
    /// The image rules that match this reference, in the policy's order. The image is allowed if one of them is
    /// satisfied; without rules it is denied.
    pub rules: &'a [&'a ImageRule],
    /// The key files that the rules name, PEM, already read from trusted paths.
    pub keys: &'a BTreeMap<PathBuf, Vec<u8>>,
    /// The policy of the rules: cached verdicts of another policy are not used.
    pub policy: PolicyId,
    /// The settings of the registries.
    pub registries: &'a RegistryConfig,
    /// When to give up with [`ImageError::Timeout`].
    pub deadline: Instant,
    /// The tenant whose share of the cache is used: the Kubernetes namespace, or the client; if empty, the image rule
    /// that allows it.
    pub tenant: &'a str,
    /// Which images are in use.
    pub in_use: InUse<'a>,
}

/// Returns the images in use; called only if the cache is full.
#[derive(Clone, Copy)]
pub struct InUse<'a>(pub &'a dyn Fn() -> BTreeSet<Digest>);

impl InUse<'_> {
    /// No images.
    pub const NONE: InUse<'static> = InUse(&BTreeSet::new);
}

impl std::fmt::Debug for InUse<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InUse")
    }
}

/// A source of bytecode. [`LinuxImages`] is the production implementation.
pub trait Images {
    /// Fetches an image, checks it against the rules and extracts the object. The result satisfies one of the rules;
    /// anything uncertain is an error.
    fn fetch(&self, want: &Want<'_>) -> Result<Bytecode, ImageError>;
}

/// The sha256 digest of some bytes.
pub(crate) fn hash(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}
