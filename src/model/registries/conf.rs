//! containers-registries.conf(5), version 2, as far as it determines where an image is requested: rewriting, mirrors,
//! blocking, plain http, and the meaning of short names.
//!
//! The policy uses the name as written; this file only changes which hosts are contacted for it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::reference::RegistryReference;

/// The merged files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conf {
    registries: BTreeMap<String, ConfEntry>,
    aliases: BTreeMap<String, String>,
    search: Vec<String>,
}

/// A host from which an image may be requested, and the image's name there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullEndpoint {
    /// `ghcr.io`, `127.0.0.1:5000`
    pub host: String,
    /// `acme/probes`
    pub repository: String,
    /// By plain http.
    pub insecure: bool,
}

/// A setting of an entry that this program does not support.
pub type ConfWarning = String;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ConfEntry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Pull>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Pull {
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ConfDocument {
    unqualified_search_registries: Option<Vec<String>>,
    #[serde(default)]
    registry: Vec<ConfEntry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    registries: Option<toml::Value>,
}

impl Conf {
    /// Adds a file to the earlier ones: entries replace those with the same prefix, aliases those with the same name.
    /// An unusable entry is skipped with a warning; it is an error if skipping it could allow what is blocked.
    pub fn add(&mut self, text: &str) -> Result<Vec<ConfWarning>, String> {
        let file: ConfDocument = toml::from_str(text).map_err(|err| err.message().replace('\n', "; "))?;
        let mut complaints = Vec::new();
        if file.registries.is_some() {
            return Err("it uses version 1 with [registries.…]; write [[registry]] entries".to_owned());
        }
        for entry in file.registry {
            let Some(prefix) = entry.prefix.clone().or_else(|| entry.location.clone()).filter(|prefix| !prefix.is_empty())
            else {
                return Err("a [[registry]] has neither prefix nor location".to_owned());
            };
            let prefix = prefix.trim_end_matches('/').to_owned();
            if prefix.contains('*') && (!prefix.starts_with("*.") || prefix[2..].contains('*')) {
                return Err(format!("prefix {prefix:?} may have a * only at its start, as in *.example.com"));
            }
            if prefix.starts_with("*.") && entry.location.is_some() && entry.prefix.is_none() {
                return Err(format!("location {prefix:?} has a *, which only a prefix may have"));
            }
            for location in entry.location.iter().chain(entry.mirror.iter().map(|mirror| &mirror.location)) {
                if location.contains("://") || location.contains(['@', ' ']) || location.is_empty() {
                    return Err(format!("location {location:?} of {prefix:?} must be registry/path without a scheme"));
                }
            }
            if entry.mirror_by_digest_only && entry.mirror.iter().any(|mirror| mirror.pull_from_mirror.is_some()) {
                complaints.push(format!(
                    "{prefix}: mirror-by-digest-only and pull-from-mirror are both set; the first takes precedence"
                ));
            }
            self.registries.insert(prefix, entry);
        }
        self.aliases.extend(file.aliases);
        if let Some(search) = file.unqualified_search_registries {
            self.search = search;
        }
        Ok(complaints)
    }

    /// The hosts for an image, in order: its mirrors, then its own location. None if it is blocked.
    pub fn places(&self, image: &RegistryReference) -> Option<Vec<PullEndpoint>> {
        let name = format!("{}/{}", image.registry, image.repository);
        let own = PullEndpoint { host: image.registry.clone(), repository: image.repository.clone(), insecure: false };
        let found = self.registries.iter().filter_map(|(prefix, entry)| Some((matched(prefix, &name)?, prefix, entry)));
        let Some((length, prefix, entry)) = found.max_by_key(|(length, prefix, _)| (*length, !prefix.starts_with('*'))) else {
            return Some(vec![own]);
        };
        if entry.blocked {
            return None;
        }
        let rest = &name[length..];
        let wanted = |mirror: &&Mirror| match mirror.pull_from_mirror.filter(|_| !entry.mirror_by_digest_only) {
            None => image.digest.is_some() || !entry.mirror_by_digest_only,
            Some(Pull::All) => true,
            Some(Pull::DigestOnly) => image.digest.is_some(),
            Some(Pull::TagOnly) => image.digest.is_none(),
        };
        let mut places: Vec<PullEndpoint> =
            entry.mirror.iter().filter(wanted).filter_map(|mirror| place(&mirror.location, rest, mirror.insecure)).collect();
        let wildcard = prefix.starts_with('*');
        places.push(match entry.location.as_ref().filter(|location| !wildcard && *location != prefix) {
            Some(location) => place(location, rest, entry.insecure)?,
            None => PullEndpoint { insecure: entry.insecure, ..own },
        });
        Some(places)
    }

    /// The full name for a name without a registry: its alias, or on the only search registry. None if this is not
    /// unambiguous.
    pub fn long_name(&self, short: &str) -> Option<String> {
        let (name, rest) = match short.find(['@', ':']) {
            Some(at) => short.split_at(at),
            None => (short, ""),
        };
        match (self.aliases.get(name).filter(|alias| !alias.is_empty()), self.search.as_slice()) {
            (Some(alias), _) => Some(format!("{alias}{rest}")),
            (None, [only]) => Some(format!("{only}/{short}")),
            (None, _) => None,
        }
    }

    /// The registries that are searched for short names.
    pub fn search(&self) -> &[String] {
        &self.search
    }
}

/// The number of bytes of `name` that a prefix covers; the match must end where a component ends.
fn matched(prefix: &str, name: &str) -> Option<usize> {
    let end = match prefix.strip_prefix('*') {
        None => name.starts_with(prefix).then_some(prefix.len())?,
        Some(suffix) => {
            let at = name.find(suffix).filter(|at| *at > 0 && !name[..*at].contains('/'))?;
            at + suffix.len()
        }
    };
    let wildcard_port = prefix.starts_with('*') && name[end..].starts_with(':');
    (end == name.len() || name[end..].starts_with('/') || wildcard_port).then_some(end)
}

fn place(location: &str, rest: &str, insecure: bool) -> Option<PullEndpoint> {
    let whole = format!("{}{rest}", location.trim_end_matches('/'));
    let (host, repository) = whole.split_once('/')?;
    Some(PullEndpoint { host: host.to_owned(), repository: repository.to_owned(), insecure })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reference::Reference;

    const TEXT: &str = r#"
unqualified-search-registries = ["docker.io", "quay.io"]
[[registry]]
prefix = "ghcr.io"
location = "ghcr.io"
[[registry.mirror]]
location = "mirror.local:5000/ghcr"
insecure = true
[[registry.mirror]]
location = "tags.local"
pull-from-mirror = "tag-only"
[[registry]]
prefix = "ghcr.io/evil"
blocked = true
[[registry]]
prefix = "old.example/team"
location = "new.example/teams/a"
[[registry]]
location = "digests.example"
mirror-by-digest-only = true
[[registry.mirror]]
location = "m.example"
[[registry]]
prefix = "*.wild.example"
[[registry.mirror]]
location = "cache.example/wild"
[aliases]
probe = "ghcr.io/acme/probe"
"#;

    fn asked(conf: &Conf, image: &str) -> Option<Vec<String>> {
        let Ok(Reference::Registry(at)) = Reference::parse(image) else { panic!("{image}") };
        let places = conf.places(&at)?;
        Some(places.iter().map(|p| format!("{}{}/{}", if p.insecure { "http:" } else { "" }, p.host, p.repository)).collect())
    }

    #[test]
    fn the_longest_prefix_decides_hosts_and_order() {
        let mut conf = Conf::default();
        assert_eq!(conf.add(TEXT), Ok(vec![]));
        let digest = format!("@sha256:{}", "a".repeat(64));
        for (image, wanted) in [
            (
                "ghcr.io/acme/x:v1".to_owned(),
                &["http:mirror.local:5000/ghcr/acme/x", "tags.local/acme/x", "ghcr.io/acme/x"][..],
            ),
            (format!("ghcr.io/acme/x{digest}"), &["http:mirror.local:5000/ghcr/acme/x", "ghcr.io/acme/x"]),
            ("ghcr.io/evilx/y".to_owned(), &["http:mirror.local:5000/ghcr/evilx/y", "tags.local/evilx/y", "ghcr.io/evilx/y"]),
            ("ghcr.io.example/x".to_owned(), &["ghcr.io.example/x"]),
            ("old.example/team/x:v1".to_owned(), &["new.example/teams/a/x"]),
            ("old.example/other/x:v1".to_owned(), &["old.example/other/x"]),
            ("digests.example/x:v1".to_owned(), &["digests.example/x"]),
            (format!("digests.example/x{digest}"), &["m.example/x", "digests.example/x"]),
            ("a.wild.example/x".to_owned(), &["cache.example/wild/x", "a.wild.example/x"]),
            ("wild.example/x".to_owned(), &["wild.example/x"]),
            ("other.example/a.wild.example/x".to_owned(), &["other.example/a.wild.example/x"]),
        ] {
            assert_eq!(asked(&conf, &image).unwrap(), wanted, "{image}");
        }
        assert_eq!(asked(&conf, "ghcr.io/evil/y"), None);
        // A later file replaces the entry with the same prefix.
        conf.add("[[registry]]\nprefix = \"ghcr.io/evil\"\n").unwrap();
        assert_eq!(asked(&conf, "ghcr.io/evil/y").unwrap(), ["ghcr.io/evil/y"]);
    }

    #[test]
    fn short_names_are_unambiguous_or_unresolved() {
        let mut conf = Conf::default();
        conf.add(TEXT).unwrap();
        assert_eq!(conf.long_name("probe:v2").as_deref(), Some("ghcr.io/acme/probe:v2"));
        assert_eq!(conf.long_name("other:v2"), None, "two registries would be searched");
        conf.add("unqualified-search-registries = [\"quay.io\"]").unwrap();
        assert_eq!(conf.long_name("other:v2").as_deref(), Some("quay.io/other:v2"));
    }

    #[test]
    fn invalid_entries_never_unblock() {
        for (text, sentence) in [
            ("[registries.search]\nregistries = []", "version 1"),
            ("[[registry]]\nblocked = true", "neither prefix nor location"),
            ("[[registry]]\nprefix = \"a.*.b\"", "only at its start"),
            ("[[registry]]\nprefix = \"a\"\nlocation = \"https://b\"", "without a scheme"),
            ("[[registry]]\nprefix = \"a\"\nblocked = \"yes\"", "invalid type"),
        ] {
            let problem = Conf::default().add(text).unwrap_err();
            assert!(problem.contains(sentence), "{text}: {problem}");
        }
    }
}
