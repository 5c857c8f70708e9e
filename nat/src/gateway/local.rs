//! Packets for the gateway itself: echo requests are answered in place.

use std::net::IpAddr;
use vswitch_core::frame::{DropReason, Entry};
use vswitch_core::wire::{L3, L4, csum};

const ECHO_REQUEST: u8 = 8;
const ECHO6_REQUEST: u8 = 128;
/// TTL of our answers (RFC 1700's recommended default).
const TTL: u8 = 64;

/// Turns an echo request to one of our addresses into its reply (RFC 792, RFC 4443 4.2). Errors: it is something else.
pub(super) fn echo(e: &mut Entry) -> Result<(), DropReason> {
    const OTHER: DropReason = DropReason::Consumed;
    let (l3, l4) = (usize::from(e.meta.l3_off), usize::from(e.meta.l4_off));
    if e.meta.fragment {
        return Err(OTHER);
    }
    let (request, reply) = match e.meta.l4 {
        L4::Icmp => (ECHO_REQUEST, 0),
        L4::Icmp6 => (ECHO6_REQUEST, 129),
        _ => return Err(OTHER),
    };
    let (src, dst) = e
        .meta
        .addresses(e.frame.head())
        .ok_or(DropReason::BadPacket)?;
    let body = e
        .frame
        .head_mut()
        .get_mut(l4..)
        .ok_or(DropReason::BadPacket)?;
    if body.first_chunk::<2>() != Some(&[request, 0]) {
        return Err(OTHER);
    }
    // Only the type changes (RFC 1624), addresses just change places.
    let sum = body.get(2..4).and_then(|b| b.first_chunk()).copied();
    let sum = u16::from_be_bytes(sum.ok_or(DropReason::BadPacket)?);
    let [was, is] = [request, reply].map(|t| u16::from_be_bytes([t, 0]));
    let sum = csum::finish(u64::from(!sum) + u64::from(!was) + u64::from(is));
    body[0] = reply;
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let ip = e
        .frame
        .head_mut()
        .get_mut(l3..l4)
        .ok_or(DropReason::BadPacket)?;
    match (e.meta.l3, src, dst) {
        (L3::V4, IpAddr::V4(src), IpAddr::V4(dst)) => {
            let old = ip.get(8).copied().ok_or(DropReason::BadPacket)?;
            let sum = ip.get(10..12).and_then(|b| b.first_chunk()).copied();
            let sum = u16::from_be_bytes(sum.ok_or(DropReason::BadPacket)?);
            let [was, is] = [old, TTL].map(|t| u16::from_be_bytes([t, 0]));
            let sum = csum::finish(u64::from(!sum) + u64::from(!was) + u64::from(is));
            ip[8] = TTL;
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            ip[12..16].copy_from_slice(&dst.octets());
            ip[16..20].copy_from_slice(&src.octets());
        }
        (L3::V6, IpAddr::V6(src), IpAddr::V6(dst)) => {
            ip[7] = TTL;
            ip[8..24].copy_from_slice(&dst.octets());
            ip[24..40].copy_from_slice(&src.octets());
        }
        _ => return Err(DropReason::BadPacket),
    }
    Ok(())
}
