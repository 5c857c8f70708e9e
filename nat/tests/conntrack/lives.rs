//! What becomes of connections: opened, answered, expired, used again, quoted.

use crate::rig::*;

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
fn hints_are_only_hints() {
    let mut rig = Rig::sized(100);
    for n in 0..50 {
        rig.open(&datagram(nth(n))).expect("room");
    }
    let packets: Vec<Packet> = (25..75).map(nth).map(datagram).collect();
    let mut hints = [Hint::default(); 60];
    rig.ct.look_ahead(&packets, &mut hints);
    // Half of what was found goes, others take the places; half of what wasn't comes.
    rig.wait(121);
    for n in (0..10).chain(40..60) {
        rig.open(&datagram(nth(n))).expect("room");
    }
    for ((n, packet), hint) in (25..75).zip(packets).zip(hints) {
        let track = rig.ct.track_hinted(&packet, hint, rig.now, &mut |_, _| {});
        match track {
            Track::Hit(hit) => {
                let conn = rig.ct.get(hit.id).expect("lives");
                assert_eq!(conn.tuple(hit.dir), &packet.tuple);
                assert!((40..60).contains(&n));
            }
            Track::New(_) => assert!(!(40..60).contains(&n)),
            Track::Invalid(why) => panic!("{why:?}"),
        }
    }
}

#[test]
fn what_was_carried_elsewhere_keeps_a_connection_alive_and_moves_its_state() {
    let mut rig = Rig::sized(10);
    let packet = datagram(udp("192.0.2.1:4000", "198.51.100.1:5353"));
    let id = rig.open(&packet).expect("room");
    let credit = |rig: &mut Rig, dir, packets| {
        let now = rig.now;
        rig.ct.credit(id, dir, (packets, packets * 128), now);
    };
    credit(&mut rig, Dir::Original, 5);
    assert_eq!(rig.state(id), Some(State::Unreplied));
    credit(&mut rig, Dir::Reply, 4);
    assert_eq!(rig.state(id), Some(State::Replied));
    rig.wait(5);
    credit(&mut rig, Dir::Reply, 1);
    assert_eq!(rig.state(id), Some(State::Stream));
    let conn = rig.ct.get(id).expect("lives");
    let counts = [Dir::Original, Dir::Reply].map(|d| (conn.packets(d), conn.bytes(d)));
    let first = u64::from(packet.bytes);
    assert_eq!(counts, [(6, first + 5 * 128), (5, 5 * 128)]);
    // Ten times its timeout, a packet in each half.
    for _ in 0..20 {
        rig.wait(150);
        credit(&mut rig, Dir::Original, 1);
        rig.tick(100);
        assert_eq!(rig.state(id), Some(State::Stream));
    }
    rig.wait(302);
    rig.tick(100);
    assert_eq!(rig.state(id), None);
    // Of one that is no more it says nothing.
    credit(&mut rig, Dir::Original, 1);
}
