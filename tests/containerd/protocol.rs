//! The plugin's protocol with NRI's Go implementation in containerd, on a recorded connection.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use prost::Message as _;
use rustix::process::Signal;

use crate::node::Node;
use crate::pod::{ContainerSpec, PodSpec};
use crate::pods::{assert_counts, counted_pod};
use crate::proxy::{Change, OURS, PLUGIN, Proxy, REQUEST, RESPONSE, RUNTIME, Response};
use crate::support::process::eventually;

crate::cases![
    a_plugin_registers_and_gets_requests,
    a_long_response_is_split_into_short_frames,
    unknown_fields_calls_and_events_are_tolerated,
    synchronize_is_split_into_several_messages,
    the_plugin_reconnects_with_growing_delays,
];

/// Maximum payload that the Go side reads.
const FRAME_MAX: usize = 4096;
/// The status code of an unknown method; a newer runtime then falls back.
const UNIMPLEMENTED: i32 = 12;

/// Inserts the proxy, and waits until the plugin has been synchronized through it.
fn wired(node: &mut Node, change: Change) -> Proxy {
    node.kill_plugin();
    let proxy = Proxy::start(&node.outside("/run/nri/wire.sock"), &node.outside(crate::node::SOCKET), change);
    let before = node.synchronized();
    assert!(node.start_plugin_on("/run/nri/wire.sock"), "there is no plugin");
    node.wait_for_plugin(before);
    proxy
}

fn as_it_is(_: &mut crate::proxy::Request) {}

#[derive(Clone, PartialEq, prost::Message)]
struct RegisterPluginRequest {
    #[prost(string, tag = "1")]
    plugin_name: String,
    #[prost(string, tag = "2")]
    plugin_idx: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ConfigureResponse {
    #[prost(int32, tag = "2")]
    events: i32,
}

/// `more` has different field numbers in a request and in its response.
#[derive(Clone, PartialEq, prost::Message)]
struct SynchronizeRequest {
    #[prost(bool, tag = "3")]
    more: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SynchronizeResponse {
    #[prost(bool, tag = "2")]
    more: bool,
}

pub fn a_plugin_registers_and_gets_requests(node: &mut Node) {
    let proxy = wired(node, as_it_is);
    let pod = counted_pod(node, "web").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &pod, &main);
    let heard = proxy.heard();
    let requests: Vec<_> = heard.said.iter().filter(|said| said.kind == REQUEST).collect();
    let methods: Vec<_> = requests.iter().map(|said| said.request().method).collect();
    assert_eq!(methods[..3], ["RegisterPlugin", "Configure", "Synchronize"]);
    assert_eq!(methods.iter().filter(|method| *method == "CreateContainer").count(), 1, "{methods:?}");
    let registered = RegisterPluginRequest::decode(&*requests[0].request().payload).unwrap();
    assert_eq!((registered.plugin_idx.as_str(), registered.plugin_name.as_str()), ("10", "bpfman-hook"));
    for said in &heard.said {
        let called = if said.by_plugin == (said.kind == REQUEST) { RUNTIME } else { PLUGIN };
        assert_eq!(said.connection, called, "{said:?}");
        assert_eq!(said.stream % 2, 1, "clients use odd streams: {said:?}");
    }
    // Bit n is event n + 1. Events without a subscription are not sent.
    let configured = heard.said.iter().find(|said| said.by_plugin && said.connection == PLUGIN).unwrap();
    let answer = Response::decode(&*configured.body).unwrap();
    let mask = ConfigureResponse::decode(&*answer.payload).unwrap().events;
    assert!(mask != 0 && mask & !0x7ff == 0, "containerd 1.7 knows eleven events: {mask:#x}");
    assert!(!methods.contains(&"StopContainer".to_owned()), "{methods:?}");
}

pub fn a_long_response_is_split_into_short_frames(node: &mut Node) {
    let proxy = wired(node, as_it_is);
    // Blanks around a word have no meaning, and the response contains the annotation as the request did.
    let spec = counted_pod(node, "long").ask("bpffs", &format!("private{}", " ".repeat(60_000)));
    let pod = spec.run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &pod, &main);
    let heard = proxy.heard();
    let longest = heard.said.iter().filter(|said| said.by_plugin).map(|said| said.body.len()).max();
    assert!(longest > Some(60_000), "{longest:?}");
    assert!(heard.longest <= FRAME_MAX, "a frame of {} bytes", heard.longest);
}

