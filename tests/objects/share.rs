//! The share of the objects that bpfman-hook loads of those that bpftool loads.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bpfman_hook::kernel::{TriedProgram, try_programs};
use bpfman_hook::sys::{machine, mounts};

use super::build::{self, Built};

/// Debian's newest bpftool, unpacked beside the system; where it cannot be had, the system's own.
struct Bpftool(Vec<String>);

impl Bpftool {
    fn get() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/suite.sh");
        let output = Command::new(script).args(["--tree", "objects", "sid", "bpftool"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let tree = PathBuf::from(said.lines().last().unwrap_or_default());
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(77), "{}", String::from_utf8_lossy(&output.stderr));
            println!("Debian's newest bpftool is not used: {}", tree.display());
            return Self(vec!["bpftool".to_owned()]);
        }
        let library = format!("{}/usr/lib/{}-linux-gnu", tree.display(), std::env::consts::ARCH);
        let interpreter = fs::read_dir(&library).unwrap().map(|entry| entry.unwrap().path());
        let mut interpreter = interpreter.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("ld-linux"));
        let interpreter = interpreter.next().expect("libc6 has it").display().to_string();
        let program = tree.join("usr/sbin/bpftool").display().to_string();
        Self(vec![interpreter, "--library-path".to_owned(), library, program])
    }

    fn command(&self) -> Command {
        let mut command = Command::new("unshare");
        // With a bpffs of its own at the default place, whether the host has one there or not: objects pin maps by name.
        command.args(["-m", "sh", "-c", "mount -t bpf bpf /sys/fs/bpf && exec \"$@\"", "sh"]);
        command.args(&self.0).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Version of bpftool and of its libbpf.
    fn version(&self) -> String {
        let output = self.command().arg("version").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<&str> = said.split_ascii_whitespace().filter(|word| word.starts_with('v')).collect();
        format!("bpftool {} (libbpf {})", words[0].trim_start_matches('v'), words[1].trim_start_matches('v'))
    }

    /// Loads every program of an object; the error is what bpftool says last.
    fn loads(&self, built: &Built, place: &Path) -> Result<(), String> {
        let pins = place.join("pins");
        let output = self.command().args(["prog", "loadall"]).arg(&built.path).arg(&pins).output().expect("bpftool starts");
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.lines().rev().find(|line| !line.starts_with("Error")).unwrap_or_default().to_owned();
        if pins.exists() {
            fs::remove_dir_all(&pins).unwrap();
        }
        if output.status.success() { Ok(()) } else { Err(why) }
    }
}

struct Compared {
    name: String,
    bpftool: Result<(), String>,
    tried: Vec<TriedProgram>,
}

impl Compared {
    /// True if bpfman-hook loads every program of the object.
    fn loads(&self) -> bool {
        !self.tried.is_empty() && self.tried.iter().all(|program| program.refused.is_none())
    }

    /// The first refusal.
    fn why(&self) -> &str {
        self.tried.iter().find_map(|program| program.refused.as_deref()).unwrap_or_default()
    }
}

#[test]
fn whatever_bpftool_loads_on_this_kernel_is_loaded() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root: sudo make test-objects");
    let (bpftool, place) = (Bpftool::get(), tempfile::Builder::new().prefix("bpfman-objects-").tempdir_in("/run").unwrap());
    mounts::ensure_bpffs(place.path()).unwrap();
    let compared: Vec<Compared> = build::all()
        .iter()
        .map(|built| Compared {
            name: built.name.clone(),
            bpftool: bpftool.loads(built, place.path()),
            tried: try_programs(&fs::read(&built.path).unwrap(), &[]).unwrap(),
        })
        .collect();
    mounts::unmount(place.path()).unwrap();
    for one in compared.iter().filter(|one| one.bpftool.is_err() || !one.loads()) {
        let theirs = one.bpftool.as_ref().err().map_or("loads", String::as_str);
        println!("{}: bpftool {theirs}; bpfman-hook {}", one.name, if one.loads() { "loads" } else { one.why() });
    }
    let of_bpftool = compared.iter().filter(|one| one.bpftool.is_ok()).count();
    let missing: Vec<&str> =
        compared.iter().filter(|one| one.bpftool.is_ok() && !one.loads()).map(|one| one.name.as_str()).collect();
    let more = compared.iter().filter(|one| one.bpftool.is_err() && one.loads()).count();
    let release = machine::kernel_release();
    let kernel: Vec<&str> = release.split(['.', '-']).take(2).collect();
    let row = Row { kernel: kernel.join("."), objects: compared.len(), of_bpftool, of_these: of_bpftool - missing.len(), more };
    println!("{}\n{}", bpftool.version(), row.text());
    assert!(missing.is_empty(), "bpftool loads these, and bpfman-hook does not: {missing:?}");
    documented(&row, &bpftool.version());
}

/// A row of the table in docs/kernels.md.
struct Row {
    kernel: String,
    objects: usize,
    of_bpftool: usize,
    of_these: usize,
    more: usize,
}

impl Row {
    fn text(&self) -> String {
        let Self { kernel, objects, of_bpftool, of_these, more } = self;
        let share = of_these * 100 / of_bpftool.max(&1);
        format!("| {kernel} | {objects} | {of_bpftool} | {of_these} ({share} %) | {more} |")
    }
}

/// Writes the row of this kernel into the document, or checks that it is what was found; on a kernel that has no row,
/// nothing is checked.
fn documented(row: &Row, version: &str) {
    const MARK: &str = "<!-- written by BLESS=1 make test-objects -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kernels.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(MARK).expect("docs/kernels.md has the mark");
    let (table, after) = rest.split_once("\n\n").expect("the table ends with an empty line");
    let mut rows: Vec<String> = table.lines().skip(2).map(str::to_owned).collect();
    let same_kernel = |line: &String| line.starts_with(&format!("| {} |", row.kernel));
    if std::env::var_os("BLESS").is_some() {
        rows.retain(|line| !same_kernel(line));
        rows.push(row.text());
        rows.sort_by_key(|line| line.split([' ', '.']).filter_map(|word| word.parse().ok()).collect::<Vec<u32>>());
        let mut new = format!("{before}{MARK}| Linux | Objects | Loaded by {version} | Of these by bpfman-hook | More |\n");
        _ = writeln!(new, "| --- | --- | --- | --- | --- |\n{}\n\n{after}", rows.join("\n"));
        fs::write(&path, new.trim_end().to_owned() + "\n").unwrap();
    } else if let Some(known) = rows.iter().find(|line| same_kernel(line)) {
        assert_eq!(*known, row.text(), "docs/kernels.md says otherwise; BLESS=1 make test-objects writes it");
    }
}
