//! containerd's part of `doctor` and `install --check`: whether annotated containers get our hooks, and what happens if
//! not.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::cli::{ContainerdTargets, HookStage};
use crate::output::finding::{Finding, FindingStatus, Findings};
use crate::setup::containerd::base_spec;
use crate::setup::containerd::config::{ContainerdConfig, Handler, Nri};
use crate::setup::containerd::plugin_file;
use crate::setup::containerd::present::configuration;
use crate::setup::hooks_dir::below;
use crate::setup::place::InstallRoot;
use crate::sys::error::chain;

const AGAIN: &str = "run `bpfman-hook install --containerd`, then restart containerd";
const STRICT: &str = "run `bpfman-hook install --containerd --strict`, then restart containerd";

/// Checks containerd's configuration and the files that it names.
pub fn examine(place: &InstallRoot, asked: &ContainerdTargets) -> Findings {
    let mut findings = Findings::default();
    let config = match configuration(place, asked) {
        Ok(config) => config.unwrap_or_else(|| ContainerdConfig::parse("").expect("an empty text is a configuration")),
        Err(err) => {
            findings.push(Finding::bad("containerd configuration", FindingStatus::Fail, chain(&err), "correct it"));
            return findings;
        }
    };
    let nri = config.nri();
    findings.push(switched_on(&nri, base_spec::version(place.root())));
    findings.push(plugin_file::examine(&nri, place.root(), AGAIN));
    findings.push(hooks_allowed(&nri));
    let strict: Vec<_> = config.handlers().into_iter().filter(|handler| handler.base_spec.is_some()).collect();
    let findings_of = strict.iter().filter_map(|handler| strict_handler(handler, place.root()));
    let before = findings.0.len();
    findings.0.extend(findings_of);
    if findings.0.len() == before {
        let detail = "no runtime handler has our hooks: NRI starts containers even if the plugin is slow or missing";
        findings.push(Finding::bad("containerd strict handler", FindingStatus::Warn, detail, STRICT));
    }
    findings
}

/// Whether containerd serves plugins at all.
fn switched_on(nri: &Nri, version: Option<(u32, u32)>) -> Finding {
    let check = "containerd NRI";
    let limit = nri.request_timeout.map_or_else(|| "2 s".to_owned(), |limit| format!("{limit:?}"));
    let off = "annotated containers start without their programs";
    match (nri.disabled, version) {
        (Some(true), _) => Finding::bad(check, FindingStatus::Fail, format!("disable = true: {off}"), AGAIN),
        (None, Some((1, minor))) => {
            Finding::bad(check, FindingStatus::Fail, format!("off, the default of containerd 1.{minor}: {off}"), AGAIN)
        }
        (None, None) => {
            let detail = "not configured, and containerd's version cannot be determined: off before 2.0";
            Finding::bad(check, FindingStatus::Unknown, detail, AGAIN)
        }
        (Some(false), _) | (None, Some(_)) if nri.no_connections => {
            // The check of the plugin file fails if the file is missing.
            Finding::ok(
                check,
                format!("on, but only for plugins in plugin_path (disable_connections); a plugin has {limit} to answer"),
            )
        }
        (Some(false), _) | (None, Some(_)) => Finding::ok(check, format!("on; a plugin has {limit} to answer")),
    }
}

/// Whether the default validator would reject the hooks that we inject (containerd 2.2).
fn hooks_allowed(nri: &Nri) -> Finding {
    let check = "containerd hook injection";
    if nri.rejects_hooks {
        let detail = "the default validator has reject_oci_hook_adjustment = true: every annotated container is refused";
        return Finding::bad(
            check,
            FindingStatus::Fail,
            detail,
            format!("set it to false, or use only the strict handler: {STRICT}"),
        );
    }
    if nri.required.iter().any(|plugin| plugin == "bpfman-hook") {
        return Finding::ok(check, "allowed; required_plugins has bpfman-hook: without it no container starts");
    }
    Finding::ok(check, "allowed")
}

