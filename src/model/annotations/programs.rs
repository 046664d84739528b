//! `programs`: entries `TYPE:FUNCTION[:TARGET] [option=value …]`.

use super::lex::{self, LexError, ListEntry, Word};
use super::{AttachRequest, InterfaceSelector, ProgramRequest};
use crate::model::attach_point::{
    CgroupAttach, Direction, Order, PacketFamily, PacketHook, PlaceOptions, ProbedProcess, ProgramKind, TracepointName,
    XdpMode, is_told,
};
use crate::model::reference::Reference;
use crate::model::text::{is_symbol, listed, nearest_hint, quoted};

/// Parses the value of `programs`; `image` is the reference for entries without `from=`.
pub(super) fn parse(value: &str, image: Option<&Reference>) -> Result<Vec<ProgramRequest>, LexError> {
    let mut programs: Vec<ProgramRequest> = Vec::new();
    for entry in lex::entries(value)? {
        let program = parse_entry(&entry, image)?;
        if programs.contains(&program) {
            return Err(entry.words[0].fault(format!("{} is requested twice", program.function)));
        }
        if let Some(other) = programs.iter().find(|other| share_an_xdp_interface(other, &program)) {
            let problem = format!(
                "{} and {} request XDP on one interface, which takes only one XDP program",
                other.function, program.function
            );
            return Err(entry.words[0].fault(problem));
        }
        programs.push(program);
    }
    Ok(programs)
}

/// Parses entries in the syntax of `programs` for callers that specify the object elsewhere.
///
/// # Errors
/// What is wrong with an entry.
pub fn program_entries(text: &str, object: &Reference) -> Result<Vec<ProgramRequest>, String> {
    let entries = parse(text, Some(object)).map_err(|fault| fault.problem)?;
    match entries.iter().find(|entry| entry.from != *object) {
        Some(entry) => {
            Err(format!("{} names its own object with from=, but one object is given for all entries", entry.function))
        }
        None => Ok(entries),
    }
}

fn share_an_xdp_interface(one: &ProgramRequest, other: &ProgramRequest) -> bool {
    let (AttachRequest::Xdp { iface: one, .. }, AttachRequest::Xdp { iface: other, .. }) = (&one.attach, &other.attach) else {
        return false;
    };
    let in_all = |selector: &InterfaceSelector| !matches!(selector, InterfaceSelector::Named(name) if name == "lo");
    match (one, other) {
        (InterfaceSelector::Named(one), InterfaceSelector::Named(other)) => one == other,
        (InterfaceSelector::All, named) | (named, InterfaceSelector::All) => in_all(named),
    }
}

fn parse_entry(entry: &ListEntry, image: Option<&Reference>) -> Result<ProgramRequest, LexError> {
    let (head, options) = entry.words.split_first().expect("an entry has words");
    let mut parts = head.text.splitn(3, ':');
    let word = parts.next().unwrap_or_default();
    let kind = ProgramKind::from_word(word).ok_or_else(|| {
        let known = ProgramKind::ALL.map(|(_, word)| word);
        let hint = nearest_hint(word, known);
        head.fault(format!("{} is not a program type{hint}", quoted(word)))
    })?;
    let function = parts
        .next()
        .filter(|function| !function.is_empty())
        .ok_or_else(|| head.fault(format!("the function is missing; write {kind}:FUNCTION")))?;
    if !is_symbol(function) {
        let comma = if function.contains(',') { "; entries are separated by ; or newlines" } else { "" };
        return Err(head.fault(format!("{} is not the name of a function{comma}", quoted(function))));
    }
    let target = parts.next();
    let options = Options::read(kind, options)?;
    let from = match options.value("from") {
        Some((word, text)) => Reference::parse(text).map_err(|error| word.fault(error.to_string()))?,
        None => image
            .cloned()
            .ok_or_else(|| head.fault("there is no image for it; add from= to the entry, or the annotation image"))?,
    };
    let attach = parse_attach(kind, head, target, &options)?;
    let order = options.order(kind)?;
    Ok(ProgramRequest { from, function: function.to_owned(), attach, order })
}

