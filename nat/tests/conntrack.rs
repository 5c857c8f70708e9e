//! Connection tracking through its interface: lives of connections, limits and floods, dumps, restart.

use std::net::SocketAddr;
use std::time::{Duration, Instant};
use vswitch_core::clock::Nanos;
use vswitch_nat::conntrack::{
    Class, Config, ConfirmError, Conn, ConnId, Conntrack, Cursor, Dir, EndReason, Event, Hint, Hit,
    Invalid, Packet, Record, State, TcpSegment, Timeout, Timeouts, Track, Transport, Tuple, User,
    flag, proto,
};

const START: u64 = 3600;

/// A table, its clock, and what has ended.
struct Rig {
    ct: Conntrack,
    now: Nanos,
    ended: Vec<(Tuple, EndReason)>,
}

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

fn udp(src: &str, dst: &str) -> Tuple {
    Tuple::new(1, proto::UDP, addr(src), addr(dst))
}

fn tcp(src: &str, dst: &str) -> Tuple {
    Tuple::new(1, proto::TCP, addr(src), addr(dst))
}

/// UDP from one of many sources.
fn nth(n: u32) -> Tuple {
    let src = format!(
        "[2001:db8:{:x}:{:x}::1]:{}",
        n >> 20,
        n >> 4 & 0xffff,
        n & 15
    );
    udp(&src, "[2001:db8::1]:5000")
}

fn datagram(tuple: Tuple) -> Packet {
    Packet {
        tuple,
        transport: Transport::Other,
        packets: 1,
        bytes: 100,
    }
}

fn segment(tuple: Tuple, flags: u8, seq: u32, ack: u32) -> Packet {
    Packet {
        transport: Transport::Tcp(TcpSegment {
            flags,
            seq,
            ack,
            window: 5000,
            len: 0,
            scale: None,
        }),
        ..datagram(tuple)
    }
}

impl Rig {
    fn new(config: Config) -> Rig {
        let now = Nanos(START * 1_000_000_000);
        Rig {
            ct: Conntrack::new(config, now),
            now,
            ended: vec![],
        }
    }

    fn sized(max_entries: u32) -> Rig {
        Rig::new(Config {
            max_entries,
            ..Config::default()
        })
    }

    fn track(&mut self, packet: &Packet) -> Track {
        let ended = &mut self.ended;
        self.ct.track(packet, self.now, &mut |c: &Conn, why| {
            ended.push((*c.tuple(Dir::Original), why));
        })
    }

    fn hit(&mut self, packet: &Packet) -> Hit {
        match self.track(packet) {
            Track::Hit(hit) => hit,
            other => panic!("{}: {other:?}", packet.tuple),
        }
    }

    fn confirm(&mut self, packet: &Packet, reply: Tuple) -> Result<ConnId, ConfirmError> {
        let Track::New(pending) = self.track(packet) else {
            panic!("{} is known", packet.tuple);
        };
        let ended = &mut self.ended;
        let user = User {
            nat: 7,
            epoch: 1,
            rule: 2,
        };
        self.ct
            .confirm(pending, reply, user, self.now, &mut |c: &Conn, why| {
                ended.push((*c.tuple(Dir::Original), why));
            })
    }

    fn open(&mut self, packet: &Packet) -> Result<ConnId, ConfirmError> {
        self.confirm(packet, packet.tuple.reversed())
    }

    fn establish(&mut self, tuple: Tuple) -> ConnId {
        let id = self.open(&segment(tuple, flag::SYN, 0, 0)).expect("room");
        let back = tuple.reversed();
        self.hit(&segment(back, flag::SYN | flag::ACK, 100, 1));
        let hit = self.hit(&segment(tuple, flag::ACK, 1, 101));
        assert_eq!(hit.change, Some(State::Established));
        id
    }

    fn wait(&mut self, secs: u32) {
        self.now = self.now.after(Duration::from_secs(secs.into()));
        while self.tick(1000) <= self.now {}
    }

    fn tick(&mut self, budget: usize) -> Nanos {
        let ended = &mut self.ended;
        self.ct.tick(self.now, budget, &mut |c: &Conn, why| {
            ended.push((*c.tuple(Dir::Original), why));
        })
    }

