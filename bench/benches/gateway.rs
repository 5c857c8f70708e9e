//! The gateway's whole turn over a batch, bridge and translation included: cost per frame with 1,000 and with 1,000,000 connections,
//! cost of a new connection, and what a connection takes of memory.
//!
//! `cargo bench -p vswitch-bench --bench gateway`. One iteration of `known` is one batch of 64 UDP datagrams of 64 bytes of drawn
//! connections, one batch after the other inwards and outwards. `new` is a batch of 64 first datagrams, each of which is judged, has a
//! port leased and its connection entered; what is printed is measured once, while a million connections are made. Times are this
//! thread's own (CLOCK_THREAD_CPUTIME_ID): on a busy machine those of others don't count, though what they put out of the cache does.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nix::time::ClockId;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use vswitch_core::bridge::{NetworkConfig, NetworkId, PortConfig};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{BATCH_SIZE, Batch, Frame, Verdict};
use vswitch_core::port::PortId;
use vswitch_core::wire::{self, MacAddr, csum};
use vswitch_core::worker::{Cx, Stage};
use vswitch_nat::Pipeline;
use vswitch_nat::conntrack::Config;
use vswitch_nat::gateway::{GatewayConfig, InterfaceConfig, Route, SnatConfig};
use vswitch_nat::portalloc::Filtering;

const MILLION: u32 = 1_000_000;
const LAN: NetworkId = NetworkId(0);
const WAN: NetworkId = NetworkId(1);
const GATEWAYS: [MacAddr; 2] = [
    MacAddr([2, 0, 0, 0, 0, 0xfe]),
    MacAddr([2, 0, 0, 0, 1, 0xfe]),
];
const OWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 1)];
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
/// Hosts inside, and ports each of them uses.
const HOSTS: u32 = 50;
const PORTS: u32 = 1000;

/// Processor time of this thread.
fn spent_here() -> Duration {
    let now = ClockId::CLOCK_THREAD_CPUTIME_ID.now();
    now.expect("the thread's clock").into()
}

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

/// An end: address, and MAC of the host or of the router that it is behind.
type End = (Ipv4Addr, MacAddr);

fn inside(n: u32) -> (End, u16) {
    let host = n % HOSTS;
    let mac = MacAddr([2, 0, 0, 0, 0, 10 + host as u8]);
    // No two hosts use the same port, so each is preserved.
    let port = 1024 + host * PORTS + n / HOSTS % PORTS;
    (
        (Ipv4Addr::new(192, 0, 2, 10 + host as u8), mac),
        port as u16,
    )
}

fn outside(n: u32) -> End {
    let host = n / HOSTS / PORTS;
    let mac = MacAddr([2, 0, 0, 0, 1, 1]);
    (Ipv4Addr::new(203, 0, 113, 1 + host as u8), mac)
}

