//! The gate's rule that programs have to be signed, on the real kernel. Where the kernel cannot enforce it, the refusal must
//! say what is missing. `tests/vm/guest-gate.sh` has the rest of the gate.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use bpfman_hook::image::program_key::{ProgramKey, blocks};
use bpfman_hook::kernel::gate::{self, GateError};
use bpfman_hook::kernel::police::PoliceProgram;
use bpfman_hook::kernel::{Feature, KernelError, Support, features, gate_exemption};
use bpfman_hook::model::gate::{ExecutableDigest, GateOutcome, GateRules, GatedContainer};
use bpfman_hook::model::police::{Police, PoliceMode};
use bpfman_hook::model::proxy::CallCeiling;
use bpfman_hook::sys::bpf::{self, BtfRecords, IndexedLoad, ObjectKind, ProgramLoad, ProgramSignature};
use bpfman_hook::sys::{Errno, keyring};
use sha2::{Digest as _, Sha256};

use crate::objects::bed::{Bed, Cgroup, wait_until};

const SIGNER: &[u8] = include_bytes!("../data/programs/signer.pem");
const OTHER: &[u8] = include_bytes!("../data/programs/other.pem");
/// `r0 = 1; exit`
const CODE: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

fn own() -> ExecutableDigest {
    ExecutableDigest::sha256(Sha256::digest(fs::read("/proc/self/exe").unwrap()).into())
}

/// Loads a socket filter, with a signature by a key of a keyring.
fn load(program_type: u32, signature: Option<(&[u8], i32)>) -> Result<(), Errno> {
    let program = ProgramLoad {
        name: "gate_test",
        program_type,
        expected_attach_type: 0,
        attach_btf_id: 0,
        attach_to: None,
        modules: &[],
        flags: 0,
        instructions: &CODE,
        license: "GPL",
        debug: None,
        token: None,
    };
    let signed = signature.map(|(key, serial)| (ProgramKey::parse(key).unwrap().sign(&CODE.concat()).unwrap(), serial));
    let signature = signed.as_ref().map(|(bytes, keyring)| ProgramSignature { bytes, keyring: *keyring });
    let indexed = IndexedLoad { maps: &[], core: BtfRecords { bytes: &[], size: 0 }, signature };
    bpf::program_load_indexed(&program, &indexed, None).map(drop)
}

fn counted(directory: &Path, outcome: GateOutcome) -> u64 {
    let state = gate::state(directory).unwrap().expect("the gate is in force");
    state.counts.iter().find(|(other, _)| *other == outcome).unwrap().1
}

/// Puts the gate in force. False if this kernel cannot, after checking what the error says.
fn put_in_force(directory: &Path, rules: &GateRules) -> bool {
    match gate::load(directory, rules, &[own()]) {
        Ok(()) => true,
        Err(GateError::Kernel(KernelError::Feature { feature, why, .. })) => {
            assert!(matches!(feature, Feature::Lsm | Feature::ProgramSignatures), "{feature}");
            assert_eq!(features::probe(feature), Support::No(why.clone()));
            eprintln!("no gate here, as it should be: {feature}: {why}");
            false
        }
        Err(GateError::NoExecutable(function)) => {
            eprintln!("no gate here, as it should be: no {function}");
            false
        }
        Err(error) => panic!("{}", bpfman_hook::sys::error::chain(&error)),
    }
}