    fn state(&self, id: ConnId) -> Option<State> {
        self.ct.get(id).map(Conn::state)
    }

    fn records(&self) -> Vec<Record> {
        let (mut all, mut at) = (vec![], Some(Cursor::default()));
        while let Some(cursor) = at {
            let (some, next) = self.ct.dump(cursor, 7, self.now);
            assert!(some.len() <= 7);
            all.extend(some);
            at = next;
        }
        all
    }
}

#[test]
fn a_pending_connection_leaves_no_trace_until_confirmed() {
    let mut rig = Rig::sized(10);
    let packet = datagram(udp("192.0.2.1:4000", "198.51.100.1:53"));
    for _ in 0..3 {
        assert!(matches!(rig.track(&packet), Track::New(_)));
    }
    assert_eq!(rig.ct.count(), 0);
    // Masqueraded.
    let reply = udp("198.51.100.1:53", "203.0.113.1:61000");
    let id = rig.confirm(&packet, reply).expect("room");
    let hit = rig.hit(&packet);
    assert_eq!((hit.id, hit.dir, hit.user.nat), (id, Dir::Original, 7));
    let back = rig.hit(&datagram(reply));
    assert_eq!(
        (back.id, back.dir, back.change),
        (id, Dir::Reply, Some(State::Replied))
    );
    let conn = rig.ct.get(id).expect("lives");
    assert_eq!(
        (conn.packets(Dir::Original), conn.bytes(Dir::Reply)),
        (2, 100)
    );
    assert!(matches!(
        rig.track(&datagram(packet.tuple.reversed())),
        Track::New(_)
    ));
    assert!(
        matches!(rig.track(&datagram(packet.tuple.in_zone(2))), Track::New(_)),
        "another network"
    );
    let c = rig.ct.counters();
    assert_eq!((c.new, c.confirmed, c.found), (6, 1, 2));
}

#[test]
fn tuples_belong_to_one_connection() {
    let mut rig = Rig::sized(10);
    let reply = udp("198.51.100.1:53", "203.0.113.1:61000");
    let (a, b) = (
        datagram(udp("192.0.2.1:4000", "198.51.100.1:53")),
        datagram(udp("192.0.2.2:4000", "198.51.100.1:53")),
    );
    let Track::New(pending) = rig.track(&a) else {
        panic!("known");
    };
    rig.confirm(&a, reply).expect("room");
    assert_eq!(rig.confirm(&b, reply), Err(ConfirmError::Clash));
    let again = rig.ct.confirm(
        pending,
        a.tuple.reversed(),
        User::default(),
        rig.now,
        &mut |_, _| panic!("nothing ends"),
    );
    assert_eq!(again, Err(ConfirmError::Clash), "the first one is entered");
    assert_eq!((rig.ct.count(), rig.ct.counters().clashes), (1, 2));
    // With itself.
    let same = datagram(udp("192.0.2.1:9", "192.0.2.1:9"));
    let id = rig.open(&same).expect("room");
    assert_eq!(rig.hit(&same).dir, Dir::Original);
    assert!(rig.ct.remove(id, rig.now, &mut |_, _| {}));
    assert!(matches!(rig.track(&same), Track::New(_)));
}

#[test]
fn idle_connections_expire_on_time_and_busy_ones_dont() {
    let mut rig = Rig::sized(10);
    let lone = datagram(udp("192.0.2.1:1", "198.51.100.1:5000"));
    let dns = datagram(udp("192.0.2.1:2", "198.51.100.1:53"));
    let busy = datagram(udp("192.0.2.1:3", "198.51.100.1:5000"));
    for p in [lone, dns, busy] {
        rig.open(&p).expect("room");
    }
    rig.wait(30);
    assert_eq!(rig.ended, [], "not before its time is over");
    rig.hit(&busy);
    rig.wait(1);
    assert_eq!(rig.ended, [(dns.tuple, EndReason::Expired)]);
    rig.wait(89);
    assert_eq!(rig.ct.count(), 2);
    rig.wait(1);
    assert_eq!(rig.ended[1..], [(lone.tuple, EndReason::Expired)]);
    rig.wait(29);
    assert_eq!(rig.ct.count(), 1);
    rig.wait(1);
    assert_eq!(rig.ended[2..], [(busy.tuple, EndReason::Expired)]);
    assert_eq!(rig.tick(10), Nanos::MAX, "nothing to wake for");
}

