//! podman's pods: the infra container is the sandbox, and the pod's programs are attached once.

use std::process::Command;

use crate::support::podman::{IMAGE, Podman};
use crate::support::process::{Running, ended, tool};
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![
    a_pods_programs_are_attached_once_under_a_plain_policy,
    a_key_that_names_a_container_applies_and_generate_kube_keeps_it,
    claims_of_an_image_are_not_trusted,
];

/// A pod of two containers with these annotations.
fn pod(annotations: &[(&str, &str)]) -> String {
    let annotations: String = annotations.iter().map(|(key, value)| format!("    {key}: \"{value}\"\n")).collect();
    let container = |name: &str| {
        format!("  - {{name: {name}, image: \"{IMAGE}\", imagePullPolicy: Never, command: [/bin/sleep, \"60\"]}}\n")
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: shop\n  annotations:\n{annotations}spec:\n  restartPolicy: Never\n  containers:\n{}{}",
        container("one"),
        container("two"),
    )
}

fn play(world: &World, podman: &Podman, yaml: &str) {
    let file = world.lab.write("pod.yaml", yaml.as_bytes());
    let played = ended(podman.command(&["kube", "play", "--network", "none"]).arg(file));
    assert!(played.status.success() && !played.stderr.contains("rror"), "{}\n{}", played.stdout, played.stderr);
}

fn remove(world: &World, podman: &Podman) {
    tool(&mut podman.command(&["pod", "rm", "-f", "-t", "0", "shop"]));
    world.lab.ours(&["gc"]);
    world.lab.expect_links(0, "the pod is gone, and its programs with it");
}

/// The number of programs of each type that the containers own themselves, without those of the pod's network.
fn own(world: &World, kind: &str) -> Vec<usize> {
    let containers = world.lab.json(&["list", "containers"]);
    let count = |owner: &serde_json::Value| {
        owner["programs"].as_array().into_iter().flatten().filter(|program| program["type"] == kind).count()
    };
    let mut counts: Vec<usize> = containers.as_array().into_iter().flatten().map(count).collect();
    counts.sort_unstable();
    counts
}

fn a_pods_programs_are_attached_once_under_a_plain_policy(world: &mut World) {
    let images = [(world.signed("demo"), "xdp:count_packets iface=lo"), (world.signed("tcx"), "tcx:ingress iface=lo")];
    world.mount_bpffs();
    for (runtime, (image, programs)) in [Runtime::Runc, Runtime::Crun].into_iter().zip(images) {
        let yaml = pod(&[("hook.bpfman.io/image", &image), ("hook.bpfman.io/programs", programs)]);
        let podman = Podman::new(&world.lab, runtime);
        play(world, &podman, &yaml);
        world.lab.expect_links(1, "both containers hold it");
        assert_eq!((own(world, "xdp"), own(world, "tcx")), (vec![0, 0], vec![0, 0]), "the program is the pod's");
        tool(&mut podman.command(&["restart", "-t", "0", "shop-two"]));
        world.lab.expect_links(1, "a container that is started again finds it");
        // A container that is added manually, without a YAML file: the same request joins.
        let name = format!("{}-three", world.lab.word());
        let flags =
            [format!("--annotation=hook.bpfman.io/image={image}"), format!("--annotation=hook.bpfman.io/programs={programs}")];
        tool(podman.command(&["run", "-d", "--pod", "shop", "--name", &name]).args(&flags).args([IMAGE, "/bin/sleep", "60"]));
        world.lab.expect_links(1, "a further container of the pod joins");
        remove(world, &podman);
        std::fs::remove_dir_all(world.lab.path("podman")).expect("podman's store can be removed");
    }
}

