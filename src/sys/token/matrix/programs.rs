//! Program types, attach types and link types.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

use super::attempts::{Smallest, program};
use super::attr::RawAttr;
use super::{Lab, needs_token, smallest};
use crate::model::delegation::Category;
use crate::model::token_matrix::{MatrixOutcome, MatrixRow, MatrixSet};
use crate::sys::bpf;

/// `enum bpf_cmd`
const PROG_TEST_RUN: u32 = 10;
const RAW_TRACEPOINT_OPEN: u32 = 17;
const LINK_CREATE: u32 = 28;
const ITER_CREATE: u32 = 33;
const PERF_EVENT: u32 = 41;
/// `enum bpf_prog_type`
const CGROUP_SKB: u32 = 8;
/// A tracepoint that only BPF_PROG_TEST_RUN passes.
const QUIET_TRACEPOINT: &std::ffi::CStr = c"bpf_test_finish";
/// A function that only BPF_PROG_TEST_RUN calls.
const QUIET_FUNCTION: &std::ffi::CStr = c"bpf_fentry_test1";
/// The interface lo, which is the only one in a new network namespace.
const LOOPBACK: u32 = 1;

/// How a program is attached.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// To a socket, by an option of setsockopt(2).
    SocketOption(libc::c_int),
    /// To the lent cgroup.
    Cgroup,
    /// To lo, with flags.
    Interface(u32),
    /// To the network namespace.
    Netns,
    /// To a netfilter hook of the network namespace.
    Netfilter,
    /// To a raw tracepoint.
    RawTracepoint,
    /// To the kernel function of its load.
    Trampoline,
    /// To an iterator, which is then opened.
    Iterator,
    /// To a software event of this process.
    SoftwareEvent,
    /// To a tracepoint, by perf_event_open(2).
    Tracepoint,
    /// To a probe of user space, by perf_event_open(2).
    Uprobe,
    /// To functions of the kernel.
    KprobeMulti,
    /// To functions of a file.
    UprobeMulti,
    /// To a sockmap.
    Sockmap,
    /// Run once.
    TestRun,
    /// Not attached here.
    Not(&'static str),
}

impl Way {
    /// The type of the link, `enum bpf_link_type`; None where there is no link.
    fn link(self, attach_type: u32) -> Option<&'static str> {
        Some(match self {
            Self::Cgroup => "cgroup",
            Self::Interface(_) if attach_type == XDP => "xdp",
            Self::Interface(_) => "tcx",
            Self::Netns => "netns",
            Self::Netfilter => "netfilter",
            Self::RawTracepoint => "raw_tracepoint",
            Self::Trampoline => "tracing",
            Self::Iterator => "iter",
            Self::SoftwareEvent | Self::Tracepoint | Self::Uprobe => "perf_event",
            Self::KprobeMulti => "kprobe_multi",
            Self::UprobeMulti => "uprobe_multi",
            Self::Sockmap => "sockmap",
            Self::Not(NO_NETKIT) => "netkit",
            Self::Not(NO_REGISTRATION) => "struct_ops",
            Self::SocketOption(_) | Self::TestRun | Self::Not(_) => return None,
        })
    }
}

const XDP: u32 = 37;
/// uapi/linux/if_link.h: `XDP_FLAGS_SKB_MODE`
const SKB_MODE: u32 = 2;
const NO_NETKIT: &str = "needs a netkit device";
const NO_REGISTRATION: &str = "would register for the whole host";
const NETLINK: &str = "attached over netlink, not by bpf(2)";
const OF_MAP: &str = "attached by an entry of a device or CPU map";
const NO_TARGET: &str = "needs another program to replace";
const NO_DEVICE: &str = "needs an infrared device";
const MANY: &str = "needs a list of BTF ids";

