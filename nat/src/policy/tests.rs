//! The compiled policy against the rules read one by one, and each matcher by itself.

use super::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::net::IpAddr;
use std::time::Duration;
use vswitch_core::bridge::{NetworkId, Rate};
use vswitch_core::clock::Nanos;
use vswitch_core::port::PortId;

const NOW: Nanos = Nanos(1_000_000_000_000);

fn ip(s: &str) -> IpAddr {
    s.parse().expect("an address")
}

fn key() -> Key {
    Key {
        from_port: Some(PortId(1)),
        from_network: Some(NetworkId(1)),
        to_port: Some(PortId(2)),
        to_network: Some(NetworkId(1)),
        src: ip("192.0.2.10"),
        dst: ip("192.0.2.20"),
        proto: 6,
        source_port: 40_000,
        port: 80,
        icmp: (0, 0),
        state: State::New,
    }
}

fn ports() -> Vec<PortInfo> {
    let info = |port, network, labels: &[u16]| PortInfo {
        port: PortId(port),
        network: NetworkId(network),
        labels: labels.iter().map(|l| LabelId(*l)).collect(),
    };
    vec![
        info(1, 1, &[1]),
        info(2, 1, &[2, 3]),
        info(3, 2, &[]),
        info(4, 2, &[1, 3]),
    ]
}

fn compiled(rules: Vec<Rule>) -> Compiled {
    let config = PolicyConfig {
        rules,
        default: Action::Reject,
        ports: ports(),
    };
    Compiled::new(1, config, None).expect("compiles")
}

/// Whether a rule made by `set` matches the key made by `with`; the explanation must say the same.
fn matches(set: impl Fn(&mut Rule), with: impl Fn(&mut Key)) -> bool {
    let mut rule = Rule::new("r", Action::Accept);
    set(&mut rule);
    let mut k = key();
    with(&mut k);
    let c = compiled(vec![rule]);
    let names = Names::default();
    let found = c.judge(&k, &names, NOW);
    assert_eq!(found, c.explain(&k, &names, NOW).decision);
    found.rule.is_some()
}

fn end(f: impl Fn(&mut End)) -> Vec<End> {
    let mut end = End::default();
    f(&mut end);
    vec![end]
}

#[test]
fn ends_match() {
    let labels = |l: u16| move |e: &mut End| e.labels = vec![LabelId(l)];
    assert!(matches(|r| r.from = end(labels(1)), |_| ()));
    assert!(!matches(|r| r.from = end(labels(2)), |_| ()));
    assert!(matches(|r| r.to = end(labels(3)), |_| ()));
    assert!(!matches(|r| r.to = end(labels(9)), |_| ()), "no such port");
    assert!(!matches(|r| r.to = end(labels(3)), |k| k.to_port = None));
    let port = |p: u16| move |e: &mut End| e.ports = vec![PortId(p)];
    assert!(matches(|r| r.to = end(port(2)), |_| ()));
    assert!(!matches(|r| r.to = end(port(1)), |_| ()));
    let network = |n: u16| move |e: &mut End| e.networks = vec![NetworkId(n)];
    assert!(matches(|r| r.from = end(network(1)), |_| ()));
    assert!(!matches(|r| r.from = end(network(2)), |_| ()));
    let prefix = |p: &'static str, len| move |e: &mut End| e.prefixes = vec![(ip(p), len)];
    assert!(matches(|r| r.to = end(prefix("192.0.2.16", 28)), |_| ()));
    assert!(!matches(|r| r.to = end(prefix("192.0.2.0", 28)), |_| ()));
    assert!(matches(|r| r.to = end(prefix("0.0.0.0", 0)), |_| ()));
    let last = |k: &mut Key| k.dst = ip("255.255.255.255");
    assert!(matches(|r| r.to = end(prefix("0.0.0.0", 0)), last));
    assert!(!matches(|r| r.to = end(prefix("::", 0)), |_| ()));
    let v6 = |k: &mut Key| k.dst = ip("2001:db8::9");
    assert!(matches(|r| r.to = end(prefix("2001:db8::", 64)), v6));
    // Alternatives of several kinds, and ends that must all match.
    let mixed = |e: &mut End| {
        e.labels = vec![LabelId(9)];
        e.prefixes = vec![(ip("192.0.2.20"), 32)];
    };
    assert!(matches(|r| r.to = end(mixed), |_| ()));
    let two = |r: &mut Rule| r.to = [end(mixed), end(labels(2))].concat();
    assert!(matches(two, |_| ()));
    let not = |r: &mut Rule| r.to = [end(mixed), end(labels(1))].concat();
    assert!(!matches(not, |_| ()));
}

