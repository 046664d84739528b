//! `nri --no-connect --check`: whether a node whose hook files start the hooks, as with CRI-O, has everything that they
//! need. Never touches the runtime's socket.

use std::path::Path;
use std::process::ExitCode;

use crate::cli::InstallTargets;
use crate::doctor;
use crate::output::error::CommandError;
use crate::output::finding::{Finding, FindingStatus, Findings};
use crate::output::print;
use crate::paths::Paths;
use crate::setup::check::check as check_installation;

/// Checks CRI-O's hook files below `host`, the program that they name, and the policy; prints what is wrong.
pub fn check(root: Option<&Path>, paths: &Paths, host: &Path) -> Result<ExitCode, CommandError> {
    let findings = findings(root, paths, host);
    if findings.failed() {
        print(&findings.only_bad().to_string())?;
        return Ok(ExitCode::FAILURE);
    }
    print("hook files, program and policy are in place\n")
}

fn findings(root: Option<&Path>, paths: &Paths, host: &Path) -> Findings {
    let mut findings = check_installation(&InstallTargets::of_crio(host), root);
    findings.push(match doctor::policy(paths) {
        // A valid policy that allows little is not a problem.
        Finding { status: FindingStatus::Warn, check, detail, .. } => Finding::ok(check, detail),
        finding => finding,
    });
    findings
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::InstallArgs;
    use crate::setup::install;

    #[test]
    fn a_node_without_hook_files_or_with_an_invalid_policy_is_not_ready() {
        let host = tempfile::tempdir().unwrap();
        let paths = Paths::below(host.path());
        let bad = || -> Vec<String> {
            let all = findings(None, &paths, host.path());
            // If the tests do not run as root, the program and the policy belong to the test user.
            all.0.into_iter().filter(|f| f.status == FindingStatus::Fail && f.check != "binary").map(|f| f.check).collect()
        };
        assert!(bad().contains(&"hook createRuntime".to_owned()));
        let targets = InstallTargets { no_docs: true, ..InstallTargets::of_crio(host.path()) };
        assert_eq!(install::run(None, &InstallArgs { check: false, targets }), Ok(ExitCode::SUCCESS));
        assert_eq!(bad(), Vec::<String>::new());
        fs::create_dir_all(&paths.etc).unwrap();
        fs::write(paths.policy_file(), "[[image]]\nrepository = 7\n").unwrap();
        assert_eq!(bad(), ["policy"]);
        fs::remove_file(paths.policy_file()).unwrap();
        fs::remove_file(host.path().join("usr/share/containers/oci/hooks.d/50-bpfman-hook-poststop.json")).unwrap();
        assert!(bad().contains(&"hook poststop".to_owned()));
    }
}
