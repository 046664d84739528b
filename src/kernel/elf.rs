//! A checked reader of the ELF objects that contain BPF programs. The bytes are untrusted: every offset and size is
//! checked before it is used, and every defect is an error, never a panic.
//!
//! Layout: System V ABI, chapter 4 (object files), and `elf(5)`; machine and relocation numbers from LLVM's BPF target
//! (llvm/docs/CompilerWriterInfo, "BPF") and Linux `Documentation/bpf/llvm_reloc.rst`.

use std::collections::HashMap;

/// The size limit of an object: 16 MiB.
pub const MAX_OBJECT: usize = 16 << 20;

/// `sh_type` of a section with program data.
pub const SHT_PROGBITS: u32 = 1;
/// `sh_type` of a section without bytes in the file: `.bss`.
pub const SHT_NOBITS: u32 = 8;
/// `sh_flags` of a section with instructions.
pub const SHF_EXECINSTR: u64 = 4;

const SHT_SYMTAB: u32 = 2;
const SHT_RELA: u32 = 4;
const SHT_REL: u32 = 9;
const EM_BPF: u16 = 247;
const ET_REL: u16 = 1;
const EHDR: usize = 64;
const SHDR: usize = 64;
const SYM: usize = 24;
const REL: usize = 16;

/// Why bytes are not a BPF object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// The file is larger than the limit.
    #[error("the object has {0} bytes, more than the limit of 16 MiB")]
    TooLarge(usize),
    /// No ELF magic.
    #[error("it is not an ELF file")]
    NotElf,
    /// A 32-bit file.
    #[error("it is not a 64-bit ELF file")]
    Class,
    /// Wrong byte order: built for another architecture.
    #[error("the object is {object}-endian, this machine is {machine}-endian; build it with -target {target}")]
    ByteOrder {
        /// The byte order of the object.
        object: &'static str,
        /// The byte order of this machine.
        machine: &'static str,
        /// Clang's target for this machine.
        target: &'static str,
    },
    /// Not EM_BPF.
    #[error("it is built for ELF machine {0}, not for BPF (247)")]
    Machine(u16),
    /// Not ET_REL.
    #[error("it is ELF type {0}, not a relocatable object (1)")]
    Type(u16),
    /// Something points outside the file or outside its section.
    #[error("{0} lies outside the file")]
    Outside(&'static str),
    /// A table with another entry size than ELF64's, or with an incomplete entry.
    #[error("{0} has entries of the wrong size")]
    Entries(&'static str),
    /// A name that is not UTF-8.
    #[error("{0} has a name that is not UTF-8 text")]
    Name(&'static str),
    /// Relocations with addends, which no BPF compiler writes.
    #[error("section {0} has relocations with addends (SHT_RELA)")]
    Addends(String),
}

/// An ELF object, borrowed from its bytes.
#[derive(Debug)]
pub struct Elf<'a> {
    /// Every section by index, the null section at 0 included.
    pub sections: Vec<ElfSection<'a>>,
    /// Every symbol by index, the null symbol at 0 included; empty without a symbol table.
    pub symbols: Vec<Symbol<'a>>,
    relocations: HashMap<usize, Vec<ElfRelocation>>,
    by_section: HashMap<usize, Vec<usize>>,
}

/// One section.
#[derive(Debug, Clone, Copy)]
pub struct ElfSection<'a> {
    /// Its name.
    pub name: &'a str,
    /// `sh_type`.
    pub kind: u32,
    /// `sh_flags`.
    pub flags: u64,
    /// Its size in bytes; larger than `data` for SHT_NOBITS.
    pub size: u64,
    /// Its bytes in the file.
    pub data: &'a [u8],
    info: u32,
}

impl ElfSection<'_> {
    /// True for a section with instructions.
    pub fn executable(&self) -> bool {
        self.kind == SHT_PROGBITS && self.flags & SHF_EXECINSTR != 0 && !self.data.is_empty()
    }
}

/// The type of a symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymbolKind {
    /// STT_FUNC
    Function,
    /// STT_OBJECT
    Object,
    /// STT_SECTION
    Section,
    /// Anything else: STT_NOTYPE (labels, maps of old compilers), STT_FILE.
    Other,
}

