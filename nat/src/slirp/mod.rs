//! The rootless backend: what containers send outside goes by sockets of the host, as an ordinary process's would.
//!
//! # Theory of operation
//!
//! [`Slirp`] stands behind the gateway where an uplink stands otherwise: packets that no network leads to are given to it with
//! [`Slirp::input`], and what comes back are packets again ([`Slirp::take`]), which the gateway routes, so that policy and
//! connection tracking see both. Each flow, a tuple of the container's endpoint and the other one, has one socket: TCP is
//! mirrored ([`tcp`]), UDP goes by connected sockets ([`udp`]), echo requests by ping sockets ([`ping`]). What the kernel
//! says in answer to a socket becomes the reset or ICMP error that the container would have got.
//!
//! The other way round, clients come to published ports by listening sockets ([`listen`]).
//!
//! Sockets are watched by the worker, edge triggered ([`Watch`]). A flow that has something to do waits in a queue for
//! [`Slirp::flush`], which serves all in turns within a budget. Streams that bring little at a time, and often, are looked at by a timer instead
//! ([`trickles`]). Flows end by themselves or with their
//! connection ([`Slirp::end`]). There are no more of them than descriptors; for a new one the least worth of a few
//! looked at makes room: echoes, then datagrams, then what is ending or connecting, then what has long been idle.

mod accept;
mod errors;
mod listen;
mod moved;
mod orphans;
mod outbound;
mod outgoing;
mod packet;
mod ping;
mod served;
mod splice;
mod spliced;
mod stream;
mod table;
pub mod tcp;
mod trickles;
mod udp;
mod whole;

pub(crate) use accept::{Fit, Straight};
pub use listen::{HostPort, HostPortCounters};
pub use moved::HostAddresses;
pub(crate) use outbound::{Outbound, own_address};
pub use splice::{Open as SpliceOpen, SplicePath, Splicer};

use crate::reply::Cause;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use table::Table;
use tcp::{Fate, Mirror};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Entry, Frame};
use vswitch_core::stats::PortCounters;
use vswitch_core::sys::datagram::Inbox;
use vswitch_core::sys::sock::{self, Kind};
use vswitch_core::sys::source::Source;
use vswitch_core::wire::L4;
use vswitch_core::worker::{Ready, Watch};

/// How flows leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Whether the host's loopback is reached.
    pub loopback: bool,
    /// The addresses that then lead there; the gateway's own if there are none.
    pub addresses: Vec<IpAddr>,
    /// Addresses that lead to the host's own address outside, instead of its loopback.
    pub own_addresses: Vec<IpAddr>,
    /// Whether link-local addresses of IPv4 are reached.
    pub link_local: bool,
    /// Where sockets leave from.
    pub source: Source,
}

/// Bytes sent towards containers in one flush, and for one flow before others have their turn.
const BUDGET: usize = 1 << 20;
const TURN: usize = 256 << 10;
/// Frames of all connections that may wait for sockets to take them (16 MiB if they are long).
const HELD: usize = 256;

/// One flow: protocol, the container's end, the other. An echo's identifier is the port of the container's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    proto: u8,
    inside: SocketAddr,
    outside: SocketAddr,
}

/// What is sent to a container.
#[derive(Debug)]
pub(crate) enum Out {
    /// A packet.
    Packet(Frame),
    /// The ICMP error about a packet of the container, from a router if one sent it to us.
    Error(Frame, Cause, Option<IpAddr>),
}

#[derive(Debug)]
enum Flow {
    Tcp(Box<(Mirror, tcp::Host)>),
    Udp(udp::Udp),
    Ping(ping::Ping),
    Served(served::Served),
}

/// What became of a packet that a socket can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It has been handed over, or is kept for later.
    Now,
    /// It waits for the end of its batch, and is counted then.
    Waits,
}

/// The backend; see the module's head.
#[derive(Debug)]
pub(crate) struct Slirp {
    config: HostConfig,
    outbound: Outbound,
    watch: Option<Watch>,
    table: Table<Flow>,
    listeners: listen::Listeners,
    /// Connections from the host's loopback that may go straight inside, once they are judged; and those that have.
    straight: Vec<accept::Straight>,
    spliced: Option<spliced::Spliced>,
    dirty: VecDeque<u32>,
    out: Vec<Out>,
    frames: Vec<Frame>,
    /// Frames that wait for sockets to take them.
    held: usize,
    /// Fragments that wait for others.
    incomplete: whole::Incomplete,
    /// The host's network has changed.
    moved: Option<moved::Moved>,
    orphans: orphans::Orphans,
    trickles: trickles::Trickles,
    /// Datagrams that wait for the end of their batch, and where those that come are put.
    outgoing: Vec<outgoing::Datagram>,
    inbox: Inbox,
    counters: Arc<PortCounters>,
    draw: u64,
}

