//! Tuples: what names one direction of a connection.
//!
//! Zone, protocol, addresses and ports in 40 bytes without padding, so that comparing and hashing are five words. IPv4 addresses
//! are held as IPv4-mapped IPv6 addresses; a bit tells them from IPv6 packets that carry such addresses.
//!
//! What stands for ports where there are none: an ICMP query has its identifier as the port of the side that *asks*
//! (`src_port` of the request, `dst_port` of the reply), the other port is 0, and the kind of query and which of the two it is are
//! part of the tuple. So a translated identifier is a translated source port, and a request from the other side with the same
//! identifier is another connection. Other protocols have ports 0.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use vswitch_core::wire::{L3, L4, Meta};

/// Protocol numbers (IANA) with a meaning here.
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMP6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Which way a packet goes, as seen from the connection's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dir {
    /// The way of the first packet.
    Original = 0,
    /// The other way.
    Reply = 1,
}

impl Dir {
    /// The other way.
    #[must_use]
    pub fn flip(self) -> Dir {
        match self {
            Dir::Original => Dir::Reply,
            Dir::Reply => Dir::Original,
        }
    }

    pub(super) fn of(bit: u32) -> Dir {
        if bit & 1 == 0 {
            Dir::Original
        } else {
            Dir::Reply
        }
    }
}

/// Bit of `kind`: IPv6.
const V6: u8 = 1;
/// Bit of `kind`: the answer to an ICMP query.
const ANSWER: u8 = 2;
/// Where the class of an ICMP query begins in `kind`; 0 is none.
const CLASS_SHIFT: u8 = 2;

/// One direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Tuple {
    src: [u64; 2],
    dst: [u64; 2],
    /// Source port, or identifier of an ICMP request.
    pub src_port: u16,
    /// Destination port, or identifier of an ICMP reply.
    pub dst_port: u16,
    /// Network or router the addresses belong to: the same address may live in two.
    pub zone: u16,
    /// IP protocol number.
    pub proto: u8,
    kind: u8,
}

fn words(ip: IpAddr) -> [u64; 2] {
    let bits = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    [(bits >> 64) as u64, bits as u64]
}

impl Tuple {
    /// The tuple of a packet from `src` to `dst`; both of one family, or else the packet is taken for IPv6. For ICMP this is an
    /// echo request whose identifier is the port of `src`.
    #[must_use]
    pub fn new(zone: u16, proto: u8, src: SocketAddr, dst: SocketAddr) -> Tuple {
        let v6 = src.is_ipv6() || dst.is_ipv6();
        let class = u8::from(matches!(proto, proto::ICMP | proto::ICMP6));
        Tuple {
            src: words(src.ip()),
            dst: words(dst.ip()),
            src_port: src.port(),
            dst_port: if class == 0 { dst.port() } else { 0 },
            zone,
            proto,
            kind: class << CLASS_SHIFT | u8::from(v6),
        }
    }

    /// The tuple of a parsed frame. `None`: not IP, a later fragment, damaged, or an ICMP message that isn't a query.
    #[must_use]
    pub fn of(head: &[u8], meta: &Meta, zone: u16) -> Option<Tuple> {
        let l3 = usize::from(meta.l3_off);
        let (src, dst) = match meta.l3 {
            L3::V4 => {
                let a: &[u8; 8] = head.get(l3 + 12..)?.first_chunk()?;
                let [s0, s1, s2, s3, d0, d1, d2, d3] = *a;
                (
                    IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
                    IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
                )
            }
            L3::V6 => {
                let s: [u8; 16] = *head.get(l3 + 8..)?.first_chunk()?;
                let d: [u8; 16] = *head.get(l3 + 24..)?.first_chunk()?;
                (IpAddr::V6(Ipv6Addr::from(s)), IpAddr::V6(Ipv6Addr::from(d)))
            }
            L3::Arp | L3::Other => return None,
        };
        let l4 = match meta.l4 {
            // A later fragment has no ports.
            L4::Other if meta.fragment => return None,
            L4::Other => &[],
            _ => {
                let end = (meta.l3_end as usize).min(head.len());
                head.get(usize::from(meta.l4_off)..end)?
            }
        };
        Tuple::from_parts(zone, meta.proto, src, dst, l4)
    }

