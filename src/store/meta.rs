//! A look at LMDB's two meta pages before LMDB maps the file.
//!
//! LMDB trusts what they say: a page size of nonsense or a tree that begins behind the end of the file would be followed into
//! memory that is not there. The layout is that of MDB_DATA_VERSION 1 on a 64-bit machine, in native byte order, unchanged
//! since LMDB 0.9.0 (lmdb/libraries/liblmdb/mdb.c: MDB_page, MDB_meta, MDB_db).

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
/// `CURSOR_STACK`: LMDB follows no deeper tree.
const MAX_DEPTH: u16 = 32;

/// What one meta page says, as far as it decides where LMDB will read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meta {
    page_size: u64,
    last_page: u64,
    transaction: u64,
}

/// Checks both meta pages and says how many bytes the file has to have so that every page of the newest snapshot exists.
/// `map` is the size of the mapping that LMDB will make. The outer error is the disk's, the inner one says what is wrong.
///
/// A writer may be putting down a new meta page right now, and a read is not atomic against it: what looks wrong is read
/// again before it is believed.
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
    let first = match parse(&first, 0, map) {
        Ok(meta) => meta,
        Err(problem) => return Ok(Err(problem)),
    };
    let Some(second) = page(first.page_size)? else { return Ok(Err("data.mdb ends within its second page".to_owned())) };
    Ok(parse(&second, 1, map).and_then(|second| {
        if second.page_size != first.page_size {
            return Err("the meta pages of data.mdb differ in their page size".to_owned());
        }
        let newest = if second.transaction > first.transaction { second } else { first };
        Ok((newest.last_page + 1) * newest.page_size)
    }))
}

fn parse(bytes: &[u8; HEADER + META], number: u64, map: u64) -> Result<Meta, String> {
    let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let u64_at = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    let wrong = |what: &str| Err(format!("meta page {number} of data.mdb: {what}"));
    if u64_at(0) != number || u16_at(10) & P_META == 0 || u32_at(HEADER) != MAGIC {
        return wrong("it is not LMDB's");
    }
    if u32_at(HEADER + 4) != DATA_VERSION {
        return wrong("another format version");
    }
    let (free, main) = (HEADER + 24, HEADER + 72);
    let meta = Meta { page_size: u32_at(free).into(), last_page: u64_at(HEADER + 120), transaction: u64_at(HEADER + 128) };
    if !meta.page_size.is_power_of_two() || !(512..=65536).contains(&meta.page_size) {
        return wrong("impossible page size");
    }
    if meta.last_page < 1 || meta.last_page >= map / meta.page_size {
        return wrong("more pages than the map has");
    }
    for tree in [free, main] {
        let (depth, root) = (u16_at(tree + 6), u64_at(tree + 40));
        if depth > MAX_DEPTH || (root != NO_PAGE && !(2..=meta.last_page).contains(&root)) {
            return wrong("a tree begins outside of the file");
        }
    }
    Ok(meta)
}
