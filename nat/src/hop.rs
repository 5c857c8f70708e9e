//! What a router changes in packets beside addresses: the hop count, and the MSS that TCP announces.

use crate::rewrite::left_to_offload;
use vswitch_core::frame::Frame;
use vswitch_core::wire::{L3, L4, Meta, csum};

/// What decrementing found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Ttl {
    /// One less now.
    Left,
    /// It was 0 or 1: the packet goes no further and is unchanged.
    Expired,
}

/// Takes one from the TTL or hop limit of an IPv4 or IPv6 packet. A frame that is neither counts as expired.
pub fn decrement_ttl(frame: &mut Frame, meta: &Meta) -> Ttl {
    let Some(ip) = frame.head_mut().get_mut(usize::from(meta.l3_off)..) else {
        return Ttl::Expired;
    };
    match meta.l3 {
        L3::V4 => {
            let Some(h) = ip.first_chunk_mut::<20>() else {
                return Ttl::Expired;
            };
            if h[8] <= 1 {
                return Ttl::Expired;
            }
            let old = u16::from_be_bytes([h[8], h[9]]);
            h[8] -= 1;
            let diff = csum::diff16(old, old - 0x100);
            let sum = csum::update(u16::from_be_bytes([h[10], h[11]]), diff);
            h[10..12].copy_from_slice(&sum.to_be_bytes());
            Ttl::Left
        }
        L3::V6 => match ip.get_mut(7) {
            Some(hops) if *hops > 1 => {
                *hops -= 1;
                Ttl::Left
            }
            _ => Ttl::Expired,
        },
        _ => Ttl::Expired,
    }
}

const SYN: u8 = 2;

/// Lowers the maximum segment size that a SYN announces to `mss`; tells whether it did. Without the option nothing changes: then
/// the peer assumes 536 or 1,220 (RFC 9293 3.7.1), which fits any path we'd clamp for.
pub fn clamp_mss(frame: &mut Frame, meta: &Meta, mss: u16) -> bool {
    if meta.l4 != L4::Tcp {
        return false;
    }
    let partial = left_to_offload(frame, meta);
    let (at, end) = (usize::from(meta.l4_off), meta.l3_end as usize);
    let head = frame.head_mut();
    let end = end.min(head.len());
    let Some(tcp) = head.get_mut(at..end) else {
        return false;
    };
    let Some((offset, flags)) = tcp.get(12).zip(tcp.get(13)) else {
        return false;
    };
    let header = usize::from(offset >> 4) * 4;
    if flags & SYN == 0 || header > tcp.len() {
        return false;
    }
    let Some(value_at) = find_mss(tcp.get(20..header).unwrap_or_default()).map(|at| at + 20) else {
        return false;
    };
    let [a, b] = [tcp[value_at], tcp[value_at + 1]];
    if u16::from_be_bytes([a, b]) <= mss {
        return false;
    }
    let [c, d] = mss.to_be_bytes();
    [tcp[value_at], tcp[value_at + 1]] = [c, d];
    // The pseudo header knows nothing of options.
    if !partial {
        // At an odd offset the value's bytes are in two words, each in the other's place; sums don't mind (RFC 1071 2.B).
        let diff = if value_at % 2 == 0 {
            csum::diff16(u16::from_be_bytes([a, b]), mss)
        } else {
            csum::diff16(u16::from_be_bytes([b, a]), mss.swap_bytes())
        };
        let sum = csum::update(u16::from_be_bytes([tcp[16], tcp[17]]), diff);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    }
    true
}

/// Where the value of the MSS option is.
fn find_mss(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match options.get(at)? {
            0 => return None,
            1 => at += 1,
            kind => {
                let len = usize::from(*options.get(at + 1)?);
                if len < 2 || at + len > options.len() {
                    return None;
                }
                if (*kind, len) == (2, 4) {
                    return Some(at + 2);
                }
                at += len;
            }
        }
    }
}
