//! `system service`: bpfman's gRPC API for as long as somebody asks.
//!
//! The service moves bytes and decides who may ask. What is asked is done by a child for each request, our own binary in the role
//! `request`, so that its deadline, its threads and its namespaces are its own and a slow one holds nobody. All state is in the
//! store: the service can be killed at any time.

pub mod caller;
pub mod child;
pub mod connection;
pub mod convert;
pub mod idle;
pub mod limits;
pub mod listen;
pub mod rpc;
pub mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Status};

use crate::cli::service::ServiceArgs;
use crate::grpc::connection::Accepting;
use crate::grpc::idle::Idle;
use crate::grpc::limits::admission::AdmittedService;
use crate::grpc::limits::request_bytes::CountedService;
use crate::grpc::listen::{ListenError, Sockets};
use crate::grpc::rpc::Rpc;
use crate::grpc::wire::bpfman_server::BpfmanServer;
use crate::output::fail;
use crate::paths::Paths;
use crate::sys::activation::{self, Variables};
use crate::sys::error::SysError;
use crate::sys::error::chain;
use crate::sys::fsutil::{TrustError, read_trusted_file};
use crate::sys::pid;

/// How long requests that run may go on after SIGTERM; their own deadlines are shorter.
const DRAIN: Duration = Duration::from_secs(60);
/// How long connections may take to close when no request runs any more.
const CLOSE: Duration = Duration::from_millis(500);
/// A client that says nothing for so long after a ping is gone.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// For a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Requests at once over one connection of root's.
const STREAMS_MAX: u32 = 256;
/// Requests at once over one connection of anybody else.
const OTHERS_STREAMS_MAX: u32 = 32;
/// Bytes that anybody else than root may send before we have read them, of one request and over one connection.
const OTHERS_WINDOWS: (u32, u32) = (64 << 10, 256 << 10);
/// Bytes of a request's headers.
const HEADERS_MAX: u32 = 16 << 10;
/// Bytes of one request of root's; `weight` allows others less.
const MESSAGE_MAX: usize = 4 << 20;
/// Bytes of a question to health or reflection: a name.
const QUESTION_MAX: usize = 16 << 10;
/// Bytes of a PEM file.
const PEM_MAX: usize = 1 << 20;

/// Why the service ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Somebody else than root starts it.
    #[error("serve the gRPC API: it loads programs for others, run it as root")]
    NotRoot,
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A system call.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A certificate or key that others could have written.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A certificate or key that does not parse.
    #[error("use the certificate {}", .path.display())]
    Tls {
        /// The certificate.
        path: PathBuf,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The server.
    #[error("serve the gRPC API")]
    Serve(#[from] tonic::transport::Error),
    /// Reflection has no descriptors.
    #[error("serve the descriptions of our services")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// `system service`. Exit status 0 after a time without requests, and after SIGTERM or SIGINT.
pub fn run(paths: &Paths, args: &ServiceArgs) -> ExitCode {
    match serve(paths, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&chain(&error)),
    }
}

fn serve(paths: &Paths, args: &ServiceArgs) -> Result<(), ServiceError> {
    if pid::own_uid() != 0 || pid::require_initial_user_namespace().is_err() {
        return Err(ServiceError::NotRoot);
    }
    let handed = activation::take(&Variables::read())?;
    let tls = tls(args)?;
    let mut sockets = Sockets::open(paths, handed, args.address.as_ref(), tls.is_some())?;
    let listeners = std::mem::take(&mut sockets.listeners);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SysError::io("start", "the runtime of the service"))?;
    let timeout = (args.timeout > 0).then(|| Duration::from_secs(args.timeout.into()));
    let idle = Idle::new(timeout);
    runtime.block_on(async {
        let Accepting { unix, tcp, tasks: accepting } =
            connection::accept(listeners, &idle).map_err(SysError::io("watch", "our sockets"))?;
        let (stop, stopped) = watch::channel(false);
        let routes = routes(paths, &idle).await?;
        let mut servers = tokio::task::JoinSet::new();
        let wait = |mut stopped: watch::Receiver<bool>| async move {
            // An error means that the sender is gone, and that it is over as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        if let Some((root, unix)) = unix {
            let server = builder().max_concurrent_streams(STREAMS_MAX).add_routes(routes.clone());
            servers.spawn(server.serve_with_incoming_shutdown(root, wait(stopped.clone())));
            let server = for_others().add_routes(routes.clone());
            servers.spawn(server.serve_with_incoming_shutdown(unix, wait(stopped.clone())));
        }
        if let (Some(tcp), Some((tls, certificate))) = (tcp, tls) {
            let mut server = for_others().tls_config(tls).map_err(|source| ServiceError::Tls { path: certificate, source })?;
            servers.spawn(server.add_routes(routes).serve_with_incoming_shutdown(tcp, wait(stopped)));
        }
        let interrupt = |kind| signal(kind).map_err(SysError::io("watch", "for signals"));
        let (mut terminate, mut interrupt) = (interrupt(SignalKind::terminate())?, interrupt(SignalKind::interrupt())?);
        tokio::select! {
            () = idle.expired() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            Some(ended) = servers.join_next() => {
                if let Ok(Err(error)) = ended { return Err(error.into()); }
            }
        }
        // What waits in the backlog of a socket of systemd's starts the service again.
        drop(accepting);
        // Nobody listens only where every server has ended already.
        let _ = stop.send(true);
        idle.drain(DRAIN, CLOSE, async { while servers.join_next().await.is_some() {} }).await;
        Ok(())
    })
}