    /// The tuple of a packet whose IP header is read already; `l4` are the first bytes of its transport header, as many as there are
    /// (an ICMP error may quote as few as eight).
    #[must_use]
    pub fn from_parts(zone: u16, proto: u8, src: IpAddr, dst: IpAddr, l4: &[u8]) -> Option<Tuple> {
        let v6 = src.is_ipv6();
        if dst.is_ipv6() != v6 {
            return None;
        }
        let mut t = Tuple {
            src: words(src),
            dst: words(dst),
            src_port: 0,
            dst_port: 0,
            zone,
            proto,
            kind: u8::from(v6),
        };
        match proto {
            proto::TCP | proto::UDP | proto::SCTP => {
                let &[s0, s1, d0, d1] = l4.first_chunk()?;
                t.src_port = u16::from_be_bytes([s0, s1]);
                t.dst_port = u16::from_be_bytes([d0, d1]);
            }
            proto::ICMP | proto::ICMP6 => {
                let &[kind, _, _, _, i0, i1] = l4.first_chunk()?;
                let (class, answer) = query(proto == proto::ICMP6, kind)?;
                if (proto == proto::ICMP6) != v6 {
                    return None;
                }
                let id = u16::from_be_bytes([i0, i1]);
                t.kind |= class << CLASS_SHIFT;
                if answer {
                    t.kind |= ANSWER;
                    t.dst_port = id;
                } else {
                    t.src_port = id;
                }
            }
            _ => {}
        }
        Some(t)
    }

    /// The same as seen from the other side.
    #[must_use]
    pub fn reversed(&self) -> Tuple {
        let answer = if self.kind >> CLASS_SHIFT == 0 {
            0
        } else {
            ANSWER
        };
        Tuple {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind ^ answer,
            ..*self
        }
    }

    /// Source address.
    #[must_use]
    pub fn src(&self) -> IpAddr {
        self.ip(self.src)
    }

    /// Destination address.
    #[must_use]
    pub fn dst(&self) -> IpAddr {
        self.ip(self.dst)
    }

    fn ip(&self, w: [u64; 2]) -> IpAddr {
        if self.is_v6() {
            IpAddr::V6(Ipv6Addr::from_bits(
                u128::from(w[0]) << 64 | u128::from(w[1]),
            ))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(w[1] as u32))
        }
    }

    /// Whether the packet is IPv6.
    #[must_use]
    pub fn is_v6(&self) -> bool {
        self.kind & V6 != 0
    }

    /// Whether it is the answer to an ICMP query.
    #[must_use]
    pub fn is_icmp_answer(&self) -> bool {
        self.kind & ANSWER != 0
    }

    /// With another source address and port.
    #[must_use]
    pub fn with_src(self, ip: IpAddr, port: u16) -> Tuple {
        Tuple {
            src: words(ip),
            src_port: port,
            ..self
        }
    }

    /// With another destination address and port.
    #[must_use]
    pub fn with_dst(self, ip: IpAddr, port: u16) -> Tuple {
        Tuple {
            dst: words(ip),
            dst_port: port,
            ..self
        }
    }

    /// In another zone.
    #[must_use]
    pub fn in_zone(self, zone: u16) -> Tuple {
        Tuple { zone, ..self }
    }

    /// Source and destination as on the wire; those of IPv4 are the first 8 bytes.
    pub(crate) fn wire_addresses(&self) -> [u8; 32] {
        let mut out = [0; 32];
        if self.is_v6() {
            let words = [self.src[0], self.src[1], self.dst[0], self.dst[1]];
            for (bytes, word) in out.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *bytes = word.to_be_bytes();
            }
        } else {
            out[..4].copy_from_slice(&(self.src[1] as u32).to_be_bytes());
            out[4..8].copy_from_slice(&(self.dst[1] as u32).to_be_bytes());
        }
        out
    }

    /// Everything, as words to hash.
    pub(super) fn to_words(self) -> [u64; 5] {
        let rest = u64::from(self.src_port) << 48
            | u64::from(self.dst_port) << 32
            | u64::from(self.zone) << 16
            | u64::from(self.proto) << 8
            | u64::from(self.kind);
        [self.src[0], self.src[1], self.dst[0], self.dst[1], rest]
    }

    /// Whom to charge a connection to: the IPv4 source address, or the /64 of the IPv6 source, which one host can fill with
    /// addresses; and the zone.
    pub(super) fn charged(&self) -> [u64; 2] {
        let family = u64::from(self.is_v6()) << 16;
        let low = if self.is_v6() {
            self.src[0]
        } else {
            self.src[1]
        };
        [low, family | u64::from(self.zone)]
    }
}

