//! Flows: what policy has allowed, where it judges connections.
//!
//! # Theory of operation
//!
//! A flow is one direction of a connection, at the interface it comes in by. The programs find it by its addresses and ports in a table
//! that leads to a *place*: memory that is shared with them, with the generation and the egress it is allowed for, and its counters.
//! So a flow is ended, and its counters are read, without a system call.
//!
//! Places are numbered, and given by one thread alone, the worker that tracks connections. A place must not be given to another flow
//! before the programs have refused it for a moment: they may just be using it.

use super::layout::{self, FLOW_BASE, FLOW_KEY, FLOW_SHIFT};
use super::{Accelerator, FLOWS};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

/// No generation.
const ENDED: u64 = u64::MAX;

/// A flow by its name, as the table has it.
pub type FlowKey = [u8; FLOW_KEY];

/// What names a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Index of the interface it comes in by.
    pub interface: u32,
    /// IP protocol number: TCP or UDP.
    pub proto: u8,
    /// Source.
    pub src: SocketAddr,
    /// Destination, of the same family.
    pub dst: SocketAddr,
}

impl Flow {
    /// As the table has it.
    #[must_use]
    pub fn key(&self) -> FlowKey {
        let mut key = [0; FLOW_KEY];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = key.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(0, &self.interface.to_ne_bytes());
        put(4, &self.src.port().to_be_bytes());
        put(6, &self.dst.port().to_be_bytes());
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                put(8, &src.octets());
                put(12, &dst.octets());
                put(40, &[self.proto, 4]);
            }
            (src, dst) => {
                let octets = |ip: IpAddr| match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                    IpAddr::V6(ip) => ip.octets(),
                };
                put(8, &octets(src));
                put(24, &octets(dst));
                put(40, &[self.proto, 6]);
            }
        }
        key
    }
}

/// What a place has counted since it was made, whatever flows it had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Packets; a segmentation-offload frame counts for its segments.
    pub packets: u64,
    /// Bytes of their frames, Ethernet headers included.
    pub wire_bytes: u64,
    /// Bytes of IP, those of a segmentation-offload frame as they are.
    pub ip_bytes: u64,
}

impl FlowCounts {
    /// What came since `before`.
    #[must_use]
    pub fn since(self, before: FlowCounts) -> FlowCounts {
        FlowCounts {
            packets: self.packets.wrapping_sub(before.packets),
            wire_bytes: self.wire_bytes.wrapping_sub(before.wire_bytes),
            ip_bytes: self.ip_bytes.wrapping_sub(before.ip_bytes),
        }
    }
}

/// Index of a word of a place.
fn word(place: u16, at: usize) -> usize {
    (FLOW_BASE + (usize::from(place) << FLOW_SHIFT) + at) / 8
}

impl Accelerator {
    /// Gives a place to a flow, which isn't allowed yet; false if the table takes no more. Places are below [`FLOWS`].
    pub fn enter_flow(&self, place: u16, flow: &FlowKey) -> bool {
        if place >= FLOWS {
            return false;
        }
        self.end_flow(place);
        self.store(word(place, layout::FLOW_POSITION), 0);
        self.flows
            .set(flow, &u32::from(place).to_ne_bytes())
            .is_ok()
    }

    /// Takes a flow out of the table.
    pub fn leave_flow(&self, flow: &FlowKey) {
        // It may never have come in.
        let _ = self.flows.remove(flow);
    }

    /// Lets the flow of a place go to an interface, unless something has changed since `generation`.
    pub fn allow_flow(&self, place: u16, generation: u64, target: u32) {
        self.store(word(place, layout::FLOW_GENERATION), ENDED);
        // The programs read the lower half in memory.
        let mut bytes = [0; 8];
        if let Some(field) = bytes.first_chunk_mut() {
            *field = target.to_ne_bytes();
        }
        self.store(word(place, layout::FLOW_TARGET), u64::from_ne_bytes(bytes));
        self.store(word(place, layout::FLOW_GENERATION), generation);
    }

    /// Ends the flow of a place: when it returns, no further frame goes by it.
    pub fn end_flow(&self, place: u16) {
        self.store(word(place, layout::FLOW_GENERATION), ENDED);
    }

    /// Whether the flow of a place is allowed now.
    #[must_use]
    pub fn is_allowed(&self, place: u16) -> bool {
        self.state.get(word(place, layout::FLOW_GENERATION)) == self.generation()
    }

    /// What a place has counted.
    #[must_use]
    pub fn flow_counts(&self, place: u16) -> FlowCounts {
        let get = |at| self.state.get(word(place, at));
        FlowCounts {
            packets: get(layout::FLOW_PACKETS),
            wire_bytes: get(layout::FLOW_WIRE),
            ip_bytes: get(layout::FLOW_BYTES),
        }
    }

    /// How far TCP was with the last segment of the flow in a place: the sequence number behind its data, and what it
    /// acknowledged. `None` before there was one.
    #[must_use]
    pub fn tcp_position(&self, place: u16) -> Option<(u32, u32)> {
        match self.state.get(word(place, layout::FLOW_POSITION)) {
            0 => None,
            both => Some((both as u32, (both >> 32) as u32)),
        }
    }

    /// Notes how many flows are allowed, for people.
    pub fn note_flows(&self, allowed: usize) {
        self.allowed.store(allowed, Ordering::Relaxed);
    }

    /// Flows that were allowed when they were last looked at.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.allowed.load(Ordering::Relaxed)
    }

    fn store(&self, index: usize, value: u64) {
        if let Some(word) = self.state.word(index) {
            word.store(value, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_the_programs_build_them() {
        let flow = Flow {
            interface: 7,
            proto: 6,
            src: "192.0.2.1:258".parse().unwrap(),
            dst: "192.0.2.2:3".parse().unwrap(),
        };
        let key = flow.key();
        assert_eq!(key[..4], 7_u32.to_ne_bytes());
        assert_eq!(key[4..16], [1, 2, 0, 3, 192, 0, 2, 1, 192, 0, 2, 2]);
        assert_eq!(
            key[16..],
            [[0; 24].as_slice(), &[6, 4, 0, 0, 0, 0, 0, 0]].concat()
        );
        let flow = Flow {
            proto: 17,
            src: "[2001:db8::1]:258".parse().unwrap(),
            dst: "[2001:db8::2]:3".parse().unwrap(),
            ..flow
        };
        let key = flow.key();
        assert_eq!(key[8..12], [0x20, 1, 0xd, 0xb8]);
        assert_eq!((key[23], key[39]), (1, 2));
        assert_eq!(key[40..], [17, 6, 0, 0, 0, 0, 0, 0]);
    }
}
