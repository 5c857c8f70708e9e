//! AF_PACKET ports on veth ends.

use crate::own_lab;
use crate::rig::Switch;
use nix::sched::{CloneFlags, setns};
use vswitch_core::bridge::NetworkConfig;
use vswitch_core::frame::Offloads;
use vswitch_core::port::packet::{PacketOptions, PacketPort};
use vswitch_core::port::{PortId, mem};
use vswitch_core::worker::Event;
use vswitch_tests::{Lab, Mtu, Node, wait_until};

/// Joins `node` to the host where the switch lives by a veth pair, and serves its near end.
#[track_caller]
pub(crate) fn veth(
    switch: &mut Switch,
    lab: &Lab,
    host: &Node,
    node: &Node,
    addresses: &[&str],
) -> PortId {
    let near = format!("v-{}", node.name());
    lab.link(host, &near, node, "eth0", Mtu(1500));
    for a in addresses {
        node.addr("eth0", a);
    }
    let path = host.netns_path();
    let opened = std::thread::spawn(move || {
        let ns = std::fs::File::open(path).expect("open the network namespace");
        setns(ns, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
        let options = PacketOptions {
            promiscuous: true,
            ..PacketOptions::default()
        };
        PacketPort::open_in_current_netns(&near, options).expect("open a packet port")
    });
    let port = opened.join().expect("the thread that opens the port");
    switch.add(Box::new(port), |_| ())
}

#[test]
fn tcp_both_ways_between_veths_and_to_a_tap() {
    let lab = own_lab!("packet");
    let host = lab.host("sw");
    let (a, b, c) = (lab.container("a"), lab.container("b"), lab.container("c"));
    let mut switch = Switch::new(1, NetworkConfig::default());
    veth(
        &mut switch,
        &lab,
        &host,
        &a,
        &["192.0.2.1/24", "2001:db8::1/64"],
    );
    veth(
        &mut switch,
        &lab,
        &host,
        &b,
        &["192.0.2.2/24", "2001:db8::2/64"],
    );
    switch.tap(&c, "eth0", &["192.0.2.3/24", "2001:db8::3/64"], |_| ());
    let _servers = [b.iperf3_server(), c.iperf3_server()];
    for to in ["192.0.2.2", "2001:db8::2", "192.0.2.3", "2001:db8::3"] {
        a.assert_ping(to);
        for way in [&["-n", "20M"][..], &["-n", "20M", "-R"]] {
            let got = a.iperf3(to, way).received_bytes;
            // What is on its way when the client has sent all isn't counted.
            assert!(got >= 10 << 20, "{to} {way:?}: {got} bytes");
        }
    }
    switch.assert_ledger();
}

#[test]
fn link_down_comes_back_and_a_deleted_interface_is_gone() {
    let lab = own_lab!("packet-down");
    let host = lab.host("sw");
    let (a, b) = (lab.container("a"), lab.container("b"));
    let mut switch = Switch::new(1, NetworkConfig::default());
    let pa = veth(&mut switch, &lab, &host, &a, &["192.0.2.1/24"]);
    veth(&mut switch, &lab, &host, &b, &["192.0.2.2/24"]);
    a.assert_ping("192.0.2.2");
    host.ok(&["ip", "link", "set", "v-a", "down"]);
    switch.wait_event(
        "the port to go down",
        |e| matches!(e, Event::PortDown { port, is_final: false, .. } if *port == pa),
    );
    host.ok(&["ip", "link", "set", "v-a", "up"]);
    switch.wait_event(
        "the port to come back",
        |e| matches!(e, Event::PortUp { port } if *port == pa),
    );
    a.assert_ping("192.0.2.2");
    host.ok(&["ip", "link", "del", "v-a"]);
    switch.wait_event(
        "the port to be gone",
        |e| matches!(e, Event::PortDown { port, is_final: true, .. } if *port == pa),
    );
    switch.assert_ledger();
}

/// The kernel takes the tag out of a frame it receives and tells it beside the frame.
#[test]
fn vlan_tags_are_put_back() {
    let lab = own_lab!("packet-vlan");
    let host = lab.host("sw");
    let a = lab.container("a");
    let mut switch = Switch::new(1, NetworkConfig::default());
    veth(&mut switch, &lab, &host, &a, &["192.0.2.1/24"]);
    let (near, far) = mem::pair(64, Offloads::ALL).expect("make a pair of ports");
    switch.add(Box::new(far), |_| ());
    a.scapy("sendp(Ether(dst='ff:ff:ff:ff:ff:ff') / Dot1Q(vlan=10, prio=3) / ARP(pdst='192.0.2.9'), iface='eth0')");
    wait_until("the tagged frame", || {
        std::iter::from_fn(|| near.pop())
            .any(|f| f.head().get(12..18) == Some(&[0x81, 0, 0x60, 10, 8, 6][..]))
    });
    switch.assert_ledger();
}
