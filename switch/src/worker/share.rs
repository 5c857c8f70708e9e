//! Sharing the load: a worker that is at its limit asks another to take part of its ports' flows.
//!
//! # Theory of operation
//!
//! Several workers cost where one is enough: frames of a conversation are spread over threads that each have to be woken. So where
//! their number is left to the switch, the first serves all ports, and the queues of the others stay detached from the device
//! (TUNSETQUEUE, drivers/net/tun.c): the kernel gives them nothing. The first measures how much of its time goes into turns with
//! work. When that has been nearly all of it for some windows on end, it asks the others to attach their queues of the ports
//! that are busy. The kernel gives a flow to the queue that its answers came by, so flows that are there already would stay; for a
//! moment all workers therefore hand the frames of flows that are another's by number to that one to send, and both directions follow. A worker
//! that has helped for a while and found that both would fit into one gives the queues back. If that turns out wrong, the next
//! request waits longer, so that nothing flaps.
//!
//! A single flow can't be shared out: help would only put its two directions on two threads, and take the processor that its
//! ends need. So the first worker also notes which flow the bytes are of, one frame of each batch, and doesn't ask while one
//! has nearly all.

use super::output::Inbound;
use super::{Stage, Worker};
use crate::clock::{Clock, Nanos};
use crate::frame::{Batch, Frame};
use crate::port::PortId;
use crate::wire::{L4, Meta};
use std::net::IpAddr;
use std::time::Duration;

/// How long the first worker measures.
const WINDOW: Duration = Duration::from_millis(10);
/// Windows at the limit, less those below it in between, before it asks for help.
const HOT_WINDOWS: u32 = 3;
/// The longest it waits, in windows, after help that wasn't worth it: 10 s.
const MOST_WINDOWS: u32 = 1000;
/// How long flows are moved to helpers.
const MOVING: Duration = Duration::from_millis(100);
/// How long a helper measures.
const HELP_WINDOW: Duration = Duration::from_secs(1);
/// Help that ended longer ago than this doesn't count any more.
const FORGET: Duration = Duration::from_secs(60);
/// Percentage of the time at work from which a worker is at its limit.
const HOT: u64 = 85;
/// Percentage of the time at work below which a helper gives up.
const COLD: u64 = 35;
/// Percentage of the bytes from which one flow carries the load.
const ONE_FLOW: u64 = 75;
/// Groups of flows that bytes are counted by; a power of two.
const GROUPS: usize = 32;
/// A port is busy if it brought at least this part of a window's frames: acknowledgements have to follow their data.
const PART: u32 = 32;

/// What a worker knows of its own load.
#[derive(Debug)]
pub(super) struct Load {
    /// Whether queues are attached and detached by load.
    shared: bool,
    /// Start of the window, and the time at work in it.
    since: Nanos,
    busy: Duration,
    /// Start of the last turn, if it had work.
    working: Option<Nanos>,
    /// Windows at the limit, less those below, and how many are needed.
    hot: u32,
    needed: u32,
    /// Bytes of the window by groups of flows.
    flows: [u64; GROUPS],
    /// Until when frames are handed to helpers to send.
    moving: Nanos,
    /// Ports that this worker helps with; for the first worker, when help last ended.
    helping: Vec<PortId>,
    ended: Nanos,
}

impl Load {
    pub(super) fn new(shared: bool) -> Load {
        Load {
            shared,
            since: Nanos(0),
            busy: Duration::ZERO,
            working: None,
            hot: 0,
            needed: HOT_WINDOWS,
            flows: [0; GROUPS],
            moving: Nanos(0),
            helping: Vec::new(),
            ended: Nanos(0),
        }
    }

    /// A turn begins.
    pub(super) fn turn(&mut self, now: Nanos) {
        if let Some(start) = self.working.take() {
            self.busy += now.since(start);
        }
    }

    /// The worker is about to sleep.
    pub(super) fn sleeps(&mut self, clock: &Clock) {
        if self.working.is_some() {
            self.turn(clock.now());
        }
    }

    /// The turn that began at `now` had work.
    pub(super) fn worked(&mut self, now: Nanos) {
        self.working = self.shared.then_some(now);
    }

    /// A batch came with this frame first.
    #[inline]
    pub(super) fn received(&mut self, batch: &Batch) {
        if self.shared
            && let Some(first) = batch.entries.first()
        {
            // What has no ports is one flow, as the kernel's queues have it.
            let group = flow(first.frame.head(), &first.meta).unwrap_or(0) as usize % GROUPS;
            self.flows[group] += batch.bytes() as u64;
        }
    }

