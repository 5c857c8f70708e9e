//! Where connections lie: a slab of them, the map from tuples, the timer wheels, and the counts of sources, kept in step.
//!
//! All of it is reserved at once and backed with memory as it is used: a slab place is taken for the first time only when no freed one is
//! left, so what the table occupies follows the most connections there were. When the last one of many is gone, all is given
//! back. A table of few connections is backed page by page, one of many by huge pages ([`Table::settle`]).

use super::config::Config;
use super::conn::{Conn, ConnId, LIVE, NIL};
use super::expiry::Wheels;
use super::hash::Keyed;
use super::index::Index;
use super::limits::Sources;
use super::timeouts::{Timeout, Timeouts};
use super::tuple::{Dir, Tuple};
use vswitch_core::sys::mem;

/// Bound on `max_entries`: an entry of the map has the direction in its lowest bit.
const MOST: u32 = 1 << 28;
/// A table that has held more than this is given back when it is empty.
const KEEP: usize = 4096;
/// From so many connections on, tables are backed by huge pages: nearly every page of the map has been touched by then.
const MANY: u32 = 16_384;

#[derive(Debug)]
pub(super) struct Table {
    pub(super) conns: Vec<Conn>,
    index: Index,
    pub(super) wheels: Wheels,
    pub(super) sources: Sources,
    keyed: Keyed,
    /// First of the free places.
    free: u32,
    len: u32,
    max: u32,
    /// Generation of places taken for the first time.
    generation: u32,
    /// Huge pages of the map and of the slab that are made already.
    settled: usize,
}

