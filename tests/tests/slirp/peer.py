"""Both ends of the transfers: `serve` outside, everything else inside a container. Prints one line that says what came."""
import hashlib, random, select, socket, struct, sys, threading, time

BLOCK = random.Random(7).randbytes(1 << 20)


def connect(host, port, timeout=30, rcvbuf=0):
    info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    s = socket.socket(info[0], info[1])
    if rcvbuf:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    s.settimeout(timeout)
    s.connect(info[4])
    return s


def blocks(n):
    """n bytes in which every block is another."""
    i = 0
    while n > 0:
        block = struct.pack(">Q", i) + BLOCK[8:]
        yield block[:n]
        n -= len(block)
        i += 1


def digest(n):
    h = hashlib.sha256()
    for b in blocks(n):
        h.update(b)
    return h.hexdigest()


def put(s, n):
    for b in blocks(n):
        s.sendall(b)
    s.shutdown(socket.SHUT_WR)


def get(s, pause=0):
    h, n = hashlib.sha256(), 0
    while True:
        b = s.recv(1 << 18)
        if not b:
            return h.hexdigest(), n
        h.update(b)
        n += len(b)
        if pause and n < 1 << 20:
            time.sleep(pause)


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def handle(s):
    try:
        what = b""
        while not what.endswith(b"\n"):
            b = s.recv(1)
            if not b:
                return
            what += b
        what = what.decode().split()
        if what[0] == "sink":  # takes all, answers after its end
            s.sendall(get(s)[0].encode())
        elif what[0] == "slow":  # doesn't read for a while
            time.sleep(float(what[1]))
            s.sendall(get(s)[0].encode())
        elif what[0] == "source":
            put(s, int(what[1]))
            s.recv(1)
        elif what[0] == "both":
            t = threading.Thread(target=put, args=(s, int(what[1])))
            t.start()
            got = get(s)[0]
            t.join()
            print("both", got, flush=True)
        elif what[0] == "echo":
            while True:
                b = s.recv(65536)
                if not b:
                    break
                s.sendall(b)
        elif what[0] == "reset":
            s.sendall(b"x")
            time.sleep(0.2)
            reset(s)
        elif what[0] == "await":  # tells how the other end went
            try:
                b = s.recv(1)
                print("ended", flush=True)
            except ConnectionResetError:
                print("reset", flush=True)
        elif what[0] == "urgent":  # and then no more until it has been read
            s.sendall(b"abc")
            s.send(b"!", socket.MSG_OOB)
            s.sendall(b"def")
            s.recv(1)
            s.send(b"?", socket.MSG_OOB)
            s.sendall(b"ghi")
        elif what[0] == "trickle":
            trickles(s, int(what[1]), float(what[2]) / 1e6, what[3])
        elif what[0] == "peer":
            s.sendall(s.getpeername()[0].encode())
    except OSError as e:
        print("error", e, flush=True)
    finally:
        s.close()


WRITE = 100


def trickles(s, n, pause, then):
    """Small writes at a steady pace; one that is late is made up for."""
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = b"".join(blocks(n * WRITE))
    due = time.perf_counter()
    for at in range(0, len(data), WRITE):
        while time.perf_counter() < due:
            pass
        s.sendall(data[at : at + WRITE])
        due += pause
    if then == "reset":
        reset(s)
    elif then == "answers":
        # Asked, a lone byte after a while, then one for one.
        while b := s.recv(1):
            if b == b"?":
                time.sleep(0.1)
            s.sendall(b)


def serve(port):
    s = socket.socket(socket.AF_INET6)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("::", int(port)))
    s.listen(1024)
    print("serving", flush=True)
    while True:
        c, _ = s.accept()
        threading.Thread(target=handle, args=(c,), daemon=True).start()


def upload(host, port, n, verb="sink"):
    s = connect(host, port, 60)
    s.sendall((verb + "\n").encode())
    put(s, int(n))
    answer = b""
    while True:
        b = s.recv(100)
        if not b:
            break
        answer += b
    print("same" if answer.decode() == digest(int(n)) else "other " + answer.decode())


def download(host, port, n, pause=0, rcvbuf=0):
    s = connect(host, port, 60, int(rcvbuf))
    s.sendall(f"source {n}\n".encode())
    if pause:
        time.sleep(float(pause))
    got, count = get(s, 0.01 if pause else 0)
    s.close()
    print("same" if got == digest(int(n)) else f"other {count}")


def both(host, port, n):
    s = connect(host, port, 60)
    s.sendall(f"both {n}\n".encode())
    t = threading.Thread(target=put, args=(s, int(n)))
    t.start()
    got, count = get(s)
    t.join()
    print("same" if got == digest(int(n)) else f"other {count}", digest(int(n)))