#[test]
fn a_container_has_a_list_of_its_own() {
    let bed = Bed::new();
    let directory = bed.bpffs.path().join("gate");
    let (cgroup, pin) = (Cgroup::new(), bed.bpffs.path().join("made"));
    let loads = |cgroup: &Cgroup| {
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bpf/one_xdp.bpf.o");
        let loaded = cgroup.run(&format!("bpftool prog load {object} {} >/dev/null", pin.display())).success();
        assert_eq!(fs::remove_file(&pin).is_ok(), loaded);
        loaded
    };
    let mut container = GatedContainer { cgroup: cgroup.id(), executables: BTreeSet::new() };
    assert!(matches!(gate::bind(&directory, &container), Err(KernelError::NoGate)));
    let rules = GateRules { enforce: true, seconds: None, executables: None, containers: true, keyring: None };
    if !put_in_force(&directory, &rules) {
        assert!(!gate::is_in_force(&directory) && !gate::is_pinned(&directory));
        drop(cgroup);
        return bed.end();
    }
    assert!(loads(&cgroup), "without a list of its own it is not judged");
    gate::bind(&directory, &container).unwrap();
    assert!(!loads(&cgroup));
    assert_eq!(load(1, None), Ok(()), "other processes are not judged");
    let state = gate::state(&directory).unwrap().unwrap();
    let found = state.unlisted.iter().find(|found| found.list == cgroup.id()).expect("its executable is reported");
    assert_eq!((state.cgroups, state.host), (1, false));
    container.executables.extend(found.executable);
    gate::bind(&directory, &container).unwrap();
    // A thread's verdict would be kept; each of these is a new process.
    assert!(loads(&cgroup));
    // The list stays when the rules change.
    gate::load(&directory, &GateRules { executables: Some(BTreeSet::new()), ..rules }, &[own()]).unwrap();
    assert!(loads(&cgroup));
    assert!(gate::unbind(&directory, &container).unwrap() && !gate::unbind(&directory, &container).unwrap());
    assert!(!loads(&cgroup), "now the host's list counts");
    drop(cgroup);
    assert!(gate::unload(&directory).unwrap());
    assert!(wait_until(|| bpf::ids(ObjectKind::Link).unwrap().is_empty()), "a link of the gate stays");
    bed.end();
}

#[test]
fn only_programs_of_the_nodes_keyring_are_accepted() {
    let bed = Bed::new();
    let directory = bed.bpffs.path().join("gate");
    gate_exemption::install(directory.clone());
    let serials = || {
        [(c"bpfman-hook-gate", SIGNER), (c"bpfman-hook-mine", OTHER)]
            .map(|(name, key)| keyring::make(name, &blocks(key, "CERTIFICATE")).unwrap())
    };
    // A kernel that does not check signatures may have no algorithm for the keys either.
    let is_checked = !matches!(features::probe(Feature::ProgramSignatures), Support::No(_));
    let [node, mine] = if is_checked { serials() } else { [1, 2] };
    let rules = GateRules { enforce: true, seconds: None, executables: None, containers: false, keyring: Some(node) };
    if !put_in_force(&directory, &rules) {
        assert!(!gate::is_in_force(&directory) && !gate::is_pinned(&directory));
        return bed.end();
    }
    const SOCKET_FILTER: u32 = 1;
    const CGROUP_DEVICE: u32 = 15;
    assert_eq!(load(SOCKET_FILTER, None), Err(Errno::PERM));
    assert_eq!(load(SOCKET_FILTER, Some((SIGNER, node))), Ok(()));
    // The kernel has verified this signature too, by a keyring that any process can make.
    assert_eq!(load(SOCKET_FILTER, Some((OTHER, mine))), Err(Errno::PERM));
    assert_eq!(load(SOCKET_FILTER, Some((OTHER, node))), Err(Errno::NOKEY));
    assert_eq!(load(CGROUP_DEVICE, None), Ok(()));
    // One for the proof, and two of these.
    assert_eq!(counted(&directory, GateOutcome::UnsignedRefused), 3);

    // What bpfman-hook brings along is exempt, and nothing else of this process, before and afterwards.
    let police = Police { mode: PoliceMode::Warn, calls: CallCeiling::default() };
    drop(PoliceProgram::load(&police).unwrap());
    assert_eq!(load(SOCKET_FILTER, None), Err(Errno::PERM));

    gate::load(&directory, &GateRules { enforce: false, ..rules.clone() }, &[own()]).unwrap();
    assert_eq!(load(SOCKET_FILTER, None), Ok(()));
    assert!(counted(&directory, GateOutcome::UnsignedCounted) >= 1);
    // Without the rule, and only this executable on the list: another gate replaces it.
    let listed =
        GateRules { enforce: true, seconds: None, executables: Some(BTreeSet::new()), containers: false, keyring: None };
    gate::load(&directory, &listed, &[own()]).unwrap();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "the other gate is gone");
    assert_eq!(load(SOCKET_FILTER, None), Ok(()));
    assert!(counted(&directory, GateOutcome::Allowed) >= 1);

    assert!(gate::unload(&directory).unwrap());
    assert!(wait_until(|| bpf::ids(ObjectKind::Link).unwrap().is_empty()), "a link of the gate stays");
    bed.end();
}
