//! Connection tracking: which connection a packet belongs to, and what it does to that connection.
//!
//! # Theory of operation
//!
//! A [`Conntrack`] belongs to one worker: no locks, no clock, no randomness of its own. A connection has two tuples, that of its first
//! packet and that of what comes back, which NAT chooses. One map leads from either to the connection and the direction
//! (`index`), connections lie in a slab (`conn`, `table`), and a timer wheel per timeout says which are over (`expiry`).
//!
//! [`Conntrack::track`] answers for a packet: [`Track::Hit`], or [`Track::Invalid`], or [`Track::New`] with a
//! [`Pending`], which is a mere value. Only [`Conntrack::confirm`] enters it, once policy has agreed and NAT has chosen
//! the reply tuple; dropping the value leaves no trace.
//!
//! Everything is bounded. The table has a fixed size and never grows or rehashes. When it is full, connections give way in the
//! order of [`Class`], in each class the one idle longest: a flood of SYNs or datagrams only pushes out itself, then what
//! is closing, and never (unless configured so) an established connection. A source has a limit of its own (`limits`). Ageing,
//! dumps and flushes go in steps of the caller's size.
//!
//! Packets of connections that go the fast path ([`vswitch_core::accel`]) don't come here one by one: `fast` says how they are noted.
//!
//! Whoever holds something for a connection (a port lease, a translation) learns of its end at once, by the callback that all calls take
//! which can end one. Events, for people, are kept in a bounded queue and may get lost.

mod ageing;
mod config;
mod conn;
mod dump;
mod expiry;
mod fast;
mod hash;
mod index;
mod limits;
mod rehearsal;
mod sctp;
mod segment;
mod stats;
mod table;
mod tcp_state;
mod timeouts;
mod tuple;

pub use config::{Config, TcpOptions};
pub use conn::{Conn, ConnId, Record, State, User};
pub use dump::Cursor;
pub use segment::{Packet, SctpChunk, TcpSegment, Transport, flag};
pub use stats::{ConfirmError, Counters, EndReason, INVALIDS, Invalid};
pub use tcp_state::{Bits, Side};
pub use timeouts::{CLASSES, Class, Timeout, Timeouts};
pub use tuple::{Dir, Tuple, proto};

use conn::{FAST, NIL, REPLIED, SLOW};
use std::collections::VecDeque;
use std::sync::Arc;
use table::{Table, deadline};
use tcp_state::{Next, Tcp};
use timeouts::timeout_of;
use vswitch_core::accel::Accelerator;
use vswitch_core::clock::Nanos;

/// Told of every connection that ends, with its last state.
pub type OnEnd<'a> = dyn FnMut(&Conn, EndReason) + 'a;

/// Without handshake, an exchange that is answered later than this after its first packet is a lasting one, seconds.
const QUERY_SECS: u32 = 2;

/// What a packet is.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // Lives for a moment on the stack; boxing would allocate per connection.
pub enum Track {
    /// Part of a connection.
    Hit(Hit),
    /// The first of a connection that isn't entered yet.
    New(Pending),
    /// Neither.
    Invalid(Invalid),
}

/// A packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The connection.
    pub id: ConnId,
    /// Which way the packet goes.
    pub dir: Dir,
    /// The state, if this packet changed it.
    pub change: Option<State>,
    /// What the gateway keeps with the connection.
    pub user: User,
}

/// A connection that isn't entered yet.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    conn: Conn,
    hash: u32,
}

impl Pending {
    /// Tuple of its first packet.
    #[must_use]
    pub fn tuple(&self) -> &Tuple {
        &self.conn.original
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        self.conn.state
    }
}

/// Where a packet's connection probably is, from [`Conntrack::look_ahead`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint {
    hash: u32,
    guess: u32,
}

/// Something to tell people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection was entered.
    New(Record),
    /// A connection ended.
    Ended(Record, EndReason),
}

/// The connections of one worker.
#[derive(Debug)]
pub struct Conntrack {
    config: Config,
    table: Table,
    counters: Counters,
    events: VecDeque<Event>,
    /// Place from which timeouts are still to be set anew after a change of configuration.
    rearm: u32,
    /// Which timeout's wheel the next tick begins with.
    wheel: usize,
    /// Has carried packets that weren't tracked here.
    fast: Option<Arc<Accelerator>>,
}

impl Conntrack {
    /// An empty table.
    #[must_use]
    pub fn new(config: Config, now: Nanos) -> Conntrack {
        Conntrack {
            table: Table::new(&config, now.secs()),
            counters: Counters::default(),
            events: VecDeque::new(),
            rearm: NIL,
            wheel: 0,
            fast: None,
            config,
        }
    }

