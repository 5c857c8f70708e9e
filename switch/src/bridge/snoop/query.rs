//! The switch's own queries, where no router asks: IGMPv3 (RFC 3376 4.1) and MLDv2 (RFC 3810 5.1), general ones by time and
//! one for the group after a leave, so that the other members at the port can object.
//!
//! The IPv4 source is 0.0.0.0, so that other snooping switches don't take us for a router and a real querier wins any election
//! (RFC 4541 2.1.1 1). The IPv6 source has to be link-local; it is made of the MAC.

use crate::frame::Frame;
use crate::wire::csum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Locally administered MAC of the querier ("vsw").
const MAC: [u8; 6] = [0x02, 0x76, 0x73, 0x77, 0x00, 0x02];
/// Time to answer in seconds, of a general and of a group-specific query (RFC 3376 8.3, 8.8).
const RESPONSE: u16 = 10;
const LAST_MEMBER: u16 = 1;

/// A general query; `secs` is the time until the next one.
pub(in crate::bridge) fn general(v6: bool, secs: u32) -> Option<Frame> {
    let group = if v6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    query(group, RESPONSE, secs)
}

/// Asks for the members of one group.
pub(in crate::bridge) fn specific(group: IpAddr) -> Option<Frame> {
    query(group, LAST_MEMBER, 125)
}

/// `group` is unspecified in general queries.
fn query(group: IpAddr, response: u16, secs: u32) -> Option<Frame> {
    // Querier's robustness 2; interval code up to 127 s as it is; no sources.
    let tail = [2, secs.min(127) as u8, 0, 0];
    let bytes = match group {
        IpAddr::V4(g) => igmp(g, response, tail),
        IpAddr::V6(g) => mld(g, response, tail),
    };
    Frame::from_bytes(&bytes)
}

fn igmp(group: Ipv4Addr, response: u16, tail: [u8; 4]) -> Vec<u8> {
    // In units of 100 ms.
    let mut body = vec![0x11, response as u8 * 10, 0, 0];
    body.extend(group.octets());
    body.extend(tail);
    put_csum(&mut body, 2, 0);
    let to = if group.is_unspecified() {
        Ipv4Addr::new(224, 0, 0, 1)
    } else {
        group
    };
    // Internetwork control, TTL 1, router alert option (RFC 2113).
    let mut ip = vec![0x46, 0xc0, 0, 36, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0];
    ip.extend(to.octets());
    ip.extend([0x94, 4, 0, 0]);
    put_csum(&mut ip, 10, 0);
    let [_, b, c, d] = to.octets();
    ethernet([0x01, 0, 0x5e, b & 0x7f, c, d], [0x08, 0x00], &[&ip, &body])
}

fn mld(group: Ipv6Addr, response: u16, tail: [u8; 4]) -> Vec<u8> {
    let mut body = vec![130, 0, 0, 0];
    // In milliseconds.
    body.extend((response * 1000).to_be_bytes());
    body.extend([0; 2]);
    body.extend(group.octets());
    body.extend(tail);
    let [a, b, c, d, e, f] = MAC;
    let mut addresses = vec![0xfe, 0x80, 0, 0, 0, 0, 0, 0];
    addresses.extend([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    let to = if group.is_unspecified() {
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
    } else {
        group
    };
    addresses.extend(to.octets());
    let sum = csum::add(body.len() as u64 + 58, &addresses);
    put_csum(&mut body, 2, sum);
    // Hop-by-hop options: router alert for MLD (RFC 2711), padded.
    let options = [58, 0, 5, 2, 0, 0, 1, 0];
    let mut ip = vec![0x60, 0, 0, 0, 0, (8 + body.len()) as u8, 0, 1];
    ip.extend(addresses);
    let [.., a, b, c, d] = to.octets();
    ethernet(
        [0x33, 0x33, a, b, c, d],
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
