//! References to bytecode: the location of an image or object file.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::ids::Digest;
use crate::model::text::{is_normal_path, quoted};

/// The location of bytecode, normalised: two texts for the same location give the same reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "transport", rename_all = "snake_case")]
pub enum Reference {
    /// `registry/repo[:tag][@sha256:…]`, with or without `docker://`.
    Registry(RegistryReference),
    /// `oci:/dir[:tag]`: an OCI image layout.
    Layout {
        /// The directory, absolute and normal.
        path: PathBuf,
        /// `org.opencontainers.image.ref.name`; None if the layout has only one image.
        tag: Option<String>,
    },
    /// `oci-archive:/file[:tag]`: an OCI image layout in a tar file.
    Archive {
        /// The file, absolute and normal.
        path: PathBuf,
        /// As in a layout.
        tag: Option<String>,
    },
    /// `file:/path.o`: an object file without an image.
    File {
        /// The file, absolute and normal.
        path: PathBuf,
    },
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RegistryReference {
    /// Host with optional port, lower case: `ghcr.io`, `127.0.0.1:5000`, `[::1]:5000`.
    pub registry: String,
    /// `acme/probes/xdp`.
    pub repository: String,
    /// The tag; `latest` if neither a tag nor a digest was written, None if only a digest was written.
    pub tag: Option<String>,
    /// The requested digest; it takes precedence over the tag.
    pub digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The repository has no registry; bpfman-hook does not guess one.
    #[error("{written} has no registry; write {meant}")]
    NoRegistry {
        /// The given text, quoted.
        written: String,
        /// The same repository on Docker Hub.
        meant: String,
    },
    /// An unsupported transport of containers-transports(5) or URL scheme.
    #[error("{0} is not supported; write registry/repository:tag, oci:/directory, oci-archive:/file or file:/path.o")]
    Transport(String),
    /// A part violates the rules.
    #[error("{written} is not a reference: {problem}")]
    Malformed {
        /// The given text, quoted.
        written: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

const PATH_RULE: &str = "the path must be absolute, without ., .., // and a slash at its end";
const TAG_RULE: &str = "the tag must be 1 to 128 of A-Z a-z 0-9 _ . - and begin with a letter, a digit or _";
const REPOSITORY_RULE: &str =
    "the repository must be lower-case letters and digits, with . _ - between them and / between components, at most 255 bytes";
const REGISTRY_RULE: &str = "the registry must be a host name or an address, with an optional port";

impl Reference {
    /// Parses and normalises a reference of at most 1024 bytes: without `docker://`, the registry in lower case,
    /// `docker.io/x` as `docker.io/library/x`, `latest` if there is neither tag nor digest.
    ///
    /// The rules for registries are those of the OCI distribution specification, end-2; a tag of `oci:` and `oci-archive:` begins
    /// after the last colon and has no slash.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let malformed = |problem| ReferenceError::Malformed { written: quoted(text), problem };
        if text.is_empty() || text.len() > 1024 {
            return Err(malformed("it is empty or longer than 1024 bytes"));
        }
        if text.bytes().any(|b| b.is_ascii_control()) {
            return Err(malformed("it has control characters in it"));
        }
        if let Some(path) = text.strip_prefix("file:") {
            return match is_normal_path(path) {
                true => Ok(Self::File { path: PathBuf::from(path) }),
                false => Err(malformed(PATH_RULE)),
            };
        }
        if let Some(place) = text.strip_prefix("oci:") {
            let (path, tag) = path_and_tag(place).map_err(malformed)?;
            return Ok(Self::Layout { path, tag });
        }
        if let Some(place) = text.strip_prefix("oci-archive:") {
            let (path, tag) = path_and_tag(place).map_err(malformed)?;
            return Ok(Self::Archive { path, tag });
        }
        let place = text.strip_prefix("docker://").unwrap_or(text);
        if let Some(transport) = foreign_transport(place) {
            return Err(ReferenceError::Transport(quoted(transport)));
        }
        parse_registry(place, text).map(Self::Registry)
    }

    /// The text that `repository` of an image rule is compared with: no tag, no digest; `ghcr.io/acme/x`, `oci:/dir`,
    /// `file:/path.o`.
    pub fn repository(&self) -> String {
        match self {
            Self::Registry(image) => format!("{}/{}", image.registry, image.repository),
            Self::Layout { path, .. } => format!("oci:{}", path.display()),
            Self::Archive { path, .. } => format!("oci-archive:{}", path.display()),
            Self::File { path } => format!("file:{}", path.display()),
        }
    }

    /// True for a path on the host, which an image rule must name by a literal prefix before anything is opened.
    pub fn on_host(&self) -> bool {
        !matches!(self, Self::Registry(_))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    /// The normalised text, which parses to the same reference.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository())?;
        match self {
            Self::Registry(image) => {
                if let Some(tag) = &image.tag {
                    write!(f, ":{tag}")?;
                }
                match &image.digest {
                    Some(digest) => write!(f, "@{digest}"),
                    None => Ok(()),
                }
            }
            Self::Layout { tag: Some(tag), .. } | Self::Archive { tag: Some(tag), .. } => write!(f, ":{tag}"),
            Self::Layout { tag: None, .. } | Self::Archive { tag: None, .. } | Self::File { .. } => Ok(()),
        }
    }
}

fn path_and_tag(place: &str) -> Result<(PathBuf, Option<String>), &'static str> {
    let (path, tag) = match place.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (place, None),
    };
    if path.ends_with("@sha256") {
        return Err("a layout cannot be referenced by digest; write the tag, and the digest into the image rule");
    }
    if !is_normal_path(path) {
        return Err(PATH_RULE);
    }
    match tag {
        Some(tag) if !is_tag(tag) => Err(TAG_RULE),
        tag => Ok((PathBuf::from(path), tag.map(str::to_owned))),
    }
}

