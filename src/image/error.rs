//! Why an image or its object could not be used.

use std::path::PathBuf;

use crate::image::access::AccessError;
pub use crate::image::registry::error::RemoteError;
use crate::model::bytecode::PullPolicy;
use crate::model::ids::Digest;
use crate::sys::SysError;
use crate::sys::fsutil::TrustError;

/// Why an image was not accepted. `image` is the normalized reference from the request.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image rule of the policy matches the repository: an empty policy denies.
    #[error("fetch {image}: no image rule of the policy applies to it; add an [[image]] rule for its repository")]
    NoRule {
        /// The image.
        image: String,
    },
    /// The policy has no image rules, and there is no key for the default rule.
    #[error(
        "verify {image}: there is no key to verify it with; put public keys into /etc/bpfman-hook/keys, or write [[image]] rules"
    )]
    NoKeys {
        /// The image.
        image: String,
    },
    /// It does not exist in the registry, the layout or the file system.
    #[error("fetch {image}: there is no such image; check {}", where_it_would_be(.image))]
    NotFound {
        /// The image.
        image: String,
    },
    /// An archive in docker's format, which `podman save` writes by default.
    #[error(
        "read {image}: it is a docker archive, not an OCI archive; save it with `podman save --format oci-archive`, or convert it \
         with `skopeo copy docker-archive:FILE oci-archive:FILE`"
    )]
    DockerArchive {
        /// The archive.
        image: String,
    },
    /// A layout with several images; the reference names none of them.
    #[error("read {image}: the layout has several images; name one of them: {}", names.join(", "))]
    Ambiguous {
        /// The layout.
        image: String,
        /// What it has.
        names: Vec<String>,
    },
    /// A rule lists digests, and this image's is not among them.
    #[error(
        "verify {image}: rule {rule} does not list its digest {digest}; request a listed digest, or add this one to the rule"
    )]
    DigestNotListed {
        /// The image.
        image: String,
        /// What it resolved to.
        digest: Digest,
        /// The rules that list digests.
        rule: String,
    },
    /// No signature was found in any of the supported places.
    #[error(
        "verify {image}: it is not signed, and rule {rules} requires a signature; sign it with cosign, or accept it with unsigned = true"
    )]
    Unsigned {
        /// The image.
        image: String,
        /// The rules that require one.
        rules: String,
    },
    /// There are signatures, but none satisfies a rule.
    #[error(
        "verify {image}: none of its signatures ({found}) satisfies rule {rules}: {reason}; sign it with a key or identity that the rule names"
    )]
    BadSignature {
        /// The image.
        image: String,
        /// How many signatures there are.
        found: usize,
        /// The rules that require one.
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
    /// A trusted root file that cannot be used.
    #[error("verify {image}: {path} is not a sigstore trusted root: {reason}; get one with cosign trusted-root create", path = path.display())]
    TrustedRoot {
        /// The image.
        image: String,
        /// Its file.
        path: PathBuf,
        /// The parser's message.
        reason: String,
    },
    /// A key file without a usable public key.
    #[error("verify {image}: key file {path} is not a PEM public key for ECDSA P-256 or P-384, Ed25519 or RSA: {reason}", path = path.display())]
    Key {
        /// The image.
        image: String,
        /// The key file.
        path: PathBuf,
        /// The parser's message.
        reason: String,
    },
    /// Content that does not match its digest.
    #[error(
        "read {image}: its {part} does not match its digest: it is damaged or tampered with; fetch it again (expected {expected}, found {found})"
    )]
    Tampered {
        /// The image.
        image: String,
        /// `manifest`, `layer`, …
        part: &'static str,
        /// The digest that was requested.
        expected: Digest,
        /// The digest of the content.
        found: Digest,
    },
    /// A blob that a manifest names and that does not exist.
    #[error("read {image}: its {part} {digest} is missing; copy the image again")]
    MissingBlob {
        /// The image.
        image: String,
        /// `manifest`, `layer`, …
        part: &'static str,
        /// Its digest.
        digest: Digest,
    },
    /// Content that is not valid, or a reference that cannot be used.
    #[error("read {image}: its {part} is not valid: {problem}")]
    Malformed {
        /// The image.
        image: String,
        /// `manifest`, `index`, …
        part: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// An index without an entry for this platform.
    #[error("read {image}: it has no image for {wanted}{}; build it for this platform", only_for(.offered))]
    Platform {
        /// The image.
        image: String,
        /// `linux/amd64`
        wanted: String,
        /// The platforms that it has.
        offered: Vec<String>,
    },
    /// Larger than the limit.
    #[error("read {image}: its {part} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The image.
        image: String,
        /// `layer`, `object`, …
        part: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// The layers do not contain exactly one object that this machine can load.
    #[error("read {image}: {source}")]
    Object {
        /// The image.
        image: String,
        /// What is wrong; part of the message, which would be empty without it.
        source: LayerError,
    },
    /// Only the cache and local images were searched, and the image is not there.
    #[error("read {image}: it is not in the cache; pull it with `bpfman-hook pull`")]
    NotHere {
        /// The image.
        image: String,
    },
    /// A layout or archive that the user named could not be read or written.
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
    /// A host path that users other than root can change, or that cannot be read.
    #[error("open {image} on the host")]
    HostPath {
        /// The reference.
        image: String,
        /// Which component, and why.
        #[source]
        source: TrustError,
    },
    /// The access settings of its registry cannot be determined.
    #[error("fetch {image}")]
    Access {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: Box<AccessError>,
    },
    /// The request to a registry failed.
    #[error("fetch {image}")]
    Remote {
        /// The image.
        image: String,
        /// Which host, and why.
        #[source]
        source: RemoteError,
    },
    /// The upload to a registry failed.
    #[error("push {image}")]
    Push {
        /// The target reference.
        image: String,
        /// Which host, and why.
        #[source]
        source: RemoteError,
    },
    /// The cache has the image for this platform only.
    #[error("push {image}: the cache lacks {missing}; push it from a layout, or copy it from registry to registry")]
    Partial {
        /// The image.
        image: String,
        /// The missing platforms.
        missing: String,
    },
    /// The child that talks to registries failed.
    #[error("fetch {image}")]
    Child {
        /// The image.
        image: String,
        /// How it failed.
        #[source]
        source: SysError,
    },
    /// The registry was too slow.
    #[error("fetch {image}: registry {host} did not send it within {seconds} s; pull it beforehand with `bpfman-hook pull`")]
    Timeout {
        /// The image.
        image: String,
        /// The registry.
        host: String,
        /// How long we waited.
        seconds: u64,
    },
    /// Another process is fetching the image and has not finished within our deadline.
    #[error(
        "fetch {image}: another process has been fetching it for {seconds} s or more; pull it beforehand with `bpfman-hook pull`"
    )]
    InFlight {
        /// The image.
        image: String,
        /// How long we waited.
        seconds: u64,
    },
    /// Another process fetched the image while we waited, and it was refused.
    #[error("{reason} (another process found this, which fetched {image} at the same time)")]
    Shared {
        /// The image.
        image: String,
        /// The whole reason.
        reason: String,
    },
    /// The pull policy forbids the network and the cache cannot answer.
    #[error(
        "fetch {image}: {problem}, and pull-policy {pull:?} forbids a request to the registry; pull it with `bpfman-hook pull`"
    )]
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
    /// True if the policy does not trust the image, false if the image could not be obtained.
    pub fn is_about_signatures(&self) -> bool {
        use ImageError::{BadSignature, DigestNotListed, Key, NoKeys, NoRule, Unsigned};
        matches!(
            self,
            NoRule { .. } | NoKeys { .. } | DigestNotListed { .. } | Unsigned { .. } | BadSignature { .. } | Key { .. }
        )
    }
}

