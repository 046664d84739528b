//! Decides which images are removed if the cache is full: those of the tenant that uses most of it. So each tenant
//! keeps what is within an equal share, whatever the others pull.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;

use crate::image::InUse;
use crate::image::cache::reader::{Cache, Reader};
use crate::image::cache::record::Pointer;
use crate::image::cache::sweep::LIMIT;
use crate::image::cache::sweep::SweepSelection;
use crate::image::error::CacheError;
use crate::model::ids::Digest;

/// The size that a reference counts in addition to its part of the image, in bytes: this also limits their number,
/// since each one is a file.
const REFERENCE: u64 = 64 << 10;

/// A reference that may be removed.
#[derive(Debug)]
struct CachedReference {
    pointer: Pointer,
    cost: u64,
    /// Time of the last pull or use, in seconds since 1970.
    used: u64,
}

impl Cache {
    /// Makes room within the limit of the whole cache.
    pub(super) fn bound_all(&self, reader: &Reader<'_>, new: &str, in_use: InUse<'_>) -> Result<(), CacheError> {
        self.bound(reader, new, in_use, LIMIT)
    }

    /// Makes room: removes references until the rest takes at most `limit` bytes, but never `new`.
    fn bound(&self, reader: &Reader<'_>, new: &str, in_use: InUse<'_>, limit: u64) -> Result<(), CacheError> {
        let mut kept = self.kept(reader)?;
        if total(&kept) <= limit {
            return Ok(());
        }
        let in_use = (in_use.0)();
        let mut over = BTreeSet::new();
        while total(&kept) > limit
            && let Some(at) = next(&kept, new, &in_use)
        {
            over.insert(kept.swap_remove(at).pointer.reference);
        }
        let swept = self.swept(reader, &SweepSelection::References(over), &BTreeSet::new(), false)?;
        tracing::info!(references = ?swept.references, limit, "image cache was full; removed these references");
        Ok(())
    }

    fn kept(&self, reader: &Reader<'_>) -> Result<Vec<CachedReference>, CacheError> {
        let pointers = self.pointers(reader)?;
        let mut references: BTreeMap<Digest, u64> = BTreeMap::new();
        pointers.iter().for_each(|pointer| *references.entry(pointer.digest).or_default() += 1);
        let kept = pointers.into_iter().map(|pointer| {
            let size = reader.record(&pointer.digest)?.map_or(0, |record| record.size);
            let touched = std::fs::metadata(self.record_path(&pointer.digest)).map_or(0, |metadata| metadata.mtime());
            let used = pointer.pulled.max(u64::try_from(touched).unwrap_or(0));
            Ok(CachedReference { cost: REFERENCE + size.div_ceil(references[&pointer.digest]), used, pointer })
        });
        kept.collect()
    }
}

fn total(kept: &[CachedReference]) -> u64 {
    kept.iter().map(|one| one.cost).sum()
}

