#![no_main]
//! The bridge with every feature on, against any frames: no panic, and every table keeps its bound.

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use vswitch_core::bridge::{
    Bridge, MirrorConfig, MirrorId, MirrorSource, NetworkConfig, NetworkId, PortConfig, VlanSet,
};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{Batch, DropReason, Frame, Verdict, VnetHdr};
use vswitch_core::port::PortId;
use vswitch_core::wire::{csum, parse};
use vswitch_core::worker::{Cx, Stage};

const PORTS: u16 = 4;
const FDB_LIMIT: usize = 8;
const MDB_LIMIT: usize = 4;

#[derive(Arbitrary, Debug)]
struct Input {
    vlan_aware: bool,
    querier: bool,
    fast_leave: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Frame {
        port: u8,
        vnet: [u8; 10],
        bytes: Vec<u8>,
    },
    /// An IGMP or MLD message with sound headers and checksum, so that its content is read.
    Membership {
        port: u8,
        v6: bool,
        kind: u8,
        body: Vec<u8>,
    },
    Wait(u16),
    Link {
        port: u8,
        up: bool,
    },
}

fn bridge(input: &Input) -> Bridge {
    let net = NetworkId(0);
    let mut b = Bridge::new();
    b.set_network(
        net,
        NetworkConfig {
            ageing: Duration::from_secs(9),
            fdb_limit: FDB_LIMIT,
            vlan_aware: input.vlan_aware,
            snooping: true,
            fast_leave: input.fast_leave,
            querier: input.querier,
            mdb_limit: MDB_LIMIT,
            ..NetworkConfig::default()
        },
    );
    for p in 0..PORTS {
        let mut c = PortConfig::new(net);
        c.mac_limit = (p == 1).then_some(2);
        c.isolated = p < 2;
        if p == 2 {
            c.tagged = VlanSet::from_iter([2, 3]);
            c.allowed_ips = vec![
                ("192.0.2.1".parse().unwrap(), 24),
                ("2001:db8::".parse().unwrap(), 64),
            ];
            c.arp_inspection = true;
        }
        b.set_port(PortId(p), c);
    }
    b.set_mirror(
        MirrorId(0),
        MirrorConfig {
            sources: vec![MirrorSource::Port {
                port: PortId(0),
                ingress: true,
                egress: true,
            }],
            target: PortId(3),
            truncate: Some(20),
            target_floods: true,
        },
    );
    b
}

fuzz_target!(|input: Input| {
    let mut b = bridge(&input);
    let mut cx = Cx::default();
    cx.now = Nanos(3_600_000_000_000);
    cx.worker = (0, 1);
    for step in input.steps.into_iter().take(64) {
        match step {
            Step::Frame { port, vnet, bytes } => frame(&mut b, &mut cx, port, vnet, &bytes),
            Step::Membership {
                port,
                v6,
                kind,
                body,
            } => {
                let bytes = if v6 {
                    mld(kind, &body)
                } else {
                    igmp(kind, &body)
                };
                frame(&mut b, &mut cx, port, [0; 10], &bytes);
            }
            Step::Wait(secs) => {
                cx.now = cx.now.after(Duration::from_secs(secs.into()));
                assert!(b.tick(&mut cx) > cx.now, "a tick asks for another at once");
            }
            Step::Link { port, up } => {
                b.link_changed(&mut cx, PortId(u16::from(port) % PORTS), up);
            }
        }
        let fdb = b.fdb(NetworkId(0)).unwrap();
        assert!(fdb.len() <= FDB_LIMIT && fdb.learned_at(PortId(1)) <= 2);
        let mdb = b.mdb(NetworkId(0), cx.now);
        assert!(mdb.iter().filter(|e| e.group.is_some()).count() <= MDB_LIMIT);
    }
});

fn igmp(kind: u8, rest: &[u8]) -> Vec<u8> {
    let kinds = [0x11, 0x12, 0x16, 0x17, 0x22];
    let mut body = vec![kinds[usize::from(kind) % kinds.len()], 0, 0, 0];
    body.extend(&rest[..rest.len().min(1000)]);
    put_csum(&mut body, 2, 0);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + body.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0, 0, 1, 2, 0, 0, 192, 0, 2, 1, 224, 0, 0, 22]);
    put_csum(&mut ip, 10, 0);
    let mut f = vec![1, 0, 0x5e, 0, 0, 22, 2, 0, 0, 0, 0, 1, 8, 0];
    f.extend(ip);
    f.extend(body);
    f
}

fn mld(kind: u8, rest: &[u8]) -> Vec<u8> {
    let kinds = [130, 131, 132, 143];
    let mut body = vec![kinds[usize::from(kind) % kinds.len()], 0, 0, 0];
    body.extend(&rest[..rest.len().min(1000)]);
    let mut addresses = [0u8; 32];
    addresses[..2].copy_from_slice(&[0xfe, 0x80]);
    addresses[16..].copy_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16]);
    let sum = csum::add(body.len() as u64 + 58, &addresses);
    put_csum(&mut body, 2, sum);
    let mut f = vec![0x33, 0x33, 0, 0, 0, 0x16, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
    f.extend([0x60, 0, 0, 0]);
    f.extend((body.len() as u16).to_be_bytes());
    f.extend([58, 1]);
    f.extend(addresses);
    f.extend(body);
    f
}

fn put_csum(bytes: &mut [u8], at: usize, sum: u64) {
    let sum = csum::finish(csum::add(sum, bytes)).to_be_bytes();
    bytes[at..at + 2].copy_from_slice(&sum);
}

fn frame(b: &mut Bridge, cx: &mut Cx, port: u8, vnet: [u8; 10], bytes: &[u8]) {
    let from = PortId(u16::from(port) % PORTS);
    let Some(mut f) = Frame::from_bytes(bytes) else {
        return;
    };
    f.vnet = VnetHdr::checked(&vnet, f.len()).unwrap_or_default();
    let Some(meta) = parse(f.head(), f.len()) else {
        return;
    };
    let mut batch = Batch::new(from);
    batch.push(f).unwrap();
    batch.entries[0].meta = meta;
    b.run(cx, &mut batch);
    let e = &batch.entries[0];
    assert!(e.verdict != Verdict::Next, "every frame is judged");
    if matches!(e.verdict, Verdict::Drop(DropReason::NoPort)) {
        panic!("not the bridge's to say");
    }
    for to in (0..PORTS).map(PortId) {
        let mut copy = e.frame.duplicate();
        if b.egress(cx, from, to, &mut copy, &e.meta).is_ok() {
            assert!(
                copy.len().abs_diff(e.frame.len()) <= 4,
                "one tag more or less"
            );
            assert_eq!(copy.dst(), e.frame.dst());
            assert_eq!(copy.src(), e.frame.src());
        }
    }
}
