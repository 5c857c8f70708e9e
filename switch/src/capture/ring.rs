//! The way of copies from the workers to the one who drains, and of their buffers back.
//!
//! Buffers come in two sizes, for the frames of an MTU of 1500 and for those of up to 64 KiB. Each is allocated when it is
//! first needed and goes round from then on, so that a session takes the memory it uses, at most about 8 MiB, and a worker
//! allocates nothing once warm.

use super::Captured;
use crossbeam_queue::ArrayQueue;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Small buffers: how many, and how large.
const SMALL: (usize, usize) = (2048, 2048);
/// Large buffers.
const LARGE: (usize, usize) = (64, super::SNAPLEN);

#[derive(Debug)]
struct Buffers {
    size: usize,
    free: ArrayQueue<Vec<u8>>,
    /// How many may still be allocated.
    left: AtomicUsize,
}

impl Buffers {
    fn new((number, size): (usize, usize)) -> Buffers {
        Buffers {
            size,
            free: ArrayQueue::new(number),
            left: AtomicUsize::new(number),
        }
    }

    fn take(&self) -> Option<Vec<u8>> {
        self.free.pop().or_else(|| {
            let left = self
                .left
                .fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
            left.is_ok().then(|| Vec::with_capacity(self.size))
        })
    }
}

#[derive(Debug)]
pub(super) struct Ring {
    copies: ArrayQueue<Captured>,
    small: Buffers,
    large: Buffers,
}

impl Ring {
    pub(super) fn new() -> Ring {
        Ring {
            // Room for every buffer: who has one can push.
            copies: ArrayQueue::new(SMALL.0 + LARGE.0),
            small: Buffers::new(SMALL),
            large: Buffers::new(LARGE),
        }
    }

    /// An empty buffer for this many bytes; `None` if all are in use.
    pub(super) fn take(&self, len: usize) -> Option<Vec<u8>> {
        if len <= SMALL.1 {
            self.small.take()
        } else {
            self.large.take()
        }
    }

    /// Takes a buffer back.
    pub(super) fn give(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let of = if buffer.capacity() < LARGE.1 {
            &self.small
        } else {
            &self.large
        };
        // There are never more than there is room for.
        let _ = of.free.push(buffer);
    }

    pub(super) fn push(&self, copy: Captured) -> Result<(), Captured> {
        self.copies.push(copy)
    }

    pub(super) fn pop(&self) -> Option<Captured> {
        self.copies.pop()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }
}