/// Program type, attach type, the name in the kernel's BTF that it is loaded for, and how it is attached.
const PROGRAMS: &[(u32, u32, &str, Way)] = &[
    (1, 0, "", Way::SocketOption(libc::SO_ATTACH_BPF)),
    (2, 0, "", Way::Uprobe),
    (2, 42, "", Way::KprobeMulti),
    (2, 48, "", Way::UprobeMulti),
    (2, 56, "", Way::KprobeMulti),
    (2, 57, "", Way::UprobeMulti),
    (3, 0, "", Way::Not(NETLINK)),
    (3, 46, "", Way::Interface(0)),
    (3, 47, "", Way::Interface(0)),
    (3, 54, "", Way::Not(NO_NETKIT)),
    (3, 55, "", Way::Not(NO_NETKIT)),
    (4, 0, "", Way::Not(NETLINK)),
    (5, 0, "", Way::Tracepoint),
    (6, 37, "", Way::Interface(SKB_MODE)),
    (6, 33, "", Way::Not(OF_MAP)),
    (6, 35, "", Way::Not(OF_MAP)),
    (7, 0, "", Way::SoftwareEvent),
    (8, 0, "", Way::Cgroup),
    (8, 1, "", Way::Cgroup),
    (9, 2, "", Way::Cgroup),
    (9, 34, "", Way::Cgroup),
    (9, 12, "", Way::Cgroup),
    (9, 13, "", Way::Cgroup),
    (10, 0, "", Way::Not(NETLINK)),
    (11, 0, "", Way::Not(NETLINK)),
    (12, 0, "", Way::Not(NETLINK)),
    (13, 3, "", Way::Cgroup),
    (14, 4, "", Way::Sockmap),
    (14, 5, "", Way::Sockmap),
    (14, 38, "", Way::Sockmap),
    (15, 6, "", Way::Cgroup),
    (16, 7, "", Way::Sockmap),
    (17, 0, "", Way::RawTracepoint),
    (18, 8, "", Way::Cgroup),
    (18, 9, "", Way::Cgroup),
    (18, 10, "", Way::Cgroup),
    (18, 11, "", Way::Cgroup),
    (18, 14, "", Way::Cgroup),
    (18, 15, "", Way::Cgroup),
    (18, 19, "", Way::Cgroup),
    (18, 20, "", Way::Cgroup),
    (18, 29, "", Way::Cgroup),
    (18, 30, "", Way::Cgroup),
    (18, 31, "", Way::Cgroup),
    (18, 32, "", Way::Cgroup),
    (18, 49, "", Way::Cgroup),
    (18, 50, "", Way::Cgroup),
    (18, 51, "", Way::Cgroup),
    (18, 52, "", Way::Cgroup),
    (18, 53, "", Way::Cgroup),
    (19, 0, "", Way::Not(NETLINK)),
    (20, 16, "", Way::Not(NO_DEVICE)),
    (21, 39, "", Way::SocketOption(libc::SO_ATTACH_REUSEPORT_EBPF)),
    (21, 40, "", Way::SocketOption(libc::SO_ATTACH_REUSEPORT_EBPF)),
    (22, 17, "", Way::Netns),
    (23, 18, "", Way::Cgroup),
    (24, 0, "", Way::RawTracepoint),
    (25, 21, "", Way::Cgroup),
    (25, 22, "", Way::Cgroup),
    (26, 23, "btf_trace_bpf_test_finish", Way::Trampoline),
    (26, 24, "bpf_fentry_test1", Way::Trampoline),
    (26, 25, "bpf_fentry_test1", Way::Trampoline),
    (26, 26, "bpf_modify_return_test", Way::Trampoline),
    (26, 28, "bpf_iter_task", Way::Iterator),
    (26, 58, "bpf_fentry_test1", Way::Trampoline),
    (26, 59, "", Way::Not(MANY)),
    (26, 60, "", Way::Not(MANY)),
    (26, 61, "", Way::Not(MANY)),
    (27, 0, "tcp_congestion_ops", Way::Not(NO_REGISTRATION)),
    (28, 0, "", Way::Not(NO_TARGET)),
    (29, 27, "bpf_lsm_quotactl", Way::Trampoline),
    (29, 43, "bpf_lsm_socket_bind", Way::Cgroup),
    (30, 36, "", Way::Netns),
    (31, 0, "", Way::TestRun),
    (32, 45, "", Way::Netfilter),
];

