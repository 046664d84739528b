//! `load --attach`: entries as in the annotation `programs`, attached on the host instead of in a container.

use crate::model::annotations::{AttachRequest, InterfaceSelector, ProgramRequest};
use crate::model::attach_point::{Direction, Order, PlaceOptions, ProbedProcess, ProgramKind, UserProbe};
use crate::model::manual::{AttachPlace, ProgramToLoad};
use crate::output::error::CommandError;

/// Converts an entry to the program to load and its attach point. What an annotation may leave to the section name must
/// be given here: the object is read later.
///
/// # Errors
/// If the entry is incomplete, or uses what only containers have.
pub fn program(entry: ProgramRequest) -> Result<(ProgramToLoad, AttachPlace), CommandError> {
    let ProgramRequest { function, attach, order, .. } = entry;
    let kind = attach.kind();
    let wrong = |problem: &str| CommandError::bad_input(format!("attach {function}: {problem}"));
    let on_interface = |iface: InterfaceSelector, direction: Option<Direction>| match iface {
        InterfaceSelector::Named(iface) => Ok(AttachPlace::Interface {
            kind,
            iface,
            direction,
            order: order.clone().unwrap_or_else(|| Order::default_of(kind)),
            netns: None,
        }),
        InterfaceSelector::All => Err(wrong("iface=* is only for containers; name one interface")),
    };
    let mut target = None;
    let place = match attach {
        AttachRequest::Xdp { mode: Some(_), .. } => {
            return Err(wrong("mode= is only for containers; omit it, the driver decides"));
        }
        AttachRequest::Xdp { iface, mode: None } => on_interface(iface, None)?,
        AttachRequest::Tcx { iface, direction } | AttachRequest::Tc { iface, direction } => {
            let direction = direction.ok_or_else(|| wrong("write direction=ingress or direction=egress"))?;
            on_interface(iface, Some(direction))?
        }
        AttachRequest::Tracepoint { target } => {
            AttachPlace::Tracepoint(target.ok_or_else(|| wrong(&format!("write tracepoint:{function}:CATEGORY/NAME")))?)
        }
        AttachRequest::Kprobe { target, ret } => {
            let (name, offset) = target.ok_or_else(|| wrong(&format!("write {kind}:{function}:KERNEL-FUNCTION")))?;
            AttachPlace::Kprobe { function: name, offset, ret }
        }
        AttachRequest::Uprobe { process: ProbedProcess::Init, .. } => {
            return Err(wrong("pid=init is only for containers; write a pid"));
        }
        AttachRequest::Uprobe { target, symbol, offset, process, ret } => {
            let target = target.ok_or_else(|| wrong(&format!("write {kind}:{function}:PATH-OR-LIBRARY")))?;
            if symbol.is_none() && offset == 0 {
                return Err(wrong("name a function with symbol=, or give an offset= in the file"));
            }
            AttachPlace::Uprobe { probe: UserProbe { target, symbol, offset, process, container_pid: None }, ret }
        }
        AttachRequest::Trampoline { kind, target: named } => {
            target = named;
            AttachPlace::Trampoline(kind)
        }
        AttachRequest::Told { kind, target: named, options } => {
            if kind.fixed_at_load() {
                target.clone_from(&named);
            }
            AttachPlace::Told { kind, target: named, options, netns: None }
        }
        AttachRequest::RawTracepoint { target } => {
            let name = target.ok_or_else(|| wrong(&format!("write {kind}:{function}:TRACEPOINT")))?;
            AttachPlace::Told { kind, target: Some(name), options: PlaceOptions::default(), netns: None }
        }
        AttachRequest::Cgroup { .. } => {
            return Err(wrong("give its cgroup: load it with --programs, then `attach ID other TYPE --cgroup DIR`"));
        }
    };
    // The attach point tells whether it is a return probe.
    let kind = match kind {
        ProgramKind::Kretprobe => ProgramKind::Kprobe,
        ProgramKind::Uretprobe => ProgramKind::Uprobe,
        kind => kind,
    };
    Ok((ProgramToLoad { function, kind, target }, place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::annotations::program_entries;
    use crate::model::reference::Reference;

    fn made(text: &str) -> Result<(ProgramToLoad, AttachPlace), CommandError> {
        let object = Reference::File { path: "/x.o".into() };
        program(program_entries(text, &object).map_err(CommandError::bad_input)?.remove(0))
    }

    #[test]
    fn entries_become_attach_points_of_the_host() {
        let (wanted, place) = made("xdp:count iface=lo priority=7").unwrap();
        assert_eq!((wanted.function.as_str(), wanted.kind, wanted.target), ("count", ProgramKind::Xdp, None));
        let AttachPlace::Interface { iface, order, direction: None, .. } = place else { panic!("{place:?}") };
        assert_eq!((iface.as_str(), order.priority), ("lo", 7));
        let (wanted, place) = made("kretprobe:leave:vfs_unlink").unwrap();
        assert_eq!(wanted.kind, ProgramKind::Kprobe);
        assert_eq!(place, AttachPlace::Kprobe { function: "vfs_unlink".to_owned(), offset: 0, ret: true });
        let (wanted, place) = made("fexit:leave:vfs_unlink").unwrap();
        assert_eq!((wanted.target.as_deref(), place), (Some("vfs_unlink"), AttachPlace::Trampoline(ProgramKind::Fexit)));
        assert!(matches!(made("uprobe:user:libc symbol=malloc").unwrap().1, AttachPlace::Uprobe { ret: false, .. }));
        assert!(matches!(made("tracepoint:exec:sched/sched_process_exec").unwrap().1, AttachPlace::Tracepoint(_)));
        for (text, said) in [
            ("xdp:count iface=*", "iface=* is only for containers"),
            ("xdp:count mode=skb", "mode= is only for containers"),
            ("tcx:count iface=lo", "direction=ingress"),
            ("tracepoint:exec", "tracepoint:exec:CATEGORY/NAME"),
            ("kprobe:enter", "kprobe:enter:KERNEL-FUNCTION"),
            ("uprobe:user", "uprobe:user:PATH-OR-LIBRARY"),
            ("cgroup_skb:out attach=egress", "--cgroup DIR"),
            ("xdp:count from=file:/other.o", "one object is given for all"),
            ("nonsense:x", "is not a program type"),
        ] {
            let error = made(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
