//! The firewall between containers of one network and between networks, with kernels at both ends.

use vswitch_tests::{Background, Daemon, Lab, Node, tap_lab, wait_until};

/// Serves TCP connections at a port: sends a byte, then keeps what comes until the end.
pub(crate) const SERVE: &str = "\
import socket, sys, threading
s = socket.socket(socket.AF_INET6); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('::', int(sys.argv[1]))); s.listen(64); print('ready', flush=True)
def one(c):
    try:
        c.sendall(b'x')
        while c.recv(65536): pass
    except OSError: pass
while True:
    c, _ = s.accept(); threading.Thread(target=one, args=(c,), daemon=True).start()
";

/// Connects and says what became of it.
pub(crate) const CONNECT: &str = "\
import socket, sys, errno
try:
    c = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3]))
    print('open' if c.recv(1) else 'closed')
except socket.timeout: print('timeout')
except OSError as e: print(errno.errorcode.get(e.errno, e))
";

/// Sends a datagram and says what became of it.
pub(crate) const DATAGRAM: &str = "\
import socket, sys, errno, time
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((sys.argv[1], int(sys.argv[2])))
s.send(b'x')
try: print(s.recv(10))
except socket.timeout: print('timeout')
except OSError as e: print(errno.errorcode.get(e.errno, e))
";

pub(crate) fn serve(node: &Node, port: &str) -> Background {
    let mut server = node.spawn(&["python3", "-c", SERVE, port]);
    server.wait_for("ready");
    server
}

pub(crate) fn connect_within(node: &Node, to: &str, port: &str, seconds: &str) -> String {
    let said = node.ok(&["python3", "-c", CONNECT, to, port, seconds]);
    said.trim().to_owned()
}

/// A connection that should be answered either way.
pub(crate) fn connect(node: &Node, to: &str, port: &str) -> String {
    connect_within(node, to, port, "10")
}

/// A connection that shouldn't be answered.
fn assert_silent(node: &Node, to: &str, port: &str) {
    assert_eq!(
        connect_within(node, to, port, "1.5"),
        "timeout",
        "{to} {port}"
    );
}

/// Containers of one network without a gateway, each with a label of its name.
fn one_network(lab: &Lab, args: &[&str]) -> (Daemon, [Node; 3]) {
    let d = lab.daemon_with().args(args).start();
    d.ctl(&["network", "add", "lan"]);
    let nodes = ["web", "db", "other"].map(|n| lab.container(n));
    for (i, node) in nodes.iter().enumerate() {
        let (pid, name) = (node.pid().to_string(), node.name());
        let ip = format!("192.0.2.1{i}/24,2001:db8::1{i}/64");
        d.ctl(&["attach", "--pid", &pid, "--ip", &ip, "--name", name, "lan"]);
        d.ctl(&["port", "set", name, "--labels", name]);
    }
    (d, nodes)
}

const ALLOW: [&str; 10] = [
    "policy",
    "add",
    "db",
    "--to",
    "label:db",
    "--default",
    "drop",
    "--rule",
    "accept name sql from label:web proto tcp ports 5432",
    "--rule=accept name ping from label:web icmp echo-request",
];

fn explain(d: &Daemon, from: &str, to: &str, port: &str) -> String {
    let why = d.ctl_json(&[
        "policy", "explain", "--from", from, "--to", to, "--dport", port,
    ]);
    why["action"].as_str().unwrap().to_owned()
}

fn counts(d: &Daemon, policy: &str, rule: usize) -> serde_json::Value {
    d.ctl_json(&["policy", "show", policy])[0]["counts"][rule].clone()
}

