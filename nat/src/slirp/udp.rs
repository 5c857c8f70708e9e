//! UDP flows: one connected socket each, so that the kernel says which datagrams are of it and what became of those sent.
//!
//! What a container sends waits for the end of its batch and goes to the kernel by as few calls as can be ([`super::outgoing`]);
//! segmentation-offload frames of a container stay whole (UDP_SEGMENT). What has come is taken by one call, and datagrams of a size that
//! follow each other become one frame, whether the kernel has joined them (UDP_GRO) or not: a port that can't take it whole cuts it. A full
//! send buffer loses datagrams, as a full queue does.

use super::errors::{OWN, Travel, cause_of, errors};
use super::outgoing::Payload;
use super::packet::{ip_header, may_fragment};
use super::{Flow, Key, Out, Slirp, Taken};
use crate::rewrite::left_to_offload;
use crate::verify::l4_sum_is_right;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Entry, Frame, GsoType, VnetHdr};
use vswitch_core::sys::datagram::{self, Inbox};
use vswitch_core::sys::sock::Kind;
use vswitch_core::wire::{L3, csum};

const UDP: u8 = 17;
const HEADER: usize = 8;
const ETH: usize = 14;
const TTL: u8 = 64;
/// Calls that receive before others have their turn.
const CALLS: usize = 4;
/// Segments the kernel takes at once (include/linux/udp.h, UDP_MAX_SEGMENTS before Linux 6.9).
pub(super) const SEGMENTS: usize = 64;
/// From this length on what comes is received into its frame, one by one: copying it would cost more than a call.
pub(super) const LONG: usize = 4096;

#[derive(Debug)]
pub(super) struct Udp {
    pub(super) fd: OwnedFd,
    /// What the socket was last told.
    pub(super) travel: Travel,
    /// Longest datagrams that the kernel joins on this way.
    pub(super) joins: usize,
    id: u16,
    /// The error queue has something.
    pub(super) erred: bool,
    /// The last that came was long; bursts have come.
    long: bool,
    bursts: bool,
}

impl Slirp {
    pub(super) fn udp(
        &mut self,
        now: Nanos,
        key: Key,
        e: &mut Entry,
        pieced: bool,
    ) -> Result<Taken, DropReason> {
        let payload = payload(e).ok_or(DropReason::BadPacket)?;
        let i = match self.table.find(&key) {
            Some(i) => i,
            None => self.udp_new(now, key)?,
        };
        let travel = Travel::of(e, pieced);
        self.put(now, (i, key), std::mem::take(&mut e.frame), payload, travel);
        Ok(Taken::Waits)
    }

    fn udp_new(&mut self, now: Nanos, key: Key) -> Result<u32, DropReason> {
        match self.open(now, Kind::Udp, key, None) {
            Ok(fd) => {
                let udp = Udp::new(fd, self.random() as u16);
                self.enter(now, key, Flow::Udp(udp))?;
                self.table.find(&key).ok_or(DropReason::HostSocket)
            }
            Err(e) => {
                let error = quote(&key, &[]).map(|f| Out::Error(f, cause_of(&e), None));
                self.out.extend(error);
                Err(DropReason::HostSocket)
            }
        }
    }
}

/// The payload of a datagram, or of several and the size of each, as bytes.
pub(super) fn parts(e: &Entry) -> Option<([&[u8]; 2], Option<u16>)> {
    let p = payload(e)?;
    let first = e.frame.head().get(p.head.0..p.head.1)?;
    Some(([first, e.frame.tail().get(..p.tail)?], p.size))
}

