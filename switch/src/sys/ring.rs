//! The TPACKET_V3 receive ring of a packet socket (Documentation/networking/packet_mmap.rst, net/packet/af_packet.c).
//!
//! # Theory of operation
//!
//! The kernel and we share blocks of memory, used in turn. The kernel fills a block with frames and closes it when the
//! next frame doesn't fit or the block is [`RETIRE_MS`] old; then it sets TP_STATUS_USER in `block_status`, and only
//! then wakes the socket's pollers. We read that word with acquire, own the block, walk its frames, and give it
//! back by storing TP_STATUS_KERNEL with release. So whoever finds no block of his and then sleeps in epoll (edge
//! triggered, too) is woken by the next one: the wake-up comes after the word is set. A frame in an open block is
//! out of reach until the block closes: that is the price of the ring, up to [`RETIRE_MS`] per frame.
//!
//! With PACKET_VNET_HDR the header's 10 bytes are just in front of `tp_mac` (tpacket_rcv). If the kernel can't make
//! such a header (a GSO type that virtio doesn't know) the frame's place in the block is already taken: its
//! status lacks TP_STATUS_USER, the rest of its header is stale, and it is counted by the kernel as dropped.
//!
//! The kernel is trusted, its lengths are checked all the same: a block that makes no sense is given back.

use super::mmsg::{StrippedTag, stripped_tag};
use super::packet::{PacketError, set};
use libc::{tpacket_block_desc, tpacket_req3, tpacket3_hdr};
use nix::errno::Errno;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};

/// Size of a block in bytes: two segmentation-offload frames, or 600 small ones. It has to take one of 64 KiB; since a
/// block is closed every [`RETIRE_MS`] however empty it is, many small ones bridge a longer absence of ours.
pub const BLOCK_SIZE: u32 = 128 << 10;
/// Fewest blocks: one is filled while another is read.
pub const MIN_BLOCKS: u32 = 2;
/// Most blocks (64 MiB).
pub const MAX_BLOCKS: u32 = 512;
/// The kernel closes a block this long after it opened it, if there is a frame in it. One is the least.
const RETIRE_MS: u32 = 1;

/// Not used by TPACKET_V3 but to check that it divides the block.
const FRAME_SIZE: u32 = 2048;
const VNET_HDR: usize = 10;

/// A frame in the ring.
#[derive(Debug)]
pub struct RingFrame<'a> {
    /// The virtio-net header, then the frame as far as it was kept.
    pub bytes: &'a [u8],
    /// The frame was longer than a block: the rest is lost.
    pub truncated: bool,
    /// The VLAN tag the kernel took out.
    pub tag: Option<StrippedTag>,
}

/// Where we are in a block of ours.
#[derive(Clone, Copy, Debug)]
struct Walk {
    /// Offset of the next frame's header.
    at: usize,
    /// Frames still to come.
    left: u32,
}

/// What one frame header says.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    start: usize,
    end: usize,
    next: usize,
}

/// The mapped receive ring of one socket.
#[derive(Debug)]
pub struct Ring {
    map: NonNull<u8>,
    blocks: usize,
    block: usize,
    walk: Option<Walk>,
    losing: bool,
    broken: u32,
}

