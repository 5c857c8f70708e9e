"""Servers outside that tell who asks, and their clients. Prints a line that says what came."""
import socket, sys, time


def whence(port):
    """Answers each datagram with its sender's address."""
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.bind(("::", int(port)))
    print("serving", flush=True)
    while True:
        _, a = s.recvfrom(65536)
        s.sendto(f"{a[0]} {a[1]}".encode(), a)


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


globals()[sys.argv[1]](*sys.argv[2:])
