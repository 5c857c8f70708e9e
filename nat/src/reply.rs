//! What the gateway answers to a packet it can't or won't forward: ICMP and ICMPv6 errors, and TCP resets.
//!
//! There is no answer to what could make a storm or hit a third party (RFC 1122 3.2.2, RFC 1812 4.3.2.7, RFC 4443 2.4): an ICMP
//! error, a later fragment, group addresses of either layer, a source that isn't one host, a reset. An error quotes
//! as much as fits 576 bytes (RFC 1812 4.3.2.3) or 1,280 (RFC 4443 2.4(c)), so it is hardly larger than its cause; an
//! [`AnswerLimiter`] bounds how many there are.
//!
//! The packet to quote is the one received: before translation, and before its TTL was lowered.

use crate::frag::FragmentHeader;
use crate::rewrite::{Icmp, icmp_kind, icmp6_kind, left_to_offload};
use crate::verify;
use arrayvec::ArrayVec;
use foldhash::fast::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use vswitch_core::bridge::Rate;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::Frame;
use vswitch_core::policy::meter::Meter;
use vswitch_core::wire::{L3, L4, MacAddr, Meta, csum};

/// Why a packet isn't forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No route.
    NetUnreachable,
    /// The next hop doesn't answer.
    HostUnreachable,
    /// Nobody listens.
    PortUnreachable,
    /// Forbidden by policy.
    Prohibited,
    /// Longer than the next link's MTU, and not to be fragmented here.
    TooBig(u32),
    /// TTL or hop limit used up.
    TimeExceeded,
    /// Fragments of it didn't come in time.
    ReassemblyTime,
    /// As another router or the far end says it: type and code of an error without a second word.
    Told(u8, u8),
}

/// Why a packet gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// No IP packet, or of another family than the answer's sender.
    #[error("answer a frame: it is no packet of the sender's family")]
    NotIp,
    /// An ICMP error, or ICMP that can't be read.
    #[error("answer an ICMP error: errors get none")]
    IcmpError,
    /// A later fragment, or for a reset any.
    #[error("answer a fragment: only the first gets an answer")]
    Fragment,
    /// To a group, or from an address that isn't one host.
    #[error("answer a packet: its addresses aren't those of single hosts")]
    Group,
    /// No TCP segment, a reset, or damaged.
    #[error("reset a connection: the packet is no sound TCP segment, or a reset")]
    NotResettable,
}

const MIN_MTU4: usize = 576;
const MIN_MTU6: usize = 1280;
const TTL: u8 = 64;

type Buffer = ArrayVec<u8, { MIN_MTU6 + 64 }>;

/// The ICMP or ICMPv6 error that tells the sender of `offender` why it wasn't forwarded, from `from`, as a frame from
/// `mac` back to where it came from, with the same VLAN tags.
pub fn icmp_error(
    offender: &Frame,
    meta: &Meta,
    cause: Cause,
    from: IpAddr,
    mac: MacAddr,
) -> Result<Frame, NoAnswer> {
    let to = answerable(offender, meta)?;
    let (l3, end) = (usize::from(meta.l3_off), meta.l3_end as usize);
    let packet = offender
        .head()
        .get(l3..end.min(offender.head().len()))
        .ok_or(NoAnswer::NotIp)?;
    let (ty, code, word) = message(cause, from.is_ipv6());
    let mut b = link(offender, meta, mac)?;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let quote = &packet[..packet.len().min(MIN_MTU4 - 28)];
            // Precedence 6 (RFC 1812 4.3.2.5).
            ipv4(
                &mut b,
                0xc0,
                1,
                [from.octets(), to.octets()],
                8 + quote.len(),
            );
            let at = icmp(&mut b, ty, code, word, quote);
            put_sum(&mut b, at, at + 2, 0);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let quote = &packet[..packet.len().min(MIN_MTU6 - 48)];
            let addresses = [from.octets(), to.octets()];
            let pseudo = ipv6(&mut b, 58, addresses, 8 + quote.len());
            let at = icmp(&mut b, ty, code, word, quote);
            put_sum(&mut b, at, at + 2, pseudo);
        }
        _ => return Err(NoAnswer::NotIp),
    }
    Frame::from_bytes(&b).ok_or(NoAnswer::NotIp)
}

