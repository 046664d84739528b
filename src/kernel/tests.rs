//! Reading and linking with the committed objects of tests/bpf, without a kernel.

use super::*;
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::core_relo::{CoreTarget, POISON};
use crate::kernel::elf::{Elf, ElfError};
use crate::kernel::insn::{Insn, PSEUDO_FUNC, PSEUDO_KFUNC, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE};
use crate::kernel::link::{Linked, link};
use crate::model::attach_point::{CgroupAttach, Direction, ProgramKind};
use crate::model::object::{GlobalType, SectionAttach};

macro_rules! object {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/bpf/", $name, ".bpf.o")).as_slice()
    };
}

const ALL: [(&str, &[u8]); 18] = [
    ("broken", object!("broken")),
    ("cgroup_skb", object!("cgroup_skb")),
    ("connect4", object!("connect4")),
    ("core", object!("core")),
    ("counter", object!("counter")),
    ("demo", object!("demo")),
    ("extern", object!("extern")),
    ("kernel_calls", object!("kernel_calls")),
    ("leak", object!("leak")),
    ("legacy", object!("legacy")),
    ("maps", object!("maps")),
    ("relo", object!("relo")),
    ("relo_target", object!("relo_target")),
    ("sections", object!("sections")),
    ("sock", object!("sock")),
    ("subprogs", object!("subprogs")),
    ("tcx", object!("tcx")),
    ("trace", object!("trace")),
];

fn describe(bytes: &[u8]) -> ObjectFacts {
    LinuxKernel.describe(bytes).unwrap()
}

fn link_one(object: &BpfObject<'_>, name: &str, target: Option<&CoreTarget<'_>>) -> Result<Linked, LinkError> {
    let function = object.programs().find(|f| f.name == name).unwrap_or_else(|| panic!("no {name}"));
    link(object, function, target)
}

#[test]
fn an_object_declares_programs_maps_and_core() {
    let facts = describe(object!("demo"));
    let programs: Vec<_> =
        facts.programs.iter().map(|p| (p.function.as_str(), p.section.as_str(), p.declared.clone())).collect();
    let egress = SectionAttach::Cgroup(ProgramKind::CgroupSkb, Some(CgroupAttach::Egress));
    assert_eq!(
        programs,
        [("count_packets", "xdp", Some(SectionAttach::Xdp)), ("count_egress", "cgroup_skb/egress", Some(egress)),]
    );
    let [packets] = facts.maps.as_slice() else { panic!("{:?}", facts.maps) };
    assert_eq!(
        (packets.name.as_str(), packets.map_type, packets.key_size, packets.value_size, packets.max_entries),
        ("packets", 2, 4, 8, 2)
    );
    assert!(!packets.data_section && !facts.core);
    assert!(facts.globals.is_empty());
    assert!(describe(object!("core")).core);
    let tcx = describe(object!("tcx"));
    let declared: Vec<_> = tcx.programs.into_iter().map(|p| p.declared).collect();
    assert!(declared.contains(&Some(SectionAttach::Tcx(Some(Direction::Ingress)))));
    assert!(declared.contains(&Some(SectionAttach::Tcx(None))));
}

