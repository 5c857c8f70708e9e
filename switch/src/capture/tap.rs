//! A worker's side of a capture: what happens to a frame at a tapped port.

use super::{Captured, Direction, Drops, Session};
use crate::clock::Nanos;
use crate::frame::{Batch, DropReason, Frame, Verdict};
use crate::wire::{self, Meta};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a session has met at one port.
#[derive(Debug, Default)]
pub struct TapCounts {
    /// Frames looked at.
    pub seen: AtomicU64,
    /// Frames that passed the filter.
    pub passed: AtomicU64,
    /// Of those, the ones of which no copy could be kept.
    pub lost: AtomicU64,
}

/// A session at one port.
#[derive(Clone, Debug)]
pub struct Tap {
    /// The session.
    pub session: Arc<Session>,
    /// The port's number in the capture.
    pub interface: u32,
    /// Where to count.
    pub counts: Arc<TapCounts>,
}

/// The time of a worker's turn, for its taps.
#[derive(Clone, Debug, Default)]
pub(crate) struct TurnClock(Arc<AtomicU64>);

impl TurnClock {
    /// A turn begins.
    pub(crate) fn set(&self, now: Nanos) {
        self.0.store(now.0, Relaxed);
    }
}

/// The taps of one side of a port.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    taps: Vec<Tap>,
    clock: TurnClock,
}

/// Copies of frames received whose fate isn't known yet: entry of the batch, tap, copy.
#[derive(Debug, Default)]
pub(crate) struct Receipts(Vec<(u8, u16, Captured)>);

impl Receipts {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Taps {
    /// Those of the taps that look at this side.
    pub(crate) fn of_side(taps: &[Tap], side: Direction, clock: &TurnClock) -> Taps {
        let looks = |t: &&Tap| match side {
            Direction::Ingress => t.session.spec.ingress,
            Direction::Egress => t.session.spec.egress,
        };
        Taps {
            taps: taps.iter().filter(looks).cloned().collect(),
            clock: clock.clone(),
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.taps.is_empty()
    }

    /// Frames were received; [`Taps::settle`] says what became of them. Those that aren't `fresh` were shown before.
    pub(crate) fn received(&self, batch: &Batch, fresh: bool, receipts: &mut Receipts) {
        for (entry, e) in batch.entries.iter().enumerate() {
            // A runt has no headers.
            let meta = (e.frame.len() >= 14).then_some(&e.meta);
            for (i, tap) in self.taps.iter().enumerate() {
                if !fresh && tap.session.spec.drops == Drops::Ignore {
                    continue;
                }
                if let Some(copy) = self.copy(tap, &e.frame, meta, Direction::Ingress, None) {
                    receipts.0.push((entry as u8, i as u16, copy));
                }
            }
        }
    }

    /// The stages have judged the frames received.
    pub(crate) fn settle(
        &self,
        batch: &Batch,
        fresh: bool,
        has_gateway: bool,
        receipts: &mut Receipts,
    ) {
        for (entry, tap, mut copy) in receipts.0.drain(..) {
            let Some(tap) = self.taps.get(usize::from(tap)) else {
                continue;
            };
            let verdict = batch.entries.get(usize::from(entry)).map(|e| e.verdict);
            let dropped = verdict.and_then(|v| fate(v, has_gateway));
            let drops = tap.session.spec.drops;
            if dropped.is_none() && (drops == Drops::Only || !fresh) {
                tap.counts.passed.fetch_sub(1, Relaxed);
                tap.session.recycle(copy);
                continue;
            }
            if drops != Drops::Ignore {
                copy.dropped = dropped;
            }
            tap.push(copy);
        }
    }

    /// Frames were received that no stage will see, for `why`.
    #[cold]
    pub(crate) fn refused(&self, batch: &Batch, why: DropReason) {
        for e in &batch.entries {
            let meta = wire::parse(e.frame.head(), e.frame.len());
            for tap in &self.taps {
                let copy = self.copy(tap, &e.frame, meta.as_ref(), Direction::Ingress, None);
                if let Some(mut copy) = copy {
                    copy.dropped = (tap.session.spec.drops != Drops::Ignore).then_some(why);
                    tap.push(copy);
                }
            }
        }
    }

    /// A frame was sent.
    #[cold]
    pub(crate) fn sent(&self, frame: &Frame) {
        self.leaves(frame, None);
    }

    /// A frame that was to leave is dropped.
    #[cold]
    pub(crate) fn dropped(&self, frame: &Frame, why: DropReason) {
        self.leaves(frame, Some(why));
    }

    /// Whether somebody looks at frames dropped on their way out.
    pub(crate) fn any_drops(&self) -> bool {
        let looks = |t: &Tap| t.session.spec.drops != Drops::Ignore;
        self.taps.iter().any(looks)
    }

    fn leaves(&self, frame: &Frame, dropped: Option<DropReason>) {
        let meta = wire::parse(frame.head(), frame.len());
        for tap in &self.taps {
            match (tap.session.spec.drops, dropped) {
                (Drops::Ignore, Some(_)) | (Drops::Only, None) => continue,
                _ => {}
            }
            if let Some(copy) = self.copy(tap, frame, meta.as_ref(), Direction::Egress, dropped) {
                tap.push(copy);
            }
        }
    }

    /// A copy of the frame if the session wants it and there is room.
    fn copy(
        &self,
        tap: &Tap,
        frame: &Frame,
        meta: Option<&Meta>,
        direction: Direction,
        dropped: Option<DropReason>,
    ) -> Option<Captured> {
        let (session, counts) = (&tap.session, &tap.counts);
        counts.seen.fetch_add(1, Relaxed);
        let len = frame.len();
        if let Some(filter) = &session.spec.filter
            && !meta.is_some_and(|m| filter.matches(frame.head(), len, m))
        {
            return None;
        }
        counts.passed.fetch_add(1, Relaxed);
        let kept = len.min(session.spec.snaplen);
        let Some(mut bytes) = session.ring.take(kept) else {
            counts.lost.fetch_add(1, Relaxed);
            return None;
        };
        let (head, tail) = (frame.head(), frame.tail());
        let in_head = kept.min(head.len());
        bytes.extend_from_slice(&head[..in_head]);
        bytes.extend_from_slice(&tail[..(kept - in_head).min(tail.len())]);
        Some(Captured {
            interface: tap.interface,
            time: session.epoch.wrapping_add(self.clock.0.load(Relaxed)),
            direction,
            dropped,
            len,
            vnet: frame.vnet,
            bytes,
        })
    }
}

impl Tap {
    fn push(&self, copy: Captured) {
        if !self.session.push(copy) {
            self.counts.lost.fetch_add(1, Relaxed);
        }
    }
}

/// Why a frame goes no further, by its verdict; as the worker's dispatch has it.
fn fate(verdict: Verdict, has_gateway: bool) -> Option<DropReason> {
    match verdict {
        Verdict::Drop(why) => Some(why),
        Verdict::Flood(set) if set.len == 0 => Some(DropReason::NoDestination),
        Verdict::Next => Some(DropReason::NoDestination),
        // Else it is handed to the worker that has it.
        Verdict::Gateway if has_gateway => Some(DropReason::NoDestination),
        _ => None,
    }
}
