//! `repository` of an image rule: the references that it covers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::reference::{Reference, is_host_like, is_repository_component, normal_registry};
use crate::model::text::{is_normal_path, quoted};

/// The `repository` of an image rule, normalised.
///
/// For registries `*` stands for one whole component and `**` for any number of them, including none. A host path
/// (`oci:`, `oci-archive:`, `file:`) is literal and covers itself and everything below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RepositoryPattern(String);

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{written} is not a repository: {problem}")]
pub struct PatternError {
    written: String,
    problem: String,
}

const TRANSPORTS: [&str; 3] = ["oci:", "oci-archive:", "file:"];

impl RepositoryPattern {
    /// `**`: every repository of every registry, but no host path.
    pub(super) fn every_registry() -> Self {
        Self("**".to_owned())
    }

    /// Parses a pattern and normalises it like a reference: without `docker://`, the registry in lower case,
    /// `docker.io/x` as `docker.io/library/x`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let error = |problem: &str| PatternError { written: quoted(text), problem: problem.to_owned() };
        if text.len() > 1024 {
            return Err(error("it is longer than 1024 bytes"));
        }
        for transport in TRANSPORTS {
            let Some(path) = text.strip_prefix(transport) else { continue };
            if path.contains('*') {
                return Err(error("a host path must not contain *; it covers everything below it"));
            }
            if !is_normal_path(path) {
                return Err(error("a host path must be absolute, without ., .., // and a slash at its end, and not / itself"));
            }
            return Ok(Self(text.to_owned()));
        }
        let place = text.strip_prefix("docker://").unwrap_or(text);
        if place == "**" {
            return Ok(Self::every_registry());
        }
        let (registry, repository) =
            place.split_once('/').ok_or_else(|| error("it must begin with a registry and a /, as in docker.io/library/"))?;
        let registry = match registry {
            "*" | "**" => registry.to_owned(),
            host if is_host_like(host) => {
                normal_registry(host).ok_or_else(|| error("its registry is not a host with an optional port"))?
            }
            _ => return Err(error("it must begin with a registry, as in docker.io/library/")),
        };
        if repository.contains(['@', ':']) {
            return Err(error("it must not have a tag or a digest; write digests in the key digests"));
        }
        for component in repository.split('/').filter(|component| !matches!(*component, "*" | "**")) {
            if component.contains('*') {
                return Err(error("* and ** must be whole components, as in ghcr.io/acme/*"));
            }
            if !is_repository_component(component) {
                return Err(error("components must be lower-case letters and digits, with . _ - between them"));
            }
        }
        match registry.as_str() {
            "docker.io" if !repository.contains('/') && repository != "**" => {
                Ok(Self(format!("docker.io/library/{repository}")))
            }
            _ => Ok(Self(format!("{registry}/{repository}"))),
        }
    }

    /// True if the pattern covers a reference.
    pub fn matches(&self, reference: &Reference) -> bool {
        let repository = reference.repository();
        if reference.on_host() {
            return match repository.strip_prefix(&self.0) {
                Some(rest) => rest.is_empty() || rest.starts_with('/'),
                None => false,
            };
        }
        !self.names_host_path() && components_match(&self.0, &repository)
    }

    /// True for `oci:`, `oci-archive:` and `file:`.
    pub fn names_host_path(&self) -> bool {
        TRANSPORTS.iter().any(|transport| self.0.starts_with(transport))
    }
}

