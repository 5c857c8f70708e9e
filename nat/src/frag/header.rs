//! What a fragment says of itself.

use vswitch_core::frame::Frame;
use vswitch_core::wire::{L3, Meta};

/// Place of a fragment in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// First byte of the datagram that it carries.
    pub offset: u32,
    /// Bytes of the datagram that it carries.
    pub len: u32,
    /// More follow.
    pub more: bool,
}

impl FragmentHeader {
    /// Of a fragment; `None` for a whole packet, also for an IPv6 *atomic* fragment, first and last in one, which has nothing to do
    /// with others of the same identification (RFC 6946).
    #[must_use]
    pub fn of(frame: &Frame, meta: &Meta) -> Option<FragmentHeader> {
        if !meta.fragment {
            return None;
        }
        let ip = frame.head().get(usize::from(meta.l3_off)..)?;
        let total = meta.l3_end.checked_sub(meta.l3_off.into())?;
        let h = match meta.l3 {
            L3::V4 => ipv4(ip, total),
            L3::V6 => ipv6(ip, total),
            _ => None,
        }?;
        (h.offset > 0 || h.more).then_some(h)
    }
}

fn ipv4(ip: &[u8], total: u32) -> Option<FragmentHeader> {
    let h: &[u8; 20] = ip.first_chunk()?;
    let word = u16::from_be_bytes([h[6], h[7]]);
    Some(FragmentHeader {
        id: u16::from_be_bytes([h[4], h[5]]).into(),
        offset: u32::from(word & 0x1fff) * 8,
        len: total.checked_sub(u32::from(h[0] & 0xf) * 4)?,
        more: word & 0x2000 != 0,
    })
}

/// Walks to the fragment header as `vswitch_core::wire::parse` does.
fn ipv6(ip: &[u8], total: u32) -> Option<FragmentHeader> {
    let (mut next, mut at) = (*ip.get(6)?, 40);
    for _ in 0..8 {
        let len = match next {
            0 | 43 | 60 | 135 | 139 | 140 => (usize::from(*ip.get(at + 1)?) + 1) * 8,
            51 => (usize::from(*ip.get(at + 1)?) + 2) * 4,
            44 => {
                let &[_, _, o1, o0, a, b, c, d] = ip.get(at..)?.first_chunk()?;
                let word = u16::from_be_bytes([o1, o0]);
                return Some(FragmentHeader {
                    id: u32::from_be_bytes([a, b, c, d]),
                    offset: (word & 0xfff8).into(),
                    len: total.checked_sub(at as u32 + 8)?,
                    more: word & 1 != 0,
                });
            }
            _ => return None,
        };
        next = *ip.get(at)?;
        at += len;
    }
    None
}
