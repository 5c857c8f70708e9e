//! Classic BPF (include/uapi/linux/filter.h, bpf_common.h): the instructions that programs of ours are made of, and handing one over.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// Offsets that mean the network header, and what the kernel knows besides the frame.
pub(super) const NET: u32 = -0x10_0000_i32 as u32;
pub(super) const PROTOCOL: u32 = -0x1000_i32 as u32;

pub(super) const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
pub(super) const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
pub(super) const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
pub(super) const LOAD_AT_X: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IND;
pub(super) const LOAD_KEPT: u32 = libc::BPF_LD | libc::BPF_MEM;
pub(super) const X_IS_HEADER: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
pub(super) const X_IS_KEPT: u32 = libc::BPF_LDX | libc::BPF_MEM;
pub(super) const X_IS: u32 = libc::BPF_LDX | libc::BPF_IMM;
pub(super) const X_IS_A: u32 = libc::BPF_MISC | libc::BPF_TAX;
pub(super) const KEEP: u32 = libc::BPF_ST;
pub(super) const XOR_X: u32 = libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X;
pub(super) const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
pub(super) const MULTIPLY: u32 = libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K;
pub(super) const SHIFT: u32 = libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K;
pub(super) const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
pub(super) const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
pub(super) const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
pub(super) const GO: u32 = libc::BPF_JMP | libc::BPF_JA;
pub(super) const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
pub(super) const RETURN_A: u32 = libc::BPF_RET | libc::BPF_A;

/// Code, instructions to skip if true, and if false, operand.
pub(super) type Op = (u32, u8, u8, u32);

/// Runs `f` with the program as the kernel takes it; it is good until `f` returns.
pub(super) fn with_program<T>(ops: &[Op], f: impl FnOnce(&libc::sock_fprog) -> T) -> T {
    let step = |&(code, jt, jf, k): &Op| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut steps: Vec<libc::sock_filter> = ops.iter().map(step).collect();
    f(&libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    })
}

/// Sets an option of a socket that takes a program. Errors: as setsockopt(2); EPERM where the filter that is there is locked.
pub(super) fn set_program(
    fd: impl AsFd,
    (level, option): (libc::c_int, libc::c_int),
    ops: &[Op],
) -> Result<(), Errno> {
    with_program(ops, |program| {
        // SAFETY: setsockopt reads the structure and the instructions that it points to, which live across the call.
        let r = unsafe {
            libc::setsockopt(
                fd.as_fd().as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        Errno::result(r).map(drop)
    })
}
