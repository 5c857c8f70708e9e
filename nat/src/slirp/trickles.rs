//! Connections whose streams are looked at from time to time ([`tcp::Mirror::trickles`]): one timer for all of them.
//!
//! Their sockets are watched for errors and room only, so that nothing they receive wakes the worker. The timer runs while there are any, from the end
//! of one round to the next; so however many there are, the worker is woken once per pause.

use super::{Flow, Slirp, tcp};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use vswitch_core::sys::timer::Timer;

/// The timer's key among what is watched; no flow and no listening socket has it.
pub(super) const KEY: usize = u32::MAX as usize;

/// By their places in the table.
#[derive(Debug, Default)]
pub(super) struct Trickles {
    flows: BTreeSet<u32>,
    timer: Option<Timer>,
    /// It runs.
    armed: bool,
}

impl Trickles {
    pub(super) fn has(&self, i: u32) -> bool {
        self.flows.contains(&i)
    }

    /// It has ended.
    pub(super) fn forget(&mut self, i: u32) {
        self.flows.remove(&i);
    }

    /// Lets the timer run if there is something to look at.
    pub(super) fn arm(&mut self) {
        if !self.armed
            && !self.flows.is_empty()
            && let Some(timer) = &self.timer
        {
            self.armed = timer.set(tcp::PAUSE).is_ok();
        }
    }
}

impl Slirp {
    /// The pause is over: all of them are looked at.
    pub(super) fn look(&mut self) {
        self.trickles.armed = false;
        let flows = std::mem::take(&mut self.trickles.flows);
        for i in &flows {
            if let Some(Flow::Tcp(t)) = self.table.get(*i).map(|s| &mut s.flow) {
                t.0.look();
            }
            self.touch(*i);
        }
        self.trickles.flows = flows;
    }

    /// Has a flow's socket watched as its mirror wishes.
    pub(super) fn follow_trickle(&mut self, i: u32) {
        let (Some(watch), Some(slot)) = (&self.watch, self.table.get(i)) else {
            return;
        };
        let Flow::Tcp(t) = &mut slot.flow else {
            return;
        };
        let (mirror, host) = &mut **t;
        if !mirror.trickles() {
            if self.trickles.has(i) {
                self.trickles.forget(i);
                // What came since the last look is told at once.
                if watch.set_deaf(host.as_fd(), i as usize, false).is_err() {
                    self.close(i, true);
                }
            }
            return;
        }
        if self.trickles.has(i) {
            return;
        }
        if self.trickles.timer.is_none() {
            let timer = Timer::new().and_then(|t| watch.add(t.as_fd(), KEY, false).map(|()| t));
            self.trickles.timer = timer.ok();
        }
        let done =
            self.trickles.timer.is_some() && watch.set_deaf(host.as_fd(), i as usize, true).is_ok();
        if done {
            self.trickles.flows.insert(i);
        } else {
            // Each segment as before.
            mirror.end_trickle();
        }
    }
}
