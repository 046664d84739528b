//! Tests of whole connections. They play the runtime's part; containerd's messages are recorded ones.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use protobuf::Message as _;
use tokio::sync::mpsc;
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, Error};

use super::*;
use crate::model::missed::MissedContainers;
use crate::nri::api::{
    ConfigureRequest, ContainerEvent, ContainerState, CreateContainerRequest, Empty, Hook, PodEvent, RegisterPluginRequest,
    StateChangeEvent, SynchronizeRequest, UpdateContainersRequest, UpdateContainersResponse,
};
use crate::sys::error::SysError;

struct Runtime(Mutex<mpsc::UnboundedSender<String>>);

#[async_trait]
impl service::Runtime for Runtime {
    async fn register_plugin(&self, _: &TtrpcContext, request: RegisterPluginRequest) -> ttrpc::Result<Empty> {
        self.0.lock().unwrap().send(format!("{} {}", request.plugin_idx, request.plugin_name)).unwrap();
        Ok(Empty::default())
    }

    async fn update_containers(&self, _: &TtrpcContext, _: UpdateContainersRequest) -> ttrpc::Result<UpdateContainersResponse> {
        Err(Error::RpcStatus(ttrpc::get_status(Code::UNIMPLEMENTED, "not used")))
    }
}

/// The missed containers that would go to the child.
static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// The refused containers that would go to the child.
static REFUSED: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn deal_with(missed: &MissedContainers) -> Result<(), SysError> {
    FOUND.lock().unwrap().extend(missed.containers.iter().map(|missed| missed.id.to_string()));
    REFUSED.lock().unwrap().extend(missed.refused.iter().map(|refused| refused.id.to_string()));
    Ok(())
}

fn shared(directory: &tempfile::TempDir) -> PluginShared {
    PluginShared {
        invocation: Invocation { binary: "/usr/local/bin/bpfman-hook".into(), engines: Engines::default(), root: None },
        policy: CachedPolicy::begin(&Paths::below(directory.path())).unwrap(),
        work: ProgramRuns::new("/bin/true".into(), None, deal_with),
        status: PluginStatus::new(PluginStart::External),
        name: "bpfman-hook".to_owned(),
        idx: "10".to_owned(),
    }
}

/// Runs a connection; `say` makes the runtime's calls after the plugin has registered.
fn connected<F: Future<Output = ()>>(say: impl FnOnce(service::PluginClient) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let shared = shared(&directory);
    runtime.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::select! {
            end = serve(&shared, ours) => panic!("the plugin disconnected: {end}"),
            () = play(theirs, say) => {}
        }
    });
}

/// The runtime's end of a connection.
async fn play<F: Future<Output = ()>>(stream: UnixStream, say: impl FnOnce(service::PluginClient) -> F) {
    let (plugin, own, pump) = mux::split(stream);
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
        end = pump.run() => panic!("the trunk broke: {end:?}"),
        said = tokio::time::timeout(Duration::from_secs(60), said) => said.unwrap(),
    }
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
            // NRI 0.6 knows events up to 11 and closes the connection at any other.
            assert_eq!(plugin.configure(context(), &configure).await.unwrap().events, 0b100_0000_1111);
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
            let end = Instant::now() + Duration::from_secs(20);
            while !REFUSED.lock().unwrap().contains(&create.container.id) {
                assert!(Instant::now() < end, "{version}: the refusal is not recorded");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut plain = create.clone();
            plain.pod.mut_or_insert_default().annotations.clear();
            plain.container.mut_or_insert_default().annotations.clear();
            assert!(plugin.create_container(context(), &plain).await.unwrap().adjust.is_none());
        });
    }
}

/// The RPCs of NRI 0.12 (pkg/api/api.proto), each with a message about a pod or a container. An RPC that the plugin
/// does not handle would return NOT_FOUND, and the runtime would refuse the pod.
#[test]
fn every_rpc_of_the_latest_protocol_is_answered() {
    connected(|plugin| async move {
        let change: StateChangeEvent = recorded("2.1.9_StateChange-RUN_POD_SANDBOX");
        let pod = PodEvent { pod: change.pod.clone(), ..Default::default() };
        let create: CreateContainerRequest = recorded("2.1.9_CreateContainer");
        let container = ContainerEvent { pod: create.pod.clone(), container: create.container.clone(), ..Default::default() };
        for answer in [
            plugin.run_pod_sandbox(context(), &pod).await,
            plugin.update_pod_sandbox(context(), &pod).await,
            plugin.post_update_pod_sandbox(context(), &pod).await,
            plugin.post_create_container(context(), &container).await,
            plugin.start_container(context(), &container).await,
            plugin.post_start_container(context(), &container).await,
            plugin.update_container(context(), &container).await,
            plugin.post_update_container(context(), &container).await,
            plugin.stop_container(context(), &container).await,
            plugin.remove_container(context(), &container).await,
            plugin.stop_pod_sandbox(context(), &pod).await,
            plugin.remove_pod_sandbox(context(), &pod).await,
            plugin.validate_container_adjustment(context(), &container).await,
            plugin.shutdown(context(), &Empty::default()).await,
        ] {
            assert_eq!(answer.unwrap(), Empty::default());
        }
    });
}

#[test]
fn the_end_of_a_connection_is_noticed_immediately() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let shared = shared(&directory);
    runtime.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let end = tokio::time::timeout(Duration::from_secs(5), serve(&shared, ours)).await;
        assert!(end.is_ok(), "the plugin is disconnected for five seconds or more");
    });
}

