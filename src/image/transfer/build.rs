//! Builds bytecode images from object files, in bpfman's format: one layer with the object at its root, labels in the
//! config that list its programs and maps, and an index for several platforms.
//!
//! Builds are reproducible: the same objects give the same image, without clock, user or file times.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;

use oci_spec::OciSpecError;
use oci_spec::image::{
    Arch, ConfigBuilder, HistoryBuilder, ImageConfiguration, ImageConfigurationBuilder, MediaType, Os, PlatformBuilder,
    RootFsBuilder,
};

use crate::image::error::LayerError;
use crate::image::hash;
use crate::image::oci::object::{ByteOrder, ImageLabels, byte_order, not_in_object, printable};
use crate::image::oci::written;
use crate::image::transfer::image_set::{ImageDocument, ImageSet};
use crate::model::ids::Digest;

/// The labels of an image about one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    /// Function to type.
    pub programs: BTreeMap<String, String>,
    /// Map to type.
    pub maps: BTreeMap<String, String>,
}

/// One object for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// `amd64`
    pub architecture: String,
    /// The object's file name in the image.
    pub name: String,
    /// The object.
    pub object: Vec<u8>,
    /// Its programs and maps.
    pub described: Described,
}

impl Input {
    /// Programs and maps that the labels list and the object does not have.
    pub fn missing(&self) -> Vec<String> {
        let Described { programs, maps } = self.described.clone();
        not_in_object(&ImageLabels { programs, maps, filename: None }, &self.object)
    }

    /// The architecture as it was given: oci-spec 0.10 takes "armbe" for "arm64be".
    fn arch(&self) -> Arch {
        Arch::Other(self.architecture.clone())
    }
}

/// Go names of architectures, which images use, with their byte orders and the names that cilium's bpf2go uses for
/// them.
pub const ARCHITECTURES: &[(&str, ByteOrder, &[&str])] = &[
    ("386", ByteOrder::Little, &["386"]),
    ("amd64", ByteOrder::Little, &["x86"]),
    ("arm", ByteOrder::Little, &["arm"]),
    ("arm64", ByteOrder::Little, &["arm64"]),
    ("loong64", ByteOrder::Little, &["loongarch", "loong64"]),
    ("mips", ByteOrder::Big, &["mips"]),
    ("mipsle", ByteOrder::Little, &["mipsle"]),
    ("mips64", ByteOrder::Big, &["mips64"]),
    ("mips64le", ByteOrder::Little, &["mips64le"]),
    ("ppc64", ByteOrder::Big, &["powerpc", "ppc64"]),
    ("ppc64le", ByteOrder::Little, &["powerpc", "ppc64le"]),
    ("riscv64", ByteOrder::Little, &["riscv", "riscv64"]),
    ("s390x", ByteOrder::Big, &["s390", "s390x"]),
];

/// The byte order of an architecture with a Go name.
pub fn byte_order_of(architecture: &str) -> Option<ByteOrder> {
    ARCHITECTURES.iter().find(|(name, ..)| *name == architecture).map(|(_, order, _)| *order)
}

/// The architecture in the name of a file that bpf2go wrote: `probe_x86_bpfel.o`, `probe_arm64_bpfel.o`.
pub fn architecture_of_name(name: &str) -> Option<&'static str> {
    let stem = name.strip_suffix(".o")?;
    ARCHITECTURES.iter().find_map(|(architecture, order, words)| {
        let rest = stem.strip_suffix(order.suffix())?.strip_suffix('_')?;
        let word = rest.rsplit('_').next()?;
        (rest.len() > word.len() && words.contains(&word)).then_some(*architecture)
    })
}

/// This machine's architecture.
pub fn native() -> &'static str {
    crate::image::oci::document::goarch()
}

/// Checks that an object is a BPF object for an architecture.
pub fn check(name: &str, object: &[u8], architecture: &str) -> Result<(), LayerError> {
    let name = printable(name);
    let found = byte_order(&name, object)?;
    match byte_order_of(architecture) {
        Some(wanted) if wanted != found => {
            Err(LayerError::ForOtherOrder { name, found: found.word(), architecture: architecture.to_owned() })
        }
        _ => Ok(()),
    }
}

/// The time in a config, for reproducible builds.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Packs an image: a manifest for one input, an index for several. All inputs have different architectures. Each manifest
/// and the index have the annotations.
pub fn pack(inputs: &[Input], index: bool, annotations: &BTreeMap<String, String>) -> ImageSet {
    let mut image_set = ImageSet::begin(&hash(b""));
    let mut entries = Vec::new();
    for input in inputs {
        let document = one(&mut image_set, input, annotations);
        let mut descriptor = document.descriptor();
        let platform = PlatformBuilder::default().os(Os::Linux).architecture(input.arch()).build();
        descriptor.set_platform(Some(platform.expect("it has every required field")));
        entries.push(written::entry(&descriptor));
        if !image_set.documents.contains(&document) {
            image_set.documents.push(document);
        }
    }
    if index {
        image_set.documents.push(ImageDocument::new(
            &written::annotated(&written::index(&entries), annotations),
            MediaType::ImageIndex,
            None,
        ));
    }
    image_set.digest = image_set.documents.last().map_or(image_set.digest, |document| document.digest);
    image_set
}

