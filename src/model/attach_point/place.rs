//! Attach points that are told by a type, a target and options alone, alike in annotations and by hand.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AttachPoint, ProbedProcess, ProgramKind, UserProbe};

/// The packets of a netfilter program; the numbers are `NFPROTO_*` of uapi/linux/netfilter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PacketFamily {
    /// IPv4.
    Ipv4 = 2,
    /// IPv6.
    Ipv6 = 10,
}

/// Where in the network stack a netfilter program runs; the numbers are `enum nf_inet_hooks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PacketHook {
    /// Before routing.
    Prerouting = 0,
    /// To a socket of this network namespace.
    Input = 1,
    /// Through this network namespace.
    Forward = 2,
    /// From a socket of this network namespace.
    Output = 3,
    /// After routing.
    Postrouting = 4,
}

impl PacketFamily {
    /// Every family with its name in `pf=`.
    pub const ALL: [(&'static str, Self); 2] = [("ipv4", Self::Ipv4), ("ipv6", Self::Ipv6)];
}

impl PacketHook {
    /// Every hook with its name in `hook=`.
    pub const ALL: [(&'static str, Self); 5] = [
        ("prerouting", Self::Prerouting),
        ("input", Self::Input),
        ("forward", Self::Forward),
        ("output", Self::Output),
        ("postrouting", Self::Postrouting),
    ];
}

impl fmt::Display for PacketFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(_, known)| known == self).map_or("", |(word, _)| word))
    }
}

impl fmt::Display for PacketHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(_, known)| known == self).map_or("", |(word, _)| word))
    }
}

/// The options of such attach points; each kind has some of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct PlaceOptions {
    /// `pf=`, netfilter.
    pub family: Option<PacketFamily>,
    /// `hook=`, netfilter.
    pub hook: Option<PacketHook>,
    /// `priority=`, netfilter: lower values run first, among all users of the hook.
    pub priority: Option<i32>,
    /// `symbol=`, uprobe_multi: functions, separated by commas.
    pub symbols: Option<String>,
    /// `pid=`, uprobe_multi.
    pub process: Option<ProbedProcess>,
    /// `cpu=`, perf_event.
    pub cpu: Option<u32>,
    /// `frequency=`, perf_event: samples per second.
    pub frequency: Option<u32>,
}

/// Samples per second without `frequency=`, as of perf's own tools: not a divisor of a timer's frequency.
const FREQUENCY: u32 = 99;

/// The attach point of a kind. `target` is the request's, or what the section's name has.
///
/// # Errors
/// What the request has to add.
pub fn told_place(kind: ProgramKind, target: Option<&str>, options: &PlaceOptions) -> Result<AttachPoint, String> {
    use ProgramKind as K;
    let target = |what: &str| target.map(str::to_owned).ok_or_else(|| format!("{kind}:FUNCTION:{what}"));
    Ok(match kind {
        K::SkLookup | K::FlowDissector => AttachPoint::Netns { kind },
        K::Netfilter => match (options.family, options.hook) {
            (Some(family), Some(hook)) => {
                AttachPoint::Netfilter { family, hook, priority: options.priority.unwrap_or_default() }
            }
            _ => return Err("pf= and hook=, such as pf=ipv4 hook=input".to_owned()),
        },
        K::TpBtf => AttachPoint::Loaded { kind, target: target("tracepoint")? },
        K::Iter => AttachPoint::Loaded { kind, target: target("iterator")? },
        K::FmodRet | K::Fsession => AttachPoint::Loaded { kind, target: target("function")? },
        K::RawTracepoint | K::RawTracepointWritable => AttachPoint::RawTracepoint { name: target("tracepoint")? },
        K::KprobeMulti | K::KretprobeMulti | K::KprobeSession => {
            AttachPoint::KprobeMulti { kind, functions: target("functions, with * for any characters")? }
        }
        K::UprobeMulti | K::UretprobeMulti | K::UprobeSession => {
            let place = target("path-or-library");
            let (place, declared) = match place?.rsplit_once(':') {
                Some((place, symbols)) => (place.to_owned(), Some(symbols.to_owned())),
                None => (target("path-or-library")?, None),
            };
            let symbol = options.symbols.clone().or(declared);
            if symbol.is_none() {
                return Err("symbol= with the functions, separated by commas".to_owned());
            }
            let process = options.process.unwrap_or(ProbedProcess::Any);
            AttachPoint::UprobeMulti {
                kind,
                probe: UserProbe { target: place, symbol, offset: 0, process, container_pid: None },
            }
        }
        K::Ksyscall | K::Kretsyscall => AttachPoint::Syscall { name: target("system call")?, ret: kind == K::Kretsyscall },
        K::PerfEvent => match options.cpu {
            Some(cpu) => AttachPoint::PerfEvent { cpu, frequency: options.frequency.unwrap_or(FREQUENCY) },
            None => return Err("cpu=, a number: one link samples one processor".to_owned()),
        },
        _ => return Err(format!("another way to attach it: {kind} programs are only loaded")),
    })
}

/// True for the kinds of [`told_place`].
pub fn is_told(kind: ProgramKind) -> bool {
    use ProgramKind as K;
    matches!(
        kind,
        K::SkLookup
            | K::FlowDissector
            | K::Netfilter
            | K::TpBtf
            | K::Iter
            | K::FmodRet
            | K::Fsession
            | K::RawTracepointWritable
            | K::KprobeMulti
            | K::KretprobeMulti
            | K::KprobeSession
            | K::UprobeMulti
            | K::UretprobeMulti
            | K::UprobeSession
            | K::Ksyscall
            | K::Kretsyscall
            | K::PerfEvent
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_says_what_is_missing() {
        let none = PlaceOptions::default();
        for (kind, _) in ProgramKind::ALL.into_iter().filter(|(kind, _)| is_told(*kind)) {
            let found = told_place(kind, Some("/bin/sh:main"), &PlaceOptions { cpu: Some(1), ..none.clone() });
            assert_eq!(found.is_ok(), kind != ProgramKind::Netfilter, "{kind}: {found:?}");
        }
        for (kind, said) in [
            (ProgramKind::Netfilter, "pf= and hook="),
            (ProgramKind::TpBtf, "tp_btf:FUNCTION:tracepoint"),
            (ProgramKind::PerfEvent, "cpu="),
            (ProgramKind::SocketFilter, "only loaded"),
        ] {
            assert!(told_place(kind, None, &none).unwrap_err().contains(said), "{kind}");
        }
        let options = PlaceOptions { family: Some(PacketFamily::Ipv6), hook: Some(PacketHook::Output), ..none };
        let at = told_place(ProgramKind::Netfilter, None, &options).unwrap();
        assert_eq!((at.word(), at.to_string()), ("netfilter", "ipv6 output priority 0".to_owned()));
    }
}
