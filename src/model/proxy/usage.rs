//! What a container holds through the proxy. The kernel charges it to the proxy's memory cgroup, not to the
//! container's, so the limits of the policy are enforced here.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::ProxyRefusal;
use crate::model::annotations::MapAccess;
use crate::model::ids::Digest;
use crate::model::policy::ContainerLimits;

/// A kind of object that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsedKind {
    /// A program, with its instructions.
    Program,
    /// A map.
    Map,
    /// BTF.
    Btf,
    /// A link.
    Link,
}

impl UsedKind {
    /// The kind in listings.
    pub fn word(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Map => "map",
            Self::Btf => "btf",
            Self::Link => "link",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Program => "a program",
            Self::Map => "a map",
            Self::Btf => "BTF",
            Self::Link => "a link",
        }
    }
}

/// The objects that were created for a container and, as far as known, still exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyUsage {
    held: Vec<HeldObject>,
}

/// One of them: loaded by the workload, and held by its processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldObject {
    /// Its kind.
    pub kind: UsedKind,
    /// The kernel's id.
    pub id: u32,
    /// `enum bpf_prog_type` of a program or of a link's program, `enum bpf_map_type` of a map; 0 for BTF.
    pub kernel_type: u32,
    /// The name of a program or map, which may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The digest of a program's instructions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Where a link is attached, as the workload sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// Objects of one container that its record lists. Limits hold for more: only a listing is shortened.
pub const LISTED_MAX: usize = 1024;

/// Maps that may exist at the same time for one container: the policy limits only their memory, and what is recorded of
/// each takes memory and time of the host.
pub const MAPS_MAX: u32 = 1024;

/// As [`MAPS_MAX`], for BTF.
pub const BTF_MAX: u32 = 256;

/// Identifies an object among those of all kinds.
pub type HeldKey = (UsedKind, u32);

impl HeldObject {
    /// Its kind and id. The kernel reuses an id only after all others.
    pub fn key(&self) -> HeldKey {
        (self.kind, self.id)
    }
}

/// What a container's record lists from now on, without those that are gone. Several processes serve one container: each
/// adds what it made.
pub fn merged(recorded: &[HeldObject], made: &[HeldObject], gone: &HashSet<HeldKey>) -> Vec<HeldObject> {
    let mut listed = HashSet::new();
    let all = recorded.iter().chain(made);
    all.filter(|object| !gone.contains(&object.key()) && listed.insert(object.key())).take(LISTED_MAX).cloned().collect()
}

/// The maps of bpfman-hook that a container sees, by their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShownMaps {
    access: BTreeMap<u32, MapAccess>,
}

impl FromIterator<(u32, MapAccess)> for ShownMaps {
    fn from_iter<I: IntoIterator<Item = (u32, MapAccess)>>(maps: I) -> Self {
        let mut access = BTreeMap::new();
        for (id, given) in maps {
            // A map that is shown twice is as restricted as its strictest file.
            let known = access.entry(id).or_insert(given);
            if given == MapAccess::ReadOnly {
                *known = given;
            }
        }
        Self { access }
    }
}

impl ShownMaps {
    /// True if the container must not write to one of them.
    pub fn any_read_only(&self) -> bool {
        self.access.values().any(|access| *access == MapAccess::ReadOnly)
    }
}

impl ProxyUsage {
    /// Whether a program of the container may use a map, or be attached to it. A program can write to a map whatever the
    /// access of the descriptor, and freezing a map does not restrict programs.
    ///
    /// # Errors
    /// For a map that is shown read-only, and for one that is not the container's.
    pub fn may_use_map(&self, id: u32, shown: &ShownMaps) -> Result<(), ProxyRefusal> {
        let why = match shown.access.get(&id) {
            Some(MapAccess::ReadWrite) => return Ok(()),
            Some(MapAccess::ReadOnly) => "it is shown to the container read-only, and a program could write to it",
            None if self.has(UsedKind::Map, id) => return Ok(()),
            None => "it was neither created through the proxy nor is it shown to the container as :rw",
        };
        Err(ProxyRefusal::Foreign { what: "the map", why: why.to_owned() })
    }

    /// Notes a new object.
    pub fn add(&mut self, object: HeldObject) {
        self.held.push(object);
    }

    /// The objects.
    pub fn held(&self) -> &[HeldObject] {
        &self.held
    }

    /// Adds the objects that other processes made for the same container.
    pub fn learn(&mut self, recorded: Vec<HeldObject>) {
        let mut known: HashSet<HeldKey> = self.held.iter().map(HeldObject::key).collect();
        self.held.extend(recorded.into_iter().filter(|object| known.insert(object.key())));
    }

    /// Removes what no longer exists.
    pub fn prune(&mut self, exists: impl FnMut(&HeldObject) -> bool) {
        self.held.retain(exists);
    }

    /// True if an object of this kind was created for the container.
    pub fn has(&self, kind: UsedKind, id: u32) -> bool {
        self.held.iter().any(|object| object.kind == kind && object.id == id)
    }