#[test]
fn transport_matches() {
    assert!(matches(|r| r.protocols = vec![6, 17], |_| ()));
    assert!(!matches(|r| r.protocols = vec![17], |_| ()));
    assert!(matches(|r| r.ports = vec![(1, 79), (80, 80)], |_| ()));
    assert!(!matches(|r| r.ports = vec![(1, 79), (81, 65_535)], |_| ()));
    let high = |k: &mut Key| k.port = 65_535;
    assert!(matches(|r| r.ports = vec![(81, 65_535)], high));
    assert!(matches(|r| r.source_ports = vec![(40_000, 40_001)], |_| ()));
    assert!(!matches(|r| r.source_ports = vec![(1, 1023)], |_| ()));
    // Protocols without ports match no rule about ports.
    assert!(!matches(|r| r.ports = vec![(0, 65_535)], |k| k.proto = 47));
    let echo = |k: &mut Key| (k.proto, k.icmp) = (1, (8, 0));
    assert!(matches(|r| r.icmp = vec![(8, None)], echo));
    assert!(matches(|r| r.icmp = vec![(3, Some(4)), (8, Some(0))], echo));
    assert!(!matches(|r| r.icmp = vec![(8, Some(1))], echo));
    assert!(!matches(|r| r.icmp = vec![(8, None)], |_| ()));
    let late = |k: &mut Key| k.state = State::Established;
    let set = StateSet::of(&[State::Established, State::Related]);
    assert!(matches(|r| r.states = set, late));
    assert!(!matches(|r| r.states = set, |_| ()));
    let both = |r: &mut Rule| (r.ports, r.icmp) = (vec![(80, 80)], vec![(8, None)]);
    assert!(!matches(both, |_| ()) && !matches(both, echo));
}

#[test]
fn the_first_match_decides_and_counts() {
    let mut narrow = Rule::new("narrow", Action::Drop);
    narrow.ports = vec![(22, 22)];
    let rules = vec![narrow, Rule::new("rest", Action::Accept)];
    let c = compiled(rules.clone());
    let names = Names::default();
    let judge = |c: &Compiled, port| c.judge(&Key { port, ..key() }, &names, NOW);
    assert_eq!(judge(&c, 22).action, Action::Drop);
    assert_eq!(judge(&c, 80).rule, Some(1));
    let d = c.charge(judge(&c, 80), NOW);
    c.count(d.rule, 3, 300);
    // A change of the policy keeps the counters of rules that stay.
    let config = PolicyConfig {
        rules: vec![rules[1].clone()],
        ..PolicyConfig::default()
    };
    let next = Compiled::new(2, config, Some(&c)).expect("compiles");
    let counts = next.counts(Some(0));
    assert_eq!((counts.judged, counts.packets, counts.bytes), (1, 3, 300));
    assert_eq!(judge(&next, 22).action, Action::Accept);
}

