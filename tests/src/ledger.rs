//! The frame ledger: every frame the switch took or made has been sent, dropped with a reason, or waits.
//!
//! received + copied + originated + split = sent + dropped + held, summed over all ports, those that are deleted included
//! (`vswitch_core::stats` says what each is). Counters are read while the switch works, so a sum
//! that is out is read again until traffic has settled.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::daemon::Daemon;

/// Frames, summed over all ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    pub received: u64,
    /// Made by flooding and mirroring.
    pub copied: u64,
    /// Made by the switch itself.
    pub originated: u64,
    /// Made by software segmentation, beyond the frame that came.
    pub split: u64,
    pub sent: u64,
    pub dropped: u64,
    /// Waiting in transmit queues.
    pub held: u64,
}

impl Ledger {
    /// Sums `vswitchctl stats --json`.
    ///
    /// # Panics
    /// When a counter is missing.
    #[track_caller]
    pub fn of(stats: &Value) -> Self {
        let count = |name: &str| {
            stats["totals"][name]
                .as_u64()
                .unwrap_or_else(|| panic!("no total `{name}` in {stats}"))
        };
        Self {
            received: count("received"),
            copied: count("copied"),
            originated: count("originated"),
            split: count("split"),
            sent: count("sent"),
            dropped: count("dropped"),
            held: count("held"),
        }
    }

    /// Whether the two sides are equal.
    pub fn balances(&self) -> bool {
        self.received + self.copied + self.originated + self.split
            == self.sent + self.dropped + self.held
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            received,
            copied,
            originated,
            split,
            sent,
            dropped,
            held,
        } = self;
        write!(
            f,
            "received {received} + copied {copied} + originated {originated} + split {split} "
        )?;
        write!(f, "against sent {sent} + dropped {dropped} + held {held}")
    }
}

impl Daemon {
    /// The ledger as it is now.
    #[track_caller]
    pub fn ledger(&self) -> Ledger {
        Ledger::of(&self.ctl_json(&["stats"]))
    }

    /// The ledger balances, within 5 s of the last traffic, and isn't empty; returns it.
    #[track_caller]
    pub fn assert_ledger(&self) -> Ledger {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let ledger = self.ledger();
            if ledger.balances() {
                assert!(
                    ledger.received > 0,
                    "nothing was received, so the ledger shows nothing"
                );
                return ledger;
            }
            assert!(
                Instant::now() < end,
                "frames are lost without a reason, or counted twice: {ledger}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_frame_is_seen() {
        let totals = |received: u64, sent: u64, dropped: u64| {
            serde_json::json!({"totals": {"received": received, "copied": 0, "originated": 0, "split": 0,
                                          "sent": sent, "dropped": dropped, "held": 0}})
        };
        let ledger = Ledger::of(&totals(5, 2, 3));
        assert!(ledger.balances(), "{ledger}");
        assert_eq!((ledger.received, ledger.sent, ledger.dropped), (5, 2, 3));
        assert!(!Ledger::of(&totals(5, 4, 0)).balances());
    }
}
