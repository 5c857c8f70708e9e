//! DNS over TCP, the side that is connected to (RFC 7766): packets in, queries out, answers in, packets out.
//!
//! # Theory of operation
//! Each connection is a TCP socket of smoltcp in a set of its own, found by both endpoints, so that a segment costs a look-up however
//! many there are. The caller hands over packets that are for a connection or begin one ([`Listener::packet`]), takes out the
//! queries that are whole ([`Listener::next_query`]), gives their answers in any order ([`Listener::answer`]), and at the end of each of
//! its turns has what is to be sent ([`Listener::flush`]). Ethernet is the caller's; answers go to the MAC that was heard last.
//!
//! Bounded are: connections in all and of a port, the time for the handshake, the time without a query, the length of a query, queries
//! of a connection under way, answers that wait for the client to take them. Time runs from one whole query to the next, so half a
//! message keeps nothing open. What a client does wrong costs its own connection. smoltcp checks its own invariants with
//! panics: one that a client could bring about would end the listener's connections, and nothing else.

use super::tcp::{self, Framing};
use hashbrown::HashMap;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpEndpoint};
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_core::wire::MacAddr;

/// Most connections of a network, and of one port.
pub const MAX_CONNECTIONS: usize = 256;
/// Of one port.
pub const MAX_PER_PORT: usize = 16;
/// Longest query: a question and some options.
const MAX_QUERY: usize = 4096;
/// Shortest: a header.
const MIN_QUERY: usize = 12;
/// Queries of a connection under way; further ones wait in its window.
const PIPELINE: usize = 16;
/// Bytes of answers that may wait for a client; the longest answer and a little.
const MAX_OUT: usize = 80 * 1024;
/// From here on no further query is taken.
const ENOUGH_OUT: usize = 8 * 1024;
const RECEIVE_BUFFER: usize = 4096;
const SEND_BUFFER: usize = 16 * 1024;
/// Time for the handshake, and for the end of a connection.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time without a query or without the client taking its answers (RFC 7766 6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Time for the answer to a query; whoever asks resolvers gives up before.
const ANSWER: Duration = Duration::from_secs(20);
/// Packets that one connection sends at a time.
const BURST: usize = 32;

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its port of the switch.
    pub port: u32,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its end.
    pub client: SocketAddr,
    /// Ours.
    pub local: SocketAddr,
}

/// A query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpQuery {
    /// The connection, to answer by.
    pub connection: u64,
    /// Who asks.
    pub peer: Peer,
    /// The message.
    pub message: Vec<u8>,
}

#[derive(Debug)]
struct Connection {
    peer: Peer,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    framing: Framing,
    /// Queries that aren't answered.
    under_way: usize,
    out: VecDeque<u8>,
    /// When it is given up, if nothing happens.
    until: Nanos,
    deadline: Nanos,
    /// It has been told to end.
    ending: bool,
    heard: bool,
}

impl Connection {
    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// The next whole query; an error is a client that can't go on.
    fn query(&mut self) -> Result<Option<Vec<u8>>, ()> {
        let mut buffer = [0; RECEIVE_BUFFER];
        loop {
            if self.under_way >= PIPELINE || self.out.len() > ENOUGH_OUT || self.ending {
                return Ok(None);
            }
            match self.framing.announced() {
                Some(len) if !(MIN_QUERY..=MAX_QUERY).contains(&len) => return Err(()),
                _ => {}
            }
            if let Some(message) = self.framing.next_message() {
                return Ok(Some(message.to_vec()));
            }
            let socket = self.socket();
            if !socket.can_recv() {
                return Ok(None);
            }
            let got = socket.recv_slice(&mut buffer).map_err(|_| ())?;
            let got = buffer.get(..got).ok_or(())?;
            self.framing.push(got).map_err(|_| ())?;
        }
    }

    /// Moves answers on, and ends the connection if its client has.
    fn advance(&mut self) {
        while !self.out.is_empty() {
            let sockets = &mut self.sockets;
            let socket: &mut Socket<'_> = sockets.get_mut(self.handle);
            let sent = socket.send_slice(self.out.as_slices().0);
            match sent {
                Ok(n) if n > 0 => drop(self.out.drain(..n)),
                _ => break,
            }
        }
        let (idle, rest) = (self.under_way == 0 && self.out.is_empty(), self.ending);
        let socket = self.socket();
        if idle && (rest || socket.state() == State::CloseWait && !socket.can_recv()) {
            socket.close();
        }
    }
}

/// One packet in, any number out.
#[derive(Debug)]
struct Wire {
    mtu: usize,
    received: Option<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);

impl smoltcp::phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Transmit<'a>(&'a mut Vec<Vec<u8>>);

