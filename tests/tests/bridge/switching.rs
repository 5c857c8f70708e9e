//! Learning, ageing, limits of the FDB, VLANs, isolation, mirrors.

use std::time::Duration;

use vswitch_core::bridge::{
    MirrorConfig, MirrorId, MirrorSource, NetworkConfig, NetworkId, PortConfig, VlanSet,
};
use vswitch_core::frame::{DropReason, Offloads};
use vswitch_core::port::mem;
use vswitch_core::worker::Event;
use vswitch_tests::wait_until;

use crate::own_lab;
use crate::rig::{NET, Switch};

fn access(vid: u16) -> impl Fn(&mut PortConfig) {
    move |c| {
        c.pvid = Some(vid);
        c.untagged = VlanSet::from_iter([vid]);
    }
}

fn aware() -> NetworkConfig {
    NetworkConfig {
        vlan_aware: true,
        ..NetworkConfig::default()
    }
}

#[test]
fn addresses_are_learned_and_age() {
    let lab = own_lab!("ageing");
    let mut s = Switch::new(
        2,
        NetworkConfig {
            ageing: Duration::from_secs(2),
            ..NetworkConfig::default()
        },
    );
    let (a, b) = (lab.container("a"), lab.container("b"));
    s.tap(&a, "eth0", &["192.0.2.1/24"], |_| {});
    s.tap(&b, "eth0", &["192.0.2.2/24"], |_| {});
    a.assert_ping("192.0.2.2");
    s.wait_event("an address to be learned", |e| {
        matches!(e, Event::MacLearned { .. })
    });
    s.wait_event("an address to age", |e| matches!(e, Event::MacAged { .. }));
    wait_until("the table to be empty", || {
        s.ask(|b| {
            b.fdb(NET)
                .is_some_and(vswitch_core::bridge::fdb::Fdb::is_empty)
        })
    });
    a.assert_ping("192.0.2.2");
    s.assert_ledger();
}

/// Sends frames from many sources, as macof does.
const MACOF: &str = "\
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((sys.argv[1], 0))
for i in range(int(sys.argv[2])):
    if i % 50 == 0:
        time.sleep(0.01)
    s.send(b'\\xff' * 6 + b'\\x02\\x66' + i.to_bytes(4, 'big') + b'\\x88\\xb6' + b'z' * 46)
";

#[test]
fn a_flood_of_addresses_stops_at_the_ports_limit() {
    let lab = own_lab!("macof");
    let mut s = Switch::new(1, NetworkConfig::default());
    let (a, b) = (lab.container("a"), lab.container("b"));
    let pa = s.tap(&a, "eth0", &["192.0.2.1/24"], |c| c.mac_limit = Some(16));
    s.tap(&b, "eth0", &["192.0.2.2/24"], |_| {});
    a.assert_ping("192.0.2.2");
    a.ok(&["/usr/bin/python3", "-c", MACOF, "eth0", "1000"]);
    // The device's own queue may lose some of them on a busy machine.
    wait_until("the flood to be over", || {
        s.dropped(pa, DropReason::MacLimit) >= 500
    });
    let learned = s.ask(move |b| b.fdb(NET).map(|f| f.learned_at(pa)));
    assert_eq!(learned, Some(16));
    s.wait_event(
        "the limit to be reported",
        |e| matches!(e, Event::LimitReached { port, .. } if *port == pa),
    );
    let told = |e: &&Event| matches!(e, Event::LimitReached { .. });
    assert!(s.events().iter().filter(told).count() < 10, "once a second");
    a.assert_ping("192.0.2.2");
    s.assert_ledger();
}

