//! Requests that cannot be fulfilled, and their error messages.

use std::process::Command;

use crate::support::bundle::Bundle;
use crate::support::process::tool;
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![
    an_invalid_state,
    a_bundle_without_a_configuration,
    a_virtual_machines_configuration,
    an_unknown_annotation,
    an_annotation_that_does_not_parse,
    a_preset_above_the_ceiling,
    the_refusal_names_the_preset_to_add,
    syscall_programs_are_never_delegated,
    what_a_token_reaches_on_this_kernel_needs_host_scope,
    a_forged_verdict_is_not_trusted,
    nothing_is_delegated_without_a_policy,
    a_token_without_a_user_namespace,
    a_token_without_cap_bpf,
    a_token_behind_a_seccomp_profile,
    a_program_that_is_not_in_the_object,
    a_program_of_another_type,
    a_program_that_does_not_verify,
    a_program_that_reads_kernel_memory,
    a_type_that_is_not_for_containers,
    an_invalid_priority,
    an_identity_that_cannot_have_signed,
    one_interface_for_two_xdp_programs,
    an_undeclared_global,
    a_global_that_does_not_fit,
    a_map_that_does_not_exist,
    an_interface_that_does_not_exist,
    a_full_store,
    a_corrupt_store,
    an_older_kernel,
    a_failure_that_may_be_ignored,
    a_failure_that_may_not_be_ignored,
];

/// A container that requests one program of one of the test objects.
fn asking(world: &mut World, name: &str, object: &str, entry: &str) -> Bundle {
    let image = world.signed(object);
    Bundle::new(&world.lab, name).ask("image", &image).ask("programs", entry)
}

fn delegating(world: &World, name: &str) -> Bundle {
    Bundle::new(&world.lab, name).ask("delegate", "maps")
}

