//! One BPF instruction, `struct bpf_insn` of uapi/linux/bpf.h, with accessors for linking and CO-RE.

/// Size of an instruction in bytes.
pub const SIZE: usize = 8;

/// `BPF_LD | BPF_IMM | BPF_DW`: a 64-bit constant or address; takes two instructions.
pub const LD_IMM64: u8 = 0x18;
/// `BPF_JMP | BPF_CALL`
pub const CALL: u8 = 0x85;
/// `BPF_JMP | BPF_EXIT`
pub const EXIT: u8 = 0x95;
/// `BPF_JMP | BPF_JCOND`: a jump that the kernel may take any number of times.
pub const MAY_GOTO: u8 = 0xe5;
/// `BPF_JMP | BPF_JA`: a jump without a condition.
pub const JA: u8 = 0x05;
/// `BPF_JMP32 | BPF_JA`: a jump with its distance in the constant.
pub const GOTOL: u8 = 0x06;
/// `BPF_ALU64 | BPF_MOV | BPF_K`, and with a register; the same on 32 bits, which clears the upper half.
pub const MOV64_IMM: u8 = 0xb7;
/// See [`MOV64_IMM`].
pub const MOV64: u8 = 0xbf;
/// See [`MOV64_IMM`].
pub const MOV32_IMM: u8 = 0xb4;
/// See [`MOV64_IMM`].
pub const MOV32: u8 = 0xbc;

/// Instruction classes.
pub const LD: u8 = 0;
/// See [`LD`].
pub const LDX: u8 = 1;
/// See [`LD`].
pub const STX: u8 = 3;
/// See [`LD`].
pub const ALU: u8 = 4;
/// See [`LD`].
pub const JMP: u8 = 5;
/// See [`LD`].
pub const JMP32: u8 = 6;
/// See [`LD`].
pub const ALU64: u8 = 7;

/// `src_reg` of LD_IMM64: the constant is a map's fd.
pub const PSEUDO_MAP_FD: u8 = 1;
/// `src_reg` of LD_IMM64: the constant is an offset in the value of a map's first entry.
pub const PSEUDO_MAP_VALUE: u8 = 2;
/// `src_reg` of LD_IMM64: the constant is the BTF id of a kernel variable.
pub const PSEUDO_VARIABLE: u8 = 3;
/// `src_reg` of LD_IMM64: the constant is a function of the same program.
pub const PSEUDO_FUNC: u8 = 4;
/// `src_reg` of LD_IMM64: the constant is the index of a map in the array of descriptors of the load.
pub const PSEUDO_MAP_INDEX: u8 = 5;
/// `src_reg` of LD_IMM64: the same, and the second constant is an offset in the value of the map's first entry.
pub const PSEUDO_MAP_VALUE_INDEX: u8 = 6;
/// `src_reg` of CALL: a function of the same program; 0 is a helper.
pub const PSEUDO_CALL: u8 = 1;
/// `src_reg` of CALL: a kernel function, by its BTF id.
pub const PSEUDO_KFUNC: u8 = 2;

/// An instruction in the machine's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u8,
    registers: u8,
    /// Offset of jumps and of loads and stores.
    pub off: i16,
    /// Constant.
    pub imm: i32,
}

impl Insn {
    /// The source register, or the meaning of the constant.
    pub fn src(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers >> 4 } else { self.registers & 0xf }
    }

    /// The destination register.
    pub fn dst(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers & 0xf } else { self.registers >> 4 }
    }

    /// The same instruction with another source register; only the low four bits of `src` are used.
    pub fn with_src(self, src: u8) -> Self {
        let registers =
            if cfg!(target_endian = "little") { self.registers & 0xf | src << 4 } else { self.registers & 0xf0 | src & 0xf };
        Self { registers, ..self }
    }

    /// Instruction class: the low three bits of the operation.
    pub fn class(self) -> u8 {
        self.code & 7
    }

    /// True for an atomic operation: class STX, mode `BPF_ATOMIC`.
    pub fn is_atomic(self) -> bool {
        self.class() == STX && self.code & 0xe0 == 0xc0
    }

    /// The distance of a jump, counted from the next instruction; None if it is not a jump.
    pub fn jump(self) -> Option<i32> {
        match (self.class(), self.code) {
            (_, CALL | EXIT) => None,
            (_, GOTOL) => Some(self.imm),
            (JMP | JMP32, _) => Some(self.off.into()),
            _ => None,
        }
    }

    /// True for the first half of a 64-bit constant.
    pub fn is_wide(self) -> bool {
        self.code == LD_IMM64
    }

    /// True for a call of a function in the same program, or of one that the object only declares.
    pub fn is_call(self) -> bool {
        self.code == CALL && self.src() == PSEUDO_CALL
    }

    /// A call of a helper that does not exist: the verifier refuses it if it is reachable.
    pub fn poison(imm: i32) -> Self {
        Self { code: CALL, registers: 0, off: 0, imm }
    }
}

impl From<[u8; SIZE]> for Insn {
    fn from([code, registers, o0, o1, i0, i1, i2, i3]: [u8; SIZE]) -> Self {
        Self { code, registers, off: i16::from_ne_bytes([o0, o1]), imm: i32::from_ne_bytes([i0, i1, i2, i3]) }
    }
}

impl From<Insn> for [u8; SIZE] {
    fn from(insn: Insn) -> Self {
        let ([o0, o1], [i0, i1, i2, i3]) = (insn.off.to_ne_bytes(), insn.imm.to_ne_bytes());
        [insn.code, insn.registers, o0, o1, i0, i1, i2, i3]
    }
}