/// Compares by components. Only the last `**` reached needs backtracking, so the cost is at most the product of both
/// lengths.
fn components_match(pattern: &str, repository: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let repository: Vec<&str> = repository.split('/').collect();
    let (mut p, mut r) = (0, 0);
    let mut retry = None;
    while r < repository.len() {
        match pattern.get(p) {
            Some(&"**") => {
                retry = Some((p, r));
                p += 1;
            }
            Some(component) if *component == "*" || *component == repository[r] => {
                p += 1;
                r += 1;
            }
            _ => match retry {
                Some((star, from)) => {
                    retry = Some((star, from + 1));
                    p = star + 1;
                    r = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|component| *component == "**")
}

impl fmt::Display for RepositoryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, reference: &str) -> bool {
        let pattern = RepositoryPattern::parse(pattern).unwrap_or_else(|error| panic!("{error}"));
        let again = RepositoryPattern::parse(&pattern.to_string()).expect("normalised");
        assert_eq!(pattern, again);
        pattern.matches(&Reference::parse(reference).unwrap_or_else(|error| panic!("{error}")))
    }

    #[test]
    fn patterns_cover_references() {
        let cases = [
            ("ghcr.io/acme/x", "ghcr.io/acme/x:v1", true),
            ("ghcr.io/acme/x", "ghcr.io/acme/x/y", false),
            ("ghcr.io/acme/x", "ghcr.io/acme", false),
            ("docker://GHCR.io/acme/x", "ghcr.io/acme/x", true),
            ("ghcr.io/acme/*", "ghcr.io/acme/x", true),
            ("ghcr.io/acme/*", "ghcr.io/acme/x/y", false),
            ("ghcr.io/acme/*", "ghcr.io/acmee/x", false),
            ("ghcr.io/acme/*", "evil.io/ghcr.io/acme/x", false),
            ("ghcr.io/*/x", "ghcr.io/acme/x", true),
            ("ghcr.io/**", "ghcr.io/a/b/c", true),
            ("ghcr.io/acme/**", "ghcr.io/acme", true),
            ("ghcr.io/**/x", "ghcr.io/x", true),
            ("ghcr.io/**/x", "ghcr.io/a/b/x", true),
            ("ghcr.io/**/x", "ghcr.io/a/x/b", false),
            ("ghcr.io/**/a/**/b", "ghcr.io/a/a/c/b/b", true),
            ("ghcr.io/**/a/**/b", "ghcr.io/b/a", false),
            ("ghcr.io/**/a/*/b", "ghcr.io/a/b/a/c/b", true),
            ("*/acme/x", "127.0.0.1:5000/acme/x", true),
            ("**", "ghcr.io/a/b", true),
            ("**", "file:/x.o", false),
            ("**", "oci:/x", false),
            ("**/x", "oci:/x", false),
            ("docker.io/alpine", "docker.io/library/alpine", true),
            ("docker.io/*", "docker.io/library/alpine", true),
            ("docker.io/*", "docker.io/acme/x", false),
            ("docker.io/**", "docker.io/acme/x", true),
            ("127.0.0.1:5000/**", "127.0.0.1/x", false),
            ("oci:/usr/share/x", "oci:/usr/share/x:v1", true),
            ("oci:/usr/share/x", "oci:/usr/share/x/y", true),
            ("oci:/usr/share/x", "oci:/usr/share/xy", false),
            ("oci:/usr/share/x", "oci:/usr/share", false),
            ("oci:/usr/share/x", "oci-archive:/usr/share/x", false),
            ("oci:/usr/share/x", "file:/usr/share/x", false),
            ("file:/opt/bpf", "file:/opt/bpf/a.o", true),
            ("oci-archive:/a.tar", "oci-archive:/a.tar:v1", true),
        ];
        for (pattern, reference, expected) in cases {
            assert_eq!(matches(pattern, reference), expected, "{pattern} {reference}");
        }
    }

    #[test]
    fn many_wildcards_take_bounded_time() {
        let pattern = format!("ghcr.io/{}b", "**/a/".repeat(100));
        let reference = format!("ghcr.io/{}c", "a/".repeat(120));
        assert!(!matches(&pattern, &reference));
    }

    #[test]
    fn invalid_patterns_are_refused() {
        let cases = [
            ("alpine", "\"alpine\" is not a repository: it must begin with a registry and a /, as in docker.io/library/"),
            ("acme/x", "\"acme/x\" is not a repository: it must begin with a registry, as in docker.io/library/"),
            (
                "ghcr.io/acme/x:v1",
                "\"ghcr.io/acme/x:v1\" is not a repository: it must not have a tag or a digest; write digests in the key digests",
            ),
            (
                "ghcr.io/acme-*",
                "\"ghcr.io/acme-*\" is not a repository: * and ** must be whole components, as in ghcr.io/acme/*",
            ),
            ("ghcr.io/***", "\"ghcr.io/***\" is not a repository: * and ** must be whole components, as in ghcr.io/acme/*"),
            (
                "ghcr.io/A",
                "\"ghcr.io/A\" is not a repository: components must be lower-case letters and digits, with . _ - between them",
            ),
            ("*.io/x", "\"*.io/x\" is not a repository: its registry is not a host with an optional port"),
            ("oci:/usr/*", "\"oci:/usr/*\" is not a repository: a host path must not contain *; it covers everything below it"),
        ];
        for (pattern, sentence) in cases {
            assert_eq!(RepositoryPattern::parse(pattern).expect_err(pattern).to_string(), sentence);
        }
        for bad in [
            "",
            "/",
            "*",
            "ghcr.io/",
            "ghcr.io//x",
            "ghcr.io/x/",
            "oci:/",
            "oci:x",
            "oci:/a/../b",
            "file:",
            "oci:/a/",
            "ghcr.io/a b",
        ] {
            assert!(RepositoryPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
