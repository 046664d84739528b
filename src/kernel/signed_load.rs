//! Loading programs in the form in which they are signed: with the signature, if the kernel is to check it, and for maps
//! that only one program may use.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sha2::{Digest as _, Sha256};

use crate::kernel::error::KernelError;
use crate::kernel::features::{self, Feature, Support};
use crate::kernel::link::{Linked, link};
use crate::kernel::object::{BpfObject, Function};
use crate::kernel::program_signature::ProgramSignatures;
use crate::kernel::signable::IndexedCode;
use crate::model::program_signing::{KernelSigned, KernelSigning};
use crate::sys::Errno;
use crate::sys::bpf::{self, BtfRecords, IndexedLoad, ProgramLoad, ProgramSignature};

/// A program in the form in which it is signed.
#[derive(Debug)]
pub(super) struct SignedProgram {
    code: IndexedCode,
    /// The signature and the keyring to check it with.
    signature: Option<(Vec<u8>, i32)>,
    required: bool,
    /// The sha256 by which the kernel recognises the program of an exclusive map, if it uses one: over its instructions after the
    /// relocations (kernel/bpf/core.c, `bpf_prog_calc_tag`).
    hash: Option<[u8; 32]>,
}

/// What a load as signed came to.
pub(super) enum SignedOutcome {
    Loaded(OwnedFd),
    /// The kernel cannot check it, or does not know the signer, and it need not.
    Unchecked,
    /// The verifier, or something else than the signature, refuses it.
    Refused(Errno),
}

impl SignedProgram {
    /// A program that has a signature or an exclusive map; None for others.
    ///
    /// # Errors
    /// If the policy requires a signature and the program has none, the node has no keyring or the kernel cannot check it.
    pub(super) fn new(
        object: &BpfObject<'_>,
        function: &Function,
        linked: &Linked,
        signatures: &ProgramSignatures,
        signing: KernelSigning,
    ) -> Result<Option<Self>, KernelError> {
        let required = signing.rule == KernelSigned::Required;
        let program = || function.name.clone();
        let signature = match (signatures.signatures.get(&function.name), signing.keyring) {
            (Some(signature), Some(keyring)) => Some((signature.clone(), keyring)),
            (None, _) if required => return Err(KernelError::ProgramUnsigned { program: program() }),
            (Some(_), None) if required => return Err(KernelError::NoKeyring { program: program() }),
            _ => None,
        };
        if required && let found @ Support::No(_) = features::probe(Feature::ProgramSignatures) {
            return Err(KernelError::feature(check(&program()), Feature::ProgramSignatures, found));
        }
        let exclusive = linked.used_maps().iter().any(|map| signatures.exclusive.contains(object.maps[*map].name));
        if signature.is_none() && !exclusive {
            return Ok(None);
        }
        let code = if object.ext.has_core() {
            let linked = link(object, function, None);
            IndexedCode::new(&linked.map_err(|source| KernelError::Link { program: program(), source })?)
        } else {
            IndexedCode::new(linked)
        };
        let hash = exclusive.then(|| Sha256::digest(IndexedCode::new(linked).instructions.concat()).into());
        Ok(Some(Self { code, signature, required, hash }))
    }

    /// Loads it. `load` has everything but the instructions, and `maps` are those of the object.
    pub(super) fn load(&self, load: &ProgramLoad<'_>, maps: &BTreeMap<usize, OwnedFd>) -> Result<SignedOutcome, KernelError> {
        match self.attempt(load, maps, self.signature.is_some(), None) {
            Ok(fd) => Ok(SignedOutcome::Loaded(fd)),
            Err(errno) if self.signature.is_none() => Ok(SignedOutcome::Refused(errno)),
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::TOOBIG | Errno::NOKEY) if !self.required => {
                match self.hash.is_some() {
                    true => Ok(match self.attempt(load, maps, false, None) {
                        Ok(fd) => SignedOutcome::Loaded(fd),
                        Err(errno) => SignedOutcome::Refused(errno),
                    }),
                    false => Ok(SignedOutcome::Unchecked),
                }
            }
            Err(source @ (Errno::NOKEY | Errno::KEYREJECTED | Errno::BADMSG)) => Err(KernelError::SignatureRejected {
                program: load.name.to_owned(),
                why: match source {
                    Errno::NOKEY => "the node's keyring has no certificate of its signer",
                    Errno::KEYREJECTED => "its instructions are not those that were signed",
                    _ => "its signature is malformed",
                },
                source,
            }),
            Err(errno) => Ok(SignedOutcome::Refused(errno)),
        }
    }

    /// The same again, with a log.
    pub(super) fn explain(
        &self,
        load: &ProgramLoad<'_>,
        maps: &BTreeMap<usize, OwnedFd>,
        log: &mut [u8],
    ) -> Result<OwnedFd, Errno> {
        self.attempt(load, maps, self.required, Some(log))
    }

    fn attempt(
        &self,
        load: &ProgramLoad<'_>,
        maps: &BTreeMap<usize, OwnedFd>,
        signed: bool,
        log: Option<&mut [u8]>,
    ) -> Result<OwnedFd, Errno> {
        let fds: Vec<BorrowedFd<'_>> = self.code.maps.iter().map(|map| maps[map].as_fd()).collect();
        let signature = self.signature.as_ref().filter(|_| signed);
        let indexed = IndexedLoad {
            maps: &fds,
            core: BtfRecords { bytes: &self.code.core, size: Linked::CORE_RECORD },
            signature: signature.map(|(bytes, keyring)| ProgramSignature { bytes, keyring: *keyring }),
        };
        bpf::program_load_indexed(&ProgramLoad { instructions: &self.code.instructions, ..*load }, &indexed, log)
    }
}

/// The hash of the only program of each exclusive map.
///
/// # Errors
/// If two programs use one.
pub(super) fn exclusive_maps<'p>(
    object: &BpfObject<'_>,
    signatures: &ProgramSignatures,
    programs: impl Iterator<Item = (&'p str, &'p Linked, Option<&'p SignedProgram>)>,
) -> Result<BTreeMap<usize, [u8; 32]>, KernelError> {
    let mut found: BTreeMap<usize, (&str, [u8; 32])> = BTreeMap::new();
    if signatures.exclusive.is_empty() {
        return Ok(BTreeMap::new());
    }
    for (function, linked, signed) in programs {
        let exclusive = linked.used_maps().into_iter().filter(|map| signatures.exclusive.contains(object.maps[*map].name));
        for map in exclusive {
            let Some(hash) = signed.and_then(|signed| signed.hash) else { continue };
            if let Some((other, _)) = found.insert(map, (function, hash)) {
                let programs = format!("{other} and {function}");
                return Err(KernelError::Exclusive { map: object.maps[map].name.to_owned(), programs });
            }
        }
    }
    if !found.is_empty()
        && let no @ Support::No(_) = features::probe(Feature::ExclusiveMaps)
    {
        return Err(KernelError::feature("create a map that only one program may use", Feature::ExclusiveMaps, no));
    }
    Ok(found.into_iter().map(|(map, (_, hash))| (map, hash)).collect())
}

fn check(program: &str) -> String {
    format!("check the signature of program {program}")
}
