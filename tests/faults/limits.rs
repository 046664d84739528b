//! Scarce resources of a host: space in /run, file sizes, a reader of the output, time.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bench::{Bench, everything};
use crate::stepper::{Fault, step};
use crate::support::kernel::remove_cgroup;
use crate::support::lab::{BINARY, pins};
use crate::support::process::{ended, eventually, fed, tool};
use crate::support::world::object_path;

/// Fills a file system completely.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [65536, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[test]
fn owners_are_released_when_run_is_full() {
    let mut bench = Bench::with(|world| {
        let run = world.lab.path("root/run");
        fs::create_dir(&run).unwrap();
        tool(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755,size=2m", "none"]).arg(&run));
    });
    let mut pods: Vec<_> = (0..4).map(|_| bench.started()).collect();
    pods.iter_mut().for_each(|pod| pod.stop());
    let filler = bench.world.lab.path("root/run/filler");
    fill(&filler);
    for pod in &pods[..2] {
        let said = fed(&mut bench.hook("poststop"), &pod.stopped());
        assert!(said.status.success() && said.stderr.is_empty(), "{}", said.stderr);
    }
    bench.world.lab.ours(&["gc"]);
    let left = || Some(()).filter(|()| bench.world.lab.new_objects().is_empty());
    eventually("the end of all objects", Duration::from_secs(10), left);
    assert_eq!((pins(&bench.world.lab.bpffs()), bench.world.lab.records()), (Vec::new(), Vec::new()));
    // The remaining spare pages are not for new owners.
    let mut refused = 0;
    for _ in 0..3 {
        let pod = bench.container();
        let said = fed(&mut bench.hook("createRuntime"), &pod.creating());
        match said.status.success() {
            true => bench.complete(&pod, "on a full /run"),
            false => {
                assert!(said.stderr.contains("No space left on device"), "{}", said.stderr);
                refused += 1;
            }
        }
        bench.end(pod, true);
    }
    fs::remove_file(filler).unwrap();
    bench.world.lab.ours(&["gc"]);
    let pod = bench.started();
    bench.complete(&pod, "with room again");
    bench.end(pod, true);
    assert!(bench.world.lab.records().is_empty(), "after {refused} refusals");
}

/// A cgroup whose processes can create neither threads nor processes (pids.max, systemd's TasksMax).
struct PidsMax(PathBuf);

impl PidsMax {
    fn new(name: &str) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/pids");
        let parent = match v1.is_dir() {
            true => v1,
            false => {
                fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+pids").unwrap();
                Path::new("/sys/fs/cgroup")
            }
        };
        let group = Self(parent.join(name));
        fs::create_dir(&group.0).unwrap();
        fs::write(group.0.join("pids.max"), "1").unwrap();
        group
    }

    /// The same command in this cgroup.
    fn around(&self, inner: &Command) -> Command {
        let mut command = Command::new("sh");
        let script = "echo $$ >\"$0\" && exec \"$@\"";
        command.args(["-c", script]).arg(self.0.join("cgroup.procs")).arg(inner.get_program()).args(inner.get_args());
        command
    }
}

impl Drop for PidsMax {
    fn drop(&mut self) {
        remove_cgroup(&self.0);
    }
}

#[test]
fn without_threads_commands_work_or_say_what_is_missing() {
    let mut bench = Bench::new();
    let group = PidsMax::new(&format!("{}-pids", bench.world.lab.word()));
    // More records than one thread reads before it asks for another.
    let pod = bench.container();
    let image = "127.0.0.1:9/acme/a:b";
    for number in 0..300 {
        let mut state: serde_json::Value = serde_json::from_str(&pod.creating()).unwrap();
        state["id"] = format!("{}-{number}", bench.world.lab.word()).into();
        state["annotations"] = serde_json::json!({ "hook.bpfman.io/image": image });
        let config = Path::new(state["bundle"].as_str().unwrap()).join("config.json");
        if number == 0 {
            let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
            text["annotations"] = state["annotations"].clone();
            fs::write(&config, text.to_string()).unwrap();
        }
        let said = fed(&mut bench.hook("createRuntime"), &state.to_string());
        assert!(!said.status.success(), "no rule allows {image}");
    }
    let lab = &bench.world.lab;
    assert!(lab.json(&["list", "containers"]).as_array().unwrap().len() >= 300);
    for args in [&["list", "containers"][..], &["list", "programs"], &["list", "links"], &["gc", "--dry-run"], &["gc"]] {
        let said = ended(&mut group.around(&lab.command(args)));
        assert!(said.status.success(), "{args:?}: {}", said.stderr);
    }
    let other = bench.container();
    let said = fed(&mut group.around(&bench.hook("createRuntime")), &other.creating());
    assert!(said.status.code() == Some(1) && said.stderr.lines().count() == 1, "{said:?}");
    let lab = &bench.world.lab;
    lab.policy("[[image]]\nrepository = \"127.0.0.1:9/acme/*\"\nunsigned = true\n");
    for args in [&["pull", image][..], &["doctor", "-q"]] {
        let said = ended(&mut group.around(&lab.command(args)));
        assert!(said.status.code() == Some(1) || said.status.success(), "{args:?}: {said:?}");
        assert!(!said.stderr.contains("panicked"), "{args:?}: {}", said.stderr);
    }
    bench.end(other, true);
    bench.end(pod, true);
    bench.world.lab.ours(&["gc"]);
    drop(group);
    bench.clean("after commands without threads");
}

