//! One program to its place, and who is in the way where the place is taken.

use std::path::Path;

use crate::kernel::{Kernel, KernelError, Places};
use crate::lifecycle::host::Host;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::attach_point::AttachPoint;
use crate::model::plan::PlannedLink;
use crate::model::record::{Owner, OwnerRecord};
use crate::store::StoreError;

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Attaches and pins one link; the id is None for a filter. Where another program of ours has the interface, the error
    /// names its owner.
    pub(super) fn attach(&self, directory: &Path, link: &PlannedLink, places: Places<'_>) -> Result<Option<u32>, Cause> {
        self.kernel.attach(directory, link, places).map_err(|error| match error {
            KernelError::XdpTaken { program, iface, owner: _ } => {
                KernelError::XdpTaken { program, iface, owner: self.xdp_owner(link).unwrap_or_default() }.into()
            }
            other => other.into(),
        })
    }

    /// Whose XDP program is on the interface, by our records. It is for a message: what cannot be read is left out.
    fn xdp_owner(&self, link: &PlannedLink) -> Option<String> {
        let owners = self.store.read::<_, StoreError>(|txn| {
            let owners = txn.owners()?.filter_map(Result::ok);
            Ok(owners.filter(|owner| has_xdp(owner, link)).collect::<Vec<_>>())
        });
        owners.ok()?.iter().map(name).next()
    }
}

/// True where an owner has another XDP link on the interface of `wanted`.
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
        Owner::Host { application: Some(application) } => format!("application {application}"),
        Owner::Host { application: None } => "the host".to_owned(),
    }
}
