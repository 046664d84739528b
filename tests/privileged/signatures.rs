//! Signed programs and exclusive maps on the real kernel. If a kernel does not check signatures or has no exclusive maps, the
//! error must say so; `tests/vm` runs these tests where it does.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};

use bpfman_hook::image::program_key::{ProgramKey, blocks};
use bpfman_hook::kernel::{Feature, KernelError, Places, ProgramSignatures, Support, features, signable, with_signatures};
use bpfman_hook::model::attach_point::{AttachPoint, ProgramKind, Scope};
use bpfman_hook::model::program_signing::{KernelSigned, KernelSigning};
use bpfman_hook::sys::bpf::{self, ProgramLoad};
use bpfman_hook::sys::{Errno, keyring};

use crate::objects::bed::{Bed, LoadedObject, Wanted, object};
use crate::probes::refusal;

const SIGNER: &[u8] = include_bytes!("../data/programs/signer.pem");
const OTHER: &[u8] = include_bytes!("../data/programs/other.pem");

fn signatures(object: &[u8], key: &[u8]) -> ProgramSignatures {
    let key = ProgramKey::parse(key).unwrap();
    let programs = signable(object).unwrap();
    let signed = programs.iter().map(|program| (program.function.clone(), key.sign(&program.instructions).unwrap()));
    ProgramSignatures { signatures: signed.collect(), ..ProgramSignatures::default() }
}

fn signed(object: &[u8], key: &[u8]) -> Vec<u8> {
    with_signatures(object, &signatures(object, key)).unwrap()
}

fn require(bed: &Bed) {
    let serial = match features::probe(Feature::ProgramSignatures) {
        // Such a kernel may have no algorithm for the key either, and never looks at the keyring.
        Support::No(_) => 1,
        _ => keyring::make(c"bpfman-hook-test", &blocks(SIGNER, "CERTIFICATE")).unwrap(),
    };
    bed.set_signing(KernelSigning { rule: KernelSigned::Required, keyring: Some(serial) });
}

fn load(bed: &Bed, object: &[u8], function: &str, kind: ProgramKind) -> Result<LoadedObject, KernelError> {
    let attach = if kind == ProgramKind::Xdp { 37 } else { 0 };
    bed.load(object, Scope::Host, &[Wanted { function, kind, attach, target: None }], &[])
}

/// True if this kernel has the feature; otherwise the error must name the feature and the reason.
fn is_there<T>(feature: Feature, tried: &Result<T, KernelError>) -> bool {
    let Support::No(why) = features::probe(feature) else { return true };
    let error = tried.as_ref().err().unwrap_or_else(|| panic!("{feature} is refused by this kernel: {why}")).to_string();
    let named = format!("this kernel has no {feature}, which came with Linux {} ({why})", feature.since());
    assert!(error.ends_with(&named), "{error}");
    eprintln!("not here, as it should be: {error}");
    false
}