/// Class of an ICMP query and whether the message is the answer; `None` for all other messages.
fn query(v6: bool, kind: u8) -> Option<(u8, bool)> {
    Some(match (v6, kind) {
        // Echo (RFC 792, RFC 4443).
        (false, 8) | (true, 128) => (1, false),
        (false, 0) | (true, 129) => (1, true),
        // Timestamp, information (RFC 792), address mask (RFC 950).
        (false, 13) => (2, false),
        (false, 14) => (2, true),
        (false, 15) => (3, false),
        (false, 16) => (3, true),
        (false, 17) => (4, false),
        (false, 18) => (4, true),
        // Extended echo (RFC 8335).
        (false, 42) | (true, 160) => (5, false),
        (false, 43) | (true, 161) => (5, true),
        _ => return None,
    })
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (src, dst) = (
            SocketAddr::new(self.src(), self.src_port),
            SocketAddr::new(self.dst(), self.dst_port),
        );
        write!(f, "zone {} proto {} {src} > {dst}", self.zone, self.proto)
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        if self.is_icmp_answer() {
            f.write_str(" answer")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_core::wire::parse;

    fn ipv4(proto: u8, frag: u16, l4: &[u8]) -> Vec<u8> {
        let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
        f.extend((20 + l4.len() as u16).to_be_bytes());
        f.extend([0, 0]);
        f.extend(frag.to_be_bytes());
        f.extend([64, proto, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2]);
        f.extend(l4);
        f
    }

    fn of(f: &[u8]) -> Option<Tuple> {
        Tuple::of(f, &parse(f, f.len())?, 7)
    }

    #[test]
    fn ports_are_read_and_reversed() {
        let f = ipv4(17, 0, &[0x12, 0x34, 0, 53, 0, 8, 0, 0]);
        let t = of(&f).expect("UDP");
        let (src, dst) = ("192.0.2.1:4660", "198.51.100.2:53");
        let want = Tuple::new(
            7,
            17,
            src.parse().expect("addr"),
            dst.parse().expect("addr"),
        );
        assert_eq!(t, want);
        assert_eq!(t.to_string(), format!("zone 7 proto 17 {src} > {dst}"));
        let back = t.reversed();
        assert_eq!((back.src(), back.src_port), (t.dst(), 53));
        assert_eq!(back.reversed(), t);
        assert_ne!(t.in_zone(8), t);
        assert_eq!(size_of::<Tuple>(), 40);
    }

    #[test]
    fn an_icmp_identifier_is_the_port_of_who_asks() {
        let ask = of(&ipv4(1, 0, &[8, 0, 0, 0, 0xab, 0xcd, 0, 1])).expect("echo");
        let answer = of(&ipv4(1, 0, &[0, 0, 0, 0, 0xab, 0xcd, 0, 1])).expect("echo reply");
        assert_eq!((ask.src_port, ask.dst_port), (0xabcd, 0));
        assert_eq!((answer.src_port, answer.dst_port), (0, 0xabcd));
        assert_eq!(
            ask.reversed(),
            answer.with_src(ask.dst(), 0).with_dst(ask.src(), 0xabcd)
        );
        // A request from there with the same identifier is another connection.
        let (src, dst) = (ask.dst(), ask.src());
        let theirs = ask.with_src(src, 0xabcd).with_dst(dst, 0);
        assert_ne!(theirs, ask.reversed());
        // Errors and neighbour discovery have no tuple.
        for kind in [3, 4, 5, 9, 10, 11, 12] {
            assert_eq!(of(&ipv4(1, 0, &[kind, 0, 0, 0, 0, 0, 0, 0])), None);
        }
        let v6 = |kind| {
            let ip = |s: &str| s.parse().expect("addr");
            let (a, b) = (ip("2001:db8::1"), ip("2001:db8::2"));
            Tuple::from_parts(0, 58, a, b, &[kind, 0, 0, 0, 0, 9, 0, 0])
        };
        assert!(v6(128).is_some_and(|t| t.is_v6() && t.src_port == 9));
        assert_eq!(v6(135), None);
    }

    #[test]
    fn fragments_and_stumps_have_none() {
        let udp = [0, 1, 0, 2, 0, 8, 0, 0];
        assert!(of(&ipv4(17, 0x2000, &udp)).is_some(), "the first has ports");
        assert_eq!(of(&ipv4(17, 1, &udp)), None);
        assert_eq!(of(&ipv4(6, 0, &udp)), None, "TCP header cut short");
        assert!(of(&ipv4(47, 0, &[])).is_some_and(|t| t.src_port == 0 && t.proto == 47));
        let f = ipv4(17, 0, &udp);
        let meta = parse(&f, f.len()).expect("whole");
        for n in 0..f.len() - 4 {
            assert_eq!(Tuple::of(&f[..n], &meta, 0), None, "{n} bytes");
        }
    }

    #[test]
    fn mapped_addresses_stay_ipv6() {
        let v4 = Tuple::new(
            0,
            17,
            "192.0.2.1:1".parse().expect("addr"),
            "192.0.2.2:2".parse().expect("addr"),
        );
        let v6 = Tuple::new(
            0,
            17,
            "[::ffff:192.0.2.1]:1".parse().expect("addr"),
            "[::ffff:192.0.2.2]:2".parse().expect("addr"),
        );
        assert_ne!(v4, v6);
        assert!(v6.src().is_ipv6());
    }
}
