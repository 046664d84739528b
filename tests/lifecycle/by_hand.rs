//! Manual loads and attaches: a failure and a kill at each effect, and concurrent changes at each moment in between.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bpfman_hook::lifecycle::Lifecycle;
use bpfman_hook::lifecycle::reconcile::GcMode;
use bpfman_hook::model::attach_point::{ProgramKind, TracepointName};
use bpfman_hook::model::manual::{
    Attach, AttachPlace, CallerRights, FailureCode, LoadTask, ManualReply, ManualTask, ObjectSource, ProgramFilter,
    ProgramToLoad,
};
use bpfman_hook::model::object::{ObjectFacts, ProgramFacts};
use bpfman_hook::model::policy::StoreLimits;
use bpfman_hook::model::record::{OwnerRecord, Phase};
use bpfman_hook::paths::Paths;

use crate::World;
use crate::fake::{FakeHost, FakeKernel, Killed, Trouble};

/// Pids of these tests.
const FIRST: u32 = 601;
const SECOND: u32 = 602;
const THIRD: u32 = 603;

/// An installation, an object with two programs, and processes that live until a test ends them.
struct Bench {
    world: World,
    object: PathBuf,
    dead: Rc<RefCell<BTreeSet<u32>>>,
}

fn two_programs() -> ObjectFacts {
    let program = |function: &str| ProgramFacts { function: function.into(), section: "tracepoint".into(), declared: None };
    ObjectFacts { programs: vec![program("one"), program("two")], ..crate::object() }
}

fn load(bench: &Bench, functions: &[&str]) -> ManualTask {
    let wanted =
        |function: &&str| ProgramToLoad { function: (*function).to_owned(), kind: ProgramKind::Tracepoint, target: None };
    ManualTask::Load(LoadTask {
        map_sizes: Vec::new(),
        source: ObjectSource::File(bench.object.clone()),
        programs: functions.iter().map(wanted).collect(),
        globals: BTreeMap::new(),
        metadata: BTreeMap::new(),
        map_owner: None,
        attach: Vec::new(),
    })
}

fn attach(program: u32) -> ManualTask {
    let place = AttachPlace::Tracepoint(TracepointName { category: "sched".to_owned(), name: "sched_switch".to_owned() });
    ManualTask::Attach(Attach { program, place, metadata: BTreeMap::new() })
}

fn bounds() -> CallerRights {
    CallerRights {
        caller: "a test".to_owned(),
        host_scope: true,
        any_file: true,
        own_only: false,
        images: None,
        limits: None,
        store: None,
    }
}

impl Bench {
    fn new() -> Rc<Self> {
        let world = World::new();
        let object = world.fs.with_file_name("object.o");
        fs::write(&object, "an object").expect("object");
        Rc::new(Self { world, object, dead: Rc::default() })
    }

