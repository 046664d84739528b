//! Attaches programs: one link each, pinned as soon as it exists. Removing the pin detaches the program.

mod classifier;
mod probe;
mod told;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::kernel::error::KernelError;
use crate::kernel::{AttachedLink, Feature, Places, Support, features};
use crate::model::attach_point::{AttachPoint, CgroupAttach, Direction, Interface, TracepointName, XdpMode};
use crate::model::plan::PlannedLink;
use crate::sys::bpf::{self, LinkTarget};
use crate::sys::{Errno, netns, tracefs};

/// `enum bpf_attach_type`
const XDP: u32 = 37;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
/// `XDP_FLAGS_*` of uapi/linux/if_link.h
const XDP_SKB_MODE: u32 = 1 << 1;
const XDP_DRV_MODE: u32 = 1 << 2;

pub(crate) use classifier::detach;

/// Attaches the pinned program of a link and pins the link.
pub(crate) fn attach(directory: &Path, planned: &PlannedLink, places: Places<'_>) -> Result<AttachedLink, KernelError> {
    let program = bpf::open_pin(&planned.program.path(directory)).map_err(KernelError::pin(
        "open the program at",
        directory,
        &planned.program,
    ))?;
    let attachment = Attachment { planned, program: program.as_fd() };
    let mut runs_in = None;
    let link = match &planned.at {
        AttachPoint::Xdp { iface, mode } => attachment.xdp(attachment.netns(places)?, iface, *mode).map(|(link, mode)| {
            runs_in = Some(mode);
            link
        }),
        AttachPoint::Tcx { iface, direction } => attachment.tcx(attachment.netns(places)?, iface, *direction),
        AttachPoint::Cgroup { attach } => {
            let cgroup = places.cgroup.ok_or_else(|| attachment.no_place("cgroup"))?;
            attachment.cgroup(cgroup, *attach)
        }
        AttachPoint::Tracepoint { tracepoint } => attachment.tracepoint(tracepoint),
        AttachPoint::RawTracepoint { name } => attachment.raw_tracepoint(name),
        AttachPoint::Tc { iface, direction, priority } => {
            let netns = attachment.netns(places)?;
            match attachment.tcx(netns, iface, *direction) {
                Err(KernelError::Feature { feature: Feature::Tcx, .. }) => {
                    return attachment.filter(directory, netns, iface, *direction, *priority).map(|()| AttachedLink::default());
                }
                made => made,
            }
        }
        AttachPoint::Kprobe { function, offset, ret } => attachment.kprobe(function, *offset, *ret),
        AttachPoint::Uprobe { probe, ret } => attachment.uprobe(probe, *ret, places),
        AttachPoint::Fentry { .. } | AttachPoint::Fexit { .. } | AttachPoint::Lsm { .. } => attachment.trampoline(),
        _ => attachment.told(places),
    }?;
    // An error from here on closes the link, which detaches it.
    bpf::pin(link.as_fd(), &planned.pin.path(directory)).map_err(KernelError::pin("pin a link at", directory, &planned.pin))?;
    let what = format!("link {}", planned.pin);
    let info = bpf::link_info(link.as_fd()).map_err(|source| KernelError::Info { what, source })?;
    Ok(AttachedLink { id: Some(info.id), mode: runs_in })
}

/// How long an interface may remain taken by a program whose pin was just removed. The kernel needs a few milliseconds.
const LEAVING: Duration = Duration::from_millis(250);
const STEP: Duration = Duration::from_millis(5);

/// Retries until the interface is free or the other program evidently stays: a link detaches some time after its pin is
/// removed, and one interface takes only one XDP program.
fn patiently(attach: impl Fn() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    let deadline = Instant::now() + LEAVING;
    loop {
        match attach() {
            Err(Errno::BUSY | Errno::EXIST) if Instant::now() < deadline => thread::sleep(STEP),
            made => return made,
        }
    }
}

struct Attachment<'p> {
    planned: &'p PlannedLink,
    program: BorrowedFd<'p>,
}

