//! Costs of the parts that every frame passes: parsing, the FDB, checksums, segmentation, the frame pool; and of a whole turn of a worker
//! between two in-memory ports.
//!
//! `cargo bench -p vswitch-bench --bench frame`. `turn` is a worker on a thread of its own, 64 frames of 60 bytes put into one port and
//! taken out of the other: parsing, learning, looking up, queueing and both wake-ups included, system calls of devices not.

#[path = "common/draw.rs"]
mod draw;
#[path = "common/packet.rs"]
mod packet;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use draw::Draw;
use packet::packet;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vswitch_core::bridge::fdb::Fdb;
use vswitch_core::bridge::{Bridge, NetworkConfig, NetworkId, PortConfig};
use vswitch_core::frame::{BATCH_SIZE, Frame, GsoType, Offloads, gso};
use vswitch_core::port::mem::{self, Mem};
use vswitch_core::port::{PortId, TxQueue};
use vswitch_core::stats::PortCounters;
use vswitch_core::wire::{self, MacAddr, csum};
use vswitch_core::worker::{PortSetup, WorkerConfig, WorkerHandle, spawn};

fn mac(n: u32) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | u64::from(n))
}

fn parse(c: &mut Criterion) {
    let frame = packet(64);
    c.bench_function("parse/tcp4", |b| {
        b.iter(|| black_box(wire::parse(black_box(frame.head()), frame.len())));
    });
}

fn fdb(c: &mut Criterion) {
    let mut group = c.benchmark_group("fdb");
    for size in [100, 64_000] {
        let mut fdb = Fdb::new(65_536);
        for n in 0..size {
            fdb.learn(0, mac(n), PortId(1), 1, u32::MAX);
        }
        let mut draw = Draw(1);
        group.bench_function(BenchmarkId::new("lookup", size), |b| {
            b.iter(|| black_box(fdb.lookup(0, mac(draw.below(size)))));
        });
        let mut draw = Draw(2);
        group.bench_function(BenchmarkId::new("refresh", size), |b| {
            b.iter(|| black_box(fdb.learn(0, mac(draw.below(size)), PortId(1), 1, u32::MAX)));
        });
    }
    group.finish();
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for size in [64, 1500, 65_000] {
        let bytes = vec![0x5a; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| black_box(csum::finish(csum::add(0, black_box(&bytes)))));
        });
    }
    group.finish();
}

fn segmentation(c: &mut Criterion) {
    let payload = 1448 * 45;
    let mut group = c.benchmark_group("gso");
    group.throughput(Throughput::Bytes(payload as u64));
    let long = || {
        let mut frame = packet(payload);
        frame.vnet.gso = GsoType::Tcp4;
        frame.vnet.gso_size = 1448;
        frame
    };
    group.bench_function("45_segments", |b| {
        b.iter_batched(
            long,
            |frame| {
                gso::finish(frame, Offloads::default(), 1500, &mut |f| {
                    black_box(f);
                })
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn pool(c: &mut Criterion) {
    let mut group = c.benchmark_group("pool");
    group.bench_function("take_and_return", |b| b.iter(|| black_box(Frame::new())));
    let (short, long) = (packet(64), packet(60_000));
    group.bench_function("duplicate_118_bytes", |b| {
        b.iter(|| black_box(short.duplicate()));
    });
    group.bench_function("duplicate_60_kB", |b| {
        b.iter(|| black_box(long.duplicate()));
    });
    group.finish();
}

/// A worker that bridges two in-memory ports, and their other ends.
fn bridged() -> (WorkerHandle<Bridge>, [Mem; 2]) {
    let config = WorkerConfig {
        workers: 1,
        shared: false,
        spin: Duration::from_millis(1),
        events: Arc::new(drop),
    };
    let mut workers = spawn(&config, |_| Bridge::new()).expect("start a worker");
    let worker = workers.pop().expect("one worker");
    let net = NetworkId(0);
    let set = move |w: &mut vswitch_core::worker::Worker<Bridge>| {
        w.stage.set_network(net, NetworkConfig::default());
    };
    worker.call(set).expect("the worker answers");
    let ends = [PortId(0), PortId(1)].map(|id| {
        let (near, far) = mem::pair(1024, Offloads::ALL).expect("an eventfd");
        let setup = PortSetup {
            io: Some(Box::new(near)),
            owner: 0,
            mtu: 1500,
            tx_limit: TxQueue::DEFAULT_LIMIT,
            admin_up: true,
            counters: Arc::new(PortCounters::default()),
        };
        let add = move |w: &mut vswitch_core::worker::Worker<Bridge>| {
            let mut port = PortConfig::new(net);
            port.loop_guard = false;
            w.stage.set_port(id, port);
            w.add_port(id, setup);
        };
        worker.call(add).expect("the worker answers");
        far
    });
    (worker, ends)
}

fn from_to(from: u32, to: u32) -> Frame {
    let bytes = [
        &mac(to).0[..],
        &mac(from).0[..],
        &[0x88, 0xb5],
        &[0; 46][..],
    ]
    .concat();
    Frame::from_bytes(&bytes).expect("fits")
}

/// Puts frames in on one side and waits for as many on the other.
fn pass(from: &Mem, to: &Mem, frames: Vec<Frame>) {
    let count = frames.len();
    for frame in frames {
        assert!(from.push(frame).is_ok(), "there is room");
    }
    let (mut got, end) = (0, Instant::now() + Duration::from_secs(10));
    while got < count {
        match to.pop() {
            Some(frame) => {
                got += 1;
                drop(black_box(frame));
            }
            None => std::thread::yield_now(),
        }
        assert!(got > 0 || Instant::now() < end, "frames come out");
    }
}

fn turn(c: &mut Criterion) {
    let (worker, [a, b]) = bridged();
    pass(&a, &b, vec![from_to(1, 2)]);
    pass(&b, &a, vec![from_to(2, 1)]);
    let mut group = c.benchmark_group("turn");
    group.throughput(Throughput::Elements(BATCH_SIZE as u64));
    group.bench_function("64_frames_between_mem_ports", |bench| {
        bench.iter_batched(
            || (0..BATCH_SIZE).map(|_| from_to(1, 2)).collect(),
            |frames| pass(&a, &b, frames),
            BatchSize::SmallInput,
        );
    });
    group.finish();
    worker.stop();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = parse, fdb, checksum, segmentation, pool, turn
}
criterion_main!(benches);