fn builder() -> Server {
    Server::builder()
        .http2_max_header_list_size(HEADERS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
}

/// A server for clients that may be anybody: what they can have us hold before policy has seen a request is little.
fn for_others() -> Server {
    let (request, connection) = OTHERS_WINDOWS;
    builder()
        .max_concurrent_streams(OTHERS_STREAMS_MAX)
        .initial_stream_window_size(request)
        .initial_connection_window_size(connection)
}

/// The TLS configuration and the path of its certificate, where one is given.
fn tls(args: &ServiceArgs) -> Result<Option<(ServerTlsConfig, PathBuf)>, ServiceError> {
    let (Some(cert), Some(key), Some(ca)) = (&args.tls_cert, &args.tls_key, &args.tls_client_ca) else { return Ok(None) };
    let read = |path: &Path| read_trusted_file(path, PEM_MAX);
    let config = ServerTlsConfig::new()
        .identity(Identity::from_pem(read(cert)?, read(key)?))
        .client_ca_root(Certificate::from_pem(read(ca)?))
        .timeout(HANDSHAKE);
    Ok(Some((config, cert.clone())))
}

/// Our service, health and reflection, with every request counted from its first header on.
async fn routes(paths: &Paths, idle: &Idle) -> Result<Routes, ServiceError> {
    let counted = |idle: Idle| {
        move |mut request: Request<()>| {
            request.extensions_mut().insert(Arc::new(idle.begin()));
            Ok::<_, Status>(request)
        }
    };
    let bpfman = BpfmanServer::new(Rpc::new(paths)).max_decoding_message_size(MESSAGE_MAX);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<BpfmanServer<Rpc>>().await;
    let describe = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Its streams may last: what they ask is small, and they hold nothing.
    let v1 = describe().build_v1()?.max_decoding_message_size(QUESTION_MAX);
    let v1alpha = describe().build_v1alpha()?.max_decoding_message_size(QUESTION_MAX);
    let health = health.max_decoding_message_size(QUESTION_MAX);
    let mut routes = Routes::builder();
    routes
        .add_service(CountedService::new(InterceptedService::new(AdmittedService::new(bpfman, paths), counted(idle.clone()))))
        .add_service(CountedService::new(InterceptedService::new(health, counted(idle.clone()))))
        .add_service(InterceptedService::new(v1, counted(idle.clone())))
        .add_service(InterceptedService::new(v1alpha, counted(idle.clone())));
    Ok(routes.routes())
}
