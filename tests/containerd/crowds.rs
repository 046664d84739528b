//! Many pods at once, and pods that are deleted while they start.

use std::thread;

use crate::node::Node;
use crate::pod::{ContainerSpec, Pod};
use crate::pods::{assert_counts, counted_pod};

crate::cases![fifty_pods_at_once, pods_are_deleted_under_load];

const CROWD: usize = 50;

fn fifty_pods_at_once(node: &mut Node) {
    let first = counted_pod(node, "first").run(node).unwrap();
    let main = first.add(&ContainerSpec::new("main")).unwrap();
    node.world.lab.expect_links(1, "one pod before the others");
    let spec = counted_pod(node, "crowd");
    let node = &*node;
    let pods: Vec<(Pod, String)> = thread::scope(|scope| {
        let start = |number: usize| {
            let spec = spec.clone().named(&format!("crowd-{number}"));
            scope.spawn(move || {
                let pod = spec.run(node).unwrap();
                let main = pod.add(&ContainerSpec::new("main")).unwrap();
                (pod, main)
            })
        };
        let starting: Vec<_> = (0..CROWD).map(start).collect();
        starting.into_iter().map(|pod| pod.join().unwrap()).collect()
    });
    node.world.lab.expect_links(1 + CROWD, "every pod has its program");
    let (last, its) = pods.last().unwrap();
    assert_counts(node, last, its);
    thread::scope(|scope| {
        for (pod, _) in pods {
            scope.spawn(|| pod.remove().unwrap());
        }
    });
    node.world.lab.expect_links(1, "the crowd is gone");
    assert_counts(node, &first, &main);
}

fn pods_are_deleted_under_load(node: &mut Node) {
    let spec = counted_pod(node, "stays");
    let stays = spec.run(node).unwrap();
    let main = stays.add(&ContainerSpec::new("main")).unwrap();
    node.world.lab.expect_links(1, "the pod that stays");
    let node = &*node;
    thread::scope(|scope| {
        for worker in 0..4 {
            let spec = &spec;
            scope.spawn(move || {
                for round in 0..5 {
                    let pod = spec.clone().named(&format!("goes-{worker}-{round}")).run(node).unwrap();
                    let container = pod.create(&ContainerSpec::new("main")).unwrap();
                    let beside = pod.beside(node);
                    thread::scope(|scope| {
                        // Whether it still starts depends on timing.
                        scope.spawn(move || drop(beside.start(&container)));
                        if round % 2 == 0 {
                            thread::yield_now();
                        }
                        // A pod that is still starting may have to be stopped more than once, as the kubelet does.
                        let gone = (0..20).find(|_| pod.beside(node).remove().is_ok());
                        assert!(gone.is_some(), "the pod cannot be removed: {:?}", pod.beside(node).remove());
                    });
                }
            });
        }
    });
    node.world.lab.expect_links(1, "only the pod that stayed has a program");
    assert_counts(node, &stays, &main);
}
