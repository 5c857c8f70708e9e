//! Source guard, ARP inspection, loop guard, against senders that lie and cables that loop.

use std::time::Duration;

use vswitch_core::bridge::{LoopGuard, NetworkConfig};
use vswitch_core::frame::DropReason;
use vswitch_core::worker::Event;
use vswitch_tests::wait_until;

use crate::own_lab;
use crate::rig::Switch;

#[test]
fn a_container_cannot_speak_under_another_name() {
    let lab = own_lab!("guard");
    let mut s = Switch::new(2, NetworkConfig::default());
    let nodes = ["a", "b", "liar"].map(|n| lab.container(n));
    let [a, b, liar] = &nodes;
    s.tap(a, "eth0", &["192.0.2.1/24", "2001:db8::1/64"], |_| {});
    let pb = s.tap(b, "eth0", &["192.0.2.2/24", "2001:db8::2/64"], |_| {});
    liar.ok(&["sysctl", "-w", "net.ipv6.conf.default.addr_gen_mode=0"]);
    let pl = s.tap(liar, "eth0", &["192.0.2.3/24", "2001:db8::3/64"], |_| {});
    let mac = liar.mac("eth0");
    let mut config = vswitch_core::bridge::PortConfig::new(crate::rig::NET);
    config.loop_guard = false;
    config.allowed_macs = vec![mac.parse().expect("MAC address")];
    config.allowed_ips = vec![
        ("192.0.2.3".parse().expect("address"), 32),
        ("2001:db8::3".parse().expect("address"), 128),
    ];
    config.arp_inspection = true;
    s.set(pl, &config);
    // Its own names work, with a kernel's ARP, neighbour discovery and duplicate address detection.
    liar.ok(&["ip", "neigh", "flush", "dev", "eth0"]);
    liar.assert_ping("192.0.2.1");
    liar.assert_ping("2001:db8::1");
    a.assert_ping("192.0.2.3");
    liar.ok(&["arping", "-c", "2", "-I", "eth0", "192.0.2.1"]);
    let lies = [
        (DropReason::MacGuard, "Ether(src='02:66:66:66:66:66', dst='ff:ff:ff:ff:ff:ff') / ARP(pdst='192.0.2.1')".to_owned()),
        (DropReason::IpGuard, "Ether(src=me, dst='ff:ff:ff:ff:ff:ff') / IP(src='192.0.2.2', dst='192.0.2.1') / ICMP()".to_owned()),
        (DropReason::IpGuard, "Ether(src=me, dst='33:33:00:00:00:01') / IPv6(src='2001:db8::2', dst='ff02::1') / ICMPv6EchoRequest()".to_owned()),
        (DropReason::ArpInspection, format!("Ether(src=me, dst='ff:ff:ff:ff:ff:ff') / ARP(op=2, hwsrc='{mac}', psrc='192.0.2.2', pdst='192.0.2.1')")),
        (DropReason::ArpInspection, format!("Ether(src=me, dst='33:33:00:00:00:01') / IPv6(src='2001:db8::3', dst='ff02::1') / ICMPv6ND_NA(tgt='2001:db8::2', O=1) / ICMPv6NDOptDstLLAddr(lladdr='{mac}')")),
        (DropReason::ArpInspection, "Ether(src=me, dst='33:33:00:00:00:01') / IPv6(src='2001:db8::3', dst='ff02::1') / ICMPv6ND_RA()".to_owned()),
    ];
    for (why, frame) in lies {
        let before = s.dropped(pl, why);
        liar.scapy(&format!(
            "me='{mac}'\nsendp({frame}, iface='eth0', count=3)"
        ));
        wait_until(&format!("{frame} to be dropped: {}", why.as_str()), || {
            s.dropped(pl, why) >= before + 3
        });
    }
    // Another's address is not to be had by asking for it first.
    liar.ok(&["ip", "addr", "add", "192.0.2.66/24", "dev", "eth0"]);
    let output = liar.ping_with("192.0.2.1", &["-c", "2", "-W", "1", "-I", "192.0.2.66"]);
    assert!(!output.success(), "{output}");
    // The same frames pass at a port that isn't guarded.
    b.scapy("sendp(Ether(dst='ff:ff:ff:ff:ff:ff') / IP(src='192.0.2.9', dst='192.0.2.1') / ICMP(), iface='eth0')");
    assert_eq!(s.dropped(pb, DropReason::IpGuard), 0);
    assert!(
        a.ok(&["ip", "neigh", "show", "192.0.2.2"])
            .lines()
            .all(|l| !l.contains(&mac)),
        "the lie didn't arrive"
    );
    s.assert_ledger();
}

#[test]
fn a_loop_is_cut_and_the_port_recovers() {
    let lab = own_lab!("loop");
    let timing = LoopGuard {
        interval: Duration::from_secs(1),
        hold: Duration::from_secs(3),
    };
    let mut s = Switch::new(
        2,
        NetworkConfig {
            loop_guard: timing,
            ..NetworkConfig::default()
        },
    );
    let nodes = ["a", "b", "loop"].map(|n| lab.container(n));
    let [a, b, looped] = &nodes;
    s.tap(a, "eth0", &["192.0.2.1/24"], |_| {});
    s.tap(b, "eth0", &["192.0.2.2/24"], |_| {});
    let one = s.tap(looped, "eth0", &[], |c| c.loop_guard = true);
    let other = s.tap(looped, "eth1", &[], |c| c.loop_guard = true);
    a.assert_ping("192.0.2.2");
    looped.ok(&["ip", "link", "add", "br0", "type", "bridge"]);
    looped.ok(&["ip", "link", "set", "eth0", "master", "br0"]);
    looped.ok(&["ip", "link", "set", "br0", "up"]);
    looped.ok(&["ip", "link", "set", "eth1", "master", "br0"]);
    s.wait_event("the loop to be found", |e| {
        matches!(e, Event::LoopDetected { .. })
    });
    let detected = Event::LoopDetected {
        port: other,
        other: one,
    };
    assert_eq!(
        s.events()
            .iter()
            .filter(|e| matches!(e, Event::LoopDetected { .. }))
            .collect::<Vec<_>>(),
        [&detected],
        "one of the two ports is shut"
    );
    assert!(s.dropped(one, DropReason::LoopProbe) + s.dropped(other, DropReason::LoopProbe) > 0);
    // What was under way in the loop may still say where somebody is.
    wait_until("a to reach b", || {
        a.ping_with("192.0.2.2", &["-c", "1", "-W", "1"]).success()
    });
    a.assert_ping("192.0.2.2");
    a.run(&["arping", "-c", "1", "-w", "1", "-I", "eth0", "192.0.2.77"]);
    wait_until("frames to be kept off the shut port", || {
        s.dropped(other, DropReason::LoopGuard) > 0
    });
    // While the loop is there, the port stays shut, longer than its hold time.
    std::thread::sleep(Duration::from_secs(6));
    let shut = s.ask(move |b| b.loop_shut(other, vswitch_core::clock::Clock::default().now()));
    assert!(shut.is_some());
    looped.ok(&["ip", "link", "set", "eth1", "nomaster"]);
    s.wait_event("the port to open", |e| {
        *e == Event::LoopCleared { port: other }
    });
    s.assert_ledger();
}
