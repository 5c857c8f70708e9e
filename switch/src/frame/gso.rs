//! Finishing in software what an egress port can't do itself: checksums and segmentation.
//!
//! # Theory of operation
//!
//! A frame's offload state comes from a container and is as hostile as the frame, so nothing of it is believed: headers
//! are parsed again and must be what the state says. A partial checksum is summed from `csum_start` to the end of
//! the frame (net/core/dev.c, `skb_checksum_help`). A segmentation-offload frame is cut into packets of `gso_size` payload
//! bytes, with the headers as tcp_gso_segment and `__udp_gso_segment` make them (net/ipv4/tcp_offload.c, udp_offload.c): lengths of
//! their own, ascending IPv4 identification and TCP sequence, PSH and FIN on the last, CWR on the first segment only.
//! A port that takes partial checksums gets segments with partial checksums.
//!
//! SCTP's checksum is a CRC, which no port's offload can be told of: to the kernel a partial checksum is always a sum (`csum_not_inet` of
//! a `sk_buff` isn't in a virtio-net header). So a CRC that a sender left to be done is computed here, whatever the port takes.
//!
//! A bridge neither fragments nor answers: packets longer than the egress MTU are refused with
//! [`DropReason::Mtu`], segmentation-offload frames by the length of their segments.

use super::{DropReason, Frame, GsoType, Offloads, VnetHdr};
use crate::wire::{self, L3, L4, Meta, crc32c, csum};

/// Most segments of one frame: 64 KiB in segments of 64 bytes. Smaller ones are an attack on the transmit queue.
const MAX_SEGMENTS: usize = 1024;
/// Where SCTP's checksum is in its header (RFC 9260 3.1).
const SCTP_CSUM: u16 = 8;
/// TCP flags of the 13th and 14th byte (RFC 9293 3.1): CWR, FIN, PSH.
const CWR: u8 = 0x80;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;

/// Whether a port with these offloads and MTU (L3 length, bytes) can send the frame untouched.
#[must_use]
pub fn fits(frame: &Frame, offloads: Offloads, mtu: u32) -> bool {
    let head = frame.head();
    let l2 = wire::l2_len(head);
    if frame.vnet.gso == GsoType::None {
        return frame.len() <= mtu as usize + l2 && offloads.takes(&frame.vnet);
    }
    offloads.takes(&frame.vnet)
        && header_len(head, frame.len())
            .is_some_and(|h| h + usize::from(frame.vnet.gso_size) <= mtu as usize + l2)
}

/// Whether the frame can be sent as it is by a port with these offloads and MTU: it [`fits`], and no CRC is left to be computed.
#[must_use]
pub fn is_ready(frame: &Frame, offloads: Offloads, mtu: u32) -> bool {
    !leaves_crc(&frame.vnet) && fits(frame, offloads, mtu)
}

/// Whether the checksum left to be done is SCTP's: no other has its place.
fn leaves_crc(v: &VnetHdr) -> bool {
    v.needs_csum && v.csum_offset == SCTP_CSUM
}

/// Length of all headers up to the payload of TCP or UDP.
fn header_len(head: &[u8], len: usize) -> Option<usize> {
    let m = wire::parse(head, len)?;
    l4_end(&m, head)
}

fn l4_end(m: &Meta, head: &[u8]) -> Option<usize> {
    let at = usize::from(m.l4_off);
    let end = match m.l4 {
        L4::Tcp => at + usize::from(head.get(at + 12)? >> 4) * 4,
        L4::Udp => at + 8,
        _ => return None,
    };
    let least = if m.l4 == L4::Tcp { at + 20 } else { end };
    (end >= least && end <= head.len()).then_some(end)
}

