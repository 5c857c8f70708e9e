//! Echo requests by ping sockets (icmp(7), "ICMP datagram sockets"): the kernel gives each an identifier of its own and takes
//! only its replies.
//!
//! They take that `net.ipv4.ping_group_range` names a group of ours; without, requests are dropped with a reason of their own.

use super::errors::{OWN, Travel, cause_of, errors, is_too_long};
use super::packet::{ip_header, may_fragment};
use super::{Flow, Key, Out, Slirp, Taken};
use crate::verify::l4_sum_is_right;
use std::io::{ErrorKind, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Entry, Frame};
use vswitch_core::sys::datagram;
use vswitch_core::sys::sock::{self, Kind};
use vswitch_core::wire::{L4, csum};

const ETH: usize = 14;
const TTL: u8 = 64;
const AT_ONCE: usize = 16;

#[derive(Debug)]
pub(super) struct Ping {
    fd: OwnedFd,
    travel: Travel,
    id: u16,
    /// The error queue has something.
    pub(super) erred: bool,
    /// Of the last request, for who quotes it.
    sequence: [u8; 2],
}

/// Request, reply, and protocol.
fn types(v6: bool) -> (u8, u8, u8) {
    if v6 { (128, 129, 58) } else { (8, 0, 1) }
}

impl Slirp {
    pub(super) fn ping(
        &mut self,
        now: Nanos,
        key: Key,
        e: &Entry,
        pieced: bool,
    ) -> Result<Taken, DropReason> {
        const BAD: DropReason = DropReason::BadPacket;
        let (at, end) = (usize::from(e.meta.l4_off), e.meta.l3_end as usize);
        let v6 = e.meta.l4 == L4::Icmp6;
        if !e.frame.vnet.needs_csum && !l4_sum_is_right(&e.frame, &e.meta) {
            return Err(BAD);
        }
        let (head, tail) = (e.frame.head(), e.frame.tail());
        let first = head.get(at..end.min(head.len())).ok_or(BAD)?;
        let rest = tail.get(..end.saturating_sub(head.len())).ok_or(BAD)?;
        let &[kind, code, _, _, _, _, s0, s1] = first.first_chunk().ok_or(BAD)?;
        if (kind, code) != (types(v6).0, 0) {
            return Err(DropReason::HostSocket);
        }
        let i = match self.table.find(&key) {
            Some(i) => i,
            None => {
                let fd = match self.open(now, Kind::Ping, key, None) {
                    Ok(fd) => fd,
                    // That we may have no such socket is nothing the way there says.
                    Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                        return Err(DropReason::HostSocket);
                    }
                    Err(e) => {
                        let quoted = quote(&key, [s0, s1]);
                        let error = quoted.map(|f| Out::Error(f, cause_of(&e), None));
                        self.out.extend(error);
                        return Err(DropReason::HostSocket);
                    }
                };
                let ping = Ping {
                    fd,
                    travel: OWN,
                    id: self.random() as u16,
                    erred: false,
                    sequence: [0; 2],
                };
                self.enter(now, key, Flow::Ping(ping))?;
                self.table.find(&key).ok_or(DropReason::HostSocket)?
            }
        };
        let Some(slot) = self.table.get(i) else {
            return Err(DropReason::HostSocket);
        };
        slot.used = now;
        let Flow::Ping(p) = &mut slot.flow else {
            return Ok(Taken::Now);
        };
        Travel::of(e, pieced).tell(p.fd.as_fd(), v6, &mut p.travel);
        p.sequence = [s0, s1];
        let Err(error) = sock::send(&p.fd, [first, rest]) else {
            return Ok(Taken::Now);
        };
        let quote = |quoted: &[u8]| quote(&key, sequence_of(quoted).unwrap_or([s0, s1]));
        errors(p.fd.as_fd(), v6, &mut self.out, &quote);
        if is_too_long(&error) {
            return Err(DropReason::Mtu);
        }
        // It was the error of a request before.
        match sock::send(&p.fd, [first, rest]) {
            Ok(_) => Ok(Taken::Now),
            Err(e) => {
                if e.kind() != ErrorKind::WouldBlock {
                    let offender = quote(&[]);
                    self.out
                        .extend(offender.map(|f| Out::Error(f, cause_of(&e), None)));
                }
                Err(DropReason::HostSocket)
            }
        }
    }
}

