//! Links one program of an object: its function and every function that it calls, as one sequence of instructions, with
//! the instructions that need the fd of a map listed. Pure: no system calls.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::kernel::core_relo::{CoreError, CoreTarget, POISON};
use crate::kernel::elf::ElfRelocation;
use crate::kernel::elf::Symbol;
use crate::kernel::insn::{self, Insn, PSEUDO_FUNC, PSEUDO_KFUNC, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE};
use crate::kernel::object::{BpfObject, Function};
use crate::kernel::object_error::ObjectError;
use crate::model::reach;

/// The kernel's limit: BPF_COMPLEXITY_LIMIT_INSNS of include/linux/bpf.h.
const MAX_INSTRUCTIONS: usize = 1_000_000;

/// Why a program cannot be linked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The object is not valid.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A symbol that only the kernel or another object could define.
    #[error("it uses {name}, which the object only declares (kernel functions, __ksym and __kconfig are not supported){reach}", name = .0, reach = reaches(.0))]
    Extern(String),
    /// A kernel function that the running kernel does not have.
    #[error("it calls {0}, which this kernel does not have")]
    NoKernelFunction(String),
    /// A reference to a symbol that is neither a map, nor data, nor a function.
    #[error("instruction {at} of {function} refers to {target:?}, which is neither a map nor data nor a function")]
    Reference {
        /// The function.
        function: String,
        /// The index of the instruction.
        at: usize,
        /// The symbol.
        target: String,
    },
    /// A call to an address where no function starts.
    #[error("instruction {at} of {function} calls into section {section:?}, where no function starts at instruction {start}")]
    NoFunction {
        /// The caller.
        function: String,
        /// The index of the instruction.
        at: usize,
        /// The section of the call's target.
        section: String,
        /// The target, in instructions.
        start: i64,
    },
    /// A constant or call that denotes a file descriptor or a kernel id without a symbol. Compilers leave these to the
    /// loader; an object that contains one would use what the loading process has open.
    #[error("instruction {at} of {function} contains the number of a file descriptor or kernel id")]
    Descriptor {
        /// The function.
        function: String,
        /// The index of the instruction.
        at: usize,
    },
    /// A map with initial elements, which is not supported.
    #[error("map {0} has initial elements (programs or maps), which are not supported")]
    Initialised(String),
    /// More instructions than the kernel accepts.
    #[error("it has more than a million instructions")]
    TooLong,
    /// A CO-RE relocation that cannot be resolved.
    #[error(transparent)]
    Core(#[from] CoreError),
}

/// What a kernel function reaches, as the end of a message; empty if unknown.
fn reaches(name: &str) -> String {
    reach::kfunc(name).map_or_else(String::new, |reach| format!(": it reaches {reach}"))
}

/// A program, complete except for the fds of its maps.
#[derive(Debug)]
pub struct Linked {
    /// The instructions.
    pub instructions: Vec<Insn>,
    /// Instructions that need the fd of a map: index of the instruction, index of the map in [`BpfObject::maps`].
    pub maps: Vec<(usize, usize)>,
    /// Where each function starts, ascending.
    pub starts: Vec<usize>,
    /// `struct bpf_func_info` of each function; empty unless every function has one.
    pub functions: Vec<u8>,
    /// `struct bpf_line_info`; empty unless every function starts with one.
    pub lines: Vec<u8>,
    /// `struct bpf_core_relo` of each CO-RE relocation; empty if the program was linked with the kernel's types.
    pub core: Vec<u8>,
    /// Kernel types that the program uses and this kernel does not have. The instructions that need them are poisoned;
    /// the verifier refuses them if they are reachable.
    pub missing: Vec<String>,
}

impl Linked {
    /// Size of `struct bpf_func_info` in bytes.
    pub const FUNCTION_RECORD: usize = 8;
    /// Size of `struct bpf_line_info` in bytes.
    pub const LINE_RECORD: usize = 16;
    /// Size of `struct bpf_core_relo` in bytes.
    pub const CORE_RECORD: usize = 16;

    /// The maps that the program uses, as indices into [`BpfObject::maps`].
    pub fn used_maps(&self) -> BTreeSet<usize> {
        self.maps.iter().map(|(_, map)| *map).collect()
    }
}

