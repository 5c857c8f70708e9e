//! Learning, flooding, VLANs, guards, limits, loops, mirrors.

use super::*;

fn net() -> NetworkConfig {
    NetworkConfig::default()
}

fn aware() -> NetworkConfig {
    NetworkConfig {
        vlan_aware: true,
        ..net()
    }
}

#[test]
fn floods_then_forwards_then_moves() {
    let mut r = Rig::new(net(), 3);
    let hello = plain(ALL, mac(1));
    let fate = r.send(0, &hello);
    assert_eq!(fate.out, [(1, hello.clone()), (2, hello)]);
    assert_eq!(r.send(1, &plain(mac(1), mac(2))).ports(), [0]);
    assert_eq!(r.send(0, &plain(mac(9), mac(1))).ports(), [1, 2], "unknown");
    assert_eq!(r.send(2, &plain(ALL, mac(1))).ports(), [0, 1], "moved");
    assert_eq!(r.send(1, &plain(mac(1), mac(2))).ports(), [2]);
    assert_eq!(
        r.send(2, &plain(mac(1), mac(3))).drops,
        [DropReason::SamePort]
    );
    assert!(matches!(
        r.events[..],
        [
            Event::MacLearned { .. },
            Event::MacLearned { .. },
            Event::MacMoved {
                from: PortId(0),
                to: PortId(2),
                ..
            },
            Event::MacLearned { .. }
        ]
    ));
}

#[test]
fn bad_sources_and_link_local_destinations_go_nowhere() {
    let mut r = Rig::new(net(), 2);
    let bad = [DropReason::BadSourceMac];
    assert_eq!(
        r.send(0, &plain(ALL, MacAddr([3, 0, 0, 0, 0, 1]))).drops,
        bad
    );
    assert_eq!(r.send(0, &plain(ALL, MacAddr::ZERO)).drops, bad);
    for last in 0..16 {
        let to = MacAddr([1, 0x80, 0xc2, 0, 0, last]);
        assert_eq!(r.send(0, &plain(to, mac(1))).drops, [DropReason::LinkLocal]);
    }
    let beyond = MacAddr([1, 0x80, 0xc2, 0, 0, 0x10]);
    assert_eq!(r.send(0, &plain(beyond, mac(1))).ports(), [1]);
}

#[test]
fn networks_are_apart() {
    let mut r = Rig::new(net(), 2);
    r.bridge.set_network(NetworkId(1), net());
    r.port(2, |c| c.network = NetworkId(1));
    r.port(3, |c| c.network = NetworkId(1));
    assert_eq!(r.send(0, &plain(ALL, mac(1))).ports(), [1]);
    assert_eq!(r.send(2, &plain(mac(1), mac(2))).ports(), [3]);
    r.port(1, |c| c.network = NetworkId(1));
    assert_eq!(r.send(0, &plain(ALL, mac(1))).ports(), Vec::<u16>::new());
    assert_eq!(r.send(2, &plain(ALL, mac(2))).ports(), [3, 1]);
}

#[test]
fn ages_only_what_is_silent_and_sleeps_without_entries() {
    let mut r = Rig::new(
        NetworkConfig {
            ageing: Duration::from_secs(10),
            ..net()
        },
        2,
    );
    assert_eq!(r.bridge.tick(&mut r.cx), Nanos::MAX, "nothing to do");
    r.send(0, &plain(ALL, mac(1)));
    assert!(r.cx.wake_at.is_some(), "asks for its first tick");
    r.send(1, &plain(ALL, mac(2)));
    r.bridge.add_static(NET, 0, mac(3), PortId(1));
    for _ in 0..4 {
        r.secs(5);
        r.send(0, &plain(ALL, mac(1)));
    }
    let fdb = r.bridge.fdb(NET).expect("network");
    assert_eq!(fdb.lookup(0, mac(1)), Some(PortId(0)));
    assert_eq!(fdb.lookup(0, mac(2)), None);
    assert_eq!(fdb.lookup(0, mac(3)), Some(PortId(1)));
    assert!(
        r.events
            .iter()
            .any(|e| matches!(e, Event::MacAged { mac: m, .. } if *m == mac(2)))
    );
    r.bridge.remove_entry(NET, 0, mac(3));
    r.secs(20);
    assert_eq!(r.bridge.fdb(NET).expect("network").len(), 0);
    assert_eq!(r.bridge.tick(&mut r.cx), Nanos::MAX);
}

