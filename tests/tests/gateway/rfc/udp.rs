//! RFC 4787: UDP.

use super::{plain_site, program, tracked_site};
use vswitch_tests::tap_lab;

#[test]
fn udp_mappings_are_endpoint_independent_and_keep_ports() {
    let lab = tap_lab!("rfc-udp-mapping");
    let s = plain_site(&lab);
    program(
        &s,
        "
one, two, three = udp('outside', FAR), udp('outside', FAR), udp('outside', FAR2)
# REQ-1: one endpoint outside, whatever address and port it sends to. REQ-3: with its port.
i = udp('a', A, 40000)
assert [through(i, o) for o in (one, two, three)] == [(EXT, 40000)] * 3
# REQ-3: no overloading, not even towards different hosts. REQ-4: parity kept.
j = udp('b', B, 40000)
e = through(j, two)
assert e[1] != 40000 and e[1] % 2 == 0 and e[1] >= 1024, e
assert through(j, three) == e and through(i, three) == (EXT, 40000)
for port in (40001, 51235):
    through(udp('a', A, port), one); x = through(udp('b', B, port), one)
    assert x[1] != port and x[1] % 2 == 1, x
# REQ-3a: well-known ports stay well-known.
assert through(udp('a', A, 500), one)[1] == 500
assert through(udp('b', B, 500), one)[1] < 1024
# REQ-10: what looks like an address in the payload is left alone.
i.sendto(b'PORT 192,0,2,10,156,64 192.0.2.10:40000', one.getsockname())
assert got(one)[0] == b'PORT 192,0,2,10,156,64 192.0.2.10:40000'
# IPv6 alike.
o6 = udp('outside', '2001:db8:2::254')
assert through(udp('a', '2001:db8:1::10', 40000), o6) == ('2001:db8:2::1', 40000)
x = through(udp('b', '2001:db8:1::11', 40000), o6)
assert x[0] == '2001:db8:2::1' and x[1] != 40000 and x[1] % 2 == 0, x
",
    );
    s.d.assert_ledger();
}

#[test]
fn udp_hosts_keep_their_external_address() {
    let lab = tap_lab!("rfc-udp-pooling");
    let s = plain_site(&lab);
    let pool = "198.51.100.20,198.51.100.21,198.51.100.22,198.51.100.23";
    s.d.ctl(&["gateway", "set", "wan", "--nat-addresses", pool]);
    program(
        &s,
        "
outer = [udp('outside', FAR) for _ in range(4)]
for node, own in (('a', A), ('b', B)):
    seen = {through(udp(node, own), o)[0] for _ in range(6) for o in outer}
    assert len(seen) == 1 and seen.pop().startswith('198.51.100.2'), seen
",
    );
    s.d.assert_ledger();
}

/// Who reaches a mapping made by a datagram to one endpoint: the same host's other port, another host, and a mapping of another port.
const FILTERED: &str = "
o, other_port, other_host = udp('outside', FAR), udp('outside', FAR), udp('outside', FAR2)
i = udp('a', A, 41000)
e = through(i, o)
def reaches(s):
    s.sendto(b'in', e); r = got(i, 0.7)
    return r is not None and r[0] == b'in' and r[1] == s.getsockname()
print(*[int(reaches(s)) for s in (o, other_port, other_host)])
# REQ-11: the same with a mapping that couldn't keep its port.
j = udp('b', B, 41000)
e, i = through(j, o), j
print(*[int(reaches(s)) for s in (o, other_port, other_host)])
";

#[test]
fn udp_filtering_is_as_configured() {
    let lab = tap_lab!("rfc-udp-filtering");
    let s = plain_site(&lab);
    for (mode, passes) in [
        ("address-and-port-dependent", "1 0 0"),
        ("address-dependent", "1 1 0"),
        ("endpoint-independent", "1 1 1"),
    ] {
        s.d.ctl(&["gateway", "set", "wan", "--nat-filtering", mode]);
        s.d.ctl(&["conntrack", "flush"]);
        let seen = program(&s, FILTERED);
        assert_eq!(seen.trim(), format!("{passes}\n{passes}"), "{mode}");
    }
    s.d.assert_ledger();
}

