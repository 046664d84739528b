//! Random and hostile calls of bpf(2) from inside a container, by tests/e2e/proxy_fuzz.c: the proxy survives them, other
//! containers do not notice, and nothing is left.
//!
//! FUZZ_SECONDS is the time, FUZZ_SEED repeats a seed. `make fuzz-proxy` runs an hour.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness;
use crate::proxy::{policy, proxied_program};
use crate::support::bpf_proxy::compiled;
use crate::support::kernel::{cgroup2, processes_of};
use crate::support::lab::{BINARY, Lab};
use crate::support::process::{Running, ended, eventually, tool};
use crate::support::runtime::Runtime;
use crate::world::World;

crate::cases![random_calls_leave_the_proxy_and_the_host_unharmed];

/// What one proxy may use at most. A call has at most 8 MB of instructions, 16 MiB of log and of BTF, and three times 16
/// MiB of records, each of which is copied once more for the kernel.
const MEMORY_MAX_KB: u64 = 256 << 10;

/// Timeout of an exec that calls for two seconds: the container's own calls go on, and an emulated machine is slow.
const EXEC: Duration = Duration::from_secs(300);

fn fuzzer() -> &'static Path {
    static FUZZER: OnceLock<PathBuf> = OnceLock::new();
    FUZZER.get_or_init(|| compiled("proxy_fuzz"))
}

/// How the proxies of a lab ended, and what they said.
#[derive(Debug, Clone)]
struct Proxies {
    ended: Arc<Mutex<Vec<ExitStatus>>>,
    said: PathBuf,
}

impl Proxies {
    /// Starts `bpfman-hook proxy -` for every connection to the lab's socket, as the unit does.
    fn listen(lab: &Lab) -> Self {
        let run = lab.path("root/run/bpfman-hook");
        fs::create_dir_all(&run).unwrap_or_else(|e| harness!("create {}: {e}", run.display()));
        let socket = run.join("proxy.sock");
        let listener = UnixListener::bind(&socket).unwrap_or_else(|e| harness!("listen at {}: {e}", socket.display()));
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap_or_else(|e| harness!("chmod: {e}"));
        let proxies = Self { ended: Arc::default(), said: lab.write("proxies.log", b"") };
        let (root, own) = (lab.root(), proxies.clone());
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let Ok(log) = File::options().append(true).open(&own.said) else { continue };
                let mut proxy = Command::new(BINARY);
                proxy.arg("--root").arg(&root).args(["proxy", "-"]).stdin(OwnedFd::from(connection));
                let Ok(mut proxy) = proxy.stdout(Stdio::null()).stderr(log).spawn() else { continue };
                let ended = own.ended.clone();
                std::thread::spawn(move || {
                    if let Ok(status) = proxy.wait() {
                        ended.lock().unwrap_or_else(PoisonError::into_inner).push(status);
                    }
                });
            }
        });
        proxies
    }

    /// Asserts that this number of them has ended, each with its listener.
    fn assert_ended(&self, number: usize) {
        let all = || self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        eventually("the end of the proxies", Duration::from_secs(20), || (all().len() >= number).then_some(()));
        let mut said = String::new();
        let read = File::open(&self.said).and_then(|mut file| file.read_to_string(&mut said));
        read.unwrap_or_else(|e| harness!("read {}: {e}", self.said.display()));
        assert!(all().iter().all(ExitStatus::success), "{:?}: {said}", all());
        assert!(!said.contains("panicked"), "{said}");
    }
}

/// The peak memory of each proxy of a lab, in kB.
fn peaks(lab: &Lab) -> Vec<u64> {
    let proxies = processes_of(&lab.root()).into_iter().filter(|(_, line)| line.contains("proxy -"));
    let peak = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    };
    proxies.filter_map(|(pid, _)| peak(pid)).collect()
}

/// What is attached on the host: to its interfaces, and to its cgroups outside of the lab's containers.
fn attached() -> String {
    let links = tool(Command::new("ip").args(["-d", "-o", "link", "show"]));
    let links: Vec<_> = links.lines().filter(|line| line.contains("xdp")).collect();
    let net = ended(Command::new("bpftool").arg("net")).stdout;
    let cgroups = ended(Command::new("bpftool").args(["cgroup", "show"]).arg(cgroup2())).stdout;
    format!("{links:?}\n{net}\n{cgroups}")
}

fn random_calls_leave_the_proxy_and_the_host_unharmed(world: &mut World) {
    let proxies = Proxies::listen(&world.lab);
    policy(world, "proxy = [\"sockets\", \"networking\", \"cgroup\"]");
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = number("FUZZ_SECONDS").unwrap_or(15);
    let seed = number("FUZZ_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 ^ seconds);
    let before = attached();

    let neighbour = proxied_program(world, "neighbour", "sockets", &compiled("proxy_client"), "client");
    let neighbour =
        neighbour.edit(|config| config["process"]["args"] = json!(["/client", "map", "wait", "prog", "xdp"])).write();
    let mut neighbour = Runtime::Runc.start(&world.lab, &neighbour);
    assert_eq!(neighbour.hear("map "), "0 0");

    let bundle = proxied_program(world, "fuzz", "sockets:networking:cgroup", fuzzer(), "fuzz")
        .mount("bind", &cgroup2(), "/cg", &["rbind", "ro"])
        .edit(|config| config["process"]["args"] = json!(["/fuzz", seconds.to_string(), seed.to_string()]))
        .write();
    let begun = Instant::now();
    let mut running = Runtime::Runc.start(&world.lab, &bundle);
    eprintln!("seed {}", running.hear("seed "));
    // Each exec is another process of the proxy. Their calls go on while the container's own do.
    let mut execs = 0;
    let mut peak = 0;
    while !running.has_ended() {
        assert!(begun.elapsed().as_secs() < seconds * 2 + 120, "the fuzzer does not end: {}", running.stderr());
        // The last one ends before the container does.
        if execs < seconds / 5 && begun.elapsed().as_secs() + 5 < seconds {
            let words = ["exec", &bundle.id, "/fuzz", "2", &(seed + execs).to_string()];
            let mut exec = Running::start(&mut Runtime::Runc.command(&world.lab, &words));
            eventually("the end of an exec", EXEC, || exec.has_ended().then_some(()));
            let exec = exec.finish();
            let is_over = running.has_ended() || begun.elapsed().as_secs() >= seconds;
            assert!(exec.stdout.contains("fuzz ") || is_over, "{} {}", exec.stdout, exec.stderr);
            execs += 1;
        }
        peak = peaks(&world.lab).into_iter().max().unwrap_or_default().max(peak);
        std::thread::sleep(Duration::from_millis(200));
    }
    let fuzzed = running.finish();
    let done = fuzzed.line("fuzz ").unwrap_or_else(|| panic!("{} {}", fuzzed.stdout, fuzzed.stderr));
    eprintln!("{done}; {execs} execs; at most {peak} kB of memory");
    assert!(!done.starts_with("0 calls") && !done.contains(" 0 made"), "{done}");
    assert!(peak < MEMORY_MAX_KB, "a proxy had {peak} kB");

    // The neighbour's proxy works on, and nothing is attached that was not before.
    neighbour.say("go\n");
    assert_eq!((neighbour.hear("prog ").as_str(), neighbour.hear("xdp ").as_str()), ("0 0", "0 0"));
    neighbour.finish();
    assert_eq!(attached(), before);
    proxies.assert_ended(2);
}
