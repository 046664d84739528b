//! When the service starts and exits: idle time, signals, sockets passed by systemd.

use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use bpfman_hook::grpc::wire::ListRequest;

use crate::support::lab::BINARY;
use crate::support::process::eventually;
use crate::world::{World, client, run};

#[test]
fn it_exits_after_its_idle_time_and_removes_its_socket() {
    let world = World::new();
    let mut service = world.start(&["--timeout", "1"]);
    let asked = run(async {
        let mut client = world.client().await;
        client.list(ListRequest::default()).await.unwrap();
        let asked = Instant::now();
        // The connection stays open, and does not keep the service running.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let status = service.ended();
        assert!(status.success(), "{status}");
        asked
    });
    let took = asked.elapsed();
    assert!(took >= Duration::from_millis(950) && took < Duration::from_secs(3), "{took:?}");
    assert!(!world.socket.exists());
    world.lab.residue();
}

#[test]
fn with_timeout_0_it_runs_until_sigterm() {
    let world = World::new();
    let mut service = world.start(&["--timeout", "0"]);
    run(async { world.client().await.list(ListRequest::default()).await.unwrap() });
    assert!(service.child.try_wait().unwrap().is_none());
    service.signal("TERM");
    assert!(service.ended().success());
    assert!(!world.socket.exists());
    world.lab.residue();
}

#[test]
fn a_second_service_is_refused_and_a_killed_one_replaced() {
    let world = World::new();
    let first = world.start(&["--timeout", "0"]);
    let second = crate::support::process::ended(&mut world.lab.command(&["system", "service"]));
    assert_eq!(second.status.code(), Some(1));
    assert!(
        second.stderr.contains("another process already listens there; stop it, or choose another address"),
        "{}",
        second.stderr
    );
    drop(first); // kill -9
    assert!(world.socket.exists(), "the stale socket");
    let _again = world.start(&["--timeout", "0"]);
    run(async { world.client().await.list(ListRequest::default()).await.unwrap() });
}

/// The shell passes the sockets as systemd does, and its pid becomes the service's.
#[test]
fn systemds_sockets_are_used_and_no_other_is_created() {
    let world = World::new();
    let (one, two) = (world.lab.path("one.sock"), world.lab.path("two.sock"));
    let mut command = Command::new("systemd-socket-activate");
    command.arg(format!("--listen={}", one.display())).arg(format!("--listen={}", two.display()));
    command.args(["--fdname=first:second", BINARY, "--root"]).arg(world.lab.root()).env_remove("RUST_LOG");
    let mut service = world.spawn(&["--timeout", "1"], &mut command);
    let connected = eventually("the sockets", crate::world::PATIENCE, || UnixStream::connect(&two).ok());
    drop(connected);
    run(async {
        client(&one).await.list(ListRequest::default()).await.unwrap();
        client(&two).await.list(ListRequest::default()).await.unwrap();
    });
    assert!(!world.socket.exists());
    assert!(service.ended().success());
    assert!(one.exists() && two.exists(), "they are systemd's");
    world.lab.residue();
}
