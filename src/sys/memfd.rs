//! Sealed memory files: the data that was hashed is the data that is used, even if other processes hold the
//! descriptor.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::io::Errno;

use crate::sys::error::SysError;

/// The seals without which the contents can still change. F_SEAL_FUTURE_WRITE is not sufficient: a mapping created
/// before it can still write (memfd_create(2)).
const NEEDED: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK);

/// Copies `bytes` into anonymous memory that can no longer be changed, even by this process. `name` is shown in
/// `/proc/<pid>/fd`. The memory exists until its last descriptor and mapping are gone.
pub fn sealed_memfd(name: &str, bytes: &[u8]) -> Result<OwnedFd, SysError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // MFD_NOEXEC_SEAL needs Linux 6.3; before that, EINVAL.
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        other => other,
    }
    .map_err(SysError::io("create the memory file", name))?;
    let mut file = File::from(fd);
    file.write_all(bytes).map_err(SysError::io("fill the memory file", name))?;
    fcntl_add_seals(&file, NEEDED | SealFlags::SEAL).map_err(SysError::io("seal the memory file", name))?;
    Ok(file.into())
}

/// Reads all of a memory file created by another process, after checking that it is sealed and has at most `max`
/// bytes. The descriptor's offset does not matter. `what` names it in messages.
pub fn read_sealed(fd: impl AsFd, what: &str, max: usize) -> Result<Vec<u8>, SysError> {
    let refuse =
        |reason: String| SysError::io("read the memory file", what)(io::Error::new(io::ErrorKind::InvalidData, reason));
    // EINVAL: not a memfd at all.
    let seals = fcntl_get_seals(&fd).map_err(SysError::io("read the seals of", what))?;
    if !seals.contains(NEEDED) {
        return Err(refuse("it is not sealed".to_owned()));
    }
    let size = fstat(&fd).map_err(SysError::io("stat", what))?.st_size;
    let size = usize::try_from(size).ok().filter(|size| *size <= max);
    let size = size.ok_or_else(|| refuse(format!("it is larger than {max} bytes")))?;
    let file = File::from(fd.as_fd().try_clone_to_owned().map_err(SysError::io("duplicate", what))?);
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0).map_err(SysError::io("read the memory file", what))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use super::*;

    #[test]
    fn the_contents_are_read_whatever_the_offset() {
        let fd = sealed_memfd("object", b"\x7fELF and more").unwrap();
        let mut file = File::from(fd.try_clone().unwrap());
        file.seek(SeekFrom::Start(5)).unwrap();
        for _ in 0..2 {
            assert_eq!(read_sealed(&fd, "object", 64).unwrap(), b"\x7fELF and more");
        }
        assert!(read_sealed(&fd, "object", 12).unwrap_err().to_string().contains("object"));
        assert_eq!(read_sealed(sealed_memfd("none", b"").unwrap(), "none", 0).unwrap(), b"");
    }

    #[test]
    fn sealed_contents_cannot_be_changed() {
        let file = File::from(sealed_memfd("object", b"abc").unwrap());
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(1).is_err() && file.set_len(9).is_err());
        assert!(fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).is_err());
    }

    #[test]
    fn unsealed_and_partly_sealed_files_are_refused() {
        for seals in [SealFlags::empty(), SealFlags::WRITE, SealFlags::GROW | SealFlags::SHRINK | SealFlags::FUTURE_WRITE] {
            let fd = memfd_create("forged", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
            fcntl_add_seals(&fd, seals).unwrap();
            assert!(read_sealed(&fd, "forged", 10).is_err(), "{seals:?}");
        }
        assert!(read_sealed(File::open("/dev/null").unwrap(), "null", 10).is_err());
        assert!(read_sealed(tempfile::tempfile().unwrap(), "disk file", 10).is_err());
    }
}
