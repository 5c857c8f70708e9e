//! Frames and their pool.
//!
//! # Theory of operation
//!
//! A [`Frame`] is the owned handle of one Ethernet frame in flight. Its first bytes live in a 2 KiB
//! *head* slot with [`HEADROOM`] bytes free in front (for the virtio-net header, a VLAN tag or an
//! encapsulation); what does not fit there (a 64 KiB segmentation-offload frame) goes on in a *tail* slot.
//! All protocol headers are in the head, so a parser looks at one contiguous slice.
//! Slots come from a free list of the thread and go back to the list of the thread that drops
//! the frame: no lock, no allocation once warm, and a hand-off between workers needs nothing special. The
//! lists are bounded; what exceeds them goes back to the allocator.
//!
//! A frame has exactly one owner. Flooding copies it.

pub(crate) mod ack;
mod batch;
pub(crate) mod gro;
pub mod gso;
mod pool;
mod reason;
mod vnet;

pub use batch::{BATCH_BYTES, BATCH_SIZE, Batch, Entry, FloodSet, Verdict};
pub use pool::{HEAD_SIZE, HEADROOM, TAIL_SIZE, outstanding, trim};
pub use reason::DropReason;
pub use vnet::{GsoType, Offloads, VNET_HDR_LEN, VnetHdr};

use crate::wire::MacAddr;
use pool::{HeadBuf, TailBuf};
use std::io::{IoSlice, IoSliceMut};

/// Longest frame that a [`Frame`] holds, in bytes.
pub const MAX_FRAME: usize = HEAD_SIZE - HEADROOM + TAIL_SIZE;

/// One Ethernet frame: destination MAC first, no FCS. See the module's head.
#[derive(Debug)]
pub struct Frame {
    head: HeadBuf,
    tail: Option<TailBuf>,
    start: u16,
    end: u16,
    tail_len: u32,
    /// Offload state: what the sender left to be done (checksum, segmentation).
    pub vnet: VnetHdr,
    /// Further frames that were joined to this one.
    pub(crate) merged: u16,
}

impl Frame {
    /// An empty frame with [`HEADROOM`] bytes free in front.
    #[must_use]
    pub fn new() -> Frame {
        Frame {
            head: pool::take_head(),
            tail: None,
            start: HEADROOM as u16,
            end: HEADROOM as u16,
            tail_len: 0,
            vnet: VnetHdr::default(),
            merged: 0,
        }
    }