impl Table {
    pub(super) fn new(config: &Config, now: u32) -> Table {
        let max = config.max_entries.clamp(1, MOST);
        Table {
            conns: slab(max),
            index: Index::new(max as usize * 2),
            wheels: Wheels::new(now),
            sources: Sources::new(config.seed),
            keyed: Keyed::new(config.seed),
            free: NIL,
            len: 0,
            max,
            generation: 0,
            settled: 0,
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn max(&self) -> u32 {
        self.max
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= self.max
    }

    #[inline]
    pub(super) fn hash(&self, tuple: &Tuple) -> u32 {
        self.keyed.tuple(tuple.to_words())
    }

    /// The connection that has the tuple.
    #[inline]
    pub(super) fn find(&self, hash: u32, tuple: &Tuple) -> Option<(u32, Dir)> {
        let conns = &self.conns;
        let entry = self.index.find(hash, |entry| {
            conns
                .get(entry as usize >> 1)
                .is_some_and(|c| c.tuple(Dir::of(entry)) == tuple)
        })?;
        Some((entry >> 1, Dir::of(entry)))
    }

    /// Reads the map where the hash leads.
    pub(super) fn touch(&self, hash: u32) -> u64 {
        self.index.touch(hash)
    }

    /// The entry with this hash that the map names first, not compared, or [`NIL`].
    pub(super) fn guess(&self, hash: u32) -> u32 {
        self.index.find(hash, |_| true).unwrap_or(NIL)
    }

    /// What a guess names, if it is the tuple's.
    #[inline]
    pub(super) fn check(&self, guess: u32, tuple: &Tuple) -> Option<(u32, Dir)> {
        let conn = self.conns.get(guess as usize >> 1)?;
        let dir = Dir::of(guess);
        (conn.is_live() && conn.tuple(dir) == tuple).then_some((guess >> 1, dir))
    }

    pub(super) fn get(&self, id: ConnId) -> Option<&Conn> {
        self.conns
            .get(id.index as usize)
            .filter(|c| c.is_live() && c.generation == id.generation)
    }

    pub(super) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns
            .get_mut(id.index as usize)
            .filter(|c| c.is_live() && c.generation == id.generation)
    }

    /// Enters a connection whose tuples have these hashes; the caller has made sure of room and that neither is there.
    pub(super) fn insert(
        &mut self,
        mut conn: Conn,
        hashes: [u32; 2],
        due: u32,
        now: u32,
    ) -> ConnId {
        conn.flags |= LIVE;
        let at = if let Some(place) = self.conns.get_mut(self.free as usize) {
            let at = self.free;
            self.free = place.next;
            conn.generation = place.generation;
            *place = conn;
            at
        } else {
            conn.generation = self.generation;
            self.conns.push(conn);
            self.conns.len() as u32 - 1
        };
        self.len += 1;
        self.index.insert(hashes[0], at << 1);
        // A connection with itself has one tuple.
        if conn.reply != conn.original {
            self.index.insert(hashes[1], at << 1 | 1);
        }
        self.sources.add(conn.original.charged());
        self.wheels.link(&mut self.conns, at, due, now);
        ConnId {
            index: at,
            generation: conn.generation,
        }
    }

    /// Removes a live connection and returns it as it was.
    pub(super) fn remove(&mut self, at: u32) -> Conn {
        self.wheels.unlink(&mut self.conns, at);
        let conn = self.conns[at as usize];
        self.index.remove(self.hash(&conn.original), at << 1);
        self.index.remove(self.hash(&conn.reply), at << 1 | 1);
        self.sources.sub(conn.original.charged());
        let place = &mut self.conns[at as usize];
        place.flags = 0;
        place.generation = place.generation.wrapping_add(1);
        self.generation = self.generation.max(place.generation);
        place.next = self.free;
        self.free = at;
        self.len -= 1;
        conn
    }

    /// Gives the connection another timeout.
    pub(super) fn rearm(&mut self, at: u32, timeout: Timeout, timeouts: &Timeouts, now: u32) {
        self.wheels.unlink(&mut self.conns, at);
        let conn = &mut self.conns[at as usize];
        conn.timeout = timeout;
        let due = deadline(conn, timeouts);
        self.wheels.link(&mut self.conns, at, due, now);
    }

    /// Gives memory back if the table is empty and was large.
    pub(super) fn shrink(&mut self) {
        if self.len == 0 && self.conns.len() > KEEP {
            self.conns = slab(self.max);
            self.settled = 0;
            self.index = Index::new(self.max as usize * 2);
            self.free = NIL;
            // Names of connections that were must not fit ones to come.
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// A step of backing a table of many connections by huge pages: one of them, as each takes a moment. Whether there is more to do.
    pub(super) fn settle(&mut self) -> bool {
        let map = self.index.slots();
        let (pages, plain) = (mem::huge_pages(map), plain_pages());
        if self.len < MANY || self.settled >= pages + plain {
            return false;
        }
        if self.settled == 0 {
            mem::want_huge(map, 0);
            mem::want_huge(&self.conns, 0);
        }
        // What the kernel doesn't do now it may do later by itself.
        let _ = match self.settled.checked_sub(pages) {
            None => mem::make_huge(map, self.settled),
            Some(page) => mem::make_huge(&self.conns, page),
        };
        self.settled += 1;
        self.settled < pages + plain
    }

    /// Bytes reserved.
    pub(super) fn memory(&self) -> usize {
        self.conns.capacity() * size_of::<Conn>()
            + self.index.memory()
            + self.wheels.memory()
            + self.sources.memory()
    }
}

/// An empty slab: its first places are backed page by page, further ones by huge pages.
fn slab(max: u32) -> Vec<Conn> {
    let conns = Vec::with_capacity(max as usize);
    mem::want_huge(&conns, plain_pages());
    conns
}

/// Huge pages' worth of the slab that are filled before there are many connections.
fn plain_pages() -> usize {
    (MANY as usize * size_of::<Conn>()).div_ceil(mem::HUGE)
}

/// The second at which the connection is over, if no packet comes. Seconds are whole, so one more, lest it be too early.
pub(super) fn deadline(conn: &Conn, timeouts: &Timeouts) -> u32 {
    conn.seen
        .saturating_add(timeouts.get(conn.timeout))
        .saturating_add(1)
}
