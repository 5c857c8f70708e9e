//! Rewritten packets against the same packets encoded anew, with the new addresses, by etherparse.

use super::*;
use crate::hop::{Ttl, clamp_mss, decrement_ttl};
use etherparse::{PacketBuilder, TcpOptionElement};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};
use vswitch_core::frame::{GsoType, VnetHdr};
use vswitch_core::wire::parse;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Tcp,
    Udp,
    Sctp,
    Request,
    Reply,
}

#[derive(Clone, Debug)]
struct Packet {
    kind: Kind,
    ttl: u8,
    mss: Option<u16>,
    /// NOPs in front of the MSS option: it may be at an odd offset.
    nops: usize,
    vlan: bool,
    payload: Vec<u8>,
}

type Ends = (Endpoint, Endpoint);

fn proto(kind: Kind, v6: bool) -> u8 {
    match kind {
        Kind::Tcp => 6,
        Kind::Udp => 17,
        Kind::Sctp => 132,
        _ if v6 => 58,
        _ => 1,
    }
}

fn encode(p: &Packet, (src, dst): Ends) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut out = vec![];
    macro_rules! ip {
        ($link:expr) => {
            match (src.addr, dst.addr) {
                (IpAddr::V4(s), IpAddr::V4(d)) => $link.ipv4(s.octets(), d.octets(), p.ttl),
                (IpAddr::V6(s), IpAddr::V6(d)) => $link.ipv6(s.octets(), d.octets(), p.ttl),
                _ => unreachable!("one family"),
            }
        };
    }
    let ip = if p.vlan {
        ip!(link.single_vlan(5.try_into().unwrap()))
    } else {
        ip!(link)
    };
    let seq = 7;
    match p.kind {
        Kind::Tcp => {
            let mut options = vec![TcpOptionElement::Noop; p.nops];
            options.extend(p.mss.map(TcpOptionElement::MaximumSegmentSize));
            let mut tcp = ip
                .tcp(src.port, dst.port, 0x1234_5678, 512)
                .options(&options)
                .unwrap();
            if p.mss.is_some() {
                tcp = tcp.syn();
            }
            tcp.write(&mut out, &p.payload).unwrap();
        }
        Kind::Udp => ip
            .udp(src.port, dst.port)
            .write(&mut out, &p.payload)
            .unwrap(),
        Kind::Request if src.addr.is_ipv4() => {
            ip.icmpv4_echo_request(src.port, seq)
                .write(&mut out, &p.payload)
                .unwrap();
        }
        Kind::Reply if src.addr.is_ipv4() => {
            ip.icmpv4_echo_reply(dst.port, seq)
                .write(&mut out, &p.payload)
                .unwrap();
        }
        Kind::Request => ip
            .icmpv6_echo_request(src.port, seq)
            .write(&mut out, &p.payload)
            .unwrap(),
        Kind::Reply => ip
            .icmpv6_echo_reply(dst.port, seq)
            .write(&mut out, &p.payload)
            .unwrap(),
        Kind::Sctp => {
            let mut sctp = [src.port.to_be_bytes(), dst.port.to_be_bytes()].concat();
            sctp.extend([1, 2, 3, 4, 0, 0, 0, 0]);
            sctp.extend(&p.payload);
            let crc = crc32c::of(&sctp);
            sctp[8..12].copy_from_slice(&crc.to_le_bytes());
            ip.write(&mut out, 132.into(), &sctp).unwrap();
        }
    }
    out
}

fn frame_of(bytes: &[u8]) -> (Frame, Meta) {
    let frame = Frame::from_bytes(bytes).expect("fits");
    let meta = parse(frame.head(), frame.len()).expect("long enough");
    (frame, meta)
}

/// Sum of 16-bit words, the slow way.
fn naive(bytes: &[u8]) -> u32 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Leaves the L4 checksum to offloading, as a kernel that sends through TAP or veth does.
fn leave_partial(frame: &mut Frame, meta: &Meta, kind: Kind) {
    let l4 = meta.l4_off;
    let offset = match kind {
        Kind::Tcp => 16,
        Kind::Udp => 6,
        _ => return,
    };
    let mut bytes = frame.to_vec();
    let ip = usize::from(meta.l3_off);
    let addrs = if meta.l3 == L3::V4 {
        ip + 12..ip + 20
    } else {
        ip + 8..ip + 40
    };
    let sum = naive(&bytes[addrs]) + u32::from(meta.proto) + (meta.l3_end - u32::from(l4));
    let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
    let at = usize::from(l4 + offset);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    *frame = Frame::from_bytes(&bytes).expect("fits");
    frame.vnet = VnetHdr {
        needs_csum: true,
        csum_start: l4,
        csum_offset: offset,
        ..VnetHdr::default()
    };
}

