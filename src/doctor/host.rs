//! Checks of the host: kernel features, security modules, sysctls, mounts.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::kernel::gate::GateState;
use crate::kernel::guard::GuardState;
use crate::kernel::{Feature, Kernel, KernelError, Support};
use crate::model::delegation::Category;
use crate::model::reach::TokenReach;
use crate::output::error::AS_ROOT;
use crate::output::finding::{Finding, FindingStatus};
use crate::sys::error::chain;
use crate::sys::mounts::MountPoint;

/// What this kernel lets programs reach that are loaded with a token, by type.
pub fn token_reach(reach: &TokenReach) -> Finding {
    let check = "kernel: reach of tokens";
    if reach.guarded {
        let detail =
            "the guard refuses programs that reach beyond the container; host scope: syscall, and what needs CAP_PERFMON";
        return Finding::ok(check, detail);
    }
    if let Some(why) = reach.undecided.first() {
        let detail = format!("every delegation that loads programs is host scope: {why}");
        return Finding::bad(
            check,
            FindingStatus::Unknown,
            detail,
            "run this as root, outside containers; it is retried each time",
        );
    }
    if let Some(way) = reach.memory.first() {
        let detail = format!(
            "every program type reads kernel memory ({way}), so that every delegation that loads programs is host scope; see \
             `bpfman-hook token explain --scope`"
        );
        return Finding::ok(check, detail);
    }
    let types = reach.types.keys().map(|at| (*at, reach.type_beyond(*at)));
    let name = |at: u32| Category::Progs.name(at).unwrap_or("?").to_owned();
    let (mut inside, mut beyond) = (Vec::new(), Vec::new());
    for (at, reached) in types {
        match reached {
            None => inside.push(name(at)),
            Some(reached) => beyond.push(format!("{} ({})", name(at), reached.by)),
        }
    }
    Finding::ok(check, format!("container scope: {}; host scope: {}", inside.join(" "), beyond.join(", ")))
}

/// The guard of tokens: in force, of this version, and there after the next boot. `installed` says whether its unit
/// exists, `pinned` whether a guard of any version has pins.
pub fn guard(state: &Result<Option<GuardState>, KernelError>, installed: bool, pinned: bool) -> Finding {
    let check = "guard of tokens";
    match state {
        Err(error) => Finding::bad(check, FindingStatus::Unknown, chain(error), AS_ROOT),
        Ok(Some(state)) => {
            let refused: u64 = state.refused.iter().map(|(_, count)| count).sum();
            let detail = format!("in force; {refused} refusals since it was loaded (`bpfman-hook guard status`)");
            if installed {
                return Finding::ok(check, detail);
            }
            let detail = format!("{detail}; no unit puts it in force at the next boot");
            Finding::bad(
                check,
                FindingStatus::Warn,
                detail,
                "run `bpfman-hook install --guard`, or `bpfman-hook guard load` at boot",
            )
        }
        Ok(None) if pinned => {
            let detail =
                "the guard in force is not this version's, so that delegations that load programs are judged without it";
            Finding::bad(check, FindingStatus::Fail, detail, "run `bpfman-hook guard load`")
        }
        Ok(None) if installed => {
            let detail = "not in force, although its unit is installed: delegations that load programs are judged without it";
            Finding::bad(check, FindingStatus::Fail, detail, "run `bpfman-hook guard load`; it says what is missing")
        }
        Ok(None) => Finding::absent(check, "not installed"),
    }
}

/// The gate of executables: in force, of this version, and there after the next boot. `installed` says whether its unit
/// exists, `pinned` whether a gate of any version has pins.
pub fn gate(state: &Result<Option<GateState>, KernelError>, installed: bool, pinned: bool) -> Finding {
    let check = "gate of executables";
    match state {
        Err(error) => Finding::bad(
            check,
            FindingStatus::Unknown,
            chain(error),
            "run as root, with the installed program: the gate shows itself to listed executables only",
        ),
        Ok(Some(state)) => {
            let unlisted: u64 = state.unlisted.iter().map(|executable| executable.calls).sum();
            let doing = match (state.enforce, state.expires) {
                (true, None) => "in force",
                (true, Some(_)) => "in force for a trial, after which it only counts",
                (false, _) => "in force, and only counts",
            };
            let detail = format!("{doing}; {unlisted} calls of executables that are not listed (`bpfman-hook gate status`)");
            if installed {
                return Finding::ok(check, detail);
            }
            let detail = format!("{detail}; no unit puts it in force at the next boot");
            Finding::bad(
                check,
                FindingStatus::Warn,
                detail,
                "run `bpfman-hook install --gate`, or `bpfman-hook gate load` at boot",
            )
        }
        Ok(None) if pinned || installed => {
            let detail = if pinned {
                "the gate in force is not this version's, or has lost a pin"
            } else {
                "not in force, although its unit is installed: any executable may load programs"
            };
            Finding::bad(check, FindingStatus::Fail, detail, "run `bpfman-hook gate load`; it says what is missing")
        }
        Ok(None) => Finding::ok(check, "not installed"),
    }
}

