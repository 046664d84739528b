//! Clients that use more than their share.

use std::path::Path;
use std::time::{Duration, Instant};

use bpfman_hook::grpc::wire::bytecode_location::Location;
use bpfman_hook::grpc::wire::{BytecodeImage, BytecodeLocation, ListRequest, LoadInfo, LoadRequest, LoadResponse};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::{self, StreamExt as _};
use tonic::{Code, Request};

use crate::peers::{as_another, open_to_all};
use crate::support::helper_process;
use crate::support::process::eventually;
use crate::world::{PATIENCE, World, channel, run};

/// The variable that turns this test binary into a client that never completes its requests: the socket's path.
const ENDLESS: &str = "BPFMAN_HOOK_TEST_ENDLESS_CLIENT";

/// A helper process, not a test: sends twelve requests of 900 KiB that never end, and prints the first response.
#[test]
fn endless_process() {
    let Some(socket) = helper_process::task(ENDLESS) else { return };
    run(async {
        let channel = channel(Path::new(&socket)).await.unwrap();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let mut grpc = Grpc::new(channel.clone());
            calls.spawn(async move {
                grpc.ready().await.unwrap();
                let message =
                    LoadRequest { global_data: [("x".to_owned(), vec![0; 900 << 10])].into(), ..LoadRequest::default() };
                let body = tokio_stream::iter([message]).chain(tokio_stream::pending());
                let codec = tonic_prost::ProstCodec::<LoadRequest, LoadResponse>::default();
                let path = PathAndQuery::from_static("/bpfman.v1.Bpfman/Load");
                grpc.client_streaming(Request::new(body), path, codec).await.map(drop)
            });
        }
        let first = calls.join_next().await.unwrap().unwrap().unwrap_err();
        println!("endless: {:?}", first.code());
    });
}

#[test]
fn endless_requests_do_not_fill_the_memory() {
    let world = World::new();
    world.lab.policy("[[client]]\nuser = 12345\nallow = [\"load\"]\n");
    let service = world.start(&["--timeout", "0"]);
    open_to_all(&world);
    let foreign = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "env"];
    let variable = format!("{ENDLESS}={}", world.socket.display());
    let answer = as_another(&world, &[&foreign[..], &[&variable]].concat(), "abuse::endless_process");
    assert!(answer.contains("endless: ResourceExhausted"), "{answer}");
    run(async { world.client().await.list(ListRequest::default()).await.unwrap() });
    service.stop();
    world.lab.residue();
}

/// The number of a service's child processes.
pub fn children(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks.map(|task| of(task).split_whitespace().count()).sum()
}

#[test]
fn an_abandoned_request_keeps_its_slot_until_its_process_has_ended() {
    const PLACES: usize = 16;
    let world = World::new();
    // A registry that accepts connections and sends nothing.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = registry.local_addr().unwrap().port();
    world.lab.policy(&format!("[[image]]\nrepository = \"127.0.0.1:{port}/**\"\nunsigned = true\n"));
    let service = world.start(&["--timeout", "0"]);
    let load = move |n: usize| {
        let url = format!("127.0.0.1:{port}/slow/image:v{n}");
        let image = BytecodeImage { url, image_pull_policy: 0, ..BytecodeImage::default() };
        LoadRequest {
            bytecode: Some(BytecodeLocation { location: Some(Location::Image(image)) }),
            info: vec![LoadInfo { name: "count".to_owned(), program_type: 0, info: None }],
            ..LoadRequest::default()
        }
    };
    let pid = service.child.id();
    run(async {
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..PLACES {
            let mut client = world.client().await;
            calls.spawn(async move { client.load(load(n)).await });
        }
        let began = Instant::now();
        while children(pid) < PLACES && began.elapsed() < PATIENCE {
            tokio::task::yield_now().await;
        }
        calls.abort_all();
        while calls.join_next().await.is_some() {}
        let mut client = world.client().await;
        let mut late = Request::new(load(PLACES));
        late.set_timeout(Duration::from_secs(1));
        let status = client.load(late).await.unwrap_err();
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
        assert_eq!(children(pid), PLACES, "the number of processes is bounded");
        // Other requests are not delayed.
        client.list(ListRequest::default()).await.unwrap();
    });
    // The registry disconnects, and the abandoned requests end.
    registry.set_nonblocking(true).unwrap();
    eventually("the processes to end", PATIENCE, || {
        while registry.accept().is_ok() {}
        (children(pid) == 0).then_some(())
    });
    service.stop();
    world.lab.residue();
}
