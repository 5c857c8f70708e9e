//! The programs of the fast path, put together instruction by instruction ([`super::assembler`]).
//!
//! # Theory of operation
//!
//! The filter of the packet socket sees a frame first, and decides. What it keeps from the socket it notes in the frame's scratch memory for
//! the classifier, which comes next, so that there is one decision. A secret goes with it: that memory is the sender's when nobody has
//! written there, as when a socket is gone before its classifier. The kernel clears it before it runs a filter that writes there.
//!
//! The decision: untagged, (interface, destination, source) in the table, of the generation in force, and not too long. Where policy
//! judges, also ([`flow`]): TCP or UDP directly in IPv4 without options or in IPv6 without extension headers, no fragment, whole as its
//! headers say, no TCP flag that begins or ends anything, and the flow in the other table with a place of the same generation. Layouts
//! are those of [`super::layout`]; the instruction set is RFC 9669.

use super::FLOWS;
use super::assembler::{Assembler, BadJump, If, Label, R, Width};
use super::layout::{FLOW_BASE, FLOW_BYTES, FLOW_GENERATION, FLOW_PACKETS, FLOW_POSITION};
use super::layout::{FLOW_SHIFT, FLOW_TARGET, FLOW_WIRE, JUDGED};
use super::layout::{FRAME_LIMIT, GENERATION, GSO_LIMIT, HITS, KEY, PORT_BASE, RX_PORT, TX_PORT};
use super::layout::{LAST, LEVEL, PORT_SHIFT, PORTS, TARGET};
use crate::sys::bpf::Insn;
use std::os::fd::{AsFd, BorrowedFd};

/// What the filter leaves for the classifier, so that it knows the target for the filter's: not negative.
pub(super) type Secret = [i32; 2];

/// What the filter uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps<'a> {
    pub(super) pairs: BorrowedFd<'a>,
    pub(super) flows: BorrowedFd<'a>,
    pub(super) state: BorrowedFd<'a>,
}

/// Result of a call and of the program.
const R0: R = R(0);
const R1: R = R(1);
const R2: R = R(2);
const R3: R = R(3);
const R4: R = R(4);
const R5: R = R(5);
/// These are kept across calls.
const CONTEXT: R = R(6);
const ENTRY: R = R(7);
const LENGTH: R = R(8);
/// Bytes of the IP header, then the flow's place.
const PLACE: R = R(9);
/// Top of the stack; read only.
const FRAME: R = R(10);

// Members of struct __sk_buff.
const SKB_LEN: i16 = 0;
const SKB_PROTOCOL: i16 = 16;
const SKB_VLAN_PRESENT: i16 = 20;
const SKB_IFINDEX: i16 = 40;
/// Scratch that belongs to programs: five words.
const SKB_CB: i16 = 48;
const SKB_GSO_SIZE: i16 = 176;
// enum bpf_func_id.
const MAP_LOOKUP_ELEM: i32 = 1;
const KTIME_GET_NS: i32 = 5;
const SKB_LOAD_BYTES: i32 = 26;
const SKB_CHANGE_TYPE: i32 = 32;
const REDIRECT_PEER: i32 = 155;
/// The frame is for who receives it (include/uapi/linux/if_packet.h).
const PACKET_HOST: i32 = 0;
/// Not ours: what comes behind decides.
const TCX_NEXT: i32 = -1;
/// Where the filter leaves the interface to go to, behind the secret.
const TARGET_IN_CB: i16 = 8;
/// Bytes of both addresses, and of the whole header.
const ADDRESSES: i32 = 12;
const ETHERNET: i32 = 14;

