//! Datagrams at published ports: the clients of a socket of the host, a flow for each.
//!
//! A flow has no socket of its own: its answers leave by the published one, from the address that the client has sent to, or they
//! would be nobody's to the client. Errors of the network aren't told by a socket that isn't connected; who sends into the void
//! learns it as late as on the host itself.

use super::accept::plain;
use super::listen::UDP;
use super::udp::{finish, payload};
use super::{Flow, Key, Slirp};
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Entry, Frame};
use vswitch_core::sys::listen::{self, Received};

const ETH: usize = 14;
const HEADER: usize = 8;
/// Datagrams or joined ones received before others have their turn.
const AT_ONCE: usize = 64;
/// Segments the kernel takes at once (include/linux/udp.h, UDP_MAX_SEGMENTS before Linux 6.9).
const SEGMENTS: usize = 64;

/// A client of a published port.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) listener: u32,
    /// With its scope.
    peer: SocketAddr,
    /// Of its latest packet.
    id: u16,
}

/// A frame with room for headers in front of what a socket has.
fn take(fd: impl std::os::fd::AsFd, v6: bool) -> io::Result<(Frame, Received)> {
    let l3 = if v6 { 40 } else { 20 };
    let headers = ETH + l3 + HEADER;
    let mut frame = Frame::new();
    let got = {
        let [mut head, mut tail] = frame.recv_slices(0);
        let most = 65_535 - l3 - HEADER;
        let head = head.get_mut(headers..).unwrap_or_default();
        let in_tail = most.saturating_sub(head.len()).min(tail.len());
        let tail = tail.get_mut(..in_tail).unwrap_or_default();
        listen::receive(fd, &mut [IoSliceMut::new(head), IoSliceMut::new(tail)])?
    };
    frame.received(0, headers + got.bytes);
    drop(frame.take_spare_tail());
    Ok((frame, got))
}

impl Slirp {
    /// Receives what has come to a published port; true if there may be more.
    pub(super) fn receive_at(&mut self, now: Nanos, i: u32) -> bool {
        for _ in 0..AT_ONCE {
            let Some(l) = self.listeners.get(i) else {
                return false;
            };
            let at = l.port.at;
            match take(&l.fd, at.is_ipv6()) {
                Ok((frame, got)) => self.received(now, i, at, frame, got),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                // Of one datagram.
                Err(_) => {}
            }
        }
        true
    }

    fn received(&mut self, now: Nanos, by: u32, at: SocketAddr, mut frame: Frame, got: Received) {
        let own = match at.ip() {
            ip if ip.is_unspecified() => got.to.unwrap_or(ip),
            ip => ip,
        };
        let key = Key {
            proto: UDP,
            inside: (own, at.port()).into(),
            outside: plain(got.from),
        };
        // Nobody answers as a group, and to port 0 there is no answer.
        if own.is_multicast() || own.is_unspecified() || got.from.port() == 0 {
            return;
        }
        let known = self.table.find(&key);
        let Some(n) = known.or_else(|| self.serve(now, by, key, got.from)) else {
            return;
        };
        let Some(slot) = self.table.get(n) else {
            return;
        };
        slot.used = now;
        let Flow::Served(s) = &mut slot.flow else {
            return;
        };
        s.id = s.id.wrapping_add(1);
        let (from, to) = (key.outside, key.inside);
        if finish(&mut frame, from, to, got.bytes, s.id, got.size).is_some() {
            self.frames.push(frame);
        }
    }

    /// Takes up a client.
    fn serve(&mut self, now: Nanos, by: u32, key: Key, peer: SocketAddr) -> Option<u32> {
        if self.table.is_full() && !self.make_room(now) {
            return None;
        }
        let id = self.random() as u16;
        self.listeners.get(by)?.counters.accepted.add(1);
        let served = Served {
            listener: by,
            peer,
            id,
        };
        Some(self.table.insert(now, key, Flow::Served(served)))
    }

    /// Sends a container's datagram to a client of a published port; `None`: it is for none.
    pub(super) fn answer_client(
        &mut self,
        now: Nanos,
        key: &Key,
        e: &Entry,
    ) -> Option<Result<(), DropReason>> {
        if self.listeners.datagrams == 0 {
            return None;
        }
        let known = self.table.find(key).and_then(|n| self.table.get(n));
        let (by, peer) = match known {
            Some(slot) => {
                let Flow::Served(s) = &slot.flow else {
                    return None;
                };
                slot.used = now;
                (s.listener, s.peer)
            }
            // One that had to make room, if this is an address of the host.
            None => (self.listeners.find(UDP, key.inside)?, key.outside),
        };
        let is_new = self.table.find(key).is_none();
        let Some((parts, size)) = payload(e) else {
            return Some(Err(DropReason::BadPacket));
        };
        let l = self.listeners.get(by)?;
        let from = key.inside.ip();
        let sent = send(parts, size, &mut |parts, size| {
            listen::send(&l.fd, parts, size, from, peer)
        });
        match sent {
            Ok(()) if is_new => {
                self.serve(now, by, *key, peer);
                Some(Ok(()))
            }
            Ok(()) => Some(Ok(())),
            Err(_) if is_new => None,
            Err(e) if e.kind() == ErrorKind::WouldBlock => Some(Err(DropReason::QueueFull)),
            Err(_) => Some(Err(DropReason::HostSocket)),
        }
    }
}

type Send<'a> = &'a mut dyn FnMut([&[u8]; 2], Option<u16>) -> io::Result<usize>;

/// Sends what a frame has, in as few calls as the kernel takes it.
fn send(parts: [&[u8]; 2], size: Option<u16>, call: Send<'_>) -> io::Result<()> {
    let all = parts[0].len() + parts[1].len();
    let each = size.map_or(all, usize::from).max(1);
    let cut = |from: usize, to: usize| {
        let split = parts[0].len();
        let first = parts[0].get(from.min(split)..to.min(split));
        let rest = parts[1].get(from.saturating_sub(split)..to.saturating_sub(split));
        [first.unwrap_or_default(), rest.unwrap_or_default()]
    };
    let mut several = (65_000 / each).clamp(1, SEGMENTS);
    let mut at = 0;
    loop {
        let end = (at + each * several).min(all);
        let size = size.filter(|_| end - at > each);
        match call(cut(at, end), size) {
            Ok(_) => at = end,
            // No segmentation on the way out: one by one.
            Err(e) if size.is_some() && e.kind() != ErrorKind::WouldBlock => several = 1,
            Err(e) => return Err(e),
        }
        // Also a datagram of nothing is one.
        if at >= all {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_as_the_kernel_takes_them() {
        let bytes = [9; 2500];
        let parts: [&[u8]; 2] = [&bytes[..700], &bytes[700..]];
        for (takes, wanted) in [(true, vec![2500]), (false, vec![1000, 1000, 500])] {
            let mut sent = Vec::new();
            let done = send(parts, Some(1000), &mut |p, size| {
                if size.is_some() && !takes {
                    return Err(ErrorKind::InvalidInput.into());
                }
                sent.push(p[0].len() + p[1].len());
                Ok(0)
            });
            assert!(done.is_ok());
            assert_eq!(sent, wanted);
        }
        let mut sent = 0;
        let done = send([&[], &[]], None, &mut |_, _| {
            sent += 1;
            Ok(0)
        });
        assert_eq!((done.is_ok(), sent), (true, 1));
    }
}
