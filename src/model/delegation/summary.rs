//! A delegation in one line: a listing that names 34 map types for each container cannot be read.

use super::{Category, Delegation, Preset};

/// How many names a line spells out.
const NAMES_SHOWN: u32 = 6;

impl Delegation {
    /// For one line: the presets of which it consists, what it has beyond them, and how many names that are.
    /// `networking (3 commands, 32 map types, 6 program types, 6 attach types)`. [`fmt::Display`](std::fmt::Display)
    /// spells out every name.
    pub fn summary(&self) -> String {
        let count: u32 = Category::ALL.map(|category| self.mask(category).count_ones()).iter().sum();
        if count <= NAMES_SHOWN {
            return self.to_string();
        }
        let whole: Vec<_> = Preset::ALL
            .into_iter()
            .map(|(preset, word)| (preset.delegation(), word))
            .filter(|(preset, _)| self.contains(preset))
            .collect();
        let is_part = |this: &Delegation| whole.iter().any(|(other, _)| other != this && other.contains(this));
        let shown: Vec<_> = whole.iter().filter(|(preset, _)| !is_part(preset)).collect();
        let covered = shown.iter().fold(Delegation::default(), |all, (preset, _)| all.union(*preset));
        let rest = self.without(&covered);
        let rest_count: u32 = Category::ALL.map(|category| rest.mask(category).count_ones()).iter().sum();
        let mut parts: Vec<String> = shown.iter().map(|(_, word)| (*word).to_owned()).collect();
        match rest_count {
            0 => {}
            1..=NAMES_SHOWN => parts.push(rest.to_string()),
            more if parts.is_empty() => parts.push(format!("{more} names")),
            more => parts.push(format!("{more} more names")),
        }
        format!("{} ({})", parts.join(", "), self.counts())
    }

    /// `3 commands, 32 map types`
    fn counts(&self) -> String {
        let counted = |category: &Category| {
            let (one, many) = match category {
                Category::Cmds => ("command", "commands"),
                Category::Maps => ("map type", "map types"),
                Category::Progs => ("program type", "program types"),
                Category::Attachs => ("attach type", "attach types"),
            };
            match self.mask(*category).count_ones() {
                0 => None,
                1 => Some(format!("1 {one}")),
                more => Some(format!("{more} {many}")),
            }
        };
        Category::ALL.iter().filter_map(counted).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delegation_is_named_by_its_presets() {
        let networking = Preset::Networking.delegation();
        assert_eq!(networking.summary(), "networking (3 commands, 32 map types, 6 program types, 6 attach types)");
        let both = networking.union(Preset::Cgroup.delegation());
        assert!(both.summary().starts_with("networking, cgroup (3 commands, "), "{}", both.summary());
        let xdp = Delegation { progs: networking.progs | 1 << 6, ..networking };
        assert!(xdp.summary().starts_with("networking, progs xdp (3 commands, "), "{}", xdp.summary());
        let few = Delegation { cmds: 0b100001, maps: 0b100, progs: 1 << 6, attachs: 1 };
        assert_eq!(few.summary(), few.to_string());
        let many = Delegation { maps: 0xfe, ..Delegation::default() };
        assert_eq!(many.summary(), "7 names (7 map types)");
        assert_eq!(Delegation::default().summary(), "nothing");
        for (preset, word) in Preset::ALL {
            let line = preset.delegation().summary();
            assert!(line.chars().count() <= 74 && line.starts_with(word) || word == "probes", "{line}");
        }
    }
}