/// Leaves ENTRY pointing at the table's entry for the frame, or goes to `pass`.
fn decide(a: &mut Assembler, maps: Maps<'_>, pass: Label) {
    let (gso, fits, done) = (a.label(), a.label(), a.label());
    a.copy(CONTEXT, R1);
    a.load(Width::Word, R2, CONTEXT, SKB_VLAN_PRESENT);
    a.jump_if(If::NotEqual, R2, 0, pass);
    a.load(Width::Word, R2, CONTEXT, SKB_IFINDEX);
    a.store(Width::Word, FRAME, -(KEY as i16), R2);
    a.copy(R1, CONTEXT);
    a.set(R2, 0);
    a.copy(R3, FRAME);
    a.add(R3, -ADDRESSES);
    a.set(R4, ADDRESSES);
    a.call(SKB_LOAD_BYTES);
    a.jump_if(If::NotEqual, R0, 0, pass);
    a.map(R1, maps.pairs);
    a.copy(R2, FRAME);
    a.add(R2, -(KEY as i32));
    a.call(MAP_LOOKUP_ELEM);
    a.jump_if(If::Equal, R0, 0, pass);
    a.copy(ENTRY, R0);
    a.map_value(R1, maps.state);
    a.load(Width::Double, R2, R1, 0);
    a.load(Width::Double, R3, ENTRY, GENERATION as i16);
    a.jump_if_reg(If::NotEqual, R2, R3, pass);
    a.load(Width::Word, LENGTH, CONTEXT, SKB_LEN);
    a.load(Width::Word, R2, CONTEXT, SKB_GSO_SIZE);
    a.jump_if(If::NotEqual, R2, 0, gso);
    a.load(Width::Word, R3, ENTRY, FRAME_LIMIT as i16);
    a.jump_if_reg(If::Above, LENGTH, R3, pass);
    a.jump(fits);
    a.place(gso);
    a.load(Width::Word, R3, ENTRY, GSO_LIMIT as i16);
    a.jump_if_reg(If::Above, R2, R3, pass);
    a.place(fits);
    dense(a, pass);
    a.load(Width::Word, R2, ENTRY, JUDGED as i16);
    a.jump_if(If::Equal, R2, 0, done);
    flow(a, maps, pass);
    a.place(done);
}

/// Frames up to this length may be small datagrams.
const SMALL: i32 = 256;
/// A leaky bucket tells dense bursts of them, in nanoseconds: what a datagram adds, where a burst begins, what there is at most.
const BETWEEN: i32 = 10_000;
const BURST: i32 = 128 * BETWEEN;
const MOST: i32 = 256 * BETWEEN;

/// Goes to `pass` with small datagrams that come in dense bursts.
fn dense(a: &mut Assembler, pass: Label) {
    let (four, empty, most, filled, done) = (a.label(), a.label(), a.label(), a.label(), a.label());
    a.jump_if(If::Above, LENGTH, SMALL, done);
    // What is long by its segments isn't small.
    a.load(Width::Word, R2, CONTEXT, SKB_GSO_SIZE);
    a.jump_if(If::NotEqual, R2, 0, done);
    a.load(Width::Word, R3, CONTEXT, SKB_PROTOCOL);
    a.set(R2, ETHERNET + 9);
    a.jump_if(If::Equal, R3, 0x0800_u16.to_be().into(), four);
    a.set(R2, ETHERNET + 6);
    a.jump_if(If::NotEqual, R3, 0x86dd_u16.to_be().into(), done);
    a.place(four);
    a.set(R3, 0);
    a.store(Width::Double, FRAME, PACKET, R3);
    a.copy(R1, CONTEXT);
    a.copy(R3, FRAME);
    a.add(R3, PACKET.into());
    a.set(R4, 1);
    a.call(SKB_LOAD_BYTES);
    a.load(Width::Byte, R2, FRAME, PACKET);
    a.jump_if(If::NotEqual, R2, 17, done);
    a.call(KTIME_GET_NS);
    a.load(Width::Double, R3, ENTRY, LAST as i16);
    a.store(Width::Double, ENTRY, LAST as i16, R0);
    a.sub_reg(R0, R3);
    a.load(Width::Word, R2, ENTRY, LEVEL as i16);
    a.add(R2, BETWEEN);
    a.jump_if_reg(If::Above, R0, R2, empty);
    a.sub_reg(R2, R0);
    a.jump_if(If::Above, R2, MOST, most);
    a.jump(filled);
    a.place(empty);
    a.set(R2, 0);
    a.jump(filled);
    a.place(most);
    a.set(R2, MOST);
    a.place(filled);
    a.store(Width::Word, ENTRY, LEVEL as i16, R2);
    a.jump_if(If::Below, R2, BURST, done);
    // It is in use.
    hit(a);
    a.jump(pass);
    a.place(done);
}

/// Notes that the entry is in use.
fn hit(a: &mut Assembler) {
    // Only whether it moves is looked at, so that one lost between two processors does no harm.
    a.load(Width::Double, R2, ENTRY, HITS as i16);
    a.add(R2, 1);
    a.store(Width::Double, ENTRY, HITS as i16, R2);
}

