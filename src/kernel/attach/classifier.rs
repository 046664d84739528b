//! Classifiers on kernels without tcx links: filters of cls_bpf on clsact.
//!
//! A filter cannot be pinned. In its link's place the program is pinned once more, before the filter is made: where that pin is,
//! there may be a filter, and its name and handle come from the pin's. So the record says all that its removal needs.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::Attachment;
use crate::kernel::error::KernelError;
use crate::kernel::pins;
use crate::model::attach_point::{AttachPoint, Direction, Interface};
use crate::model::ids::PinName;
use crate::model::record::LinkRecord;
use crate::sys::netlink::{self, TcFilter};
use crate::sys::{Errno, SysError, bpf, netns};

impl Attachment<'_> {
    pub(super) fn filter(
        &self,
        directory: &Path,
        netns: BorrowedFd<'_>,
        iface: &Interface,
        direction: Direction,
        priority: u16,
    ) -> Result<(), KernelError> {
        let pin = &self.planned.pin;
        bpf::pin(self.program, &pin.path(directory)).map_err(KernelError::pin("pin a classifier at", directory, pin))?;
        let name = name(directory, pin);
        let filter = TcFilter { interface: iface.index, direction, priority, handle: handle(directory, pin), name: &name };
        netns::on_thread(netns, || netlink::add_filter(&filter, self.program))?.map_err(|errno| {
            self.interface_error(
                netns,
                iface,
                errno,
                match errno {
                    Errno::EXIST => "a filter of this priority and handle is there already",
                    Errno::INVAL => "filters of another kind have this priority, or another qdisc is in clsact's place",
                    Errno::NOENT | Errno::OPNOTSUPP => "the kernel has no clsact or no cls_bpf",
                    _ => "",
                },
            )
        })
    }
}

/// Removes what a link's record names: the pin, and before it the filter where it is one.
pub(crate) fn detach(directory: &Path, link: &LinkRecord) -> Result<bool, KernelError> {
    if let AttachPoint::Tc { iface, direction, priority } = &link.at
        && let Some(pinned) = pins::open(directory, &link.pin)?
        && !bpf::is_link(pinned.as_fd())
        && let Some(record) = &link.netns
        && let Some(netns) = netns::find(record.cookie, record.path.as_deref())?
    {
        let name = name(directory, &link.pin);
        let (interface, direction, priority) = (iface.index, *direction, *priority);
        let filter = TcFilter { interface, direction, priority, handle: handle(directory, &link.pin), name: &name };
        netns::on_thread(netns.as_fd(), || netlink::remove_filter(&filter))?
            .map_err(|errno| SysError::io("remove the filter", name.clone())(errno))?;
    }
    pins::unpin(directory, &link.pin)
}

/// As `tc filter show` prints it.
fn name(directory: &Path, pin: &PinName) -> String {
    let owner = directory.file_name().unwrap_or_default().to_string_lossy();
    format!("bpfman-hook/{owner}/{pin}")
}

/// Numbers of owners never come back while the machine runs, and links of one owner are few: that two filters of ours meet takes
/// a million owners.
fn handle(directory: &Path, pin: &PinName) -> u32 {
    let number = |text: &str| text.rsplit('_').next().and_then(|digits| digits.parse::<u64>().ok()).unwrap_or_default();
    let owner = number(&directory.file_name().unwrap_or_default().to_string_lossy());
    let mixed = (owner & 0xf_ffff) << 10 | number(pin.as_str()) & 0x3ff;
    1 << 30 | u32::try_from(mixed).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_handles_come_from_pins() {
        let directory = Path::new("/run/fs/owner_7");
        assert_eq!(name(directory, &PinName::link(3)), "bpfman-hook/owner_7/link_3");
        assert_eq!(handle(directory, &PinName::link(3)), 1 << 30 | 7 << 10 | 3);
    }
}
