"""Many flows at once: `serve` outside, `tcp` and `udp` inside. A client holds them until it is killed, and uses all once more at SIGUSR1."""
import resource, select, signal, socket, sys

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", int(port)))
    listener.listen(4096)
    listener.setblocking(False)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("0.0.0.0", int(port)))
    datagrams.setblocking(False)
    poll, all = select.epoll(), {}
    poll.register(listener, select.EPOLLIN)
    poll.register(datagrams, select.EPOLLIN)
    print("serving", flush=True)
    while True:
        for fd, _ in poll.poll():
            try:
                if fd == listener.fileno():
                    s, _ = listener.accept()
                    all[s.fileno()] = s
                    poll.register(s, select.EPOLLIN)
                elif fd == datagrams.fileno():
                    b, a = datagrams.recvfrom(100)
                    datagrams.sendto(b, a)
                else:
                    b = all[fd].recv(100)
                    if b:
                        all[fd].sendall(b)
                    else:
                        all.pop(fd).close()
            except BlockingIOError:
                pass
            except ConnectionError:
                all.pop(fd).close()


def use(all, word):
    """In their order, few at once: what is measured is flows, not frames on their way."""
    good = 0
    for at in range(0, len(all), 8):
        some = all[at : at + 8]
        for i, s in enumerate(some):
            s.send(b"%08d" % (at + i))
        for i, s in enumerate(some):
            try:
                good += s.recv(100) == b"%08d" % (at + i)
            except OSError as e:
                print(e, flush=True)
    print(word, good, flush=True)


def hold(kind, host, port, n):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    all = []
    for _ in range(int(n)):
        s = socket.socket(socket.AF_INET, kind)
        s.settimeout(10)
        s.connect((host, int(port)))
        all.append(s)
    use(all, "held")
    while True:
        signal.sigwait([signal.SIGUSR1])
        use(all, "again")


def tcp(*args):
    hold(socket.SOCK_STREAM, *args)


def udp(*args):
    hold(socket.SOCK_DGRAM, *args)


globals()[sys.argv[1]](*sys.argv[2:])
