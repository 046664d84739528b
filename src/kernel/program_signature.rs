//! What `image sign` adds to an object: the section `.bpf.sig`, with a signature for each program and the names of maps
//! that only one program may use. docs/signing.md describes the format.

use std::collections::{BTreeMap, BTreeSet};

use crate::kernel::elf::Elf;
use crate::kernel::object_error::ObjectError;
use crate::model::gate::ExecutableDigest;

/// The section.
const SECTION: &str = ".bpf.sig";
/// Kinds of its records.
const SIGNATURE: u8 = 1;
const EXCLUSIVE: u8 = 2;
const EXECUTABLE: u8 = 3;
/// The kernel reads no larger signature (kernel/bpf/syscall.c, `bpf_prog_verify_signature`).
const SIGNATURE_MAX: usize = 8 << 10;

/// The contents of the section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgramSignatures {
    /// The signature, PKCS#7 in DER, by function.
    pub signatures: BTreeMap<String, Vec<u8>>,
    /// The maps that only one program may use.
    pub exclusive: BTreeSet<String>,
    /// The executables that may load programs where the policy takes them from images.
    pub executables: BTreeSet<ExecutableDigest>,
}

impl ProgramSignatures {
    /// What an object has; empty without the section.
    pub(crate) fn of(elf: &Elf<'_>) -> Result<Self, ObjectError> {
        elf.section(SECTION).map_or_else(|| Ok(Self::default()), |(_, section)| Self::parse(section.data))
    }

    /// True if there is nothing in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn parse(mut data: &[u8]) -> Result<Self, ObjectError> {
        let mut found = Self::default();
        while !data.is_empty() {
            let (kind, name, content);
            (kind, name, content, data) = record(data).ok_or(ObjectError::Signatures)?;
            let name = name.to_owned();
            match kind {
                SIGNATURE if content.len() <= SIGNATURE_MAX => _ = found.signatures.insert(name, content.to_vec()),
                EXCLUSIVE => _ = found.exclusive.insert(name),
                EXECUTABLE => _ = found.executables.insert(name.parse().map_err(|_| ObjectError::Signatures)?),
                _ => return Err(ObjectError::Signatures),
            }
        }
        Ok(found)
    }

    /// Its bytes: for each record the kind, the lengths of name and content, both little-endian, name and content.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let signatures = self.signatures.iter().map(|(name, content)| (SIGNATURE, name.clone(), content.as_slice()));
        let executables = self.executables.iter().map(|digest| (EXECUTABLE, digest.to_string(), &[] as &[u8]));
        for (kind, name, content) in
            signatures.chain(self.exclusive.iter().map(|name| (EXCLUSIVE, name.clone(), &[] as &[u8]))).chain(executables)
        {
            // Names of symbols are shorter (elf::MAX_NAME), and signatures too.
            let sizes = [name.len(), content.len()].map(|size| u16::try_from(size).unwrap_or(u16::MAX).to_le_bytes());
            bytes.push(kind);
            bytes.extend(sizes.concat());
            bytes.extend(name.as_bytes());
            bytes.extend(content);
        }
        bytes
    }
}

/// Kind, name and content of the first record, and what follows it.
fn record(data: &[u8]) -> Option<(u8, &str, &[u8], &[u8])> {
    let (kind, rest) = data.split_first()?;
    let (sizes, rest) = rest.split_first_chunk::<4>()?;
    let [name, content] = [[sizes[0], sizes[1]], [sizes[2], sizes[3]]].map(|size| usize::from(u16::from_le_bytes(size)));
    let (name, rest) = rest.split_at_checked(name)?;
    let (content, rest) = rest.split_at_checked(content)?;
    Some((*kind, std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?, content, rest))
}

/// The object with these signatures in place of those that it has.
///
/// # Errors
/// If it is not an object, or has too many sections.
pub fn with_signatures(object: &[u8], signatures: &ProgramSignatures) -> Result<Vec<u8>, ObjectError> {
    let elf = Elf::parse(object)?;
    let present = elf.section(SECTION).map(|(index, _)| index);
    add_section(object, present, &signatures.bytes()).ok_or(ObjectError::Signatures)
}

/// Offsets in the ELF header and in a section's header, and the size of the latter.
const E_SHOFF: usize = 0x28;
const E_SHNUM: usize = 0x3c;
const E_SHSTRNDX: usize = 0x3e;
const SH_TYPE: usize = 4;
const SH_OFFSET: usize = 24;
const SH_SIZE: usize = 32;
const SH_ALIGN: usize = 48;
const HEADER: usize = 64;