#[test]
fn datagrams_both_ways_become_a_stream() {
    let mut rig = Rig::sized(10);
    let packet = datagram(udp("192.0.2.1:1", "198.51.100.1:53"));
    let back = datagram(packet.tuple.reversed());
    let id = rig.open(&packet).expect("room");
    let class = |rig: &Rig| rig.ct.get(id).map(|c| (c.timeout(), c.class()));
    assert_eq!(class(&rig), Some((Timeout::UdpWellKnown, Class::Embryonic)));
    rig.hit(&back);
    assert_eq!(class(&rig), Some((Timeout::UdpReplied, Class::Replied)));
    rig.wait(100);
    rig.hit(&packet);
    assert_eq!(rig.state(id), Some(State::Replied), "asks again");
    rig.hit(&back);
    assert_eq!(class(&rig), Some((Timeout::UdpStream, Class::Assured)));
    rig.wait(300);
    assert_eq!(rig.ct.count(), 1);
    rig.wait(1);
    assert_eq!(rig.ct.count(), 0);
}

#[test]
fn tcp_lives_as_long_as_rfc_5382_asks() {
    let mut rig = Rig::sized(10);
    let quiet = tcp("192.0.2.1:1", "198.51.100.1:80");
    let (done, half) = (
        tcp("192.0.2.1:2", "198.51.100.1:80"),
        tcp("192.0.2.1:3", "198.51.100.1:80"),
    );
    rig.establish(quiet);
    rig.establish(half);
    let id = rig.establish(done);
    let fin = flag::FIN | flag::ACK;
    for t in [done, half] {
        rig.hit(&segment(t, fin, 1, 101));
        rig.hit(&segment(t.reversed(), flag::ACK, 101, 2));
    }
    assert_eq!(rig.state(id), Some(State::CloseWait));
    rig.hit(&segment(done.reversed(), fin, 101, 2));
    rig.hit(&segment(done, flag::ACK, 2, 102));
    assert_eq!(rig.state(id), Some(State::TimeWait));
    rig.wait(240);
    assert_eq!(rig.ct.count(), 3);
    rig.wait(1);
    assert_eq!(rig.ended, [(done, EndReason::Expired)]);
    rig.wait(7440 - 241);
    assert_eq!(rig.ct.count(), 2, "2 hours 4 minutes");
    rig.wait(1);
    assert_eq!(rig.ct.count(), 0);
}

#[test]
fn a_tuple_used_again_is_a_new_connection() {
    let mut rig = Rig::sized(10);
    let t = tcp("192.0.2.1:1", "198.51.100.1:80");
    let id = rig.establish(t);
    rig.hit(&segment(t, flag::RST, 1, 0));
    assert_eq!(rig.state(id), Some(State::Closed));
    let syn = segment(t, flag::SYN, 99, 0);
    let again = rig.open(&syn).expect("room");
    assert_eq!(rig.ended, [(t, EndReason::Reopened)]);
    assert_ne!(again, id);
    assert_eq!(rig.state(id), None, "the old name is void");
    assert!(rig.ct.user_mut(id).is_none() && !rig.ct.set_mark(id, 1));
    assert_eq!(rig.state(again), Some(State::SynSent));
    // From the other side as well.
    rig.hit(&segment(t.reversed(), flag::RST | flag::ACK, 0, 100));
    let theirs = segment(t.reversed(), flag::SYN, 5, 0);
    rig.open(&theirs).expect("room");
    assert_eq!(rig.hit(&theirs).dir, Dir::Original);
}

