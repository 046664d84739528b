//! A delegation as other programs spell it: keys and values of annotations, policy, LXD, Incus, systemd and mount(8).

use std::fmt::Write as _;

use super::{Category, Delegation};
use crate::model::annotations::PREFIX;

/// A program that delegations are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// Our annotations.
    Annotations,
    /// Our policy files.
    Policy,
    /// The settings of a systemd unit (systemd 258).
    Systemd,
    /// Instance options of Incus.
    Incus,
    /// Instance options of LXD.
    Lxd,
    /// Mount options of a bpffs.
    Mount,
}

impl Spelling {
    /// Every spelling with its name.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Annotations, "annotations"),
        (Self::Policy, "policy"),
        (Self::Systemd, "systemd"),
        (Self::Incus, "incus"),
        (Self::Lxd, "lxd"),
        (Self::Mount, "mount"),
    ];

    /// Parses a name; None if it is unknown.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(spelling, _)| *spelling)
    }

    /// The key of one set; None for policy files, where all four are in one table.
    fn key(self, category: Category) -> Option<&'static str> {
        use Category as C;
        Some(match (self, category) {
            (Self::Annotations, _) => category.annotation(),
            (Self::Policy, _) => return None,
            (Self::Mount, _) => category.mount_option(),
            (Self::Systemd, C::Cmds) => "BPFDelegateCommands",
            (Self::Systemd, C::Maps) => "BPFDelegateMaps",
            (Self::Systemd, C::Progs) => "BPFDelegatePrograms",
            (Self::Systemd, C::Attachs) => "BPFDelegateAttachments",
            (Self::Incus, C::Cmds) => "security.bpffs.delegate_cmds",
            (Self::Incus, C::Maps) => "security.bpffs.delegate_maps",
            (Self::Incus, C::Progs) => "security.bpffs.delegate_progs",
            (Self::Incus, C::Attachs) => "security.bpffs.delegate_attachs",
            (Self::Lxd, C::Cmds) => "security.delegate_bpf.cmd_types",
            (Self::Lxd, C::Maps) => "security.delegate_bpf.map_types",
            (Self::Lxd, C::Progs) => "security.delegate_bpf.prog_types",
            (Self::Lxd, C::Attachs) => "security.delegate_bpf.attach_types",
        })
    }

    /// The delegation as text to paste. `host_scope` is printed where the spelling has it: in policy files.
    pub fn write(self, delegation: &Delegation, host_scope: bool) -> String {
        let mut text = String::new();
        let sets = || Category::ALL.into_iter().filter(|category| delegation.mask(*category) != 0);
        match self {
            Self::Policy => {
                return policy_rule("delegate", &policy_sets(delegation), host_scope);
            }
            // A delegation is refused without a user and a mount namespace of the unit's own.
            Self::Systemd => text.push_str("PrivateUsers=yes\nPrivateMounts=yes\nDelegateNamespaces=mnt\nPrivateBPF=yes\n"),
            Self::Lxd => text.push_str("security.delegate_bpf=true\n"),
            Self::Annotations | Self::Incus | Self::Mount => {}
        }
        for category in sets() {
            let Some(key) = self.key(category) else { continue };
            let value = self.value(delegation, category);
            let _ = match self {
                Self::Annotations => writeln!(text, "{PREFIX}{key}: {value}"),
                _ => writeln!(text, "{key}={value}"),
            };
        }
        text
    }

    fn value(self, delegation: &Delegation, category: Category) -> String {
        let (separator, camel) = match self {
            Self::Annotations | Self::Policy | Self::Lxd | Self::Mount => (":", false),
            Self::Incus => (",", false),
            Self::Systemd => (",", true),
        };
        if delegation.mask(category) == u64::MAX {
            return "any".to_owned();
        }
        let names = delegation.names(category);
        let spelled = names.iter().map(|name| if camel { category.systemd_name(name) } else { name.clone() });
        spelled.collect::<Vec<_>>().join(separator)
    }

    /// The annotation, key and value, for a key of any spelling; None for any other key.
    ///
    /// Names keep their spelling, since annotations take all of them. Commas become colons, because a value of an
    /// annotation has none.
    pub fn annotation_for(key: &str, value: &str) -> Option<(String, String)> {
        let bare = key.strip_prefix(PREFIX).unwrap_or(key);
        let foreign = [Self::Systemd, Self::Incus, Self::Lxd, Self::Mount];
        let foreign = foreign.into_iter().flat_map(|spelling| Category::ALL.map(|category| (spelling.key(category), category)));
        let found = foreign.filter_map(|(known, category)| (known? == bare).then_some(category)).next();
        match found {
            Some(category) => Some((format!("{PREFIX}{}", category.annotation()), value.replace(',', ":"))),
            None if bare != key || !key.contains(['/', '.', '_']) => Some((format!("{PREFIX}{bare}"), value.to_owned())),
            None => None,
        }
    }
}

