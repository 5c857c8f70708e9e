//! Cost of judging a new connection by policies of 10, 1,000 and 10,000 rules.
//!
//! `cargo bench -p vswitch-bench --bench policy`. Per iteration one key out of 4,096 drawn ones, so that nothing found for one helps the
//! next. `services` is what an orchestrator writes: policies by label, with a rule per peer (a label, a prefix, an address)
//! and service; `mixed` is the same in no order. `any_source` has rules that differ in destination and port alone. `nested` is hostile: prefixes within
//! prefixes and ranges within ranges, all overlapping. `miss` are keys that no rule but the last matches. `linear` reads the rules
//! one by one, for comparison.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::net::IpAddr;
use std::time::Duration;
use vswitch_core::bridge::NetworkId;
use vswitch_core::clock::Nanos;
use vswitch_core::port::PortId;
use vswitch_nat::policy::{
    Action, Compiled, End, Key, LabelId, Names, PolicyConfig, PortInfo, Rule, State,
};

const NOW: Nanos = Nanos(3_600_000_000_000);
const KEYS: usize = 4096;
const LABELS: u32 = 100;
const PORTS: u32 = 1000;

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

fn ports() -> Vec<PortInfo> {
    let info = |i: u32| PortInfo {
        port: PortId(i as u16),
        network: NetworkId((i % 10) as u16),
        labels: vec![LabelId((i % LABELS) as u16)],
    };
    (0..PORTS).map(info).collect()
}

fn end(f: impl FnOnce(&mut End)) -> Vec<End> {
    let mut end = End::default();
    f(&mut end);
    vec![end]
}

fn address(base: [u8; 4], n: u32) -> IpAddr {
    IpAddr::from((u32::from_be_bytes(base) + n).to_be_bytes())
}

fn services(n: usize, d: &mut Draw) -> Vec<Rule> {
    let rule = |i: usize| {
        let mut r = Rule::new(&i.to_string(), Action::Accept);
        r.protocols = vec![if d.below(5) == 0 { 17 } else { 6 }];
        let port = [80, 443, 5432, 6379, 8080, 9090][d.below(6) as usize];
        r.ports = vec![(port, port)];
        match d.below(4) {
            0 => r.from = end(|e| e.prefixes = vec![(address([192, 0, 2, 0], d.below(256)), 32)]),
            1 => {
                let net = address([10, 0, 0, 0], d.below(1 << 16) << 8);
                r.from = end(|e| e.prefixes = vec![(net, 24)]);
            }
            _ => r.from = end(|e| e.labels = vec![LabelId(d.below(LABELS) as u16)]),
        }
        let label = (i * LABELS as usize / n) as u16;
        r.to = end(|e| e.labels = vec![LabelId(label)]);
        r
    };
    (0..n).map(rule).collect()
}

fn mixed(n: usize, d: &mut Draw) -> Vec<Rule> {
    let mut rules = services(n, d);
    for i in (1..n).rev() {
        rules.swap(i, d.below(i as u32 + 1) as usize);
    }
    rules
}

fn any_source(n: usize, d: &mut Draw) -> Vec<Rule> {
    let rule = |i: usize| {
        let mut r = Rule::new(&i.to_string(), Action::Accept);
        let (low, len) = (d.below(60_000) as u16, d.below(3) as u16);
        r.ports = vec![(low, low + len)];
        r.to = end(|e| e.prefixes = vec![(address([10, 0, 0, 0], d.below(1 << 20)), 32)]);
        r
    };
    (0..n).map(rule).collect()
}

fn nested(n: usize, _d: &mut Draw) -> Vec<Rule> {
    let rule = |i: usize| {
        let mut r = Rule::new(&i.to_string(), Action::Accept);
        let (a, len) = ((i % 30_000) as u16, (i % 33) as u8);
        r.ports = vec![(a, u16::MAX - a)];
        r.to = end(|e| e.prefixes = vec![(address([10, 0, 0, 0], 0), len)]);
        r.from = end(|e| e.prefixes = vec![(address([10, 0, 0, 0], i as u32), 32 - len)]);
        r
    };
    (0..n).map(rule).collect()
}

fn keys(hit: bool) -> Vec<Key> {
    let mut d = Draw(7);
    let key = |_| {
        let (from, to) = (d.below(PORTS) as u16, d.below(PORTS) as u16);
        Key {
            from_port: Some(PortId(from)),
            from_network: Some(NetworkId(from % 10)),
            to_port: Some(PortId(to)),
            to_network: Some(NetworkId(to % 10)),
            src: address([10, 0, 0, 0], d.below(1 << 24)),
            dst: address([10, 0, 0, 0], d.below(1 << 20)),
            proto: if hit { 6 } else { 132 },
            source_port: 40_000 + d.below(20_000) as u16,
            port: [80, 443, 5432, 6379, 8080, 22][d.below(6) as usize],
            icmp: (0, 0),
            state: State::New,
        }
    };
    (0..KEYS).map(key).collect()
}

fn compile(mut rules: Vec<Rule>) -> Option<Compiled> {
    rules.push(Rule::new("default", Action::Drop));
    let config = PolicyConfig {
        rules,
        default: Action::Accept,
        ports: ports(),
    };
    Compiled::new(1, config, None).ok()
}

type Make = fn(usize, &mut Draw) -> Vec<Rule>;

fn judge(c: &mut Criterion) {
    let sets: [(&str, Make, bool); 6] = [
        ("mixed", mixed, true),
        ("services", services, true),
        ("services_miss", services, false),
        ("any_source", any_source, true),
        ("any_source_miss", any_source, false),
        ("nested", nested, true),
    ];
    let mut group = c.benchmark_group("policy");
    let names = Names::default();
    for n in [10, 1000, 10_000] {
        for (name, make, hit) in sets {
            let Some(policy) = compile(make(n, &mut Draw(1))) else {
                println!("policy/{name}/{n}: refused, it would take too much memory");
                continue;
            };
            println!("policy/{name}/{n}: {} KiB", policy.memory() >> 10);
            let keys = keys(hit);
            let mut i = 0;
            group.bench_function(BenchmarkId::new(name, n), |b| {
                b.iter(|| {
                    i = (i + 1) % KEYS;
                    black_box(policy.judge(&keys[i], &names, NOW))
                });
            });
            if name == "services" {
                group.bench_function(BenchmarkId::new("linear", n), |b| {
                    b.iter(|| {
                        i = (i + 1) % KEYS;
                        black_box(policy.explain(&keys[i], &names, NOW).decision)
                    });
                });
            }
        }
    }
    group.finish();
}

fn compiling(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy_compile");
    group.sample_size(10);
    for n in [1000, 10_000] {
        let rules = services(n, &mut Draw(1));
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter(|| compile(rules.clone()).map(|c| c.memory()));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = judge, compiling
}
criterion_main!(benches);
