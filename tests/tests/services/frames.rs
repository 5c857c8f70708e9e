//! UDP and ICMPv6 in frames, taken apart and put together by `pnet_packet`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet_packet::Packet;
use pnet_packet::ethernet::{EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::{self, Ipv4Packet, MutableIpv4Packet};
use pnet_packet::ipv6::{Ipv6Packet, MutableIpv6Packet};
use pnet_packet::udp::{self, MutableUdpPacket, UdpPacket};
use vswitch_core::wire::MacAddr;

const ETHERNET: usize = 14;

/// What of a frame is for a service.
#[derive(Debug)]
pub(crate) enum Inside {
    Udp {
        from: IpAddr,
        from_port: u16,
        to_port: u16,
        payload: Vec<u8>,
    },
    Icmpv6 {
        from: Ipv6Addr,
        hop_limit: u8,
        message: Vec<u8>,
    },
}

/// Source MAC and content.
pub(crate) fn open(frame: &[u8]) -> Option<(MacAddr, Inside)> {
    let ethernet = EthernetPacket::new(frame)?;
    let src = MacAddr(frame.get(6..12)?.try_into().ok()?);
    let datagram = |from: IpAddr, bytes: &[u8]| {
        let udp = UdpPacket::new(bytes)?;
        let len = usize::from(udp.get_length()).checked_sub(8)?;
        Some(Inside::Udp {
            from,
            from_port: udp.get_source(),
            to_port: udp.get_destination(),
            payload: udp.payload().get(..len)?.to_vec(),
        })
    };
    let inside = match ethernet.get_ethertype() {
        EtherTypes::Ipv4 => {
            let ip = Ipv4Packet::new(ethernet.payload())?;
            if ip.get_next_level_protocol() != IpNextHeaderProtocols::Udp {
                return None;
            }
            datagram(ip.get_source().into(), ip.payload())?
        }
        EtherTypes::Ipv6 => {
            let ip = Ipv6Packet::new(ethernet.payload())?;
            match ip.get_next_header() {
                IpNextHeaderProtocols::Udp => datagram(ip.get_source().into(), ip.payload())?,
                IpNextHeaderProtocols::Icmpv6 => Inside::Icmpv6 {
                    from: ip.get_source(),
                    hop_limit: ip.get_hop_limit(),
                    message: ip.payload().to_vec(),
                },
                _ => return None,
            }
        }
        _ => return None,
    };
    Some((src, inside))
}

fn ethernet(from: MacAddr, to: MacAddr, v6: bool, length: usize) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + length];
    let mut e = MutableEthernetPacket::new(&mut frame).expect("room");
    e.set_ethertype(if v6 {
        EtherTypes::Ipv6
    } else {
        EtherTypes::Ipv4
    });
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame
}

fn put_udp(
    bytes: &mut [u8],
    ports: (u16, u16),
    payload: &[u8],
    v6: bool,
    from: IpAddr,
    to: IpAddr,
) {
    let mut u = MutableUdpPacket::new(bytes).expect("room");
    u.set_source(ports.0);
    u.set_destination(ports.1);
    u.set_length(u16::try_from(8 + payload.len()).expect("fits"));
    u.set_payload(payload);
    let sum = match (v6, from, to) {
        (false, IpAddr::V4(a), IpAddr::V4(b)) => udp::ipv4_checksum(&u.to_immutable(), &a, &b),
        (true, IpAddr::V6(a), IpAddr::V6(b)) => udp::ipv6_checksum(&u.to_immutable(), &a, &b),
        other => panic!("mixed families: {other:?}"),
    };
    u.set_checksum(sum);
}

pub(crate) fn udp4(
    (from_mac, from): (MacAddr, Ipv4Addr),
    (to_mac, to): (MacAddr, Ipv4Addr),
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let length = 28 + payload.len();
    let mut frame = ethernet(from_mac, to_mac, false, length);
    let mut ip = MutableIpv4Packet::new(&mut frame[ETHERNET..]).expect("room");
    ip.set_version(4);
    ip.set_header_length(5);
    ip.set_total_length(u16::try_from(length).expect("fits"));
    ip.set_ttl(64);
    ip.set_next_level_protocol(IpNextHeaderProtocols::Udp);
    ip.set_source(from);
    ip.set_destination(to);
    ip.set_checksum(ipv4::checksum(&ip.to_immutable()));
    let at = ETHERNET + 20;
    put_udp(
        &mut frame[at..],
        ports,
        payload,
        false,
        from.into(),
        to.into(),
    );
    frame
}

fn ip6(
    (from_mac, from): (MacAddr, Ipv6Addr),
    (to_mac, to): (MacAddr, Ipv6Addr),
    udp: bool,
    length: usize,
) -> Vec<u8> {
    let mut frame = ethernet(from_mac, to_mac, true, 40 + length);
    let mut ip = MutableIpv6Packet::new(&mut frame[ETHERNET..]).expect("room");
    ip.set_version(6);
    ip.set_payload_length(u16::try_from(length).expect("fits"));
    ip.set_hop_limit(255);
    ip.set_next_header(if udp {
        IpNextHeaderProtocols::Udp
    } else {
        IpNextHeaderProtocols::Icmpv6
    });
    ip.set_source(from);
    ip.set_destination(to);
    frame
}

pub(crate) fn udp6(
    from: (MacAddr, Ipv6Addr),
    to: (MacAddr, Ipv6Addr),
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = ip6(from, to, true, 8 + payload.len());
    let at = ETHERNET + 40;
    put_udp(
        &mut frame[at..],
        ports,
        payload,
        true,
        from.1.into(),
        to.1.into(),
    );
    frame
}

/// An ICMPv6 message that has its checksum.
pub(crate) fn icmpv6(
    from: (MacAddr, Ipv6Addr),
    to: (MacAddr, Ipv6Addr),
    message: &[u8],
) -> Vec<u8> {
    let mut frame = ip6(from, to, false, message.len());
    frame[ETHERNET + 40..].copy_from_slice(message);
    frame
}

/// Where a multicast address goes (RFC 2464 7).
pub(crate) fn group_mac(address: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = address.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}
