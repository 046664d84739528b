//! docker with the wrapper of docs/operations.md, and the seccomp profile that `proxy profile` prints.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness;
use crate::proxy::{EPERM, OK, policy};
use crate::support::bpf_proxy::{client, listen};
use crate::support::docker::Docker;
use crate::support::process::{Running, ended, tool};
use crate::tools::skipped;

/// podman's default profile, which has the format and nearly the contents of docker's.
const DEFAULT_PROFILE: &str = "/usr/share/containers/seccomp.json";

#[test]
fn containers_load_programs_through_the_proxy() {
    crate::check(|world| {
        world.mount_bpffs();
        listen(&world.lab);
        policy(world, "proxy = [\"sockets\"]");
        let docker = match Docker::start(&world.lab, "trixie") {
            Ok(docker) => docker,
            Err(why) => return skipped("docker with the printed seccomp profile", &why),
        };
        assert!(Path::new(DEFAULT_PROFILE).exists(), "harness: {DEFAULT_PROFILE} is missing: apt-get install podman");
        let profile = world.lab.ours(&["proxy", "profile", DEFAULT_PROFILE]);
        let profile = world.lab.write("docker/bpf.json", profile.as_bytes());
        let program = world.lab.path("docker/client");
        fs::copy(client(), &program).unwrap_or_else(|e| harness!("copy the client: {e}"));
        let (seccomp, volume) = (format!("seccomp={}", profile.display()), format!("{}:/client:ro", program.display()));
        let flags = [
            &["--annotation", "hook.bpfman.io/delegate=sockets", "--annotation", "hook.bpfman.io/delegate-via=proxy"][..],
            &["--user", "65534", "--cap-drop", "all", "--security-opt", &seccomp, "--volume", &volume],
        ]
        .concat();
        let script = "/client map xdp readkernel token; echo ready; read go";
        let mut running = Running::start(&mut docker.run(&world.lab, "proxied", &flags, script));
        for (step, answer) in [("map ", OK), ("xdp ", OK), ("readkernel ", "-1 13"), ("token ", EPERM)] {
            assert_eq!(running.hear(step), answer, "{step}: {} {}", running.stderr(), world.lab.log());
        }
        running.hear("ready");
        let host = tool(Command::new("ip").args(["-d", "link", "show", "lo"]));
        assert!(!host.contains("xdp"), "{host}");
        let name = format!("{}-proxied", world.lab.word());
        let exec = ended(&mut docker.command(&["exec", &name, "/client", "map", "xdp"]));
        assert_eq!((exec.line("map "), exec.line("xdp ")), (Some(OK), Some(OK)), "{exec:?}");
        let containers = world.lab.records();
        assert_eq!((containers.len(), &containers[0]["state"]), (1, &json!("ready")), "{containers:#?}");
        running.say("go\n");
        running.finish();
        // docker's own profile does not let the same program do anything.
        let flags = ["--user", "65534", "--cap-drop", "all", "--volume", &volume];
        let refused = ended(&mut docker.run(&world.lab, "plain", &flags, "/client map"));
        assert_eq!(refused.line("map "), Some(EPERM), "{refused:?}");
        docker.stop(&world.lab);
    });
}
