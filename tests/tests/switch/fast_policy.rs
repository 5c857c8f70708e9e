//! `vswitchd run --accelerate=ebpf` where a policy judges: the kernel carries connections that it has allowed, and no others.

use serde_json::Value;
use std::net::Ipv4Addr;
use vswitch_tests::{Background, Daemon, Lab, Node, lab, skip, wait_until};

use crate::fast::{VETH, accelerated, fast};
use crate::rig::{self, counter, port};

/// Answers datagrams and bytes of TCP at a port with the same; at the port behind it, says how many datagrams have come.
const SERVER: &str = "\
import socket, sys, threading
port = int(sys.argv[1])
def udp(port, answer):
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', port))
    n = 0
    while True:
        data, who = s.recvfrom(2000); n += 1
        if answer: s.sendto(data, who)
        else: print('refused', n, flush=True)
def one(c):
    try:
        while True:
            data = c.recv(65536)
            if not data: return c.close()
            c.sendall(data)
    except OSError: pass
for args in ((port, True), (port + 1, False)):
    threading.Thread(target=udp, args=args, daemon=True).start()
s = socket.socket(socket.AF_INET6); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('::', port)); s.listen(8); print('ready', flush=True)
while True:
    c, _ = s.accept(); threading.Thread(target=one, args=(c,), daemon=True).start()
";

/// Sends numbered messages of 100 bytes over one flow and waits for the echo of each: kind, address, port, our port, how many, pause.
/// Says how many came back at the end, and every tenth before. A lost datagram is sent again after half a second.
const CLIENT: &str = "\
import socket, sys, time
kind, to, port, own, count, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
end = sys.argv[7] if len(sys.argv) > 7 else 'close'
family = socket.AF_INET6 if ':' in to else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('', own)); s.connect((to, port))
s.settimeout(0.5 if kind == 'udp' else 20)
sent = got = 0
while got < count:
    message = b'%099d\\n' % got
    if kind == 'udp' or len(message) == 100:
        s.sendall(message); sent += 1
    try:
        back = b''
        while len(back) < 100:
            more = s.recv(100 - len(back))
            if not more: raise OSError('closed')
            back += more
        if back == message: got += 1
    except socket.timeout: pass
    if got % 10 == 0: print('got', got, 'sent', sent, flush=True)
    time.sleep(pause)
print('done', got, sent, flush=True)
if end == 'wait': time.sleep(60)
if end == 'reset':
    import struct
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.close()
";

const PORT: &str = "7000";
const RULES: [&str; 3] = [
    "accept proto udp ports 7000",
    "accept proto tcp ports 7000",
    "accept proto icmp,icmp6",
];

macro_rules! judged {
    ($lab:expr, $options:expr) => {
        match accelerated($lab, $options) {
            Ok(d) => {
                let nodes = two(&d, $lab);
                (d, nodes)
            }
            Err(why) => skip!("no fast path here: {why}"),
        }
    };
}

/// Two containers, and a policy about the second.
fn two(d: &Daemon, lab: &Lab) -> (Node, Node, Background) {
    let a = rig::container(d, lab, "a", "192.0.2.1/24,2001:db8::1/64", &VETH);
    let b = rig::container(d, lab, "b", "192.0.2.2/24,2001:db8::2/64", &VETH);
    policy(d, "add", &RULES);
    let mut server = b.spawn(&["python3", "-c", SERVER, PORT]);
    server.wait_for("ready");
    wait_until("addresses to be usable", || {
        a.ping("2001:db8::2") > 0 && a.ping("192.0.2.2") > 0
    });
    (a, b, server)
}

fn policy(d: &Daemon, act: &str, rules: &[&str]) {
    let mut args = vec!["policy", act, "p", "--to", "port:b", "--default", "drop"];
    for rule in rules {
        args.extend(["--rule", rule]);
    }
    d.ctl(&args);
}

/// An exchange under way.
fn exchange(a: &Node, kind: &str, to: &str, own: &str, rest: &[&str]) -> Background {
    let args = ["python3", "-c", CLIENT, kind, to, PORT, own];
    a.spawn(&[&args, rest].concat())
}

