"""Servers outside that tell who asks, and their clients. Prints a line that says what came."""
import socket, sys, time


def whence(port):
    """Answers each datagram with its sender's address, from the address that was asked."""
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    s.bind(("::", int(port)))
    print("serving", flush=True)
    while True:
        _, control, _, a = s.recvmsg(65536, 100)
        asked = control[0][2][:16] + bytes(4)
        own = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, asked)]
        try:
            s.sendmsg([f"{a[0]} {a[1]}".encode()], own, 0, a)
        except OSError:
            pass  # From where no route leads back.


def ask(host, port, timeout=5):
    """A datagram to `whence`."""
    info = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    s = socket.socket(info[0], info[1])
    s.settimeout(float(timeout))
    try:
        s.connect(info[4])
        s.send(b"?")
        print(s.recv(100).decode().split()[0])
    except OSError as e:
        print(type(e).__name__, e.errno)


def until(host, port, timeout="20"):
    """Tries to connect to the server of peer.py until that works; who it says that we are."""
    info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    end, why = time.monotonic() + float(timeout), None
    while time.monotonic() < end:
        s = socket.socket(info[0], info[1])
        s.settimeout(0.5)
        try:
            s.connect(info[4])
            s.sendall(b"peer\n")
            print(s.recv(100).decode())
            return
        except OSError as e:
            why = e
            time.sleep(0.02)
    print("never:", type(why).__name__, why)


def stream(host, port):
    """One connection to the server of peer.py, used every 50 ms."""
    info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    s = socket.socket(info[0], info[1])
    print("connecting", flush=True)
    s.connect(info[4])
    s.sendall(b"echo\n")
    n = 0
    while True:
        s.sendall(b"x")
        if not s.recv(1):
            print("ended", flush=True)
            return
        n += 1
        print("beat", n, flush=True)
        time.sleep(0.05)


def sender(host, port):
    """One socket that asks `whence` every 50 ms, and tells when the answer is another."""
    info = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    s = socket.socket(info[0], info[1])
    s.settimeout(0.2)
    last = None
    while True:
        try:
            s.sendto(b"?", info[4])
            b = s.recv(100).decode()
        except OSError:
            continue
        if b != last:
            print("from", b, flush=True)
            last = b
        time.sleep(0.05)


def only(address, port):
    """A server of an address alone that tells who connects."""
    info = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    s = socket.socket(info[0], info[1])
    if info[0] == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(info[4])
    s.listen(100)
    print("serving", flush=True)
    while True:
        c, a = s.accept()
        c.sendall(a[0].encode())
        c.close()


def met(host, port):
    """Who a server of `only` says that we are, or how that failed."""
    info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    s = socket.socket(info[0], info[1])
    s.settimeout(3)
    try:
        s.connect(info[4])
        print(s.recv(100).decode())
    except OSError as e:
        print(type(e).__name__, e.errno)


def raw(interface, gateway, port, *addresses):
    """Frames to addresses that no kernel would send them to: a SYN and a datagram each."""
    from scapy.all import Ether, IP, IPv6, TCP, UDP, get_if_addr, get_if_addr6, get_if_hwaddr, sendp

    frames = []
    for n, to in enumerate(addresses):
        head = IPv6(src=get_if_addr6(interface), dst=to) if ":" in to else IP(src=get_if_addr(interface), dst=to)
        for part in (TCP(sport=20000 + n, dport=int(port), flags="S"), UDP(sport=20000 + n, dport=int(port)) / b"x"):
            frames.append(Ether(src=get_if_hwaddr(interface), dst=gateway) / head / part)
    sendp(frames, iface=interface, verbose=False)
    print("sent", len(frames))


globals()[sys.argv[1]](*sys.argv[2:])
