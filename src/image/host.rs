//! Bytecode on the host's own file systems: `file:`, `oci:` and `oci-archive:`.
//!
//! A host path makes root read a file, so every component of it must be owned by root and not writable by others, links
//! are not followed, and the bytes are read once: that copy is hashed, verified and loaded.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::image::error::ImageError;
use crate::image::oci::tar_end::ends_archive;
use crate::sys::fsutil::{TrustError, TrustedRoot};

/// The size limit of an `oci-archive:`, in bytes: several architectures with their signatures.
pub(crate) const MAX_ARCHIVE: usize = 64 << 20;
/// The limit on files in an `oci-archive:`.
const MAX_ARCHIVE_FILES: usize = 4096;

/// The result of reading something by name or digest.
#[derive(Debug)]
pub(crate) enum HostBlob {
    /// All of its bytes.
    Bytes(Vec<u8>),
    /// It does not exist.
    Missing,
    /// It is larger than the caller's limit.
    TooLarge,
}

/// The files of one layout, in a directory or an archive.
#[derive(Debug)]
pub(crate) enum LayoutFiles {
    /// `oci:`
    Directory {
        /// The directory below which every component is checked.
        root: TrustedRoot,
        /// The layout.
        path: PathBuf,
    },
    /// `oci-archive:`, in memory.
    Archive {
        /// The whole tar.
        bytes: Vec<u8>,
        /// The position of each file's content.
        at: BTreeMap<String, Range<usize>>,
    },
}

impl LayoutFiles {
    /// The files of a layout directory. Nothing is opened yet.
    pub fn directory(root: TrustedRoot, path: &Path) -> Self {
        Self::Directory { root, path: path.to_owned() }
    }

    /// Reads an archive. If a name occurs twice, the later file is used, as when the archive is unpacked.
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

    /// The files of an archive that was already read.
    pub fn archive_of(bytes: Vec<u8>, image: &str) -> Result<Self, ImageError> {
        let malformed = |problem: String| ImageError::Malformed { image: image.to_owned(), part: "archive", problem };
        let mut at = BTreeMap::new();
        let mut archive = tar::Archive::new(bytes.as_slice());
        for (seen, entry) in archive.entries().map_err(|err| malformed(err.to_string()))?.enumerate() {
            if seen == MAX_ARCHIVE_FILES {
                return Err(malformed(format!("it has more than {MAX_ARCHIVE_FILES} files")));
            }
            let entry = entry.map_err(|err| malformed(format!("it is not a tar archive, or is truncated: {err}")))?;
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
                .ok_or_else(|| malformed("it is truncated".to_owned()))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            at.insert(name.trim_start_matches("./").to_owned(), range);
            if last {
                break;
            }
        }
        Ok(Self::Archive { bytes, at })
    }

    /// Reads one file of the layout by its path in the layout: `index.json`, `blobs/sha256/…`.
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
