//! The names of a delegation for a listing: which presets have them, and what program types reach.

use serde::Serialize;

use crate::model::attach_point::Scope;
use crate::model::delegation::{Category, Delegation, Preset};
use crate::model::reach::TokenReach;
use crate::output::format::word;
use crate::output::table::Table;

/// One delegated name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DelegatedName {
    /// `cmds`, `maps`, `progs` or `attachs`.
    set: &'static str,
    /// The kernel's name; a number of all bits without one.
    name: String,
    /// The presets that contain it.
    presets: Vec<&'static str>,
    /// The scope; None if it depends on the program types, or is not known yet.
    scope: Option<Scope>,
    /// Why it is host scope.
    because: Option<String>,
}

/// Each name of a delegation. Without `reach`, what programs reach on this kernel is not known.
pub fn delegated_names(delegation: &Delegation, reach: Option<&TokenReach>) -> Vec<DelegatedName> {
    let mut names = Vec::new();
    for category in Category::ALL {
        if delegation.mask(category) == u64::MAX {
            let set = category.word();
            names.push(DelegatedName { set, name: "any".into(), presets: Vec::new(), scope: None, because: None });
            continue;
        }
        for name in delegation.names(category) {
            let one = one(category, &name);
            let presets = Preset::ALL.iter().filter(|(preset, _)| one.is_some_and(|one| preset.delegation().contains(&one)));
            let presets = presets.map(|(_, word)| *word).collect();
            let (scope, because) = scope(category, &name, one, reach);
            names.push(DelegatedName { set: category.word(), name, presets, scope, because });
        }
    }
    names
}

fn one(category: Category, name: &str) -> Option<Delegation> {
    let mut one = Delegation::default();
    *one.mask_mut(category) = 1 << category.shown_value(name)?;
    Some(one)
}

fn scope(
    category: Category,
    name: &str,
    one: Option<Delegation>,
    reach: Option<&TokenReach>,
) -> (Option<Scope>, Option<String>) {
    match (category, one) {
        // None is usable without its program type.
        (Category::Attachs, _) => (None, None),
        (_, None) => (Some(Scope::Host), Some("newer than the tables of bpfman-hook".to_owned())),
        (Category::Progs, Some(_)) => match (category.shown_value(name), reach) {
            (Some(at), Some(reach)) => match reach.type_beyond(at) {
                Some(beyond) => (Some(Scope::Host), Some(format!("{} ({})", beyond.what, beyond.by))),
                None => (Some(Scope::Container), None),
            },
            _ => (None, Some("not known yet: run this as root once per boot".to_owned())),
        },
        (_, Some(one)) if one.host_scope().is_empty() => (Some(Scope::Container), None),
        (Category::Maps, _) => (Some(Scope::Host), Some("registering such a map changes the host".to_owned())),
        (Category::Cmds, _) => (Some(Scope::Host), Some("opens the types of any object of the host".to_owned())),
    }
}

/// The names as a table.
pub fn names_table(names: &[DelegatedName]) -> String {
    let mut table = Table::new(&["SET", "NAME", "PRESETS", "SCOPE", "REACHES"]);
    for name in names {
        let scope = name.scope.map_or_else(|| "-".to_owned(), |scope| word(&scope));
        let because = name.because.clone().unwrap_or_default();
        table.row([name.set.to_owned(), name.name.clone(), name.presets.join(" "), scope, because]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reach::TypeAnswer;

    #[test]
    fn each_name_has_its_presets_and_its_scope() {
        let mut reach = TokenReach::default();
        reach.types.insert(1, TypeAnswer::Offers(Vec::new()));
        let delegation = Delegation { cmds: 1 << 5 | 1 << 19, maps: 1 << 26, progs: 1 << 1 | 1 << 2, attachs: 1 };
        let names = delegated_names(&delegation, Some(&reach));
        let of = |name: &str| names.iter().find(|found| found.name == name).expect(name);
        assert_eq!(of("prog_load").presets, ["probes", "networking", "cgroup", "sockets", "tracing"]);
        assert_eq!(of("prog_load").scope, Some(Scope::Container));
        assert_eq!(of("btf_get_fd_by_id").scope, Some(Scope::Host));
        assert_eq!((of("struct_ops").scope, of("struct_ops").presets.len()), (Some(Scope::Host), 0));
        assert_eq!(of("socket_filter").scope, Some(Scope::Container));
        assert_eq!(of("kprobe").because.as_deref(), Some("the whole host (on every kernel)"));
        assert_eq!(of("cgroup_inet_ingress").scope, None);
        assert!(names_table(&names).contains("kprobe"));
        let unknown = delegated_names(&delegation, None);
        assert!(unknown.iter().any(|name| name.name == "socket_filter" && name.scope.is_none()));
    }
}