/// The payload of a datagram, or of several and the size of each.
fn payload(e: &Entry) -> Option<Payload> {
    if !left_to_offload(&e.frame, &e.meta) && !e.frame.vnet.data_valid {
        let at = usize::from(e.meta.l4_off);
        let sum = e.frame.head().get(at + 6..at + 8)?;
        let unsummed = e.meta.l3 == L3::V4 && sum == [0, 0];
        if !unsummed && !l4_sum_is_right(&e.frame, &e.meta) {
            return None;
        }
    }
    let (head, tail) = (e.frame.head(), e.frame.tail());
    let at = usize::from(e.meta.l4_off);
    let several = e.frame.vnet.gso == GsoType::UdpL4;
    let field = head.get(at + 4..at + 6)?.first_chunk().copied()?;
    let end = e.meta.l3_end as usize;
    let end = match several {
        true => end,
        false => end.min(at + usize::from(u16::from_be_bytes(field))),
    };
    let (from, to) = (at + HEADER, end.min(head.len()));
    let first = head.get(from..to)?;
    let rest = tail.get(..end.saturating_sub(head.len()))?;
    let size = e.frame.vnet.gso_size;
    let several = several && first.len() + rest.len() > usize::from(size);
    Some(Payload {
        head: (from, to),
        tail: rest.len(),
        size: several.then_some(size),
    })
}

/// A frame that datagrams of a size are joined in.
#[derive(Debug)]
pub(super) struct Joint {
    frame: Frame,
    size: usize,
    bytes: usize,
    pub(super) count: usize,
}

impl Joint {
    /// Begins with one, or some that came joined.
    pub(super) fn new(v6: bool, bytes: &[u8], size: usize) -> Option<Joint> {
        let headers = [0; ETH + 40 + HEADER];
        let len = ETH + if v6 { 40 } else { 20 } + HEADER;
        let mut frame = Frame::from_bytes(headers.get(..len)?)?;
        frame.append(bytes).then(|| Joint {
            frame,
            size,
            bytes: bytes.len(),
            count: bytes.len().div_ceil(size.max(1)),
        })
    }

    /// Adds some, if they go on with it.
    pub(super) fn add(&mut self, v6: bool, bytes: &[u8], size: usize) -> bool {
        // Behind a shorter one there is none, and an empty one is no segment.
        let goes_on = self.size > 0 && self.bytes.is_multiple_of(self.size);
        let fits = size == self.size || bytes.len() < self.size && bytes.len() == size && size > 0;
        let (all, count) = (
            self.bytes + bytes.len(),
            self.count + bytes.len().div_ceil(size.max(1)),
        );
        if !goes_on || !fits || all > most(v6) || count > SEGMENTS || !self.frame.append(bytes) {
            return false;
        }
        (self.bytes, self.count) = (all, count);
        true
    }

    pub(super) fn finish(mut self, key: &Key, id: u16) -> Option<Frame> {
        let size = u16::try_from(self.size).ok()?;
        let size = (self.bytes > self.size).then_some(size);
        finish(
            &mut self.frame,
            key.outside,
            key.inside,
            self.bytes,
            id,
            size,
        )?;
        Some(self.frame)
    }
}

/// Most payload of one packet.
fn most(v6: bool) -> usize {
    65_535 - HEADER - if v6 { 40 } else { 20 }
}

