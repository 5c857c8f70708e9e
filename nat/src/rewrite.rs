//! Rewriting the addresses and ports of a flow's packets.
//!
//! A [`Rewrite`] is compiled once per flow and direction, from the endpoints its packets have to those they are to have; what has to be
//! kept of it beside the flow's tuples is a [`Change`] of 4 bytes for both directions. It
//! holds the new fields and what their change does to the checksums (RFC 1624), so that applying it is a few stores and three
//! additions whatever the packet's length: the payload of a 64 KiB segmentation-offload frame isn't looked at. A field that
//! doesn't change is written as it was.
//!
//! Checksums, by who is to finish them:
//! - IPv4 header: addresses.
//! - TCP, UDP, ICMPv6 complete: addresses (pseudo header) and ports or identifier. UDP's 0 stays 0.
//! - The same left to offloading: the field holds the sum of the pseudo header, so only the addresses count.
//! - ICMP: identifier only, there is no pseudo header.
//! - SCTP: a CRC of the packet from its ports on, so only ports count; nothing if left to offloading.
//!
//! A later fragment has no L4 header: its addresses are written, the first fragment's checksum accounts for them.

use crate::Endpoint;
use crate::conntrack::Tuple;
use std::net::IpAddr;
use vswitch_core::frame::Frame;
use vswitch_core::wire::{L3, L4, Meta, crc32c, csum};

/// Why a packet can't be rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// Addresses of two families.
    #[error("rewrite from IPv4 to IPv6 or back: it takes a translator (NAT64), not NAT")]
    Family,
    /// A protocol whose checksum is over addresses, and which isn't parsed.
    #[error("rewrite addresses of IP protocol {0}: its checksum can't be kept valid")]
    Protocol(u8),
    /// The frame isn't a packet of the flow's family, or its headers aren't where parsing said.
    #[error("rewrite a frame: its headers aren't those of the flow")]
    Headers,
    /// An ICMP error belongs to the flow it quotes.
    #[error("rewrite an ICMP error: it has to be translated with the packet it quotes")]
    IcmpError,
    /// The CRC of a fragmented SCTP packet is over a length that no fragment tells.
    #[error("rewrite ports of a fragmented SCTP packet: its checksum can't be kept valid")]
    FragmentedSctp,
}

/// The rewriting of one direction of a flow: 44 bytes. See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// IPv4: the first 8 bytes are source and destination; IPv6: all.
    addrs: [u8; 32],
    /// Source and destination port as on the wire.
    ports: [u8; 4],
    /// Folded change of the addresses.
    addr_diff: u16,
    /// Folded change of ports or identifier.
    port_diff: u16,
    v6: bool,
    ports_change: bool,
}

/// What a rewriting does to checksums; the opposite direction's does the reverse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    addrs: u16,
    ports: u16,
}

impl Change {
    /// That of the opposite direction. In one's complement the negative is the inverse, and 0 is nothing.
    pub(crate) fn back(self) -> Change {
        let negative = |diff: u16| if diff == 0 { 0 } else { !diff };
        Change {
            addrs: negative(self.addrs),
            ports: negative(self.ports),
        }
    }
}

impl Rewrite {
    /// What is to be kept to have it [`again`](Rewrite::again).
    pub(crate) fn change(&self) -> Change {
        Change {
            addrs: self.addr_diff,
            ports: self.port_diff,
        }
    }

    /// The rewriting of packets with the tuple `from` to `to`, whose change was kept.
    #[inline]
    pub(crate) fn again(from: &Tuple, to: &Tuple, change: Change) -> Rewrite {
        let ([a, b], [c, d]) = (to.src_port.to_be_bytes(), to.dst_port.to_be_bytes());
        Rewrite {
            addrs: to.wire_addresses(),
            ports: [a, b, c, d],
            addr_diff: change.addrs,
            port_diff: change.ports,
            v6: to.is_v6(),
            ports_change: (from.src_port, from.dst_port) != (to.src_port, to.dst_port),
        }
    }

