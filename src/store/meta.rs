//! Checks LMDB's two meta pages before LMDB maps the file.
//!
//! LMDB trusts their contents: an invalid page size, or a tree whose root is beyond the end of the file, would make it
//! access memory that is not mapped. The layout is that of MDB_DATA_VERSION 1 on a 64-bit machine, in native byte
//! order, unchanged since LMDB 0.9.0 (lmdb/libraries/liblmdb/mdb.c: MDB_page, MDB_meta, MDB_db).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const HEADER: usize = 16;
const META: usize = 136;
const MAGIC: u32 = 0xBEEF_C0DE;
const DATA_VERSION: u32 = 1;
const P_META: u16 = 8;
/// `P_INVALID`: a tree without a page.
const NO_PAGE: u64 = u64::MAX;
/// `CURSOR_STACK`: LMDB does not follow deeper trees.
const MAX_DEPTH: u16 = 32;

/// The fields of a meta page that decide where LMDB reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meta {
    page_size: u64,
    /// Depth and root of LMDB's free-page table and of the main table.
    trees: [(u16, u64); 2],
    last_page: u64,
    transaction: u64,
}

/// Checks the meta pages and returns how many bytes the file must have so that every page of the newest snapshot
/// exists. `map` is the size of the mapping that LMDB will create. The outer error is an I/O error, the inner one
/// describes what is wrong.
///
/// Both pages must be valid LMDB meta pages with the same page size. The trees are checked in the newest page only,
/// the one that LMDB uses (mdb_env_pick_meta): if writing a meta page fails, LMDB writes the old transaction number
/// and the old last page together with the new trees into the other page (mdb_env_write_meta), which is then older and
/// never read.
///
/// A writer may be writing a new meta page concurrently, and a read is not atomic with respect to it. A page that
/// looks wrong is therefore read again before an error is returned.
pub fn needed_size(file: &File, map: u64) -> io::Result<Result<u64, String>> {
    let mut verdict = Err(String::new());
    for attempt in 0..5 {
        if attempt > 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        verdict = read(file, map)?;
        if verdict.is_ok() {
            break;
        }
    }
    Ok(verdict)
}

fn read(file: &File, map: u64) -> io::Result<Result<u64, String>> {
    let page = |at: u64| -> io::Result<Option<[u8; HEADER + META]>> {
        let mut bytes = [0; HEADER + META];
        match file.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(Some(bytes)),
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(err) => Err(err),
        }
    };
    let Some(first) = page(0)? else { return Ok(Err("data.mdb ends within its first page".to_owned())) };
    let first = match parse(&first, 0) {
        Ok(meta) => meta,
        Err(problem) => return Ok(Err(problem)),
    };
    let Some(second) = page(first.page_size)? else { return Ok(Err("data.mdb ends within its second page".to_owned())) };
    Ok(parse(&second, 1).and_then(|second| {
        if second.page_size != first.page_size {
            return Err("the meta pages of data.mdb differ in their page size".to_owned());
        }
        let (newest, number) = if second.transaction > first.transaction { (second, 1) } else { (first, 0) };
        newest.decide(number, map)?;
        Ok((newest.last_page + 1) * newest.page_size)
    }))
}

impl Meta {
    /// Checks that the snapshot lies within the file and the map.
    fn decide(&self, number: u64, map: u64) -> Result<(), String> {
        if self.last_page < 1 || self.last_page >= map / self.page_size {
            return Err(wrong(number, "it refers to more pages than the map has"));
        }
        for (depth, root) in self.trees {
            if depth > MAX_DEPTH || (root != NO_PAGE && !(2..=self.last_page).contains(&root)) {
                return Err(wrong(number, "the root of a tree is outside of the file"));
            }
        }
        Ok(())
    }
}

fn wrong(number: u64, what: &str) -> String {
    format!("meta page {number} of data.mdb: {what}")
}

fn parse(bytes: &[u8; HEADER + META], number: u64) -> Result<Meta, String> {
    let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let u64_at = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    if u64_at(0) != number || u16_at(10) & P_META == 0 || u32_at(HEADER) != MAGIC {
        return Err(wrong(number, "it is not an LMDB meta page"));
    }
    if u32_at(HEADER + 4) != DATA_VERSION {
        return Err(wrong(number, "unsupported format version"));
    }
    let (free, main) = (HEADER + 24, HEADER + 72);
    let page_size = u64::from(u32_at(free));
    if !page_size.is_power_of_two() || !(512..=65536).contains(&page_size) {
        return Err(wrong(number, "invalid page size"));
    }
    let trees = [free, main].map(|tree| (u16_at(tree + 6), u64_at(tree + 40)));
    Ok(Meta { page_size, trees, last_page: u64_at(HEADER + 120), transaction: u64_at(HEADER + 128) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: u64 = 1 << 20;

    /// A meta page of a store with pages of 4096 bytes, with its last page, the root of its table and its transaction.
    fn meta(number: u64, last_page: u64, root: u64, transaction: u64) -> Vec<u8> {
        let mut page = vec![0_u8; 4096];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &number.to_ne_bytes());
        put(10, &P_META.to_ne_bytes());
        put(HEADER, &MAGIC.to_ne_bytes());
        put(HEADER + 4, &DATA_VERSION.to_ne_bytes());
        put(HEADER + 24, &4096_u32.to_ne_bytes());
        put(HEADER + 24 + 40, &NO_PAGE.to_ne_bytes());
        put(HEADER + 72 + 40, &root.to_ne_bytes());
        put(HEADER + 120, &last_page.to_ne_bytes());
        put(HEADER + 128, &transaction.to_ne_bytes());
        page
    }

    fn said(first: &[u8], second: &[u8]) -> Result<u64, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.mdb");
        std::fs::write(&path, [first, second].concat()).unwrap();
        read(&File::open(path).unwrap(), MAP).unwrap()
    }

    #[test]
    fn only_the_newest_meta_page_is_checked_in_full() {
        let outside = |number| Err(wrong(number, "the root of a tree is outside of the file"));
        let foreign = {
            let mut page = meta(0, 3, 2, 4);
            page[HEADER] ^= 1;
            page
        };
        let cases = [
            (meta(0, 3, 2, 4), meta(1, 5, 4, 5), Ok(6 * 4096)),
            (meta(0, 5, 4, 6), meta(1, 3, 2, 5), Ok(6 * 4096)),
            // The result of a failed meta page write: the trees of the new snapshot with the numbers of an old one.
            (meta(0, 3, 9, 4), meta(1, 5, 4, 5), Ok(6 * 4096)),
            (meta(0, 5, 4, 6), meta(1, 3, 9, 5), Ok(6 * 4096)),
            // Nothing was ever committed: of two equal pages, LMDB takes the first one.
            (meta(0, 1, NO_PAGE, 0), meta(1, 1, 3, 0), Ok(2 * 4096)),
            (meta(0, 3, 9, 6), meta(1, 5, 4, 5), outside(0)),
            (meta(0, 3, 2, 4), meta(1, 3, 9, 5), outside(1)),
            (meta(0, 3, 2, 4), meta(1, MAP / 4096, 2, 5), Err(wrong(1, "it refers to more pages than the map has"))),
            (meta(0, u64::MAX, 2, 9), meta(1, 3, 2, 5), Err(wrong(0, "it refers to more pages than the map has"))),
            (foreign, meta(1, 3, 2, 5), Err(wrong(0, "it is not an LMDB meta page"))),
        ];
        for (at, (first, second, expected)) in cases.into_iter().enumerate() {
            assert_eq!(said(&first, &second), expected, "case {at}");
        }
    }
}
