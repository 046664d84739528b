//! What we write: descriptors, manifests and indexes of the crate oci-spec. What others wrote is read by
//! [`document`](crate::image::oci::document).

use std::collections::BTreeMap;

use oci_spec::image::{Descriptor, ImageManifest, ImageManifestBuilder, MediaType, SCHEMA_VERSION, Sha256Digest};
use serde::Serialize;
use serde_json::{Value, json};

use crate::image::hash;
use crate::model::ids::Digest;

/// `oci-layout`, the file that marks a directory as a layout.
pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A descriptor of content with a known digest and size in bytes.
pub(crate) fn descriptor(media_type: MediaType, digest: &Digest, size: u64) -> Descriptor {
    let digest: Sha256Digest = digest.hex().parse().expect("it is 64 hexadecimal digits in lower case");
    Descriptor::new(media_type, size, digest)
}

/// A descriptor of content.
pub(crate) fn descriptor_of(media_type: MediaType, content: &[u8]) -> Descriptor {
    descriptor(media_type, &hash(content), content.len() as u64)
}

/// A manifest.
pub(crate) fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> ImageManifest {
    ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .build()
        .expect("it has every required field")
}

/// The document with annotations, unless there are none.
pub(crate) fn annotated(document: &impl Serialize, annotations: &BTreeMap<String, String>) -> Value {
    let mut value = serde_json::to_value(document).expect("a document is JSON");
    if !annotations.is_empty() {
        value["annotations"] = json!(annotations);
    }
    value
}

/// An index. Its entries are JSON, since those that others wrote must not lose the fields that oci-spec does not know.
pub(crate) fn index(entries: &[Value]) -> Value {
    json!({ "schemaVersion": SCHEMA_VERSION, "mediaType": MediaType::ImageIndex, "manifests": entries })
}

/// An entry of an index.
pub(crate) fn entry(descriptor: &Descriptor) -> Value {
    serde_json::to_value(descriptor).expect("a descriptor is JSON")
}

/// The bytes of a document, by way of a value that sorts the keys: oci-spec has maps without an order, and the same
/// document must always have the same digest.
pub(crate) fn bytes(document: &impl Serialize) -> Vec<u8> {
    let value = serde_json::to_value(document).expect("a document is JSON");
    serde_json::to_vec(&value).expect("a JSON value is JSON")
}
