//! A host that isn't Linux: smoltcp's stack, in this process, behind a stream port.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant as Clock};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{icmp, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr};
use vswitch_tests::tap_lab;

use crate::rig::{PYTHON, at, container, switch, wait_state};

const MAC: &str = "02:00:00:00:00:99";

/// QEMU's framing: each frame after its length, big-endian, in four bytes.
struct Wire {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Wire {
    fn take(&mut self) -> Option<Vec<u8>> {
        let mut part = [0; 65536];
        match self.stream.read(&mut part) {
            Ok(n) => self.received.extend(&part[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => panic!("read from the stream port: {e}"),
        }
        let length = u32::from_be_bytes(*self.received.first_chunk()?) as usize;
        if self.received.len() < 4 + length {
            return None;
        }
        let rest = self.received.split_off(4 + length);
        let frame = std::mem::replace(&mut self.received, rest);
        Some(frame[4..].to_vec())
    }
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut UnixStream);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut message = u32::try_from(length)
            .expect("a frame")
            .to_be_bytes()
            .to_vec();
        message.resize(4 + length, 0);
        let result = f(&mut message[4..]);
        self.0
            .write_all(&message)
            .expect("write to the stream port");
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.take()?;
        Some((Received(frame), Sending(&mut self.stream)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.stream))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut it = DeviceCapabilities::default();
        it.medium = Medium::Ethernet;
        it.max_transmission_unit = 1514;
        // It verifies every checksum, so the switch has to complete those the kernel left to it.
        it.checksum.tcp = Checksum::Both;
        it
    }
}

/// The stack with its sockets.
struct Host {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    started: Clock,
}

impl Host {
    fn new(stream: UnixStream) -> Host {
        // A read that waits a little is the pause between two polls.
        let pause = Some(Duration::from_millis(1));
        stream.set_read_timeout(pause).expect("limit the wait");
        let limit = Some(Duration::from_secs(20));
        stream.set_write_timeout(limit).expect("limit the wait");
        let mut wire = Wire {
            stream,
            received: vec![],
        };
        let mac: Vec<u8> = crate::rig::octets(MAC).to_vec();
        let config = Config::new(EthernetAddress::from_bytes(&mac).into());
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|a| {
            a.push(IpCidr::new(IpAddress::v4(192, 0, 2, 9), 24))
                .expect("room for an address");
        });
        Host {
            wire,
            interface,
            sockets: SocketSet::new(vec![]),
            started: Clock::now(),
        }
    }

    /// Polls until `done` gives something.
    #[track_caller]
    fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut SocketSet<'static>) -> Option<T>,
    ) -> T {
        let end = Clock::now() + Duration::from_secs(20);
        loop {
            let now = Instant::from_millis(self.started.elapsed().as_millis() as i64);
            self.interface.poll(now, &mut self.wire, &mut self.sockets);
            if let Some(it) = done(&mut self.sockets) {
                return it;
            }
            assert!(Clock::now() < end, "waited 20 s for: {what}");
        }
    }

    fn tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65536]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    /// Three echo requests to 192.0.2.1, each answered.
    #[track_caller]
    fn ping(&mut self) {
        let buffer =
            || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 1024]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(7)).expect("bind");
        let handle = self.sockets.add(socket);
        for seq_no in 1..=3 {
            let echo = Icmpv4Repr::EchoRequest {
                ident: 7,
                seq_no,
                data: b"hello",
            };
            let socket = self.sockets.get_mut::<icmp::Socket<'_>>(handle);
            let room = socket
                .send(echo.buffer_len(), IpAddress::v4(192, 0, 2, 1))
                .expect("room for an echo request");
            let checksums = smoltcp::phy::ChecksumCapabilities::default();
            echo.emit(&mut Icmpv4Packet::new_unchecked(room), &checksums);
            self.until(&format!("echo reply {seq_no}"), |sockets| {
                let socket = sockets.get_mut::<icmp::Socket<'_>>(handle);
                let (reply, _) = socket.recv().ok()?;
                let reply = Icmpv4Packet::new_checked(reply).ok()?;
                (reply.echo_seq_no() == seq_no).then_some(())
            });
        }
    }
}