/// Checks a kernel feature.
pub fn feature(kernel: &impl Kernel, feature: Feature) -> Finding {
    let check = format!("kernel: {feature}");
    let loss = match feature {
        Feature::Token => "delegation is refused",
        Feature::Tcx => "tcx programs are refused",
        Feature::CgroupLink => "programs on cgroups are refused",
        Feature::PerfLink => "tracepoints and probes are refused",
        Feature::Btf => "objects with CO-RE relocations are refused",
        Feature::Tracing => "fentry and fexit programs are refused",
        Feature::Lsm => "LSM programs, the guard of tokens and policing are refused",
        Feature::Kprobe => "kprobes are refused",
        Feature::Uprobe => "uprobes are refused",
        Feature::ProgramSignatures => "image rules with kernel-signed = \"required\" refuse their images",
        Feature::ExclusiveMaps => "objects with exclusive maps are refused",
    };
    // Features that only host scope uses are often deliberately disabled in a kernel; the last two only the policy or an image
    // asks for.
    let host_scope = matches!(
        feature,
        Feature::Tracing
            | Feature::Lsm
            | Feature::Kprobe
            | Feature::Uprobe
            | Feature::ProgramSignatures
            | Feature::ExclusiveMaps
    );
    match kernel.probe(feature) {
        Support::Yes => Finding::ok(check, "there"),
        Support::No(why) if host_scope => Finding::absent(check, format!("{loss}: {why}")),
        Support::No(why) => {
            let remedy = match feature {
                Feature::Btf => "use a kernel with CONFIG_DEBUG_INFO_BTF".to_owned(),
                _ => format!("use Linux {} or newer", feature.since()),
            };
            Finding::bad(check, FindingStatus::Warn, format!("{loss}: {why}"), remedy)
        }
        Support::Unknown(why) => Finding::bad(
            check,
            FindingStatus::Unknown,
            why,
            "run this as root in the host's namespaces, where the probe is allowed",
        ),
    }
}

/// `/sys/kernel/security/lsm`: the security modules that can refuse bpf(2), and whether programs can.
pub fn security_modules(text: io::Result<String>) -> Finding {
    match text {
        Ok(list) if list.trim().split(',').any(|module| module == "bpf") => {
            Finding::ok("security modules", format!("{}; with bpf among them, LSM programs are called", list.trim()))
        }
        Ok(list) => Finding::ok(
            "security modules",
            format!(
                "{}; without bpf no LSM program is called, so the guard of tokens and policing are refused: boot with lsm={0},bpf",
                list.trim()
            ),
        ),
        Err(err) => unreadable("security modules", "/sys/kernel/security/lsm", &err),
    }
}

/// Whether the containers that rules police can be policed: such a container does not start otherwise. `rules` is the
/// number of these rules.
pub fn policing(lsm: &Support, rules: usize) -> Finding {
    let check = "policing";
    match (lsm, rules) {
        (Support::Yes, 0) => Finding::ok(check, "possible; no rule has `police`"),
        (Support::Yes, _) => Finding::ok(check, format!("the containers of {rules} rules are policed")),
        (Support::No(why), 0) => Finding::ok(check, format!("not possible: {why}; no rule has `police`")),
        (Support::Unknown(why), 0) => {
            Finding::bad(check, FindingStatus::Unknown, why.clone(), "run as root, with securityfs at /sys/kernel/security")
        }
        (Support::No(why) | Support::Unknown(why), _) => Finding::bad(
            check,
            FindingStatus::Fail,
            format!("the containers of {rules} rules do not start, because the kernel calls no LSM programs: {why}"),
            "see docs/policing.md, or remove `police` from these rules",
        ),
    }
}

