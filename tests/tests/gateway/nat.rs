//! Source translation, published ports and hairpins, with kernels at both ends.

use vswitch_tests::{Daemon, Lab, Mtu, Node, tap_lab};

/// A network of containers, and an uplink whose far end is a host outside.
pub(crate) struct Site {
    pub(crate) d: Daemon,
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) outside: Node,
}

/// Inside 192.0.2.0/24 and 2001:db8:1::/64, outside 198.51.100.0/24 and 2001:db8:2::/64.
pub(crate) fn site(lab: &Lab, args: &[&str]) -> Site {
    let d = lab.daemon_with().args(args).start();
    d.ctl(&["network", "add", "lan"]);
    d.ctl(&["network", "add", "wan"]);
    d.ctl(&[
        "gateway",
        "set",
        "lan",
        "--addresses",
        "192.0.2.1/24,2001:db8:1::1/64",
    ]);
    d.ctl(&[
        "gateway",
        "set",
        "wan",
        "--uplink",
        "on",
        "--addresses",
        "198.51.100.1/24,2001:db8:2::1/64",
        "--route",
        "0.0.0.0/0=198.51.100.254,::/0=2001:db8:2::254",
    ]);
    let outside = lab.host("outside");
    lab.link(d.host(), "up0", &outside, "eth0", Mtu(1500));
    outside.addr("eth0", "198.51.100.254/24");
    outside.addr("eth0", "2001:db8:2::254/64");
    // A second host behind it.
    outside.ok(&["ip", "addr", "add", "203.0.113.7/32", "dev", "lo"]);
    d.ctl(&["port", "add", "up0", "--network", "wan", "--kind", "packet"]);
    let (a, b) = (lab.container("a"), lab.container("b"));
    d.attach(
        &a,
        "lan",
        "192.0.2.10/24,2001:db8:1::10/64",
        &["--gw", "192.0.2.1,2001:db8:1::1"],
    );
    d.attach(
        &b,
        "lan",
        "192.0.2.11/24,2001:db8:1::11/64",
        &["--gw", "192.0.2.1,2001:db8:1::1"],
    );
    Site { d, a, b, outside }
}

#[test]
fn containers_reach_outside_as_the_gateway() {
    let lab = tap_lab!("masquerade");
    let Site { d, a, b, outside } = site(&lab, &[]);
    let seen = outside.capture("eth0", "icmp");
    for far in ["198.51.100.254", "203.0.113.7", "2001:db8:2::254"] {
        a.assert_ping(far);
        b.assert_ping(far);
    }
    let sources = seen.fields("icmp.type == 8", &["ip.src"]);
    assert!(
        !sources.is_empty() && sources.iter().all(|s| s == "198.51.100.1"),
        "{sources:?}"
    );
    let _server = outside.iperf3_server();
    // Of several addresses a server of datagrams answers with the first.
    for far in ["198.51.100.254", "2001:db8:2::254"] {
        for args in [
            &["-n", "50M"][..],
            &["-n", "50M", "-R"],
            &["-u", "-b", "20M", "-t", "1"],
        ] {
            let run = a.iperf3(far, args);
            assert!(
                run.received_bytes > 1_000_000,
                "{args:?} {:?}",
                run.report["end"]
            );
        }
    }
    let shown = d.ctl(&["conntrack", "show", "--protocol", "tcp"]);
    assert!(shown.contains("198.51.100.1"), "{shown}");
    for node in [&a, &b, &outside] {
        node.assert_no_checksum_errors();
    }
    // Nothing gets in that wasn't asked for.
    outside.ok(&["ip", "route", "add", "192.0.2.0/24", "via", "198.51.100.1"]);
    outside.assert_no_ping("192.0.2.10");
    let count = d.ctl_json(&["conntrack", "count"]);
    assert!(count["connections"].as_u64().unwrap() > 0, "{count}");
    let flushed = d.ctl_json(&["conntrack", "flush"]);
    assert!(flushed["removed"].as_u64().unwrap() > 0, "{flushed}");
    let count = d.ctl_json(&["conntrack", "count"]);
    assert_eq!(
        (&count["connections"], &count["mappings"]),
        (&0.into(), &0.into()),
        "{count}"
    );
    d.assert_ledger();
}

/// Answers every connection with the peer's address.
const WHO: &str = "\
import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((sys.argv[1], int(sys.argv[2]))); s.listen(64); print('ready', flush=True)
while True:
    c, peer = s.accept(); c.sendall((sys.argv[3] + ' ' + peer[0]).encode()); c.close()
";