/// The next reference to remove: of the tenant that uses most, one that is not in use, the least recently used first. A
/// reference of several tenants counts for the one that uses least.
fn next(kept: &[CachedReference], new: &str, in_use: &BTreeSet<Digest>) -> Option<usize> {
    let mut held: BTreeMap<&str, u64> = BTreeMap::new();
    for one in kept {
        one.pointer.tenants.iter().for_each(|tenant| *held.entry(tenant).or_default() += one.cost);
    }
    let least =
        |one: &CachedReference| one.pointer.tenants.iter().map(|tenant| held[tenant.as_str()]).min().unwrap_or(u64::MAX);
    let may_go = kept.iter().enumerate().filter(|(_, one)| one.pointer.reference != new);
    may_go.max_by_key(|(_, one)| (least(one), !in_use.contains(&one.pointer.digest), Reverse(one.used))).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::cache::write::NewImage;
    use crate::image::hash;

    fn kept(reference: &str, cost: u64, used: u64, tenants: &[&str]) -> CachedReference {
        let (digest, tenants) = (hash(reference.as_bytes()), tenants.iter().map(|name| (*name).to_owned()).collect());
        CachedReference { pointer: Pointer { reference: reference.to_owned(), digest, pulled: used, tenants }, cost, used }
    }

    /// The references that are left, ordered by name, where `limit` is the bound and `new` was just added.
    fn left(mut all: Vec<CachedReference>, new: &str, in_use: &[&str], limit: u64) -> Vec<String> {
        let in_use = in_use.iter().map(|name| hash(name.as_bytes())).collect();
        while total(&all) > limit
            && let Some(at) = next(&all, new, &in_use)
        {
            all.swap_remove(at);
        }
        let mut names: Vec<_> = all.into_iter().map(|one| one.pointer.reference).collect();
        names.sort();
        names
    }

    #[test]
    fn the_largest_tenant_loses_its_least_recently_used_image() {
        let world = || {
            let mut all = vec![kept("victim", 300, 1, &["v"]), kept("both", 100, 2, &["a", "v"])];
            all.extend((0..8).map(|n| kept(&format!("flood{n}"), 100, 10 + n, &["a"])));
            all
        };
        // The victim's are the oldest, and stay while the other tenant has more.
        assert_eq!(left(world(), "flood7", &[], 800), ["both", "flood4", "flood5", "flood6", "flood7", "victim"]);
        // Images in use are removed after the others.
        assert_eq!(left(world(), "flood7", &["flood0"], 800), ["both", "flood0", "flood5", "flood6", "flood7", "victim"]);
        // With one tenant, the oldest is removed, and never the new one.
        assert_eq!(
            left(vec![kept("a", 5, 1, &["x"]), kept("b", 5, 2, &["x"]), kept("c", 5, 0, &["x"])], "c", &[], 10),
            ["b", "c"]
        );
        assert_eq!(left(vec![kept("a", 5, 1, &["x"])], "a", &[], 1), ["a"]);
        // Entries of older versions have no tenant and are removed first.
        assert_eq!(left(vec![kept("a", 5, 9, &[]), kept("b", 5, 1, &["x"])], "c", &[], 5), ["b"]);
    }

    #[test]
    fn references_and_whole_images_are_removed_and_a_blob_counts_once() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let cache = Cache::new(&dir.path().join("cache"));
        let image = |reference: &str, contents: &[u8], tenant: &str| {
            let digest = hash(contents);
            // The layer is the object itself.
            let blobs = vec![contents.to_vec(), contents.to_vec()];
            cache.store(&NewImage { digest, media_type: "m".into(), blobs, object: digest }).unwrap();
            cache.point(reference, &digest, tenant, InUse::NONE).unwrap();
        };
        image("a/v:1", &[1; 400], "v");
        for n in 2..6 {
            image(&format!("a/b:{n}"), &[n; 400], "a");
        }
        image("a/b:again", &[5; 400], "a");
        let bound = |new: &str, limit| cache.locked(|reader| cache.bound(reader, new, InUse::NONE, limit)).unwrap();
        let references = || cache.images().unwrap().into_iter().map(|image| image.reference).collect::<Vec<_>>();
        let all = 6 * REFERENCE + 5 * 400;
        bound("a/b:again", all);
        assert_eq!(references().len(), 6);
        bound("a/b:again", all - 1);
        assert_eq!(references().len(), 5);
        bound("a/b:again", 2 * REFERENCE + 800);
        assert_eq!(references(), ["a/b:again", "a/v:1"]);
        let blobs = std::fs::read_dir(dir.path().join("cache/blobs/sha256")).unwrap().count();
        assert_eq!(blobs, 2, "unreferenced blobs are removed");
    }

    #[test]
    fn a_use_refreshes_an_image_and_adds_its_tenant() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let cache = Cache::new(&dir.path().join("cache"));
        let digest = hash(b"x");
        cache.store(&NewImage { digest, media_type: "m".into(), blobs: vec![b"x".to_vec()], object: digest }).unwrap();
        cache.point("a/b:1", &digest, "one", InUse::NONE).unwrap();
        let record = std::fs::File::options().write(true).open(cache.record_path(&digest)).unwrap();
        record.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let reader = cache.reader().unwrap().unwrap();
        cache.used(&digest, reader.pointer("a/b:1").unwrap().as_ref(), "two").unwrap();
        assert!(record.metadata().unwrap().mtime() > 0);
        let tenants = reader.pointer("a/b:1").unwrap().unwrap().tenants;
        assert_eq!(tenants.into_iter().collect::<Vec<_>>(), ["one", "two"]);
    }
}
