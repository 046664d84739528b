//! Containers whose rule polices them.

use bpfman_hook::lifecycle::Cause;
use bpfman_hook::lifecycle::acquire::Acquired;
use bpfman_hook::lifecycle::reconcile::GcMode;
use bpfman_hook::model::ids::PinName;
use bpfman_hook::model::police::{CountedCall, CountedSet, PoliceMode};
use bpfman_hook::model::record::{OwnerRecord, Phase};

use crate::fake::{FakeHost, Trouble};
use crate::{HOOK, INIT, PROGRAMS, World, container, create, lifecycle, policy, stop, web};

#[test]
fn a_policed_container_is_policed_whatever_else_fails() {
    let asking = |programs| container("web", "/bundles/web", INIT, programs, &[("on-failure", "continue")]);
    let policed = policy("on-failure = [\"stop\", \"continue\"]\npolice = \"enforce\"\n");
    let mode = |record: &OwnerRecord| record.owner.container().and_then(|c| c.police.as_ref()).map(|police| police.mode);
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    // Its programs fail, and it starts without them, but not without policing.
    let acquired = create(&world, &host, &asking("xdp:count iface=eth7"), &policed).expect("starts without");
    assert!(matches!(acquired, Acquired::Without(_)));
    let records = world.records();
    let [record] = &records[..] else { panic!("{records:?}") };
    assert!(record.phase == Phase::Ready && record.programs.is_empty());
    assert_eq!(mode(record), Some(PoliceMode::Enforce));
    assert!(PinName::police(0).path(&world.fs.join(record.no.directory())).exists());
    host.end(INIT);
    stop(&world, &host, "web");
    assert!(world.residue("stop").is_empty());

    // Policing fails, at the last effect: the container does not start, although its request would let it.
    let effects = {
        let world = World::new();
        let host = FakeHost::new(&world.effects, HOOK);
        create(&world, &host, &asking(PROGRAMS), &policed).expect("start");
        world.effects.count()
    };
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    world.effects.problem_at(effects, Trouble::FailBefore);
    let cause = create(&world, &host, &asking(PROGRAMS), &policed).expect_err("it is not policed");
    assert!(matches!(cause, Cause::Police(_)), "{cause}");
    let reasons = world.residue("policing");
    assert!(reasons.len() == 1 && reasons[0].starts_with("police the container's bpf(2) calls"), "{reasons:?}");
}

#[test]
fn refused_calls_are_recorded_by_gc_and_at_the_end() {
    let world = World::new();
    let host = FakeHost::new(&world.effects, HOOK);
    create(&world, &host, &web(), &policy("police = \"warn\"\n")).expect("start");
    let call = |name: &str, refused| CountedCall { set: CountedSet::Progs, name: name.to_owned(), seen: 3, refused, probes: 0 };
    let kernel = world.kernel();
    *kernel.calls.borrow_mut() = vec![call("xdp", 2), call("kprobe", 0)];
    let noted = || world.records()[0].owner.container().and_then(|c| c.police.clone()).expect("it is policed").refused;
    lifecycle(&world, &kernel, &host).collect(GcMode::Tell, |_| false).expect("gc");
    assert!(noted().is_empty());
    lifecycle(&world, &kernel, &host).collect(GcMode::Release, |_| false).expect("gc");
    assert_eq!(noted(), [call("xdp", 2)]);
    host.end(INIT);
    stop(&world, &host, "web");
    assert!(world.residue("stop").is_empty());
}
