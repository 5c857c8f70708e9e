//! UDP flows: one connected socket each, so that the kernel says which datagrams are of it and what became of those sent.
//!
//! Segmentation-offload frames of a container stay whole (UDP_SEGMENT), and datagrams of a size that arrive together come as
//! one frame (UDP_GRO). A full send buffer loses datagrams, as a full queue does.

use super::packet::{ip_header, may_fragment};
use super::{Flow, Key, Out, Slirp};
use crate::reply::Cause;
use crate::rewrite::left_to_offload;
use crate::verify::l4_sum_is_right;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Entry, Frame, GsoType, VnetHdr};
use vswitch_core::sys::sock::{self, Kind, QueuedError};
use vswitch_core::wire::{L3, csum};

const UDP: u8 = 17;
const HEADER: usize = 8;
const ETH: usize = 14;
const TTL: u8 = 64;
/// Datagrams or joined ones received before others have their turn, and errors told.
const AT_ONCE: usize = 32;
const ERRORS: usize = 4;
/// Segments the kernel takes at once (include/linux/udp.h, UDP_MAX_SEGMENTS before Linux 6.9).
const SEGMENTS: usize = 64;
/// A TTL below this is set at the socket: somebody traces a route. Above, the host's own serves.
pub(super) const LOW_TTL: u8 = 32;

#[derive(Debug)]
pub(super) struct Udp {
    fd: OwnedFd,
    ttl: Option<u8>,
    id: u16,
}

/// TTL or hop limit of a packet.
pub(super) fn ttl_of(e: &Entry) -> u8 {
    let at = usize::from(e.meta.l3_off) + if e.meta.l3 == L3::V4 { 8 } else { 7 };
    e.frame.head().get(at).copied().unwrap_or(TTL)
}

/// Sets a socket's TTL where it matters.
pub(super) fn follow_ttl(fd: BorrowedFd<'_>, v6: bool, is: &mut Option<u8>, ttl: u8) {
    if ttl < LOW_TTL && *is != Some(ttl) || is.is_some_and(|i| i != ttl) {
        // A kernel that refuses it sends with its own.
        let _ = sock::set_ttl(fd, v6, ttl);
        *is = Some(ttl);
    }
}

/// What an error of connecting or sending is to a container.
pub(super) fn cause_of(e: &io::Error) -> Cause {
    match e.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Cause::PortUnreachable,
        ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown | ErrorKind::AddrNotAvailable => {
            Cause::NetUnreachable
        }
        ErrorKind::PermissionDenied => Cause::Prohibited,
        _ => Cause::HostUnreachable,
    }
}

/// What the error queue says, as an ICMP error for the container.
pub(super) fn cause(e: &QueuedError, v6: bool) -> Cause {
    match (e.icmp, v6) {
        (Some((3, 0)), false) | (Some((1, 0)), true) => Cause::NetUnreachable,
        (Some((3, 3)), false) | (Some((1, 4)), true) => Cause::PortUnreachable,
        (Some((3, 4)), false) | (Some((2, _)), true) => Cause::TooBig(e.info),
        (Some((3, 9 | 10 | 13)), false) | (Some((1, 1)), true) => Cause::Prohibited,
        (Some((11, 0)), false) | (Some((3, 0)), true) => Cause::TimeExceeded,
        _ => cause_of(&io::Error::from_raw_os_error(e.errno)),
    }
}

/// Reads what a socket's error queue has.
pub(super) fn errors(
    fd: BorrowedFd<'_>,
    v6: bool,
    out: &mut Vec<Out>,
    quote: &dyn Fn() -> Option<Frame>,
) {
    for _ in 0..ERRORS {
        let Ok(e) = sock::next_error(fd) else { return };
        let from = e.from.filter(|a: &IpAddr| !a.is_loopback());
        out.extend(quote().map(|f| Out::Error(f, cause(&e, v6), from)));
    }
}

