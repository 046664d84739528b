//! Classifiers on kernels without tcx links: cls_bpf filters on clsact.
//!
//! A filter cannot be pinned. Instead, the program is pinned once more under the name of the link before the filter is
//! created. If that pin exists, the filter may exist, and its name and handle are derived from the pin's. So the record
//! contains everything that is needed to remove it.

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
                    Errno::EXIST => "a filter of this priority and handle already exists",
                    Errno::INVAL => "filters of another kind have this priority, or another qdisc takes the place of clsact",
                    Errno::NOENT | Errno::OPNOTSUPP => "the kernel does not have clsact or cls_bpf",
                    _ => "",
                },
            )
        })
    }
}

/// Removes the link of a record: the filter, if it is one, and then the pin.
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

/// The name as printed by `tc filter show`.
fn name(directory: &Path, pin: &PinName) -> String {
    let owner = directory.file_name().unwrap_or_default().to_string_lossy();
    format!("bpfman-hook/{owner}/{pin}")
}

/// Owner numbers are not reused while the machine runs, and one owner has few links: two of our filters collide only
/// after a million owners.
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
    fn names_and_handles_are_derived_from_pins() {
        let directory = Path::new("/run/fs/owner_7");
        assert_eq!(name(directory, &PinName::link(3)), "bpfman-hook/owner_7/link_3");
        assert_eq!(handle(directory, &PinName::link(3)), 1 << 30 | 7 << 10 | 3);
    }
}