/// Links the program that starts with `entry`. `target` are the running kernel's types for CO-RE; without it CO-RE
/// relocations are left unresolved, so that an object can be checked independently of the kernel. Kernel functions that
/// the object declares (`extern … __ksym`) are refused.
pub fn link(object: &BpfObject<'_>, entry: &Function, target: Option<&CoreTarget<'_>>) -> Result<Linked, LinkError> {
    link_entry(object, entry, target, None)
}

/// Links a program of bpfman-hook itself, which may call kernel functions. They are found by name in the kernel's BTF.
/// If the kernel does not have a weak one, its address is 0 and a call of it is poisoned, as libbpf does
/// (tools/lib/bpf/libbpf.c, `poison_kfunc_call`). The address of one that it has is 1: kernels before 6.4 accept no real
/// one, and programs only compare it with 0.
pub fn link_built_in(object: &BpfObject<'_>, entry: &Function, kernel: &CoreTarget<'_>) -> Result<Linked, LinkError> {
    link_entry(object, entry, Some(kernel), Some(kernel))
}

fn link_entry(
    object: &BpfObject<'_>,
    entry: &Function,
    target: Option<&CoreTarget<'_>>,
    kernel: Option<&CoreTarget<'_>>,
) -> Result<Linked, LinkError> {
    let mut linker = Linker {
        object,
        target,
        kernel,
        sections: HashMap::new(),
        maps_by_place: maps_by_place(object),
        placed: HashMap::new(),
        order: Vec::new(),
        instructions: Vec::new(),
        maps: Vec::new(),
        calls: Vec::new(),
        missing: Vec::new(),
    };
    linker.place(entry)?;
    // Placing a function may add others to `order`, which grows during the iteration.
    let mut next = 0;
    while let Some((function, start)) = linker.order.get(next).copied() {
        linker.resolve(function, start)?;
        next += 1;
    }
    linker.finish()
}

struct LinkedCode {
    instructions: Vec<Insn>,
    relocations: BTreeMap<usize, ElfRelocation>,
}

struct Linker<'o, 'a> {
    object: &'o BpfObject<'a>,
    target: Option<&'o CoreTarget<'o>>,
    /// Where kernel functions are looked up; None if they are refused.
    kernel: Option<&'o CoreTarget<'o>>,
    sections: HashMap<usize, LinkedCode>,
    maps_by_place: HashMap<(usize, u64), usize>,
    placed: HashMap<(usize, usize), usize>,
    order: Vec<(&'o Function, usize)>,
    instructions: Vec<Insn>,
    maps: Vec<(usize, usize)>,
    calls: Vec<(usize, usize)>,
    missing: Vec<String>,
}

/// Maps by section and offset; data sections match any offset.
fn maps_by_place(object: &BpfObject<'_>) -> HashMap<(usize, u64), usize> {
    object.maps.iter().enumerate().map(|(n, map)| ((map.section, map.offset), n)).collect()
}

impl<'o> Linker<'o, '_> {
    /// Appends a function's instructions once, and returns where it starts.
    fn place(&mut self, function: &'o Function) -> Result<usize, LinkError> {
        if let Some(start) = self.placed.get(&(function.section, function.start)) {
            return Ok(*start);
        }
        if !self.sections.contains_key(&function.section) {
            let code = LinkedCode {
                instructions: self.object.instructions(function.section),
                relocations: self.object.relocations(function.section)?,
            };
            self.sections.insert(function.section, code);
        }
        let code = &self.sections[&function.section];
        let start = self.instructions.len();
        if start + function.len > MAX_INSTRUCTIONS {
            return Err(LinkError::TooLong);
        }
        // Object::parse checked that functions lie in their sections.
        self.instructions.extend(&code.instructions[function.start..function.start + function.len]);
        if let Some(target) = self.target {
            self.missing.extend(target.relocate(self.object, function, &mut self.instructions[start..])?);
        }
        self.placed.insert((function.section, function.start), start);
        self.order.push((function, start));
        Ok(start)
    }

