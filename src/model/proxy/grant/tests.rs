//! Which calls a grant covers.

use super::*;
use crate::model::delegation::Preset;

fn grant(presets: &[Preset], host_scope: bool) -> ProxyGrant {
    let delegation = presets.iter().fold(Delegation::default(), |all, preset| all.union(preset.delegation()));
    ProxyGrant {
        delegation,
        helpers: None,
        kfuncs: None,
        instructions: None,
        images: BTreeSet::new(),
        host_scope,
        limits: ContainerLimits::default(),
    }
}

fn attr(command: NotifiedCommand, fields: &[(usize, u32)]) -> CopiedAttr {
    let mut bytes = [0; attr::ATTR_SIZE];
    for (at, value) in fields {
        bytes[*at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    CopiedAttr::new(command, &bytes).unwrap()
}

#[test]
fn commands_and_types_are_granted_by_name() {
    use NotifiedCommand::{BtfLoad, MapCreate, ProgLoad, TokenCreate};
    let sockets = grant(&[Preset::Sockets], false);
    let maps = grant(&[Preset::Maps], false);
    for (grant, command, fields, sentence) in [
        (&sockets, MapCreate, vec![(map::TYPE, 2)], None),
        (&maps, MapCreate, vec![(map::TYPE, 2), (map::FLAGS, 0x400)], None),
        (&sockets, MapCreate, vec![(map::TYPE, 26)], Some("not granted the map type struct_ops")),
        (&sockets, MapCreate, vec![(map::TYPE, 64)], Some("not granted the map type 64")),
        (&sockets, MapCreate, vec![(map::TYPE, 2), (map::FLAGS, 1 << 16)], Some("tokens are not passed on")),
        (&sockets, MapCreate, vec![(map::TYPE, 2), (map::FLAGS, 1 << 15)], Some("flags 0x8000 is not passed on")),
        (&sockets, MapCreate, vec![(map::TYPE, 2), (map::IFINDEX, 1)], Some("map_ifindex")),
        (&sockets, BtfLoad, vec![], None),
        (&sockets, BtfLoad, vec![(btf::TOKEN_FD, 3)], Some("tokens")),
        (&maps, BtfLoad, vec![], Some("not granted the bpf command btf_load")),
        (&maps, ProgLoad, vec![(prog::TYPE, 6)], Some("not granted the bpf command prog_load")),
        (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::EXPECTED_ATTACH_TYPE, 37)], None),
        (&sockets, ProgLoad, vec![(prog::TYPE, 2)], Some("not granted the program type kprobe")),
        (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::EXPECTED_ATTACH_TYPE, 23)], Some("attach type trace_raw_tp")),
        (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::CORE_RELO_CNT, 1)], Some("core_relos")),
        (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::FUNC_INFO_CNT, 1024)], None),
        (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::FUNC_INFO_CNT, 1025)], Some("more than 1024 functions")),
        (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::SIGNATURE_SIZE, 1)], Some("a signed program is not passed on")),
        (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::FLAGS, 16)], Some("a program with flags 0x10")),
        (&sockets, ProgLoad, vec![(prog::TYPE, 6), (prog::ATTACH_BTF_ID, 1)], Some("for a function of the kernel")),
        (&sockets, TokenCreate, vec![], Some("tokens are not passed on")),
    ] {
        let answer = grant.check(&attr(command, &fields));
        match sentence {
            None => assert_eq!(answer, Ok(()), "{command:?} {fields:?}"),
            Some(part) => {
                let shown = answer.unwrap_err().to_string();
                assert!(shown.contains(part), "{command:?} {fields:?}: {shown}");
            }
        }
    }
}

#[test]
fn maps_that_reach_beyond_need_host_scope() {
    let cases = MAPS_OF_HOST.map(|(map_type, _)| (map_type, false)).into_iter().chain([(2, true), (14, true), (17, true)]);
    for (map_type, is_allowed) in cases {
        let create = attr(NotifiedCommand::MapCreate, &[(map::TYPE, map_type)]);
        let answer = grant(&[Preset::Sockets], false).check(&create);
        assert_eq!(answer.is_ok(), is_allowed, "map type {map_type}: {answer:?}");
        assert!(is_allowed || answer.unwrap_err().to_string().contains("it needs host-scope = true"));
        assert_eq!(grant(&[Preset::Sockets], true).check(&create), Ok(()), "map type {map_type}");
    }
}

#[test]
fn maps_of_maps_need_host_scope_beside_a_read_only_map() {
    use crate::model::annotations::MapAccess::{ReadOnly, ReadWrite};
    for (map_type, access, host_scope, is_allowed) in [
        (12, ReadOnly, false, false),
        (13, ReadOnly, false, false),
        (13, ReadOnly, true, true),
        (13, ReadWrite, false, true),
        (2, ReadOnly, false, true),
    ] {
        let create = attr(NotifiedCommand::MapCreate, &[(map::TYPE, map_type)]);
        let shown = [(7, access)].into_iter().collect();
        let answer = grant(&[Preset::Maps], host_scope).check_inner_maps(&create, &shown);
        assert_eq!(answer.is_ok(), is_allowed, "{map_type} {access:?} {host_scope}: {answer:?}");
    }
}