    /// A frame with these bytes; `None` if they exceed [`MAX_FRAME`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Frame> {
        let mut f = Frame::new();
        f.append(bytes).then_some(f)
    }

    /// Appends bytes at the end; false (and the frame unchanged) if they don't fit.
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        if self.len() + bytes.len() > HEAD_SIZE - self.start as usize + TAIL_SIZE {
            return false;
        }
        let room = if self.tail_len > 0 {
            0
        } else {
            HEAD_SIZE - self.end as usize
        };
        let (a, b) = bytes.split_at(bytes.len().min(room));
        let end = self.end as usize;
        self.head[end..end + a.len()].copy_from_slice(a);
        self.end += a.len() as u16;
        if !b.is_empty() {
            let at = self.tail_len as usize;
            let tail = self.tail.get_or_insert_with(pool::take_tail);
            tail[at..at + b.len()].copy_from_slice(b);
            self.tail_len += b.len() as u32;
        }
        true
    }

    /// Length in bytes, head and tail.
    #[must_use]
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize + self.tail_len as usize
    }

    /// Whether there are no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The contiguous first part: all of a frame of up to 1,920 bytes, the headers of a longer one.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head[self.start as usize..self.end as usize]
    }

    /// The first part, to rewrite headers in place.
    pub fn head_mut(&mut self) -> &mut [u8] {
        &mut self.head[self.start as usize..self.end as usize]
    }

    /// What follows the head; empty for most frames.
    #[must_use]
    pub fn tail(&self) -> &[u8] {
        match &self.tail {
            Some(t) => &t[..self.tail_len as usize],
            None => &[],
        }
    }

    /// What follows the head, to be written.
    pub fn tail_mut(&mut self) -> &mut [u8] {
        match &mut self.tail {
            Some(t) => &mut t[..self.tail_len as usize],
            None => &mut [],
        }
    }

    /// Head and tail at once, to be written (checksums).
    pub fn parts_mut(&mut self) -> (&mut [u8], &mut [u8]) {
        let tail: &mut [u8] = match &mut self.tail {
            Some(t) => &mut t[..self.tail_len as usize],
            None => &mut [],
        };
        (&mut self.head[self.start as usize..self.end as usize], tail)
    }

    /// Free bytes in front of the frame.
    #[must_use]
    pub fn headroom(&self) -> usize {
        self.start as usize
    }

    /// Grows the frame at the front by `n` bytes of unspecified content; false if there is no headroom.
    /// Offsets in [`Frame::vnet`] move along.
    pub fn push_front(&mut self, n: usize) -> bool {
        if n > self.start as usize {
            return false;
        }
        self.start -= n as u16;
        self.vnet.shift(n as i32);
        true
    }

    /// Removes `n` bytes at the front; false if the head is shorter. Offsets in [`Frame::vnet`] move along.
    pub fn pull_front(&mut self, n: usize) -> bool {
        if n > (self.end - self.start) as usize {
            return false;
        }
        self.start += n as u16;
        self.vnet.shift(-(n as i32));
        true
    }

    /// Cuts the frame to `len` bytes; longer than it is changes nothing.
    pub fn truncate(&mut self, len: usize) {
        let head = (self.end - self.start) as usize;
        if len <= head {
            self.end = self.start + len as u16;
            self.tail_len = 0;
        } else if len < self.len() {
            self.tail_len = (len - head) as u32;
        }
    }

    /// A second frame with the same bytes and offload state, for flooding and mirrors.
    #[must_use]
    pub fn duplicate(&self) -> Frame {
        let mut f = Frame::new();
        let (s, e) = (self.start as usize, self.end as usize);
        f.head[s..e].copy_from_slice(&self.head[s..e]);
        f.start = self.start;
        f.end = self.end;
        if self.tail_len > 0 {
            let n = self.tail_len as usize;
            let tail = f.tail.get_or_insert_with(pool::take_tail);
            tail[..n].copy_from_slice(self.tail());
            f.tail_len = self.tail_len;
        }
        f.vnet = self.vnet;
        f
    }

    /// Destination MAC address; zero when the frame is shorter than that.
    #[must_use]
    pub fn dst(&self) -> MacAddr {
        self.head()
            .first_chunk()
            .copied()
            .map_or(MacAddr::ZERO, MacAddr)
    }

    /// Source MAC address; zero when the frame is shorter than that.
    #[must_use]
    pub fn src(&self) -> MacAddr {
        self.head()
            .get(6..12)
            .and_then(|b| b.first_chunk().copied())
            .map_or(MacAddr::ZERO, MacAddr)
    }

    /// Copies all bytes (head, then tail) into a vector; for captures and tests.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut v = Vec::with_capacity(self.len());
        v.extend_from_slice(self.head());
        v.extend_from_slice(self.tail());
        v
    }

    /// Buffers for a scatter read of `prefix` bytes of transport header (virtio-net header, length) followed by
    /// the frame. The prefix goes into the headroom. Follow with [`Frame::received`]. The tail slot is only an
    /// offer: a frame that doesn't reach it gives it back by `take_spare_tail`.
    pub fn recv_slices(&mut self, prefix: usize) -> [IoSliceMut<'_>; 2] {
        let tail = self.tail.get_or_insert_with(pool::take_tail);
        let from = HEADROOM.saturating_sub(prefix);
        [
            IoSliceMut::new(&mut self.head[from..]),
            IoSliceMut::new(&mut tail[..]),
        ]
    }

    /// States that a scatter read into [`Frame::recv_slices`] filled `n` bytes, prefix included, and returns the
    /// prefix; `None` when fewer bytes than the prefix came.
    pub fn received(&mut self, prefix: usize, n: usize) -> Option<&[u8]> {
        let n = n.checked_sub(prefix)?;
        self.start = HEADROOM as u16;
        let in_head = n.min(HEAD_SIZE - HEADROOM);
        self.end = (HEADROOM + in_head) as u16;
        self.tail_len = (n - in_head).min(TAIL_SIZE) as u32;
        self.head.get(HEADROOM.checked_sub(prefix)?..HEADROOM)
    }

    /// Takes the unused tail slot away, so that the next frame's read can offer it again.
    #[must_use]
    pub fn take_spare_tail(&mut self) -> Option<SpareTail> {
        if self.tail_len == 0 {
            self.tail.take().map(SpareTail)
        } else {
            None
        }
    }

    /// Offers a tail slot for the next scatter read.
    pub fn offer_tail(&mut self, spare: SpareTail) {
        if self.tail.is_none() {
            self.tail = Some(spare.0);
        }
    }

    /// The frame with `prefix` written just in front of it, as slices for a gather write; the second is
    /// empty for frames without tail. `None` if the headroom is too small.
    pub fn send_slices(&mut self, prefix: &[u8]) -> Option<[IoSlice<'_>; 2]> {
        let (start, end) = (self.start as usize, self.end as usize);
        let at = start.checked_sub(prefix.len())?;
        self.head[at..start].copy_from_slice(prefix);
        Some([IoSlice::new(&self.head[at..end]), IoSlice::new(self.tail())])
    }
}

