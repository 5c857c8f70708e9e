//! A batch: the frames of one turn from one port, each with its parse result and its verdict.

use super::{DropReason, Frame};
use crate::port::PortId;
use crate::wire::Meta;
use arrayvec::ArrayVec;

/// Most frames in a batch.
pub const BATCH_SIZE: usize = 64;
/// A batch takes no further frame once it holds this many bytes. Long frames are sent on while they are still in the
/// processor's cache; the next ones reuse their slots.
pub const BATCH_BYTES: usize = 128 << 10;

/// A range in [`crate::worker::Cx`]'s list of flood destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodSet {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// What is to become of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No stage has decided yet.
    Next,
    /// Out of one port.
    Forward(PortId),
    /// A copy out of every port of the set.
    Flood(FloodSet),
    /// For the network's L3 gateway.
    Gateway,
    /// Back out of the port it came from.
    Hairpin,
    /// A stage has taken the frame out of the batch, and accounts for it until it emits or drops it.
    Held,
    /// Dropped, and counted.
    Drop(DropReason),
}

/// One frame of a batch.
#[derive(Debug)]
pub struct Entry {
    /// The frame.
    pub frame: Frame,
    /// What parsing found.
    pub meta: Meta,
    /// What is to become of it.
    pub verdict: Verdict,
}

/// The frames of one turn, all from `ingress`.
#[derive(Debug)]
pub struct Batch {
    /// The port they came from.
    pub ingress: PortId,
    /// Another worker received them and handed them off: they have passed meters and mirrors of the port.
    pub handed: bool,
    /// The frames.
    pub entries: ArrayVec<Entry, BATCH_SIZE>,
    bytes: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new(ingress: PortId) -> Batch {
        Batch {
            ingress,
            handed: false,
            entries: ArrayVec::new(),
            bytes: 0,
        }
    }

    /// Adds a received frame; gives it back when the batch is full.
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        self.bytes += frame.len();
        self.entries
            .try_push(Entry {
                frame,
                meta: Meta::default(),
                verdict: Verdict::Next,
            })
            .map_err(|e| e.element().frame)
    }

    /// Whether no further frame is to be received, by number or by bytes.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.is_full() || self.bytes >= BATCH_BYTES
    }

    /// Bytes received into it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