    /// Compiles the rewriting of packets of IP protocol `proto` from one pair of endpoints (source, destination) to another.
    pub fn new(
        proto: u8,
        from: (Endpoint, Endpoint),
        to: (Endpoint, Endpoint),
    ) -> Result<Rewrite, RewriteError> {
        let mut addrs = [0; 32];
        let (v6, addr_diff) = match (from.0.addr, from.1.addr, to.0.addr, to.1.addr) {
            (IpAddr::V4(s), IpAddr::V4(d), IpAddr::V4(s2), IpAddr::V4(d2)) => {
                addrs[..4].copy_from_slice(&s2.octets());
                addrs[4..8].copy_from_slice(&d2.octets());
                let diff = csum::diff32(s.into(), s2.into()) + csum::diff32(d.into(), d2.into());
                (false, csum::fold(diff))
            }
            (IpAddr::V6(s), IpAddr::V6(d), IpAddr::V6(s2), IpAddr::V6(d2)) => {
                addrs[..16].copy_from_slice(&s2.octets());
                addrs[16..].copy_from_slice(&d2.octets());
                let diff =
                    csum::diff128(s.octets(), s2.octets()) + csum::diff128(d.octets(), d2.octets());
                (true, csum::fold(diff))
            }
            _ => return Err(RewriteError::Family),
        };
        // DCCP (RFC 4340) and UDP-Lite (RFC 3828) sum a pseudo header; prefix translation leaves its sum as it was.
        let moved = (from.0.addr, from.1.addr) != (to.0.addr, to.1.addr);
        if matches!(proto, 33 | 136) && moved && !matches!(addr_diff, 0 | 0xffff) {
            return Err(RewriteError::Protocol(proto));
        }
        let port_diff = csum::diff16(from.0.port, to.0.port) + csum::diff16(from.1.port, to.1.port);
        let [a, b] = to.0.port.to_be_bytes();
        let [c, d] = to.1.port.to_be_bytes();
        Ok(Rewrite {
            addrs,
            ports: [a, b, c, d],
            addr_diff,
            port_diff: csum::fold(port_diff),
            v6,
            ports_change: (from.0.port, from.1.port) != (to.0.port, to.1.port),
        })
    }

    /// The endpoints (source, destination) a packet has after it.
    #[must_use]
    pub fn to(&self) -> (Endpoint, Endpoint) {
        let [a, b, c, d] = self.ports;
        let (src, dst) = if self.v6 {
            let at = |i: usize| <[u8; 16]>::try_from(&self.addrs[i..i + 16]).unwrap_or_default();
            (IpAddr::from(at(0)), IpAddr::from(at(16)))
        } else {
            let at = |i: usize| <[u8; 4]>::try_from(&self.addrs[i..i + 4]).unwrap_or_default();
            (IpAddr::from(at(0)), IpAddr::from(at(4)))
        };
        (
            Endpoint::new(src, u16::from_be_bytes([a, b])),
            Endpoint::new(dst, u16::from_be_bytes([c, d])),
        )
    }

