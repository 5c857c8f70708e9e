//! The virtual port of a network's gateway.

use super::*;

const GW: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);

#[test]
fn frames_to_the_gateway_are_its_and_nobody_takes_its_address() {
    let mut r = Rig::new(NetworkConfig::default(), 3);
    assert!(r.bridge.set_gateway(NET, Some((0, GW))));
    let mut batch = Batch::new(PortId(0));
    let to_gateway = Frame::from_bytes(&plain(GW, mac(1))).expect("fits");
    batch.push(to_gateway).expect("room");
    for e in &mut batch.entries {
        e.meta = wire::parse(e.frame.head(), e.frame.len()).expect("whole header");
    }
    r.bridge.run(&mut r.cx, &mut batch);
    assert_eq!(batch.entries[0].verdict, Verdict::Gateway);
    let fate = r.send(1, &plain(mac(1), GW));
    assert_eq!(fate.drops, [DropReason::StaticMac]);
    let everything = FlushFilter {
        statics: true,
        ..FlushFilter::default()
    };
    r.bridge.flush(NET, everything);
    assert!(r.bridge.remove_entry(NET, 0, GW).is_none());
    assert_eq!(
        r.bridge.fdb(NET).and_then(|f| f.lookup(0, GW)),
        Some(PortId::GATEWAY)
    );
    assert!(r.bridge.set_gateway(NET, None));
    assert_eq!(r.send(0, &plain(GW, mac(1))).ports(), [1, 2]);
}

#[test]
fn what_the_gateway_sends_goes_where_it_was_learned_with_the_ports_tag() {
    let aware = NetworkConfig {
        vlan_aware: true,
        ..NetworkConfig::default()
    };
    let mut r = Rig::new(aware, 3);
    r.port(2, |c| {
        c.untagged = VlanSet::EMPTY;
        c.pvid = None;
        c.tagged = VlanSet::from_iter([1]);
    });
    assert!(r.bridge.set_gateway(NET, Some((1, GW))));
    r.send(0, &plain(ALL, mac(1)));
    let frame = |dst| Frame::from_bytes(&plain(dst, GW)).expect("fits");
    assert_eq!(
        r.bridge.deliver(&mut r.cx, NET, 1, mac(1)),
        Verdict::Forward(PortId(0))
    );
    let sent = |r: &mut Rig, f| r.bridge.originate(&mut r.cx, NET, 1, f, Origin::Switch);
    sent(&mut r, frame(mac(1))).expect("sent");
    sent(&mut r, frame(ALL)).expect("sent");
    let mut fate = r.send(1, &tagged(mac(9), mac(9), &[(0x8100, 9)]));
    r.collect(&mut fate);
    let sent: Vec<(u16, usize)> = fate.emitted.iter().map(|(p, b, _)| (*p, b.len())).collect();
    let len = plain(ALL, GW).len();
    assert_eq!(sent, [(0, len), (0, len), (1, len), (2, len + 4)]);
}
