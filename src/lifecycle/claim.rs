//! Transaction 1 of a start: claims a container id and, in a pod, its network namespace.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::kernel::Kernel;
use crate::lifecycle::acquire::fill;
use crate::lifecycle::host::Host;
use crate::lifecycle::pod_maps;
use crate::lifecycle::release::Released;
use crate::lifecycle::{Cause, Lifecycle};
use crate::model::attach_point::{AttachPoint, NetnsRecord, Order, ProgramKind};
use crate::model::container::Container;
use crate::model::facts::{Facts, NetnsFact};
use crate::model::ids::{Digest, OwnerNo, ProcessIdentity};
use crate::model::plan::{OwnerPlan, Plan};
use crate::model::record::{NetnsOwner, Owner, OwnerRecord, Phase};
use crate::store::{StoreError, WriteTxn};

/// How long a start waits for another container of its pod to attach the pod's programs.
const POD_WAIT: Duration = Duration::from_secs(10);

/// Pause between two reads of a record that another process works on.
const POLL: Duration = Duration::from_millis(5);

/// What one transaction of a claim came to.
enum Claim {
    /// It is recorded, with the network namespace that this start has to build.
    Granted(Option<Box<OwnerRecord>>),
    /// Another process is working on an owner that this start needs.
    Wait { process: ProcessIdentity, no: OwnerNo },
    /// An interface has an XDP program of these owners.
    Taken { cause: Cause, by: Vec<OwnerRecord> },
    /// The pod's owner has other programs and no holder.
    Outdated(Box<OwnerRecord>),
    /// It cannot be granted.
    Refused(Cause),
}

impl<K: Kernel, H: Host> Lifecycle<'_, K, H> {
    /// Transaction 1: records every pin that will be made, for the container and, in a pod, for its network namespace.
    ///
    /// Returns the network namespace's record if this start has to build it. None means that there is nothing to build:
    /// there are no such programs, or another container of the pod built them and this one joined.
    pub(super) fn claim(
        &self,
        record: &mut OwnerRecord,
        plan: &Plan,
        facts: &Facts,
        container: &Container,
    ) -> Result<Option<OwnerRecord>, Cause> {
        let until = Instant::now() + POD_WAIT;
        loop {
            let claim = self.store.write(|txn| self.try_claim(txn, record, plan, facts, container))?;
            match claim {
                Claim::Granted(netns) => return Ok(netns.map(|netns| *netns)),
                Claim::Refused(cause) => return Err(cause),
                Claim::Taken { cause, by } => {
                    if !self.release_dead(&by)? {
                        return Err(cause);
                    }
                    self.check_deadline()?;
                }
                // The pod kept it, and its containers now request something else.
                Claim::Outdated(other) => {
                    match self.release(&other)? {
                        Released::Partly(errors) => return Err(Cause::Leftovers(errors)),
                        Released::Unrecorded(error) => return Err(error.into()),
                        _ => {}
                    }
                    self.check_deadline()?;
                    std::thread::sleep(POLL);
                }
                Claim::Wait { process, no } => {
                    let alive = self.host.is_alive(&process)?;
                    if !alive {
                        self.collect_in_passing()?;
                    }
                    if Instant::now() >= until {
                        let what = "the pod's network programs".to_owned();
                        return Err(if alive { Cause::Busy { pid: process.pid, what } } else { Cause::NetnsLeft { no } });
                    }
                    self.check_deadline()?;
                    std::thread::sleep(POLL);
                }
            }
        }
    }

    /// One try of [`claim`](Self::claim), in one transaction.
    fn try_claim(
        &self,
        txn: &mut WriteTxn<'_>,
        record: &mut OwnerRecord,
        plan: &Plan,
        facts: &Facts,
        container: &Container,
    ) -> Result<Claim, StoreError> {
        for other in txn.by_container(&container.id)? {
            match (other.phase, &other.owner) {
                // Another start with this id was refused while this plan was made; its record has no objects
                // that could conflict.
                (Phase::Failed, _) => _ = txn.delete(other.no)?,
                (Phase::Ready, Owner::Container(owner)) => {
                    let (id, bundle) = (owner.id.clone(), owner.bundle.clone());
                    return Ok(Claim::Refused(Cause::IdTaken { id, bundle }));
                }
                _ => {
                    let what = other.owner.to_string();
                    return Ok(Claim::Refused(Cause::Busy { pid: other.actor.process.pid, what }));
                }
            }
        }
        record.no = self.free_number(txn)?;
        let Some(wanted) = &plan.netns else {
            txn.put(record)?;
            return Ok(Claim::Granted(None));
        };
        let signature = plan_digest(wanted);
        for mut other in txn.by_netns(facts.netns_cookie)? {
            let Owner::Netns(netns) = &other.owner else { continue };
            let same = netns.request == signature;
            let taken = common_xdp(wanted, &other).filter(|_| !same);
            if (same || taken.is_some()) && other.phase != Phase::Ready {
                return Ok(Claim::Wait { process: other.actor.process, no: other.no });
            }
            if same {
                if let Some(refused) = pod_maps::join(txn, record, plan, &mut other)? {
                    return Ok(Claim::Refused(refused));
                }
                hold(record, &mut other);
                txn.put(&other)?;
                txn.put(record)?;
                return Ok(Claim::Granted(None));
            }
            let mut holders = netns.holders.iter();
            let held = holders.try_fold(false, |held, holder| Ok::<_, StoreError>(held || txn.has(*holder)?))?;
            if !held && (taken.is_some() || same_images(wanted, &other)) {
                return Ok(Claim::Outdated(Box::new(other)));
            }
            if let Some(iface) = taken {
                let (mut by, mut holders) = (Vec::new(), Vec::new());
                for holder in &netns.holders {
                    if let Some(record) = txn.get(*holder)? {
                        holders.extend(record.owner.container().map(|container| container.id.to_string()));
                        by.push(record);
                    }
                }
                by.push(other);
                let cause = Cause::NetnsTaken { iface, holders: holders.join(", ") };
                return Ok(Claim::Taken { cause, by });
            }
        }
        let mut netns = self.blank(Owner::Netns(NetnsOwner {
            cookie: facts.netns_cookie,
            sandbox: match &facts.netns {
                NetnsFact::Sandbox { sandbox, .. } => sandbox.clone(),
                _ => None,
            },
            engine: container.engine,
            workload: container.workload.clone(),
            request: signature,
            holders: Vec::new(),
            keeper: None,
        }));
        netns.no = self.free_number(txn)?;
        fill(&mut netns, wanted);
        hold(record, &mut netns);
        txn.put(&netns)?;
        txn.put(record)?;
        Ok(Claim::Granted(Some(Box::new(netns))))
    }

    /// Releases the dead ones among some owners; true if one was removed.
    fn release_dead(&self, owners: &[OwnerRecord]) -> Result<bool, Cause> {
        let mut gone = false;
        for owner in owners {
            if self.is_dead(owner)?.is_some() {
                gone |= matches!(self.release(owner)?, Released::Gone | Released::Absent);
            }
        }
        Ok(gone)
    }

    /// A number whose pin directory does not exist. After a store was lost and recreated, numbers start at 1 again,
    /// while the pins of the former owners are still in our bpffs.
    pub(super) fn free_number(&self, txn: &mut WriteTxn<'_>) -> Result<OwnerNo, StoreError> {
        loop {
            let no = txn.next_no()?;
            if !self.fs.join(no.directory()).exists() {
                return Ok(no);
            }
        }
    }
}

