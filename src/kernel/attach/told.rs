//! Attach points that a type, a target and options tell: network namespaces, netfilter, iterators, many functions at once.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Attachment;
use crate::kernel::error::KernelError;
use crate::kernel::{Places, kallsyms, user_elf};
use crate::model::attach_point::{AttachPoint, PacketFamily, PacketHook, ProbedProcess, ProgramKind, UserProbe};
use crate::sys::bpf::{self, LinkTarget};
use crate::sys::{Errno, netns, tracefs};

/// `enum bpf_attach_type`
const FLOW_DISSECTOR: u32 = 17;
const TRACE_ITER: u32 = 28;
const SK_LOOKUP: u32 = 36;
const KPROBE_MULTI: u32 = 42;
const UPROBE_MULTI: u32 = 48;
const KPROBE_SESSION: u32 = 56;
const UPROBE_SESSION: u32 = 57;

impl Attachment<'_> {
    pub(super) fn told(&self, places: Places<'_>) -> Result<OwnedFd, KernelError> {
        match &self.planned.at {
            AttachPoint::Netns { kind } => self.network(self.netns(places)?, *kind),
            AttachPoint::Netfilter { family, hook, priority } => self.netfilter(self.netns(places)?, *family, *hook, *priority),
            AttachPoint::Loaded { kind: ProgramKind::Iter, .. } => self.iterator(),
            AttachPoint::KprobeMulti { kind, functions } => self.kernel_functions(*kind, functions),
            AttachPoint::UprobeMulti { kind, probe } => self.user_functions(*kind, probe, places),
            AttachPoint::Syscall { name, ret } => self.system_call(name, *ret),
            AttachPoint::PerfEvent { cpu, frequency } => self.clock(*cpu, *frequency),
            _ => self.trampoline(),
        }
    }

    fn network(&self, netns: BorrowedFd<'_>, kind: ProgramKind) -> Result<OwnedFd, KernelError> {
        let attach_type = if kind == ProgramKind::SkLookup { SK_LOOKUP } else { FLOW_DISSECTOR };
        bpf::link_create(self.program, LinkTarget::Fd(netns), attach_type, 0).map_err(|errno| {
            self.failed(
                errno,
                match errno {
                    Errno::EXIST => "a flow dissector is attached without a link, in this network namespace or the host's",
                    Errno::TOOBIG => "a network namespace takes one flow dissector, and 64 programs of sk_lookup",
                    Errno::INVAL => "this kernel has no such links on network namespaces (flow_dissector 5.8, sk_lookup 5.9)",
                    _ => "",
                },
            )
        })
    }

    fn netfilter(
        &self,
        netns: BorrowedFd<'_>,
        family: PacketFamily,
        hook: PacketHook,
        priority: i32,
    ) -> Result<OwnedFd, KernelError> {
        let link = || bpf::netfilter_link(self.program, family as u32, hook as u32, priority);
        netns::on_thread(netns, link)?.map_err(|errno| {
            self.failed(
                errno,
                match errno {
                    Errno::BUSY => "another program has this priority on this hook; give another one with priority=",
                    Errno::RANGE => "the first and the last priority are the kernel's own",
                    Errno::INVAL | Errno::OPNOTSUPP => {
                        "this kernel has no netfilter links (Linux 6.4, CONFIG_NETFILTER_BPF_LINK)"
                    }
                    _ => "",
                },
            )
        })
    }

    fn iterator(&self) -> Result<OwnedFd, KernelError> {
        // Without a target: all tasks, maps, sockets of the kernel.
        bpf::link_create(self.program, LinkTarget::Interface(0), TRACE_ITER, 0).map_err(|errno| {
            self.failed(errno, if errno == Errno::BADF { "this iterator goes over a map, which it needs" } else { "" })
        })
    }

    fn kernel_functions(&self, kind: ProgramKind, pattern: &str) -> Result<OwnedFd, KernelError> {
        let mut names = match pattern.contains('*') {
            true => tracefs::traceable_functions()?.into_iter().filter(|name| matches(pattern, name)).collect(),
            false => vec![pattern.to_owned()],
        };
        names.sort();
        // Functions with one name are told by their address only, and the kernel refuses their name.
        names.dedup_by(|a, b| a == b);
        let names: Vec<CString> = names.into_iter().filter_map(|name| CString::new(name).ok()).collect();
        if names.is_empty() {
            return Err(self.failed(Errno::NOENT, "this kernel has no function of such a name that programs can attach to"));
        }
        let attach_type = if kind == ProgramKind::KprobeSession { KPROBE_SESSION } else { KPROBE_MULTI };
        let returns = kind == ProgramKind::KretprobeMulti;
        bpf::kprobe_multi_link(self.program, attach_type, &names, returns).map_err(|errno| {
            self.failed(
                errno,
                match errno {
                    Errno::SRCH => "this kernel does not have one of the functions, or it cannot be traced, or has it twice",
                    Errno::INVAL | Errno::OPNOTSUPP => {
                        "this kernel has no kprobe.multi links (Linux 5.18, CONFIG_FPROBE; sessions 6.10)"
                    }
                    _ => "",
                },
            )
        })
    }

    fn user_functions(&self, kind: ProgramKind, probe: &UserProbe, places: Places<'_>) -> Result<OwnedFd, KernelError> {
        let file = self.user_file(probe, places)?;
        let symbols = probe.symbol.as_deref().unwrap_or_default();
        let offsets = symbols.split(',').map(|symbol| user_elf::function_offset(&file, symbol));
        let offsets: Vec<u64> = offsets.collect::<Result<_, _>>().map_err(|source| self.user_target(probe, source))?;
        let process = match probe.process {
            ProbedProcess::Any => None,
            ProbedProcess::Init => Some(places.init.ok_or_else(|| self.no_place("init process"))?),
            ProbedProcess::Pid(pid) => Some(pid),
        };
        let attach_type = if kind == ProgramKind::UprobeSession { UPROBE_SESSION } else { UPROBE_MULTI };
        let returns = kind == ProgramKind::UretprobeMulti;
        bpf::uprobe_multi_link(self.program, attach_type, file.as_fd(), &offsets, returns, process).map_err(|errno| {
            self.failed(
                errno,
                match errno {
                    Errno::INVAL | Errno::OPNOTSUPP => "this kernel has no uprobe.multi links (Linux 6.6; sessions 6.13)",
                    Errno::SRCH => "the process has exited",
                    _ => "",
                },
            )
        })
    }

    fn system_call(&self, name: &str, ret: bool) -> Result<OwnedFd, KernelError> {
        let entry = if kallsyms::has_syscall_wrapper() { kallsyms::SYSCALL_PREFIX } else { "__se_sys_" };
        self.kprobe(&format!("{entry}{name}"), 0, ret)
    }

    fn clock(&self, cpu: u32, frequency: u32) -> Result<OwnedFd, KernelError> {
        let event = bpf::clock_event(cpu, frequency).map_err(|errno| {
            self.failed(
                errno,
                match errno {
                    Errno::NODEV => "the processor does not exist or is offline",
                    Errno::INVAL => "the frequency is above kernel.perf_event_max_sample_rate, or the processor does not exist",
                    Errno::ACCESS => "no permission to open a perf event (CAP_PERFMON)",
                    _ => "",
                },
            )
        })?;
        self.perf_link(event, |_| "")
    }
}

/// True if a name matches a pattern in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names() {
        for (pattern, name, expected) in [
            ("vfs_*", "vfs_read", true),
            ("vfs_*", "do_vfs_read", false),
            ("*read*", "vfs_readv", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxcyyb", false),
            ("vfs_read", "vfs_read", true),
            ("vfs_read", "vfs_readv", false),
            ("*", "anything", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
