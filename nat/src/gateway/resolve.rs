//! ARP and neighbour discovery: frames that ask and answer, made and read.
//!
//! ARP by RFC 826 with the checks of RFC 5227 (a probe's sender is nobody); ND by RFC 4861: hop limit 255, the checksum right, options
//! of sound length. Anything else is ignored, as both ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use vswitch_core::frame::{Entry, Frame};
use vswitch_core::wire::{L3, L4, MacAddr, Meta, csum};

const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const ICMP6_NS: u8 = 135;
const ICMP6_NA: u8 = 136;
const OPT_SOURCE: u8 = 1;
const OPT_TARGET: u8 = 2;
/// Solicited and override flags of an advertisement.
const NA_SOLICITED: u8 = 0x40;
const NA_OVERRIDE: u8 = 0x20;

/// What an ARP or ND message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// It asks for `target`.
    pub(crate) asks: bool,
    /// Who speaks, with its MAC; `None` while it doesn't have its address yet (probe, duplicate address detection).
    pub(crate) sender: Option<(IpAddr, MacAddr)>,
    /// The address asked for; in an answer the address spoken for, with `sender` the same.
    pub(crate) target: IpAddr,
}

/// Reads an ARP or ND message.
pub(crate) fn read(e: &Entry) -> Option<Message> {
    match (e.meta.l3, e.meta.l4) {
        (L3::Arp, _) => read_arp(e.frame.head(), &e.meta),
        (L3::V6, L4::Icmp6) => read_nd(&e.frame, &e.meta),
        _ => None,
    }
}

/// Reads an ARP message; the parser has checked its length and types.
fn read_arp(head: &[u8], meta: &Meta) -> Option<Message> {
    let at = usize::from(meta.l3_off);
    let body = head.get(at..at + 28)?;
    let op = u16::from_be_bytes(*body.get(6..)?.first_chunk()?);
    let mac = MacAddr(*body.get(8..)?.first_chunk()?);
    let spa = Ipv4Addr::from(*body.get(14..)?.first_chunk::<4>()?);
    let tpa = Ipv4Addr::from(*body.get(24..)?.first_chunk::<4>()?);
    if mac.is_group() || op != ARP_REQUEST && op != ARP_REPLY {
        return None;
    }
    let known = !spa.is_unspecified() && !spa.is_broadcast() && !spa.is_multicast();
    Some(Message {
        asks: op == ARP_REQUEST,
        sender: known.then_some((spa.into(), mac)),
        target: if op == ARP_REQUEST { tpa } else { spa }.into(),
    })
}

/// Reads a neighbour solicitation or advertisement.
fn read_nd(frame: &Frame, meta: &Meta) -> Option<Message> {
    let head = frame.head();
    let (l3, l4) = (usize::from(meta.l3_off), usize::from(meta.l4_off));
    let end = meta.l3_end as usize;
    let body = head.get(l4..end)?;
    let kind = *body.first()?;
    let asks = kind == ICMP6_NS;
    let ip = head.get(l3..l3 + 40)?;
    if meta.l4 != L4::Icmp6 || !asks && kind != ICMP6_NA || ip[7] != 255 || body.get(1) != Some(&0)
    {
        return None;
    }
    if !frame.vnet.needs_csum && checksum(ip.get(8..40)?, body) != 0 {
        return None;
    }
    let source = Ipv6Addr::from(*ip.get(8..)?.first_chunk::<16>()?);
    let target = Ipv6Addr::from(*body.get(8..)?.first_chunk::<16>()?);
    if target.is_multicast() {
        return None;
    }
    let wanted = if asks { OPT_SOURCE } else { OPT_TARGET };
    let mac = link_address(body.get(24..)?, wanted)?;
    let speaker = if asks { source } else { target };
    let sender = match mac {
        Some(mac) if !speaker.is_unspecified() => Some((speaker.into(), mac)),
        // Without the option the frame's own source says it (RFC 4861 7.2.4 allows it to be left out of answers to unicast).
        None if !speaker.is_unspecified() && !meta.src.is_group() => {
            Some((speaker.into(), meta.src))
        }
        _ => None,
    };
    Some(Message {
        asks,
        sender,
        target: target.into(),
    })
}

/// The link-layer address option of this kind; `None` if the options are unsound.
fn link_address(mut options: &[u8], kind: u8) -> Option<Option<MacAddr>> {
    let mut found = None;
    while !options.is_empty() {
        let len = usize::from(*options.get(1)?) * 8;
        if len == 0 || len > options.len() {
            return None;
        }
        if options[0] == kind
            && let Some(mac) = options.get(2..8).and_then(|b| b.first_chunk())
        {
            found = Some(MacAddr(*mac)).filter(|m| !m.is_group());
        }
        options = options.get(len..)?;
    }
    Some(found)
}

fn checksum(addresses: &[u8], body: &[u8]) -> u16 {
    let sum = csum::add(body.len() as u64 + 58, addresses);
    csum::finish(csum::add(sum, body))
}

/// Asks who has `target`, from `own`; to `mac` if it is known, else to all. `None` if the families differ.
pub(crate) fn ask(own: (IpAddr, MacAddr), target: IpAddr, mac: Option<MacAddr>) -> Option<Frame> {
    match (own.0, target) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let dst = mac.unwrap_or(MacAddr::BROADCAST);
            arp(
                ARP_REQUEST,
                dst,
                (from, own.1),
                (to, mac.unwrap_or(MacAddr::ZERO)),
            )
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [.., a, b, c] = to.octets();
            let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
            let (ip_dst, mac_dst) = match mac {
                Some(mac) => (to, mac),
                None => (group, MacAddr([0x33, 0x33, 0xff, a, b, c])),
            };
            nd(
                [ICMP6_NS, 0, OPT_SOURCE],
                (from, own.1),
                (ip_dst, mac_dst),
                to,
            )
        }
        _ => None,
    }
}

