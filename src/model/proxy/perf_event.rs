//! The arguments of perf_event_open(2), and whether a container may have such an event.
//!
//! Only rules with `host-scope = true` grant the program types that are attached to perf events. What is done with an
//! event afterwards is not notified: the kernel requires no capability of the holder of its descriptor to attach a
//! program (PERF_EVENT_IOC_SET_BPF) or to enable it (kernel/events/core.c, `_perf_ioctl` and
//! `perf_event_set_bpf_prog`).

use super::attr::FUNCTION_NAME_MAX;
use super::{ProxyErrno, ProxyGrant, ProxyRefusal};
use crate::model::delegation::Category;

/// Bytes of `struct perf_event_attr` that are known: PERF_ATTR_SIZE_VER1 of uapi/linux/perf_event.h, which every
/// kernel since 2.6.33 takes. What lies behind must be zero.
pub const EVENT_ATTR_SIZE: usize = 72;
/// PERF_ATTR_SIZE_VER0, the least that a caller passes.
pub const EVENT_ATTR_MIN: u64 = 64;
/// The kernel refuses more than a page.
const EVENT_ATTR_MAX: u64 = 4096;

/// The path of a file, with its NUL.
const FILE_PATH_MAX: usize = 4096;

/// Offsets of `struct perf_event_attr`.
#[allow(missing_docs, reason = "each is the offset of the field with its name")]
pub mod event {
    pub const TYPE: usize = 0;
    pub const SIZE: usize = 4;
    pub const CONFIG: usize = 8;
    pub const FLAGS: usize = 40;
    pub const BP_TYPE: usize = 52;
    /// A pointer to the name of a function, or to the path of a file, of a probe.
    pub const CONFIG1: usize = 56;
}

/// PERF_TYPE_HARDWARE, PERF_TYPE_SOFTWARE, PERF_TYPE_HW_CACHE.
const COUNTERS: [u32; 3] = [0, SOFTWARE, 3];
/// See [`COUNTERS`].
const SOFTWARE: u32 = 1;
/// PERF_TYPE_TRACEPOINT
const TRACEPOINT: u32 = 2;
/// PERF_COUNT_SW_BPF_OUTPUT: an event that programs write to (bpf_perf_event_output).
const BPF_OUTPUT: u64 = 10;
/// The bits of a probe's `config` that are known: `retprobe`, and the offset of a uprobe's `ref_ctr_offset`.
const PROBE_CONFIG: u64 = 1 | !0xffff_ffff;
/// The bits of the flags up to `remove_on_exec`, without `aux_output`. The next one is `sigtrap`, which sends signals to
/// the process that is watched.
const ATTR_FLAGS: u64 = ((1 << 37) - 1) & !(1 << 31);
/// PERF_FLAG_FD_NO_GROUP, PERF_FLAG_FD_CLOEXEC.
const CALL_FLAGS: u64 = 1 | CLOEXEC;
/// See [`CALL_FLAGS`].
const CLOEXEC: u64 = 8;

/// Program types kprobe, tracepoint, perf_event, raw_tracepoint, tracing.
const KPROBE: u32 = 2;
const TRACEPOINT_PROGRAM: u32 = 5;
const PERF_EVENT: u32 = 7;
const TRACING: [u32; 5] = [KPROBE, TRACEPOINT_PROGRAM, PERF_EVENT, 17, 26];

/// The numbers that the kernel gave to its two kinds of probes
/// (`/sys/bus/event_source/devices/{kprobe,uprobe}/type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProbeNumbers {
    /// In functions of the kernel; None if the kernel has none.
    pub kprobe: Option<u32>,
    /// In files of user space.
    pub uprobe: Option<u32>,
}

/// What `config1` of an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventTarget {
    /// A number, or nothing.
    Number,
    /// A pointer to the name of a function of the kernel, or null if `config2` is its address.
    Function,
    /// A pointer to the path of a file.
    File,
}

/// Whom an event watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchedTask {
    /// Every task.
    All,
    /// The calling thread.
    Caller,
    /// A task by its number in the caller's pid namespace.
    Number(u32),
}

/// A copy of the arguments of perf_event_open(2).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PerfEventCall {
    attr: [u8; EVENT_ATTR_SIZE],
    pid: i32,
    cpu: i32,
    group: i32,
    flags: u64,
}