#[test]
fn a_type_of_the_host_needs_host_scope_even_if_it_is_granted() {
    let load = attr(NotifiedCommand::ProgLoad, &[(prog::TYPE, 17), (prog::EXPECTED_ATTACH_TYPE, 0)]);
    let refused = grant(&[Preset::Tracing], false).check(&load).unwrap_err();
    assert!(matches!(refused, ProxyRefusal::HostScope { .. }), "{refused}");
    assert_eq!(grant(&[Preset::Tracing], true).check(&load), Ok(()));
}

#[test]
fn the_programs_type_decides_where_it_may_be_attached() {
    use AttachTarget::{Cgroup, CurrentNetns, Interface, Map, Netns};
    let grant = grant(&[Preset::Sockets, Preset::Networking, Preset::Cgroup, Preset::Tracing], false);
    let link = |kind, attach_type| grant.attach(&attr(NotifiedCommand::LinkCreate, &[(link::ATTACH_TYPE, attach_type)]), kind);
    for (kind, attach_type, target) in [
        (6, 37, Interface),
        (3, 46, Interface),
        (3, 55, Interface),
        (32, 45, CurrentNetns),
        (22, 17, Netns),
        (30, 36, Netns),
        (8, 0, Cgroup),
        (18, 10, Cgroup),
        (18, 53, Cgroup),
        (14, 4, Map),
        (16, 7, Map),
    ] {
        assert_eq!(link(kind, attach_type), Ok(target), "type {kind} as {attach_type}");
    }
    // The attach type of another type: the kernel would read the target as something else.
    for (kind, attach_type) in [(6, 46), (3, 37), (8, 37), (6, 0), (1, 0), (30, 37), (18, 46)] {
        assert!(matches!(link(kind, attach_type), Err(ProxyRefusal::AttachType { .. })), "type {kind} as {attach_type}");
    }
    for (kind, attach_type) in [(2, 42), (2, 56), (26, 28), (2, 48), (2, 57)] {
        assert!(matches!(link(kind, attach_type), Err(ProxyRefusal::HostScope { .. })), "type {kind} as {attach_type}");
    }
    for (kind, attach_type) in [(26, 42), (26, 56), (2, 28), (5, 48), (26, 57)] {
        assert!(matches!(link(kind, attach_type), Err(ProxyRefusal::AttachType { .. })), "type {kind} as {attach_type}");
    }
    assert!(matches!(link(17, 41), Err(ProxyRefusal::AttachType { .. })));
    assert!(matches!(link(5, 41), Err(ProxyRefusal::HostScope { .. })));
    let open = attr(NotifiedCommand::RawTracepointOpen, &[]);
    assert!(matches!(grant.attach(&open, 17), Err(ProxyRefusal::HostScope { .. })));
    let host = ProxyGrant { host_scope: true, ..grant };
    assert_eq!(host.attach(&open, 17), Ok(AttachTarget::Loaded));
    let multi = |kind, fields: &[(usize, u32)]| host.attach(&attr(NotifiedCommand::LinkCreate, fields), kind);
    for (attach_type, flags, target) in [(42, 16, AttachTarget::Functions), (48, 52, AttachTarget::File)] {
        let fields = [(link::ATTACH_TYPE, attach_type), (flags, 1)];
        assert_eq!(multi(2, &fields), Ok(target), "{attach_type}");
        let refused = multi(2, &[(link::ATTACH_TYPE, attach_type), (flags, 3)]).unwrap_err();
        assert!(refused.to_string().contains("with flags 0x2 is not passed on"), "{refused}");
    }
    assert_eq!(multi(26, &[(link::ATTACH_TYPE, ITERATOR)]), Ok(AttachTarget::Loaded));
    for at in [link::ITER_INFO, link::ITER_INFO_SIZE] {
        let refused = multi(26, &[(link::ATTACH_TYPE, ITERATOR), (at, 1)]).unwrap_err();
        assert!(refused.to_string().contains("iter_info"), "{refused}");
    }
}

#[test]
fn a_tcx_program_may_be_attached_without_a_link() {
    let grant = grant(&[Preset::Sockets], false);
    for command in [NotifiedCommand::ProgAttach, NotifiedCommand::ProgDetach] {
        let tcx = |flags| attr(command, &[(attach::TARGET, 1), (attach::ATTACH_TYPE, 46), (attach::FLAGS, flags)]);
        assert_eq!(grant.attach(&tcx(0), 3), Ok(AttachTarget::Interface));
        for flags in [REPLACE, BY_ID, OF_LINK] {
            assert!(matches!(grant.attach(&tcx(flags), 3), Err(ProxyRefusal::NotPassedOn { .. })), "{flags:#x}");
        }
        for (kind, attach_type) in [(6, 37), (3, 54), (6, 46)] {
            let other = attr(command, &[(attach::TARGET, 1), (attach::ATTACH_TYPE, attach_type)]);
            assert!(matches!(grant.attach(&other, kind), Err(ProxyRefusal::AttachType { .. })), "{kind} as {attach_type}");
        }
    }
}

