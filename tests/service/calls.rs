//! The seven RPCs on the real kernel.

use std::collections::HashMap;
use std::process::Command;
use std::time::{Duration, Instant};

use bpfman_hook::grpc::wire::attach_info::Info;
use bpfman_hook::grpc::wire::bytecode_location::Location;
use bpfman_hook::grpc::wire::{
    AttachInfo, AttachRequest, BytecodeImage, BytecodeLocation, DetachRequest, GetRequest, ListRequest, LoadInfo, LoadRequest,
    PullBytecodeRequest, UnloadRequest, XdpAttachInfo,
};
use tonic::Code;

use crate::support::netns::Netns;
use crate::support::process::{PATIENCE, eventually};
use crate::world::{Client, World, client, run};

const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bpf/counter.bpf.o");

fn load_of(path: &str, function: &str, metadata: &[(&str, &str)]) -> LoadRequest {
    LoadRequest {
        bytecode: Some(BytecodeLocation { location: Some(Location::File(path.to_owned())) }),
        metadata: metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        info: vec![LoadInfo { name: function.to_owned(), program_type: 0, info: None }],
        ..LoadRequest::default()
    }
}

fn xdp(id: u32, netns: &Netns) -> AttachRequest {
    let info = XdpAttachInfo { iface: "lo".to_owned(), priority: 50, netns: Some(netns.path()), ..XdpAttachInfo::default() };
    AttachRequest { id, attach: Some(AttachInfo { info: Some(Info::XdpAttachInfo(info)) }) }
}

fn ours(metadata: &[(&str, &str)]) -> ListRequest {
    let match_metadata: HashMap<_, _> = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ListRequest { bpfman_programs_only: Some(true), match_metadata, ..ListRequest::default() }
}

async fn load(client: &mut Client, metadata: &[(&str, &str)]) -> u32 {
    let answer = client.load(load_of(OBJECT, "count", metadata)).await.unwrap().into_inner();
    answer.programs[0].kernel_info.as_ref().unwrap().id
}

#[test]
fn a_program_is_loaded_attached_shown_detached_and_unloaded() {
    let world = World::new();
    let netns = Netns::new();
    let service = world.start(&[]);
    run(async {
        let mut client = world.client().await;
        let id = load(&mut client, &[("bpfman.io/uuid", "u-1"), ("bpfman.io/application", "shop")]).await;
        let link = client.attach(xdp(id, &netns)).await.unwrap().into_inner().link_id;

        let got = client.get(GetRequest { id }).await.unwrap().into_inner();
        let (info, kernel) = (got.info.unwrap(), got.kernel_info.unwrap());
        assert_eq!((info.name.as_str(), info.links.as_slice()), ("count", &[link][..]));
        assert_eq!(info.bytecode.unwrap().location, Some(Location::File(OBJECT.to_owned())));
        assert_eq!((kernel.id, kernel.program_type, kernel.gpl_compatible), (id, 6, true));
        assert!(kernel.bytes_xlated > 0 && kernel.verified_insns > 0 && !kernel.map_ids.is_empty() && kernel.tag.len() == 16);

        let listed = client.list(ours(&[("bpfman.io/uuid", "u-1")])).await.unwrap().into_inner().results;
        assert_eq!(listed.len(), 1);
        assert!(client.list(ours(&[("bpfman.io/uuid", "u-2")])).await.unwrap().into_inner().results.is_empty());
        let all = client.list(ListRequest::default()).await.unwrap().into_inner().results;
        assert!(all.iter().any(|one| one.kernel_info.as_ref().unwrap().id == id));

        let second = load(&mut client, &[]).await;
        let taken = client.attach(xdp(second, &netns)).await.unwrap_err();
        assert_eq!(taken.code(), Code::FailedPrecondition, "{taken:?}");
        assert!(taken.message().contains("takes only one XDP program"), "{}", taken.message());
        // The failed attach has left nothing behind, and the next one succeeds.
        client.detach(DetachRequest { link_id: link }).await.unwrap();
        client.attach(xdp(second, &netns)).await.unwrap();

        for id in [id, second] {
            client.unload(UnloadRequest { id }).await.unwrap();
        }
        assert_eq!(client.unload(UnloadRequest { id }).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(client.detach(DetachRequest { link_id: link }).await.unwrap_err().code(), Code::NotFound);
        assert!(client.list(ours(&[])).await.unwrap().into_inner().results.is_empty());
    });
    service.stop();
    // The calls appear in the events.
    let events = std::fs::read_to_string(world.lab.path("root/run/bpfman-hook/export/events")).unwrap();
    for what in ["loaded", "attached", "detached", "unloaded"] {
        assert!(events.contains(&format!("\"{what}\"")), "{what}: {events}");
    }
    world.lab.residue();
}

#[test]
fn kill_9_loses_nothing_and_duplicates_nothing() {
    let world = World::new();
    let netns = Netns::new();
    let first = world.start(&[]);
    let (id, link) = run(async {
        let mut client = world.client().await;
        let id = load(&mut client, &[("k", "v")]).await;
        (id, client.attach(xdp(id, &netns)).await.unwrap().into_inner().link_id)
    });
    drop(first); // SIGKILL
    let second = world.start(&[]);
    run(async {
        let mut client = world.client().await;
        let listed = client.list(ours(&[("k", "v")])).await.unwrap().into_inner().results;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].info.as_ref().unwrap().links, [link]);
        client.unload(UnloadRequest { id }).await.unwrap();
    });
    second.stop();
    world.lab.residue();
}