#[test]
fn the_kernel_checks_programs_with_maps_relocations_and_functions() {
    let bed = Bed::new();
    require(&bed);
    let core = signed(&object("core"), SIGNER);
    let loaded = load(&bed, &core, "read_task", ProgramKind::RawTracepoint);
    if !is_there(Feature::ProgramSignatures, &loaded) {
        // Where it is not required, the program is loaded as if it had no signature.
        bed.set_signing(KernelSigning { rule: KernelSigned::IfPossible, ..bed.signing() });
        load(&bed, &core, "read_task", ProgramKind::RawTracepoint).unwrap();
        return bed.end();
    }
    let loaded = loaded.unwrap();
    // The kernel has resolved the relocations as we do.
    bed.attach(&loaded, 0, AttachPoint::RawTracepoint { name: "sched_process_exec".into() }, Places::default()).unwrap();
    let pid = bed.run_named("core-probe");
    let found: Vec<u64> = (0..10).map(|n| bed.counter(&loaded, "found", n)).collect();
    assert_eq!(found, [u64::from(pid), u64::from(pid), 16, 1, 1, 1, 0, 0, 27, 0]);
    for (name, function) in [("subprogs", "add_up"), ("one_xdp", "count"), ("one_xdp_core", "measure")] {
        load(&bed, &signed(&object(name), SIGNER), function, ProgramKind::Xdp).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    bed.end();
}

#[test]
fn other_instructions_and_other_signers_are_refused() {
    let bed = Bed::new();
    require(&bed);
    let object = object("one_xdp");
    let whole = signed(&object, SIGNER);
    if !is_there(Feature::ProgramSignatures, &load(&bed, &whole, "count", ProgramKind::Xdp)) {
        return bed.end();
    }
    let refused = |object: &[u8]| refusal(load(&bed, object, "count", ProgramKind::Xdp));
    // `return XDP_PASS` as `return XDP_DROP`.
    let pass = [0xb4, 0, 0, 0, 2, 0, 0, 0];
    let at = whole.windows(8).position(|insn| insn == pass).unwrap();
    let mut tampered = whole.clone();
    tampered[at + 4] = 1;
    let said = refused(&tampered);
    assert!(said.starts_with("load program count: its instructions are not those that were signed: "), "{said}");
    let by_other = signed(&object, OTHER);
    let said = refused(&by_other);
    assert!(said.starts_with("load program count: the node's keyring has no certificate of its signer: "), "{said}");
    let mut cut = signatures(&object, SIGNER);
    cut.signatures.values_mut().for_each(|signature| signature.truncate(90));
    let said = refused(&with_signatures(&object, &cut).unwrap());
    assert!(said.starts_with("load program count: its signature is malformed: "), "{said}");
    // What is wrong is refused also where nothing is required; an unknown signer is as good as none.
    bed.set_signing(KernelSigning { rule: KernelSigned::IfPossible, ..bed.signing() });
    assert!(refused(&tampered).contains("not those that were signed"));
    load(&bed, &by_other, "count", ProgramKind::Xdp).unwrap();
    bed.end();
}

#[test]
fn a_required_signature_needs_a_signature_and_a_keyring() {
    let bed = Bed::new();
    require(&bed);
    let said = refusal(load(&bed, &object("one_xdp"), "count", ProgramKind::Xdp));
    let expected = "load program count: the image rule has kernel-signed = \"required\", and the object has no signature of it; \
                    build the image with --sign-programs";
    assert_eq!(said, expected);
    bed.set_signing(KernelSigning { rule: KernelSigned::Required, keyring: None });
    let said = refusal(load(&bed, &signed(&object("one_xdp"), SIGNER), "count", ProgramKind::Xdp));
    let expected = "load program count: the image rule has kernel-signed = \"required\", and this node has no keyring; put \
                    certificates into /etc/bpfman-hook/program-keys and run `bpfman-hook image keyring`";
    assert_eq!(said, expected);
    bed.end();
}

#[test]
fn an_exclusive_map_is_for_one_program() {
    let bed = Bed::new();
    let exclusive =
        |name: &str| ProgramSignatures { exclusive: BTreeSet::from([name.to_owned()]), ..ProgramSignatures::default() };
    // With a relocation that the kernel resolves, and without one.
    let both = [("one_xdp", "count", "counter"), ("one_xdp_core", "measure", ".bss")];
    for (name, function, map) in both {
        let object = with_signatures(&object(name), &exclusive(map)).unwrap();
        let loaded = load(&bed, &object, function, ProgramKind::Xdp);
        if !is_there(Feature::ExclusiveMaps, &loaded) {
            return bed.end();
        }
        let map = bed.open_map(&loaded.unwrap(), map);
        // r1 = map; r0 = 1; exit
        let fd = map.as_raw_fd().to_ne_bytes();
        let code =
            [[0x18, 0x11, 0, 0, fd[0], fd[1], fd[2], fd[3]], [0; 8], [0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let other = ProgramLoad {
            name: "other",
            program_type: 1,
            expected_attach_type: 0,
            attach_btf_id: 0,
            attach_to: None,
            modules: &[],
            flags: 0,
            instructions: &code,
            license: "GPL",
            debug: None,
            token: None,
        };
        assert_eq!(bpf::program_load(&other, None).err(), Some(Errno::ACCESS), "{name}");
        // User space keeps its access.
        bpf::map_lookup(map.as_fd(), &[0; 4]).unwrap();
    }
    let core = with_signatures(&object("core"), &exclusive("found")).unwrap();
    let wanted = ["read_task", "read_never"].map(|function| Wanted {
        function,
        kind: ProgramKind::RawTracepoint,
        attach: 0,
        target: None,
    });
    let said = refusal(bed.load(&core, Scope::Host, &wanted, &[]));
    let expected = "map found is for one program only (image sign --exclusive-map), and read_task and read_never use it; load \
                    one of them";
    assert_eq!(said, expected);
    bed.end();
}
