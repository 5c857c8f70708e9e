//! Who comes to published ports, as whom, and from where he is answered.

use super::{publish, shown};
use crate::rig::{FAR, HOST, Site, peer, serve, site};
use serde_json::json;
use vswitch_tests::{Mtu, tap_lab, wait_until};

#[test]
fn client_addresses_are_preserved_on_published_ports() {
    let lab = tap_lab!("pub-client");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    let said = peer(&outside, &["peer", HOST[0], "8080"]);
    assert_eq!(said, format!("::ffff:{}", FAR[0]));
    assert_eq!(peer(&outside, &["peer", HOST[1], "8080"]), FAR[1]);
    let shown = d.ctl(&["conntrack", "show", "--protocol", "tcp"]);
    assert!(
        shown.contains(FAR[0]) && shown.contains("192.0.2.10:7000"),
        "{shown}"
    );
    d.assert_ledger();
}

#[test]
fn urgent_data_comes_in_its_place_at_published_ports() {
    let lab = tap_lab!("pub-urgent");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    for host in HOST {
        let said = peer(&outside, &["urgent", host, "8080"]);
        assert_eq!(said, "abc!def?ghi\nxy!z", "{host}");
    }
    d.assert_ledger();
}

#[test]
fn datagrams_that_a_container_refuses_are_counted() {
    let lab = tap_lab!("pub-refused");
    let Site { d, a, outside } = site(&lab, "1500");
    d.ctl(&[
        "publish",
        "add",
        "udp",
        "--to",
        "192.0.2.10:7100",
        "--address",
        "0.0.0.0",
        "--ports",
        "8100",
        "--protocol",
        "udp",
    ]);
    let failed = || shown(&d, "udp")["failed"].as_u64();
    assert_eq!(failed(), Some(0));
    // Nobody listens inside: its kernel says so, and no socket of the host can.
    let send = "import socket; socket.socket(2, 2).sendto(b'x', ('198.51.100.1', 8100))";
    outside.ok(&["python3", "-c", send]);
    wait_until("the refusal to be counted", || failed() == Some(1));
    assert_eq!(shown(&d, "udp")["accepted"], 1);
    // Somebody does, and is reached.
    let _datagrams = serve(&a, "datagrams", "7100");
    let said = peer(&outside, &["datagram", HOST[0], "8100", "1200", "5"]);
    assert_eq!(said, "same 5");
    assert_eq!(failed(), Some(1));
    d.assert_ledger();
}

#[test]
fn client_addresses_are_preserved_in_two_networks_of_users() {
    let lab = tap_lab!("pub-two");
    let Site { d, a, outside } = site(&lab, "1500");
    d.ctl(&["network", "add", "back"]);
    let addresses = "203.0.113.1/24,2001:db8:3::1/64";
    d.ctl(&[
        "gateway",
        "set",
        "back",
        "--host-uplink",
        "on",
        "--addresses",
        addresses,
    ]);
    let b = lab.container("b");
    let attach = |node: &vswitch_tests::Node, network: &str, ip: &str, more: &[&str]| {
        let pid = node.pid().to_string();
        let base = ["attach", "--pid", &pid, "--ip", ip, network];
        d.ctl(&[&base[..], more].concat());
    };
    let gw = ["--gw", "203.0.113.1,2001:db8:3::1"];
    attach(&b, "back", "203.0.113.10/24,2001:db8:3::10/64", &gw);
    // The first container is in both, and its way out is by the first.
    attach(
        &a,
        "back",
        "203.0.113.20/24",
        &["--device", "eth1", "--name", "a1"],
    );
    let _front = serve(&a, "serve", "7000");
    let _back = serve(&b, "serve", "7000");
    let _datagrams = serve(&b, "datagrams", "7100");
    publish(&d, "front", &["--ports", "8080"]);
    let to = "203.0.113.10:7000,[2001:db8:3::10]:7000";
    d.ctl(&["publish", "add", "back", "--to", to, "--ports", "8081"]);
    let to = "203.0.113.10:7100,[2001:db8:3::10]:7100";
    d.ctl(&[
        "publish",
        "add",
        "udp",
        "--to",
        to,
        "--ports",
        "8081",
        "--protocol",
        "udp",
    ]);
    for port in ["8080", "8081"] {
        let said = peer(&outside, &["peer", HOST[0], port]);
        assert_eq!(said, format!("::ffff:{}", FAR[0]), "{port}");
        assert_eq!(peer(&outside, &["peer", HOST[1], port]), FAR[1], "{port}");
    }
    let said = peer(&outside, &["who", HOST[0], "8081"]);
    assert_eq!(said, format!("::ffff:{} same port", FAR[0]));
    let said = peer(&outside, &["who", HOST[1], "8081"]);
    assert_eq!(said, format!("{} same port", FAR[1]));
    d.assert_ledger();
}

