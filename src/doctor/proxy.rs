//! Checks of the proxy of bpf(2): the kernel, the runtimes, the socket, the profile for the kubelet.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cli::HookStage;
use crate::cli::proxy::ProxyTarget;
use crate::lifecycle::policy_files;
use crate::output::finding::{Finding, FindingStatus};
use crate::paths::Paths;
use crate::setup::compare::exact_file;
use crate::setup::hook_files;
use crate::setup::kubelet_profile;
use crate::setup::place::InstallRoot;
use crate::setup::units::proxy as units;

/// The oldest kernel on which a proxy can hand a descriptor over together with its answer
/// (SECCOMP_ADDFD_FLAG_SEND).
const KERNEL: (u32, u32) = (5, 14);

/// The oldest versions of runc, of crun, and of libseccomp, with which a filter can notify.
const RUNC: (u32, u32) = (1, 1);
/// See [`RUNC`].
const CRUN: (u32, u32) = (0, 19);
/// See [`RUNC`].
const LIBSECCOMP: (u32, u32) = (2, 5);

/// The runtimes, and where they are.
const RUNTIMES: [(&str, (u32, u32)); 2] = [("runc", RUNC), ("crun", CRUN)];
/// See [`RUNTIMES`].
const DIRECTORIES: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

const INSTALL: &str = "run `bpfman-hook install --proxy`";

/// The checks, if the proxy is installed or the policy allows it; `root` is the root directory whose engines count.
pub(super) fn examine(paths: &Paths, root: &Path) -> Vec<Finding> {
    let place = InstallRoot::at(root);
    let installed = units::is_installed(&place);
    let allowed = policy_files::load_without_signers(paths)
        .is_ok_and(|loaded| loaded.policy.containers.iter().any(|rule| !rule.proxy.is_empty()));
    if !installed && !allowed {
        return Vec::new();
    }
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut found = vec![kernel(&read("/proc/sys/kernel/seccomp/actions_avail"), &read("/proc/sys/kernel/osrelease"))];
    if root == Path::new("/") {
        found.extend(runtimes());
    }
    let podman = place.staged(&hook_files::path(HookStage::Precreate)).exists();
    found.extend(socket(paths, &place, installed, podman));
    if installed {
        found.extend(kubelet_profile::check(&ProxyTarget::default(), &place));
    }
    found
}

fn kernel(actions: &str, release: &str) -> Finding {
    let check = "proxy: kernel";
    let notifies = actions.split_whitespace().any(|action| action == "user_notif");
    let release = release.trim();
    match version(release) {
        Some(found) if notifies && found >= KERNEL => Finding::ok(check, "seccomp filters can notify"),
        _ => {
            let detail = format!("Linux {release}: containers with delegate-via=proxy do not start");
            let remedy = "Linux 5.14 or later with CONFIG_SECCOMP_FILTER";
            Finding::bad(check, FindingStatus::Fail, detail, remedy)
        }
    }
}

fn runtimes() -> Vec<Finding> {
    let paths = |name| DIRECTORIES.iter().map(move |directory| Path::new(directory).join(name)).find(|path| path.is_file());
    let present = RUNTIMES.into_iter().filter_map(|(name, oldest)| Some((name, oldest, paths(name)?)));
    present.map(|(name, oldest, path)| runtime(name, oldest, &path, says(&path).as_deref())).collect()
}

/// What `PATH --version` prints.
fn says(path: &Path) -> Option<String> {
    let output = Command::new(path).arg("--version").env_clear().stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn runtime(name: &str, oldest: (u32, u32), path: &Path, said: Option<&str>) -> Finding {
    let check = format!("proxy: {name}");
    let place = path.display();
    let field = |key: &str| said?.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let Some(own) = field(&format!("{name} version ")) else {
        let detail = format!("{place} does not print its version");
        return Finding::bad(check, FindingStatus::Unknown, detail, format!("run `{name} --version`"));
    };
    let too_old = |what: &str, (major, minor): (u32, u32)| {
        let detail = format!("{place}: {what} cannot notify: containers with delegate-via=proxy do not start with it");
        Finding::bad(&check, FindingStatus::Warn, detail, format!("use version {major}.{minor} or later"))
    };
    if version(own).is_none_or(|found| found < oldest) {
        return too_old(&format!("{name} {own}"), oldest);
    }
    // runc names its libseccomp; crun says whether it has one.
    match field("libseccomp: ") {
        Some(library) if version(library).is_none_or(|found| found < LIBSECCOMP) => {
            return too_old(&format!("libseccomp {library}"), LIBSECCOMP);
        }
        None if name == "crun" && !said.unwrap_or_default().contains("+SECCOMP") => {
            let detail = format!("{place} was built without seccomp: its containers have no filter that could notify");
            return Finding::bad(check, FindingStatus::Warn, detail, "use a crun with +SECCOMP in its version");
        }
        _ => {}
    }
    Finding::ok(check, format!("{place} {own}"))
}

/// Major and minor version at the beginning of a text.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The units, and the socket that systemd listens at.
fn socket(paths: &Paths, place: &InstallRoot, installed: bool, podman: bool) -> Vec<Finding> {
    let check = "proxy: socket";
    let path = paths.proxy_socket();
    // A package may have put the units elsewhere.
    if !installed && !path.exists() {
        let detail = "the policy allows the proxy, and it is not installed: containers with delegate-via=proxy do not start";
        return vec![match podman {
            true => Finding::ok(check, "none: podman's precreate starts a process for each container"),
            false => Finding::bad(check, FindingStatus::Warn, detail, INSTALL),
        }];
    }
    let mut found = Vec::new();
    if installed {
        let pieces = units::pieces(place);
        found.extend(pieces.map(|(path, text)| exact_file("proxy: unit", &place.staged(&path), &text, INSTALL)));
        found.push(program(&place.staged(&place.binary()), &fs::read("/proc/self/exe").unwrap_or_default()));
    }
    found.push(listening(&path, &fs::read_to_string("/proc/net/unix").unwrap_or_default()));
    found
}

/// Whether the unit's program is this build.
fn program(path: &Path, own: &[u8]) -> Finding {
    let check = "proxy: program";
    match fs::read(path) {
        Ok(there) if there == own => Finding::ok(check, path.display().to_string()),
        Ok(_) => {
            let detail = format!("{}, which the unit runs, is a different build from this one", path.display());
            Finding::bad(check, FindingStatus::Warn, detail, INSTALL)
        }
        Err(error) => {
            let detail = format!("{}, which the unit runs: {error}", path.display());
            Finding::bad(check, FindingStatus::Fail, detail, INSTALL)
        }
    }
}

/// Whether something listens at the socket, without a connection: each would start a process.
fn listening(path: &Path, sockets: &str) -> Finding {
    let check = "proxy: socket";
    let start = "run `systemctl enable --now bpfman-hook-proxy.socket`";
    let lost = "containers with delegate-via=proxy do not start, and no exec in those that run";
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Finding::bad(check, FindingStatus::Fail, format!("{} does not exist: {lost}", path.display()), start);
    };
    if !meta.file_type().is_socket() || meta.uid() != 0 || meta.mode() & 0o077 != 0 {
        let detail = format!("{} is not a socket that only root can use: {lost}", path.display());
        return Finding::bad(check, FindingStatus::Fail, detail, start);
    }
    if !listens(path, sockets) {
        return Finding::bad(check, FindingStatus::Fail, format!("nothing listens at {}: {lost}", path.display()), start);
    }
    Finding::ok(check, format!("systemd listens at {}", path.display()))
}

