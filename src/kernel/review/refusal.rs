//! Why a program cannot be loaded in container scope, as a message.

use std::fmt;

use super::bound::EXECUTED_MAX;
use crate::kernel::link::Linked;
use crate::kernel::object::BpfObject;
use crate::model::reach::{self, Reach};

/// The helpers behind `bpf_printk`.
const TRACE_PRINTK: u32 = 6;
/// See [`TRACE_PRINTK`].
const TRACE_VPRINTK: u32 = 177;

/// A function or variable of the kernel, as instructions refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSymbol {
    /// Its BTF id, in the kernel or in a module.
    pub id: u32,
    /// True if it is one of a module.
    pub in_module: bool,
    /// Its name, if it was looked up.
    pub name: Option<String>,
}

impl fmt::Display for KernelSymbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None if self.in_module => write!(f, "{} of a module", self.id),
            None => write!(f, "{}", self.id),
        }
    }
}

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
    /// More instructions in one run than container scope allows.
    Executed {
        /// How many.
        most: u64,
    },
    /// `may_goto`
    MayGoto,
    /// The address of a kernel variable.
    KernelVariable(KernelSymbol),
    /// A call of a kernel function.
    Kfunc(KernelSymbol),
    /// A helper that the policy's list for submitted programs does not have.
    NotListed(u32),
    /// A kernel function that this list does not have.
    KfuncNotListed(KernelSymbol),
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
    /// A refusal that concerns the whole program.
    pub fn of(program: &str, objection: Objection) -> Self {
        Self { program: program.to_owned(), objection, at: None, line: None }
    }

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
            Self::Executed { most } => {
                let most = if *most > 1 << 40 { "any number of".to_owned() } else { most.to_string() };
                format!("can execute {most} instructions in one run, by loops that call global functions or run callbacks")
            }
            Self::MayGoto => "uses may_goto".to_owned(),
            Self::KernelVariable(symbol) => format!("uses the kernel variable {symbol}"),
            Self::Kfunc(symbol) | Self::KfuncNotListed(symbol) => format!("calls the kernel function {symbol}"),
            Self::NotListed(number) => format!("calls {}", Helper(*number)),
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
            Self::Executed { .. } => format!("more than {EXECUTED_MAX} can hold a processor"),
            Self::InCallback(_) => "nested loops can hold a processor".to_owned(),
            Self::KernelVariable(_) => format!("that can reach {}", Reach::KernelMemory),
            Self::Kfunc(symbol) => match symbol.name.as_deref().and_then(reach::kfunc).filter(|reach| reach.is_beyond()) {
                Some(reach) => format!("that reaches {reach}"),
                None => "this kernel function is not allowed at container scope".to_owned(),
            },
            Self::NotListed(_) => "that is not among the helpers of the rule".to_owned(),
            Self::KfuncNotListed(_) => "that is not among the kfuncs of the rule".to_owned(),
            Self::Tag(tag) if tag == "arg:untrusted" => format!("that reaches {}", Reach::KernelMemory),
            Self::Constant(_) | Self::Call(_) | Self::Opcode(_) | Self::Tag(_) => "that was not reviewed".to_owned(),
        }
    }

    /// The symbol of the kernel that the program refers to, by an id that its author sees only in the kernel's BTF.
    pub(super) fn symbol(&mut self) -> Option<&mut KernelSymbol> {
        match self {
            Self::KernelVariable(symbol) | Self::Kfunc(symbol) | Self::KfuncNotListed(symbol) => Some(symbol),
            _ => None,
        }
    }

    /// What the author can use instead.
    pub(super) fn instead(&self) -> &'static str {
        match self {
            Self::Executed { .. } => ", or static functions in place of global ones, and fewer rounds",
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
