//! The files that say which processes serve the proxy of bpf(2): `proxies/<container>/<name>`, all empty.
//!
//! A process removes its file when its listener has ended. A file of a process that does not run any more therefore
//! says that a container has lost its proxy.

use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::temporary::FILE_MODE;
use super::{Export, open_or_make};
use crate::model::ids::ContainerId;
use crate::sys::fsutil;

/// The directory with a directory for each container.
pub const PROXIES: &str = "proxies";

/// How often to make a container's directory, which another process may remove at the same time.
const ATTEMPTS: usize = 3;

impl Export {
    /// Writes the file of a process of a container.
    pub fn put_proxy(&self, id: &ContainerId, name: &str) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        for _ in 0..ATTEMPTS {
            let Some(all) = open_or_make(&self.directory, Path::new(PROXIES)) else { return };
            let Some(directory) = open_or_make(&all, Path::new(id.as_str())) else { continue };
            if !matches!(openat(&directory, name, flags, Mode::from_raw_mode(FILE_MODE)), Err(Errno::NOENT)) {
                return;
            }
        }
    }

    /// Renames the file of a process. Returns true for the one caller that did it.
    pub fn rename_proxy(&self, id: &ContainerId, name: &str, to: &str) -> bool {
        self.proxies_of(id).is_some_and(|directory| renameat(&directory, name, &directory, to).is_ok())
    }

    /// Removes the file of a process, and the container's directory with its last file.
    pub fn remove_proxy(&self, id: &ContainerId, name: &str) {
        if let Some(directory) = self.proxies_of(id) {
            let _ = unlinkat(&directory, name, AtFlags::empty());
        }
        if let Some(all) = self.subdirectory(Path::new(PROXIES)) {
            let _ = unlinkat(&all, id.as_str(), AtFlags::REMOVEDIR);
        }
    }

    /// The names of the files of a container.
    pub fn proxies(&self, id: &ContainerId) -> Vec<String> {
        names(&self.path.join(PROXIES).join(id.as_str()))
    }

    /// The containers that have a directory.
    pub fn proxied_containers(&self) -> Vec<ContainerId> {
        names(&self.path.join(PROXIES)).into_iter().filter_map(|name| name.try_into().ok()).collect()
    }

    fn proxies_of(&self, id: &ContainerId) -> Option<OwnedFd> {
        self.subdirectory(&Path::new(PROXIES).join(id.as_str()))
    }
}

fn names(directory: &Path) -> Vec<String> {
    let names = fsutil::names_in(directory).unwrap_or_default();
    names.into_iter().filter_map(|name| Some(name.to_str()?.to_owned())).collect()
}