#[test]
fn globals_have_the_types_of_their_declarations() {
    let facts = describe(object!("counter"));
    let int = |size, signed| GlobalType::Int { size, signed };
    let expected = [
        ("step", int(4, false), 4, true),
        ("offset", int(2, true), 2, true),
        ("drop", GlobalType::Bool, 1, true),
        ("mode", int(4, false), 4, true),
        ("ports", GlobalType::Array { of: Box::new(int(2, false)), len: 4 }, 8, true),
        ("label", GlobalType::Chars { len: 16 }, 16, true),
        ("pair", GlobalType::Opaque, 8, true),
        ("base", int(8, false), 8, false),
        ("seen", int(8, false), 8, false),
        ("touched", int(4, false), 4, false),
        ("bpfman_cgroup_id", int(8, false), 8, true),
        ("bpfman_init_pid", int(4, false), 4, true),
        ("bpfman_userns", int(8, false), 8, true),
        ("bpfman_container_id", GlobalType::Chars { len: 256 }, 256, true),
    ];
    for (name, ty, size, read_only) in expected {
        let found = facts.globals.iter().find(|g| g.name == name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!((&found.ty, found.size, found.read_only), (&ty, size, read_only), "{name}");
    }
    let sections: Vec<_> = facts.maps.iter().filter(|m| m.data_section).map(|m| (m.name.as_str(), m.flags)).collect();
    for section in [(".rodata", 0x80), (".data", 0x400), (".bss", 0x400)] {
        assert!(sections.contains(&section), "{sections:?}");
    }
}

#[test]
fn objects_without_btf_are_read() {
    let facts = describe(object!("legacy"));
    let maps: Vec<_> = facts.maps.iter().map(|m| (m.name.as_str(), m.map_type, m.max_entries)).collect();
    assert_eq!(maps, [("first", 1, 16), ("counter", 2, 1), (".rodata", 2, 1)]);
    let [step] = facts.globals.as_slice() else { panic!("{:?}", facts.globals) };
    assert_eq!((step.name.as_str(), &step.ty, step.size), ("step", &GlobalType::Opaque, 4));
    assert_eq!(facts.programs[0].declared, Some(SectionAttach::Xdp));
}

#[test]
fn unknown_sections_do_not_affect_others() {
    let facts = describe(object!("sections"));
    let wanted = facts.programs.iter().find(|p| p.function == "wanted").unwrap();
    assert_eq!((wanted.section.as_str(), &wanted.declared), ("?xdp", &Some(SectionAttach::Xdp)));
    assert_eq!(facts.programs.len(), 16);
    let made_up = facts.programs.iter().find(|p| p.function == "in_made_up").unwrap();
    assert_eq!(made_up.declared, None);
}

#[test]
fn maps_of_every_form() {
    let object = BpfObject::parse(object!("maps")).unwrap();
    let map = |name: &str| object.maps.iter().find(|m| m.name == name).unwrap();
    assert_eq!(map("events").shape.completed(4096, 2).max_entries, 16384);
    assert_eq!(map("events").shape.max_entries, 10000);
    assert_eq!(map("perf").shape.completed(4096, 2).max_entries, 2);
    assert_eq!(map("shared").shape.flags, 1);
    assert_eq!(map("shared").shape.value_size, 16);
    let inner = map("outer").inner.unwrap();
    assert_eq!((inner.map_type, inner.max_entries, inner.value_size), (2, 3, 8));
    assert!(map("outer").elements.is_empty());
    let [element] = map("filled").elements.as_slice() else { panic!("{:?}", map("filled")) };
    let inner = implied::element(&object, map("filled"), element.symbol, element.place).unwrap();
    assert!(matches!(inner, implied::ElementValue::Map(_)), "{inner:?}");
    assert_eq!(link_one(&object, "use_filled", None).unwrap().used_maps().len(), 1);
}

#[test]
fn invalid_objects_are_refused_with_a_reason() {
    let good = object!("demo");
    let change = |at: usize, bytes: &[u8]| {
        let mut copy = good.to_vec();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    let error = |bytes: &[u8]| Elf::parse(bytes).unwrap_err();
    assert_eq!(error(b""), ElfError::NotElf);
    assert_eq!(error(b"#!/bin/sh\n"), ElfError::NotElf);
    assert_eq!(error(&good[..63]), ElfError::NotElf);
    assert_eq!(error(&change(4, &[1])), ElfError::Class);
    assert_eq!(error(&change(18, &62u16.to_ne_bytes())), ElfError::Machine(62));
    assert_eq!(error(&change(16, &2u16.to_ne_bytes())), ElfError::Type(2));
    assert_eq!(error(&change(0x28, &u64::MAX.to_ne_bytes())), ElfError::Outside("the section table"));
    assert_eq!(error(&vec![0; elf::MAX_OBJECT + 1]), ElfError::TooLarge(elf::MAX_OBJECT + 1));
    let other = if cfg!(target_endian = "little") { 2 } else { 1 };
    let text = error(&change(5, &[other])).to_string();
    assert!(
        text.starts_with("the object is big-endian, this machine is little-endian") || cfg!(target_endian = "big"),
        "{text}"
    );
    let text = LinuxKernel.describe(b"x").unwrap_err();
    assert_eq!(text.to_string(), "read the BPF object");
}

/// Symbols can share one name, so that reading a long one for each of them would take minutes.
#[test]
fn names_have_a_limit() {
    let object = |length: usize| {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, if cfg!(target_endian = "little") { 1 } else { 2 }]);
        let mut put = |at: usize, number: u16| file[at..at + 2].copy_from_slice(&number.to_ne_bytes());
        // e_type, e_machine, e_shentsize, e_shnum, e_shstrndx
        for (at, number) in [(16, 1), (18, 247), (58, 64), (60, 2), (62, 1)] {
            put(at, number);
        }
        file[40..48].copy_from_slice(&64u64.to_ne_bytes());
        // The null section, and a table of names whose own name is the long one.
        let mut names = [0; 64];
        names[4..8].copy_from_slice(&3u32.to_ne_bytes());
        names[24..32].copy_from_slice(&192u64.to_ne_bytes());
        names[32..40].copy_from_slice(&(length as u64 + 1).to_ne_bytes());
        file.extend([[0; 64], names].concat());
        file.resize(file.len() + length, b'a');
        file.push(0);
        file
    };
    let longest = object(elf::MAX_NAME - 1);
    assert_eq!(Elf::parse(&longest).unwrap().sections[1].name.len(), elf::MAX_NAME - 1);
    assert_eq!(Elf::parse(&object(elf::MAX_NAME)).unwrap_err(), ElfError::LongName("a section"));

    let btf = |length: usize| {
        let strings = [&[0][..], &vec![b'a'; length], &[0]].concat();
        let header = [24, 0, 0, 0, u32::try_from(strings.len()).unwrap()].map(u32::to_ne_bytes).concat();
        [&0xeb9fu16.to_ne_bytes()[..], &[1, 0], &header, &strings].concat()
    };
    let string = |btf: &[u8]| Btf::parse(btf).unwrap().string(1).map(str::len);
    assert_eq!(string(&btf(elf::MAX_NAME - 1)), Ok(elf::MAX_NAME - 1));
    assert_eq!(string(&btf(elf::MAX_NAME)), Err(BtfError::String(1)));
}

