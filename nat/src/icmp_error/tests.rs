//! Translated errors against the same errors encoded anew, with the new addresses inside and out, by etherparse.

use super::*;
use etherparse::PacketBuilder;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};
use vswitch_core::wire::parse;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Tcp,
    Udp,
    Sctp,
    Request,
    Reply,
    Gre,
}

#[derive(Clone, Debug)]
struct Case {
    kind: Kind,
    inner: Vec<u8>,
    /// Bytes of L4 that are quoted.
    cut: usize,
    error: usize,
    word: u32,
    vlan: bool,
}

type Ends = (Endpoint, Endpoint);

macro_rules! ip {
    ($link:expr, $src:expr, $dst:expr) => {
        match ($src, $dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => $link.ipv4(s.octets(), d.octets(), 33),
            (IpAddr::V6(s), IpAddr::V6(d)) => $link.ipv6(s.octets(), d.octets(), 33),
            _ => unreachable!("one family"),
        }
    };
}

fn encode_inner(kind: Kind, (src, dst): Ends, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let v4 = src.addr.is_ipv4();
    let ip = ip!(link, src.addr, dst.addr);
    let mut out = vec![];
    match kind {
        Kind::Tcp => ip
            .tcp(src.port, dst.port, 1, 2)
            .write(&mut out, payload)
            .unwrap(),
        Kind::Udp => ip.udp(src.port, dst.port).write(&mut out, payload).unwrap(),
        Kind::Request if v4 => ip
            .icmpv4_echo_request(src.port, 9)
            .write(&mut out, payload)
            .unwrap(),
        Kind::Request => ip
            .icmpv6_echo_request(src.port, 9)
            .write(&mut out, payload)
            .unwrap(),
        Kind::Reply if v4 => ip
            .icmpv4_echo_reply(dst.port, 9)
            .write(&mut out, payload)
            .unwrap(),
        Kind::Reply => ip
            .icmpv6_echo_reply(dst.port, 9)
            .write(&mut out, payload)
            .unwrap(),
        Kind::Gre => ip.write(&mut out, 47.into(), payload).unwrap(),
        Kind::Sctp => {
            let mut sctp = [src.port.to_be_bytes(), dst.port.to_be_bytes()].concat();
            sctp.extend([1, 2, 3, 4, 0, 0, 0, 0]);
            sctp.extend(payload);
            let crc = crc32c::of(&sctp);
            sctp[8..12].copy_from_slice(&crc.to_le_bytes());
            ip.write(&mut out, 132.into(), &sctp).unwrap();
        }
    }
    out.split_off(14)
}

const ERRORS4: [(u8, u8); 5] = [(3, 1), (3, 3), (3, 4), (11, 0), (12, 0)];
const ERRORS6: [(u8, u8); 5] = [(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)];

fn encode(c: &Case, word: u32, (src, dst): (IpAddr, IpAddr), quote: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let word = word.to_be_bytes();
    let mut out = vec![];
    let ip = if c.vlan {
        ip!(link.single_vlan(9.try_into().unwrap()), src, dst)
    } else {
        ip!(link, src, dst)
    };
    if src.is_ipv4() {
        let (ty, code) = ERRORS4[c.error];
        ip.icmpv4_raw(ty, code, word)
            .write(&mut out, quote)
            .unwrap();
    } else {
        let (ty, code) = ERRORS6[c.error];
        ip.icmpv6_raw(ty, code, word)
            .write(&mut out, quote)
            .unwrap();
    }
    out
}

fn quote_of(c: &Case, ends: Ends) -> Vec<u8> {
    let mut inner = encode_inner(c.kind, ends, &c.inner);
    inner.truncate(if ends.0.addr.is_ipv4() { 20 } else { 40 } + 8 + c.cut);
    inner
}

fn frame_of(bytes: &[u8]) -> (Frame, Meta) {
    let f = Frame::from_bytes(bytes).expect("fits");
    let m = parse(f.head(), f.len()).expect("long enough");
    (f, m)
}

/// ICMP's idle port and what has no ports.
fn tidy(kind: Kind, (mut src, mut dst): Ends) -> Ends {
    match kind {
        Kind::Request => dst.port = 0,
        Kind::Reply => src.port = 0,
        Kind::Gre => (src.port, dst.port) = (0, 0),
        _ => {}
    }
    (src, dst)
}

