//! Registry credentials of the user who runs a command.

use std::env;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::cli::RegistryArgs;
use crate::lifecycle::registries_file;
use crate::model::credentials::{Credential, UserEnvironment};
use crate::model::registries::RegistryConfig;
use crate::output::error::CommandError;
use crate::paths::Paths;

/// The registry configuration for the user who runs this command.
pub(super) fn registries(paths: &Paths, args: &RegistryArgs) -> Result<RegistryConfig, CommandError> {
    Ok(registries_file::load(paths)?.by(user_env(args)?))
}

/// Credentials from flags and environment. Never called for a hook.
fn user_env(args: &RegistryArgs) -> Result<UserEnvironment, CommandError> {
    let wrong = |problem: &str| CommandError::new(problem);
    let login = match (&args.registry_auth, &args.creds) {
        (Some(text), _) => {
            let login = Credential::from_base64(text);
            Some(login.ok_or_else(|| wrong("read --registry-auth: it is not user:password in base64"))?)
        }
        (None, Some(text)) => {
            let (user, password) = text.split_once(':').ok_or_else(|| wrong("read --creds: it is not user:password"))?;
            Some(Credential::Login { user: user.to_owned(), password: password.to_owned() })
        }
        (None, None) => None,
    };
    let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let word = |name: &str| {
        let value = env::var_os(name).or_else(|| env::var_os(name.to_ascii_lowercase()));
        value.map(OsString::into_string).and_then(Result::ok).filter(|value| !value.is_empty())
    };
    Ok(UserEnvironment {
        login,
        auth_file: args.authfile.clone().or_else(|| path("REGISTRY_AUTH_FILE")),
        runtime_directory: path("XDG_RUNTIME_DIR"),
        uid: std::fs::metadata("/proc/self").map_or(0, |about| about.uid()),
        config_home: path("XDG_CONFIG_HOME"),
        docker_config: path("DOCKER_CONFIG"),
        home: path("HOME"),
        path: word("PATH"),
        https_proxy: word("HTTPS_PROXY"),
        http_proxy: word("HTTP_PROXY"),
        no_proxy: word("NO_PROXY"),
        no_files: false,
    })
}