    /// Tells what a packet is, and notes it in its connection.
    pub fn track(&mut self, packet: &Packet, now: Nanos, ended: &mut OnEnd<'_>) -> Track {
        let hash = self.table.hash(&packet.tuple);
        let found = self.table.find(hash, &packet.tuple);
        self.track_found(packet, hash, found, now, ended)
    }

    /// Finds probable places of the connections of many packets, and has them in the cache when they are tracked: the cache misses
    /// of a batch then overlap. Fills as many hints as there are packets and room.
    pub fn look_ahead(&self, packets: &[Packet], hints: &mut [Hint]) {
        for (hint, packet) in hints.iter_mut().zip(packets) {
            hint.hash = self.table.hash(&packet.tuple);
        }
        let n = packets.len().min(hints.len());
        let hints = &mut hints[..n];
        // Each pass is of loads that don't wait for one another.
        let mut seen = 0;
        for hint in hints.iter() {
            seen ^= self.table.touch(hint.hash);
        }
        std::hint::black_box(seen);
        for hint in hints.iter_mut() {
            hint.guess = self.table.guess(hint.hash);
        }
        let mut seen = 0;
        for hint in hints.iter() {
            if let Some(c) = self.table.conns.get(hint.guess as usize >> 1) {
                seen ^= u64::from(c.seen) ^ u64::from(c.mark) ^ c.packets[0];
            }
        }
        std::hint::black_box(seen);
    }

    /// What the gateway keeps with the connection that a hint names, if it is the right one.
    #[must_use]
    pub fn hinted(&self, hint: Hint) -> Option<User> {
        let conn = self.table.conns.get(hint.guess as usize >> 1)?;
        Some(conn.user)
    }

    /// As [`Conntrack::track`], for a packet that was looked ahead. The hint may be out of date.
    pub fn track_hinted(
        &mut self,
        packet: &Packet,
        hint: Hint,
        now: Nanos,
        ended: &mut OnEnd<'_>,
    ) -> Track {
        let found = self
            .table
            .check(hint.guess, &packet.tuple)
            .or_else(|| self.table.find(hint.hash, &packet.tuple));
        self.track_found(packet, hint.hash, found, now, ended)
    }

    #[inline]
    fn track_found(
        &mut self,
        packet: &Packet,
        hash: u32,
        found: Option<(u32, Dir)>,
        now: Nanos,
        ended: &mut OnEnd<'_>,
    ) -> Track {
        let now = now.secs();
        let Some((at, dir)) = found else {
            return self.first(packet, hash, now);
        };
        let conn = &mut self.table.conns[at as usize];
        let stepped = if conn.flags & FAST == 0 {
            step(conn, dir, &packet.transport, self.config.tcp, now)
        } else {
            fast::step(
                self.fast.as_deref(),
                conn,
                dir,
                &packet.transport,
                self.config.tcp,
                now,
            )
        };
        let state = match stepped {
            Ok(Next::To(state)) => state,
            Ok(Next::Reopen) => {
                self.end(at, EndReason::Reopened, now, ended);
                return self.first(packet, hash, now);
            }
            Err(reason) => return self.refuse(reason),
        };
        self.counters.found += 1;
        conn.packets[dir as usize] += u64::from(packet.packets);
        conn.bytes[dir as usize] += u64::from(packet.bytes);
        if conn.seen < now && packet.refreshes {
            conn.seen = now;
        }
        let answered = dir == Dir::Reply && !conn.replied();
        let hit = hit(conn, at, dir, state);
        if hit.change.is_some() || answered {
            self.changed(at, state, answered, now);
        }
        Track::Hit(hit)
    }

    /// The state changed, or the first answer came.
    #[cold]
    fn changed(&mut self, at: u32, state: State, answered: bool, now: u32) {
        let conn = &mut self.table.conns[at as usize];
        conn.state = state;
        if answered {
            conn.flags |= REPLIED;
        }
        let timeout = timeout_of(&conn.original, state, conn.replied());
        if timeout != conn.timeout {
            self.table.rearm(at, timeout, &self.config.timeouts, now);
        }
    }

    #[cold]
    fn refuse(&mut self, reason: Invalid) -> Track {
        self.counters.invalid[reason as usize] += 1;
        Track::Invalid(reason)
    }

    /// A packet of no known connection.
    fn first(&mut self, packet: &Packet, hash: u32, now: u32) -> Track {
        match self.begin(packet, hash, now) {
            Ok(pending) => {
                self.counters.new += 1;
                Track::New(pending)
            }
            Err(reason) => self.refuse(reason),
        }
    }