/// Records in both that the container keeps the network namespace's programs alive.
fn hold(container: &mut OwnerRecord, pod: &mut OwnerRecord) {
    if let (Owner::Container(holder), Owner::Netns(held)) = (&mut container.owner, &mut pod.owner) {
        holder.holds.push(pod.no);
        held.holders.push(container.no);
    }
}

/// The interface on which both have an XDP program.
fn common_xdp(wanted: &OwnerPlan, other: &OwnerRecord) -> Option<String> {
    wanted.links.iter().find_map(|link| match &link.at {
        AttachPoint::Xdp { iface, .. } => other
            .links
            .iter()
            .any(|l| matches!(&l.at, AttachPoint::Xdp { iface: taken, .. } if taken.index == iface.index))
            .then(|| iface.name.clone()),
        _ => None,
    })
}

/// Whether both have programs of the same image references, whatever their digests.
fn same_images(wanted: &OwnerPlan, other: &OwnerRecord) -> bool {
    let wanted = wanted.objects.iter().map(|object| object.image.reference.as_str());
    wanted.eq(other.images.iter().map(|image| image.reference.as_str()))
}

/// Distinguishes the requests of a pod's containers for their network namespace: images, globals, programs and places.
/// An image counts by its reference: if a tag has moved since the pod's first container started, a later container
/// joins the existing programs.
fn plan_digest(plan: &OwnerPlan) -> Digest {
    Digest::from_bytes(Sha256::digest(canonical(plan)).into())
}

/// A plan for a network namespace in one spelling. It is stored as a digest and compared by later versions within a boot, so it has
/// only what distinguishes requests, in the form in which the store has it.
fn canonical(plan: &OwnerPlan) -> String {
    #[derive(Serialize)]
    struct Object<'a> {
        image: &'a str,
        globals: BTreeMap<&'a str, &'a [u8]>,
        programs: Vec<(&'a str, ProgramKind, Option<&'a str>)>,
    }
    #[derive(Serialize)]
    struct Link<'a> {
        function: &'a str,
        at: &'a AttachPoint,
        order: Option<&'a Order>,
        netns: Option<&'a NetnsRecord>,
    }
    let objects = plan.objects.iter().map(|object| Object {
        image: &object.image.reference,
        // Facts of the container, such as its cgroup's id, are in globals of ours.
        globals: object
            .globals
            .iter()
            .filter(|(name, _)| !name.starts_with("bpfman_"))
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
            .collect(),
        programs: object.programs.iter().map(|p| (p.function.as_str(), p.kind, p.target.as_deref())).collect(),
    });
    let links = plan.links.iter().map(|link| Link {
        function: &link.function,
        at: &link.at,
        order: link.order.as_ref(),
        netns: link.netns.as_ref(),
    });
    serde_json::to_string(&(objects.collect::<Vec<_>>(), links.collect::<Vec<_>>()))
        .expect("a plan is made of strings, numbers and lists, all of which JSON has")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::plan::PlannedLink;

    #[test]
    fn the_canonical_plan_does_not_depend_on_how_types_are_declared() {
        let plan = OwnerPlan {
            objects: Vec::new(),
            links: vec![PlannedLink {
                program: serde_json::from_value(json!("prog_0")).unwrap(),
                function: "count".to_owned(),
                at: serde_json::from_value(json!({"type": "xdp", "iface": {"name": "eth0", "index": 2}})).unwrap(),
                pin: serde_json::from_value(json!("link_0")).unwrap(),
                order: None,
                netns: None,
            }],
        };
        // Changing this text makes a running pod's containers attach their programs a second time after an upgrade.
        let expected = r#"[[],[{"function":"count","at":{"type":"xdp","iface":{"name":"eth0","index":2},"mode":null},"order":null,"netns":null}]]"#;
        assert_eq!(canonical(&plan), expected);
    }
}
