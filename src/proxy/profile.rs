//! `proxy profile`: prints a seccomp profile.

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use crate::cli::proxy::{ProfileForm, ProxyProfileArgs};
use crate::model::proxy::default_profile;
use crate::model::proxy::profile::{self, ARCHITECTURE};
use crate::output;
use crate::output::error::CommandError;
use crate::paths::Paths;
use crate::sys::error::chain;
use crate::sys::fsutil;

/// docker's default profile has 15 kB.
const PROFILE_MAX: usize = 4 << 20;

/// Prints the profile.
///
/// # Errors
/// If the profile to start from cannot be read, or is not a seccomp profile.
pub fn run(paths: &Paths, args: &ProxyProfileArgs) -> Result<ExitCode, CommandError> {
    output::print(&made(&paths.proxy_socket(), args).map_err(CommandError::new)?)
}

fn made(socket: &Path, args: &ProxyProfileArgs) -> Result<String, String> {
    let not_text = || format!("{} is not UTF-8 text", socket.display());
    let listener = socket.to_str().ok_or_else(not_text)?;
    let mut profile = match &args.base {
        Some(_) if args.form == ProfileForm::Kubelet => {
            return Err("--form kubelet has a profile of its own; write --form oci to add the rules to FILE".to_owned());
        }
        Some(path) => read(path)?,
        None if args.form == ProfileForm::Kubelet => default_profile::kubelet(listener, ARCHITECTURE),
        None => profile::permissive(),
    };
    let shown = || args.base.as_ref().map_or_else(|| "the profile".to_owned(), |path| path.display().to_string());
    if args.form == ProfileForm::Oci {
        profile::to_runtime_spec(&mut profile, ARCHITECTURE);
    }
    profile::edit(&mut profile, listener, args.perf_events)
        .ok_or_else(|| format!("edit {}: it is not a seccomp profile, or has another listenerPath", shown()))?;
    Ok(format!("{profile:#}\n"))
}

fn read(path: &Path) -> Result<Value, String> {
    let file = File::open(path).map_err(|error| format!("open {}: {error}", path.display()))?;
    let bytes =
        fsutil::read_capped(file, PROFILE_MAX).map_err(|error| format!("read {}: {}", path.display(), chain(&error)))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_made_from_another_or_from_nothing() {
        let socket = Path::new("/run/bpfman-hook/proxy.sock");
        let args = |base: Option<&Path>, form| ProxyProfileArgs { base: base.map(Path::to_owned), form, perf_events: false };
        let parsed = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        let plain = parsed(made(socket, &args(None, ProfileForm::Same)).unwrap());
        assert_eq!(
            (&plain["defaultAction"], &plain["listenerPath"]),
            (&"SCMP_ACT_ALLOW".into(), &"/run/bpfman-hook/proxy.sock".into())
        );
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("base.json");
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["bpf","mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        std::fs::write(&base, text).unwrap();
        let same = parsed(made(socket, &args(Some(&base), ProfileForm::Same)).unwrap());
        assert_eq!(same["syscalls"][0]["names"], serde_json::json!(["mount"]));
        let oci = parsed(made(socket, &args(Some(&base), ProfileForm::Oci)).unwrap());
        assert_eq!(oci["syscalls"][0]["names"], serde_json::json!(["bpf"]));
        std::fs::write(&base, "[]").unwrap();
        assert!(made(socket, &args(Some(&base), ProfileForm::Same)).unwrap_err().contains("it is not a seccomp profile"));
        assert!(made(socket, &args(Some(Path::new("/nowhere")), ProfileForm::Same)).unwrap_err().contains("open /nowhere"));
    }
}
