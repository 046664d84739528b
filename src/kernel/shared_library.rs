//! Looks up libraries by name in a root directory: in the dynamic linker's cache, otherwise in the usual directories.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::sys::fsutil::{self, OpenAs};

/// Far more than any real cache: 20 000 libraries take 2 MB.
const MAX_CACHE: u64 = 16 << 20;
/// Far more than any real library directory: some thousands.
const MAX_ENTRIES: usize = 100_000;
/// The directories that are searched without a cache, as in a root with musl.
const DIRECTORIES: [&str; 9] = [
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
];

/// musl's C library, a link to its loader (musl, Makefile, `LDSO_PATHNAME`; Alpine's package adds this name).
const MUSL: &str = if cfg!(target_arch = "aarch64") { "libc.musl-aarch64.so.1" } else { "libc.musl-x86_64.so.1" };

/// The path of a library in `root`: `libc` and `libc.so.6` are the same library.
pub(crate) fn find(root: BorrowedFd<'_>, name: &str) -> Option<PathBuf> {
    in_cache(root, name).or_else(|| in_directories(root, name))
}

fn in_cache(root: BorrowedFd<'_>, name: &str) -> Option<PathBuf> {
    let (file, len) = fsutil::open_regular_beneath(root, Path::new("/etc/ld.so.cache")).ok()?;
    if len > MAX_CACHE {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).ok()?;
    look_up(&bytes, name)
}

/// Looks a name up in the bytes of an ld.so.cache (glibc, sysdeps/generic/dl-cache.h).
fn look_up(bytes: &[u8], name: &str) -> Option<PathBuf> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEADER: usize = 48;
    const ENTRY: usize = 24;
    /// FLAG_ELF_LIBC6 with the architecture's bits.
    const FLAGS: u32 = if cfg!(target_arch = "aarch64") { 0x0a03 } else { 0x0303 };
    let number = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes);
    // The older format precedes the newer one if both are present.
    let start = if bytes.starts_with(b"ld.so-1.7.0") {
        let entries = number(bytes, 12)? as usize;
        (16usize.checked_add(entries.checked_mul(12)?)?).checked_next_multiple_of(8)?
    } else {
        0
    };
    let cache = bytes.get(start..).filter(|cache| cache.starts_with(MAGIC))?;
    let count = number(cache, 20)? as usize;
    let text = |at: u32| {
        let rest = cache.get(at as usize..)?;
        std::str::from_utf8(&rest[..rest.iter().position(|b| *b == 0)?]).ok()
    };
    cache.get(HEADER..)?.chunks_exact(ENTRY).take(count).find_map(|entry| {
        let (key, value) = (text(number(entry, 4)?)?, text(number(entry, 8)?)?);
        (number(entry, 0)? == FLAGS && is_called(key, name) && value.starts_with('/')).then(|| PathBuf::from(value))
    })
}

fn in_directories(root: BorrowedFd<'_>, name: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().find_map(|directory| {
        let opened = fsutil::open_beneath(root, Path::new(directory), OpenAs::Directory).ok()?;
        let entries = fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()?;
        let names = entries.take(MAX_ENTRIES).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let found = names.filter(|file| is_called(file, name)).min()?;
        Some(Path::new(directory).join(found))
    })
}

/// True for the name itself and for the name without its version. musl's C library is `libc.musl-ARCH.so.1`, or the
/// loader itself.
fn is_called(file: &str, name: &str) -> bool {
    if matches!(name, "libc" | "libc.so") && file == MUSL {
        return true;
    }
    let version = |rest: &str| rest.starts_with('.') && name.ends_with(".so");
    file.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest == ".so" || rest.starts_with(".so.") || version(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(libraries: &[(u32, &str, &str)]) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut entries = Vec::new();
        let base = 48 + 24 * libraries.len();
        for (flags, key, value) in libraries {
            let mut place = |text: &str| {
                let at = u32::try_from(base + strings.len()).unwrap();
                strings.extend(text.bytes().chain([0]));
                at
            };
            let numbers = [*flags, place(key), place(value), 0, 0, 0];
            entries.extend(numbers.iter().flat_map(|n| n.to_ne_bytes()));
        }
        let mut bytes = b"glibc-ld.so.cache1.1".to_vec();
        bytes.extend(u32::try_from(libraries.len()).unwrap().to_ne_bytes());
        bytes.resize(48, 0);
        bytes.extend(entries);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn the_cache_lists_libraries_for_this_machine() {
        let own = if cfg!(target_arch = "aarch64") { 0x0a03 } else { 0x0303 };
        let bytes = cache(&[
            (0x0003, "libc.so.6", "/lib32/libc.so.6"),
            (own, "libcap.so.2", "/lib/libcap.so.2"),
            (own, "libc.so.6", "/lib/libc.so.6"),
        ]);
        for (name, path) in [
            ("libc", Some("/lib/libc.so.6")),
            ("libc.so.6", Some("/lib/libc.so.6")),
            ("libcap.so", Some("/lib/libcap.so.2")),
            ("libca", None),
            ("libssl", None),
        ] {
            assert_eq!(look_up(&bytes, name), path.map(PathBuf::from), "{name}");
        }
        for (file, name, called) in [
            (MUSL, "libc", true),
            (MUSL, "libc.so", true),
            (MUSL, "libc.so.6", false),
            ("libc.musl-other.so.1", "libc", false),
            ("libcap.so.2", "libc", false),
            ("libc.so.6", "libc", true),
        ] {
            assert_eq!(is_called(file, name), called, "{file} {name}");
        }
        for length in 0..bytes.len() {
            let _ = look_up(&bytes[..length], "libc");
        }
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] = 0xff;
            let _ = look_up(&bad, "libc");
        }
        let mut both = b"ld.so-1.7.0\0\0\0\0\0".to_vec();
        both.extend(&bytes);
        assert_eq!(look_up(&both, "libc"), Some(PathBuf::from("/lib/libc.so.6")));
    }
}
