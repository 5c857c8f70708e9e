//! DNS by TCP, and rules about DNS names, with real clients.

use std::time::{Duration, Instant};

use crate::policy::{connect, connect_within, serve};
use crate::services::{Site, dig, site, udhcpc};
use vswitch_tests::{Daemon, Node, tap_lab};

/// Puts ten questions into one connection, in pieces, and reads ten answers in whatever order.
const PIPELINE: &str = "\
import socket, struct, sys, time
def question(i, name):
    q = b''.join(bytes([len(l)]) + l.encode() for l in name.split('.')) + bytes(1)
    m = struct.pack('>6H', i, 0x100, 1, 0, 0, 0) + q + struct.pack('>2H', 1, 1)
    return struct.pack('>H', len(m)) + m
names = ['www.example', 'b.lan.example', 'none%d.example', 'store.lan.example', 'none%d.lan.example'] * 2
s = socket.create_connection((sys.argv[1], 53), timeout=10); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
data = b''.join(question(i, n % i if '%' in n else n) for i, n in enumerate(names))
for cut in (1, 50, len(data)): s.sendall(data[:cut]); data = data[cut:]; time.sleep(0.05)
f = s.makefile('rb'); got = {}
for _ in names:
    m = f.read(*struct.unpack('>H', f.read(2))); i, flags, _, n = struct.unpack('>4H', m[:8]); got[i] = (flags & 15, n)
for i in range(len(names)): assert got[i] == ((3, 0) if 'none' in names[i] else (0, 1)), (i, names[i], got)
s.shutdown(socket.SHUT_WR); assert f.read() == b''; print('all answered')
";

/// Many connections at once, each with half a message; then waits until the other side has ended those it had let in.
const HALVES: &str = "\
import select, socket, sys, time
all = []
for _ in range(200):
    s = socket.socket(); s.setblocking(False); s.connect_ex((sys.argv[1], 53)); all.append(s)
end = time.time() + 3; begun = set()
while time.time() < end or len(begun) < 16 and time.time() < end + 17:
    for s in select.select([], [s for s in all if s not in begun], [], 0.1)[1]:
        if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0: s.send(bytes([0, 40, 1, 2, 3])); begun.add(s)
print('connected', len(begun), flush=True)
end = time.time() + 40; open_ = set(begun)
while open_ and time.time() < end:
    for s in select.select(list(open_), [], [], 0.5)[0]:
        try: data = s.recv(100)
        except OSError: data = b''
        if not data: open_.discard(s)
print('left', len(open_), flush=True)
";

/// SYNs from ports and addresses of all sorts, as fast as they can be made.
const SYNS: &str = "\
frames = [Ether(dst=mac)/IP(src='192.0.2.%d' % random.randint(60, 90), dst='192.0.2.1')
  /TCP(sport=random.randint(1024, 65535), dport=53, flags='S', seq=i) for i in range(2000)]
sendp(frames, iface='eth0')
";

fn dig_tcp(node: &Node, arguments: &[&str]) -> String {
    dig(node, &[&["+tcp"][..], arguments].concat())
}

#[test]
fn names_are_told_by_tcp_too() {
    let lab = tap_lab!("dns-tcp");
    let s = site(&lab, &[]);
    let Site { d, b, outside, .. } = &s;
    assert_eq!(dig_tcp(b, &["www.example"]), "198.51.100.254");
    assert_eq!(dig_tcp(b, &["b.lan.example"]), "192.0.2.11");
    let v6 = ["dig", "@2001:db8:1::1", "+short", "+tcp", "www.example"];
    assert_eq!(b.ok(&v6).trim(), "198.51.100.254");
    // An answer that is too long for a datagram: cut off, then asked for by TCP.
    let text = dig(b, &["big.example", "TXT"]);
    assert_eq!(text.matches(&"x".repeat(200)).count(), 10, "{text}");
    let cut = b.ok(&["dig", "@192.0.2.1", "+ignore", "big.example", "TXT"]);
    assert!(cut.contains("flags: qr tc rd ra"), "{cut}");
    let said = b.ok(&["python3", "-c", PIPELINE, "192.0.2.1"]);
    assert_eq!(said.trim(), "all answered");
    let said = b.ok(&["python3", "-c", PIPELINE, "2001:db8:1::1"]);
    assert_eq!(said.trim(), "all answered");
    let questions = lab.dir().join("questions");
    std::fs::write(
        &questions,
        "www.example A\nstore.lan.example AAAA\nbig.example TXT\n",
    )
    .expect("write the questions");
    let questions = questions.display().to_string();
    let load = b.ok(&[
        "dnsperf",
        "-m",
        "tcp",
        "-s",
        "192.0.2.1",
        "-d",
        &questions,
        "-c",
        "8",
        "-l",
        "2",
        "-Q",
        "500",
    ]);
    assert!(load.contains("Queries lost:         0"), "{load}");
    assert!(load.contains("NOERROR"), "{load}");
    b.assert_no_checksum_errors();
    // Not for those outside, and not if it is off.
    assert_eq!(
        connect_within(outside, "198.51.100.1", "53", "1.5"),
        "timeout"
    );
    d.ctl(&["gateway", "set", "lan", "--dns", "off"]);
    assert_eq!(connect(b, "192.0.2.1", "53"), "ECONNREFUSED");
    d.assert_ledger();
}