#[test]
fn publishing_on_127_0_0_1_only() {
    let lab = tap_lab!("pub-loop");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    let _datagrams = serve(&a, "datagrams", "7100");
    let add = |name: &str, address: &str, to: &str, protocol: &str| {
        let base = ["publish", "add", name, "--ports", "8080", "--to", to];
        d.ctl(&[&base[..], &["--address", address, "--protocol", protocol]].concat());
    };
    add("four", "127.0.0.1", "192.0.2.10:7000", "tcp");
    add("six", "::1", "[2001:db8:1::10]:7000", "tcp");
    add("dgram", "127.0.0.1", "192.0.2.10:7100", "udp");
    // The gateway stands for who is on the host itself.
    let said = peer(d.host(), &["peer", "127.0.0.1", "8080"]);
    assert_eq!(said, "::ffff:192.0.2.1");
    assert_eq!(peer(d.host(), &["peer", "::1", "8080"]), "2001:db8:1::1");
    let said = peer(d.host(), &["who", "127.0.0.1", "8080"]);
    assert_eq!(said, "::ffff:192.0.2.1 same port");
    let said = peer(d.host(), &["upload", "127.0.0.1", "8080", "20000000"]);
    assert_eq!(said, "same");
    for host in HOST {
        for from in [&outside, d.host()] {
            let said = peer(from, &["attempt", host, "8080"]);
            assert_eq!(
                said,
                "ConnectionRefusedError 111",
                "{host} from {}",
                from.name()
            );
        }
    }
    let said = peer(&outside, &["who", HOST[0], "8080"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    d.assert_ledger();
}

#[test]
fn ipv6_publishing() {
    let lab = tap_lab!("pub-six");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    // What the machine has a dual-stack socket be makes no difference.
    d.host().ok(&["sysctl", "-qw", "net.ipv6.bindv6only=0"]);
    let to = "[2001:db8:1::10]:7000";
    let args = ["publish", "add", "six", "--ports", "8080", "--to", to];
    d.ctl(&[&args[..], &["--address", "::"]].concat());
    assert_eq!(peer(&outside, &["peer", HOST[1], "8080"]), FAR[1]);
    let said = peer(&outside, &["attempt", HOST[0], "8080"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    let said = peer(&outside, &["upload", HOST[1], "8080", "20000000"]);
    assert_eq!(said, "same");
    // The same port in the other family is another's.
    let args = [
        "publish",
        "add",
        "four",
        "--ports",
        "8080",
        "--to",
        "192.0.2.10:7000",
    ];
    d.ctl(&args);
    let said = peer(&outside, &["peer", HOST[0], "8080"]);
    assert_eq!(said, format!("::ffff:{}", FAR[0]));
    assert_eq!(shown(&d, "six")["host"], json!(["::"]));
    assert_eq!(shown(&d, "four")["host"], json!(["0.0.0.0"]));
    d.assert_ledger();
}

#[test]
fn datagrams_are_answered_from_where_they_were_sent_to() {
    let lab = tap_lab!("pub-udp");
    let Site { d, a, outside } = site(&lab, "1500");
    let _datagrams = serve(&a, "datagrams", "7100");
    let to = "192.0.2.10:7100,[2001:db8:1::10]:7100";
    d.ctl(&[
        "publish",
        "add",
        "udp",
        "--to",
        to,
        "--ports",
        "9100",
        "--protocol",
        "udp",
    ]);
    // The host has a second address of either family.
    d.host().addr("out0", "198.51.100.7/24");
    d.host().addr("out0", "2001:db8:2::7/64");
    // Each from a port of its own: one that the kernel has picked twice would be one client.
    let mut own = (20_001..).map(|port: u16| port.to_string());
    let mut own = || own.next().unwrap_or_default();
    for (i, far) in [(0, "198.51.100.7"), (1, "2001:db8:2::7")] {
        for host in [HOST[i], far] {
            let as_seen = ["::ffff:198.51.100.254", "2001:db8:2::254"][i];
            let said = peer(&outside, &["who", host, "9100", &own()]);
            assert_eq!(said, format!("{as_seen} same port"), "{host}");
            let args = ["datagram", host, "9100", "1200", "200", &own()];
            assert_eq!(peer(&outside, &args), "same 200", "{host}");
        }
    }
    // Longer than a packet, and as long as they can be.
    for size in ["5000", "65507"] {
        let args = ["datagram", HOST[0], "9100", size, "5", &own()];
        assert_eq!(peer(&outside, &args), "same 5", "{size}");
    }
    assert_eq!(shown(&d, "udp")["accepted"], 10);
    // It is closed; the port is nobody's.
    d.ctl(&["publish", "del", "udp"]);
    let said = peer(&outside, &["who", HOST[0], "9100"]);
    assert_eq!(said, "ConnectionRefusedError 111");
    d.assert_ledger();
}

/// Two clients in turn send bursts of many sizes to `$1` `$2`, and have them back, each its own and in order; a busy machine may lose some.
const BURSTS: &str = r#"
import os, socket, sys
to = (sys.argv[1], int(sys.argv[2]))
both = [socket.socket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
for s in both:
    s.settimeout(2)
sizes = [1200] * 6 + [0, 700, 700, 699, 1, 1400, 1400] + [64] * 20 + [5000]
whole = 0
for turn in range(20):
    sent = ([], [])
    # In turn, and then one behind the other.
    order = [i % 2 for i in range(2 * len(sizes))] if turn % 2 else [0] * len(sizes) + [1] * len(sizes)
    for i in order:
        b = os.urandom(sizes[len(sent[i])])
        sent[i].append(b)
        both[i].sendto(b, to)
    for s, wanted in zip(both, sent):
        got = []
        try:
            for _ in wanted:
                got.append(s.recv(65536))
        except TimeoutError:
            pass
        left = iter(wanted)
        if not all(b in left for b in got):
            sys.exit(f"turn {turn}: {[len(b) for b in got]}")
        whole += got == wanted
print("whole" if whole >= 10 else f"{whole} bursts of 40")
"#;

#[test]
fn bursts_of_several_clients_stay_whole() {
    let lab = tap_lab!("pub-bursts");
    let Site { d, a, outside } = site(&lab, "1500");
    let _datagrams = serve(&a, "datagrams", "7100");
    let to = "192.0.2.10:7100,[2001:db8:1::10]:7100";
    let add = ["publish", "add", "udp", "--ports", "9100", "--to", to];
    d.ctl(&[&add[..], &["--protocol", "udp"]].concat());
    for host in HOST {
        let bursts = ["/usr/bin/python3", "-c", BURSTS, host, "9100"];
        assert_eq!(outside.ok(&bursts).trim(), "whole", "{host}");
    }
    assert_eq!(shown(&d, "udp")["accepted"], 4);
    d.assert_ledger();
}

#[test]
fn a_client_of_the_containers_own_prefix_is_answered() {
    let lab = tap_lab!("pub-near");
    let Site { d, a, outside } = site(&lab, "1500");
    let _server = serve(&a, "serve", "7000");
    publish(&d, "web", &["--ports", "8080"]);
    // Outside is a machine with an address that the container takes for a neighbour's.
    let near = lab.host("near");
    lab.link(d.host(), "out1", &near, "eth0", Mtu(1500));
    d.host().addr("out1", "192.0.2.200/30");
    near.addr("eth0", "192.0.2.201/30");
    let said = peer(&near, &["peer", "192.0.2.200", "8080"]);
    assert_eq!(said, "::ffff:192.0.2.1");
    drop(outside);
    d.assert_ledger();
}