/// Checks a handler with a base spec; None if it does not contain our hooks.
fn strict_handler(handler: &Handler, root: &Path) -> Option<Finding> {
    let check = format!("containerd handler {}", handler.name);
    let path = handler.base_spec.as_ref()?;
    let unread = |why: String| Finding::bad(&check, FindingStatus::Fail, format!("{}: {why}", path.display()), STRICT);
    let text = match fs::read_to_string(below(root, path)) {
        Ok(text) => text,
        Err(err) => return Some(unread(format!("{err}: containerd does not start with it"))),
    };
    let Ok(spec) = serde_json::from_str::<Value>(&text) else { return Some(unread("it is not JSON".to_owned())) };
    let entry = |stage: HookStage| {
        let entries = spec["hooks"][stage.word()].as_array()?;
        entries.iter().find(|entry| entry["args"][0] == "bpfman-hook" && entry["args"][2] == stage.word())
    };
    let (start, stop) = (entry(HookStage::CreateRuntime), entry(HookStage::Poststop));
    let Some(start) = start else {
        return stop.map(|_| unread("it has our poststop hook but no createRuntime hook".to_owned()));
    };
    let program = start["path"].as_str().unwrap_or_default();
    Some(if stop.is_none() {
        unread("it lacks our poststop hook: only gc releases what containers owned".to_owned())
    } else if !below(root, Path::new(program)).is_file() {
        unread(format!("its hook {program} does not exist: no pod with this handler starts"))
    } else if !handler.hands_on_annotations() {
        let detail =
            "its pod_annotations do not pass our keys on: requests are not seen, and containers start without programs";
        Finding::bad(&check, FindingStatus::Fail, detail, STRICT)
    } else {
        Finding::ok(&check, format!("has our hooks ({})", path.display()))
    })
}

