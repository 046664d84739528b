//! Writes image sets into layouts and archives.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;

use crate::image::MAX_MANIFEST;
use crate::image::error::ImageError;
use crate::image::oci::document::{Document, REF_NAME};
use crate::image::oci::written;
use crate::image::transfer::image_set::{ImageDocument, ImageSet};
use crate::sys::SysError;
use crate::sys::fsutil::write_atomically;

/// Writes an image set into a layout directory under a name. The directory is created if it is missing. Other images in
/// it are kept; one with the same name loses the name.
pub(crate) fn to_layout(image_set: &ImageSet, directory: &Path, name: Option<&str>, image: &str) -> Result<(), ImageError> {
    let failed = |source| ImageError::Carry { doing: "write", image: image.to_owned(), source };
    let io = |doing, path: &Path, err| failed(SysError::io(doing, path.display().to_string())(err));
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(|err| io("make", &blobs, err))?;
    let index = directory.join("index.json");
    let old = match std::fs::read(&index) {
        Ok(text) => text,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(err) => return Err(io("read", &index, err)),
    };
    let old = match old.is_empty() {
        true => Vec::new(),
        false => entries_of(&old).map_err(|problem| {
            let image = format!("oci:{}", directory.display());
            ImageError::Malformed { image, part: "index.json", problem }
        })?,
    };
    for (digest, bytes) in contents(image_set) {
        write_atomically(&blobs.join(digest), bytes, 0o644).map_err(failed)?;
    }
    write_atomically(&directory.join("oci-layout"), written::LAYOUT, 0o644).map_err(failed)?;
    write_atomically(&index, &index_of(old, image_set, name), 0o644).map_err(failed)
}

/// Writes an image set as a layout in a tar file.
pub(crate) fn to_archive(image_set: &ImageSet, file: &Path, name: Option<&str>, image: &str) -> Result<(), ImageError> {
    let failed = |source| ImageError::Carry { doing: "write", image: image.to_owned(), source };
    write_atomically(file, &archive(image_set, name), 0o644).map_err(failed)
}

/// An image set as a layout in a tar.
pub(crate) fn archive(image_set: &ImageSet, name: Option<&str>) -> Vec<u8> {
    let index = index_of(Vec::new(), image_set, name);
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, path, bytes).expect("writing to memory cannot fail, and the names are short");
    };
    add("oci-layout", written::LAYOUT);
    add("index.json", &index);
    for (digest, bytes) in contents(image_set) {
        add(&format!("blobs/sha256/{digest}"), bytes);
    }
    archive.into_inner().expect("writing to memory cannot fail")
}

/// Everything by the file names of blobs.
fn contents(image_set: &ImageSet) -> BTreeMap<String, &[u8]> {
    let documents = image_set
        .documents
        .iter()
        .chain(&image_set.signatures)
        .map(|document| (document.digest.hex(), document.bytes.as_slice()));
    documents.chain(image_set.blobs.iter().map(|(digest, bytes)| (digest.hex(), bytes.as_slice()))).collect()
}

/// The entries of an index as they were written.
pub(crate) fn entries_of(index: &[u8]) -> Result<Vec<Value>, String> {
    if index.len() > MAX_MANIFEST {
        return Err("it is too large".to_owned());
    }
    match Document::parse(index)? {
        Document::Index(_) => {}
        Document::Manifest(_) => return Err("it is not an index".to_owned()),
    }
    let parsed: Value = serde_json::from_slice(index).map_err(|err| err.to_string())?;
    Ok(parsed.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default())
}

fn index_of(mut entries: Vec<Value>, image_set: &ImageSet, name: Option<&str>) -> Vec<u8> {
    let top = image_set.documents.last().into_iter().map(|document| (document, name.map(str::to_owned)));
    // The children of an index of signatures are found through it.
    let found = |document: &&ImageDocument| document.name.is_some() || document.subject() == Some(image_set.digest);
    let named = top.chain(image_set.signatures.iter().filter(found).map(|document| (document, document.name.clone())));
    for (document, name) in named {
        entries.retain(|entry| match &name {
            Some(name) => entry["annotations"][REF_NAME].as_str() != Some(name),
            None => {
                entry["digest"].as_str() != Some(&document.digest.to_string()) || entry["annotations"][REF_NAME].is_string()
            }
        });
        entries.push(entry(document, name));
    }
    written::bytes(&written::index(&entries))
}

fn entry(document: &ImageDocument, name: Option<String>) -> Value {
    let mut entry = document.entry();
    entry.set_annotations(name.map(|name| HashMap::from([(REF_NAME.to_owned(), name)])));
    written::entry(&entry)
}