#[test]
fn another_time_namespace_makes_no_owner_look_dead() {
    let mut bench = Bench::new();
    let pod = bench.started();
    let mut gc = Command::new("unshare");
    gc.args(["--time", "--fork", "--boottime", "1000000", BINARY, "gc", "--root"]).arg(bench.world.lab.root());
    let said = ended(&mut gc);
    assert!(!said.status.success() && said.stderr.contains("time namespace"), "{said:?}");
    bench.complete(&pod, "after gc");
    bench.end(pod, true);
    bench.clean("after gc in another time namespace");
}

#[test]
fn a_load_whose_output_cannot_be_written_is_still_done() {
    let bench = Bench::new();
    let lab = &bench.world.lab;
    let object = object_path("demo").display().to_string();
    let mut load = lab.command(&["load", "file", "--path", &object, "--programs", "xdp:count_packets"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let said = load.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&said.stderr);
    let ids = lab.ours(&["list", "programs", "-q"]);
    assert!(said.status.success() && stderr.contains(&format!("{} are loaded and remain loaded", ids.trim())), "{stderr}");
    lab.ours(&["unload", ids.trim()]);
    bench.clean("after a load");
}

#[test]
fn a_file_size_limit_is_a_clear_error() {
    let mut bench = Bench::new();
    let pod = bench.container();
    let mut hook = Command::new("prlimit");
    hook.args(["--fsize=4096:4096", BINARY, "hook", "createRuntime", "--root"]).arg(bench.world.lab.root());
    let said = fed(&mut hook, &pod.creating());
    assert!(said.status.code() == Some(1) && said.stderr.contains("RLIMIT_FSIZE"), "{said:?}");
    bench.end(pod, true);
    bench.recover(0);
    bench.clean("with a limit of file sizes");
}

/// Takes ten seconds, so only `make test-faults` runs it.
#[test]
fn a_start_waits_for_the_writers_lock_once_and_names_its_holder() {
    if !everything() {
        return;
    }
    let mut bench = Bench::new();
    let pod = bench.container();
    let stores = bench.world.lab.path("root/run/bpfman-hook/store");
    let store = fs::read_dir(stores).unwrap().next().unwrap().unwrap().path();
    let writer = File::options().write(true).open(store.join("writer")).unwrap();
    writer.lock().unwrap();
    let begun = Instant::now();
    let said = fed(&mut bench.hook("createRuntime"), &pod.creating());
    let took = begun.elapsed();
    writer.unlock().unwrap();
    let holder = format!("process {} has kept it locked", std::process::id());
    assert!(!said.status.success() && said.stderr.contains(&holder), "{}", said.stderr);
    assert!(took < Duration::from_secs(16), "{took:?}");
    bench.end(pod, true);
    bench.clean("after a start that could not have the lock");
}

/// Takes half a minute, so only `make test-faults` runs it.
#[test]
fn the_hard_deadline_fires_even_if_fork_hangs() {
    if !everything() {
        return;
    }
    let mut bench = Bench::new();
    let pod = bench.container();
    let begun = Instant::now();
    // Threads are created by clone3; fork(3) creates the child by clone.
    let said = step(&mut bench.hook("createRuntime"), &pod.creating(), Fault::Freeze("clone"));
    assert_eq!((said.status, said.hit), (Some(1), Some("clone")), "{}", said.said);
    assert!(said.said.contains("gave up") && begun.elapsed() < Duration::from_secs(35), "{:?}: {}", begun.elapsed(), said.said);
    bench.end(pod, true);
    bench.recover(0);
    bench.clean("after a hook that stood still");
}