    /// Resolves the references of one placed function.
    fn resolve(&mut self, function: &'o Function, start: usize) -> Result<(), LinkError> {
        for n in 0..function.len {
            let relocation = self.sections[&function.section].relocations.get(&(function.start + n)).copied();
            let insn = self.instructions[start + n];
            match relocation {
                Some(relocation) if insn.is_wide() => self.constant(function, start, n, relocation)?,
                Some(relocation) if insn.code == insn::CALL => {
                    let symbol = self.object.symbol(relocation);
                    let Some(section) = symbol.section else {
                        self.kernel_call(start + n, &symbol)?;
                        continue;
                    };
                    if !insn.is_call() {
                        return Err(self.reference(function, n, relocation));
                    }
                    // The compiler writes -1 for a function's own symbol, otherwise the position in the section.
                    let callee = places(symbol.value) + i64::from(insn.imm) + 1;
                    self.call(function, (start, n), section, callee)?;
                }
                Some(relocation) => return Err(self.reference(function, n, relocation)),
                None if insn.is_call() => {
                    let callee = function.start as i64 + n as i64 + i64::from(insn.imm) + 1;
                    self.call(function, (start, n), function.section, callee)?;
                }
                None if (insn.is_wide() || insn.code == insn::CALL) && insn.src() != 0 => {
                    return Err(LinkError::Descriptor { function: function.name.clone(), at: n });
                }
                None => {}
            }
        }
        Ok(())
    }

    fn constant(&mut self, function: &'o Function, start: usize, n: usize, relocation: ElfRelocation) -> Result<(), LinkError> {
        let symbol = self.object.symbol(relocation);
        let at = start + n;
        if n + 1 >= function.len {
            return Err(self.reference(function, n, relocation));
        }
        let Some(section) = symbol.section else {
            let exists = self.kernel_function(&symbol)?.is_some();
            self.instructions[at].imm = exists.into();
            self.instructions[at + 1].imm = 0;
            return Ok(());
        };
        if self.object.elf.sections[section].executable() {
            let bytes = i64::from(self.instructions[at].imm);
            let callee = places(symbol.value) + bytes / insn::SIZE as i64;
            self.instructions[at] = self.instructions[at].with_src(PSEUDO_FUNC);
            return self.call(function, (start, n), section, callee);
        }
        let data = self.maps_by_place.get(&(section, 0)).filter(|map| self.object.maps[**map].data.is_some());
        if let Some(map) = data.copied() {
            let offset = u32::try_from(symbol.value).ok().map(u32::cast_signed);
            let offset = offset.and_then(|base| self.instructions[at].imm.checked_add(base));
            let Some(offset) = offset else { return Err(self.reference(function, n, relocation)) };
            self.instructions[at] = self.instructions[at].with_src(PSEUDO_MAP_VALUE);
            self.instructions[at + 1].imm = offset;
            self.maps.push((at, map));
            return Ok(());
        }
        let Some(map) = self.maps_by_place.get(&(section, symbol.value)).copied() else {
            return Err(self.reference(function, n, relocation));
        };
        if self.object.maps[map].initialised {
            return Err(LinkError::Initialised(self.object.maps[map].name.to_owned()));
        }
        self.instructions[at] = self.instructions[at].with_src(PSEUDO_MAP_FD);
        self.instructions[at + 1].imm = 0;
        self.maps.push((at, map));
        Ok(())
    }

    /// The id of a declared kernel function in the kernel's BTF; None for a weak one that the kernel does not have.
    fn kernel_function(&self, symbol: &Symbol<'_>) -> Result<Option<u32>, LinkError> {
        let refused = || LinkError::Extern(symbol.name.to_owned());
        let kernel = self.kernel.ok_or_else(refused)?;
        let (btf, _) = self.object.btf.as_ref().ok_or_else(refused)?;
        if !btf.declares_function(symbol.name) {
            return Err(refused());
        }
        match kernel.function(symbol.name) {
            None if !symbol.weak => Err(LinkError::NoKernelFunction(symbol.name.to_owned())),
            found => Ok(found),
        }
    }

    fn kernel_call(&mut self, at: usize, symbol: &Symbol<'_>) -> Result<(), LinkError> {
        match self.kernel_function(symbol)? {
            Some(id) => {
                let mut call = self.instructions[at].with_src(PSEUDO_KFUNC);
                call.imm = id.cast_signed();
                // 0 is the kernel itself; a module would be an index in `fd_array`.
                call.off = 0;
                self.instructions[at] = call;
            }
            None => {
                self.missing.push(symbol.name.to_owned());
                self.instructions[at] = Insn::poison(POISON);
            }
        }
        Ok(())
    }