// Where things are on the stack, below the pair's key.
/// The flow's key.
const FLOW: i16 = -64;
/// Beginning of the IP packet.
const PACKET: i16 = -112;
/// TCP header from its 8th byte on: acknowledgement, length, flags, window.
const TCP: i16 = -120;
const SEQUENCE: i16 = -124;
/// Length of the IP packet, and of its headers.
const IP_LENGTH: i16 = -136;
const IP_HEADERS: i16 = -144;

/// Takes bytes of the frame to the stack.
fn take(a: &mut Assembler, to: i16, len: i32, pass: Label) {
    a.copy(R1, CONTEXT);
    a.copy(R3, FRAME);
    a.add(R3, to.into());
    a.set(R4, len);
    a.call(SKB_LOAD_BYTES);
    a.jump_if(If::NotEqual, R0, 0, pass);
}

/// Copies from PACKET to the stack.
fn note(a: &mut Assembler, width: Width, from: i16, to: i16) {
    a.load(width, R2, FRAME, PACKET + from);
    a.store(width, FRAME, to, R2);
}

/// A plain IPv4 header: fills the flow's key, SEQUENCE and IP_LENGTH.
fn ipv4(a: &mut Assembler, pass: Label) {
    a.set(R2, ETHERNET);
    take(a, PACKET, 28, pass);
    a.load(Width::Byte, R2, FRAME, PACKET);
    a.jump_if(If::NotEqual, R2, 0x45, pass);
    // More fragments, or an offset; the reserved bit isn't plain either.
    a.load(Width::Half, R2, FRAME, PACKET + 6);
    a.and(R2, i32::from(0xbfff_u16.to_be()));
    a.jump_if(If::NotEqual, R2, 0, pass);
    note(a, Width::Word, 12, FLOW + 8);
    note(a, Width::Word, 16, FLOW + 12);
    a.set(R2, 0);
    for at in [16, 24, 32, 40] {
        a.store(Width::Double, FRAME, FLOW + at, R2);
    }
    note(a, Width::Byte, 9, FLOW + 40);
    note(a, Width::Word, 20, FLOW + 4);
    note(a, Width::Word, 24, SEQUENCE);
    a.load(Width::Half, R2, FRAME, PACKET + 2);
    a.network_order(R2, 16);
    a.store(Width::Double, FRAME, IP_LENGTH, R2);
    a.set(R2, 4);
    a.store(Width::Byte, FRAME, FLOW + 41, R2);
    a.set(PLACE, 20);
}

/// The same of IPv6 without extension headers: those are other protocols.
fn ipv6(a: &mut Assembler, pass: Label) {
    a.set(R2, ETHERNET);
    take(a, PACKET, 48, pass);
    a.load(Width::Byte, R2, FRAME, PACKET);
    a.and(R2, 0xf0);
    a.jump_if(If::NotEqual, R2, 0x60, pass);
    for at in [0, 8, 16, 24] {
        note(a, Width::Double, 8 + at, FLOW + 8 + at);
    }
    a.set(R2, 0);
    a.store(Width::Double, FRAME, FLOW + 40, R2);
    note(a, Width::Byte, 6, FLOW + 40);
    note(a, Width::Word, 40, FLOW + 4);
    note(a, Width::Word, 44, SEQUENCE);
    a.load(Width::Half, R2, FRAME, PACKET + 4);
    a.network_order(R2, 16);
    a.add(R2, 40);
    a.store(Width::Double, FRAME, IP_LENGTH, R2);
    a.set(R2, 6);
    a.store(Width::Byte, FRAME, FLOW + 41, R2);
    a.set(PLACE, 40);
}