#[test]
fn a_reply_that_a_killed_service_has_not_read_is_undone() {
    let world = World::new();
    for _ in 0..40 {
        let service = world.start(&["--timeout", "0"]);
        let pid = service.child.id();
        let (loaded, answered) = run(async {
            let mut client = world.client().await;
            let call = tokio::spawn(async move { client.load(load_of(OBJECT, "count", &[])).await });
            while crate::abuse::children(pid) == 0 && !call.is_finished() {
                tokio::task::yield_now().await;
            }
            service.signal("STOP");
            // The child does the work and replies, but the reply is not read. A child that did not get its request
            // before the service stopped never does the work.
            let stopped = Instant::now();
            let mut loaded = false;
            while !loaded && stopped.elapsed() < Duration::from_secs(2) {
                loaded = world.lab.ours(&["list", "programs"]).contains("count");
            }
            drop(service); // SIGKILL
            (loaded, call.await.unwrap().ok())
        });
        if !loaded {
            continue;
        }
        let Some(answer) = answered else {
            eventually("nothing", PATIENCE, || (!world.lab.ours(&["list", "programs"]).contains("count")).then_some(()));
            world.lab.residue();
            return;
        };
        // The service was faster than the test.
        let id = answer.into_inner().programs[0].kernel_info.as_ref().unwrap().id;
        world.lab.ours(&["unload", &id.to_string()]);
    }
    panic!("forty times it was stopped too early or too late");
}

#[test]
fn hostile_requests_are_refused_with_a_code_and_a_message() {
    let world = World::new();
    let service = world.start(&["--timeout", "0"]);
    let directory = world.lab.path("images");
    std::fs::write(directory.join("text.o"), "no object").unwrap();
    let fifo = directory.join("fifo.o");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let text = directory.join("text.o").display().to_string();
    run(async {
        let mut client = world.client().await;
        let load = async |client: &mut Client, request| client.load(request).await.unwrap_err();
        let cases = [
            (load_of("/nowhere/x.o", "count", &[]), Code::NotFound, "read /nowhere/x.o"),
            (load_of("/proc", "count", &[]), Code::InvalidArgument, "not a regular file"),
            (load_of(&fifo.display().to_string(), "count", &[]), Code::InvalidArgument, "not a regular file"),
            (load_of(&text, "count", &[]), Code::FailedPrecondition, "ELF"),
            (load_of(OBJECT, "nothing", &[]), Code::InvalidArgument, "it has count"),
            (load_of("relative.o", "count", &[]), Code::InvalidArgument, "absolute path"),
            (
                LoadRequest { global_data: [("nope".to_owned(), vec![1])].into(), ..load_of(OBJECT, "count", &[]) },
                Code::InvalidArgument,
                "no program declares",
            ),
            (LoadRequest::default(), Code::InvalidArgument, "neither a file nor an image"),
        ];
        for (request, code, sentence) in cases {
            let status = load(&mut client, request).await;
            assert!(status.code() == code && status.message().contains(sentence), "{code:?} {sentence}: {status:?}");
        }
        let mut huge = load_of(OBJECT, "count", &[]);
        huge.global_data.insert("huge".to_owned(), vec![0; 8 << 20]);
        assert_eq!(load(&mut client, huge).await.code(), Code::OutOfRange);

        for id in [0, 1, u32::MAX] {
            let code = if id == 0 { Code::InvalidArgument } else { Code::NotFound };
            assert_eq!(client.unload(UnloadRequest { id }).await.unwrap_err().code(), code, "unload {id}");
            assert_eq!(client.detach(DetachRequest { link_id: id }).await.unwrap_err().code(), code, "detach {id}");
        }
        assert_eq!(client.get(GetRequest { id: u32::MAX }).await.unwrap_err().code(), Code::NotFound);

        // Not signed, and no rule applies to it: refused as for a container.
        let image = BytecodeImage { url: "oci:/nowhere".to_owned(), image_pull_policy: 1, ..BytecodeImage::default() };
        let status = client.pull_bytecode(PullBytecodeRequest { image: Some(image) }).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        assert!(client.list(ours(&[])).await.unwrap().into_inner().results.is_empty());
    });
    service.stop();
    world.lab.residue();
}