    fn host(&self, pid: u32) -> FakeHost<'_> {
        let mut host = FakeHost::new(&self.world.effects, pid);
        host.dead = Rc::clone(&self.dead);
        host
    }

    /// One request by a process that exits afterwards.
    fn run(&self, pid: u32, task: &ManualTask) -> ManualReply {
        let reply = self.run_on(&self.host(pid), task, 1000);
        self.end(pid);
        reply
    }

    /// The same by a process that has no time to wait for another one.
    fn run_hurried(&self, pid: u32, task: &ManualTask) -> ManualReply {
        let reply = self.run_on(&self.host(pid), task, 0);
        self.end(pid);
        reply
    }

    fn run_on(&self, host: &FakeHost<'_>, task: &ManualTask, deadline: u64) -> ManualReply {
        self.run_within(host, &bounds(), task, deadline)
    }

    /// One request of a client within its rights.
    fn run_as(&self, bounds: &CallerRights, task: &ManualTask) -> ManualReply {
        self.run_within(&self.host(FIRST), bounds, task, 1000)
    }

    fn run_within(&self, host: &FakeHost<'_>, bounds: &CallerRights, task: &ManualTask, deadline: u64) -> ManualReply {
        let kernel = FakeKernel::new(&self.world.effects, two_programs());
        let lifecycle = Lifecycle { kernel: &kernel, host, store: &self.world.store, fs: &self.world.fs, deadline };
        let paths = Paths::below(&self.world.fs);
        lifecycle.manual(&paths, bounds, task, Instant::now() + Duration::from_secs(1))
    }

    /// A process that is killed at the configured effect; true if it was.
    fn killed(&self, pid: u32, task: &ManualTask) -> bool {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run_on(&self.host(pid), task, 1000)));
        self.world.effects.calm();
        outcome.is_err_and(|death| death.is::<Killed>())
    }

    fn end(&self, pid: u32) {
        self.dead.borrow_mut().insert(pid);
    }

    fn gc(&self, pid: u32, mode: GcMode) -> Vec<String> {
        let kernel = FakeKernel::new(&self.world.effects, two_programs());
        let host = self.host(pid);
        let lifecycle =
            Lifecycle { kernel: &kernel, host: &host, store: &self.world.store, fs: &self.world.fs, deadline: 1000 };
        let findings = lifecycle.collect(mode, |_| false).expect("reconcile");
        findings.into_iter().map(|f| format!("{}: {}: {}", f.what, f.why, f.result)).collect()
    }

    /// Loads both programs, and attaches the first.
    fn loaded(&self) -> Loaded {
        let programs = ids(&self.run(FIRST, &load(self, &["one", "two"])));
        let link = linked(&self.run(FIRST, &attach(programs[0])));
        self.dead.borrow_mut().clear();
        self.world.effects.calm();
        Loaded { one: programs[0], two: programs[1], link }
    }

    /// Asserts that records and pins agree, name by name and id by id, and that nothing is unfinished.
    fn exact(&self, context: &str) {
        self.world.consistent(context);
        for record in self.world.records() {
            assert_eq!(record.phase, Phase::Ready, "{context}: {record:?}");
            assert!(!record.programs.is_empty(), "{context}: no request can unload {record:?}");
            let mut named = BTreeMap::new();
            named.extend(record.programs.iter().map(|p| (p.pin.to_string(), p.id())));
            named.extend(record.maps.iter().map(|m| (m.pin.to_string(), m.id())));
            named.extend(record.links.iter().map(|l| (l.pin.to_string(), l.id())));
            let pins = fs::read_dir(self.world.fs.join(record.no.directory())).expect("the owner's directory");
            let pinned: BTreeMap<_, _> = pins
                .map(|pin| pin.expect("a pin").path())
                .map(|pin| {
                    let id: Option<u32> = fs::read_to_string(&pin).expect("a pin").parse().ok();
                    (pin.file_name().expect("a name").to_string_lossy().into_owned(), id)
                })
                .collect();
            assert_eq!(named, pinned, "{context}: what the record names, and what is pinned");
        }
    }

    fn records(&self) -> Vec<OwnerRecord> {
        self.world.records()
    }

    fn links(&self) -> Vec<u32> {
        self.records().iter().flat_map(|record| record.links.iter().filter_map(|link| link.id())).collect()
    }

    /// Unloads everything, runs gc, and asserts that nothing is left.
    fn clear(&self, context: &str) {
        self.world.effects.calm();
        for record in self.records() {
            for id in record.programs.iter().filter_map(|program| program.id()) {
                let reply = self.run(THIRD, &ManualTask::Unload { program: id });
                assert!(done(&reply) || code(&reply) == Some(FailureCode::NotFound), "{context}: unload {id}: {reply:?}");
            }
        }
        self.gc(THIRD, GcMode::Release);
        assert!(self.world.residue(context).is_empty(), "{context}: a record of a manual load is left");
    }
}

struct Loaded {
    one: u32,
    two: u32,
    link: u32,
}

fn ids(reply: &ManualReply) -> Vec<u32> {
    let ManualReply::Programs(programs) = reply else { panic!("{reply:?}") };
    programs.iter().map(|program| program.kernel.id).collect()
}

fn linked(reply: &ManualReply) -> u32 {
    let ManualReply::Attached { link } = reply else { panic!("{reply:?}") };
    *link
}

fn done(reply: &ManualReply) -> bool {
    !matches!(reply, ManualReply::Failed(_))
}

fn code(reply: &ManualReply) -> Option<FailureCode> {
    match reply {
        ManualReply::Failed(failure) => Some(failure.code),
        _ => None,
    }
}