#[test]
fn rates_and_logs_are_bounded() {
    let mut rule = Rule::new("slow", Action::Accept);
    rule.limit = Some(Rate {
        per_second: 10,
        burst: 20,
    });
    rule.log = Some(2);
    let c = compiled(vec![rule]);
    let d = c.judge(&key(), &Names::default(), NOW);
    let passed = |second: u64| {
        let now = Nanos(NOW.0 + second * 1_000_000_000);
        let all = (0..100).map(|_| c.charge(d, now));
        all.filter(|d| d.action == Action::Accept).count()
    };
    assert!((19..=21).contains(&passed(0)));
    assert!((9..=11).contains(&passed(1)));
    let counts = c.counts(Some(0));
    assert_eq!(counts.judged, 200);
    assert!((168..=172).contains(&counts.over_rate), "{counts:?}");
    let told = (0..100).filter(|_| c.is_told(d, NOW)).count() as u64;
    assert!((1..=LOG_BURST + 1).contains(&told), "{told}");
}

#[test]
fn names_are_learned_bounded_and_forgotten() {
    let mut rule = Rule::new("web", Action::Accept);
    rule.to = end(|e| e.names = vec!["*.example.com".into(), "one.example".into()]);
    let c = compiled(vec![rule]);
    let mut names = Names::default();
    names.configure(c.config());
    assert!(names.is_on());
    let to = |dst: &str| Key {
        dst: ip(dst),
        ..key()
    };
    let ok = |names: &Names, dst, now| c.judge(&to(dst), names, now).rule.is_some();
    assert!(!ok(&names, "198.51.100.1", NOW));
    let ttl = Duration::from_secs(60);
    names.learn("WWW.Example.com.", &[ip("198.51.100.1")], ttl, NOW);
    names.learn("example.com", &[ip("198.51.100.2")], ttl, NOW);
    names.learn("badexample.com", &[ip("198.51.100.3")], ttl, NOW);
    names.learn("one.example", &[ip("2001:db8::1")], Duration::ZERO, NOW);
    assert!(ok(&names, "198.51.100.1", NOW) && ok(&names, "2001:db8::1", NOW));
    assert!(
        !ok(&names, "198.51.100.2", NOW),
        "the domain itself isn't below it"
    );
    assert!(!ok(&names, "198.51.100.3", NOW));
    assert!(
        !ok(&names, "198.51.100.1", NOW.after(ttl)),
        "its TTL is over"
    );
    for i in 0..MAX_LEARNED as u32 + 100 {
        let a = IpAddr::from((0x0a00_0000 + i).to_be_bytes());
        names.learn("a.example.com", &[a], ttl * 2, NOW);
        assert!(names.len() <= MAX_LEARNED);
    }
    names.configure(&PolicyConfig::default());
    assert!(names.is_empty() && !names.is_on());
}

#[test]
fn networks_with_rules_about_their_own_frames_are_known() {
    let of = |set: &dyn Fn(&mut Rule)| {
        let mut rule = Rule::new("r", Action::Drop);
        set(&mut rule);
        let c = compiled(vec![rule]);
        [1, 2].map(|n| c.judges_bridged(NetworkId(n)))
    };
    let network = |n: u16| end(|e| e.networks = vec![NetworkId(n)]);
    let label = |n: u16| end(|e| e.labels = vec![LabelId(n)]);
    assert_eq!(of(&|_| ()), [true, true]);
    assert_eq!(of(&|r| r.to = network(2)), [false, true]);
    assert_eq!(of(&|r| r.to = label(2)), [true, false]);
    assert_eq!(of(&|r| r.to = label(1)), [true, true]);
    let between = |r: &mut Rule| (r.from, r.to) = (network(1), network(2));
    assert_eq!(of(&between), [false, false]);
    assert!(compiled(Vec::new()).memory() < 1000);
    assert!(!compiled(Vec::new()).judges_any_bridged());
}