fn only_for(offered: &[String]) -> String {
    if offered.is_empty() { String::new() } else { format!(", only for {}", offered.join(", ")) }
}

/// What to check if an image is not found.
fn where_it_would_be(image: &str) -> &'static str {
    match image.split_once(':').map(|(transport, _)| transport) {
        Some("file") => "the path",
        Some("oci" | "oci-archive") => "path and tag",
        _ => "repository and tag",
    }
}

/// Why an image's layers do not contain an object that can be loaded here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    /// No file is an ELF object.
    #[error("it contains no BPF object{}", if .0.is_empty() { String::new() } else { format!(", only {}", .0.join(", ")) })]
    None(Vec<String>),
    /// Several files are ELF objects.
    #[error("it contains several objects, {}; a bytecode image has one, or names one in the label io.ebpf.filename", .0.join(", "))]
    Several(Vec<String>),
    /// A bytecode image has one layer, so that a layer cannot hide the content of another.
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
    /// An executable or library for BPF, not a relocatable object.
    #[error("{name} is an ELF file of type {kind}, not a relocatable object (type 1); do not link it")]
    NotRelocatable {
        /// The file.
        name: String,
        /// `e_type` of its header.
        kind: u16,
    },
    /// The wrong byte order.
    #[error(
        "{name} is compiled for {found}-endian machines, but this one is {wanted}-endian; build the image for this architecture"
    )]
    ByteOrder {
        /// The file.
        name: String,
        /// `little` or `big`.
        found: &'static str,
        /// The required byte order.
        wanted: &'static str,
    },
    /// An object that does not have the byte order of the architecture it is packed for.
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
    /// A truncated or invalid archive or compressed stream.
    #[error("its layer cannot be unpacked: {0}; build the image again")]
    Unpack(String),
}

/// Why the image cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Users other than root could have written to it, or one of its files cannot be read.
    #[error("open the image cache {path}, which you can remove at any time", path = path.display())]
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
    #[error("write the image cache {path}: another process has held its lock for {seconds} s; try again", path = path.display())]
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
    fn a_missing_image_error_names_what_to_check() {
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
