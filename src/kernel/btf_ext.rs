//! A checked reader of `.BTF.ext`: function and source line of each instruction, and the CO-RE records.
//!
//! Layout: Linux `Documentation/bpf/btf.rst`, ".BTF.ext section".

use std::collections::HashMap;

use crate::kernel::btf::{Btf, BtfError};

/// The function that starts at an instruction.
#[derive(Debug, Clone, Copy)]
pub struct FuncRecord {
    /// Bytes from the start of the section.
    pub offset: u32,
    /// The BTF_KIND_FUNC.
    pub ty: u32,
}

/// The source line of an instruction.
#[derive(Debug, Clone, Copy)]
pub struct LineRecord {
    /// Bytes from the start of the section.
    pub offset: u32,
    /// String: the file.
    pub file: u32,
    /// String: the line's text.
    pub line: u32,
    /// Line number << 10 | column.
    pub line_column: u32,
}

/// One CO-RE relocation: `struct bpf_core_relo` of uapi/linux/bpf.h.
#[derive(Debug, Clone, Copy)]
pub struct CoreRecord {
    /// Bytes from the start of the section.
    pub offset: u32,
    /// The local type.
    pub ty: u32,
    /// String: the path from the type to a member, such as `0:1:2`.
    pub access: u32,
    /// `enum bpf_core_relo_kind`.
    pub kind: u32,
}

/// The records of one section.
#[derive(Debug, Default)]
pub struct SectionRecords {
    /// Functions, by offset.
    pub functions: Vec<FuncRecord>,
    /// Lines, by offset.
    pub lines: Vec<LineRecord>,
    /// CO-RE relocations, by offset.
    pub core: Vec<CoreRecord>,
}

/// `.BTF.ext`, by the section that the records are about.
#[derive(Debug, Default)]
pub struct BtfExt<'a> {
    sections: HashMap<&'a str, SectionRecords>,
}

impl<'a> BtfExt<'a> {
    /// Reads `.BTF.ext`; `btf` holds the strings and types that it refers to.
    pub fn parse(bytes: &[u8], btf: &Btf<'a>) -> Result<Self, BtfError> {
        const MAGIC: u16 = 0xeb9f;
        let magic = bytes.first_chunk().copied().map(u16::from_ne_bytes);
        let header = word(bytes, 4).ok_or(BtfError::Header)? as usize;
        if magic != Some(MAGIC) || bytes.get(2) != Some(&1) || header < 24 || header > bytes.len() {
            return Err(BtfError::Header);
        }
        // Offset and length of a part; the header of old compilers ends before the CO-RE part.
        let part = |at: usize| {
            if at + 8 > header {
                return Some(&[] as &[u8]);
            }
            let start = header.checked_add(word(bytes, at)? as usize)?;
            bytes.get(start..start.checked_add(word(bytes, at + 4)? as usize)?)
        };
        let mut ext = Self::default();
        ext.read(part(8).ok_or(BtfError::Header)?, btf, |s, r: [u32; 2]| {
            s.functions.push(FuncRecord { offset: r[0], ty: r[1] });
        })?;
        ext.read(part(16).ok_or(BtfError::Header)?, btf, |s, r: [u32; 4]| {
            s.lines.push(LineRecord { offset: r[0], file: r[1], line: r[2], line_column: r[3] });
        })?;
        ext.read(part(24).ok_or(BtfError::Header)?, btf, |s, r: [u32; 4]| {
            s.core.push(CoreRecord { offset: r[0], ty: r[1], access: r[2], kind: r[3] });
        })?;
        for records in ext.sections.values_mut() {
            records.functions.sort_by_key(|r| r.offset);
            records.lines.sort_by_key(|r| r.offset);
            records.core.sort_by_key(|r| r.offset);
        }
        Ok(ext)
    }

    /// The records of a section.
    pub fn section(&self, name: &str) -> Option<&SectionRecords> {
        self.sections.get(name)
    }

    /// True if any section has CO-RE relocations.
    pub fn has_core(&self) -> bool {
        self.sections.values().any(|s| !s.core.is_empty())
    }

    fn read<const N: usize>(
        &mut self,
        mut part: &[u8],
        btf: &Btf<'a>,
        mut keep: impl FnMut(&mut SectionRecords, [u32; N]),
    ) -> Result<(), BtfError> {
        if part.is_empty() {
            return Ok(());
        }
        let size = word(part, 0).ok_or(BtfError::Header)? as usize;
        if size < 4 * N || !size.is_multiple_of(4) {
            return Err(BtfError::Header);
        }
        part = &part[4..];
        while !part.is_empty() {
            let name = word(part, 0).ok_or(BtfError::Header)?;
            let count = word(part, 4).ok_or(BtfError::Header)? as usize;
            let len = count.checked_mul(size).ok_or(BtfError::Header)?;
            let records = part[8..].get(..len).ok_or(BtfError::Header)?;
            let section = self.sections.entry(btf.string(name)?).or_default();
            for record in records.chunks_exact(size) {
                keep(section, std::array::from_fn(|n| word(record, 4 * n).unwrap_or_default()));
            }
            part = &part[8 + len..];
        }
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}