    #[inline]
    fn begin(&self, packet: &Packet, hash: u32, now: u32) -> Result<Pending, Invalid> {
        let mut tcp = Tcp::default();
        let state = match &packet.transport {
            Transport::Tcp(segment) => {
                let (first, state) = Tcp::first(segment, self.config.tcp)?;
                tcp = first;
                state
            }
            Transport::Sctp(chunk) => {
                let (sides, state) = sctp::first(chunk, self.config.tcp)?;
                tcp.sides = sides;
                state
            }
            Transport::Other if packet.tuple.is_icmp_answer() => {
                return Err(Invalid::Unsolicited);
            }
            Transport::Other => State::Unreplied,
        };
        let conn = Conn {
            original: packet.tuple,
            generation: 0,
            seen: now,
            state,
            flags: 0,
            bits: tcp.bits,
            user: User::default(),
            reply: packet.tuple.reversed(),
            created: now,
            prev: NIL,
            next: NIL,
            mark: 0,
            slot: 0,
            timeout: timeout_of(&packet.tuple, state, false),
            fast: [SLOW; 2],
            packets: [u64::from(packet.packets), 0],
            bytes: [u64::from(packet.bytes), 0],
            sides: tcp.sides,
        };
        Ok(Pending { conn, hash })
    }

    /// Enters a connection, with the tuple that its answers will have: `pending.tuple().reversed()` without translation. May evict
    /// another one.
    pub fn confirm(
        &mut self,
        pending: Pending,
        reply: Tuple,
        user: User,
        now: Nanos,
        ended: &mut OnEnd<'_>,
    ) -> Result<ConnId, ConfirmError> {
        let conn = Conn {
            reply,
            user,
            ..pending.conn
        };
        self.enter(conn, pending.hash, now.secs(), ended)
    }

    fn enter(
        &mut self,
        conn: Conn,
        hash: u32,
        now: u32,
        ended: &mut OnEnd<'_>,
    ) -> Result<ConnId, ConfirmError> {
        let hashes = [hash, self.table.hash(&conn.reply)];
        let taken = |hash, tuple| self.table.find(hash, tuple).is_some();
        if taken(hashes[0], &conn.original) || taken(hashes[1], &conn.reply) {
            self.counters.clashes += 1;
            return Err(ConfirmError::Clash);
        }
        if self.is_source_full(&conn.original) {
            self.counters.source_limited += 1;
            return Err(ConfirmError::SourceLimit);
        }
        if self.table.is_full() && !self.evict(now, ended) {
            self.counters.full += 1;
            return Err(ConfirmError::Full);
        }
        let due = deadline(&conn, &self.config.timeouts);
        let id = self.table.insert(conn, hashes, due, now);
        self.counters.confirmed += 1;
        if self.config.events > 0 {
            self.tell(Event::New(self.record(&conn, now)));
        }
        Ok(id)
    }

    /// Ends a connection.
    fn end(&mut self, at: u32, reason: EndReason, now: u32, ended: &mut OnEnd<'_>) {
        let conn = self.table.remove(at);
        let c = &mut self.counters;
        match reason {
            EndReason::Expired => c.expired += 1,
            EndReason::Evicted => c.evicted[conn.class() as usize] += 1,
            EndReason::Reopened => c.reopened += 1,
            EndReason::Flushed | EndReason::Removed => c.flushed += 1,
        }
        if self.config.events > 0 {
            self.tell(Event::Ended(self.record(&conn, now), reason));
        }
        ended(&conn, reason);
    }

    fn is_source_full(&self, original: &Tuple) -> bool {
        let most = self.config.per_source;
        most.is_some_and(|most| self.table.sources.get(original.charged()) >= most)
    }

    fn tell(&mut self, event: Event) {
        if self.events.len() < self.config.events {
            self.events.push_back(event);
        } else {
            self.counters.events_lost += 1;
        }
    }

    /// The connection that has the tuple, and the direction the tuple is of. Changes nothing.
    #[must_use]
    pub fn lookup(&self, tuple: &Tuple) -> Option<(ConnId, Dir)> {
        let (at, dir) = self.table.find(self.table.hash(tuple), tuple)?;
        let generation = self.table.conns.get(at as usize)?.generation;
        Some((
            ConnId {
                index: at,
                generation,
            },
            dir,
        ))
    }

