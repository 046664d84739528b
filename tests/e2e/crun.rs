//! crun, which drops a hook's standard error and, on hybrid hosts, leaves its containers in the root cgroup.

use crate::support::bundle::Bundle;
use crate::support::kernel::{Cgroups, cgroups};
use crate::support::runtime::Runtime;
use crate::world::{TRAFFIC, TRAFFIC_PACKETS, World};

crate::cases![xdp_and_token_work, the_root_cgroup_is_refused_and_the_log_says_so, a_relative_root_works];

fn on_lo(world: &mut World, name: &str) -> Bundle {
    let image = world.signed("demo");
    Bundle::new(&world.lab, name).ask("image", &image).ask("programs", "xdp:count_packets iface=lo")
}

fn xdp_and_token_work(world: &mut World) {
    world.mount_bpffs();
    world.allow("host-scope = true");
    let script = format!("/bpfman-hook token probe >/dev/null && echo probe ok || echo probe failed; {TRAFFIC}");
    let bundle = on_lo(world, "crun").ask("delegate", "sockets").with_binary(&world.lab).script(&script).write();
    let mut running = Runtime::Crun.start(&world.lab, &bundle);
    assert_eq!(running.hear("probe"), "ok");
    running.hear("ready");
    running.say("go\n");
    running.hear("done");
    assert!(world.counted(&bundle.id, "packets") >= TRAFFIC_PACKETS);
    running.say("go\n");
    assert_eq!(running.finish().status.code(), Some(7));
}

fn the_root_cgroup_is_refused_and_the_log_says_so(world: &mut World) {
    world.mount_bpffs();
    let mut bundle = world.counting("crun-cgroup").script("echo started");
    if cgroups() == Cgroups::Unified {
        bundle = bundle.cgroup("/");
    }
    let bundle = bundle.write();
    let ended = Runtime::Crun.run(&world.lab, &bundle);
    assert!(!ended.stdout.contains("started"), "the container started");
    assert!(ended.stderr.contains("error executing hook"), "{}", ended.stderr);
    // crun does not run poststop after a failed hook, and does not show the hook's output.
    let reason = world.inspect(&bundle.id).to_string();
    assert!(reason.contains("root cgroup"), "{reason}");
    if !std::path::Path::new("/run/systemd/journal/socket").exists() {
        assert!(world.lab.log().contains("root cgroup"), "{}", world.lab.log());
    }
    world.lab.residue();
}

fn a_relative_root_works(world: &mut World) {
    world.mount_bpffs();
    // `runc spec` writes a relative root; crun passes it on in the state unchanged.
    let bundle = Bundle::new(&world.lab, "relative").ask("delegate", "maps").script("echo ready; read go").write();
    assert_eq!(bundle.config["root"]["path"], "rootfs");
    let mut running = Runtime::Crun.start(&world.lab, &bundle);
    running.hear("ready");
    assert_eq!(world.lab.records().len(), 1);
    running.finish();
}
