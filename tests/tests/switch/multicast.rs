//! IGMP and MLD snooping: kernels join by the old and the new protocols, groups go to members alone.

use vswitch_tests::{Background, Daemon, Node, tap_lab, wait_until};

use crate::rig::{PYTHON, container, port, switch};

/// Joins the group on eth0 and says so.
const JOIN: &str = "\
import socket, sys, time
v6 = ':' in sys.argv[1]
i = socket.if_nametoindex('eth0').to_bytes(4, sys.byteorder)
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
if v6:
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, sys.argv[1]) + i)
else:
    s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(sys.argv[1]) + b'\\0' * 4 + i)
print('joined', flush=True)
time.sleep(60)
";
/// Sends ten datagrams to the group out of eth0, each longer than the one before, so that no two are joined on the way.
const SEND: &str = "\
import socket, sys
v6 = ':' in sys.argv[1]
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
i = socket.if_nametoindex('eth0')
if v6:
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, i)
else:
    s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, b'\\0' * 8 + i.to_bytes(4, sys.byteorder))
for n in range(10):
    s.sendto(b'x' * (n + 1), (sys.argv[1], 5000))
";

/// How many of ten datagrams arrive at each of the receivers.
fn arrived(sender: &Node, receivers: &[&Node], group: &str) -> Vec<usize> {
    let captures: Vec<_> = receivers
        .iter()
        .map(|n| n.capture("eth0", "udp port 5000"))
        .collect();
    sender.ok(&[PYTHON, "-c", SEND, group]);
    // What is sent after them has overtaken nothing.
    for i in 0..receivers.len() {
        let ping = sender.ping_with(&format!("192.0.2.{}", i + 2), &["-c", "1", "-W", "5"]);
        assert!(ping.success(), "{ping}");
    }
    captures
        .into_iter()
        .map(vswitch_tests::Capture::count)
        .collect()
}

/// Ports that have joined a group.
fn members(d: &Daemon, group: &str) -> Vec<String> {
    let table = d.http("GET", "/v1/networks/lan/mdb", None).json();
    let mut ports: Vec<String> = table
        .as_array()
        .expect("a list")
        .iter()
        .filter(|e| e["group"] == group)
        .map(|e| e["port"].as_str().expect("a name").to_owned())
        .collect();
    ports.sort();
    ports
}

fn join(node: &Node, group: &str) -> Background {
    let mut joined = node.spawn(&[PYTHON, "-c", JOIN, group]);
    joined.wait_for("joined");
    joined
}

#[test]
fn groups_go_to_members_by_either_version() {
    let lab = tap_lab!("sw-snooping");
    let d = switch(&lab, &["--snooping", "on", "--querier", "on"]);
    let names = ["sender", "old", "new", "stranger"];
    let nodes: Vec<Node> = (1..)
        .zip(names)
        .map(|(i, name)| {
            let node = container(&d, &lab, name, &format!("192.0.2.{i}/24"), &[]);
            node.addr("eth0", &format!("2001:db8::{i}/64"));
            node
        })
        .collect();
    let [sender, old, new, stranger] = &nodes[..] else {
        panic!("four nodes");
    };
    for setting in [
        "ipv4.conf.eth0.force_igmp_version=2",
        "ipv6.conf.eth0.force_mld_version=1",
    ] {
        old.ok(&["sysctl", "-w", &format!("net.{setting}")]);
    }
    let receivers = [old, new, stranger];
    for group in ["239.1.2.3", "ff0e::1:2:3"] {
        assert_eq!(arrived(sender, &receivers, group), [0, 0, 0], "{group}");
        let mut joined = [old, new].map(|n| join(n, group));
        let both = || members(&d, group) == ["new", "old"];
        wait_until(&format!("both memberships in {group}"), both);
        assert_eq!(arrived(sender, &receivers, group), [10, 10, 0], "{group}");
        joined[1].kill();
        wait_until(&format!("a membership in {group} to end"), || {
            members(&d, group) == ["old"]
        });
        assert_eq!(arrived(sender, &receivers, group), [10, 0, 0], "{group}");
    }
    // A router's port has all groups, joined or not.
    d.ctl(&["port", "set", "stranger", "--multicast-router", "on"]);
    assert_eq!(port(&d, "stranger")["config"]["multicast_router"], true);
    assert_eq!(arrived(sender, &receivers, "239.9.9.9"), [0, 0, 10]);
    // What isn't snooped goes everywhere.
    assert_eq!(arrived(sender, &receivers, "224.0.0.251"), [10, 10, 10]);
    d.ctl(&["network", "set", "lan", "--snooping", "off"]);
    assert_eq!(arrived(sender, &receivers, "239.9.9.9"), [10, 10, 10]);
    d.assert_ledger();
}