    /// Whether one flow had nearly all bytes of the window, which ends.
    fn one_flow(&mut self) -> bool {
        let flows = std::mem::replace(&mut self.flows, [0; GROUPS]);
        let most = flows.iter().max().copied().unwrap_or(0);
        most * 100 >= flows.iter().sum::<u64>() * ONE_FLOW
    }

    /// Percentage of the time at work since `since`, if that is as long as asked; then the next window begins.
    fn share(&mut self, now: Nanos, window: Duration) -> Option<u64> {
        let elapsed = now.since(self.since);
        if elapsed < window {
            return None;
        }
        let share = self.busy.as_nanos() * 100 / elapsed.as_nanos().max(1);
        self.since = now;
        self.busy = Duration::ZERO;
        Some(share as u64)
    }

    /// Whether it is time to ask for help.
    fn wants_help(&mut self, now: Nanos) -> Option<bool> {
        let share = self.share(now, WINDOW)?;
        let one_flow = self.one_flow();
        self.hot = match share {
            HOT.. if one_flow => self.hot,
            HOT.. => self.hot + 1,
            // A short gap doesn't make it idle.
            COLD.. => self.hot.saturating_sub(1),
            _ => 0,
        };
        let wants = self.hot >= self.needed;
        if wants {
            self.hot = 0;
        }
        Some(wants)
    }

    /// A helper has given up.
    fn help_ended(&mut self, now: Nanos) {
        let lately = self.ended != Nanos(0) && now.since(self.ended) < FORGET;
        self.needed = if lately {
            (self.needed * 2).min(MOST_WINDOWS)
        } else {
            HOT_WINDOWS
        };
        self.ended = now;
        self.hot = 0;
    }
}

impl<S: Stage> Worker<S> {
    /// At the start of a turn: measures, and asks the others for help.
    pub(super) fn measure(&mut self) {
        self.load.turn(self.cx.now);
        if !self.load.shared || self.cx.worker.0 != 0 {
            return;
        }
        let Some(wants) = self.load.wants_help(self.cx.now) else {
            return;
        };
        let slots = || self.out.slots.iter().flatten();
        let all: u32 = slots().map(|s| s.recent).sum();
        for i in 0..self.out.slots.len() {
            let Some(slot) = &mut self.out.slots[i] else {
                continue;
            };
            let recent = std::mem::take(&mut slot.recent);
            let many = slot.io.as_ref().is_some_and(|io| io.attaches());
            if !wants || !many || slot.helped || recent == 0 || recent < all / PART {
                continue;
            }
            slot.helped = true;
            self.load.moving = self.cx.now.after(MOVING);
            for peer in self.out.peers.iter().flatten() {
                // A full inbox: the port stays ours for this time.
                let _ = peer.inbox.push(Inbound::Help(PortId(i as u16)));
                peer.waker.wake();
            }
        }
    }

    /// The worker that is to send a frame by this port, if it isn't this one.
    #[inline]
    pub(super) fn sender(&mut self, to: PortId, frame: &Frame, meta: &Meta) -> Option<usize> {
        if self.load.moving <= self.cx.now || !self.out.slot(to)?.helped {
            return None;
        }
        let workers = u32::from(self.cx.worker.1);
        let index = flow(frame.head(), meta)? % workers;
        (index != u32::from(self.cx.worker.0)).then_some(index as usize)
    }

    /// The first worker asks for help with a port.
    pub(super) fn help(&mut self, port: PortId) {
        if let Some(slot) = self.out.slot(port)
            && let Some(io) = &mut slot.io
            && io.set_attached(true)
        {
            // The kernel gives a part of the flows by a hash of its own: ours are those of our number.
            slot.helped = true;
            self.load.moving = self.cx.now.after(MOVING);
            if self.load.helping.is_empty() {
                self.load.since = self.cx.now;
                self.load.busy = Duration::ZERO;
            }
            self.load.helping.push(port);
            let due = self.cx.now.after(HELP_WINDOW);
            self.next_tick = self.next_tick.min(due);
        }
    }

    /// A helper has given its queue of a port back.
    pub(super) fn helped(&mut self, port: PortId) {
        if let Some(slot) = self.out.slot(port) {
            slot.helped = false;
        }
        if !self.out.slots.iter().flatten().any(|s| s.helped) {
            self.load.help_ended(self.cx.now);
        }
    }

