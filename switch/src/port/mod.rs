//! Ports: where frames come from and go to.
//!
//! A port queue is a [`PortIo`] owned by one worker. It receives into a [`Batch`] until the batch is full or the
//! kernel has no more, and sends from a [`TxQueue`] without ever blocking. Faults that end a port (its device is
//! gone) are returned as [`PortFault`]; everything else is counted and survived.

pub mod dgram;
pub mod mem;
pub mod packet;
pub mod seqpacket;
pub mod stream;
pub mod tap;
pub mod unix;

use crate::capture::Taps;
use crate::clock::Nanos;
use crate::frame::{Batch, DropReason, Frame, GsoType, Offloads, ack, gro};
use crate::stats::Tally;
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::BorrowedFd;

/// Index of a port in its switch. Reused after the port is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

impl PortId {
    /// The virtual port of a network's gateway; no real port has this index.
    pub const GATEWAY: PortId = PortId(u16::MAX);

    /// As an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Whether a port has more to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxState {
    /// The batch filled up; there may be more.
    More,
    /// The kernel said that there is nothing more; the next readiness event tells.
    Empty,
}

/// Why a port went down. The text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortFault {
    /// The device doesn't exist any more: the container died or somebody deleted it. Final.
    #[error("device gone: {0}")]
    Gone(String),
    /// The interface exists but is set down; it may come back by itself.
    #[error("interface is down: {0}")]
    LinkDown(String),
    /// The peer of a unix socket isn't there (yet, or any more); the port reconnects by itself.
    #[error("peer not connected: {0}")]
    Disconnected(String),
}

impl PortFault {
    /// Whether the port can come back without being added again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, PortFault::Gone(_))
    }
}

/// One queue of a port.
pub trait PortIo: Send + fmt::Debug {
    /// Receives frames into `rx` until it is full or nothing more is there. Counts them and what it had to
    /// drop in `tally`. Errors: the port went down.
    fn recv(&mut self, rx: &mut Batch, tally: &mut Tally) -> Result<RxState, PortFault>;

    /// Sends from the front of `out` what can be sent without blocking; what would block stays queued.
    /// Frames are already finished for [`PortIo::offloads`]. Errors: the port went down.
    fn send(&mut self, out: &mut TxQueue) -> Result<(), PortFault>;

    /// What the port takes unfinished.
    fn offloads(&self) -> Offloads;

    /// Whether datagrams of a flow may be joined to segmentation-offload frames on the way out: a kernel is behind, which cuts them.
    fn joins(&self) -> bool {
        false
    }

    /// The fd whose readability means frames to receive (and whose writability room to send).
    fn ready_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Work that is due by time (reconnecting); returns when it wants to be called again.
    fn tick(&mut self, _now: Nanos) -> Result<Option<Nanos>, PortFault> {
        Ok(None)
    }

    /// Sets the carrier that the far end sees, where the kind of port has one.
    fn set_carrier(&mut self, _up: bool) {}

    /// Whether this queue is one of several that can be attached and detached.
    fn attaches(&self) -> bool {
        false
    }

    /// Attaches this queue to what the kernel hands out, or detaches it (it can send all the same); false if it can't.
    fn set_attached(&mut self, _on: bool) -> bool {
        false
    }

    /// True once after `ready_fd` changed (reconnect), so that the worker registers the new one.
    fn fd_changed(&mut self) -> bool {
        false
    }
}

/// Frames waiting to be sent out of one port queue; bounded, drops the newest when full.
#[derive(Debug)]
pub struct TxQueue {
    frames: VecDeque<Frame>,
    limit: usize,
    /// Whether datagrams of a flow are joined.
    pub(crate) joins: bool,
    /// Frames waiting that were joined to others.
    joined: usize,
    /// What was sent and dropped since the worker last collected it.
    pub tally: Tally,
    /// Captures that look at what leaves.
    pub(crate) taps: Taps,
}

impl TxQueue {
    /// Default bound in frames, as Linux' `txqueuelen`.
    pub const DEFAULT_LIMIT: usize = 1000;

    /// An empty queue with this bound.
    #[must_use]
    pub fn new(limit: usize) -> TxQueue {
        TxQueue {
            frames: VecDeque::new(),
            limit,
            joins: false,
            joined: 0,
            tally: Tally::default(),
            taps: Taps::default(),
        }
    }

    /// Appends a frame, or counts it dropped when the queue is full.
    pub fn push(&mut self, frame: Frame) {
        // A capture shows frames as they are for the container.
        let frame = if self.joins && self.taps.is_empty() {
            match self.join(frame) {
                Ok(()) => {
                    self.joined += 1;
                    return;
                }
                Err(frame) => frame,
            }
        } else {
            frame
        };
        if self.frames.len() < self.limit {
            self.frames.push_back(frame);
        } else {
            if !self.taps.is_empty() {
                self.taps.dropped(&frame, DropReason::QueueFull);
            }
            self.tally.count_drop(DropReason::QueueFull);
        }
    }

    /// Joins a frame to one that waits; gives it back if there is none for it.
    fn join(&mut self, frame: Frame) -> Result<(), Frame> {
        if let Some(last) = self.frames.back_mut()
            && gro::merge(last, &frame)
        {
            return Ok(());
        }
        ack::replace(self.frames.iter_mut().rev(), frame)
    }

    /// The frame to send next.
    pub fn front(&mut self) -> Option<&mut Frame> {
        self.frames.front_mut()
    }

    /// The waiting frames in order, for a batched send.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Frame> {
        self.frames.iter_mut()
    }

    /// Takes the first frame out to send it; the caller counts in `tally` what becomes of it.
    pub fn take_front(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        if !self.taps.is_empty() {
            self.taps.sent(&frame);
        }
        Some(frame)
    }

    /// The first frame was sent: counts it and returns its slot.
    pub fn sent(&mut self) {
        if let Some(f) = self.frames.pop_front() {
            if !self.taps.is_empty() {
                self.taps.sent(&f);
            }
            self.tally.frame(f.len());
            if f.merged > 0 {
                self.joined -= usize::from(f.merged);
                // An acknowledgement that stands for others was as long as they.
                let headers = match f.vnet.gso {
                    GsoType::None => f.len(),
                    _ => usize::from(f.vnet.hdr_len),
                };
                (0..f.merged).for_each(|_| self.tally.frame(headers));
            }
        }
    }

    /// The first frame can't be sent: counts it dropped.
    pub fn reject(&mut self, why: DropReason) {
        if let Some(f) = self.frames.pop_front() {
            if !self.taps.is_empty() {
                self.taps.dropped(&f, why);
            }
            self.joined -= usize::from(f.merged);
            (0..=f.merged).for_each(|_| self.tally.count_drop(why));
        }
    }

    /// Drops everything that waits.
    pub fn clear(&mut self, why: DropReason) {
        while !self.frames.is_empty() {
            self.reject(why);
        }
    }

    /// Frames waiting, joined ones counted as those they were made of.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len() + self.joined
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}
