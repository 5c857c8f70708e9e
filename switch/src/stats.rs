//! Counters.
//!
//! Every worker has its own [`PortCounters`] for every port and is their only writer: an increment is a plain load
//! and store. Readers (the control plane) sum over workers at any time, without asking the worker. Within a turn
//! counts gather in a [`Tally`] and are added once.
//!
//! The ledger: received + copied + originated + split = sent + dropped + held, summed over all ports.

use crate::frame::DropReason;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Number of drop reasons.
pub const REASONS: usize = DropReason::ALL.len();

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owner may.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Sets; only the owner may. For gauges.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The present value; anyone may.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One worker's counters of one port.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Frames received from the port.
    pub rx_frames: Counter,
    /// Their bytes, Ethernet header included, FCS not.
    pub rx_bytes: Counter,
    /// Frames sent to the port.
    pub tx_frames: Counter,
    /// Their bytes.
    pub tx_bytes: Counter,
    /// Receive errors: failed reads, and frames the kernel dropped before we could read them (packet ports).
    pub rx_errors: Counter,
    /// Copies made for this egress port (flood, mirror).
    pub copied: Counter,
    /// Frames made by the switch itself for this egress port.
    pub originated: Counter,
    /// Further frames that software segmentation made for this egress port, beyond the one that came.
    pub split: Counter,
    /// Frames waiting in the transmit queue (gauge).
    pub held: Counter,
    drops: DropCounters,
}

#[derive(Debug)]
struct DropCounters([Counter; REASONS]);

impl Default for DropCounters {
    fn default() -> Self {
        DropCounters(std::array::from_fn(|_| Counter::default()))
    }
}

impl PortCounters {
    /// Counts `n` dropped frames.
    pub fn count_drop(&self, why: DropReason, n: u64) {
        self.drops.0[why as usize].add(n);
    }

    /// Frames dropped for a reason.
    #[must_use]
    pub fn dropped(&self, why: DropReason) -> u64 {
        self.drops.0[why as usize].get()
    }

    /// Adds a receive tally.
    pub(crate) fn add_rx(&self, t: &mut Tally) {
        self.rx_frames.add(u64::from(t.frames));
        self.rx_bytes.add(t.bytes);
        self.rx_errors.add(u64::from(t.errors));
        self.add_drops(t);
        *t = Tally {
            drops: t.drops,
            ..Tally::default()
        };
    }

    /// Adds a transmit tally.
    pub(crate) fn add_tx(&self, t: &mut Tally) {
        self.tx_frames.add(u64::from(t.frames));
        self.tx_bytes.add(t.bytes);
        self.add_drops(t);
        *t = Tally {
            drops: t.drops,
            ..Tally::default()
        };
    }

    fn add_drops(&self, t: &mut Tally) {
        if !t.any_drop {
            return;
        }
        for (i, n) in t.drops.iter_mut().enumerate() {
            if *n > 0 {
                self.drops.0[i].add(u64::from(*n));
                *n = 0;
            }
        }
        t.any_drop = false;
    }
}

/// Counts of one turn of one port.
#[derive(Debug)]
pub struct Tally {
    /// Frames received or sent, dropped ones not counted as sent but counted as received.
    pub frames: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Failed reads.
    pub errors: u32,
    drops: [u32; REASONS],
    any_drop: bool,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            frames: 0,
            bytes: 0,
            errors: 0,
            drops: [0; REASONS],
            any_drop: false,
        }
    }
}

impl Tally {
    /// Counts a frame that passed.
    pub fn frame(&mut self, len: usize) {
        self.frames += 1;
        self.bytes += len as u64;
    }

    /// Counts a dropped frame.
    pub fn count_drop(&mut self, why: DropReason) {
        self.drops[why as usize] += 1;
        self.any_drop = true;
    }
}