impl PerfEventCall {
    /// The size that a caller's `struct perf_event_attr` has, from its first bytes.
    ///
    /// # Errors
    /// E2BIG for a size that the kernel refuses.
    pub fn size(first: &[u8]) -> Result<u64, ProxyRefusal> {
        match u64::from(u32_at(first, event::SIZE)) {
            0 => Ok(EVENT_ATTR_MIN),
            size @ EVENT_ATTR_MIN..=EVENT_ATTR_MAX => Ok(size),
            _ => Err(ProxyRefusal::UnknownField { errno: ProxyErrno::TOO_BIG }),
        }
    }

    /// Takes the bytes of a caller's `struct perf_event_attr` and the other arguments of the call.
    ///
    /// # Errors
    /// E2BIG for a byte that is not zero behind [`EVENT_ATTR_SIZE`], as of a kernel that does not know the field.
    pub fn new(given: &[u8], args: &[u64; 6]) -> Result<Self, ProxyRefusal> {
        let (known, beyond) = given.split_at(given.len().min(EVENT_ATTR_SIZE));
        if beyond.iter().any(|byte| *byte != 0) {
            return Err(ProxyRefusal::UnknownField { errno: ProxyErrno::TOO_BIG });
        }
        let mut attr = [0; EVENT_ATTR_SIZE];
        attr[..known.len()].copy_from_slice(known);
        // The kernel's parameters are ints.
        let int = |argument: u64| (argument & 0xffff_ffff) as u32 as i32;
        Ok(Self { attr, pid: int(args[1]), cpu: int(args[2]), group: int(args[3]), flags: args[4] })
    }

    /// The bytes.
    pub fn attr(&self) -> &[u8; EVENT_ATTR_SIZE] {
        &self.attr
    }

    /// The CPU, or -1 for all.
    pub fn cpu(&self) -> i32 {
        self.cpu
    }

    /// True if the caller wants a descriptor that is closed when it executes another program.
    pub fn close_on_exec(&self) -> bool {
        self.flags & CLOEXEC != 0
    }

    /// Whom it watches; None for a number that no task has.
    pub fn watched(&self) -> Option<WatchedTask> {
        match self.pid {
            -1 => Some(WatchedTask::All),
            0 => Some(WatchedTask::Caller),
            number => u32::try_from(number).ok().map(WatchedTask::Number),
        }
    }

    /// The address of the text that `config1` points to, and its size in bytes at most.
    pub fn text(&self, probes: ProbeNumbers) -> Option<(u64, usize)> {
        let (kind, address) = (Some(self.u32(event::TYPE)), self.u64(event::CONFIG1));
        let max = if kind == probes.kprobe {
            FUNCTION_NAME_MAX
        } else if kind == probes.uprobe {
            FILE_PATH_MAX
        } else {
            return None;
        };
        (address != 0).then_some((address, max))
    }

    /// Whether the container may have the event, and what its `config1` is.
    ///
    /// # Errors
    /// EPERM without host scope, or for a program type that is not granted; EOPNOTSUPP for what is not passed on.
    pub fn check(&self, grant: &ProxyGrant, probes: ProbeNumbers) -> Result<EventTarget, ProxyRefusal> {
        if !grant.host_scope {
            return Err(ProxyRefusal::HostScope { what: "a perf event (perf_event_open)".to_owned() });
        }
        let not_passed_on = |what: String| Err(ProxyRefusal::NotPassedOn { what });
        let (program, target) = match self.u32(event::TYPE) {
            TRACEPOINT => (TRACEPOINT_PROGRAM, EventTarget::Number),
            kind if Some(kind) == probes.kprobe => (KPROBE, EventTarget::Function),
            kind if Some(kind) == probes.uprobe => (KPROBE, EventTarget::File),
            SOFTWARE if self.u64(event::CONFIG) == BPF_OUTPUT => {
                let granted = TRACING.into_iter().find(|kind| grant.has(Category::Progs, *kind).is_ok());
                (granted.unwrap_or(PERF_EVENT), EventTarget::Number)
            }
            kind if COUNTERS.contains(&kind) => (PERF_EVENT, EventTarget::Number),
            kind => return not_passed_on(format!("a perf event of type {kind}")),
        };
        grant.has(Category::Progs, program)?;
        let config = self.u64(event::CONFIG) & !PROBE_CONFIG;
        if target != EventTarget::Number && config != 0 {
            return not_passed_on(format!("a probe with the bits {config:#x} in config"));
        }
        if self.u32(event::BP_TYPE) != 0 {
            return not_passed_on("a perf event with bp_type".to_owned());
        }
        let flags = self.u64(event::FLAGS) & !ATTR_FLAGS;
        if flags != 0 {
            return not_passed_on(format!("a perf event with the bits {flags:#x} behind read_format"));
        }
        if self.flags & !CALL_FLAGS != 0 {
            return not_passed_on(format!("perf_event_open with flags {:#x}", self.flags & !CALL_FLAGS));
        }
        if self.group != -1 {
            return not_passed_on("a perf event in a group".to_owned());
        }
        Ok(target)
    }

