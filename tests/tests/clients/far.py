"""The machine outside: HTTP that gives N bytes (GET /bytes/N), the digest of what it is sent (POST), and who asks (GET /peer).
`digest N` prints the digest of those bytes, `make N FILE` writes them."""
import hashlib, random, socket, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Without a zero: BusyBox's wget posts a file up to the first one.
BLOCK = random.Random(7).randbytes(1 << 20).replace(b"\0", b"\1")


def blocks(n):
    """n bytes in which every block is another."""
    i = 0
    while n > 0:
        block = b"%08d" % i + BLOCK[8:]
        yield block[:n]
        n -= len(block)
        i += 1


def digest(n):
    h = hashlib.sha256()
    for b in blocks(int(n)):
        h.update(b)
    print(h.hexdigest())


def make(n, path):
    with open(path, "wb") as f:
        for b in blocks(int(n)):
            f.write(b)


class Handler(BaseHTTPRequestHandler):
    def head(self, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def do_GET(self):
        what = self.path.split("/")
        if what[1] == "bytes":
            n = int(what[2])
            self.head(n)
            for b in blocks(n):
                self.wfile.write(b)
        else:
            text = (self.client_address[0].removeprefix("::ffff:") + "\n").encode()
            self.head(len(text))
            self.wfile.write(text)

    def do_POST(self):
        h, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left > 0:
            b = self.rfile.read(min(left, 1 << 18))
            if not b:
                return
            h.update(b)
            left -= len(b)
        text = (h.hexdigest() + "\n").encode()
        self.head(len(text))
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


def serve(address, port):
    server = Server((address, int(port)), Handler)
    print("serving", flush=True)
    server.serve_forever()


globals()[sys.argv[1]](*sys.argv[2:])