/// The word before a colon that belongs to an unknown transport; None for `host:5000/x` and `host/x:tag`.
fn foreign_transport(place: &str) -> Option<&str> {
    const OTHERS: [&str; 7] = ["containers-storage", "dir", "docker-archive", "docker-daemon", "ostree", "sif", "tarball"];
    let (word, rest) = place.split_once(':')?;
    let scheme = !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+'));
    let digits = rest.split('/').next().is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    (scheme && (rest.starts_with('/') || (OTHERS.contains(&word) && !digits))).then(|| &place[..=word.len()])
}

fn parse_registry(place: &str, text: &str) -> Result<RegistryReference, ReferenceError> {
    let malformed = |problem| ReferenceError::Malformed { written: quoted(text), problem };
    let (name, digest) = match place.split_once('@') {
        Some((name, digest)) => (
            name,
            Some(digest.parse::<Digest>().map_err(|_| malformed("its digest is not sha256: and 64 lower-case hex digits"))?),
        ),
        None => (place, None),
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') && name.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    let (registry, repository) = match name.split_once('/') {
        Some((host, rest)) if is_host_like(host) => (host, rest),
        _ => {
            let short = name.split(':').next().unwrap_or(name);
            let path = if short.contains('/') { short.to_owned() } else { format!("library/{short}") };
            return Err(match is_repository(&path) {
                true => ReferenceError::NoRegistry { written: quoted(text), meant: format!("docker.io/{path}") },
                false => malformed("it does not begin with a registry and a slash"),
            });
        }
    };
    let registry = normal_registry(registry).ok_or_else(|| malformed(REGISTRY_RULE))?;
    let repository = match registry.as_str() {
        "docker.io" if !repository.contains('/') => format!("library/{repository}"),
        _ => repository.to_owned(),
    };
    if !is_repository(&repository) {
        return Err(malformed(REPOSITORY_RULE));
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(malformed(TAG_RULE));
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(RegistryReference { registry, repository, tag, digest })
}

/// True if a first component is a registry: it has a dot or a port, or is `localhost`, like docker and containers/image
/// decide it.
pub(in crate::model) fn is_host_like(component: &str) -> bool {
    component.contains(['.', ':']) || component.eq_ignore_ascii_case("localhost")
}

/// The registry in canonical form; None if it is not a host with an optional port.
pub(in crate::model) fn normal_registry(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let (host, port) = match lower.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':')?) };
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = lower.split_once(':').map_or((lower.as_str(), None), |(host, port)| (host, Some(port)));
            if !is_host_name(host) {
                return None;
            }
            (host.to_owned(), port)
        }
    };
    let host = if host == "index.docker.io" && port.is_none() { "docker.io".to_owned() } else { host };
    match port {
        None => Some(host),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse::<u16>().ok().filter(|port| *port != 0).map(|port| format!("{host}:{port}"))
        }
        Some(_) => None,
    }
}

fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