/// How CRI-O identifies itself, according to its source (internal/nri): the name and its version.
#[test]
fn cri_o_is_recognised_by_its_name() {
    connected(|plugin| async move {
        let configure =
            ConfigureRequest { runtime_name: "cri-o".to_owned(), runtime_version: "1.34.1".to_owned(), ..Default::default() };
        plugin.configure(context(), &configure).await.unwrap();
        let mut create: CreateContainerRequest = recorded("2.1.9_CreateContainer");
        let pod = create.pod.mut_or_insert_default();
        pod.annotations = [("hook.bpfman.io/bpffs".to_owned(), "private".to_owned())].into();
        create.container.mut_or_insert_default().annotations.clear();
        let answer = plugin.create_container(context(), &create).await.unwrap();
        assert_eq!(answer.adjust.hooks.create_runtime[0].args[3..], ["--engine", "cri-o"]);
    });
}

#[test]
fn the_answer_for_an_annotated_container_may_take_several_frames() {
    connected(|plugin| async move {
        let mut create: CreateContainerRequest = recorded("2.1.9_CreateContainer");
        let pod = create.pod.mut_or_insert_default();
        pod.annotations.clear();
        create.container.mut_or_insert_default().annotations.clear();
        let name = create.container.name.clone();
        let pod = create.pod.mut_or_insert_default();
        pod.annotations.insert("hook.bpfman.io/bpffs".to_owned(), "private".to_owned());
        // Extra blanks have no meaning, and make the answer longer than the runtime's buffer.
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

/// The environment variable with the socket for the test's plugin process.
const SOCKET: &str = "BPFMAN_HOOK_TEST_NRI_SOCKET";

#[test]
#[ignore = "the plugin as a separate process, for ten_thousand_containers_come_in_pieces"]
fn be_the_plugin() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let shared = shared(&directory);
    runtime.block_on(async {
        let stream = UnixStream::connect(std::env::var_os(SOCKET).unwrap()).await.unwrap();
        serve(&shared, stream).await;
        let found = || FOUND.lock().unwrap().iter().filter(|id| id.starts_with("container-")).count();
        // Work outside the handlers may finish after the connection has ended.
        let end = Instant::now() + Duration::from_secs(20);
        while found() < 100 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(found(), 100);
    });
}

/// Resource usage of a process: resident memory in KiB, its peak, and processor time.
fn used(pid: u32) -> (u64, u64, Duration) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line =
        |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().trim_end_matches(" kB").parse();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let ticks: Vec<i64> = stat.rsplit(')').next().unwrap().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // utime and stime: the tenth and eleventh number after the state, in ticks of 10 ms.
    (line("VmRSS:").unwrap(), line("VmHWM:").unwrap(), Duration::from_millis((ticks[10] + ticks[11]).cast_unsigned() * 10))
}

/// Containers as containerd describes them: 200 of them have our annotations, and every second of these lacks our hook.
#[test]
fn ten_thousand_containers_come_in_pieces() {
    const PIECE: usize = 250;
    let create: CreateContainerRequest = recorded("2.1.9_CreateContainer");
    let (mut pod, mut container) = (create.pod.unwrap(), create.container.unwrap());
    let annotations = [("hook.bpfman.io/bpffs", "private"), ("hook.bpfman.io/on-failure", "stop")];
    pod.annotations.retain(|key, _| !key.contains("hook.bpfman.io"));
    container.annotations.retain(|key, _| !key.contains("hook.bpfman.io"));
    container.state = ContainerState::CONTAINER_RUNNING.into();
    let bytes = container.compute_size() + pod.compute_size();
    let piece = |piece: usize| {
        let mut request = SynchronizeRequest { more: piece < 10_000 / PIECE - 1, ..Default::default() };
        for n in piece * PIECE..(piece + 1) * PIECE {
            let (mut pod, mut container) = (pod.clone(), container.clone());
            pod.id = format!("pod-{n}");
            (container.id, container.pod_sandbox_id, container.pid) =
                (format!("container-{n}"), pod.id.clone(), 1000 + n as u32);
            if n % 50 == 0 {
                pod.annotations.extend(annotations.map(|(key, value)| (key.to_owned(), value.to_owned())));
            }
            if n % 100 == 0 {
                let hook = Hook { path: "/usr/local/bin/bpfman-hook".into(), ..Default::default() };
                container.hooks.mut_or_insert_default().create_runtime.push(hook);
            }
            request.pods.push(pod);
            request.containers.push(container);
        }
        request
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nri.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut process = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "nri::tests::be_the_plugin"])
        .env(SOCKET, &path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let (pid, runtime) = (process.id(), tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    runtime.block_on(async {
        let stream = UnixStream::from_std(stream).unwrap();
        play(stream, |plugin| async move {
            let (before, begun) = (used(pid), Instant::now());
            for number in 0..10_000 / PIECE {
                let request = piece(number);
                assert_eq!(plugin.synchronize(context(), &request).await.unwrap().more, request.more);
            }
            let (after, whole) = (used(pid), begun.elapsed());
            let (grown, time) = (after.1 - before.0, after.2 - before.2);
            eprintln!("10 000 containers of {bytes} bytes: {time:?} in the plugin, {whole:?} in total, {grown} KiB peak");
            assert!(grown < 64 << 10, "{grown} KiB");
            // Without optimisation; the goal for an optimised build is one second.
            assert!(time < Duration::from_secs(5), "{time:?}");
        })
        .await;
    });
    drop(runtime);
    let gone = Instant::now();
    assert!(process.wait().unwrap().success());
    // The plugin would reconnect now; until then containers are missed.
    assert!(gone.elapsed() < Duration::from_secs(5), "{:?}", gone.elapsed());
}