    /// The connection of a packet that an ICMP error quotes, and the direction of the *error*: towards who sent the packet. Changes
    /// nothing; an error neither refreshes nor ends a connection (RFC 5382 REQ-9, RFC 5508 REQ-4).
    #[must_use]
    pub fn lookup_inner(&self, quoted: &Tuple) -> Option<(ConnId, Dir)> {
        self.lookup(&quoted.reversed())
    }

    /// Whether TCP data quoted by an ICMP error may be under way: sent in the direction opposite to the error's, and not yet
    /// acknowledged. Blind forgeries don't know where that is (RFC 5927 section 4.1). True for other protocols.
    #[must_use]
    pub fn in_flight(&self, id: ConnId, error: Dir, seq: u32) -> bool {
        self.table.get(id).is_some_and(|c| {
            let tcp = Tcp {
                sides: c.sides,
                bits: c.bits,
            };
            c.original.proto != proto::TCP || tcp.in_flight(error.flip(), seq)
        })
    }

    /// The connection, if it still lives.
    #[must_use]
    pub fn get(&self, id: ConnId) -> Option<&Conn> {
        self.table.get(id)
    }

    /// What the gateway keeps with a connection, to change.
    pub fn user_mut(&mut self, id: ConnId) -> Option<&mut User> {
        self.table.get_mut(id).map(|c| &mut c.user)
    }

    /// Sets a connection's mark; false if it is no more.
    pub fn set_mark(&mut self, id: ConnId, mark: u32) -> bool {
        self.table.get_mut(id).map(|c| c.mark = mark).is_some()
    }

    /// Ends a connection, e.g. because policy no longer allows it; false if it is no more.
    pub fn remove(&mut self, id: ConnId, now: Nanos, ended: &mut OnEnd<'_>) -> bool {
        let there = self.table.get(id).is_some();
        if there {
            self.end(id.index, EndReason::Removed, now.secs(), ended);
        }
        there
    }

    /// Number of connections.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.table.len()
    }

    /// Number of connections of a class.
    #[must_use]
    pub fn count_of(&self, class: Class) -> u32 {
        let of = |t: &&Timeout| t.class() == class;
        let wheels = &self.table.wheels;
        Timeout::ALL.iter().filter(of).map(|&t| wheels.len(t)).sum()
    }

    /// Connections charged to the source of a tuple.
    #[must_use]
    pub fn count_from(&self, tuple: &Tuple) -> u32 {
        self.table.sources.get(tuple.charged())
    }

    /// Most connections.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.table.max()
    }

    /// Bytes reserved, of which as much is used as connections have needed at a time.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.table.memory()
    }

    /// Counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts a packet that [`Packet::of`] or the caller found to be no part of any connection.
    pub fn count_invalid(&mut self, reason: Invalid) {
        self.counters.invalid[reason as usize] += 1;
    }

    /// Takes the oldest event.
    pub fn take_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Changes the configuration, except for the size of the table and the seed. Connections take on other timeouts in the next ticks.
    pub fn configure(&mut self, config: Config) {
        if config.timeouts != self.config.timeouts {
            self.rearm = 0;
        }
        if config.events == 0 {
            self.events = VecDeque::new();
        }
        self.config = Config {
            max_entries: self.config.max_entries,
            seed: self.config.seed,
            ..config
        };
    }
}

#[inline]
fn hit(conn: &Conn, at: u32, dir: Dir, state: State) -> Hit {
    Hit {
        id: ConnId {
            index: at,
            generation: conn.generation,
        },
        dir,
        change: (state != conn.state).then_some(state),
        user: conn.user,
    }
}

/// What a packet of `dir` does to a connection's state.
#[inline]
fn step(
    conn: &mut Conn,
    dir: Dir,
    transport: &Transport,
    options: TcpOptions,
    now: u32,
) -> Result<Next, Invalid> {
    match transport {
        Transport::Tcp(segment) => {
            let mut tcp = Tcp {
                sides: conn.sides,
                bits: conn.bits,
            };
            let next = tcp.advance(conn.state, dir, segment, options)?;
            (conn.sides, conn.bits) = (tcp.sides, tcp.bits);
            Ok(next)
        }
        Transport::Sctp(chunk) => sctp::advance(&mut conn.sides, conn.state, dir, chunk),
        Transport::Other => Ok(Next::To(match (conn.state, dir) {
            (State::Unreplied, Dir::Reply) => State::Replied,
            (State::Replied, Dir::Reply)
                if now > conn.created.saturating_add(QUERY_SECS)
                    && !matches!(conn.original.proto, proto::ICMP | proto::ICMP6) =>
            {
                State::Stream
            }
            (state, _) => state,
        })),
    }
}