fn parse_attach(kind: ProgramKind, head: &Word, target: Option<&str>, options: &Options) -> Result<AttachRequest, LexError> {
    if !kind.supported() {
        return Err(head.fault(format!("{kind} programs are not attached to containers: load them by hand")));
    }
    let takes_target = !(kind.on_netns() || kind.on_cgroup());
    if let (false, Some(_)) = (takes_target, target) {
        let instead = match kind {
            ProgramKind::Netfilter => "pf= and hook=",
            ProgramKind::SkLookup | ProgramKind::FlowDissector => "nothing",
            _ if kind.on_netns() => "iface=NAME",
            _ => "attach=TYPE",
        };
        return Err(head.fault(format!("{kind} takes no target; write {instead} after it")));
    }
    match kind {
        ProgramKind::Xdp => Ok(AttachRequest::Xdp {
            iface: options.iface()?,
            mode: options.one_of("mode", &[("native", XdpMode::Native), ("skb", XdpMode::Skb)])?,
        }),
        ProgramKind::Tcx => {
            Ok(AttachRequest::Tcx { iface: options.iface()?, direction: options.one_of("direction", &DIRECTIONS)? })
        }
        ProgramKind::Tc => {
            Ok(AttachRequest::Tc { iface: options.iface()?, direction: options.one_of("direction", &DIRECTIONS)? })
        }
        ProgramKind::Kprobe | ProgramKind::Kretprobe => {
            let ret = kind == ProgramKind::Kretprobe;
            let target =
                target.map(|target| kernel_place(target, ret).ok_or_else(|| head.fault(kernel_rule(kind)))).transpose()?;
            Ok(AttachRequest::Kprobe { target, ret })
        }
        ProgramKind::Fentry | ProgramKind::Fexit | ProgramKind::Lsm => match target {
            Some(name) if !is_kernel_function(name) => Err(head.fault(kernel_rule(kind))),
            target => Ok(AttachRequest::Trampoline { kind, target: target.map(str::to_owned) }),
        },
        ProgramKind::Uprobe | ProgramKind::Uretprobe => options.uprobe(kind, head, target),
        ProgramKind::Tracepoint => {
            let target = target.map(|target| tracepoint(target).ok_or_else(|| head.fault(TRACEPOINT_RULE))).transpose()?;
            Ok(AttachRequest::Tracepoint { target })
        }
        ProgramKind::RawTracepoint => match target {
            Some(name) if !is_event(name) => {
                Err(head.fault("the target of raw_tracepoint must be a tracepoint's name, such as sched_switch"))
            }
            target => Ok(AttachRequest::RawTracepoint { target: target.map(str::to_owned) }),
        },
        kind if is_told(kind) => {
            if target.is_some_and(|target| !is_told_target(kind, target)) {
                return Err(head.fault(format!("the target of {kind} is not a name that it can have")));
            }
            Ok(AttachRequest::Told { kind, target: target.map(str::to_owned), options: options.of_place()? })
        }
        kind => Ok(AttachRequest::Cgroup { kind, attach: options.cgroup_attach(kind)? }),
    }
}

/// A name of the kernel, a pattern of such names, or for functions of a file its path.
fn is_told_target(kind: ProgramKind, target: &str) -> bool {
    use ProgramKind as K;
    match kind {
        K::UprobeMulti | K::UretprobeMulti | K::UprobeSession => {
            is_user_target(target.rsplit_once(':').map_or(target, |(path, _)| path))
        }
        K::KprobeMulti | K::KretprobeMulti | K::KprobeSession => is_kernel_function(&target.replace('*', "_")),
        _ => is_kernel_function(target),
    }
}

const DIRECTIONS: [(&str, Direction); 2] = [("ingress", Direction::Ingress), ("egress", Direction::Egress)];

/// The rule for the target of a kind that attaches to a kernel function.
fn kernel_rule(kind: ProgramKind) -> &'static str {
    match kind {
        ProgramKind::Kprobe => "the target of kprobe must be a kernel function, such as vfs_read or vfs_read+0x10",
        ProgramKind::Kretprobe => "the target of kretprobe must be a kernel function, such as vfs_read",
        ProgramKind::Lsm => "the target of lsm must be an LSM hook, such as file_open",
        _ => "the target of fentry and fexit must be a kernel function, such as vfs_read",
    }
}

