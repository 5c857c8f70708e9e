//! What control does: other timeouts, dumps, flushes, events, restart.

use crate::rig::*;

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