fn carried(d: &Daemon) -> [u64; 2] {
    ["a", "b"].map(|p| counter(d, p, "fast_rx_frames"))
}

/// Waits until the fast path carries both ways.
#[track_caller]
fn wait_carried(d: &Daemon, what: &str) {
    let before = carried(d);
    wait_until(what, || {
        let now = carried(d);
        before[0] + 5 <= now[0] && before[1] + 5 <= now[1]
    });
}

/// The connections by our port.
fn connections(d: &Daemon, own: &str) -> Vec<Value> {
    let all = d.ctl_json(&["conntrack", "show", "--port", own]);
    all.as_array().expect("a list").clone()
}

/// Packets and bytes of a rule.
fn ruled(d: &Daemon, rule: usize) -> [u64; 2] {
    let shown = d.ctl_json(&["policy", "show", "p"]);
    let counts = &shown[0]["counts"][rule];
    ["packets", "bytes"].map(|n| counts[n].as_u64().expect("a counter"))
}

/// Datagrams that have come to a node.
fn datagrams(node: &Node) -> u64 {
    node.kernel_counter("UdpInDatagrams")
}

/// What a client says it has had back.
fn got(client: &Background) -> u64 {
    let said = client.output();
    let last = said.lines().rev().find(|l| l.starts_with("got "));
    let number = last.and_then(|l| l.split(' ').nth(1));
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn allowed_datagrams_are_carried_and_counted() {
    let lab = lab!("fast-judged");
    let (d, (a, _b, server)) = judged!(&lab, &[]);
    for (to, own, ip) in [("192.0.2.2", "40001", 28), ("2001:db8::2", "40002", 48)] {
        let (before, rule) = (carried(&d), ruled(&d, 0));
        let mut client = exchange(&a, "udp", to, own, &["300", "0.002", "wait"]);
        client.wait_for("done 300");
        let said = client.output();
        assert!(said.contains("done 300 300"), "{said}");
        let more = [0, 1].map(|i| carried(&d)[i] - before[i]);
        assert!(more.iter().all(|n| (250..300).contains(n)), "{more:?}");
        // As many packets and bytes as were sent, whoever carried them.
        let conns = connections(&d, own);
        assert_eq!(conns.len(), 1, "{conns:?}");
        for way in ["original", "reply"] {
            assert_eq!(conns[0][way]["packets"], 300, "{conns:?}");
            assert_eq!(conns[0][way]["bytes"], 300 * (100 + ip), "{conns:?}");
        }
        let counts = [0, 1].map(|i| ruled(&d, 0)[i] - rule[i]);
        assert_eq!(counts, [600, 600 * (100 + ip + 14)]);
    }
    assert!(fast(&d)["connections"].as_u64() >= Some(2), "{}", fast(&d));
    let text = d.ctl(&["stats"]);
    assert!(
        text.contains("directions of connections by policy"),
        "{text}"
    );
    // A neighbour of theirs that isn't allowed never gets through.
    let before = carried(&d);
    let refused = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 40001))\n\
        for n in range(50): s.sendto(b'x' * 100, ('192.0.2.2', 7001))\n";
    a.ok(&["python3", "-c", refused]);
    wait_until("them to be refused", || {
        rig::dropped(&d, "a", "policy") >= 50
    });
    assert_eq!(carried(&d), before);
    assert!(!server.output().contains("refused"), "{}", server.output());
    d.assert_ledger();
    // What nobody uses gives its place up, and is taken up again.
    wait_until("idle flows to go", || fast(&d)["connections"] == 0);
    let mut client = exchange(&a, "udp", "192.0.2.2", "40003", &["50", "0.002"]);
    client.wait_for("done 50 50");
    assert_eq!(connections(&d, "40003")[0]["original"]["packets"], 50);
    d.assert_ledger();
}

