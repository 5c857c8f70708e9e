//! AF_PACKET ports on veth ends, by system calls and by the ring.

use crate::own_lab;
use crate::rig::Switch;
use nix::sched::{CloneFlags, setns};
use std::path::Path;
use std::time::Duration;
use vswitch_core::bridge::NetworkConfig;
use vswitch_core::frame::{GsoType, Offloads};
use vswitch_core::port::packet::{PacketOptions, PacketPort, Receive};
use vswitch_core::port::{PortId, mem};
use vswitch_core::worker::Event;
use vswitch_tests::{Lab, Mtu, Node, wait_until};

/// Blocks enough for a machine so busy that a worker waits its turn for a quarter of a second.
const RING: Receive = Receive::Ring { blocks: 64 };

/// Opens packet ports on an interface of another namespace, by a thread of its own.
pub(crate) fn open<T: Send + 'static>(netns: &Path, f: impl FnOnce() -> T + Send + 'static) -> T {
    let ns = std::fs::File::open(netns).expect("open the network namespace");
    let opened = std::thread::spawn(move || {
        setns(ns, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
        f()
    });
    opened.join().expect("the thread that opens the port")
}

/// Joins `node` to the host where the switch lives by a veth pair, and serves its near end.
#[track_caller]
pub(crate) fn veth(
    switch: &mut Switch,
    lab: &Lab,
    host: &Node,
    node: &Node,
    addresses: &[&str],
    receive: Receive,
) -> PortId {
    let near = format!("v-{}", node.name());
    lab.link(host, &near, node, "eth0", Mtu(1500));
    for a in addresses {
        node.addr("eth0", a);
    }
    let options = PacketOptions {
        promiscuous: true,
        receive,
        ..PacketOptions::default()
    };
    let port = open(&host.netns_path(), move || {
        PacketPort::open_in_current_netns(&near, options).expect("open a packet port")
    });
    switch.add(Box::new(port), |_| ())
}

fn tcp_both_ways(name: &str, receive: Receive) {
    let lab = own_lab!(name);
    let host = lab.host("sw");
    let (a, b, c) = (lab.container("a"), lab.container("b"), lab.container("c"));
    let mut switch = Switch::new(1, NetworkConfig::default());
    for (node, v4, v6) in [
        (&a, "192.0.2.1/24", "2001:db8::1/64"),
        (&b, "192.0.2.2/24", "2001:db8::2/64"),
    ] {
        veth(&mut switch, &lab, &host, node, &[v4, v6], receive);
    }
    switch.tap(&c, "eth0", &["192.0.2.3/24", "2001:db8::3/64"], |_| ());
    let _servers = [b.iperf3_server(), c.iperf3_server()];
    for to in ["192.0.2.2", "2001:db8::2", "192.0.2.3", "2001:db8::3"] {
        a.assert_ping(to);
        for way in [&["-n", "20M"][..], &["-n", "20M", "-R"]] {
            let got = a.iperf3(to, way).received_bytes;
            // What is on its way when the client has sent all isn't counted.
            assert!(got >= 8 << 20, "{to} {way:?}: {got} bytes");
        }
    }
    // One frame at a time, each after a sleep of the worker: a wake-up that is lost loses a ping.
    let single = a.ping_with("192.0.2.2", &["-q", "-c", "300", "-i", "0.004", "-W", "2"]);
    assert!(single.stdout.contains(" 300 received"), "{single}");
    switch.assert_ledger();
}

#[test]
fn tcp_both_ways_between_veths_and_to_a_tap() {
    tcp_both_ways("packet", Receive::Socket);
}

#[test]
fn tcp_both_ways_by_the_ring() {
    tcp_both_ways("packet-ring", RING);
}

fn link_changes(name: &str, receive: Receive) {
    let lab = own_lab!(name);
    let host = lab.host("sw");
    let (a, b) = (lab.container("a"), lab.container("b"));
    let mut switch = Switch::new(1, NetworkConfig::default());
    let pa = veth(&mut switch, &lab, &host, &a, &["192.0.2.1/24"], receive);
    veth(&mut switch, &lab, &host, &b, &["192.0.2.2/24"], receive);
    a.assert_ping("192.0.2.2");
    for times in 1..=3 {
        host.ok(&["ip", "link", "set", "v-a", "down"]);
        let down =
            |e: &Event| matches!(e, Event::PortDown { port, is_final: false, .. } if *port == pa);
        wait_until("the port to go down", || {
            switch.events().iter().filter(|e| down(e)).count() == times
        });
        host.ok(&["ip", "link", "set", "v-a", "up"]);
        let up = |e: &Event| matches!(e, Event::PortUp { port } if *port == pa);
        wait_until("the port to come back", || {
            switch.events().iter().filter(|e| up(e)).count() == times
        });
        a.assert_ping("192.0.2.2");
    }
    host.ok(&["ip", "link", "del", "v-a"]);
    switch.wait_event(
        "the port to be gone",
        |e| matches!(e, Event::PortDown { port, is_final: true, .. } if *port == pa),
    );
    switch.assert_ledger();
}

#[test]
fn link_down_comes_back_and_a_deleted_interface_is_gone() {
    link_changes("packet-down", Receive::Socket);
}

#[test]
fn link_down_comes_back_and_a_deleted_interface_is_gone_by_the_ring() {
    link_changes("ring-down", RING);
}

/// An interface that goes down while frames pour in: the error must not drown in them.
fn link_down_under_load(name: &str, receive: Receive) {
    let lab = own_lab!(name);
    let host = lab.host("sw");
    let a = lab.container("a");
    let mut switch = Switch::new(1, NetworkConfig::default());
    let pa = veth(&mut switch, &lab, &host, &a, &["192.0.2.1/24"], receive);
    let _flood = a.spawn(&["python3", "-c", ENDLESS]);
    for times in 1..=10 {
        let before = switch.received(pa).0;
        wait_until("frames", || switch.received(pa).0 > before + 100);
        host.ok(&["ip", "link", "set", "v-a", "down"]);
        let down = |e: &Event| matches!(e, Event::PortDown { port, .. } if *port == pa);
        wait_until("the port to go down", || {
            switch.events().iter().filter(|e| down(e)).count() == times
        });
        host.ok(&["ip", "link", "set", "v-a", "up"]);
        let up = |e: &Event| matches!(e, Event::PortUp { port } if *port == pa);
        wait_until("the port to come back", || {
            switch.events().iter().filter(|e| up(e)).count() == times
        });
    }
}

/// Sends small frames for 20 s, whatever becomes of them.
const ENDLESS: &str = "\
import socket, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
frame = bytes.fromhex('02000000000902000000000188b5') + bytes(46)
end = time.time() + 20
while time.time() < end:
    try:
        s.send(frame)
    except OSError:
        pass
";

#[test]
fn link_down_is_noticed_under_load() {
    link_down_under_load("packet-load", Receive::Socket);
}

#[test]
fn link_down_is_noticed_under_load_by_the_ring() {
    link_down_under_load("ring-load", RING);
}

/// The kernel takes the tag out of a frame it receives and tells it beside the frame.
fn vlan_tags(name: &str, receive: Receive) {
    let lab = own_lab!(name);
    let host = lab.host("sw");
    let a = lab.container("a");
    let mut switch = Switch::new(1, NetworkConfig::default());
    veth(&mut switch, &lab, &host, &a, &["192.0.2.1/24"], receive);
    let (near, far) = mem::pair(64, Offloads::ALL).expect("make a pair of ports");
    switch.add(Box::new(far), |_| ());
    for (outer, tag) in [
        ("Dot1Q(vlan=10, prio=3)", &[0x81, 0, 0x60, 10, 8, 6][..]),
        (
            "Dot1AD(vlan=20) / Dot1Q(vlan=30)",
            &[0x88, 0xa8, 0, 20, 0x81, 0, 0, 30, 8, 6],
        ),
    ] {
        a.scapy(&format!(
            "sendp(Ether(dst='ff:ff:ff:ff:ff:ff') / {outer} / ARP(pdst='192.0.2.9'), iface='eth0')"
        ));
        wait_until("the tagged frame", || {
            std::iter::from_fn(|| near.pop()).any(|f| f.head().get(12..12 + tag.len()) == Some(tag))
        });
    }
    switch.assert_ledger();
}

#[test]
fn vlan_tags_are_put_back() {
    vlan_tags("packet-vlan", Receive::Socket);
}

#[test]
fn vlan_tags_are_put_back_by_the_ring() {
    vlan_tags("ring-vlan", RING);
}

/// Sends COUNT frames of the local experimental EtherType with a running number.
const NUMBERED: &str = "\
import socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
head = bytes.fromhex('02000000000902000000000188b5')
for i in range(int(sys.argv[1])):
    s.send(head + struct.pack('!I', i) + bytes(42))
";

/// While the worker is elsewhere, more comes than there is room for: what is lost is counted, what isn't comes in order.
fn flood(name: &str, receive: Receive) {
    const SENT: u64 = 30_000;
    let lab = own_lab!(name);
    let host = lab.host("sw");
    let a = lab.container("a");
    for ns in [&a, &host] {
        // Nothing else is on the wire then.
        ns.ok(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
    }
    let mut switch = Switch::new(1, NetworkConfig::default());
    let pa = veth(&mut switch, &lab, &host, &a, &[], receive);
    let (near, far) = mem::pair(1 << 16, Offloads::ALL).expect("make a pair of ports");
    switch.add(Box::new(far), |_| ());
    switch.stall(Duration::from_secs(4));
    a.ok(&["python3", "-c", NUMBERED, &SENT.to_string()]);
    wait_until("every frame to be received or counted as lost", || {
        let (frames, errors) = switch.received(pa);
        assert!(frames + errors <= SENT, "{frames} and {errors} lost");
        frames + errors == SENT
    });
    let (frames, lost) = switch.received(pa);
    assert!(lost > 0 && frames > 0, "{frames} and {lost} lost");
    switch.assert_ledger();
    let numbers: Vec<u32> = std::iter::from_fn(|| near.pop())
        .filter_map(|f| f.head().get(14..18)?.first_chunk().copied())
        .map(u32::from_be_bytes)
        .collect();
    assert_eq!(numbers.len() as u64, frames);
    assert!(numbers.is_sorted_by(|a, b| a < b), "out of order, or twice");
    assert_eq!(numbers[0], 0, "the first that came was kept");
}

#[test]
fn frames_lost_in_a_flood_are_counted() {
    flood("packet-flood", Receive::Socket);
}

#[test]
fn frames_lost_in_a_flood_are_counted_by_the_ring() {
    flood("ring-flood", Receive::Ring { blocks: 2 });
}

/// Sends TCP segmentation-offload frames (virtio-net header in front), the last as long as veth takes it whole.
const LARGE: &str = "\
import socket, struct
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.setsockopt(263, 15, 1)
s.bind(('eth0', 0))
for n in (3000, 40000, 65481):
    body = bytes((i * 7 + n) % 251 for i in range(n))
    ip = bytearray(struct.pack('!BBHHHBBH4s4s', 0x45, 0, 40 + n, 1, 0x4000, 64, 6, 0, bytes([192,0,2,1]), bytes([192,0,2,9])))
    total = sum(struct.unpack('!10H', ip))
    total = (total & 0xffff) + (total >> 16)
    ip[10:12] = struct.pack('!H', 0xffff ^ ((total & 0xffff) + (total >> 16)))
    tcp = struct.pack('!HHIIBBHHH', 1000, 2000, 1, 1, 0x50, 0x10, 1000, 0, 0)
    vnet = struct.pack('=BBHHHH', 1, 1, 54, 1448, 34, 16)
    s.send(vnet + bytes.fromhex('0200000000090200000000010800') + ip + tcp + body)
";

fn large(name: &str, receive: Receive) {
    let lab = own_lab!(name);
    let host = lab.host("sw");
    let a = lab.container("a");
    let mut switch = Switch::new(1, NetworkConfig::default());
    veth(&mut switch, &lab, &host, &a, &[], receive);
    let (near, far) = mem::pair(64, Offloads::ALL).expect("make a pair of ports");
    switch.add(Box::new(far), |_| ());
    a.ok(&["python3", "-c", LARGE]);
    let mut got = Vec::new();
    wait_until("three large frames", || {
        let large = std::iter::from_fn(|| near.pop()).filter(|f| f.len() > 3000);
        got.extend(large);
        got.len() >= 3
    });
    for (f, n) in got.iter().zip([3000, 40_000, 65_481]) {
        assert_eq!(f.len(), 54 + n);
        assert_eq!((f.vnet.gso, f.vnet.gso_size), (GsoType::Tcp4, 1448));
        assert_eq!((f.vnet.csum_start, f.vnet.csum_offset), (34, 16));
        let body = (0..n).map(|i| ((i * 7 + n) % 251) as u8);
        assert!(f.to_vec()[54..].iter().copied().eq(body), "{n} bytes");
    }
    switch.assert_ledger();
}

#[test]
fn frames_of_64_kib_come_whole() {
    large("packet-large", Receive::Socket);
}

#[test]
fn frames_of_64_kib_come_whole_by_the_ring() {
    large("ring-large", RING);
}
