//! Frames in batches, whose connections are looked up ahead, fare as frames one by one.

use crate::rig::*;
use std::net::Ipv4Addr;
use vswitch_core::frame::{BATCH_SIZE, Frame, Verdict};
use vswitch_core::port::PortId;
use vswitch_core::wire::csum;

/// So many connections that look-ups ahead are done.
const MANY: u16 = 3000;

/// A fixed generator.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % n
    }
}

fn out(port: u16) -> Frame {
    datagram(INSIDE, (HOST.0, port), (FAR, 53), (64, 0))
}

fn back(port: u16) -> Frame {
    datagram(OUTSIDE, (FAR, 53), (OWN[1], port), (64, 0))
}

/// As such a datagram, but of ICMP: destination unreachable.
fn unreachable(port: PortId, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Frame {
    let mut bytes = datagram(port, from, to, (64, 0)).head().to_vec();
    bytes[23] = 1;
    bytes[24..26].fill(0);
    let sum = csum::finish(csum::add(0, &bytes[14..34]));
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes[34..36].copy_from_slice(&[3, 1]);
    Frame::from_bytes(&bytes).expect("fits")
}

fn open(rig: &mut Rig) {
    for n in (0..MANY).step_by(BATCH_SIZE) {
        let ports = (n..MANY).take(BATCH_SIZE).map(|n| 2000 + n);
        for (verdict, _) in rig.run(INSIDE, ports.map(out).collect()) {
            assert_eq!(verdict, Verdict::Forward(OUTSIDE));
        }
    }
}

/// A frame of any kind. Only known connections, new ones, and what is dropped before and after look-ups.
fn any(draw: &mut Draw, port: PortId) -> Frame {
    let known = 2000 + draw.below(MANY.into()) as u16;
    let new = 10_000 + draw.below(60) as u16;
    let martian = Ipv4Addr::new(127, 0, 0, 1);
    let (host, far) = ((HOST.0, known), (FAR, 53));
    let flags = |d: &mut Draw| [0, 0x2000, 0x2000, 3][d.below(4) as usize];
    match (draw.below(12), port) {
        (0, INSIDE) => question(OWN[0], HOST),
        (0, _) => question(OWN[1], ROUTERS[0]),
        (1, _) => datagram(port, (martian, 1), far, (64, 0)),
        (2, INSIDE) => datagram(port, host, far, (1, 0)),
        (3, INSIDE) => datagram(port, host, far, (64, flags(draw))),
        (4, INSIDE) => datagram(port, host, (OWN[0], 9), (64, 0)),
        (5 | 6, INSIDE) => out(new),
        (5 | 6, _) => back(new),
        (7, _) => Frame::from_bytes(&[&GATEWAYS[usize::from(port.0)].0[..], &[0; 8]].concat())
            .expect("fits"),
        // An ICMP error about nothing: it is looked up otherwise.
        (8, INSIDE) => unreachable(port, host, far),
        (8, _) => unreachable(port, far, (OWN[1], known)),
        (_, INSIDE) => out(known),
        (_, _) => back(known),
    }
}

#[test]
fn a_batch_fares_as_its_frames_one_by_one() {
    let (mut batches, mut single) = (Rig::new(), Rig::new());
    open(&mut batches);
    open(&mut single);
    let mut draw = Draw(1);
    let mut seen = [0; 3];
    for round in 0..400 {
        let port = [INSIDE, OUTSIDE][draw.below(2) as usize];
        let n = 2 + draw.below(BATCH_SIZE as u32 - 1) as usize;
        let frames: Vec<Frame> = (0..n).map(|_| any(&mut draw, port)).collect();
        let copies: Vec<Frame> = frames
            .iter()
            .map(|f| Frame::from_bytes(f.head()).expect("fits"))
            .collect();
        let mut one_by_one = Vec::new();
        for frame in copies {
            one_by_one.extend(single.run(port, vec![frame]));
        }
        let together = batches.run(port, frames);
        for (i, (a, b)) in together.iter().zip(&one_by_one).enumerate() {
            let kind = match a.0 {
                Verdict::Forward(_) => 0,
                Verdict::Drop(_) => 1,
                _ => 2,
            };
            seen[kind] += 1;
            // Sets of flooded ports are numbered by batch.
            if !matches!((a.0, b.0), (Verdict::Flood(_), Verdict::Flood(_))) {
                assert_eq!(a, b, "frame {i} of round {round}");
            }
        }
    }
    assert!(seen[0] > 4000 && seen[1] > 1000, "{seen:?}");
    let count = |r: &Rig| {
        r.p.gateway
            .conntrack()
            .map(vswitch_nat::conntrack::Conntrack::count)
    };
    assert_eq!(count(&batches), count(&single));
}

#[test]
fn connections_take_the_way_that_routes_lead_to_now() {
    let mut rig = Rig::new();
    open(&mut rig);
    let to = |answers: Vec<(Verdict, Vec<u8>)>| {
        let frame = &answers.first().expect("one frame").1;
        frame.get(..6).expect("a header").to_vec()
    };
    assert_eq!(to(rig.run(INSIDE, vec![out(2000)])), ROUTERS[0].1.0);
    let Rig { cx, p } = &mut rig;
    p.gateway
        .configure(cx, &mut p.bridge, &config(ROUTERS[1].0));
    assert_eq!(to(rig.run(INSIDE, vec![out(2000)])), ROUTERS[1].1.0);
    assert_eq!(to(rig.run(OUTSIDE, vec![back(2000)])), HOST.1.0);
    // A new one beside those of before.
    assert_eq!(to(rig.run(INSIDE, vec![out(1999)])), ROUTERS[1].1.0);
    assert_eq!(to(rig.run(INSIDE, vec![out(2001)])), ROUTERS[1].1.0);
}
