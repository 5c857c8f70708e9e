//! A batch's look-ups ahead of its judgement.
//!
//! With many connections each look-up misses the cache several times: the map, the connection, its flow. Done packet by packet these
//! misses follow one another; so the tables are read for the whole batch first, where they overlap. What is found is a hint
//! only ([`Hint`]): judging one packet may end or enter the connection of another. With few connections all is in the
//! cache anyway, and nothing is looked up ahead.

use super::Gateway;
use super::forward::tracked;
use crate::conntrack::{Hint, Packet};
use arrayvec::ArrayVec;
use vswitch_core::frame::{BATCH_SIZE, Batch, Verdict};

/// Fewer connections than this are in the cache.
const MANY: u32 = 2048;

/// What was looked up for the batch at hand.
#[derive(Debug)]
pub(super) struct Ahead {
    packets: ArrayVec<Packet, BATCH_SIZE>,
    hints: [Hint; BATCH_SIZE],
    /// Place in the batch of each.
    places: ArrayVec<u8, BATCH_SIZE>,
    /// The next of them.
    next: usize,
    /// It is that of the packet at hand.
    meant: bool,
}

impl Default for Ahead {
    fn default() -> Ahead {
        Ahead {
            packets: ArrayVec::new(),
            hints: [Hint::default(); BATCH_SIZE],
            places: ArrayVec::new(),
            next: 0,
            meant: false,
        }
    }
}

impl Ahead {
    /// The frame at this place of the batch is at hand.
    pub(super) fn at(&mut self, place: usize) {
        let place_of = |i: usize| self.places.get(i).map(|p| usize::from(*p));
        let mut next = self.next;
        while place_of(next).is_some_and(|p| p < place) {
            next += 1;
        }
        self.meant = place_of(next) == Some(place);
        self.next = next;
    }

    /// Another frame is, from elsewhere than the batch, or none.
    pub(super) fn over(&mut self) {
        self.meant = false;
    }

    /// The packet at hand with its hint, once.
    pub(super) fn take(&mut self) -> Option<(Packet, Hint)> {
        if !std::mem::take(&mut self.meant) {
            return None;
        }
        let packet = self.packets.get(self.next)?;
        Some((*packet, *self.hints.get(self.next)?))
    }
}

impl Gateway {
    /// Looks up the connections of a batch's packets.
    pub(super) fn look_ahead(&mut self, batch: &Batch) {
        let a = &mut self.ahead;
        a.packets.clear();
        a.places.clear();
        (a.next, a.meant) = (0, false);
        let Some(tracking) = self.tracking.as_deref() else {
            return;
        };
        if tracking.conns.count() < MANY || batch.entries.len() < 2 {
            return;
        }
        for (place, e) in (0u8..).zip(&batch.entries) {
            if e.verdict == Verdict::Gateway
                && let Some(packet) = tracked(e, super::flows::ZONE)
            {
                a.packets.push(packet);
                a.places.push(place);
            }
        }
        tracking.conns.look_ahead(&a.packets, &mut a.hints);
        let mut seen = 0;
        for hint in a.hints.iter().take(a.packets.len()) {
            if let Some(user) = tracking.conns.hinted(*hint) {
                seen ^= tracking.flows.touch(user.nat);
            }
        }
        std::hint::black_box(seen);
    }
}
