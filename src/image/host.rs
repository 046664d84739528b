//! Bytecode on the host's own file systems: `file:`, `oci:` and `oci-archive:`.
//!
//! A host path is a way to make root read a file, so every component of it must be root's and nobody else's to change, links
//! are not followed, and the bytes are read once: that copy is hashed, verified and loaded.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::image::error::ImageError;
use crate::image::oci::tar_end::ends_archive;
use crate::sys::fsutil::{TrustError, TrustedRoot};

/// The most that an `oci-archive:` may hold: several architectures with their signatures.
pub(crate) const MAX_ARCHIVE: usize = 64 << 20;
/// The most files that an `oci-archive:` may hold.
const MAX_ARCHIVE_FILES: usize = 4096;

/// What came of reading something by name or digest.
#[derive(Debug)]
pub(crate) enum HostBlob {
    /// All of its bytes.
    Bytes(Vec<u8>),
    /// It is not there.
    Missing,
    /// It is larger than the caller's limit.
    TooLarge,
}

/// The files of one layout, wherever they are.
#[derive(Debug)]
pub(crate) enum LayoutFiles {
    /// `oci:`
    Directory {
        /// Below which every component is checked.
        root: TrustedRoot,
        /// The layout.
        path: PathBuf,
    },
    /// `oci-archive:`, in memory.
    Archive {
        /// The whole tar.
        bytes: Vec<u8>,
        /// Where each file's contents stand in it.
        at: BTreeMap<String, Range<usize>>,
    },
}

impl LayoutFiles {
    /// The files of a layout directory. Nothing is opened yet.
    pub fn directory(root: TrustedRoot, path: &Path) -> Self {
        Self::Directory { root, path: path.to_owned() }
    }

    /// Reads an archive. Where a name stands twice, the later file counts, as when the archive is unpacked.
    pub fn archive(root: &TrustedRoot, path: &Path, image: &str) -> Result<Self, ImageError> {
        let bytes = match read(root, path, MAX_ARCHIVE, image)? {
            HostBlob::Bytes(bytes) => bytes,
            HostBlob::Missing => return Err(ImageError::NotFound { image: image.to_owned() }),
            HostBlob::TooLarge => {
                return Err(ImageError::TooLarge { image: image.to_owned(), part: "archive", limit: MAX_ARCHIVE });
            }
        };
        Self::archive_of(bytes, image)
    }

    /// The files of an archive that was read already.
    pub fn archive_of(bytes: Vec<u8>, image: &str) -> Result<Self, ImageError> {
        let malformed = |problem: String| ImageError::Malformed { image: image.to_owned(), part: "archive", problem };
        let mut at = BTreeMap::new();
        let mut archive = tar::Archive::new(bytes.as_slice());
        for (seen, entry) in archive.entries().map_err(|err| malformed(err.to_string()))?.enumerate() {
            if seen == MAX_ARCHIVE_FILES {
                return Err(malformed(format!("it has more than {MAX_ARCHIVE_FILES} files")));
            }
            let entry = entry.map_err(|err| malformed(format!("it is no tar, or was cut: {err}")))?;
            let last = ends_archive(entry.raw_file_position(), entry.size(), bytes.len());
            if !entry.header().entry_type().is_file() {
                if last {
                    break;
                }
                continue;
            }
            let range = usize::try_from(entry.raw_file_position())
                .ok()
                .and_then(|start| Some(start..start.checked_add(usize::try_from(entry.size()).ok()?)?))
                .filter(|range| range.end <= bytes.len())
                .ok_or_else(|| malformed("it was cut".to_owned()))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            at.insert(name.trim_start_matches("./").to_owned(), range);
            if last {
                break;
            }
        }
        Ok(Self::Archive { bytes, at })
    }

    /// Reads one file of the layout, named from the layout's own root: `index.json`, `blobs/sha256/…`.
    pub fn read(&self, name: &str, max: usize, image: &str) -> Result<HostBlob, ImageError> {
        match self {
            Self::Directory { root, path } => read(root, &path.join(name), max, image),
            Self::Archive { bytes, at } => Ok(match at.get(name) {
                None => HostBlob::Missing,
                Some(range) if range.len() > max => HostBlob::TooLarge,
                Some(range) => HostBlob::Bytes(bytes[range.clone()].to_vec()),
            }),
        }
    }
}

/// Reads a host file once.
pub(crate) fn read(root: &TrustedRoot, path: &Path, max: usize, image: &str) -> Result<HostBlob, ImageError> {
    match root.read_file(path, max) {
        Ok(bytes) => Ok(HostBlob::Bytes(bytes)),
        Err(TrustError::Missing(_)) => Ok(HostBlob::Missing),
        Err(TrustError::TooLarge { .. }) => Ok(HostBlob::TooLarge),
        Err(source) => Err(ImageError::HostPath { image: image.to_owned(), source }),
    }
}
