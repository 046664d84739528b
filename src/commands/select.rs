//! Selection of the programs and links in a listing.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::program::{Selection, Selectors};
use crate::model::proxy::usage::HeldObject;
use crate::model::record::{ContainerOwner, HostOwner, LinkRecord, Owner, OwnerRecord, ProgramRecord};

/// Keeps only the selected programs of a record.
pub fn programs(record: &mut OwnerRecord, selection: &Selection) {
    let attached = selection.attached.then_some(true).or(selection.unattached.then_some(false));
    let links: BTreeSet<_> = record.links.iter().map(|link| link.program.clone()).collect();
    let labels = labels(record);
    let of_owner = of_application(record, &selection.common)
        && selection.common.metadata_selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    record.programs.retain(|program| {
        of_owner
            && is_chosen(program, &selection.common)
            && attached.is_none_or(|wanted| wanted == links.contains(&program.pin))
    });
    // Which links are of which program is not recorded of what a workload loaded.
    by_workload(record, |object| of_owner && attached.is_none() && other(object.id, object.kernel_type, &selection.common));
}

/// Keeps only the selected objects of those that a container's workload loaded.
fn by_workload(record: &mut OwnerRecord, keep: impl Fn(&HeldObject) -> bool) {
    if let Owner::Container(ContainerOwner { proxy: Some(proxy), .. }) = &mut record.owner {
        proxy.objects.retain(keep);
    }
}

/// Keeps only the selected links of a record. A label may be the link's own or its program's.
pub fn links(record: &mut OwnerRecord, selectors: &Selectors) {
    let labels = labels(record);
    let of_owner = of_application(record, selectors);
    let has = |link: &LinkRecord, key, value| link.metadata.get(key) == Some(value) || labels.get(key) == Some(value);
    let programs = &record.programs;
    record.links.retain(|link| {
        of_owner
            && programs.iter().any(|program| program.pin == link.program && is_chosen(program, selectors))
            && selectors.metadata_selector.iter().all(|(key, value)| has(link, key, value))
    });
    let by_container = of_owner && selectors.metadata_selector.is_empty() && selectors.program_id.is_empty();
    by_workload(record, |object| {
        by_container && selectors.program_type.is_none_or(|wanted| wanted.includes_kernel(object.kernel_type))
    });
}

/// Whether a program that bpfman-hook did not load is selected, by its kernel id and its kernel type.
pub fn other(id: u32, kernel_type: u32, selectors: &Selectors) -> bool {
    (selectors.program_id.is_empty() || selectors.program_id.contains(&id))
        && selectors.program_type.is_none_or(|wanted| wanted.includes_kernel(kernel_type))
}

fn is_chosen(program: &ProgramRecord, selectors: &Selectors) -> bool {
    (selectors.program_id.is_empty() || program.id().is_some_and(|id| selectors.program_id.contains(&id)))
        && selectors.program_type.is_none_or(|wanted| wanted.includes(program.kind))
}

fn of_application(record: &OwnerRecord, selectors: &Selectors) -> bool {
    let application = match &record.owner {
        Owner::Host(HostOwner { application, .. }) => application.as_ref(),
        Owner::Container(_) | Owner::Netns(_) => None,
    };
    selectors.application.is_none() || application == selectors.application.as_ref()
}

/// The labels that a user gave to a load.
fn labels(record: &OwnerRecord) -> BTreeMap<String, String> {
    match &record.owner {
        Owner::Host(HostOwner { loaded, .. }) => loaded.metadata.clone(),
        Owner::Container(_) | Owner::Netns(_) => BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::list::tests::records;
    use crate::model::attach_point::TypeFilter;

    #[test]
    fn programs_and_links_are_selected_by_their_properties() {
        let all = records();
        let common = |change: fn(&mut Selectors)| {
            let mut selectors = Selectors::default();
            change(&mut selectors);
            selectors
        };
        for (selectors, programs_left, links_left) in [
            (common(|_| {}), 2, 2),
            (common(|s| s.program_id = vec![72, 99]), 1, 1),
            (common(|s| s.program_type = TypeFilter::from_word("xdp")), 1, 1),
            (common(|s| s.application = Some("shop".to_owned())), 0, 0),
            (common(|s| s.metadata_selector = vec![("k".to_owned(), "link".to_owned())]), 0, 1),
        ] {
            let mut left = all.clone();
            left[1].links[0].metadata.insert("k".to_owned(), "link".to_owned());
            let selection = Selection { common: selectors.clone(), ..Selection::default() };
            let mut of_programs = left.clone();
            of_programs.iter_mut().for_each(|record| programs(record, &selection));
            left.iter_mut().for_each(|record| links(record, &selectors));
            let counted = |records: &[OwnerRecord]| {
                (records.iter().map(|r| r.programs.len()).sum::<usize>(), records.iter().map(|r| r.links.len()).sum::<usize>())
            };
            assert_eq!((counted(&of_programs).0, counted(&left).1), (programs_left, links_left), "{selectors:?}");
        }
        let mut attached = all.clone();
        attached[0].links.clear();
        let selection = Selection { attached: true, ..Selection::default() };
        attached.iter_mut().for_each(|record| programs(record, &selection));
        assert_eq!(attached[0].programs.len() + attached[1].programs.len(), 1);
        assert!(other(7, 6, &Selectors::default()) && !other(7, 6, &common(|s| s.program_id = vec![8])));
    }
}