#[test]
fn two_hundred_requests_of_many_clients_at_once() {
    let world = World::new();
    let service = world.start(&["--timeout", "0"]);
    run(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let socket = world.socket.clone();
            tasks.spawn(async move {
                let mut all = tokio::task::JoinSet::new();
                let first = client(&socket).await;
                for n in 0..10 {
                    let mut client = first.clone();
                    all.spawn(async move {
                        if n == 0 {
                            let id = load(&mut client, &[]).await;
                            client.unload(UnloadRequest { id }).await.unwrap();
                        } else {
                            client.list(ours(&[("no", "one")])).await.unwrap();
                        }
                    });
                }
                while let Some(done) = all.join_next().await {
                    done.unwrap();
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
    service.stop();
    world.lab.residue();
}

#[test]
fn a_running_request_keeps_the_service_alive_and_does_not_block_others() {
    let world = World::new();
    // A registry that accepts connections and sends nothing.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = registry.local_addr().unwrap().port();
    world.lab.policy(&format!("[[image]]\nrepository = \"127.0.0.1:{port}/**\"\nunsigned = true\n"));
    let mut service = world.start(&["--timeout", "1"]);
    run(async {
        let mut slow = world.client().await;
        let pull = tokio::spawn(async move {
            let url = format!("127.0.0.1:{port}/slow/image:v1");
            let image = BytecodeImage { url, image_pull_policy: 0, ..BytecodeImage::default() };
            slow.pull_bytecode(PullBytecodeRequest { image: Some(image) }).await
        });
        tokio::task::spawn_blocking(move || drop(registry.accept().unwrap())).await.unwrap();
        let mut quick = world.client().await;
        let began = Instant::now();
        quick.list(ours(&[])).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "it must not wait for the pull");
        pull.abort();
        let _ = pull.await;
    });
    assert!(service.ended().success(), "the request of a disconnected client no longer keeps it running");
    world.lab.residue();
}

#[test]
fn invalid_files_and_out_of_range_numbers_are_refused() {
    use std::os::unix::fs::{MetadataExt as _, symlink};
    let world = World::new();
    let service = world.start(&["--timeout", "0"]);
    let directory = world.lab.path("images");
    let sparse = directory.join("sparse.o");
    std::fs::File::create(&sparse).unwrap().set_len(2 << 30).unwrap();
    let (link, fifo) = (directory.join("link.o"), directory.join("fifo"));
    symlink("/dev/zero", &link).unwrap();
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let shown = |path: &std::path::Path| path.display().to_string();
    run(async {
        let mut client = world.client().await;
        for (path, code, sentence) in [
            ("/dev/zero", Code::InvalidArgument, "not a regular file"),
            (&shown(&link), Code::InvalidArgument, "not a regular file"),
            (&shown(&sparse), Code::InvalidArgument, "bytes"),
            ("/usr/lib/../lib/x.o", Code::InvalidArgument, "absolute path"),
            ("/usr//lib/x.o", Code::InvalidArgument, "absolute path"),
            ("/a\0b", Code::InvalidArgument, ""),
            ("", Code::InvalidArgument, "absolute path"),
        ] {
            let status = client.load(load_of(path, "count", &[])).await.unwrap_err();
            assert!(status.code() == code && status.message().contains(sentence), "{path:?}: {status:?}");
            assert!(!status.message().contains('\0'), "{status:?}");
        }
        // A file that a client names as a namespace is not opened before it is known to be one.
        let id = load(&mut client, &[]).await;
        let place = |netns: &str| {
            let netns = Some(netns.to_owned());
            let info = XdpAttachInfo { iface: "lo".to_owned(), priority: 50, netns, ..XdpAttachInfo::default() };
            AttachRequest { id, attach: Some(AttachInfo { info: Some(Info::XdpAttachInfo(info)) }) }
        };
        let began = Instant::now();
        for (netns, sentence) in [
            (shown(&fifo), "it is not a namespace file"),
            ("/dev/zero".to_owned(), "it is not a namespace file"),
            (shown(&sparse), "it is not a namespace file"),
            ("/proc/self/ns/mnt".to_owned(), "enter the network namespace"),
            ("/nowhere".to_owned(), "No such file"),
        ] {
            let status = client.attach(place(&netns)).await.unwrap_err();
            assert!(status.message().contains(sentence), "{netns}: {status:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(10), "one of them waited: {:?}", began.elapsed());

        let mut odd = load_of(OBJECT, "count", &[]);
        odd.info[0].program_type = 99;
        assert_eq!(client.load(odd).await.unwrap_err().code(), Code::InvalidArgument);
        let long = "m".repeat(1 << 20);
        let status = client.load(load_of(OBJECT, "count", &[("k", &long)])).await.unwrap_err();
        assert!(matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted), "{:?}", status.code());
        assert!(status.message().len() < 1000, "the message repeats {} bytes", status.message().len());
        let image = BytecodeImage { url: "oci:/x".to_owned(), image_pull_policy: 9, ..BytecodeImage::default() };
        let status = client.pull_bytecode(PullBytecodeRequest { image: Some(image) }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        client.unload(UnloadRequest { id }).await.unwrap();

        // Ids that do not exist, all at once over one connection.
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..500_u32 {
            let mut client = client.clone();
            calls.spawn(async move { client.unload(UnloadRequest { id: u32::MAX - n }).await.unwrap_err().code() });
        }
        while let Some(code) = calls.join_next().await {
            assert_eq!(code.unwrap(), Code::NotFound);
        }
    });
    assert_eq!(std::fs::metadata(&sparse).unwrap().blocks(), 0);
    service.stop();
    world.lab.residue();
}