    fn u32(&self, at: usize) -> u32 {
        u32_at(&self.attr, at)
    }

    fn u64(&self, at: usize) -> u64 {
        self.attr.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u64::from_ne_bytes)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delegation::{Delegation, Preset};
    use crate::model::policy::ContainerLimits;

    const PROBES: ProbeNumbers = ProbeNumbers { kprobe: Some(8), uprobe: Some(9) };
    const ALL: [u64; 6] = [0, u64::MAX, 0, u64::MAX, 8, 0];

    fn grant(delegation: Delegation, host_scope: bool) -> ProxyGrant {
        ProxyGrant {
            delegation,
            helpers: None,
            kfuncs: None,
            instructions: None,
            images: Default::default(),
            host_scope,
            limits: ContainerLimits::default(),
        }
    }

    fn with(fields: &[(usize, u64)], args: [u64; 6]) -> PerfEventCall {
        let mut bytes = [0; EVENT_ATTR_SIZE];
        for (at, value) in fields {
            let width = if matches!(*at, event::TYPE | event::SIZE | event::BP_TYPE) { 4 } else { 8 };
            bytes[*at..at + width].copy_from_slice(&value.to_ne_bytes()[..width]);
        }
        PerfEventCall::new(&bytes, &args).unwrap()
    }

    #[test]
    fn the_program_types_decide_which_events_there_are() {
        let all = grant(Preset::Tracing.delegation(), true);
        let only = |kind: u32| grant(Delegation { progs: 1 << kind, ..Delegation::default() }, true);
        let event = |kind: u64, config: u64| with(&[(event::TYPE, kind), (event::CONFIG, config)], ALL);
        for (call, kind) in [
            (event(2, 77), TRACEPOINT_PROGRAM),
            (event(8, 1), KPROBE),
            (event(9, 0), KPROBE),
            (event(0, 0), PERF_EVENT),
            (event(1, 0), PERF_EVENT),
            (event(3, 0), PERF_EVENT),
        ] {
            assert!(call.check(&all, PROBES).is_ok() && call.check(&only(kind), PROBES).is_ok(), "{call:?}");
            for other in TRACING.into_iter().filter(|other| *other != kind) {
                let refused = call.check(&only(other), PROBES).unwrap_err();
                assert!(matches!(refused, ProxyRefusal::NotGranted { .. }), "{call:?}: {refused}");
            }
            let contained = call.check(&grant(Preset::Tracing.delegation(), false), PROBES).unwrap_err();
            assert_eq!(contained.errno(), ProxyErrno::PERMISSION);
            assert!(contained.to_string().contains("a perf event (perf_event_open) cannot be kept inside"), "{contained}");
        }
        // Every program that traces can write to such a buffer.
        for kind in TRACING {
            assert_eq!(event(1, BPF_OUTPUT).check(&only(kind), PROBES), Ok(EventTarget::Number));
        }
        assert!(event(1, BPF_OUTPUT).check(&only(6), PROBES).is_err());
        // A breakpoint, a raw event of the processor, and the event of another device.
        for kind in [4, 5, 6, 10, u64::from(u32::MAX)] {
            let refused = event(kind, 0).check(&all, PROBES).unwrap_err();
            assert_eq!(refused.errno(), ProxyErrno::NOT_SUPPORTED, "{kind}");
        }
        // A kernel without probes: the numbers are other events.
        assert!(event(8, 0).check(&all, ProbeNumbers::default()).is_err());
    }

