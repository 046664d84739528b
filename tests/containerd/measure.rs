//! The plugin's cost per pod: RunPodSandbox, CreateContainer and StartContainer, as the kubelet sees them. Not a test:
//! `make bench` runs it, alone and on an idle machine.

use std::thread;
use std::time::{Duration, Instant};

use crate::node::{Node, USUAL};
use crate::pod::{ContainerSpec, PodSpec};
use crate::support::lab::Hooks;
use crate::support::world::World;

const PODS: usize = 30;
const CROWD: usize = 50;

#[test]
#[ignore = "a measurement, for `make bench`"]
fn pods_with_and_without_the_plugin() {
    let mut node = Node::new(World::new(Hooks::Ours), USUAL);
    let image = node.world.signed("demo");
    let plain = PodSpec::new("plain").annotate("example.org/owner", "net");
    let counted = PodSpec::new("counted").ask("image", &image).ask("programs", "xdp:count_packets iface=eth0");
    let token = PodSpec::new("token").userns().ask("delegate", "maps");
    let userns = PodSpec::new("userns").userns();
    one(&node, &plain);
    let mut cases = [
        ("no annotation, no plugin", &plain, false, Vec::new()),
        ("no annotation", &plain, true, Vec::new()),
        ("xdp on eth0", &counted, true, Vec::new()),
        ("user namespace, no plugin", &userns, false, Vec::new()),
        ("user namespace, token", &token, true, Vec::new()),
    ];
    for _ in 0..PODS {
        for plugin in [true, false] {
            if plugin {
                node.start_plugin();
            } else {
                node.kill_plugin();
            }
            for (_, spec, with, times) in &mut cases {
                if *with == plugin {
                    times.push(one(&node, spec));
                }
            }
        }
    }
    println!("a pod with one container, from RunPodSandbox to the end of StartContainer: median of {PODS}, in ms");
    for (name, _, _, times) in &mut cases {
        times.sort();
        println!("  {name:28} {:6.1}", times[times.len() / 2].as_secs_f64() * 1e3);
    }
    println!("{CROWD} pods at once, until the last one runs, in ms");
    for (name, spec, plugin) in
        [("no annotation, no plugin", &plain, false), ("no annotation", &plain, true), ("xdp on eth0", &counted, true)]
    {
        node.kill_plugin();
        if plugin {
            node.start_plugin();
        }
        println!("  {name:28} {:6.0}", crowd(&node, spec).as_secs_f64() * 1e3);
    }
    node.end();
    node.world.lab.residue();
}

fn one(node: &Node, spec: &PodSpec) -> Duration {
    let begun = Instant::now();
    let pod = spec.run(node).unwrap();
    pod.add(&ContainerSpec::new("main")).unwrap();
    let took = begun.elapsed();
    pod.remove().unwrap();
    took
}

fn crowd(node: &Node, spec: &PodSpec) -> Duration {
    let begun = Instant::now();
    let pods: Vec<_> = thread::scope(|scope| {
        let start = |number: usize| {
            let spec = spec.clone().named(&format!("crowd-{number}"));
            scope.spawn(move || {
                let pod = spec.run(node).unwrap();
                pod.add(&ContainerSpec::new("main")).unwrap();
                pod
            })
        };
        let starting: Vec<_> = (0..CROWD).map(start).collect();
        starting.into_iter().map(|pod| pod.join().unwrap()).collect()
    });
    let took = begun.elapsed();
    for pod in pods {
        pod.remove().unwrap();
    }
    took
}
