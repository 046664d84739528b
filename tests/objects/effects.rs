//! What the objects do once they are loaded.

use std::process::Command;

use bpfman_hook::kernel::KernelError;
use bpfman_hook::model::attach_point::{ProgramKind, Scope};
use bpfman_hook::sys::machine;

use super::bed::{Bed, LoadedObject, Wanted};
use super::build;

const XDP: u32 = 37;

fn xdp(function: &str) -> Wanted<'_> {
    Wanted { function, kind: ProgramKind::Xdp, attach: XDP, target: None }
}

/// Runs a pinned XDP program once, on a packet of zeros; returns its verdict.
fn run(bed: &Bed, loaded: &LoadedObject, n: usize) -> String {
    let packet = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(packet.path(), [0; 64]).unwrap();
    let pin = loaded.programs[n].pin.path(&bed.directory);
    let output = Command::new("bpftool")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["-j", "prog", "run", "pinned"])
        .arg(pin)
        .arg("data_in")
        .arg(packet.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{output:?}"));
    match answer["retval"].as_u64() {
        Some(0) => "aborted".to_owned(),
        Some(1) => "drop".to_owned(),
        Some(2) => "pass".to_owned(),
        _ => said,
    }
}

fn load(bed: &Bed, source: &str, function: &str) -> LoadedObject {
    bed.load(&build::object(source), Scope::Host, &[xdp(function)], &[]).unwrap_or_else(|error| panic!("{source}: {error:?}"))
}

#[test]
fn program_arrays_are_filled_with_programs_that_were_not_asked_for() {
    let bed = Bed::new();
    let loaded = load(&bed, "prog_array", "first");
    assert_eq!(loaded.programs.len(), 1);
    assert_eq!(run(&bed, &loaded, 0), "drop");
    assert_eq!(bed.variable(&loaded, "passed_by_last"), 1);
    bed.end();
}

#[test]
fn maps_of_maps_are_filled() {
    let bed = Bed::new();
    let loaded = load(&bed, "map_in_map", "counts");
    assert_eq!(run(&bed, &loaded, 0), "drop");
    // The same map is in both.
    assert_eq!((bed.counter(&loaded, "two", 0), bed.counter(&loaded, "one", 0)), (2, 0));
    bed.end();
}

#[test]
fn values_of_the_configuration_are_those_of_the_kernel() {
    let bed = Bed::new();
    let loaded = load(&bed, "kconfig", "reads");
    assert_eq!(run(&bed, &loaded, 0), "drop");
    let release = machine::kernel_release();
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u64>().ok());
    let (major, minor) = (numbers.next().unwrap(), numbers.next().unwrap());
    assert_eq!(bed.variable(&loaded, "version") >> 8, major << 8 | minor);
    let config = Command::new("sh").args(["-c", "zcat /proc/config.gz || cat /boot/config-$(uname -r)"]).output().unwrap();
    let config = String::from_utf8_lossy(&config.stdout).into_owned();
    let option = |name: &str| config.lines().find_map(|line| line.strip_prefix(&format!("{name}="))).map(str::to_owned);
    let expected = option("CONFIG_HZ").map_or(0, |hz| hz.parse().unwrap());
    assert_eq!(bed.variable(&loaded, "hz"), expected);
    assert_eq!(bed.variable(&loaded, "bpf"), u64::from(option("CONFIG_BPF_SYSCALL").is_some()));
    assert_eq!((bed.variable(&loaded, "cookie"), bed.variable(&loaded, "absent")), (1, 0));
    bed.end();
}

#[test]
fn absent_types_and_functions_of_every_linkage() {
    for (source, function) in [("absent_types", "asks"), ("functions", "calls")] {
        let bed = Bed::new();
        let loaded = load(&bed, source, function);
        assert_eq!(run(&bed, &loaded, 0), "drop", "{source}");
        bed.end();
    }
}

/// One program or map that is not asked for never makes the object fail.
#[test]
fn what_is_not_asked_for_does_not_matter() {
    let bed = Bed::new();
    let bytes = build::object("one_of_many");
    let loaded = bed.load(&bytes, Scope::Container, &[xdp("good")], &[]).unwrap();
    assert_eq!(run(&bed, &loaded, 0), "pass");
    assert_eq!(bed.variable(&loaded, "runs"), 1);
    // The map with an unknown attribute is no map; the kernel refuses two others.
    let there: Vec<(&str, bool)> =
        loaded.maps.iter().zip(&loaded.ids.maps).map(|(map, id)| (map.name.as_str(), id.is_some())).collect();
    for (map, made) in [("unknown_type", false), ("unsized_array", false), (".bss", true)] {
        assert!(there.contains(&(map, made)), "{there:?}");
    }
    for (function, said) in [
        ("uses_unknown_attribute", "map unknown_attribute is declared with an unknown attribute"),
        ("uses_unknown_type", "create map unknown_type"),
        ("uses_unsized_array", "create map unsized_array: it is declared without max_entries"),
        ("reads_no_option", "this kernel's configuration has no CONFIG_NO_SUCH_OPTION"),
    ] {
        let error = bed.load(&bytes, Scope::Host, &[xdp(function)], &[]).unwrap_err();
        let text = bpfman_hook::sys::error::chain(&error);
        assert!(text.contains(said), "{function}: {text}");
    }
    let classifier = Wanted { function: "calls_nowhere", kind: ProgramKind::Tc, attach: 0, target: None };
    let error = bed.load(&bytes, Scope::Host, &[classifier], &[]).unwrap_err();
    assert!(matches!(&error, KernelError::Link { .. }), "{error:?}");
    bed.end();
}

#[test]
fn static_programs_are_programs() {
    let bed = Bed::new();
    let loaded = load(&bed, "static_program", "counts");
    assert_eq!(run(&bed, &loaded, 0), "pass");
    bed.end();
}

/// User space reads `.bss` in place: the map can be mapped into memory.
#[allow(unsafe_code, reason = "a mapping into memory is what this test is about")]
#[test]
fn writable_sections_are_mapped() {
    let bed = Bed::new();
    let loaded = load(&bed, "prog_array", "first");
    let map = bed.open_map(&loaded, ".bss");
    // SAFETY: a new mapping of a page, which is read only while the descriptor is open.
    let count = unsafe {
        let page =
            rustix::mm::mmap(std::ptr::null_mut(), 4096, rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::SHARED, &map, 0)
                .unwrap();
        run(&bed, &loaded, 0);
        let count = page.cast::<u64>().read_volatile();
        rustix::mm::munmap(page, 4096).unwrap();
        count
    };
    assert_eq!(count, 1);
    drop(map);
    bed.end();
}
