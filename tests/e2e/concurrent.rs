//! Many containers at once.

use crate::support::runtime::Runtime;
use crate::world::{TRAFFIC, World};

crate::cases![twenty_containers_at_once];

const MANY: usize = 20;

fn twenty_containers_at_once(world: &mut World) {
    let bundles: Vec<_> =
        (0..MANY).map(|n| world.counting(&format!("many-{n}")).ask("delegate", "maps").script(TRAFFIC).write()).collect();
    let mut running: Vec<_> = bundles.iter().map(|bundle| Runtime::Runc.start(&world.lab, bundle)).collect();
    for one in &mut running {
        one.hear("ready");
    }
    assert_eq!(world.lab.records().len(), MANY);
    world.lab.expect_links(2 * MANY, "two for each container");
    // Each counts its own packets: an idle one stays at zero.
    running[0].say("go\n");
    running[0].hear("done");
    assert!(world.counted(&bundles[0].id, "packets") > 0);
    assert_eq!(world.counted(&bundles[1].id, "packets"), 0);
    // All end at the same time, since each release sees the others' records.
    for one in &mut running {
        one.say("go\ngo\n");
    }
    for one in running {
        one.finish();
    }
}
