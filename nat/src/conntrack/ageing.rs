//! Connections that end by themselves: expired, or evicted from a full table.

use super::conn::NIL;
use super::table::deadline;
use super::timeouts::{Class, Timeout};
use super::{Conntrack, EndReason, OnEnd};
use vswitch_core::clock::Nanos;

/// How many refreshed connections eviction passes over per wheel; then it takes the one at hand, idle longest or not.
const TRIES: usize = 32;

impl Conntrack {
    /// Ends what is over, looking at no more than `budget` connections; returns when to call again: `now` if work is left,
    /// [`Nanos::MAX`] if there are no connections.
    pub fn tick(&mut self, now: Nanos, budget: usize, ended: &mut OnEnd<'_>) -> Nanos {
        let secs = now.secs();
        let mut budget = budget.max(1);
        if self.rearm != NIL {
            self.rearm_some(secs, &mut budget);
            if budget == 0 {
                return now;
            }
        }
        let mut due = u32::MAX;
        let wheels = Timeout::ALL.len();
        for _ in 0..wheels {
            match self.expire(Timeout::ALL[self.wheel], secs, &mut budget, ended) {
                Some(next) => due = due.min(next),
                None => return now,
            }
            // The next tick goes on where this one stops, so that a long list doesn't starve the others.
            self.wheel = (self.wheel + 1) % wheels;
        }
        self.table.shrink();
        if self.table.settle() {
            return now;
        }
        match due {
            u32::MAX => Nanos::MAX,
            due => Nanos(u64::from(due) * 1_000_000_000),
        }
    }

    /// Works off one wheel; returns the second it is due again, or `None` if the budget is used up.
    fn expire(
        &mut self,
        timeout: Timeout,
        now: u32,
        budget: &mut usize,
        ended: &mut OnEnd<'_>,
    ) -> Option<u32> {
        loop {
            let next = match self.table.wheels.first(timeout) {
                Some((second, at)) if second <= now => {
                    // Slots before are empty; the span begins here, or a late tick would hang long deadlines into the past.
                    self.table.wheels.advance(timeout, second);
                    at
                }
                other => {
                    self.table.wheels.advance(timeout, now);
                    return Some(other.map_or(u32::MAX, |(second, _)| second));
                }
            };
            *budget = budget.checked_sub(1)?;
            let due = deadline(&self.table.conns[next as usize], &self.config.timeouts);
            if due <= now {
                self.end(next, EndReason::Expired, now, ended);
            } else {
                let timeouts = &self.config.timeouts;
                self.table.rearm(next, timeout, timeouts, now);
            }
        }
    }

    /// After a change of timeouts: hangs connections where they belong now.
    fn rearm_some(&mut self, now: u32, budget: &mut usize) {
        while *budget > 0 {
            let Some(conn) = self.table.conns.get(self.rearm as usize) else {
                self.rearm = NIL;
                return;
            };
            if conn.is_live() {
                let timeout = conn.timeout;
                let timeouts = &self.config.timeouts;
                self.table.rearm(self.rearm, timeout, timeouts, now);
            }
            self.rearm += 1;
            *budget -= 1;
        }
    }

    /// Makes room: ends the connection idle longest of the class that gives way most readily. False if none may be evicted.
    pub(super) fn evict(&mut self, now: u32, ended: &mut OnEnd<'_>) -> bool {
        for class in Class::ALL {
            if class > self.config.evict {
                break;
            }
            let of_class = Timeout::ALL.iter().filter(|t| t.class() == class);
            let oldest = of_class
                .filter_map(|&t| {
                    let at = self.idle_longest(t, now)?;
                    Some((self.table.conns[at as usize].seen, at))
                })
                .min();
            if let Some((_, at)) = oldest {
                self.end(at, EndReason::Evicted, now, ended);
                return true;
            }
        }
        false
    }

    /// Whether [`Conntrack::evict`] would find one.
    pub(super) fn can_evict(&self) -> bool {
        let allowed = |t: &&Timeout| t.class() <= self.config.evict;
        let mut timeouts = Timeout::ALL.iter().filter(allowed);
        timeouts.any(|&t| self.table.wheels.len(t) > 0)
    }

    /// The connection of a wheel that is idle longest.
    fn idle_longest(&mut self, timeout: Timeout, now: u32) -> Option<u32> {
        let mut tries = TRIES;
        loop {
            let (second, at) = self.table.wheels.first(timeout)?;
            let due = deadline(&self.table.conns[at as usize], &self.config.timeouts);
            if due <= second || tries == 0 {
                return Some(at);
            }
            tries -= 1;
            let timeouts = &self.config.timeouts;
            self.table.rearm(at, timeout, timeouts, now);
        }
    }
}
