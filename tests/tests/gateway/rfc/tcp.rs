//! RFC 5382: TCP.

use super::{plain_site, program, tracked_site};
use vswitch_tests::tap_lab;

#[test]
fn tcp_mappings_are_endpoint_independent_and_hairpin() {
    let lab = tap_lab!("rfc-tcp-mapping");
    let s = plain_site(&lab);
    program(
        &s,
        "
l1, l2 = tcp('outside', FAR, 7001, True), tcp('outside', FAR2, 7002, True)
def seen(node, own, port, listener):
    c = tcp(node, own, port); c.connect(listener.getsockname()); s, peer = listener.accept()
    return c, s, peer
# REQ-1: one endpoint for both. REQ-7: the same port of another host gets another, to the same server too.
a1, a2 = seen('a', A, 40000, l1), seen('a', A, 40000, l2)
assert a1[2] == a2[2] == (EXT, 40000), (a1, a2)
b1, b2 = seen('b', B, 40000, l1), seen('b', B, 40000, l2)
assert b1[2] == b2[2] and b1[2][1] not in (40000,) and b1[2][1] >= 1024
# REQ-8: a listener inside, reached by its external endpoint from inside; the source is external too.
inner = tcp('a', A, 40000, True)
c = tcp('b', B, 40000); c.connect((EXT, 40000)); s, peer = inner.accept()
assert peer == b1[2], peer
c.sendall(b'there'); assert s.recv(9) == b'there'
s.sendall(b'back'); assert c.recv(9) == b'back'
",
    );
    s.d.assert_ledger();
}

#[test]
fn tcp_filtering_is_as_configured() {
    let lab = tap_lab!("rfc-tcp-filtering");
    let s = plain_site(&lab);
    for (mode, passes) in [
        ("address-and-port-dependent", "0 0"),
        ("address-dependent", "1 0"),
        ("endpoint-independent", "1 1"),
    ] {
        s.d.ctl(&["gateway", "set", "wan", "--nat-filtering", mode]);
        s.d.ctl(&["conntrack", "flush"]);
        let seen = program(
            &s,
            "
l = tcp('outside', FAR, 7001, True); inner = tcp('a', A, 41000, True)
c = tcp('a', A, 41000); c.connect(l.getsockname()); s, e = l.accept()
def reaches(own):
    t = tcp('outside', own); t.settimeout(1)
    try: t.connect(e); return 1
    except OSError: return 0
print(reaches(FAR), reaches(FAR2))
",
        );
        assert_eq!(seen.trim(), passes, "{mode}");
    }
    s.d.assert_ledger();
}

#[test]
fn tcp_opens_from_both_sides_at_once() {
    let lab = tap_lab!("rfc-tcp-simultaneous");
    let s = plain_site(&lab);
    program(
        &s,
        "
# The host inside is a kernel; the one outside answers its SYN with a SYN, then acknowledges. Its address is nobody's else.
from scapy.all import *
w = wire('outside')
FARX = '203.0.113.9'
i = tcp('a', A, 42000); i.setblocking(False); i.connect_ex((FARX, 7003))
syn = sniff_for(w, lambda p: TCP in p and p[TCP].dport == 7003)
assert syn and syn[TCP].flags == 'S' and syn[IP].src == EXT
def out(flags, **k): w.send(bytes(Ether(dst=WAN)/IP(src=FARX, dst=EXT)/TCP(sport=7003, dport=syn[TCP].sport, flags=flags, **k)))
out('S', seq=9000, options=[('MSS', 1400)])
sa = sniff_for(w, lambda p: TCP in p and p[TCP].dport == 7003 and p[TCP].flags == 'SA')
assert sa and sa[TCP].ack == 9001, sa
out('SA', seq=9000, ack=syn[TCP].seq + 1, options=[('MSS', 1400)])
assert select.select([], [i], [], 3)[1], 'not established'
assert i.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
i.setblocking(True); i.sendall(b'data')
d = sniff_for(w, lambda p: TCP in p and bytes(p[TCP].payload)[:4] == b'data')
assert d
",
    );
    let state =
        s.d.ctl_json(&["conntrack", "show", "--protocol", "tcp", "--port", "7003"]);
    // The program's end closes it, which may have been seen already.
    let known = ["established", "fin-wait"].map(serde_json::Value::from);
    assert!(known.contains(&state[0]["state"]), "{state}");
    s.d.assert_ledger();
}