    /// Whether another object of a kind and a size in bytes fits under the limits.
    ///
    /// # Errors
    /// ENOSPC with the limit. Objects that were closed count until [`Self::prune`].
    pub fn fits(&self, kind: UsedKind, bytes: u64, limits: &ContainerLimits) -> Result<(), ProxyRefusal> {
        let held = self.held.iter().filter(|object| object.kind == kind).count() as u64;
        let (what, limit, of_policy) = match kind {
            UsedKind::Program => ("programs", limits.programs, true),
            UsedKind::Link => ("links", limits.links, true),
            UsedKind::Map => ("maps", MAPS_MAX, false),
            UsedKind::Btf => ("BTF objects", BTF_MAX, false),
        };
        let limit = u64::from(limit);
        if held >= limit {
            return Err(match of_policy {
                true => ProxyRefusal::Limit { what, held, limit },
                false => ProxyRefusal::FixedLimit { what, held, limit },
            });
        }
        let held = self.held.iter().fold(0u64, |sum, object| sum.saturating_add(object.bytes));
        match held.checked_add(bytes) {
            Some(sum) if sum <= limits.map_memory => Ok(()),
            _ => Err(ProxyRefusal::Memory { what: kind.noun(), asked: bytes, held, limit: limits.map_memory }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: UsedKind, id: u32, bytes: u64) -> HeldObject {
        HeldObject { kind, id, kernel_type: 0, name: String::new(), bytes, digest: None, place: None }
    }

    #[test]
    fn processes_of_one_container_add_to_its_record() {
        let [a, b, c] = [1, 2, 3].map(|id| object(UsedKind::Map, id, 8));
        let all = [a.clone(), b.clone()];
        assert_eq!(merged(&all, &[b.clone(), c.clone()], &[a.key()].into()), [b.clone(), c.clone()]);
        let many: Vec<_> = (0..3000).map(|id| object(UsedKind::Map, id, 0)).collect();
        assert_eq!(merged(&all, &many, &HashSet::new()).len(), LISTED_MAX);
        let mut usage = ProxyUsage::default();
        usage.add(a.clone());
        usage.learn(vec![a.clone(), b.clone()]);
        assert_eq!(usage.held(), [a, b]);
    }

    #[test]
    fn programs_use_the_maps_of_their_container() {
        use MapAccess::{ReadOnly, ReadWrite};
        let shown = [(1, ReadOnly), (2, ReadWrite), (3, ReadWrite), (3, ReadOnly)].into_iter().collect::<ShownMaps>();
        let mut usage = ProxyUsage::default();
        usage.add(object(UsedKind::Map, 4, 0));
        usage.add(object(UsedKind::Program, 5, 0));
        for (id, part) in [(1, "read-only"), (2, ""), (3, "read-only"), (4, ""), (5, "neither created"), (6, "neither created")]
        {
            match usage.may_use_map(id, &shown) {
                Ok(()) => assert_eq!(part, "", "{id}"),
                Err(refusal) => assert!(!part.is_empty() && refusal.to_string().contains(part), "{id}: {refusal}"),
            }
        }
        assert!(shown.any_read_only());
        assert!(![(2, ReadWrite)].into_iter().collect::<ShownMaps>().any_read_only() && !ShownMaps::default().any_read_only());
    }

    #[test]
    fn maps_and_btf_have_limits_of_their_own() {
        let limits = ContainerLimits { programs: u32::MAX, links: u32::MAX, map_memory: u64::MAX };
        for (kind, limit) in
            [(UsedKind::Map, Some(MAPS_MAX)), (UsedKind::Btf, Some(BTF_MAX)), (UsedKind::Program, None), (UsedKind::Link, None)]
        {
            let mut usage = ProxyUsage::default();
            usage.learn((1..4096).map(|id| object(kind, id, 0)).take(limit.unwrap_or(4000) as usize).collect());
            let refused = limit.map(|limit| (u64::from(limit), u64::from(limit)));
            let found = match usage.fits(kind, 0, &limits) {
                Err(ProxyRefusal::FixedLimit { held, limit, .. }) => Some((held, limit)),
                _ => None,
            };
            assert_eq!(found, refused, "{kind:?}");
            usage.prune(|object| object.id != 1);
            assert_eq!(usage.fits(kind, 0, &limits), Ok(()), "{kind:?}");
        }
    }

    #[test]
    fn objects_count_until_they_are_gone() {
        let limits = ContainerLimits { programs: 2, links: 1, map_memory: 100 };
        let mut usage = ProxyUsage::default();
        for (kind, id, bytes) in
            [(UsedKind::Program, 1, 10), (UsedKind::Map, 1, 40), (UsedKind::Btf, 9, 10), (UsedKind::Program, 2, 0)]
        {
            assert_eq!(usage.fits(kind, bytes, &limits), Ok(()));
            usage.add(object(kind, id, bytes));
        }
        assert!(matches!(usage.fits(UsedKind::Program, 0, &limits), Err(ProxyRefusal::Limit { held: 2, limit: 2, .. })));
        assert_eq!(usage.fits(UsedKind::Map, 40, &limits), Ok(()));
        for bytes in [41, u64::MAX] {
            assert!(matches!(usage.fits(UsedKind::Map, bytes, &limits), Err(ProxyRefusal::Memory { held: 60, .. })));
        }
        assert!(usage.has(UsedKind::Program, 2) && !usage.has(UsedKind::Link, 2));
        usage.prune(|object| object.kind != UsedKind::Program);
        assert_eq!(usage.fits(UsedKind::Program, 50, &limits), Ok(()));
        usage.add(object(UsedKind::Link, 3, 0));
        assert!(usage.fits(UsedKind::Link, 0, &limits).is_err());
    }
}