#[test]
fn wakes_rarely_with_a_full_table() {
    let mut r = Rig::new(net(), 2);
    for n in 0..20_000u32 {
        let m = MacAddr::from_u64(0x0200_0000_0000 | u64::from(n));
        r.send(0, &plain(mac(200), m));
    }
    assert_eq!(
        r.events.len(),
        100,
        "a flood of addresses isn't one of events"
    );
    let mut ticks = 0;
    let end = r.cx.now.after(Duration::from_secs(299));
    while r.cx.now < end {
        r.cx.now = r.bridge.tick(&mut r.cx);
        ticks += 1;
    }
    assert!(ticks < 20, "{ticks} ticks in 299 s");
    r.secs(30);
    assert_eq!(r.bridge.fdb(NET).expect("network").len(), 0);
}

#[test]
fn limits_per_port_and_network_tell_once_a_second() {
    let mut r = Rig::new(
        NetworkConfig {
            fdb_limit: 4,
            ..net()
        },
        2,
    );
    r.port(0, |c| c.mac_limit = Some(2));
    assert_eq!(r.send(0, &plain(ALL, mac(1))).ports(), [1]);
    assert_eq!(r.send(0, &plain(ALL, mac(2))).ports(), [1]);
    for n in 3..50 {
        assert_eq!(r.send(0, &plain(ALL, mac(n))).drops, [DropReason::MacLimit]);
    }
    assert_eq!(r.send(0, &plain(ALL, mac(1))).ports(), [1], "still known");
    for n in 50..60 {
        assert_eq!(r.send(1, &plain(mac(1), mac(n))).ports(), [0], "forwarded");
    }
    let told = |r: &Rig, p: u16| {
        r.events
            .iter()
            .filter(|e| matches!(e, Event::LimitReached { port, .. } if port.0 == p))
            .count()
    };
    assert_eq!((told(&r, 0), told(&r, 1)), (1, 1));
    assert_eq!(r.bridge.fdb(NET).expect("network").len(), 4);
    r.secs(2);
    r.send(0, &plain(ALL, mac(9)));
    assert_eq!(told(&r, 0), 2);
}

#[test]
fn static_entries_pin_and_flushes_choose() {
    let mut r = Rig::new(net(), 3);
    assert!(r.bridge.add_static(NET, 0, mac(1), PortId(2)));
    assert_eq!(
        r.send(0, &plain(ALL, mac(1))).drops,
        [DropReason::StaticMac]
    );
    assert_eq!(r.send(0, &plain(mac(1), mac(5))).ports(), [2]);
    r.send(1, &plain(ALL, mac(6)));
    let of_port = FlushFilter {
        port: Some(PortId(1)),
        ..FlushFilter::default()
    };
    assert_eq!(r.bridge.flush(NET, of_port), 1);
    assert_eq!(r.bridge.flush(NET, FlushFilter::default()), 1);
    let all = FlushFilter {
        statics: true,
        ..FlushFilter::default()
    };
    assert_eq!(r.bridge.flush(NET, all), 1);
    assert_eq!(r.bridge.dump(NET, FdbCursor::default(), 100).0, []);
}

#[test]
fn a_port_that_goes_down_is_forgotten_and_not_flooded() {
    let mut r = Rig::new(net(), 3);
    r.send(1, &plain(ALL, mac(1)));
    r.bridge.link_changed(&mut r.cx, PortId(1), false);
    assert_eq!(r.send(0, &plain(mac(1), mac(2))).ports(), [2]);
    r.bridge.link_changed(&mut r.cx, PortId(1), true);
    assert_eq!(r.send(0, &plain(mac(1), mac(2))).ports(), [1, 2]);
}

#[test]
fn isolated_ports_reach_the_others_only() {
    let mut r = Rig::new(net(), 3);
    r.port(0, |c| c.isolated = true);
    r.port(1, |c| c.isolated = true);
    assert_eq!(r.send(0, &plain(ALL, mac(1))).ports(), [2]);
    assert_eq!(r.send(2, &plain(ALL, mac(3))).ports(), [0, 1]);
    assert_eq!(r.send(2, &plain(mac(1), mac(3))).ports(), [0]);
    assert_eq!(
        r.send(1, &plain(mac(1), mac(2))).drops,
        [DropReason::Isolated]
    );
}

#[test]
fn hairpin_sends_back() {
    let mut r = Rig::new(net(), 2);
    r.port(0, |c| c.hairpin = true);
    assert_eq!(r.send(0, &plain(ALL, mac(1))).ports(), [0, 1]);
    r.send(0, &plain(ALL, mac(2)));
    assert_eq!(r.send(0, &plain(mac(1), mac(2))).ports(), [0]);
}

#[test]
fn tags_pass_a_network_that_is_not_vlan_aware() {
    let mut r = Rig::new(net(), 2);
    for tags in [
        &[(0x8100, 5)][..],
        &[(0x8100, 0)],
        &[(0x88a8, 9), (0x8100, 5)],
    ] {
        let f = tagged(ALL, mac(1), tags);
        assert_eq!(r.send(0, &f).out, [(1, f)]);
    }
}