/// `/sys/kernel/security/lockdown`; kernel_lockdown(7).
pub fn lockdown(text: io::Result<String>) -> Finding {
    let text = match text {
        Ok(text) => text,
        Err(err) => return unreadable("lockdown", "/sys/kernel/security/lockdown", &err),
    };
    match text.split_once('[').and_then(|(_, rest)| rest.split_once(']')) {
        Some(("confidentiality", _)) => Finding::bad(
            "lockdown",
            FindingStatus::Warn,
            "confidentiality: the helpers that read kernel memory are refused, so many tracing programs fail",
            "boot with lockdown=integrity if host-scope tracing is needed",
        ),
        Some((mode, _)) => Finding::ok("lockdown", mode),
        None => Finding::bad(
            "lockdown",
            FindingStatus::Unknown,
            format!("{:?} has no mode in brackets", text.trim()),
            "report this",
        ),
    }
}

/// `/proc/sys/kernel/unprivileged_bpf_disabled`; Documentation/admin-guide/sysctl/kernel.rst.
pub fn unprivileged_bpf(text: io::Result<String>) -> Finding {
    let check = "unprivileged bpf";
    match text.as_deref().map(str::trim) {
        Ok("0") => Finding::bad(
            check,
            FindingStatus::Warn,
            "any user and any container may load programs without a token or a policy",
            "sysctl kernel.unprivileged_bpf_disabled=2",
        ),
        Ok("1") => Finding::ok(check, "off until reboot"),
        Ok("2") => Finding::ok(check, "off"),
        Ok(other) => {
            Finding::bad(check, FindingStatus::Unknown, format!("kernel.unprivileged_bpf_disabled is {other:?}"), "report this")
        }
        Err(err) => Finding::bad(check, FindingStatus::Unknown, err.to_string(), "check that this kernel is built with bpf(2)"),
    }
}

/// `/proc/sys/user/max_user_namespaces`: tokens need a user namespace.
pub fn user_namespaces(text: io::Result<String>) -> Finding {
    let check = "user namespaces";
    match text.as_deref().map(str::trim) {
        Ok("0") => Finding::bad(
            check,
            FindingStatus::Warn,
            "disabled, and without one a container gets no token",
            "sysctl user.max_user_namespaces=10000",
        ),
        Ok(number) => Finding::ok(check, format!("{number} at most")),
        Err(err) => {
            Finding::bad(check, FindingStatus::Unknown, err.to_string(), "check that the kernel is built with CONFIG_USER_NS")
        }
    }
}

fn unreadable(check: &str, path: &str, err: &io::Error) -> Finding {
    let remedy = match err.kind() {
        io::ErrorKind::NotFound => "mount -t securityfs securityfs /sys/kernel/security, then run doctor again",
        _ => AS_ROOT,
    };
    Finding::bad(check, FindingStatus::Unknown, format!("{path}: {err}"), remedy)
}

/// Checks our own bpffs.
pub fn bpffs(path: &Path, mounts: &[MountPoint]) -> Finding {
    let check = "bpffs";
    let shown = path.display();
    // The last mount on a mount point is the visible one.
    match mounts.iter().rfind(|mount| mount.point == path) {
        None => Finding::bad(
            check,
            FindingStatus::Warn,
            format!(
                "nothing is mounted at {shown}: podman's containers with a user namespace are refused; other starts mount it"
            ),
            "run `bpfman-hook install`, which mounts it now and at every boot",
        ),
        Some(mount) if mount.kind != "bpf" => Finding::bad(
            check,
            FindingStatus::Fail,
            format!("{} is mounted at {shown}", mount.kind),
            format!("umount {shown} && bpfman-hook install"),
        ),
        Some(_) => match fs::symlink_metadata(path) {
            Ok(meta) if meta.uid() != 0 || meta.mode() & 0o077 != 0 => Finding::bad(
                check,
                FindingStatus::Fail,
                format!(
                    "{shown} belongs to uid {} and has mode {:04o}: others could reach our pins",
                    meta.uid(),
                    meta.mode() & 0o7777
                ),
                format!("umount {shown} && bpfman-hook install"),
            ),
            Ok(_) => Finding::ok(check, format!("mounted at {shown}")),
            Err(err) => Finding::bad(check, FindingStatus::Unknown, format!("{shown}: {err}"), AS_ROOT),
        },
    }
}

