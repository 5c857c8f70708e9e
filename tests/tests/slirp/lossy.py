"""A bad wire between two interfaces: what is TCP is lost, doubled and overtaken at a rate, by a seeded generator; the rest passes."""
import heapq, random, select, signal, socket, sys, time

SOL_PACKET, IGNORE_OUTGOING, ALL = 263, 23, 3
one, other, percent, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
draw, rate = random.Random(seed).random, percent / 100
counts = dict(passed=0, lost=0, doubled=0, late=0)


def open_on(interface):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
    s.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    s.bind((interface, 0))
    s.setblocking(False)
    return s


def is_tcp(b):
    return b[12:14] == b"\x08\x00" and b[23] == 6 or b[12:14] == b"\x86\xdd" and b[20] == 6


def send(s, b):
    try:
        s.send(b)
        counts["passed"] += 1
    except OSError as e:
        print("not sent", len(b), e, flush=True)


def end(*_):
    print(counts, flush=True)
    sys.exit()


signal.signal(signal.SIGINT, end)
a, b = open_on(one), open_on(other)
poll = select.poll()
to, held, n = {a.fileno(): (a, b), b.fileno(): (b, a)}, [], 0
for fd in to:
    poll.register(fd, select.POLLIN)
print("relaying", flush=True)
while True:
    ready = poll.poll(1 if held else None)
    now = time.monotonic()
    while held and held[0][0] <= now:
        _, _, out, late = heapq.heappop(held)
        send(out, late)
    for fd, _ in ready:
        s, out = to[fd]
        for _ in range(64):
            try:
                frame = s.recv(1 << 17)
            except BlockingIOError:
                break
            if not is_tcp(frame):
                send(out, frame)
                continue
            chance = draw()
            if chance < rate:
                counts["lost"] += 1
                continue
            if chance < 1.5 * rate:
                counts["doubled"] += 1
                send(out, frame)
            elif chance < 2.5 * rate:
                # Overtaken by what comes in the next milliseconds.
                counts["late"] += 1
                n += 1
                heapq.heappush(held, (now + 0.002 + 0.003 * draw(), n, out, frame))
                continue
            send(out, frame)