pub(crate) fn who(node: &Node, address: &str, port: &str) -> vswitch_tests::Background {
    let mut server = node.spawn(&["/usr/bin/python3", "-c", WHO, address, port, node.name()]);
    server.wait_for("ready");
    server
}

/// What the server at the address says.
pub(crate) fn ask(node: &Node, address: &str, port: u16) -> String {
    let script = format!(
        "import socket\ns = socket.create_connection(('{address}', {port}), 5)\nprint(s.recv(100).decode())"
    );
    let out = node.run(&["/usr/bin/python3", "-c", &script]);
    if out.success() {
        out.stdout.trim().to_owned()
    } else {
        "none".into()
    }
}

#[test]
fn published_ports_keep_the_clients_address() {
    let lab = tap_lab!("publish");
    let Site { d, a, b, outside } = site(&lab, &[]);
    let _servers = [
        who(&a, "192.0.2.10", "80"),
        who(&a, "2001:db8:1::10", "80"),
        who(&b, "192.0.2.11", "81"),
    ];
    d.ctl(&[
        "publish",
        "add",
        "web",
        "--ports",
        "8080",
        "--to",
        "192.0.2.10:80",
    ]);
    d.ctl(&[
        "publish",
        "add",
        "web6",
        "--ports",
        "8080",
        "--to",
        "[2001:db8:1::10]:80",
    ]);
    d.ctl(&[
        "publish",
        "add",
        "range",
        "--ports",
        "9000-9001",
        "--to",
        "192.0.2.11:80",
    ]);
    assert_eq!(ask(&outside, "198.51.100.1", 8080), "a 198.51.100.254");
    assert_eq!(ask(&outside, "2001:db8:2::1", 8080), "a 2001:db8:2::254");
    assert_eq!(ask(&outside, "198.51.100.1", 9001), "b 198.51.100.254");
    assert_eq!(
        ask(&outside, "198.51.100.1", 9000),
        "none",
        "nobody listens at 80"
    );
    // By the published address from inside, the neighbour and itself included (hairpin).
    assert_eq!(ask(&b, "198.51.100.1", 8080), "a 192.0.2.1");
    assert_eq!(ask(&a, "198.51.100.1", 8080), "a 192.0.2.1");
    assert_eq!(ask(&a, "192.0.2.1", 8080), "a 192.0.2.1");
    let err = d.ctl_fails(&[
        "publish",
        "add",
        "again",
        "--ports",
        "8000-9000",
        "--to",
        "192.0.2.10:80",
    ]);
    assert!(err.contains("would both have ports of 9000-9001"), "{err}");
    d.ctl(&["publish", "del", "web"]);
    assert_eq!(ask(&outside, "198.51.100.1", 8080), "none");
    d.assert_ledger();
}

#[test]
fn back_ends_share_connections_and_the_dead_are_passed_over() {
    let lab = tap_lab!("backends");
    let Site { d, a, b, outside } = site(&lab, &[]);
    let _servers = [who(&a, "192.0.2.10", "80"), who(&b, "192.0.2.11", "80")];
    d.ctl(&[
        "publish",
        "add",
        "web",
        "--ports",
        "80",
        "--to",
        "192.0.2.10,192.0.2.11*3",
    ]);
    let count = |n: usize| {
        let mut seen = [0; 2];
        for _ in 0..n {
            match ask(&outside, "198.51.100.1", 80).as_str() {
                "a 198.51.100.254" => seen[0] += 1,
                "b 198.51.100.254" => seen[1] += 1,
                other => println!("{other}"),
            }
        }
        seen
    };
    let seen = count(24);
    assert!(
        seen[0] > 0 && seen[1] > seen[0] && seen[0] + seen[1] == 24,
        "{seen:?}"
    );
    b.ok(&["ip", "link", "set", "eth0", "down"]);
    vswitch_tests::wait_until("the dead back end to be passed over", || count(4) == [4, 0]);
    d.assert_ledger();
}

