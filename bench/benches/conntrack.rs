//! Connection tracking: cost per packet of a known connection with 1,000 and with 1,000,000 connections, cost of a new
//! connection, memory.
//!
//! `cargo bench -p vswitch-bench --bench conntrack`. One iteration of `hit` is one batch of 64 packets of drawn connections and
//! directions, looked ahead and tracked as the gateway does (`plain`: one by one). One iteration of `new` is one connection tracked
//! and confirmed: `fill` into an empty table, whose memory is touched for the first time, `flood` into a full one, where each evicts
//! another. What is printed first is measured once: longest single call while a million connections come and go, and memory.

#[path = "common/draw.rs"]
mod draw;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use draw::Draw;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::BATCH_SIZE;
use vswitch_nat::conntrack::{
    Config, Conntrack, Hint, Packet, TcpSegment, Track, Transport, Tuple, User, flag, proto,
};

const MILLION: u32 = 1_000_000;
const NOW: Nanos = Nanos(3_600_000_000_000);

/// Connection n: some sources, many ports.
fn tuple(n: u32, proto: u8) -> Tuple {
    let ip =
        |net: [u8; 3], host: u32| IpAddr::V4(Ipv4Addr::new(net[0], net[1], net[2], host as u8));
    let (src, dst) = (ip([192, 0, 2], n >> 16), ip([198, 51, 100], n >> 8));
    Tuple::new(
        0,
        proto,
        (src, n as u16).into(),
        (dst, 1024 + (n % 7) as u16).into(),
    )
}

/// As masquerade would have it.
fn translated(original: &Tuple) -> Tuple {
    let out = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
    let host = match original.src() {
        IpAddr::V4(ip) => u16::from(ip.octets()[3]),
        IpAddr::V6(_) => 0,
    };
    original
        .with_src(out, original.src_port)
        .in_zone(host)
        .reversed()
}

fn packet(tuple: Tuple, seq: u32, flags: u8) -> Packet {
    let transport = if tuple.proto == proto::TCP {
        Transport::Tcp(TcpSegment {
            flags,
            seq,
            ack: 1,
            window: 1000,
            len: 0,
            scale: None,
        })
    } else {
        Transport::Other
    };
    Packet {
        tuple,
        transport,
        packets: 1,
        bytes: 1500,
        refreshes: true,
    }
}

fn config(max_entries: u32) -> Config {
    Config {
        max_entries,
        per_source: Some(MILLION),
        seed: 0x5eed,
        ..Config::default()
    }
}

/// Enters a connection; what it evicts is counted.
fn enter(ct: &mut Conntrack, tuple: Tuple) -> u32 {
    let mut ended = 0;
    let first = packet(tuple, 0, flag::SYN);
    let Track::New(pending) = ct.track(&first, NOW, &mut |_, _| ended += 1) else {
        panic!("{tuple} is known");
    };
    let reply = translated(&tuple);
    ct.confirm(pending, reply, User::default(), NOW, &mut |_, _| ended += 1)
        .expect("room");
    ended
}

/// A table with established connections.
fn table(flows: u32, proto: u8) -> Conntrack {
    let mut ct = Conntrack::new(config(MILLION), NOW);
    for n in 0..flows {
        let original = tuple(n, proto);
        enter(&mut ct, original);
        let later = Nanos(NOW.0 + 5_000_000_000);
        let reply = translated(&original);
        for (tuple, flags) in [
            (reply, flag::SYN | flag::ACK),
            (original, flag::ACK),
            (reply, flag::ACK),
        ] {
            let seq = u32::from(flags == flag::ACK);
            let hit = ct.track(&packet(tuple, seq, flags), later, &mut |_, _| {});
            assert!(matches!(hit, Track::Hit(_)), "{hit:?}");
        }
    }
    ct
}

fn hit(c: &mut Criterion) {
    let mut group = c.benchmark_group("conntrack/hit");
    group.throughput(Throughput::Elements(BATCH_SIZE as u64));
    for (name, proto) in [("tcp", proto::TCP), ("udp", proto::UDP)] {
        for flows in [1000, MILLION] {
            let mut ct = table(flows, proto);
            for ahead in [true, false] {
                let how = if ahead { "batch" } else { "plain" };
                let id = BenchmarkId::new(format!("{name}_{how}"), flows);
                group.bench_function(id, |b| {
                    b.iter_custom(|n| hits(&mut ct, n, flows, proto, ahead));
                });
            }
        }
    }
    group.finish();
}