#[test]
fn names_are_told_by_tcp_of_two_workers() {
    let lab = tap_lab!("dns-tcp-2");
    let Site { d, b, .. } = &site(&lab, &["--workers", "2"]);
    let said = b.ok(&["python3", "-c", PIPELINE, "192.0.2.1"]);
    assert_eq!(said.trim(), "all answered");
    assert_eq!(
        dig_tcp(b, &["big.example", "TXT"]).matches('x').count(),
        2000
    );
    d.assert_ledger();
}

#[test]
fn who_abuses_dns_by_tcp_harms_only_himself() {
    let lab = tap_lab!("dns-tcp-abuse");
    let Site { d, a, b, .. } = &site(&lab, &[]);
    udhcpc(&lab, a, "box");
    let mut halves = a.spawn(&["python3", "-c", HALVES, "192.0.2.1"]);
    halves.wait_for("connected 16\n");
    for _ in 0..5 {
        assert_eq!(dig_tcp(b, &["+tries=1", "www.example"]), "198.51.100.254");
        assert_eq!(dig(a, &["+tries=1", "www.example"]), "198.51.100.254");
    }
    let done = halves.finish(Duration::from_secs(60));
    assert!(done.stdout.contains("left 0"), "{done}");
    let shown = d.ctl(&["gateway", "show"]);
    let line = shown
        .lines()
        .find(|l| l.starts_with("lan"))
        .expect("its line");
    let is_mac = |w: &&str| w.len() == 17 && w.matches(':').count() == 5;
    let mac = line.split_whitespace().find(is_mac).expect("a MAC address");
    let seen = a.capture("eth0", "tcp port 53");
    a.scapy(&format!("import random\nmac = '{mac}'\n{SYNS}"));
    let answered = seen.fields("tcp.flags == 0x12", &["tcp.dstport"]);
    assert!(!answered.is_empty(), "no SYN was taken for one");
    assert_eq!(dig_tcp(b, &["+tries=1", "www.example"]), "198.51.100.254");
    let said = b.ok(&["python3", "-c", PIPELINE, "192.0.2.1"]);
    assert_eq!(said.trim(), "all answered");
    // And it may come back.
    let end = Instant::now() + Duration::from_secs(20);
    while dig_tcp(a, &["+tries=1", "www.example"]) != "198.51.100.254" {
        assert!(Instant::now() < end, "its connections are still counted");
    }
    d.assert_ledger();
}

/// What a container may: names only.
fn allow(d: &Daemon, names: &[&str]) {
    let rules: Vec<String> = names
        .iter()
        .map(|n| format!("accept to dns:{n} proto tcp ports 8080"))
        .collect();
    let mut args = vec![
        "policy",
        "add",
        "names",
        "--from",
        "port:b",
        "--default",
        "drop",
    ];
    for r in &rules {
        args.extend(["--rule", r]);
    }
    d.ctl(&args);
}

#[test]
fn a_rule_about_a_name_holds_for_what_was_resolved() {
    let lab = tap_lab!("dns-names");
    let Site {
        d, a, b, outside, ..
    } = &site(&lab, &[]);
    udhcpc(&lab, a, "box");
    outside.addr("eth0", "198.51.100.253/24");
    let _servers = (serve(outside, "8080"), serve(a, "8080"));
    assert_eq!(connect(b, "198.51.100.254", "8080"), "open");
    allow(d, &["www.example", "*.lan.example"]);
    let closed = |to: &str| assert_eq!(connect_within(b, to, "8080", "1.5"), "timeout", "{to}");
    closed("198.51.100.254");
    // The gateway's own services are no matter of rules.
    assert_eq!(dig(b, &["www.example"]), "198.51.100.254");
    assert_eq!(connect(b, "198.51.100.254", "8080"), "open");
    closed("198.51.100.253");
    assert_eq!(connect_within(b, "198.51.100.254", "22", "1.5"), "timeout");
    // A name of the network itself, asked for by TCP; this connection isn't routed.
    let near = d.ctl_json(&["gateway", "leases"])[0]["address"].clone();
    let near = near.as_str().expect("an address");
    closed(near);
    assert_eq!(dig_tcp(b, &["box.lan.example"]), near);
    assert_eq!(connect(b, near, "8080"), "open");
    // A name that no rule has opens nothing.
    d.ctl(&[
        "gateway",
        "set",
        "lan",
        "--dns-record",
        "other=198.51.100.253",
    ]);
    d.ctl(&["policy", "del", "names"]);
    allow(d, &["www.example"]);
    assert_eq!(dig(b, &["other.lan.example"]), "198.51.100.253");
    closed("198.51.100.253");
    closed(near);
    // The resolver gives no TTL, so an address is kept for the shortest time there is: 30 s.
    let begun = Instant::now();
    dig(b, &["www.example"]);
    let end = Instant::now() + Duration::from_secs(90);
    while connect_within(b, "198.51.100.254", "8080", "5") == "open" {
        assert!(Instant::now() < end, "the name's address never ends");
        std::thread::sleep(Duration::from_secs(1));
    }
    assert!(begun.elapsed() >= Duration::from_secs(30), "{begun:?}");
    assert_eq!(dig(b, &["www.example"]), "198.51.100.254");
    assert_eq!(connect(b, "198.51.100.254", "8080"), "open");
    d.assert_ledger();
}