/// Makes a frame fit for a port that takes `offloads` and packets of `mtu` bytes (L3 length), and hands the resulting
/// frames to `out` in order. Errors: why the frame can't go out; nothing was handed over then.
pub fn finish(
    mut frame: Frame,
    offloads: Offloads,
    mtu: u32,
    out: &mut dyn FnMut(Frame),
) -> Result<(), DropReason> {
    if is_ready(&frame, offloads, mtu) {
        out(frame);
        return Ok(());
    }
    if frame.vnet.gso != GsoType::None {
        return segment(&frame, offloads, mtu, out);
    }
    if frame.len() > mtu as usize + wire::l2_len(frame.head()) {
        return Err(DropReason::Mtu);
    }
    complete(&mut frame)?;
    out(frame);
    Ok(())
}

/// Sums the checksum that the sender left to be done; the frame is plain afterwards. Segmentation-offload frames are refused.
/// Errors: [`DropReason::SegmentFailed`] if the checksum isn't within the frame's head.
pub fn complete(frame: &mut Frame) -> Result<(), DropReason> {
    let v = frame.vnet;
    if v.gso != GsoType::None {
        return Err(DropReason::SegmentFailed);
    }
    if leaves_crc(&v) {
        crc_from(frame, v.csum_start)?;
    } else if v.needs_csum {
        sum_from(frame, v.csum_start.into(), v.csum_offset.into())?;
    }
    frame.vnet = VnetHdr::default();
    Ok(())
}

/// Turns a whole TCP or UDP packet into what a sender with offloads makes of it: `size` bytes of payload to a segment, the
/// checksum left to be done. False, and the frame is as it was, if it isn't one.
pub fn offload(frame: &mut Frame, size: u16) -> bool {
    let Some(meta) = wire::parse(frame.head(), frame.len()) else {
        return false;
    };
    let (gso, offset) = match (meta.l4, meta.l3) {
        (L4::Tcp, L3::V4) => (GsoType::Tcp4, 16),
        (L4::Tcp, L3::V6) => (GsoType::Tcp6, 16),
        (L4::Udp, _) => (GsoType::UdpL4, 6),
        _ => return false,
    };
    let ends = meta.addresses(frame.head());
    let (Some(headers), Some(ends)) = (l4_end(&meta, frame.head()), ends) else {
        return false;
    };
    if meta.fragment || size == 0 {
        return false;
    }
    let start = usize::from(meta.l4_off);
    let len = (meta.l3_end as usize).saturating_sub(start);
    let sum = csum::pseudo(ends, meta.proto, len);
    let field = frame.head_mut().get_mut(start + offset..);
    let Some(field) = field.and_then(|b| b.first_chunk_mut::<2>()) else {
        return false;
    };
    *field = csum::fold(sum).to_be_bytes();
    frame.vnet = VnetHdr {
        needs_csum: true,
        gso,
        hdr_len: headers as u16,
        gso_size: size,
        csum_start: meta.l4_off,
        csum_offset: offset as u16,
        ..VnetHdr::default()
    };
    true
}

/// Payload of the segments that a TCP packet over this MTU (L3 length) was sent in; `None` if it isn't one.
#[must_use]
pub fn segment_size(frame: &Frame, mtu: u32) -> Option<u16> {
    let (head, l2) = (frame.head(), wire::l2_len(frame.head()));
    let meta = wire::parse(head, frame.len())?;
    if meta.l4 != L4::Tcp || meta.fragment || frame.len() <= mtu as usize + l2 {
        return None;
    }
    let size = (mtu as usize + l2).checked_sub(l4_end(&meta, head)?)?;
    (size > 0).then_some(size as u16)
}

