//! Probes: kprobes and trampolines on kernel functions, uprobes on user-space functions.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::Attachment;
use crate::kernel::error::KernelError;
use crate::kernel::user_elf::{self, UserElfError};
use crate::kernel::{Feature, Places, Support, features, shared_library};
use crate::model::attach_point::{ProbedProcess, UserProbe};
use crate::sys::bpf::{self, LinkTarget};
use crate::sys::{Errno, fsutil};

/// `enum bpf_attach_type`
const PERF_EVENT: u32 = 41;

impl Attachment<'_> {
    pub(super) fn kprobe(&self, function: &str, offset: u64, ret: bool) -> Result<OwnedFd, KernelError> {
        let event = bpf::kprobe_event(function, offset, ret).map_err(|errno| match errno {
            Errno::NODEV => self.without(Feature::Kprobe, errno),
            other => self.failed(
                other,
                match other {
                    Errno::NOENT => "this kernel does not have the function, or its module is not loaded",
                    Errno::INVAL if offset != 0 => "no instruction begins at that offset, or probes are not allowed there",
                    Errno::INVAL => "probes are not allowed on this function",
                    Errno::ACCESS => "no permission to open a perf event (CAP_PERFMON)",
                    _ => "",
                },
            ),
        })?;
        self.perf_link(event, |_| "")
    }

    /// The file is found and opened once, beneath the root, and both reading its symbol and placing the probe use that
    /// one descriptor: the owner of the root can at most have another file of their own probed.
    pub(super) fn uprobe(&self, probe: &UserProbe, ret: bool, places: Places<'_>) -> Result<OwnedFd, KernelError> {
        let file = self.user_file(probe, places)?;
        let failed = |source| self.user_target(probe, source);
        let start = match &probe.symbol {
            Some(symbol) => user_elf::function_offset(&file, symbol).map_err(failed)?,
            None => 0,
        };
        let offset = start.checked_add(probe.offset).ok_or(UserElfError::Offset).map_err(failed)?;
        let process = match probe.process {
            ProbedProcess::Any => None,
            ProbedProcess::Init => Some(places.init.ok_or_else(|| self.no_place("init process"))?),
            ProbedProcess::Pid(pid) => Some(pid),
        };
        let event = bpf::uprobe_event(file.as_fd(), offset, ret, process).map_err(|errno| match errno {
            Errno::NODEV => self.without(Feature::Uprobe, errno),
            other => self.failed(
                other,
                match other {
                    Errno::SRCH => "the process has exited",
                    Errno::ACCESS => "no permission to open a perf event (CAP_PERFMON)",
                    Errno::INVAL => "probes are not allowed there",
                    Errno::IO => "its file system does not support uprobes, or the offset is not in the file",
                    _ => "",
                },
            ),
        })?;
        self.perf_link(event, |_| "")
    }

    pub(super) fn user_file(&self, probe: &UserProbe, places: Places<'_>) -> Result<File, KernelError> {
        let root = match (probe.container_pid, places.root) {
            (Some(pid), _) => fsutil::open_root(&PathBuf::from(format!("/proc/{pid}/root")))?,
            (None, Some(root)) => return self.open_in(root, probe),
            (None, None) => fsutil::open_root(Path::new("/"))?,
        };
        self.open_in(root.as_fd(), probe)
    }

    fn open_in(&self, root: BorrowedFd<'_>, probe: &UserProbe) -> Result<File, KernelError> {
        let path = if probe.target.starts_with('/') {
            PathBuf::from(&probe.target)
        } else {
            shared_library::find(root, &probe.target).ok_or_else(|| self.user_target(probe, UserElfError::NoLibrary))?
        };
        let opened = fsutil::open_regular_beneath(root, &path);
        opened.map(|(file, _)| file).map_err(|error| self.user_target(probe, error.into()))
    }

    pub(super) fn trampoline(&self) -> Result<OwnedFd, KernelError> {
        bpf::trampoline_link(self.program).map_err(|errno| {
            self.failed(
                errno,
                match errno {
                    Errno::BUSY => "another process is changing the function, or the program is already attached to it",
                    Errno::TOOBIG => "the function already has the maximum number of programs",
                    Errno::INVAL => "the program was not loaded for a kernel function",
                    _ => "",
                },
            )
        })
    }

    /// A link keeps its event open.
    pub(super) fn perf_link(&self, event: OwnedFd, why: impl Fn(Errno) -> &'static str) -> Result<OwnedFd, KernelError> {
        bpf::link_create(self.program, LinkTarget::Fd(event.as_fd()), PERF_EVENT, 0).map_err(|errno| {
            if errno == Errno::INVAL {
                let found = features::probe(Feature::PerfLink);
                if matches!(found, Support::No(_)) {
                    return KernelError::feature(self.doing(), Feature::PerfLink, found);
                }
            }
            self.failed(errno, why(errno))
        })
    }

    fn without(&self, feature: Feature, errno: Errno) -> KernelError {
        match features::probe(feature) {
            found @ Support::No(_) => KernelError::feature(self.doing(), feature, found),
            Support::Yes | Support::Unknown(_) => self.failed(errno, ""),
        }
    }

    pub(super) fn user_target(&self, probe: &UserProbe, source: UserElfError) -> KernelError {
        KernelError::UserTarget {
            kind: self.planned.at.word(),
            program: self.planned.function.clone(),
            target: probe.target.clone(),
            source: Box::new(source),
        }
    }
}