impl Attachment<'_> {
    fn netns<'n>(&self, places: Places<'n>) -> Result<BorrowedFd<'n>, KernelError> {
        places.netns.ok_or_else(|| self.no_place("network namespace"))
    }

    /// The link and the mode in which it runs: without `mode` native if the driver supports it, otherwise generic.
    fn xdp(&self, netns: BorrowedFd<'_>, iface: &Interface, mode: Option<XdpMode>) -> Result<(OwnedFd, XdpMode), KernelError> {
        let link = |flags| patiently(|| bpf::link_create(self.program, LinkTarget::Interface(iface.index), XDP, flags));
        let native = || link(XDP_DRV_MODE).map(|link| (link, XdpMode::Native));
        let skb = || link(XDP_SKB_MODE).map(|link| (link, XdpMode::Skb));
        let made = netns::on_thread(netns, || match mode {
            Some(XdpMode::Native) => native(),
            Some(XdpMode::Skb) => skb(),
            // Without flags the kernel would choose by whether the driver has a native mode at all (net/core/dev.c,
            // `dev_xdp_mode`), and the record could not say which mode it is. A driver that has one may still refuse
            // it, as veth does for large MTUs.
            None => native().or_else(|errno| match errno {
                Errno::OPNOTSUPP | Errno::RANGE => skb(),
                other => Err(other),
            }),
        })?;
        made.map_err(|errno| match errno {
            // EEXIST is a program in the other mode.
            Errno::BUSY | Errno::EXIST => KernelError::XdpTaken {
                program: self.planned.function.clone(),
                iface: iface.name.clone(),
                owner: String::new(),
            },
            other => self.interface_error(
                netns,
                iface,
                other,
                match other {
                    Errno::OPNOTSUPP => "the driver has no native XDP; leave out mode=native or use mode=skb",
                    Errno::RANGE => "the interface's MTU is too large for the driver's XDP; use mode=skb",
                    Errno::INVAL => "the kernel refuses it, as for an interface that is a port of a bond",
                    _ => "",
                },
            ),
        })
    }

    fn tcx(&self, netns: BorrowedFd<'_>, iface: &Interface, direction: Direction) -> Result<OwnedFd, KernelError> {
        let attach_type = match direction {
            Direction::Ingress => TCX_INGRESS,
            Direction::Egress => TCX_EGRESS,
        };
        let target = LinkTarget::Interface(iface.index);
        let made = netns::on_thread(netns, || bpf::link_create(self.program, target, attach_type, 0))?;
        made.map_err(|errno| {
            if errno == Errno::INVAL {
                let found = features::probe(Feature::Tcx);
                if matches!(found, Support::No(_)) {
                    return KernelError::feature(self.doing(), Feature::Tcx, found);
                }
            }
            self.interface_error(netns, iface, errno, "")
        })
    }

    fn cgroup(&self, cgroup: BorrowedFd<'_>, attach: CgroupAttach) -> Result<OwnedFd, KernelError> {
        bpf::link_create(self.program, LinkTarget::Fd(cgroup), attach.raw(), 0).map_err(|errno| {
            self.failed(
                errno,
                match errno {
                    Errno::PERM => "a program is attached exclusively to a parent cgroup, or CAP_NET_ADMIN is missing",
                    Errno::BADF => "it is not a directory of the cgroup2 hierarchy",
                    Errno::INVAL => "the program was not loaded for this attach type",
                    Errno::TOOBIG => "the cgroup already has 64 programs of this attach type",
                    Errno::NOENT => "the cgroup is gone",
                    _ => "",
                },
            )
        })
    }

    fn tracepoint(&self, name: &TracepointName) -> Result<OwnedFd, KernelError> {
        let Some(id) = tracefs::tracepoint_id(&name.category, &name.name)? else {
            return Err(self.no_tracepoint());
        };
        let event = bpf::tracepoint_event(id).map_err(|errno| match errno {
            Errno::NOENT => self.no_tracepoint(),
            other => self.failed(other, "open its perf event"),
        })?;
        self.perf_link(event, |errno| match errno {
            Errno::ACCESS => "the program reads more of the event than the tracepoint has",
            Errno::TOOBIG => "the tracepoint already has 64 programs",
            _ => "",
        })
    }

    fn raw_tracepoint(&self, name: &str) -> Result<OwnedFd, KernelError> {
        bpf::raw_tracepoint_open(self.program, name).map_err(|errno| match errno {
            Errno::NOENT => self.no_tracepoint(),
            Errno::INVAL => self.failed(errno, "the program reads more arguments than the tracepoint has"),
            other => self.failed(other, ""),
        })
    }

    /// The kernel returns several errnos for a missing interface, so the existing interfaces are checked.
    fn interface_error(&self, netns: BorrowedFd<'_>, iface: &Interface, errno: Errno, why: &'static str) -> KernelError {
        let there = netns::interfaces(netns).is_ok_and(|all| all.contains(iface));
        if matches!(errno, Errno::NODEV | Errno::INVAL) && !there {
            return KernelError::InterfaceGone {
                kind: self.planned.at.word(),
                program: self.planned.function.clone(),
                iface: iface.name.clone(),
            };
        }
        self.failed(errno, why)
    }

    fn failed(&self, source: Errno, why: &'static str) -> KernelError {
        KernelError::Attach {
            kind: self.planned.at.word(),
            program: self.planned.function.clone(),
            place: self.planned.at.to_string(),
            why,
            source,
        }
    }

    fn no_tracepoint(&self) -> KernelError {
        KernelError::NoTracepoint {
            kind: self.planned.at.word(),
            program: self.planned.function.clone(),
            name: self.planned.at.to_string(),
        }
    }

    fn no_place(&self, what: &'static str) -> KernelError {
        KernelError::NoPlace { kind: self.planned.at.word(), program: self.planned.function.clone(), what }
    }

    fn doing(&self) -> String {
        format!("attach {} {} to {}", self.planned.at.word(), self.planned.function, self.planned.at)
    }
}