impl Default for Frame {
    fn default() -> Self {
        Frame::new()
    }
}

/// A tail slot not in use by a frame, kept by a port between two reads.
#[derive(Debug)]
pub struct SpareTail(TailBuf);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_frame_spills_into_the_tail_and_comes_back_whole() {
        let bytes: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        let f = Frame::from_bytes(&bytes).expect("fits");
        assert_eq!(f.head().len(), HEAD_SIZE - HEADROOM);
        assert_eq!(f.len(), bytes.len());
        assert_eq!(f.to_vec(), bytes);
        assert_eq!(f.duplicate().to_vec(), bytes);
        assert!(Frame::from_bytes(&vec![0; MAX_FRAME + 1]).is_none());
    }

    #[test]
    fn push_pull_and_truncate_move_the_edges() {
        let mut f = Frame::from_bytes(&[1, 2, 3, 4]).expect("fits");
        assert!(f.push_front(2));
        f.head_mut()[..2].copy_from_slice(&[9, 8]);
        assert_eq!(f.head(), [9, 8, 1, 2, 3, 4]);
        assert!(f.pull_front(3));
        f.truncate(2);
        assert_eq!(f.head(), [2, 3]);
        assert!(!f.pull_front(3));
        assert!(!f.push_front(HEADROOM + 4));
    }

    #[test]
    fn scatter_read_gives_the_prefix_and_keeps_the_rest() {
        let mut f = Frame::new();
        {
            let mut s = f.recv_slices(10);
            s[0][..14].copy_from_slice(&[7; 14]);
        }
        assert_eq!(f.received(10, 14), Some(&[7u8; 10][..]));
        assert_eq!(f.head(), [7; 4]);
        assert!(f.take_spare_tail().is_some());
        assert_eq!(f.received(10, 9), None);
    }

    #[test]
    fn dropped_frames_return_their_slots() {
        let before = outstanding();
        let frames: Vec<_> = (0..32).map(|_| Frame::new()).collect();
        assert_eq!(outstanding(), before + 32);
        drop(frames);
        assert_eq!(outstanding(), before);
    }
}
