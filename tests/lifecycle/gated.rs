//! Containers whose rule lists executables for the gate.

use std::fs;

use bpfman_hook::lifecycle::Cause;
use bpfman_hook::lifecycle::acquire::Acquired;
use bpfman_hook::model::record::Phase;

use crate::fake::{FakeHost, Trouble};
use crate::{HOOK, INIT, PROGRAMS, World, container, create, policy, stop};

#[test]
fn a_container_has_its_list_whatever_else_fails_and_until_it_ends() {
    let asking = |programs| container("web", "/bundles/web", INIT, programs, &[("on-failure", "continue")]);
    let digest = format!("sha256:{}", "1".repeat(64));
    let gated = policy(&format!("on-failure = [\"stop\", \"continue\"]\ngate = [\"{digest}\"]\n"));
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    let acquired = create(&world, &host, &asking("xdp:count iface=eth7"), &gated).expect("starts without");
    assert!(matches!(acquired, Acquired::Without(_)));
    let records = world.records();
    let [record] = &records[..] else { panic!("{records:?}") };
    assert!(record.phase == Phase::Ready && record.programs.is_empty());
    let list = record.owner.container().and_then(|container| container.gated.clone()).expect("it has a list");
    assert_eq!(list.executables.iter().map(ToString::to_string).collect::<Vec<_>>(), [digest]);
    let file = world.fs.join("gate").join(list.cgroup.to_string());
    assert!(file.exists());
    host.end(INIT);
    stop(&world, &host, "web");
    assert!(!file.exists());
    fs::remove_dir(world.fs.join("gate")).expect("it is empty");
    assert!(world.residue("stop").is_empty());

    // The list cannot be put in force, at the last effect: the container does not start, although its request would let it.
    let effects = {
        let world = World::new();
        let host = FakeHost::new(&world.effects, HOOK);
        create(&world, &host, &asking(PROGRAMS), &gated).expect("start");
        world.effects.count()
    };
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    world.effects.problem_at(effects, Trouble::FailBefore);
    let cause = create(&world, &host, &asking(PROGRAMS), &gated).expect_err("it has no list");
    assert!(matches!(cause, Cause::Gate(_)), "{cause}");
}