#[test]
fn vlans_keep_containers_apart_and_trunks_carry_tags() {
    let lab = own_lab!("vlans");
    let mut s = Switch::new(2, aware());
    let nodes = ["a", "b", "c", "trunk"].map(|n| lab.container(n));
    let [a, b, c, trunk] = &nodes;
    s.tap(a, "eth0", &["192.0.2.1/24"], access(10));
    s.tap(b, "eth0", &["192.0.2.2/24"], access(10));
    let pc = s.tap(c, "eth0", &["192.0.2.3/24"], access(20));
    let pt = s.tap(trunk, "eth0", &[], |c| {
        c.pvid = None;
        c.untagged = VlanSet::EMPTY;
        c.tagged = VlanSet::from_iter([10, 20]);
    });
    a.assert_ping("192.0.2.2");
    a.assert_no_ping("192.0.2.3");
    // The trunk speaks 802.1Q: one question in each VLAN, answered with its tag.
    for (vid, ip) in [(10, "192.0.2.1"), (20, "192.0.2.3")] {
        let answer = trunk.scapy(&format!(
            "r = srp1(Ether(src='02:00:00:00:00:99', dst='ff:ff:ff:ff:ff:ff') / Dot1Q(vlan={vid}) / \
             ARP(hwsrc='02:00:00:00:00:99', psrc='192.0.2.99', pdst='{ip}'), iface='eth0', timeout=5)\n\
             print(r[Dot1Q].vlan, r[ARP].psrc)"
        ));
        assert_eq!(answer.trim(), format!("{vid} {ip}"));
    }
    // A service tag outside is carried whole in the VLAN of the port.
    let seen = b.capture("eth0", "");
    let mac = b.mac("eth0");
    a.scapy(&format!(
        "sendp(Ether(dst='{mac}') / Dot1AD(vlan=77) / Dot1Q(vlan=20) / IP(src='192.0.2.1', dst='192.0.2.2') / ICMP(), iface='eth0')"
    ));
    a.assert_ping("192.0.2.2");
    assert_eq!(
        seen.fields("ieee8021ad", &["ieee8021ad.id", "vlan.id"]),
        ["77\t20"]
    );
    let mute = "srp1(Ether(dst='ff:ff:ff:ff:ff:ff') / Dot1Q(vlan=10) / ARP(pdst='192.0.2.3'), iface='eth0', timeout=1)";
    assert_eq!(trunk.scapy(&format!("print({mute})")).trim(), "None");
    // Neither a tag on an access port nor an untagged frame on the trunk gets in.
    c.scapy("sendp(Ether(dst='ff:ff:ff:ff:ff:ff') / Dot1Q(vlan=10) / ARP(pdst='192.0.2.1'), iface='eth0')");
    wait_until("the tagged frame to be refused", || {
        s.dropped(pc, DropReason::VlanIngress) > 0
    });
    trunk.scapy("sendp(Ether(dst='ff:ff:ff:ff:ff:ff') / ARP(pdst='192.0.2.1'), iface='eth0')");
    wait_until("the untagged frame to be refused", || {
        s.dropped(pt, DropReason::VlanIngress) > 0
    });
    s.assert_ledger();
}

/// Two VLAN-aware networks joined by a trunk: frames of 64 KiB get a tag on one side and lose it on the other.
#[test]
fn offload_frames_cross_a_trunk_between_two_switches() {
    let lab = own_lab!("trunk");
    let mut s = Switch::new(1, aware());
    let far = NetworkId(1);
    s.network(far, aware());
    let (a, b) = (lab.container("a"), lab.container("b"));
    let trunk = |net: NetworkId| {
        move |c: &mut PortConfig| {
            c.network = net;
            c.pvid = None;
            c.untagged = VlanSet::EMPTY;
            c.tagged = VlanSet::from_iter([10]);
        }
    };
    let (one, other) = mem::pair(4096, Offloads::ALL).expect("an eventfd");
    s.add(Box::new(one), trunk(NET));
    s.add(Box::new(other), trunk(far));
    s.tap(&a, "eth0", &["192.0.2.1/24", "2001:db8::1/64"], access(10));
    s.tap(&b, "eth0", &["192.0.2.2/24", "2001:db8::2/64"], |c| {
        access(10)(c);
        c.network = far;
    });
    a.assert_ping("192.0.2.2");
    a.assert_ping("2001:db8::2");
    let _server = b.iperf3_server();
    for to in ["192.0.2.2", "2001:db8::2"] {
        let run = a.iperf3(to, &["-t", "1"]);
        println!("{to}: {:.2} Gbit/s", run.bits_per_second / 1e9);
        assert!(run.received_bytes > 10_000_000, "{:?}", run.report["end"]);
    }
    a.assert_no_checksum_errors();
    b.assert_no_checksum_errors();
    s.assert_ledger();
}