/// One symbol.
#[derive(Debug, Clone, Copy)]
pub struct Symbol<'a> {
    /// Its name; empty for sections.
    pub name: &'a str,
    /// Its type.
    pub kind: SymbolKind,
    /// The section that defines it; None for externs and absolute values.
    pub section: Option<usize>,
    /// Byte offset in that section.
    pub value: u64,
    /// Its size in bytes.
    pub size: u64,
    /// True for STB_LOCAL: `static` in C.
    pub local: bool,
    /// True for STV_HIDDEN and STV_INTERNAL: `__hidden` in C.
    pub hidden: bool,
}

/// One relocation of a section: an offset and the symbol that it refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElfRelocation {
    /// Byte offset in the section that is relocated.
    pub offset: u64,
    /// Index into [`Elf::symbols`], checked.
    pub symbol: usize,
}

impl<'a> Elf<'a> {
    /// Reads an object. It must have this machine's byte order, since the kernel accepts no other.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        check_header(bytes)?;
        let sections = read_sections(bytes)?;
        let symbols = read_symbols(&sections)?;
        let relocations = read_relocations(&sections, symbols.len())?;
        let mut by_section: HashMap<usize, Vec<usize>> = HashMap::new();
        for (index, symbol) in symbols.iter().enumerate() {
            if let Some(section) = symbol.section {
                by_section.entry(section).or_default().push(index);
            }
        }
        let sections = sections.into_iter().map(|(section, _)| section).collect();
        Ok(Self { sections, symbols, relocations, by_section })
    }

    /// The first section with a name, and its index.
    pub fn section(&self, name: &str) -> Option<(usize, &ElfSection<'a>)> {
        self.sections.iter().enumerate().find(|(_, s)| s.name == name)
    }

    /// The symbols that a section defines.
    pub fn symbols_of(&self, section: usize) -> impl Iterator<Item = &Symbol<'a>> {
        self.by_section.get(&section).into_iter().flatten().map(|index| &self.symbols[*index])
    }

    /// The relocations of one section, by offset.
    pub fn relocations(&self, section: usize) -> &[ElfRelocation] {
        self.relocations.get(&section).map_or(&[], Vec::as_slice)
    }
}

fn check_header(bytes: &[u8]) -> Result<(), ElfError> {
    const ELFCLASS64: u8 = 2;
    const ELFDATA2LSB: u8 = 1;
    const ELFDATA2MSB: u8 = 2;
    if bytes.len() > MAX_OBJECT {
        return Err(ElfError::TooLarge(bytes.len()));
    }
    if !bytes.starts_with(b"\x7fELF") || bytes.len() < EHDR {
        return Err(ElfError::NotElf);
    }
    if bytes[4] != ELFCLASS64 {
        return Err(ElfError::Class);
    }
    let big = cfg!(target_endian = "big");
    match (bytes[5], big) {
        (ELFDATA2LSB, false) | (ELFDATA2MSB, true) => {}
        (ELFDATA2LSB, true) => {
            return Err(ElfError::ByteOrder { object: "little", machine: "big", target: "bpfeb" });
        }
        (ELFDATA2MSB, false) => {
            return Err(ElfError::ByteOrder { object: "big", machine: "little", target: "bpfel" });
        }
        _ => return Err(ElfError::NotElf),
    }
    match u16_at(bytes, 18)? {
        EM_BPF => {}
        machine => return Err(ElfError::Machine(machine)),
    }
    match u16_at(bytes, 16)? {
        ET_REL => Ok(()),
        other => Err(ElfError::Type(other)),
    }
}

/// The sections, each with its `sh_link`.
fn read_sections(bytes: &[u8]) -> Result<Vec<(ElfSection<'_>, u32)>, ElfError> {
    let table = u64_at(bytes, 0x28)?;
    let count = usize::from(u16_at(bytes, 0x3c)?);
    let names = usize::from(u16_at(bytes, 0x3e)?);
    if count > 0 && usize::from(u16_at(bytes, 0x3a)?) != SHDR {
        return Err(ElfError::Entries("the section table"));
    }
    let headers = slice(bytes, table, (count * SHDR) as u64).ok_or(ElfError::Outside("the section table"))?;
    let data = |header: &[u8]| -> Result<&[u8], ElfError> {
        if u32_at(header, 4)? == SHT_NOBITS || u32_at(header, 4)? == 0 {
            return Ok(&[]);
        }
        slice(bytes, u64_at(header, 0x18)?, u64_at(header, 0x20)?).ok_or(ElfError::Outside("a section"))
    };
    let names = match headers.chunks_exact(SHDR).nth(names) {
        Some(header) => data(header)?,
        None if count == 0 => &[],
        None => return Err(ElfError::Outside("the table of section names")),
    };
    headers
        .chunks_exact(SHDR)
        .map(|header| {
            let section = ElfSection {
                name: text(names, u32_at(header, 0)?, "a section")?,
                kind: u32_at(header, 4)?,
                flags: u64_at(header, 8)?,
                size: u64_at(header, 0x20)?,
                data: data(header)?,
                info: u32_at(header, 0x2c)?,
            };
            Ok((section, u32_at(header, 0x28)?))
        })
        .collect()
}