/// `function` or, for entries, `function+offset`.
pub(in crate::model) fn kernel_place(target: &str, ret: bool) -> Option<(String, u64)> {
    let (function, offset) = match target.split_once('+') {
        Some(_) if ret => return None,
        Some((function, offset)) => (function, number(offset)?),
        None => (target, 0),
    };
    is_kernel_function(function).then(|| (function.to_owned(), offset))
}

/// A kernel symbol: compilers add suffixes with dots, such as `.isra.0`.
fn is_kernel_function(name: &str) -> bool {
    (1..=127).contains(&name.len())
        && !name.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
}

/// Decimal, or hexadecimal after 0x.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        None if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

/// An absolute path without `.`, `..` and control characters, or the name of a library.
fn is_user_target(target: &str) -> bool {
    let plain = !target.chars().any(char::is_control) && (1..4096).contains(&target.len());
    let parts = || target.split('/').skip(1);
    plain
        && match target.starts_with('/') {
            true => target.len() > 1 && parts().all(|part| !part.is_empty() && part != "." && part != ".."),
            false => !target.contains('/') && target != "." && target != "..",
        }
}

const TRACEPOINT_RULE: &str = "the target of tracepoint must be category/name, such as sched/sched_switch";

fn tracepoint(target: &str) -> Option<TracepointName> {
    let (category, name) = target.split_once('/')?;
    (is_event(category) && is_event(name)).then(|| TracepointName { category: category.to_owned(), name: name.to_owned() })
}

/// The kernel builds the names of tracepoints and categories from C identifiers; some categories contain a dash.
fn is_event(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// True for names that the kernel accepts for interfaces (net/core/dev.c, `dev_valid_name`), without control
/// characters.
fn is_interface(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':'))
}

/// The options of one entry: each must be known for its kind and written once.
struct Options<'a> {
    found: Vec<(&'a str, &'a str, &'a Word)>,
}

/// Every option of every kind.
pub(super) const OPTIONS: [&str; 14] = [
    "iface",
    "mode",
    "direction",
    "priority",
    "proceed-on",
    "from",
    "attach",
    "hook",
    "pf",
    "symbol",
    "offset",
    "pid",
    "cpu",
    "frequency",
];

fn known_options(kind: ProgramKind) -> &'static [&'static str] {
    use ProgramKind as K;
    match kind {
        K::Xdp => &["iface", "mode", "priority", "proceed-on", "from"],
        K::Tcx => &["iface", "direction", "priority", "from"],
        K::Tc => &["iface", "direction", "priority", "proceed-on", "from"],
        K::CgroupSkb
        | K::CgroupSock
        | K::CgroupSockAddr
        | K::CgroupSockopt
        | K::CgroupSysctl
        | K::CgroupDevice
        | K::SockOps
        | K::LsmCgroup => &["attach", "from"],
        K::Netfilter => &["pf", "hook", "priority", "from"],
        K::UprobeMulti | K::UretprobeMulti | K::UprobeSession => &["symbol", "pid", "from"],
        K::PerfEvent => &["cpu", "frequency", "from"],
        K::Uprobe | K::Uretprobe => &["symbol", "offset", "pid", "from"],
        _ => &["from"],
    }
}

impl<'a> Options<'a> {
    fn read(kind: ProgramKind, words: &'a [Word]) -> Result<Self, LexError> {
        let known = known_options(kind);
        let mut found: Vec<(&str, &str, &Word)> = Vec::new();
        for word in words {
            let (name, value, _) =
                word.option().ok_or_else(|| word.fault(format!("{} is not option=value", quoted(&word.text))))?;
            if !known.contains(&name) {
                let hint = nearest_hint(name, known.iter().copied());
                let known = listed(known.iter().copied(), known.len());
                return Err(word.fault(format!("{kind} has no option {}{hint}; it has {known}", quoted(name))));
            }
            if value.is_empty() {
                return Err(word.fault(format!("{name} has no value")));
            }
            if found.iter().any(|(other, ..)| *other == name) {
                return Err(word.fault(format!("{name} is given twice")));
            }
            found.push((name, value, word));
        }
        Ok(Self { found })
    }