#[test]
fn tcp_unasked_syns_get_no_answer() {
    let lab = tap_lab!("rfc-tcp-syn");
    let s = plain_site(&lab);
    program(
        &s,
        "
from scapy.all import *
w = wire('outside')
w.send(bytes(Ether(dst=WAN)/IP(src=FAR2, dst=EXT)/TCP(sport=7004, dport=42004, flags='S', seq=1)))
# REQ-4: silence, though not for the six seconds only.
p = sniff_for(w, lambda p: IP in p and p[IP].dst == FAR2 and (TCP in p or ICMP in p), 6.5)
assert p is None, p
# A SYN from inside for the same connection opens it.
l = tcp('outside', FAR2, 7004, True)
c = tcp('a', A, 42004); c.connect((FAR2, 7004)); s, e = l.accept()
assert e == (EXT, 42004), e
c.sendall(b'data'); assert s.recv(9) == b'data'
",
    );
    s.d.assert_ledger();
}

#[test]
fn tcp_timers_can_be_set_and_default_to_those_asked_for() {
    let lab = tap_lab!("rfc-tcp-timers");
    let connect = "
l = tcp('outside', FAR, 7005, True)
c = tcp('a', A, 42005); c.connect(l.getsockname()); s, e = l.accept()
";
    let settings = "pickup = false\ntimeouts = { tcp-established = \"3s\", tcp-partial = \"2s\" }";
    let s = tracked_site(&lab, settings, &[]);
    program(
        &s,
        &format!(
            "{connect}
for _ in range(4):
    time.sleep(1); s.sendall(b'x'); assert c.recv(1) == b'x'
time.sleep(6); s.settimeout(1); s.sendall(b'x'); c.settimeout(1)
try: c.recv(1); raise SystemExit('still there')
except (TimeoutError, socket.timeout): pass
"
        ),
    );
    s.d.assert_ledger();
}

/// A connection that is kept.
const HELD: &str = "\
import socket, time
c = socket.create_connection(('198.51.100.254', 5201), 5, ('', 42005)); print('connected', flush=True); time.sleep(30)
";

#[test]
fn tcp_sessions_live_for_hours() {
    let lab = tap_lab!("rfc-tcp-default-timers");
    let s = plain_site(&lab);
    let _server = s.outside.iperf3_server();
    let mut client = s.a.spawn(&["/usr/bin/python3", "-c", HELD]);
    client.wait_for("connected");
    program(
        &s,
        "
from scapy.all import *
wire('a').send(bytes(Ether(dst=LAN)/IP(src=A, dst=FAR2)/TCP(sport=42006, dport=9, flags='S', seq=5)))
time.sleep(0.2)
",
    );
    let shown = s.d.ctl_json(&["conntrack", "show", "--protocol", "tcp"]);
    let whole = |port: u64| {
        let all = shown.as_array().unwrap();
        let c = all.iter().find(|c| c["original"]["src_port"] == port);
        let c = c.unwrap_or_else(|| panic!("{shown}"));
        c["expires"].as_u64().unwrap() + c["idle"].as_u64().unwrap()
    };
    assert!(whole(42005) >= 2 * 3600 + 239, "{shown}");
    assert!((239..300).contains(&whole(42006)), "{shown}");
    s.d.assert_ledger();
}

