//! Attaching one program, and finding the owner that occupies the place.

use std::path::Path;

use crate::kernel::{AttachedLink, Kernel, KernelError, Places};
use crate::lifecycle::host::Host;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::attach_point::AttachPoint;
use crate::model::plan::PlannedLink;
use crate::model::record::{LinkState, OwnerRecord};

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Attaches and pins one link. If another program of bpfman-hook occupies the interface, the error names its owner.
    pub(super) fn attach(&self, directory: &Path, link: &PlannedLink, places: Places<'_>) -> Result<AttachedLink, Cause> {
        self.kernel.attach(directory, link, places).map_err(|error| match error {
            KernelError::XdpTaken { program, iface, owner: _ } => {
                KernelError::XdpTaken { program, iface, owner: self.xdp_owner(link).unwrap_or_default() }.into()
            }
            other => other.into(),
        })
    }

    /// The owner of the XDP program on the interface, according to the records. For messages only: unreadable records
    /// are skipped.
    fn xdp_owner(&self, link: &PlannedLink) -> Option<String> {
        self.store.records().filter_map(Result::ok).find(|record| has_xdp(record, link)).map(|record| record.owner.to_string())
    }
}

/// True if an owner has another XDP link on the interface of `wanted`.
fn has_xdp(record: &OwnerRecord, wanted: &PlannedLink) -> bool {
    let AttachPoint::Xdp { iface, .. } = &wanted.at else { return false };
    let cookie = wanted.netns.as_ref().map(|netns| netns.cookie);
    record.links.iter().any(|link| {
        let there = matches!(link.state, LinkState::Attached(_)) && link.netns.as_ref().map(|netns| netns.cookie) == cookie;
        there && matches!(&link.at, AttachPoint::Xdp { iface: taken, .. } if taken.index == iface.index)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::attach_point::{Interface, NetnsRecord};
    use crate::model::ids::{OwnerNo, Pid, PinName, ProcessIdentity};
    use crate::model::manual::LoadMetadata;
    use crate::model::record::{Actor, HostOwner, LinkRecord, Owner, Phase};

    fn xdp(index: u32) -> AttachPoint {
        AttachPoint::Xdp { iface: Interface { name: "eth0".into(), index }, mode: None }
    }

    fn with(links: Vec<LinkRecord>) -> OwnerRecord {
        let process = ProcessIdentity { pid: Pid::new(7).expect("a pid"), start_time: 1 };
        let owner = Owner::Host(HostOwner { application: None, loaded: LoadMetadata::default() });
        OwnerRecord { links, ..OwnerRecord::new(OwnerNo(7), owner, Phase::Ready, Actor { process, deadline: 0 }, 0) }
    }

    #[test]
    fn the_owner_of_an_interface_is_found_by_namespace_and_index() {
        let netns = |cookie| Some(NetnsRecord { cookie, path: None });
        let link = |index, cookie, state| LinkRecord {
            pin: PinName::link(1),
            program: PinName::program(1),
            at: xdp(index),
            order: None,
            netns: netns(cookie),
            metadata: BTreeMap::new(),
            state,
        };
        let wanted = PlannedLink {
            program: PinName::program(1),
            function: "f".into(),
            at: xdp(2),
            pin: PinName::link(1),
            order: None,
            netns: netns(9),
        };
        for (taken, there) in [
            (link(2, 9, LinkState::Attached(Some(1))), true),
            (link(3, 9, LinkState::Attached(Some(1))), false),
            (link(2, 8, LinkState::Attached(Some(1))), false),
            // The wanted link itself.
            (link(2, 9, LinkState::Attaching), false),
        ] {
            assert_eq!(has_xdp(&with(vec![taken.clone()]), &wanted), there, "{taken:?}");
        }
    }
}