    fn value(&self, name: &str) -> Option<(&'a Word, &'a str)> {
        self.found.iter().find(|(known, ..)| *known == name).map(|(_, value, word)| (*word, *value))
    }

    fn one_of<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, LexError> {
        let Some((word, text)) = self.value(name) else { return Ok(None) };
        match words.iter().find(|(known, _)| *known == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let known = words.iter().map(|(known, _)| *known);
                Err(word.fault(format!("{name} must be {}, not {}", known.collect::<Vec<_>>().join(" or "), quoted(text))))
            }
        }
    }

    fn iface(&self) -> Result<InterfaceSelector, LexError> {
        match self.value("iface") {
            None => Ok(InterfaceSelector::Named("eth0".to_owned())),
            Some((_, "*")) => Ok(InterfaceSelector::All),
            Some((_, name)) if is_interface(name) => Ok(InterfaceSelector::Named(name.to_owned())),
            Some((word, name)) => {
                let hint = if name.contains([':', ',']) { "; write one entry for each interface, or iface=*" } else { "" };
                Err(word.fault(format!("{} is not the name of an interface{hint}", quoted(name))))
            }
        }
    }

    fn of_place(&self) -> Result<PlaceOptions, LexError> {
        let count = |name: &str| match self.value(name) {
            Some((word, text)) => match text.parse::<u32>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(word.fault(format!("{name} must be a number, not {}", quoted(text)))),
            },
            None => Ok(None),
        };
        // Of the kinds with these options only netfilter has a priority.
        let priority =
            match self.value("priority") {
                Some((word, text)) => Some(text.parse::<i32>().map_err(|_| {
                    word.fault(format!("priority must be a number, negative ones included, not {}", quoted(text)))
                })?),
                None => None,
            };
        Ok(PlaceOptions {
            family: self.one_of("pf", &PacketFamily::ALL)?,
            hook: self.one_of("hook", &PacketHook::ALL)?,
            priority,
            symbols: self.value("symbol").map(|(_, text)| text.to_owned()),
            process: self.one_of("pid", &[("any", ProbedProcess::Any), ("init", ProbedProcess::Init)])?,
            cpu: count("cpu")?,
            frequency: count("frequency")?,
        })
    }

    fn cgroup_attach(&self, kind: ProgramKind) -> Result<Option<CgroupAttach>, LexError> {
        let Some((word, text)) = self.value("attach") else { return Ok(None) };
        let of_kind = || CgroupAttach::ALL.into_iter().filter(|(.., other)| *other == kind).map(|(_, word, _)| word);
        match CgroupAttach::from_word(text) {
            Some(attach) if attach.kind() == kind => Ok(Some(attach)),
            Some(attach) => Err(word.fault(format!("attach={text} belongs to {}, not to {kind}", attach.kind()))),
            None => {
                let hint = nearest_hint(text, of_kind());
                Err(word.fault(format!("{kind} has no attach type {}{hint}; it has {}", quoted(text), listed(of_kind(), 12))))
            }
        }
    }

    fn uprobe(&self, kind: ProgramKind, head: &Word, target: Option<&str>) -> Result<AttachRequest, LexError> {
        if target.is_some_and(|target| !is_user_target(target)) {
            let rule = "must be an absolute path without . and .. in the container's root, or the name of a library";
            return Err(head.fault(format!("the target of {kind} {rule}")));
        }
        let symbol = match self.value("symbol") {
            Some((word, name)) if !is_user_symbol(name) => {
                return Err(word.fault(format!("{} is not the name of a symbol", quoted(name))));
            }
            found => found.map(|(_, name)| name.to_owned()),
        };
        let offset = match self.value("offset") {
            Some((word, text)) => {
                number(text).ok_or_else(|| word.fault(format!("offset must be a number of bytes, not {}", quoted(text))))?
            }
            None => 0,
        };
        let ret = kind == ProgramKind::Uretprobe;
        let process = self.one_of("pid", &[("any", ProbedProcess::Any), ("init", ProbedProcess::Init)])?;
        let process = process.unwrap_or(ProbedProcess::Any);
        Ok(AttachRequest::Uprobe { target: target.map(str::to_owned), symbol, offset, process, ret })
    }

    fn order(&self, kind: ProgramKind) -> Result<Option<Order>, LexError> {
        let (priority, proceed_on) = (self.value("priority"), self.value("proceed-on"));
        if !kind.has_order() || priority.is_none() && proceed_on.is_none() {
            return Ok(None);
        }
        let mut order = Order::default_of(kind);
        if let Some((word, text)) = priority {
            order.priority = Order::priority(text).map_err(|error| word.fault(error.to_string()))?;
        }
        if let Some((word, text)) = proceed_on {
            let verdicts = text.split(':').map(|verdict| Order::verdict(kind, verdict));
            order.proceed_on = verdicts.collect::<Result<_, _>>().map_err(|error| word.fault(error.to_string()))?;
        }
        Ok(Some(order))
    }
}

