//! Commands with a deadline, and interactive communication with running containers.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness;

/// Timeout of everything that is not itself a measurement. It allows for two busy cores.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// The result of a command.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The last line of standard output that begins with a word, without the word.
    pub fn line(&self, word: &str) -> Option<&str> {
        self.stdout.lines().rev().find_map(|line| line.strip_prefix(word)).map(str::trim)
    }
}

/// Runs a command of the harness itself, which must succeed, and returns its standard output.
pub fn tool(command: &mut Command) -> String {
    let ended = ended(command);
    if !ended.status.success() {
        harness!("{command:?} ended with {}: {}", ended.status, ended.stderr);
    }
    ended.stdout
}

/// Runs a command with an empty standard input.
pub fn ended(command: &mut Command) -> Ended {
    Running::start(command).finish()
}

/// Runs a command with some text on its standard input.
pub fn fed(command: &mut Command, input: &str) -> Ended {
    let mut running = Running::start(command);
    running.say(input);
    running.finish()
}

/// Polls until there is a result, and fails with a description of what was waited for after the timeout.
pub fn eventually<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} for {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// A running command. It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
}

impl Running {
    /// Starts a command with pipes on all three standard descriptors.
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| harness!("start {command:?}: {e}"));
        let stdout = Stream::of(child.stdout.take().expect("stdout is a pipe"));
        let stderr = Stream::of(child.stderr.take().expect("stderr is a pipe"));
        Self { what: format!("{command:?}"), stdin: child.stdin.take(), child, stdout, stderr }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until standard output has a line that begins with these words, and returns the rest of that line.
    pub fn hear(&mut self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.stdout.line(words) {
                return line;
            }
            let over = matches!(self.child.try_wait(), Ok(Some(_))) && self.stdout.closed();
            if over && let Some(line) = self.stdout.line(words) {
                return line;
            }
            assert!(
                !over && Instant::now() < deadline,
                "waited for {words:?} from {}\nstdout: {}\nstderr: {}",
                self.what,
                self.stdout.text(),
                self.stderr.text()
            );
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Sends a signal to the process itself.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        let _gone = pid.map(|pid| rustix::process::kill_process(pid, signal));
    }

    /// Writes to standard input. If the process has already exited, `finish` notices.
    pub fn say(&mut self, text: &str) {
        if let Some(stdin) = &mut self.stdin {
            let _gone = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush());
        }
    }

    /// Kills the process itself, not its children.
    pub fn kill(&mut self) {
        let _gone = self.child.kill();
    }

    /// Closes standard input and waits for the exit.
    pub fn finish(mut self) -> Ended {
        self.stdin = None;
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                Ok(None) => panic!("{} is still running after {PATIENCE:?}: {}", self.what, self.stderr.text()),
                Err(e) => harness!("wait for {}: {e}", self.what),
            }
        };
        // A killed runtime may leave a container that still holds the pipes: then the output so far must suffice.
        let deadline = Instant::now() + Duration::from_secs(2);
        while !(self.stdout.closed() && self.stderr.closed()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ended { status, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _gone = self.child.kill();
            let _gone = self.child.wait();
        }
    }
}

/// The output of a pipe so far.
#[derive(Debug, Clone, Default)]
struct Stream(Arc<Mutex<(String, bool)>>);

impl Stream {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let stream = Self::default();
        let kept = stream.clone();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
                kept.with(|(text, _)| text.push_str(&String::from_utf8_lossy(&line)));
                line.clear();
            }
            kept.with(|(_, closed)| *closed = true);
        });
        stream
    }

    fn with<T>(&self, f: impl FnOnce(&mut (String, bool)) -> T) -> T {
        f(&mut self.0.lock().expect("no holder of this lock panics"))
    }

    fn text(&self) -> String {
        self.with(|(text, _)| text.clone())
    }

    fn closed(&self) -> bool {
        self.with(|(_, closed)| *closed)
    }

    fn line(&self, words: &str) -> Option<String> {
        self.with(|(text, _)| text.lines().find_map(|line| line.strip_prefix(words)).map(|rest| rest.trim().to_owned()))
    }
}
