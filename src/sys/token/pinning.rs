//! Checks whether a workload may pin objects: it pins a map and unpins it immediately.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::io::Errno;

use crate::sys::bpf;
use crate::sys::lsm;

/// Pins a map in the bpffs at `path` and unpins it again. On failure it returns the errno and its meaning.
///
/// bpffs does not accept names that contain a dot (kernel/bpf/inode.c, `bpf_lookup`).
pub fn try_pin(map: BorrowedFd<'_>, path: &Path) -> Result<(), (Errno, String)> {
    let pin = path.join(format!("probe_{}", std::process::id()));
    bpf::pin(map, &pin).map_err(|errno| (errno, meaning(errno, path)))?;
    fs::remove_file(&pin).map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        (errno, format!("the map was pinned, but {} cannot be removed", pin.display()))
    })
}

fn meaning(errno: Errno, path: &Path) -> String {
    match errno {
        Errno::ACCESS => match lsm::confinement(None).and_then(|confinement| confinement.hinders(path, Some(false))) {
            Some(hindrance) => hindrance.to_string(),
            None => {
                "this user cannot write the directory, or a security module forbids it; the token works without pins".to_owned()
            }
        },
        Errno::ROFS => "the bpffs is mounted read-only; the token works without pins".to_owned(),
        Errno::PERM => "the directory is not in a bpffs, or a security module forbids it".to_owned(),
        _ => "the kernel refused to pin the map".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_pin_is_explained() {
        let said = |errno| meaning(errno, Path::new("/run/bpf"));
        for (errno, words) in [
            (Errno::ACCESS, "cannot write the directory"),
            (Errno::ROFS, "mounted read-only"),
            (Errno::PERM, "not in a bpffs"),
            (Errno::NOSPC, "refused to pin"),
        ] {
            assert!(said(errno).contains(words), "{errno}: {}", said(errno));
        }
    }
}
