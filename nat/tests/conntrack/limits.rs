//! Full tables, floods, sources at their limit, and a million connections.

use crate::rig::*;

#[test]
fn a_flood_pushes_out_itself() {
    const MAX: u32 = 1000;
    let mut rig = Rig::sized(MAX);
    let established: Vec<ConnId> = (1..=100)
        .map(|n| rig.establish(tcp(&format!("192.0.2.1:{n}"), "198.51.100.1:80")))
        .collect();
    let closed = rig.establish(tcp("192.0.2.2:1", "198.51.100.1:80"));
    rig.hit(&segment(
        tcp("192.0.2.2:1", "198.51.100.1:80"),
        flag::RST,
        1,
        0,
    ));
    let asked = datagram(udp("192.0.2.3:1", "198.51.100.1:53"));
    let answered = rig.open(&asked).expect("room");
    rig.hit(&datagram(asked.tuple.reversed()));
    for n in 0..20_000u32 {
        if n % 100 == 0 {
            rig.wait(1);
        }
        let t = nth(n);
        let syn = Tuple::new(
            1,
            proto::TCP,
            (t.src(), t.src_port).into(),
            (t.dst(), 80).into(),
        );
        let packet = if n % 2 == 0 {
            datagram(t)
        } else {
            segment(syn, flag::SYN, n, 0)
        };
        rig.open(&packet).expect("the oldest gives way");
    }
    assert_eq!(rig.ct.count(), MAX);
    for id in established.iter().chain([&closed]) {
        assert!(rig.state(*id).is_some(), "{id:?} was pushed out");
    }
    assert!(rig.state(answered).is_none(), "expired after 120 s");
    let evicted = rig.ct.counters().evicted;
    assert_eq!(evicted[1..], [0, 0, 0]);
    // The flood's victims go oldest first, of both protocols alike.
    let order: Vec<Tuple> = rig
        .ended
        .iter()
        .filter(|(_, why)| *why == EndReason::Evicted)
        .map(|(t, _)| *t)
        .collect();
    let number = |t: &Tuple| match t.src() {
        std::net::IpAddr::V6(ip) => {
            let s = ip.segments();
            u32::from(s[2]) << 20 | u32::from(s[3]) << 4 | u32::from(t.src_port)
        }
        std::net::IpAddr::V4(ip) => panic!("{ip} evicted"),
    };
    assert!(order.len() > 18_000);
    for pair in order.windows(2) {
        // Within a second there is no order.
        assert!(number(&pair[0]) / 100 <= number(&pair[1]) / 100);
    }
}

#[test]
fn classes_give_way_in_order_and_the_last_not_at_all() {
    let mut rig = Rig::sized(4);
    let lone = datagram(udp("192.0.2.1:1", "198.51.100.1:5000")).tuple;
    let asked = udp("192.0.2.1:2", "198.51.100.1:53");
    let closed = tcp("192.0.2.1:3", "198.51.100.1:80");
    let kept = tcp("192.0.2.1:4", "198.51.100.1:80");
    // The assured one is oldest, the embryonic one youngest.
    rig.establish(kept);
    rig.wait(1);
    rig.open(&datagram(asked)).expect("room");
    rig.hit(&datagram(asked.reversed()));
    rig.wait(1);
    rig.establish(closed);
    rig.hit(&segment(closed, flag::RST, 1, 0));
    rig.wait(1);
    rig.open(&datagram(lone)).expect("room");
    for class in Class::ALL {
        assert_eq!(rig.ct.count_of(class), 1);
    }
    for n in 0..3 {
        rig.establish(tcp(&format!("192.0.2.9:{n}"), "198.51.100.1:80"));
    }
    let evicted: Vec<Tuple> = rig.ended.iter().map(|(t, _)| *t).collect();
    assert_eq!(evicted, [lone, closed, asked]);
    assert_eq!(rig.open(&datagram(lone)), Err(ConfirmError::Full));
    assert_eq!(rig.ct.counters().full, 1);
    let config = Config {
        evict: Class::Assured,
        ..rig.ct.config().clone()
    };
    rig.ct.configure(config);
    rig.open(&datagram(lone)).expect("the oldest gives way");
    assert_eq!(rig.ended[3], (kept, EndReason::Evicted));
    assert_eq!(rig.ct.counters().evicted, [1; 4]);
}