fn hits(ct: &mut Conntrack, n: u64, flows: u32, proto: u8, ahead: bool) -> Duration {
    let (mut draw, mut spent) = (Draw(1), Duration::ZERO);
    let now = Nanos(NOW.0 + 6_000_000_000);
    for _ in 0..n {
        let packets: [Packet; BATCH_SIZE] = std::array::from_fn(|_| {
            let original = tuple(draw.below(flows), proto);
            let back = draw.below(2) == 0;
            let tuple = if back {
                translated(&original)
            } else {
                original
            };
            packet(tuple, 1, flag::ACK)
        });
        let packets = black_box(packets);
        let mut found = 0;
        let start = Instant::now();
        if ahead {
            let mut hints = [Hint::default(); BATCH_SIZE];
            ct.look_ahead(&packets, &mut hints);
            for (packet, hint) in packets.iter().zip(hints) {
                let track = ct.track_hinted(packet, hint, now, &mut |_, _| {});
                found += usize::from(matches!(black_box(track), Track::Hit(_)));
            }
        } else {
            for packet in &packets {
                let track = ct.track(packet, now, &mut |_, _| {});
                found += usize::from(matches!(black_box(track), Track::Hit(_)));
            }
        }
        spent += start.elapsed();
        assert_eq!(found, BATCH_SIZE, "every packet found its connection");
    }
    spent
}

fn new(c: &mut Criterion) {
    let mut group = c.benchmark_group("conntrack/new");
    group.throughput(Throughput::Elements(1));
    group.bench_function("fill", |b| {
        b.iter_custom(|n| {
            let (mut left, mut spent) = (n, Duration::ZERO);
            while left > 0 {
                let some = left.min(u64::from(MILLION)) as u32;
                let mut ct = Conntrack::new(config(MILLION), NOW);
                let start = Instant::now();
                for n in 0..some {
                    enter(&mut ct, tuple(n, proto::TCP));
                }
                spent += start.elapsed();
                left -= u64::from(some);
            }
            spent
        });
    });
    for max in [262_144, MILLION] {
        let mut ct = Conntrack::new(config(max), NOW);
        let mut next = 0;
        for _ in 0..max {
            enter(&mut ct, tuple(next, proto::TCP));
            next += 1;
        }
        group.bench_function(BenchmarkId::new("flood", max), |b| {
            b.iter(|| {
                next = (next + 1) % (1 << 23);
                let ended = enter(&mut ct, tuple(next, proto::TCP));
                assert_eq!(ended, 1, "one evicts one");
            });
        });
    }
    group.finish();
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

fn report() {
    for max in [262_144, MILLION] {
        let before = resident();
        let mut ct = Conntrack::new(config(max), NOW);
        let empty = resident() - before;
        let mut longest = Duration::ZERO;
        let start = Instant::now();
        for n in 0..max {
            let call = Instant::now();
            enter(&mut ct, tuple(n, proto::UDP));
            longest = longest.max(call.elapsed());
        }
        let filled = start.elapsed();
        let (full, reserved) = (resident() - before, ct.memory());
        println!(
            "{max} flows: {} B a flow reserved, {} B resident; {empty} B resident when empty",
            reserved / max as usize,
            full / max as usize,
        );
        println!(
            "  filled at {:.0} flows/s, longest call {longest:?}",
            f64::from(max) / filled.as_secs_f64()
        );
        let (mut now, mut longest, mut ended) = (Nanos(NOW.0 + 600_000_000_000), Duration::ZERO, 0);
        let start = Instant::now();
        while ct.count() > 0 {
            let call = Instant::now();
            ct.tick(now, 256, &mut |_, _| ended += 1);
            longest = longest.max(call.elapsed());
            now.0 += 1;
        }
        println!(
            "  {ended} expired at {:.0} flows/s, longest tick of 256 {longest:?}",
            f64::from(ended) / start.elapsed().as_secs_f64()
        );
    }
}

fn all(c: &mut Criterion) {
    report();
    hit(c);
    new(c);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = all
}
criterion_main!(benches);