fn case() -> impl Strategy<Value = Case> {
    let kinds = vec![
        Kind::Tcp,
        Kind::Udp,
        Kind::Sctp,
        Kind::Request,
        Kind::Reply,
        Kind::Gre,
    ];
    (
        prop::sample::select(kinds),
        prop::collection::vec(any::<u8>(), 0..300),
        prop_oneof![0..14usize, 0..400usize],
        0..5usize,
        0..2000u32,
        any::<bool>(),
    )
        .prop_map(|(kind, mut inner, cut, error, word, vlan)| {
            // RFC 792 wants 8 bytes of L4.
            inner.extend([0; 8]);
            // A checksum of which only a part is quoted says nothing, and stays.
            let cut = match (kind, cut) {
                (Kind::Tcp, 9) => 8,
                (Kind::Sctp, 1..4) => 0,
                _ => cut,
            };
            Case {
                kind,
                inner,
                cut,
                error,
                word,
                vlan,
            }
        })
}

fn ends(n: usize) -> impl Strategy<Value = Vec<Endpoint>> {
    let one = (any::<[u8; 16]>(), any::<u16>());
    (any::<bool>(), prop::collection::vec(one, n)).prop_map(|(six, all)| {
        all.into_iter()
            .map(|(b, port)| {
                let v4 = Ipv4Addr::new(b[0], b[1], b[2], b[3]);
                let addr = if six {
                    Ipv6Addr::from(b).into()
                } else {
                    v4.into()
                };
                Endpoint::new(addr, port)
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn gives_what_encoding_anew_gives(
        c in case(), e in ends(8), mtu in prop::option::of(500..1500u32),
    ) {
        let from = tidy(c.kind, (e[0], e[1]));
        let to = tidy(c.kind, (e[2], e[3]));
        let too_big = c.error == 2;
        let v4 = e[0].addr.is_ipv4();
        // The word's third and second byte are RFC 4884's length; too big has the MTU in it.
        let word = if too_big { c.word } else { 0 };
        let (mut frame, meta) = frame_of(&encode(&c, word, (e[4].addr, e[5].addr), &quote_of(&c, from)));
        let error = QuotedError::parse(&frame, &meta).unwrap();
        prop_assert_eq!(error.outer, (e[4].addr, e[5].addr));
        prop_assert_eq!((error.quoted.src, error.quoted.dst), from);
        let kind = match (c.error, v4) {
            (2, _) => ErrorKind::TooBig(word),
            (0, true) => ErrorKind::Unreachable(1),
            (1, true) => ErrorKind::Unreachable(3),
            (0, false) => ErrorKind::Unreachable(0),
            (1, false) => ErrorKind::Unreachable(4),
            (3, _) => ErrorKind::TimeExceeded(0),
            (_, v4) => ErrorKind::Parameter(u8::from(!v4)),
        };
        prop_assert_eq!(error.kind, kind);
        let new = Translated { outer: (e[6].addr, e[7].addr), quoted: to, mtu };
        prop_assert_eq!(error.rewrite(&mut frame, &new), Ok(()));
        let word = match mtu {
            Some(m) if too_big && (word == 0 || m < word) => m,
            _ => word,
        };
        prop_assert_eq!(frame.to_vec(), encode(&c, word, new.outer, &quote_of(&c, to)));
    }

    #[test]
    fn any_single_wrong_bit_is_seen(c in case(), e in ends(4), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let from = tidy(c.kind, (e[0], e[1]));
        let mut bytes = encode(&c, 0, (e[2].addr, e[3].addr), &quote_of(&c, from));
        let icmp = frame_of(&bytes).1.l4_off as usize;
        // Behind the type, which says whether it is an error at all.
        let at = icmp + 1 + at.index(bytes.len() - icmp - 1);
        bytes[at] ^= 1 << bit;
        let (frame, meta) = frame_of(&bytes);
        prop_assert_eq!(QuotedError::parse(&frame, &meta).err(), Some(ErrorReject::Checksum));
    }
}

fn v4(last: u8, port: u16) -> Endpoint {
    Endpoint::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)), port)
}

fn plain(kind: Kind) -> Case {
    Case {
        kind,
        inner: vec![5; 40],
        cut: 400,
        error: 1,
        word: 0,
        vlan: false,
    }
}

/// An ICMP error with a quote changed, and a type.
fn changed(
    kind: Kind,
    ty: (u8, u8),
    change: impl FnOnce(&mut Vec<u8>),
) -> Result<QuotedError, ErrorReject> {
    let mut quote = quote_of(&plain(kind), (v4(1, 7), v4(2, 8)));
    change(&mut quote);
    let mut bytes = vec![];
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([192, 0, 2, 3], [192, 0, 2, 1], 9)
        .icmpv4_raw(ty.0, ty.1, [0; 4])
        .write(&mut bytes, &quote)
        .unwrap();
    let (frame, meta) = frame_of(&bytes);
    QuotedError::parse(&frame, &meta)
}

fn resum(quote: &mut [u8]) {
    quote[10..12].fill(0);
    let sum = csum::finish(csum::add(0, &quote[..20]));
    quote[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn what_is_not_translated() {
    let reject = |kind, ty, change: &dyn Fn(&mut Vec<u8>)| changed(kind, ty, |q| change(q)).err();
    let none = |_: &mut Vec<u8>| {};
    assert_eq!(reject(Kind::Udp, (3, 3), &none), None);
    assert_eq!(
        reject(Kind::Udp, (4, 0), &none),
        Some(ErrorReject::SourceQuench)
    );
    assert_eq!(
        reject(Kind::Udp, (5, 1), &none),
        Some(ErrorReject::Redirect)
    );
    assert_eq!(
        reject(Kind::Udp, (8, 0), &none),
        Some(ErrorReject::NotError)
    );
    assert_eq!(
        reject(Kind::Udp, (3, 3), &|q| q[8] ^= 1),
        Some(ErrorReject::QuotedChecksum)
    );
    for len in 0..28 {
        assert_eq!(
            reject(Kind::Udp, (3, 3), &|q| q.truncate(len)),
            Some(ErrorReject::Truncated)
        );
    }
    let nested = |q: &mut Vec<u8>| {
        q[9] = 1;
        q[20] = 11;
        resum(q);
    };
    assert_eq!(
        reject(Kind::Udp, (3, 3), &nested),
        Some(ErrorReject::Nested)
    );
    let wrong_family = |q: &mut Vec<u8>| q[0] = 0x65;
    assert_eq!(
        reject(Kind::Udp, (3, 3), &wrong_family),
        Some(ErrorReject::Truncated)
    );
}

#[test]
fn a_quoted_later_fragment_has_addresses_only() {
    let make = |src: Endpoint| {
        let mut q = quote_of(&plain(Kind::Udp), (src, v4(2, 8)));
        (q[4], q[5], q[6], q[7]) = (0x12, 0x34, 0, 5);
        q[20..].fill(0xaa);
        resum(&mut q);
        q
    };
    let c = plain(Kind::Udp);
    let outer = (v4(3, 0).addr, v4(1, 0).addr);
    let (mut frame, meta) = frame_of(&encode(&c, 0, outer, &make(v4(1, 7))));
    let error = QuotedError::parse(&frame, &meta).unwrap();
    assert!(error.quoted.is_later_fragment());
    assert_eq!(error.quoted.fragment_id, Some(0x1234));
    let new = Translated {
        outer,
        quoted: (v4(9, 99), v4(2, 98)),
        mtu: None,
    };
    error.rewrite(&mut frame, &new).unwrap();
    assert_eq!(frame.to_vec(), encode(&c, 0, outer, &make(v4(9, 7))));
}

#[test]
fn a_quoted_sctp_fragment_keeps_its_crc() {
    let make = |src: Endpoint| {
        let mut q = quote_of(&plain(Kind::Sctp), (src, v4(2, 8)));
        q[6] = 0x20;
        q[28..32].fill(7);
        resum(&mut q);
        q
    };
    let c = plain(Kind::Sctp);
    let outer = (v4(3, 0).addr, v4(1, 0).addr);
    let (mut frame, meta) = frame_of(&encode(&c, 0, outer, &make(v4(1, 7))));
    let error = QuotedError::parse(&frame, &meta).unwrap();
    let new = Translated {
        outer,
        quoted: (v4(9, 99), v4(2, 8)),
        mtu: None,
    };
    error.rewrite(&mut frame, &new).unwrap();
    assert_eq!(frame.to_vec(), encode(&c, 0, outer, &make(v4(9, 99))));
}

#[test]
fn options_and_extension_headers_of_the_quote_are_passed() {
    let c = plain(Kind::Udp);
    let outer = (v4(3, 0).addr, v4(1, 0).addr);
    let with_options = |ends| {
        let mut q = quote_of(&c, ends);
        q.splice(20..20, [1; 8]);
        q[0] = 0x47;
        let len = q.len() as u16;
        q[2..4].copy_from_slice(&len.to_be_bytes());
        q[10..12].fill(0);
        let sum = csum::finish(csum::add(0, &q[..28]));
        q[10..12].copy_from_slice(&sum.to_be_bytes());
        q
    };
    let (from, to) = ((v4(1, 7), v4(2, 8)), (v4(9, 99), v4(2, 8)));
    let (mut frame, meta) = frame_of(&encode(&c, 0, outer, &with_options(from)));
    let error = QuotedError::parse(&frame, &meta).unwrap();
    assert_eq!((error.quoted.src, error.quoted.dst), from);
    error
        .rewrite(
            &mut frame,
            &Translated {
                outer,
                quoted: to,
                mtu: None,
            },
        )
        .unwrap();
    assert_eq!(frame.to_vec(), encode(&c, 0, outer, &with_options(to)));

    let six = |n: u16| Endpoint::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n).into(), n);
    let outer = (six(3).addr, six(1).addr);
    let with_headers = |ends| {
        let mut q = quote_of(&c, ends);
        // Destination options, then a fragment header of a first fragment.
        q.splice(40..40, [44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 77]);
        q[6] = 60;
        let len = (q.len() - 40) as u16;
        q[4..6].copy_from_slice(&len.to_be_bytes());
        q
    };
    let (from, to) = ((six(1), six(2)), (six(9), six(2)));
    let (mut frame, meta) = frame_of(&encode(&c, 0, outer, &with_headers(from)));
    let error = QuotedError::parse(&frame, &meta).unwrap();
    assert_eq!(
        (error.quoted.src, error.quoted.fragment_id),
        (six(1), Some(77))
    );
    error
        .rewrite(
            &mut frame,
            &Translated {
                outer,
                quoted: to,
                mtu: None,
            },
        )
        .unwrap();
    assert_eq!(frame.to_vec(), encode(&c, 0, outer, &with_headers(to)));
}

#[test]
fn extensions_behind_the_quote_are_left_alone() {
    // The quote claims to be longer than the 128 bytes that RFC 4884 says are quoted; then come the extensions.
    let mut c = plain(Kind::Udp);
    c.inner = vec![0; 300];
    c.error = 3;
    let outer = (v4(3, 0).addr, v4(1, 0).addr);
    let (from, to) = ((v4(1, 7), v4(2, 8)), (v4(9, 99), v4(2, 8)));
    let make = |ends| {
        let mut quote = quote_of(&c, ends);
        quote.truncate(128);
        quote.extend([0x20, 0, 0, 0, 0, 8, 1, 1, 1, 2, 3, 4]);
        encode(&c, 32 << 16, outer, &quote)
    };
    let (mut frame, meta) = frame_of(&make(from));
    let error = QuotedError::parse(&frame, &meta).unwrap();
    assert_eq!(error.quoted.end, 14 + 28 + 128);
    error
        .rewrite(
            &mut frame,
            &Translated {
                outer,
                quoted: to,
                mtu: None,
            },
        )
        .unwrap();
    assert_eq!(frame.to_vec(), make(to));
}

#[test]
fn families_do_not_mix() {
    let c = plain(Kind::Udp);
    let outer = (v4(3, 0).addr, v4(1, 0).addr);
    let bytes = encode(&c, 0, outer, &quote_of(&c, (v4(1, 7), v4(2, 8))));
    let (mut frame, meta) = frame_of(&bytes);
    let error = QuotedError::parse(&frame, &meta).unwrap();
    let six = Endpoint::new("2001:db8::1".parse().unwrap(), 1);
    let new = Translated {
        outer,
        quoted: (six, six),
        mtu: None,
    };
    assert_eq!(error.rewrite(&mut frame, &new), Err(ErrorReject::Family));
    assert_eq!(frame.to_vec(), bytes);
}
