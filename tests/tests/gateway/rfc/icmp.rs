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
