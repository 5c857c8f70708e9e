//! Slots of frames, recycled per thread.
//!
//! Every thread keeps a bounded free list of heads and of tails. Taking pops, dropping pushes; both are a
//! few instructions. A thread that only drops (it transmits what others received) fills its list up to the
//! bound and frees the rest.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Size of a head slot in bytes.
pub const HEAD_SIZE: usize = 2048;
/// Bytes kept free in front of a received frame.
pub const HEADROOM: usize = 128;
/// Size of a tail slot: with the head it takes a 64 KiB packet and its headers.
pub const TAIL_SIZE: usize = 65_536;

/// Most free heads a thread keeps (8 MiB).
const MAX_FREE_HEADS: usize = 4096;
/// Most free tails a thread keeps (16 MiB).
const MAX_FREE_TAILS: usize = 256;

#[derive(Default)]
struct Free {
    // Boxed: slots move between frames and the list without copying.
    #[allow(clippy::vec_box)]
    heads: Vec<Box<[u8; HEAD_SIZE]>>,
    tails: Vec<Box<[u8]>>,
    // Heads taken minus heads returned on this thread.
    outstanding: i64,
}

thread_local! {
    static FREE: RefCell<Free> = RefCell::new(Free::default());
}

/// A head slot. Empty only while it is being dropped.
#[derive(Debug)]
pub(crate) struct HeadBuf(Option<Box<[u8; HEAD_SIZE]>>);

/// A tail slot. Empty only while it is being dropped.
#[derive(Debug)]
pub(crate) struct TailBuf(Option<Box<[u8]>>);

pub(crate) fn take_head() -> HeadBuf {
    let recycled = FREE.with_borrow_mut(|f| {
        f.outstanding += 1;
        f.heads.pop()
    });
    HeadBuf(Some(recycled.unwrap_or_else(|| Box::new([0; HEAD_SIZE]))))
}

pub(crate) fn take_tail() -> TailBuf {
    let recycled = FREE.with_borrow_mut(|f| f.tails.pop());
    TailBuf(Some(
        recycled.unwrap_or_else(|| vec![0; TAIL_SIZE].into_boxed_slice()),
    ))
}

/// Frames taken minus frames returned on this thread; with one worker, the frames in flight.
#[must_use]
pub fn outstanding() -> i64 {
    FREE.with_borrow(|f| f.outstanding)
}

/// Gives the thread's free slots back to the allocator but for `heads` and `tails` of them; for idle times.
pub fn trim(heads: usize, tails: usize) {
    FREE.with_borrow_mut(|f| {
        f.heads.truncate(heads);
        f.heads.shrink_to_fit();
        f.tails.truncate(tails);
        f.tails.shrink_to_fit();
    });
}

impl Drop for HeadBuf {
    fn drop(&mut self) {
        if let Some(b) = self.0.take() {
            // At thread exit the list may be gone already: then the slot is simply freed.
            let _ = FREE.try_with(|f| {
                if let Ok(mut f) = f.try_borrow_mut() {
                    f.outstanding -= 1;
                    if f.heads.len() < MAX_FREE_HEADS {
                        f.heads.push(b);
                    }
                }
            });
        }
    }
}

impl Drop for TailBuf {
    fn drop(&mut self) {
        if let Some(b) = self.0.take() {
            let _ = FREE.try_with(|f| {
                if let Ok(mut f) = f.try_borrow_mut()
                    && f.tails.len() < MAX_FREE_TAILS
                {
                    f.tails.push(b);
                }
            });
        }
    }
}

impl Deref for HeadBuf {
    type Target = [u8; HEAD_SIZE];
    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("head slot in use")
    }
}

impl DerefMut for HeadBuf {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.0.as_mut().expect("head slot in use")
    }
}

impl Deref for TailBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_ref().expect("tail slot in use")
    }
}

impl DerefMut for TailBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_mut().expect("tail slot in use")
    }
}
