//! Connections for control: shown, flushed, written down and read back, a bounded number per call.

use super::conn::{Conn, REPLIED, Record, SLOW};
use super::table::deadline;
use super::timeouts::timeout_of;
use super::{ConfirmError, ConnId, Conntrack, EndReason, NIL, OnEnd};
use vswitch_core::clock::Nanos;

/// Where a dump or a flush goes on. Connections that come or go meanwhile may or may not be met; all others are, once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u32);

impl Conntrack {
    /// Connections among the next `budget` places; with where to go on, or `None` after the last. This is also what to write
    /// down before a restart.
    #[must_use]
    pub fn dump(&self, from: Cursor, budget: usize, now: Nanos) -> (Vec<Record>, Option<Cursor>) {
        let (places, next) = self.places(from, budget);
        let some = self.table.conns[places]
            .iter()
            .filter(|c| c.is_live())
            .map(|c| self.record(c, now.secs()))
            .collect();
        (some, next)
    }

    /// Ends the connections among the next `budget` places that match; returns how many, and where to go on.
    pub fn flush(
        &mut self,
        from: Cursor,
        budget: usize,
        now: Nanos,
        mut matches: impl FnMut(&Conn) -> bool,
        ended: &mut OnEnd<'_>,
    ) -> (usize, Option<Cursor>) {
        let (places, next) = self.places(from, budget);
        let mut flushed = 0;
        for at in places {
            let conn = &self.table.conns[at];
            if conn.is_live() && matches(conn) {
                self.end(at as u32, EndReason::Flushed, now.secs(), ended);
                flushed += 1;
            }
        }
        (flushed, next)
    }

    fn places(&self, from: Cursor, budget: usize) -> (std::ops::Range<usize>, Option<Cursor>) {
        let all = self.table.conns.len();
        let first = (from.0 as usize).min(all);
        let last = first.saturating_add(budget.max(1)).min(all);
        (first..last, (last < all).then_some(Cursor(last as u32)))
    }

    /// A connection as control sees it.
    #[must_use]
    pub fn record_of(&self, id: ConnId, now: Nanos) -> Option<Record> {
        Some(self.record(self.table.get(id)?, now.secs()))
    }

    pub(super) fn record(&self, c: &Conn, now: u32) -> Record {
        Record {
            original: c.original,
            reply: c.reply,
            state: c.state,
            replied: c.replied(),
            timeout: c.timeout,
            age: now.saturating_sub(c.created),
            idle: now.saturating_sub(c.seen),
            left: deadline(c, &self.config.timeouts).saturating_sub(now),
            packets: c.packets,
            bytes: c.bytes,
            user: c.user,
            mark: c.mark,
            sides: c.sides,
            bits: c.bits,
        }
    }

    /// Enters a connection that was written down, with its idle time, by the same rules as a new one: a full table evicts. The time
    /// between writing and reading isn't counted; the caller may add it to `idle`.
    pub fn import(
        &mut self,
        record: &Record,
        now: Nanos,
        ended: &mut OnEnd<'_>,
    ) -> Result<ConnId, ConfirmError> {
        let secs = now.secs();
        let conn = Conn {
            original: record.original,
            generation: 0,
            seen: secs.saturating_sub(record.idle),
            state: record.state,
            flags: if record.replied { REPLIED } else { 0 },
            bits: record.bits,
            user: record.user,
            reply: record.reply,
            created: secs.saturating_sub(record.age),
            prev: NIL,
            next: NIL,
            mark: record.mark,
            slot: 0,
            timeout: timeout_of(&record.original, record.state, record.replied),
            fast: [SLOW; 2],
            packets: record.packets,
            bytes: record.bytes,
            sides: record.sides,
        };
        let hash = self.table.hash(&conn.original);
        self.enter(conn, hash, secs, ended)
    }
}
