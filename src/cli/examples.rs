//! The examples of each command, in its help and in its man page. A test parses every one of them.

use clap::Command;

/// A command without the program's name, and its examples.
type CommandExamples = (&'static str, &'static [&'static str]);

const EXAMPLES: &[CommandExamples] = &[
    (
        "",
        &[
            "bpfman-hook init --key cosign.pub    # the first policy",
            "bpfman-hook install --podman",
            "bpfman-hook doctor -q                # what is wrong on this host",
            "bpfman-hook list containers",
        ],
    ),
    ("hook", &["bpfman-hook hook createRuntime --engine podman < state.json"]),
    (
        "load file",
        &[
            "bpfman-hook load file -p count.bpf.o --programs xdp:count",
            "bpfman-hook load file -p count.bpf.o --attach 'xdp:count iface=eth0'",
            "bpfman-hook load file -p trace.bpf.o --programs fentry:enter:do_unlinkat -g rate:=10",
        ],
    ),
    (
        "load image",
        &[
            "bpfman-hook load image -i ghcr.io/acme/count:v1 --programs xdp:count",
            "bpfman-hook load image -i ghcr.io/acme/count:v1 --attach 'xdp:count iface=eth0'",
        ],
    ),
    ("attach", &["bpfman-hook attach 71 xdp -i eth0"]),
    ("attach xdp", &["bpfman-hook attach 71 xdp -i eth0", "bpfman-hook attach 71 xdp -i eth0 -n /run/netns/blue"]),
    ("attach tc", &["bpfman-hook attach 71 tc -i eth0 -d ingress -p 50 --proceed-on ok pipe"]),
    ("attach tcx", &["bpfman-hook attach 71 tcx -i eth0 -d egress"]),
    ("attach tracepoint", &["bpfman-hook attach 71 tracepoint -t sched/sched_switch"]),
    ("attach kprobe", &["bpfman-hook attach 71 kprobe -f do_unlinkat"]),
    (
        "attach uprobe",
        &["bpfman-hook attach 71 uprobe -t libc -f malloc", "bpfman-hook attach 71 uprobe -t /usr/bin/app -f main -p 4242"],
    ),
    ("attach fentry", &["bpfman-hook attach 71 fentry"]),
    ("attach fexit", &["bpfman-hook attach 71 fexit"]),
    ("attach lsm", &["bpfman-hook attach 71 lsm"]),
    (
        "attach other",
        &[
            "bpfman-hook attach 71 other iter:task",
            "bpfman-hook attach 71 other cgroup_skb attach=egress --cgroup /sys/fs/cgroup/web",
        ],
    ),
    ("detach", &["bpfman-hook detach 81 82"]),
    ("unload", &["bpfman-hook unload 71", "bpfman-hook unload --application shop"]),
    (
        "list programs",
        &["bpfman-hook list programs", "bpfman-hook list programs --all -t xdp", "bpfman-hook list programs --stats"],
    ),
    ("list links", &["bpfman-hook list links", "bpfman-hook list links --program-id 71 -o json"]),
    ("list containers", &["bpfman-hook list containers", "bpfman-hook list containers -q"]),
    ("get program", &["bpfman-hook get program 71"]),
    ("get link", &["bpfman-hook get link 81 -o json"]),
    ("inspect", &["bpfman-hook inspect web", "bpfman-hook inspect 3f9c1b7a42d0 -o json"]),
    ("graph", &["bpfman-hook graph web > web.mmd", "bpfman-hook graph --all -o svg > host.svg"]),
    ("pull", &["bpfman-hook pull ghcr.io/acme/count:v1 ghcr.io/acme/trace:v2"]),
    ("image list", &["bpfman-hook image list"]),
    ("image inspect", &["bpfman-hook image inspect ghcr.io/acme/count:v1", "bpfman-hook image inspect file:/srv/count.bpf.o"]),
    ("image test", &["bpfman-hook image test ghcr.io/acme/count:v1", "bpfman-hook image test -v file:/srv/count.bpf.o"]),
    (
        "image verify",
        &["bpfman-hook image verify ghcr.io/acme/count:v1", "bpfman-hook image verify --key cosign.pub ghcr.io/acme/count:v1"],
    ),
    ("image pull", &["bpfman-hook image pull ghcr.io/acme/count:v1"]),
    (
        "image build",
        &[
            "bpfman-hook image build ghcr.io/acme/count:v1 count.bpf.o",
            "bpfman-hook image build ghcr.io/acme/count:v1 linux/amd64=x86.o linux/arm64=arm.o --push",
        ],
    ),
    (
        "image push",
        &["bpfman-hook image push ghcr.io/acme/count:v1", "bpfman-hook image push oci:/srv/count:v1 ghcr.io/acme/count:v1"],
    ),
    ("image generate-build-args", &["bpfman-hook image generate-build-args count.bpf.o"]),
    ("image rm", &["bpfman-hook image rm ghcr.io/acme/count:v1"]),
    ("image prune", &["bpfman-hook image prune --dry-run", "bpfman-hook image prune --all"]),
    ("image export", &["bpfman-hook image export ghcr.io/acme/count:v1 count.tar"]),
    ("image import", &["bpfman-hook image import count.tar"]),
    (
        "token create",
        &[
            "bpfman-hook token create --container 3f9c1b7a42d0 --delegate networking",
            "bpfman-hook token create --delegate maps --exec -- bpftool map",
        ],
    ),
    (
        "token explain",
        &[
            "bpfman-hook token explain --container 3f9c1b7a42d0",
            "bpfman-hook token explain --object app.bpf.o --as policy",
            "bpfman-hook token explain --request delegate=networking",
        ],
    ),
    ("token profile", &["bpfman-hook token profile -- podman run --rm localhost/app"]),
    ("token probe", &["bpfman-hook token probe", "bpfman-hook token probe /run/bpf --iface eth0 --count 5"]),
    ("proxy profile", &["bpfman-hook proxy profile > profile.json", "bpfman-hook proxy profile --form kubelet"]),
    (
        "init",
        &[
            "bpfman-hook init --key cosign.pub --repository 'ghcr.io/acme/*'",
            "bpfman-hook init --identity ci@acme.example --issuer https://accounts.google.com",
            "bpfman-hook init --bpfman --trusted-root trusted_root.json --dry-run",
        ],
    ),
    (
        "police profile",
        &["bpfman-hook police profile 3f9c1b7a42d0 --for 30", "bpfman-hook police profile --run -- bpftool prog"],
    ),
    ("guard load", &["bpfman-hook guard load"]),
    ("guard status", &["bpfman-hook guard status"]),
    ("gate load", &["bpfman-hook gate load --warn"]),
    ("gate try", &["bpfman-hook gate try 300"]),
    ("gate status", &["bpfman-hook gate status"]),
    ("gate seal", &["bpfman-hook gate seal /usr/bin/agent"]),
    ("image sign", &["bpfman-hook image sign --key signer.pem count.bpf.o"]),
    ("image keyring", &["bpfman-hook image keyring"]),
    ("policy check", &["bpfman-hook policy check", "bpfman-hook policy check draft.toml"]),
    (
        "policy explain",
        &[
            "bpfman-hook policy explain -a image=ghcr.io/acme/count:v1 -a programs=xdp:count",
            "bpfman-hook policy explain -a delegate=networking --engine podman",
            "bpfman-hook policy explain -f pod.yaml",
        ],
    ),
    ("nri", &["bpfman-hook nri --pre-pull ghcr.io/acme/count:v1", "bpfman-hook nri --check"]),
    ("gc", &["bpfman-hook gc --dry-run", "bpfman-hook gc"]),
    ("events", &["bpfman-hook events -f", "bpfman-hook events --since 10m -F type=refused"]),
    ("metrics", &["bpfman-hook metrics", "bpfman-hook metrics --listen 127.0.0.1:9464"]),
    ("doctor", &["bpfman-hook doctor", "bpfman-hook doctor -q", "bpfman-hook doctor --report bug.md"]),
    ("system service", &["bpfman-hook system service unix:///run/bpfman-hook/bpfman.sock --timeout 0"]),
    (
        "install",
        &["bpfman-hook install --podman", "bpfman-hook install --containerd --strict --dry-run", "bpfman-hook install --check"],
    ),
    ("uninstall", &["bpfman-hook uninstall --dry-run", "bpfman-hook uninstall --purge"]),
    ("version", &["bpfman-hook version -o json"]),
    ("completions", &["bpfman-hook completions bash > /etc/bash_completion.d/bpfman-hook"]),
    ("man", &["bpfman-hook man /usr/local/share/man/man1"]),
];

/// The examples of a command, which is named without the program's name; empty for a group of commands.
pub fn examples_of(command: &str) -> &'static [&'static str] {
    EXAMPLES.iter().find(|(name, _)| *name == command).map_or(&[], |(_, examples)| examples)
}

/// Adds the examples to the help of each command.
pub fn added(command: Command) -> Command {
    below(command, "")
}

fn below(command: Command, path: &str) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_owned()).collect();
    let with_inner = names.into_iter().fold(command, |command, name| {
        let path = if path.is_empty() { name.clone() } else { format!("{path} {name}") };
        command.mut_subcommand(name, |inner| below(inner, &path))
    });
    let header = *with_inner.get_styles().get_header();
    match examples_of(path) {
        [] => with_inner,
        examples => with_inner.after_help(format!("{header}Examples:{header:#}\n  {}", examples.join("\n  "))),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::Cli;

    /// The words of a line as a shell reads them: single quotes, no comment, no redirection.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
        for c in line.split(" #").next().unwrap().chars().chain([' ']) {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted && !word.is_empty() => words.push(std::mem::take(&mut word)),
                ' ' if !quoted => {}
                c => word.push(c),
            }
        }
        words.into_iter().take_while(|word| !["<", ">"].contains(&word.as_str())).collect()
    }

    #[test]
    fn each_command_with_options_has_examples_that_parse() {
        fn check(command: &Command, path: &str, seen: &mut Vec<String>) {
            let options = command.get_arguments().filter(|argument| argument.get_id() != "root").count();
            let examples = examples_of(path);
            assert!(options == 0 || !examples.is_empty(), "{path} has no example");
            for example in examples {
                let first = path.split(' ').next().unwrap();
                assert!(example.starts_with(&format!("bpfman-hook {first}")), "{example}");
                assert!(example.chars().count() <= 88, "{example}");
                if !path.is_empty() || words(example).len() > 1 {
                    Cli::try_parse_from(words(example)).unwrap_or_else(|error| panic!("{example}: {error}"));
                }
            }
            seen.push(path.to_owned());
            for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
                let path = if path.is_empty() { inner.get_name().to_owned() } else { format!("{path} {}", inner.get_name()) };
                check(inner, &path, seen);
            }
        }
        let mut seen = Vec::new();
        check(&Cli::command(), "", &mut seen);
        for (name, _) in EXAMPLES {
            assert!(seen.iter().any(|path| path == name), "{name} is not a command");
        }
    }
}