fn an_invalid_state(world: &mut World) {
    let bundle = delegating(world, "state").hook_through("createRuntime", r#"cut -c 1-20 | "$@""#);
    world.refused(bundle, 2, &["read the container's state from standard input", "not an OCI state"]);
}

fn a_bundle_without_a_configuration(world: &mut World) {
    let bundle = delegating(world, "configless").hook_through("createRuntime", r#"rm config.json; exec "$@""#);
    world.refused(bundle, 1, &["config.json"]);
}

fn a_virtual_machines_configuration(world: &mut World) {
    let bundle = delegating(world, "vm").edit(|config| config["vm"] = serde_json::json!({ "kernel": { "path": "/vmlinuz" } }));
    world.refused(bundle, 1, &["is a virtual machine"]);
}

fn an_unknown_annotation(world: &mut World) {
    let bundle = Bundle::new(&world.lab, "unknown").ask("progams", "xdp:count_packets");
    world.refused(bundle, 2, &["annotation \"hook.bpfman.io/progams\" is unknown", "the nearest is programs"]);
}

fn an_annotation_that_does_not_parse(world: &mut World) {
    let bundle = asking(world, "grammar", "demo", "xdp:count_packets iface=lo; xdp count_packets");
    world.refused(bundle, 2, &["annotation hook.bpfman.io/programs, entry 2, column 1"]);
}

fn a_preset_above_the_ceiling(world: &mut World) {
    let bundle = Bundle::new(&world.lab, "ceiling").ask("delegate", "networking tracing");
    world.refused(bundle, 1, &["policy.toml", "does not delegate progs kprobe, tracepoint"]);
}

fn the_refusal_names_the_preset_to_add(world: &mut World) {
    let bundle = Bundle::new(&world.lab, "above").ask("delegate", "cgroup");
    world.refused(bundle, 1, &["does not delegate progs cgroup_sock", "add the preset \"cgroup\" to its delegate"]);
}

fn syscall_programs_are_never_delegated(world: &mut World) {
    world.allow("host-scope = true");
    let bundle = Bundle::new(&world.lab, "never").ask("delegate", "probes").ask("delegate-progs", "syscall");
    world.refused(bundle, 2, &["delegate-progs", "syscall programs are never delegated"]);
}

/// Below host scope, a token that loads programs is given only if this kernel confines them to the container.
fn what_a_token_reaches_on_this_kernel_needs_host_scope(world: &mut World) {
    let reach = world.lab.json(&["token", "explain", "--scope"]);
    assert_eq!(reach["undecided"], serde_json::json!([]));
    let open = reach["memory"].as_array().is_some_and(|ways| !ways.is_empty());
    let scope_of = |name: &str| {
        let types = reach["types"].as_array().into_iter().flatten();
        types.into_iter().find(|row| row["type"] == name).map(|row| row["scope"].clone())
    };
    assert_eq!(scope_of("xdp"), Some("host".into()), "on every kernel: {reach:#}");
    assert_eq!(scope_of("socket_filter") == Some("host".into()), open, "{reach:#}");
    let bundle = Bundle::new(&world.lab, "sockets").ask("delegate", "sockets");
    let words = ["on this kernel (", "policy.toml", "no host-scope = true: add it, or request delegate="];
    world.refused(bundle, 1, &words);
    for preset in ["probes", "networking"] {
        let bundle = Bundle::new(&world.lab, preset).ask("delegate", preset);
        if open {
            world.refused(bundle, 1, &["kernel memory on this kernel (", "request delegate=maps"]);
        } else {
            world.start(&bundle.script("echo ready; read go").write()).finish();
        }
    }
}

/// The stored verdict must be writable only by root: one that other users could have written is not used.
fn a_forged_verdict_is_not_trusted(world: &mut World) {
    let file = world.lab.path("root/run/bpfman-hook/token-reach.json");
    world.lab.json(&["token", "explain", "--scope"]);
    let kept = std::fs::read_to_string(&file).expect("the verdict is kept");
    let forged = kept.replacen("\"memory\":[\"rdonly-cast\"", "\"memory\":[", 1).replace("[,", "[");
    std::fs::write(&file, &forged).expect("root can write it");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("root's file");
    let words = ["on this kernel (", "no host-scope = true"];
    world.refused(Bundle::new(&world.lab, "forged").ask("delegate", "sockets"), 1, &words);
    assert_eq!(std::fs::read_to_string(&file).expect("it is kept anew"), kept);
}

fn nothing_is_delegated_without_a_policy(world: &mut World) {
    std::fs::remove_file(world.lab.path("root/etc/bpfman-hook/policy.toml")).expect("the world has a policy");
    world.refused(delegating(world, "built-in"), 1, &["the built-in container rule delegates nothing"]);
}

fn a_token_without_a_user_namespace(world: &mut World) {
    world.refused(delegating(world, "no-userns").without_userns(), 1, &["has no user namespace of its own"]);
}

fn a_token_without_cap_bpf(world: &mut World) {
    world.refused(delegating(world, "no-cap").capabilities(&["CAP_NET_ADMIN"]), 1, &["CAP_BPF"]);
}

fn a_token_behind_a_seccomp_profile(world: &mut World) {
    world.refused(delegating(world, "seccomp").forbid_bpf(), 1, &["seccomp"]);
}

fn a_program_that_is_not_in_the_object(world: &mut World) {
    let bundle = asking(world, "absent", "demo", "xdp:count_parcels iface=lo");
    world.refused(bundle, 1, &["\"count_parcels\" is not in", "count_packets"]);
}

fn a_program_of_another_type(world: &mut World) {
    let bundle = asking(world, "type", "demo", "xdp:count_egress iface=lo");
    world.refused(bundle, 1, &["\"count_egress\" is cgroup_skb by its section"]);
}

fn a_program_that_does_not_verify(world: &mut World) {
    let bundle = asking(world, "rejected", "broken", "xdp:reads_too_far iface=lo");
    world.refused(bundle, 1, &["reads_too_far", "verif"]);
    let failed = world.lab.json(&["list", "containers"]);
    let log = failed[0]["verifier_log"].as_str().unwrap_or_default();
    assert!(log.contains("invalid access") && log.lines().count() > 1, "the verifier's own words are kept: {failed:#}");
}

fn a_program_that_reads_kernel_memory(world: &mut World) {
    for entry in ["xdp:read_kernel_xdp iface=lo", "cgroup_skb:read_kernel_skb", "xdp:tell_address iface=lo"] {
        let name = entry.split([':', ' ']).nth(1).expect("an entry names a function");
        let bundle = asking(world, name, "leak", entry);
        world.refused(bundle, 1, &["host scope"]);
    }
}

fn a_type_that_is_not_for_containers(world: &mut World) {
    let bundle = asking(world, "by-hand", "demo", "ext:count_packets");
    world.refused(bundle, 2, &["ext programs are not attached to containers: load them by hand"]);
}

fn an_invalid_priority(world: &mut World) {
    let bundle = asking(world, "priority", "demo", "xdp:count_packets iface=lo priority=0");
    world.refused(bundle, 2, &["priority must be a number from 1 to 1000"]);
}

fn an_identity_that_cannot_have_signed(world: &mut World) {
    let bundle = asking(world, "keyless", "demo", "xdp:count_packets iface=lo");
    let signer = "signed-by = { identity = \"https://example.org/release\", issuer = \"https://token.example.org\", trusted-root = \"ROOT\" }";
    let root = world.lab.write("root/etc/bpfman-hook/trusted_root.json", b"{}");
    let signer = signer.replace("ROOT", &root.display().to_string());
    let rule = format!("[[image]]\nname = \"keyless\"\nrepository = \"oci:{}\"\n{signer}\n", world.images.dir.display());
    world.lab.policy(&(rule + crate::world::CONTAINER_RULE));
    world.refused(bundle, 1, &["trusted root"]);
}

fn one_interface_for_two_xdp_programs(world: &mut World) {
    let image = world.signed("counter");
    let entries = format!("xdp:count_packets iface=lo; xdp:count iface=lo from={image}");
    let bundle = asking(world, "two", "demo", &entries);
    world.refused(bundle, 2, &["count_packets and count request XDP on one interface"]);
}

fn an_undeclared_global(world: &mut World) {
    let bundle = asking(world, "global", "demo", "xdp:count_packets iface=lo").ask("globals", "velocity=3");
    world.refused(bundle, 1, &["no program declares \"velocity\""]);
}

fn a_global_that_does_not_fit(world: &mut World) {
    let bundle = asking(world, "range", "counter", "xdp:count iface=lo").ask("globals", "step=-1");
    world.refused(bundle, 1, &["global step", "-1 is not in"]);
}

fn a_map_that_does_not_exist(world: &mut World) {
    let bundle = asking(world, "map", "demo", "xdp:count_packets iface=lo").ask("maps", "parcels");
    world.refused(bundle, 1, &["no program has a map \"parcels\"", "packets"]);
}

fn an_interface_that_does_not_exist(world: &mut World) {
    let bundle = asking(world, "interface", "demo", "xdp:count_packets iface=eth7");
    world.refused(bundle, 1, &["the container has no interface \"eth7\"; it has lo"]);
}

fn a_full_store(world: &mut World) {
    let store = world.lab.path("root/run/bpfman-hook/store");
    std::fs::create_dir_all(&store).expect("a directory below the lab");
    tool(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4k,mode=0700", "none"]).arg(&store));
    let bundle = delegating(world, "full").script("echo started").write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    let unmounted = rustix::mount::unmount(&store, rustix::mount::UnmountFlags::DETACH);
    assert!(unmounted.is_ok(), "harness: unmount the small store: {unmounted:?}");
    assert!(!ended.stdout.contains("started"), "the container started");
    world.said(&ended, 1, &["store"]);
    world.lab.residue();
}

fn a_corrupt_store(world: &mut World) {
    // A first container creates the store, then the store is overwritten.
    let first = delegating(world, "first").script("true").write();
    assert!(Runtime::Runc.run(&world.lab, &first).status.success(), "the first container did not start");
    let stores = std::fs::read_dir(world.lab.path("root/run/bpfman-hook/store"));
    let store = stores.into_iter().flatten().flatten().next().expect("a started container has left a store");
    let data = &store.path().join("data.mdb");
    let kept = std::fs::read(data).expect("the store can be read");
    std::fs::write(data, vec![0x5a; kept.len()]).expect("the store can be written");
    let bundle = delegating(world, "corrupt").script("echo started").write();
    let ended = Runtime::Runc.run(&world.lab, &bundle);
    std::fs::write(data, kept).expect("the store can be written");
    assert!(!ended.stdout.contains("started"), "the container started");
    world.said(&ended, 1, &["store"]);
}

fn an_older_kernel(world: &mut World) {
    // A kernel before 6.9 ignores the four mount options, as it ignores all unknown ones, and has no command to create
    // a token: strace makes this kernel behave in the same way for the hook.
    world.mount_bpffs();
    world.allow("host-scope = true");
    let old = "-e inject=fsconfig:retval=0:when=1..4 -e inject=bpf:error=EINVAL";
    let script = &format!(r#"exec strace -f -o /dev/null -e trace=fsconfig,bpf {old} "$@""#);
    let all_four = Bundle::new(&world.lab, "older").ask("delegate", "sockets");
    world.refused(all_four.hook_through("createRuntime", script), 1, &["6.9"]);
}

fn a_failure_that_may_be_ignored(world: &mut World) {
    world.allow("on-failure = [\"stop\", \"continue\"]");
    let bundle = asking(world, "continue", "demo", "xdp:count_parcels iface=lo").ask("on-failure", "continue");
    let bundle = bundle.script("echo ready; read go").write();
    let running = world.start(&bundle);
    let record = world.inspect(&bundle.id).to_string();
    assert!(record.contains("count_parcels"), "the reason is not on record: {record}");
    assert!(world.lab.ours(&["list", "containers"]).contains("count_parcels"), "the reason is not in the list");
    running.finish();
}

fn a_failure_that_may_not_be_ignored(world: &mut World) {
    let bundle = asking(world, "continue", "demo", "xdp:count_parcels iface=lo").ask("on-failure", "continue");
    world.refused(bundle, 1, &["on-failure", "policy"]);
}
