//! Whether an L4 checksum is right; for packets that the gateway answers or trusts, not for those it forwards.

use vswitch_core::frame::Frame;
use vswitch_core::wire::{L3, L4, Meta, csum};

/// Sums a whole packet's L4, with the pseudo header unless it is ICMP.
pub(crate) fn l4_sum_is_right(frame: &Frame, meta: &Meta) -> bool {
    let (at, end) = (usize::from(meta.l4_off), meta.l3_end as usize);
    let (head, tail) = (frame.head(), frame.tail());
    let first = head.get(at..end.min(head.len())).unwrap_or_default();
    let rest = tail
        .get(..end.saturating_sub(head.len()))
        .unwrap_or_default();
    // Behind an odd number of bytes, words begin with their second half.
    let rest_sum = csum::fold(csum::add(0, rest));
    let rest_sum = if first.len() % 2 == 0 {
        rest_sum
    } else {
        rest_sum.swap_bytes()
    };
    let l3 = usize::from(meta.l3_off);
    let addrs = match meta.l3 {
        _ if meta.l4 == L4::Icmp => None,
        L3::V4 => head.get(l3 + 12..l3 + 20),
        _ => head.get(l3 + 8..l3 + 40),
    };
    let pseudo = addrs.map_or(0, |a| {
        csum::add(end.saturating_sub(at) as u64 + u64::from(meta.proto), a)
    });
    csum::fold(csum::add(pseudo + u64::from(rest_sum), first)) == 0xffff
}