/// Checks where cgroup2 is mounted: programs on a container's cgroup need a separate cgroup in that hierarchy.
pub fn cgroup2(mounts: &[MountPoint]) -> Finding {
    let check = "cgroup2";
    let unified = mounts.iter().rfind(|mount| mount.point == Path::new("/sys/fs/cgroup"));
    if unified.is_some_and(|mount| mount.kind == "cgroup2") {
        return Finding::ok(check, "the only hierarchy, at /sys/fs/cgroup");
    }
    match mounts.iter().find(|mount| mount.kind == "cgroup2") {
        Some(mount) => Finding::bad(
            check,
            FindingStatus::Warn,
            format!(
                "beside cgroup v1, at {}: runc creates a cgroup there for each container; crun does not, so its containers' cgroup programs are refused",
                mount.point.display()
            ),
            "boot with systemd.unified_cgroup_hierarchy=1, or use runc for such containers",
        ),
        None => Finding::bad(
            check,
            FindingStatus::Warn,
            "not mounted: programs on cgroups are refused",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mounts::parse_mountinfo;

    fn text(text: &str) -> io::Result<String> {
        Ok(text.to_owned())
    }

    fn missing() -> io::Result<String> {
        Err(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn settings_are_checked() {
        for (finding, status) in [
            (lockdown(text("none [integrity] confidentiality\n")), FindingStatus::Ok),
            (lockdown(text("[none] integrity confidentiality\n")), FindingStatus::Ok),
            (lockdown(text("none integrity [confidentiality]\n")), FindingStatus::Warn),
            (lockdown(text("")), FindingStatus::Unknown),
            (lockdown(missing()), FindingStatus::Unknown),
            (security_modules(text("lockdown,capability,bpf")), FindingStatus::Ok),
            (security_modules(text("lockdown,capability,bpfilter")), FindingStatus::Ok),
            (security_modules(missing()), FindingStatus::Unknown),
            (unprivileged_bpf(text("0\n")), FindingStatus::Warn),
            (unprivileged_bpf(text("1\n")), FindingStatus::Ok),
            (unprivileged_bpf(text("2\n")), FindingStatus::Ok),
            (unprivileged_bpf(text("3\n")), FindingStatus::Unknown),
            (unprivileged_bpf(missing()), FindingStatus::Unknown),
            (user_namespaces(text("0\n")), FindingStatus::Warn),
            (user_namespaces(text("96365\n")), FindingStatus::Ok),
            (user_namespaces(missing()), FindingStatus::Unknown),
        ] {
            assert_eq!(finding.status, status, "{finding:?}");
            assert_eq!(finding.remedy.is_some(), status != FindingStatus::Ok, "{finding:?}");
        }
    }

    #[test]
    fn what_the_security_modules_mean_is_said() {
        let with = security_modules(text("capability,bpf\n")).detail;
        assert_eq!(with, "capability,bpf; with bpf among them, LSM programs are called");
        let without = security_modules(text("capability,landlock\n")).detail;
        assert!(without.ends_with("policing are refused: boot with lsm=capability,landlock,bpf"), "{without}");
        let (no, unknown) = (Support::No("why".to_owned()), Support::Unknown("why".to_owned()));
        for (lsm, rules, status, words) in [
            (&Support::Yes, 0, FindingStatus::Ok, "possible; no rule"),
            (&Support::Yes, 2, FindingStatus::Ok, "of 2 rules are policed"),
            (&no, 0, FindingStatus::Ok, "not possible: why; no rule"),
            (&no, 2, FindingStatus::Fail, "of 2 rules do not start, because the kernel calls no LSM programs: why"),
            (&unknown, 0, FindingStatus::Unknown, "why"),
            (&unknown, 1, FindingStatus::Fail, "do not start"),
        ] {
            let finding = policing(lsm, rules);
            assert_eq!(finding.status, status, "{finding:?}");
            assert!(finding.detail.contains(words), "{finding:?}");
        }
    }

    #[test]
    fn mounts_are_checked() {
        let mounts = |lines: &str| parse_mountinfo(lines).unwrap();
        let unified = "31 25 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let hybrid =
            "31 25 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2(&mounts(unified)).status, FindingStatus::Ok);
        let found = cgroup2(&mounts(hybrid));
        assert_eq!(found.status, FindingStatus::Warn);
        assert!(found.detail.contains("/sys/fs/cgroup/unified"), "{found:?}");
        assert_eq!(cgroup2(&[]).status, FindingStatus::Warn);

        let path = Path::new("/nowhere/bpfman-hook/fs");
        let at = |kind: &str| mounts(&format!("50 25 0:50 / /nowhere/bpfman-hook/fs rw - {kind} x rw\n"));
        assert_eq!(bpffs(path, &[]).status, FindingStatus::Warn);
        assert_eq!(bpffs(path, &at("tmpfs")).status, FindingStatus::Fail);
        assert_eq!(bpffs(path, &at("bpf")).status, FindingStatus::Unknown, "the directory does not exist");
        let open = Path::new("/tmp");
        let mount = mounts("50 25 0:50 / /tmp rw - bpf x rw\n");
        assert_eq!(bpffs(open, &mount).status, FindingStatus::Fail, "mode 1777");
    }
}
