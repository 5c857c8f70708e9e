//! The gateway's whole turn over a batch, bridge and translation included: cost per frame with 1,000 and with 1,000,000 connections,
//! cost of a new connection, and what a connection takes of memory.
//!
//! `cargo bench -p vswitch-bench --bench gateway`. One iteration of `known` is one batch of 64 UDP datagrams of 64 bytes of drawn
//! connections, one batch after the other inwards and outwards. `new` is a batch of 64 first datagrams, each of which is judged, has a
//! port leased and its connection entered; what is printed is measured once, while a million connections are made. Times are this
//! thread's own (CLOCK_THREAD_CPUTIME_ID): on a busy machine those of others don't count, though what they put out of the cache does.

mod common;

use common::Draw;
use common::gateway::{MILLION, batch, clock, forwarded, gateway, of};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nix::time::ClockId;
use std::hint::black_box;
use std::time::Duration;
use vswitch_core::frame::BATCH_SIZE;
use vswitch_core::port::PortId;
use vswitch_core::worker::{Cx, Stage};
use vswitch_nat::Pipeline;

/// Processor time of this thread.
fn spent_here() -> Duration {
    let now = ClockId::CLOCK_THREAD_CPUTIME_ID.now();
    now.expect("the thread's clock").into()
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