/// Takes one connection on port 5001 and answers what it gets, until its end.
const ECHO: &str = "\
import socket
s = socket.create_server(('192.0.2.1', 5001))
print('listening', flush=True)
c = s.accept()[0]
while (part := c.recv(65536)):
    c.sendall(part)
";
/// Sends a megabyte to port 7 of 192.0.2.9 while it reads the answer, which must be the same.
const CLIENT: &str = "\
import socket, threading
c = socket.create_connection(('192.0.2.9', 7), timeout=20)
data = bytes(i * 7 % 251 for i in range(1 << 20))
threading.Thread(target=lambda: (c.sendall(data), c.shutdown(socket.SHUT_WR))).start()
got = b''
while (part := c.recv(65536)):
    got += part
assert got == data, len(got)
print('same')
";

#[test]
fn smoltcp_pings_and_speaks_tcp_with_a_kernel() {
    let lab = tap_lab!("sw-smoltcp");
    let d = switch(&lab, &[]);
    let a = container(&d, &lab, "a", "192.0.2.1/24", &[]);
    let path = lab.dir().join("port");
    let listen = path.to_str().expect("UTF-8");
    d.ctl(&[
        "port",
        "add",
        "stack",
        "--network",
        "lan",
        "--kind",
        "stream",
        "--listen",
        listen,
    ]);
    assert!(
        wait_state(&d, "stack", "down").contains("peer"),
        "nobody is there yet"
    );
    let stream = UnixStream::connect(&path).expect("connect to the stream port");
    let mut host = Host::new(stream);
    wait_state(&d, "stack", "up");
    host.ping();
    assert_eq!(at(&d, MAC).expect("learned")["port"], "stack");
    // Its stack connects to the kernel's: what is sent comes back.
    let mut echo = a.spawn(&[PYTHON, "-c", ECHO]);
    echo.wait_for("listening");
    let handle = host.tcp();
    let remote = (IpAddress::v4(192, 0, 2, 1), 5001);
    host.sockets
        .get_mut::<tcp::Socket<'_>>(handle)
        .connect(host.interface.context(), remote, 49152)
        .expect("connect");
    let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    let (mut given, mut got) = (0, vec![]);
    host.until("all to come back", |sockets| {
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.can_send() && given < sent.len() {
            given += socket.send_slice(&sent[given..]).expect("send");
        }
        while socket.can_recv() {
            socket
                .recv(|bytes| {
                    got.extend_from_slice(bytes);
                    (bytes.len(), ())
                })
                .expect("receive");
        }
        (got.len() >= sent.len()).then_some(())
    });
    assert_eq!(got, sent);
    // The kernel pings it, and connects to it.
    let mut ping = a.spawn(&["ping", "-n", "-c", "3", "-i", "0.2", "192.0.2.9"]);
    host.until("the kernel's ping", |_| (!ping.is_running()).then_some(()));
    assert!(ping.output().contains("3 received"), "{}", ping.output());
    let handle = host.tcp();
    host.sockets
        .get_mut::<tcp::Socket<'_>>(handle)
        .listen(7)
        .expect("listen");
    let mut client = a.spawn(&[PYTHON, "-c", CLIENT]);
    host.until("the kernel's client", |sockets| {
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        while socket.can_recv() && socket.can_send() {
            let room = socket.send_capacity() - socket.send_queue();
            let mut part = vec![0; room.min(16384)];
            let n = socket.recv_slice(&mut part).expect("receive");
            if n == 0 || socket.send_slice(&part[..n]) != Ok(n) {
                break;
            }
        }
        if !socket.may_recv() && socket.state() == tcp::State::CloseWait {
            socket.close();
        }
        (!client.is_running()).then_some(())
    });
    assert!(client.output().contains("same"), "{}", client.output());
    a.assert_no_checksum_errors();
    drop(host);
    wait_state(&d, "stack", "down");
    d.assert_ledger();
}