/// Ports: 0 access 10, 1 access 20, 2 trunk 10+20 with native 1, 3 access 10.
fn vlans() -> Rig {
    let mut r = Rig::new(aware(), 4);
    for (p, vid) in [(0, 10), (1, 20), (3, 10)] {
        r.port(p, |c| {
            c.pvid = Some(vid);
            c.untagged = VlanSet::from_iter([vid]);
        });
    }
    r.port(2, |c| c.tagged = VlanSet::from_iter([10, 20]));
    r
}

#[test]
fn access_ports_and_trunks_keep_vlans_apart() {
    let mut r = vlans();
    let bare = plain(ALL, mac(1));
    let in_10 = tagged(ALL, mac(1), &[(0x8100, 10)]);
    assert_eq!(
        r.send(0, &bare).out,
        [(2, in_10[..64].to_vec()), (3, bare)],
        "the trunk gets the tag"
    );
    // The trunk's tag is taken away at access ports.
    let f = tagged(mac(1), mac(2), &[(0x8100, 0x600a)]);
    assert_eq!(r.send(2, &f).out, [(0, plain(mac(1), mac(2)))]);
    // The same MAC elsewhere in another VLAN.
    assert_eq!(r.send(1, &plain(mac(1), mac(3))).ports(), [2]);
    let fdb = r.bridge.fdb(NET).expect("network");
    assert_eq!(fdb.lookup(10, mac(1)), Some(PortId(0)));
    assert_eq!(fdb.lookup(20, mac(1)), None);
    assert_eq!(fdb.lookup(20, mac(3)), Some(PortId(1)));
}

#[test]
fn vlan_ingress_and_egress_are_filtered() {
    let mut r = vlans();
    let refused = [DropReason::VlanIngress];
    let send = |r: &mut Rig, p, tags: &[(u16, u16)]| r.send(p, &tagged(ALL, mac(1), tags)).drops;
    assert_eq!(send(&mut r, 0, &[(0x8100, 10)]), refused, "tag on access");
    assert_eq!(send(&mut r, 2, &[(0x8100, 30)]), refused);
    assert_eq!(send(&mut r, 2, &[(0x8100, 4095)]), refused);
    assert_eq!(
        send(&mut r, 0, &[(0x8100, 0), (0x8100, 20)]),
        refused,
        "hop"
    );
    r.port(2, |c| {
        c.pvid = None;
        c.tagged = VlanSet::from_iter([10]);
    });
    assert_eq!(r.send(2, &plain(ALL, mac(1))).drops, refused, "no PVID");
    r.bridge.add_static(NET, 20, mac(7), PortId(3));
    assert_eq!(
        r.send(1, &plain(mac(7), mac(1))).drops,
        [DropReason::VlanEgress]
    );
}

#[test]
fn priority_tags_take_the_pvid_and_service_tags_are_carried() {
    let mut r = vlans();
    let prio = tagged(ALL, mac(1), &[(0x8100, 0xe000)]);
    let fate = r.send(0, &prio);
    assert_eq!(
        fate.out,
        [
            (2, tagged(ALL, mac(1), &[(0x8100, 0xe00a)])),
            (3, plain(ALL, mac(1)))
        ],
        "priority is kept where there is a tag"
    );
    let service = tagged(ALL, mac(1), &[(0x88a8, 77), (0x8100, 20)]);
    let mut outer = service.clone();
    outer.splice(12..12, [0x81, 0, 0, 10]);
    assert_eq!(
        r.send(0, &service).out,
        [(2, outer.clone()), (3, service.clone())]
    );
    r.send(0, &plain(ALL, mac(5)));
    let mut back = outer;
    back[..6].copy_from_slice(&mac(5).0);
    let mut inner = service;
    inner[..6].copy_from_slice(&mac(5).0);
    assert_eq!(r.send(2, &back).out, [(0, inner)]);
}

#[test]
fn offload_offsets_follow_the_tag() {
    let mut r = vlans();
    r.send(3, &plain(ALL, mac(3)));
    let mut f = Frame::from_bytes(&vec![0; 5000]).expect("fits");
    f.head_mut()[..14].copy_from_slice(&plain(mac(3), mac(1))[..14]);
    f.vnet = VnetHdr {
        needs_csum: true,
        gso: GsoType::Tcp4,
        gso_size: 1448,
        hdr_len: 66,
        csum_start: 34,
        csum_offset: 16,
        ..VnetHdr::default()
    };
    let meta = wire::Meta {
        vid: 10,
        ..wire::parse(f.head(), f.len()).expect("whole header")
    };
    let before = f.to_vec();
    let r1 = r
        .bridge
        .egress(&mut r.cx, PortId(0), PortId(2), &mut f, &meta);
    assert_eq!(r1, Ok(()));
    assert_eq!((f.vnet.hdr_len, f.vnet.csum_start, f.len()), (70, 38, 5004));
    assert_eq!(f.head()[12..18], [0x81, 0, 0, 10, 0x88, 0xb6]);
    let r2 = r
        .bridge
        .egress(&mut r.cx, PortId(2), PortId(3), &mut f, &meta);
    assert_eq!(r2, Ok(()));
    assert_eq!((f.vnet.hdr_len, f.vnet.csum_start), (66, 34));
    assert_eq!(f.to_vec(), before);
}

