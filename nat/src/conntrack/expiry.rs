//! Timer wheels, one per timeout: what is due, and what has been idle longest.
//!
//! A wheel has a slot per second, each a list through the connections. A packet only writes the second it was seen into its
//! connection; where the connection hangs in the wheel changes when it comes due and turns out to have been refreshed, or when its
//! timeout is another. All connections of a wheel have the same timeout, so the first one of a wheel that wasn't
//! refreshed is also the one idle longest, which is what eviction looks for.
//!
//! A bitmap of used slots with a summary makes the search for the next one a few instructions. Deadlines beyond the wheel's span
//! hang in its last slot and are looked at again then; with timeouts that long (over two hours and a quarter) the first one is only
//! about the one idle longest.

use super::conn::{Conn, NIL};
use super::timeouts::{TIMEOUTS, Timeout};

/// Slots of a wheel: longer than all default timeouts.
const SLOTS: usize = 8192;
const WORDS: usize = SLOTS / 64;
const SUMMARY: usize = WORDS / 64;

/// One wheel, its lists apart.
#[derive(Clone, Debug)]
struct Wheel {
    used: [u64; WORDS],
    summary: [u64; SUMMARY],
    /// Second up to which all is done; no used slot is before it.
    cursor: u32,
    len: u32,
}

/// The wheels.
#[derive(Debug)]
pub(super) struct Wheels {
    wheels: Vec<Wheel>,
    /// First of each slot's list plus one, 0 for none.
    heads: Vec<u32>,
}

fn slot_of(second: u32) -> usize {
    second as usize % SLOTS
}

impl Wheel {
    fn mark(&mut self, slot: usize) {
        self.used[slot / 64] |= 1 << (slot % 64);
        self.summary[slot / 4096] |= 1 << (slot / 64 % 64);
    }

    fn clear(&mut self, slot: usize) {
        self.used[slot / 64] &= !(1 << (slot % 64));
        if self.used[slot / 64] == 0 {
            self.summary[slot / 4096] &= !(1 << (slot / 64 % 64));
        }
    }

    /// First used slot at or after `from`, not wrapping.
    fn used_from(&self, from: usize) -> Option<usize> {
        let word = from / 64;
        let rest = self.used.get(word)? & (u64::MAX << (from % 64));
        if rest != 0 {
            return Some(word * 64 + rest.trailing_zeros() as usize);
        }
        let next = word + 1;
        let mut group = next / 64;
        let mut bits = self.summary.get(group)? & (u64::MAX << (next % 64));
        while bits == 0 {
            group += 1;
            bits = *self.summary.get(group)?;
        }
        let word = group * 64 + bits.trailing_zeros() as usize;
        Some(word * 64 + self.used[word].trailing_zeros() as usize)
    }

    /// The first used slot's second and number.
    fn first(&self) -> Option<(u32, usize)> {
        let start = slot_of(self.cursor);
        let slot = self.used_from(start).or_else(|| self.used_from(0))?;
        let ahead = (slot + SLOTS - start) % SLOTS;
        Some((self.cursor.saturating_add(ahead as u32), slot))
    }
}

impl Wheels {
    pub(super) fn new(now: u32) -> Wheels {
        let wheel = Wheel {
            used: [0; WORDS],
            summary: [0; SUMMARY],
            cursor: now,
            len: 0,
        };
        Wheels {
            wheels: vec![wheel; TIMEOUTS],
            heads: vec![0; TIMEOUTS * SLOTS],
        }
    }

    /// Hangs a connection into the wheel of its timeout, to be looked at in second `due`.
    pub(super) fn link(&mut self, conns: &mut [Conn], at: u32, due: u32, now: u32) {
        let timeout = conns[at as usize].timeout as usize;
        let wheel = &mut self.wheels[timeout];
        if wheel.len == 0 {
            wheel.cursor = now;
        }
        let ahead = due.saturating_sub(wheel.cursor).min(SLOTS as u32 - 1);
        let slot = slot_of(wheel.cursor.wrapping_add(ahead));
        wheel.len += 1;
        let head = &mut self.heads[timeout * SLOTS + slot];
        let (prev, next) = match head.checked_sub(1) {
            Some(first) => (conns[first as usize].prev, first),
            None => {
                wheel.mark(slot);
                *head = at + 1;
                (at, at)
            }
        };
        let conn = &mut conns[at as usize];
        (conn.prev, conn.next, conn.slot) = (prev, next, slot as u16);
        conns[prev as usize].next = at;
        conns[next as usize].prev = at;
    }

    /// Takes a connection out of its wheel.
    pub(super) fn unlink(&mut self, conns: &mut [Conn], at: u32) {
        let Conn {
            prev,
            next,
            slot,
            timeout,
            ..
        } = conns[at as usize];
        let wheel = &mut self.wheels[timeout as usize];
        wheel.len -= 1;
        let head = &mut self.heads[timeout as usize * SLOTS + usize::from(slot)];
        if next == at {
            *head = 0;
            wheel.clear(usize::from(slot));
        } else {
            if *head == at + 1 {
                *head = next + 1;
            }
            conns[prev as usize].next = next;
            conns[next as usize].prev = prev;
        }
        let conn = &mut conns[at as usize];
        (conn.prev, conn.next) = (NIL, NIL);
    }

    /// The connection of a wheel to look at first, and in which second.
    pub(super) fn first(&self, timeout: Timeout) -> Option<(u32, u32)> {
        let (second, slot) = self.wheels[timeout as usize].first()?;
        let head = self.heads[timeout as usize * SLOTS + slot];
        Some((second, head - 1))
    }

    /// Notes that nothing is due before `now`.
    pub(super) fn advance(&mut self, timeout: Timeout, now: u32) {
        let cursor = &mut self.wheels[timeout as usize].cursor;
        *cursor = now.max(*cursor);
    }

    /// Connections with this timeout.
    pub(super) fn len(&self, timeout: Timeout) -> u32 {
        self.wheels[timeout as usize].len
    }

    /// Bytes reserved.
    pub(super) fn memory(&self) -> usize {
        self.wheels.capacity() * size_of::<Wheel>() + self.heads.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_used_slot_is_found_around_the_wheel() {
        let mut w = Wheels::new(0).wheels.remove(0);
        for cursor in [0, 1, 63, 64, 4095, 4096, 8190, 8191, 100_000] {
            w.cursor = cursor;
            assert_eq!(w.first(), None);
            for ahead in [0, 1, 62, 63, 64, 65, 4095, 4096, 4097, 8191] {
                let slot = slot_of(cursor + ahead);
                w.mark(slot);
                w.mark(slot_of(cursor + SLOTS as u32 - 1));
                assert_eq!(w.first(), Some((cursor + ahead, slot)));
                w.clear(slot);
                w.clear(slot_of(cursor + SLOTS as u32 - 1));
            }
        }
    }
}