/// Explains an error that containerd returned to its client; None for errors that are clear by themselves.
///
/// The texts are those of containerd 2.1 and 2.2, of NRI's default validator (pkg/plugin, plugins/default-validator)
/// and of runc.
pub fn explain(error: &str) -> Option<Finding> {
    let missing_hook = error.contains("error running") && error.contains("hook") && error.contains("no such file or directory");
    if error.contains("attempted restricted OCI hook injection") {
        Some(hooks_allowed(&Nri { rejects_hooks: true, ..Nri::default() }))
    } else if error.contains("validation error") && error.contains("required plugin") {
        let detail = "the default validator requires a plugin that did not see this container";
        Some(Finding::bad(
            "containerd required plugins",
            FindingStatus::Fail,
            detail,
            "start it: systemctl status bpfman-hook-nri",
        ))
    } else if error.contains("no runtime for") {
        let detail = "the pod's RuntimeClass names a handler that containerd does not have";
        Some(Finding::bad("containerd strict handler", FindingStatus::Fail, detail, STRICT))
    } else if missing_hook {
        let detail = "a hook's program does not exist, or not in containerd's mount namespace";
        Some(Finding::bad("containerd hook", FindingStatus::Fail, detail, "run `bpfman-hook install --containerd`"))
    } else if error.contains("error executing hook") && error.contains("bpfman-hook") {
        let detail = "crun does not pass on a hook's message; nothing else reaches the pod's events";
        let remedy = "see `bpfman-hook list containers` and `events` on the node for the reason";
        Some(Finding::bad("crun", FindingStatus::Warn, detail, remedy))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::InstallTargets;

    struct World {
        root: tempfile::TempDir,
    }

    impl World {
        fn new(config: &str) -> Self {
            let world = Self { root: tempfile::tempdir().unwrap() };
            world.write("etc/containerd/config.toml", config);
            world.write("usr/local/bin/bpfman-hook", "");
            world
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn examine(&self) -> Findings {
            let targets = InstallTargets::on(self.root.path());
            examine(&InstallRoot::of(&targets, None), &targets.containerd)
        }
    }

    fn only(findings: &Findings, check: &str) -> Finding {
        let found: Vec<_> = findings.0.iter().filter(|finding| finding.check == check).collect();
        assert_eq!(found.len(), 1, "{check}: {findings}");
        found[0].clone()
    }

    #[test]
    fn nri_and_the_validator_are_checked() {
        let nri = "[plugins.'io.containerd.nri.v1.nri']\n";
        for (config, check, status, said) in [
            ("version = 3\n".to_owned(), "containerd NRI", FindingStatus::Unknown, "off before 2.0"),
            (format!("version = 3\n{nri}disable = true\n"), "containerd NRI", FindingStatus::Fail, "disable = true"),
            (format!("version = 2\n{nri}disable = false\nplugin_request_timeout = \"3s\"\n"), "containerd NRI", FindingStatus::Ok, "3s"),
            (format!("version = 3\n{nri}disable = false\ndisable_connections = true\n"), "containerd NRI", FindingStatus::Ok, "plugin_path"),
            (
                "version = 3\n[plugins.'io.containerd.nri.v1.nri'.default_validator]\nenable = true\nreject_oci_hook_adjustment = true\n".to_owned(),
                "containerd hook injection",
                FindingStatus::Fail,
                "reject_oci_hook_adjustment",
            ),
            ("version = 1\n".to_owned(), "containerd configuration", FindingStatus::Fail, "versions 2 and 3"),
        ] {
            let finding = only(&World::new(&config).examine(), check);
            assert_eq!(finding.status, status, "{config}");
            assert!(finding.detail.contains(said), "{finding:?}");
        }
        assert!(switched_on(&Nri::default(), Some((1, 7))).detail.contains("1.7"));
        assert_eq!(switched_on(&Nri::default(), Some((2, 1))).status, FindingStatus::Ok);
    }

    #[test]
    fn errors_of_containerd_are_explained() {
        for (error, said) in [
            ("validation error: plugin \"bpfman-hook\" attempted restricted OCI hook injection", "reject_oci_hook_adjustment"),
            ("validation error: required plugin \"bpfman-hook\" not present", "did not see this container"),
            ("failed to get sandbox runtime: no runtime for \"bpfman-hook\" is configured", "handler"),
            (
                "error running createRuntime hook #0: fork/exec /usr/local/bin/bpfman-hook: no such file or directory",
                "mount namespace",
            ),
            ("error executing hook `/usr/local/bin/bpfman-hook` (exit code: 1)", "crun does not pass on"),
        ] {
            assert!(explain(error).unwrap().detail.contains(said), "{error}");
        }
        assert_eq!(explain("no such image"), None);
    }

    #[test]
    fn every_file_of_a_strict_handler_is_checked() {
        let mut config = ContainerdConfig::parse("version = 3\n").unwrap();
        let base = Path::new("/etc/containerd/bpfman-hook-base.json");
        config.add_handler("bpfman-hook", base).unwrap();
        let world = World::new(&config.text());
        let check = "containerd handler bpfman-hook";
        let failed = |said: &str| {
            let finding = only(&world.examine(), check);
            assert!(finding.status == FindingStatus::Fail && finding.detail.contains(said), "{finding:?}");
        };
        failed("containerd does not start with it");
        let spec = |binary: &str| {
            let spec = r#"{"ociVersion":"1.2.1","linux":{}}"#;
            base_spec::with_hooks(spec, "a test", Path::new(binary), None).unwrap()
        };
        let file = "etc/containerd/bpfman-hook-base.json";
        world.write(file, "{");
        failed("not JSON");
        world.write(file, &spec("/opt/gone"));
        failed("/opt/gone does not exist");
        world.write(file, &spec("/usr/local/bin/bpfman-hook").replace("poststop", "poststart"));
        failed("lacks our poststop hook");
        world.write(file, &spec("/usr/local/bin/bpfman-hook"));
        assert_eq!(only(&world.examine(), check).status, FindingStatus::Ok);
        world.write("etc/containerd/config.toml", &config.text().replace("\"*.hook.bpfman.io/*\"", "\"x/*\""));
        failed("pod_annotations");
        world.write("etc/containerd/config.toml", "version = 3\n");
        assert_eq!(only(&world.examine(), "containerd strict handler").status, FindingStatus::Warn);
    }
}
