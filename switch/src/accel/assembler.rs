//! Puts programs together, instruction by instruction.
//!
//! # Theory of operation
//!
//! An [`Assembler`] gathers instructions and labels; [`Assembler::finish`] turns jumps to labels into offsets. That is all it takes for
//! programs as small as ours, and no compiler is needed to build the switch. The instruction set is RFC 9669.

use crate::sys::bpf::Insn;
use std::os::fd::{AsFd, AsRawFd};

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct R(pub(super) u8);

/// For instructions that take no register.
const R0: R = R(0);

/// Width of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// Condition of a jump, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum If {
    Equal = 0x10,
    Above = 0x20,
    NotEqual = 0x50,
    Below = 0xa0,
}

/// A place to jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A jump that can't be: a label without a place, or too far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("jump of instruction {0} leads nowhere")]
pub struct BadJump(usize);

/// Gathers a program.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    insns: Vec<Insn>,
    /// Where labels are.
    places: Vec<Option<usize>>,
    /// Instructions that jump to them.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn push(&mut self, code: u8, dst: R, src: R, off: i16, imm: i32) {
        // Little endian machines have the destination in the low nibble.
        let regs = if cfg!(target_endian = "little") {
            src.0 << 4 | dst.0
        } else {
            dst.0 << 4 | src.0
        };
        self.insns.push(Insn {
            code,
            regs,
            off,
            imm,
        });
    }

    /// A label, to be placed before or after the jumps to it.
    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The label is here.
    pub(super) fn place(&mut self, label: Label) {
        if let Some(place) = self.places.get_mut(label.0) {
            *place = Some(self.insns.len());
        }
    }

    /// `dst = imm`, sign extended.
    pub(super) fn set(&mut self, dst: R, imm: i32) {
        self.push(0xb7, dst, R0, 0, imm);
    }

    /// `dst = imm`, the upper half zero.
    pub(super) fn set32(&mut self, dst: R, imm: i32) {
        self.push(0xb4, dst, R0, 0, imm);
    }

    /// `dst = src`.
    pub(super) fn copy(&mut self, dst: R, src: R) {
        self.push(0xbf, dst, src, 0, 0);
    }

    /// `dst += imm`.
    pub(super) fn add(&mut self, dst: R, imm: i32) {
        self.push(0x07, dst, R0, 0, imm);
    }

    /// `dst += src`.
    pub(super) fn add_reg(&mut self, dst: R, src: R) {
        self.push(0x0f, dst, src, 0, 0);
    }

    /// `dst <<= imm`.
    pub(super) fn shift_left(&mut self, dst: R, imm: i32) {
        self.push(0x67, dst, R0, 0, imm);
    }

    /// `dst >>= imm`.
    pub(super) fn shift_right(&mut self, dst: R, imm: i32) {
        self.push(0x77, dst, R0, 0, imm);
    }

    /// `dst &= imm`.
    pub(super) fn and(&mut self, dst: R, imm: i32) {
        self.push(0x57, dst, R0, 0, imm);
    }

    /// `dst |= src`.
    pub(super) fn or_reg(&mut self, dst: R, src: R) {
        self.push(0x4f, dst, src, 0, 0);
    }

    /// `dst -= src`.
    pub(super) fn sub_reg(&mut self, dst: R, src: R) {
        self.push(0x1f, dst, src, 0, 0);
    }

    /// `dst *= src`.
    pub(super) fn mul_reg(&mut self, dst: R, src: R) {
        self.push(0x2f, dst, src, 0, 0);
    }

    /// `dst /= src`, unsigned.
    pub(super) fn div_reg(&mut self, dst: R, src: R) {
        self.push(0x3f, dst, src, 0, 0);
    }

    /// `dst` = its lower `bits`, from network order, the rest zero.
    pub(super) fn network_order(&mut self, dst: R, bits: i32) {
        self.push(0xdc, dst, R0, 0, bits);
    }

    /// `dst = *(src + off)`, zero extended.
    pub(super) fn load(&mut self, width: Width, dst: R, src: R, off: i16) {
        self.push(0x61 | width as u8, dst, src, off, 0);
    }

    /// `*(dst + off) = src`.
    pub(super) fn store(&mut self, width: Width, dst: R, off: i16, src: R) {
        self.push(0x63 | width as u8, dst, src, off, 0);
    }

    /// `*(dst + off) += src`, 64 bits, atomically.
    pub(super) fn atomic_add(&mut self, dst: R, off: i16, src: R) {
        self.push(0xdb, dst, src, off, 0);
    }

    /// Jumps if `dst` compares so with `imm`.
    pub(super) fn jump_if(&mut self, cond: If, dst: R, imm: i32, to: Label) {
        self.jumps.push((self.insns.len(), to));
        self.push(0x05 | cond as u8, dst, R0, 0, imm);
    }

    /// Jumps if `dst` compares so with `src`.
    pub(super) fn jump_if_reg(&mut self, cond: If, dst: R, src: R, to: Label) {
        self.jumps.push((self.insns.len(), to));
        self.push(0x0d | cond as u8, dst, src, 0, 0);
    }

    /// Jumps.
    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.insns.len(), to));
        self.push(0x05, R0, R0, 0, 0);
    }

    /// `dst` = a map, for a call.
    pub(super) fn map(&mut self, dst: R, map: impl AsFd) {
        self.push(0x18, dst, R(1), 0, map.as_fd().as_raw_fd());
        self.push(0, R0, R0, 0, 0);
    }

    /// `dst` = address of the only value of a map.
    pub(super) fn map_value(&mut self, dst: R, map: impl AsFd) {
        self.push(0x18, dst, R(2), 0, map.as_fd().as_raw_fd());
        self.push(0, R0, R0, 0, 0);
    }

    /// Calls a helper: arguments in r1 to r5, the result in r0; r1 to r5 are lost.
    pub(super) fn call(&mut self, helper: i32) {
        self.push(0x85, R0, R0, 0, helper);
    }

    /// Ends with r0.
    pub(super) fn exit(&mut self) {
        self.push(0x95, R0, R0, 0, 0);
    }

    /// The program, its jumps resolved.
    pub(super) fn finish(mut self) -> Result<Vec<Insn>, BadJump> {
        for (at, label) in self.jumps {
            let place = self.places.get(label.0).copied().flatten();
            // Counted from the instruction behind the jump.
            let off = place.and_then(|p| i16::try_from(p as i64 - at as i64 - 1).ok());
            let (Some(off), Some(insn)) = (off, self.insns.get_mut(at)) else {
                return Err(BadJump(at));
            };
            insn.off = off;
        }
        Ok(self.insns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R1: R = R(1);
    const R2: R = R(2);
    const R3: R = R(3);
    const CONTEXT: R = R(6);
    const FRAME: R = R(10);

    #[test]
    fn jumps_lead_to_their_labels() {
        let mut a = Assembler::default();
        let (back, ahead) = (a.label(), a.label());
        a.place(back);
        a.set(R0, 7);
        a.jump_if(If::Equal, R0, 7, ahead);
        a.jump(back);
        a.place(ahead);
        a.exit();
        let p = a.finish().unwrap();
        let code: Vec<(u8, i16)> = p.iter().map(|i| (i.code, i.off)).collect();
        assert_eq!(code, [(0xb7, 0), (0x15, 1), (0x05, -3), (0x95, 0)]);
        assert_eq!(p[0].imm, 7);
    }

    #[test]
    fn a_label_without_a_place_is_refused() {
        let mut a = Assembler::default();
        let nowhere = a.label();
        a.exit();
        a.jump(nowhere);
        assert_eq!(a.finish(), Err(BadJump(1)));
    }

    #[test]
    fn registers_widths_and_wide_constants() {
        let mut a = Assembler::default();
        a.load(Width::Double, R2, CONTEXT, 8);
        a.store(Width::Word, FRAME, -16, R3);
        a.map(R1, std::io::stdin());
        let p = a.finish().unwrap();
        assert_eq!(p.len(), 4, "a map takes two");
        assert_eq!((p[0].code, p[0].off), (0x79, 8));
        assert_eq!((p[1].code, p[1].off), (0x63, -16));
        if cfg!(target_endian = "little") {
            let regs: Vec<u8> = p.iter().map(|i| i.regs).collect();
            assert_eq!(regs, [0x62, 0x3a, 0x11, 0x00]);
        }
        assert_eq!((p[2].code, p[2].imm), (0x18, 0));
    }
}