#[test]
fn what_is_refused_is_counted_and_changes_nothing() {
    let mut rig = Rig::sized(10);
    let t = tcp("192.0.2.1:1", "198.51.100.1:80");
    let id = rig.establish(t);
    rig.wait(100);
    let ping = Tuple::new(1, proto::ICMP, addr("192.0.2.1:77"), addr("198.51.100.1:0"));
    for (packet, reason) in [
        (segment(t, flag::RST, 1 << 30, 0), Invalid::Reset),
        (segment(t, flag::ACK, 1 << 30, 101), Invalid::Window),
        (segment(t, 0, 1, 101), Invalid::Flags),
        (
            segment(t.reversed().in_zone(9), flag::RST, 1, 0),
            Invalid::NotSyn,
        ),
        (datagram(ping.reversed()), Invalid::Unsolicited),
    ] {
        let before = rig.ct.counters().invalid[reason as usize];
        assert!(matches!(rig.track(&packet), Track::Invalid(r) if r == reason));
        assert_eq!(rig.ct.counters().invalid[reason as usize], before + 1);
    }
    let record = rig.ct.record_of(id, rig.now).expect("lives");
    assert_eq!(
        (record.idle, record.state, record.packets),
        (100, State::Established, [2, 1])
    );
    rig.open(&datagram(ping)).expect("room");
    rig.hit(&datagram(ping.reversed()));
}