def echo(host, port, text):
    s = connect(host, port)
    s.sendall(b"echo\n")
    s.sendall(text.encode())
    s.shutdown(socket.SHUT_WR)
    print(get(s)[1])


def many(host, port, n):
    """Short connections, 32 at a time."""
    n, done, failed = int(n), [0], []

    def work(count):
        for i in range(count):
            try:
                s = connect(host, port)
                s.sendall(b"echo\n" + b"%08d" % i)
                s.shutdown(socket.SHUT_WR)
                b = b""
                while len(b) < 8:
                    more = s.recv(100)
                    if not more:
                        break
                    b += more
                if b == b"%08d" % i:
                    done[0] += 1
                else:
                    failed.append(b)
                s.close()
            except OSError as e:
                failed.append(e)

    threads = [threading.Thread(target=work, args=(n // 32,)) for _ in range(32)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    print("done", done[0], "failed", len(failed), failed[:3])


def hold(host, port, n):
    """Connections held at once."""
    all = []
    for _ in range(int(n)):
        s = connect(host, port)
        s.sendall(b"echo\n")
        all.append(s)
    good = 0
    for i, s in enumerate(all):
        s.sendall(b"%04d" % i)
    for i, s in enumerate(all):
        good += s.recv(4) == b"%04d" % i
    print("held", good)


def crowd(host, port, n, udp_port, m):
    """Connections held while many sockets send a datagram each."""
    held = []
    for _ in range(int(n)):
        s = connect(host, port)
        s.sendall(b"echo\n")
        held.append(s)
    answered = 0
    for i in range(int(m)):
        u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        u.settimeout(5)
        u.connect((host, int(udp_port)))
        u.send(b"%08d" % i)
        answered += u.recv(100) == b"%08d" % i
        u.close()
    good = 0
    for i, s in enumerate(held):
        s.sendall(b"%04d" % i)
        good += s.recv(4) == b"%04d" % i
    print("held", good, "answered", answered)


def attempt(host, port):
    """How a connection fails."""
    try:
        connect(host, port, 10)
        print("connected")
    except OSError as e:
        print(type(e).__name__, e.errno)


def was_reset(host, port):
    s = connect(host, port)
    s.sendall(b"reset\n")
    s.recv(1)
    try:
        print("ended" if s.recv(1) == b"" else "data")
    except ConnectionResetError:
        print("reset")


def resets(host, port):
    s = connect(host, port)
    s.sendall(b"await\n")
    time.sleep(0.1)
    reset(s)
    print("done")


def peer(host, port):
    s = connect(host, port)
    s.sendall(b"peer\n")
    print(s.recv(100).decode())


def rtt(host, port, n):
    s = connect(host, port)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.sendall(b"echo\n")
    times = []
    for _ in range(int(n)):
        a = time.perf_counter()
        s.sendall(b"x")
        s.recv(1)
        times.append(time.perf_counter() - a)
    times.sort()
    print("p50", int(times[len(times) // 2] * 1e6), "us")


def datagrams(port):
    """Echoes datagrams."""
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.bind(("::", int(port)))
    print("serving", flush=True)
    while True:
        b, a = s.recvfrom(65536)
        s.sendto(f"{a[0]} {a[1]}".encode() if b == b"who" else b, a)


def datagram(host, port, size, count=1, own=0):
    info = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    s = socket.socket(info[0], info[1])
    if own:
        s.bind(("", int(own)))
    s.settimeout(5)
    s.connect(info[4])
    good = 0
    try:
        for i in range(int(count)):
            b = (b"%08d" % i + BLOCK)[: int(size)]
            s.send(b)
            good += s.recv(65536) == b
        print("same", good)
    except OSError as e:
        print(type(e).__name__, e.errno)


def told(host, port, size, cut="1"):
    """What the error queue says of a datagram; `cut`: IP_MTU_DISCOVER, 0 never sets "don't fragment", 2 always, 3 against all that is known."""
    info = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    s = socket.socket(info[0], info[1])
    v6 = info[0] == socket.AF_INET6
    level, errors, discover = (41, 25, 23) if v6 else (0, 11, 10)
    s.setsockopt(level, errors, 1)
    s.setsockopt(level, discover, int(cut))
    s.connect(info[4])
    s.settimeout(5)
    b = (b"told" + BLOCK)[: int(size)]
    s.send(b)
    poll = select.poll()
    poll.register(s, select.POLLIN)
    if not poll.poll(5000):
        print("nothing")
        return
    s.setblocking(False)
    try:
        b, control, _, _ = s.recvmsg(100, 200, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        print("answered", len(s.recv(65536)))
        return
    _, _, data = control[0]
    errno, origin, kind, code, _, mtu, _ = struct.unpack("=IBBBBII", data[:16])
    sender = socket.inet_ntop(info[0], data[24:40] if v6 else data[20:24])
    print(kind, code, sender, mtu, "quoted" if b[:4] == b"told" else "not quoted")


PATIENCE = 2


def unbroken(host, port, n, way):
    """A transfer in which something moves all the time: no single call takes long."""
    s, n, done, longest = connect(host, port), int(n), 0, 0.0
    s.sendall(b"sink\n" if way == "up" else f"source {n}\n".encode())
    s.settimeout(PATIENCE)
    h = hashlib.sha256()
    if way == "up":
        for b in blocks(n):
            at = 0
            while at < len(b):
                since = time.monotonic()
                at += s.send(b[at : at + 65536])
                longest = max(longest, time.monotonic() - since)
        s.shutdown(socket.SHUT_WR)
        s.settimeout(60)
        said = b""
        while len(said) < 64:
            said += s.recv(100)
        got = said.decode()
    else:
        while True:
            since = time.monotonic()
            b = s.recv(1 << 18)
            longest = max(longest, time.monotonic() - since)
            if not b:
                break
            h.update(b)
        got = h.hexdigest()
    print("same" if got == digest(n) else "other", "longest wait", int(longest * 1000), "ms")


def typed(host, port, n):
    """Keys and their echo, one by one, as of a remote shell."""
    s = connect(host, port)
    s.settimeout(PATIENCE)
    s.sendall(b"echo\n")
    good = 0
    for i in range(int(n)):
        key = b"%c" % (97 + i % 26)
        s.sendall(key)
        good += s.recv(10) == key
    # An answer that is long all at once.
    s.sendall(BLOCK[:5000])
    back = b""
    while len(back) < 5000:
        back += s.recv(65536)
    print("echoed", good, back == BLOCK[:5000])


def trickle(host, port, n, pause, then):
    """What a peer writes in small pieces, `pause` microseconds apart, and what comes of the connection."""
    s = connect(host, port)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.settimeout(PATIENCE)
    s.sendall(f"trickle {n} {pause} {then}\n".encode())
    h, left = hashlib.sha256(), int(n) * WRITE
    try:
        while left > 0:
            b = s.recv(1 << 16)
            if not b:
                break
            h.update(b)
            left -= len(b)
        good = 0
        if then == "answers":
            for i in range(200):
                b = b"!" if i % 50 else b"?"
                s.sendall(b)
                good += s.recv(10) == b
        s.shutdown(socket.SHUT_WR)
        ended = s.recv(1) == b""
        print("same" if h.hexdigest() == digest(int(n) * WRITE) else f"other {left}", "ended" if ended else "more", good)
    except ConnectionResetError:
        print("reset")


def urgent(host, port):
    """Urgent data both ways, in its place."""
    s = connect(host, port, 5)
    s.sendall(b"urgent\n")
    b = b""
    while len(b) < 7:
        b += s.recv(100)
    s.send(b"!", socket.MSG_OOB)
    while len(b) < 11:
        b += s.recv(100)
    print(b.decode())
    s = connect(host, port, 5)
    s.sendall(b"echo\n")
    s.sendall(b"xy")
    s.send(b"!", socket.MSG_OOB)
    s.sendall(b"z")
    b = b""
    while len(b) < 4:
        b += s.recv(100)
    print(b.decode())


def shout(group, port):
    """A datagram to many."""
    info = socket.getaddrinfo(group, port, type=socket.SOCK_DGRAM)[0]
    s = socket.socket(info[0], info[1])
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if info[0] == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
    s.sendto(b"shout", info[4])
    print("sent")


def who(host, port, own=0):
    """As whom a datagram arrives."""
    info = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    s = socket.socket(info[0], info[1])
    if own:
        s.bind(("", int(own)))
    s.settimeout(5)
    s.connect(info[4])
    try:
        s.send(b"who")
        addr, at = s.recv(100).decode().split()
        print(addr, "same port" if int(at) == s.getsockname()[1] else "other port")
    except OSError as e:
        print(type(e).__name__, e.errno)


def greeted(host, port):
    """How a connection goes on once it is made."""
    try:
        s = connect(host, port, 40)
        s.sendall(b"echo\nx")
        print("data" if s.recv(1) else "ended")
    except OSError as e:
        print(type(e).__name__, e.errno)


def steady(host, port, n):
    """A connection that is in use for a while: 50 lines a second."""
    s = connect(host, port)
    s.sendall(b"echo\n")
    good = 0
    for i in range(int(n)):
        s.sendall(b"%06d" % i)
        b = b""
        while len(b) < 6:
            more = s.recv(6 - len(b))
            if not more:
                break
            b += more
        good += b == b"%06d" % i
        if i == 0:
            print("began", flush=True)
        time.sleep(0.02)
    print("same", good)


globals()[sys.argv[1]](*sys.argv[2:])