#[test]
fn programs_refer_to_maps_and_data() {
    let object = BpfObject::parse(object!("counter")).unwrap();
    let linked = link_one(&object, "count", None).unwrap();
    let name = |map: usize| object.maps[map].name;
    let mut seen = Vec::new();
    for (at, map) in &linked.maps {
        let insn = linked.instructions[*at];
        seen.push(name(*map));
        match name(*map) {
            "counter" => assert_eq!(insn.src(), PSEUDO_MAP_FD),
            _ => {
                assert_eq!(insn.src(), PSEUDO_MAP_VALUE);
                let offset = linked.instructions[*at + 1].imm;
                let variable = object.variables.iter().find(|v| {
                    v.section == object.maps[*map].section
                        && (v.offset..v.offset + v.facts.size as usize).contains(&usize::try_from(offset).unwrap())
                });
                assert!(variable.is_some(), "{} + {offset}", name(*map));
            }
        }
    }
    for map in ["counter", ".rodata", ".data", ".bss"] {
        assert!(seen.contains(&map), "{seen:?}");
    }
    assert_eq!(linked.functions.len(), Linked::FUNCTION_RECORD);
    assert!(linked.lines.len() >= Linked::LINE_RECORD && linked.lines.len().is_multiple_of(Linked::LINE_RECORD));
}