fn read_symbols<'a>(sections: &[(ElfSection<'a>, u32)]) -> Result<Vec<Symbol<'a>>, ElfError> {
    let Some((table, names)) = sections.iter().find(|(s, _)| s.kind == SHT_SYMTAB) else {
        return Ok(Vec::new());
    };
    let names = sections.get(*names as usize).ok_or(ElfError::Outside("the table of symbol names"))?.0.data;
    if table.data.len() % SYM != 0 {
        return Err(ElfError::Entries("the symbol table"));
    }
    table
        .data
        .chunks_exact(SYM)
        .map(|entry| {
            let (info, other) = (entry[4], entry[5]);
            let index = usize::from(u16_at(entry, 6)?);
            // 0 is SHN_UNDEF; the reserved indices (SHN_ABS, SHN_COMMON, SHN_XINDEX) are above every real one.
            let section = match index {
                0 | 0xff00.. => None,
                index if index < sections.len() => Some(index),
                _ => return Err(ElfError::Outside("the section of a symbol")),
            };
            Ok(Symbol {
                name: text(names, u32_at(entry, 0)?, "a symbol")?,
                kind: match info & 0xf {
                    1 => SymbolKind::Object,
                    2 => SymbolKind::Function,
                    3 => SymbolKind::Section,
                    _ => SymbolKind::Other,
                },
                section,
                value: u64_at(entry, 8)?,
                size: u64_at(entry, 16)?,
                local: info >> 4 == 0,
                hidden: matches!(other & 3, 1 | 2),
            })
        })
        .collect()
}

fn read_relocations(
    sections: &[(ElfSection<'_>, u32)],
    symbols: usize,
) -> Result<HashMap<usize, Vec<ElfRelocation>>, ElfError> {
    let mut found: HashMap<usize, Vec<ElfRelocation>> = HashMap::new();
    for (table, _) in sections {
        let target = table.info as usize;
        match table.kind {
            SHT_RELA if sections.get(target).is_some_and(|(s, _)| s.executable()) => {
                return Err(ElfError::Addends(table.name.to_owned()));
            }
            SHT_REL => {}
            _ => continue,
        }
        if table.data.len() % REL != 0 {
            return Err(ElfError::Entries("a relocation table"));
        }
        let relocations = found.entry(target).or_default();
        for entry in table.data.chunks_exact(REL) {
            let symbol = (u64_at(entry, 8)? >> 32) as usize;
            if symbol >= symbols {
                return Err(ElfError::Outside("the symbol of a relocation"));
            }
            relocations.push(ElfRelocation { offset: u64_at(entry, 0)?, symbol });
        }
    }
    found.values_mut().for_each(|relocations| relocations.sort_by_key(|r| r.offset));
    Ok(found)
}

fn slice(bytes: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    bytes.get(start..end)
}

fn text<'a>(names: &'a [u8], offset: u32, what: &'static str) -> Result<&'a str, ElfError> {
    let rest = match names.get(offset as usize..) {
        Some(rest) if !rest.is_empty() => rest,
        _ if offset == 0 => return Ok(""),
        _ => return Err(ElfError::Outside("a name")),
    };
    let end = rest.iter().position(|b| *b == 0).ok_or(ElfError::Outside("a name"))?;
    std::str::from_utf8(&rest[..end]).map_err(|_| ElfError::Name(what))
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ElfError> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(ElfError::Outside("a header field"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ElfError> {
    Ok(u16::from_ne_bytes(field(bytes, at)?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ElfError> {
    Ok(u32::from_ne_bytes(field(bytes, at)?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, ElfError> {
    Ok(u64::from_ne_bytes(field(bytes, at)?))
}