#[test]
fn hostile_rules_are_refused_or_bounded() {
    let config = |rules| PolicyConfig {
        rules,
        ..PolicyConfig::default()
    };
    let nested = |n: usize| -> Vec<Rule> {
        let rule = |i: usize| {
            let mut r = Rule::new(&i.to_string(), Action::Drop);
            let (a, b) = (i as u16, u16::MAX - i as u16);
            (r.ports, r.source_ports) = (vec![(a, b)], vec![(a, b)]);
            r.protocols = vec![6];
            r
        };
        (0..n).map(rule).collect()
    };
    // Every range overlaps with every other, twice.
    match Compiled::new(1, config(nested(MAX_RULES)), None) {
        Ok(c) => assert!(c.memory() < 100 << 20, "{}", c.memory()),
        Err(e) => assert_eq!(e, CompileError::TooEntangled),
    }
    let c = Compiled::new(1, config(nested(4000)), None).expect("compiles");
    let k = Key {
        port: 3999,
        source_port: 3999,
        ..key()
    };
    assert_eq!(c.judge(&k, &Names::default(), NOW).rule, Some(0));
    let many = vec![Rule::new("r", Action::Drop); MAX_RULES + 1];
    let e = Compiled::new(1, config(many), None).expect_err("too many");
    assert_eq!(e, CompileError::TooManyRules);
    let mut wide = Rule::new("w", Action::Drop);
    let kinds = |e: &mut End| {
        e.ports = vec![PortId(1)];
        e.networks = vec![NetworkId(1)];
        e.prefixes = vec![(ip("192.0.2.0"), 24)];
        e.names = vec!["a.example".into()];
    };
    (wide.from, wide.to) = (end(kinds), end(kinds));
    let e = Compiled::new(1, config(vec![wide; 4000]), None).expect_err("too many");
    assert_eq!(e, CompileError::TooManyRows);
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        3 => (0u8..4, 0u8..8).prop_map(|(a, b)| IpAddr::from([192, 0, 2 + a, b * 36])),
        1 => any::<u32>().prop_map(|b| IpAddr::from(b.to_be_bytes())),
        2 => (0u16..4, 0u16..4).prop_map(|(a, b)| {
            IpAddr::from([0x2001, 0xdb8, a, 0, 0, 0, 0, b])
        }),
    ]
}

fn any_prefix() -> impl Strategy<Value = (IpAddr, u8)> {
    (any_ip(), 0u8..=128).prop_map(|(ip, len)| (ip, if ip.is_ipv4() { len % 33 } else { len }))
}

const NAMES: [&str; 3] = ["a.example", "*.example", "b.test"];

fn any_end() -> impl Strategy<Value = End> {
    let port = (1u16..6).prop_map(PortId);
    let label = (1u16..5).prop_map(LabelId);
    let network = (1u16..4).prop_map(NetworkId);
    let name = (0..3usize).prop_map(|i| NAMES[i].into());
    let parts = (
        vec(port, 0..2),
        vec(label, 0..2),
        vec(network, 0..2),
        vec(any_prefix(), 0..3),
        vec(name, 0..2),
        0u8..32,
    );
    parts.prop_map(|(ports, labels, networks, prefixes, names, keep)| {
        fn when<T>(keep: bool, list: Vec<T>) -> Vec<T> {
            if keep { list } else { Vec::new() }
        }
        End {
            ports: when(keep & 1 != 0, ports),
            labels: when(keep & 2 != 0, labels),
            networks: when(keep & 4 != 0, networks),
            prefixes: when(keep & 8 != 0, prefixes),
            names: when(keep & 16 != 0, names),
        }
    })
}

fn any_protocol() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![6u8, 17, 132, 1, 58, 47])
}

fn any_ranges() -> impl Strategy<Value = Vec<(u16, u16)>> {
    let port = || prop::sample::select(vec![0u16, 1, 80, 81, 443, 1024, 40_000, 65_535]);
    let range = (port(), port()).prop_map(|(a, b)| (a.min(b), a.max(b)));
    prop_oneof![2 => Just(Vec::new()), 1 => vec(range, 1..4)]
}