    fn call(&mut self, caller: &'o Function, (start, n): (usize, usize), section: usize, callee: i64) -> Result<(), LinkError> {
        let object = self.object;
        let found = usize::try_from(callee).ok().and_then(|callee| object.functions.get(&(section, callee)));
        let Some(found) = found else {
            return Err(LinkError::NoFunction {
                function: caller.name.clone(),
                at: n,
                section: object.elf.sections[section].name.to_owned(),
                start: callee,
            });
        };
        let target = self.place(found)?;
        self.calls.push((start + n, target));
        Ok(())
    }

    fn reference(&self, function: &Function, at: usize, relocation: ElfRelocation) -> LinkError {
        let symbol = self.object.symbol(relocation);
        let section = symbol.section.map_or("", |section| self.object.elf.sections[section].name);
        let target = if symbol.name.is_empty() { section } else { symbol.name };
        LinkError::Reference { function: function.name.clone(), at, target: target.to_owned() }
    }

    fn finish(mut self) -> Result<Linked, LinkError> {
        for (at, target) in &self.calls {
            // MAX_INSTRUCTIONS keeps both far below i32::MAX.
            let distance = *target as i64 - *at as i64 - 1;
            self.instructions[*at].imm = i32::try_from(distance).map_err(|_| LinkError::TooLong)?;
        }
        let (functions, lines) = (self.function_records(), self.line_records());
        // The kernel refuses line info without function info, and function info that does not cover every function.
        let lines = if functions.is_some() { lines.unwrap_or_default() } else { Vec::new() };
        let functions = functions.unwrap_or_default();
        let starts = self.order.iter().map(|(_, start)| *start).collect();
        let core = if self.target.is_none() { self.core_records() } else { Vec::new() };
        Ok(Linked { instructions: self.instructions, maps: self.maps, starts, functions, lines, core, missing: self.missing })
    }

    fn function_records(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.order.len() * Linked::FUNCTION_RECORD);
        for (function, start) in &self.order {
            let records = &self.records(function)?.functions;
            let offset = u32::try_from(function.start * insn::SIZE).ok()?;
            let at = records.binary_search_by_key(&offset, |r| r.offset).ok()?;
            put(&mut bytes, [u32::try_from(*start).ok()?, records[at].ty]);
        }
        Some(bytes)
    }

    fn line_records(&self) -> Option<Vec<u8>> {
        let (btf, _) = self.object.btf.as_ref()?;
        let mut bytes = Vec::new();
        for (function, start) in &self.order {
            let records = &self.records(function)?.lines;
            let first = records.partition_point(|r| (r.offset as usize) < function.start * insn::SIZE);
            let mut last = None;
            for record in &records[first..] {
                let at = record.offset as usize / insn::SIZE;
                if at >= function.start + function.len {
                    break;
                }
                if last.is_none() && at != function.start {
                    return None;
                }
                // One record for each instruction, with valid strings: the kernel requires both.
                if last == Some(at) || !btf.has_string(record.file) || !btf.has_string(record.line) {
                    continue;
                }
                last = Some(at);
                let at = u32::try_from(start + at - function.start).ok()?;
                put(&mut bytes, [at, record.file, record.line, record.line_column]);
            }
            last?;
        }
        Some(bytes)
    }

    fn core_records(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (function, start) in &self.order {
            let records = self.records(function).map_or(&[] as &[_], |records| &records.core);
            for record in records {
                let at = (record.offset as usize / insn::SIZE).checked_sub(function.start).filter(|n| *n < function.len);
                // MAX_INSTRUCTIONS keeps it far below u32::MAX.
                if let Some(offset) = at.and_then(|n| u32::try_from((start + n) * insn::SIZE).ok()) {
                    put(&mut bytes, [offset, record.ty, record.access, record.kind]);
                }
            }
        }
        bytes
    }

    fn records(&self, function: &Function) -> Option<&'o crate::kernel::btf_ext::SectionRecords> {
        self.object.ext.section(self.object.elf.sections[function.section].name)
    }
}

/// A byte offset in a section as an instruction index. Symbols of functions are aligned to instructions
/// (Object::parse); other offsets are rounded down and then match no function.
fn places(bytes: u64) -> i64 {
    i64::try_from(bytes / insn::SIZE as u64).unwrap_or(i64::MAX / 2)
}

fn put<const N: usize>(bytes: &mut Vec<u8>, words: [u32; N]) {
    words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
}