/// Symbols of any language: whatever an ELF string table can hold, without blanks.
fn is_user_symbol(name: &str) -> bool {
    (1..=512).contains(&name.len()) && !name.chars().any(|c| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::super::lex::Position;
    use super::*;

    fn image() -> Reference {
        Reference::parse("ghcr.io/acme/x").expect("legal")
    }

    fn attach(value: &str) -> AttachRequest {
        let mut programs = parse(value, Some(&image())).unwrap_or_else(|fault| panic!("{value}: {fault:?}"));
        assert_eq!(programs.len(), 1);
        programs.remove(0).attach
    }

    fn named(name: &str) -> InterfaceSelector {
        InterfaceSelector::Named(name.to_owned())
    }

    #[test]
    fn each_supported_kind() {
        use AttachRequest as A;
        let cgroup = |kind, attach| A::Cgroup { kind, attach };
        let told = |kind, target: Option<&str>, options| A::Told { kind, target: target.map(str::to_owned), options };
        let sched = || TracepointName { category: "sched".into(), name: "sched_switch".into() };
        let cases = [
            ("xdp:count", A::Xdp { iface: named("eth0"), mode: None }),
            ("xdp:count iface=* mode=native", A::Xdp { iface: InterfaceSelector::All, mode: Some(XdpMode::Native) }),
            ("xdp:count mode=skb iface=lo", A::Xdp { iface: named("lo"), mode: Some(XdpMode::Skb) }),
            ("tcx:f", A::Tcx { iface: named("eth0"), direction: None }),
            (
                "tcx:f direction=egress iface='veth-1.2'",
                A::Tcx { iface: named("veth-1.2"), direction: Some(Direction::Egress) },
            ),
            ("cgroup_skb:f attach=egress", cgroup(ProgramKind::CgroupSkb, Some(CgroupAttach::Egress))),
            ("cgroup_sock:f", cgroup(ProgramKind::CgroupSock, None)),
            ("cgroup_sock_addr:f attach=connect4", cgroup(ProgramKind::CgroupSockAddr, Some(CgroupAttach::Connect4))),
            ("sock_ops:f", cgroup(ProgramKind::SockOps, None)),
            ("tracepoint:f", A::Tracepoint { target: None }),
            ("tracepoint:f:sched/sched_switch", A::Tracepoint { target: Some(sched()) }),
            ("raw_tracepoint:f:sched_switch", A::RawTracepoint { target: Some("sched_switch".into()) }),
            ("tc:f direction=ingress", A::Tc { iface: named("eth0"), direction: Some(Direction::Ingress) }),
            ("kprobe:f", A::Kprobe { target: None, ret: false }),
            ("kprobe:f:vfs_read+0x10", A::Kprobe { target: Some(("vfs_read".into(), 16)), ret: false }),
            ("kretprobe:f:vfs_read.isra.0", A::Kprobe { target: Some(("vfs_read.isra.0".into(), 0)), ret: true }),
            ("fentry:f:vfs_read", A::Trampoline { kind: ProgramKind::Fentry, target: Some("vfs_read".into()) }),
            ("fexit:f", A::Trampoline { kind: ProgramKind::Fexit, target: None }),
            ("sk_lookup:f", told(ProgramKind::SkLookup, None, PlaceOptions::default())),
            ("iter:f:task", told(ProgramKind::Iter, Some("task"), PlaceOptions::default())),
            ("kprobe_multi:f:vfs_*", told(ProgramKind::KprobeMulti, Some("vfs_*"), PlaceOptions::default())),
            (
                "netfilter:f pf=ipv4 hook=input priority=-5",
                told(
                    ProgramKind::Netfilter,
                    None,
                    PlaceOptions {
                        family: Some(PacketFamily::Ipv4),
                        hook: Some(PacketHook::Input),
                        priority: Some(-5),
                        ..PlaceOptions::default()
                    },
                ),
            ),
            ("lsm:f:file_open", A::Trampoline { kind: ProgramKind::Lsm, target: Some("file_open".into()) }),
            (
                "uprobe:f:libc symbol=malloc pid=init",
                A::Uprobe {
                    target: Some("libc".into()),
                    symbol: Some("malloc".into()),
                    offset: 0,
                    process: ProbedProcess::Init,
                    ret: false,
                },
            ),
            (
                "uretprobe:f:/usr/bin/app symbol=main.(*T).run offset=0x20",
                A::Uprobe {
                    target: Some("/usr/bin/app".into()),
                    symbol: Some("main.(*T).run".into()),
                    offset: 32,
                    process: ProbedProcess::Any,
                    ret: true,
                },
            ),
        ];
        for (value, expected) in cases {
            assert_eq!(attach(value), expected, "{value}");
        }
    }

    #[test]
    fn from_overrides_the_image_for_one_entry() {
        let programs = parse("xdp:a from=oci:/x:v1\ntcx:b", Some(&image())).expect("legal");
        assert_eq!(programs.iter().map(|p| p.from.to_string()).collect::<Vec<_>>(), ["oci:/x:v1", "ghcr.io/acme/x:latest"]);
        assert!(parse("xdp:a from=oci:/x", None).is_ok());
    }

    #[test]
    fn refusals_have_a_position_and_a_remedy() {
        let cases = [
            ("xdp:a; xpd:b", 2, 1, "\"xpd\" is not a program type; the nearest is xdp"),
            ("xdp", 1, 1, "the function is missing; write xdp:FUNCTION"),
            ("xdp: iface=lo", 1, 1, "the function is missing; write xdp:FUNCTION"),
            ("xdp:a,tcx:b", 1, 1, "\"a,tcx\" is not the name of a function; entries are separated by ; or newlines"),
            ("xdp:a:eth0", 1, 1, "xdp takes no target; write iface=NAME after it"),
            ("cgroup_skb:a:egress", 1, 1, "cgroup_skb takes no target; write attach=TYPE after it"),
            ("xdp:a eth0", 1, 7, "\"eth0\" is not option=value"),
            (
                "xdp:a ifcae=lo",
                1,
                7,
                "xdp has no option \"ifcae\"; the nearest is iface; it has iface, mode, priority, proceed-on, from",
            ),
            ("tcx:a mode=skb", 1, 7, "tcx has no option \"mode\"; it has iface, direction, priority, from"),
            ("xdp:a iface=", 1, 7, "iface has no value"),
            ("xdp:a iface=lo iface=lo", 1, 16, "iface is given twice"),
            (
                "xdp:a iface=eth0:eth1",
                1,
                7,
                "\"eth0:eth1\" is not the name of an interface; write one entry for each interface, or iface=*",
            ),
            ("xdp:a iface=a-very-long-name", 1, 7, "\"a-very-long-name\" is not the name of an interface"),
            ("xdp:a iface=../x", 1, 7, "\"../x\" is not the name of an interface"),
            ("xdp:a mode=hw", 1, 7, "mode must be native or skb, not \"hw\""),
            ("xdp:a priority=0", 1, 7, "priority must be a number from 1 to 1000, not \"0\""),
            ("xdp:a priority=1001", 1, 7, "priority must be a number from 1 to 1000, not \"1001\""),
            ("xdp:a priority=+5", 1, 7, "priority must be a number from 1 to 1000, not \"+5\""),
            (
                "xdp:a proceed-on=pas",
                1,
                7,
                "\"pas\" is not a verdict; it is one of aborted, drop, pass, tx, redirect, dispatcher_return",
            ),
            ("kretprobe:a:vfs_read+1", 1, 1, "the target of kretprobe must be a kernel function, such as vfs_read"),
            ("kprobe:a:vfs_read+x", 1, 1, kernel_rule(ProgramKind::Kprobe)),
            ("lsm:a:file/open", 1, 1, "the target of lsm must be an LSM hook, such as file_open"),
            ("fentry:a:", 1, 1, kernel_rule(ProgramKind::Fentry)),
            (
                "uprobe:a:/usr/../bin/sh symbol=main",
                1,
                1,
                "the target of uprobe must be an absolute path without . and .. in the container's root, or the name of a library",
            ),
            (
                "uprobe:a:lib/libc.so.6",
                1,
                1,
                "the target of uprobe must be an absolute path without . and .. in the container's root, or the name of a library",
            ),
            ("uprobe:a:libc symbol=malloc pid=7", 1, 29, "pid must be any or init, not \"7\""),
            ("uprobe:a:libc offset=-1", 1, 15, "offset must be a number of bytes, not \"-1\""),
            ("syscall:a", 1, 1, "syscall programs are not attached to containers: load them by hand"),
            ("netfilter:a pf=ipv5", 1, 13, "pf must be ipv4 or ipv6, not \"ipv5\""),
            ("netfilter:a:x", 1, 1, "netfilter takes no target; write pf= and hook= after it"),
            ("iter:a:task/x", 1, 1, "the target of iter is not a name that it can have"),
            ("cgroup_skb:a attach=connect4", 1, 14, "attach=connect4 belongs to cgroup_sock_addr, not to cgroup_skb"),
            (
                "cgroup_skb:a attach=egres",
                1,
                14,
                "cgroup_skb has no attach type \"egres\"; the nearest is egress; it has ingress, egress",
            ),
            ("tracepoint:a:sched_switch", 1, 1, TRACEPOINT_RULE),
            ("tracepoint:a:../x", 1, 1, TRACEPOINT_RULE),
            ("tracepoint:a:a/b/c", 1, 1, TRACEPOINT_RULE),
            (
                "raw_tracepoint:a:sched/x",
                1,
                1,
                "the target of raw_tracepoint must be a tracepoint's name, such as sched_switch",
            ),
            ("xdp:a from=alpine", 1, 7, "\"alpine\" has no registry; write docker.io/library/alpine"),
            ("xdp:a iface=lo; xdp:a iface=lo", 2, 1, "a is requested twice"),
            ("xdp:a; xdp:b", 2, 1, "a and b request XDP on one interface, which takes only one XDP program"),
            ("xdp:a iface=*; xdp:b iface=eth1", 2, 1, "a and b request XDP on one interface, which takes only one XDP program"),
        ];
        for (value, entry, column, problem) in cases {
            let fault = parse(value, Some(&image())).expect_err(value);
            assert_eq!(fault, LexError { at: Some(Position { entry, column }), problem: problem.to_owned() }, "{value}");
        }
        let fault = parse("xdp:a", None).expect_err("no image");
        assert_eq!(fault.problem, "there is no image for it; add from= to the entry, or the annotation image");
    }

    #[test]
    fn orders_use_bpfmans_words() {
        let order = |value: &str| parse(value, Some(&image())).expect("legal").remove(0).order;
        assert_eq!(order("xdp:a iface=lo"), None);
        assert_eq!(order("xdp:a priority=5"), Some(Order { priority: 5, proceed_on: vec![2, 31] }));
        assert_eq!(order("tc:a proceed-on=unspec:trap"), Some(Order { priority: 50, proceed_on: vec![-1, 8] }));
        assert_eq!(order("tcx:a priority=1000"), Some(Order { priority: 1000, proceed_on: Vec::new() }));
    }

    #[test]
    fn one_function_may_attach_to_several_places() {
        let value = "xdp:a iface=lo; xdp:a iface=*; tcx:a direction=ingress; tcx:a direction=egress";
        assert_eq!(parse(value, Some(&image())).map(|programs| programs.len()), Ok(4));
    }
}
