"""A bad wire between two interfaces: what is TCP is lost, doubled and overtaken at a rate, by a seeded generator; the rest passes."""
import heapq, random, select, signal, socket, struct, sys, time

SOL_PACKET, VNET_HDR, IGNORE_OUTGOING, ALL = 263, 15, 23, 3
one, other, percent, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
draw, rate = random.Random(seed).random, percent / 100
counts = dict(passed=0, lost=0, doubled=0, late=0)


def open_on(interface):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
    s.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
    s.setsockopt(SOL_PACKET, VNET_HDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    s.bind((interface, 0))
    s.setblocking(False)
    return s


def is_tcp(b):
    return b[22:24] == b"\x08\x00" and b[33] == 6 or b[22:24] == b"\x86\xdd" and b[30] == 6


def fold(b):
    n = sum(struct.unpack(f">{len(b) // 2}H", b))
    while n >> 16:
        n = (n & 0xFFFF) + (n >> 16)
    return n


def cut(b):
    """The segments of a frame that was left to be cut, their checksums left to be summed."""
    _, kind, _, size, start, offset = struct.unpack("=BBHHHH", b[:10])
    if kind & 0x7F not in (1, 4):
        return [b]
    b, v6, all = b[10:], kind & 0x7F == 4, []
    head = start + (b[start + 12] >> 4) * 4
    seq, flags = struct.unpack(">I", b[start + 4 : start + 8])[0], b[start + 13]
    for at in range(head, len(b), size):
        piece, h = b[at : at + size], bytearray(b[:head])
        long = start - 14, head - start + len(piece)
        if v6:
            h[18:20] = struct.pack(">H", long[1])
            pseudo = bytes(h[22:54])
        else:
            h[16:18] = struct.pack(">H", sum(long))
            h[24:26] = b"\0\0"
            h[24:26] = struct.pack(">H", 0xFFFF ^ fold(bytes(h[14:start])))
            pseudo = bytes(h[26:34])
        h[start + 4 : start + 8] = struct.pack(">I", (seq + at - head) & 0xFFFFFFFF)
        h[start + 13] = flags if at + size >= len(b) else flags & ~9
        h[start + 16 : start + 18] = struct.pack(">H", fold(pseudo + struct.pack(">HH", 6, long[1])))
        all.append(struct.pack("=BBHHHH", 1, 0, 0, 0, start, offset) + bytes(h) + piece)
    return all


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
            for piece in cut(frame):
                chance = draw()
                if chance < rate:
                    counts["lost"] += 1
                    continue
                if chance < 1.5 * rate:
                    counts["doubled"] += 1
                    send(out, piece)
                elif chance < 2.5 * rate:
                    # Overtaken by what comes in the next milliseconds.
                    counts["late"] += 1
                    n += 1
                    heapq.heappush(held, (now + 0.002 + 0.003 * draw(), n, out, piece))
                    continue
                send(out, piece)