/// What a kernel or NIC does at last to a frame left partial.
fn finish(frame: &Frame, kind: Kind) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    if frame.vnet.needs_csum {
        let start = usize::from(frame.vnet.csum_start);
        let at = start + usize::from(frame.vnet.csum_offset);
        let mut sum = !(naive(&bytes[start..]) as u16);
        if sum == 0 && kind == Kind::Udp {
            sum = 0xffff;
        }
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), Just(0xffff), any::<u16>()]
}

fn packet() -> impl Strategy<Value = Packet> {
    let kind = prop::sample::select(vec![
        Kind::Tcp,
        Kind::Udp,
        Kind::Sctp,
        Kind::Request,
        Kind::Reply,
    ]);
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..100),
        1 => prop::collection::vec(any::<u8>(), 1800..4000),
    ];
    (
        kind,
        any::<u8>(),
        prop::option::of(any::<u16>()),
        0..8usize,
        any::<bool>(),
        payload,
    )
        .prop_map(|(kind, ttl, mss, nops, vlan, payload)| Packet {
            kind,
            ttl,
            mss,
            nops,
            vlan,
            payload,
        })
}

/// Endpoints before and after; parts of them may be the same.
fn ends() -> impl Strategy<Value = [Endpoint; 4]> {
    let v4 = |b: [u8; 16]| IpAddr::V4(Ipv4Addr::new(b[0], b[1], b[2], b[3]));
    let v6 = |b: [u8; 16]| IpAddr::V6(Ipv6Addr::from(b));
    let four = prop::array::uniform4((any::<[u8; 16]>(), port()));
    (any::<bool>(), four, any::<[bool; 4]>()).prop_map(move |(six, all, same)| {
        let mut e = all.map(|(b, p)| Endpoint::new(if six { v6(b) } else { v4(b) }, p));
        for i in 0..2 {
            if same[i] {
                e[i + 2].addr = e[i].addr;
            }
            if same[i + 2] {
                e[i + 2].port = e[i].port;
            }
        }
        e
    })
}

fn without_idle_port(kind: Kind, (mut src, mut dst): Ends) -> Ends {
    match kind {
        Kind::Request => dst.port = 0,
        Kind::Reply => src.port = 0,
        _ => {}
    }
    (src, dst)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn gives_what_encoding_anew_gives(p in packet(), e in ends(), partial in any::<bool>()) {
        let from = without_idle_port(p.kind, (e[0], e[1]));
        let to = without_idle_port(p.kind, (e[2], e[3]));
        let proto = proto(p.kind, e[0].addr.is_ipv6());
        let (mut frame, meta) = frame_of(&encode(&p, from));
        if partial {
            leave_partial(&mut frame, &meta, p.kind);
        }
        let rewrite = Rewrite::new(proto, from, to).unwrap();
        prop_assert_eq!(rewrite.to(), to);
        prop_assert_eq!(rewrite.apply(&mut frame, &meta), Ok(()));
        prop_assert_eq!(finish(&frame, p.kind), encode(&p, to));
    }

    #[test]
    fn mss_and_ttl_are_those_of_a_packet_encoded_with_them(
        mut p in packet(), e in ends(), partial in any::<bool>(), mss in 500..1500u16,
    ) {
        p.kind = Kind::Tcp;
        let (mut frame, meta) = frame_of(&encode(&p, (e[0], e[1])));
        if partial {
            leave_partial(&mut frame, &meta, p.kind);
        }
        prop_assert_eq!(clamp_mss(&mut frame, &meta, mss), p.mss.is_some_and(|m| m > mss));
        let left = decrement_ttl(&mut frame, &meta);
        prop_assert_eq!(left, if p.ttl > 1 { Ttl::Left } else { Ttl::Expired });
        if p.ttl > 1 {
            p.ttl -= 1;
        }
        p.mss = p.mss.map(|m| m.min(mss));
        prop_assert_eq!(finish(&frame, p.kind), encode(&p, (e[0], e[1])));
    }

    #[test]
    fn a_damaged_packet_stays_damaged(p in packet(), e in ends(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        prop_assume!(p.payload.len() > 1);
        let from = without_idle_port(p.kind, (e[0], e[1]));
        let to = without_idle_port(p.kind, (e[2], e[3]));
        let mut bytes = encode(&p, from);
        let payload_at = bytes.len() - p.payload.len();
        let at = payload_at + at.index(p.payload.len());
        bytes[at] ^= 1 << bit;
        let (mut frame, meta) = frame_of(&bytes);
        let rewrite = Rewrite::new(proto(p.kind, e[0].addr.is_ipv6()), from, to).unwrap();
        rewrite.apply(&mut frame, &meta).unwrap();
        let mut whole = encode(&p, to);
        whole[at] ^= 1 << bit;
        prop_assert_eq!(frame.to_vec(), whole);
    }
}

fn v4(last: u8, port: u16) -> Endpoint {
    Endpoint::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)), port)
}