/// Every name in the kernel's BTF that the attempts refer to.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PROGRAMS.iter().map(|(_, _, name, _)| *name).filter(|name| !name.is_empty())
}

/// The rows of program types, attach types and link types.
pub(super) fn rows(lab: &Lab) -> Vec<MatrixRow> {
    let mut all: Vec<MatrixRow> =
        PROGRAMS.iter().filter_map(|(prog, attach, name, way)| row(lab, *prog, *attach, name, *way)).collect();
    let mut types: Vec<MatrixRow> = Vec::new();
    let mut links: Vec<(MatrixRow, bool)> = Vec::new();
    for ((program_type, attach_type, _, way), row) in PROGRAMS.iter().zip(&all) {
        let Some(name) = Category::Progs.name(*program_type) else { continue };
        match types.iter_mut().find(|known| known.name == name) {
            // A later attach type may load where the first one does not exist in this kernel.
            Some(known) if known.outcome.works() || !row.outcome.works() => {}
            Some(known) => *known = of_type(row, name),
            None => types.push(of_type(row, name)),
        }
        if let (Some(link), Some(outcome)) = (way.link(*attach_type), &row.attach) {
            let made = MatrixRow {
                set: MatrixSet::Links,
                name: link.to_owned(),
                program: row.program.clone(),
                token: None,
                outcome: outcome.clone(),
                attach: None,
            };
            match links.iter_mut().find(|(known, _)| known.name == link) {
                Some((known, works)) if !*works && outcome.works() => {
                    *known = made;
                    *works = true;
                }
                Some(_) => {}
                None => links.push((made, outcome.works())),
            }
        }
    }
    types.append(&mut all);
    types.extend(links.into_iter().map(|(row, _)| row));
    types
}

/// The row of a program type: loading it, with one of its attach types.
fn of_type(row: &MatrixRow, name: &str) -> MatrixRow {
    MatrixRow { set: MatrixSet::Progs, name: name.to_owned(), program: None, attach: None, ..row.clone() }
}

fn row(lab: &Lab, program_type: u32, attach_type: u32, name: &str, way: Way) -> Option<MatrixRow> {
    // 0 is cgroup_inet_ingress, and what types without attach types of their own are loaded with.
    let shown = match attach_type {
        0 if program_type != CGROUP_SKB => "none",
        _ => Category::Attachs.name(attach_type)?,
    };
    let shown = shown.to_owned();
    let of_program = Category::Progs.name(program_type)?.to_owned();
    let made = |token, outcome, attach| {
        let shown = shown.clone();
        Some(MatrixRow { set: MatrixSet::Attachs, name: shown, program: Some(of_program.clone()), token, outcome, attach })
    };
    let attach_btf_id = match name {
        "" => 0,
        name => match lab.id(name) {
            Some(id) => id,
            None => return made(None, MatrixOutcome::NotTried(format!("this kernel has no {name}")), None),
        },
    };
    if matches!(way, Way::Not(NO_TARGET | MANY)) {
        let Way::Not(why) = way else { return None };
        return made(None, MatrixOutcome::NotTried(why.to_owned()), None);
    }
    let wanted = Smallest { program_type, attach_type, attach_btf_id };
    let outcome = smallest(|| program(wanted, Some(lab.token())).map(drop));
    let token = needs_token(&outcome, || program(wanted, None).map(drop));
    let loaded = match program(wanted, Some(lab.token())) {
        Ok(loaded) => loaded,
        Err(_) => return made(token, outcome, None),
    };
    let attach = match way {
        Way::Not(why) => MatrixOutcome::NotTried(why.to_owned()),
        Way::Cgroup if lab.cgroup.is_none() => MatrixOutcome::NotTried("needs a cgroup of the v2 hierarchy".to_owned()),
        _ => smallest(|| attach(lab, loaded.as_fd(), attach_type, way)),
    };
    made(token, outcome, Some(attach))
}

