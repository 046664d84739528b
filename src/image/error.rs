//! Why bytecode could not be had.

use std::path::PathBuf;

use crate::image::access::AccessError;
pub use crate::image::registry::error::RemoteError;
use crate::model::bytecode::PullPolicy;
use crate::model::ids::Digest;
use crate::sys::SysError;
use crate::sys::fsutil::TrustError;

/// Why an image was not accepted. `image` is the reference as it was asked for, normalised.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The policy layer handed over no rule: an empty policy denies.
    #[error("fetch {image}: no image rule of the policy speaks of it; add an [[image]] with its repository")]
    NoRule {
        /// The image.
        image: String,
    },
    /// The policy's own rule for no rules, and no key that it could verify with.
    #[error(
        "verify {image}: there is no key to verify it with; put public keys into /etc/bpfman-hook/keys, or write [[image]] rules"
    )]
    NoKeys {
        /// The image.
        image: String,
    },
    /// The registry, the layout or the file system does not have it.
    #[error("fetch {image}: there is no such image; check {}", where_it_would_be(.image))]
    NotFound {
        /// The image.
        image: String,
    },
    /// An archive of docker's format, which `podman save` writes by default.
    #[error(
        "read {image}: it is a docker archive, not an OCI archive; write it with `podman save --format oci-archive`, or convert it \
         with `skopeo copy docker-archive:FILE oci-archive:FILE`"
    )]
    DockerArchive {
        /// The archive.
        image: String,
    },
    /// A layout with several images, of which none was named.
    #[error("read {image}: the layout has several images, name one of them: {}", names.join(", "))]
    Ambiguous {
        /// The layout.
        image: String,
        /// What it has.
        names: Vec<String>,
    },
    /// A rule lists digests, and this is none of them.
    #[error("verify {image}: {digest} is not among the digests of rule {rule}")]
    DigestNotListed {
        /// The image.
        image: String,
        /// What it resolved to.
        digest: Digest,
        /// The rules that list digests.
        rule: String,
    },
    /// No layout has a signature of it.
    #[error(
        "verify {image}: it is not signed, and rule {rules} asks for a signature; sign it with cosign, or accept it with unsigned = true"
    )]
    Unsigned {
        /// The image.
        image: String,
        /// The rules that ask for one.
        rules: String,
    },
    /// There are signatures, and none satisfies a rule.
    #[error(
        "verify {image}: none of its signatures ({found}) satisfies rule {rules}: {reason}; have it signed by one whom the rule names"
    )]
    BadSignature {
        /// The image.
        image: String,
        /// How many signatures there are.
        found: usize,
        /// The rules that ask for one.
        rules: String,
        /// What is wrong with the first of them.
        reason: String,
    },
    /// A rule's pattern does not compile.
    #[error("verify {image}: rule {rule}: {reason}")]
    Pattern {
        /// The image.
        image: String,
        /// The rule.
        rule: String,
        /// The pattern, and what is wrong with it.
        reason: String,
    },
    /// A trusted root that cannot be used.
    #[error("verify {image}: {path} is no trusted root of sigstore: {reason}; get it with cosign trusted-root create", path = path.display())]
    TrustedRoot {
        /// The image.
        image: String,
        /// Its file.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
    /// A key file that holds no usable public key.
    #[error("verify {image}: key file {path} is not a PEM public key of ECDSA P-256 or P-384, Ed25519 or RSA: {reason}", path = path.display())]
    Key {
        /// The image.
        image: String,
        /// The key file.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
    /// Bytes that are not what their digest says.
    #[error(
        "read {image}: its {part} {expected} has other contents ({found}); it is damaged or was tampered with, get it anew"
    )]
    Tampered {
        /// The image.
        image: String,
        /// `manifest`, `layer`, …
        part: &'static str,
        /// The digest by which it was asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// A blob that a manifest names and nobody has.
    #[error("read {image}: its {part} {digest} is missing; copy the image anew")]
    MissingBlob {
        /// The image.
        image: String,
        /// `manifest`, `layer`, …
        part: &'static str,
        /// Its digest.
        digest: Digest,
    },
    /// Something that is not as the image specification has it.
    #[error("read {image}: its {part} is not as the OCI image specification has it: {problem}")]
    Malformed {
        /// The image.
        image: String,
        /// `manifest`, `index`, …
        part: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// An index without an entry for this machine.
    #[error("read {image}: it has nothing for {wanted}, only {}", offered.join(", "))]
    Platform {
        /// The image.
        image: String,
        /// `linux/amd64`
        wanted: String,
        /// What it has.
        offered: Vec<String>,
    },
    /// More bytes than are accepted.
    #[error("read {image}: its {part} is larger than {limit} bytes, which is the limit")]
    TooLarge {
        /// The image.
        image: String,
        /// `layer`, `object`, …
        part: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// The layers do not hold exactly one object that this machine can load.
    #[error("read {image}: {source}")]
    Object {
        /// The image.
        image: String,
        /// What is wrong; part of the sentence, since without it there is none.
        source: LayerError,
    },
    /// An image that is asked for where only images of this machine are looked at.
    #[error("read {image}: it is not in the cache; pull it with bpfman-hook pull")]
    NotHere {
        /// The image.
        image: String,
    },
    /// A layout or archive that a person named could not be read or written.
    #[error("{doing} {image}")]
    Carry {
        /// `read` or `write`.
        doing: &'static str,
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: SysError,
    },
    /// A host path that others than root can change, or that cannot be read.
    #[error("open {image} on the host")]
    HostPath {
        /// The reference.
        image: String,
        /// Which component, and why.
        #[source]
        source: TrustError,
    },
    /// It is not known how to reach its registry.
    #[error("fetch {image}")]
    Access {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: Box<AccessError>,
    },
    /// Asking a registry failed.
    #[error("fetch {image}")]
    Remote {
        /// The image.
        image: String,
        /// Which host, and why.
        #[source]
        source: RemoteError,
    },
    /// Putting it into a registry failed.
    #[error("push {image}")]
    Push {
        /// The image, where it was to go.
        image: String,
        /// Which host, and why.
        #[source]
        source: RemoteError,
    },
    /// An image of which the cache has this machine's part alone.
    #[error("push {image}: {missing} of it are not in the cache; push it from a layout, or copy it from registry to registry")]
    Partial {
        /// The image.
        image: String,
        /// Platforms.
        missing: String,
    },
    /// The child that speaks to registries did not do its work.
    #[error("fetch {image}")]
    Child {
        /// The image.
        image: String,
        /// What became of it.
        #[source]
        source: SysError,
    },
    /// The registry was too slow.
    #[error("fetch {image}: registry {host} has not sent it within {seconds} s; pull it beforehand with bpfman-hook pull")]
    Timeout {
        /// The image.
        image: String,
        /// The registry.
        host: String,
        /// How long we waited.
        seconds: u64,
    },
    /// Another process fetches it, and is slower than we can wait.
    #[error(
        "fetch {image}: another process has been fetching it for {seconds} s or more; pull it beforehand with bpfman-hook pull"
    )]
    InFlight {
        /// The image.
        image: String,
        /// How long we waited.
        seconds: u64,
    },
    /// Another process fetched it while we waited, and it was refused.
    #[error("{reason} (found by another process that fetched {image} at the same time)")]
    Shared {
        /// The image.
        image: String,
        /// The whole reason.
        reason: String,
    },
    /// The pull policy forbids the network and the cache cannot answer.
    #[error("fetch {image}: {problem}, and pull-policy {pull:?} forbids to ask the registry; pull it with bpfman-hook pull")]
    NotCached {
        /// The image.
        image: String,
        /// What the cache lacks.
        problem: String,
        /// The policy.
        pull: PullPolicy,
    },
    /// The cache cannot be used.
    #[error("fetch {image}")]
    Cache {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: CacheError,
    },
}