fn plain(kind: Kind) -> Packet {
    Packet {
        kind,
        ttl: 64,
        mss: None,
        nops: 0,
        vlan: false,
        payload: vec![1, 2, 3, 4, 5],
    }
}

#[test]
fn udp_without_checksum_stays_without() {
    let (from, to) = ((v4(1, 1000), v4(2, 53)), (v4(3, 2000), v4(2, 53)));
    let mut bytes = encode(&plain(Kind::Udp), from);
    bytes[40..42].fill(0);
    let (mut frame, meta) = frame_of(&bytes);
    Rewrite::new(17, from, to)
        .unwrap()
        .apply(&mut frame, &meta)
        .unwrap();
    let mut expected = encode(&plain(Kind::Udp), to);
    expected[40..42].fill(0);
    assert_eq!(frame.to_vec(), expected);
}

#[test]
fn a_segmentation_frame_changes_in_its_headers_only() {
    let (from, to) = ((v4(1, 1000), v4(2, 80)), (v4(3, 2000), v4(4, 8080)));
    let p = Packet {
        payload: (0..60_000u32).map(|i| i as u8).collect(),
        ..plain(Kind::Tcp)
    };
    let (mut frame, meta) = frame_of(&encode(&p, from));
    leave_partial(&mut frame, &meta, p.kind);
    frame.vnet.gso = GsoType::Tcp4;
    frame.vnet.gso_size = 1448;
    let vnet = frame.vnet;
    Rewrite::new(6, from, to)
        .unwrap()
        .apply(&mut frame, &meta)
        .unwrap();
    assert_eq!(frame.vnet, vnet);
    assert_eq!(finish(&frame, p.kind), encode(&p, to));
}

#[test]
fn fragments_together_are_the_rewritten_packet() {
    let (from, to) = ((v4(1, 1000), v4(2, 53)), (v4(3, 2000), v4(4, 5353)));
    let p = Packet {
        payload: vec![7; 100],
        ..plain(Kind::Udp)
    };
    let fragments = |bytes: Vec<u8>| {
        [(0, 0x2000), (48, 6)].map(|(at, frag)| {
            let mut f = bytes[..34].to_vec();
            f.extend(&bytes[34 + at..if at == 0 { 82 } else { bytes.len() }]);
            let len = f.len() as u16 - 14;
            f[16..18].copy_from_slice(&len.to_be_bytes());
            f[20..22].copy_from_slice(&u16::to_be_bytes(frag));
            f[24..26].fill(0);
            let sum = !(naive(&f[14..34]) as u16);
            f[24..26].copy_from_slice(&sum.to_be_bytes());
            f
        })
    };
    let rewrite = Rewrite::new(17, from, to).unwrap();
    let after = fragments(encode(&p, from)).map(|bytes| {
        let (mut frame, meta) = frame_of(&bytes);
        assert!(meta.fragment);
        rewrite.apply(&mut frame, &meta).unwrap();
        frame.to_vec()
    });
    assert_eq!(after, fragments(encode(&p, to)));
}

#[test]
fn sctp_left_to_offload_keeps_its_field() {
    let (from, to) = ((v4(1, 1000), v4(2, 53)), (v4(3, 2000), v4(4, 5353)));
    let (mut frame, meta) = frame_of(&encode(&plain(Kind::Sctp), from));
    frame.head_mut()[42..46].copy_from_slice(&[9; 4]);
    frame.vnet = VnetHdr {
        needs_csum: true,
        csum_start: 34,
        csum_offset: 8,
        ..VnetHdr::default()
    };
    Rewrite::new(132, from, to)
        .unwrap()
        .apply(&mut frame, &meta)
        .unwrap();
    let mut expected = encode(&plain(Kind::Sctp), to);
    expected[42..46].copy_from_slice(&[9; 4]);
    assert_eq!(frame.to_vec(), expected);
}

#[test]
fn prefix_translation_keeps_sums_that_are_not_parsed() {
    let end = |a: &str| Endpoint::new(a.parse().unwrap(), 0);
    let far = end("2001:db8:2::1");
    let (inside, outside) = (end("2001:db8:1::10"), end("2001:db8:f:fff1::10"));
    for proto in [33, 136] {
        assert!(Rewrite::new(proto, (inside, far), (outside, far)).is_ok());
        assert!(Rewrite::new(proto, (far, outside), (far, inside)).is_ok());
        let other = end("2001:db8:f:fff2::10");
        assert!(Rewrite::new(proto, (inside, far), (other, far)).is_err());
    }
}

