# Frames into both paths, and what comes out compared. Follows sockets.py; see against_nftables.rs.
from scapy.all import *
A6, B6, EXT6, FAR6 = '2001:db8:1::10', '2001:db8:1::11', '2001:db8:2::1', '2001:db8:2::254'
ROUTER = '203.0.113.9'  # somewhere behind FAR
ROUTER6 = '2001:db8:3::9'

class path:
    def __init__(self, insides, outside, lan, wan):
        sockets = {n: wire(n) for n in {*insides, outside}}
        self.insides, self.outside = [sockets[n] for n in insides], sockets[outside]
        self.lan, self.wan = lan, wan
    def send(self, packet, host, out):
        s, to = (self.insides[host], self.lan) if out else (self.outside, self.wan)
        s.send(bytes(Ether(dst=to, type=0x86dd if packet[0] >> 4 == 6 else 0x800)) + packet)
    def take(self, host, out, wait=5):
        s, end = (self.outside if out else self.insides[host]), time.time() + wait
        while (left := end - time.time()) > 0:
            if not select.select([s], [], [], left)[0]: break
            data, where = s.recvfrom(65535)
            if where[2] != 4 and is_ours(data): return data[14:]
        return None

def is_ours(frame):
    'IPv4, or IPv6 without what hosts and routers say by themselves.'
    if frame[12:14] == b'\x08\x00': return True
    if frame[12:14] != b'\x86\xdd': return False
    hop_by_hop, icmp6 = frame[20] == 0, frame[20] == 58
    return not hop_by_hop and not (icmp6 and 130 <= frame[54] <= 151)

ours = path(['a', 'b'], 'outside', LAN, WAN)
kernel = path(['kernel-inside', 'kernel-inside'], 'kernel-outside', KERNEL_LAN, KERNEL_WAN)

def parse(packet): return (IPv6 if packet[0] >> 4 == 6 else IP)(packet)

def fields(packet):
    'All fields of all headers.'
    p, all, n = parse(packet), {}, 0
    while p and not isinstance(p, NoPayload):
        for f in p.fields_desc: all[f'{n} {p.name} {f.name}'] = p.getfieldval(f.name)
        p, n = p.payload, n + 1
    return all

def sound(packet):
    'Whether the checksums are right: IP header, and TCP, UDP, ICMP of whole packets.'
    p = parse(packet)
    if IP in p and checksum(packet[:p.ihl * 4]) != 0: return False
    if IP in p and (p.frag or p.flags.MF) or IPv6ExtHdrFragment in p: return True
    at, proto = (p.ihl * 4, p.proto) if p.version == 4 else (40, p.nh)
    l4 = packet[at:]
    if proto == 1: return checksum(l4) == 0
    if proto == 17 and l4[6:8] == b'\0\0': return p.version == 4
    if proto not in (6, 17, 58): return True
    ends = packet[12:20] if p.version == 4 else packet[8:40]
    return checksum(ends + struct.pack('!II', len(l4), proto) + l4) == 0

def cross(name, *packets, host=0, out=True, may=()):
    'Sends packets into both paths; returns what came out of ours and of the kernel.'
    packets = [bytes(p) for p in packets]
    for p in packets:
        ours.send(p, host, out); kernel.send(p, host, out)
    got = [sorted(p.take(host, out) or b'' for _ in packets) for p in (ours, kernel)]
    for side, all in zip(('gateway', 'nftables'), got):
        for p in all:
            assert p, f'{name}: lost by the {side}'
            assert sound(p), f'{name}: bad checksum from the {side}: {parse(p)!r}'
            q = parse(p)
            end = q.src if out else q.dst
            want = {4: (EXT, (A, B)[host]), 6: (EXT6, (A6, B6)[host])}[q.version][0 if out else 1]
            assert end == want, f'{name}: {end} from the {side}, not {want}'
    for a, b in zip(*got):
        fa, fb = fields(a), fields(b)
        differ = {k: (fa.get(k), fb.get(k)) for k in fa.keys() | fb.keys() if fa.get(k) != fb.get(k)}
        left = {k: v for k, v in differ.items() if not k.endswith(may or '-')}
        assert not left, f'{name}: gateway and nftables differ: {left}'
        assert may or a == b, f'{name}: {a.hex()} {b.hex()}'
        assert len(a) == len(b)
    print('same:', name, '(but for' + ','.join(may) + ')' if may else '')
    return got

def there(name, *packets, **more):
    'As cross, outwards; the packet, which has to be the same on both paths.'
    return cross(name, *packets, **more)[0][0]

