//! Frames made from fields, for tracing: Ethernet with at most one VLAN tag, IPv4 or IPv6, and the header of a protocol.
//!
//! Lengths and checksums are right, so that nothing but what was asked for decides.

use std::net::IpAddr;
use vswitch_core::wire::{MacAddr, csum};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// Bits of TCP's flags, as they are abbreviated.
const FLAGS: [(char, u8); 6] = [('F', 1), ('S', 2), ('R', 4), ('P', 8), ('A', 16), ('U', 32)];

/// What a frame is made of.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    pub(super) macs: (MacAddr, MacAddr),
    pub(super) vlan: Option<u16>,
    pub(super) ends: (IpAddr, IpAddr),
    pub(super) proto: u8,
    pub(super) ports: (u16, u16),
    pub(super) icmp: (u8, u8),
    pub(super) flags: u8,
    pub(super) ttl: u8,
    pub(super) dont_fragment: bool,
    pub(super) payload: usize,
}

/// TCP flags from their letters.
pub(super) fn flags(text: &str) -> Option<u8> {
    let bit = |c: char| FLAGS.iter().find(|(l, _)| *l == c).map(|(_, b)| b);
    text.chars().try_fold(0, |all, c| Some(all | bit(c)?))
}

/// The frame; `None` if it would be longer than a frame can be.
pub(super) fn frame(f: &Fields) -> Option<Vec<u8>> {
    let mut l4 = transport(f);
    l4.resize(l4.len() + f.payload, 0);
    sum(f, &mut l4)?;
    let mut out = Vec::with_capacity(64 + l4.len());
    out.extend(f.macs.1.0);
    out.extend(f.macs.0.0);
    if let Some(vid) = f.vlan {
        out.extend([0x81, 0x00]);
        out.extend(vid.to_be_bytes());
    }
    match f.ends {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = u16::try_from(20 + l4.len()).ok()?;
            let fragment = if f.dont_fragment { 0x40 } else { 0 };
            let mut ip = vec![0x45, 0];
            ip.extend(len.to_be_bytes());
            ip.extend([0, 1, fragment, 0, f.ttl, f.proto, 0, 0]);
            ip.extend(src.octets());
            ip.extend(dst.octets());
            let sum = csum::finish(csum::add(0, &ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            out.extend([0x08, 0x00]);
            out.extend(ip);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let len = u16::try_from(l4.len()).ok()?;
            out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            out.extend(len.to_be_bytes());
            out.extend([f.proto, f.ttl]);
            out.extend(src.octets());
            out.extend(dst.octets());
        }
        _ => return None,
    }
    out.extend(l4);
    Some(out)
}

fn transport(f: &Fields) -> Vec<u8> {
    let mut l4 = Vec::new();
    match f.proto {
        TCP | UDP | SCTP => {
            l4.extend(f.ports.0.to_be_bytes());
            l4.extend(f.ports.1.to_be_bytes());
        }
        ICMP | ICMP6 => {
            l4.extend([f.icmp.0, f.icmp.1, 0, 0]);
            // The identifier of a query.
            l4.extend(f.ports.0.to_be_bytes());
            l4.extend([0, 1]);
        }
        _ => {}
    }
    match f.proto {
        TCP => {
            // Sequence and acknowledgement number 1, window 65,535.
            l4.extend([0, 0, 0, 1, 0, 0, 0, u8::from(f.flags & 16 != 0)]);
            l4.extend([5 << 4, f.flags, 0xff, 0xff, 0, 0, 0, 0]);
        }
        UDP => {
            l4.extend((8 + f.payload as u16).to_be_bytes());
            l4.extend([0, 0]);
        }
        // INIT (RFC 9260 3.3.2) of one stream each way. Its checksum is the receiver's affair.
        SCTP => {
            l4.extend([0; 8]);
            l4.extend([
                1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1,
            ]);
        }
        _ => {}
    }
    l4
}

/// Writes the transport header's checksum.
fn sum(f: &Fields, l4: &mut [u8]) -> Option<()> {
    let at = match f.proto {
        TCP => 16,
        UDP => 6,
        ICMP | ICMP6 => 2,
        _ => return Some(()),
    };
    let sum = match f.proto {
        ICMP => 0,
        _ => csum::pseudo(f.ends, f.proto, l4.len()),
    };
    // RFC 768: a sum of zero is sent as all ones.
    let sum = match csum::finish(csum::add(sum, l4)) {
        0 if f.proto == UDP => 0xffff,
        sum => sum,
    };
    l4.get_mut(at..at + 2)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_core::wire::{self, L4};

    fn fields(proto: u8, v6: bool) -> Fields {
        let ends = if v6 {
            ("2001:db8::1", "2001:db8::2")
        } else {
            ("192.0.2.1", "192.0.2.2")
        };
        Fields {
            macs: (MacAddr([2; 6]), MacAddr([4; 6])),
            vlan: None,
            ends: (ends.0.parse().unwrap(), ends.1.parse().unwrap()),
            proto,
            ports: (1, 2),
            icmp: (if v6 { 128 } else { 8 }, 0),
            flags: flags("SA").unwrap(),
            ttl: 64,
            dont_fragment: true,
            payload: 11,
        }
    }

    #[test]
    fn frames_are_read_as_what_they_are() {
        let protocols = [
            (TCP, L4::Tcp, 20),
            (UDP, L4::Udp, 8),
            (SCTP, L4::Sctp, 32),
            (ICMP, L4::Icmp, 8),
        ];
        for (proto, l4, header) in protocols {
            for v6 in [false, true] {
                let (proto, l4) = match (proto, v6) {
                    (ICMP, true) => (ICMP6, L4::Icmp6),
                    other => (other.0, l4),
                };
                let bytes = frame(&fields(proto, v6)).unwrap();
                let m = wire::parse(&bytes, bytes.len()).unwrap();
                assert_eq!((m.l4, m.proto), (l4, proto));
                let ip = if v6 { 40 } else { 20 };
                assert_eq!(m.l3_end as usize, 14 + ip + header + 11, "{proto}");
                assert_eq!(bytes.len(), m.l3_end as usize);
            }
        }
        let mut tagged = fields(UDP, false);
        tagged.vlan = Some(7);
        let bytes = frame(&tagged).unwrap();
        let m = wire::parse(&bytes, bytes.len()).unwrap();
        assert_eq!(m.tag.map(wire::Tag::vid), Some(7));
        tagged.payload = 70_000;
        assert_eq!(frame(&tagged), None);
        assert_eq!(flags("X"), None);
    }

    #[test]
    fn checksums_are_right() {
        for (proto, v6) in [(TCP, false), (UDP, true), (ICMP6, true), (ICMP, false)] {
            let f = fields(proto, v6);
            let bytes = frame(&f).unwrap();
            let l4 = &bytes[if v6 { 54 } else { 34 }..];
            let mut sum = 0;
            if proto != ICMP {
                sum = u64::from(proto) + l4.len() as u64;
                for ip in [f.ends.0, f.ends.1] {
                    sum = match ip {
                        IpAddr::V4(a) => csum::add(sum, &a.octets()),
                        IpAddr::V6(a) => csum::add(sum, &a.octets()),
                    };
                }
            }
            assert_eq!(csum::finish(csum::add(sum, l4)), 0, "{proto}");
        }
    }
}
