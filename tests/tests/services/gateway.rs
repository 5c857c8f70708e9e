//! A gateway of the test's own: a bridge of veth ends in a host, whose kernel answers ARP and neighbour discovery, and a thread for each
//! end that hands requests to the services and sends what they return.

use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, setns};
use vswitch_core::clock::Clock;
use vswitch_core::frame::{Batch, Frame};
use vswitch_core::port::packet::{PacketOptions, PacketPort};
use vswitch_core::port::{PortId, PortIo, TxQueue};
use vswitch_core::stats::Tally;
use vswitch_core::wire::MacAddr;
use vswitch_nat::service::{dhcp4, dhcp6, ra};
use vswitch_tests::{Lab, Mtu, Node};

use crate::frames::{self, Inside};

/// A lab whose namespaces this process can enter, or the test is skipped with the reason.
#[macro_export]
macro_rules! own_lab {
    ($name:expr) => {{
        let lab = vswitch_tests::lab!($name);
        if lab.is_rootless() {
            vswitch_tests::skip!(
                "this process has to enter the lab's namespaces, which takes root"
            );
        }
        lab
    }};
}

/// Runs `f` on a thread in the network namespace of a node; threads that `f` starts are in it too.
pub(crate) fn inside<T: Send + 'static>(node: &Node, f: impl FnOnce() -> T + Send + 'static) -> T {
    let path = node.netns_path();
    let thread = std::thread::spawn(move || {
        let ns = std::fs::File::open(path).expect("open the network namespace");
        setns(ns, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
        f()
    });
    thread.join().expect("the thread in the namespace")
}

/// The services of a network.
pub(crate) struct Services {
    pub(crate) dhcp4: dhcp4::Server,
    pub(crate) dhcp6: dhcp6::Server,
    pub(crate) router: ra::Advertiser,
    pub(crate) changes: Vec<dhcp4::Change>,
}

/// The host with the bridge.
pub(crate) struct Gateway {
    host: Node,
    mac: MacAddr,
    link_local: Ipv6Addr,
    services: Option<Arc<Mutex<Services>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Multicasts of the router, for every end.
    outbox: Arc<Mutex<Vec<ra::Message>>>,
}

impl Gateway {
    pub(crate) fn new(lab: &Lab) -> Gateway {
        let host = lab.host("gw");
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        host.ok(&["ip", "link", "add", "br0", "type", "bridge"]);
        host.ok(&["ip", "link", "set", "br0", "address", &mac.to_string()]);
        host.addr("br0", "192.0.2.1/24");
        host.addr("br0", "2001:db8:0:1::1/64");
        Gateway {
            host,
            mac,
            link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 1),
            services: None,
            stop: Arc::new(AtomicBool::new(false)),
            threads: vec![],
            outbox: Arc::default(),
        }
    }

    pub(crate) fn host(&self) -> &Node {
        &self.host
    }

    /// Joins a container's `eth0` to the bridge.
    pub(crate) fn join(&self, lab: &Lab, node: &Node) {
        let near = format!("v-{}", node.name());
        lab.link(&self.host, &near, node, "eth0", Mtu(1500));
        self.host.ok(&["ip", "link", "set", &near, "master", "br0"]);
    }

    /// Serves the containers joined so far. The router advertises only if asked to.
    pub(crate) fn serve(&mut self, nodes: &[&Node], dhcp4: dhcp4::Config, router: ra::Config) {
        let advertise = !router.prefixes.is_empty();
        let v6 = dhcp6::Config {
            dns: vec!["2001:db8:0:1::1".parse().expect("an address")],
            search: vec!["net1.example".into()],
            refresh: std::time::Duration::from_secs(3600),
        };
        let now = Clock::default().now();
        let services = Services {
            dhcp4: dhcp4::Server::new(dhcp4).expect("a good configuration"),
            dhcp6: dhcp6::Server::new(&v6, self.mac).expect("a good configuration"),
            router: ra::Advertiser::new(router, self.mac, self.link_local, now)
                .expect("a good configuration"),
            changes: vec![],
        };
        let services = Arc::new(Mutex::new(services));
        self.services = Some(services.clone());
        for (n, node) in nodes.iter().enumerate() {
            let interface = format!("v-{}", node.name());
            let end = End {
                port: node.name().to_owned(),
                mac: self.mac,
                link_local: self.link_local,
                services: services.clone(),
                outbox: self.outbox.clone(),
                // One end runs the router's timer.
                advertise: advertise && n == 0,
                sent: 0,
            };
            let stop = self.stop.clone();
            let thread = inside(&self.host, move || {
                let port = PacketPort::open_in_current_netns(&interface, PacketOptions::default())
                    .expect("open a packet port");
                std::thread::spawn(move || end.run(port, &stop))
            });
            self.threads.push(thread);
        }
    }

    pub(crate) fn services(&self) -> MutexGuard<'_, Services> {
        let services = self.services.as_ref().expect("serving");
        services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a router's message by every end.
    pub(crate) fn multicast(&self, message: ra::Message) {
        self.outbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(message);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let failed = thread.join().is_err();
            assert!(
                !failed || std::thread::panicking(),
                "a thread of the gateway panicked"
            );
        }
    }
}