#[test]
fn eviction_passes_over_the_refreshed() {
    let mut rig = Rig::sized(20);
    for n in 0..20 {
        rig.open(&datagram(nth(n))).expect("room");
        rig.wait(1);
    }
    for n in 0..10 {
        rig.hit(&datagram(nth(n)));
    }
    for n in 100..110 {
        rig.open(&datagram(nth(n))).expect("room");
    }
    let evicted: Vec<Tuple> = rig.ended.iter().map(|(t, _)| *t).collect();
    assert_eq!(evicted, (10..20).map(nth).collect::<Vec<_>>());
}

#[test]
fn a_source_has_its_limit() {
    let mut rig = Rig::new(Config {
        max_entries: 100,
        per_source: Some(3),
        ..Config::default()
    });
    let from = |n: u16, ip: &str| datagram(udp(&format!("{ip}:{n}"), "198.51.100.1:9"));
    for n in 0..3 {
        rig.open(&from(n, "192.0.2.1")).expect("below");
    }
    let over = rig.open(&from(3, "192.0.2.1"));
    assert_eq!(over, Err(ConfirmError::SourceLimit));
    rig.open(&from(3, "192.0.2.2")).expect("another source");
    rig.wait(200);
    rig.open(&from(3, "192.0.2.1")).expect("the others expired");
    // An IPv6 source is its /64.
    let v6 = |host: u16| {
        datagram(udp(
            &format!("[2001:db8:0:1::{host:x}]:1"),
            "[2001:db8::1]:9",
        ))
    };
    for host in 1..4 {
        rig.open(&v6(host)).expect("below");
    }
    assert_eq!(rig.open(&v6(4)), Err(ConfirmError::SourceLimit));
    assert_eq!(rig.ct.count_from(&v6(9).tuple), 3);
    assert_eq!(rig.ct.counters().source_limited, 2);
}

#[test]
fn a_tick_stays_within_its_budget() {
    let mut rig = Rig::sized(1000);
    for n in 0..1000 {
        rig.open(&datagram(nth(n))).expect("room");
    }
    rig.now = rig.now.after(Duration::from_secs(121));
    for round in 1..=100 {
        let due = rig.tick(10);
        assert_eq!(rig.ended.len(), round * 10);
        assert!(due == rig.now || round == 100);
    }
    assert_eq!(rig.tick(10), Nanos::MAX);
}

#[test]
fn a_million_connections() {
    const MAX: u32 = 1_000_000;
    for max in [262_144, MAX] {
        let ct = Rig::sized(max).ct;
        let per_flow = ct.memory() / max as usize;
        println!("{max} connections: {per_flow} bytes each, all included");
        assert!(per_flow <= 256, "{per_flow} bytes per connection");
    }
    let mut rig = Rig::sized(MAX);
    let (mut longest, start) = (Duration::ZERO, Instant::now());
    for n in 0..MAX + 10_000 {
        let call = Instant::now();
        rig.open(&datagram(nth(n))).expect("room");
        longest = longest.max(call.elapsed());
    }
    println!("entered in {:?}, longest {longest:?}", start.elapsed());
    assert_eq!(rig.ct.count(), MAX);
    for n in (10_000..MAX + 10_000).step_by(997) {
        assert_eq!(rig.hit(&datagram(nth(n))).dir, Dir::Original);
    }
    let before = rig.ct.lookup(&nth(500_000)).expect("there").0;
    rig.now = rig.now.after(Duration::from_secs(121));
    let mut longest = Duration::ZERO;
    while rig.ct.count() > 0 {
        let call = Instant::now();
        rig.tick(256);
        longest = longest.max(call.elapsed());
    }
    println!("longest tick of 256: {longest:?}");
    rig.tick(256);
    // Memory was given back; names of the dead stay void.
    for n in 0..600_000 {
        rig.open(&datagram(nth(n))).expect("room");
    }
    assert!(rig.ct.get(before).is_none());
}
