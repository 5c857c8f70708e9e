//! Packet capture: copies of the frames seen at chosen ports, for people who look for what goes wrong.
//!
//! # Theory of operation
//!
//! A [`Session`] is what somebody asked for: filter, snap length, directions. The control side gives every port that is
//! watched a [`Tap`] of the session; a worker that meets a frame at a tapped port evaluates the filter and copies it into
//! the session's ring ([`ring`]), which the control side drains. The ring is bounded in frames and bytes; when it
//! is full the copy is lost and counted, never waited for. A port without taps costs one branch per batch received and one per frame sent.
//!
//! What is captured where ([`tap`]): frames received, as they came, before the VLAN is looked at; frames sent, when the
//! port's kernel has taken them: with the tag they leave with, after software segmentation. A frame that the port takes unfinished
//! is captured as such, as one frame of up to 64 KiB; the reader finishes its checksum ([`Captured::finish`]).
//! If drops are asked for, a frame received that is dropped carries the reason, and a frame that was to leave but is
//! dropped is captured too, outgoing, with the reason. What a port discards while receiving (a contradicting
//! virtio-net header) is no frame yet, and only counted.

pub mod filter;
mod ring;
mod tap;
#[cfg(test)]
mod tests;

pub use filter::{Filter, FilterError};
pub(crate) use tap::{Receipts, Taps, TurnClock};
pub use tap::{Tap, TapCounts};

use crate::clock::Nanos;
use crate::frame::{DropReason, VnetHdr};
use crate::wire::csum;
use ring::Ring;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Which way frames go at a port, seen from the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Received by the switch.
    Ingress,
    /// Sent by the switch.
    Egress,
}

/// What to do about dropped frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drops {
    /// Nothing: what came is shown as it came, what didn't leave isn't shown.
    #[default]
    Ignore,
    /// Show them too, with the reason.
    Include,
    /// Show nothing else.
    Only,
}

/// What a session is about.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Which frames; none is all of them.
    pub filter: Option<Filter>,
    /// Frames received.
    pub ingress: bool,
    /// Frames sent.
    pub egress: bool,
    /// Dropped ones.
    pub drops: Drops,
    /// Bytes kept of each frame.
    pub snaplen: usize,
}

/// Bytes of the longest frame: all of it is kept with this snap length.
pub const SNAPLEN: usize = crate::frame::MAX_FRAME;

/// A copy of a frame.
#[derive(Debug)]
pub struct Captured {
    /// The number that the control side gave the tap.
    pub interface: u32,
    /// Nanoseconds since 1970-01-01 UTC.
    pub time: u64,
    /// Which way it went.
    pub direction: Direction,
    /// Why it went no further.
    pub dropped: Option<DropReason>,
    /// Its length, of which the bytes may be the beginning only.
    pub len: usize,
    vnet: VnetHdr,
    bytes: Vec<u8>,
}

impl Captured {
    /// The bytes kept.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Completes a transport checksum that the sender left to the network card, so that readers don't take the frame for
    /// damaged. A frame cut short stays as it is: it can't be summed, and readers know that.
    pub fn finish(&mut self) {
        let v = self.vnet;
        if !v.needs_csum || self.bytes.len() < self.len {
            return;
        }
        let (start, at) = (usize::from(v.csum_start), usize::from(v.csum_offset));
        let Some(summed) = self.bytes.get_mut(start..) else {
            return;
        };
        // The field holds the sum of the pseudo header. Zero means "none" in UDP (RFC 768).
        let sum = match csum::finish(csum::add(0, summed)) {
            0 => 0xffff,
            sum => sum,
        };
        if let Some(field) = summed.get_mut(at..at + 2) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
        self.vnet.needs_csum = false;
    }
}

/// Called by a worker when there is something to drain, and the one who drains waits for it; must not block.
pub type Notify = Box<dyn Fn() + Send + Sync>;

/// A capture; see the module's head. Shared by the workers, and by the one who drains it.
pub struct Session {
    spec: Spec,
    /// Wall time minus the workers' time, in nanoseconds.
    epoch: u64,
    ring: Ring,
    /// The one who drains waits to be told.
    waits: AtomicBool,
    notify: Notify,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("spec", &self.spec)
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A session that begins when it is `wall` nanoseconds since 1970 and `now` for the workers. (If the wall clock is set
    /// later, times go on as they were.)
    #[must_use]
    pub fn new(spec: Spec, wall: u64, now: Nanos, notify: Notify) -> Session {
        Session {
            spec,
            epoch: wall.wrapping_sub(now.0),
            ring: Ring::new(),
            waits: AtomicBool::new(false),
            notify,
        }
    }

    /// What it is about.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The next copy. Give it back with [`Session::recycle`].
    #[must_use]
    pub fn pop(&self) -> Option<Captured> {
        self.ring.pop()
    }

    /// Takes a copy's memory back for the next one.
    pub fn recycle(&self, copy: Captured) {
        self.ring.give(copy.bytes);
    }

    /// Asks to be notified of the next copy; true if there is one already, so that there is nothing to wait for.
    #[must_use]
    pub fn wait(&self) -> bool {
        self.waits.store(true, Ordering::SeqCst);
        // Pairs with the fence in `push`: either we see its copy or it sees us waiting.
        fence(Ordering::SeqCst);
        if self.ring.is_empty() {
            return false;
        }
        self.waits.store(false, Ordering::SeqCst);
        true
    }

    fn push(&self, copy: Captured) -> bool {
        if let Err(copy) = self.ring.push(copy) {
            self.recycle(copy);
            return false;
        }
        fence(Ordering::SeqCst);
        if self.waits.load(Ordering::Relaxed) && self.waits.swap(false, Ordering::SeqCst) {
            (self.notify)();
        }
        true
    }
}
