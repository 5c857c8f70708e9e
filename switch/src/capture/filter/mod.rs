//! Which frames a capture is about: tcpdump's words, compiled once, evaluated on parsed headers.
//!
//! The language is the everyday part of pcap-filter(7), with its precedence: `not` binds tightest, `and` and `or` bind
//! equally and from the left. `tests/tests/capture_filter.rs` compares it with libpcap. It differs in these points:
//! - VLAN tags (two at most) don't hide what is behind them: `arp` finds tagged ARP too, where libpcap wants
//!   `vlan and arp`. `vlan 10` looks at every tag it knows, so `vlan 10 and vlan 20` finds nested tags as in libpcap.
//! - IPv6 extension headers are walked; addresses and ports are those of sound packets only (see [`crate::wire::parse`]).
//! - An address may stand alone, for `host ADDRESS`.
//! - Names of hosts, services and byte expressions (`tcp[13]`) aren't known.
//!
//! Evaluation allocates nothing and is as deep as the parentheses were nested, which the parser bounds.

mod parse;
#[cfg(test)]
mod tests;

pub use parse::{FilterError, WORDS};

use crate::wire::{EtherType, L3, L4, MacAddr, Meta};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Expr);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expr {
    Test(Test),
    Not(Box<Expr>),
    /// From the left: each operator with what stands right of it.
    Chain(Box<Expr>, Vec<(Op, Expr)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    And,
    Or,
}

/// Which end of the frame, packet or segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Dir {
    Src,
    Dst,
    #[default]
    Either,
    Both,
}

impl Dir {
    fn holds(self, src: bool, dst: bool) -> bool {
        match self {
            Dir::Src => src,
            Dir::Dst => dst,
            Dir::Either => src || dst,
            Dir::Both => src && dst,
        }
    }
}

/// Where an IPv4 address may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Ip,
    Arp,
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    EtherType(EtherType),
    /// IP protocol, of IPv4, IPv6 or both.
    Proto {
        proto: u8,
        v4: bool,
        v6: bool,
    },
    Ether(Dir, MacAddr),
    /// Address and mask.
    V4(Carrier, Dir, u32, u32),
    V6(Dir, u128, u128),
    /// Transport (or any of TCP, UDP, SCTP), first and last port.
    Port(Option<L4>, Dir, u16, u16),
    Vlan(Option<u16>),
    Broadcast,
    Multicast,
    IpMulticast,
    Ip6Multicast,
    /// At most this long.
    Less(u32),
    /// At least this long.
    Greater(u32),
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Filter, FilterError> {
        parse::parse(text).map(Filter)
    }
}

impl Filter {
    /// Whether a frame of `len` bytes whose headers are in `head` passes; `meta` is what [`crate::wire::parse`] found.
    #[must_use]
    pub fn matches(&self, head: &[u8], len: usize, meta: &Meta) -> bool {
        self.0.holds(&View { head, len, meta })
    }
}

/// A frame as a filter sees it.
struct View<'a> {
    head: &'a [u8],
    len: usize,
    meta: &'a Meta,
}

impl Expr {
    fn holds(&self, v: &View<'_>) -> bool {
        match self {
            Expr::Test(t) => t.holds(v),
            Expr::Not(e) => !e.holds(v),
            Expr::Chain(first, rest) => rest.iter().fold(first.holds(v), |so_far, (op, e)| {
                // Nothing has side effects: what can't change the outcome isn't looked at.
                match op {
                    Op::And => so_far && e.holds(v),
                    Op::Or => so_far || e.holds(v),
                }
            }),
        }
    }
}

impl Test {
    fn holds(self, v: &View<'_>) -> bool {
        let m = v.meta;
        match self {
            Test::EtherType(t) => m.ethertype == t || m.tag.is_some_and(|tag| tag.tpid == t),
            Test::Proto { proto, v4, v6 } => {
                m.proto == proto && ((v4 && m.l3 == L3::V4) || (v6 && m.l3 == L3::V6))
            }
            Test::Ether(dir, mac) => dir.holds(m.src == mac, m.dst == mac),
            Test::V4(carrier, dir, net, mask) => v.v4(carrier).is_some_and(|(src, dst)| {
                dir.holds(u32::from(src) & mask == net, u32::from(dst) & mask == net)
            }),
            Test::V6(dir, net, mask) => v.v6().is_some_and(|(src, dst)| {
                dir.holds(u128::from(src) & mask == net, u128::from(dst) & mask == net)
            }),
            Test::Port(l4, dir, first, last) => v.ports(l4).is_some_and(|(src, dst)| {
                let within = |p: u16| (first..=last).contains(&p);
                dir.holds(within(src), within(dst))
            }),
            Test::Vlan(None) => m.tags > 0,
            Test::Vlan(Some(vid)) => v.vids().into_iter().flatten().any(|t| t == vid),
            Test::Broadcast => m.dst.is_broadcast(),
            Test::Multicast => m.dst.is_group(),
            Test::IpMulticast => v
                .v4(Carrier::Ip)
                .is_some_and(|(_, dst)| dst.octets()[0] >= 224),
            Test::Ip6Multicast => v.v6().is_some_and(|(_, dst)| dst.is_multicast()),
            Test::Less(n) => v.len <= n as usize,
            Test::Greater(n) => v.len >= n as usize,
        }
    }
}

impl View<'_> {
    fn at<const N: usize>(&self, off: usize) -> Option<[u8; N]> {
        self.head.get(off..)?.first_chunk().copied()
    }

    /// Source and destination, or sender and target of ARP.
    fn v4(&self, carrier: Carrier) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let (src, dst) = match (self.meta.l3, carrier) {
            (L3::V4, Carrier::Ip | Carrier::Any) => (12, 16),
            // RFC 826: sender and target protocol address.
            (L3::Arp, Carrier::Arp | Carrier::Any) => (14, 24),
            _ => return None,
        };
        let l3 = usize::from(self.meta.l3_off);
        let read = |off| self.at::<4>(l3 + off).map(Ipv4Addr::from);
        Some((read(src)?, read(dst)?))
    }

    fn v6(&self) -> Option<(Ipv6Addr, Ipv6Addr)> {
        if self.meta.l3 != L3::V6 {
            return None;
        }
        let l3 = usize::from(self.meta.l3_off);
        let read = |off| self.at::<16>(l3 + off).map(Ipv6Addr::from);
        Some((read(8)?, read(24)?))
    }

    fn ports(&self, l4: Option<L4>) -> Option<(u16, u16)> {
        let found = self.meta.l4;
        let asked = match l4 {
            Some(l4) => found == l4,
            None => matches!(found, L4::Tcp | L4::Udp | L4::Sctp),
        };
        if !asked {
            return None;
        }
        let [a, b, c, d] = self.at(usize::from(self.meta.l4_off))?;
        Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }

    /// VLAN identifiers of the outer and the inner tag.
    fn vids(&self) -> [Option<u16>; 2] {
        let outer = self.meta.tag.map(crate::wire::Tag::vid);
        let inner = (self.meta.tags > 1)
            .then(|| self.at(18))
            .flatten()
            .map(|tci| u16::from_be_bytes(tci) & 0xfff);
        [outer, inner]
    }
}
