//! Whole connections, with the runtime's part played here; messages of containerd are recorded ones.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use protobuf::Message as _;
use tokio::sync::mpsc;
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, Error};

use super::api::{
    ConfigureRequest, Container, ContainerState, CreateContainerRequest, Empty, PodSandbox, RegisterPluginRequest,
    SynchronizeRequest, UpdateContainersRequest, UpdateContainersResponse,
};
use super::*;

struct Runtime(Mutex<mpsc::UnboundedSender<String>>);

#[async_trait]
impl service::Runtime for Runtime {
    async fn register_plugin(&self, _: &TtrpcContext, request: RegisterPluginRequest) -> ttrpc::Result<Empty> {
        self.0.lock().unwrap().send(format!("{} {}", request.plugin_idx, request.plugin_name)).unwrap();
        Ok(Empty::default())
    }

    async fn update_containers(&self, _: &TtrpcContext, _: UpdateContainersRequest) -> ttrpc::Result<UpdateContainersResponse> {
        Err(Error::RpcStatus(ttrpc::get_status(Code::UNIMPLEMENTED, "nobody calls this")))
    }
}

fn shared(directory: &tempfile::TempDir) -> Shared {
    Shared {
        invocation: Invocation { binary: "/usr/local/bin/bpfman-hook".into(), engines: Engines::default(), root: None },
        policy: Kept::begin(&Paths::below(directory.path())),
        work: Work::new("/bin/true".into(), None),
        name: "bpfman-hook".to_owned(),
        idx: "10".to_owned(),
    }
}

/// Runs a connection, and on its other end what a runtime says to the plugin once it has registered.
fn connected<F: Future<Output = ()>>(say: impl FnOnce(service::PluginClient) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let shared = shared(&directory);
    runtime.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (plugin, own, pump) = mux::split(theirs);
        let (sender, mut registered) = mpsc::unbounded_channel();
        let once = stream::once(future::ready(Ok::<_, io::Error>(own))).chain(stream::pending());
        let mut server = Server::new()
            .add_listener(Listener::new(once))
            .register_service(service::create_runtime(Arc::new(Runtime(Mutex::new(sender)))));
        server.start().await.unwrap();
        let said = async {
            assert_eq!(registered.recv().await.unwrap(), "10 bpfman-hook");
            say(service::PluginClient::new(Client::new(Socket::new(plugin)))).await;
        };
        tokio::select! {
            end = serve(&shared, ours) => panic!("the plugin went away: {end}"),
            end = pump.run() => panic!("the trunk broke: {end:?}"),
            said = tokio::time::timeout(Duration::from_secs(60), said) => said.unwrap(),
        }
    });
}

fn recorded<M: protobuf::Message>(name: &str) -> M {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nri").join(format!("containerd-{name}.bin"));
    M::parse_from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(Duration::from_secs(20))
}

#[test]
fn a_session_with_recorded_messages() {
    for version in ["2.1.9", "1.7.24"] {
        connected(|plugin| async move {
            let configure: ConfigureRequest = recorded(&format!("{version}_Configure"));
            // NRI 0.6 knows events up to 11 and ends the connection at any other.
            assert_eq!(plugin.configure(context(), &configure).await.unwrap().events, 0b1001);
            let running: SynchronizeRequest = recorded("2.1.9_Synchronize_running-userns");
            assert!(!plugin.synchronize(context(), &running).await.unwrap().more);
            plugin.state_change(context(), &recorded("2.1.9_StateChange-RUN_POD_SANDBOX")).await.unwrap();
            let create: CreateContainerRequest = recorded(&format!("{version}_CreateContainer"));
            match plugin.create_container(context(), &create).await {
                Err(Error::RpcStatus(status)) => {
                    assert_eq!(status.code(), Code::FAILED_PRECONDITION);
                    assert!(status.message.starts_with("bpfman-hook: "), "{}", status.message);
                }
                other => panic!("{version}: {other:?}"),
            }
            let mut plain = create.clone();
            plain.pod.mut_or_insert_default().annotations.clear();
            plain.container.mut_or_insert_default().annotations.clear();
            assert!(plugin.create_container(context(), &plain).await.unwrap().adjust.is_none());
        });
    }
}

#[test]
fn a_connection_that_ends_is_done_with_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let shared = shared(&directory);
    runtime.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let end = tokio::time::timeout(Duration::from_secs(5), serve(&shared, ours)).await;
        assert!(end.is_ok(), "the plugin is away for five seconds and more");
    });
}

#[test]
fn an_annotated_container_is_answered_with_more_than_one_frame() {
    connected(|plugin| async move {
        let mut create: CreateContainerRequest = recorded("2.1.9_CreateContainer");
        let pod = create.pod.mut_or_insert_default();
        pod.annotations.clear();
        create.container.mut_or_insert_default().annotations.clear();
        let name = create.container.name.clone();
        let pod = create.pod.mut_or_insert_default();
        pod.annotations.insert("hook.bpfman.io/bpffs".to_owned(), "private".to_owned());
        // Blanks around a word mean nothing, and make the answer longer than the runtime's buffer.
        pod.annotations.insert(format!("{name}.hook.bpfman.io/bpffs"), format!("private{}", " ".repeat(20_000)));
        match plugin.create_container(context(), &create).await {
            Ok(answer) => {
                assert_eq!(answer.adjust.hooks.create_runtime.len(), 1);
                assert!(answer.compute_size() > 20_000);
            }
            Err(error) => panic!("{error}"),
        }
    });
}

#[test]
fn ten_thousand_containers_come_in_pieces() {
    connected(|plugin| async move {
        let begun = Instant::now();
        for piece in 0..10 {
            let pods = (0..1000).map(|n| PodSandbox { id: format!("pod-{piece}-{n}"), ..Default::default() });
            let containers = (0..1000).map(|n| Container {
                id: format!("{piece}-{n}"),
                pod_sandbox_id: format!("pod-{piece}-{n}"),
                name: "main".to_owned(),
                state: ContainerState::CONTAINER_RUNNING.into(),
                ..Default::default()
            });
            let (pods, containers) = (pods.collect(), containers.collect());
            let request = SynchronizeRequest { pods, containers, more: piece < 9, ..Default::default() };
            assert_eq!(plugin.synchronize(context(), &request).await.unwrap().more, piece < 9);
        }
        eprintln!("10 000 containers: {:?}", begun.elapsed());
    });
}
