//! The ids of the kernel's tracepoints, without changing the host's mounts.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::sys::SysError;

/// Where tracefs is mounted, on newer and on older hosts.
const ROOTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Returns the id of a tracepoint for perf_event_open(2); None if the kernel does not have it, or if a part of the
/// name is not a file name.
///
/// If tracefs is not mounted, a private mount of it is read through a descriptor: it is not visible anywhere and goes
/// away with the descriptor.
pub fn tracepoint_id(category: &str, name: &str) -> Result<Option<u64>, SysError> {
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\0']);
    if !plain(category) || !plain(name) {
        return Ok(None);
    }
    let root = root()?;
    let path = format!("events/{category}/{name}/id");
    let file = match openat(root.as_fd(), path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(SysError::io("open", format!("tracefs {path}"))(errno)),
    };
    let mut text = String::new();
    let read = std::fs::File::from(file).take(32).read_to_string(&mut text);
    read.map_err(SysError::io("read", format!("tracefs {path}")))?;
    let number = text.trim().parse().map_err(|_| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, text.trim().to_owned());
        SysError::io("parse", format!("tracefs {path}"))(source)
    })?;
    Ok(Some(number))
}

/// The kernel's functions to which programs can be attached by name, without those of modules.
///
/// # Errors
/// If the kernel cannot trace functions (CONFIG_DYNAMIC_FTRACE), or tracefs cannot be read.
pub fn traceable_functions() -> Result<Vec<String>, SysError> {
    const NAME: &str = "available_filter_functions";
    let root = root()?;
    let file = openat(root.as_fd(), NAME, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let file = file.map_err(SysError::io("open", format!("tracefs {NAME}")))?;
    let mut text = String::new();
    let read = std::fs::File::from(file).take(64 << 20).read_to_string(&mut text);
    read.map_err(SysError::io("read", format!("tracefs {NAME}")))?;
    // A module follows its functions in brackets.
    Ok(text.lines().filter(|line| !line.contains(' ')).map(str::to_owned).collect())
}

fn root() -> Result<OwnedFd, SysError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for root in ROOTS {
        // An empty directory is a mount point without the mount.
        if Path::new(root).join("events").is_dir() {
            return openat(CWD, root, flags, Mode::empty()).map_err(SysError::io("open", root));
        }
    }
    private_root().map_err(SysError::io("mount privately", "tracefs"))
}

fn private_root() -> Result<OwnedFd, Errno> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_file_names_are_not_tracepoints() {
        for (category, name) in
            [("", "x"), ("sched", ""), ("..", "x"), ("sched", ".."), ("a/b", "x"), ("sched", "a/../b"), ("s", "\0")]
        {
            assert_eq!(tracepoint_id(category, name).unwrap(), None, "{category:?} {name:?}");
        }
    }
}