#[test]
fn called_functions_are_placed_after_the_caller() {
    let object = BpfObject::parse(object!("subprogs")).unwrap();
    let linked = link_one(&object, "add_up", None).unwrap();
    let functions = linked.functions.chunks_exact(Linked::FUNCTION_RECORD);
    let starts: Vec<usize> = functions.map(|r| u32::from_ne_bytes(*r.first_chunk().unwrap()) as usize).collect();
    assert_eq!(starts.len(), 4, "add_up, four_times, twice, add");
    assert!(starts.is_sorted() && starts[0] == 0);
    let mut callbacks = 0;
    for (at, insn) in linked.instructions.iter().enumerate() {
        let callback = insn.is_wide() && insn.src() == PSEUDO_FUNC;
        if insn.is_call() || callback {
            let target = at as i64 + 1 + i64::from(insn.imm);
            assert!(starts.contains(&usize::try_from(target).unwrap()), "{at} -> {target}, {starts:?}");
            callbacks += u32::from(callback);
        }
    }
    assert_eq!(callbacks, 1);
    let first_lines: Vec<usize> = linked
        .lines
        .chunks_exact(Linked::LINE_RECORD)
        .map(|r| u32::from_ne_bytes(*r.first_chunk().unwrap()) as usize)
        .collect();
    assert!(first_lines.is_sorted() && starts.iter().all(|start| first_lines.contains(start)));
}

#[test]
fn externs_are_named() {
    let object = BpfObject::parse(object!("extern")).unwrap();
    assert_eq!(link_one(&object, "calls_kernel", None).unwrap_err(), LinkError::Extern("bpf_rcu_read_lock".into()));
    // A value of the configuration is at a place in a map, whatever the kernel.
    let linked = link_one(&object, "reads_config", None).unwrap();
    let [(at, map)] = linked.maps.as_slice() else { panic!("{linked:?}") };
    assert_eq!((object.maps[*map].name, linked.instructions[*at].src()), (".kconfig", PSEUDO_MAP_VALUE));
    assert_eq!(object.maps[*map].shape.value_size, 4);
}

#[test]
fn programs_refer_to_the_kernel_by_name() {
    let object = BpfObject::parse(object!("kernel_calls")).unwrap();
    let (with, without) = (types(object!("kernel_calls")), types(object!("relo_target")));
    let linked = |name: &str, kernel: &[u8]| {
        let function = object.programs().find(|f| f.name == name).unwrap();
        link(&object, function, Some(&CoreTarget::parse(kernel).unwrap()))
    };
    // The addresses of weak functions, and what is called, in the order of the program.
    let shown = |linked: &Linked| {
        let code = &linked.instructions;
        let addresses = code.iter().filter(|i| i.is_wide() && i.src() == 0).map(|i| i.imm).collect::<Vec<_>>();
        let calls = code.iter().filter(|i| i.code == insn::CALL && i.imm > 200).map(|i| (i.src(), i.imm)).collect::<Vec<_>>();
        (addresses, calls)
    };
    let id = |name: &str| {
        let btf = Btf::parse(&with).unwrap();
        let named = |ty: &crate::kernel::btf::Type<'_>| btf.string_bytes(ty.name_offset) == name.as_bytes();
        btf.types().find(|ty| ty.kind == crate::kernel::btf::BtfKind::Func && named(ty)).unwrap().id.cast_signed()
    };
    let there = linked("calls_the_kernel", &with).unwrap();
    let called = |code: &[Insn]| {
        code.iter().filter(|i| i.code == insn::CALL && i.src() == PSEUDO_KFUNC).map(|i| (i.imm, i.off)).collect::<Vec<_>>()
    };
    let expected = ["bpf_rcu_read_lock", "bpf_rcu_read_unlock", "bpf_no_such_function"].map(|name| (id(name), 0));
    assert_eq!((shown(&there).0, called(&there.instructions)), (vec![1, 1], expected.to_vec()));
    let absent = linked("calls_the_kernel", &without).unwrap();
    assert_eq!(shown(&absent), (vec![0, 0], vec![(0, POISON); 3]));
    assert_eq!(absent.missing, ["bpf_rcu_read_lock", "bpf_rcu_read_unlock", "bpf_no_such_function"]);
    assert_eq!(linked("calls_nowhere", &without).unwrap_err(), LinkError::NoKernelFunction("bpf_nowhere".into()));
    // Container scope allows the functions that lock, and no other.
    let function = object.programs().find(|f| f.name == "calls_the_kernel").unwrap();
    let refused = review::review(
        &object,
        "calls_the_kernel",
        6,
        &link(&object, function, Some(&CoreTarget::parse(&with).unwrap())).unwrap(),
    );
    assert!(refused.unwrap_err().to_string().contains("calls the kernel function bpf_no_such_function"));
    // A variable of the kernel.
    let object = BpfObject::parse(object!("ksym")).unwrap();
    let function = object.programs().next().unwrap();
    let own = types(object!("ksym"));
    let linked = link(&object, function, Some(&CoreTarget::parse(&own).unwrap())).unwrap();
    assert!(linked.references.values().any(|known| known.name == "bpf_prog_active" && !known.function), "{linked:?}");
    let refused = review::review(&object, &function.name, 6, &linked).unwrap_err();
    assert!(refused.to_string().contains("uses the kernel variable bpf_prog_active"), "{refused}");
    let absent = link(&object, function, Some(&CoreTarget::parse(&without).unwrap())).unwrap_err();
    assert_eq!(absent, LinkError::NoKernelVariable("bpf_prog_active".into()));
}

