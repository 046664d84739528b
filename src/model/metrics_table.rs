//! The metrics, and the position of each number in the file of counters.
//!
//! The set is closed: every label has a fixed list of values, so the file has a fixed length and untrusted input cannot
//! make it grow. Data with user-chosen names (containers, images, programs) is in the owner files instead.

/// An enum whose variants are the values of a label.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every value, in the order of the file.
            pub const WORDS: &[&'static str] = &[$($word),+];

            /// The value of the label.
            pub fn word(self) -> &'static str {
                Self::WORDS[self as usize]
            }
        }
    };
}

words! {
    /// The hook that ran.
    Stage {
        /// Before a container starts.
        CreateRuntime = "createRuntime",
        /// After a container has stopped.
        Poststop = "poststop",
        /// When podman creates a container's configuration.
        Precreate = "precreate",
    }
}

words! {
    /// The result of a hook's run.
    Outcome {
        /// Everything was done.
        Done = "done",
        /// The container starts without its programs, as its request allows.
        Without = "without",
        /// The container does not start, or something could not be undone.
        Failed = "failed",
        /// The time limit was reached.
        Late = "late",
    }
}

words! {
    /// A phase of a container's start.
    Phase {
        /// Fetching and verifying the images.
        Image = "image",
        /// Loading, attaching, mounting.
        Build = "build",
    }
}

words! {
    /// Whether something succeeded.
    Worked {
        /// It succeeded.
        Ok = "ok",
        /// It failed.
        Failed = "failed",
    }
}

words! {
    /// The type of an event, as in `events`.
    EventKind {
        /// A container or a pod's network namespace has what it requested.
        Acquired = "acquired",
        /// It has stopped, and everything it had is released.
        Released = "released",
        /// The same, done by gc.
        Collected = "collected",
        /// A request was refused or failed.
        Refused = "refused",
        /// A container was found that had been started without bpfman-hook.
        Missed = "missed",
        /// Calls of a policed container were not allowed.
        Policed = "policed",
        /// A program was loaded without a container.
        Loaded = "loaded",
        /// A link was created without a container.
        Attached = "attached",
        /// A link was removed without a container.
        Detached = "detached",
        /// A program was unloaded without a container.
        Unloaded = "unloaded",
        /// An image was fetched.
        Pulled = "pulled",
        /// A container's proxy of bpf(2) ended before the container.
        Lost = "lost",
        /// The proxy of bpf(2) refused a call.
        Denied = "denied",
    }
}

words! {
    /// A call that is notified to the proxy: a command of bpf(2), or another system call.
    ProxyCall {
        /// BPF_MAP_CREATE
        MapCreate = "map_create",
        /// BPF_PROG_LOAD
        ProgLoad = "prog_load",
        /// BPF_PROG_ATTACH
        ProgAttach = "prog_attach",
        /// BPF_PROG_DETACH
        ProgDetach = "prog_detach",
        /// BPF_RAW_TRACEPOINT_OPEN
        RawTracepointOpen = "raw_tracepoint_open",
        /// BPF_BTF_LOAD
        BtfLoad = "btf_load",
        /// BPF_BTF_GET_FD_BY_ID
        BtfGetFdById = "btf_get_fd_by_id",
        /// BPF_LINK_CREATE
        LinkCreate = "link_create",
        /// BPF_TOKEN_CREATE
        TokenCreate = "token_create",
        /// perf_event_open(2)
        PerfEventOpen = "perf_event_open",
        /// A command that the proxy does not know.
        Other = "other",
    }
}

words! {
    /// The result of a call through the proxy.
    ProxyOutcome {
        /// The kernel did it.
        Done = "done",
        /// The proxy refused it.
        Refused = "refused",
        /// The kernel refused it, or its arguments could not be read.
        Failed = "failed",
    }
}

words! {
    /// Why the proxy refused a call.
    ProxyReason {
        /// A command, type or attach type that was not granted.
        Grant = "grant",
        /// A feature that needs host scope.
        Scope = "scope",
        /// The instructions of a program, or functions that it calls.
        Instructions = "instructions",
        /// A place, program or map that is not the container's own.
        Place = "place",
        /// A limit of the policy, or of every container.
        Limit = "limit",
        /// A feature that is not passed on.
        Unsupported = "unsupported",
        /// Arguments of the wrong kind or size.
        Arguments = "arguments",
        /// The container has no grant, or has ended.
        Record = "record",
    }
}

words! {
    /// Why a start was refused or failed, by the part that found it.
    Reason {
        /// An annotation, the configuration or an administrator's file is invalid.
        Input = "input",
        /// Policy does not allow it.
        Policy = "policy",
        /// The container lacks a capability or a seccomp rule.
        Rights = "rights",
        /// The request does not fit its objects or its container.
        Request = "request",
        /// The image could not be fetched or is invalid.
        Image = "image",
        /// No signature satisfied the policy.
        Signature = "signature",
        /// The verifier refused a program.
        Verifier = "verifier",
        /// The kernel refused something else.
        Kernel = "kernel",
        /// A process, namespace, cgroup or mount is not in the required state.
        Host = "host",
        /// The store failed.
        Store = "store",
        /// Another owner or process prevents it.
        Busy = "busy",
        /// The time limit was reached, or the container had ended.
        Time = "time",
    }
}

