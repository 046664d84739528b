//! Functions in user-space programs and libraries: from a symbol to the file offset for a uprobe.
//!
//! The files belong to a container and may be large: tables are read in pieces, whatever size they claim, and only the
//! positions at which the name was found are kept. The structures are those of the crate `object`.

use std::io;

use object::NativeEndian;
use object::elf::{self, ProgramHeader64};
use object::pod::{Pod, slice_from_all_bytes, slice_from_bytes};

use crate::kernel::elf::{FileHeader, SectionHeader, SymbolEntry};
use crate::sys::SysError;

/// Why a function has no usable offset in a file.
#[derive(Debug, thiserror::Error)]
pub enum UserElfError {
    /// The file cannot be opened or read.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A part of the file cannot be read.
    #[error("read it")]
    Read(#[source] io::Error),
    /// The library was not found.
    #[error("no such library in /etc/ld.so.cache and the usual directories of its root; write its path")]
    NoLibrary,
    /// Not a regular file.
    #[error("it is not a regular file")]
    NotRegular,
    /// Not an ELF file for this machine.
    #[error("it is not a 64-bit ELF program or library ({0})")]
    NotElf(&'static str),
    /// The function is not in the symbol tables.
    #[error("it has no function {0:?} in its symbol tables (was it stripped?); give its file offset with offset=")]
    NoSymbol(String),
    /// Several functions have this name.
    #[error("it has several functions {0:?}; give its file offset with offset=")]
    Ambiguous(String),
    /// The function is not in an executable segment.
    #[error("its function {0:?} is not in an executable segment")]
    NotCode(String),
    /// Larger than in any real program; reading it would take too long for a container's start.
    #[error("its symbol tables are larger than 512 MiB; give its file offset with offset=")]
    TooLarge,
    /// The offset overflows.
    #[error("the offset is too large")]
    Offset,
}

/// Bytes at an offset of a file; fewer than requested only at its end.
pub trait Bytes {
    /// Reads into `buffer`, and returns the number of bytes.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Bytes for std::fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match std::os::unix::fs::FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl Bytes for &[u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

/// How much of a table is read at a time.
const PIECE: usize = size_of::<SymbolEntry>() * 8192;
/// How many positions of one name in a string table are kept. Suffixes are shared, so a few are sufficient; only a
/// hostile table has more.
const MAX_NAMES: usize = 4096;
/// The size limit of one table in bytes: browsers with full symbols have half of it.
const MAX_TABLE: u64 = 512 << 20;

/// The file offset of a function.
pub fn function_offset(file: &impl Bytes, symbol: &str) -> Result<u64, UserElfError> {
    let header = Header::read(file)?;
    // As in libbpf: the dynamic linker's table first.
    for kind in [elf::SHT_DYNSYM, elf::SHT_SYMTAB] {
        let mut found: Vec<(u64, bool)> = Vec::new();
        // A file has at most one of each.
        let table = header.sections.iter().find(|section| section.sh_type.get(NativeEndian) == kind);
        let strings = table.and_then(|table| header.sections.get(table.sh_link.get(NativeEndian) as usize));
        if let (Some(table), Some(strings)) = (table, strings) {
            if table.sh_size.get(NativeEndian).max(strings.sh_size.get(NativeEndian)) > MAX_TABLE {
                return Err(UserElfError::TooLarge);
            }
            let names = places_of(file, strings, symbol)?;
            if !names.is_empty() {
                functions(file, table, &names, &mut found)?;
            }
        }
        // A global definition takes precedence over weak and local ones.
        if found.iter().any(|(_, global)| *global) {
            found.retain(|(_, global)| *global);
        }
        found.sort_unstable();
        found.dedup();
        match found.as_slice() {
            [] => {}
            [(address, _)] => {
                return header.offset_of(*address).ok_or_else(|| UserElfError::NotCode(symbol.to_owned()));
            }
            _ => return Err(UserElfError::Ambiguous(symbol.to_owned())),
        }
    }
    Err(UserElfError::NoSymbol(symbol.to_owned()))
}

type Segment = ProgramHeader64<NativeEndian>;

struct Header {
    sections: Vec<SectionHeader>,
    segments: Vec<Segment>,
}

impl Header {
    fn read(file: &impl Bytes) -> Result<Self, UserElfError> {
        let header = entries::<FileHeader>(file, 0, 1)?;
        let Some([header]) = header.as_deref() else { return Err(UserElfError::NotElf("it is too short")) };
        if header.e_ident.magic != elf::ELFMAG {
            return Err(UserElfError::NotElf("its magic number is wrong"));
        }
        let order = if cfg!(target_endian = "little") { elf::ELFDATA2LSB } else { elf::ELFDATA2MSB };
        if (header.e_ident.class, header.e_ident.data) != (elf::ELFCLASS64, order) {
            return Err(UserElfError::NotElf("its class or byte order is not this machine's"));
        }
        if !matches!(header.e_type.get(NativeEndian), elf::ET_EXEC | elf::ET_DYN) {
            return Err(UserElfError::NotElf("it is neither an executable nor a shared object"));
        }
        let sizes = [header.e_phentsize, header.e_shentsize].map(|size| usize::from(size.get(NativeEndian)));
        if sizes != [size_of::<Segment>(), size_of::<SectionHeader>()] {
            return Err(UserElfError::NotElf("its headers have an unexpected size, or it has no sections"));
        }
        let cut = || UserElfError::NotElf("it is truncated");
        Ok(Self {
            segments: entries(file, header.e_phoff.get(NativeEndian), header.e_phnum.get(NativeEndian))?.ok_or_else(cut)?,
            sections: entries(file, header.e_shoff.get(NativeEndian), header.e_shnum.get(NativeEndian))?.ok_or_else(cut)?,
        })
    }

    /// The file offset of an address in an executable segment.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let executable = |segment: &&Segment| {
            segment.p_type.get(NativeEndian) == elf::PT_LOAD && segment.p_flags.get(NativeEndian) & elf::PF_X != 0
        };
        self.segments.iter().filter(executable).find_map(|segment| {
            let inside = address.checked_sub(segment.p_vaddr.get(NativeEndian))?;
            let inside = Some(inside).filter(|inside| *inside < segment.p_filesz.get(NativeEndian))?;
            segment.p_offset.get(NativeEndian).checked_add(inside)
        })
    }
}

/// The bytes of a table from a position, as many as the buffer takes; fewer at the end of the table or of the file.
fn piece<'b>(file: &impl Bytes, table: &SectionHeader, at: u64, buffer: &'b mut [u8]) -> Result<&'b [u8], UserElfError> {
    let Some(offset) = table.sh_offset.get(NativeEndian).checked_add(at) else { return Ok(&[]) };
    let rest = table.sh_size.get(NativeEndian).saturating_sub(at);
    let want = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
    let got = file.read_at(&mut buffer[..want], offset).map_err(UserElfError::Read)?;
    Ok(&buffer[..got])
}