impl Slirp {
    pub(super) fn udp(&mut self, now: Nanos, key: Key, e: &Entry) -> Result<(), DropReason> {
        let (parts, size) = payload(e).ok_or(DropReason::BadPacket)?;
        let i = match self.table.find(&key) {
            Some(i) => i,
            None => self.udp_new(now, key)?,
        };
        let Some(slot) = self.table.get(i) else {
            return Err(DropReason::HostSocket);
        };
        slot.used = now;
        let Flow::Udp(u) = &mut slot.flow else {
            return Ok(());
        };
        let v6 = key.outside.is_ipv6();
        follow_ttl(u.fd.as_fd(), v6, &mut u.ttl, ttl_of(e));
        let mut sent = u.send(parts, size);
        if matches!(&sent, Err(e) if e.kind() != ErrorKind::WouldBlock) {
            // It may be the error of a datagram before.
            let quote = || quote(&key);
            errors(u.fd.as_fd(), v6, &mut self.out, &quote);
            sent = u.send(parts, size);
        }
        match sent {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Err(DropReason::QueueFull),
            Err(e) => {
                let error = quote(&key).map(|f| Out::Error(f, cause_of(&e), None));
                self.out.extend(error);
                Err(DropReason::HostSocket)
            }
        }
    }

    fn udp_new(&mut self, now: Nanos, key: Key) -> Result<u32, DropReason> {
        match self.open(now, Kind::Udp, key) {
            Ok(fd) => {
                let udp = Udp {
                    fd,
                    ttl: None,
                    id: self.random() as u16,
                };
                self.enter(now, key, Flow::Udp(udp))?;
                self.table.find(&key).ok_or(DropReason::HostSocket)
            }
            Err(e) => {
                let error = quote(&key).map(|f| Out::Error(f, cause_of(&e), None));
                self.out.extend(error);
                Err(DropReason::HostSocket)
            }
        }
    }
}

/// The payload of a datagram, or of several and the size of each.
pub(super) fn payload(e: &Entry) -> Option<([&[u8]; 2], Option<u16>)> {
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
    let first = head.get(at + HEADER..end.min(head.len()))?;
    let rest = tail.get(..end.saturating_sub(head.len()))?;
    let size = e.frame.vnet.gso_size;
    let several = several && first.len() + rest.len() > usize::from(size);
    Some(([first, rest], several.then_some(size)))
}

impl Udp {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn send(&self, parts: [&[u8]; 2], size: Option<u16>) -> io::Result<()> {
        let Some(size) = size else {
            return sock::send(&self.fd, parts).map(drop);
        };
        let each = usize::from(size);
        let (mut at, all) = (0, parts[0].len() + parts[1].len());
        let cut = |from: usize, to: usize| {
            let split = parts[0].len();
            let first = parts[0].get(from.min(split)..to.min(split));
            let rest = parts[1].get(from.saturating_sub(split)..to.saturating_sub(split));
            [first.unwrap_or_default(), rest.unwrap_or_default()]
        };
        let mut joined = true;
        while at < all {
            let most = if joined {
                (65_000 / each).clamp(1, SEGMENTS)
            } else {
                1
            };
            let end = (at + each * most).min(all);
            let piece = cut(at, end);
            let sent = match joined && end - at > each {
                true => {
                    let iov = [IoSlice::new(piece[0]), IoSlice::new(piece[1])];
                    sock::send_segments(&self.fd, &iov, size)
                }
                false => sock::send(&self.fd, piece),
            };
            match sent {
                Ok(_) => at = end,
                // No segmentation on the way out: one by one.
                Err(e) if joined && !matches!(e.kind(), ErrorKind::WouldBlock) => joined = false,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Receives what has come; true if there may be more.
    pub(super) fn receive(
        &mut self,
        key: &Key,
        frames: &mut Vec<Frame>,
        out: &mut Vec<Out>,
    ) -> bool {
        let quote = || quote(key);
        errors(self.fd.as_fd(), key.outside.is_ipv6(), out, &quote);
        for _ in 0..AT_ONCE {
            self.id = self.id.wrapping_add(1);
            match frame(key, self.id, &mut |into| {
                sock::recv_segments(&self.fd, into)
            }) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                // Told by the error queue.
                Err(_) => {}
            }
        }
        true
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
fn quote(key: &Key) -> Option<Frame> {
    let len = ETH + if key.inside.is_ipv6() { 40 } else { 20 } + HEADER;
    let mut frame = Frame::from_bytes([0; ETH + 40 + HEADER].get(..len)?)?;
    finish(&mut frame, key.inside, key.outside, 0, 0, None)?;
    Some(frame)
}