words! {
    /// The result of verifying a requested image.
    Verification {
        /// A signature satisfied a rule.
        Verified = "verified",
        /// A rule accepts the image unsigned.
        Unsigned = "unsigned",
        /// No rule was satisfied.
        Refused = "refused",
    }
}

words! {
    /// The remedy for a container that had been started without bpfman-hook.
    Remedy {
        /// It was recorded and reported.
        Reported = "reported",
        /// Its init was killed.
        Killed = "killed",
        /// It should have been killed, but was not.
        Spared = "spared",
    }
}

words! {
    /// What gc did with something that it found.
    Collected {
        /// It is gone.
        Released = "released",
        /// It is still there.
        Left = "left",
    }
}

/// One label with all its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values.
    pub values: &'static [&'static str],
}

/// The numbers of one series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One number.
    Counter,
    /// One number for each of [`BOUNDS`], one for longer durations, and the sum in nanoseconds.
    Histogram,
}

impl Shape {
    const fn slots(self) -> usize {
        match self {
            Self::Counter => 1,
            Self::Histogram => BOUNDS.len() + 2,
        }
    }
}

/// Upper bounds of the buckets, in nanoseconds and as text in seconds.
pub const BOUNDS: [(u64, &str); 12] = [
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1.0"),
    (5_000_000_000, "5.0"),
    (25_000_000_000, "25.0"),
];

/// A metric family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// The name without `bpfman_hook_` and without the suffix of its type.
    pub name: &'static str,
    /// The help text.
    pub help: &'static str,
    /// Counter or histogram.
    pub shape: Shape,
    /// Its labels.
    pub labels: &'static [Label],
}

impl Family {
    /// The number of its series.
    pub const fn series(&self) -> usize {
        let (mut product, mut at) = (1, 0);
        while at < self.labels.len() {
            product *= self.labels[at].values.len();
            at += 1;
        }
        product
    }

    /// The label values of the series with this index.
    pub fn values(&self, mut index: usize) -> Vec<(&'static str, &'static str)> {
        let mut values: Vec<_> = (self.labels.iter().rev())
            .map(|label| {
                let value = label.values[index % label.values.len()];
                index /= label.values.len();
                (label.name, value)
            })
            .collect();
        values.reverse();
        values
    }
}

const STAGE: Label = Label { name: "stage", values: Stage::WORDS };
const OUTCOME: Label = Label { name: "outcome", values: Outcome::WORDS };
const PHASE: Label = Label { name: "phase", values: Phase::WORDS };
const WORKED: Label = Label { name: "outcome", values: Worked::WORDS };

const fn counter(name: &'static str, help: &'static str, labels: &'static [Label]) -> Family {
    Family { name, help, shape: Shape::Counter, labels }
}

const fn histogram(name: &'static str, help: &'static str, labels: &'static [Label]) -> Family {
    Family { name, help, shape: Shape::Histogram, labels }
}

/// Every family, in the order of the file.
pub const FAMILIES: [Family; 11] = [
    histogram("run_duration_seconds", "Hook runs for containers with a request, from start to end.", &[STAGE, OUTCOME]),
    histogram("phase_duration_seconds", "Parts of a container's start.", &[PHASE, WORKED]),
    counter("events", "Events by type.", &[Label { name: "type", values: EventKind::WORDS }]),
    counter("refusals", "Starts that were refused or failed.", &[Label { name: "reason", values: Reason::WORDS }]),
    counter("pulls", "Fetches of images from registries.", &[WORKED]),
    counter(
        "verifications",
        "Requested images, by verification result.",
        &[Label { name: "result", values: Verification::WORDS }],
    ),
    counter("gc_findings", "Objects of dead owners that gc found.", &[Label { name: "result", values: Collected::WORDS }]),
    counter("delegations", "Delegated bpffs mounted into containers.", &[]),
    counter(
        "missed",
        "Containers that requested bpfman-hook and were found running without it.",
        &[Label { name: "remedy", values: Remedy::WORDS }],
    ),
    counter(
        "proxy_calls",
        "Calls of containers that were notified to the proxy of bpf(2).",
        &[Label { name: "command", values: ProxyCall::WORDS }, Label { name: "outcome", values: ProxyOutcome::WORDS }],
    ),
    counter("proxy_refusals", "Calls that the proxy refused.", &[Label { name: "reason", values: ProxyReason::WORDS }]),
];

const BASES: [usize; FAMILIES.len() + 1] = {
    let (mut bases, mut at) = ([0; FAMILIES.len() + 1], 0);
    while at < FAMILIES.len() {
        bases[at + 1] = bases[at] + FAMILIES[at].series() * FAMILIES[at].shape.slots();
        at += 1;
    }
    bases
};

/// The number of all slots.
pub const SLOTS: usize = BASES[FAMILIES.len()];

