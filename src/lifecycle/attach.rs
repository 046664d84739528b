//! Attaching one program, and naming the owner that occupies the place.

use std::path::Path;

use crate::kernel::{AttachedLink, Kernel, KernelError, Places};
use crate::lifecycle::host::Host;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::attach_point::AttachPoint;
use crate::model::plan::PlannedLink;
use crate::model::record::{Owner, OwnerRecord};

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
        self.store.records().filter_map(Result::ok).find(|owner| has_xdp(owner, link)).as_ref().map(name)
    }
}

/// True if an owner has another XDP link on the interface of `wanted`.
fn has_xdp(owner: &OwnerRecord, wanted: &PlannedLink) -> bool {
    let AttachPoint::Xdp { iface, .. } = &wanted.at else { return false };
    let cookie = wanted.netns.as_ref().map(|netns| netns.cookie);
    owner.links.iter().any(|link| {
        let there = link.id.is_some() && link.netns.as_ref().map(|netns| netns.cookie) == cookie;
        there && matches!(&link.at, AttachPoint::Xdp { iface: taken, .. } if taken.index == iface.index)
    })
}

fn name(owner: &OwnerRecord) -> String {
    match &owner.owner {
        Owner::Container { id, .. } => format!("container {id}"),
        Owner::Netns { sandbox: Some(sandbox), .. } => format!("sandbox {sandbox}"),
        Owner::Netns { sandbox: None, .. } => format!("owner {}", owner.no),
        Owner::Host { application: Some(application), .. } => format!("application {application}"),
        Owner::Host { .. } => "the host".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::attach_point::{Interface, NetnsRecord};
    use crate::model::ids::{OwnerNo, Pid, PinName, ProcessIdentity};
    use crate::model::record::{Actor, LinkRecord, Phase};

    fn xdp(index: u32) -> AttachPoint {
        AttachPoint::Xdp { iface: Interface { name: "eth0".into(), index }, mode: None }
    }

    fn owner(owner: Owner, links: Vec<LinkRecord>) -> OwnerRecord {
        let process = ProcessIdentity { pid: Pid::new(7).expect("a pid"), start_time: 1 };
        OwnerRecord { links, ..OwnerRecord::new(OwnerNo(7), owner, Phase::Ready, Actor { process, deadline: 0 }, 0) }
    }

    #[test]
    fn the_owner_of_an_interface_is_found_by_namespace_and_index() {
        let netns = |cookie| Some(NetnsRecord { cookie, path: None });
        let link = |index, cookie, id| LinkRecord {
            pin: PinName::link(1),
            program: PinName::program(1),
            at: xdp(index),
            order: None,
            netns: netns(cookie),
            metadata: BTreeMap::new(),
            id,
        };
        let wanted = PlannedLink {
            program: PinName::program(1),
            function: "f".into(),
            at: xdp(2),
            pin: PinName::link(1),
            order: None,
            netns: netns(9),
        };
        let host =
            |application: Option<&str>| Owner::Host { application: application.map(str::to_owned), loaded: Box::default() };
        for (taken, there) in [
            (link(2, 9, Some(1)), true),
            (link(3, 9, Some(1)), false),
            (link(2, 8, Some(1)), false),
            // The link that is being made.
            (link(2, 9, None), false),
        ] {
            assert_eq!(has_xdp(&owner(host(None), vec![taken.clone()]), &wanted), there, "{taken:?}");
        }
        assert_eq!(name(&owner(host(None), Vec::new())), "the host");
        assert_eq!(name(&owner(host(Some("acme")), Vec::new())), "application acme");
    }
}
