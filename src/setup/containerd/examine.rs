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
