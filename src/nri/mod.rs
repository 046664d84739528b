//! `nri`: the plugin that gives containers of containerd and CRI-O our hooks.
//!
//! ```text
//! socket <─> mux.rs ─┬─ connection 1: plugin.rs, a ttrpc server; adjust.rs and token_pods.rs decide, from memory
//!                    └─ connection 2: RegisterPlugin
//! besides: policy.rs reloads the policy when it changes, work.rs runs `pull`, `gc` and the child of missed.rs
//! ```

mod adjust;
#[allow(warnings, clippy::all, clippy::pedantic, reason = "generated")]
mod api;
pub mod missed;
mod mux;
mod plugin;
mod policy;
mod pre_pull;
mod seccomp;
#[allow(warnings, clippy::all, clippy::pedantic, reason = "generated")]
mod service;
pub mod status;
mod token_pods;
mod work;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, future, stream};
use tokio::net::UnixStream;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server};

use crate::cli::nri::NriArgs;
use crate::output::error::CommandError;
use crate::paths::Paths;
use crate::setup::hook_files::{Engines, Invocation};
use crate::sys::{fsutil, inherited};

use self::plugin::{HookPlugin, RuntimeReport};
use self::policy::CachedPolicy;
use self::status::{PluginStart, PluginStatus};
use self::work::ProgramRuns;

/// The first pause before reconnecting; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// After a connection that lasted this long, the next pause is the first one again.
const GOOD: Duration = Duration::from_secs(30);
/// How often a pre-installed plugin checks whether its file still exists.
const LOOK: Duration = Duration::from_secs(1);
/// Timeout of RegisterPlugin.
const REGISTER: Duration = Duration::from_secs(5);
/// How long the server's tasks may take to end after the connection has ended.
const DISCONNECT: Duration = Duration::from_millis(50);

/// State that all connections share.
struct PluginShared {
    invocation: Invocation,
    policy: CachedPolicy,
    work: ProgramRuns,
    status: PluginStatus,
    name: String,
    idx: String,
}

/// Runs the plugin, or reports with `--check` whether it is connected. On a socket that the runtime passed, it runs
/// until that connection ends; otherwise it connects to the runtime's socket, and reconnects indefinitely.
pub fn run(root: Option<&Path>, paths: &Paths, args: &NriArgs) -> Result<ExitCode, CommandError> {
    if args.check {
        return status::check(&paths.export());
    }
    let program = std::env::current_exe().map_err(CommandError::doing("find this program"))?;
    let binary = args.binary.clone().unwrap_or_else(|| program.clone());
    let handed_over = inherited::stream("NRI_PLUGIN_SOCKET")?;
    let policy = CachedPolicy::begin(paths)?;
    let shared = PluginShared {
        invocation: Invocation { binary, engines: Engines::default(), root: root.map(Path::to_owned) },
        policy,
        work: ProgramRuns::new(program, root.map(Path::to_owned), missed::deal_with),
        status: PluginStatus::new(if handed_over.is_some() { PluginStart::PreInstalled } else { PluginStart::External }),
        name: args.name.clone(),
        idx: args.idx.clone(),
    };
    let images = pre_pull::images(&args.pre_pull).map_err(CommandError::of_input)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(CommandError::doing("start the plugin"))?;
    runtime.block_on(async {
        shared.work.pre_pull(images);
        shared.work.keep_collecting();
        if args.no_connect {
            // If hook files start the hooks, there is nothing else to do, and no events about pods arrive.
            return future::pending().await;
        }
        // If the plugin is the first process of bpfman-hook since boot, the directory does not exist yet, and nothing
        // could be recorded in it.
        if let Err(error) = fsutil::ensure_directory(&paths.run, 0o755) {
            tracing::warn!("{}", crate::sys::error::chain(&error));
        }
        let status = shared.status.clone();
        tokio::spawn(async move { status.publish().await });
        if let Some(stream) = handed_over {
            return be_preinstalled(&shared, stream, args.preinstalled_as.as_deref()).await;
        }
        let mut pause = PAUSE;
        loop {
            let begun = Instant::now();
            let end = match UnixStream::connect(&args.socket).await {
                Ok(stream) => serve(&shared, stream).await,
                Err(error) => error,
            };
            if begun.elapsed() >= GOOD {
                pause = PAUSE;
            }
            tracing::warn!("{}: {end}; reconnecting", args.socket.display());
            tokio::time::sleep(pause + jitter(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    })
}

/// Serves the runtime that started the plugin, until the connection ends or the plugin's file is removed: uninstalling
/// does not require a restart of the runtime.
async fn be_preinstalled(
    shared: &PluginShared,
    stream: std::os::unix::net::UnixStream,
    file: Option<&Path>,
) -> Result<ExitCode, CommandError> {
    let removed = async {
        match file {
            None => future::pending().await,
            Some(file) => {
                while !matches!(std::fs::symlink_metadata(file), Err(error) if error.kind() == io::ErrorKind::NotFound) {
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    };
    let served = async {
        match stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)) {
            Ok(stream) => serve(shared, stream).await,
            Err(error) => error,
        }
    };
    tokio::select! {
        end = served => Err(CommandError::new(format!("the connection to the runtime has ended: {end}"))),
        () = removed => Ok(ExitCode::SUCCESS),
    }
}

/// Up to half of a pause, so that several plugins do not reconnect at the same moment.
fn jitter(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    pause.mul_f64(f64::from(nanos % 1000) / 2000.0)
}

/// Serves one connection, from registration to its end; returns why it ended.
async fn serve(shared: &PluginShared, stream: UnixStream) -> io::Error {
    let (ours, theirs, pump) = mux::split(stream);
    let plugin = HookPlugin {
        invocation: shared.invocation.clone(),
        policy: shared.policy.clone(),
        work: shared.work.clone(),
        status: shared.status.clone(),
        told: std::sync::Mutex::new(RuntimeReport::default()),
    };
    // Configure comes immediately, so the server has to run before the plugin registers.
    let once = stream::once(future::ready(Ok::<_, io::Error>(ours))).chain(stream::pending());
    let mut server = Server::new().add_listener(Listener::new(once)).register_service(service::create_plugin(Arc::new(plugin)));
    if let Err(error) = server.start().await {
        return io::Error::other(error);
    }
    let register = async {
        let client = service::RuntimeClient::new(Client::new(Socket::new(theirs)));
        let request = api::RegisterPluginRequest {
            plugin_name: shared.name.clone(),
            plugin_idx: shared.idx.clone(),
            ..Default::default()
        };
        match client.register_plugin(ttrpc::context::with_duration(REGISTER), &request).await {
            // The client must live to keep its end of the connection open.
            Ok(_) => future::pending().await,
            Err(error) => io::Error::other(error),
        }
    };
    let end = tokio::select! {
        end = pump.run() => end.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()),
        end = register => end,
    };
    shared.status.disconnected();
    // `disconnect` alone would wait for the listener, which never yields another connection; meanwhile the runtime may
    // be back.
    _ = tokio::time::timeout(DISCONNECT, server.shutdown()).await;
    end
}

#[cfg(test)]
mod tests;
