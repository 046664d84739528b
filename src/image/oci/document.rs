//! Manifests and indexes as registries and tools write them: lenient structs of our own for untrusted JSON.
//!
//! umoci writes manifests without mediaType, buildx puts an attestation first, docker has its own media types. One
//! thing is strict: a document that could be read as both manifest and index is neither (CVE-2021-41190).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::ids::Digest;

/// More entries than any real index has; limits the work that one document can cause.
const MAX_ENTRIES: usize = 1024;

/// The name of an entry in a layout's index.json.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A descriptor in a manifest or index.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    /// As it was written: an entry with another algorithm must not invalidate the others.
    digest: String,
    #[serde(default)]
    pub artifact_type: Option<String>,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// `platform` of an index entry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

/// A parsed document.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    /// An OCI index or a docker manifest list.
    Index(Vec<Descriptor>),
    /// An OCI or docker v2s2 manifest.
    Manifest(Box<Manifest>),
}

/// The parts of a manifest that we use.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub artifact_type: Option<String>,
    pub config: Option<Descriptor>,
    pub layers: Vec<Descriptor>,
    pub subject: Option<Descriptor>,
}

impl Manifest {
    /// The image config, if it is one; artifacts have an empty or a foreign config.
    pub fn image_config(&self) -> Option<&Descriptor> {
        self.config.as_ref().filter(|config| {
            matches!(
                config.media_type.as_str(),
                "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
            )
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    subject: Option<Descriptor>,
}

impl Descriptor {
    /// The digest if it is sha256; otherwise a message that names its algorithm.
    pub fn digest(&self) -> Result<Digest, String> {
        self.digest.parse().map_err(|err: crate::model::ids::IdError| err.to_string())
    }

    /// The digest as it was written, truncated.
    pub fn written_digest(&self) -> String {
        self.digest.chars().take(80).collect()
    }

    /// One annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// The platform for messages.
    pub fn platform_name(&self) -> String {
        match &self.platform {
            Some(Platform { os, architecture }) => {
                format!("{os}/{architecture}").chars().filter(|c| !c.is_control()).take(40).collect()
            }
            None => "an entry without platform".to_owned(),
        }
    }

    /// True for entries of an index that describe other entries and are not images: buildx' attestations.
    pub fn is_attestation(&self) -> bool {
        let unknown = |p: &Platform| p.os == "unknown" && p.architecture == "unknown";
        self.platform.as_ref().is_some_and(unknown)
            || self.annotation("vnd.docker.reference.type") == Some("attestation-manifest")
    }
}

impl Document {
    /// Parses a document; the error says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        // serde would accept an array of the fields in their order.
        if bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err("it is not a JSON object".to_owned());
        }
        // serde repeats unexpected values, which may be a megabyte.
        let raw: RawDocument =
            serde_json::from_slice(bytes).map_err(|err| err.to_string().chars().take(200).collect::<String>())?;
        if raw.schema_version.is_some_and(|version| version != 2) {
            return Err("its schemaVersion is not 2".to_owned());
        }
        let says_index = raw.media_type.as_deref().map(|kind| match kind {
            "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => Ok(true),
            "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => Ok(false),
            other => Err(format!("its mediaType is {:?}", other.chars().take(100).collect::<String>())),
        });
        let says_index = says_index.transpose()?;
        let document = match (raw.manifests, raw.layers) {
            (Some(_), Some(_)) => return Err("it has both manifests and layers".to_owned()),
            (Some(_), None) if raw.config.is_some() => return Err("it has both manifests and a config".to_owned()),
            (Some(manifests), None) => Self::Index(manifests),
            (None, layers) => Self::Manifest(Box::new(Manifest {
                artifact_type: raw.artifact_type,
                config: raw.config,
                layers: layers.unwrap_or_default(),
                subject: raw.subject,
            })),
        };
        let (is_index, entries) = match &document {
            Self::Index(entries) => (true, entries.len()),
            Self::Manifest(manifest) => (false, manifest.layers.len()),
        };
        if says_index.is_some_and(|says| says != is_index) {
            return Err("its mediaType does not match its content".to_owned());
        }
        if entries > MAX_ENTRIES {
            return Err(format!("it has {entries} entries, more than {MAX_ENTRIES}"));
        }
        Ok(document)
    }
}

/// The result of choosing an entry for this machine.
#[derive(Debug)]
pub(crate) enum Choice<'a> {
    /// The entry.
    Entry(&'a Descriptor),
    /// No entry: the platforms that the index has.
    Nothing(Vec<String>),
}

/// Chooses the entry of an index for linux on the architecture `goarch`. The first match is used, as in other tools. An
/// index with a single entry that names no platform offers that entry.
pub(crate) fn choose<'a>(entries: &'a [Descriptor], goarch: &str) -> Choice<'a> {
    let images: Vec<_> = entries.iter().filter(|entry| !entry.is_attestation()).collect();
    let fits = |p: &Platform| p.os == "linux" && p.architecture == goarch;
    if let Some(entry) = images.iter().find(|entry| entry.platform.as_ref().is_some_and(fits)) {
        return Choice::Entry(entry);
    }
    match images.as_slice() {
        [only] if only.platform.is_none() => Choice::Entry(only),
        _ => Choice::Nothing(images.iter().take(12).map(|entry| entry.platform_name()).collect()),
    }
}