impl smoltcp::phy::TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Transmit<'_>)> {
        let packet = self.received.take()?;
        Some((Received(packet), Transmit(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        (self.sent.len() < BURST).then_some(Transmit(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // What comes in has been checked where it may be left to offloading.
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = Checksum::Tx;
        checksum.ipv4 = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

/// The connections of a network; see the module's head.
pub struct Listener {
    interface: Interface,
    wire: Wire,
    connections: HashMap<u64, Connection, foldhash::quality::RandomState>,
    by_ends: HashMap<(SocketAddr, SocketAddr), u64, foldhash::quality::RandomState>,
    deadlines: BTreeSet<(Nanos, u64)>,
    /// To be looked at for queries, then for what they have to send.
    stirred: VecDeque<u64>,
    looked_at: Vec<u64>,
    /// What is sent whatever comes after.
    outbox: Vec<(Peer, Vec<u8>)>,
    next: u64,
    mtu: u32,
    seed: u64,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

fn instant(now: Nanos) -> Instant {
    Instant::from_micros((now.0 / 1000) as i64)
}

impl Listener {
    /// A listener without connections. `seed` makes its sequence numbers and is to be secret.
    #[must_use]
    pub fn new(mtu: u32, seed: u64, now: Nanos) -> Listener {
        let mut wire = Wire {
            mtu: mtu as usize,
            received: None,
            sent: vec![],
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, instant(now));
        // Which addresses are ours is the caller's to know.
        interface.set_any_ip(true);
        Listener {
            interface,
            wire,
            connections: HashMap::default(),
            by_ends: HashMap::default(),
            deadlines: BTreeSet::new(),
            stirred: VecDeque::new(),
            looked_at: vec![],
            outbox: vec![],
            next: 1,
            mtu,
            seed,
        }
    }

    /// The MTU it was made for.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Connections, half-open ones among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Whether there is a connection of these ends.
    #[must_use]
    pub fn knows(&self, client: SocketAddr, local: SocketAddr) -> bool {
        self.by_ends.contains_key(&(client, local))
    }

    /// Takes an IP packet with a TCP segment between these ends, checksums checked. If they have no connection, it has to begin
    /// one; if there are too many it is lost, and the client tries again.
    pub fn packet(&mut self, peer: Peer, packet: Vec<u8>, now: Nanos) {
        let ends = (peer.client, peer.local);
        let known = self.by_ends.get(&ends).copied();
        let Some(id) = known.or_else(|| self.open(peer, now)) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.peer.port != peer.port {
            // Somebody at another port who has taken the address.
            return;
        }
        connection.peer.mac = peer.mac;
        self.wire.received = Some(packet);
        let (interface, wire) = (&mut self.interface, &mut self.wire);
        let fed = catch_unwind(AssertUnwindSafe(|| {
            interface.poll_ingress_single(instant(now), wire, &mut connection.sockets);
        }));
        if fed.is_err() {
            return self.begin_anew(now);
        }
        // An acknowledgement at once, or a reset.
        let sent = self.wire.sent.drain(..);
        self.outbox.extend(sent.map(|p| (connection.peer, p)));
        let state = connection.socket().state();
        if !connection.heard && !matches!(state, State::Listen | State::SynReceived) {
            connection.heard = true;
            connection.until = now.after(IDLE);
        }
        self.stirred.push_back(id);
    }

    /// A new connection, if there is room: who hasn't completed the handshake gives way.
    fn open(&mut self, peer: Peer, now: Nanos) -> Option<u64> {
        let of_port = |c: &Connection| c.peer.port == peer.port;
        let theirs = self.connections.values().filter(|c| of_port(c)).count();
        let full = theirs >= MAX_PER_PORT;
        if full || self.connections.len() >= MAX_CONNECTIONS {
            let all = self.connections.iter();
            let half = all.filter(|(_, c)| !c.heard && (!full || of_port(c)));
            let (id, until) = half.map(|(id, c)| (*id, c.until)).min_by_key(|(_, u)| *u)?;
            // One that has just begun is to have its chance.
            if until > now.after(HANDSHAKE - Duration::from_secs(1)) {
                return None;
            }
            self.remove(id);
        }
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(RECEIVE_BUFFER), buffer(SEND_BUFFER));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(smoltcp::time::Duration::from_secs(IDLE.as_secs())));
        socket.listen(IpEndpoint::from(peer.local)).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let id = self.next;
        self.next += 1;
        let connection = Connection {
            peer,
            sockets,
            handle,
            framing: Framing::default(),
            under_way: 0,
            out: VecDeque::new(),
            until: now.after(HANDSHAKE),
            deadline: Nanos::MAX,
            ending: false,
            heard: false,
        };
        self.connections.insert(id, connection);
        self.by_ends.insert((peer.client, peer.local), id);
        Some(id)
    }

    /// The next query that is whole; to be called until there is none.
    pub fn next_query(&mut self, now: Nanos) -> Option<TcpQuery> {
        while let Some(id) = self.stirred.front().copied() {
            if let Some(connection) = self.connections.get_mut(&id) {
                match connection.query() {
                    Ok(Some(message)) => {
                        connection.under_way += 1;
                        connection.until = now.after(ANSWER);
                        return Some(TcpQuery {
                            connection: id,
                            peer: connection.peer,
                            message,
                        });
                    }
                    Ok(None) => {}
                    Err(()) => connection.socket().abort(),
                }
                self.looked_at.push(id);
            }
            self.stirred.pop_front();
        }
        None
    }

    /// Answers a query; one of a connection that has ended is lost.
    pub fn answer(&mut self, connection: u64, message: &[u8], now: Nanos) {
        let Some(c) = self.connections.get_mut(&connection) else {
            return;
        };
        c.under_way = c.under_way.saturating_sub(1);
        c.until = now.after(if c.under_way > 0 { ANSWER } else { IDLE });
        match tcp::frame(message).filter(|f| c.out.len() + f.len() <= MAX_OUT) {
            Some(framed) => c.out.extend(framed),
            None => c.socket().abort(),
        }
        self.stirred.push_back(connection);
    }

    /// Ends a connection whose query isn't answered.
    pub fn reset(&mut self, connection: u64) {
        if let Some(c) = self.connections.get_mut(&connection) {
            c.socket().abort();
            self.stirred.push_back(connection);
        }
    }

    /// Looks at connections whose time has come; [`Listener::flush`] follows.
    pub fn tick(&mut self, now: Nanos) {
        while let Some((at, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, id));
            let Some(c) = self.connections.get_mut(&id) else {
                continue;
            };
            c.deadline = Nanos::MAX;
            if c.until <= now {
                let taken = c.under_way == 0 && c.out.is_empty() && c.socket().send_queue() == 0;
                if taken && c.heard && !c.ending {
                    c.ending = true;
                    c.until = now.after(HANDSHAKE);
                } else {
                    c.socket().abort();
                }
            }
            self.stirred.push_back(id);
        }
    }

    /// When [`Listener::tick`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Nanos {
        self.deadlines.first().map_or(Nanos::MAX, |(at, _)| *at)
    }

    /// Gives out what is to be sent: packets, and the peers they go to.
    pub fn flush(&mut self, now: Nanos, send: &mut dyn FnMut(&Peer, &[u8])) {
        let mut send = |peer: &Peer, packet: &[u8]| {
            if is_tcp(packet) {
                send(peer, packet);
            }
        };
        for (peer, packet) in self.outbox.drain(..) {
            send(&peer, &packet);
        }
        self.looked_at.extend(self.stirred.drain(..));
        self.looked_at.sort_unstable();
        self.looked_at.dedup();
        for id in std::mem::take(&mut self.looked_at) {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            let (interface, wire) = (&mut self.interface, &mut self.wire);
            let polled = catch_unwind(AssertUnwindSafe(|| {
                connection.advance();
                let at = instant(now);
                for _ in 0..BURST {
                    let polled = interface.poll_egress(at, wire, &mut connection.sockets);
                    if polled == PollResult::None {
                        break;
                    }
                    connection.advance();
                }
                interface.poll_at(at, &connection.sockets)
            }));
            for packet in wire.sent.drain(..) {
                send(&connection.peer, &packet);
            }
            let Ok(at) = polled else {
                return self.begin_anew(now);
            };
            let over = matches!(
                connection.socket().state(),
                State::Closed | State::TimeWait | State::Listen
            );
            if over {
                self.remove(id);
                continue;
            }
            let at = at.map_or(Nanos::MAX, |at| Nanos(at.total_micros() as u64 * 1000));
            let deadline = at.max(now.after(Duration::from_millis(1)));
            let deadline = deadline.min(connection.until);
            self.deadlines.remove(&(connection.deadline, id));
            connection.deadline = deadline;
            self.deadlines.insert((deadline, id));
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(c) = self.connections.remove(&id) {
            self.by_ends.remove(&(c.peer.client, c.peer.local));
            self.deadlines.remove(&(c.deadline, id));
        }
    }

    /// After a fault: without connections, whose clients find out when they go on.
    #[cold]
    fn begin_anew(&mut self, now: Nanos) {
        let next = self.next;
        *self = Listener::new(self.mtu, self.seed.rotate_left(7) ^ now.0, now);
        self.next = next;
    }
}

/// Whether it is a TCP segment: nothing else is this listener's to send.
fn is_tcp(packet: &[u8]) -> bool {
    match packet.first().map(|b| b >> 4) {
        Some(4) => packet.get(9) == Some(&6),
        Some(6) => packet.get(6) == Some(&6),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