def back(name, *packets, **more): return cross(name, *packets, out=False, **more)[0][0]

# Each of IPv4 and IPv6; traffic class, flow label, DF, identification and IP options have to stay.
for v, src, dst, ext, far_router in ((4, A, FAR, EXT, ROUTER), (6, A6, FAR6, EXT6, ROUTER6)):
    def ip(s, d, **more):
        if v == 4: return IP(src=s, dst=d, id=0x1234, tos=0x2b, ttl=61, flags='DF', **more)
        return IPv6(src=s, dst=d, tc=0x2b, fl=0x54321, hlim=61)
    def unreachable(s, d, quoted, kind='port'):
        if v == 4:
            head = {'port': ICMP(type=3, code=3), 'big': ICMP(type=3, code=4, nexthopmtu=1300), 'time': ICMP(type=11, code=0),
                    'problem': ICMP(type=12, code=0, ptr=8)}[kind]
        else:
            head = {'port': ICMPv6DestUnreach(code=4), 'big': ICMPv6PacketTooBig(mtu=1300), 'time': ICMPv6TimeExceeded(),
                    'problem': ICMPv6ParamProblem(code=1, ptr=6)}[kind]
        return ip(s, d) / head / Raw(quoted)
    n = f'IPv{v} '
    def kinds(what, quoted, host=0):
        'Errors about a packet that went out, with all of it quoted and with as little as there may be.'
        for kind in ('port', 'big', 'time', 'problem'):
            for cut in (28 if v == 4 else 48, len(quoted)):
                back(n + f'error {kind} about {what}, {cut} bytes quoted', unreachable(far_router, ext, quoted[:cut], kind), host=host)

    # TCP from the first segment to the last.
    o, i = (lambda **k: TCP(sport=40001, dport=443, **k)), (lambda **k: TCP(sport=443, dport=40001, **k))
    def ts(a, b): return [('NOP', None), ('NOP', None), ('Timestamp', (a, b))]
    there(n + 'SYN', ip(src, dst) / o(flags='SEC', seq=1000, window=64240,
        options=[('MSS', 1400), ('SAckOK', b''), ('Timestamp', (7, 0)), ('NOP', None), ('WScale', 7)]))
    back(n + 'SYN+ACK', ip(dst, ext) / i(flags='SAE', seq=9000, ack=1001, window=65160,
        options=[('MSS', 1380), ('SAckOK', b''), ('Timestamp', (8, 7)), ('NOP', None), ('WScale', 9)]))
    there(n + 'ACK', ip(src, dst) / o(flags='A', seq=1001, ack=9001, window=502, options=ts(9, 8)))
    back(n + 'data back', ip(dst, ext) / i(flags='PA', seq=9001, ack=1001, window=501, options=ts(10, 9)) / Raw(b'answer'))
    sent = there(n + 'data, odd length, urgent', ip(src, dst) / o(flags='PAU', seq=1001, ack=9007, window=502, urgptr=3,
        options=ts(11, 10)) / Raw(b'request'))
    kinds('TCP', sent)
    back(n + 'data out of order', ip(dst, ext) / i(flags='A', seq=9107, ack=1008, window=501, options=ts(13, 11)) / Raw(b'o' * 100))
    there(n + 'SACK', ip(src, dst) / o(flags='A', seq=1008, ack=9007, window=502, options=[('NOP', None), ('NOP', None), ('SAck', (9107, 9207))]))
    there(n + 'full segment', ip(src, dst) / o(flags='A', seq=1008, ack=9007, window=502, options=ts(12, 10)) / Raw(bytes(range(250)) * 5))
    there(n + 'FIN', ip(src, dst) / o(flags='FA', seq=2258, ack=9207, window=502))
    back(n + 'FIN back', ip(dst, ext) / i(flags='FA', seq=9207, ack=2259, window=501))
    there(n + 'last ACK', ip(src, dst) / o(flags='A', seq=2259, ack=9208, window=502))
    there(n + 'SYN of another', ip(src, dst) / TCP(sport=40002, dport=443, flags='S', seq=5))
    back(n + 'RST', ip(dst, ext) / TCP(sport=443, dport=40002, flags='RA', seq=0, ack=6))

    # UDP: lengths around the checksum's words; none at all; one that comes out as zero is sent as ones.
    for size in (0, 1, 2, 3, 64, 1472 if v == 4 else 1452):
        sent = there(n + f'UDP of {size} bytes', ip(src, dst) / UDP(sport=41000, dport=53) / Raw(bytes([size & 255]) * size))
        back(n + f'UDP of {size} bytes back', ip(dst, ext) / UDP(sport=53, dport=41000) / Raw(b'z' * size))
    kinds('UDP', there(n + 'UDP', ip(src, dst) / UDP(sport=41000, dport=53) / Raw(b'question')))
    if v == 4:
        there(n + 'UDP without checksum', ip(src, dst) / UDP(sport=41000, dport=53, chksum=0) / Raw(b'x'))
        back(n + 'UDP without checksum back', ip(dst, ext) / UDP(sport=53, dport=41000, chksum=0) / Raw(b'x'))
        there(n + 'UDP behind IP options', ip(src, dst, options=[IPOption_NOP()] * 4) / UDP(sport=41000, dport=53) / Raw(b'x'))
    probe = bytes(ip(ext, dst) / UDP(sport=41001, dport=53) / Raw(b'\0\0'))
    want = probe[-4:-2]  # as the data, this takes the translated checksum to zero
    ones = there(n + 'UDP whose checksum becomes 0xffff', ip(src, dst) / UDP(sport=41001, dport=53) / Raw(want))
    assert parse(ones)[UDP].chksum == 0xffff, parse(ones)
    # Towards who asked: an error about what came in.
    came = back(n + 'UDP in', ip(dst, ext) / UDP(sport=53, dport=41000) / Raw(b'answer'))
    for cut in (28 if v == 4 else 48, len(came)):
        there(n + f'error from inside, {cut} bytes quoted', unreachable(src, dst, came[:cut]))

    # Echo.
    ask, answer = (ICMP(type=8), ICMP(type=0)) if v == 4 else (ICMPv6EchoRequest(), ICMPv6EchoReply())
    ask.id = answer.id = 4242; ask.seq = answer.seq = 7
    sent = there(n + 'echo request', ip(src, dst) / ask / Raw(b'ping' * 9))
    back(n + 'echo reply', ip(dst, ext) / answer / Raw(b'ping' * 9))
    kinds('echo', sent)

    # SCTP has a CRC of its own, other protocols nothing that would change.
    there(n + 'SCTP INIT', ip(src, dst) / SCTP(sport=42000, dport=2905, tag=0) / SCTPChunkInit(init_tag=99, a_rwnd=65535, n_out_streams=1,
        n_in_streams=1, init_tsn=1))
    back(n + 'SCTP INIT ACK', ip(dst, ext) / SCTP(sport=2905, dport=42000, tag=99) / SCTPChunkInitAck(init_tag=88, a_rwnd=65535,
        n_out_streams=1, n_in_streams=1, init_tsn=1))
    if v == 4: there(n + 'protocol 253', ip(src, dst, proto=253) / Raw(b'whatever'))
    else: there(n + 'protocol 253', IPv6(src=src, dst=dst, tc=0x2b, fl=0x54321, hlim=61, nh=253) / Raw(b'whatever'))

    # Fragments, in either order. The kernel puts them together and cuts them again: regular ones come out as they were.
    for order in (1, -1):
        port = 43000 + order
        if v == 4:
            whole = IP(src=src, dst=dst, id=0x4321 + order, ttl=61) / UDP(sport=port, dport=53) / Raw(bytes(range(256)) * 10)
            pieces, may = fragment(whole, 1480), ()
        else:
            whole = ip(src, dst) / IPv6ExtHdrFragment(id=77 + order) / UDP(sport=port, dport=53) / Raw(bytes(range(256)) * 10)
            pieces, may = fragment6(whole, 1500), (' id',)
        assert len(pieces) == 2
        cross(n + f'fragments, order {order}', *pieces[::order], may=may)

    # A port that can't be kept: another host has it, to the same end. What comes back is as it was sent.
    segments = there(n + 'SYN from a', ip(src, dst) / TCP(sport=44000, dport=80, flags='S', seq=1))
    other = {4: B, 6: B6}[v]
    mine, theirs = cross(n + 'SYN from b with the same port', ip(other, dst) / TCP(sport=44000, dport=80, flags='S', seq=1), host=1,
        may=(' sport', ' chksum'))
    ports = [parse(p[0])[TCP].sport for p in (mine, theirs)]
    assert 44000 not in ports, ports
    for side, port in zip((ours, kernel), ports):
        side.send(bytes(ip(dst, ext) / TCP(sport=80, dport=port, flags='SA', seq=1, ack=2)), 1, False)
    answers = [side.take(1, False) for side in (ours, kernel)]
    assert answers[0] and answers[0] == answers[1] and parse(answers[0])[TCP].dport == 44000, answers
    print('same:', n + 'SYN+ACK to b')
print('all compared')