/// One veth end and what it needs.
struct End {
    port: String,
    mac: MacAddr,
    link_local: Ipv6Addr,
    services: Arc<Mutex<Services>>,
    outbox: Arc<Mutex<Vec<ra::Message>>>,
    advertise: bool,
    /// Multicasts of the outbox that went out here.
    sent: usize,
}

impl End {
    fn run(mut self, mut port: PacketPort, stop: &AtomicBool) {
        let clock = Clock::default();
        let mut out = TxQueue::new(TxQueue::DEFAULT_LIMIT);
        let mut tally = Tally::default();
        while !stop.load(Ordering::Relaxed) {
            let fd = port.ready_fd().expect("a socket");
            let _ = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], 20u8);
            let mut batch = Batch::new(PortId(0));
            if port.recv(&mut batch, &mut tally).is_err() {
                // The container has ended.
                return;
            }
            for entry in &batch.entries {
                if let Some(answer) = self.frame(&entry.frame.to_vec(), &clock) {
                    out.push(Frame::from_bytes(&answer).expect("fits"));
                }
            }
            self.multicasts(&clock, &mut out);
            let _ = port.send(&mut out);
        }
    }

    fn frame(&self, bytes: &[u8], clock: &Clock) -> Option<Vec<u8>> {
        let (src, inside) = frames::open(bytes)?;
        let now = clock.now();
        let mut guard = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let s = &mut *guard;
        match inside {
            Inside::Udp {
                to_port: dhcp4::SERVER_PORT,
                payload,
                ..
            } => {
                let cx = dhcp4::Context {
                    port: &self.port,
                    src,
                    now,
                };
                let outcome = s.dhcp4.handle(&payload, &cx, &mut |_| false);
                s.changes.extend(outcome.changes);
                let reply = outcome.reply?;
                let from = (self.mac, s.dhcp4.config().server);
                let ports = (dhcp4::SERVER_PORT, dhcp4::CLIENT_PORT);
                Some(frames::udp4(
                    from,
                    (reply.mac, reply.ip),
                    ports,
                    &reply.payload,
                ))
            }
            Inside::Udp {
                from: std::net::IpAddr::V6(from),
                from_port,
                to_port: dhcp6::SERVER_PORT,
                payload,
            } => {
                let answer = s.dhcp6.handle(&payload)?;
                let ports = (dhcp6::SERVER_PORT, from_port);
                Some(frames::udp6(
                    (self.mac, self.link_local),
                    (src, from),
                    ports,
                    &answer,
                ))
            }
            Inside::Icmpv6 {
                from,
                hop_limit,
                message,
            } => {
                let random = now.0 as u32;
                let m = s.router.solicited(from, hop_limit, &message, now, random)?;
                Some(frames::icmpv6(
                    (self.mac, self.link_local),
                    (src, m.to),
                    &m.payload,
                ))
            }
            Inside::Udp { .. } => None,
        }
    }

    fn multicasts(&mut self, clock: &Clock, out: &mut TxQueue) {
        let now = clock.now();
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        if self.advertise {
            let mut s = self.services.lock().unwrap_or_else(PoisonError::into_inner);
            outbox.extend(s.router.poll(now, now.0 as u32));
        }
        for m in outbox.iter().skip(self.sent) {
            let to = (frames::group_mac(m.to), m.to);
            let frame = frames::icmpv6((self.mac, self.link_local), to, &m.payload);
            out.push(Frame::from_bytes(&frame).expect("fits"));
        }
        self.sent = outbox.len();
    }
}
