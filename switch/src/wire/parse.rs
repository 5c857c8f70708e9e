//! One pass over the headers of a frame.
//!
//! Ethernet (with any number of 802.1Q/802.1ad tags up to two), then IPv4 or IPv6 with its extension
//! headers, then TCP, UDP, SCTP or ICMP ports. A bridge forwards what it doesn't understand, so a damaged
//! L3 header isn't an error here: the frame is [`L3::Other`] and only who needs L3 drops it.

use super::MacAddr;
use std::net::IpAddr;

/// An EtherType (IEEE 802 numbers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: EtherType = EtherType(0x0800);
    /// ARP.
    pub const ARP: EtherType = EtherType(0x0806);
    /// IPv6.
    pub const IPV6: EtherType = EtherType(0x86dd);
    /// 802.1Q customer tag.
    pub const VLAN: EtherType = EtherType(0x8100);
    /// 802.1ad service tag.
    pub const QINQ: EtherType = EtherType(0x88a8);
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Tag protocol: [`EtherType::VLAN`] or [`EtherType::QINQ`].
    pub tpid: EtherType,
    /// Priority (3 bits), DEI (1 bit), VLAN identifier (12 bits).
    pub tci: u16,
}

impl Tag {
    /// VLAN identifier, 0 to 4095; 0 is a priority tag.
    #[must_use]
    pub fn vid(self) -> u16 {
        self.tci & 0xfff
    }
}

/// Network layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum L3 {
    /// Neither IPv4, IPv6 nor ARP, or damaged.
    #[default]
    Other,
    /// IPv4 with a sound header.
    V4,
    /// IPv6 with sound headers.
    V6,
    /// ARP for IPv4 over Ethernet, 28 bytes present.
    Arp,
}

/// Transport layer of a packet that isn't a later fragment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum L4 {
    /// None known, a later fragment, or damaged.
    #[default]
    Other,
    /// TCP, 20 bytes of header present.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP.
    Icmp,
    /// ICMPv6.
    Icmp6,
}

/// What one pass over a frame's headers found. Offsets count from the frame's first byte.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// Destination MAC.
    pub dst: MacAddr,
    /// Source MAC.
    pub src: MacAddr,
    /// Outermost VLAN tag, if any.
    pub tag: Option<Tag>,
    /// Number of tags, counted up to 3: the third and what follows are not looked at.
    pub tags: u8,
    /// VLAN the bridge put the frame into; 0 before that.
    pub vid: u16,
    /// EtherType after the tags.
    pub ethertype: EtherType,
    /// Network layer.
    pub l3: L3,
    /// Transport layer.
    pub l4: L4,
    /// Where the network header begins.
    pub l3_off: u16,
    /// Where the transport header begins; valid if `l4` isn't `Other`.
    pub l4_off: u16,
    /// IP protocol number of the transport header; valid for V4 and V6.
    pub proto: u8,
    /// The packet is a fragment (first or later).
    pub fragment: bool,
    /// End of the IP packet by its own length field; what follows is Ethernet padding.
    pub l3_end: u32,
}

impl Meta {
    /// Source and destination of an IPv4 or IPv6 packet; `head` is the frame that was parsed.
    #[must_use]
    pub fn addresses(&self, head: &[u8]) -> Option<(IpAddr, IpAddr)> {
        let ip = head.get(usize::from(self.l3_off)..)?;
        Some(match self.l3 {
            L3::V4 => (
                IpAddr::from(*ip.get(12..)?.first_chunk::<4>()?),
                IpAddr::from(*ip.get(16..)?.first_chunk::<4>()?),
            ),
            L3::V6 => (
                IpAddr::from(*ip.get(8..)?.first_chunk::<16>()?),
                IpAddr::from(*ip.get(24..)?.first_chunk::<16>()?),
            ),
            _ => return None,
        })
    }
}

const ETH_LEN: usize = 14;

/// Length of the Ethernet header with its tags (two at most): what isn't part of the MTU.
#[must_use]
pub fn l2_len(head: &[u8]) -> usize {
    let tag = |at: usize| matches!(be16(head, at), Some(0x8100 | 0x88a8));
    match (tag(12), tag(16)) {
        (false, _) => ETH_LEN,
        (true, false) => ETH_LEN + 4,
        (true, true) => ETH_LEN + 8,
    }
}

fn be16(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*b.get(at..)?.first_chunk()?))
}

/// Parses a frame whose headers are in `head`, `len` bytes long in all. `None` if it is shorter than an Ethernet header.
#[must_use]
pub fn parse(head: &[u8], len: usize) -> Option<Meta> {
    let eth = head.first_chunk::<ETH_LEN>()?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *eth;
    let mut m = Meta {
        dst: MacAddr([d0, d1, d2, d3, d4, d5]),
        src: MacAddr([s0, s1, s2, s3, s4, s5]),
        ethertype: EtherType(u16::from_be_bytes([t0, t1])),
        ..Meta::default()
    };
    let mut off = ETH_LEN;
    for depth in 0..2 {
        if m.ethertype != EtherType::VLAN && m.ethertype != EtherType::QINQ {
            break;
        }
        let (Some(tci), Some(next)) = (be16(head, off), be16(head, off + 2)) else {
            break;
        };
        if depth == 0 {
            m.tag = Some(Tag {
                tpid: m.ethertype,
                tci,
            });
        }
        m.tags += 1;
        m.ethertype = EtherType(next);
        off += 4;
    }
    if m.ethertype == EtherType::VLAN || m.ethertype == EtherType::QINQ {
        m.tags += 1;
    }
    m.l3_off = off as u16;
    m.l3_end = len as u32;
    match m.ethertype {
        EtherType::IPV4 => drop(ipv4(&mut m, head, len, off)),
        EtherType::IPV6 => drop(ipv6(&mut m, head, len, off)),
        // Hardware Ethernet, protocol IPv4, lengths 6 and 4 (RFC 826).
        EtherType::ARP
            if head.get(off..off + 6) == Some(&[0, 1, 8, 0, 6, 4]) && head.len() >= off + 28 =>
        {
            m.l3 = L3::Arp;
        }
        _ => {}
    }
    Some(m)
}