#[test]
fn udp_hairpins_between_hosts_inside() {
    let lab = tap_lab!("rfc-udp-hairpin");
    let s = plain_site(&lab);
    program(
        &s,
        "
o = udp('outside', FAR)
i, j = udp('a', A, 42000), udp('b', B, 42001)
ei, ej = through(i, o), through(j, o)
# By each other's external endpoints, which is also what each sees as the source.
i.sendto(b'hello', ej); assert got(j) == (b'hello', ei)
j.sendto(b'back', ei); assert got(i) == (b'back', ej)
# A host reaches itself so as well.
k = udp('a', A, 42002)
ek = through(k, o)
k.sendto(b'self', ei); assert got(i) == (b'self', ek)
# An error about it finds its way back (RFC 5508 REQ-7): the far socket is gone.
j.close(); i.connect(ej); i.send(b'x')
try: i.recv(9); raise SystemExit('no error')
except ConnectionRefusedError: pass
",
    );
    s.d.assert_ledger();
}

#[test]
fn udp_timers_can_be_set_and_outbound_refreshes() {
    let lab = tap_lab!("rfc-udp-timers");
    let settings =
        "timeouts = { udp-unreplied = \"3s\", udp-replied = \"3s\", udp-stream = \"3s\" }";
    let s = tracked_site(&lab, settings, &[]);
    program(
        &s,
        "
o = udp('outside', FAR)
i, idle = udp('a', A, 43000), udp('a', A, 43001)
e, lost = through(i, o), through(idle, o)
# REQ-6: what goes out keeps the mapping.
for _ in range(5):
    time.sleep(1); assert through(i, o) == e
o.sendto(b'in', e); assert got(i)
# REQ-5: the other has ended.
o.sendto(b'in', lost); assert got(idle, 1) is None
",
    );
    s.d.assert_ledger();
}

#[test]
fn udp_default_timers_are_those_asked_for() {
    let lab = tap_lab!("rfc-udp-default-timers");
    let s = plain_site(&lab);
    program(
        &s,
        "
o = udp('outside', FAR); i = udp('a', A, 43000); e = through(i, o)
o.sendto(b'in', e); assert got(i)
through(udp('a', A, 43001), o)
",
    );
    let shown = s.d.ctl_json(&[
        "conntrack",
        "show",
        "--protocol",
        "udp",
        "--src",
        "192.0.2.10",
    ]);
    let shown = shown.as_array().unwrap();
    assert_eq!(shown.len(), 2, "{shown:?}");
    for c in shown {
        let whole = c["expires"].as_u64().unwrap() + c["idle"].as_u64().unwrap();
        assert!((119..=300).contains(&whole), "{c}");
    }
    s.d.assert_ledger();
}

#[test]
fn udp_networks_mustnt_overlap() {
    let lab = tap_lab!("rfc-overlap");
    let s = plain_site(&lab);
    let clash = [
        "gateway",
        "set",
        "wan",
        "--addresses",
        "198.51.100.1/24,192.0.2.9/24,2001:db8:2::1/64",
    ];
    let err = s.d.ctl_fails(&clash);
    assert!(err.contains("overlaps"), "{err}");
}

#[test]
fn udp_mappings_outlive_icmp_errors() {
    let lab = tap_lab!("rfc-udp-errors");
    let s = plain_site(&lab);
    program(
        &s,
        "
from scapy.all import *
o = udp('outside', FAR); i = udp('a', A, 44000); e = through(i, o)
w = wire('outside')
quote = IP(src=EXT, dst=FAR, ttl=60)/UDP(sport=44000, dport=o.getsockname()[1])/b'out'
for t, c in [(3, 0), (3, 1), (3, 2), (3, 3), (3, 10), (3, 13), (11, 0), (12, 0)]:
    w.send(bytes(Ether(dst=WAN)/IP(src=FAR2, dst=EXT)/ICMP(type=t, code=c)/quote))
time.sleep(0.3)
# Errors that wait at the socket come before data.
o.sendto(b'in', e)
for _ in range(9):
    try:
        r = got(i); break
    except OSError: pass
assert r and r[0] == b'in', r
assert through(i, o) == e
",
    );
    s.d.assert_ledger();
}