impl Udp {
    pub(super) fn new(fd: OwnedFd, id: u16) -> Udp {
        Udp {
            fd,
            travel: OWN,
            joins: usize::MAX,
            id,
            erred: false,
            long: false,
            bursts: false,
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Receives what has come; true if there may be more.
    pub(super) fn receive(
        &mut self,
        key: &Key,
        inbox: &mut Inbox,
        frames: &mut Vec<Frame>,
        out: &mut Vec<Out>,
    ) -> bool {
        if self.erred {
            let quote = |payload: &[u8]| quote(key, payload);
            self.erred = errors(self.fd.as_fd(), key.outside.is_ipv6(), out, &quote);
        }
        for _ in 0..CALLS {
            let more = match self.long {
                true => self.receive_long(key, frames),
                false => self.receive_many(key, inbox, frames),
            };
            match more {
                Ok(true) => {}
                Ok(false) => return self.erred,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return self.erred,
                // The queue says more of it.
                Err(_) => self.erred = true,
            }
        }
        true
    }

    fn receive_many(
        &mut self,
        key: &Key,
        inbox: &mut Inbox,
        frames: &mut Vec<Frame>,
    ) -> io::Result<bool> {
        let full = inbox.receive(&self.fd)?;
        if full && !std::mem::replace(&mut self.bursts, true) {
            datagram::expect_bursts(&self.fd);
        }
        let v6 = key.outside.is_ipv6();
        let mut joint: Option<Joint> = None;
        for (bytes, several) in inbox.iter() {
            self.long |= bytes.len() >= LONG;
            let size = several.map_or(bytes.len(), usize::from);
            if joint.as_mut().is_some_and(|j| j.add(v6, bytes, size)) {
                continue;
            }
            let next = Joint::new(v6, bytes, size);
            self.end(key, std::mem::replace(&mut joint, next), frames);
        }
        self.end(key, joint, frames);
        Ok(full)
    }

    fn end(&mut self, key: &Key, joint: Option<Joint>, frames: &mut Vec<Frame>) {
        if let Some(joint) = joint {
            self.id = self.id.wrapping_add(joint.count as u16);
            frames.extend(joint.finish(key, self.id));
        }
    }

    fn receive_long(&mut self, key: &Key, frames: &mut Vec<Frame>) -> io::Result<bool> {
        for _ in 0..datagram::AT_ONCE {
            self.id = self.id.wrapping_add(SEGMENTS as u16);
            let made = frame(key, self.id, &mut |into| {
                datagram::recv_segments(&self.fd, into)
            })?;
            self.long = made.as_ref().is_some_and(|f| f.len() >= LONG);
            frames.extend(made);
        }
        Ok(true)
    }
}

type Received<'a> = &'a mut dyn FnMut(&mut [IoSliceMut<'_>; 2]) -> io::Result<(usize, Option<u16>)>;

/// A frame of datagrams for the container.
fn frame(key: &Key, id: u16, receive: Received<'_>) -> io::Result<Option<Frame>> {
    let l3 = if key.inside.is_ipv6() { 40 } else { 20 };
    let headers = ETH + l3 + HEADER;
    let mut frame = Frame::new();
    let (n, size) = {
        let [mut head, mut tail] = frame.recv_slices(0);
        let most = 65_535 - l3 - HEADER;
        let head = head.get_mut(headers..).unwrap_or_default();
        let in_tail = most.saturating_sub(head.len()).min(tail.len());
        let tail = tail.get_mut(..in_tail).unwrap_or_default();
        let mut into = [IoSliceMut::new(head), IoSliceMut::new(tail)];
        receive(&mut into)?
    };
    frame.received(0, headers + n);
    drop(frame.take_spare_tail());
    Ok(finish(&mut frame, key.outside, key.inside, n, id, size).map(|()| frame))
}

/// Writes the headers of a frame that has room for them.
pub(super) fn finish(
    frame: &mut Frame,
    from: SocketAddr,
    to: SocketAddr,
    payload: usize,
    id: u16,
    size: Option<u16>,
) -> Option<()> {
    let head = frame.head_mut();
    let l4 = ip_header(head, from.ip(), to.ip(), UDP, TTL, HEADER + payload)?;
    may_fragment(head, id)?;
    let udp: &mut [u8; HEADER] = head.get_mut(l4.at..)?.first_chunk_mut()?;
    udp[..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&((HEADER + payload) as u16).to_be_bytes());
    udp[6..8].copy_from_slice(&csum::fold(l4.pseudo).to_be_bytes());
    frame.vnet = VnetHdr {
        needs_csum: true,
        gso: size.map_or(GsoType::None, |_| GsoType::UdpL4),
        hdr_len: (l4.at + HEADER) as u16,
        gso_size: size.unwrap_or(0),
        csum_start: l4.at as u16,
        csum_offset: 6,
        ..VnetHdr::default()
    };
    Some(())
}

/// A datagram as the container sent it, for who quotes it.
pub(super) fn quote(key: &Key, payload: &[u8]) -> Option<Frame> {
    let joint = Joint::new(key.inside.is_ipv6(), payload, payload.len())?;
    let mut frame = joint.frame;
    finish(&mut frame, key.inside, key.outside, payload.len(), 0, None)?;
    Some(frame)
}