#[test]
fn an_order_relative_to_others_is_refused() {
    let grant = grant(&[Preset::Sockets], false);
    for (fields, ok) in [
        (vec![(link::ATTACH_TYPE, 46)], true),
        (vec![(link::ATTACH_TYPE, 46), (link::FLAGS, 1 << 3)], true),
        (vec![(link::ATTACH_TYPE, 46), (link::FLAGS, 1 << 3 | BY_ID), (link::RELATIVE, 7)], false),
        (vec![(link::ATTACH_TYPE, 46), (link::RELATIVE, 7)], false),
        (vec![(link::ATTACH_TYPE, 46), (link::FLAGS, REPLACE)], false),
    ] {
        let answer = grant.attach(&attr(NotifiedCommand::LinkCreate, &fields), 3);
        assert_eq!(answer.is_ok(), ok, "{fields:?}: {answer:?}");
    }
    let xdp = attr(NotifiedCommand::LinkCreate, &[(link::ATTACH_TYPE, 37), (link::FLAGS, 4)]);
    assert_eq!(grant.attach(&xdp, 6), Ok(AttachTarget::Interface));
}

#[test]
fn memory_is_estimated_before_the_call() {
    let array =
        attr(NotifiedCommand::MapCreate, &[(map::TYPE, 2), (map::KEY_SIZE, 4), (map::VALUE_SIZE, 8), (map::MAX_ENTRIES, 10)]);
    assert_eq!(map_memory(&array, 4, 4096), 120 + MAP_OVERHEAD);
    for (map_type, value_size, flags, bytes) in
        [(2, 8, MMAPABLE, 4096), (2, 4096, MMAPABLE, 11 * 4096), (27, 0, 0, 10 + 3 * 4096), (31, 0, 0, 10 + 3 * 4096)]
    {
        let fields = [
            (map::TYPE, map_type),
            (map::KEY_SIZE, 4),
            (map::VALUE_SIZE, value_size),
            (map::MAX_ENTRIES, 10),
            (map::FLAGS, flags),
        ];
        let found = map_memory(&attr(NotifiedCommand::MapCreate, &fields), 4, 4096);
        assert_eq!(found, bytes + MAP_OVERHEAD, "{fields:?}");
    }
    for (size, bytes) in [(0, 0), (1, 4096), (2048, 4096), (2049, 8192), (u32::MAX, 1 << 33)] {
        assert_eq!(btf_memory(&attr(NotifiedCommand::BtfLoad, &[(btf::SIZE, size)]), 4096), bytes, "{size}");
    }
    let largest = [(map::TYPE, 1), (map::KEY_SIZE, u32::MAX), (map::VALUE_SIZE, u32::MAX), (map::MAX_ENTRIES, u32::MAX)];
    assert!(map_memory(&attr(NotifiedCommand::MapCreate, &largest), 4, 4096) > 1 << 40);
}

/// xorshift64*: a sequence that a seed determines.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[test]
fn fuzz_arguments_are_judged_without_a_panic() {
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x9e37_79b9_7f4a_7c15);
    println!("FUZZ_SEED={seed}");
    let mut random = Random(seed);
    let delegation = Preset::ALL.iter().fold(Delegation::default(), |all, (preset, _)| all.union(preset.delegation()));
    let limits = ContainerLimits::default();
    let grants = [false, true].map(|host_scope| ProxyGrant {
        delegation,
        helpers: None,
        kfuncs: None,
        instructions: None,
        images: BTreeSet::new(),
        host_scope,
        limits,
    });
    let mut accepted = 0;
    for _ in 0..200_000 {
        let command = NotifiedCommand::ALL[random.below(NotifiedCommand::ALL.len())];
        let mut bytes = vec![0; random.below(attr::ATTR_SIZE + 16)];
        for _ in 0..random.below(8) {
            let length = bytes.len();
            if length == 0 {
                break;
            }
            let at = random.below(length);
            bytes[at] = match random.below(4) {
                0 => 0,
                1 => 0xff,
                _ => (random.next() & 0x3f) as u8,
            };
        }
        let Ok(attr) = CopiedAttr::new(command, &bytes) else { continue };
        let copies = attr.copies();
        assert_eq!(copies, attr.copies());
        if let Ok(copies) = copies {
            assert!(copies.iter().all(|copy| copy.length <= 16 << 20));
        }
        for grant in &grants {
            let answer = grant.check(&attr);
            assert_eq!(answer, grant.check(&attr));
            let attached = grant.attach(&attr, (random.next() & 0x3f) as u32);
            accepted += usize::from(answer.is_ok()) + usize::from(attached.is_ok());
            // What container scope accepts, host scope accepts too.
            if grant.host_scope {
                continue;
            }
            assert!(answer.is_err() || grants[1].check(&attr).is_ok());
        }
        descriptors(&attr);
        map_memory(&attr, u64::MAX, 4096);
        btf_memory(&attr, 4096);
        program_memory(&attr);
        let _ = attr.name();
    }
    assert!(accepted > 1000, "{accepted}");
}