/// Computes the CRC32c of an SCTP packet whose header is at `start`.
fn crc_from(frame: &mut Frame, start: u16) -> Result<(), DropReason> {
    const BAD: DropReason = DropReason::SegmentFailed;
    let meta = wire::parse(frame.head(), frame.len()).ok_or(BAD)?;
    if meta.l4 != L4::Sctp || meta.l4_off != start || meta.fragment {
        return Err(BAD);
    }
    let (start, end) = (usize::from(start), meta.l3_end as usize);
    let (head, tail) = frame.parts_mut();
    let at = start + usize::from(SCTP_CSUM);
    head.get_mut(at..at + 4).ok_or(BAD)?.fill(0);
    let split = head.len().min(end);
    let crc = crc32c::add(crc32c::START, head.get(start..split).ok_or(BAD)?);
    let rest = tail.get(..end - split).ok_or(BAD)?;
    let crc = !crc32c::add(crc, rest);
    let field = head.get_mut(at..at + 4).ok_or(BAD)?;
    field.copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Sums all from `start` to the end and stores the checksum at `start + offset`.
fn sum_from(frame: &mut Frame, start: usize, offset: usize) -> Result<(), DropReason> {
    let (head, tail) = frame.parts_mut();
    let covered = head.get(start..).ok_or(DropReason::SegmentFailed)?;
    if covered.len() % 2 != 0 && !tail.is_empty() {
        // Only the last slice of a sum may have an odd length: the tail is summed shifted by one byte.
        let odd = csum::add(0, covered);
        let shifted = csum::fold(csum::add(0, tail)).swap_bytes();
        return store(head, start + offset, odd + u64::from(shifted));
    }
    let sum = csum::add(csum::add(0, covered), tail);
    store(head, start + offset, sum)
}

fn store(head: &mut [u8], at: usize, sum: u64) -> Result<(), DropReason> {
    let field = head
        .get_mut(at..)
        .and_then(|b| b.first_chunk_mut::<2>())
        .ok_or(DropReason::SegmentFailed)?;
    // Zero means "no checksum" for UDP (RFC 768); both are zero in one's complement.
    let c = match csum::finish(sum) {
        0 => 0xffff,
        c => c,
    };
    *field = c.to_be_bytes();
    Ok(())
}

/// What the segments of a frame have in common.
struct Plan {
    meta: Meta,
    headers: usize,
    size: usize,
    payload: usize,
    partial: bool,
}

impl Plan {
    /// Reads the headers and checks that they are what the offload state says.
    fn of(frame: &Frame, offloads: Offloads, mtu: u32) -> Result<Plan, DropReason> {
        const BAD: DropReason = DropReason::SegmentFailed;
        let head = frame.head();
        let meta = wire::parse(head, frame.len()).ok_or(BAD)?;
        let agree = match frame.vnet.gso {
            GsoType::Tcp4 => meta.l3 == L3::V4 && meta.l4 == L4::Tcp,
            GsoType::Tcp6 => meta.l3 == L3::V6 && meta.l4 == L4::Tcp,
            GsoType::UdpL4 => meta.l3 != L3::Other && meta.l4 == L4::Udp,
            GsoType::None => false,
        };
        let headers = l4_end(&meta, head).ok_or(BAD)?;
        let payload = (meta.l3_end as usize).checked_sub(headers).ok_or(BAD)?;
        let size = usize::from(frame.vnet.gso_size);
        if !agree || meta.fragment || size == 0 || payload.div_ceil(size) > MAX_SEGMENTS {
            return Err(BAD);
        }
        if headers + size.min(payload) > mtu as usize + wire::l2_len(head) {
            return Err(DropReason::Mtu);
        }
        Ok(Plan {
            meta,
            headers,
            size,
            payload,
            partial: offloads.csum,
        })
    }
}

fn segment(
    frame: &Frame,
    offloads: Offloads,
    mtu: u32,
    out: &mut dyn FnMut(Frame),
) -> Result<(), DropReason> {
    let plan = Plan::of(frame, offloads, mtu)?;
    let mut at = 0;
    let mut index = 0;
    loop {
        let n = plan.size.min(plan.payload - at);
        let last = at + n == plan.payload;
        let mut piece = Frame::new();
        piece.append(&frame.head()[..plan.headers]);
        copy_payload(frame, plan.headers + at, n, &mut piece);
        plan.header(&mut piece, index, at, last)?;
        out(piece);
        if last {
            return Ok(());
        }
        at += n;
        index += 1;
    }
}

/// Appends `n` bytes of `frame` from `at` on.
fn copy_payload(frame: &Frame, at: usize, n: usize, to: &mut Frame) {
    let (head, tail) = (frame.head(), frame.tail());
    let end = at + n;
    if at < head.len() {
        to.append(&head[at..end.min(head.len())]);
    }
    if end > head.len() {
        to.append(&tail[at.saturating_sub(head.len())..end - head.len()]);
    }
}

impl Plan {
    /// Makes the headers of segment number `index`, whose payload begins at `at`, right.
    fn header(
        &self,
        piece: &mut Frame,
        index: usize,
        at: usize,
        last: bool,
    ) -> Result<(), DropReason> {
        const BAD: DropReason = DropReason::SegmentFailed;
        let (l3, l4) = (usize::from(self.meta.l3_off), usize::from(self.meta.l4_off));
        let len = piece.len();
        let l4_len = len - l4;
        let head = piece.head_mut();
        let pseudo = match self.meta.l3 {
            L3::V4 => {
                let ip = head.get_mut(l3..l4).ok_or(BAD)?;
                ipv4_header(ip, len - l3, index).ok_or(BAD)?;
                csum::add(0, ip.get(12..20).ok_or(BAD)?)
            }
            _ => {
                let ip = head.get_mut(l3..l4).ok_or(BAD)?;
                let payload = ((len - l3 - 40) as u16).to_be_bytes();
                ip.get_mut(4..6).ok_or(BAD)?.copy_from_slice(&payload);
                csum::add(0, ip.get(8..40).ok_or(BAD)?)
            }
        } + u64::from(self.meta.proto)
            + l4_len as u64;
        let transport = head.get_mut(l4..).ok_or(BAD)?;
        let offset = if self.meta.l4 == L4::Tcp {
            tcp_header(transport, index, at, last).ok_or(BAD)?;
            16
        } else {
            let length = (l4_len as u16).to_be_bytes();
            transport.get_mut(4..6).ok_or(BAD)?.copy_from_slice(&length);
            6
        };
        // A partial checksum is the pseudo-header's sum, not inverted.
        transport
            .get_mut(offset..offset + 2)
            .ok_or(BAD)?
            .copy_from_slice(&csum::fold(pseudo).to_be_bytes());
        if self.partial {
            piece.vnet = VnetHdr {
                needs_csum: true,
                csum_start: l4 as u16,
                csum_offset: offset as u16,
                ..VnetHdr::default()
            };
            Ok(())
        } else {
            sum_from(piece, l4, offset)
        }
    }
}

/// Length, identification and checksum of an IPv4 header.
fn ipv4_header(ip: &mut [u8], total: usize, index: usize) -> Option<()> {
    ip.get_mut(2..4)?
        .copy_from_slice(&(total as u16).to_be_bytes());
    let id = ip.get_mut(4..)?.first_chunk_mut::<2>()?;
    *id = u16::from_be_bytes(*id)
        .wrapping_add(index as u16)
        .to_be_bytes();
    ip.get_mut(10..12)?.fill(0);
    let sum = csum::finish(csum::add(0, ip));
    ip.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// Sequence number and flags of a segment.
fn tcp_header(tcp: &mut [u8], index: usize, at: usize, last: bool) -> Option<()> {
    let seq = tcp.get_mut(4..)?.first_chunk_mut::<4>()?;
    *seq = u32::from_be_bytes(*seq)
        .wrapping_add(at as u32)
        .to_be_bytes();
    let flags = tcp.get_mut(13)?;
    if !last {
        *flags &= !(FIN | PSH);
    }
    if index > 0 {
        *flags &= !CWR;
    }
    Some(())
}

#[cfg(test)]
#[path = "gso_tests.rs"]
mod tests;
