//! Answers read by etherparse and pnet, whose checksums aren't ours.

use super::*;
use etherparse::{PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice};
use pnet_packet::icmp::IcmpPacket;
use pnet_packet::icmpv6::Icmpv6Packet;
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::tcp::TcpPacket;
use pnet_packet::{Packet, icmp, icmpv6, ipv4, tcp};
use std::net::{Ipv4Addr, Ipv6Addr};
use vswitch_core::frame::VnetHdr;
use vswitch_core::wire::parse;

const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
const SRC: [u8; 4] = [192, 0, 2, 1];
const DST: [u8; 4] = [198, 51, 100, 1];
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254));

fn src6() -> Ipv6Addr {
    "2001:db8::1".parse().unwrap()
}

fn dst6() -> Ipv6Addr {
    "2001:db8:1::1".parse().unwrap()
}

fn link() -> PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], OURS.0)
}

fn frame_of(bytes: &[u8]) -> (Frame, Meta) {
    let f = Frame::from_bytes(bytes).expect("fits");
    let m = parse(f.head(), f.len()).expect("long enough");
    (f, m)
}

fn udp4(payload: usize) -> Vec<u8> {
    let mut out = vec![];
    link()
        .ipv4(SRC, DST, 64)
        .udp(1000, 53)
        .write(&mut out, &vec![7; payload])
        .unwrap();
    out
}

const CAUSES: [Cause; 7] = [
    Cause::NetUnreachable,
    Cause::HostUnreachable,
    Cause::PortUnreachable,
    Cause::Prohibited,
    Cause::TooBig(1400),
    Cause::TimeExceeded,
    Cause::ReassemblyTime,
];

#[test]
fn an_error_quotes_what_fits_and_is_sound() {
    let words = [
        (3, 0, 0),
        (3, 1, 0),
        (3, 3, 0),
        (3, 13, 0),
        (3, 4, 1400),
        (11, 0, 0),
        (11, 1, 0),
    ];
    for (cause, (ty, code, word)) in CAUSES.into_iter().zip(words) {
        for payload in [0, 1, 519, 520, 521, 1400, 9000] {
            let bytes = udp4(payload);
            let (frame, meta) = frame_of(&bytes);
            let answer = icmp_error(&frame, &meta, cause, GATEWAY, OURS)
                .unwrap()
                .to_vec();
            assert_eq!((&answer[..6], &answer[6..12]), (&bytes[6..12], &OURS.0[..]));
            let ip = Ipv4Packet::new(&answer[14..]).unwrap();
            assert_eq!(ip.get_checksum(), ipv4::checksum(&ip));
            assert_eq!(IpAddr::V4(ip.get_source()), GATEWAY);
            assert_eq!(ip.get_destination().octets(), SRC);
            assert_eq!(usize::from(ip.get_total_length()), (payload + 56).min(576));
            let message = IcmpPacket::new(ip.payload()).unwrap();
            assert_eq!(message.get_checksum(), icmp::checksum(&message));
            assert_eq!(
                (message.get_icmp_type().0, message.get_icmp_code().0),
                (ty, code)
            );
            let m = ip.payload();
            assert_eq!(u32::from_be_bytes([m[4], m[5], m[6], m[7]]), word);
            assert_eq!(&m[8..], &bytes[14..14 + m.len() - 8]);
        }
    }
}

#[test]
fn an_icmpv6_error_quotes_what_fits_and_is_sound() {
    let words = [
        (1, 0, 0),
        (1, 3, 0),
        (1, 4, 0),
        (1, 1, 0),
        (2, 0, 1400),
        (3, 0, 0),
        (3, 1, 0),
    ];
    let gateway: Ipv6Addr = "2001:db8::fe".parse().unwrap();
    for (cause, (ty, code, word)) in CAUSES.into_iter().zip(words) {
        for payload in [0, 1184, 1185, 9000] {
            let mut bytes = vec![];
            link()
                .single_vlan(7.try_into().unwrap())
                .ipv6(src6().octets(), dst6().octets(), 64)
                .udp(1000, 53)
                .write(&mut bytes, &vec![7; payload])
                .unwrap();
            let (frame, meta) = frame_of(&bytes);
            let answer = icmp_error(&frame, &meta, cause, gateway.into(), OURS)
                .unwrap()
                .to_vec();
            assert_eq!(answer[12..18], bytes[12..18], "the same tag");
            assert_eq!(answer.len(), 18 + (payload + 96).min(1280));
            let m = &answer[58..];
            let message = Icmpv6Packet::new(m).unwrap();
            assert_eq!(
                message.get_checksum(),
                icmpv6::checksum(&message, &gateway, &src6())
            );
            assert_eq!((m[0], m[1]), (ty, code));
            assert_eq!(u32::from_be_bytes([m[4], m[5], m[6], m[7]]), word);
            assert_eq!(&m[8..], &bytes[18..18 + m.len() - 8]);
            assert!(SlicedPacket::from_ethernet(&answer).is_ok());
        }
    }
}