/// Whether /proc/net/unix has a listening socket (`__SO_ACCEPTCON`) with this path.
fn listens(path: &Path, sockets: &str) -> bool {
    sockets.lines().any(|line| {
        let mut words = line.split_whitespace();
        let flags = words.nth(3).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or_default();
        flags & 0x10000 != 0 && words.nth(3).map(Path::new) == Some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(finding: &Finding) -> FindingStatus {
        finding.status
    }

    #[test]
    fn the_kernel_must_know_notifications() {
        let actions = "kill_process kill_thread trap errno user_notif trace log allow\n";
        for (actions, release, expected) in [
            (actions, "6.18.5\n", FindingStatus::Ok),
            (actions, "5.14.0-427.el9.x86_64", FindingStatus::Ok),
            (actions, "5.10.0-30-amd64", FindingStatus::Fail),
            ("kill_process trap errno trace log allow", "6.1.0", FindingStatus::Fail),
            ("", "6.1.0", FindingStatus::Fail),
        ] {
            assert_eq!(status(&kernel(actions, release)), expected, "{actions} {release}");
        }
    }

    #[test]
    fn a_runtime_is_judged_by_what_it_says() {
        let debian = "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\ngo: go1.19.8\nlibseccomp: 2.5.4\n";
        let crun = "crun version 1.8.1\ncommit: f8a0\nspec: 1.0.0\n+SYSTEMD +SELINUX +CAP +SECCOMP +EBPF +YAJL\n";
        for (name, oldest, said, expected) in [
            ("runc", RUNC, Some(debian.to_owned()), FindingStatus::Ok),
            ("runc", RUNC, Some(debian.replace("version 1.1.5", "version 1.0.3")), FindingStatus::Warn),
            ("runc", RUNC, Some(debian.replace("2.5.4", "2.4.4")), FindingStatus::Warn),
            ("runc", RUNC, Some(debian.replace("version 1.1.5", "version 1.3.6")), FindingStatus::Ok),
            ("crun", CRUN, Some(crun.to_owned()), FindingStatus::Ok),
            ("crun", CRUN, Some(crun.replace("+SECCOMP ", "")), FindingStatus::Warn),
            ("crun", CRUN, Some(crun.replace("1.8.1", "0.18")), FindingStatus::Warn),
            ("crun", CRUN, Some("youki".to_owned()), FindingStatus::Unknown),
            ("runc", RUNC, None, FindingStatus::Unknown),
        ] {
            let found = runtime(name, oldest, Path::new("/usr/bin/x"), said.as_deref());
            assert_eq!(status(&found), expected, "{said:?}");
        }
    }

    #[test]
    fn the_units_program_must_be_this_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bpfman-hook");
        assert_eq!(status(&program(&path, b"own")), FindingStatus::Fail);
        fs::write(&path, "own").unwrap();
        assert_eq!(status(&program(&path, b"own")), FindingStatus::Ok);
        assert_eq!(status(&program(&path, b"new")), FindingStatus::Warn);
    }

    #[test]
    fn a_socket_must_be_listened_at() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy.sock");
        assert_eq!(status(&listening(&path, "")), FindingStatus::Fail);
        fs::write(&path, "").unwrap();
        assert_eq!(status(&listening(&path, "")), FindingStatus::Fail);
        let line = |flags: &str| format!("0000000000000000: 00000002 00000000 {flags} 0001 01 20893 {}\n", path.display());
        for (sockets, expected) in [
            (line("00010000"), true),
            (line("00000000"), false),
            (line("00010000").replace("proxy", "other"), false),
            ("Num       RefCount Protocol Flags    Type St Inode Path\n".to_owned(), false),
        ] {
            assert_eq!(listens(&path, &sockets), expected, "{sockets}");
        }
    }
}
