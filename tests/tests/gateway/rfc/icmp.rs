//! RFC 5508: ICMP.

use super::{plain_site, program, tracked_site};
use vswitch_tests::tap_lab;

#[test]
fn icmp_queries_have_endpoint_independent_mappings() {
    let lab = tap_lab!("rfc-icmp-query");
    let s = tracked_site(&lab, "timeouts = { icmp-replied = \"2s\" }", &[]);
    program(
        &s,
        "
from scapy.all import *
w = wire('outside')
def ask(node, own, ident, far):
    wire(node).send(bytes(Ether(dst=LAN)/IP(src=own, dst=far)/ICMP(id=ident, seq=7)/b'ping'))
    p = sniff_for(w, lambda p: ICMP in p and p[ICMP].type == 8 and p[IP].dst == far)
    return p[IP].src, p[ICMP].id
inside = wire('a')
# REQ-1: the same identifier outside whomever it asks; another host's gets another.
assert ask('a', A, 4242, FAR) == ask('a', A, 4242, FAR2) == (EXT, 4242)
r = sniff_for(inside, lambda p: ICMP in p and p[ICMP].type == 0)
assert r and r[IP].dst == A and r[ICMP].id == 4242 and r[IP].ttl == 63
b = ask('b', B, 4242, FAR)
assert b == ask('b', B, 4242, FAR2) and b[1] != 4242
# REQ-2: the timer, as set.
time.sleep(5)
assert ask('b', B, 4242, FAR) == (EXT, 4242)
",
    );
    s.d.assert_ledger();
}

#[test]
fn icmp_errors_are_translated_both_ways() {
    let lab = tap_lab!("rfc-icmp-errors");
    let s = plain_site(&lab);
    program(
        &s,
        "
from scapy.all import *
w, inside = wire('outside'), wire('a')
o = udp('outside', FAR); i = udp('a', A, 45000)
e = through(i, o); oport = o.getsockname()[1]
quote = IP(src=EXT, dst=FAR, ttl=60)/UDP(sport=45000, dport=oport)/b'out'
for t, c in [(3, 0), (3, 3), (11, 0), (11, 1), (12, 0)]:
    # REQ-4: from outside; a router's address stays, the quote is as the host sent it.
    w.send(bytes(Ether(dst=WAN)/IP(src=FAR2, dst=EXT, ttl=9)/ICMP(type=t, code=c)/quote))
    p = sniff_for(inside, lambda p: ICMP in p and p[ICMP].type == t and p[ICMP].code == c)
    assert p and (p[IP].src, p[IP].dst, p[IP].ttl) == (FAR2, A, 8), p
    q = p[IPerror]; assert (q.src, q.dst, p[UDPerror].sport, p[UDPerror].dport) == (A, FAR, 45000, oport)
    raw_ip = bytes(q); assert checksum(raw_ip[:20]) == 0, 'quoted header'
    n = bytes(p[ICMP]); assert checksum(n) == 0
# REQ-5: from inside; the host behind is known by the external address only.
o.sendto(b'in', e); got(i)
back = IP(src=FAR, dst=A, ttl=60)/UDP(sport=oport, dport=45000)/b'in'
inside.send(bytes(Ether(dst=LAN)/IP(src=A, dst=FAR)/ICMP(type=3, code=3)/back))
p = sniff_for(w, lambda p: ICMP in p and p[ICMP].type == 3)
assert p and (p[IP].src, p[IP].dst) == (EXT, FAR), p
assert (p[IPerror].src, p[IPerror].dst, p[UDPerror].dport) == (FAR, EXT, 45000)
assert checksum(bytes(p[ICMP])) == 0 and checksum(bytes(p[IPerror])[:20]) == 0
# REQ-3: broken checksums, outer and quoted, and quotes of no connection are dropped.
while sniff_for(inside, lambda p: True, 0.1): pass
bad = [IP(src=FAR2, dst=EXT)/ICMP(type=3, code=0, chksum=1)/quote,
       IP(src=FAR2, dst=EXT)/ICMP(type=3, code=0)/IP(src=EXT, dst=FAR, chksum=1)/UDP(sport=45000, dport=oport),
       IP(src=FAR2, dst=EXT)/ICMP(type=3, code=0)/IP(src=EXT, dst=FAR)/UDP(sport=45999, dport=oport)]
for p in bad: w.send(bytes(Ether(dst=WAN)/p))
p = sniff_for(inside, lambda p: ICMP in p, 1); assert p is None, p
# REQ-9, REQ-10: what isn't a query or an error about a connection goes nowhere (source quench, redirect).
for t in (4, 5): w.send(bytes(Ether(dst=WAN)/IP(src=FAR2, dst=EXT)/ICMP(type=t)/quote))
p = sniff_for(inside, lambda p: ICMP in p, 1); assert p is None, p
",
    );
    s.d.assert_ledger();
}

