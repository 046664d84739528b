//! The capabilities that the hook keeps of root's: each is needed, and the others are not.
//!
//! The other cases of this suite pass with the whole list. CAP_SETUID, CAP_SETGID, CAP_SETPCAP and CAP_KILL are for
//! children with other ids: tests/privileged/fetch.rs and caps.rs.

use std::os::unix::fs::chown;

use bpfman_hook::hooks::stage::CAPABILITIES;

use crate::support::bundle::Bundle;
use crate::support::process::eventually;
use crate::world::World;

crate::cases![
    programs_and_a_token_need_each_of_these,
    tracing_needs_perfmon,
    a_map_of_another_user_needs_each_of_these,
    the_hook_has_no_others,
];

/// A createRuntime hook that is started without one capability.
fn without(bundle: Bundle, capability: &str) -> Bundle {
    bundle.hook_through("createRuntime", &format!(r#"exec setpriv --bounding-set=-{capability} -- "$@""#))
}

fn programs_and_a_token_need_each_of_these(world: &mut World) {
    let asking = |world: &mut World, name: &str| world.counting(name).ask("delegate", "maps");
    for capability in ["sys_admin", "bpf", "net_admin", "sys_ptrace", "sys_chroot"] {
        let bundle = asking(world, capability);
        world.refused(without(bundle, capability), 1, &[]);
    }
}

fn tracing_needs_perfmon(world: &mut World) {
    let image = world.signed("trace");
    let host = "host-scope = true\n";
    let rule = "[[container]]\nprograms = [\"raw_tracepoint\"]\n";
    world.lab.policy(&(world.image_rule() + "scope = \"host\"\n" + rule + host));
    let bundle =
        |name: &str| Bundle::new(&world.lab, name).ask("image", &image).ask("programs", "raw_tracepoint:raw_trace_exec");
    world.refused(without(bundle("perfmon"), "perfmon"), 1, &["CAP_PERFMON"]);
    let bundle = bundle("with-perfmon").script("echo ready; read go").write();
    world.start(&bundle).finish();
}

fn a_map_of_another_user_needs_each_of_these(world: &mut World) {
    // Without a user namespace, in which the mounting process would have every capability, and in a directory that the
    // workload owns.
    let asking = |world: &mut World, name: &str| {
        let bundle = world.counting(name).without_userns().ask("maps", "packets").ask("bpffs-path", "/run/app/bpf");
        let bundle = bundle.edit(|config| config["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1000 }));
        bundle.rootfs(|root| {
            std::fs::create_dir(root.join("run/app")).expect("a directory in a new root file system");
            chown(root.join("run/app"), Some(1000), Some(1000)).expect("root gives away");
        })
    };
    for (capability, words) in [("chown", "packets"), ("dac_override", "/run/app/bpf")] {
        let bundle = asking(world, capability).without_mount("/run");
        world.refused(without(bundle, capability), 1, &[words]);
    }
    let bundle = asking(world, "all").script("echo ready; stat -c 'file %u %a' /run/app/bpf/packets; read go").write();
    let mut running = world.start(&bundle);
    assert_eq!(running.hear("file "), "1000 600");
    running.finish();
}

fn the_hook_has_no_others(world: &mut World) {
    // The hook is paused before its first map, and examined.
    let script = r#"exec 3<&0; strace -f -o /dev/null -e trace=bpf -e inject=bpf:delay_enter=1500000:when=1 "$@" <&3 &
        sleep 1
        cat /proc/$(echo $(cat /proc/$!/task/*/children))/status >status
        wait $!"#;
    let bundle = world.counting("limited").hook_through("createRuntime", script).script("echo ready; read go").write();
    let running = world.start(&bundle);
    let status = eventually("the hook's status", crate::support::process::PATIENCE, || {
        std::fs::read_to_string(bundle.dir.join("status")).ok().filter(|text| text.contains("CapAmb"))
    });
    let own = std::fs::read_to_string("/proc/self/status").expect("/proc has us");
    let set = |text: &str, name: &str| {
        let word = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        u64::from_str_radix(&word, 16).expect("a set of capabilities is a number")
    };
    let kept = CAPABILITIES.iter().fold(0, |set, capability| set | 1 << capability.index()) & set(&own, "CapPrm:");
    // The bounding set is dropped before the fetch child is executed, which this start does not need.
    for name in ["CapPrm:", "CapEff:"] {
        assert_eq!(set(&status, name), kept, "{name} {status}");
    }
    assert_eq!((set(&status, "CapInh:"), set(&status, "CapAmb:")), (0, 0), "{status}");
    running.finish();
}