fn a_key_that_names_a_container_applies_and_generate_kube_keeps_it(world: &mut World) {
    let demo = world.signed("demo");
    let podman = Podman::new(&world.lab, Runtime::Runc);
    play(
        world,
        &podman,
        &pod(&[
            ("hook.bpfman.io/image", &demo),
            ("hook.bpfman.io/programs", "xdp:count_packets iface=lo"),
            ("one.hook.bpfman.io/programs", "cgroup_skb:count_egress"),
        ]),
    );
    world.lab.expect_links(2, "the pod's for two, and one's own");
    assert_eq!(own(world, "cgroup_skb"), [0, 1]);
    let generated = ended(&mut podman.command(&["generate", "kube", "shop"])).stdout;
    remove(world, &podman);
    play(world, &podman, &generated);
    world.lab.expect_links(2, "generate kube and kube play keep the meaning");
    assert_eq!(own(world, "cgroup_skb"), [0, 1]);
    remove(world, &podman);
    // podman's own container name, without a pod.
    let named = |name: &str| {
        let key = format!("--annotation={name}.hook.bpfman.io");
        let flags = [format!("{key}/image={demo}"), format!("{key}/programs=xdp:count_packets iface=lo")];
        let mut run = podman.command(&["run", "--rm", "--network", "none", "--name", "alone"]);
        ended(run.args(&flags).args([IMAGE, "/bin/true"])).status.success().then_some(())
    };
    let acquired = || world.lab.ours(&["events"]).matches("acquired").count();
    let before = acquired();
    named("other").expect("a key for another container is not for this one");
    assert_eq!(acquired(), before);
    named("alone").expect("the container starts");
    assert!(acquired() > before, "the container's own key was not heard");
}

fn claims_of_an_image_are_not_trusted(world: &mut World) {
    let demo = world.signed("demo");
    let podman = Podman::new(&world.lab, Runtime::Runc);
    let name = |part: &str| format!("{}-{part}", world.lab.word());
    let asks = [
        format!("--annotation=hook.bpfman.io/image={demo}"),
        "--annotation=hook.bpfman.io/programs=xdp:count_packets iface=lo".to_owned(),
    ];
    let run = |flags: &[&str]| {
        let mut run = podman.command(&["run", "--rm", "-d"]);
        ended(run.args(&asks).args(flags).args([IMAGE, "/bin/sleep", "60"]))
    };
    // A container from outside the pod as the sandbox.
    let (victim, member) = (name("victim"), name("member"));
    let id = tool(podman.command(&["run", "-d", "--network", "none", "--name", &victim]).args([IMAGE, "/bin/sleep", "60"]));
    let claim = format!("io.kubernetes.cri-o.SandboxID={}", id.trim());
    let joins = format!("container:{victim}");
    let refused = run(&["--network", &joins, "--annotation", &claim]);
    assert!(refused.stderr.contains("which does not belong to the container"), "{}", refused.stderr);
    // A container that claims to be a sandbox, to which annotations do not apply.
    assert!(
        run(&["--network", "none", "--name", &member, "--annotation", "io.kubernetes.cri-o.ContainerType=sandbox"])
            .status
            .success()
    );
    world.lab.expect_links(1, "what its user asks for is attached");
    tool(&mut podman.command(&["rm", "-f", "-t", "0", &member, &victim]));
    // A process from outside in the pod's network.
    tool(&mut podman.command(&["pod", "create", "--network", "none", "--name", "shop"]));
    tool(&mut podman.command(&["pod", "start", "shop"]));
    let infra = tool(&mut podman.command(&["pod", "inspect", "shop", "--format", "{{.InfraContainerID}}"]));
    let pid = tool(&mut podman.command(&["inspect", infra.trim(), "--format", "{{.State.Pid}}"]));
    let mut guest = Command::new("nsenter");
    let mut guest =
        Running::start(guest.arg(format!("--net=/proc/{}/ns/net", pid.trim())).args(["sh", "-c", "echo in; read x"]));
    guest.hear("in");
    let refused = run(&["--pod", "shop"]);
    assert!(refused.stderr.contains(&format!("process {}", guest.pid())), "{}", refused.stderr);
    guest.kill();
    guest.finish();
    assert!(run(&["--pod", "shop"]).status.success());
    world.lab.expect_links(1, "the pod is by itself again");
    remove(world, &podman);
}