// SAFETY: the mapping belongs to this value alone and isn't tied to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Sets up `blocks` (clamped to [`MIN_BLOCKS`] and [`MAX_BLOCKS`]) of [`BLOCK_SIZE`] on a packet socket and maps
    /// them. After PACKET_VNET_HDR, before frames are asked for.
    pub fn new(fd: &OwnedFd, blocks: u32) -> Result<Ring, PacketError> {
        let blocks = blocks.clamp(MIN_BLOCKS, MAX_BLOCKS);
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        let level = libc::SOL_PACKET;
        let act = "choosing TPACKET_V3";
        set(fd, level, libc::PACKET_VERSION, &version, act)?;
        let request = tpacket_req3 {
            tp_block_size: BLOCK_SIZE,
            tp_block_nr: blocks,
            tp_frame_size: FRAME_SIZE,
            tp_frame_nr: BLOCK_SIZE / FRAME_SIZE * blocks,
            tp_retire_blk_tov: RETIRE_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        let act = "making the receive ring";
        set(fd, level, libc::PACKET_RX_RING, &request, act)?;
        let blocks = blocks as usize;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let map = unsafe {
            libc::mmap(
                null_mut(),
                blocks * BLOCK_SIZE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        let failed = |source| PacketError::Option {
            act: "mapping the receive ring",
            source,
        };
        if map == libc::MAP_FAILED {
            return Err(failed(Errno::last()));
        }
        let map = NonNull::new(map.cast()).ok_or(failed(Errno::ENOMEM))?;
        Ok(Ring {
            map,
            blocks,
            block: 0,
            walk: None,
            losing: false,
            broken: 0,
        })
    }

    /// The next frame, in the order of arrival; `None` if no block of ours is left. The block it is in goes back to the
    /// kernel by the first call after its last frame.
    pub fn next_frame(&mut self) -> Option<RingFrame<'_>> {
        loop {
            let walk = match self.walk {
                Some(w) if w.left > 0 => w,
                Some(_) => {
                    self.give_back();
                    continue;
                }
                None => self.open_block()?,
            };
            // `place` refuses an offset whose header isn't inside the block; `open_block` only takes such as well.
            let header = self.header(walk.at);
            let Some(place) = place(&header, walk.at, walk.left) else {
                self.broken += walk.left;
                self.give_back();
                continue;
            };
            self.walk = Some(Walk {
                at: place.next,
                left: walk.left - 1,
            });
            if header.tp_status & libc::TP_STATUS_USER == 0 {
                continue;
            }
            let (start, len) = (place.start, place.end - place.start);
            // SAFETY: `place` checked that the range is inside the block. The block is ours (open_block) until
            // give_back, which takes `&mut self` and so comes after the end of this borrow.
            let bytes = unsafe { std::slice::from_raw_parts(self.base().add(start), len) };
            return Some(RingFrame {
                bytes,
                truncated: header.tp_snaplen < header.tp_len,
                tag: stripped_tag(
                    header.tp_status,
                    header.hv1.tp_vlan_tci as u16,
                    header.hv1.tp_vlan_tpid,
                ),
            });
        }
    }

    /// True once after the kernel said with a block that it has dropped frames for lack of room.
    pub fn take_losing(&mut self) -> bool {
        std::mem::take(&mut self.losing)
    }

    /// Frames lost in blocks that made no sense, since the last call.
    pub fn take_broken(&mut self) -> u32 {
        std::mem::take(&mut self.broken)
    }

    /// First byte of the present block.
    fn base(&self) -> *mut u8 {
        // SAFETY: `block` is less than `blocks`, so the offset is inside the mapping.
        unsafe { self.map.as_ptr().add(self.block * BLOCK_SIZE as usize) }
    }

    fn status(&self) -> &AtomicU32 {
        let at = offset_of!(tpacket_block_desc, hdr);
        // SAFETY: the word is inside the mapping, which lives as long as `self`, aligned (blocks begin on pages), and
        // the kernel writes it as one word.
        unsafe { AtomicU32::from_ptr(self.base().add(at).cast()) }
    }

    /// Begins to walk the present block if it is ours.
    fn open_block(&mut self) -> Option<Walk> {
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        self.losing |= status & libc::TP_STATUS_LOSING != 0;
        // SAFETY: the acquire load said that the block is ours, so nobody writes it; the descriptor is at its begin,
        // aligned, and plain old data.
        let bd = unsafe { self.base().cast::<tpacket_block_desc>().read().hdr.bh1 };
        let walk = Walk {
            at: bd.offset_to_first_pkt as usize,
            left: bd.num_pkts,
        };
        self.walk = Some(walk);
        Some(walk)
    }

    /// The frame header at `at` of our block; an empty one if that isn't inside.
    fn header(&self, at: usize) -> tpacket3_hdr {
        let fits = at <= BLOCK_SIZE as usize - size_of::<tpacket3_hdr>();
        let at = if fits { at } else { 0 };
        // SAFETY: the range is inside the block, which is ours; the header is plain old data, read unaligned.
        unsafe { self.base().add(at).cast::<tpacket3_hdr>().read_unaligned() }
    }

    /// Gives the present block back and goes on to the next.
    fn give_back(&mut self) {
        self.walk = None;
        self.status()
            .store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.block = (self.block + 1) % self.blocks;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and no borrow of it outlives `self`.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.blocks * BLOCK_SIZE as usize) };
    }
}

/// Where the frame of a header at offset `at` is (virtio-net header first), and where the next header; `None` if
/// any of it is outside the block or goes backwards. `left` counts this frame.
fn place(header: &tpacket3_hdr, at: usize, left: u32) -> Option<Place> {
    let block = BLOCK_SIZE as usize;
    let own = size_of::<tpacket3_hdr>();
    if at < size_of::<tpacket_block_desc>() || at > block - own {
        return None;
    }
    let step = header.tp_next_offset as usize;
    let next = if left > 1 {
        let next = at.checked_add(step)?;
        (step >= own && next <= block - own).then_some(next)?
    } else {
        at
    };
    if header.tp_status & libc::TP_STATUS_USER == 0 {
        let (start, end) = (at, at);
        return Some(Place { start, end, next });
    }
    let mac = usize::from(header.tp_mac);
    let start = at + mac.checked_sub(VNET_HDR)?;
    let end = at
        .checked_add(mac)?
        .checked_add(header.tp_snaplen as usize)?;
    (mac >= own + VNET_HDR && end <= block).then_some(Place { start, end, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(next: u32, mac: u16, len: u32) -> tpacket3_hdr {
        // SAFETY: plain old data; all zero is a valid value.
        let mut h: tpacket3_hdr = unsafe { std::mem::zeroed() };
        h.tp_next_offset = next;
        h.tp_mac = mac;
        h.tp_snaplen = len;
        h.tp_status = libc::TP_STATUS_USER;
        h
    }

    #[test]
    fn a_frame_is_found_with_its_virtio_net_header() {
        let found = place(&header(208, 92, 60), 48, 2).unwrap();
        assert_eq!((found.start, found.end, found.next), (130, 200, 256));
        // The last one's step leads nowhere and isn't followed.
        assert!(place(&header(0, 92, 60), 48, 1).is_some());
    }

    #[test]
    fn what_is_outside_the_block_or_leads_back_is_refused() {
        let last = BLOCK_SIZE as usize - size_of::<tpacket3_hdr>();
        assert!(
            place(&header(208, 92, 60), 0, 2).is_none(),
            "in the descriptor"
        );
        assert!(place(&header(208, 92, 60), last + 1, 1).is_none());
        assert!(place(&header(0, 92, 60), 48, 2).is_none(), "no step");
        assert!(place(&header(u32::MAX, 92, 60), 48, 2).is_none());
        assert!(
            place(&header(208, 9, 60), 48, 2).is_none(),
            "in its own header"
        );
        assert!(place(&header(208, 92, BLOCK_SIZE), 48, 2).is_none());
        assert!(place(&header(208, 92, u32::MAX), 48, 2).is_none());
    }

    #[test]
    fn a_frame_the_kernel_gave_up_is_passed_over() {
        let mut stale = header(208, 9, u32::MAX);
        stale.tp_status = 0;
        assert_eq!(place(&stale, 48, 2).unwrap().next, 256);
    }
}