#[test]
fn what_gets_no_answer() {
    let refuse = |change: &dyn Fn(&mut Vec<u8>), why: NoAnswer| {
        let mut bytes = udp4(100);
        change(&mut bytes);
        let (frame, meta) = frame_of(&bytes);
        let got = icmp_error(&frame, &meta, Cause::TimeExceeded, GATEWAY, OURS);
        assert_eq!(got.map(|f| f.to_vec()), Err(why));
    };
    refuse(&|b| b[0] = 1, NoAnswer::Group);
    refuse(&|b| b[26..30].fill(0), NoAnswer::Group);
    refuse(&|b| b[26] = 127, NoAnswer::Group);
    refuse(&|b| b[26] = 224, NoAnswer::Group);
    refuse(&|b| b[26..30].fill(255), NoAnswer::Group);
    refuse(&|b| b[30] = 239, NoAnswer::Group);
    refuse(&|b| b[30..34].fill(255), NoAnswer::Group);
    refuse(&|b| b[21] = 1, NoAnswer::Fragment);
    refuse(&|b| b[12] = 9, NoAnswer::NotIp);
    for ty in [3, 4, 5, 11, 12] {
        refuse(&|b| (b[23], b[34]) = (1, ty), NoAnswer::IcmpError);
    }
    let mut first = udp4(100);
    first[20] = 0x20;
    let (frame, meta) = frame_of(&first);
    assert!(icmp_error(&frame, &meta, Cause::TimeExceeded, GATEWAY, OURS).is_ok());
    let mut echo = vec![];
    link()
        .ipv4(SRC, DST, 1)
        .icmpv4_echo_request(1, 1)
        .write(&mut echo, &[])
        .unwrap();
    let (frame, meta) = frame_of(&echo);
    assert!(icmp_error(&frame, &meta, Cause::TimeExceeded, GATEWAY, OURS).is_ok());
    let six = "2001:db8::1".parse().unwrap();
    let other = icmp_error(&frame, &meta, Cause::TimeExceeded, six, OURS);
    assert_eq!(other.map(|f| f.to_vec()), Err(NoAnswer::NotIp));
    for (ty, answered) in [
        (1, false),
        (127, false),
        (128, true),
        (135, true),
        (137, false),
    ] {
        let mut bytes = vec![];
        link()
            .ipv6(src6().octets(), dst6().octets(), 1)
            .icmpv6_raw(ty, 0, [0; 4])
            .write(&mut bytes, &[0; 8])
            .unwrap();
        let (frame, meta) = frame_of(&bytes);
        let got = icmp_error(&frame, &meta, Cause::TimeExceeded, six, OURS);
        assert_eq!(got.is_ok(), answered, "{ty}");
    }
}

#[test]
fn resets_are_those_of_rfc_9293() {
    // Flags, payload -> sequence number, acknowledgement number, ACK.
    let cases = [
        ("syn", 0, (0, 1001, true)),
        ("syn", 10, (0, 1011, true)),
        ("fin", 3, (0, 1004, true)),
        ("ack", 10, (77, 0, false)),
        ("synack", 0, (77, 0, false)),
    ];
    for v6 in [false, true] {
        for (kind, payload, (seq, ack, has_ack)) in cases {
            let ip = if v6 {
                link().ipv6(src6().octets(), dst6().octets(), 64)
            } else {
                link().ipv4(SRC, DST, 64)
            };
            let t = ip.tcp(4000, 80, 1000, 512);
            let t = match kind {
                "syn" => t.syn(),
                "fin" => t.fin(),
                "ack" => t.ack(77),
                _ => t.syn().ack(77),
            };
            let mut bytes = vec![];
            t.write(&mut bytes, &vec![7; payload]).unwrap();
            let (mut frame, meta) = frame_of(&bytes);
            let answer = tcp_reset(&frame, &meta, OURS).unwrap().to_vec();
            let sliced = SlicedPacket::from_ethernet(&answer).unwrap();
            let Some(TransportSlice::Tcp(t)) = &sliced.transport else {
                panic!("no TCP");
            };
            assert_eq!((t.source_port(), t.destination_port()), (80, 4000));
            assert!(t.rst() && !t.syn() && !t.fin());
            assert_eq!(
                (t.sequence_number(), t.acknowledgment_number(), t.ack()),
                (seq, ack, has_ack)
            );
            let packet = TcpPacket::new(t.slice()).unwrap();
            let sum = if v6 {
                tcp::ipv6_checksum(&packet, &dst6(), &src6())
            } else {
                tcp::ipv4_checksum(&packet, &DST.into(), &SRC.into())
            };
            assert_eq!(packet.get_checksum(), sum);
            // Our own reset gets none, nor does a damaged segment, unless its checksum isn't there yet.
            let (reset, meta2) = frame_of(&answer);
            assert!(tcp_reset(&reset, &meta2, OURS).is_err());
            frame.head_mut()[usize::from(meta.l4_off) + 16] ^= 1;
            assert!(tcp_reset(&frame, &meta, OURS).is_err());
            frame.vnet = VnetHdr {
                needs_csum: true,
                csum_start: meta.l4_off,
                csum_offset: 16,
                ..VnetHdr::default()
            };
            assert_eq!(tcp_reset(&frame, &meta, OURS).unwrap().to_vec(), answer);
        }
    }
    let (frame, meta) = frame_of(&udp4(10));
    assert!(tcp_reset(&frame, &meta, OURS).is_err());
}

#[test]
fn answers_are_bounded_in_all_and_per_host() {
    let rate = |per_second, burst| Rate { per_second, burst };
    let l = AnswerLimiter::new(rate(100, 50), rate(10, 10));
    let host = |n| IpAddr::V4(Ipv4Addr::new(192, 0, 2, n));
    let now = Nanos(3_600_000_000_000);
    let one = (0..1000).filter(|_| l.admit(now, host(1))).count();
    assert!((9..=11).contains(&one), "{one}");
    let all = (0..1000)
        .filter(|n| l.admit(now, host((n % 250) as u8 + 2)))
        .count();
    assert!((30..=51).contains(&all), "{all}");
    let later = Nanos(now.0 + 1_000_000_000);
    let one = (0..1000).filter(|_| l.admit(later, host(1))).count();
    assert!((9..=11).contains(&one), "{one}");
}
