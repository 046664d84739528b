//! Whether a workload may pin what it made: tried with a map, which is unpinned at once.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::io::Errno;

use crate::sys::bpf;
use crate::sys::lsm;

/// Pins a map in the bpffs at `path` and unpins it again; otherwise the errno and what it means there.
///
/// A bpffs takes no names with a dot in them (kernel/bpf/inode.c, `bpf_lookup`).
pub fn try_pin(map: BorrowedFd<'_>, path: &Path) -> Result<(), (Errno, String)> {
    let pin = path.join(format!("probe_{}", std::process::id()));
    bpf::pin(map, &pin).map_err(|errno| (errno, meaning(errno, path)))?;
    fs::remove_file(&pin).map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        (errno, format!("it is pinned, and {} cannot be removed", pin.display()))
    })
}

fn meaning(errno: Errno, path: &Path) -> String {
    match errno {
        Errno::ACCESS => match lsm::confinement(None).and_then(|confinement| confinement.hinders(path, Some(false))) {
            Some(hindrance) => hindrance.to_string(),
            None => {
                "the directory is not this user's to write, or a security module forbids it; the token works without".to_owned()
            }
        },
        Errno::ROFS => "the bpffs is mounted read-only; the token works without".to_owned(),
        Errno::PERM => "the directory is not in a bpffs, or a security module forbids it".to_owned(),
        _ => "the kernel refused to pin it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_a_pin_is_said() {
        let said = |errno| meaning(errno, Path::new("/run/bpf"));
        for (errno, words) in [
            (Errno::ACCESS, "not this user's to write"),
            (Errno::ROFS, "mounted read-only"),
            (Errno::PERM, "not in a bpffs"),
            (Errno::NOSPC, "refused to pin"),
        ] {
            assert!(said(errno).contains(words), "{errno}: {}", said(errno));
        }
    }
}