/// Positions of a name in a string table, as a whole string or as the end of one.
fn places_of(file: &impl Bytes, strings: &SectionHeader, name: &str) -> Result<Vec<u32>, UserElfError> {
    let mut wanted = name.as_bytes().to_vec();
    wanted.push(0);
    let mut places = Vec::new();
    let size = PIECE.max(2 * wanted.len());
    let mut buffer = vec![0; size];
    let mut at = 0;
    loop {
        let piece = piece(file, strings, at, &mut buffer)?;
        let mut from = 0;
        while let Some(n) = piece[from..].windows(wanted.len()).position(|window| window == wanted) {
            let Ok(place) = u32::try_from(at + (from + n) as u64) else { return Ok(places) };
            // The overlap of two pieces is seen twice.
            if places.last() != Some(&place) {
                places.push(place);
            }
            from += n + 1;
            if places.len() == MAX_NAMES {
                return Ok(places);
            }
        }
        if piece.len() < size {
            return Ok(places);
        }
        // A name may cross the border of two pieces.
        at += (size - wanted.len() + 1) as u64;
    }
}

/// The addresses of functions whose names are at one of the positions, and whether they are global.
fn functions(
    file: &impl Bytes,
    table: &SectionHeader,
    names: &[u32],
    found: &mut Vec<(u64, bool)>,
) -> Result<(), UserElfError> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        let piece = piece(file, table, at, &mut buffer)?;
        let symbols = slice_from_bytes::<SymbolEntry>(piece, piece.len() / size_of::<SymbolEntry>());
        for symbol in symbols.map_or(&[] as &[_], |(symbols, _)| symbols) {
            if symbol.st_type() == elf::STT_FUNC
                && symbol.st_shndx.get(NativeEndian) != elf::SHN_UNDEF
                && names.binary_search(&symbol.st_name.get(NativeEndian)).is_ok()
            {
                found.push((symbol.st_value.get(NativeEndian), symbol.st_bind() == elf::STB_GLOBAL));
            }
        }
        if piece.len() < PIECE {
            return Ok(());
        }
        at += PIECE as u64;
        found.sort_unstable();
        found.dedup();
    }
}