    #[test]
    fn pointers_are_those_of_probes() {
        let all = grant(Preset::Tracing.delegation(), true);
        for (kind, target) in [
            (8, EventTarget::Function),
            (9, EventTarget::File),
            (2, EventTarget::Number),
            (1, EventTarget::Number),
            (0, EventTarget::Number),
        ] {
            let call = with(&[(event::TYPE, kind), (event::CONFIG1, 0x1000)], ALL);
            assert_eq!(call.check(&all, PROBES), Ok(target));
            let max = match target {
                EventTarget::Number => None,
                EventTarget::Function => Some(FUNCTION_NAME_MAX),
                EventTarget::File => Some(FILE_PATH_MAX),
            };
            assert_eq!(call.text(PROBES), max.map(|max| (0x1000, max)));
            assert_eq!(with(&[(event::TYPE, kind)], ALL).text(PROBES), None);
        }
    }

    #[test]
    fn what_is_not_known_is_not_passed_on() {
        let all = grant(Preset::Tracing.delegation(), true);
        let tracepoint = |fields: &[(usize, u64)], args| with(&[&[(event::TYPE, 2)], fields].concat(), args);
        for (call, part) in [
            (with(&[(event::TYPE, 9), (event::CONFIG, 3 | 1 << 32)], ALL), "bits 0x2 in config"),
            (tracepoint(&[(event::BP_TYPE, 1)], ALL), "bp_type"),
            (tracepoint(&[(event::FLAGS, 1 << 37)], ALL), "bits 0x2000000000 behind"),
            (tracepoint(&[(event::FLAGS, 1 << 31)], ALL), "bits 0x80000000 behind"),
            (tracepoint(&[], [0, 0, 0, u64::MAX, 4, 0]), "flags 0x4"),
            (tracepoint(&[], [0, 0, 0, u64::MAX, 2, 0]), "flags 0x2"),
            (tracepoint(&[], [0, 0, 0, 3, 8, 0]), "in a group"),
        ] {
            let shown = call.check(&all, PROBES).unwrap_err().to_string();
            assert!(shown.contains(part) && shown.ends_with("is not passed on"), "{shown}");
        }
        assert!(tracepoint(&[(event::FLAGS, 1 | 1 << 10 | 1 << 36)], ALL).check(&all, PROBES).is_ok());
        let mut longer = vec![0; 136];
        assert!(PerfEventCall::new(&longer, &ALL).is_ok());
        longer[EVENT_ATTR_SIZE] = 1;
        assert_eq!(PerfEventCall::new(&longer, &ALL).unwrap_err().errno(), ProxyErrno::TOO_BIG);
    }

    #[test]
    fn the_arguments_are_read_as_the_kernel_does() {
        let call = |pid: u64, cpu: u64, flags| PerfEventCall::new(&[0; 64], &[0, pid, cpu, u64::MAX, flags, 0]).unwrap();
        let minus = |value: i64| value.cast_unsigned();
        for (pid, watched) in [
            (minus(-1), Some(WatchedTask::All)),
            (0xffff_ffff, Some(WatchedTask::All)),
            (0, Some(WatchedTask::Caller)),
            (7 | 1 << 40, Some(WatchedTask::Number(7))),
            (minus(-2), None),
        ] {
            assert_eq!(call(pid, 0, 0).watched(), watched, "{pid:#x}");
        }
        assert_eq!((call(0, minus(-1), 8).cpu(), call(0, 3, 0).cpu()), (-1, 3));
        assert!(call(0, 0, 8).close_on_exec() && !call(0, 0, 1).close_on_exec());
        let sized = |size: u32| {
            let mut first = [0; 64];
            first[event::SIZE..][..4].copy_from_slice(&size.to_ne_bytes());
            PerfEventCall::size(&first).map_err(|refusal| refusal.errno())
        };
        for (size, found) in [(0, Ok(64)), (64, Ok(64)), (136, Ok(136)), (4096, Ok(4096))] {
            assert_eq!(sized(size), found);
        }
        for size in [1, 63, 4097, u32::MAX] {
            assert_eq!(sized(size), Err(ProxyErrno::TOO_BIG));
        }
    }
}