#[test]
fn icmp_errors_neither_end_nor_refresh() {
    let lab = tap_lab!("rfc-icmp-refresh");
    let s = tracked_site(&lab, "timeouts = { udp-unreplied = \"3s\" }", &[]);
    program(
        &s,
        "
from scapy.all import *
w = wire('outside')
o = udp('outside', FAR); i = udp('a', A, 46000); e = through(i, o)
quote = IP(src=EXT, dst=FAR)/UDP(sport=46000, dport=o.getsockname()[1])/b'out'
for _ in range(12):
    w.send(bytes(Ether(dst=WAN)/IP(src=FAR2, dst=EXT)/ICMP(type=11)/quote)); time.sleep(0.5)
o.sendto(b'late', e)
try: r = got(i, 1)
except OSError: r = None
assert r is None, r
",
    );
    s.d.assert_ledger();
}

#[test]
fn icmp_queries_of_the_external_address_are_answered() {
    let lab = tap_lab!("rfc-icmp-hairpin");
    let s = plain_site(&lab);
    program(
        &s,
        "
from scapy.all import *
# The gateway answers for its address, whatever identifiers others have in use.
inside, other = wire('a'), wire('b')
inside.send(bytes(Ether(dst=LAN)/IP(src=A, dst=FAR)/ICMP(id=777)/b'ping'))
assert sniff_for(inside, lambda p: ICMP in p and p[ICMP].type == 0)
other.send(bytes(Ether(dst=LAN)/IP(src=B, dst=EXT)/ICMP(id=778)/b'ping'))
p = sniff_for(other, lambda p: ICMP in p and p[ICMP].type == 0)
assert p and p[IP].src == EXT and p[ICMP].id == 778, p
",
    );
    s.d.assert_ledger();
}

#[test]
fn icmp_queries_hairpin_at_addresses_of_the_pool() {
    let lab = tap_lab!("rfc-icmp-query-hairpin");
    let s = plain_site(&lab);
    let pool = ["--nat-addresses", "198.51.100.20"];
    s.d.ctl(&[&["gateway", "set", "wan"], &pool[..]].concat());
    program(
        &s,
        "
from scapy.all import *
POOL = '198.51.100.20'
inside, other, w = wire('a'), wire('b'), wire('outside')
inside.send(bytes(Ether(dst=LAN)/IP(src=A, dst=FAR)/ICMP(id=777)/b'ping'))
p = sniff_for(w, lambda p: ICMP in p and p[ICMP].type == 8); assert (p[IP].src, p[ICMP].id) == (POOL, 777), p
assert sniff_for(inside, lambda p: ICMP in p and p[ICMP].type == 0)
# REQ-7: by its external identifier the host is found, and knows who asks by that one's.
other.send(bytes(Ether(dst=LAN)/IP(src=B, dst=POOL)/ICMP(id=777)/b'hairpin'))
p = sniff_for(inside, lambda p: ICMP in p and p[ICMP].type == 8); assert p and p[IP].src == POOL and p[ICMP].id != 777, p
assert bytes(p[ICMP].payload)[:7] == b'hairpin' and checksum(bytes(p[ICMP])) == 0
p = sniff_for(other, lambda p: ICMP in p and p[ICMP].type == 0)
assert p and (p[IP].src, p[IP].dst, p[ICMP].id) == (POOL, B, 777) and p[IP].ttl == 63, p
# An identifier that nobody has is answered by the gateway.
other.send(bytes(Ether(dst=LAN)/IP(src=B, dst=POOL)/ICMP(id=999)/b'ping'))
p = sniff_for(other, lambda p: ICMP in p and p[ICMP].id == 999); assert p and p[ICMP].type == 0 and p[IP].ttl == 64, p
",
    );
    s.d.assert_ledger();
}

