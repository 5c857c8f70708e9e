//! DHCP, router advertisements and DNS of the gateway, with the usual clients in containers.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use vswitch_tests::{Background, Daemon, Lab, Mtu, Node, tap_lab, wait_until};

/// Attaches a container without any address.
pub(crate) fn attach_bare(d: &Daemon, node: &Node) {
    let netns = format!("pid:{}", node.pid());
    let place = ["--network", "lan", "--netns", &netns, "--device", "eth0"];
    d.ctl(&[&["port", "add", node.name()][..], &place].concat());
    node.ok(&["ip", "link", "set", "eth0", "up"]);
}

/// A resolver that the daemon reaches, and a host outside that containers reach by translation.
pub(crate) struct Site {
    pub(crate) d: Daemon,
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) outside: Node,
    _resolver: (Node, Background),
}

pub(crate) fn site(lab: &Lab, args: &[&str]) -> Site {
    let d = lab.daemon_with().args(args).start();
    let resolver = lab.host("resolver");
    lab.link(d.host(), "out0", &resolver, "eth0", Mtu(1500));
    d.host().addr("out0", "203.0.113.1/30");
    resolver.addr("eth0", "203.0.113.2/30");
    let big = format!(
        "--txt-record=big.example{}",
        format!(",{:x<200}", "").repeat(10)
    );
    let mut dnsmasq = resolver.spawn(&[
        "dnsmasq",
        &big,
        "-k",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--local=/example/",
        "--host-record=www.example,198.51.100.254",
        "--log-facility=-",
    ]);
    dnsmasq.wait_for("started");
    let outside = lab.host("outside");
    lab.link(d.host(), "up0", &outside, "eth0", Mtu(1500));
    outside.addr("eth0", "198.51.100.254/24");
    d.ctl(&["network", "add", "wan"]);
    d.ctl(&["port", "add", "up0", "--network", "wan", "--kind", "packet"]);
    let addresses = "198.51.100.1/24";
    d.ctl(&[
        "gateway",
        "set",
        "wan",
        "--uplink",
        "on",
        "--addresses",
        addresses,
    ]);
    d.ctl(&["network", "add", "lan"]);
    d.ctl(&[
        "gateway",
        "set",
        "lan",
        "--addresses",
        "192.0.2.1/24,2001:db8:1::1/64",
        "--dhcp",
        "192.0.2.100-192.0.2.200",
        "--dhcp-lease",
        "1h",
        "--dns",
        "on",
        "--domain",
        "lan.example",
        "--dns-upstream",
        "203.0.113.2",
        "--ra",
        "on",
    ]);
    let (a, b) = (lab.container("a"), lab.container("b"));
    attach_bare(&d, &a);
    d.attach(
        &b,
        "lan",
        "192.0.2.11/24,2001:db8:1::11/64",
        &["--gw", "192.0.2.1"],
    );
    d.ctl(&["port", "set", "b", "--alias", "db,store"]);
    Site {
        d,
        a,
        b,
        _resolver: (resolver, dnsmasq),
        outside,
    }
}

/// Has udhcpc configure `eth0`; what it was told.
pub(crate) fn udhcpc(lab: &Lab, node: &Node, name: &str) -> String {
    let log = lab.dir().join(format!("{}.log", node.name()));
    let path = lab.dir().join(format!("{}.sh", node.name()));
    let text = format!(
        "#!/bin/sh\n\
         {{ echo \"event=$1\"; env; }} >>{}\n\
         [ \"$1\" = bound ] || exit 0\n\
         ip addr replace \"$ip/$mask\" dev \"$interface\"\n\
         ip route replace default via \"$router\"\n",
        log.display()
    );
    fs::write(&path, text).expect("write the script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    node.ok(&[
        "udhcpc",
        "-f",
        "-q",
        "-n",
        "-i",
        "eth0",
        "-s",
        &path.display().to_string(),
        "-O",
        "search",
        "-O",
        "mtu",
        "-x",
        &format!("hostname:{name}"),
        "-t",
        "20",
        "-T",
        "1",
    ]);
    fs::read_to_string(log).expect("the script's log")
}

pub(crate) fn dig(node: &Node, arguments: &[&str]) -> String {
    let head = ["dig", "@192.0.2.1", "+short", "+tries=5", "+timeout=3"];
    node.ok(&[&head, arguments].concat()).trim().to_owned()
}

