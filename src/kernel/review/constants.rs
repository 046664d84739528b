//! Which registers hold a constant, within one basic block.

use crate::kernel::insn::{self, Insn};

/// Constants of the registers. A basic block begins with none: constants are not propagated between blocks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Constants([Option<u64>; 16]);

impl Constants {
    /// The constant in a register.
    pub(super) fn value(&self, register: u8) -> Option<u64> {
        self.0[usize::from(register & 0xf)]
    }

    /// Applies an instruction to the registers; `next` is the second half of a 64-bit constant.
    pub(super) fn follow(&mut self, insn: Insn, next: Option<Insn>) {
        match insn.class() {
            insn::ALU | insn::ALU64 => self.set(insn.dst(), self.moved(insn)),
            insn::LDX => self.set(insn.dst(), None),
            insn::LD if insn.is_wide() => {
                let constant = next.filter(|_| insn.src() == 0).map(|next| low(insn.imm) | low(next.imm) << 32);
                self.set(insn.dst(), constant);
            }
            // BPF_LD_ABS and BPF_LD_IND clobber registers like calls.
            insn::LD => self.forget_call(),
            // Atomic operations may return the old value in one of these, depending on the operation.
            insn::STX if insn.is_atomic() => [0, insn.src(), insn.dst()].into_iter().for_each(|n| self.set(n, None)),
            insn::JMP if insn.code == insn::CALL => self.forget_call(),
            _ => {}
        }
    }

    /// The constant that a move leaves; None for other arithmetic and for sign-extending moves.
    fn moved(&self, insn: Insn) -> Option<u64> {
        match insn.code {
            insn::MOV64_IMM if insn.off == 0 => Some(i64::from(insn.imm).cast_unsigned()),
            insn::MOV32_IMM if insn.off == 0 => Some(low(insn.imm)),
            insn::MOV64 if insn.off == 0 => self.value(insn.src()),
            insn::MOV32 if insn.off == 0 => self.value(insn.src()).map(|value| value & 0xffff_ffff),
            _ => None,
        }
    }

    /// A call returns its result in r0 and clobbers r1 to r5.
    fn forget_call(&mut self) {
        self.0[..6].fill(None);
    }

    fn set(&mut self, register: u8, value: Option<u64>) {
        self.0[usize::from(register & 0xf)] = value;
    }
}

fn low(imm: i32) -> u64 {
    u64::from(imm.cast_unsigned())
}
