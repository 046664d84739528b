//! What a BPF token can be used for on this kernel: finds the types that the attempts refer to, and runs them.

use std::fs;

use crate::kernel::KernelError;
use crate::kernel::btf::{Btf, BtfKind};
use crate::kernel::features::KERNEL_BTF;
use crate::model::token_matrix::{MatrixTypes, TokenMatrix};
use crate::sys::machine::kernel_release;
use crate::sys::token::matrix;

/// The value of a struct_ops map for TCP congestion control.
const STRUCT_OPS: &str = "bpf_struct_ops_tcp_congestion_ops";

/// Tries every command and type in namespaces of its own. Needs the rights of root.
///
/// # Errors
/// If the namespaces, the bpffs or the token cannot be created.
pub fn token_matrix() -> Result<TokenMatrix, KernelError> {
    // Without BTF, the rows that need it say so.
    let types = fs::read(KERNEL_BTF).ok().and_then(|bytes| types(&bytes)).unwrap_or_default();
    Ok(TokenMatrix { kernel: kernel_release(), rows: matrix::rows(&types)? })
}

fn types(bytes: &[u8]) -> Option<MatrixTypes> {
    let btf = Btf::parse(bytes).ok()?;
    let names: Vec<&str> = matrix::type_names().chain([STRUCT_OPS]).collect();
    let mut types = MatrixTypes::default();
    for ty in btf.types().filter(|ty| matches!(ty.kind, BtfKind::Func | BtfKind::Struct | BtfKind::Typedef)) {
        let name = btf.string_bytes(ty.name_offset);
        if let Some(name) = names.iter().find(|known| known.as_bytes() == name) {
            types.ids.insert((*name).to_owned(), ty.id);
            if *name == STRUCT_OPS {
                types.struct_ops_size = ty.size_or_type;
            }
        }
    }
    Some(types)
}