#[test]
fn declared_kernel_functions_are_no_obstacle_to_btf() {
    use crate::kernel::btf::BtfKind;
    let object = BpfObject::parse(object!("kernel_calls")).unwrap();
    let (btf, raw) = object.btf.as_ref().unwrap();
    let fixed = fixup::for_kernel(&object.elf, &object.externs, btf, raw).unwrap();
    let fixed = Btf::parse(&fixed).unwrap();
    let declared = |btf: &Btf<'_>| btf.named(BtfKind::Func, "bpf_nowhere").unwrap().vlen == 2;
    assert!(btf.data_section(".ksyms").is_some() && fixed.data_section(".ksyms").is_none());
    assert!(declared(btf) && !declared(&fixed));
    for section in fixed.types().filter(|ty| ty.kind == BtfKind::DataSec) {
        assert!(section.variables().all(|entry| fixed.ty(entry.ty).unwrap().kind == BtfKind::Var));
    }
}

#[test]
fn only_the_loader_inserts_descriptors() {
    let good = object!("relo");
    let object = BpfObject::parse(good).unwrap();
    // A plain 64-bit constant; the register fields are the second byte.
    let function = object.programs().find(|f| f.name == "value_first").unwrap();
    let code = object.elf.sections[function.section].data.as_ptr() as usize - good.as_ptr() as usize;
    let at = code + function.start * insn::SIZE;
    assert!(link(&object, function, None).is_ok());
    for source in 1..16 {
        let mut copy = good.to_vec();
        copy[at + 1] = if cfg!(target_endian = "little") { source << 4 } else { source };
        let object = BpfObject::parse(&copy).unwrap();
        let error = link_one(&object, "value_first", None).unwrap_err();
        assert_eq!(error, LinkError::Descriptor { function: "value_first".into(), at: 0 }, "{source}");
    }
    // A call of a kernel function by its id: source register 2.
    let mut copy = good.to_vec();
    copy[at..at + 2].copy_from_slice(&[insn::CALL, if cfg!(target_endian = "little") { 0x20 } else { 2 }]);
    let object = BpfObject::parse(&copy).unwrap();
    assert!(matches!(link_one(&object, "value_first", None), Err(LinkError::Descriptor { .. })));
}

fn types(object: &[u8]) -> Vec<u8> {
    Elf::parse(object).unwrap().section(".BTF").unwrap().1.data.to_vec()
}

#[test]
fn core_finds_members_at_their_offsets_in_another_kernel() {
    let types = types(object!("relo_target"));
    let target = CoreTarget::parse(&types).unwrap();
    let object = BpfObject::parse(object!("relo")).unwrap();
    let first = |name: &str| link_one(&object, name, Some(&target)).unwrap().instructions[0];
    for (name, offset) in
        [("load_number", 12), ("load_narrow", 16), ("load_nested", 72), ("load_element", 40), ("load_next", 24)]
    {
        assert_eq!(first(name).off, offset, "{name}");
    }
    const LOAD_WORD: u8 = 0x61;
    assert_eq!(first("load_narrow").code, LOAD_WORD, "the member is four bytes there, two here");
    for (name, value) in [
        ("size_narrow", 4),
        ("signed_sign", 1),
        ("offset_bits", 80),
        ("left_bits", 52),
        ("right_bits", 59),
        ("exists_gone", 0),
        ("exists_number", 1),
        ("exists_type", 1),
        ("size_type", 88),
        ("value_first", 41),
        ("value_second", 0),
        ("local_id", 2),
    ] {
        assert_eq!(first(name).imm, value, "{name}");
    }
    let gone = link_one(&object, "load_gone", Some(&target)).unwrap();
    assert_eq!(gone.instructions[0], Insn::poison(POISON));
    assert_eq!(gone.missing, ["subject.gone"]);
    let refused = link_one(&object, "load_shrunk", Some(&target)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "instruction 0 of load_shrunk cannot be adapted to subject.shrunk of this kernel",
        "a load of a signed member would have to sign-extend"
    );
    let twofold = link_one(&object, "load_twofold", Some(&target)).unwrap_err();
    assert_eq!(twofold, LinkError::Core(CoreError::Ambiguous("twofold".into())));
}

