//! Loops, mirrors, and several workers.

use super::fdb::Fdb;
use super::*;

fn net() -> NetworkConfig {
    NetworkConfig::default()
}

/// Ports 1 and 2 are joined by a bridge outside: what leaves by one comes back by the other.
fn joined() -> Rig {
    let timing = LoopGuard {
        interval: Duration::from_secs(1),
        hold: Duration::from_secs(10),
    };
    let mut r = Rig::new(
        NetworkConfig {
            loop_guard: timing,
            ..net()
        },
        1,
    );
    for p in [1, 2] {
        r.port(p, |c| c.loop_guard = true);
    }
    r
}

fn bring_back(r: &mut Rig, probes: &[(u16, Vec<u8>, Origin)]) {
    for (port, bytes, origin) in probes {
        assert_eq!(*origin, Origin::Switch);
        let by = if *port == 1 { 2 } else { 1 };
        assert_eq!(r.send(by, bytes).drops, [DropReason::LoopProbe]);
    }
}

#[test]
fn what_was_learned_at_the_ends_of_a_loop_is_forgotten() {
    let mut r = joined();
    let probes = r.wait(Duration::from_millis(1));
    r.send(1, &plain(ALL, mac(9)));
    let known = r.send(0, &plain(mac(9), mac(1)));
    assert_eq!((known.ports(), known.drops), (vec![1], vec![]));
    bring_back(&mut r, &probes);
    let flooded = r.send(0, &plain(mac(9), mac(1)));
    assert_eq!(
        flooded.drops,
        [DropReason::LoopGuard],
        "also to the shut one"
    );
    // A straggler that had gone round before.
    r.send(1, &plain(ALL, mac(9)));
    assert_eq!(r.send(0, &plain(mac(9), mac(1))).drops, []);
    r.wait(Duration::from_millis(301));
    let flooded = r.send(0, &plain(mac(9), mac(1)));
    assert_eq!(flooded.drops, [DropReason::LoopGuard]);
}

#[test]
fn a_loop_shuts_one_port_until_it_is_gone() {
    let mut r = joined();
    let probes = r.wait(Duration::from_millis(1));
    assert_eq!(probes.len(), 2);
    bring_back(&mut r, &probes);
    let detected = Event::LoopDetected {
        port: PortId(2),
        other: PortId(1),
    };
    assert_eq!(r.events, [detected], "one of the two");
    assert_eq!(
        r.send(2, &plain(ALL, mac(1))).drops,
        [DropReason::LoopGuard]
    );
    let fate = r.send(0, &plain(ALL, mac(1)));
    assert_eq!(
        (fate.ports(), fate.drops),
        (vec![1], vec![DropReason::LoopGuard])
    );
    for _ in 0..20 {
        let probes = r.secs(1);
        assert_eq!(probes.len(), 2, "still probed");
        bring_back(&mut r, &probes);
    }
    assert!(
        r.bridge.loop_shut(PortId(2), r.cx.now).is_some(),
        "it stays"
    );
    r.secs(4);
    assert_eq!(r.bridge.loop_shut(PortId(2), r.cx.now), None);
    assert_eq!(
        r.events.last(),
        Some(&Event::LoopCleared { port: PortId(2) })
    );
    assert_eq!(r.send(2, &plain(ALL, mac(1))).ports(), [0, 1]);
}

#[test]
fn an_address_that_moves_has_its_ports_probed_at_once() {
    let mut r = joined();
    r.wait(Duration::from_millis(1100));
    r.send(1, &plain(ALL, mac(1)));
    r.cx.wake_at = None;
    r.send(2, &plain(ALL, mac(1)));
    assert_eq!(r.cx.wake_at, Some(r.cx.now));
    let probed: Vec<u16> = r.wait(Duration::ZERO).iter().map(|(p, ..)| *p).collect();
    assert!(probed.len() == 2 && probed.contains(&1) && probed.contains(&2));
    r.send(1, &plain(ALL, mac(1)));
    r.send(2, &plain(ALL, mac(1)));
    r.send(1, &plain(ALL, mac(1)));
    assert!(r.wait(Duration::ZERO).len() <= 2, "once a second per port");
}

