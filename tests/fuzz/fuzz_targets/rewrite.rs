#![no_main]
//! Rewriting any frame: no panic, nothing changes but the fields it is about, going back gives the packet again, and the gateway's
//! answers to any frame are sound.

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::net::IpAddr;
use vswitch_core::frame::{Frame, VnetHdr};
use vswitch_core::wire::{L3, L4, MacAddr, Meta, parse};
use vswitch_nat::Endpoint;
use vswitch_nat::hop::{Ttl, clamp_mss, decrement_ttl};
use vswitch_nat::reply::{Cause, icmp_error, tcp_reset};
use vswitch_nat::rewrite::Rewrite;

#[derive(Arbitrary, Debug)]
struct Input {
    new: [([u8; 16], u16); 2],
    mss: u16,
    /// Sound headers up to L4's, so that its content is read; else `bytes` are all.
    sound: Option<Sound>,
    vnet: [u8; 10],
    bytes: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
struct Sound {
    v6: bool,
    proto: u8,
    frag: Option<u16>,
    addrs: [[u8; 16]; 2],
    l4: [u8; 24],
    /// The checksum is left to offloading.
    partial: bool,
}

fn bytes(input: &Input) -> Vec<u8> {
    let Some(s) = &input.sound else {
        return input.bytes.clone();
    };
    let body = &input.bytes[..input.bytes.len().min(3000)];
    let len = (s.l4.len() + body.len()) as u16;
    let proto = proto(s);
    let frag = s.frag.unwrap_or(0).to_be_bytes();
    let mut b = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if s.v6 {
        let header = if s.frag.is_some() { 8 } else { 0 };
        b.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        b.extend((len + header).to_be_bytes());
        b.extend([if header > 0 { 44 } else { proto }, 64]);
        b.extend(s.addrs.concat());
        if header > 0 {
            b.extend([proto, 0, frag[0], frag[1], 0, 0, 0, 1]);
        }
    } else {
        b.extend([8, 0, 0x45, 0]);
        b.extend((20 + len).to_be_bytes());
        b.extend([0, 1, frag[0], frag[1], 64, proto, 0, 0]);
        b.extend(&s.addrs[0][..4]);
        b.extend(&s.addrs[1][..4]);
    }
    b.extend(s.l4);
    b.extend(body);
    b
}

fn proto(s: &Sound) -> u8 {
    [6, 17, 132, if s.v6 { 58 } else { 1 }, 6, s.proto][usize::from(s.proto % 6)]
}

fn vnet(input: &Input, len: usize) -> VnetHdr {
    let Some(s) = input.sound.as_ref().filter(|s| s.partial) else {
        return VnetHdr::checked(&input.vnet, len).unwrap_or_default();
    };
    let offset = match proto(s) {
        6 => 16,
        17 => 6,
        132 => 8,
        _ => 2,
    };
    VnetHdr {
        needs_csum: true,
        csum_start: if s.v6 { 54 } else { 34 },
        csum_offset: offset,
        ..VnetHdr::default()
    }
}

fuzz_target!(|input: Input| {
    let Some(mut frame) = Frame::from_bytes(&bytes(&input)) else {
        return;
    };
    frame.vnet = vnet(&input, frame.len());
    let Some(meta) = parse(frame.head(), frame.len()) else {
        return;
    };
    answers(&frame, &meta);
    let before = frame.to_vec();
    if let Some(from) = ends(&before, &meta) {
        let query = matches!(meta.l4, L4::Icmp | L4::Icmp6);
        let mut to = input.new.map(|(a, port)| {
            let v4 = [a[0], a[1], a[2], a[3]];
            let addr = if meta.l3 == L3::V6 {
                a.into()
            } else {
                v4.into()
            };
            Endpoint::new(addr, port)
        });
        if query {
            to[1].port = 0;
        }
        there_and_back(&mut frame, &meta, (from[0], from[1]), (to[0], to[1]));
    }
    clamp_mss(&mut frame, &meta, input.mss);
    if decrement_ttl(&mut frame, &meta) == Ttl::Left {
        assert!(matches!(meta.l3, L3::V4 | L3::V6));
    }
    assert_eq!(frame.len(), before.len());
});

/// The endpoints a packet has; as its flow would.
fn ends(b: &[u8], meta: &Meta) -> Option<[Endpoint; 2]> {
    let (l3, l4) = (usize::from(meta.l3_off), usize::from(meta.l4_off));
    let (src, dst): (IpAddr, IpAddr) = match meta.l3 {
        L3::V4 => (
            (*b[l3 + 12..].first_chunk::<4>()?).into(),
            (*b[l3 + 16..].first_chunk::<4>()?).into(),
        ),
        L3::V6 => (
            (*b[l3 + 8..].first_chunk::<16>()?).into(),
            (*b[l3 + 24..].first_chunk::<16>()?).into(),
        ),
        _ => return None,
    };
    let word = |at: usize| {
        let bytes = b.get(l4 + at..).and_then(|b| b.first_chunk());
        bytes.map_or(0, |b| u16::from_be_bytes(*b))
    };
    let (s, d) = match meta.l4 {
        L4::Tcp | L4::Udp | L4::Sctp => (word(0), word(2)),
        L4::Icmp | L4::Icmp6 => (word(4), 0),
        L4::Other => (0, 0),
    };
    Some([Endpoint::new(src, s), Endpoint::new(dst, d)])
}

fn there_and_back(
    frame: &mut Frame,
    meta: &Meta,
    from: (Endpoint, Endpoint),
    to: (Endpoint, Endpoint),
) {
    let before = frame.to_vec();
    let Ok(there) = Rewrite::new(meta.proto, from, to) else {
        return;
    };
    let back = Rewrite::new(meta.proto, to, from).expect("of the same protocol");
    assert_eq!(there.to(), to);
    if there.apply(frame, meta).is_err() {
        assert_eq!(frame.to_vec(), before, "an error changes nothing");
        return;
    }
    let again = parse(frame.head(), frame.len()).expect("as long as before");
    assert_eq!(
        (again.l3, again.l4, again.l4_off),
        (meta.l3, meta.l4, meta.l4_off)
    );
    let now = ends(&frame.to_vec(), &again).expect("still a packet");
    assert_eq!((now[0].addr, now[1].addr), (to.0.addr, to.1.addr));
    if matches!(meta.l4, L4::Tcp | L4::Udp | L4::Sctp) {
        assert_eq!((now[0], now[1]), to);
    }
    back.apply(frame, meta).expect("as before");
    let after = frame.to_vec();
    for (i, (a, b)) in before.iter().zip(&after).enumerate() {
        // Only checksums may differ: +0 and -0, and a UDP header that began as garbage.
        assert!(a == b || checksum_at(i, meta), "byte {i}: {a} became {b}");
    }
}

fn checksum_at(i: usize, meta: &Meta) -> bool {
    let (l3, l4) = (usize::from(meta.l3_off), usize::from(meta.l4_off));
    let ip = meta.l3 == L3::V4 && (l3 + 10..l3 + 12).contains(&i);
    ip || match meta.l4 {
        L4::Tcp => (l4 + 16..l4 + 18).contains(&i),
        L4::Udp => (l4 + 6..l4 + 8).contains(&i),
        L4::Icmp | L4::Icmp6 => (l4 + 2..l4 + 4).contains(&i),
        // A CRC that comes to 0 on the way reads as none.
        L4::Sctp => (l4 + 8..l4 + 12).contains(&i),
        L4::Other => false,
    }
}

fn answers(frame: &Frame, meta: &Meta) {
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    let v4: IpAddr = [192, 0, 2, 1].into();
    let v6: IpAddr = "2001:db8::1".parse().unwrap();
    for from in [v4, v6] {
        if let Ok(answer) = icmp_error(frame, meta, Cause::TimeExceeded, from, mac) {
            assert_eq!(answer.dst(), frame.src());
            let m = parse(answer.head(), answer.len()).expect("a frame");
            assert_eq!(m.l4, if from.is_ipv4() { L4::Icmp } else { L4::Icmp6 });
            assert_eq!(m.l3_end as usize, answer.len());
            assert!(answer.len() <= 1280 + 22);
            // There is none to an error.
            assert!(icmp_error(&answer, &m, Cause::NetUnreachable, from, mac).is_err());
        }
    }
    if let Ok(answer) = tcp_reset(frame, meta, mac) {
        let m = parse(answer.head(), answer.len()).expect("a frame");
        assert_eq!((m.l3, m.l4), (meta.l3, L4::Tcp));
        assert!(tcp_reset(&answer, &m, mac).is_err());
    }
}
