//! The programs that are submitted to the verifier. None of them is ever run.

use crate::sys::token::trial::Trial;

const LD_IMM64: u8 = 0x18;
const LOAD_U64: u8 = 0x79;
const STORE_IMM_U32: u8 = 0x62;
const ADD_IMM: u8 = 0x07;
const MOV_IMM: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const JUMP_NOT_EQUAL: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// `src_reg` of a call: a helper, a function of the program, a kfunc.
const HELPER: u8 = 0;
const OWN_FUNCTION: u8 = 1;
const KFUNC: u8 = 2;
const MAP_FD: u8 = 1;

const MAP_LOOKUP_ELEM: i32 = 1;
const DYNPTR_FROM_MEM: i32 = 197;

/// A number that represents an address. Nothing loads from it, since nothing is run.
const ADDRESS: i32 = 4096;

/// `r0 = 1; exit`: a return value that every type allows.
pub(in crate::kernel) fn smallest() -> Trial {
    program(vec![insn(MOV_IMM, 0, 0, 0, 1), exit()])
}

/// `call helper; r0 = 1; exit`
pub(in crate::kernel) fn call_helper(number: u32) -> Trial {
    program(vec![insn(CALL, 0, HELPER, 0, number.cast_signed()), insn(MOV_IMM, 0, 0, 0, 1), exit()])
}

/// `call kfunc; r0 = 1; exit`
pub(in crate::kernel) fn call_kfunc(id: u32) -> Trial {
    program(vec![insn(CALL, 0, KFUNC, 0, id.cast_signed()), insn(MOV_IMM, 0, 0, 0, 1), exit()])
}

/// A pointer made from a number by bpf_rdonly_cast, to a structure of the kernel's BTF or, with 0, to bytes, and a load
/// through it.
pub(in crate::kernel) fn rdonly_cast(id: u32, structure: u32) -> Trial {
    program(vec![
        insn(MOV_IMM, 1, 0, 0, ADDRESS),
        insn(MOV_IMM, 2, 0, 0, structure.cast_signed()),
        insn(CALL, 0, KFUNC, 0, id.cast_signed()),
        insn(LOAD_U64, 0, 0, 0, 0),
        insn(MOV_IMM, 0, 0, 0, 1),
        exit(),
    ])
}

/// A dynptr over a map's value and, given a kfunc's id, a copy from a number into it.
pub(in crate::kernel) fn probe_read_dynptr(id: Option<u32>) -> Trial {
    let mut instructions = vec![
        // The key, on the stack.
        insn(STORE_IMM_U32, 10, 0, -4, 0),
        insn(MOV_REG, 2, 10, 0, 0),
        insn(ADD_IMM, 2, 0, 0, -4),
        insn(LD_IMM64, 1, MAP_FD, 0, 0),
        insn(0, 0, 0, 0, 0),
        insn(CALL, 0, HELPER, 0, MAP_LOOKUP_ELEM),
        insn(JUMP_NOT_EQUAL, 0, 0, 2, 0),
        insn(MOV_IMM, 0, 0, 0, 1),
        exit(),
        // bpf_dynptr_from_mem(value, 8, 0, the stack)
        insn(MOV_REG, 1, 0, 0, 0),
        insn(MOV_IMM, 2, 0, 0, 8),
        insn(MOV_IMM, 3, 0, 0, 0),
        insn(MOV_REG, 4, 10, 0, 0),
        insn(ADD_IMM, 4, 0, 0, -24),
        insn(CALL, 0, HELPER, 0, DYNPTR_FROM_MEM),
    ];
    if let Some(id) = id {
        instructions.extend([
            insn(MOV_REG, 1, 10, 0, 0),
            insn(ADD_IMM, 1, 0, 0, -24),
            insn(MOV_IMM, 2, 0, 0, 0),
            insn(MOV_IMM, 3, 0, 0, 8),
            insn(MOV_IMM, 4, 0, 0, ADDRESS),
            insn(CALL, 0, KFUNC, 0, id.cast_signed()),
        ]);
    }
    instructions.extend([insn(MOV_IMM, 0, 0, 0, 1), exit()]);
    Trial { map_at: Some(3), ..program(instructions) }
}

