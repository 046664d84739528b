//! Compiles the sources, as their authors would: with Debian's clang and libbpf's headers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// An object, and what it was made from.
#[derive(Debug, Clone)]
pub struct Built {
    /// The section, or the name of the source.
    pub name: String,
    pub path: PathBuf,
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects")
}

/// The object of a source.
pub fn object(name: &str) -> Vec<u8> {
    let found = all().iter().find(|built| built.name == name).unwrap_or_else(|| panic!("no source {name}"));
    fs::read(&found.path).unwrap()
}

/// Every object; they are compiled once.
pub fn all() -> &'static [Built] {
    static ALL: OnceLock<Vec<Built>> = OnceLock::new();
    ALL.get_or_init(compile)
}

fn compile() -> Vec<Built> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("objects");
    fs::create_dir_all(&out).unwrap();
    let mut jobs = Vec::new();
    let list = fs::read_to_string(sources().join("sections.tsv")).unwrap();
    for (n, line) in list.lines().filter(|line| !line.starts_with('#')).enumerate() {
        let (section, returns) = line.split_once('\t').unwrap_or_else(|| panic!("{line:?}"));
        let defines = vec![format!("-DSECTION=\"{section}\""), format!("-DRETURNS={returns}")];
        jobs.push((section.to_owned(), sources().join("sources/section.c"), out.join(format!("section_{n}.o")), defines));
    }
    for entry in fs::read_dir(sources().join("sources")).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".bpf.c")) else { continue };
        jobs.push((name.to_owned(), path.clone(), out.join(format!("{name}.o")), Vec::new()));
    }
    assert!(jobs.len() > 100, "{}", jobs.len());
    jobs.sort();
    let half = jobs.len() / 2;
    let run = |jobs: &[(String, PathBuf, PathBuf, Vec<String>)]| {
        jobs.iter().for_each(|(name, source, object, defines)| clang(name, source, object, defines));
    };
    std::thread::scope(|scope| {
        scope.spawn(|| run(&jobs[..half]));
        run(&jobs[half..]);
    });
    jobs.into_iter().map(|(name, _, path, _)| Built { name, path }).collect()
}

fn clang(name: &str, source: &Path, object: &Path, defines: &[String]) {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86" };
    let output = Command::new("clang-14")
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror"])
        .arg(format!("-D__TARGET_ARCH_{architecture}"))
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .args(defines)
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(object)
        .output()
        .expect("clang-14 starts; tests/setup.sh installs it");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}