/// The reset that answers a TCP segment as if nobody listened (RFC 9293 3.10.7.1), from the address it was sent to.
pub fn tcp_reset(offender: &Frame, meta: &Meta, mac: MacAddr) -> Result<Frame, NoAnswer> {
    answerable(offender, meta)?;
    if meta.fragment {
        return Err(NoAnswer::Fragment);
    }
    let (l3, l4) = (usize::from(meta.l3_off), usize::from(meta.l4_off));
    let head = offender.head();
    let tcp: &[u8; 20] = match head.get(l4..).and_then(|b| b.first_chunk()) {
        Some(tcp) if meta.l4 == L4::Tcp => tcp,
        _ => return Err(NoAnswer::NotResettable),
    };
    let flags = tcp[13];
    let data = (meta.l3_end as usize).checked_sub(l4 + usize::from(tcp[12] >> 4) * 4);
    let (Some(data), 0) = (data, flags & RST) else {
        return Err(NoAnswer::NotResettable);
    };
    // A damaged segment may be of another connection.
    if !left_to_offload(offender, meta) && !verify::l4_sum_is_right(offender, meta) {
        return Err(NoAnswer::NotResettable);
    }
    let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let (seq, ack, out) = if flags & ACK != 0 {
        (word(8), 0, RST)
    } else {
        let len = data as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        (0, word(4).wrapping_add(len), RST | ACK)
    };
    let mut b = link(offender, meta, mac)?;
    let pseudo = if meta.l3 == L3::V4 {
        let [src, dst] = two::<4>(head, l3 + 12)?;
        ipv4(&mut b, 0, 6, [dst, src], 20);
        csum::add(csum::add(6 + 20, &src), &dst)
    } else {
        let [src, dst] = two::<16>(head, l3 + 8)?;
        ipv6(&mut b, 6, [dst, src], 20)
    };
    let at = b.len();
    b.extend([tcp[2], tcp[3], tcp[0], tcp[1]]);
    b.extend(seq.to_be_bytes());
    b.extend(ack.to_be_bytes());
    b.extend([5 << 4, out, 0, 0, 0, 0, 0, 0]);
    put_sum(&mut b, at, at + 16, pseudo);
    Frame::from_bytes(&b).ok_or(NoAnswer::NotIp)
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Whom to answer; see the module's head.
fn answerable(offender: &Frame, meta: &Meta) -> Result<IpAddr, NoAnswer> {
    let (head, l3) = (offender.head(), usize::from(meta.l3_off));
    let (src, dst): (IpAddr, IpAddr) = match meta.l3 {
        L3::V4 => {
            let [s, d] = two::<4>(head, l3 + 12)?;
            (s.into(), d.into())
        }
        L3::V6 => {
            let [s, d] = two::<16>(head, l3 + 8)?;
            (s.into(), d.into())
        }
        _ => return Err(NoAnswer::NotIp),
    };
    if meta.dst.is_group() || meta.src.is_group() || !is_one_host(src) || is_group(dst) {
        return Err(NoAnswer::Group);
    }
    if FragmentHeader::of(offender, meta).is_some_and(|f| f.offset > 0) {
        return Err(NoAnswer::Fragment);
    }
    let ty = head.get(usize::from(meta.l4_off)).copied().unwrap_or(0);
    let error = match meta.l4 {
        L4::Icmp => icmp_kind(ty) == Icmp::Error,
        L4::Icmp6 => icmp6_kind(ty) == Icmp::Error,
        // Too short to tell.
        L4::Other => meta.proto == if meta.l3 == L3::V6 { 58 } else { 1 },
        _ => false,
    };
    if error {
        Err(NoAnswer::IcmpError)
    } else {
        Ok(src)
    }
}

fn is_group(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_multicast(),
    }
}

/// RFC 1122 3.2.2: not zero, loopback, broadcast, multicast or class E.
fn is_one_host(a: IpAddr) -> bool {
    let odd = match a {
        IpAddr::V4(a) => a.octets()[0] == 0 || a.octets()[0] >= 240,
        IpAddr::V6(_) => false,
    };
    !(odd || a.is_unspecified() || a.is_loopback() || is_group(a))
}

/// Two fields of `N` bytes, one behind the other.
fn two<const N: usize>(b: &[u8], at: usize) -> Result<[[u8; N]; 2], NoAnswer> {
    let field = |at: usize| {
        b.get(at..)
            .and_then(|b| b.first_chunk::<N>())
            .copied()
            .ok_or(NoAnswer::NotIp)
    };
    Ok([field(at)?, field(at + N)?])
}

