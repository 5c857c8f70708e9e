//! Which socket of a fanout group gets a frame, as a classic BPF program (net/packet/af_packet.c, PACKET_FANOUT_CBPF).
//!
//! # Theory of operation
//!
//! PACKET_FANOUT_HASH always spreads. A group whose first member works alone for most of the time needs to be told when to
//! spread, and a program can be replaced at any time. It returns a number; the kernel takes it modulo the members.
//! Ours is made of the addresses and ports of a packet such that both directions have the same. What isn't IP, and what is
//! cut short, goes to the first.

use super::filter::*;
use super::packet::PacketError;
use std::os::fd::OwnedFd;

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
    let option = (libc::SOL_PACKET, libc::PACKET_FANOUT_DATA);
    set_program(fd, option, ops).map_err(|source| PacketError::Option {
        act: "choosing the members of the fanout group that receive",
        source,
    })
}
