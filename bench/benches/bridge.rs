//! Cost of the bridge per known unicast frame, learning refresh and egress included: two ports and 100 MACs against 1,000 ports and
//! 64k MACs.
//!
//! `cargo bench -p vswitch-bench --bench bridge`. One iteration is one batch of 64 frames of a drawn port, each of
//! another source and destination out of all MACs, so that nothing found for one frame helps the next.

#[path = "common/draw.rs"]
mod draw;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use draw::Draw;
use std::hint::black_box;
use std::time::{Duration, Instant};
use vswitch_core::bridge::fdb::Fdb;
use vswitch_core::bridge::{Bridge, NetworkConfig, NetworkId, PortConfig};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{BATCH_SIZE, Batch, Frame, Verdict};
use vswitch_core::port::PortId;
use vswitch_core::wire::{self, MacAddr};
use vswitch_core::worker::{Cx, Stage};

const SECOND: u64 = 1_000_000_000;

fn mac(n: u32) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | u64::from(n))
}

/// A full batch, to be filled by `redraw`.
fn batch() -> Batch {
    let mut b = Batch::new(PortId(0));
    for _ in 0..BATCH_SIZE {
        b.push(Frame::from_bytes(&[0; 60]).expect("fits"))
            .expect("room");
    }
    for e in &mut b.entries {
        e.meta = wire::parse(e.frame.head(), e.frame.len()).expect("whole header");
    }
    b
}

/// Makes it a batch of a drawn port, with sources of that port and destinations elsewhere, out of all MACs: MAC n is at port
/// n % ports.
fn redraw(batch: &mut Batch, draw: &mut Draw, ports: u32, macs: u32) {
    let from = draw.below(ports);
    batch.ingress = PortId(from as u16);
    for e in &mut batch.entries {
        let src = draw.below(macs / ports) * ports + from;
        let mut dst = draw.below(macs);
        if dst % ports == from {
            dst = (dst + 1) % macs;
        }
        e.meta.src = mac(src);
        e.meta.dst = mac(dst);
        e.verdict = Verdict::Next;
    }
}

/// A bridge that has learned all MACs.
fn bridge(ports: u32, macs: u32, cx: &mut Cx) -> Bridge {
    let mut bridge = Bridge::new();
    bridge.set_network(NetworkId(0), NetworkConfig::default());
    for p in 0..ports {
        bridge.set_port(PortId(p as u16), PortConfig::new(NetworkId(0)));
    }
    for n in 0..macs {
        let mut b = Batch::new(PortId((n % ports) as u16));
        // To itself, so that nothing is flooded.
        let bytes = [&mac(n).0[..], &mac(n).0[..], &[0x88, 0xb6], &[0; 46][..]].concat();
        b.push(Frame::from_bytes(&bytes).expect("fits"))
            .expect("room");
        for e in &mut b.entries {
            e.meta = wire::parse(e.frame.head(), e.frame.len()).expect("whole header");
        }
        bridge.run(cx, &mut b);
    }
    assert_eq!(bridge.fdb(NetworkId(0)).map(Fdb::len), Some(macs as usize));
    bridge
}

fn known_unicast(c: &mut Criterion) {
    let mut group = c.benchmark_group("bridge");
    group.throughput(Throughput::Elements(BATCH_SIZE as u64));
    for (ports, macs) in [(2, 100), (1000, 65_000)] {
        // The clock stands still, then moves a second per batch: without and with writes to the entries.
        for (name, step) in [("same_second", 0), ("refresh", SECOND)] {
            let mut cx = Cx::default();
            cx.now = Nanos(3600 * SECOND);
            let mut stage = bridge(ports, macs, &mut cx);
            let (mut batch, mut draw) = (batch(), Draw(1));
            let id = BenchmarkId::new(name, format!("{ports}_ports_{macs}_macs"));
            group.bench_function(id, |b| {
                b.iter_custom(|n| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..n {
                        redraw(&mut batch, &mut draw, ports, macs);
                        cx.now = Nanos(cx.now.0 + step);
                        let start = Instant::now();
                        stage.run(&mut cx, black_box(&mut batch));
                        let from = batch.ingress;
                        for e in &mut batch.entries {
                            if let Verdict::Forward(to) = e.verdict {
                                let sent = stage.egress(&mut cx, from, to, &mut e.frame, &e.meta);
                                let _ = black_box(sent);
                            }
                        }
                        spent += start.elapsed();
                    }
                    spent
                });
            });
            let found = |e: &vswitch_core::frame::Entry| matches!(e.verdict, Verdict::Forward(_));
            assert!(
                batch.entries.iter().all(found),
                "every frame found its port"
            );
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = known_unicast
}
criterion_main!(benches);
