//! From a top-level document to the object: selects the manifest for this machine, reads the labels, selects the layer.

use crate::image::error::{ImageError, LayerError};
use crate::image::oci::document::{Choice, Descriptor, Document, Manifest, choose, goarch};
use crate::image::oci::object;
use crate::image::oci::object::{ImageLabels, Unpacked};
use crate::image::source::BlobSource;
use crate::image::{MAX_MANIFEST, MAX_OBJECT, hash};

/// An index may refer to an index, and that one to a manifest; deeper nesting is refused.
pub(crate) const MAX_DEPTH: usize = 3;
/// The limit on layers of an artifact that are examined.
const MAX_LAYERS: usize = 8;
/// The layers of a gadget that contain BPF; its others are WebAssembly and BTF.
const GADGET_EBPF: &str = "application/vnd.gadget.ebpf.program.v1+binary";

/// An object and the blobs that it was extracted from.
#[derive(Debug)]
pub(crate) struct Content {
    /// Top, child, config, layer.
    pub blobs: Vec<Vec<u8>>,
    /// The object.
    pub object: Vec<u8>,
    /// The labels of its config.
    pub labels: ImageLabels,
}

/// Follows a top-level document, whose digest was verified and accepted, to the object.
pub(crate) fn content(source: &mut BlobSource, image: &str, top: Vec<u8>) -> Result<Content, ImageError> {
    let mut blobs = vec![top];
    let mut depth = 0;
    let manifest = loop {
        let document = blobs.last().expect("it begins with one and grows");
        let part = if depth == 0 { "manifest" } else { "manifest for this platform" };
        let malformed = |problem: String| ImageError::Malformed { image: image.to_owned(), part, problem };
        let child = match Document::parse(document).map_err(malformed)? {
            Document::Manifest(manifest) => break manifest,
            Document::Index(_) if depth == MAX_DEPTH => {
                return Err(malformed("its indexes are nested too deeply".to_owned()));
            }
            Document::Index(entries) => match choose(&entries, goarch()) {
                Choice::Entry(entry) => entry.digest().map_err(malformed)?,
                Choice::Nothing(offered) => {
                    let wanted = format!("linux/{}", goarch());
                    return Err(ImageError::Platform { image: image.to_owned(), wanted, offered });
                }
            },
        };
        blobs.push(source.manifest(image, "manifest for this platform", &child)?);
        depth += 1;
    };
    let labels = match config(source, image, &manifest)? {
        Some(config) => {
            let labels = ImageLabels::of_config(&config);
            blobs.push(config);
            labels
        }
        None => {
            blobs.extend(foreign_config(source, image, &manifest));
            ImageLabels::default()
        }
    };
    let mut files = object::LayerFiles::default();
    for (nth, layer) in layers(image, &manifest)?.into_iter().enumerate() {
        let digest =
            layer.digest().map_err(|problem| ImageError::Malformed { image: image.to_owned(), part: "layer", problem })?;
        let bytes = source.blob(image, "layer", &digest, MAX_OBJECT)?;
        blobs.push(bytes.clone());
        let name =
            layer.annotation("org.opencontainers.image.title").map_or_else(|| format!("layer {}", nth + 1), object::printable);
        match object::unpack(bytes, &name).map_err(|source| ImageError::Object { image: image.to_owned(), source })? {
            Unpacked::TooLarge => {
                return Err(ImageError::TooLarge { image: image.to_owned(), part: "unpacked layer", limit: MAX_OBJECT });
            }
            Unpacked::Files(more) => {
                files.objects.extend(more.objects);
                files.others.extend(more.others);
            }
        }
    }
    let wrong = |source| ImageError::Object { image: image.to_owned(), source };
    let (name, object) = object::single(files, &labels).map_err(wrong)?;
    object::check(&name, &object).map_err(wrong)?;
    let missing = object::not_in_object(&labels, &object);
    if !missing.is_empty() {
        tracing::warn!(image, object = name, ?missing, "labels name programs or maps that the object does not have");
    }
    Ok(Content { blobs, object, labels })
}

/// The image config, if it is one; artifacts have an empty or a foreign config.
fn config(source: &mut BlobSource, image: &str, manifest: &Manifest) -> Result<Option<Vec<u8>>, ImageError> {
    let Some(config) = manifest.image_config() else { return Ok(None) };
    let malformed = |problem: String| ImageError::Malformed { image: image.to_owned(), part: "config", problem };
    let digest = config.digest().map_err(malformed)?;
    source.blob(image, "config", &digest, MAX_MANIFEST).map(Some)
}

/// The config of an artifact. It says nothing about the object, but a copy of the image needs it; a start must not fail
/// without it.
fn foreign_config(source: &mut BlobSource, image: &str, manifest: &Manifest) -> Option<Vec<u8>> {
    const EMPTY: &[u8] = b"{}";
    let digest = manifest.config.as_ref()?.digest().ok()?;
    if digest == hash(EMPTY) {
        return Some(EMPTY.to_vec());
    }
    source.blob(image, "config", &digest, MAX_MANIFEST).ok()
}

/// The layers that may contain the object. A file system of several layers is refused: which layer's file is used would
/// depend on overlay rules.
fn layers<'a>(image: &str, manifest: &'a Manifest) -> Result<Vec<&'a Descriptor>, ImageError> {
    let gadget: Vec<_> = manifest.layers.iter().filter(|layer| layer.media_type == GADGET_EBPF).collect();
    if !gadget.is_empty() {
        return Ok(gadget.into_iter().take(MAX_LAYERS).collect());
    }
    let of_file_system = |layer: &Descriptor| {
        layer.media_type.starts_with("application/vnd.oci.image.layer.")
            || layer.media_type.starts_with("application/vnd.docker.image.rootfs.")
    };
    let count = manifest.layers.len();
    if count > MAX_LAYERS || (count > 1 && manifest.layers.iter().any(of_file_system)) {
        return Err(ImageError::Object { image: image.to_owned(), source: LayerError::Layers(count) });
    }
    Ok(manifest.layers.iter().collect())
}

/// The media type for the top-level document in an index; umoci's documents do not contain it.
pub(crate) fn media_type(top: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
    }
    let said = serde_json::from_slice::<Typed>(top).ok().and_then(|typed| typed.media_type);
    said.unwrap_or_else(|| match Document::parse(top) {
        Ok(Document::Index(_)) => "application/vnd.oci.image.index.v1+json".to_owned(),
        _ => "application/vnd.oci.image.manifest.v1+json".to_owned(),
    })
}
