//! Which socket of a fanout group gets a frame, as a classic BPF program (net/packet/af_packet.c, PACKET_FANOUT_CBPF).
//!
//! # Theory of operation
//!
//! PACKET_FANOUT_HASH always spreads. A group whose first member works alone for most of the time needs to be told when to
//! spread, and a program can be replaced at any time. It returns a number; the kernel takes it modulo the members.
//! Ours is made of the addresses and ports of a packet such that both directions have the same. What isn't IP, and what is
//! cut short, goes to the first.

use super::packet::PacketError;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

// include/uapi/linux/filter.h: offsets that mean the network header, and what the kernel knows besides the frame.
const NET: u32 = -0x10_0000_i32 as u32;
const PROTOCOL: u32 = -0x1000_i32 as u32;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_AT_X: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IND;
const LOAD_KEPT: u32 = libc::BPF_LD | libc::BPF_MEM;
const X_IS_HEADER: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
const X_IS_KEPT: u32 = libc::BPF_LDX | libc::BPF_MEM;
const X_IS: u32 = libc::BPF_LDX | libc::BPF_IMM;
const X_IS_A: u32 = libc::BPF_MISC | libc::BPF_TAX;
const KEEP: u32 = libc::BPF_ST;
const XOR_X: u32 = libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const MULTIPLY: u32 = libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K;
const SHIFT: u32 = libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const GO: u32 = libc::BPF_JMP | libc::BPF_JA;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const RETURN_A: u32 = libc::BPF_RET | libc::BPF_A;

/// Code, jump if true, jump if false, operand.
type Op = (u32, u8, u8, u32);

const FIRST: [Op; 1] = [(RETURN, 0, 0, 0)];

const BY_FLOW: [Op; 35] = [
    (LOAD, 0, 0, PROTOCOL),
    (EQUAL, 0, 10, 0x0800),
    // IPv4: the addresses, and the ports if it isn't a fragment.
    (LOAD, 0, 0, NET.wrapping_add(12)),
    (X_IS_A, 0, 0, 0),
    (LOAD, 0, 0, NET.wrapping_add(16)),
    (XOR_X, 0, 0, 0),
    (KEEP, 0, 0, 0),
    (LOAD_HALF, 0, 0, NET.wrapping_add(6)),
    (ANY_BIT, 21, 0, 0x3fff),
    (LOAD_BYTE, 0, 0, NET.wrapping_add(9)),
    (X_IS_HEADER, 0, 0, NET),
    (GO, 0, 0, 8),
    // IPv6: the last words of the addresses.
    (EQUAL, 0, 21, 0x86dd),
    (LOAD, 0, 0, NET.wrapping_add(20)),
    (X_IS_A, 0, 0, 0),
    (LOAD, 0, 0, NET.wrapping_add(36)),
    (XOR_X, 0, 0, 0),
    (KEEP, 0, 0, 0),
    (LOAD_BYTE, 0, 0, NET.wrapping_add(6)),
    (X_IS, 0, 0, 40),
    // TCP or UDP: the ports as well.
    (EQUAL, 1, 0, 6),
    (EQUAL, 0, 8, 17),
    (LOAD_AT_X, 0, 0, NET),
    (X_IS_A, 0, 0, 0),
    (SHIFT, 0, 0, 16),
    (XOR_X, 0, 0, 0),
    (AND, 0, 0, 0xffff),
    (X_IS_KEPT, 0, 0, 0),
    (XOR_X, 0, 0, 0),
    (GO, 0, 0, 1),
    (LOAD_KEPT, 0, 0, 0),
    // The high bits of a product depend on all bits.
    (MULTIPLY, 0, 0, 0x9e37_79b1),
    (SHIFT, 0, 0, 16),
    (RETURN_A, 0, 0, 0),
    (RETURN, 0, 0, 0),
];

/// Spreads the frames of the socket's group by flow, or gives all to the first member.
pub fn steer(fd: &OwnedFd, by_flow: bool) -> Result<(), PacketError> {
    let ops: &[Op] = if by_flow { &BY_FLOW } else { &FIRST };
    let filters: Vec<libc::sock_filter> = ops
        .iter()
        .map(|&(code, jt, jf, k)| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        })
        .collect();
    let program = libc::sock_fprog {
        len: filters.len() as u16,
        filter: filters.as_ptr().cast_mut(),
    };
    // SAFETY: setsockopt reads the program and the filters it points to, which live across the call.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_FANOUT_DATA,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(r).map_err(|source| PacketError::Option {
        act: "choosing the members of the fanout group that receive",
        source,
    })?;
    Ok(())
}
