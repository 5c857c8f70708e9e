//! Datagrams of the gateway's services: taken out of frames, and put into them.
//!
//! Requests are few, so they are copied; answers are short, so they are summed here.

use super::resolve;
use crate::verify::l4_sum_is_right;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use vswitch_core::frame::{Entry, Frame};
use vswitch_core::wire::{L4, MacAddr, csum};

const UDP: u8 = 17;
/// Hop limit and TTL of what we send.
const TTL: u8 = 64;

/// A request.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) payload: Vec<u8>,
}

/// Destination port of a UDP packet that isn't a fragment.
pub(super) fn port_of(e: &Entry) -> Option<u16> {
    if e.meta.l4 != L4::Udp || e.meta.fragment {
        return None;
    }
    let udp = e.frame.head().get(usize::from(e.meta.l4_off)..)?;
    Some(u16::from_be_bytes(*udp.get(2..)?.first_chunk()?))
}

/// Type of an ICMPv6 message.
pub(super) fn icmp6_type(e: &Entry) -> Option<u8> {
    if e.meta.l4 != L4::Icmp6 || e.meta.fragment {
        return None;
    }
    let at = usize::from(e.meta.l4_off);
    e.frame.head().get(at).copied()
}

/// Reads a datagram; `None` if its checksum or length is wrong.
pub(super) fn read(e: &Entry) -> Option<Datagram> {
    port_of(e)?;
    let (src, dst) = e.meta.addresses(e.frame.head())?;
    let all = e.frame.to_vec();
    let udp = all.get(usize::from(e.meta.l4_off)..e.meta.l3_end as usize)?;
    let field = |at: usize| Some(u16::from_be_bytes(*udp.get(at..)?.first_chunk()?));
    let (from, to, len, sum) = (field(0)?, field(2)?, field(4)?, field(6)?);
    let unsummed = src.is_ipv4() && sum == 0;
    if !unsummed && !e.frame.vnet.needs_csum && !l4_sum_is_right(&e.frame, &e.meta) {
        return None;
    }
    Some(Datagram {
        from: (src, from).into(),
        to: (dst, to).into(),
        payload: udp.get(8..len.into())?.to_vec(),
    })
}

/// Reads an ICMPv6 message: source, hop limit, message. `None` if its checksum is wrong.
pub(super) fn read_icmp6(e: &Entry) -> Option<(Ipv6Addr, u8, Vec<u8>)> {
    icmp6_type(e)?;
    let (IpAddr::V6(src), _) = e.meta.addresses(e.frame.head())? else {
        return None;
    };
    if !e.frame.vnet.needs_csum && !l4_sum_is_right(&e.frame, &e.meta) {
        return None;
    }
    let all = e.frame.to_vec();
    let hop_limit = *all.get(usize::from(e.meta.l3_off) + 7)?;
    let message = all.get(usize::from(e.meta.l4_off)..e.meta.l3_end as usize)?;
    Some((src, hop_limit, message.to_vec()))
}

/// A frame with a datagram. `None` if it doesn't fit or the families differ.
pub(super) fn udp(
    (from_mac, from): (MacAddr, SocketAddr),
    (to_mac, to): (MacAddr, SocketAddr),
    payload: &[u8],
) -> Option<Frame> {
    let len = u16::try_from(8 + payload.len()).ok()?;
    let mut packet = Vec::with_capacity(48 + payload.len());
    let ethertype: [u8; 2] = match (from.ip(), to.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            packet.extend([0x45, 0]);
            packet.extend(len.checked_add(20)?.to_be_bytes());
            packet.extend([0, 0, 0, 0, TTL, UDP, 0, 0]);
            packet.extend(a.octets());
            packet.extend(b.octets());
            let sum = csum::finish(csum::add(0, &packet));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            [0x08, 0x00]
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(len.to_be_bytes());
            packet.extend([UDP, TTL]);
            packet.extend(a.octets());
            packet.extend(b.octets());
            [0x86, 0xdd]
        }
        _ => return None,
    };
    let at = packet.len();
    let addresses = if from.is_ipv4() { at - 8 } else { at - 32 };
    let pseudo = u64::from(len) + u64::from(UDP);
    let pseudo = csum::add(pseudo, packet.get(addresses..)?);
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    // RFC 768: a sum of zero is sent as all ones.
    let sum = match csum::finish(csum::add(pseudo, packet.get(at..)?)) {
        0 => 0xffff,
        sum => sum,
    };
    packet
        .get_mut(at + 6..at + 8)?
        .copy_from_slice(&sum.to_be_bytes());
    let mut frame = Frame::new();
    frame.append(&to_mac.0);
    frame.append(&from_mac.0);
    frame.append(&ethertype);
    frame.append(&packet).then_some(frame)
}

/// A frame with an ICMPv6 message of the link.
pub(super) fn icmp6(
    from: (MacAddr, Ipv6Addr),
    to: (MacAddr, Ipv6Addr),
    mut message: Vec<u8>,
) -> Option<Frame> {
    resolve::icmp6((from.1, from.0), (to.1, to.0), &mut message)
}

/// Where a multicast address goes (RFC 2464 7).
pub(super) fn group_mac(address: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = address.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_core::frame::Verdict;
    use vswitch_core::wire;

    #[test]
    fn a_datagram_is_read_back_and_a_damaged_one_is_not() {
        for (a, b) in [
            ("192.0.2.1:53", "192.0.2.9:4000"),
            ("[2001:db8::1]:53", "[2001:db8::9]:4000"),
        ] {
            let (from, to) = (a.parse().unwrap(), b.parse().unwrap());
            let macs = (MacAddr([2; 6]), MacAddr([4; 6]));
            for payload in [&b"odd"[..], b"even", b""] {
                let frame = udp((macs.0, from), (macs.1, to), payload).unwrap();
                let bytes = frame.to_vec();
                for damaged in [
                    None,
                    Some(bytes.len() - 1),
                    Some(bytes.len() - payload.len() - 8),
                ] {
                    let mut bytes = bytes.clone();
                    if let Some(at) = damaged {
                        bytes[at] ^= 1;
                    }
                    let frame = Frame::from_bytes(&bytes).unwrap();
                    let meta = wire::parse(frame.head(), frame.len()).unwrap();
                    let e = Entry {
                        frame,
                        meta,
                        verdict: Verdict::Next,
                    };
                    let read = read(&e);
                    assert_eq!(read.is_some(), damaged.is_none(), "{a} {damaged:?}");
                    if let Some(d) = read {
                        assert_eq!((d.from, d.to, &d.payload[..]), (from, to, payload));
                    }
                }
            }
        }
    }
}