/// The sets of a delegation that are not empty, as keys of a table in a policy file.
pub fn policy_sets(delegation: &Delegation) -> Vec<String> {
    let sets = Category::ALL.into_iter().filter(|category| delegation.mask(*category) != 0);
    sets.map(|category| policy_set(category.word(), &delegation.names(category))).collect()
}

/// One of them.
pub fn policy_set(key: &str, names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    format!("{key} = [{}]", names.join(", "))
}

/// A rule of a policy file without its match; `key` is `delegate` or `proxy`.
pub fn policy_rule(key: &str, sets: &[String], host_scope: bool) -> String {
    let scope = if host_scope { "host-scope = true\n" } else { "" };
    format!("[[container]]\n{scope}{key} = {{ {} }}\n", sets.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::Preset;
    use super::*;
    use crate::model::annotations::{BpffsRequest, Request};

    const XDP: Delegation = Delegation { cmds: 0b100001, maps: 0b100, progs: 1 << 6 | 1 << 1, attachs: 1 << 37 | 1 };

    #[test]
    fn each_spelling_is_what_its_program_reads() {
        let cases = [
            (
                Spelling::Annotations,
                "hook.bpfman.io/delegate-cmds: map_create:prog_load\nhook.bpfman.io/delegate-maps: array\n\
                 hook.bpfman.io/delegate-progs: socket_filter:xdp\nhook.bpfman.io/delegate-attachs: cgroup_inet_ingress:xdp\n",
            ),
            (
                Spelling::Policy,
                "[[container]]\nhost-scope = true\ndelegate = { cmds = [\"map_create\", \"prog_load\"], maps = [\"array\"], \
                 progs = [\"socket_filter\", \"xdp\"], attachs = [\"cgroup_inet_ingress\", \"xdp\"] }\n",
            ),
            (
                Spelling::Systemd,
                "PrivateUsers=yes\nPrivateMounts=yes\nDelegateNamespaces=mnt\nPrivateBPF=yes\n\
                 BPFDelegateCommands=BPFMapCreate,BPFProgLoad\nBPFDelegateMaps=BPFMapTypeArray\n\
                 BPFDelegatePrograms=BPFProgTypeSocketFilter,BPFProgTypeXdp\nBPFDelegateAttachments=BPFCgroupInetIngress,BPFXdp\n",
            ),
            (
                Spelling::Incus,
                "security.bpffs.delegate_cmds=map_create,prog_load\nsecurity.bpffs.delegate_maps=array\n\
                 security.bpffs.delegate_progs=socket_filter,xdp\nsecurity.bpffs.delegate_attachs=cgroup_inet_ingress,xdp\n",
            ),
            (
                Spelling::Lxd,
                "security.delegate_bpf=true\nsecurity.delegate_bpf.cmd_types=map_create:prog_load\n\
                 security.delegate_bpf.map_types=array\nsecurity.delegate_bpf.prog_types=socket_filter:xdp\n\
                 security.delegate_bpf.attach_types=cgroup_inet_ingress:xdp\n",
            ),
            (
                Spelling::Mount,
                "delegate_cmds=map_create:prog_load\ndelegate_maps=array\ndelegate_progs=socket_filter:xdp\n\
                 delegate_attachs=cgroup_inet_ingress:xdp\n",
            ),
        ];
        for (spelling, expected) in cases {
            assert_eq!(spelling.write(&XDP, true), expected, "{spelling:?}");
        }
        assert!(!Spelling::Policy.write(&XDP, false).contains("host-scope"));
        assert_eq!(
            Spelling::Mount.write(&Delegation { maps: u64::MAX, ..Delegation::default() }, false),
            "delegate_maps=any\n"
        );
    }

    #[test]
    fn what_is_printed_is_taken_again() {
        let all = [XDP, Preset::Tracing.delegation(), Preset::Sockets.delegation()];
        for (spelling, word) in Spelling::ALL.into_iter().filter(|(spelling, _)| *spelling != Spelling::Policy) {
            assert_eq!(Spelling::from_word(word), Some(spelling));
            for delegation in all {
                let text = spelling.write(&delegation, false);
                let lines = text.lines().filter_map(|line| line.split_once(": ").or_else(|| line.split_once('=')));
                let taken =
                    lines.filter(|(key, _)| key.to_ascii_lowercase().contains("delegate") && *key != "DelegateNamespaces");
                let annotations = taken.filter(|(key, _)| *key != "security.delegate_bpf");
                let annotations = annotations.map(|(key, value)| Spelling::annotation_for(key, value).expect(key)).collect();
                let request = Request::parse(&annotations, None).expect(&text).expect("ours");
                let BpffsRequest::Token { delegation: asked, .. } = request.bpffs else { panic!("{text}") };
                assert_eq!(asked.named, delegation, "{text}");
            }
        }
    }

    #[test]
    fn other_keys_are_not_taken() {
        assert_eq!(Spelling::annotation_for("delegate", "maps"), Some((format!("{PREFIX}delegate"), "maps".into())));
        for key in ["security.nesting", "example.com/x", "delegate_cmd"] {
            assert_eq!(Spelling::annotation_for(key, "x"), None, "{key}");
        }
    }
}