/// The first slot of a series: the series with the index `series` of the family with the index `family`.
pub fn slot(family: usize, series: usize) -> usize {
    BASES[family] + series * FAMILIES[family].shape.slots()
}

/// The slot of one number or one histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricSlot(pub usize);

/// The slot of a histogram's bucket for a duration in nanoseconds, and the slot of its sum.
pub fn bucket(histogram: MetricSlot, nanoseconds: u64) -> (MetricSlot, MetricSlot) {
    let bucket = BOUNDS.partition_point(|(bound, _)| *bound < nanoseconds);
    (MetricSlot(histogram.0 + bucket), MetricSlot(histogram.0 + BOUNDS.len() + 1))
}

/// Runs of a hook.
pub fn run(stage: Stage, outcome: Outcome) -> MetricSlot {
    MetricSlot(slot(0, stage as usize * Outcome::WORDS.len() + outcome as usize))
}

/// Parts of a start.
pub fn phase(phase: Phase, worked: Worked) -> MetricSlot {
    MetricSlot(slot(1, phase as usize * Worked::WORDS.len() + worked as usize))
}

/// Events.
pub fn event(what: EventKind) -> MetricSlot {
    MetricSlot(slot(2, what as usize))
}

/// Refused starts.
pub fn refusal(reason: Reason) -> MetricSlot {
    MetricSlot(slot(3, reason as usize))
}

/// Fetches.
pub fn pull(worked: Worked) -> MetricSlot {
    MetricSlot(slot(4, worked as usize))
}

/// Results of verifications.
pub fn verification(result: Verification) -> MetricSlot {
    MetricSlot(slot(5, result as usize))
}

/// Results of gc.
pub fn gc(result: Collected) -> MetricSlot {
    MetricSlot(slot(6, result as usize))
}

/// Delegated bpffs.
pub fn delegation() -> MetricSlot {
    MetricSlot(slot(7, 0))
}

/// Containers that were started without bpfman-hook.
pub fn missed(remedy: Remedy) -> MetricSlot {
    MetricSlot(slot(8, remedy as usize))
}

/// Calls through the proxy.
pub fn proxy_call(call: ProxyCall, outcome: ProxyOutcome) -> MetricSlot {
    MetricSlot(slot(9, call as usize * ProxyOutcome::WORDS.len() + outcome as usize))
}

/// Calls that the proxy refused.
pub fn proxy_refusal(reason: ProxyReason) -> MetricSlot {
    MetricSlot(slot(10, reason as usize))
}

/// A number that changes with every change of this table (FNV-1a), so that a file of another version is not
/// misinterpreted.
pub fn fingerprint() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut mix = |text: &str| {
        for byte in text.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for family in &FAMILIES {
        mix(family.name);
        mix(if family.shape == Shape::Counter { "c" } else { "h" });
        for label in family.labels {
            mix(label.name);
            label.values.iter().for_each(|value| mix(value));
        }
    }
    BOUNDS.iter().for_each(|(_, bound)| mix(bound));
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_unique_and_has_its_labels() {
        let mut slots: Vec<usize> = Vec::new();
        for (family, it) in FAMILIES.iter().enumerate() {
            for series in 0..it.series() {
                slots.extend((0..it.shape.slots()).map(|part| slot(family, series) + part));
            }
        }
        assert_eq!(slots, (0..SLOTS).collect::<Vec<_>>());
        let index = Stage::Poststop as usize * Outcome::WORDS.len() + Outcome::Late as usize;
        assert_eq!(FAMILIES[0].values(index), [("stage", "poststop"), ("outcome", "late")]);
        assert_eq!(run(Stage::Poststop, Outcome::Late).0, slot(0, index));
        for (at, name) in ["run_duration_seconds", "phase_duration_seconds", "events", "refusals", "pulls"].iter().enumerate() {
            assert_eq!(FAMILIES[at].name, *name);
        }
        assert_eq!(FAMILIES[2].values(EventKind::Pulled as usize), [("type", "pulled")]);
        let names = [FAMILIES[9].name, FAMILIES[10].name];
        assert_eq!(names, ["proxy_calls", "proxy_refusals"]);
        assert_eq!((FAMILIES[5].name, FAMILIES[6].name, FAMILIES[7].name), ("verifications", "gc_findings", "delegations"));
    }

    #[test]
    fn a_duration_goes_into_the_first_matching_bucket() {
        let base = MetricSlot(100);
        for (nanoseconds, bucket_no) in
            [(0, 0), (1_000_000, 0), (1_000_001, 1), (25_000_000_000, 11), (25_000_000_001, 12), (u64::MAX, 12)]
        {
            assert_eq!(bucket(base, nanoseconds), (MetricSlot(100 + bucket_no), MetricSlot(113)), "{nanoseconds}");
        }
        assert!(BOUNDS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for (nanoseconds, text) in BOUNDS {
            assert_eq!((text.parse::<f64>().unwrap() * 1e9).round() as u64, nanoseconds);
        }
    }
}