/// Goes to `pass` unless the frame belongs to a flow that is allowed to where ENTRY leads; counts it in the flow.
fn flow(a: &mut Assembler, maps: Maps<'_>, pass: Label) {
    let (six, transport, tcp, found) = (a.label(), a.label(), a.label(), a.label());
    a.load(Width::Word, R2, CONTEXT, SKB_PROTOCOL);
    a.jump_if(If::Equal, R2, 0x86dd_u16.to_be().into(), six);
    a.jump_if(If::NotEqual, R2, 0x0800_u16.to_be().into(), pass);
    ipv4(a, pass);
    a.jump(transport);
    a.place(six);
    ipv6(a, pass);
    a.place(transport);
    note_interface(a);
    // No more than the frame has.
    a.load(Width::Double, R2, FRAME, IP_LENGTH);
    a.copy(R3, LENGTH);
    a.add(R3, -ETHERNET);
    a.jump_if_reg(If::Above, R2, R3, pass);
    a.load(Width::Byte, R4, FRAME, FLOW + 40);
    a.jump_if(If::Equal, R4, 6, tcp);
    a.jump_if(If::NotEqual, R4, 17, pass);
    // Not read, but the verifier can't know.
    a.set(R2, 0);
    a.store(Width::Double, FRAME, TCP, R2);
    a.copy(R3, PLACE);
    a.add(R3, 8);
    a.jump(found);
    a.place(tcp);
    a.copy(R2, PLACE);
    a.add(R2, ETHERNET + 8);
    take(a, TCP, 8, pass);
    a.load(Width::Byte, R2, FRAME, TCP + 5);
    a.copy(R3, R2);
    // FIN, SYN, RST, URG.
    a.and(R3, 0x27);
    a.jump_if(If::NotEqual, R3, 0, pass);
    // ACK.
    a.and(R2, 0x10);
    a.jump_if(If::Equal, R2, 0, pass);
    a.load(Width::Byte, R3, FRAME, TCP + 4);
    a.and(R3, 0xf0);
    a.shift_right(R3, 2);
    a.jump_if(If::Below, R3, 20, pass);
    a.add_reg(R3, PLACE);
    a.place(found);
    a.load(Width::Double, R2, FRAME, IP_LENGTH);
    a.jump_if_reg(If::Above, R3, R2, pass);
    a.store(Width::Double, FRAME, IP_HEADERS, R3);
    a.map(R1, maps.flows);
    a.copy(R2, FRAME);
    a.add(R2, FLOW.into());
    a.call(MAP_LOOKUP_ELEM);
    a.jump_if(If::Equal, R0, 0, pass);
    a.load(Width::Word, R1, R0, 0);
    a.jump_if(If::Above, R1, i32::from(FLOWS) - 1, pass);
    a.shift_left(R1, FLOW_SHIFT);
    a.map_value(PLACE, maps.state);
    a.add(PLACE, FLOW_BASE as i32);
    a.add_reg(PLACE, R1);
    for (width, ours, pairs) in [
        (Width::Double, FLOW_GENERATION, GENERATION),
        (Width::Word, FLOW_TARGET, TARGET),
    ] {
        a.load(width, R2, PLACE, ours as i16);
        a.load(width, R3, ENTRY, pairs as i16);
        a.jump_if_reg(If::NotEqual, R2, R3, pass);
    }
    // Nothing refuses it any more.
    count_flow(a);
}

/// The interface in the flow's key.
fn note_interface(a: &mut Assembler) {
    a.load(Width::Word, R2, FRAME, -(KEY as i16));
    a.store(Width::Word, FRAME, FLOW, R2);
}

/// Counts packets, of a GSO frame its segments, bytes of their frames, and bytes of IP; of TCP also notes how far it is.
fn count_flow(a: &mut Assembler) {
    let (single, counted, done) = (a.label(), a.label(), a.label());
    a.load(Width::Double, R4, FRAME, IP_HEADERS);
    a.load(Width::Word, R2, CONTEXT, SKB_GSO_SIZE);
    a.copy(R5, LENGTH);
    a.jump_if(If::Equal, R2, 0, single);
    a.copy(R3, R4);
    a.add(R3, ETHERNET);
    // Segments: the data divided, rounded up.
    a.copy(R1, LENGTH);
    a.sub_reg(R1, R3);
    a.add_reg(R1, R2);
    a.add(R1, -1);
    a.div_reg(R1, R2);
    a.jump_if(If::Below, R1, 2, single);
    // Each but the first has headers of its own.
    a.copy(R0, R1);
    a.add(R0, -1);
    a.mul_reg(R0, R3);
    a.add_reg(R5, R0);
    a.jump(counted);
    a.place(single);
    a.set(R1, 1);
    a.place(counted);
    a.atomic_add(PLACE, FLOW_PACKETS as i16, R1);
    a.atomic_add(PLACE, FLOW_WIRE as i16, R5);
    a.load(Width::Double, R3, FRAME, IP_LENGTH);
    a.atomic_add(PLACE, FLOW_BYTES as i16, R3);
    a.load(Width::Byte, R2, FRAME, FLOW + 40);
    a.jump_if(If::NotEqual, R2, 6, done);
    // The sequence number behind the data, and the acknowledgement in the upper half.
    a.load(Width::Word, R2, FRAME, SEQUENCE);
    a.network_order(R2, 32);
    a.add_reg(R2, R3);
    a.sub_reg(R2, R4);
    a.shift_left(R2, 32);
    a.shift_right(R2, 32);
    a.load(Width::Word, R3, FRAME, TCP);
    a.network_order(R3, 32);
    a.shift_left(R3, 32);
    a.or_reg(R2, R3);
    a.store(Width::Double, PLACE, FLOW_POSITION as i16, R2);
    a.place(done);
}

