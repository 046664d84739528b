//! Hostile inputs for tests: recorded inputs, mutated at random from a seed that is printed on failure.
#![allow(clippy::unwrap_used, reason = "test code: a helper that cannot go on fails its test")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Pseudo-random numbers: xorshift64*, so that a seed gives the same sequence on every machine.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Values that often break arithmetic and formats.
const EDGES: &[u64] = &[0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 48, i64::MAX as u64, u64::MAX];

/// Problematic tokens for JSON parsers, to be inserted in place of a value or token.
const WORDS: &[&str] = &[
    "null",
    "-1",
    "1e999",
    "18446744073709551616",
    "\"\"",
    "[]",
    "{}",
    "[[[[[[[[[[[[[[[[",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "sha256:",
    "true",
    "\"sha512:00\"",
    ",",
    "}",
    "\n",
];

/// Makes one to eight changes of `input`, some with parts of `other`.
pub(crate) fn mutate(random: &mut Random, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(8) {
        if bytes.is_empty() {
            bytes.push(0);
        }
        let at = random.below(bytes.len());
        let span = 1 + random.below((bytes.len() - at).min(64));
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let length = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + length].copy_from_slice(&edge[..length]);
            }
            3 => drop(bytes.drain(at..at + span)),
            4 => {
                let copy = bytes[at..at + span].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            5 if !other.is_empty() => {
                let from = random.below(other.len());
                let piece = &other[from..other.len().min(from + 1 + random.below(256))];
                bytes.splice(at..at, piece.iter().copied());
            }
            6 => {
                let word = WORDS[random.below(WORDS.len())];
                bytes.splice(at..at + span, word.bytes());
            }
            7 => bytes.truncate(at),
            _ => {
                let from = random.below(bytes.len());
                bytes.swap(at, from);
            }
        }
    }
    bytes
}

/// Files beneath `tests/`, by path.
pub(crate) fn corpus(paths: &[&str]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for path in paths {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path);
        if path.is_dir() {
            let mut files: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.retain(|file| file.is_file());
            files.sort();
            found.extend(files.iter().map(|file| fs::read(file).unwrap()));
        } else {
            found.push(fs::read(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display())));
        }
    }
    assert!(!found.is_empty(), "{paths:?}");
    found
}

/// Runs `check` on mutations of `corpus` for a second, or for `FUZZ_SECONDS`, from a different seed each time
/// (`FUZZ_SEED` repeats one). A panic of `check` is reported with the seed and the path of the input.
pub(crate) fn fuzz(name: &str, corpus: &[Vec<u8>], mut check: impl FnMut(&[u8])) {
    let number =
        |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text}")));
    let time = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(1));
    let fresh = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("FUZZ_SEED").unwrap_or_else(fresh);
    let mut random = Random::new(seed);
    let begin = Instant::now();
    let mut runs = 0_u64;
    while runs < 100 || begin.elapsed() < time {
        let (one, other) = (&corpus[random.below(corpus.len())], &corpus[random.below(corpus.len())]);
        let input = mutate(&mut random, one, other);
        let started = Instant::now();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&input)));
        let path = std::env::temp_dir().join(format!("bpfman-hook-fuzz-{name}-{seed}"));
        let keep = || fs::write(&path, &input).unwrap();
        if done.is_err() {
            keep();
            panic!("{name}: FUZZ_SEED={seed}, run {runs}; the input is in {}", path.display());
        }
        if started.elapsed() > Duration::from_secs(10) {
            keep();
            panic!("{name}: {:?} for one input: {}", started.elapsed(), path.display());
        }
        runs += 1;
    }
    println!("{name}: {runs} inputs in {:?}, FUZZ_SEED={seed}", begin.elapsed());
}