#[test]
fn what_can_not_be_kept_valid_is_refused_and_unchanged() {
    let (from, to) = ((v4(1, 1000), v4(2, 53)), (v4(3, 2000), v4(2, 53)));
    let six = Endpoint::new("2001:db8::1".parse().unwrap(), 1);
    assert_eq!(Rewrite::new(6, from, (six, six)), Err(RewriteError::Family));
    assert_eq!(
        Rewrite::new(136, from, to),
        Err(RewriteError::Protocol(136))
    );

    let mut bytes = encode(&plain(Kind::Sctp), from);
    bytes[20] = 0x20;
    let (mut frame, meta) = frame_of(&bytes);
    let r = Rewrite::new(132, from, to).unwrap();
    assert_eq!(
        r.apply(&mut frame, &meta),
        Err(RewriteError::FragmentedSctp)
    );
    assert_eq!(frame.to_vec(), bytes);

    let mut bytes = encode(&plain(Kind::Request), from);
    bytes[34] = 3;
    let (mut frame, meta) = frame_of(&bytes);
    let r = Rewrite::new(1, from, to).unwrap();
    assert_eq!(r.apply(&mut frame, &meta), Err(RewriteError::IcmpError));
    assert_eq!(frame.to_vec(), bytes);
}

#[test]
fn a_rewrite_is_small() {
    assert!(size_of::<Rewrite>() <= 44);
}

#[test]
fn options_that_lie_are_survived() {
    let ends = (v4(1, 1000), v4(2, 80));
    let p = Packet {
        mss: Some(1460),
        nops: 4,
        ..plain(Kind::Tcp)
    };
    let bytes = encode(&p, ends);
    for at in 54..62 {
        for value in [0, 1, 2, 3, 5, 255] {
            let mut bad = bytes.clone();
            bad[at] = value;
            let (mut frame, meta) = frame_of(&bad);
            clamp_mss(&mut frame, &meta, 500);
            assert_eq!(frame.len(), bytes.len());
        }
    }
    let mut long = bytes;
    long[46] = 0xf0;
    let (mut frame, meta) = frame_of(&long);
    assert!(
        !clamp_mss(&mut frame, &meta, 500),
        "the header exceeds the packet"
    );
}

/// The tuple that packets between these ends have; an ICMP identifier stands at the source.
fn tuple(proto: u8, (src, dst): Ends) -> Tuple {
    let at = |e: Endpoint| std::net::SocketAddr::new(e.addr, e.port);
    Tuple::new(0, proto, at(src), at(dst))
}

proptest! {
    /// What is kept of a rewriting and the tuples give it again, and that of the opposite direction.
    #[test]
    fn a_rewriting_is_had_again_from_tuples(v6: bool, icmp: bool, ips: [u128; 4], ports: [u16; 4], same: [bool; 4]) {
        let ip = |n: u128| if v6 {
            IpAddr::V6(Ipv6Addr::from(n))
        } else {
            IpAddr::V4(Ipv4Addr::from(n as u32))
        };
        let end = |i: usize, from: usize| Endpoint::new(
            ip(ips[if same[i] { from } else { i }]),
            if icmp && i % 2 == 1 { 0 } else { ports[if same[(i + 1) % 4] { from } else { i }] },
        );
        let (from, to) = ((end(0, 0), end(1, 1)), (end(2, 0), end(3, 1)));
        let proto = match (icmp, v6) {
            (false, _) => 17,
            (true, false) => 1,
            (true, true) => 58,
        };
        let there = Rewrite::new(proto, from, to).expect("one family");
        let (original, reply) = (tuple(proto, from), tuple(proto, to).reversed());
        let change = there.change();
        prop_assert_eq!(Rewrite::again(&original, &reply.reversed(), change), there);
        let ends = |t: &Tuple| (Endpoint::new(t.src(), t.src_port), Endpoint::new(t.dst(), t.dst_port));
        let back = original.reversed();
        let want = Rewrite::new(proto, ends(&reply), ends(&back)).expect("one family");
        let got = Rewrite::again(&reply, &back, change.back());
        // 0 and 0xffff are the same in one's complement.
        let zero = |d: u16| if d == 0xffff { 0 } else { d };
        prop_assert_eq!(zero(got.addr_diff), zero(want.addr_diff));
        prop_assert_eq!(zero(got.port_diff), zero(want.port_diff));
        let rest = Rewrite { addr_diff: want.addr_diff, port_diff: want.port_diff, ..got };
        prop_assert_eq!(rest, want);
    }
}