fn ipv4(m: &mut Meta, head: &[u8], len: usize, off: usize) -> Option<()> {
    let ip = head.get(off..)?;
    let fixed = ip.first_chunk::<20>()?;
    let ihl = usize::from(fixed[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if fixed[0] >> 4 != 4 || ihl < 20 || ip.len() < ihl || total < ihl || off + total > len {
        return None;
    }
    m.l3 = L3::V4;
    m.l3_end = (off + total) as u32;
    m.proto = fixed[9];
    let frag = u16::from_be_bytes([fixed[6], fixed[7]]);
    // More-fragments flag or an offset.
    m.fragment = frag & 0x3fff != 0;
    if frag & 0x1fff == 0 {
        transport(m, head, off + ihl);
    }
    Some(())
}

fn ipv6(m: &mut Meta, head: &[u8], len: usize, off: usize) -> Option<()> {
    let ip = head.get(off..)?;
    let fixed = ip.first_chunk::<40>()?;
    let payload = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    if fixed[0] >> 4 != 6 || off + 40 + payload > len {
        return None;
    }
    let end = off + 40 + payload;
    let (mut next, mut at) = (fixed[6], off + 40);
    // RFC 8200 4.1: at most seven kinds of extension header; more than eight in a row is no honest packet.
    for _ in 0..8 {
        let (hdr_len, is_fragment) = match next {
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6.
            0 | 43 | 60 | 135 | 139 | 140 => ((usize::from(*head.get(at + 1)?) + 1) * 8, false),
            // Authentication header counts in 4-byte units (RFC 4302).
            51 => ((usize::from(*head.get(at + 1)?) + 2) * 4, false),
            44 => (8, true),
            _ => break,
        };
        if at + hdr_len > end || at + hdr_len > head.len() {
            return None;
        }
        if is_fragment {
            m.fragment = true;
            if be16(head, at + 2)? & 0xfff8 != 0 {
                m.l3 = L3::V6;
                m.l3_end = end as u32;
                m.proto = *head.get(at)?;
                return Some(());
            }
        }
        next = *head.get(at)?;
        at += hdr_len;
    }
    m.l3 = L3::V6;
    m.l3_end = end as u32;
    m.proto = next;
    transport(m, head, at);
    Some(())
}

fn transport(m: &mut Meta, head: &[u8], at: usize) {
    let end = (m.l3_end as usize).min(head.len());
    let room = end.saturating_sub(at);
    let (l4, need) = match (m.proto, m.l3) {
        (6, _) => (L4::Tcp, 20),
        (17, _) => (L4::Udp, 8),
        (132, _) => (L4::Sctp, 12),
        (1, L3::V4) => (L4::Icmp, 8),
        (58, L3::V6) => (L4::Icmp6, 4),
        _ => return,
    };
    if room >= need {
        m.l4 = l4;
        m.l4_off = at as u16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eth(ty: u16) -> Vec<u8> {
        let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        f.extend(ty.to_be_bytes());
        f
    }

    fn udp4() -> Vec<u8> {
        let mut p = vec![
            0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2,
        ];
        p.extend([0, 1, 0, 2, 0, 12, 0, 0, 1, 2, 3, 4]);
        p
    }

    #[test]
    fn ipv4_udp_under_two_tags() {
        let mut f = eth(0x88a8);
        f.extend([0x20, 5, 0x81, 0, 0, 7, 8, 0]);
        f.extend(udp4());
        let m = parse(&f, f.len()).expect("long enough");
        assert_eq!(
            m.tag,
            Some(Tag {
                tpid: EtherType::QINQ,
                tci: 0x2005
            })
        );
        assert_eq!((m.l3, m.l4, m.l3_off, m.l4_off), (L3::V4, L4::Udp, 22, 42));
    }

    #[test]
    fn every_truncation_is_survived() {
        let mut f = eth(0x86dd);
        f.extend([0x60, 0, 0, 0, 0, 32, 0, 64]);
        f.extend([0; 32]);
        f.extend([44, 0, 0, 0, 0, 0, 0, 0]);
        f.extend([6, 0, 0, 1, 0, 0, 0, 9]);
        f.extend([0; 16]);
        let whole = parse(&f, f.len()).expect("long enough");
        assert_eq!((whole.l3, whole.fragment, whole.proto), (L3::V6, true, 6));
        for n in 0..f.len() {
            let m = parse(&f[..n], n);
            assert_eq!(m.is_some(), n >= 14);
            assert!(m.is_none_or(|m| m.l3 != L3::V6));
        }
    }

    #[test]
    fn later_fragment_has_no_transport() {
        let mut p = udp4();
        p[7] = 1;
        let mut f = eth(0x0800);
        f.extend(p);
        let m = parse(&f, f.len()).expect("long enough");
        assert_eq!((m.l3, m.l4, m.fragment), (L3::V4, L4::Other, true));
    }
}
