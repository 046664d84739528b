//! Checks of the space that starts and pulls need: the file systems of the store and of the image cache, and the store
//! itself.

use std::path::Path;

use crate::output::finding::{Finding, FindingStatus};
use crate::paths::Paths;
use crate::store::StoreFill;
use crate::sys::fsutil::{self, FreeSpace};

/// Below this, the store cannot reserve what a new record needs, and starts are refused.
const STORE_LEAST: u64 = 1 << 20;
/// Below this, the administrator should act.
const STORE_LOW: u64 = 16 << 20;
/// Below this, an image of the usual size may not fit.
const CACHE_LEAST: u64 = 4 << 20;
const CACHE_LOW: u64 = 64 << 20;
/// Below this, files cannot be made soon, however many bytes are free.
const INODES_LOW: u64 = 64;

/// The file systems; nothing is said about a directory that does not exist yet and whose parents are not known.
pub fn examine(paths: &Paths) -> Vec<Finding> {
    let places = [
        ("space: records", &paths.run, STORE_LEAST, STORE_LOW, "starts are refused"),
        ("space: images", &paths.cache, CACHE_LEAST, CACHE_LOW, "images that are not in the cache cannot be pulled"),
    ];
    let examined = places.into_iter().filter_map(|(check, path, least, low, loss)| {
        let existing = path.ancestors().find(|path| path.exists())?;
        Some(file_system(check, existing, fsutil::free_space(existing)?, [least, low], loss))
    });
    examined.collect()
}

fn file_system(check: &str, path: &Path, free: FreeSpace, [least, low]: [u64; 2], loss: &str) -> Finding {
    let room = format!("{} free at {}", size(free.bytes), path.display());
    let remedy = format!("make room there; `df -h {0}` and `df -i {0}` say what is full", path.display());
    match free {
        FreeSpace { bytes, .. } if bytes < least => Finding::bad(check, FindingStatus::Fail, format!("{room}: {loss}"), remedy),
        FreeSpace { inodes: Some(inodes), .. } if inodes < INODES_LOW => {
            let detail = format!("{inodes} inodes free at {}: {loss}", path.display());
            Finding::bad(check, FindingStatus::Fail, detail, remedy)
        }
        FreeSpace { bytes, .. } if bytes < low => {
            Finding::bad(check, FindingStatus::Warn, format!("{room}: soon {loss}"), remedy)
        }
        _ => Finding::ok(check, room),
    }
}

/// The store's own limit; None if there is nothing to say.
pub fn store(fill: StoreFill) -> Option<Finding> {
    let detail = format!("the store has {} of {}", size(fill.used), size(fill.limit));
    let remedy =
        "run `bpfman-hook gc`, and look for containers that are refused again and again with `bpfman-hook list containers`";
    match fill.used {
        used if used > fill.limit / 8 * 7 => {
            Some(Finding::bad("records", FindingStatus::Fail, format!("{detail}: it is full, and starts are refused"), remedy))
        }
        used if used > fill.limit / 2 => {
            Some(Finding::bad("records", FindingStatus::Warn, format!("{detail}: it fills up"), remedy))
        }
        _ => None,
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_system_fails_and_a_small_rest_warns() {
        let at = |bytes, inodes| {
            let free = FreeSpace { bytes, inodes };
            file_system("space: records", Path::new("/run"), free, [STORE_LEAST, STORE_LOW], "starts are refused").status
        };
        assert_eq!(at(0, None), FindingStatus::Fail);
        assert_eq!(at(2 << 20, Some(9000)), FindingStatus::Warn);
        assert_eq!(at(64 << 20, Some(9000)), FindingStatus::Ok);
        assert_eq!(at(64 << 20, Some(3)), FindingStatus::Fail);
    }

    #[test]
    fn a_full_store_fails() {
        let of = |used| store(StoreFill { used, limit: 1 << 30 }).map(|finding| finding.status);
        assert_eq!(of(4096), None);
        assert_eq!(of(600 << 20), Some(FindingStatus::Warn));
        assert_eq!(of(1000 << 20), Some(FindingStatus::Fail));
    }

    #[test]
    fn directories_that_do_not_exist_yet_are_judged_by_their_parents() {
        let root = tempfile::tempdir().unwrap();
        let checks: Vec<_> = examine(&Paths::below(root.path())).into_iter().map(|finding| finding.check).collect();
        assert_eq!(checks, ["space: records", "space: images"]);
    }
}
