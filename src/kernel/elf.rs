//! A checked reader of the ELF objects that contain BPF programs. The bytes are untrusted: every offset and size is
//! checked before it is used, and every defect is an error, never a panic.
//!
//! The structures are those of the crate `object`, whose reads are checked too. The meaning of their values is checked
//! here: System V ABI, chapter 4 (object files), and `elf(5)`; for BPF Linux `Documentation/bpf/llvm_reloc.rst`.

use std::collections::HashMap;

use object::NativeEndian;
use object::elf::{self, FileHeader64, Rel64, SectionHeader64, Sym64};
pub use object::elf::{SHT_NOBITS, SHT_PROGBITS};
use object::pod::slice_from_all_bytes;
use object::read::ReadRef as _;

/// The size limit of an object: 16 MiB.
pub const MAX_OBJECT: usize = 16 << 20;
/// The size limit of a name in bytes, more than any compiler writes. Without it, a table of symbols that share one long
/// name takes minutes to read.
pub(super) const MAX_NAME: usize = 4096;

/// The file header for this machine.
pub(super) type FileHeader = FileHeader64<NativeEndian>;
/// A section header for this machine.
pub(super) type SectionHeader = SectionHeader64<NativeEndian>;
/// A symbol table's entry for this machine.
pub(super) type SymbolEntry = Sym64<NativeEndian>;

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
    /// A name without an end, or one that is longer than the limit.
    #[error("{0} has a name that does not end within the file or within 4096 bytes")]
    LongName(&'static str),
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
}

impl ElfSection<'_> {
    /// True for a section with instructions.
    pub fn executable(&self) -> bool {
        self.kind == SHT_PROGBITS && self.flags & u64::from(elf::SHF_EXECINSTR) != 0 && !self.data.is_empty()
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
    /// True for STB_WEAK: `__weak` in C, which an extern that may be absent has.
    pub weak: bool,
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
        let (headers, names) = section_headers(bytes, file_header(bytes)?)?;
        let sections = read_sections(bytes, headers, names)?;
        let symbols = read_symbols(headers, &sections)?;
        let relocations = read_relocations(headers, &sections, symbols.len())?;
        let mut by_section: HashMap<usize, Vec<usize>> = HashMap::new();
        for (index, symbol) in symbols.iter().enumerate() {
            if let Some(section) = symbol.section {
                by_section.entry(section).or_default().push(index);
            }
        }
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

fn file_header(bytes: &[u8]) -> Result<&FileHeader, ElfError> {
    if bytes.len() > MAX_OBJECT {
        return Err(ElfError::TooLarge(bytes.len()));
    }
    let header: &FileHeader = bytes.read_at(0).map_err(|()| ElfError::NotElf)?;
    if header.e_ident.magic != elf::ELFMAG {
        return Err(ElfError::NotElf);
    }
    if header.e_ident.class != elf::ELFCLASS64 {
        return Err(ElfError::Class);
    }
    match (header.e_ident.data, cfg!(target_endian = "big")) {
        (elf::ELFDATA2LSB, false) | (elf::ELFDATA2MSB, true) => {}
        (elf::ELFDATA2LSB, true) => {
            return Err(ElfError::ByteOrder { object: "little", machine: "big", target: "bpfeb" });
        }
        (elf::ELFDATA2MSB, false) => {
            return Err(ElfError::ByteOrder { object: "big", machine: "little", target: "bpfel" });
        }
        _ => return Err(ElfError::NotElf),
    }
    match (header.e_machine.get(NativeEndian), header.e_type.get(NativeEndian)) {
        (elf::EM_BPF, elf::ET_REL) => Ok(header),
        (elf::EM_BPF, other) => Err(ElfError::Type(other)),
        (machine, _) => Err(ElfError::Machine(machine)),
    }
}

/// The section headers, and the index of the section with their names.
fn section_headers<'a>(bytes: &'a [u8], header: &FileHeader) -> Result<(&'a [SectionHeader], usize), ElfError> {
    let count = usize::from(header.e_shnum.get(NativeEndian));
    if count > 0 && usize::from(header.e_shentsize.get(NativeEndian)) != size_of::<SectionHeader>() {
        return Err(ElfError::Entries("the section table"));
    }
    let headers = bytes.read_slice_at(header.e_shoff.get(NativeEndian), count);
    let headers = headers.map_err(|()| ElfError::Outside("the section table"))?;
    Ok((headers, usize::from(header.e_shstrndx.get(NativeEndian))))
}