#[test]
fn probes_of_others_pass_and_replays_are_not_believed() {
    let (mut r, mut other) = (joined(), joined());
    let foreign = other.wait(Duration::from_millis(1));
    assert_eq!(r.send(1, &foreign[0].1).ports(), [0, 2]);
    let probes = r.wait(Duration::from_millis(1));
    r.secs(30);
    bring_back(&mut r, &probes);
    assert!(
        !r.events
            .iter()
            .any(|e| matches!(e, Event::LoopDetected { .. }))
    );
    // A port without the guard sends none.
    assert!(probes.iter().all(|(p, ..)| *p != 0));
}

#[test]
fn mirrors_copy_and_their_target_is_not_flooded() {
    let mut r = Rig::new(net(), 4);
    let session = |ingress, egress, truncate| MirrorConfig {
        sources: vec![MirrorSource::Port {
            port: PortId(0),
            ingress,
            egress,
        }],
        target: PortId(3),
        truncate,
        target_floods: false,
    };
    r.bridge.set_mirror(MirrorId(1), session(true, false, None));
    let f = plain(ALL, mac(1));
    let fate = r.send(0, &f);
    assert_eq!(fate.ports(), [1, 2]);
    assert_eq!(fate.emitted, [(3, f.clone(), Origin::Copy)]);
    assert_eq!(r.send(1, &plain(mac(1), mac(2))).emitted, []);
    r.bridge
        .set_mirror(MirrorId(1), session(false, true, Some(20)));
    assert_eq!(r.send(0, &f).emitted, []);
    let back = plain(mac(1), mac(2));
    assert_eq!(
        r.send(1, &back).emitted,
        [(3, back[..20].to_vec(), Origin::Copy)]
    );
    assert!(r.bridge.remove_mirror(MirrorId(1)));
    assert_eq!(r.send(0, &f).ports(), [1, 2, 3]);
}

/// Two workers, port 0 served by the first, 1 by the second.
fn pair() -> (Rig, Rig) {
    let config = NetworkConfig {
        ageing: Duration::from_secs(10),
        ..net()
    };
    let mut a = Rig::bare(Bridge::new(), (0, 2));
    let mut b = Rig::bare(a.bridge.sibling(), (1, 2));
    for r in [&mut a, &mut b] {
        r.bridge.set_network(NET, config.clone());
        (0..3).for_each(|p| r.port(p, |_| {}));
    }
    (a, b)
}

/// Carries the news both ways until there is none.
fn gossip(a: &mut Rig, b: &mut Rig) {
    for _ in 0..10 {
        for n in std::mem::take(&mut a.news) {
            b.bridge.sync(&mut b.cx, &n);
        }
        b.news.append(&mut b.cx.news);
        for n in std::mem::take(&mut b.news) {
            a.bridge.sync(&mut a.cx, &n);
        }
        a.news.append(&mut a.cx.news);
    }
    assert!(a.news.is_empty() && b.news.is_empty(), "they never agree");
}

fn at(r: &Rig, m: MacAddr) -> Option<PortId> {
    r.bridge.fdb(NET).and_then(|f| f.lookup(0, m))
}

#[test]
fn workers_agree_on_addresses() {
    let (mut a, mut b) = pair();
    a.send(0, &plain(ALL, mac(1)));
    gossip(&mut a, &mut b);
    assert_eq!(at(&b, mac(1)), Some(PortId(0)));
    assert_eq!(b.send(1, &plain(mac(1), mac(2))).ports(), [0]);
    // It moves to a port of the other worker.
    for r in [&mut a, &mut b] {
        r.secs(1);
    }
    gossip(&mut a, &mut b);
    b.send(1, &plain(ALL, mac(1)));
    gossip(&mut a, &mut b);
    assert_eq!(at(&a, mac(1)), Some(PortId(1)));
    // The owner keeps it alive at the other; when it is silent it goes at both.
    for _ in 0..12 {
        a.secs(5);
        b.secs(5);
        b.send(1, &plain(mac(9), mac(1)));
        gossip(&mut a, &mut b);
    }
    assert_eq!(at(&a, mac(1)), Some(PortId(1)));
    for r in [&mut a, &mut b] {
        r.secs(15);
    }
    gossip(&mut a, &mut b);
    assert_eq!((at(&a, mac(1)), at(&b, mac(1))), (None, None));
}

