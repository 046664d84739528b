//! Checks of the record store itself: whether it can be read, and records that do not decode. Also names XDP links in
//! generic mode, which only a record tells.

use std::collections::BTreeSet;

use crate::model::attach_point::{AttachPoint, XdpMode};
use crate::model::ids::{OwnerNo, ProcessIdentity};
use crate::model::text::listed;
use crate::output::error::AS_ROOT;
use crate::output::finding::{Finding, FindingStatus};
use crate::output::view::LinkView;
use crate::store::StoreError;
use crate::sys::error::chain;

/// Maximum number of links that one finding names.
const LINKS_SHOWN: usize = 8;

/// Why the store cannot be read by this user. Only a damaged one has to be removed.
pub fn unreadable(error: &StoreError, uid: u32) -> Finding {
    let (status, remedy) = match error {
        _ if uid != 0 => (FindingStatus::Unknown, AS_ROOT),
        StoreError::Damaged { .. } => (
            FindingStatus::Fail,
            "stop the annotated containers and remove the store's directory; then `bpfman-hook gc` releases what is pinned",
        ),
        _ => (FindingStatus::Fail, "correct that, then run `bpfman-hook doctor` again; the records are intact"),
    };
    Finding::bad("records", status, chain(error), remedy)
}

/// The errors of the records that do not decode.
#[derive(Debug, Default)]
pub struct DamagedRecords(pub Vec<StoreError>);

impl DamagedRecords {
    /// The number of each record, and its container's init, if that can still be read.
    fn all(&self) -> impl Iterator<Item = (OwnerNo, Option<ProcessIdentity>, &serde_json::Error)> {
        self.0.iter().filter_map(|error| match error {
            StoreError::Record { no, init, source, .. } => Some((*no, *init, source)),
            _ => None,
        })
    }

    /// The numbers of the records. Their pin directories have an owner.
    pub fn numbers(&self) -> BTreeSet<OwnerNo> {
        self.all().map(|(no, ..)| no).collect()
    }

    /// The pids of their containers' inits. These containers have a record.
    pub fn inits(&self) -> BTreeSet<u32> {
        self.all().filter_map(|(_, init, _)| Some(init?.pid.get())).collect()
    }

    /// One finding for each record. `gc` releases what it owns as soon as its container has ended.
    pub fn findings(&self, alive: impl Fn(&ProcessIdentity) -> bool) -> Vec<Finding> {
        let finding = |(no, init, source): (OwnerNo, Option<ProcessIdentity>, &serde_json::Error)| {
            let remedy = match init.filter(|init| alive(init)) {
                Some(init) => format!("stop its container (process {}), then run `bpfman-hook gc`", init.pid),
                None => "run `bpfman-hook gc`".to_owned(),
            };
            Finding::bad("records", FindingStatus::Warn, format!("record {no} is damaged: {source}"), remedy)
        };
        self.all().map(finding).collect()
    }
}

/// Names the XDP links that run in the kernel's generic mode: they work, but more slowly. None if there are none. It is
/// not a warning, because a request may ask for that mode.
pub fn generic_xdp<'a>(links: impl Iterator<Item = LinkView<'a>>) -> Option<Finding> {
    let generic = links.filter(|link| matches!(&*link.at, AttachPoint::Xdp { mode: Some(XdpMode::Skb), .. }));
    let generic: Vec<String> =
        generic.filter_map(|link| Some(format!("link {} on {} ({})", link.id?, link.at, link.program))).collect();
    if generic.is_empty() {
        return None;
    }
    let shown = listed(generic.iter().map(String::as_str), LINKS_SHOWN);
    let detail = format!(
        "in generic mode (skb), which is slower; the driver has no native mode, or refuses it (veth: reduce the MTU): {shown}"
    );
    Some(Finding::ok("xdp", detail))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::path::PathBuf;

    use super::*;
    use crate::model::attach_point::Interface;
    use crate::model::ids::Pid;
    use crate::output::view::OwnerName;

    #[test]
    fn only_root_is_told_to_remove_a_store_and_only_a_damaged_one() {
        let path = PathBuf::from("/run/bpfman-hook/store/1");
        let damaged = StoreError::Damaged { path: path.clone(), problem: "meta page 0".to_owned() };
        let other = StoreError::Version(path);
        for (error, uid, remedy) in [
            (&damaged, 0, "remove the store's directory"),
            (&damaged, 1000, AS_ROOT),
            (&other, 0, "run `bpfman-hook doctor` again"),
            (&other, 1000, AS_ROOT),
        ] {
            let finding = unreadable(error, uid);
            assert!(finding.remedy.as_ref().is_some_and(|told| told.contains(remedy)), "{finding:?}");
            assert_eq!(finding.status == FindingStatus::Fail, uid == 0, "{finding:?}");
        }
    }

    #[test]
    fn a_damaged_record_is_reported_with_what_gc_does() {
        let error = |no: u64, init: Option<u32>| StoreError::Record {
            path: "/run/bpfman-hook/store/1".into(),
            no: OwnerNo(no),
            init: init.map(|pid| ProcessIdentity { pid: Pid::new(pid).unwrap(), start_time: 9 }),
            source: serde_json::from_str::<u8>("{").unwrap_err(),
        };
        let damaged = DamagedRecords(vec![error(3, Some(11)), error(4, Some(12)), error(5, None)]);
        let told = damaged.findings(|init| init.pid.get() == 11);
        let remedies: Vec<_> = told.iter().filter_map(|finding| finding.remedy.as_deref()).collect();
        let gc = "run `bpfman-hook gc`";
        assert_eq!(remedies, ["stop its container (process 11), then run `bpfman-hook gc`", gc, gc]);
        assert!(told[0].detail.starts_with("record 3 is damaged: "), "{told:?}");
        assert_eq!(damaged.numbers(), BTreeSet::from([3, 4, 5].map(OwnerNo)));
        assert_eq!(damaged.inits(), BTreeSet::from([11, 12]));
    }

    #[test]
    fn xdp_in_generic_mode_is_named() {
        let link = |id, mode| LinkView {
            id: Some(id),
            program_id: Some(70),
            program: "count".into(),
            owner: OwnerName { no: 1, kind: "container", id: "web".to_owned(), name: None },
            at: Cow::Owned(AttachPoint::Xdp { iface: Interface { name: "eth0".into(), index: 2 }, mode }),
            gone: None,
        };
        let native = || link(81, Some(XdpMode::Native));
        assert_eq!(generic_xdp([native(), link(80, None)].into_iter()), None);
        let told = generic_xdp([native(), link(82, Some(XdpMode::Skb))].into_iter()).unwrap();
        assert_eq!(told.status, FindingStatus::Ok);
        assert!(told.detail.ends_with(": link 82 on eth0 (count)"), "{}", told.detail);
    }
}