fn read_sections<'a>(bytes: &'a [u8], headers: &[SectionHeader], names: usize) -> Result<Vec<ElfSection<'a>>, ElfError> {
    let data = |header: &SectionHeader| match header.sh_type.get(NativeEndian) {
        elf::SHT_NULL | SHT_NOBITS => Ok(&[] as &[u8]),
        _ => {
            let (offset, size) = (header.sh_offset.get(NativeEndian), header.sh_size.get(NativeEndian));
            bytes.read_bytes_at(offset, size).map_err(|()| ElfError::Outside("a section"))
        }
    };
    if headers.is_empty() {
        return Ok(Vec::new());
    }
    let names = data(headers.get(names).ok_or(ElfError::Outside("the table of section names"))?)?;
    let section = |header: &SectionHeader| {
        Ok(ElfSection {
            name: text(names, header.sh_name.get(NativeEndian), "a section")?,
            kind: header.sh_type.get(NativeEndian),
            flags: header.sh_flags.get(NativeEndian),
            size: header.sh_size.get(NativeEndian),
            data: data(header)?,
        })
    };
    headers.iter().map(section).collect()
}

fn read_symbols<'a>(headers: &[SectionHeader], sections: &[ElfSection<'a>]) -> Result<Vec<Symbol<'a>>, ElfError> {
    let Some(table) = sections.iter().position(|section| section.kind == elf::SHT_SYMTAB) else {
        return Ok(Vec::new());
    };
    let names = sections.get(headers[table].sh_link.get(NativeEndian) as usize);
    let names = names.ok_or(ElfError::Outside("the table of symbol names"))?.data;
    let symbol = |entry: &SymbolEntry| {
        let section = match entry.st_shndx.get(NativeEndian) {
            // The reserved indices (SHN_ABS, SHN_COMMON, SHN_XINDEX) are above every real one.
            elf::SHN_UNDEF | elf::SHN_LORESERVE.. => None,
            index if usize::from(index) < sections.len() => Some(usize::from(index)),
            _ => return Err(ElfError::Outside("the section of a symbol")),
        };
        Ok(Symbol {
            name: text(names, entry.st_name.get(NativeEndian), "a symbol")?,
            kind: match entry.st_type() {
                elf::STT_OBJECT => SymbolKind::Object,
                elf::STT_FUNC => SymbolKind::Function,
                elf::STT_SECTION => SymbolKind::Section,
                _ => SymbolKind::Other,
            },
            section,
            value: entry.st_value.get(NativeEndian),
            size: entry.st_size.get(NativeEndian),
            local: entry.st_bind() == elf::STB_LOCAL,
            weak: entry.st_bind() == elf::STB_WEAK,
            hidden: matches!(entry.st_visibility(), elf::STV_INTERNAL | elf::STV_HIDDEN),
        })
    };
    let entries = slice_from_all_bytes(sections[table].data).map_err(|()| ElfError::Entries("the symbol table"))?;
    entries.iter().map(symbol).collect()
}

fn read_relocations(
    headers: &[SectionHeader],
    sections: &[ElfSection<'_>],
    symbols: usize,
) -> Result<HashMap<usize, Vec<ElfRelocation>>, ElfError> {
    let mut found: HashMap<usize, Vec<ElfRelocation>> = HashMap::new();
    for (header, table) in headers.iter().zip(sections) {
        let target = header.sh_info.get(NativeEndian) as usize;
        match table.kind {
            elf::SHT_RELA if sections.get(target).is_some_and(ElfSection::executable) => {
                return Err(ElfError::Addends(table.name.to_owned()));
            }
            elf::SHT_REL => {}
            _ => continue,
        }
        let entries: &[Rel64<NativeEndian>] =
            slice_from_all_bytes(table.data).map_err(|()| ElfError::Entries("a relocation table"))?;
        let relocations = found.entry(target).or_default();
        for entry in entries {
            let symbol = entry.r_sym(NativeEndian) as usize;
            if symbol >= symbols {
                return Err(ElfError::Outside("the symbol of a relocation"));
            }
            relocations.push(ElfRelocation { offset: entry.r_offset.get(NativeEndian), symbol });
        }
    }
    found.values_mut().for_each(|relocations| relocations.sort_by_key(|r| r.offset));
    Ok(found)
}

fn text<'a>(names: &'a [u8], offset: u32, what: &'static str) -> Result<&'a str, ElfError> {
    if names.is_empty() && offset == 0 {
        return Ok("");
    }
    let rest = names.get(offset as usize..).filter(|rest| !rest.is_empty()).ok_or(ElfError::Outside("a name"))?;
    let name = rest.read_bytes_at_until(0..rest.len().min(MAX_NAME) as u64, 0).map_err(|()| ElfError::LongName(what))?;
    std::str::from_utf8(name).map_err(|_| ElfError::Name(what))
}
