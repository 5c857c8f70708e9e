//! IP headers of what the backend makes for containers.

use std::net::IpAddr;
use vswitch_core::wire::csum;

const ETH: usize = 14;

/// Where L4 begins, and what its pseudo header sums to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct L4At {
    pub(crate) at: usize,
    pub(crate) pseudo: u64,
}

/// Writes an Ethernet header without addresses and an IP header, for `payload` bytes of L4. `None`: no room, or addresses of
/// two families.
pub(crate) fn ip_header(
    head: &mut [u8],
    from: IpAddr,
    to: IpAddr,
    proto: u8,
    ttl: u8,
    payload: usize,
) -> Option<L4At> {
    head.get_mut(..12)?.fill(0);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            head.get_mut(12..14)?.copy_from_slice(&[8, 0]);
            let ip: &mut [u8; 20] = head.get_mut(ETH..)?.first_chunk_mut()?;
            let total = u16::try_from(20 + payload).ok()?.to_be_bytes();
            // Don't fragment: segments fit, and need no identification then (RFC 6864 4.1).
            *ip = [
                0x45, 0, total[0], total[1], 0, 0, 0x40, 0, ttl, proto, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0,
            ];
            ip[12..16].copy_from_slice(&from.octets());
            ip[16..20].copy_from_slice(&to.octets());
            let sum = csum::finish(csum::add(0, ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            let pseudo = csum::add(u64::from(proto) + payload as u64, ip.get(12..20)?);
            Some(L4At {
                at: ETH + 20,
                pseudo,
            })
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            head.get_mut(12..14)?.copy_from_slice(&[0x86, 0xdd]);
            let ip: &mut [u8; 40] = head.get_mut(ETH..)?.first_chunk_mut()?;
            let len = u16::try_from(payload).ok()?.to_be_bytes();
            ip[..8].copy_from_slice(&[0x60, 0, 0, 0, len[0], len[1], proto, ttl]);
            ip[8..24].copy_from_slice(&from.octets());
            ip[24..40].copy_from_slice(&to.octets());
            let pseudo = csum::add(u64::from(proto) + payload as u64, ip.get(8..40)?);
            Some(L4At {
                at: ETH + 40,
                pseudo,
            })
        }
        _ => None,
    }
}

/// Has an IPv4 packet be fragmented where it must: takes "don't fragment" away and gives it an identification.
pub(crate) fn may_fragment(head: &mut [u8], id: u16) -> Option<()> {
    if head.get(12..14)? != [8, 0] {
        return Some(());
    }
    let ip: &mut [u8; 20] = head.get_mut(ETH..)?.first_chunk_mut()?;
    ip[4..6].copy_from_slice(&id.to_be_bytes());
    ip[6] = 0;
    ip[10..12].fill(0);
    let sum = csum::finish(csum::add(0, ip));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    Some(())
}
