//! Queries per second of each port, and how many of its questions may be under way: one container can't take the resolver from the others.
//!
//! The bucket is a time (as in the policy's meters): the time at which it would be full again.

use hashbrown::HashMap;
use std::time::Duration;
use vswitch_core::clock::Nanos;

/// Most ports that are remembered; a port whose bucket is full again needs no memory.
const PORTS: usize = 4096;

#[derive(Debug, Default)]
struct Share {
    full: Nanos,
    in_flight: usize,
}

/// Limits by port.
#[derive(Debug)]
pub(super) struct Limits {
    per_query: Duration,
    burst: Duration,
    in_flight: usize,
    ports: HashMap<u32, Share, foldhash::quality::RandomState>,
}

impl Limits {
    /// `rate` of 0 doesn't limit.
    pub(super) fn new(rate: u32, burst: u32, in_flight: usize) -> Limits {
        let per_query = Duration::from_secs(1).checked_div(rate).unwrap_or_default();
        Limits {
            per_query,
            burst: per_query * burst,
            in_flight,
            ports: HashMap::default(),
        }
    }

    /// Whether a query of the port may be served.
    pub(super) fn admit(&mut self, port: u32, now: Nanos) -> bool {
        if self.per_query.is_zero() {
            return true;
        }
        if self.ports.len() >= PORTS && !self.ports.contains_key(&port) {
            self.ports.retain(|_, s| s.in_flight > 0 || s.full > now);
            if self.ports.len() >= PORTS {
                return false;
            }
        }
        let share = self.ports.entry(port).or_default();
        let full = share.full.max(now);
        let passes = full.since(now) < self.burst;
        if passes {
            share.full = full.after(self.per_query);
        }
        passes
    }

    /// Takes one of the port's places for questions under way.
    pub(super) fn begin(&mut self, port: u32) -> bool {
        let share = self.ports.entry(port).or_default();
        let free = share.in_flight < self.in_flight;
        share.in_flight += usize::from(free);
        free
    }

    /// Gives it back.
    pub(super) fn end(&mut self, port: u32) {
        if let Some(share) = self.ports.get_mut(&port) {
            share.in_flight = share.in_flight.saturating_sub(1);
        }
        if self.per_query.is_zero() && self.ports.get(&port).is_some_and(|s| s.in_flight == 0) {
            self.ports.remove(&port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_then_rate_for_each_port() {
        let mut limits = Limits::new(100, 20, 2);
        let at = |ms| Nanos(3_600_000_000_000).after(Duration::from_millis(ms));
        let passed = (0..1000).filter(|ms| limits.admit(1, at(*ms))).count();
        assert!((115..=121).contains(&passed), "{passed}");
        assert!(limits.admit(2, at(1000)));
        assert!(limits.begin(1) && limits.begin(1) && !limits.begin(1));
        limits.end(1);
        assert!(limits.begin(1));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut limits = Limits::new(1, 1, 1);
        let now = Nanos(1);
        let passed = (0..10_000).filter(|port| limits.admit(*port, now)).count();
        assert_eq!(passed, PORTS);
        // Full buckets are forgotten.
        assert!(limits.admit(10_000, now.after(Duration::from_secs(2))));
    }
}