    /// Rewrites a packet of the flow. On an error it is unchanged.
    #[inline]
    pub fn apply(&self, frame: &mut Frame, meta: &Meta) -> Result<(), RewriteError> {
        let partial = left_to_offload(frame, meta);
        let head = frame.head_mut();
        let l3 = usize::from(meta.l3_off);
        // Everything that can fail comes before the first write.
        let addrs_at = match (meta.l3, self.v6) {
            (L3::V4, false) => l3 + 12,
            (L3::V6, true) => l3 + 8,
            _ => return Err(RewriteError::Headers),
        };
        let addrs_len = if self.v6 { 32 } else { 8 };
        if head.len() < addrs_at + addrs_len {
            return Err(RewriteError::Headers);
        }
        if meta.l4 != L4::Other {
            let l4 = head
                .get_mut(usize::from(meta.l4_off)..)
                .ok_or(RewriteError::Headers)?;
            self.transport(l4, meta, partial)?;
        }
        let ip = &mut head[l3..];
        if self.v6 {
            ip[8..40].copy_from_slice(&self.addrs);
        } else {
            ip[12..20].copy_from_slice(&self.addrs[..8]);
            let sum = csum::update(u16::from_be_bytes([ip[10], ip[11]]), self.addr_diff.into());
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Ok(())
    }

    #[inline]
    fn transport(&self, l4: &mut [u8], meta: &Meta, partial: bool) -> Result<(), RewriteError> {
        let (addr, port) = (u64::from(self.addr_diff), u64::from(self.port_diff));
        match meta.l4 {
            L4::Tcp => {
                let h: &mut [u8; 20] = l4.first_chunk_mut().ok_or(RewriteError::Headers)?;
                h[..4].copy_from_slice(&self.ports);
                let old = u16::from_be_bytes([h[16], h[17]]);
                let new = if partial {
                    csum::update_partial(old, addr)
                } else {
                    csum::update(old, addr + port)
                };
                h[16..18].copy_from_slice(&new.to_be_bytes());
            }
            L4::Udp => {
                let h: &mut [u8; 8] = l4.first_chunk_mut().ok_or(RewriteError::Headers)?;
                h[..4].copy_from_slice(&self.ports);
                let old = u16::from_be_bytes([h[6], h[7]]);
                let new = if partial {
                    csum::update_partial(old, addr)
                } else {
                    csum::update_udp(old, addr + port)
                };
                h[6..8].copy_from_slice(&new.to_be_bytes());
            }
            L4::Sctp => {
                let h: &mut [u8; 12] = l4.first_chunk_mut().ok_or(RewriteError::Headers)?;
                return self.sctp(h, meta, partial);
            }
            L4::Icmp => {
                let h: &mut [u8; 8] = l4.first_chunk_mut().ok_or(RewriteError::Headers)?;
                match icmp_kind(h[0]) {
                    Icmp::Error => return Err(RewriteError::IcmpError),
                    Icmp::Query if !partial => self.icmp(h, port),
                    Icmp::Query => self.put_identifier(h),
                    Icmp::Other => {}
                }
            }
            L4::Icmp6 => match (l4.first().copied().map(icmp6_kind), l4.first_chunk_mut()) {
                (Some(Icmp::Error), _) => return Err(RewriteError::IcmpError),
                (Some(Icmp::Query), Some(h)) if !partial => self.icmp(h, addr + port),
                (Some(Icmp::Query), Some(h)) => {
                    self.put_identifier(h);
                    put_partial(h, addr);
                }
                (Some(Icmp::Query), None) => return Err(RewriteError::Headers),
                _ => {
                    let h: &mut [u8; 4] = l4.first_chunk_mut().ok_or(RewriteError::Headers)?;
                    if partial {
                        put_partial(h, addr);
                    } else {
                        let sum = csum::update(u16::from_be_bytes([h[2], h[3]]), addr);
                        h[2..4].copy_from_slice(&sum.to_be_bytes());
                    }
                }
            },
            L4::Other => {}
        }
        Ok(())
    }

    fn icmp(&self, h: &mut [u8; 8], diff: u64) {
        self.put_identifier(h);
        let sum = csum::update(u16::from_be_bytes([h[2], h[3]]), diff);
        h[2..4].copy_from_slice(&sum.to_be_bytes());
    }

    /// The side that doesn't ask has port 0.
    fn put_identifier(&self, h: &mut [u8; 8]) {
        h[4] = self.ports[0] | self.ports[2];
        h[5] = self.ports[1] | self.ports[3];
    }

    fn sctp(&self, h: &mut [u8; 12], meta: &Meta, partial: bool) -> Result<(), RewriteError> {
        if !self.ports_change {
            return Ok(());
        }
        if meta.fragment {
            return Err(RewriteError::FragmentedSctp);
        }
        let old = u32::from_le_bytes([h[8], h[9], h[10], h[11]]);
        // 0: the peers agreed to do without (RFC 9653).
        if !partial && old != 0 {
            let delta =
                u32::from_le_bytes([h[0], h[1], h[2], h[3]]) ^ u32::from_le_bytes(self.ports);
            let len = (meta.l3_end as usize).saturating_sub(usize::from(meta.l4_off));
            let new = old ^ crc32c::change(delta, len);
            h[8..12].copy_from_slice(&new.to_le_bytes());
        }
        h[..4].copy_from_slice(&self.ports);
        Ok(())
    }
}

fn put_partial(h: &mut [u8], diff: u64) {
    if let Some([_, _, a, b]) = h.first_chunk_mut::<4>() {
        [*a, *b] = csum::update_partial(u16::from_be_bytes([*a, *b]), diff).to_be_bytes();
    }
}

/// Whether the packet's own L4 checksum is left to offloading. That of a packet inside a tunnel may be while the outer
/// one is complete.
pub(crate) fn left_to_offload(frame: &Frame, meta: &Meta) -> bool {
    let v = &frame.vnet;
    let field = match meta.l4 {
        L4::Tcp => 16,
        L4::Udp => 6,
        L4::Sctp => 8,
        L4::Icmp | L4::Icmp6 => 2,
        L4::Other => return false,
    };
    v.needs_csum && v.csum_start == meta.l4_off && v.csum_offset == field
}

/// What an ICMP message is to translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icmp {
    /// With an identifier.
    Query,
    /// Quotes a packet.
    Error,
    /// Neither.
    Other,
}

/// By type (IANA): echo, timestamp, information, address mask; unreachable, source quench, redirect, time
/// exceeded, parameter problem.
pub(crate) fn icmp_kind(ty: u8) -> Icmp {
    match ty {
        0 | 8 | 13..=18 => Icmp::Query,
        3 | 4 | 5 | 11 | 12 => Icmp::Error,
        _ => Icmp::Other,
    }
}

/// Types below 128 are errors (RFC 4443 2.1); 137 is redirect.
pub(crate) fn icmp6_kind(ty: u8) -> Icmp {
    match ty {
        128 | 129 => Icmp::Query,
        0..128 | 137 => Icmp::Error,
        _ => Icmp::Other,
    }
}

#[cfg(test)]
mod tests;