/// Headers at an offset; None beyond the end of the file.
fn entries<T: Pod>(file: &impl Bytes, offset: u64, count: u16) -> Result<Option<Vec<T>>, UserElfError> {
    let mut buffer = vec![0; usize::from(count) * size_of::<T>()];
    let got = file.read_at(&mut buffer, offset).map_err(UserElfError::Read)?;
    Ok(slice_from_all_bytes(&buffer).ok().filter(|_| got == buffer.len()).map(<[T]>::to_vec))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOL: usize = size_of::<SymbolEntry>();
    const SECTION: usize = size_of::<SectionHeader>();
    const SEGMENT: usize = size_of::<Segment>();
    const HEADER: usize = size_of::<FileHeader>();

    /// A library with one executable segment at 0x1000 from offset 0x400, and the given symbols: name, address, info.
    fn library(symbols: &[(&str, u64, u8)]) -> Vec<u8> {
        let mut strings = vec![0];
        let mut table = vec![0; SYMBOL];
        for (name, address, info) in symbols {
            let at = u32::try_from(strings.len()).unwrap();
            strings.extend(name.bytes().chain([0]));
            table.extend(at.to_ne_bytes());
            table.extend([*info, 0, 1, 0]);
            table.extend(address.to_ne_bytes());
            table.extend(16u64.to_ne_bytes());
        }
        let mut file = vec![0; HEADER];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        let sections = HEADER + SEGMENT;
        let data = sections + 3 * SECTION;
        put(16, &3u16.to_ne_bytes());
        put(32, &(HEADER as u64).to_ne_bytes());
        put(40, &(sections as u64).to_ne_bytes());
        put(54, &(SEGMENT as u16).to_ne_bytes());
        put(56, &1u16.to_ne_bytes());
        put(58, &(SECTION as u16).to_ne_bytes());
        put(60, &3u16.to_ne_bytes());
        let mut segment = Vec::new();
        segment.extend([1u32, 5].iter().flat_map(|n| n.to_ne_bytes()));
        segment.extend([0x400u64, 0x1000, 0, 0x100, 0x100, 0].iter().flat_map(|n| n.to_ne_bytes()));
        file.extend(segment);
        let mut section = |kind: u32, offset: usize, size: usize, link: u32| {
            let mut header = vec![0; SECTION];
            header[4..8].copy_from_slice(&kind.to_ne_bytes());
            header[24..32].copy_from_slice(&(offset as u64).to_ne_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_ne_bytes());
            header[40..44].copy_from_slice(&link.to_ne_bytes());
            file.extend(header);
        };
        section(0, 0, 0, 0);
        section(elf::SHT_DYNSYM, data, table.len(), 2);
        section(3, data + table.len(), strings.len(), 0);
        file.extend(table);
        file.extend(strings);
        file
    }

    const GLOBAL: u8 = 0x12;
    const WEAK: u8 = 0x22;
    const OBJECT: u8 = 0x11;

    #[test]
    fn a_function_offset_is_relative_to_its_segment() {
        let file = library(&[("other", 0x1000, GLOBAL), ("malloc", 0x1010, GLOBAL), ("data", 0x1020, OBJECT)]);
        assert_eq!(function_offset(&file.as_slice(), "malloc").unwrap(), 0x410);
        let error = |name: &str| function_offset(&file.as_slice(), name).unwrap_err().to_string();
        assert!(error("alloc").starts_with("it has no function \"alloc\""), "the end of another name does not match");
        assert!(error("data").starts_with("it has no function"), "a variable is not a function");
    }

    #[test]
    fn ambiguous_or_unmapped_functions_are_refused() {
        let found = |symbols: &[(&str, u64, u8)]| function_offset(&library(symbols).as_slice(), "f").map_err(|e| e.to_string());
        assert_eq!(found(&[("f", 0x1004, GLOBAL), ("f", 0x1008, WEAK)]), Ok(0x404));
        assert_eq!(found(&[("f", 0x1004, GLOBAL), ("f", 0x1004, GLOBAL)]), Ok(0x404));
        assert!(found(&[("f", 0x1004, GLOBAL), ("f", 0x1008, GLOBAL)]).unwrap_err().contains("several"));
        assert!(found(&[("f", 0x3000, GLOBAL)]).unwrap_err().contains("executable segment"));
    }

    #[test]
    fn names_across_pieces_and_shared_suffixes_are_found() {
        let long = "x".repeat(PIECE - 4);
        let file = library(&[(&long, 0x1000, GLOBAL), ("straddles", 0x1008, GLOBAL)]);
        assert_eq!(function_offset(&file.as_slice(), "straddles").unwrap(), 0x408);
    }

    #[test]
    fn oversized_tables_are_not_read() {
        let mut file = library(&[("f", 0x1004, GLOBAL)]);
        let strings = HEADER + SEGMENT + 2 * SECTION;
        file[strings + 32..strings + 40].copy_from_slice(&(MAX_TABLE + 1).to_ne_bytes());
        assert!(matches!(function_offset(&file.as_slice(), "f"), Err(UserElfError::TooLarge)));
    }

    #[test]
    fn hostile_files_are_refused_cheaply() {
        let good = library(&[("f", 0x1004, GLOBAL)]);
        for length in 0..good.len() {
            let _ = function_offset(&&good[..length], "f");
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = function_offset(&bad.as_slice(), "f");
            }
        }
        for text in ["", "#!/bin/sh\n", "\x7fELF"] {
            assert!(matches!(function_offset(&text.as_bytes(), "f"), Err(UserElfError::NotElf(_))), "{text:?}");
        }
    }
}