#[test]
fn tcp_begins_and_ends_with_the_workers() {
    let lab = lab!("fast-judged-tcp");
    let (d, (a, _b, _server)) = judged!(&lab, &["--workers", "2"]);
    let before = carried(&d);
    let mut client = exchange(&a, "tcp", "192.0.2.2", "40001", &["300", "0.002", "wait"]);
    client.wait_for("done 300");
    let more = [0, 1].map(|i| carried(&d)[i] - before[i]);
    assert!(more.iter().all(|n| *n >= 250), "{more:?}");
    let conns = connections(&d, "40001");
    assert_eq!(conns[0]["state"], "established", "{conns:?}");
    // Every segment carried a hundred bytes; SYN, FIN and acknowledgements none.
    let packets = conns[0]["original"]["packets"].as_u64().expect("a number");
    assert!((300..700).contains(&packets), "{conns:?}");
    client.kill();
    wait_until("the end of it to be seen", || {
        matches!(
            connections(&d, "40001")[0]["state"].as_str(),
            Some("time-wait" | "closed")
        )
    });
    for (own, how, state) in [
        ("40002", "close", "time-wait"),
        ("40003", "reset", "closed"),
    ] {
        let rest = ["100", "0.002", how];
        let mut client = exchange(&a, "tcp", "2001:db8::2", own, &rest);
        client.wait_for("done 100");
        wait_until(&format!("{own} to be {state}"), || {
            connections(&d, own)[0]["state"] == state
        });
    }
    d.assert_ledger();
}