/// This machine's architecture by its Go name, which images use.
pub(crate) fn goarch() -> &'static str {
    let little = cfg!(target_endian = "little");
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if little => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        "mips64" if little => "mips64le",
        "mips" if little => "mipsle",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:161dc817fb990f4f5168adaa3aa3e98142fc7b2d1869fade5f356900675dff76";

    fn entry(platform: &str) -> String {
        let (os, arch) = platform.split_once('/').unwrap();
        format!(r#"{{"digest":"{D}","platform":{{"os":"{os}","architecture":"{arch}"}}}}"#)
    }

    fn index(entries: &[String]) -> Vec<Descriptor> {
        match Document::parse(format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(",")).as_bytes()) {
            Ok(Document::Index(entries)) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_document_is_an_index_or_a_manifest_but_not_both() {
        let oci = "application/vnd.oci.image.";
        for (text, problem) in [
            (r#"{"manifests":[],"layers":[]}"#.to_owned(), "both manifests and layers"),
            (format!(r#"{{"manifests":[],"config":{{"digest":"{D}"}}}}"#), "both manifests and a config"),
            (format!(r#"{{"mediaType":"{oci}manifest.v1+json","manifests":[]}}"#), "does not match its content"),
            (format!(r#"{{"mediaType":"{oci}index.v1+json","layers":[]}}"#), "does not match its content"),
            (r#"{"mediaType":"text/html","layers":[]}"#.to_owned(), "its mediaType is \"text/html\""),
            (r#"{"schemaVersion":1,"layers":[]}"#.to_owned(), "schemaVersion"),
            ("[]".to_owned(), ""),
            ("{".to_owned(), ""),
            (format!(r#"{{"layers":[{}]}}"#, vec![format!(r#"{{"digest":"{D}"}}"#); 1025].join(",")), "more than 1024"),
        ] {
            let err = Document::parse(text.as_bytes()).unwrap_err();
            assert!(err.contains(problem), "{text:.60}: {err}");
        }
        assert!(matches!(Document::parse(b"{}"), Ok(Document::Manifest(m)) if m.layers.is_empty()));
    }

    #[test]
    fn the_entry_for_this_machine_is_chosen_and_attestations_never() {
        let entries = index(&[entry("unknown/unknown"), entry("linux/s390x"), entry("linux/amd64")]);
        assert!(matches!(choose(&entries, "amd64"), Choice::Entry(e) if std::ptr::eq(e, &entries[2])));
        assert!(matches!(choose(&entries, "arm64"), Choice::Nothing(offered) if offered == ["linux/s390x", "linux/amd64"]));
        let windows = index(&[entry("windows/amd64")]);
        assert!(matches!(choose(&windows, "amd64"), Choice::Nothing(_)));
        let bare = index(&[format!(r#"{{"digest":"{D}"}}"#)]);
        assert!(matches!(choose(&bare, "amd64"), Choice::Entry(_)));
        let attested =
            index(&[format!(r#"{{"digest":"{D}","annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}}"#)]);
        assert!(matches!(choose(&attested, "amd64"), Choice::Nothing(offered) if offered.is_empty()));
    }

    #[test]
    fn another_digest_algorithm_invalidates_only_its_own_entry() {
        let sha512 = format!("sha512:{}", "ab".repeat(64));
        let entries = index(&[format!(r#"{{"digest":"{sha512}"}}"#), format!(r#"{{"digest":"{D}"}}"#)]);
        assert!(entries[0].digest().unwrap_err().contains("sha512"));
        assert_eq!(entries[1].digest().unwrap().to_string(), D);
    }
}