impl ImageError {
    /// True where it is policy that does not trust the image, and not the image that could not be had.
    pub fn is_about_signatures(&self) -> bool {
        use ImageError::{BadSignature, DigestNotListed, Key, NoKeys, NoRule, Unsigned};
        matches!(
            self,
            NoRule { .. } | NoKeys { .. } | DigestNotListed { .. } | Unsigned { .. } | BadSignature { .. } | Key { .. }
        )
    }
}

/// What to look at where an image is not found.
fn where_it_would_be(image: &str) -> &'static str {
    match image.split_once(':').map(|(transport, _)| transport) {
        Some("file") => "the path",
        Some("oci" | "oci-archive") => "path and tag",
        _ => "repository and tag",
    }
}

/// Why an image's layers hold no object that can be loaded here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    /// No file is an ELF object.
    #[error("it holds no BPF object, only {}", if .0.is_empty() { "nothing".to_owned() } else { .0.join(", ") })]
    None(Vec<String>),
    /// Several files are.
    #[error("it holds several objects, {}; a bytecode image has one, or names it in the label io.ebpf.filename", .0.join(", "))]
    Several(Vec<String>),
    /// A bytecode image has one layer, so that nothing hides beneath another.
    #[error("it has {0} layers; a bytecode image has one")]
    Layers(usize),
    /// Not ELF.
    #[error("{0} is not an ELF object")]
    NotElf(String),
    /// ELF for another machine.
    #[error("{name} is an ELF file for machine {machine}, not a BPF object (machine 247); compile it with clang -target bpf")]
    Machine {
        /// The file.
        name: String,
        /// `e_machine` of its header.
        machine: u16,
    },
    /// A program or library for BPF, not an object.
    #[error("{name} is an ELF file of type {kind}, not a relocatable object (type 1); do not link it")]
    NotRelocatable {
        /// The file.
        name: String,
        /// `e_type` of its header.
        kind: u16,
    },
    /// The other byte order.
    #[error(
        "{name} is compiled for {found}-endian machines and this one is {wanted}-endian; offer an image for this architecture"
    )]
    ByteOrder {
        /// The file.
        name: String,
        /// `little` or `big`.
        found: &'static str,
        /// The other.
        wanted: &'static str,
    },
    /// An object that is to be packed for an architecture of the other byte order.
    #[error(
        "{name} is compiled for {found}-endian machines, which {architecture} is not; compile it with clang -target bpfel or bpfeb"
    )]
    ForOtherOrder {
        /// The file.
        name: String,
        /// `little` or `big`.
        found: &'static str,
        /// The architecture.
        architecture: String,
    },
    /// An archive or compressed stream that ends early or is none.
    #[error("its layer cannot be unpacked: {0}")]
    Unpack(String),
}

/// Why the image cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Somebody else could have written what is in it, or a file in it cannot be read.
    #[error("open the image cache {path}, which may be removed at any time", path = path.display())]
    NotTrusted {
        /// The directory.
        path: PathBuf,
        /// Which file, and why.
        #[source]
        source: TrustError,
    },
    /// Writing failed.
    #[error("write the image cache {path}", path = path.display())]
    Write {
        /// The directory.
        path: PathBuf,
        /// Which file, and why.
        #[source]
        source: SysError,
    },
    /// Another process has held the cache's lock for too long.
    #[error("write the image cache {path}: another process has had it locked for {seconds} s", path = path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
        /// How long we waited.
        seconds: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_found_is_looked_for_where_it_would_be() {
        for (image, place) in [
            ("file:/a/b.o", "check the path"),
            ("oci:/a/b:v1", "check path and tag"),
            ("oci-archive:/a/b.tar", "check path and tag"),
            ("ghcr.io/acme/x:v1", "check repository and tag"),
            ("localhost:5000/acme/x:v1", "check repository and tag"),
        ] {
            let sentence = ImageError::NotFound { image: image.to_owned() }.to_string();
            assert!(sentence.ends_with(place), "{sentence}");
        }
    }
}
