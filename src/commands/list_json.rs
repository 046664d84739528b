//! `list programs -o json` and `list links -o json`: of thousands of owners as quickly as of ten. Each part of the store is read
//! and written as JSON by one thread, without more of a record than is printed.

use serde::Serialize;

use crate::kernel::inspect::{self, LinkInfo};
use crate::lifecycle::health::Loss;
use crate::model::listed::ListedOwner;
use crate::output::view::{ProgramView, listed_programs};
use crate::store::{Damaged, Part, ReadTxn, StoreError};
use crate::sys::Errno;

/// Elements that are made before they are written.
const AT_ONCE: usize = 64;

/// What `list programs -o json` prints.
pub fn programs(txn: &ReadTxn<'_>, asks: &KernelLookup) -> Result<(String, Damaged), StoreError> {
    array(txn, |owners, out| {
        out.add(&owners.iter().flat_map(listed_programs).map(|program| asks.about(program)).collect::<Vec<_>>());
    })
}

/// Asks the kernel what is lost of a program and its links.
#[derive(Debug, Clone, Copy)]
pub struct KernelLookup {
    /// Whether it has the program with an id; an error is "could not tell".
    pub program: fn(u32) -> Result<bool, Errno>,
    /// What it says of the link with an id.
    pub link: fn(u32) -> Result<Option<LinkInfo>, Errno>,
}

impl KernelLookup {
    /// The one that runs.
    pub const RUNNING: Self = Self { program: inspect::has_program, link: inspect::link_by_id };

    fn about<'a>(&self, mut program: ProgramView<'a>) -> ProgramView<'a> {
        let gone = program.id.is_some_and(|id| (self.program)(id) == Ok(false));
        program.gone = gone.then_some(Loss::Removed);
        for link in &mut program.links {
            let answer = link.id.filter(|id| *id < inspect::FILTERS).and_then(|id| (self.link)(id).ok());
            link.gone = answer.and_then(|answer| Loss::of_link(answer.as_ref()));
        }
        program
    }
}

/// What `list links -o json` prints.
pub fn links(txn: &ReadTxn<'_>, asks: &KernelLookup) -> Result<(String, Damaged), StoreError> {
    array(txn, |owners, out| {
        let programs: Vec<ProgramView> = owners.iter().flat_map(listed_programs).map(|program| asks.about(program)).collect();
        out.add(&programs.iter().flat_map(|program| &program.links).collect::<Vec<_>>());
    })
}

/// The elements of an array, as they stand between its brackets when it is printed with indentation.
#[derive(Debug, Default)]
struct Elements(Vec<u8>);

impl Elements {
    fn add(&mut self, elements: &[impl Serialize]) {
        if elements.is_empty() {
            return;
        }
        let start = self.0.len();
        serde_json::to_writer_pretty(&mut self.0, elements).expect("views have string keys, and a vector takes all");
        // `[` becomes what separates it from the elements before, and "\n]" is for the last.
        self.0[start] = b',';
        self.0.truncate(self.0.len() - 2);
    }
}

fn array(txn: &ReadTxn<'_>, add: impl Fn(&[ListedOwner<'_>], &mut Elements) + Sync) -> Result<(String, Damaged), StoreError> {
    let parts = txn.in_parts(|part: Part<'_>| {
        let (mut out, mut damaged, mut owners) = (Elements::default(), Damaged::new(), Vec::with_capacity(AT_ONCE));
        for decoded in part.decoded::<ListedOwner<'_>>() {
            match decoded {
                Ok(owner) => owners.push(owner),
                Err(bad) => damaged.push(bad),
            }
            if owners.len() == AT_ONCE {
                add(&owners, &mut out);
                owners.clear();
            }
        }
        add(&owners, &mut out);
        (out.0, damaged)
    })?;
    let mut text = Vec::with_capacity(parts.iter().map(|(elements, _)| elements.len()).sum::<usize>() + 4);
    let mut all_damaged = Damaged::new();
    for (elements, damaged) in parts {
        text.extend(elements);
        all_damaged.extend(damaged);
    }
    if text.is_empty() {
        text.push(b'[');
    } else {
        text[0] = b'[';
        text.push(b'\n');
    }
    text.extend(b"]\n");
    Ok((String::from_utf8(text).expect("JSON is UTF-8"), all_damaged))
}