/// Counts a frame in the counters that begin at `first` of the port that ENTRY names at `port`.
fn count(a: &mut Assembler, state: impl AsFd, port: usize, first: i16, pass: Label) {
    a.load(Width::Word, R2, ENTRY, port as i16);
    a.jump_if(If::Above, R2, PORTS as i32 - 1, pass);
    a.shift_left(R2, PORT_SHIFT);
    a.map_value(R1, state);
    a.add_reg(R1, R2);
    a.set(R3, 1);
    a.atomic_add(R1, PORT_BASE as i16 + first, R3);
    a.atomic_add(R1, PORT_BASE as i16 + first + 8, LENGTH);
}

/// The classifier at the switch's end of a pair: redirects what the filter has decided about.
pub(super) fn ingress(secret: Secret) -> Result<Vec<Insn>, BadJump> {
    let mut a = Assembler::default();
    let pass = a.label();
    a.copy(CONTEXT, R1);
    for (i, word) in (0..).zip(secret) {
        a.load(Width::Word, R2, CONTEXT, SKB_CB + 4 * i);
        a.jump_if(If::NotEqual, R2, word, pass);
    }
    a.load(Width::Word, ENTRY, CONTEXT, SKB_CB + TARGET_IN_CB);
    // Nobody who gets the frame is to read it.
    a.set(R2, 0);
    for i in [0, 1] {
        a.store(Width::Word, CONTEXT, SKB_CB + 4 * i, R2);
    }
    // It was taken for somebody else's by the near end, whose address isn't the container's.
    a.copy(R1, CONTEXT);
    a.set(R2, PACKET_HOST);
    a.call(SKB_CHANGE_TYPE);
    a.copy(R1, ENTRY);
    a.set(R2, 0);
    a.call(REDIRECT_PEER);
    a.exit();
    a.place(pass);
    a.set32(R0, TCX_NEXT);
    a.exit();
    a.finish()
}

/// The filter of the packet sockets: decides, counts, and drops what the classifier is to redirect.
pub(super) fn filter(maps: Maps<'_>, secret: Secret) -> Result<Vec<Insn>, BadJump> {
    let mut a = Assembler::default();
    let pass = a.label();
    decide(&mut a, maps, pass);
    count(&mut a, maps.state, RX_PORT, 0, pass);
    count(&mut a, maps.state, TX_PORT, 16, pass);
    hit(&mut a);
    a.load(Width::Word, R2, ENTRY, TARGET as i16);
    a.store(Width::Word, CONTEXT, SKB_CB + TARGET_IN_CB, R2);
    for (i, word) in (0..).zip(secret) {
        a.set32(R2, word);
        a.store(Width::Word, CONTEXT, SKB_CB + 4 * i, R2);
    }
    a.set(R0, 0);
    a.exit();
    a.place(pass);
    // All of it.
    a.set32(R0, -1);
    a.exit();
    a.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_programs_hold_together() {
        let input = std::io::stdin();
        let (pairs, flows, state) = (input.as_fd(), input.as_fd(), input.as_fd());
        let maps = Maps {
            pairs,
            flows,
            state,
        };
        let secret = [7, 8];
        assert!(ingress(secret).is_ok_and(|p| p.len() > 15));
        assert!(filter(maps, secret).is_ok_and(|p| p.len() > 150));
    }
}
