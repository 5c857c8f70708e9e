//! ICMP and ICMPv6 errors: finding the flow of the packet they quote, and translating both (RFC 5508, section 4).
//!
//! [`QuotedError::parse`] checks the message (REQ-3: its checksum, and the quoted IPv4 header's; never the quoted transport
//! checksum, which may cover bytes that weren't quoted) and tells the quoted packet's endpoints, from which connection tracking
//! finds the flow. [`QuotedError::rewrite`] then writes the addresses and ports that the flow has on the other side, into the
//! quote and the outer header, and keeps every checksum by RFC 1624. Type and code stay (REQ-4, REQ-5). A flow is neither
//! refreshed nor ended by an error (REQ-6): that is the caller's.
//!
//! A quote ends anywhere after the first 8 bytes of L4 (RFC 792); what isn't there isn't updated. RFC 4884 extensions behind
//! the quote are left alone.

mod quote;

pub use quote::Quoted;

use crate::rewrite::{Icmp, icmp_kind, icmp6_kind, left_to_offload};
use crate::{Endpoint, verify};
use std::net::IpAddr;
use vswitch_core::frame::Frame;
use vswitch_core::wire::{L4, Meta, crc32c, csum};

/// Why a message isn't translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorReject {
    /// No ICMP error at all.
    #[error("translate an ICMP error: the frame is none")]
    NotError,
    /// Redirect: means a neighbour on the same link, so it never crosses a router.
    #[error("translate an ICMP redirect: it has no meaning beyond its link")]
    Redirect,
    /// Source quench: obsolete and to be ignored (RFC 6633).
    #[error("translate an ICMP source quench: it is obsolete (RFC 6633)")]
    SourceQuench,
    /// An error type that isn't assigned.
    #[error("translate an ICMP error: its type isn't known")]
    UnknownType,
    /// It ends before the 8 bytes of L4 that it has to quote, or quotes no packet of its family.
    #[error("translate an ICMP error: it quotes too little")]
    Truncated,
    /// Its checksum is wrong.
    #[error("translate an ICMP error: its checksum is wrong")]
    Checksum,
    /// The checksum of the quoted IPv4 header is wrong.
    #[error("translate an ICMP error: the quoted header's checksum is wrong")]
    QuotedChecksum,
    /// It quotes an ICMP error, to which there are no errors (RFC 1122 3.2.2).
    #[error("translate an ICMP error: it quotes another")]
    Nested,
    /// It is a fragment.
    #[error("translate an ICMP error: it is fragmented")]
    Fragment,
    /// The new addresses are of another family.
    #[error("translate an ICMP error from IPv4 to IPv6 or back: it takes a translator (NAT64)")]
    Family,
}

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Destination unreachable, with its code.
    Unreachable(u8),
    /// Fragmentation needed, or packet too big: the next hop's MTU, 0 from routers older than RFC 1191.
    TooBig(u32),
    /// Time exceeded, with its code.
    TimeExceeded(u8),
    /// Parameter problem, with its code.
    Parameter(u8),
}

/// The addresses and ports a message is to have.
#[derive(Clone, Copy, Debug)]
pub struct Translated {
    /// Source and destination of the error.
    pub outer: (IpAddr, IpAddr),
    /// Source and destination of the packet it quotes.
    pub quoted: (Endpoint, Endpoint),
    /// MTU of the way on from here: an announced MTU that is larger (or 0) is lowered to it.
    pub mtu: Option<u32>,
}

/// An ICMP error, checked.
#[derive(Clone, Copy, Debug)]
pub struct QuotedError {
    /// What it says.
    pub kind: ErrorKind,
    /// Who sent it, and to whom.
    pub outer: (IpAddr, IpAddr),
    /// The packet it quotes.
    pub quoted: Quoted,
    icmp_at: usize,
    l3_at: usize,
    partial: bool,
}

