//! Policy for packets to the gateway itself: its DNS, its echo, and what is left alone.

use serde_json::Value;
use vswitch_tests::{Daemon, Lab, Node, attached, tap_lab};

/// A container that gets its address by DHCP, at a gateway with services.
fn served(lab: &Lab) -> (Daemon, Node) {
    let d = lab.daemon_with().start();
    d.ctl(&["network", "add", "lan"]);
    d.ctl(&[
        "gateway",
        "set",
        "lan",
        "--addresses",
        "192.0.2.1/24,2001:db8:1::1/64",
        "--dhcp",
        "192.0.2.100-192.0.2.200",
        "--dns",
        "on",
        "--domain",
        "lan.example",
    ]);
    let a = attached(lab, &d, &[]);
    d.ctl(&["port", "set", "a", "--labels", "app"]);
    (d, a)
}

/// What the gateway's DNS says of the container's own name.
fn asks(a: &Node) -> String {
    let out = a.run(&[
        "dig",
        "+short",
        "+tries=1",
        "+timeout=2",
        "@192.0.2.1",
        "a.lan.example",
        "A",
    ]);
    out.stdout.trim().to_owned()
}

/// A question of the gateway, traced.
const DNS: [&str; 9] = [
    "trace",
    "--from",
    "a",
    "--dst-ip",
    "192.0.2.1",
    "--proto",
    "udp",
    "--dport",
    "53",
];

fn judged(d: &Daemon, rule: usize) -> u64 {
    let shown: Value = d.ctl_json(&["policy", "show", "app"]);
    shown[0]["counts"][rule]["judged"].as_u64().unwrap()
}

/// Discovers: an offer comes, whatever the policy.
fn assert_dhcp(a: &Node) {
    a.scapy(
        "\
conf.checkIPaddr = False
p = Ether(dst='ff:ff:ff:ff:ff:ff')/IP(src='0.0.0.0', dst='255.255.255.255')/UDP(sport=68, dport=67)
p = p/BOOTP(chaddr=bytes.fromhex(get_if_hwaddr('eth0').replace(':', '')), xid=7, flags=0x8000)/DHCP(options=[('message-type', 'discover'), 'end'])
offer = srp1(p, iface='eth0', timeout=10, verbose=0)
assert offer and ('message-type', 2) in offer[DHCP].options, offer",
    );
}

#[test]
fn what_is_for_the_gateway_is_judged() {
    let lab = tap_lab!("input");
    let (d, a) = served(&lab);
    let name = asks(&a);
    assert!(name.contains("192.0.2.10"), "{name}");
    // Nothing is allowed, of either family, but what a network needs to be one, and names.
    d.ctl(&[
        "policy",
        "add",
        "app",
        "--from",
        "label:app",
        "--default",
        "drop",
    ]);
    for ip in ["192.0.2.1", "2001:db8:1::1"] {
        a.assert_no_ping(ip);
    }
    assert!(judged(&d, 0) >= 2);
    a.ok(&["ip", "neigh", "flush", "all"]);
    a.scapy("assert getmacbyip('192.0.2.1') and getmacbyip6('2001:db8:1::1')");
    assert_dhcp(&a);
    assert_eq!(asks(&a), name);
    let traced = d.ctl(&DNS);
    assert!(traced.contains("a request to its DNS service"), "{traced}");
    let echo = ["--from", "a", "--icmp", "echo-request"];
    let traced = d.ctl_json(&[&["trace", "--dst-ip", "192.0.2.1"], &echo[..]].concat());
    assert_eq!(traced["reason"], "policy", "{traced}");
    let explained = d.ctl_json(&[&["policy", "explain", "--to", "192.0.2.1"], &echo[..]].concat());
    assert_eq!(explained["action"], "drop", "{explained}");
    let explain = |to: &str, what: &[&str]| {
        let asked = ["policy", "explain", "--from", "a", "--to", to];
        let explained = d.ctl_json(&[&asked[..], what].concat());
        (explained["action"].clone(), explained["reason"].to_string())
    };
    let question = ["--proto", "udp", "--dport", "53"];
    let (action, why) = explain("192.0.2.1", &question);
    assert!(action == "accept" && why.contains("gateway's DNS"), "{why}");
    // The DNS of somebody else isn't spared.
    assert_eq!(explain("198.51.100.9", &question).0, "drop");
    let dhcp = ["--proto", "udp", "--sport", "68", "--dport", "67"];
    let (action, why) = explain("192.0.2.1", &dhcp);
    assert!(action == "accept" && why.contains("needs it"), "{why}");
    // One by one.
    let rules = [
        "--rule",
        "accept name ping to network:lan icmp echo-request",
        "--rule",
        "drop name dns to 192.0.2.1 proto udp ports 53",
        "--rule",
        "reject name rest",
    ];
    d.ctl(&[&["policy", "set", "app"], &rules[..]].concat());
    for ip in ["192.0.2.1", "2001:db8:1::1"] {
        a.assert_ping(ip);
    }
    assert!(!asks(&a).contains("192.0.2.10"));
    assert_eq!(explain("192.0.2.1", &question).0, "drop");
    assert!(judged(&d, 1) >= 1);
    let before = judged(&d, 1);
    let traced = d.ctl_json(&DNS);
    assert_eq!(traced["reason"], "policy", "{traced}");
    assert_eq!(judged(&d, 1), before, "asking isn't counted");
    // Refused with an answer.
    let script = "\
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.connect(('192.0.2.1', 54)); s.send(b'x')
try: s.recv(9)
except OSError as e: print(e.errno)";
    let told = a.ok(&["/usr/bin/python3", "-c", script]);
    assert_eq!(told.trim(), "113", "EHOSTUNREACH");
    // It isn't about others.
    d.ctl(&["port", "set", "a", "--labels", "other"]);
    assert_eq!(asks(&a), name);
    d.assert_ledger();
}