impl Flow {
    /// How readily it makes room: the lower the sooner.
    fn worth(&self) -> u8 {
        match self {
            Flow::Ping(_) => 0,
            Flow::Udp(_) | Flow::Served(_) => 1,
            Flow::Tcp(t) if t.0.is_ending() => 2,
            Flow::Tcp(t) if t.0.is_connecting() || t.0.is_opening() => 3,
            Flow::Tcp(_) => 4,
        }
    }

    fn due(&self) -> Nanos {
        match self {
            Flow::Tcp(t) => t.0.due,
            _ => Nanos::MAX,
        }
    }
}

impl Slirp {
    /// `counters` are of what goes to sockets.
    pub(crate) fn new(
        config: HostConfig,
        watch: Option<Watch>,
        seed: u64,
        counters: Arc<PortCounters>,
    ) -> Slirp {
        Slirp {
            config,
            outbound: Outbound::default(),
            watch,
            table: Table::new(sock::descriptors()),
            listeners: listen::Listeners::default(),
            straight: Vec::new(),
            spliced: None,
            dirty: VecDeque::new(),
            out: Vec::new(),
            frames: Vec::new(),
            held: 0,
            incomplete: whole::Incomplete::default(),
            moved: None,
            orphans: orphans::Orphans::default(),
            trickles: trickles::Trickles::default(),
            outgoing: Vec::new(),
            inbox: Inbox::default(),
            counters,
            draw: seed,
        }
    }

    pub(crate) fn configure(&mut self, config: HostConfig, outbound: Outbound) {
        self.config = config;
        self.outbound = outbound;
    }

    /// Flows by protocol: TCP, UDP, echo.
    pub(crate) fn counts(&self) -> [usize; 3] {
        let mut n = [0; 3];
        for (_, slot) in self.table.iter() {
            let i = match slot.flow {
                Flow::Tcp(_) => 0,
                Flow::Udp(_) | Flow::Served(_) => 1,
                Flow::Ping(_) => 2,
            };
            n[i] += 1;
        }
        n
    }