fn any_state() -> impl Strategy<Value = State> {
    prop::sample::select(vec![State::New, State::Established, State::Related])
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let states = prop_oneof![
        3 => Just(StateSet::ANY),
        1 => vec(any_state(), 0..3).prop_map(|s| StateSet::of(&s)),
    ];
    let icmp = prop_oneof![
        4 => Just(Vec::new()),
        1 => vec((prop::sample::select(vec![0u8, 3, 8, 128, 255]), option::of(0u8..3)), 1..3),
    ];
    let action = prop::sample::select(vec![Action::Accept, Action::Drop, Action::Reject]);
    (
        (vec(any_end(), 0..3), vec(any_end(), 0..3)),
        prop_oneof![1 => Just(Vec::new()), 1 => vec(any_protocol(), 1..3)],
        (any_ranges(), any_ranges()),
        icmp,
        states,
        action,
    )
        .prop_map(
            |((from, to), protocols, (source_ports, ports), icmp, states, action)| Rule {
                from,
                to,
                protocols,
                source_ports,
                ports,
                icmp,
                states,
                ..Rule::new("r", action)
            },
        )
}

fn any_key() -> impl Strategy<Value = Key> {
    let number = || prop::sample::select(vec![0u16, 1, 79, 80, 82, 443, 39_999, 65_535]);
    let place = || {
        (
            option::of((1u16..6).prop_map(PortId)),
            option::of((1u16..4).prop_map(NetworkId)),
        )
    };
    (
        (place(), place()),
        (any_ip(), any_ip()),
        any_protocol(),
        (number(), number()),
        (prop::sample::select(vec![0u8, 3, 8, 128, 255]), 0u8..3),
        any_state(),
    )
        .prop_map(|((from, to), (src, dst), proto, ports, icmp, state)| Key {
            from_port: from.0,
            from_network: from.1,
            to_port: to.0,
            to_network: to.1,
            src,
            dst,
            proto,
            source_port: ports.0,
            port: ports.1,
            icmp,
            state,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_compiled_policy_is_the_rules(
        rules in vec(any_rule(), 0..120),
        keys in vec(any_key(), 30),
        learned in vec((0..3usize, any_ip()), 0..6),
        repeat in 1usize..3,
    ) {
        // Repeated rules make words and summaries of many rows.
        let rules: Vec<Rule> = std::iter::repeat_n(rules, repeat).flatten().collect();
        let c = compiled(rules);
        let mut names = Names::default();
        names.configure(c.config());
        for (name, address) in learned {
            let name = NAMES[name].replace('*', "x");
            names.learn(&name, &[address], Duration::from_secs(60), NOW);
        }
        for key in keys {
            let why = c.explain(&key, &names, NOW);
            prop_assert_eq!(c.judge(&key, &names, NOW), why.decision, "{:?}", key);
            let last = why.considered.last().filter(|l| l.mismatch.is_none());
            prop_assert_eq!(last.map(|l| l.rule), why.decision.rule);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn a_large_policy_is_its_rules(seed in any::<u32>(), keys in vec(any_key(), 200)) {
        // More than 4,096 rows: several words of summary.
        let rule = |i: u32| {
            let n = i.wrapping_mul(2_654_435_761).wrapping_add(seed);
            let mut r = Rule::new("r", Action::Drop);
            r.to = end(|e| e.prefixes = vec![(IpAddr::from((0xc000_0200 + (n >> 20)).to_be_bytes()), 32 - (n % 3) as u8)]);
            if n & 8 != 0 {
                r.ports = vec![((n >> 8) as u16 % 500, 500)];
            }
            if i == 9000 {
                r.to.clear();
            }
            r
        };
        let c = compiled((0..9001).map(rule).collect());
        let names = Names::default();
        for key in keys {
            prop_assert_eq!(c.judge(&key, &names, NOW), c.explain(&key, &names, NOW).decision);
        }
    }
}
