//! What must not break transfers: exhaustion, floods, forged packets, restarts and changes of configuration; and that they are bounded.

use crate::nat::{Site, site};
use crate::rfc::{plain_site, program, tracked_site};
use vswitch_tests::{Daemon, Node, tap_lab, wait_until};

/// Receives one connection, answers with the hash of what came; then sends as much itself.
const SERVER: &str = "\
import hashlib, socket, sys
n = int(sys.argv[2])
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('', int(sys.argv[1]))); s.listen(8); print('ready', flush=True)
while True:
    c, _ = s.accept(); h = hashlib.sha256(); left = n
    while left and (d := c.recv(min(left, 1 << 20))): h.update(d); left -= len(d)
    c.sendall(h.digest())
    h = hashlib.sha256(); block = hashlib.sha512(b'down').digest() * 1024
    for i in range(n // len(block)):
        d = i.to_bytes(8, 'big') + block[8:]; h.update(d); c.sendall(d)
    c.sendall(h.digest()); c.close()
";

/// Sends bytes, takes as many, at a bounded pace, and checks both hashes.
const CLIENT: &str = "\
import hashlib, socket, sys, time
n, pace = int(sys.argv[3]), float(sys.argv[4])
c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10); c.settimeout(20)
h = hashlib.sha256(); block = hashlib.sha512(b'up').digest() * 1024
print('begun', flush=True)
for i in range(n // len(block)):
    d = i.to_bytes(8, 'big') + block[8:]; h.update(d); c.sendall(d)
    if pace: time.sleep(pace)
def take(n):
    b = b''
    while len(b) < n:
        d = c.recv(n - len(b))
        if not d: raise SystemExit('ended early')
        b += d
    return b
assert take(32) == h.digest(), 'up'
h = hashlib.sha256()
for i in range(n // len(block)): h.update(take(len(block)))
assert take(32) == h.digest(), 'down'
print('whole')
";

const BLOCK: usize = 64 * 1024;

fn serve(node: &Node, blocks: usize) -> vswitch_tests::Background {
    let n = (blocks * BLOCK).to_string();
    let mut server = node.spawn(&["/usr/bin/python3", "-c", SERVER, "7000", &n]);
    server.wait_for("ready");
    server
}

/// A transfer under way, up then down.
fn transfer(node: &Node, to: &str, blocks: usize, pace: &str) -> vswitch_tests::Background {
    let n = (blocks * BLOCK).to_string();
    let argv = ["/usr/bin/python3", "-c", CLIENT, to, "7000", &n, pace];
    let mut client = node.spawn(&argv);
    client.wait_for("begun");
    client
}

#[track_caller]
fn assert_whole(client: vswitch_tests::Background) {
    let out = client.finish(std::time::Duration::from_secs(60));
    assert!(out.success() && out.stdout.contains("whole"), "{out}");
}

fn counter(d: &Daemon, name: &str) -> u64 {
    let count = d.ctl_json(&["conntrack", "count"]);
    let found = count["counters"][name].as_u64();
    found.unwrap_or_else(|| panic!("no counter {name}: {count}"))
}

fn whole_both_ways(workers: &str) {
    let lab = tap_lab!("whole");
    let Site { d, a, outside, .. } = site(&lab, &["--workers", workers]);
    // Up and down, 32 MiB each, to two hosts.
    let _server = serve(&outside, 512);
    for far in ["198.51.100.254", "203.0.113.7"] {
        assert_whole(transfer(&a, far, 512, "0"));
    }
    d.assert_ledger();
}

#[test]
fn exhausted_ports_are_counted_and_come_back() {
    let lab = tap_lab!("exhausted");
    let s = plain_site(&lab);
    let ports = ["gateway", "set", "wan", "--nat-ports", "40000-40007"];
    s.d.ctl(&ports);
    let events = s.d.spawn_ctl(&["events", "--json"]);
    // A listener hears what happens from then on.
    wait_until("the listener to listen", || {
        s.d.ctl(&["port", "set", "b", "--labels", "x"]);
        s.d.ctl(&["port", "set", "b", "--unset", "labels"]);
        events.output().contains("configured")
    });
    program(
        &s,
        "
o = udp('outside', FAR); keep = []
for n in range(20):
    i = udp('a', A); keep.append(i); i.sendto(b'out', o.getsockname())
seen = set()
while r := got(o, 0.5): seen.add(r[1][1])
assert seen == set(range(40000, 40008)), seen
",
    );
    assert!(counter(&s.d, "nat_exhausted") >= 12);
    let told = || {
        let output = events.output();
        let lines = output.lines().filter(|l| l.contains("nat_exhausted"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    wait_until("exhaustion to be told", || !told().is_empty());
    let told = told();
    for part in ["wan", "no external port is free (udp)"] {
        assert!(told[0].contains(part), "{told:?}");
    }
    assert!(told.len() < 12, "once a second at most: {told:?}");
    let stats = s.d.ctl_json(&["stats"]).to_string();
    assert!(stats.contains("nat_exhausted"), "{stats}");
    s.d.ctl(&["conntrack", "flush"]);
    s.a.assert_ping("198.51.100.254");
    s.d.assert_ledger();
}

#[test]
fn a_full_table_leaves_established_transfers_alone() {
    let lab = tap_lab!("table-full");
    let s = tracked_site(&lab, "max = 256", &[]);
    let _server = serve(&s.outside, 64);
    let client = transfer(&s.a, "198.51.100.254", 64, "0.03");
    program(
        &s,
        "
from scapy.all import *
l = wire('b')
syn, dgram = [[bytes(Ether(dst=LAN, src='02:00:00:00:00:77')/IP(src=B, dst=FAR)/p) for p in ps] for ps in (
    [TCP(sport=1024 + n, dport=9, flags='S') for n in range(1500)], [UDP(sport=1024 + n, dport=9)/b'x' for n in range(1500)])]
end = time.time() + 2
while time.time() < end:
    for x, y in zip(syn, dgram):
        l.send(x); l.send(y)
    time.sleep(0.05)
",
    );
    assert_whole(client);
    let count = s.d.ctl_json(&["conntrack", "count"]);
    assert!(count["connections"].as_u64().unwrap() <= 256, "{count}");
    let counters = count["counters"].as_object().unwrap();
    let pushed = |n: &str| counters.get(n).and_then(serde_json::Value::as_u64) > Some(0);
    assert!(pushed("evicted"), "{count}");
    s.d.assert_ledger();
}

#[test]
fn overlapping_and_endless_fragments_are_dropped() {
    let lab = tap_lab!("fragments");
    let s = plain_site(&lab);
    program(
        &s,
        "
from scapy.all import *
o = udp('outside', FAR, 7000); w, l = wire('outside'), wire('a')
whole = UDP(sport=45000, dport=7000)/(b'x' * 2900)
p = IP(src=A, dst=FAR, id=1)
data = bytes((p/whole)[UDP])
def piece(at, to, more, ident=1):
    return bytes(Ether(dst=LAN)/IP(src=A, dst=FAR, id=ident, flags=more, frag=at // 8, proto=17)/data[at:to])
# Overlapping: the second piece rewrites part of the first. Nothing of the rest arrives.
for order in ((0, 1, 2), (2, 1, 0)):
    ident = 10 + order[0]
    parts = [piece(0, 1480, 1, ident), piece(800, 1600, 1, ident), piece(1480, len(data), 0, ident)]
    for n in order: l.send(parts[n])
assert got(o, 1) is None
# A flood of first-less fragments: bounded, and of its source only; another host's cross.
flood = [piece(1480, 2400, 1, 1000 + n) for n in range(5000)]
for f in flood: l.send(f)
whole = bytes((IP(src=B, dst=FAR)/whole)[UDP]); m = wire('b')
for at, to, more in ((0, 1480, 1), (1480, len(whole), 0)):
    m.send(bytes(Ether(dst=LAN)/IP(src=B, dst=FAR, id=9, flags=more, frag=at // 8, proto=17)/whole[at:to]))
r = got(o); assert r and r[0] == b'x' * 2900
",
    );
    let held = s.d.ctl_json(&["stats"])["totals"]["held"].as_u64().unwrap();
    assert!(held < 2000, "{held} held");
    wait_until("the held fragments to be given up", || {
        s.d.ctl_json(&["stats"])["totals"]["held"] == 0
    });
    let stats = s.d.ctl_json(&["stats"]).to_string();
    assert!(stats.contains("\"fragment\""), "{stats}");
    s.d.assert_ledger();
}

#[test]
fn transfers_go_on_through_changes_flush_and_restart() {
    let lab = tap_lab!("changes");
    let mut s = plain_site(&lab);
    let _server = serve(&s.outside, 128);
    let client = transfer(&s.a, "198.51.100.254", 128, "0.03");
    for n in 0..5 {
        let (name, port) = (format!("p{n}"), format!("808{n}"));
        s.d.ctl(&[
            "publish",
            "add",
            &name,
            "--ports",
            &port,
            "--to",
            "192.0.2.11:80",
        ]);
        s.d.ctl(&["gateway", "set", "wan", "--mtu", ["1500", "1499"][n % 2]]);
        s.d.ctl(&["publish", "del", &name]);
    }
    s.d.ctl(&["gateway", "set", "wan", "--mtu", "1500"]);
    // A flush forgets it; it is taken up again by the next segment of the host inside, with the same port.
    let flushed = s.d.ctl_json(&["conntrack", "flush", "--protocol", "tcp"]);
    assert_eq!(flushed["removed"], 1, "{flushed}");
    wait_until("it to be taken up", || {
        let shown = s.d.ctl_json(&["conntrack", "show", "--protocol", "tcp"]);
        let c = &shown[0];
        c["replied"] == true && c["reply"]["dst_port"] == c["original"]["src_port"]
    });
    assert_whole(client);
    s.d.assert_ledger();
    // The same after a restart, which also forgets everything: interfaces of the daemon are as they were.
    let client = transfer(&s.b, "198.51.100.254", 128, "0.03");
    s.d.restart();
    assert_whole(client);
    s.d.assert_ledger();
}

#[test]
fn sctp_is_translated_with_its_checksum() {
    let lab = tap_lab!("sctp");
    let s = plain_site(&lab);
    s.d.ctl(&[
        "publish",
        "add",
        "sctp",
        "--protocol",
        "sctp",
        "--ports",
        "5000",
        "--to",
        "192.0.2.11:36412",
    ]);
    let seen = s.outside.capture("eth0", "ip proto 132");
    let inside = s.b.capture("eth0", "ip proto 132");
    program(
        &s,
        "
from scapy.all import *
from scapy.layers.sctp import *
w, l, m = wire('outside'), wire('a'), wire('b')
init = lambda sp, dp: SCTP(sport=sp, dport=dp, tag=0)/SCTPChunkInit(init_tag=7, a_rwnd=4096, n_out_streams=1, n_in_streams=1, init_tsn=1)
ack = lambda sp, dp: SCTP(sport=sp, dport=dp, tag=7)/SCTPChunkInitAck(init_tag=8, a_rwnd=4096, n_out_streams=1, n_in_streams=1, init_tsn=1)
of = lambda ip: lambda p: SCTP in p and p[IP].dst == ip
l.send(bytes(Ether(dst=LAN)/IP(src=A, dst=FAR)/init(5001, 9999)))
one = sniff_for(w, of(FAR)); assert one and (one[IP].src, one[SCTP].sport) == (EXT, 5001), one
m.send(bytes(Ether(dst=LAN)/IP(src=B, dst=FAR)/init(5001, 9999)))
two = sniff_for(w, lambda p: of(FAR)(p) and p[SCTP].sport != 5001); assert two and two[IP].src == EXT
w.send(bytes(Ether(dst=WAN)/IP(src=FAR, dst=EXT)/ack(9999, two[SCTP].sport)))
r = sniff_for(m, of(B)); assert r and r[SCTP].dport == 5001
w.send(bytes(Ether(dst=WAN)/IP(src=FAR2, dst=EXT)/init(6000, 5000)))
r = sniff_for(m, lambda p: of(B)(p) and p[IP].src == FAR2); assert r and (r[SCTP].sport, r[SCTP].dport) == (6000, 36412)
",
    );
    for capture in [seen, inside] {
        let file = capture.stop();
        let file = file.to_str().unwrap();
        let argv = [
            "tshark",
            "-n",
            "-r",
            file,
            "-o",
            "sctp.checksum:crc-32c",
            "-T",
            "fields",
            "-e",
            "sctp.checksum.status",
        ];
        let argv = argv.map(String::from);
        let status = s
            .outside
            .ok(&argv.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(
            status.lines().count() >= 3 && status.lines().all(|l| l == "1" || l == "Good"),
            "{status}"
        );
    }
    s.d.assert_ledger();
}

#[test]
fn a_transfer_is_whole_with_one_worker() {
    whole_both_ways("1");
}

#[test]
fn a_transfer_is_whole_with_two_workers() {
    whole_both_ways("2");
}

#[test]
fn a_ports_meters_and_mirrors_see_frames_for_the_gateway_once() {
    let lab = tap_lab!("once");
    let s = site(&lab, &["--workers", "2"]);
    for far in ["198.51.100.254", "203.0.113.7"] {
        s.a.assert_ping(far);
    }
    let watch = lab.container("watch");
    let pid = watch.pid().to_string();
    s.d.ctl(&["network", "add", "aside"]);
    s.d.ctl(&[
        "attach",
        "--pid",
        &pid,
        "--ip",
        "203.0.113.1/24",
        "--name",
        "watch",
        "aside",
    ]);
    s.d.ctl(&["mirror", "add", "m", "--ingress", "a", "--target", "watch"]);
    let copies = watch.capture("eth0", "udp port 9999");
    // The burst is what the rate is in 200 ms, 200 kB: nine tenths of it pass, through whichever queue.
    s.d.ctl(&["port", "set", "a", "--ingress-rate", "8mbit"]);
    program(
        &s,
        "
o = udp('outside', FAR, 9999); o.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
senders = [udp('a', A) for _ in range(16)]
for n in range(172): senders[n % 16].sendto(b'x' * 1000, o.getsockname())
n = 0
while n < 172 and got(o, 5): n += 1
assert n == 172, n
",
    );
    let stats = s.d.ctl_json(&["stats"]).to_string();
    assert!(!stats.contains("ingress_rate"), "{stats}");
    wait_until("the copies", || {
        let stats = s.d.ctl_json(&["stats"]);
        let ports = stats["ports"].as_array().unwrap().iter();
        let watch = ports.into_iter().find(|p| p["name"] == "watch").unwrap();
        watch["tx_frames"].as_u64() >= Some(172)
    });
    assert_eq!(copies.fields("udp", &["udp.srcport"]).len(), 172);
    s.d.assert_ledger();
}

/// As Linux sends SCTP where the interface is said to compute its CRC (veth is): zeros, and where the checksum belongs.
const LEFT_TO_OFFLOAD: &str = "
from scapy.all import *
from scapy.layers.sctp import *
import socket, struct
def left(dst_mac, dst):
    p = bytearray(bytes(Ether(dst=dst_mac, src=get_if_hwaddr('eth0'))/IP(src='192.0.2.12', dst=dst)/SCTP(sport=5003, dport=9999, tag=0)
        /SCTPChunkInit(init_tag=7, a_rwnd=4096, n_out_streams=1, n_in_streams=1, init_tsn=1)))
    p[42:46] = bytes(4)
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('eth0', 0))
    s.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
    s.send(struct.pack('=BBHHHH', 1, 0, 0, 0, 34, 8) + p)  # VIRTIO_NET_HDR_F_NEEDS_CSUM
left(getmacbyip('192.0.2.11'), '192.0.2.11')
left(getmacbyip('192.0.2.1'), '198.51.100.254')
";

#[test]
fn a_crc_of_sctp_left_to_offload_is_computed() {
    let lab = tap_lab!("sctp-offload");
    let s = plain_site(&lab);
    let c = lab.container("c");
    let pid = c.pid().to_string();
    s.d.ctl(&[
        "attach",
        "--pid",
        &pid,
        "--type",
        "veth",
        "--ip",
        "192.0.2.12/24",
        "--gw",
        "192.0.2.1",
        "--name",
        "c",
        "lan",
    ]);
    c.assert_ping("198.51.100.254");
    let seen = [&s.b, &s.outside].map(|n| n.capture("eth0", "ip proto 132"));
    c.scapy(LEFT_TO_OFFLOAD);
    // What comes after them has come: so have they.
    c.assert_ping("192.0.2.11");
    c.assert_ping("198.51.100.254");
    for capture in seen {
        let file = capture.stop();
        let sums = [
            "-r",
            file.to_str().unwrap(),
            "-o",
            "sctp.checksum:crc-32c",
            "-Y",
            "sctp.port == 5003",
            "-T",
            "fields",
            "-e",
            "sctp.checksum.status",
        ];
        let status = s.outside.ok(&[&["tshark", "-n"], &sums[..]].concat());
        assert!(["1", "Good"].contains(&status.trim()), "{status}");
    }
    s.d.assert_ledger();
}