/// The sequence number of a request that an error quotes.
fn sequence_of(quoted: &[u8]) -> Option<[u8; 2]> {
    quoted.get(6..8)?.first_chunk().copied()
}

impl Ping {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Receives replies; true if there may be more.
    pub(super) fn receive(
        &mut self,
        key: &Key,
        frames: &mut Vec<Frame>,
        out: &mut Vec<Out>,
    ) -> bool {
        if self.erred {
            let last = self.sequence;
            let quote = |quoted: &[u8]| quote(key, sequence_of(quoted).unwrap_or(last));
            self.erred = errors(self.fd.as_fd(), key.outside.is_ipv6(), out, &quote);
        }
        for _ in 0..AT_ONCE {
            self.id = self.id.wrapping_add(1);
            match self.reply(key) {
                Ok(frame) => frames.extend(frame),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return self.erred,
                // The queue says more of it.
                Err(_) => self.erred = true,
            }
        }
        true
    }

    fn reply(&self, key: &Key) -> std::io::Result<Option<Frame>> {
        let l3 = if key.inside.is_ipv6() { 40 } else { 20 };
        let headers = ETH + l3;
        let mut frame = Frame::new();
        let (n, _) = {
            let [mut head, mut tail] = frame.recv_slices(0);
            let head = head.get_mut(headers..).unwrap_or_default();
            let most = (65_535 - l3).saturating_sub(head.len());
            let tail = tail.get_mut(..most).unwrap_or_default();
            let mut into = [IoSliceMut::new(head), IoSliceMut::new(tail)];
            datagram::recv_segments(&self.fd, &mut into)?
        };
        frame.received(0, headers + n);
        drop(frame.take_spare_tail());
        Ok(finish(&mut frame, key, n, self.id).map(|()| frame))
    }
}

/// Makes a reply that of the container's request: its identifier, addresses, checksum.
fn finish(frame: &mut Frame, key: &Key, n: usize, id: u16) -> Option<()> {
    let (outside, inside) = (key.outside.ip(), key.inside.ip());
    let v6 = outside.is_ipv6();
    let (_, reply, proto) = types(v6);
    let (head, tail) = frame.parts_mut();
    let l4 = ip_header(head, outside, inside, proto, TTL, n)?;
    may_fragment(head, id)?;
    let message = head.get_mut(l4.at..)?;
    let fixed: &mut [u8; 8] = message.first_chunk_mut()?;
    if fixed[0] != reply {
        return None;
    }
    fixed[2..4].fill(0);
    fixed[4..6].copy_from_slice(&key.inside.port().to_be_bytes());
    let pseudo = if v6 { l4.pseudo } else { 0 };
    // What isn't in the head begins at an even byte: the head slot's room is even.
    let sum = csum::finish(csum::add(csum::add(pseudo, message), tail));
    message.get_mut(2..4)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// A request as the container sent it, for who quotes it.
fn quote(key: &Key, sequence: [u8; 2]) -> Option<Frame> {
    let v6 = key.inside.is_ipv6();
    let (request, _, proto) = types(v6);
    let len = ETH + if v6 { 40 } else { 20 } + 8;
    let mut frame = Frame::from_bytes([0; ETH + 40 + 8].get(..len)?)?;
    let head = frame.head_mut();
    let (from, to) = (key.inside.ip(), key.outside.ip());
    let l4 = ip_header(head, from, to, proto, TTL, 8)?;
    let message: &mut [u8; 8] = head.get_mut(l4.at..)?.first_chunk_mut()?;
    message[0] = request;
    message[4..6].copy_from_slice(&key.inside.port().to_be_bytes());
    message[6..8].copy_from_slice(&sequence);
    let pseudo = if v6 { l4.pseudo } else { 0 };
    let sum = csum::finish(csum::add(pseudo, message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(frame)
}
