//! `system service`: serves bpfman's gRPC API while clients use it.
//!
//! The service transports requests and decides which clients are allowed. The work is done by one child per request,
//! our own binary in the role `request`, so that its deadline, threads and namespaces are its own and a slow request
//! does not block others. All state is in the store: the service can be killed at any time.

mod authority;
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
use crate::output::error::CommandError;
use crate::paths::Paths;
use crate::sys::activation;
use crate::sys::error::SysError;
use crate::sys::fsutil::{TrustError, read_trusted_file};
use crate::sys::pid;

/// How long running requests may continue after SIGTERM; their own deadlines are shorter.
const DRAIN: Duration = Duration::from_secs(60);
/// How long connections may take to close after the last request.
const CLOSE: Duration = Duration::from_millis(500);
/// A client that does not answer a ping within this time is disconnected.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Timeout of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Maximum number of concurrent requests on one connection of root.
const STREAMS_MAX: u32 = 256;
/// Maximum number of concurrent requests on one connection of another client.
const OTHERS_STREAMS_MAX: u32 = 32;
/// Maximum number of bytes that a non-root client may send before we have read them, per request and per connection.
const OTHERS_WINDOWS: (u32, u32) = (64 << 10, 256 << 10);
/// Maximum size of a request's headers, in bytes.
const HEADERS_MAX: u32 = 16 << 10;
/// Maximum size of one request of root, in bytes; `limits::request_bytes` allows other clients less.
const MESSAGE_MAX: usize = 4 << 20;
/// Maximum size of a health or reflection request, in bytes: a name.
const QUESTION_MAX: usize = 16 << 10;
/// Maximum size of a PEM file, in bytes.
const PEM_MAX: usize = 1 << 20;

/// Why the service exits with an error.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Started by a user other than root.
    #[error("serve the gRPC API: it loads programs for its clients; run it as root")]
    NotRoot,
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A system call.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A certificate or key that other users can write.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A certificate or key that does not parse.
    #[error("use the certificate {}", .path.display())]
    Tls {
        /// The certificate.
        path: PathBuf,
        /// The error.
        #[source]
        source: tonic::transport::Error,
    },
    /// The server.
    #[error("serve the gRPC API")]
    Serve(#[from] tonic::transport::Error),
    /// Reflection has no descriptors.
    #[error("serve gRPC reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// `system service`. Exit status 0 after the idle timeout, and after SIGTERM or SIGINT.
pub fn run(paths: &Paths, args: &ServiceArgs) -> Result<ExitCode, CommandError> {
    serve(paths, args)?;
    Ok(ExitCode::SUCCESS)
}

fn serve(paths: &Paths, args: &ServiceArgs) -> Result<(), ServiceError> {
    if pid::own_uid() != 0 || pid::require_initial_user_namespace().is_err() {
        return Err(ServiceError::NotRoot);
    }
    let handed = activation::take()?;
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
            // An error means that the sender was dropped, which ends it as well.
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
        // Connections in the backlog of systemd's socket start the service again.
        drop(accepting);
        // There is no receiver only if every server has already ended.
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

/// A server for untrusted clients: it buffers little before the policy has checked a request.
fn for_others() -> Server {
    let (request, connection) = OTHERS_WINDOWS;
    builder()
        .max_concurrent_streams(OTHERS_STREAMS_MAX)
        .initial_stream_window_size(request)
        .initial_connection_window_size(connection)
}

/// The TLS configuration and the path of its certificate, if one is given.
fn tls(args: &ServiceArgs) -> Result<Option<(ServerTlsConfig, PathBuf)>, ServiceError> {
    let (Some(cert), Some(key), Some(ca)) = (&args.tls_cert, &args.tls_key, &args.tls_client_ca) else { return Ok(None) };
    let read = |path: &Path| read_trusted_file(path, PEM_MAX);
    let config = ServerTlsConfig::new()
        .identity(Identity::from_pem(read(cert)?, read(key)?))
        .client_ca_root(Certificate::from_pem(read(ca)?))
        .timeout(HANDSHAKE);
    Ok(Some((config, cert.clone())))
}

/// Our service, health and reflection; every request is counted from its first header on.
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
    // Reflection streams may stay open: their requests are small, and they hold nothing.
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