#[test]
fn tcp_survives_icmp_errors_and_forged_resets() {
    let lab = tap_lab!("rfc-tcp-errors");
    let s = plain_site(&lab);
    program(
        &s,
        "
from scapy.all import *
l = tcp('outside', FAR, 7006, True)
c = tcp('a', A, 42006); c.connect(l.getsockname()); s, e = l.accept()
w, inside = wire('outside'), wire('a')
c.sendall(b'one'); assert s.recv(9) == b'one'
seen = sniff_for(w, lambda p: TCP in p and bytes(p[TCP].payload)[:3] == b'one')
t = seen[TCP]
quote = IP(src=EXT, dst=FAR)/TCP(sport=t.sport, dport=t.dport, seq=t.seq, ack=t.ack, flags='A')
# REQ-9: passed on, translated. REQ-10: and nothing ends.
for code in (0, 1, 5, 13):
    w.send(bytes(Ether(dst=WAN)/IP(src=FAR2, dst=EXT)/ICMP(type=3, code=code)/quote))
    p = sniff_for(inside, lambda p: ICMP in p and p[ICMP].code == code)
    assert p and p[IP].src == FAR2 and p[IP].dst == A and p[IPerror].src == A and p[IPerror].dst == FAR, p
    assert p[TCPerror].sport == 42006 and p[TCPerror].seq == t.seq
w.send(bytes(Ether(dst=WAN)/IP(src=FAR2, dst=EXT)/ICMP(type=11, code=0)/quote))
# A reset out of the window, one inside it but not at its edge, is not the peer's (RFC 5961): the connection goes on.
for offset in (1 << 30, -(1 << 30)):
    w.send(bytes(Ether(dst=WAN)/IP(src=FAR, dst=EXT)/TCP(sport=7006, dport=t.sport, flags='R', seq=(t.ack + offset) & 0xffffffff)))
time.sleep(0.3)
c.sendall(b'two'); assert s.recv(9) == b'two'
s.sendall(b'three'); assert c.recv(9) == b'three'
# The peer's own gets through and ends it.
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()
try: c.recv(1); raise SystemExit('no reset')
except ConnectionResetError: pass
# The port pair serves again at once, though the old one is still remembered.
c.close(); c = tcp('a', A, 42006); c.connect(l.getsockname()); s, e = l.accept()
c.sendall(b'again'); assert s.recv(9) == b'again'
",
    );
    s.d.assert_ledger();
}

#[test]
fn tcp_resets_in_the_window_but_not_at_its_edge_end_nothing() {
    let lab = tap_lab!("rfc-tcp-reset");
    let settings = "pickup = false\ntimeouts = { tcp-reset = \"1s\" }";
    let s = tracked_site(&lab, settings, &[]);
    program(
        &s,
        "
from scapy.all import *
l = tcp('outside', FAR, 7007, True)
c = tcp('a', A, 42007); c.connect(l.getsockname()); s, e = l.accept()
w, inside = wire('outside'), wire('a')
c.sendall(b'one'); assert s.recv(9) == b'one'
t = sniff_for(w, lambda p: TCP in p and bytes(p[TCP].payload)[:3] == b'one')[TCP]
reset = lambda seq: bytes(Ether(dst=WAN)/IP(src=FAR, dst=EXT)/TCP(sport=7007, dport=t.sport, flags='R', seq=seq & 0xffffffff))
arrives = lambda wait: sniff_for(inside, lambda p: TCP in p and p[TCP].flags == 'R', wait)
# RFC 5961 3.2: it is the receiver's to challenge; out of the window it gets nowhere.
w.send(reset(t.ack + 1000)); assert arrives(3)
w.send(reset(t.ack + (1 << 30))); assert arrives(1) is None
# A connection that was closed by it would be forgotten by now.
time.sleep(4)
c.sendall(b'two'); assert s.recv(9) == b'two'
s.sendall(b'three'); assert c.recv(9) == b'three'
# At the edge it is the peer's.
w.send(reset(t.ack + 5)); assert arrives(3)
try: c.recv(1); raise SystemExit('no reset')
except ConnectionResetError: pass
",
    );
    s.d.assert_ledger();
}
