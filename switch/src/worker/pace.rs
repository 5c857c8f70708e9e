//! When a worker that has nothing to do looks again instead of sleeping.
//!
//! # Theory of operation
//!
//! Waking a sleeping thread costs more than a frame's whole way through the switch, so where frames come one by one in quick
//! succession (a request and its answer) it pays to look again for a moment. It doesn't pay where nothing is expected so soon, and
//! it harms where long frames come in bulk: there the sender and the receiver need the processor. So a worker looks
//! again only if work has lately come at short intervals and in small amounts; both are running means. After one interval
//! that is long a worker needs a few short ones again: an idle switch never spins.

use crate::clock::Nanos;
use std::time::Duration;

/// Mean bytes of a turn with work above which transfers are in bulk: a few frames of 1,500 bytes.
const BULK: u64 = 8 << 10;
/// Weight of the latest of a running mean: 1/8.
const SHIFT: u32 = 3;

/// A worker's recent past.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    limit: Duration,
    /// Mean time between two turns with work, nanoseconds.
    gap: u64,
    /// Mean bytes of a turn with work.
    bytes: u64,
    last: Nanos,
}

impl Pace {
    /// Looks again for at most `limit`; zero never does.
    pub(super) fn new(limit: Duration) -> Pace {
        Pace {
            limit,
            gap: u64::MAX >> SHIFT,
            bytes: 0,
            last: Nanos(0),
        }
    }

    /// The turn that began at `now` had work of so many bytes.
    pub(super) fn worked(&mut self, now: Nanos, bytes: usize) {
        // Capped, so that a few short intervals outweigh a long one.
        let most = 4 * self.limit.as_nanos() as u64;
        let gap = (now.since(self.last).as_nanos() as u64).min(most);
        self.gap = mean(self.gap.min(most), gap);
        self.bytes = mean(self.bytes, bytes as u64);
        self.last = now;
    }

    /// Whether to look again at `now`.
    pub(super) fn spins(&self, now: Nanos) -> bool {
        let limit = self.limit.as_nanos() as u64;
        now.since(self.last) < self.limit && self.gap < limit && self.bytes < BULK
    }
}

fn mean(mean: u64, latest: u64) -> u64 {
    mean - (mean >> SHIFT) + (latest >> SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(60);

    fn after(pace: &mut Pace, turns: u64, every_us: u64, bytes: usize) -> bool {
        for _ in 0..turns {
            let now = pace.last.after(Duration::from_micros(every_us));
            pace.worked(now, bytes);
        }
        pace.spins(pace.last.after(Duration::from_micros(10)))
    }

    #[test]
    fn spins_for_small_work_in_quick_succession_only() {
        let mut p = Pace::new(LIMIT);
        assert!(!p.spins(Nanos(5)), "nothing yet");
        assert!(!after(&mut p, 2, 20, 100), "twice is no habit");
        assert!(after(&mut p, 30, 20, 100));
        assert!(!p.spins(p.last.after(LIMIT)), "only for so long");
        assert!(!after(&mut p, 30, 20, 64 << 10), "bulk");
        assert!(after(&mut p, 60, 20, 100));
        assert!(!after(&mut p, 30, 1000, 100), "too seldom");
        assert!(after(&mut p, 40, 20, 100));
    }

    #[test]
    fn a_limit_of_zero_never_spins() {
        let mut p = Pace::new(Duration::ZERO);
        assert!(!after(&mut p, 100, 0, 60));
    }
}