/// A number passed to a global function: as a pointer with the tag `arg:untrusted`, through which it loads, or as a
/// plain number.
pub(in crate::kernel) fn global_function(untrusted: bool) -> Trial {
    let body = if untrusted { insn(LOAD_U64, 0, 1, 0, 0) } else { insn(MOV_REG, 0, 1, 0, 0) };
    let instructions = vec![
        insn(MOV_IMM, 1, 0, 0, ADDRESS),
        insn(CALL, 0, OWN_FUNCTION, 0, 2),
        insn(MOV_IMM, 0, 0, 0, 1),
        exit(),
        body,
        exit(),
    ];
    let btf = if untrusted { UNTRUSTED } else { PLAIN };
    Trial { btf: Some(btf), functions: vec![[0, MAIN], [4, FUNCTION]], ..program(instructions) }
}

/// The smallest program with the BTF of [`global_function`], whose tag belongs to a function that the program does not
/// have. The verifier accepts it.
pub(in crate::kernel) fn tagged() -> Trial {
    Trial { btf: Some(UNTRUSTED), functions: vec![[0, MAIN]], ..smallest() }
}

/// Indices into [`btfs`].
const UNTRUSTED: usize = 0;
const PLAIN: usize = 1;

/// Ids in both of them.
const MAIN: u32 = 4;
const FUNCTION: u32 = 6;

/// The types of [`global_function`], tagged and plain.
pub(in crate::kernel) fn btfs() -> Vec<Vec<u8>> {
    vec![types(true), types(false)]
}

/// 1 u64, 2 void *, 3 u64 (void *ctx), 4 main, 5 u64 (void *p) or u64 (u64 p), 6 the function, 7 the tag of its
/// argument.
fn types(untrusted: bool) -> Vec<u8> {
    const INT: u32 = 1;
    const PTR: u32 = 2;
    const FUNC: u32 = 12;
    const FUNC_PROTO: u32 = 13;
    const DECL_TAG: u32 = 17;
    const GLOBAL: u32 = 1;
    let mut strings = vec![0];
    let mut name = |text: &str| {
        let at = u32::try_from(strings.len()).unwrap_or_default();
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at
    };
    let (number, ctx, main, p, function) = (name("u64"), name("ctx"), name("main"), name("p"), name("function"));
    let argument = if untrusted { 2 } else { 1 };
    let mut words = Vec::new();
    words.extend([number, INT << 24, 8, 64]);
    words.extend([0, PTR << 24, 0]);
    words.extend([0, FUNC_PROTO << 24 | 1, 1, ctx, 2]);
    words.extend([main, FUNC << 24 | GLOBAL, 3]);
    words.extend([0, FUNC_PROTO << 24 | 1, 1, p, argument]);
    words.extend([function, FUNC << 24 | GLOBAL, 5]);
    if untrusted {
        words.extend([name("arg:untrusted"), DECL_TAG << 24, 6, 0]);
    }
    let types: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or_default();
    let mut btf = Vec::new();
    btf.extend_from_slice(&0xeb9f_u16.to_ne_bytes());
    btf.extend_from_slice(&[1, 0]);
    for word in [24, 0, len(&types), len(&types), len(&strings)] {
        btf.extend_from_slice(&word.to_ne_bytes());
    }
    btf.extend_from_slice(&types);
    btf.extend_from_slice(&strings);
    btf
}

fn program(instructions: Vec<[u8; 8]>) -> Trial {
    Trial { instructions, ..Trial::default() }
}

fn exit() -> [u8; 8] {
    insn(EXIT, 0, 0, 0, 0)
}

/// `struct bpf_insn`: the two register numbers share a byte, in the machine's bit field order.
fn insn(code: u8, target: u8, source: u8, offset: i16, value: i32) -> [u8; 8] {
    let registers = if cfg!(target_endian = "little") { target | source << 4 } else { target << 4 | source };
    let [o0, o1] = offset.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    [code, registers, o0, o1, v0, v1, v2, v3]
}
