//! Removal from the cache, and its size limit.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use crate::image::cache::reader::{Cache, Reader};
use crate::image::cache::record::{CacheRecord, Pointer};
use crate::image::error::CacheError;
use crate::model::ids::Digest;
use crate::sys::fsutil::{FileLock, names_in, open_own_directory, unlink_if_present};

/// The size limit of all images together, in bytes.
pub(super) const LIMIT: u64 = 1 << 30;

/// Selects the images to remove.
#[derive(Debug, Clone)]
pub enum SweepSelection {
    /// Only images without a reference.
    Dangling,
    /// All images that are not in use.
    Unused,
    /// These references.
    References(BTreeSet<String>),
    /// Every reference to these.
    Digests(BTreeSet<Digest>),
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// References.
    pub references: Vec<String>,
    /// Images without a remaining reference.
    pub images: Vec<Digest>,
    /// Number of blobs.
    pub blobs: u64,
    /// Size of these blobs in bytes.
    pub bytes: u64,
}

impl Cache {
    /// Removes references, and images without a remaining reference. Images `in_use` are kept, even if the selected
    /// references to them are removed.
    pub fn sweep(&self, which: &SweepSelection, in_use: &BTreeSet<Digest>, dry_run: bool) -> Result<Swept, CacheError> {
        if self.reader()?.is_none() {
            return Ok(Swept::default());
        }
        self.locked(|reader| self.swept(reader, which, in_use, dry_run))
    }

    /// Removes the leftovers of killed processes: partly written files, and locks of fetches. Does nothing while
    /// another process is writing. For `gc`, which otherwise does not touch the cache.
    pub fn remove_unfinished(&self) -> Result<(), CacheError> {
        if self.reader()?.is_none() {
            return Ok(());
        }
        let Some(directory) = open_own_directory(&self.path, 0o700).map_err(|source| self.not_trusted(source))? else {
            return Ok(());
        };
        let lock = FileLock::wait_for(&directory, &self.path, Duration::ZERO).map_err(|source| self.failed(source))?;
        if lock.is_some() {
            self.remove_hidden()?;
            self.remove_dead_locks()?;
        }
        Ok(())
    }

