//! results.tsv: what was found with which client on which kernel, and the table of docs/proxy.md that is made of it and of
//! what tests/vm has found with tracers.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::client::Client;
use crate::harness;
use crate::here;
use crate::support::process::tool;

/// What a client that works has in the last column.
const WORKS: &str = "works";
const BEGIN: &str = "<!-- clients -->\n";
const END: &str = "<!-- end of the clients -->\n";

/// A line of results.tsv.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    client: String,
    version: String,
    does: String,
    scope: String,
    kernel: String,
    result: String,
}

impl Line {
    /// What was found now.
    pub fn of(client: &Client, version: &str, kernel: &str) -> Self {
        Self {
            client: client.name.clone(),
            version: version.to_owned(),
            does: client.does.clone(),
            scope: if client.host_scope { "host" } else { "container" }.to_owned(),
            kernel: kernel.to_owned(),
            result: client.fails.as_ref().map_or(WORKS, |failure| &failure.reason).to_owned(),
        }
    }

    fn parse(line: &str) -> Self {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let Ok([client, version, does, scope, kernel, result]) = <[String; 6]>::try_from(fields) else {
            harness!("results.tsv: not six fields: {line}")
        };
        Self { client, version, does, scope, kernel, result }
    }

    /// Whether both are about the same client on the same kernel.
    fn is_about_the_same(&self, other: &Self) -> bool {
        (&self.client, &self.does, &self.kernel) == (&other.client, &other.does, &other.kernel)
    }
}

/// The lines of results.tsv.
#[derive(Debug)]
pub struct Results(Vec<Line>);

impl Results {
    /// Reads the file.
    pub fn read() -> Self {
        let text = fs::read_to_string(here("results.tsv")).unwrap_or_else(|e| harness!("read results.tsv: {e}"));
        Self(text.lines().map(Line::parse).collect())
    }

    /// Replaces lines, and adds those of other clients.
    pub fn replace(&mut self, lines: &[Line]) {
        for line in lines {
            match self.0.iter_mut().find(|known| known.is_about_the_same(line)) {
                Some(known) => *known = line.clone(),
                None => self.0.push(line.clone()),
            }
        }
    }

    /// Writes the file, and the table.
    pub fn write(&self) {
        let lines = self.0.iter().map(|line| {
            [&line.client, &line.version, &line.does, &line.scope, &line.kernel, &line.result].map(String::as_str).join("\t")
        });
        let lines: Vec<String> = lines.collect();
        fs::write(here("results.tsv"), lines.join("\n") + "\n").unwrap_or_else(|e| harness!("write results.tsv: {e}"));
        let text = fs::read_to_string(document()).unwrap_or_else(|e| harness!("read docs/proxy.md: {e}"));
        let old = format!("{BEGIN}{}{END}", documented());
        let text = text.replace(&old, &format!("{BEGIN}{}{END}", self.table()));
        fs::write(document(), text).unwrap_or_else(|e| harness!("write docs/proxy.md: {e}"));
    }

    /// Whether a client's result is known. Versions change with Debian, and a kernel may have no results yet.
    pub fn has(&self, found: &Line) -> bool {
        let mut same = self.0.iter().filter(|line| line.is_about_the_same(found)).peekable();
        match same.peek() {
            Some(_) => same.any(|line| (&line.scope, &line.result) == (&found.scope, &found.result)),
            None => !self.0.iter().any(|line| line.kernel == found.kernel),
        }
    }

    /// The kernels that they were found on.
    pub fn kernels(&self) -> BTreeSet<&str> {
        self.0.iter().map(|line| line.kernel.as_str()).collect()
    }

    /// How many clients work on a kernel, in one of the things that they do at least, and how many were tried.
    pub fn count_on(&self, kernel: &str) -> (usize, usize) {
        let on = || self.0.iter().filter(|line| line.kernel == kernel);
        let distinct = |lines: &mut dyn Iterator<Item = &Line>| {
            lines.map(|line| (line.client.clone(), line.version.clone())).collect::<BTreeSet<_>>().len()
        };
        (distinct(&mut on().filter(|line| line.result == WORKS)), distinct(&mut on()))
    }

    /// The clients that are to be tried and have no line for a kernel.
    pub fn untried<'c>(&self, clients: &'c [Client], kernel: &str) -> Vec<&'c str> {
        let has = |client: &Client| {
            let mut lines = self.0.iter();
            lines.any(|line| (&line.client, &line.does, line.kernel.as_str()) == (&client.name, &client.does, kernel))
        };
        clients.iter().filter(|client| !has(client)).map(|client| client.name.as_str()).collect()
    }

    /// The same without what was found on a kernel.
    pub fn without(mut self, kernel: &str) -> Self {
        self.0.retain(|line| line.kernel != kernel);
        self
    }

    /// The table, and its sum. A client counts once, whatever it does and on how many kernels.
    pub fn table(&self) -> String {
        let tracers = fs::read_to_string(here("../vm/tracing-clients.tsv")).unwrap_or_default();
        let all: Vec<Line> = self.0.iter().cloned().chain(tracers.lines().map(Line::parse)).collect();
        let distinct = |lines: &mut dyn Iterator<Item = &Line>| -> usize {
            lines.map(|line| (&line.client, &line.version)).collect::<BTreeSet<_>>().len()
        };
        let working = distinct(&mut all.iter().filter(|line| line.result == WORKS));
        let mut text = format!("{working} of {} clients work.\n\n", distinct(&mut all.iter()));
        text.push_str("| Client | Version | What it does | Scope | Linux | Result |\n| --- | --- | --- | --- | --- | --- |\n");
        for line in &all {
            let Line { client, version, does, scope, kernel, result } = line;
            let _ = writeln!(text, "| {client} | {version} | {does} | {scope} | {kernel} | {result} |");
        }
        text
    }
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/proxy.md")
}

/// The table of docs/proxy.md.
pub fn documented() -> String {
    let text = fs::read_to_string(document()).unwrap_or_else(|e| harness!("read docs/proxy.md: {e}"));
    let found = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).map(|(table, _)| table.to_owned());
    found.unwrap_or_else(|| harness!("docs/proxy.md has no table of clients"))
}

/// The first two numbers of the kernel's version.
pub fn kernel() -> String {
    let release = tool(Command::new("uname").arg("-r"));
    release.split(['.', '-']).take(2).collect::<Vec<_>>().join(".")
}