fn is_repository(repository: &str) -> bool {
    repository.len() <= 255 && repository.split('/').all(is_repository_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
pub(in crate::model) fn is_repository_component(component: &str) -> bool {
    let mut separator = String::new();
    let mut after_letter = false;
    for letter in component.chars() {
        match letter {
            'a'..='z' | '0'..='9' => {
                let dashes = !separator.is_empty() && separator.bytes().all(|b| b == b'-');
                if !separator.is_empty() && !dashes && !matches!(separator.as_str(), "." | "_" | "__") {
                    return false;
                }
                separator.clear();
                after_letter = true;
            }
            '.' | '_' | '-' if after_letter => separator.push(letter),
            _ => return false,
        }
    }
    after_letter && separator.is_empty()
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";

    #[test]
    fn references_are_normalised() {
        let digest = format!("ghcr.io/acme/x@{SHA}");
        let both = format!("ghcr.io/acme/x:v1@{SHA}");
        let cases = [
            ("ghcr.io/acme/x", "ghcr.io/acme/x:latest", "ghcr.io/acme/x"),
            ("docker://GHCR.io/acme/x:v1", "ghcr.io/acme/x:v1", "ghcr.io/acme/x"),
            ("docker.io/alpine", "docker.io/library/alpine:latest", "docker.io/library/alpine"),
            ("index.docker.io/library/alpine:3", "docker.io/library/alpine:3", "docker.io/library/alpine"),
            ("localhost/x", "localhost/x:latest", "localhost/x"),
            ("127.0.0.1:5000/a/b/c:t", "127.0.0.1:5000/a/b/c:t", "127.0.0.1:5000/a/b/c"),
            ("host:05000/x", "host:5000/x:latest", "host:5000/x"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b", "[::1]:5000/a"),
            ("[0:0:0:0:0:0:0:1]/a", "[::1]/a:latest", "[::1]/a"),
            ("ghcr.io/a__b/c--d.e_f:A-b.c_d", "ghcr.io/a__b/c--d.e_f:A-b.c_d", "ghcr.io/a__b/c--d.e_f"),
            (&digest, &digest, "ghcr.io/acme/x"),
            (&both, &both, "ghcr.io/acme/x"),
            ("oci:/usr/share/x", "oci:/usr/share/x", "oci:/usr/share/x"),
            ("oci:/usr/share/x:v1", "oci:/usr/share/x:v1", "oci:/usr/share/x"),
            ("oci:/a:b/c", "oci:/a:b/c", "oci:/a:b/c"),
            ("oci:/a:b:c", "oci:/a:b:c", "oci:/a:b"),
            ("oci-archive:/x.tar:v1", "oci-archive:/x.tar:v1", "oci-archive:/x.tar"),
            ("file:/x/y.o", "file:/x/y.o", "file:/x/y.o"),
            ("file:/x/y:1.o", "file:/x/y:1.o", "file:/x/y:1.o"),
        ];
        for (text, shown, repository) in cases {
            let reference = Reference::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), shown);
            assert_eq!(reference.repository(), repository);
            assert_eq!(Reference::parse(shown), Ok(reference), "{shown} parses to itself");
        }
    }

    #[test]
    fn refusals_suggest_a_correction() {
        let cases = [
            ("alpine", "\"alpine\" has no registry; write docker.io/library/alpine"),
            ("alpine:3", "\"alpine:3\" has no registry; write docker.io/library/alpine"),
            ("acme/x:v1", "\"acme/x:v1\" has no registry; write docker.io/acme/x"),
            (
                "docker-daemon:x:latest",
                "\"docker-daemon:\" is not supported; write registry/repository:tag, oci:/directory, oci-archive:/file or file:/path.o",
            ),
            (
                "https://ghcr.io/x/y",
                "\"https:\" is not supported; write registry/repository:tag, oci:/directory, oci-archive:/file or file:/path.o",
            ),
        ];
        for (text, sentence) in cases {
            assert_eq!(Reference::parse(text).expect_err(text).to_string(), sentence);
        }
        assert!(
            Reference::parse(&format!("oci:/dir@{SHA}"))
                .expect_err("digest")
                .to_string()
                .contains("a layout cannot be referenced by digest")
        );
    }

    #[test]
    fn everything_else_is_refused() {
        let long = format!("ghcr.io/{}", "a".repeat(1020));
        let sha512 = format!("ghcr.io/a@sha512:{}", "0".repeat(128));
        let bad = [
            "",
            " ",
            "/",
            ":",
            "@",
            "ghcr.io/",
            "ghcr.io//x",
            "ghcr.io/X",
            "ghcr.io/x:",
            "ghcr.io/x:-t",
            "ghcr.io/x:a/b:",
            "ghcr.io/x@",
            "ghcr.io/x@sha256:00",
            "ghcr.io/.x",
            "ghcr.io/x.",
            "ghcr.io/a___b",
            "ghcr.io/a._b",
            "ghcr.io/a/../b",
            "ghcr.io:0/x",
            "ghcr.io:65536/x",
            "ghcr.io:+1/x",
            "ghcr.io:/x",
            "-a.b/x",
            "a..b/x",
            "a.b./x",
            "[::1/x",
            "[::g]/x",
            "[::1]x/y",
            "[::1]:/y",
            "user@ghcr.io/x",
            "ghcr.io/x\ny",
            "oci:",
            "oci:rel",
            "oci:/",
            "oci:/a/",
            "oci:/a/../b",
            "oci://a",
            "oci:/a:",
            "oci:/a:b c",
            "oci-archive:x.tar",
            "file:",
            "file:x.o",
            "file:/../x",
            "file:/x\0",
            "dir:/x",
            "docker://",
            "docker://alpine",
            "docker://docker://ghcr.io/x",
            "oci:docker://x/y",
            "ghcr.io/ä",
            &long,
            &sha512,
        ];
        for text in bad {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }
}