fn datagram(dst: MacAddr, src: MacAddr, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Frame {
    let mut b = [0u8; 14 + 20 + 8 + 64];
    b[..6].copy_from_slice(&dst.0);
    b[6..12].copy_from_slice(&src.0);
    b[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    b[16..18].copy_from_slice(&92u16.to_be_bytes());
    b[22..24].copy_from_slice(&[64, 17]);
    b[26..30].copy_from_slice(&from.0.octets());
    b[30..34].copy_from_slice(&to.0.octets());
    let sum = csum::finish(csum::add(0, &b[14..34]));
    b[24..26].copy_from_slice(&sum.to_be_bytes());
    b[34..36].copy_from_slice(&from.1.to_be_bytes());
    b[36..38].copy_from_slice(&to.1.to_be_bytes());
    b[38..40].copy_from_slice(&72u16.to_be_bytes());
    Frame::from_bytes(&b).expect("fits")
}

/// A datagram of connection n.
fn of(n: u32, back: bool) -> Frame {
    let ((host, mac), port) = inside(n);
    let (far, router) = outside(n);
    if back {
        datagram(GATEWAYS[1], router, (far, 53), (OWN[1], port))
    } else {
        datagram(GATEWAYS[0], mac, (host, port), (far, 53))
    }
}

/// Who has `gateway`, asked by a host: so it is known.
fn question(own: Ipv4Addr, (host, mac): End) -> Frame {
    let parts: [&[u8]; 8] = [
        &[0xff; 6],
        &mac.0,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &mac.0,
        &host.octets(),
        &[0; 6],
        &own.octets(),
        &[0; 18],
    ];
    Frame::from_bytes(&parts.concat()).expect("fits")
}

fn batch(port: PortId, frames: impl Iterator<Item = Frame>) -> Batch {
    let mut b = Batch::new(port);
    for frame in frames {
        b.push(frame).expect("room");
    }
    for e in &mut b.entries {
        e.meta = wire::parse(e.frame.head(), e.frame.len()).expect("whole header");
    }
    b
}

/// A gateway of two networks that knows its neighbours.
fn gateway(cx: &mut Cx) -> Pipeline {
    let mut p = Pipeline::default();
    for network in [LAN, WAN] {
        p.bridge.set_network(network, NetworkConfig::default());
        let mut port = PortConfig::new(network);
        port.loop_guard = false;
        p.bridge.set_port(PortId(network.0), port);
    }
    let interface = |network: NetworkId, snat: Option<SnatConfig>| {
        let i = usize::from(network.0);
        InterfaceConfig {
            hosts: vec![],
            host: None,
            network,
            vid: 0,
            mac: GATEWAYS[i],
            addresses: vec![(OWN[i].into(), 24)],
            mtu: 1500,
            uplink: snat.is_some(),
            nptv6: vec![],
            snat,
        }
    };
    let snat = SnatConfig {
        addresses: vec![],
        ports: (1, 65_535),
        filtering: Filtering::default(),
    };
    let config = GatewayConfig {
        interfaces: vec![interface(LAN, None), interface(WAN, Some(snat))],
        routes: vec![Route {
            to: (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            via: Some(ROUTER.into()),
            network: WAN,
        }],
        conntrack: Config {
            max_entries: MILLION,
            per_source: None,
            seed: 0x5eed,
            ..Config::default()
        },
        ..GatewayConfig::default()
    };
    p.gateway.configure(cx, &mut p.bridge, &config);
    let hosts = (0..HOSTS).map(|n| inside(n).0);
    for host in hosts {
        let mut b = batch(PortId(0), std::iter::once(question(OWN[0], host)));
        p.run(cx, &mut b);
    }
    let router = question(OWN[1], (ROUTER, outside(0).1));
    p.run(cx, &mut batch(PortId(1), std::iter::once(router)));
    p
}

fn forwarded(b: &Batch) -> usize {
    let on = |e: &&vswitch_core::frame::Entry| matches!(e.verdict, Verdict::Forward(_));
    b.entries.iter().filter(on).count()
}

/// Makes connections `from` up to `to`; returns the time in the gateway.
fn open(p: &mut Pipeline, cx: &mut Cx, from: u32, to: u32) -> Duration {
    let (mut spent, mut n) = (Duration::ZERO, from);
    while n < to {
        let end = to.min(n + BATCH_SIZE as u32);
        let mut b = batch(PortId(0), (n..end).map(|n| of(n, false)));
        let start = spent_here();
        p.run(cx, black_box(&mut b));
        spent += spent_here() - start;
        assert_eq!(forwarded(&b), (end - n) as usize, "every frame is sent on");
        n = end;
    }
    spent
}

/// One datagram back for each, so that they are two-way.
fn answer(p: &mut Pipeline, cx: &mut Cx, flows: u32) {
    for n in (0..flows).step_by(BATCH_SIZE) {
        let end = flows.min(n + BATCH_SIZE as u32);
        let mut b = batch(PortId(1), (n..end).map(|n| of(n, true)));
        p.run(cx, &mut b);
        assert_eq!(forwarded(&b), (end - n) as usize, "every answer goes in");
    }
}

fn clock() -> Cx {
    let mut cx = Cx::default();
    cx.now = Nanos(3_600_000_000_000);
    cx
}

/// Resident memory of this process, bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("read /proc/self/statm");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("second field of statm");
    pages * 4096
}

fn all(c: &mut Criterion) {
    let mut cx = clock();
    let before = resident();
    let mut few = gateway(&mut cx);
    open(&mut few, &mut cx, 0, 1000);
    println!(
        "1000 connections: {} KiB resident",
        (resident() - before) / 1024
    );
    answer(&mut few, &mut cx, 1000);
    let before = resident();
    let mut many = gateway(&mut cx);
    let spent = open(&mut many, &mut cx, 0, MILLION);
    println!(
        "1000000 connections: {:.0} made per second, {} B each resident",
        f64::from(MILLION) / spent.as_secs_f64(),
        (resident() - before) / MILLION as usize,
    );
    answer(&mut many, &mut cx, MILLION);
    // What is done between turns.
    for _ in 0..100 {
        many.gateway.tick(&mut cx, &mut many.bridge);
    }

    let mut group = c.benchmark_group("gateway/known");
    group.throughput(Throughput::Elements(BATCH_SIZE as u64));
    for (p, flows) in [(&mut few, 1000), (&mut many, MILLION)] {
        let mut draw = Draw(1);
        group.bench_function(BenchmarkId::new("udp64", flows), |b| {
            b.iter_custom(|n| {
                let mut spent = Duration::ZERO;
                for i in 0..n {
                    let back = i % 2 == 1;
                    let frames = (0..BATCH_SIZE).map(|_| of(draw.below(flows), back));
                    let mut b = batch(PortId(u16::from(back)), frames);
                    let start = spent_here();
                    p.run(&mut cx, black_box(&mut b));
                    spent += spent_here() - start;
                    assert_eq!(forwarded(&b), BATCH_SIZE, "every frame is sent on");
                }
                spent
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("gateway/new");
    group.throughput(Throughput::Elements(BATCH_SIZE as u64));
    group.bench_function("udp64", |b| {
        b.iter_custom(|n| {
            let (mut left, mut spent) = (n * BATCH_SIZE as u64, Duration::ZERO);
            while left > 0 {
                let some = left.min(u64::from(MILLION)) as u32;
                let mut p = gateway(&mut cx);
                spent += open(&mut p, &mut cx, 0, some);
                left -= u64::from(some);
            }
            spent
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = all
}
criterion_main!(benches);