/// Each task that has effects, on a bench where both programs are loaded and the first is attached.
type Tasks = [(&'static str, fn(&Bench, &Loaded) -> ManualTask); 6];

const TASKS: Tasks = [
    ("load", |bench, _| load(bench, &["one", "two"])),
    ("attach", |_, there| attach(there.one)),
    ("attach the other", |_, there| attach(there.two)),
    ("detach", |_, there| ManualTask::Detach { link: there.link }),
    ("unload one", |_, there| ManualTask::Unload { program: there.one }),
    ("unload the other", |_, there| ManualTask::Unload { program: there.two }),
];

/// The bench of the last unload, which also removes the record.
fn with_one_left() -> (Rc<Bench>, Loaded) {
    let bench = Bench::new();
    let there = bench.loaded();
    assert!(done(&bench.run(FIRST, &ManualTask::Unload { program: there.two })));
    bench.dead.borrow_mut().clear();
    bench.world.effects.calm();
    (bench, there)
}

fn with_both() -> (Rc<Bench>, Loaded) {
    let bench = Bench::new();
    let there = bench.loaded();
    (bench, there)
}

/// Makes a bench.
type Start = fn() -> (Rc<Bench>, Loaded);

/// Every task with the bench that it runs on.
fn cases() -> impl Iterator<Item = (String, Start, fn(&Bench, &Loaded) -> ManualTask)> {
    let both = TASKS.into_iter().map(|(what, task)| (what.to_owned(), with_both as fn() -> _, task));
    let last = TASKS.into_iter().filter(|(what, _)| !what.contains("other"));
    both.chain(last.map(|(what, task)| (format!("{what}, the other gone"), with_one_left as fn() -> _, task)))
}

fn effects_of(bench: Start, task: fn(&Bench, &Loaded) -> ManualTask) -> usize {
    let (bench, there) = bench();
    let reply = bench.run(FIRST, &task(&bench, &there));
    assert!(done(&reply), "{reply:?}");
    bench.world.effects.count()
}

#[test]
fn programs_go_through_every_step_and_leave_nothing() {
    let (bench, there) = with_both();
    bench.exact("after load and attach");
    assert_eq!(bench.records().len(), 1);
    let listed = ids(&bench.run(FIRST, &ManualTask::List(ProgramFilter { ours_only: true, ..ProgramFilter::default() })));
    assert_eq!(listed, [there.one, there.two]);
    let second = linked(&bench.run(FIRST, &attach(there.one)));
    assert_eq!(bench.links(), [there.link, second], "a tracepoint takes any number");
    assert!(done(&bench.run(FIRST, &ManualTask::Detach { link: there.link })));
    bench.exact("after detach");
    assert_eq!(code(&bench.run(FIRST, &ManualTask::Detach { link: there.link })), Some(FailureCode::NotFound));
    assert!(done(&bench.run(FIRST, &ManualTask::Unload { program: there.one })));
    bench.exact("after one is unloaded");
    assert!(bench.links().is_empty(), "its link went with it");
    assert_eq!(code(&bench.run(FIRST, &attach(there.one))), Some(FailureCode::NotFound));
    assert_eq!(code(&bench.run(FIRST, &ManualTask::Unload { program: there.one })), Some(FailureCode::NotFound));
    assert!(done(&bench.run(FIRST, &ManualTask::Unload { program: there.two })));
    assert!(bench.world.residue("after the last").is_empty());
}

#[test]
fn a_failure_at_each_effect_leaves_what_was_there_and_a_second_try_works() {
    for (what, bench, task) in cases() {
        let count = effects_of(bench, task);
        for n in 1..=count {
            let context = format!("{what}: failure at effect {n} of {count}");
            let (bench, there) = bench();
            let task = task(&bench, &there);
            let before: Vec<_> = bench.records().into_iter().map(|record| (record.programs, record.links)).collect();
            bench.world.effects.problem_at(n, Trouble::FailBefore);
            let reply = bench.run(FIRST, &task);
            assert!(!done(&reply), "{context}: {reply:?}");
            bench.world.effects.calm();
            let unloads_all =
                matches!(task, ManualTask::Unload { .. }) && bench.records().iter().any(|r| r.phase == Phase::Releasing);
            if !unloads_all {
                let after: Vec<_> = bench.records().into_iter().map(|record| (record.programs, record.links)).collect();
                assert_eq!(before, after, "{context}: the record");
            }
            // By another process that makes the same request.
            let again = bench.run(SECOND, &task);
            assert!(done(&again), "{context}: {again:?}");
            if !unloads_all {
                bench.exact(&context);
            }
            bench.clear(&context);
        }
    }
}

#[test]
fn a_kill_at_each_effect_is_repaired_by_gc_and_by_the_next_process() {
    for (what, bench, task) in cases() {
        let count = effects_of(bench, task);
        for problem in [Trouble::KillBefore, Trouble::KillAfter] {
            for n in 1..=count {
                for by_gc in [true, false] {
                    let context = format!("{what}: {problem:?} at effect {n} of {count}, by gc: {by_gc}");
                    let (bench, there) = bench();
                    let task = task(&bench, &there);
                    bench.world.effects.problem_at(n, problem);
                    assert!(bench.killed(FIRST, &task), "{context}");

                    // While it lives, no other process may touch what it works on.
                    assert!(bench.gc(SECOND, GcMode::Release).is_empty(), "{context}: gc touched what a living process has");
                    if !matches!(task, ManualTask::Load(_)) {
                        let named = bench.records()[0].programs.iter().find_map(|program| program.id()).expect("a program");
                        let reply = bench.run_hurried(SECOND, &ManualTask::Unload { program: named });
                        assert_eq!(code(&reply), Some(FailureCode::DeadlineExceeded), "{context}: {reply:?}");
                    }
                    bench.end(FIRST);
                    bench.dead.borrow_mut().remove(&SECOND);
                    if by_gc {
                        assert_eq!(bench.gc(SECOND, GcMode::Tell).len(), 1, "{context}");
                        let told = bench.gc(SECOND, GcMode::Release);
                        assert_eq!(told.len(), 1, "{context}");
                        assert!(told[0].ends_with("removed") || told[0].ends_with("released"), "{context}: {told:?}");
                        bench.exact(&context);
                        assert!(bench.gc(SECOND, GcMode::Tell).is_empty(), "{context}: a second look finds more");
                    } else {
                        let reply = bench.run(SECOND, &task);
                        let gone = matches!(task, ManualTask::Detach { .. } | ManualTask::Unload { .. });
                        assert!(done(&reply) || gone && code(&reply) == Some(FailureCode::NotFound), "{context}: {reply:?}");
                        if !matches!(task, ManualTask::Load(_)) {
                            bench.exact(&context);
                        }
                    }
                    bench.clear(&context);
                }
            }
        }
    }
}

/// Concurrent changes at each moment of each task. While a task works on the record, others wait; before that they come
/// first, and the task continues with what they have left.
#[test]
fn concurrent_changes_leave_records_and_pins_consistent() {
    let mut both_came_through = 0;
    for (what, bench, task) in cases() {
        let moments = {
            let (bench, there) = bench();
            let host = bench.host(FIRST);
            assert!(done(&bench.run_on(&host, &task(&bench, &there), 1000)));
            let effects = (1..=bench.world.effects.count()).map(|n| (n, true));
            effects.chain((1..=host.asked()).map(|n| (n, false))).collect::<Vec<_>>()
        };
        for (other, others) in TASKS.into_iter().map(|(what, task)| (what, Some(task))).chain([("gc", None)]) {
            for (n, at_effect) in &moments {
                let moment = if *at_effect { "effect" } else { "name" };
                let context = format!("{what}, and {other} at {moment} {n}");
                let (bench, there) = bench();
                let came_through = Rc::new(RefCell::new(false));
                let happens = {
                    let (bench, came_through) = (Rc::clone(&bench), Rc::clone(&came_through));
                    let there = Loaded { ..there };
                    move || match others {
                        Some(other) => {
                            let reply = bench.run_hurried(SECOND, &other(&bench, &there));
                            let refused = matches!(code(&reply), Some(FailureCode::DeadlineExceeded | FailureCode::NotFound));
                            assert!(done(&reply) || refused, "{reply:?}");
                            *came_through.borrow_mut() = done(&reply);
                        }
                        None => _ = bench.gc(SECOND, GcMode::Release),
                    }
                };
                let host = bench.host(FIRST);
                if *at_effect {
                    bench.world.effects.meanwhile(*n, happens)
                } else {
                    host.before_me(*n, happens)
                }
                let reply = bench.run_on(&host, &task(&bench, &there), 1000);
                let taken = code(&reply) == Some(FailureCode::NotFound);
                assert!(done(&reply) || taken && *came_through.borrow(), "{context}: {reply:?}");
                if let ManualReply::Attached { link } = &reply {
                    assert!(bench.links().contains(link), "{context}: link {link} was promised");
                }
                both_came_through += usize::from(done(&reply) && *came_through.borrow());
                bench.exact(&context);
                bench.end(FIRST);
                bench.clear(&context);
            }
        }
    }
    assert!(both_came_through > 20, "only {both_came_through} times both had their way");
}

/// A process died while it worked on a link. Of the processes that find it, one removes it; the others must not remove
/// a new link of the same name.
#[test]
fn two_processes_that_clean_up_do_not_remove_each_others_links() {
    for moment in ["before it takes the record", "before it removes the link"] {
        let (bench, there) = with_both();
        bench.world.effects.problem_at(1, Trouble::KillAfter);
        assert!(bench.killed(FIRST, &attach(there.one)));
        bench.end(FIRST);
        let made = Rc::new(RefCell::new(None));
        let happens = {
            let (bench, made) = (Rc::clone(&bench), Rc::clone(&made));
            move || {
                let reply =
                    bench.run_on(&bench.host(SECOND), &attach(there.two), if moment.contains("takes") { 1000 } else { 0 });
                *made.borrow_mut() = done(&reply).then(|| linked(&reply));
                bench.end(SECOND);
            }
        };
        let host = bench.host(THIRD);
        // Once to check whether it is at work itself, and once for its name.
        if moment.contains("takes") {
            host.before_me(2, happens)
        } else {
            bench.world.effects.meanwhile(1, happens)
        }
        let own = linked(&bench.run_on(&host, &attach(there.one), 1000));
        bench.end(THIRD);
        let mut expected = vec![there.link];
        expected.extend(*made.borrow());
        expected.push(own);
        assert_eq!(made.borrow().is_some(), moment.contains("takes"), "{moment}");
        assert_eq!(bench.links(), expected, "{moment}");
        bench.exact(moment);
        bench.dead.borrow_mut().remove(&THIRD);
        bench.clear(moment);
    }
}

#[test]
fn a_program_being_loaded_cannot_be_unloaded_by_id() {
    let count = 4;
    for n in 1..=count {
        let context = format!("unload at effect {n} of a load");
        let bench = Bench::new();
        let replies = Rc::new(RefCell::new(Vec::new()));
        let happens = {
            let (bench, replies) = (Rc::clone(&bench), Rc::clone(&replies));
            move || {
                for id in 1..=4 {
                    replies.borrow_mut().push(code(&bench.run(SECOND, &ManualTask::Unload { program: id })));
                }
            }
        };
        bench.world.effects.meanwhile(n, happens);
        assert_eq!(ids(&bench.run(FIRST, &load(&bench, &["one", "two"]))).len(), 2, "{context}");
        assert_eq!(*replies.borrow(), [Some(FailureCode::NotFound); 4], "{context}");
        bench.exact(&context);
        bench.clear(&context);
    }
}

/// A process that pauses in the middle of its work is left alone by one that looked before the work began.
#[test]
fn a_record_is_not_taken_from_a_process_that_started_meanwhile() {
    for (what, task) in TASKS.into_iter().skip(1) {
        for (other, others) in TASKS.into_iter().skip(1) {
            let context = format!("{other} in the middle when {what} begins");
            let (bench, there) = with_both();
            let happens = {
                let (bench, there) = (Rc::clone(&bench), Loaded { ..there });
                move || {
                    bench.world.effects.problem_at(1, Trouble::KillAfter);
                    assert!(bench.killed(SECOND, &others(&bench, &there)));
                }
            };
            let host = bench.host(FIRST);
            host.before_me(1, happens);
            let reply = bench.run_on(&host, &task(&bench, &there), 0);
            assert_eq!(code(&reply), Some(FailureCode::DeadlineExceeded), "{context}: {reply:?}");
            assert_eq!(bench.records()[0].actor.process.pid.get(), SECOND, "{context}");
            bench.end(SECOND);
            assert_eq!(bench.gc(THIRD, GcMode::Release).len(), 1, "{context}");
            bench.exact(&context);
            bench.clear(&context);
        }
    }
}

/// The same for the leftovers of a dead process: the second to clean up finds the first already at work.
#[test]
fn leftovers_are_not_taken_from_a_process_that_cleans_up() {
    let (bench, there) = with_both();
    bench.world.effects.problem_at(1, Trouble::KillAfter);
    assert!(bench.killed(FIRST, &attach(there.one)));
    bench.end(FIRST);
    let happens = {
        let bench = Rc::clone(&bench);
        move || {
            // Its first effect removes the dead process's link, its second creates one of the same name.
            bench.world.effects.problem_at(2, Trouble::KillAfter);
            assert!(bench.killed(SECOND, &attach(there.two)));
        }
    };
    let mut host = bench.host(THIRD);
    host.late_after = Some(3);
    host.before_me(2, happens);
    let reply = bench.run_on(&host, &attach(there.one), 1000);
    assert_eq!(code(&reply), Some(FailureCode::DeadlineExceeded), "{reply:?}");
    let record = &bench.records()[0];
    assert_eq!((record.actor.process.pid.get(), record.links.len()), (SECOND, 2));
    assert!(record.links[1].pin.path(&bench.world.fs.join(record.no.directory())).exists(), "the link of a living process");
    bench.end(SECOND);
    bench.gc(FIRST, GcMode::Release);
    bench.exact("after gc");
    bench.clear("after gc");
}

/// What a client stores is limited, whatever it consists of: metadata, names, links.
#[test]
fn what_a_client_stores_is_limited_per_load_per_client_and_in_total() {
    let with = |mut task: ManualTask, bytes: usize| {
        let given = BTreeMap::from([("note".to_owned(), "x".repeat(bytes))]);
        match &mut task {
            ManualTask::Load(load) => load.metadata = given,
            ManualTask::Attach(attach) => attach.metadata = given,
            _ => {}
        }
        task
    };
    let store = StoreLimits { load: 8 << 10, client: 15 << 10, clients: 25 << 10 };
    let client = |name: &str| CallerRights { caller: name.to_owned(), own_only: true, store: Some(store), ..bounds() };
    let refused = |reply: ManualReply, says: &str| match reply {
        ManualReply::Failed(failure) => {
            assert_eq!(failure.code, FailureCode::ResourceExhausted, "{}", failure.message);
            assert!(failure.message.contains(says), "{}", failure.message);
        }
        other => panic!("{says}: {other:?}"),
    };
    let bench = Bench::new();
    let one = load(&bench, &["one"]);
    refused(bench.run_as(&client("a"), &with(one.clone(), 8 << 10)), "and the limit is 8192");
    let first = ids(&bench.run_as(&client("a"), &with(one.clone(), 5 << 10)))[0];
    // A link makes the record of its load larger.
    refused(bench.run_as(&client("a"), &with(attach(first), 3 << 10)), "and the limit is 8192");
    let link = linked(&bench.run_as(&client("a"), &with(attach(first), 100)));
    assert!(done(&bench.run_as(&client("a"), &ManualTask::Detach { link })));
    let second = ids(&bench.run_as(&client("a"), &with(one.clone(), 6 << 10)))[0];
    refused(bench.run_as(&client("a"), &with(one.clone(), 4 << 10)), "all its loads would take");
    // Another client has its own limit, and all clients together do not exceed the total limit.
    let third = ids(&bench.run_as(&client("b"), &with(one.clone(), 6 << 10)))[0];
    refused(bench.run_as(&client("c"), &with(one.clone(), 6 << 10)), "the loads of all clients would take");
    // Root is not included, and unloading frees space.
    let of_root = ids(&bench.run_as(&bounds(), &with(one.clone(), 200 << 10)))[0];
    refused(bench.run_as(&bounds(), &with(one.clone(), 5 << 20)), "and the limit is 4194304");
    assert!(done(&bench.run_as(&client("a"), &ManualTask::Unload { program: second })));
    let fourth = ids(&bench.run_as(&client("c"), &with(one, 6 << 10)))[0];
    for (caller, program) in [("a", first), ("b", third), ("c", fourth)] {
        assert!(done(&bench.run_as(&client(caller), &ManualTask::Unload { program })));
    }
    assert!(done(&bench.run_as(&bounds(), &ManualTask::Unload { program: of_root })));
    bench.clear("bounds");
}