fn one(image_set: &mut ImageSet, input: &Input, annotations: &BTreeMap<String, String>) -> ImageDocument {
    let tar = tar_of(&input.name, &input.object);
    let layer = gzip(&tar);
    let config = written::bytes(&config(input, hash(&tar)).expect("no field of a config is required"));
    let manifest = written::manifest(
        written::descriptor_of(MediaType::ImageConfig, &config),
        vec![written::descriptor_of(MediaType::ImageLayerGzip, &layer)],
    );
    image_set.blobs.insert(hash(&config), config);
    image_set.blobs.insert(hash(&layer), layer);
    ImageDocument::new(&written::annotated(&manifest, annotations), MediaType::ImageManifest, None)
}

/// The config of an image with one layer.
fn config(input: &Input, layer: Digest) -> Result<ImageConfiguration, OciSpecError> {
    let table = |table: &BTreeMap<String, String>| serde_json::to_string(table).expect("strings are JSON");
    let labels = HashMap::from([
        ("io.ebpf.programs".to_owned(), table(&input.described.programs)),
        ("io.ebpf.maps".to_owned(), table(&input.described.maps)),
    ]);
    let history = HistoryBuilder::default().created(CREATED).created_by(format!("COPY {} /", input.name)).build()?;
    ImageConfigurationBuilder::default()
        .created(CREATED)
        .architecture(input.arch())
        .os(Os::Linux)
        .config(ConfigBuilder::default().labels(labels).build()?)
        .rootfs(RootFsBuilder::default().diff_ids([layer.to_string()]).build()?)
        .history([history])
        .build()
}

fn tar_of(name: &str, object: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.mode(tar::HeaderMode::Deterministic);
    let mut header = tar::Header::new_gnu();
    header.set_size(object.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    archive.append_data(&mut header, name, object).expect("writing to memory cannot fail, and the name was checked");
    archive.into_inner().expect("writing to memory cannot fail")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    // No file name and no time: flate2 writes them only on request.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("writing to memory cannot fail")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OBJECT: &[u8] = include_bytes!("../../../tests/data/images/pass.bpfel.o");
    const BIG_ENDIAN: &[u8] = include_bytes!("../../../tests/data/images/pass.bpfeb.o");

    fn input(architecture: &str, object: &[u8]) -> Input {
        let programs = BTreeMap::from([("pass".to_owned(), "xdp".to_owned())]);
        let described = Described { programs, maps: BTreeMap::new() };
        Input { architecture: architecture.into(), name: "pass.o".into(), object: object.to_vec(), described }
    }

    #[test]
    fn equal_objects_give_equal_images() {
        let both = [input("amd64", OBJECT), input("s390x", BIG_ENDIAN)];
        assert_eq!(pack(&both, true, &BTreeMap::new()), pack(&both, true, &BTreeMap::new()));
        let one = pack(&both[..1], false, &BTreeMap::new());
        assert_eq!((one.documents.len(), one.blobs.len()), (1, 2));
        // Across versions too: a change of this digest affects everyone who rebuilds a signed image.
        assert_eq!(one.documents[0].digest, one.digest);
        let two = pack(&both, true, &BTreeMap::new());
        assert_eq!((two.documents.len(), two.blobs.len()), (3, 4));
        assert_eq!(two.documents[2].digest, two.digest);
    }

    /// Byte for byte: rebuilding a signed image must not change its digest.
    #[test]
    fn configs_manifests_and_indexes_have_exactly_these_fields() {
        let image_set = pack(&[input("armbe", OBJECT)], true, &BTreeMap::new());
        let tar = tar_of("pass.o", OBJECT);
        let layer = gzip(&tar);
        let config = json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": "armbe",
            "os": "linux",
            "config": { "Labels": { "io.ebpf.programs": r#"{"pass":"xdp"}"#, "io.ebpf.maps": "{}" } },
            "rootfs": { "type": "layers", "diff_ids": [hash(&tar)] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "COPY pass.o /" }],
        });
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": hash(&config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": hash(&layer), "size": layer.len(),
            }],
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": hash(&manifest),
                "size": manifest.len(), "platform": { "os": "linux", "architecture": "armbe" },
            }],
        });
        assert_eq!(image_set.blobs.get(&hash(&config)), Some(&config));
        let documents: Vec<_> = image_set.documents.into_iter().map(|document| document.bytes).collect();
        assert_eq!(documents, [manifest, serde_json::to_vec(&index).unwrap()]);
    }

    #[test]
    fn objects_are_for_their_architecture() {
        assert_eq!(check("a.o", OBJECT, "amd64"), Ok(()));
        assert_eq!(check("a.o", BIG_ENDIAN, "s390x"), Ok(()));
        assert!(matches!(check("a.o", OBJECT, "s390x"), Err(LayerError::ForOtherOrder { .. })));
        assert!(matches!(check("a.o", b"#!/bin/sh", "amd64"), Err(LayerError::NotElf(_))));
    }

    #[test]
    fn names_of_bpf2go_contain_the_architecture() {
        for (name, architecture) in [
            ("bpf_x86_bpfel.o", Some("amd64")),
            ("a_b_arm64_bpfel.o", Some("arm64")),
            ("bpf_s390_bpfeb.o", Some("s390x")),
            ("bpf_powerpc_bpfel.o", Some("ppc64le")),
            ("bpf_powerpc_bpfeb.o", Some("ppc64")),
            ("bpf_bpfel.o", None),
            ("x86_bpfel.o", None),
            ("bpf_x86_bpfeb.o", None),
            ("bpf.o", None),
        ] {
            assert_eq!(architecture_of_name(name), architecture, "{name}");
        }
    }
}