impl QuotedError {
    /// Reads and checks the ICMP error in a frame.
    pub fn parse(frame: &Frame, meta: &Meta) -> Result<QuotedError, ErrorReject> {
        let v6 = meta.l4 == L4::Icmp6;
        if !v6 && meta.l4 != L4::Icmp {
            return Err(ErrorReject::NotError);
        }
        let (l3_at, icmp_at) = (usize::from(meta.l3_off), usize::from(meta.l4_off));
        let end = (meta.l3_end as usize).min(frame.head().len());
        let head = frame.head().get(..end).ok_or(ErrorReject::NotError)?;
        let message = head.get(icmp_at..).ok_or(ErrorReject::NotError)?;
        let kind = message.first().map_or(Icmp::Other, |ty| {
            if v6 { icmp6_kind(*ty) } else { icmp_kind(*ty) }
        });
        if kind != Icmp::Error {
            return Err(ErrorReject::NotError);
        }
        if meta.fragment {
            return Err(ErrorReject::Fragment);
        }
        let h: &[u8; 8] = message.first_chunk().ok_or(ErrorReject::Truncated)?;
        let kind = if v6 { kind6(h) } else { kind4(h) }?;
        let outer = meta.addresses(head).ok_or(ErrorReject::NotError)?;
        let partial = left_to_offload(frame, meta);
        if !partial && !verify::l4_sum_is_right(frame, meta) {
            return Err(ErrorReject::Checksum);
        }
        let quote_end = icmp_at + 8 + quote_len(h, v6, message.len() - 8);
        let quoted = Quoted::parse(head, icmp_at + 8, quote_end, v6)?;
        Ok(QuotedError {
            kind,
            outer,
            quoted,
            icmp_at,
            l3_at,
            partial,
        })
    }

    /// Writes the other side's addresses and ports. On an error the frame is unchanged.
    pub fn rewrite(&self, frame: &mut Frame, to: &Translated) -> Result<(), ErrorReject> {
        let outer = Addresses::new(self.outer, to.outer)?;
        let inner = Addresses::new(
            (self.quoted.src.addr, self.quoted.dst.addr),
            (to.quoted.0.addr, to.quoted.1.addr),
        )?;
        if outer.v6 != inner.v6 || outer.v6 != self.outer.0.is_ipv6() {
            return Err(ErrorReject::Family);
        }
        let head = frame.head_mut();
        if head.len() < self.quoted.end {
            return Err(ErrorReject::Truncated);
        }
        let mut patch = Patch { head, diff: 0 };
        self.put_mtu(&mut patch, to.mtu);
        self.put_quote(&mut patch, &inner, to.quoted);
        let message_diff = patch.diff;
        patch.diff = 0;
        outer.put(&mut patch, self.l3_at);
        let pseudo_diff = if outer.v6 { patch.diff } else { 0 };
        let at = self.icmp_at + 2;
        let old = patch.get(at);
        // What is left to offloading sums the message itself later.
        let sum = if self.partial {
            csum::update_partial(old, pseudo_diff)
        } else {
            csum::update(old, message_diff + pseudo_diff)
        };
        patch.put(at, sum);
        Ok(())
    }

    fn put_mtu(&self, patch: &mut Patch<'_>, mtu: Option<u32>) {
        let (ErrorKind::TooBig(announced), Some(mtu)) = (self.kind, mtu) else {
            return;
        };
        if announced != 0 && announced <= mtu {
            return;
        }
        if self.outer.0.is_ipv6() {
            patch.put(self.icmp_at + 4, (mtu >> 16) as u16);
            patch.put(self.icmp_at + 6, mtu as u16);
        } else {
            patch.put(self.icmp_at + 6, mtu.min(0xffff) as u16);
        }
    }

    fn put_quote(&self, patch: &mut Patch<'_>, addresses: &Addresses, to: (Endpoint, Endpoint)) {
        let q = &self.quoted;
        addresses.put(patch, q.at);
        let Some(l4) = q.l4_at else { return };
        let ports = csum::diff16(q.src.port, to.0.port) + csum::diff16(q.dst.port, to.1.port);
        let (checksum_at, diff) = match q.proto {
            6 => (16, addresses.diff + ports),
            17 => (6, addresses.diff + ports),
            132 => return self.put_quoted_crc(patch, l4, to),
            1 if q.is_query() => (2, ports),
            58 if q.is_query() => (2, addresses.diff + ports),
            58 if addresses.v6 => (2, addresses.diff),
            _ => return,
        };
        if q.is_query() {
            patch.put(l4 + 4, to.0.port | to.1.port);
        } else if q.proto != 58 {
            patch.put(l4, to.0.port);
            patch.put(l4 + 2, to.1.port);
        }
        let at = l4 + checksum_at;
        if at + 2 <= q.end {
            let old = patch.get(at);
            let new = if q.proto == 17 {
                csum::update_udp(old, diff)
            } else {
                csum::update(old, diff)
            };
            patch.put(at, new);
        }
    }

    /// The quoted header tells the length that the CRC covers, though the quote is shorter.
    fn put_quoted_crc(&self, patch: &mut Patch<'_>, l4: usize, to: (Endpoint, Endpoint)) {
        let q = &self.quoted;
        patch.put(l4, to.0.port);
        patch.put(l4 + 2, to.1.port);
        let Some(len) = q.whole_l4_len.filter(|_| l4 + 12 <= q.end) else {
            return;
        };
        let le = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            u32::from_le_bytes([a, b, c, d])
        };
        let old = le(patch.get(l4 + 8), patch.get(l4 + 10));
        if old == 0 {
            return;
        }
        let delta = le(q.src.port, q.dst.port) ^ le(to.0.port, to.1.port);
        let [a, b, c, d] = (old ^ crc32c::change(delta, len)).to_le_bytes();
        patch.put(l4 + 8, u16::from_be_bytes([a, b]));
        patch.put(l4 + 10, u16::from_be_bytes([c, d]));
    }
}