#[test]
fn udp_fragments_cross_in_any_order() {
    let lab = tap_lab!("rfc-udp-fragments");
    let s = plain_site(&lab);
    program(
        &s,
        "
from scapy.all import *
import itertools
o = udp('outside', FAR, 7000); i = udp('a', A, 45000); through(i, o)
w, l = wire('outside'), wire('a')
body = bytes(range(256)) * 16
number = 100
for order in itertools.permutations(range(3)):
    for link, dst, ip, ends, s in ((w, WAN, dict(src=FAR, dst=EXT), (7000, 45000), i),
                                   (l, LAN, dict(src=A, dst=FAR), (45000, 7000), o)):
        number += 1
        parts = fragment(IP(id=number, **ip)/UDP(sport=ends[0], dport=ends[1])/body, fragsize=1400)
        assert len(parts) == 3
        for n in order: link.send(bytes(Ether(dst=dst)/parts[n]))
        r = got(s)
        assert r and r[0] == body, (order, ip)
",
    );
    s.d.assert_ledger();
}

#[test]
fn udp_too_big_for_the_way_is_told() {
    let lab = tap_lab!("rfc-udp-df");
    let s = plain_site(&lab);
    s.d.ctl(&["gateway", "set", "wan", "--mtu", "1300"]);
    program(
        &s,
        "
o = udp('outside', FAR); i = udp('a', A, 46000); through(i, o)
i.setsockopt(0, 10, 2)  # IP_MTU_DISCOVER = IP_PMTUDISC_DO
i.connect(o.getsockname())
i.send(b'x' * 1400); time.sleep(0.5)
try: i.send(b'x' * 1400)
except OSError: pass
assert i.getsockopt(0, 14) == 1300  # IP_MTU
i.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR); i.setsockopt(0, 10, 0)  # may be fragmented
i.send(b'y' * 1400); r = got(o); assert r and len(r[0]) == 1400
",
    );
    s.d.assert_ledger();
}

#[test]
fn udp_timers_are_each_settable() {
    let lab = tap_lab!("rfc-udp-each-timer");
    let names = [
        "udp-well-known",
        "udp-unreplied",
        "udp-replied",
        "udp-stream",
    ];
    let set = |i: usize| format!("{} = \"{}s\"", names[i], 1000 * (i + 1));
    let all: Vec<String> = (0..4).map(set).collect();
    let settings = format!("timeouts = {{ {} }}", all.join(", "));
    let s = tracked_site(&lab, &settings, &[]);
    program(
        &s,
        "
o, low = udp('outside', FAR, 7000), udp('outside', FAR, 53)
udp('a', A, 43001).sendto(b'x', low.getsockname())
udp('a', A, 43002).sendto(b'x', o.getsockname()); assert got(o)
i = udp('a', A, 43003); e = through(i, o); o.sendto(b'in', e); assert got(i)
i = udp('a', A, 43004); e = through(i, o)
for _ in range(5): o.sendto(b'in', e); assert got(i); time.sleep(1)
",
    );
    let shown = s.d.ctl_json(&["conntrack", "show", "--protocol", "udp"]);
    let all = shown.as_array().unwrap();
    for n in 1..=4 {
        let port = 43_000 + n;
        let c = all.iter().find(|c| c["original"]["src_port"] == port);
        let c = c.unwrap_or_else(|| panic!("{port}: {shown}"));
        let whole = c["expires"].as_u64().unwrap() + c["idle"].as_u64().unwrap();
        assert!((1000 * n - 5..=1000 * n + 1).contains(&whole), "{n}: {c}");
    }
    s.d.assert_ledger();
}

#[test]
fn udp_inbound_refresh_is_as_configured() {
    let lab = tap_lab!("rfc-udp-inbound");
    let timers = "timeouts = { udp-unreplied = \"4s\", udp-replied = \"4s\", udp-stream = \"4s\" }";
    for (setting, lives) in [("true", "True"), ("false", "False")] {
        let settings = format!("inbound_refresh = {setting}\n{timers}");
        let s = tracked_site(&lab, &settings, &[]);
        let script = "
o = udp('outside', FAR); i = udp('a', A, 43000); e = through(i, o)
end = time.time() + 10; last = None
while time.time() < end:
    o.sendto(b'in', e); last = got(i, 0.5); time.sleep(0.3)
print(last is not None)
";
        assert_eq!(program(&s, script).trim(), lives, "{setting}");
        s.d.assert_ledger();
    }
}