fn default_deny(workers: &str) {
    let lab = tap_lab!("policy-label");
    let (d, [web, db, other]) = one_network(&lab, &["--workers", workers]);
    let _servers = ["5432", "80"].map(|port| serve(&db, port));
    let _web = serve(&web, "8080");
    assert_eq!(connect(&other, "192.0.2.11", "5432"), "open");
    d.ctl(&ALLOW);
    for ip in ["192.0.2.11", "2001:db8::11"] {
        assert_eq!(connect(&web, ip, "5432"), "open");
        assert_silent(&web, ip, "80");
        assert_silent(&other, ip, "5432");
        web.assert_ping(ip);
        other.assert_no_ping(ip);
    }
    // What it isn't about passes, also what the labelled container begins itself.
    for from in [&other, &db] {
        assert_eq!(connect(from, "192.0.2.10", "8080"), "open");
        from.assert_ping("2001:db8::10");
    }
    assert_eq!(explain(&d, "web", "db", "5432"), "accept");
    assert_eq!(explain(&d, "web", "192.0.2.11", "80"), "drop");
    assert_eq!(explain(&d, "other", "db", "5432"), "drop");
    assert_eq!(explain(&d, "db", "web", "5432"), "accept");
    let text = d.ctl(&[
        "policy", "explain", "--from", "other", "--to", "db", "--dport", "5432",
    ]);
    for part in ["db/sql: `from` doesn't match", "db/default", "drop"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let sql = counts(&d, "db", 0);
    assert_eq!(sql["judged"], 2, "{sql}");
    assert!(sql["packets"].as_u64().unwrap() >= 12, "{sql}");
    assert!(counts(&d, "db", 2)["judged"].as_u64().unwrap() >= 8);
    // A label taken away, and the policy.
    d.ctl(&["port", "set", "other", "--labels", "web"]);
    assert_eq!(connect(&other, "192.0.2.11", "5432"), "open");
    d.ctl(&["policy", "del", "db"]);
    assert_eq!(connect(&web, "192.0.2.11", "80"), "open");
    d.assert_ledger();
}

#[test]
fn a_label_is_denied_by_default() {
    default_deny("1");
}

#[test]
fn a_label_is_denied_by_default_with_two_workers() {
    default_deny("2");
}

/// A network of clients and one of servers, joined by the gateway.
fn two_networks(lab: &Lab) -> (Daemon, Node, Node) {
    let d = lab.daemon_with().start();
    for (network, addresses) in [
        ("red", "192.0.2.1/24,2001:db8:1::1/64"),
        ("blue", "198.51.100.1/24,2001:db8:2::1/64"),
    ] {
        d.ctl(&["network", "add", network]);
        d.ctl(&["gateway", "set", network, "--addresses", addresses]);
    }
    let (a, b) = (lab.container("a"), lab.container("b"));
    let ips = "192.0.2.10/24,2001:db8:1::10/64";
    d.attach(&a, "red", ips, &["--gw", "192.0.2.1,2001:db8:1::1"]);
    let ips = "198.51.100.10/24,2001:db8:2::10/64";
    d.attach(&b, "blue", ips, &["--gw", "198.51.100.1,2001:db8:2::1"]);
    d.ctl(&["port", "set", "b", "--labels", "server"]);
    (d, a, b)
}

const FAR: [&str; 2] = ["198.51.100.10", "2001:db8:2::10"];

#[test]
fn routed_connections_are_judged_and_refused_with_an_answer() {
    let lab = tap_lab!("policy-routed");
    let (d, a, b) = two_networks(&lab);
    let _servers = ["80", "81", "82"].map(|port| serve(&b, port));
    // The first contact: where `b` is has to be found out before the label tells anything.
    d.ctl(&[
        "policy",
        "add",
        "p",
        "--from",
        "network:red",
        "--to",
        "label:server",
        "--default",
        "reject",
        "--rule",
        "accept name web proto tcp ports 80",
        "--rule",
        "drop name silent proto tcp ports 82",
        "--rule",
        "accept name ping icmp echo-request",
    ]);
    for far in FAR {
        assert_eq!(connect(&a, far, "80"), "open", "{far}");
        assert_eq!(connect(&a, far, "81"), "ECONNREFUSED", "{far}");
        assert_silent(&a, far, "82");
        a.assert_ping(far);
        // Administratively prohibited: EHOSTUNREACH for IPv4, EACCES for IPv6.
        let told = a.ok(&["python3", "-c", DATAGRAM, far, "7"]);
        assert!(["EHOSTUNREACH", "EACCES"].contains(&told.trim()), "{told}");
        assert_eq!(explain(&d, "a", far, "80"), "accept");
        assert_eq!(explain(&d, "a", far, "81"), "reject");
        assert_eq!(explain(&d, "a", far, "82"), "drop");
    }
    // The other way isn't what the policy is about.
    b.assert_ping("192.0.2.10");
    assert_eq!(explain(&d, "b", "a", "80"), "accept");
    assert_eq!(counts(&d, "p", 0)["judged"], 2);
    d.assert_ledger();
}

#[test]
fn a_rejected_connection_within_a_network_is_reset() {
    let lab = tap_lab!("policy-reject");
    let (d, [web, db, _other]) = one_network(&lab, &[]);
    let _server = serve(&db, "80");
    d.ctl(&[
        "policy",
        "add",
        "p",
        "--rule",
        "reject to port:db proto tcp",
    ]);
    for ip in ["192.0.2.11", "2001:db8::11"] {
        assert_eq!(connect(&web, ip, "80"), "ECONNREFUSED");
        web.assert_ping(ip);
    }
    d.assert_ledger();
}

fn change_under_load(d: &Daemon, from: &Node, to: &Node, address: &str) {
    let _servers = ["5201", "5202"].map(|p| {
        let mut s = to.spawn(&["iperf3", "--server", "--port", p, "--forceflush"]);
        s.wait_for("listening");
        s
    });
    d.ctl(&[
        "policy",
        "add",
        "load",
        "--rule",
        "accept name all proto tcp ports 5201,5202",
        "--default",
        "drop",
    ]);
    let run = |port| {
        from.spawn(&[
            "iperf3", "--client", address, "--port", port, "-t", "8", "--json",
        ])
    };
    let (cut, kept) = (run("5201"), run("5202"));
    let moving = || counts(d, "load", 0)["packets"].as_u64().unwrap() > 500;
    wait_until("packets of both transfers", moving);
    std::thread::sleep(std::time::Duration::from_secs(1));
    d.ctl(&[
        "policy",
        "set",
        "load",
        "--rule",
        "accept name all proto tcp ports 5202",
    ]);
    let limit = std::time::Duration::from_secs(60);
    let kept = kept.finish(limit).expect_ok();
    let report: serde_json::Value = serde_json::from_str(&kept).unwrap();
    // It went on after the change: something in its last seconds.
    let intervals = report["intervals"].as_array().unwrap();
    let bytes = |i: &serde_json::Value| i["sum"]["bytes"].as_u64().unwrap();
    let last: u64 = intervals.iter().rev().take(3).map(bytes).sum();
    assert!(last > 0, "{kept}");
    let tracked = d.ctl(&["conntrack", "show", "--protocol", "tcp", "--port", "5201"]);
    assert!(!tracked.contains(":5201"), "{tracked}");
    drop(cut);
    // The control connection of the run that was cut may try again, to no avail.
    let denied = counts(d, "load", 1)["judged"].as_u64().unwrap();
    assert!(denied > 0, "its segments are judged and dropped");
}

#[test]
fn a_change_cuts_what_it_forbids_under_load() {
    let lab = tap_lab!("policy-load");
    let (d, [web, db, _other]) = one_network(&lab, &[]);
    change_under_load(&d, &web, &db, "192.0.2.11");
    d.assert_ledger();
}

#[test]
fn a_change_cuts_routed_connections_under_load() {
    let lab = tap_lab!("policy-load-routed");
    let (d, a, b) = two_networks(&lab);
    change_under_load(&d, &a, &b, FAR[0]);
    d.assert_ledger();
}

#[test]
fn rates_are_kept_and_matches_told() {
    let lab = tap_lab!("policy-limit");
    let (d, [web, db, _other]) = one_network(&lab, &[]);
    let _server = serve(&db, "80");
    d.ctl(&[
        "policy",
        "add",
        "p",
        "--to",
        "label:db",
        "--rule",
        "accept name slow proto tcp ports 80 limit 3 log 1",
    ]);
    let program = vswitch_tests::program("vswitchctl");
    let socket = d.socket();
    let mut events = d
        .host()
        .spawn(&[&program, "--socket", socket.to_str().unwrap(), "events"]);
    std::thread::sleep(std::time::Duration::from_millis(500));
    // SYNs without a stack behind them: nobody tries again.
    let script = "\
p = [Ether(dst=getmacbyip('192.0.2.11'))/IP(src='192.0.2.10', dst='192.0.2.11')/TCP(sport=20000+i, dport=80, flags='S') for i in range(60)]
sendp(p, iface='eth0', verbose=0)";
    web.scapy(script);
    wait_until("sixty judgements", || counts(&d, "p", 0)["judged"] == 60);
    let c = counts(&d, "p", 0);
    let over = c["over_rate"].as_u64().unwrap();
    // A burst of three, and three a second for as long as the sending took.
    assert!((20..=57).contains(&over), "{c}");
    events.wait_for("accept by p/slow: proto 6 192.0.2.10:20000 > 192.0.2.11:80");
    let told = events.output().matches("p/slow").count();
    assert!((1..60).contains(&told), "{told}");
    d.assert_ledger();
}

#[test]
fn groups_are_judged_for_each_port_and_neighbours_always_found() {
    let lab = tap_lab!("policy-group");
    let (d, [web, db, other]) = one_network(&lab, &[]);
    d.ctl(&[
        "policy",
        "add",
        "p",
        "--to",
        "label:db",
        "--rule",
        "drop proto udp",
    ]);
    let (at_db, at_other) = (
        db.capture("eth0", "udp port 7"),
        other.capture("eth0", "udp port 7"),
    );
    let script = "sendp(Ether(dst='ff:ff:ff:ff:ff:ff')/IP(src='192.0.2.10', dst='192.0.2.255')/UDP(dport=7)/b'x', iface='eth0', verbose=0)";
    web.scapy(script);
    let seen = |c: vswitch_tests::Capture| c.fields("udp", &["ip.dst"]).len();
    assert_eq!((seen(at_db), seen(at_other)), (0, 1));
    // ARP and ND aren't policy's business.
    d.ctl(&[
        "policy",
        "set",
        "p",
        "--rule",
        "accept icmp echo-request",
        "--default",
        "drop",
    ]);
    for ip in ["192.0.2.11", "2001:db8::11"] {
        web.ok(&["ip", "neigh", "flush", "all"]);
        web.assert_ping(ip);
    }
    // Fragments go with their first one.
    for ip in ["192.0.2.11", "2001:db8::11"] {
        let big = web.ping_with(ip, &["-c", "1", "-W", "5", "-s", "4000"]);
        assert!(big.stdout.contains("ttl=64"), "{big}");
    }
    d.assert_ledger();
}

#[test]
fn a_connection_is_not_taken_over_by_its_addresses() {
    let lab = tap_lab!("policy-spoof");
    let (d, [web, db, other]) = one_network(&lab, &[]);
    d.ctl(&[
        "policy",
        "add",
        "p",
        "--to",
        "label:db",
        "--default",
        "drop",
        "--rule",
        "accept from label:web proto udp",
    ]);
    let seen = db.capture("eth0", "udp port 7");
    let send = |node: &Node| {
        let script = "\
p = Ether(dst=getmacbyip('192.0.2.11'))/IP(src='192.0.2.10', dst='192.0.2.11')/UDP(sport=33333, dport=7)/b'x'
sendp([p]*20, iface='eth0', verbose=0)";
        node.scapy(script);
    };
    send(&web);
    // Another container with the connection's addresses and ports, and its own MAC.
    send(&other);
    send(&web);
    let macs = seen.fields("udp", &["eth.src"]);
    let own = web.mac("eth0");
    assert_eq!(macs.len(), 40, "{macs:?}");
    assert!(macs.iter().all(|m| *m == own), "{macs:?}");
    let stats = d.ctl_json(&["stats"]).to_string();
    assert!(stats.contains("\"policy\":20"), "{stats}");
    let c = counts(&d, "p", 0);
    assert_eq!(
        (&c["judged"], &c["packets"]),
        (&1.into(), &40.into()),
        "{c}"
    );
    d.assert_ledger();
}

#[test]
fn a_rule_lets_in_from_an_uplink() {
    let lab = tap_lab!("policy-uplink");
    let crate::nat::Site { d, a, b, outside } = crate::nat::site(&lab, &[]);
    outside.ok(&["ip", "route", "add", "192.0.2.0/24", "via", "198.51.100.1"]);
    let _servers = [&a, &b].map(|n| serve(n, "80"));
    assert_silent(&outside, "192.0.2.10", "80");
    assert_eq!(explain(&d, "198.51.100.254", "a", "80"), "drop");
    d.ctl(&[
        "policy",
        "add",
        "in",
        "--rule",
        "accept from 198.51.100.0/24 to port:a proto tcp ports 80",
    ]);
    assert_eq!(connect(&outside, "192.0.2.10", "80"), "open");
    assert_silent(&outside, "192.0.2.11", "80");
    assert_eq!(explain(&d, "198.51.100.254", "a", "80"), "accept");
    assert_eq!(explain(&d, "198.51.100.254", "b", "80"), "drop");
    // Out by masquerade, unless a rule says otherwise; a published port is judged by the container behind it.
    let _far = serve(&outside, "81");
    assert_eq!(connect(&b, "198.51.100.254", "81"), "open");
    d.ctl(&[
        "publish",
        "add",
        "p",
        "--ports",
        "8080",
        "--to",
        "192.0.2.11:80",
    ]);
    assert_eq!(connect(&outside, "198.51.100.1", "8080"), "open");
    d.ctl(&[
        "policy",
        "set",
        "in",
        "--rule",
        "reject to port:b",
        "--rule",
        "reject from port:b",
    ]);
    assert_eq!(connect(&outside, "198.51.100.1", "8080"), "ECONNREFUSED");
    assert_eq!(connect(&b, "198.51.100.254", "81"), "ECONNREFUSED");
    assert_eq!(connect(&a, "198.51.100.254", "81"), "open");
    d.assert_ledger();
}

#[test]
fn mistakes_are_told_with_the_remedy() {
    let lab = tap_lab!("policy-errors");
    let (d, _nodes) = one_network(&lab, &[]);
    for (args, part) in [
        (&["--rule", "accept to port:bd"][..], "did you mean `db`?"),
        (&["--rule", "accept from label:wbe"], "did you mean `web`?"),
        (&["--rule", "accept to network:lna"], "did you mean `lan`?"),
        (&["--rule", "accept proto icmp ports 80"], "ports"),
        (&["--rule", "accept ports http"], "80"),
        (&["--rule", "permit"], "accept"),
        (&["--rule", "accept prot tcp"], "prot"),
        (
            &["--rule", "accept from dns:a.example"],
            "DNS names in `to`",
        ),
        (&[], "--rule or --default"),
    ] {
        let err = d.ctl_fails(&[&["policy", "add", "p"], args].concat());
        assert!(err.contains(part), "{part}: {err}");
    }
    d.ctl(&["policy", "add", "q", "--rule", "drop to port:other"]);
    let err = d.ctl_fails(&["port", "del", "other"]);
    assert!(err.contains("policy `q` names it"), "{err}");
    let metrics = d.http("GET", "/metrics", None).body;
    let line = "vswitch_policy_rule_judged_total{policy=\"q\",rule=\"q/1\"} 0";
    assert!(metrics.contains(line), "{metrics}");
    d.ctl(&["policy", "del", "q"]);
    let err = d.ctl_fails(&["policy", "explain", "--from", "wbe", "--to", "db"]);
    assert!(err.contains("did you mean `web`?"), "{err}");
    d.ctl(&ALLOW);
    let toml = d.ctl(&["export"]);
    for part in ["[policies.db]", "label:db", "default = \"drop\"", "5432"] {
        assert!(toml.contains(part), "{part}: {toml}");
    }
    for part in ["order", "any"] {
        assert!(!toml.contains(part), "{part} is a default: {toml}");
    }
    let shown = d.ctl(&["policy", "show"]);
    assert!(
        shown.contains("db/sql") && shown.contains("db/default"),
        "{shown}"
    );
    d.assert_ledger();
}