/// Answers a request for our address `own` to who asked.
pub(crate) fn answer(
    own: (IpAddr, MacAddr),
    asked_by: Option<(IpAddr, MacAddr)>,
    frame_src: MacAddr,
) -> Option<Frame> {
    match own.0 {
        IpAddr::V4(ip) => {
            let (to, mac) = match asked_by {
                Some((IpAddr::V4(to), mac)) => (to, mac),
                _ => (Ipv4Addr::UNSPECIFIED, frame_src),
            };
            arp(ARP_REPLY, mac, (ip, own.1), (to, mac))
        }
        IpAddr::V6(ip) => match asked_by {
            Some((IpAddr::V6(to), mac)) => {
                let kind = [ICMP6_NA, NA_SOLICITED | NA_OVERRIDE, OPT_TARGET];
                nd(kind, (ip, own.1), (to, mac), ip)
            }
            // Duplicate address detection is answered to all nodes (RFC 4861 7.2.4).
            _ => {
                let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                let mac = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
                nd(
                    [ICMP6_NA, NA_OVERRIDE, OPT_TARGET],
                    (ip, own.1),
                    (all, mac),
                    ip,
                )
            }
        },
    }
}

fn arp(op: u16, dst: MacAddr, from: (Ipv4Addr, MacAddr), to: (Ipv4Addr, MacAddr)) -> Option<Frame> {
    let [o0, o1] = op.to_be_bytes();
    let mut b = [0u8; 60];
    let parts: [&[u8]; 8] = [
        &dst.0,
        &from.1.0,
        &[0x08, 0x06, 0, 1, 8, 0, 6, 4, o0, o1],
        &from.1.0,
        &from.0.octets(),
        &to.1.0,
        &to.0.octets(),
        &[],
    ];
    let mut at = 0;
    for part in parts {
        b.get_mut(at..at + part.len())?.copy_from_slice(part);
        at += part.len();
    }
    Frame::from_bytes(&b)
}

/// An ND message `[type, flags, option]` about `target`, with our MAC as its option.
fn nd(
    [kind, flags, option]: [u8; 3],
    from: (Ipv6Addr, MacAddr),
    to: (Ipv6Addr, MacAddr),
    target: Ipv6Addr,
) -> Option<Frame> {
    let mut body = [0u8; 32];
    body[0] = kind;
    body[4] = if kind == ICMP6_NA { 0x80 | flags } else { 0 };
    body[8..24].copy_from_slice(&target.octets());
    body[24] = option;
    body[25] = 1;
    body[26..32].copy_from_slice(&from.1.0);
    icmp6(from, to, &mut body)
}

/// An ICMPv6 message of the link: hop limit 255, its checksum filled in at offset 2.
pub(crate) fn icmp6(
    from: (Ipv6Addr, MacAddr),
    to: (Ipv6Addr, MacAddr),
    body: &mut [u8],
) -> Option<Frame> {
    let addresses = [from.0.octets(), to.0.octets()].concat();
    body.get_mut(2..4)?.fill(0);
    let sum = checksum(&addresses, body).to_be_bytes();
    body.get_mut(2..4)?.copy_from_slice(&sum);
    let mut f = Frame::new();
    f.append(&to.1.0);
    f.append(&from.1.0);
    f.append(&[0x86, 0xdd, 0x60, 0, 0, 0]);
    f.append(&u16::try_from(body.len()).ok()?.to_be_bytes());
    f.append(&[58, 255]);
    f.append(&addresses);
    f.append(body).then_some(f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_core::wire;

    const GW: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
    const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn ip(s: &str) -> IpAddr {
        s.parse().expect("an address")
    }

    fn read(f: &Frame) -> Option<Message> {
        let m = wire::parse(f.head(), f.len()).expect("whole header");
        match m.l3 {
            wire::L3::Arp => read_arp(f.head(), &m),
            _ => read_nd(f, &m),
        }
    }

    #[test]
    fn questions_and_answers_are_read_back() {
        for (own, host) in [("192.0.2.1", "192.0.2.9"), ("2001:db8::1", "2001:db8::9")] {
            for mac in [None, Some(HOST)] {
                let q = ask((ip(own), GW), ip(host), mac).expect("one family");
                assert_eq!(q.dst() == HOST, mac.is_some());
                let m = read(&q).expect("sound");
                assert!(m.asks);
                assert_eq!(m.sender, Some((ip(own), GW)));
                assert_eq!(m.target, ip(host));
                let a = answer((ip(host), HOST), m.sender, GW).expect("one family");
                assert_eq!(a.dst(), GW);
                let m = read(&a).expect("sound");
                assert!(!m.asks);
                assert_eq!(m.sender, Some((ip(host), HOST)));
            }
        }
        assert!(ask((ip("192.0.2.1"), GW), ip("::1"), None).is_none());
    }

    #[test]
    fn a_damaged_message_is_ignored() {
        let good = ask((ip("2001:db8::1"), GW), ip("2001:db8::9"), None).expect("v6");
        for i in 14..good.len() {
            let mut bytes = good.to_vec();
            bytes[i] ^= 0x41;
            let f = Frame::from_bytes(&bytes).expect("fits");
            // The IPv6 header's class and flow label aren't covered by any check.
            if let Some(m) = read(&f) {
                assert!((14..18).contains(&i), "byte {i}: {m:?}");
            }
        }
        let mut long = good.to_vec();
        long[79] = 9;
        assert!(read(&Frame::from_bytes(&long).expect("fits")).is_none());
    }
}
