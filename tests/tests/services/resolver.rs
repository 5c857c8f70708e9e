//! The DNS service on sockets of a host of the lab: UDP, TCP and the forwarder, each on threads in its namespace.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vswitch_core::clock::Clock;
use vswitch_nat::service::dns::{
    Client, Dns, Forwarder, ForwarderConfig, Framing, ResolvConf, Transport, Verdict, frame,
    os_random,
};
use vswitch_tests::Node;

use crate::gateway::inside;

/// How long a blocking call lasts at most before the thread looks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Shared {
    dns: Mutex<Dns>,
    forwarder: Forwarder,
    udp: UdpSocket,
    connections: Mutex<HashMap<u64, TcpStream>>,
    next: AtomicU64,
    stop: AtomicBool,
    clock: Clock,
}

/// The running service.
pub(crate) struct Resolver {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Resolver {
    /// Serves `address` in the namespace of `node`.
    pub(crate) fn start(
        node: &Node,
        address: SocketAddr,
        dns: Dns,
        resolvers: ResolvConf,
    ) -> Resolver {
        inside(node, move || {
            let udp = UdpSocket::bind(address).expect("bind UDP port 53");
            let tcp = TcpListener::bind(address).expect("bind TCP port 53");
            udp.set_read_timeout(Some(LOOK)).expect("a socket option");
            tcp.set_nonblocking(true).expect("a socket option");
            let random = os_random().expect("random numbers");
            let config = ForwarderConfig {
                own: vec![address.ip()],
                ..ForwarderConfig::default()
            };
            let forwarder =
                Forwarder::spawn(&config, &resolvers, random, Arc::new(|| ())).expect("starts");
            let shared = Arc::new(Shared {
                dns: Mutex::new(dns),
                forwarder,
                udp,
                connections: Mutex::default(),
                next: AtomicU64::new(0),
                stop: AtomicBool::new(false),
                clock: Clock::default(),
            });
            let (a, b, c) = (shared.clone(), shared.clone(), shared.clone());
            let threads = vec![
                std::thread::spawn(move || a.datagrams()),
                std::thread::spawn(move || b.responses()),
                std::thread::spawn(move || c.accept(&tcp)),
            ];
            Resolver { shared, threads }
        })
    }

    pub(crate) fn dns(&self) -> MutexGuard<'_, Dns> {
        lock(&self.shared.dns)
    }

    pub(crate) fn set_resolvers(&self, conf: &ResolvConf) {
        self.shared.forwarder.set_resolvers(conf);
        self.dns().clear_cache();
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let failed = thread.join().is_err();
            assert!(
                !failed || std::thread::panicking(),
                "a thread of the resolver panicked"
            );
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn send(&self, client: Client, answer: &[u8]) {
        match client.transport {
            Transport::Udp => {
                let _ = self.udp.send_to(answer, client.address);
            }
            Transport::Tcp(id) => {
                if let (Some(stream), Some(framed)) =
                    (lock(&self.connections).get_mut(&id), frame(answer))
                {
                    let _ = stream.write_all(&framed);
                }
            }
        }
    }

    fn query(&self, client: Client, message: &[u8]) {
        let now = self.clock.now();
        let verdict = lock(&self.dns).query(client, message, now);
        match verdict {
            Verdict::Answer(answer) => self.send(client, &answer),
            Verdict::Forward(upstream) => {
                if let Err(busy) = self.forwarder.submit(upstream) {
                    let answers = lock(&self.dns).respond(busy, now);
                    answers.iter().for_each(|(c, a)| self.send(*c, a));
                }
            }
            Verdict::Waiting | Verdict::Drop => {}
        }
    }

    fn datagrams(&self) {
        let mut buffer = [0; 4096];
        while !self.stopped() {
            if let Ok((n, address)) = self.udp.recv_from(&mut buffer) {
                let client = Client {
                    port: 1,
                    address,
                    transport: Transport::Udp,
                };
                self.query(client, &buffer[..n]);
            }
        }
    }

    fn responses(&self) {
        while !self.stopped() {
            let response = self.forwarder.responses().recv_timeout(LOOK);
            let now = self.clock.now();
            let mut answers = lock(&self.dns).tick(now);
            if let Ok(response) = response {
                answers.extend(lock(&self.dns).respond(response, now));
            }
            answers.iter().for_each(|(c, a)| self.send(*c, a));
        }
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !self.stopped() {
            match listener.accept() {
                Ok((stream, address)) => {
                    let id = self.next.fetch_add(1, Ordering::Relaxed);
                    let shared = self.clone();
                    let write = stream.try_clone().expect("a second handle");
                    lock(&self.connections).insert(id, write);
                    std::thread::spawn(move || {
                        shared.connection(id, stream, address);
                        lock(&shared.connections).remove(&id);
                    });
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK / 10),
                Err(e) => panic!("accept: {e}"),
            }
        }
    }

    fn connection(&self, id: u64, mut stream: TcpStream, address: SocketAddr) {
        stream.set_nonblocking(false).expect("a socket option");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a socket option");
        let client = Client {
            port: 1,
            address,
            transport: Transport::Tcp(id),
        };
        let mut framing = Framing::default();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if framing.push(&buffer[..n]).is_err() {
                return;
            }
            while let Some(message) = framing.next_message() {
                self.query(client, message);
            }
        }
    }
}