    /// Looks whether help is still worth it; returns when to look again.
    pub(super) fn tick_help(&mut self) -> Nanos {
        if self.load.helping.is_empty() {
            return Nanos::MAX;
        }
        if let Some(share) = self.load.share(self.cx.now, HELP_WINDOW)
            && share < COLD
        {
            for port in std::mem::take(&mut self.load.helping) {
                if !self.give_back(port) {
                    self.load.helping.push(port);
                }
            }
        }
        if self.load.helping.is_empty() {
            return Nanos::MAX;
        }
        self.load.since.after(HELP_WINDOW)
    }

    /// Detaches our queue of a port; false if the first worker can't be told now.
    fn give_back(&mut self, port: PortId) -> bool {
        let Some(Some(first)) = self.out.peers.first().cloned() else {
            return true;
        };
        if first.inbox.is_full() {
            return false;
        }
        // What waits in a queue is lost when it is detached.
        while self.service(port) {}
        if let Some(slot) = self.out.slot(port)
            && let Some(io) = &mut slot.io
        {
            slot.helped = false;
            io.set_attached(false);
        }
        let told = first.inbox.push(Inbound::Helped(port)).is_ok();
        first.waker.wake();
        told
    }
}

/// A number of the flow, the same for both directions.
fn flow(head: &[u8], meta: &Meta) -> Option<u32> {
    let (from, to) = meta.addresses(head)?;
    let fold = |a: IpAddr| match a {
        IpAddr::V4(a) => a.to_bits(),
        IpAddr::V6(a) => {
            let bits = a.to_bits();
            (bits ^ bits >> 32 ^ bits >> 64 ^ bits >> 96) as u32
        }
    };
    let ports = match meta.l4 {
        L4::Tcp | L4::Udp if !meta.fragment => {
            let ports: &[u8; 4] = head.get(usize::from(meta.l4_off)..)?.first_chunk()?;
            u32::from(ports[0] ^ ports[2]) << 8 | u32::from(ports[1] ^ ports[3])
        }
        _ => return None,
    };
    // The high bits of a product depend on all bits.
    Some((fold(from) ^ fold(to) ^ ports).wrapping_mul(0x9e37_79b9) >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many windows in a row, with this percentage at work; how often help was asked for.
    fn windows(l: &mut Load, now: &mut Nanos, n: u32, percent: u64) -> u32 {
        windows_of(l, now, n, percent, [1, 1])
    }

    /// The same with bytes of two flows.
    fn windows_of(l: &mut Load, now: &mut Nanos, n: u32, percent: u64, flows: [u64; 2]) -> u32 {
        (0..n)
            .filter(|_| {
                l.flows[..2].copy_from_slice(&flows);
                l.turn(*now);
                l.worked(*now);
                *now = now.after(WINDOW * percent as u32 / 100);
                l.turn(*now);
                *now = now.after(WINDOW * (100 - percent as u32) / 100);
                l.turn(*now);
                l.wants_help(*now) == Some(true)
            })
            .count() as u32
    }

    #[test]
    fn help_is_asked_for_at_the_limit_only() {
        let (mut l, mut now) = (Load::new(true), Nanos(1));
        l.since = now;
        assert_eq!(windows(&mut l, &mut now, 100, 80), 0);
        assert_eq!(windows(&mut l, &mut now, 2, 100), 0);
        assert_eq!(windows(&mut l, &mut now, 1, 50), 0);
        assert_eq!(windows(&mut l, &mut now, 3, 95), 1);
    }

    #[test]
    fn no_help_is_asked_for_a_single_flow() {
        let (mut l, mut now) = (Load::new(true), Nanos(1));
        l.since = now;
        assert_eq!(windows_of(&mut l, &mut now, 100, 100, [95, 5]), 0);
        assert_eq!(windows_of(&mut l, &mut now, 3, 100, [60, 40]), 1);
    }

    #[test]
    fn help_in_vain_makes_the_next_wait_longer() {
        let (mut l, mut now) = (Load::new(true), Nanos(1));
        l.since = now;
        l.help_ended(now);
        assert_eq!(l.needed, HOT_WINDOWS);
        for _ in 0..20 {
            now = now.after(Duration::from_secs(1));
            l.help_ended(now);
        }
        assert_eq!(l.needed, MOST_WINDOWS);
        l.since = now;
        assert_eq!(windows(&mut l, &mut now, MOST_WINDOWS - 1, 100), 0);
        assert_eq!(windows(&mut l, &mut now, 1, 100), 1);
        now = now.after(FORGET);
        l.help_ended(now);
        assert_eq!(l.needed, HOT_WINDOWS);
    }
}