fn serves(workers: &str) {
    let lab = tap_lab!("services");
    let Site { d, a, b, .. } = &site(&lab, &["--workers", workers]);
    let told = udhcpc(&lab, a, "box");
    for expected in [
        "router=192.0.2.1",
        "dns=192.0.2.1",
        "domain=lan.example",
        "search=lan.example",
        "lease=3600",
    ] {
        assert!(told.lines().any(|l| l == expected), "{expected} in {told}");
    }
    let leases = d.ctl_json(&["gateway", "leases"]);
    let lease = &leases[0];
    assert_eq!(
        (&lease["port"], &lease["name"]),
        (&"a".into(), &"box".into())
    );
    let address = lease["address"].as_str().expect("an address").to_owned();
    assert!(told.contains(&format!("ip={address}\n")), "{told}");
    // What a resolver knows, then a way there.
    assert_eq!(dig(a, &["www.example"]), "198.51.100.254");
    a.assert_ping("198.51.100.254");
    // Names of ports, aliases, of the client's own wish, and back.
    for name in ["a.lan.example", "box.lan.example"] {
        assert_eq!(dig(b, &[name]), address, "{name}");
    }
    for name in ["b", "db", "store"] {
        let name = format!("{name}.lan.example");
        assert_eq!(dig(a, &[&name]), "192.0.2.11");
        assert_eq!(dig(a, &[&name, "AAAA"]), "2001:db8:1::11");
    }
    assert_eq!(dig(a, &["-x", "192.0.2.11"]), "b.lan.example.");
    assert_eq!(dig(a, &["-x", "2001:db8:1::11"]), "b.lan.example.");
    let service = serde_json::json!({"service": "_http", "protocol": "_tcp", "port": 8080});
    let record =
        serde_json::json!({"name": "www", "addresses": ["192.0.2.11"], "services": [service]});
    let patch = serde_json::json!({"gateway": {"dns": {"records": [record]}}});
    let answer = d.http("PATCH", "/v1/networks/lan", Some(&patch));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        dig(a, &["_http._tcp.www.lan.example", "SRV"]),
        "0 0 8080 www.lan.example."
    );
    // The lease's name is still there.
    assert_eq!(dig(b, &["box.lan.example"]), address);
    // By IPv6 as well.
    let v6 = [
        "dig",
        "@2001:db8:1::1",
        "+short",
        "+tries=5",
        "+timeout=3",
        "db.lan.example",
    ];
    wait_until("an answer by IPv6", || b.ok(&v6).trim() == "192.0.2.11");
    d.assert_ledger();
}

#[test]
fn a_container_gets_all_it_needs() {
    serves("1");
}

#[test]
fn a_container_gets_all_it_needs_of_two_workers() {
    serves("2");
}

#[test]
fn kernels_make_addresses_of_advertised_prefixes() {
    let lab = tap_lab!("slaac");
    let Site { d, a, .. } = &site(&lab, &[]);
    wait_until("an address by SLAAC", || {
        a.ok(&["ip", "-6", "addr", "show", "dev", "eth0", "scope", "global"])
            .contains("2001:db8:1:")
    });
    let routes = a.ok(&["ip", "-6", "route", "show", "default"]);
    assert!(routes.contains("via fe80::"), "{routes}");
    let seen = a.ok(&["rdisc6", "-1", "-w", "5000", "eth0"]);
    for expected in ["2001:db8:1::/64", "2001:db8:1::1", "lan.example"] {
        assert!(seen.contains(expected), "{expected} in {seen}");
    }
    d.assert_ledger();
}

#[test]
fn leases_outlive_the_daemon_and_services_end_when_told() {
    let lab = tap_lab!("leases");
    let mut s = site(&lab, &[]);
    udhcpc(&lab, &s.a, "box");
    let before = s.d.ctl_json(&["gateway", "leases"]);
    assert_eq!(before.as_array().map(Vec::len), Some(1), "{before}");
    s.d.restart();
    let after = s.d.ctl_json(&["gateway", "leases"]);
    for field in ["address", "mac", "port", "name", "client_id"] {
        assert_eq!(before[0][field], after[0][field], "{after}");
    }
    let off = ["--dhcp", "off", "--dns", "off", "--ra", "off"];
    s.d.ctl(&[&["gateway", "set", "lan"][..], &off].concat());
    let none = s.d.ctl_json(&["gateway", "leases"]);
    assert_eq!(none, serde_json::json!([]));
    let refused =
        s.d.ctl_fails(&["gateway", "set", "lan", "--dhcp", "203.0.113.5-203.0.113.9"]);
    assert!(refused.contains("203.0.113.5"), "{refused}");
    s.d.assert_ledger();
}