    /// Removes the hidden files. The caller holds the lock, so none of them is being written.
    fn remove_hidden(&self) -> Result<(), CacheError> {
        for directory in ["", "refs", "images", "blobs/sha256"].map(|name| self.path.join(name)) {
            // A process may have been killed before it created it.
            for name in names_in(&directory).unwrap_or_default() {
                if name.to_str().is_some_and(|name| name.starts_with('.')) {
                    unlink_if_present(&directory.join(name)).map_err(|source| self.failed(source))?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn swept(
        &self,
        reader: &Reader<'_>,
        which: &SweepSelection,
        in_use: &BTreeSet<Digest>,
        dry_run: bool,
    ) -> Result<Swept, CacheError> {
        let goes = |pointer: &Pointer| match which {
            SweepSelection::Dangling => false,
            SweepSelection::Unused => !in_use.contains(&pointer.digest),
            SweepSelection::References(references) => references.contains(&pointer.reference),
            SweepSelection::Digests(digests) => digests.contains(&pointer.digest),
        };
        let (gone, stay): (Vec<Pointer>, Vec<Pointer>) = self.pointers(reader)?.into_iter().partition(goes);
        let mut swept = Swept::default();
        if !dry_run {
            self.remove_hidden()?;
        }
        for pointer in &gone {
            if !dry_run {
                unlink_if_present(&self.pointer_path(&pointer.reference)).map_err(|source| self.failed(source))?;
            }
            swept.references.push(pointer.reference.clone());
        }
        let digests: BTreeSet<Digest> = stay.iter().map(|pointer| pointer.digest).chain(in_use.iter().copied()).collect();
        let mut kept = BTreeSet::new();
        for name in names_in(&self.path.join("images")).map_err(|source| self.failed(source))? {
            let path = self.path.join("images").join(&name);
            match reader.json::<CacheRecord>(&path)? {
                Some(record) if digests.contains(&record.digest) => {
                    kept.extend(record.blobs.iter().chain(record.evidence.iter().map(|e| &e.blob)).map(Digest::hex));
                }
                record => {
                    swept.images.extend(record.map(|record| record.digest));
                    if !dry_run {
                        unlink_if_present(&path).map_err(|source| self.failed(source))?;
                    }
                }
            }
        }
        let blobs = self.path.join("blobs/sha256");
        for name in names_in(&blobs).map_err(|source| self.failed(source))? {
            // Hidden files are not blobs, and are already removed.
            if !name.to_str().is_some_and(|name| kept.contains(name) || name.starts_with('.')) {
                let path = blobs.join(&name);
                swept.blobs += 1;
                swept.bytes += std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
                if !dry_run {
                    unlink_if_present(&path).map_err(|source| self.failed(source))?;
                }
            }
        }
        if !dry_run && !gone.is_empty() {
            self.write_index(reader)?;
        }
        swept.references.sort();
        Ok(swept)
    }

    /// Removes blobs without an image, once all blobs take more than images may: leftovers of failed fetches. Called
    /// before a fetch, so that a registry cannot fill the disk by never completing an image.
    pub(crate) fn clear_leftovers(&self) -> Result<(), CacheError> {
        self.clear_leftovers_above(LIMIT + LIMIT / 4)
    }

    fn clear_leftovers_above(&self, limit: u64) -> Result<(), CacheError> {
        let blobs = self.path.join("blobs/sha256");
        // A cache that does not exist has none.
        let names = names_in(&blobs).unwrap_or_default();
        let sizes = names.iter().filter_map(|name| std::fs::symlink_metadata(blobs.join(name)).ok());
        if sizes.map(|metadata| metadata.len()).sum::<u64>() > limit {
            let swept = self.sweep(&SweepSelection::Dangling, &BTreeSet::new(), false)?;
            tracing::info!(blobs = swept.blobs, bytes = swept.bytes, "removed the leftovers of failed fetches");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::cache::tests::cache;
    use crate::image::cache::write::NewImage;
    use crate::image::hash;

    fn image(cache: &Cache, reference: &str, contents: &[u8]) -> Digest {
        let digest = hash(contents);
        let new = NewImage { digest, media_type: "m".into(), blobs: vec![contents.to_vec()], object: digest };
        cache.store(&new).unwrap();
        cache.point(reference, &digest, "", crate::image::InUse::NONE).unwrap();
        digest
    }

    fn references(cache: &Cache) -> Vec<String> {
        cache.images().unwrap().into_iter().map(|image| image.reference).collect()
    }

    #[test]
    fn images_in_use_are_kept() {
        let (_dir, cache) = cache();
        let (one, two) = (image(&cache, "a/b:1", b"one"), image(&cache, "a/b:2", b"two"));
        let in_use = BTreeSet::from([one]);
        let told = cache.sweep(&SweepSelection::Unused, &in_use, true).unwrap();
        assert_eq!(
            (told.references.as_slice(), told.images.as_slice(), told.blobs, told.bytes),
            (&["a/b:2".to_owned()][..], &[two][..], 1, 3)
        );
        assert_eq!(references(&cache), ["a/b:1", "a/b:2"]);
        assert_eq!(cache.sweep(&SweepSelection::Unused, &in_use, false).unwrap(), told);
        assert_eq!(references(&cache), ["a/b:1"]);
        // A tag that moved leaves an image without a reference: dangling, but still in use.
        image(&cache, "a/b:1", b"three");
        assert_eq!(cache.sweep(&SweepSelection::Dangling, &in_use, false).unwrap(), Swept::default());
        assert_eq!(cache.sweep(&SweepSelection::Dangling, &BTreeSet::new(), false).unwrap().images, [one]);
        let gone =
            cache.sweep(&SweepSelection::References(BTreeSet::from(["a/b:1".to_owned()])), &BTreeSet::new(), false).unwrap();
        assert_eq!((gone.references.len(), gone.blobs), (1, 1));
        assert!(references(&cache).is_empty());
    }

    #[test]
    fn leftovers_of_killed_processes_are_removed_by_gc_prune_and_the_next_writer() {
        use crate::sys::fsutil::write_whole_alone;
        let (_dir, cache) = cache();
        image(&cache, "a/b:1", b"one");
        let kept = references(&cache);
        let directories = ["", "refs", "images", "blobs/sha256"].map(|name| cache.path.join(name));
        let hidden = || {
            let names = directories.iter().flat_map(|directory| names_in(directory).unwrap());
            names.filter(|name| name.to_str().unwrap().starts_with('.')).count()
        };
        let litter = || {
            for directory in &directories {
                std::fs::write(directory.join(".new"), "half").unwrap();
                std::fs::write(directory.join(".0123.77.0"), "half").unwrap();
            }
            let flights = cache.path.join("flights");
            std::fs::create_dir_all(&flights).unwrap();
            std::fs::write(flights.join("0123.lock"), "").unwrap();
        };
        litter();
        write_whole_alone(&cache.path.join("refs/x.json"), b"{}", 0o600).unwrap();
        assert_eq!(hidden(), 7);
        cache.locked(|_| cache.remove_unfinished()).unwrap();
        assert_eq!(hidden(), 7, "not while another process writes");
        cache.remove_unfinished().unwrap();
        assert_eq!((hidden(), names_in(&cache.path.join("flights")).unwrap().len()), (0, 0));
        litter();
        let told = cache.sweep(&SweepSelection::Dangling, &BTreeSet::new(), true).unwrap();
        assert_eq!(hidden(), 8, "a dry run removes nothing: {told:?}");
        cache.sweep(&SweepSelection::Dangling, &BTreeSet::new(), false).unwrap();
        assert_eq!((hidden(), references(&cache)), (0, kept));
    }

    #[test]
    fn leftovers_of_failed_fetches_are_removed_above_the_limit() {
        let (_dir, cache) = cache();
        cache.clear_leftovers_above(0).unwrap();
        image(&cache, "a/b:1", &[1; 400]);
        for n in 2..5 {
            cache.keep(&[n; 400]).unwrap();
        }
        let blobs = || names_in(&cache.path.join("blobs/sha256")).unwrap().len();
        cache.clear_leftovers_above(1600).unwrap();
        assert_eq!(blobs(), 4);
        cache.clear_leftovers_above(1599).unwrap();
        assert_eq!((blobs(), references(&cache)), (1, vec!["a/b:1".to_owned()]));
    }
}