/// Attaches a program and detaches it again.
fn attach(lab: &Lab, program: BorrowedFd<'_>, attach_type: u32, way: Way) -> Result<(), Errno> {
    let link = || RawAttr::new().fd(0, program).u32(8, attach_type);
    let to = |target: BorrowedFd<'_>| link().fd(4, target).open(LINK_CREATE).map(drop);
    match way {
        Way::SocketOption(option) => {
            let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
            if option == libc::SO_ATTACH_REUSEPORT_EBPF {
                set_option(&socket, libc::SO_REUSEPORT, 1)?;
            }
            set_option(&socket, option, program.as_raw_fd())
        }
        Way::Cgroup => to(lab.cgroup.as_ref().ok_or(Errno::NODEV)?.as_fd()),
        Way::Interface(flags) => link().u32(4, LOOPBACK).u32(12, flags).open(LINK_CREATE).map(drop),
        Way::Netns => to(File::open("/proc/thread-self/ns/net").map_err(errno)?.as_fd()),
        // NFPROTO_IPV4, the hook before routing, priority 1.
        Way::Netfilter => link().u32(16, 2).u32(20, 0).u32(24, 1).open(LINK_CREATE).map(drop),
        Way::RawTracepoint => {
            RawAttr::new().reads(0, QUIET_TRACEPOINT.to_bytes_with_nul()).fd(8, program).open(RAW_TRACEPOINT_OPEN).map(drop)
        }
        Way::Trampoline => RawAttr::new().fd(8, program).open(RAW_TRACEPOINT_OPEN).map(drop),
        Way::Iterator => {
            let link = link().open(LINK_CREATE)?;
            RawAttr::new().fd(0, link.as_fd()).open(ITER_CREATE).map(drop)
        }
        Way::SoftwareEvent => event(program, bpf::software_event()?),
        Way::Tracepoint => event(program, bpf::own_tracepoint_event(lab.tracepoint.ok_or(Errno::NOENT)?)?),
        Way::Uprobe => event(program, bpf::uprobe_event(text()?.as_fd(), 0, false, Some(std::process::id()))?),
        Way::KprobeMulti => {
            let symbols = [QUIET_FUNCTION.as_ptr() as u64];
            link().u32(20, 1).reads(24, &symbols).open(LINK_CREATE).map(drop)
        }
        Way::UprobeMulti => {
            let file = text()?;
            let path = std::ffi::CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::INVAL)?;
            let offsets = [0u64];
            let link = link().reads(16, path.as_bytes_with_nul()).reads(24, &offsets).u32(48, 1);
            link.u32(56, std::process::id()).open(LINK_CREATE).map(drop)
        }
        Way::Sockmap => to(lab.sockmap.as_ref().ok_or(Errno::NODEV)?.as_fd()),
        Way::TestRun => RawAttr::new().fd(0, program).call(PROG_TEST_RUN).map(drop),
        Way::Not(_) => Err(Errno::INVAL),
    }
}

fn event(program: BorrowedFd<'_>, event: OwnedFd) -> Result<(), Errno> {
    RawAttr::new().fd(0, program).fd(4, event.as_fd()).u32(8, PERF_EVENT).open(LINK_CREATE).map(drop)
}

/// A file that no process executes, for probes of user space.
fn text() -> Result<OwnedFd, Errno> {
    let file = memfd_create("text", MemfdFlags::CLOEXEC)?;
    // Instructions on every architecture that has BPF tokens; none is run.
    rustix::io::write(&file, &[0x90; 64])?;
    Ok(file)
}

fn set_option(socket: &OwnedFd, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of `value`.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), size) };
    if done == 0 { Ok(()) } else { Err(errno(io::Error::last_os_error())) }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