#[test]
fn core_changes_nothing_on_the_kernel_of_the_build() {
    let bytes = object!("relo");
    let object = BpfObject::parse(bytes).unwrap();
    let types = types(bytes);
    let own = CoreTarget::parse(&types).unwrap();
    // For bitfields clang emits an eight-byte load, and the rule is the smallest load that covers them.
    for function in object.programs().filter(|f| !matches!(f.name.as_str(), "offset_bits" | "left_bits")) {
        let plain = link(&object, function, None).unwrap();
        let adapted = link(&object, function, Some(&own)).unwrap();
        assert!(adapted.missing.is_empty(), "{}", function.name);
        assert_eq!(plain.instructions, adapted.instructions, "{}", function.name);
    }
}

/// Everything that processes untrusted bytes before the kernel does.
fn read_all(bytes: &[u8]) -> Result<(), KernelError> {
    let object = BpfObject::parse(bytes)?;
    let facts = object.facts();
    assert!(facts.maps.iter().all(|m| !m.data_section || m.max_entries == 1));
    if let Some((btf, raw)) = &object.btf {
        let fixed = fixup::for_kernel(&object.elf, &object.externs, btf, raw).map_err(ObjectError::from)?;
        assert_eq!(fixed.len(), raw.len());
    }
    let target = object.btf.as_ref().map(|(_, raw)| CoreTarget::parse(raw)).transpose().map_err(ObjectError::from)?;
    for function in object.programs() {
        if let Ok(linked) = link(&object, function, target.as_ref()) {
            assert!(linked.maps.iter().all(|(at, map)| *at + 1 < linked.instructions.len() && *map < object.maps.len()));
        }
    }
    Ok(())
}

#[test]
fn damaged_objects_are_errors_and_never_panics() {
    // xorshift64*, so that failures are reproducible.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        usize::try_from(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % below
    };
    let (mut accepted, mut refused) = (0, 0);
    let mut try_one = |bytes: &[u8]| match read_all(bytes) {
        Ok(()) => accepted += 1,
        Err(_) => refused += 1,
    };
    for (name, bytes) in ALL {
        read_all(bytes).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        for len in (0..bytes.len()).step_by(bytes.len() / 60) {
            try_one(&bytes[..len]);
        }
        let elf = Elf::parse(bytes).unwrap();
        let table = usize::try_from(u64::from_ne_bytes(*bytes[0x28..].first_chunk().unwrap())).unwrap();
        let sections: Vec<(usize, usize)> = elf
            .sections
            .iter()
            .filter(|s| !s.data.is_empty())
            .map(|s| (s.data.as_ptr() as usize - bytes.as_ptr() as usize, s.data.len()))
            .chain([(0, 64), (table, bytes.len() - table)])
            .collect();
        for n in 0..400 {
            let mut copy = bytes.to_vec();
            for _ in 0..=n % 4 {
                // Every section is covered, however small it is.
                let (start, len) = sections[random(sections.len())];
                let at = start + random(len);
                match random(4) {
                    0 => copy[at] ^= 1 << random(8),
                    1 => copy[at] = 0xff,
                    2 => copy[at] = 0,
                    _ => copy[at] = copy[at].wrapping_add(1),
                }
            }
            try_one(&copy);
        }
    }
    // Neither side may be empty, otherwise only the header check would be tested.
    assert!(accepted > 1000 && refused > 2000, "{accepted} accepted, {refused} refused");
}