#[test]
fn bulk_is_counted_to_the_byte_and_survives_changes() {
    let lab = lab!("fast-judged-bulk");
    let (d, (a, b, _server)) = judged!(&lab, &[]);
    let more = ["accept proto tcp ports 5201", "accept proto udp ports 5201"];
    policy(&d, "set", &more);
    let _iperf = b.iperf3_server();
    let before = counter(&d, "a", "fast_rx_bytes");
    let rule = ruled(&d, 0);
    let run = std::thread::scope(|s| {
        let run = s.spawn(|| a.iperf3("192.0.2.2", &["-n", "512M"]));
        // Its windows are far on each time that the workers see it again.
        for n in 0..10 {
            let port = format!("accept proto tcp ports {}", 6000 + n);
            policy(&d, "set", &[more[0], more[1], &port]);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        run.join().expect("the transfer")
    });
    assert!(run.received_bytes > 500 << 20, "{run:?}");
    let by_kernel = counter(&d, "a", "fast_rx_bytes") - before;
    assert!(by_kernel > run.received_bytes / 10 * 7, "{by_kernel}");
    // The rule has had all of it, both ways: what the containers' kernels have sent and received.
    let counts = [0, 1].map(|i| ruled(&d, 0)[i] - rule[i]);
    assert!(counts[1] > 512 << 20, "{counts:?}");
    assert!(counts[1] < (512 << 20) / 10 * 12, "{counts:?}");
    // Segments of 1448 bytes, and acknowledgements.
    assert!(counts[0] > (512 << 20) / 1448, "{counts:?}");
    a.assert_no_checksum_errors();
    b.assert_no_checksum_errors();
    d.assert_ledger();
}

#[test]
fn a_change_of_policy_cuts_what_is_carried() {
    let lab = lab!("fast-judged-cut");
    let (d, (a, b, _server)) = judged!(&lab, &[]);
    let client = exchange(&a, "udp", "192.0.2.2", "40001", &["100000", "0.002"]);
    wait_carried(&d, "the exchange to be carried");
    for _ in 0..3 {
        policy(&d, "set", &RULES[1..]);
        // It is answered: nothing goes any more, though the client goes on.
        let (before, counted) = (datagrams(&b), carried(&d));
        let refused = rig::dropped(&d, "a", "policy");
        wait_until("the client to have tried again", || {
            rig::dropped(&d, "a", "policy") >= refused + 2
        });
        assert_eq!((datagrams(&b), carried(&d)), (before, counted));
        policy(&d, "set", &RULES);
        wait_carried(&d, "the exchange to be carried again");
    }
    // So does the end of its connection, which begins anew.
    d.ctl(&["conntrack", "flush", "--port", "40001"]);
    wait_carried(&d, "another connection to be carried");
    assert!(connections(&d, "40001")[0]["age"].as_u64() < Some(30));
    // And a capture sees every packet.
    let file = lab.dir().join("fast.pcapng");
    let path = file.to_str().expect("UTF-8");
    let capture = d.spawn_ctl(&["capture", "a", "-w", path, "-f", "udp"]);
    wait_until("the capture to begin", || {
        d.http("GET", "/v1/", None).json()["captures"] == 1
    });
    let (counted, had) = (carried(&d), got(&client));
    wait_until("the exchange to go on", || got(&client) >= had + 50);
    assert_eq!(carried(&d), counted);
    drop(capture);
    wait_carried(&d, "the exchange to be carried after the capture");
    d.ctl(&["port", "set", "b", "--up", "off"]);
    let before = datagrams(&b);
    let had = got(&client);
    d.ctl(&["port", "set", "b", "--up", "on"]);
    assert!(datagrams(&b) >= before && got(&client) >= had);
    wait_carried(&d, "the exchange to be carried by a port that is up again");
    d.assert_ledger();
}

#[test]
fn a_busy_connection_does_not_age() {
    let lab = lab!("fast-judged-age");
    let (d, (a, _b, _server)) = judged!(&lab, &[]);
    let _client = exchange(&a, "udp", "192.0.2.2", "40001", &["100000", "0.01"]);
    wait_carried(&d, "the exchange to be carried");
    wait_until("it to be a lasting one", || {
        connections(&d, "40001")[0]["state"] == "stream"
    });
    let conn = &connections(&d, "40001")[0];
    assert!(conn["idle"].as_u64() <= Some(1), "{conn}");
    // Its packets go on without the workers.
    let slow = || {
        let stats = d.ctl_json(&["stats", "a"]);
        let [all, fast] = ["rx_frames", "fast_rx_frames"].map(|n| stats["ports"][0][n].as_u64());
        all.expect("a counter") - fast.expect("a counter")
    };
    let before = slow();
    wait_carried(&d, "more of it to be carried");
    assert!(slow() - before < 20);
    assert_eq!(port(&d, "a")["fast"], true);
    d.assert_ledger();
}

/// An Ethernet header between the containers, and what follows.
fn frame(a: &Node, b: &Node, ethertype: u16, body: &[u8]) -> Vec<u8> {
    let mac = |node: &Node| -> Vec<u8> {
        let text = node.mac("eth0");
        let byte = |b: &str| u8::from_str_radix(b, 16).expect("a byte");
        text.split(':').map(byte).collect()
    };
    let mut all = [mac(b), mac(a)].concat();
    all.extend(ethertype.to_be_bytes());
    all.extend(body);
    all
}

/// An IPv4 packet of the allowed flow: options, fragment field, length beside the true one, protocol, transport.
fn ipv4(options: &[u8], fragment: u16, longer: u16, proto: u8, transport: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let total = (header + transport.len()) as u16 + longer;
    let mut p = vec![0x40 | (header / 4) as u8, 0];
    p.extend(total.to_be_bytes());
    p.extend([0, 7]);
    p.extend(fragment.to_be_bytes());
    p.extend([64, proto, 0, 0]);
    p.extend(Ipv4Addr::new(192, 0, 2, 1).octets());
    p.extend(Ipv4Addr::new(192, 0, 2, 2).octets());
    p.extend(options);
    let sum = p
        .chunks(2)
        .fold(0u32, |s, c| s + (u32::from(c[0]) << 8) + u32::from(c[1]));
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    p[10..12].copy_from_slice(&sum.to_be_bytes());
    p.extend(transport);
    p
}

#[test]
fn odd_frames_come_to_the_workers() {
    let lab = lab!("fast-judged-odd");
    let (d, (a, b, _server)) = judged!(&lab, &[]);
    let mut v4 = exchange(&a, "udp", "192.0.2.2", "40001", &["100", "0.002", "wait"]);
    let mut v6 = exchange(&a, "udp", "2001:db8::2", "40001", &["100", "0.002", "wait"]);
    let mut tcp = exchange(&a, "tcp", "192.0.2.2", "40001", &["100", "0.002", "wait"]);
    for client in [&mut v4, &mut v6, &mut tcp] {
        client.wait_for("done 100");
    }
    // Ports 40001 and 7000, length 12, no checksum.
    let udp = [0x9c, 0x41, 0x1b, 0x58, 0, 12, 0, 0, 1, 2, 3, 4];
    let plain = ipv4(&[], 0, 0, 17, &udp);
    // A plain one goes the fast way: the others would, too.
    let before = carried(&d)[0];
    wait_until("plain frames to be carried", || {
        a.send_frames("eth0", &[frame(&a, &b, 0x0800, &plain)]);
        carried(&d)[0] >= before + 3
    });
    // Late acknowledgements have come.
    let mut last = carried(&d);
    wait_until("all to be still", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let was = std::mem::replace(&mut last, carried(&d));
        was == last
    });
    let mut tagged = vec![0, 5, 8, 0];
    tagged.extend(&plain);
    let mut segment = vec![0x9c, 0x41, 0x1b, 0x58, 0, 0, 0, 9, 0, 0, 0, 9];
    segment.extend([0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    let with_flags = |flags: u8| {
        let mut s = segment.clone();
        s[13] = flags;
        ipv4(&[], 0, 0, 6, &s)
    };
    let short_header = {
        let mut s = segment.clone();
        s[12] = 0x40;
        ipv4(&[], 0, 0, 6, &s)
    };
    let long_header = {
        let mut s = segment.clone();
        s[12] = 0xf0;
        ipv4(&[], 0, 0, 6, &s)
    };
    let mut six = vec![0x60, 0, 0, 0, 0, 20, 60, 64];
    six.extend(
        "2001:db8::1"
            .parse::<std::net::Ipv6Addr>()
            .expect("one")
            .octets(),
    );
    six.extend(
        "2001:db8::2"
            .parse::<std::net::Ipv6Addr>()
            .expect("one")
            .octets(),
    );
    // Destination options, padding only.
    six.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    six.extend(udp);
    let odd = [
        (
            "options",
            frame(&a, &b, 0x0800, &ipv4(&[1, 1, 1, 0], 0, 0, 17, &udp)),
        ),
        (
            "first fragment",
            frame(&a, &b, 0x0800, &ipv4(&[], 0x2000, 0, 17, &udp)),
        ),
        (
            "later fragment",
            frame(&a, &b, 0x0800, &ipv4(&[], 0x0001, 0, 17, &udp)),
        ),
        (
            "longer than it is",
            frame(&a, &b, 0x0800, &ipv4(&[], 0, 100, 17, &udp)),
        ),
        ("ends in UDP", frame(&a, &b, 0x0800, &plain[..26])),
        ("ends in IP", frame(&a, &b, 0x0800, &plain[..12])),
        ("tag", frame(&a, &b, 0x8100, &tagged)),
        ("destination options", frame(&a, &b, 0x86dd, &six)),
        ("short TCP header", frame(&a, &b, 0x0800, &short_header)),
        (
            "TCP header beyond the end",
            frame(&a, &b, 0x0800, &long_header),
        ),
        ("no flags", frame(&a, &b, 0x0800, &with_flags(0))),
        ("SYN", frame(&a, &b, 0x0800, &with_flags(0x12))),
        ("URG", frame(&a, &b, 0x0800, &with_flags(0x30))),
        ("RST", frame(&a, &b, 0x0800, &with_flags(0x04))),
        ("FIN", frame(&a, &b, 0x0800, &with_flags(0x11))),
    ];
    for (what, odd) in odd {
        let before = carried(&d)[0];
        let all = counter(&d, "a", "rx_frames");
        a.send_frames("eth0", &vec![odd; 3]);
        wait_until(&format!("the workers to have had: {what}"), || {
            counter(&d, "a", "rx_frames") >= all + 3
        });
        // A's kernel may answer what B's says to a strange segment of TCP.
        let allowed = 3 * u64::from(what.len() == 3 && what != "tag" || what == "no flags");
        let more = carried(&d)[0] - before;
        assert!(more <= allowed, "{what}: {more} of 3 were carried");
    }
    d.assert_ledger();
}