/// Fields of all wire types that no message defines, once in the message itself and once in its pod and container.
fn with_unknown_fields(request: &mut crate::proxy::Request) {
    let key = |number: u32, kind: u32| {
        let mut bytes = Vec::new();
        prost::encoding::encode_varint(u64::from(number << 3 | kind), &mut bytes);
        bytes
    };
    let unknown = [key(1000, 0), vec![7], key(1001, 1), vec![1; 8], key(1002, 2), vec![3, 1, 2, 3], key(1003, 5), vec![1; 4]];
    let unknown = unknown.concat();
    match &*request.method {
        "CreateContainer" => {
            let mut both = PodAndContainer::decode(&*request.payload).unwrap();
            both.pod.extend(&unknown);
            both.container.extend(&unknown);
            request.payload = both.encode_to_vec();
        }
        "StateChange" => {
            let mut event = StateChangeEvent::decode(&*request.payload).unwrap();
            event.pod.extend(&unknown);
            request.payload = event.encode_to_vec();
        }
        _ => {}
    }
    request.payload.extend(&unknown);
}

/// A CreateContainer request, with its contents as bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct PodAndContainer {
    #[prost(bytes = "vec", tag = "1")]
    pod: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    container: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StateChangeEvent {
    #[prost(int32, tag = "1")]
    event: i32,
    #[prost(bytes = "vec", tag = "2")]
    pod: Vec<u8>,
}

fn unknown_fields_calls_and_events_are_tolerated(node: &mut Node) {
    let proxy = wired(node, with_unknown_fields);
    // StateChange with an unknown event, then calls that no version of the protocol defines yet.
    proxy.call(OURS, "StateChange", vec![0x08, 99]);
    for (number, method) in [(1, "RewindContainer"), (2, "PostRewindPodSandbox"), (3, "RewindPodSandbox")] {
        proxy.call(OURS + 2 * number, method, Vec::new());
    }
    let answers = eventually("four answers", Duration::from_secs(10), || {
        let heard = proxy.heard();
        let answers = heard.said.iter().filter(|said| said.by_plugin && said.kind == RESPONSE && said.stream >= OURS);
        let answers: Vec<_> = answers.map(|said| (said.stream, Response::decode(&*said.body).unwrap())).collect();
        (answers.len() == 4).then_some(answers)
    });
    for (stream, answer) in answers {
        let code = answer.status.map(|status| status.code).unwrap_or_default();
        assert_eq!(code, if stream == OURS { 0 } else { UNIMPLEMENTED }, "stream {stream}");
    }
    let pod = counted_pod(node, "web").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &pod, &main);
}

fn synchronize_is_split_into_several_messages(node: &mut Node) {
    assert!(node.has_plugin(), "there is no plugin");
    // A message has at most 4 MiB, and NRI puts at least eight pods and containers into one.
    let long = "x".repeat(300 << 10);
    for number in 0..18 {
        PodSpec::new(&format!("large-{number}")).annotate("example.org/large", &long).run(node).unwrap();
    }
    let proxy = wired(node, as_it_is);
    let pod = counted_pod(node, "web").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &pod, &main);
    let heard = proxy.heard();
    let asked: Vec<_> = heard.said.iter().filter(|said| said.request().method == "Synchronize").collect();
    let mores: Vec<_> = asked.iter().map(|said| SynchronizeRequest::decode(&*said.request().payload).unwrap().more).collect();
    assert!(mores.len() > 1 && mores[..mores.len() - 1].iter().all(|more| *more), "{mores:?}");
    for (said, more) in asked.iter().zip(&mores) {
        let answer =
            heard.said.iter().find(|answer| answer.by_plugin && answer.kind == RESPONSE && answer.stream == said.stream);
        let answer = Response::decode(&*answer.unwrap().body).unwrap();
        assert_eq!(SynchronizeResponse::decode(&*answer.payload).unwrap().more, *more);
    }
}

fn the_plugin_reconnects_with_growing_delays(node: &mut Node) {
    node.kill_plugin();
    node.stop_daemon(Signal::TERM);
    let socket = node.outside(crate::node::SOCKET);
    let _stale = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let before = node.synchronized();
    assert!(node.start_plugin_on(crate::node::SOCKET), "there is no plugin");
    let mut came = Vec::new();
    eventually("five attempts", Duration::from_secs(20), || {
        // Every connection is closed immediately.
        came.extend(listener.accept().ok().map(|_| Instant::now()));
        (came.len() == 5).then_some(())
    });
    for (number, pair) in came.windows(2).enumerate() {
        let (pause, least) = (pair[1] - pair[0], Duration::from_millis(95) * (1 << number));
        assert!(pause >= least, "attempt {number} came {pause:?} after the one before, not {least:?}");
    }
    drop(listener);
    std::fs::remove_file(&socket).unwrap();
    node.start_daemon();
    node.wait_for_plugin(before);
    let pod = counted_pod(node, "web").run(node).unwrap();
    let main = pod.add(&ContainerSpec::new("main")).unwrap();
    assert_counts(node, &pod, &main);
}
