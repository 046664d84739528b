//! The path of a file whose functions are traced, as a process of the container wrote it.

/// Where to look for the file. Links of procfs lead where this process could not follow them safely, so the usual ones
/// are read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TracedFile<'p> {
    /// A path below the caller's root directory.
    BelowRoot(&'p [u8]),
    /// The executable of a task (`/proc/self/exe`).
    Executable(TracedTask),
    /// A path below the root directory of a task (`/proc/7/root/bin/sh`).
    BelowRootOf(TracedTask, &'p [u8]),
}

/// A task in a path of procfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TracedTask {
    /// The caller.
    Caller,
    /// By its number in the caller's pid namespace.
    Number(u32),
}

impl<'p> TracedFile<'p> {
    /// Reads a path without its NUL; None if it does not begin at the root directory.
    pub fn of(path: &'p [u8]) -> Option<Self> {
        if !path.starts_with(b"/") {
            return None;
        }
        Some(Self::in_procfs(path).unwrap_or(Self::BelowRoot(path)))
    }

    fn in_procfs(path: &'p [u8]) -> Option<Self> {
        let path = path.strip_prefix(b"/proc/")?;
        let (task, rest) = path.split_at(path.iter().position(|byte| *byte == b'/')?);
        let task = match task {
            b"self" | b"thread-self" => TracedTask::Caller,
            // Like procfs, no other form of a number.
            [b'1'..=b'9', ..] => TracedTask::Number(std::str::from_utf8(task).ok()?.parse().ok()?),
            _ => return None,
        };
        match rest {
            b"/exe" => Some(Self::Executable(task)),
            _ => rest.strip_prefix(b"/root").filter(|rest| rest.starts_with(b"/")).map(|rest| Self::BelowRootOf(task, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_procfs_name_a_task() {
        use TracedFile::{BelowRoot, BelowRootOf, Executable};
        use TracedTask::{Caller, Number};
        for (path, found) in [
            ("/usr/bin/sh", Some(BelowRoot(b"/usr/bin/sh"))),
            ("/proc/self/exe", Some(Executable(Caller))),
            ("/proc/thread-self/exe", Some(Executable(Caller))),
            ("/proc/77/exe", Some(Executable(Number(77)))),
            ("/proc/1/root/bin/sh", Some(BelowRootOf(Number(1), b"/bin/sh"))),
            ("/proc/self/root/../x", Some(BelowRootOf(Caller, b"/../x"))),
            ("/proc/07/exe", Some(BelowRoot(b"/proc/07/exe"))),
            ("/proc/+7/exe", Some(BelowRoot(b"/proc/+7/exe"))),
            ("/proc/99999999999/exe", Some(BelowRoot(b"/proc/99999999999/exe"))),
            ("/proc/self/fd/3", Some(BelowRoot(b"/proc/self/fd/3"))),
            ("/proc/self/exe/", Some(BelowRoot(b"/proc/self/exe/"))),
            ("/proc/1/rootx", Some(BelowRoot(b"/proc/1/rootx"))),
            ("/proc/self", Some(BelowRoot(b"/proc/self"))),
            ("bin/sh", None),
            ("", None),
        ] {
            assert_eq!(TracedFile::of(path.as_bytes()), found, "{path}");
        }
    }
}