/// Appends the contents of a section, and behind it the names and headers of all sections. Offsets of everything else stay.
fn add_section(object: &[u8], present: Option<usize>, data: &[u8]) -> Option<Vec<u8>> {
    let half = |at: usize| Some(usize::from(u16::from_ne_bytes(*object.get(at..)?.first_chunk()?)));
    let long = |bytes: &[u8], at: usize| usize::try_from(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?)).ok();
    let (count, names) = (half(E_SHNUM)?, half(E_SHSTRNDX)?);
    let start = long(object, E_SHOFF)?;
    let mut headers = object.get(start..start.checked_add(count * HEADER)?)?.to_vec();
    let mut written = object.to_vec();
    let append = |written: &mut Vec<u8>, bytes: &[u8]| {
        written.resize(written.len().next_multiple_of(8), 0);
        let at = written.len();
        written.extend(bytes);
        at as u64
    };
    let put = |headers: &mut [u8], section: usize, at: usize, value: u64| {
        headers.get_mut(section * HEADER + at..)?.get_mut(..8)?.copy_from_slice(&value.to_ne_bytes());
        Some(())
    };
    let section = match present {
        Some(section) => section,
        None => {
            let table = headers.get(names * HEADER..)?.get(..HEADER)?;
            let (at, size) = (long(table, SH_OFFSET)?, long(table, SH_SIZE)?);
            let mut table = object.get(at..at.checked_add(size)?)?.to_vec();
            let name = u32::try_from(table.len()).ok()?;
            table.extend(SECTION.as_bytes());
            table.push(0);
            let at = append(&mut written, &table);
            put(&mut headers, names, SH_OFFSET, at)?;
            put(&mut headers, names, SH_SIZE, table.len() as u64)?;
            let mut header = [0; HEADER];
            header[..4].copy_from_slice(&name.to_ne_bytes());
            header[SH_TYPE..][..4].copy_from_slice(&crate::kernel::elf::SHT_PROGBITS.to_ne_bytes());
            header[SH_ALIGN..][..8].copy_from_slice(&1_u64.to_ne_bytes());
            headers.extend(header);
            count
        }
    };
    let at = append(&mut written, data);
    put(&mut headers, section, SH_OFFSET, at)?;
    put(&mut headers, section, SH_SIZE, data.len() as u64)?;
    let at = append(&mut written, &headers);
    written.get_mut(E_SHOFF..)?.get_mut(..8)?.copy_from_slice(&at.to_ne_bytes());
    let count = u16::try_from(headers.len() / HEADER).ok()?;
    written.get_mut(E_SHNUM..)?.get_mut(..2)?.copy_from_slice(&count.to_ne_bytes());
    Some(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &[u8] = include_bytes!("../../tests/bpf/core.bpf.o");

    fn some() -> ProgramSignatures {
        let signatures = BTreeMap::from([("read_task".to_owned(), vec![7; 300]), ("read_never".to_owned(), vec![])]);
        ProgramSignatures {
            signatures,
            exclusive: BTreeSet::from(["found".to_owned()]),
            executables: BTreeSet::from([ExecutableDigest::sha256([3; 32])]),
        }
    }

    fn of(object: &[u8]) -> ProgramSignatures {
        ProgramSignatures::of(&Elf::parse(object).unwrap()).unwrap()
    }

    #[test]
    fn an_object_keeps_everything_and_gets_signatures() {
        assert!(of(OBJECT).is_empty());
        let signed = with_signatures(OBJECT, &some()).unwrap();
        assert_eq!(of(&signed), some());
        let (before, after) = (Elf::parse(OBJECT).unwrap(), Elf::parse(&signed).unwrap());
        assert_eq!(before.sections.len() + 1, after.sections.len());
        for (old, new) in before.sections.iter().zip(&after.sections) {
            assert_eq!((old.name, old.kind, old.flags), (new.name, new.kind, new.flags));
            assert!(old.data == new.data || old.name == ".strtab" || old.name == ".shstrtab", "{}", old.name);
        }
        // Signed again, it has the new signatures only.
        let less = ProgramSignatures { exclusive: BTreeSet::new(), ..some() };
        let again = with_signatures(&signed, &less).unwrap();
        assert_eq!((of(&again), Elf::parse(&again).unwrap().sections.len()), (less, after.sections.len()));
    }

    #[test]
    fn a_malformed_section_is_an_error() {
        let whole = some().bytes();
        assert_eq!(ProgramSignatures::parse(&whole).unwrap(), some());
        for cut in 1..whole.len() {
            let parsed = ProgramSignatures::parse(&whole[..cut]);
            assert!(parsed.is_err() || parsed.unwrap() != some(), "{cut}");
        }
        for wrong in [&[1, 0, 0, 0, 0][..], &[3, 1, 0, 0, 0, b'a'], &[1, 1, 0, 0, 0, 0xff], &[1]] {
            assert!(ProgramSignatures::parse(wrong).is_err(), "{wrong:?}");
        }
        let large = [&[1, 1, 0][..], &8193_u16.to_le_bytes(), b"a", &[0; 8193]].concat();
        assert!(ProgramSignatures::parse(&large).is_err());
    }
}