fn kind4(h: &[u8; 8]) -> Result<ErrorKind, ErrorReject> {
    match (h[0], h[1]) {
        (3, 4) => Ok(ErrorKind::TooBig(u16::from_be_bytes([h[6], h[7]]).into())),
        (3, code) => Ok(ErrorKind::Unreachable(code)),
        (11, code) => Ok(ErrorKind::TimeExceeded(code)),
        (12, code) => Ok(ErrorKind::Parameter(code)),
        (4, _) => Err(ErrorReject::SourceQuench),
        (5, _) => Err(ErrorReject::Redirect),
        _ => Err(ErrorReject::UnknownType),
    }
}

fn kind6(h: &[u8; 8]) -> Result<ErrorKind, ErrorReject> {
    match (h[0], h[1]) {
        (1, code) => Ok(ErrorKind::Unreachable(code)),
        (2, _) => Ok(ErrorKind::TooBig(u32::from_be_bytes([
            h[4], h[5], h[6], h[7],
        ]))),
        (3, code) => Ok(ErrorKind::TimeExceeded(code)),
        (4, code) => Ok(ErrorKind::Parameter(code)),
        (137, _) => Err(ErrorReject::Redirect),
        _ => Err(ErrorReject::UnknownType),
    }
}

/// How many of `there` bytes are quote, not extensions: RFC 4884 4.1 gives the length in 32-bit (IPv4) or 64-bit words, at
/// least 128 bytes.
fn quote_len(h: &[u8; 8], v6: bool, there: usize) -> usize {
    let told = match (h[0], v6) {
        (3 | 11 | 12, false) => usize::from(h[5]) * 4,
        (1 | 3, true) => usize::from(h[4]) * 8,
        _ => 0,
    };
    if told >= 128 { told.min(there) } else { there }
}

/// Words written at even distances from the ICMP header, and what they change its sum by.
struct Patch<'a> {
    head: &'a mut [u8],
    diff: u64,
}

impl Patch<'_> {
    fn get(&self, at: usize) -> u16 {
        self.head
            .get(at..)
            .and_then(|b| b.first_chunk())
            .map_or(0, |b| u16::from_be_bytes(*b))
    }

    fn put(&mut self, at: usize, new: u16) {
        if let Some(word) = self.head.get_mut(at..).and_then(|b| b.first_chunk_mut()) {
            self.diff += csum::diff16(u16::from_be_bytes(*word), new);
            *word = new.to_be_bytes();
        }
    }
}

/// New addresses of an IP header.
struct Addresses {
    v6: bool,
    bytes: [u8; 32],
    diff: u64,
}

impl Addresses {
    fn new(from: (IpAddr, IpAddr), to: (IpAddr, IpAddr)) -> Result<Addresses, ErrorReject> {
        let mut bytes = [0; 32];
        let (v6, diff) = match (from.0, from.1, to.0, to.1) {
            (IpAddr::V4(s), IpAddr::V4(d), IpAddr::V4(s2), IpAddr::V4(d2)) => {
                bytes[..4].copy_from_slice(&s2.octets());
                bytes[4..8].copy_from_slice(&d2.octets());
                let diff = csum::diff32(s.into(), s2.into()) + csum::diff32(d.into(), d2.into());
                (false, diff)
            }
            (IpAddr::V6(s), IpAddr::V6(d), IpAddr::V6(s2), IpAddr::V6(d2)) => {
                bytes[..16].copy_from_slice(&s2.octets());
                bytes[16..].copy_from_slice(&d2.octets());
                let diff =
                    csum::diff128(s.octets(), s2.octets()) + csum::diff128(d.octets(), d2.octets());
                (true, diff)
            }
            _ => return Err(ErrorReject::Family),
        };
        Ok(Addresses { v6, bytes, diff })
    }

    fn put(&self, patch: &mut Patch<'_>, ip: usize) {
        let (at, len) = if self.v6 { (ip + 8, 32) } else { (ip + 12, 8) };
        for (i, word) in self.bytes[..len].chunks_exact(2).enumerate() {
            patch.put(at + 2 * i, u16::from_be_bytes([word[0], word[1]]));
        }
        if !self.v6 {
            let sum = csum::update(patch.get(ip + 10), self.diff);
            patch.put(ip + 10, sum);
        }
    }
}

#[cfg(test)]
mod tests;