#[test]
fn traceroute_and_path_mtu_work_across_the_gateway() {
    let lab = tap_lab!("icmp-errors");
    let Site { d, a, outside, .. } = site(&lab, &[]);
    // A router behind the uplink, with a narrow link to a further host.
    let far = lab.host("far");
    lab.link(&outside, "eth1", &far, "eth0", Mtu(1300));
    outside.addr("eth1", "203.0.113.65/26");
    far.addr("eth0", "203.0.113.66/26");
    far.ok(&["ip", "route", "add", "default", "via", "203.0.113.65"]);
    outside.ok(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    let hop = |ttl: &str| {
        let out = a.ping_with("203.0.113.66", &["-c", "1", "-W", "3", "-t", ttl]);
        out.stdout
    };
    assert!(hop("1").contains("From 192.0.2.1"), "{}", hop("1"));
    assert!(hop("2").contains("From 198.51.100.254"), "{}", hop("2"));
    assert!(
        hop("3").contains("64 bytes from 203.0.113.66"),
        "{}",
        hop("3")
    );
    // The router's "fragmentation needed" finds its way back to the sender.
    let args = ["-c", "1", "-W", "3", "-M", "do", "-s", "1400"];
    let told = a.ping_with("203.0.113.66", &args).stdout;
    assert!(told.contains("mtu = 1300"), "{told}");
    let route = a.ok(&["ip", "route", "get", "203.0.113.66"]);
    assert!(route.contains("mtu 1300"), "{route}");
    // Large datagrams, fragmented by the sender, cross both ways.
    a.ok(&["ip", "route", "flush", "cache"]);
    let big = a.ping_with(
        "203.0.113.66",
        &[
            "-c", "2", "-i", "0.3", "-W", "3", "-s", "4000", "-M", "dont",
        ],
    );
    assert_eq!(big.stdout.matches(" ttl=").count(), 2, "{big}");
    // A closed port is told.
    let refused = a.run(&["/usr/bin/python3", "-c", "\
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.connect(('203.0.113.66', 9))
s.send(b'x')
try: s.recv(10)
except ConnectionRefusedError: print('refused')
"]);
    assert_eq!(refused.stdout.trim(), "refused", "{refused}");
    d.assert_ledger();
}

#[test]
fn a_clamped_mss_avoids_a_black_hole() {
    let lab = tap_lab!("black-hole");
    let Site { d, a, outside, .. } = site(&lab, &[]);
    // A narrow link behind the uplink, and a router that doesn't say so.
    let far = lab.host("far");
    lab.link(&outside, "eth1", &far, "eth0", Mtu(1300));
    outside.addr("eth1", "203.0.113.65/26");
    far.addr("eth0", "203.0.113.66/26");
    far.ok(&["ip", "link", "set", "eth0", "mtu", "1500"]);
    far.ok(&["ip", "route", "add", "default", "via", "203.0.113.65"]);
    outside.ok(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    let mute =
        "table ip t { chain c { type filter hook output priority 0; ip protocol icmp drop; }; }";
    outside.ok_with_input(&["nft", "-f", "-"], mute.as_bytes());
    let server = far.iperf3_server();
    let upload = ["iperf3", "--client", "203.0.113.66", "-t", "3", "--json"];
    let limit = std::time::Duration::from_secs(6);
    // As long as nobody knows of it, segments of 1,460 bytes vanish.
    let stuck = a.run_for(&upload, limit);
    let report: serde_json::Value = serde_json::from_str(&stuck.stdout).unwrap_or_default();
    let received = report["end"]["sum_received"]["bytes"].as_u64();
    assert!(received.unwrap_or(0) < 100_000, "{stuck}");
    // It still waits for the rest.
    drop(server);
    let _server = far.iperf3_server();
    d.ctl(&["gateway", "set", "wan", "--mtu", "1300"]);
    // What still is in the sender's buffer (4 MB at most) when it has written everything isn't counted.
    for way in [&["-n", "20M"][..], &["-n", "20M", "-R"]] {
        let run = a.iperf3("203.0.113.66", way);
        assert!(
            run.received_bytes > 10_000_000,
            "{way:?}: {}",
            run.report["end"]["sum_received"]
        );
    }
    d.assert_ledger();
}

#[test]
fn a_smaller_mtu_inside_is_told_to_the_sender() {
    let lab = tap_lab!("gateway-mtu");
    let Site { d, a, b, outside } = site(&lab, &[]);
    d.ctl(&["gateway", "set", "wan", "--mtu", "1280"]);
    let _server = outside.iperf3_server();
    for far in ["198.51.100.254", "2001:db8:2::254"] {
        let run = a.iperf3(far, &["-n", "20M"]);
        assert!(run.received_bytes > 10_000_000, "{:?}", run.report["end"]);
    }
    let told = b.ping_with(
        "198.51.100.254",
        &["-c", "1", "-W", "2", "-M", "do", "-s", "1400"],
    );
    assert!(
        told.stdout.contains("mtu = 1280") || told.stderr.contains("mtu = 1280"),
        "{told}"
    );
    // May be fragmented: the gateway does it.
    let cut = b.ping_with(
        "198.51.100.254",
        &[
            "-c", "2", "-i", "0.3", "-W", "2", "-M", "dont", "-s", "1400",
        ],
    );
    assert_eq!(cut.stdout.matches(" ttl=").count(), 2, "{cut}");
    d.assert_ledger();
}
