//! Snooping with a kernel's own IGMP and MLD.

use vswitch_core::bridge::NetworkConfig;
use vswitch_core::clock::Clock;
use vswitch_tests::{Node, wait_until};

use crate::own_lab;
use crate::rig::{NET, Switch};

/// Joins a group on eth0 and says so; leaves it when its stdin ends.
const JOIN4: &str = "\
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(sys.argv[1]) + socket.inet_aton('0.0.0.0') + socket.if_nametoindex('eth0').to_bytes(4, sys.byteorder))
print('joined', flush=True)
time.sleep(60)
";
const JOIN6: &str = "\
import socket, sys, time
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, sys.argv[1]) + socket.if_nametoindex('eth0').to_bytes(4, sys.byteorder))
print('joined', flush=True)
time.sleep(60)
";
/// Sends ten datagrams to a group, each longer than the one before, so that no two are joined on the way.
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
    s.sendto(b'hello' + b'!' * n, (sys.argv[1], 5000))
";
const PYTHON: &str = "/usr/bin/python3";

fn arrived(nodes: &[Node], group: &str) -> Vec<usize> {
    let captures: Vec<_> = nodes[1..]
        .iter()
        .map(|n| n.capture("eth0", "udp port 5000"))
        .collect();
    nodes[0].ok(&[PYTHON, "-c", SEND, group]);
    // What is sent after them has overtaken nothing.
    for (i, _) in nodes[1..].iter().enumerate() {
        nodes[0].assert_ping(&format!("192.0.2.{}", i + 2));
    }
    captures
        .into_iter()
        .map(|c| c.fields("", &["frame.len"]).len())
        .collect()
}

#[test]
fn groups_go_to_the_kernels_that_joined() {
    let lab = own_lab!("snooping");
    let mut s = Switch::new(
        2,
        NetworkConfig {
            snooping: true,
            querier: true,
            ..NetworkConfig::default()
        },
    );
    let nodes = ["sender", "member", "stranger"].map(|n| lab.container(n));
    for (i, n) in nodes.iter().enumerate() {
        let addresses = [
            format!("192.0.2.{}/24", i + 1),
            format!("2001:db8::{}/64", i + 1),
        ];
        s.tap(n, "eth0", &[&addresses[0], &addresses[1]], |_| {});
    }
    for (group, script) in [("239.1.2.3", JOIN4), ("ff0e::1:2:3", JOIN6)] {
        assert_eq!(arrived(&nodes, group), [0, 0], "nobody has joined {group}");
        let mut member = nodes[1].spawn(&[PYTHON, "-c", script, group]);
        member.wait_for("joined");
        let ip: std::net::IpAddr = group.parse().expect("address");
        let known = || {
            s.ask(|b| b.mdb(NET, Clock::default().now()))
                .iter()
                .any(|e| e.group == Some(ip) && e.port.0 == 1)
        };
        wait_until(&format!("the membership in {group}"), known);
        assert_eq!(arrived(&nodes, group), [10, 0], "{group}");
        member.kill();
        wait_until(&format!("the membership in {group} to end"), || !known());
        assert_eq!(arrived(&nodes, group), [0, 0], "{group} was left");
    }
    // Neighbour discovery and 224.0.0.x work as ever.
    nodes[0].assert_ping("2001:db8::2");
    assert_eq!(arrived(&nodes, "224.0.0.251"), [10, 10]);
    s.assert_ledger();
}