#[test]
fn an_address_that_several_workers_hear_stays_until_all_are_deaf() {
    let (mut a, mut b) = pair();
    // A port with a queue at each worker.
    a.send(2, &plain(ALL, mac(1)));
    gossip(&mut a, &mut b);
    for _ in 0..3 {
        a.secs(5);
        b.secs(5);
        b.send(2, &plain(ALL, mac(1)));
        gossip(&mut a, &mut b);
    }
    assert_eq!(
        at(&a, mac(1)),
        Some(PortId(2)),
        "told again by the one that hears it"
    );
    b.bridge.link_changed(&mut b.cx, PortId(2), false);
    b.news.append(&mut b.cx.news);
    gossip(&mut a, &mut b);
    assert_eq!((at(&a, mac(1)), at(&b, mac(1))), (None, None));
}

#[test]
fn news_of_a_port_that_changed_its_network_are_void() {
    let (mut a, mut b) = pair();
    a.send(0, &plain(ALL, mac(1)));
    b.bridge.set_network(NetworkId(1), net());
    b.port(0, |c| c.network = NetworkId(1));
    gossip(&mut a, &mut b);
    assert_eq!(at(&b, mac(1)), None);
    assert!(!b.bridge.add_static(NET, 0, mac(2), PortId(0)));
}

#[test]
fn lost_news_heal() {
    let (mut a, mut b) = pair();
    a.send(0, &plain(ALL, mac(1)));
    gossip(&mut a, &mut b);
    a.secs(15);
    a.news.clear();
    b.secs(15);
    assert_eq!(at(&b, mac(1)), Some(PortId(0)));
    b.secs(20);
    assert_eq!(at(&b, mac(1)), None, "not renewed for three ageing times");
}

#[test]
fn frames_handed_off_by_another_worker_are_metered_and_mirrored_once() {
    let mut r = Rig::new(NetworkConfig::default(), 3);
    r.port(0, |c| {
        c.ingress_rate = Some(Rate {
            per_second: 1,
            burst: 100,
        });
    });
    r.bridge.set_mirror(
        MirrorId(1),
        MirrorConfig {
            sources: vec![MirrorSource::Port {
                port: PortId(0),
                ingress: true,
                egress: false,
            }],
            target: PortId(2),
            truncate: None,
            target_floods: false,
        },
    );
    for _ in 0..9 {
        let fate = r.hand(0, &plain(ALL, mac(1)));
        assert!(fate.drops.is_empty() && fate.emitted.is_empty(), "{fate:?}");
        assert_eq!(fate.ports(), [1]);
    }
    for drops in [&[][..], &[], &[DropReason::IngressRate]] {
        let fate = r.send(0, &plain(ALL, mac(1)));
        assert_eq!((&fate.drops[..], fate.emitted.len()), (drops, 1));
    }
}

#[test]
fn asking_learns_and_takes_nothing() {
    let mut r = Rig::new(NetworkConfig::default(), 3);
    r.port(0, |c| {
        c.mac_limit = Some(1);
        c.ingress_rate = Some(Rate {
            per_second: 1,
            burst: 100,
        });
    });
    for n in 1..9 {
        let fate = r.ask(0, &plain(mac(9), mac(n)));
        assert_eq!(
            (fate.ports(), r.events.len(), r.news.len()),
            (vec![1, 2], 0, 0)
        );
    }
    assert_eq!(r.bridge.fdb(NET).map(Fdb::len), Some(0));
    assert_eq!(r.send(0, &plain(mac(9), mac(1))).ports(), [1, 2]);
    let fate = r.ask(0, &plain(mac(9), mac(2)));
    assert_eq!(fate.drops, [DropReason::MacLimit]);
    assert_eq!(r.ask(1, &plain(mac(1), mac(3))).ports(), [0]);
    assert_eq!(
        r.ask(1, &plain(mac(1), mac(1))).drops,
        [DropReason::SamePort],
        "as if it had moved"
    );
    r.send(0, &plain(mac(9), mac(1)));
    let fate = r.ask(0, &plain(mac(9), mac(1)));
    assert_eq!(fate.drops, [DropReason::IngressRate], "spent by those sent");
}