/// Type, code and second word.
fn message(cause: Cause, v6: bool) -> (u8, u8, u32) {
    match (cause, v6) {
        (Cause::Told(ty, code), _) => (ty, code, 0),
        (Cause::NetUnreachable, false) => (3, 0, 0),
        (Cause::HostUnreachable, false) => (3, 1, 0),
        (Cause::PortUnreachable, false) => (3, 3, 0),
        (Cause::TooBig(mtu), false) => (3, 4, mtu.min(0xffff)),
        // RFC 1812 5.2.7.1.
        (Cause::Prohibited, false) => (3, 13, 0),
        (Cause::TimeExceeded, false) => (11, 0, 0),
        (Cause::ReassemblyTime, false) => (11, 1, 0),
        // RFC 4443 3.1 to 3.3.
        (Cause::NetUnreachable, true) => (1, 0, 0),
        (Cause::Prohibited, true) => (1, 1, 0),
        (Cause::HostUnreachable, true) => (1, 3, 0),
        (Cause::PortUnreachable, true) => (1, 4, 0),
        (Cause::TooBig(mtu), true) => (2, 0, mtu),
        (Cause::TimeExceeded, true) => (3, 0, 0),
        (Cause::ReassemblyTime, true) => (3, 1, 0),
    }
}

/// Ethernet header back to the sender, with the tags and EtherType it came with.
fn link(offender: &Frame, meta: &Meta, mac: MacAddr) -> Result<Buffer, NoAnswer> {
    let mut b = Buffer::new();
    b.extend(meta.src.0);
    b.extend(mac.0);
    let tags = offender.head().get(12..usize::from(meta.l3_off));
    let tags = tags.filter(|t| t.len() <= 10).ok_or(NoAnswer::NotIp)?;
    b.extend(tags.iter().copied());
    Ok(b)
}

fn ipv4(b: &mut Buffer, tos: u8, proto: u8, addresses: [[u8; 4]; 2], payload: usize) {
    let at = b.len();
    b.extend([0x45, tos]);
    b.extend(((20 + payload) as u16).to_be_bytes());
    // Never fragmented, so it needs no identification (RFC 6864).
    b.extend([0, 0, 0x40, 0, TTL, proto, 0, 0]);
    b.extend(addresses.concat());
    put_sum(b, at, at + 10, 0);
}

/// Returns the sum of the pseudo header.
fn ipv6(b: &mut Buffer, next: u8, addresses: [[u8; 16]; 2], payload: usize) -> u64 {
    let [src, dst] = addresses;
    b.extend([0x60, 0, 0, 0]);
    b.extend((payload as u16).to_be_bytes());
    b.extend([next, TTL]);
    b.extend(src);
    b.extend(dst);
    csum::add(csum::add(u64::from(next) + payload as u64, &src), &dst)
}

fn icmp(b: &mut Buffer, ty: u8, code: u8, word: u32, quote: &[u8]) -> usize {
    let at = b.len();
    b.extend([ty, code, 0, 0]);
    b.extend(word.to_be_bytes());
    b.extend(quote.iter().copied());
    at
}

fn put_sum(b: &mut Buffer, from: usize, at: usize, pseudo: u64) {
    let sum = csum::finish(csum::add(pseudo, &b[from..]));
    b[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Buckets that hosts share by hash.
const HOST_BUCKETS: usize = 256;

/// Bounds the answers: in all, and to one host, so that one host can't use up what all have (RFC 1812 4.3.2.8,
/// RFC 4443 2.4(f)). Its memory doesn't grow.
#[derive(Debug)]
pub struct AnswerLimiter {
    all: Meter,
    hosts: Vec<Meter>,
    hasher: RandomState,
}

impl AnswerLimiter {
    /// Rates in answers per second.
    #[must_use]
    pub fn new(all: Rate, host: Rate) -> AnswerLimiter {
        AnswerLimiter {
            all: Meter::new(all),
            hosts: (0..HOST_BUCKETS).map(|_| Meter::new(host)).collect(),
            hasher: RandomState::default(),
        }
    }

    /// Whether an answer may be sent to the host; counts it if so. The host's own bound comes first: a host over it takes nothing
    /// from the others.
    pub fn admit(&self, now: Nanos, to: IpAddr) -> bool {
        let bucket = self.hasher.hash_one(to) as usize % HOST_BUCKETS;
        self.hosts[bucket].admit(now, 1) && self.all.admit(now, 1)
    }
}

#[cfg(test)]
mod tests;
