//! Process start: a child role, or the command line; one error line; the exit status.

use std::ffi::OsString;
use std::process::ExitCode;

use bpfman_hook::cli::{self, Command, Stage};
use bpfman_hook::frontend::{ctl, doctor, documents, hook, install, policy, precreate, pull, token};
use bpfman_hook::paths::Paths;
use bpfman_hook::sys::child::{self, Role};
use bpfman_hook::{image, sys};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(role) = child::role_from_args(&args) {
        return match role {
            Role::Fetch => image::serve_fetch(),
        };
    }
    let cli = cli::parse(&args);
    let paths = cli.root.as_deref().map_or_else(Paths::system, Paths::below);
    match cli.command {
        Command::Hook(hook) => {
            // The environment belongs to whoever called the runtime.
            sys::environment::clear();
            match hook.stage {
                Stage::CreateRuntime => hook::create_runtime(&paths, hook.engine),
                Stage::Poststop => hook::poststop(&paths),
                Stage::Precreate => precreate::run(&paths, hook.engine),
            }
        }
        Command::List(what) => ctl::list(&paths, what),
        Command::Get(what) => ctl::get(&paths, what),
        Command::Inspect(args) => ctl::inspect(&paths, &args),
        Command::Images(listing) => ctl::images(&paths, listing),
        Command::Gc(args) => ctl::gc(&paths, args),
        _ => todo!(),
    }
}