    /// An unpredictable initial sequence number (splitmix64; the seed is secret).
    fn random(&mut self) -> u32 {
        self.draw = self.draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.draw;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 16) as u32
    }

    /// Whether a socket may be opened to the address.
    fn may_reach(&self, to: IpAddr) -> bool {
        match to {
            _ if to.is_loopback() => self.config.loopback,
            IpAddr::V4(a) => !(a.is_unspecified() || a.is_broadcast() || a.is_multicast()),
            IpAddr::V6(a) => !(a.is_unspecified() || a.is_multicast() || a.to_ipv4().is_some()),
        }
    }

    /// Whether a container's own socket may be one of the host to this address: never to the host's loopback, however it is written.
    pub(crate) fn may_switch(&self, to: IpAddr) -> bool {
        let to = to.to_canonical();
        !to.is_loopback() && self.may_reach(to)
    }

    /// A packet of a container, rewritten and judged already.
    pub(crate) fn input(&mut self, now: Nanos, e: &mut Entry) -> Result<(), DropReason> {
        let bytes = e.frame.len() as u64;
        if self.packet(now, e, false)? == Taken::Now {
            self.counters.tx_frames.add(1);
            self.counters.tx_bytes.add(bytes);
        }
        Ok(())
    }

    /// `pieced`: it came in fragments.
    fn packet(&mut self, now: Nanos, e: &mut Entry, pieced: bool) -> Result<Taken, DropReason> {
        const BAD: DropReason = DropReason::BadPacket;
        let (src, dst) = e.meta.addresses(e.frame.head()).ok_or(BAD)?;
        if e.meta.fragment {
            return match self.incomplete.add(now, e)? {
                Some(mut whole) => self.packet(now, &mut whole, true),
                None => Ok(Taken::Now),
            };
        }
        let l4 = e
            .frame
            .head()
            .get(usize::from(e.meta.l4_off)..)
            .ok_or(BAD)?;
        let &[p0, p1, p2, p3, i0, i1, ..] = l4.first_chunk::<8>().ok_or(BAD)?;
        let (from, to) = match e.meta.l4 {
            L4::Tcp | L4::Udp => ([p0, p1], [p2, p3]),
            L4::Icmp | L4::Icmp6 => ([i0, i1], [0, 0]),
            _ => return Err(DropReason::HostSocket),
        };
        let key = Key {
            proto: e.meta.proto,
            inside: (src, u16::from_be_bytes(from)).into(),
            outside: (dst, u16::from_be_bytes(to)).into(),
        };
        if e.meta.l4 == L4::Udp
            && let Some(done) = self.answer_client(now, &key, e)
        {
            return done.map(|()| Taken::Now);
        }
        // A client of ours may be anywhere.
        if !self.may_reach(dst) && self.table.find(&key).is_none() {
            let done = matches!(e.meta.l4, L4::Icmp | L4::Icmp6) && self.is_told(e);
            return done.then_some(Taken::Now).ok_or(DropReason::HostSocket);
        }
        match e.meta.l4 {
            L4::Tcp => self.tcp(now, key, e).map(|()| Taken::Now),
            L4::Udp => self.udp(now, key, e, pieced),
            _ if self.is_told(e) => Ok(Taken::Now),
            _ => self.ping(now, key, e, pieced),
        }
    }

    /// Opens a socket, with room made for it. `ttl`: that of what begins the flow, if it is to be the socket's.
    fn open(&mut self, now: Nanos, kind: Kind, key: Key, ttl: Option<u8>) -> io::Result<OwnedFd> {
        if self.table.is_full() && !self.make_room(now) {
            return Err(io::Error::from_raw_os_error(sock::TOO_MANY));
        }
        let mut key = key;
        if self.config.own_addresses.contains(&key.outside.ip()) {
            key.outside.set_ip(self.outbound.own_address(&key)?);
        }
        match self.outbound.open(kind, key, ttl) {
            Err(e) if e.raw_os_error() == Some(sock::TOO_MANY) && self.make_room(now) => {
                self.outbound.open(kind, key, ttl)
            }
            r => r,
        }
    }

    fn make_room(&mut self, now: Nanos) -> bool {
        // It may have something to send yet.
        self.send_datagrams(now);
        let Some(i) = self.table.least(now, Flow::worth) else {
            return false;
        };
        self.close(i, true);
        true
    }

    /// Takes up a flow whose socket is open.
    fn enter(&mut self, now: Nanos, key: Key, flow: Flow) -> Result<(), DropReason> {
        let first = !matches!(flow, Flow::Tcp(_));
        let i = self.table.insert(now, key, flow, first);
        let (Some(watch), Some(slot)) = (&self.watch, self.table.get(i)) else {
            return Ok(());
        };
        let (fd, writes) = match &slot.flow {
            Flow::Tcp(t) => (t.1.as_fd(), true),
            Flow::Udp(u) => (u.as_fd(), false),
            Flow::Ping(p) => (p.as_fd(), false),
            Flow::Served(_) => return Ok(()),
        };
        if watch.add(fd, i as usize, writes).is_err() {
            self.close(i, true);
            return Err(DropReason::HostSocket);
        }
        Ok(())
    }

    /// After something happened to a TCP flow: it is flushed, or it has ended.
    fn settle(&mut self, i: u32, fate: Fate) {
        match fate {
            Fate::Lives => self.touch(i),
            Fate::Ends => self.close(i, false),
        }
    }

    fn touch(&mut self, i: u32) {
        if let Some(slot) = self.table.get(i)
            && !std::mem::replace(&mut slot.queued, true)
        {
            self.dirty.push_back(i);
        }
    }

    /// Ends a flow. A connection that is cut off (`abort`) is reset, at both ends.
    fn close(&mut self, i: u32, abort: bool) {
        let Some(mut flow) = self.table.remove(i) else {
            return;
        };
        if let Flow::Tcp(t) = &mut flow {
            let (mirror, host) = &mut **t;
            self.held = self.held.saturating_sub(mirror.held());
            if abort {
                mirror.reset(host, &mut self.frames);
            }
        }
        self.orphans.forget(i);
        self.trickles.forget(i);
        self.listeners.settled(i, false);
        // Closing the descriptor ends its being watched.
    }

    /// The connection of a flow has ended: it was denied, has aged out or made room.
    pub(crate) fn end(&mut self, now: Nanos, proto: u8, inside: SocketAddr, outside: SocketAddr) {
        self.send_datagrams(now);
        let key = Key {
            proto,
            inside,
            outside,
        };
        if let Some(i) = self.table.find(&key) {
            self.close(i, true);
        }
    }

    /// Sockets are ready.
    pub(crate) fn ready(&mut self, now: Nanos, events: &[Ready]) {
        for event in events {
            if event.key == trickles::KEY {
                self.look();
                continue;
            }
            if self.listener_ready(event.key) {
                continue;
            }
            let i = event.key as u32;
            let Some(slot) = self.table.get(i) else {
                continue;
            };
            match &mut slot.flow {
                Flow::Tcp(_) => self.stream_ready(now, i, event),
                Flow::Udp(u) => {
                    u.erred |= event.error;
                    self.touch(i);
                }
                Flow::Ping(p) => {
                    p.erred |= event.error;
                    self.touch(i);
                }
                Flow::Served(_) => {}
            }
        }
    }

    /// Serves the flows that have something to do; true if there is more.
    pub(crate) fn flush(&mut self, now: Nanos) -> bool {
        self.send_datagrams(now);
        let mut left = BUDGET;
        self.serve_listeners(now);
        // Each at most once: who has more waits for the next turn.
        for _ in 0..self.dirty.len() {
            if left == 0 {
                break;
            }
            let Some(i) = self.dirty.pop_front() else {
                break;
            };
            let Some(slot) = self.table.get(i) else {
                continue;
            };
            slot.queued = false;
            let (before, key) = (self.frames.len(), slot.key);
            let (fate, more) = match &mut slot.flow {
                Flow::Tcp(t) => {
                    let (mirror, host) = &mut **t;
                    mirror.flush(now, host, &mut self.frames, TURN.min(left))
                }
                Flow::Udp(u) => (
                    Fate::Lives,
                    u.receive(&key, &mut self.inbox, &mut self.frames, &mut self.out),
                ),
                Flow::Ping(p) => (
                    Fate::Lives,
                    p.receive(&key, &mut self.frames, &mut self.out),
                ),
                Flow::Served(_) => (Fate::Lives, false),
            };
            let made = self.frames.get(before..).unwrap_or_default();
            let made: usize = made.iter().map(Frame::len).sum();
            if made > 0 {
                slot.used = now;
            }
            left = left.saturating_sub(made);
            let due = slot.flow.due();
            self.table.arm(i, due);
            if fate == Fate::Ends {
                self.close(i, false);
                continue;
            }
            if more {
                self.touch(i);
            }
            self.follow_trickle(i);
        }
        self.trickles.arm();
        !self.dirty.is_empty() || self.listeners.have_work()
    }

    /// Timers of the flows; when the next is due.
    pub(crate) fn tick(&mut self, now: Nanos) -> Nanos {
        self.end_orphans(now, sock::is_own);
        while let Some(i) = self.table.expired(now, Flow::due) {
            let Some(slot) = self.table.get(i) else {
                continue;
            };
            if let Flow::Tcp(t) = &mut slot.flow {
                let (mirror, host) = &mut **t;
                let fate = mirror.expired(now, host, &mut self.frames);
                self.settle(i, fate);
            }
        }
        self.next()
    }

    /// When the next timer is due.
    pub(crate) fn next(&self) -> Nanos {
        self.table.next().min(self.orphans.next())
    }

    /// What is to be sent to containers.
    pub(crate) fn take(&mut self) -> Vec<Out> {
        let mut all = std::mem::take(&mut self.out);
        all.extend(self.frames.drain(..).map(Out::Packet));
        all
    }

    /// Gives the list of [`Slirp::take`] back, so that its memory is used again.
    pub(crate) fn give_back(&mut self, mut list: Vec<Out>) {
        list.clear();
        if self.out.is_empty() {
            self.out = list;
        }
    }
}

/// Ends all flows without a word to the containers, as when the backend is turned off.
impl Drop for Slirp {
    fn drop(&mut self) {
        let all: Vec<u32> = self.table.iter().map(|(i, _)| i).collect();
        for i in all {
            self.close(i, true);
        }
    }
}