#[test]
fn errors_find_the_connection_they_quote() {
    let mut rig = Rig::sized(10);
    let original = tcp("192.0.2.1:4000", "198.51.100.1:80");
    let reply = tcp("198.51.100.1:80", "203.0.113.1:61000");
    let id = rig
        .confirm(&segment(original, flag::SYN, 500, 0), reply)
        .expect("room");
    // From a router outside, about what it saw: the translated packet. The error goes inwards.
    assert_eq!(
        rig.ct.lookup_inner(&reply.reversed()),
        Some((id, Dir::Reply))
    );
    // From inside, about an answer.
    assert_eq!(
        rig.ct.lookup_inner(&original.reversed()),
        Some((id, Dir::Original))
    );
    assert_eq!(rig.ct.lookup_inner(&original), None, "never seen out there");
    assert!(rig.ct.in_flight(id, Dir::Reply, 500));
    assert!(!rig.ct.in_flight(id, Dir::Reply, 77_000));
    let conn = rig.ct.get(id).expect("lives");
    assert_eq!((conn.state(), conn.replied()), (State::SynSent, false));
    let ping = Tuple::new(1, proto::ICMP, addr("192.0.2.1:77"), addr("198.51.100.1:0"));
    let id = rig.open(&datagram(ping)).expect("room");
    assert_eq!(rig.ct.lookup_inner(&ping), Some((id, Dir::Reply)));
}

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
fn other_timeouts_hold_for_connections_that_live() {
    let mut rig = Rig::sized(1000);
    for n in 0..1000 {
        rig.open(&datagram(nth(n))).expect("room");
    }
    let set = |rig: &mut Rig, secs| {
        let timeouts = Timeouts::default().with(Timeout::UdpUnreplied, secs);
        let config = Config {
            timeouts,
            ..rig.ct.config().clone()
        };
        rig.ct.configure(config);
    };
    set(&mut rig, 10);
    rig.wait(10);
    assert_eq!(rig.ct.count(), 1000);
    set(&mut rig, 500_000);
    rig.wait(490_000);
    assert_eq!(rig.ct.count(), 1000, "longer than a wheel");
    set(&mut rig, 490_100);
    rig.wait(90);
    assert_eq!(rig.ct.count(), 1000);
    rig.wait(1);
    assert_eq!(rig.ct.count(), 0);
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
fn dump_and_flush_meet_each_once_in_pieces() {
    let mut rig = Rig::sized(1000);
    for n in 0..100 {
        rig.open(&datagram(nth(n))).expect("room");
    }
    let mut tuples: Vec<Tuple> = rig.records().iter().map(|r| r.original).collect();
    assert_eq!(tuples.len(), 100);
    tuples.sort_by_key(|t| (t.src(), t.src_port));
    tuples.dedup();
    assert_eq!(tuples.len(), 100);
    let (mut at, mut flushed) = (Some(Cursor::default()), 0);
    while let Some(cursor) = at {
        let ended = &mut rig.ended;
        let odd = |c: &Conn| c.tuple(Dir::Original).src_port % 2 == 1;
        let (some, next) = rig.ct.flush(cursor, 7, rig.now, odd, &mut |c, why| {
            ended.push((*c.tuple(Dir::Original), why));
        });
        assert!(some <= 7);
        flushed += some;
        at = next;
    }
    assert_eq!((flushed, rig.ended.len(), rig.ct.count()), (50, 50, 50));
    let odd = rig.records().iter().any(|r| r.original.src_port % 2 == 1);
    assert!(!odd);
    rig.open(&datagram(nth(1))).expect("its place is free");
}

#[test]
fn connections_survive_a_restart() {
    let mut rig = Rig::sized(100);
    let t = tcp("192.0.2.1:1", "198.51.100.1:80");
    let id = rig.establish(t);
    assert!(rig.ct.set_mark(id, 5));
    rig.open(&datagram(nth(1))).expect("room");
    rig.wait(50);
    let written = rig.records();
    let mut next = Rig::new(Config {
        max_entries: 100,
        seed: 99,
        ..Config::default()
    });
    // Another clock.
    next.now = Nanos(100_000 * 1_000_000_000);
    next.ct = Conntrack::new(next.ct.config().clone(), next.now);
    for record in &written {
        next.ct
            .import(record, next.now, &mut |_, _| panic!("there is room"))
            .expect("room");
    }
    assert_eq!(next.records(), written);
    // The window is still known.
    let blind = segment(t.reversed(), flag::RST, 7_000_000, 0);
    assert!(matches!(next.track(&blind), Track::Invalid(Invalid::Reset)));
    let hit = next.hit(&segment(t.reversed(), flag::ACK, 101, 1));
    assert_eq!(hit.user.nat, 7);
    next.wait(70);
    assert_eq!(next.ct.count(), 2);
    next.wait(1);
    assert_eq!(next.ended, [(nth(1), EndReason::Expired)]);
}

#[test]
fn events_are_told_until_nobody_listens() {
    let mut rig = Rig::new(Config {
        max_entries: 100,
        events: 3,
        ..Config::default()
    });
    for n in 0..2 {
        rig.open(&datagram(nth(n))).expect("room");
    }
    rig.wait(121);
    let first = rig.ct.take_event();
    assert!(matches!(first, Some(Event::New(r)) if r.original == nth(0) && r.age == 0));
    assert!(matches!(rig.ct.take_event(), Some(Event::New(_))));
    let last = rig.ct.take_event();
    let expired = |r: Record| r.original == nth(0) && r.age == 121 && r.packets == [1, 0];
    assert!(matches!(last, Some(Event::Ended(r, EndReason::Expired)) if expired(r)));
    assert_eq!(rig.ct.take_event(), None);
    assert_eq!(rig.ct.counters().events_lost, 1);
}

#[test]
fn hints_are_only_hints() {
    let mut rig = Rig::sized(100);
    for n in 0..50 {
        rig.open(&datagram(nth(n))).expect("room");
    }
    let tuples: Vec<Tuple> = (25..75).map(nth).collect();
    let mut hints = [Hint::default(); 60];
    rig.ct.look_ahead(&tuples, &mut hints);
    // Half of what was found goes, others take the places; half of what wasn't comes.
    rig.wait(121);
    for n in (0..10).chain(40..60) {
        rig.open(&datagram(nth(n))).expect("room");
    }
    for ((n, tuple), hint) in (25..75).zip(tuples).zip(hints) {
        let track = rig
            .ct
            .track_hinted(&datagram(tuple), hint, rig.now, &mut |_, _| {});
        match track {
            Track::Hit(hit) => {
                let conn = rig.ct.get(hit.id).expect("lives");
                assert_eq!(conn.tuple(hit.dir), &tuple);
                assert!((40..60).contains(&n));
            }
            Track::New(_) => assert!(!(40..60).contains(&n)),
            Track::Invalid(why) => panic!("{why:?}"),
        }
    }
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
