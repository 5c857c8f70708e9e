# Sockets of several namespaces in one program: argv is MAC of the gateway outside and inside, then NAME=PID...
import ctypes, hashlib, os, select, socket, struct, sys, threading, time
LIBC = ctypes.CDLL(None, use_errno=True)
WAN, LAN = sys.argv[1:3]
NS = {n: os.open(f'/proc/{p}/ns/net', os.O_RDONLY) for n, p in (x.split('=') for x in sys.argv[3:])}
EXT, FAR, FAR2 = '198.51.100.1', '198.51.100.254', '203.0.113.7'
A, B = '192.0.2.10', '192.0.2.11'

class at:
    def __init__(self, node): self.node = node
    def __enter__(self):
        if LIBC.setns(NS[self.node], 0): raise OSError(ctypes.get_errno(), 'setns')
    def __exit__(self, *_): LIBC.setns(NS['outside'], 0)

def udp(node, address, port=0):
    with at(node): s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, port)); s.settimeout(3)
    return s

def tcp(node, address, port=0, listen=False):
    with at(node): s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind((address, port)); s.settimeout(5)
    if listen: s.listen(64)
    return s

class wire(socket.socket):
    'Frames of an interface; what is sent has its MAC as source.'
    def __init__(self, node, device='eth0'):
        with at(node): super().__init__(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.bind((device, 3))
        self.settimeout(3)
    def send(self, frame): super().send(frame[:6] + self.getsockname()[4] + frame[12:])

def got(s, wait=3):
    'What a datagram socket gets: (bytes, from), or None.'
    s.settimeout(wait)
    try: return s.recvfrom(65535)
    except (TimeoutError, socket.timeout): return None

def through(inner, outer, to=None):
    'Sends a datagram out; returns the external endpoint it came from.'
    inner.sendto(b'out', to or outer.getsockname()[:2])
    data, peer = outer.recvfrom(100); assert data == b'out', data
    return peer[:2]

def sniff_for(s, test, wait=3):
    'First frame of a raw socket, parsed by scapy, that passes the test; or None.'
    from scapy.all import Ether
    end = time.time() + wait
    while (left := end - time.time()) > 0:
        if select.select([s], [], [], left)[0]:
            data, where = s.recvfrom(65535)
            if where[2] == 4: continue
            p = Ether(data)
            if test(p): return p
    return None