#[test]
fn guard_and_its_counters_reach_the_verdict() {
    let mut r = Rig::new(net(), 2);
    r.port(0, |c| c.allowed_macs = vec![mac(1)]);
    assert_eq!(r.send(0, &plain(ALL, mac(2))).drops, [DropReason::MacGuard]);
    assert_eq!(r.send(0, &plain(ALL, mac(1))).ports(), [1]);
    let fdb = r.bridge.fdb(NET).expect("network");
    assert_eq!(
        fdb.lookup(0, mac(2)),
        None,
        "a refused frame teaches nothing"
    );
}

#[test]
fn storms_are_cut_by_kind() {
    let mut r = Rig::new(net(), 2);
    let rate = Some(Rate {
        per_second: 10,
        burst: 5,
    });
    r.port(0, |c| {
        c.storm = StormLimits {
            broadcast: rate,
            unknown: rate,
            multicast: None,
        };
    });
    let passed = |r: &mut Rig, to: MacAddr| {
        (0..100)
            .filter(|_| r.send(0, &plain(to, mac(1))).drops.is_empty())
            .count()
    };
    assert_eq!(passed(&mut r, ALL), 5);
    assert_eq!(passed(&mut r, mac(9)), 5);
    assert_eq!(passed(&mut r, MacAddr([1, 0, 0x5e, 1, 1, 1])), 100);
    assert_eq!(
        r.send(0, &plain(ALL, mac(1))).drops,
        [DropReason::StormControl]
    );
    r.send(1, &plain(ALL, mac(9)));
    assert_eq!(passed(&mut r, mac(9)), 100, "known now");
    r.wait(Duration::from_millis(199));
    assert_eq!(passed(&mut r, ALL), 2);
}

#[test]
fn rates_limit_both_ways_and_workers_share_them() {
    let mut r = Rig::new(net(), 2);
    let rate = Some(Rate {
        per_second: 6000,
        burst: 600,
    });
    r.port(0, |c| c.ingress_rate = rate);
    let mut other = Rig::bare(r.bridge.sibling(), (1, 2));
    other.bridge.set_network(NET, net());
    other.port(0, |c| c.ingress_rate = rate);
    other.port(1, |_| {});
    let mut passed = 0;
    for _ in 0..50 {
        for rig in [&mut r, &mut other] {
            let fate = rig.send(0, &plain(ALL, mac(1)));
            passed += fate.out.len();
            assert!(fate.out.len() == 1 || fate.drops == [DropReason::IngressRate]);
        }
    }
    assert_eq!(passed, 10, "600 bytes in frames of 60");
    r.port(0, |_| {});
    r.port(1, |c| c.egress_rate = rate);
    let sent: usize = (0..50)
        .map(|_| r.send(0, &plain(ALL, mac(1))).out.len())
        .sum();
    assert_eq!(sent, 10);
    assert_eq!(
        r.send(0, &plain(ALL, mac(1))).drops,
        [DropReason::EgressRate]
    );
    // A change that leaves the rates alone doesn't refill the bucket.
    r.port(1, |c| {
        c.egress_rate = rate;
        c.hairpin = true;
    });
    assert_eq!(
        r.send(0, &plain(ALL, mac(1))).drops,
        [DropReason::EgressRate]
    );
}

#[test]
fn mirrors_of_a_vlan_copy_what_was_let_in() {
    let mut r = vlans();
    let config = MirrorConfig {
        sources: vec![MirrorSource::Vlan {
            network: NET,
            vid: 10,
        }],
        target: PortId(1),
        truncate: None,
        target_floods: true,
    };
    r.bridge.set_mirror(MirrorId(7), config);
    let f = plain(ALL, mac(1));
    assert_eq!(r.send(0, &f).emitted, [(1, f, Origin::Copy)]);
    assert_eq!(r.send(1, &plain(ALL, mac(2))).emitted, []);
    assert_eq!(
        r.send(0, &tagged(ALL, mac(1), &[(0x8100, 10)])).emitted,
        [],
        "refused"
    );
}
