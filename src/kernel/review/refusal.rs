//! Why a program cannot be loaded in container scope, as a message.

use std::fmt;

use crate::kernel::link::Linked;
use crate::kernel::object::BpfObject;
use crate::model::reach::{self, Reach};

/// The helpers behind `bpf_printk`.
const TRACE_PRINTK: u32 = 6;
/// See [`TRACE_PRINTK`].
const TRACE_VPRINTK: u32 = 177;

/// What a program does that container scope does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objection {
    /// A helper that is not on the list of the program's type.
    Helper(u32),
    /// A lookup of sockets that is not restricted to the program's own network namespace by a constant.
    Netns(u32),
    /// `bpf_loop` without a small constant number of iterations.
    Rounds,
    /// A repeating helper that is called from a callback.
    InCallback(u32),
    /// `may_goto`
    MayGoto,
    /// The address of a kernel variable, by its BTF id.
    KernelVariable,
    /// A kernel function, by its BTF id.
    Kfunc,
    /// A helper that the policy's list for submitted programs does not have.
    NotListed(u32),
    /// A kernel function that this list does not have, by its BTF id.
    KfuncNotListed(u32),
    /// A 64-bit constant of an unknown kind (`src_reg`).
    Constant(u8),
    /// A call of an unknown kind (`src_reg`).
    Call(u8),
    /// An unknown opcode.
    Opcode(u8),
    /// A tag of a function's argument that was not reviewed.
    Tag(String),
}

/// A program that container scope does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "program {program} {}{}: {}; it needs host scope in policy (host-scope = true, and scope = \"host\" in the image rule){}",
    objection.what(), self.place(), objection.why(), objection.instead()
)]
pub struct ReviewRefusal {
    /// The program's main function.
    pub program: String,
    /// What it does.
    pub objection: Objection,
    /// The instruction, counted from the program's start, with the called functions after it.
    pub at: Option<usize>,
    /// Source file and line, if the object has them.
    pub line: Option<(String, u32)>,
}

impl ReviewRefusal {
    fn place(&self) -> String {
        match (self.at, &self.line) {
            (Some(at), Some((file, line))) => format!(" (instruction {at}, {file}:{line})"),
            (Some(at), None) => format!(" (instruction {at})"),
            (None, _) => String::new(),
        }
    }
}

impl Objection {
    /// What the program does; follows its name.
    pub(super) fn what(&self) -> String {
        match self {
            Self::Helper(number) => format!("calls {}", Helper(*number)),
            Self::Netns(number) => format!("calls {} with a network namespace other than its own", Helper(*number)),
            Self::Rounds => "calls bpf_loop with a count that is not a constant of at most 65536".to_owned(),
            Self::InCallback(number) => format!("calls {} from a callback", Helper(*number)),
            Self::MayGoto => "uses may_goto".to_owned(),
            Self::KernelVariable => "uses a kernel variable".to_owned(),
            Self::Kfunc => "calls a kernel function (kfunc)".to_owned(),
            Self::NotListed(number) => format!("calls {}", Helper(*number)),
            Self::KfuncNotListed(id) => format!("calls the kernel function {id}"),
            Self::Constant(kind) => format!("has a constant of unknown kind {kind}"),
            Self::Call(kind) => format!("has a call of unknown kind {kind}"),
            Self::Opcode(code) => format!("has the unknown opcode {code:#04x}"),
            Self::Tag(tag) => format!("has a function with an argument tagged {tag:?}"),
        }
    }

    /// Why that is refused.
    pub(super) fn why(&self) -> String {
        match self {
            Self::Helper(number) => match reach::helper(*number).map(|function| function.reach) {
                Some(reach) if reach.is_beyond() => format!("that reaches {reach}"),
                _ => "that was not reviewed for its program type".to_owned(),
            },
            Self::Netns(_) => "that reaches beyond the container".to_owned(),
            Self::Rounds | Self::MayGoto => "that can hold a processor".to_owned(),
            Self::InCallback(_) => "nested loops can hold a processor".to_owned(),
            Self::KernelVariable | Self::Kfunc => format!("that can reach {}", Reach::KernelMemory),
            Self::NotListed(_) => "that is not among the helpers of the rule".to_owned(),
            Self::KfuncNotListed(_) => "that is not among the kfuncs of the rule".to_owned(),
            Self::Tag(tag) if tag == "arg:untrusted" => format!("that reaches {}", Reach::KernelMemory),
            Self::Constant(_) | Self::Call(_) | Self::Opcode(_) | Self::Tag(_) => "that was not reviewed".to_owned(),
        }
    }

    /// What the author can use instead.
    pub(super) fn instead(&self) -> &'static str {
        match self {
            Self::Netns(_) => ", or BPF_F_CURRENT_NETNS as a constant",
            Self::Helper(TRACE_PRINTK | TRACE_VPRINTK) => ", or a ring buffer in place of bpf_printk",
            _ => "",
        }
    }
}

struct Helper(u32);

impl fmt::Display for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match reach::helper(self.0) {
            Some(function) => write!(f, "bpf_{}", function.name),
            None => write!(f, "helper {}", self.0),
        }
    }
}

/// Source file and line of an instruction, without directories.
pub(super) fn line(object: &BpfObject<'_>, linked: &Linked, at: usize) -> Option<(String, u32)> {
    let (btf, _) = object.btf.as_ref()?;
    let word = |record: &[u8], n: usize| record.get(4 * n..)?.first_chunk().copied().map(u32::from_ne_bytes);
    let records: Vec<&[u8]> = linked.lines.chunks_exact(Linked::LINE_RECORD).collect();
    let after = records.partition_point(|record| word(record, 0).is_some_and(|start| start as usize <= at));
    let record = records.get(after.checked_sub(1)?)?;
    let path = btf.string(word(record, 1)?).ok()?;
    let file = path.rsplit('/').next().filter(|file| !file.is_empty() && file.len() <= 64)?;
    // struct bpf_line_info: the column is in the low ten bits, below the line. Compilers give line 0 to code without a
    // source line.
    let line = word(record, 3)? >> 10;
    (line != 0).then(|| (file.to_owned(), line))
}
