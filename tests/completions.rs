//! Completion as the shells do it: each shell loads the script that `completions` prints, and is asked what it offers.
//! bash and zsh are asked through a terminal, with the Tab key; `tests/setup.sh` installs zsh and fish.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

#[path = "support/recorded_host.rs"]
mod recorded_host;

use recorded_host::World;

/// The script of a shell, in a file.
fn script(world: &World, shell: &str) -> PathBuf {
    let output = Command::new(env!("CARGO_BIN_EXE_bpfman-hook")).args(["completions", shell]).output().unwrap();
    let path = world.root().join(format!("completions.{shell}"));
    fs::write(&path, output.stdout).unwrap();
    path
}

/// The directory of the program, before the others.
fn path() -> String {
    let directory = Path::new(env!("CARGO_BIN_EXE_bpfman-hook")).parent().unwrap();
    format!("{}:{}", directory.display(), std::env::var("PATH").unwrap())
}

/// A shell on a terminal.
struct Shell {
    child: Child,
    output: Receiver<String>,
    seen: String,
}

impl Shell {
    /// Starts a shell, has it execute a line, and waits for its prompt.
    fn start(shell: &str, line: &str) -> Self {
        let mut child = Command::new("script")
            .args(["--quiet", "--flush", "--command", shell, "/dev/null"])
            .env("PATH", path())
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, output) = mpsc::channel();
        let mut from = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                let _ = sender.send(String::from_utf8_lossy(&bytes[..read]).into_owned());
            }
        });
        let mut shell = Self { child, output, seen: String::new() };
        shell.say(&format!("{line}; PS1='# '; echo re''ady\n"));
        shell.hear("ready\r\n");
        shell.hear("# ");
        shell
    }

    /// Types. While the shell executes a line, its terminal would edit what is typed, so it is typed at a prompt.
    fn say(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// What is printed until a text appears.
    fn hear(&mut self, wanted: &str) -> String {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(at) = self.seen.find(wanted) {
                let rest = self.seen.split_off(at + wanted.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(text) => self.seen.push_str(&text),
                Err(_) => panic!("{wanted:?} is not printed: {:?}", self.seen),
            }
        }
    }

    /// What the shell offers after the line: its list, and the line that a single candidate completes.
    fn complete(&mut self, line: &str) -> String {
        // Ctrl-U removes the line, which must not run.
        self.say(&format!("{line}\t\u{15}echo en''d\n"));
        let answer = self.hear("end\r\n");
        self.hear("# ");
        answer
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bash(world: &World) -> impl FnMut(&str) -> String + use<> {
    let settings = "bind 'set show-all-if-ambiguous on'; bind 'set completion-query-items 0'; bind 'set page-completions off'; \
                    bind 'set enable-bracketed-paste off'; stty cols 200";
    let mut shell =
        Shell::start("bash --norc --noprofile -i", &format!("{settings}; source {}", script(world, "bash").display()));
    move |line: &str| shell.complete(line)
}

fn zsh(world: &World) -> impl FnMut(&str) -> String + use<> {
    let settings = "autoload -Uz compinit; compinit -u -D; LISTMAX=1000; setopt no_list_beep; stty cols 200";
    let mut shell = Shell::start("zsh -f -i", &format!("{settings}; source {}", script(world, "zsh").display()));
    move |line: &str| shell.complete(line)
}

fn fish(world: &World) -> impl FnMut(&str) -> String + use<> {
    let (script, home) = (script(world, "fish"), world.root().to_owned());
    move |line: &str| {
        let asked = format!("source {}; complete --do-complete '{}'", script.display(), line.replace('\'', "\\'"));
        let mut fish = Command::new("fish");
        let output = fish.args(["--no-config", "-c", &asked]).env("PATH", path()).env("HOME", &home).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// What is typed, a candidate, and what must not be offered.
const QUESTIONS: [(&str, &[&str], &str); 12] = [
    ("list ", &["containers", "links", "programs"], "uninstall"),
    ("attach 71 ", &["tracepoint", "uprobe"], "--iface"),
    ("attach 71 xdp --iface ", &["lo"], "ingress"),
    ("attach 71 xdp --iface lo --proceed-on ", &["aborted", "dispatcher_return"], "reclassify"),
    ("pull --pull-policy ", &["Always", "IfNotPresent", "Never"], "ghcr"),
    ("get program ", &["71", "4711"], "81"),
    ("detach ", &["81", "4721"], "71 "),
    ("inspect ", &["front/web", "3f9c1b7a42d0", "c1"], "warehouse"),
    ("unload --application ", &["warehouse"], "front"),
    ("token create --delegate ", &["networking", "sockets"], "xdp"),
    ("doctor -o ", &["json", "table"], "containers"),
    ("image inspect registry.example/acme/pass:", &["v1"], "v2"),
];

fn check(mut ask: impl FnMut(&str) -> String, world: &World) {
    for (typed, offered, not_offered) in QUESTIONS {
        let line = format!("bpfman-hook --root {} {typed}", world.root().display());
        let answer = ask(&line).replace(&line, "");
        for word in offered {
            assert!(answer.contains(word), "{typed}: {word} is missing: {answer:?}");
        }
        assert!(!answer.contains(not_offered), "{typed}: {not_offered} is offered: {answer:?}");
    }
}

#[test]
fn bash_offers_what_is_on_this_host() {
    let world = World::new();
    check(bash(&world), &world);
}

#[test]
fn zsh_offers_what_is_on_this_host() {
    let world = World::new();
    check(zsh(&world), &world);
}

#[test]
fn fish_offers_what_is_on_this_host() {
    let world = World::new();
    check(fish(&world), &world);
}

#[test]
fn a_user_without_access_to_the_store_gets_the_rest() {
    let ask = |words: &[&str]| {
        let index = (words.len() - 1).to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_bpfman-hook"))
            .args(["__complete", "fish", &index, "--"])
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        ask(&["bpfman-hook", "--root", "/none", "inspect", ""]).lines().filter(|line| !line.starts_with('-')).count(),
        0
    );
    assert!(ask(&["bpfman-hook", "doctor", "--qu"]).starts_with("--quiet\t"));
    assert!(ask(&["bpfman-hook", "events", "-F", "type=ref"]).starts_with("type=refused"));
    assert!(ask(&["bpfman-hook", "policy", "explain", "-a", "delegate-"]).contains("delegate-cmds=\n"));
    assert_eq!(ask(&["bpfman-hook", "nonsense", ""]).lines().find(|line| *line == "nonsense"), None);
}
