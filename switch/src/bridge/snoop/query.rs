//! The switch's own queries, where no router asks: IGMPv3 (RFC 3376 4.1) and MLDv2 (RFC 3810 5.1) general queries.
//!
//! The IPv4 source is 0.0.0.0, so that other snooping switches don't take us for a router and a real querier wins any election
//! (RFC 4541 2.1.1 1). The IPv6 source has to be link-local; it is made of the MAC.

use crate::frame::Frame;
use crate::wire::csum;

/// Locally administered MAC of the querier ("vsw").
const MAC: [u8; 6] = [0x02, 0x76, 0x73, 0x77, 0x00, 0x02];
/// Time to answer: 10 s (RFC 3376 8.3), in units of 100 ms for IGMP, of 1 ms for MLD.
const IGMP_RESPONSE: u8 = 100;
const MLD_RESPONSE: u16 = 10_000;

/// A general query; `secs` is the time until the next one.
pub(in crate::bridge) fn general(v6: bool, secs: u32) -> Option<Frame> {
    // Querier's robustness 2; interval code up to 127 s as it is.
    let tail = [2, secs.min(127) as u8, 0, 0];
    let bytes = if v6 { mld(tail) } else { igmp(tail) };
    Frame::from_bytes(&bytes)
}

fn igmp(tail: [u8; 4]) -> Vec<u8> {
    let mut body = vec![0x11, IGMP_RESPONSE, 0, 0, 0, 0, 0, 0];
    body.extend(tail);
    put_csum(&mut body, 2, 0);
    // Internetwork control, TTL 1, router alert option (RFC 2113).
    let mut ip = vec![0x46, 0xc0, 0, 36, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0];
    ip.extend([224, 0, 0, 1, 0x94, 4, 0, 0]);
    put_csum(&mut ip, 10, 0);
    ethernet([0x01, 0, 0x5e, 0, 0, 1], [0x08, 0x00], &[&ip, &body])
}

fn mld(tail: [u8; 4]) -> Vec<u8> {
    let mut body = vec![130, 0, 0, 0];
    body.extend(MLD_RESPONSE.to_be_bytes());
    body.extend([0; 2 + 16]);
    body.extend(tail);
    let [a, b, c, d, e, f] = MAC;
    let mut addresses = vec![0xfe, 0x80, 0, 0, 0, 0, 0, 0];
    addresses.extend([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    addresses.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let sum = csum::add(body.len() as u64 + 58, &addresses);
    put_csum(&mut body, 2, sum);
    // Hop-by-hop options: router alert for MLD (RFC 2711), padded.
    let options = [58, 0, 5, 2, 0, 0, 1, 0];
    let mut ip = vec![0x60, 0, 0, 0, 0, (8 + body.len()) as u8, 0, 1];
    ip.extend(addresses);
    ethernet(
        [0x33, 0x33, 0, 0, 0, 1],
        [0x86, 0xdd],
        &[&ip, &options, &body],
    )
}

fn put_csum(bytes: &mut [u8], at: usize, sum: u64) {
    let sum = csum::finish(csum::add(sum, bytes)).to_be_bytes();
    bytes[at..at + 2].copy_from_slice(&sum);
}

fn ethernet(dst: [u8; 6], ty: [u8; 2], parts: &[&[u8]]) -> Vec<u8> {
    let mut f = Vec::from(dst);
    f.extend(MAC);
    f.extend(ty);
    for p in parts {
        f.extend_from_slice(p);
    }
    f
}
