//! fs-verity: files whose contents the kernel checks against a digest at each read, and that cannot be changed any more.
//! Layout: uapi/linux/fsverity.h.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;

/// `FS_IOC_ENABLE_VERITY`, `_IOW('f', 133, struct fsverity_enable_arg)`
const ENABLE: libc::Ioctl = 0x4080_6685_u32 as libc::Ioctl;
/// `FS_IOC_MEASURE_VERITY`, `_IOWR('f', 134, struct fsverity_digest)`
const MEASURE: libc::Ioctl = 0xc004_6686_u32 as libc::Ioctl;
/// `FS_VERITY_HASH_ALG_SHA256`
const SHA256: u16 = 1;

/// `struct fsverity_enable_arg`
#[repr(C)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    /// Salt, signature and their sizes: none.
    others: [u32; 29],
}

/// `struct fsverity_digest` with room for a digest.
#[repr(C)]
struct MeasuredDigest {
    algorithm: u16,
    size: u16,
    digest: [u8; 64],
}

/// Enables fs-verity with sha256 on a file that is open for reading. This cannot be undone.
///
/// # Errors
/// EEXIST if it has it, ETXTBSY if the file is open for writing somewhere, ENOTTY or EOPNOTSUPP if the file system has no
/// fs-verity, EROFS, EACCES.
pub fn enable(file: &File) -> Result<(), Errno> {
    let metadata = file.metadata().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // No larger than the file system's own blocks (fs/verity/open.c, `fsverity_init_merkle_tree_params`).
    let block_size = u32::try_from(metadata.blksize()).unwrap_or(4096).clamp(1024, 4096);
    let argument = EnableArg { version: 1, hash_algorithm: SHA256.into(), block_size, others: [0; 29] };
    // SAFETY: the kernel reads a `struct fsverity_enable_arg`, whose pointers are null with sizes of 0.
    let done = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), ENABLE, &raw const argument) };
    result(done)
}

/// The digest that the kernel checks a file against, if it is a sha256.
///
/// # Errors
/// ENODATA if the file has no fs-verity, ENOTTY or EOPNOTSUPP if its file system has none, which includes overlayfs; EINVAL
/// if the digest is not a sha256.
pub fn measure(file: &File) -> Result<[u8; 32], Errno> {
    let mut measured = MeasuredDigest { algorithm: 0, size: 64, digest: [0; 64] };
    // SAFETY: the kernel writes a `struct fsverity_digest` with at most `size` bytes of digest.
    result(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), MEASURE, &raw mut measured) })?;
    match (measured.algorithm, measured.size, measured.digest.first_chunk()) {
        (SHA256, 32, Some(digest)) => Ok(*digest),
        _ => Err(Errno::INVAL),
    }
}

fn result(done: libc::c_int) -> Result<(), Errno> {
    match done {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_those_of_the_header() {
        // The sizes are part of the numbers of the calls: 128 bytes, and 4 without the digest.
        assert_eq!((size_of::<EnableArg>(), ENABLE as u32 >> 16 & 0x3fff), (128, 128));
        assert_eq!((std::mem::offset_of!(MeasuredDigest, digest), MEASURE as u32 >> 16 & 0x3fff), (4, 4));
    }

    #[test]
    fn a_file_system_without_it_says_so() {
        let proc = File::open("/proc/self/status").unwrap();
        assert!(matches!(measure(&proc), Err(Errno::NOTTY | Errno::OPNOTSUPP)), "{:?}", measure(&proc));
        assert!(matches!(enable(&proc), Err(Errno::NOTTY | Errno::OPNOTSUPP)), "{:?}", enable(&proc));
    }
}
