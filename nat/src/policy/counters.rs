//! What rules count, and their token buckets.

use super::rule::Rule;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use vswitch_core::bridge::Rate;
use vswitch_core::clock::Nanos;
use vswitch_core::policy::meter::Meter;

/// Events of a rule that may come at once, at least.
pub const LOG_BURST: u64 = 5;

/// What a rule has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections judged by it, and packets judged one by one.
    pub judged: u64,
    /// Of these, how many were beyond its rate.
    pub over_rate: u64,
    /// Packets of its connections.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Counters and token buckets of a rule; workers share them.
#[derive(Debug)]
pub(super) struct Tally {
    judged: AtomicU64,
    over_rate: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    log: Option<Meter>,
    limit: Option<Meter>,
}

impl Tally {
    pub(super) fn new(rule: &Rule) -> Tally {
        let log = rule.log.map(|n| Rate {
            per_second: n.into(),
            burst: LOG_BURST.max(n.into()),
        });
        Tally {
            judged: AtomicU64::new(0),
            over_rate: AtomicU64::new(0),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            log: log.map(Meter::new),
            limit: rule.limit.map(Meter::new),
        }
    }

    /// Counts a judgement; false if it is beyond the rule's rate.
    pub(super) fn judged(&self, now: Nanos) -> bool {
        self.judged.fetch_add(1, Relaxed);
        let within = self.limit.as_ref().is_none_or(|m| m.admit(now, 1));
        if !within {
            self.over_rate.fetch_add(1, Relaxed);
        }
        within
    }

    /// Whether a judgement is within the rule's rate.
    pub(super) fn is_within(&self, now: Nanos) -> bool {
        self.limit.as_ref().is_none_or(|m| m.passes(now))
    }

    pub(super) fn packets(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Whether the match is to be told.
    pub(super) fn is_told(&self, now: Nanos) -> bool {
        self.log.as_ref().is_some_and(|m| m.admit(now, 1))
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            judged: self.judged.load(Relaxed),
            over_rate: self.over_rate.load(Relaxed),
            packets: self.packets.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        }
    }
}
