//! The kernel's program types with bpfman's names.

use super::ProgramKind;

/// `enum bpf_prog_type` of uapi/linux/bpf.h, by number.
const WORDS: [&str; 33] = [
    "unspec",
    "socket-filter",
    "probe",
    "tc",
    "sched-act",
    "tracepoint",
    "xdp",
    "perf-event",
    "cgroup-skb",
    "cgroup-sock",
    "lwt-in",
    "lwt-out",
    "lwt-xmit",
    "sock-ops",
    "sk-skb",
    "cgroup-device",
    "sk-msg",
    "raw-tracepoint",
    "cgroup-sock-addr",
    "lwt-seg6-local",
    "lirc-mode2",
    "sk-reuseport",
    "flow-dissector",
    "cgroup-sysctl",
    "raw-tracepoint-writable",
    "cgroup-sockopt",
    "tracing",
    "struct-ops",
    "ext",
    "lsm",
    "sk-lookup",
    "syscall",
    "netfilter",
];

/// The name of a type; its number if it is newer than this list.
pub fn kernel_type_word(number: u32) -> String {
    let word = usize::try_from(number).ok().and_then(|number| WORDS.get(number));
    word.map_or_else(|| number.to_string(), |word| (*word).to_owned())
}

/// Selects programs for a listing by type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypeFilter {
    /// One of our kinds. The kernel has several of them in one type: kprobe, uretprobe, fentry …
    Kind(ProgramKind),
    /// Every program of this kernel type.
    Kernel(u32),
}

impl TypeFilter {
    /// Every name: ours, then the kernel types in bpfman's spelling.
    pub fn words() -> impl Iterator<Item = &'static str> {
        let ours = ProgramKind::ALL.map(|(_, word)| word);
        ours.into_iter().chain(WORDS.into_iter().filter(move |word| !ours.contains(word)))
    }

    /// Parses a name. bpfman's names take precedence, so `tc` means every classifier, including tcx.
    pub fn from_word(word: &str) -> Option<Self> {
        let dashed = word.replace('_', "-");
        let number = WORDS.iter().position(|known| *known == dashed).and_then(|at| u32::try_from(at).ok());
        number.map(Self::Kernel).or_else(|| ProgramKind::from_word(word).map(Self::Kind))
    }

    /// True if the filter includes a program of this kind loaded by bpfman-hook.
    pub fn includes(self, kind: ProgramKind) -> bool {
        match self {
            Self::Kind(wanted) => wanted == kind,
            Self::Kernel(number) => kind.kernel_type() == number,
        }
    }

    /// True if the filter includes a program that only the kernel knows.
    pub fn includes_kernel(self, number: u32) -> bool {
        self == Self::Kernel(number)
    }
}

impl ProgramKind {
    /// `enum bpf_prog_type` of the kind.
    pub fn kernel_type(self) -> u32 {
        use ProgramKind as K;
        match self {
            K::SocketFilter => 1,
            K::Kprobe
            | K::Kretprobe
            | K::Uprobe
            | K::Uretprobe
            | K::KprobeMulti
            | K::KretprobeMulti
            | K::KprobeSession
            | K::UprobeMulti
            | K::UretprobeMulti
            | K::UprobeSession
            | K::Usdt
            | K::Ksyscall
            | K::Kretsyscall => 2,
            K::Tcx | K::Tc | K::Netkit => 3,
            K::SchedAct => 4,
            K::Tracepoint => 5,
            K::Xdp => 6,
            K::PerfEvent => 7,
            K::CgroupSkb => 8,
            K::CgroupSock => 9,
            K::LwtIn => 10,
            K::LwtOut => 11,
            K::LwtXmit => 12,
            K::SockOps => 13,
            K::SkSkb => 14,
            K::CgroupDevice => 15,
            K::SkMsg => 16,
            K::RawTracepoint => 17,
            K::CgroupSockAddr => 18,
            K::LwtSeg6local => 19,
            K::LircMode2 => 20,
            K::SkReuseport => 21,
            K::FlowDissector => 22,
            K::CgroupSysctl => 23,
            K::RawTracepointWritable => 24,
            K::CgroupSockopt => 25,
            K::TpBtf | K::Fentry | K::Fexit | K::FmodRet | K::Fsession | K::Iter => 26,
            K::StructOps => 27,
            K::Ext => 28,
            K::Lsm | K::LsmCgroup => 29,
            K::SkLookup => 30,
            K::Syscall => 31,
            K::Netfilter => 32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_names_are_bpfmans_and_ours() {
        for (word, includes, leaves_out) in [
            ("tc", vec![ProgramKind::Tc, ProgramKind::Tcx], ProgramKind::Xdp),
            ("tcx", vec![ProgramKind::Tcx], ProgramKind::Tc),
            ("probe", vec![ProgramKind::Kprobe, ProgramKind::Uretprobe], ProgramKind::Tracepoint),
            ("kprobe", vec![ProgramKind::Kprobe], ProgramKind::Kretprobe),
            ("tracing", vec![ProgramKind::Fentry, ProgramKind::Fexit], ProgramKind::Lsm),
            ("cgroup_skb", vec![ProgramKind::CgroupSkb], ProgramKind::CgroupSock),
            ("cgroup-skb", vec![ProgramKind::CgroupSkb], ProgramKind::CgroupSock),
        ] {
            let filter = TypeFilter::from_word(word).unwrap();
            assert!(includes.iter().all(|kind| filter.includes(*kind)) && !filter.includes(leaves_out), "{word}");
        }
        assert_eq!(TypeFilter::from_word("nonsense"), None);
        assert!(TypeFilter::from_word("xdp").unwrap().includes_kernel(6));
        assert_eq!((kernel_type_word(6), kernel_type_word(999)), ("xdp".to_owned(), "999".to_owned()));
    }

    #[test]
    fn every_kind_has_the_name_of_its_type() {
        for (kind, word) in ProgramKind::ALL {
            let own = kernel_type_word(kind.kernel_type()).replace('-', "");
            let same = own == word.replace('_', "");
            let shared = ["probe", "tc", "tracing", "lsm"].contains(&own.as_str());
            assert!(same || shared, "{word} is {own}");
        }
    }
}