#[test]
fn icmp_tells_who_finds_no_room_or_may_not() {
    let lab = tap_lab!("rfc-icmp-prohibited");
    let s = tracked_site(&lab, "per_source = 40", &[]);
    let ports = ["--nat-ports", "40000-40003"];
    s.d.ctl(&[&["gateway", "set", "wan"], &ports[..]].concat());
    s.d.ctl(&[
        "policy",
        "add",
        "p",
        "--from",
        "port:b",
        "--default",
        "reject",
    ]);
    program(
        &s,
        "
from scapy.all import *
import errno
w = wire('a')
def told(node, own, far):
    s = udp(node, own); s.connect((far, 9)); s.send(b'x')
    try: s.recv(9)
    except OSError as e: return e.errno
o = udp('outside', FAR); keep = [udp('a', A) for _ in range(4)]
for i in keep: i.sendto(b'out', o.getsockname())
# REQ-8: no port is free.
assert told('a', A, FAR) == errno.EHOSTUNREACH
p = sniff_for(w, lambda p: ICMP in p and p[ICMP].type == 3); assert p and p[ICMP].code == 13 and p[IP].src == '192.0.2.1', p
c = tcp('a', A)
for port in range(50000, 50005):
    c = tcp('a', A, port)
    try: c.connect((FAR2, 1)); raise SystemExit('connected')
    except ConnectionRefusedError: pass  # There was room.
    except OSError as e: assert e.errno == errno.EHOSTUNREACH, e; break
else: raise SystemExit('never told')
# No place in the table for more of this host's connections.
def full(p): return ICMP in p and (p[ICMP].type, p[ICMP].code) == (3, 13) and UDPerror in p and p[UDPerror].dport >= 20000
for n in range(80):
    try: keep[0].sendto(b'x', (FAR, 20000 + n))
    except OSError: pass  # An earlier one's error.
    time.sleep(0.01)
p = sniff_for(w, full); assert p and p[IP].src == '192.0.2.1' and p[UDPerror].sport == keep[0].getsockname()[1], p
# Policy that says so.
assert told('b', B, FAR) == errno.EHOSTUNREACH
assert told('b', '2001:db8:1::11', '2001:db8:2::254') == errno.EACCES
",
    );
    s.d.assert_ledger();
}

#[test]
fn icmp6_errors_are_translated_between_kernels() {
    let lab = tap_lab!("rfc-icmp6-errors");
    let s = plain_site(&lab);
    program(
        &s,
        "
A6, FAR6, EXT6 = '2001:db8:1::10', '2001:db8:2::254', '2001:db8:2::1'
# From outside: nobody listens there, and the kernel inside takes the error for its own datagram's.
i = udp('a', A6, 47000); i.connect((FAR6, 9)); i.send(b'x')
try: i.recv(9); raise SystemExit('no error')
except ConnectionRefusedError: pass
# From inside: the socket is gone, and the kernel outside takes the error for its own.
o = udp('outside', FAR6); i = udp('a', A6, 47001); e = through(i, o); assert e == (EXT6, 47001), e
o.connect(e); i.close(); o.send(b'x')
try: o.recv(9); raise SystemExit('no error')
except ConnectionRefusedError: pass
",
    );
    // A link of 1400 bytes beyond the outer host: its kernel tells, the gateway translates, the inner kernel learns.
    s.outside.ok(&[
        "ip", "link", "add", "far0", "mtu", "1400", "type", "veth", "peer", "far1",
    ]);
    for args in [
        &[
            "ip",
            "addr",
            "add",
            "2001:db8:9::1/64",
            "dev",
            "far0",
            "nodad",
        ][..],
        &["ip", "link", "set", "far0", "up"],
        &["ip", "link", "set", "far1", "up"],
        &["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"],
    ] {
        s.outside.ok(args);
    }
    let neighbour = ["lladdr", "02:00:00:00:09:02", "dev", "far0"];
    s.outside
        .ok(&[&["ip", "neigh", "add", "2001:db8:9::2"], &neighbour[..]].concat());
    program(
        &s,
        "
i = udp('a', '2001:db8:1::10', 47002); i.connect(('2001:db8:9::2', 9))
i.setsockopt(41, 23, 2)  # IPV6_MTU_DISCOVER = IPV6_PMTUDISC_DO
end = time.time() + 10
while i.getsockopt(41, 24) != 1400 and time.time() < end:  # IPV6_MTU
    try: i.send(b'x' * 1440)
    except OSError: pass
    time.sleep(0.05)
assert i.getsockopt(41, 24) == 1400
",
    );
    for node in [&s.a, &s.outside] {
        node.assert_no_checksum_errors();
    }
    s.d.assert_ledger();
}