#[test]
fn isolated_containers_reach_the_router_only() {
    let lab = own_lab!("isolated");
    let mut s = Switch::new(2, NetworkConfig::default());
    let nodes = ["a", "b", "r"].map(|n| lab.container(n));
    for (i, node) in nodes.iter().enumerate() {
        let address = format!("192.0.2.{}/24", i + 1);
        s.tap(node, "eth0", &[&address], |c| c.isolated = i < 2);
    }
    let [a, b, r] = &nodes;
    a.assert_ping("192.0.2.3");
    b.assert_ping("192.0.2.3");
    r.assert_ping("192.0.2.1");
    a.assert_no_ping("192.0.2.2");
    // Even with the address known.
    let mac = b.mac("eth0");
    a.ok(&[
        "ip",
        "neigh",
        "replace",
        "192.0.2.2",
        "lladdr",
        &mac,
        "dev",
        "eth0",
    ]);
    a.assert_no_ping("192.0.2.2");
    s.assert_ledger();
}

#[test]
fn a_mirror_shows_both_ways_to_tcpdump() {
    let lab = own_lab!("mirror");
    let mut s = Switch::new(2, NetworkConfig::default());
    let nodes = ["a", "b", "probe"].map(|n| lab.container(n));
    let [a, b, probe] = &nodes;
    let pa = s.tap(a, "eth0", &["192.0.2.1/24"], |_| {});
    s.tap(b, "eth0", &["192.0.2.2/24"], |_| {});
    let target = s.tap(probe, "eth0", &[], |_| {});
    s.each(move |b| {
        let config = MirrorConfig {
            sources: vec![MirrorSource::Port {
                port: pa,
                ingress: true,
                egress: true,
            }],
            target,
            truncate: None,
            target_floods: false,
        };
        b.set_mirror(MirrorId(1), config);
    });
    let seen = probe.capture("eth0", "icmp");
    a.assert_ping("192.0.2.2");
    let lines = seen.fields(
        "",
        &["ip.src", "icmp.type", "icmp.seq", "icmp.checksum.status"],
    );
    assert_eq!(lines.len(), 6, "{lines:?}");
    for (n, pair) in lines.chunks(2).enumerate() {
        let seq = n + 1;
        assert_eq!(pair[0], format!("192.0.2.1\t8\t{seq}\t1"));
        assert_eq!(pair[1], format!("192.0.2.2\t0\t{seq}\t1"));
    }
    // A bulk transfer, cut: order and headers stay.
    s.each(move |b| {
        let config = MirrorConfig {
            sources: vec![MirrorSource::Port {
                port: pa,
                ingress: true,
                egress: false,
            }],
            target,
            truncate: Some(96),
            target_floods: false,
        };
        b.set_mirror(MirrorId(1), config);
    });
    let seen = probe.capture("eth0", "tcp");
    let _server = b.iperf3_server();
    a.iperf3("192.0.2.2", &["-n", "256K"]);
    let lines = seen.fields("ip.src == 192.0.2.1", &["frame.len"]);
    assert!(lines.len() > 4, "{lines:?}");
    assert!(
        lines
            .iter()
            .all(|l| l.parse::<u32>().is_ok_and(|n| n <= 96))
    );
    s.each(|b| {
        b.remove_mirror(MirrorId(1));
    });
    let seen = probe.capture("eth0", "icmp");
    a.assert_ping("192.0.2.2");
    assert_eq!(seen.fields("", &["ip.src"]), [""; 0]);
    s.assert_ledger();
}
