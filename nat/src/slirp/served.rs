//! Datagrams at published ports: the clients of a socket of the host, a flow for each.
//!
//! What has come is taken by one call, and a client's datagrams that follow each other become one frame, as with [`super::udp`].
//! A flow has no socket of its own: its answers leave by the published one, from the address that the client has sent to, or they
//! would be nobody's to the client. Errors of the network aren't told by a socket that isn't connected; who sends into the void
//! learns it as late as on the host itself.

use super::accept::plain;
use super::listen::UDP;
use super::udp::{Joint, LONG, finish, parts};
use super::{Flow, Key, Slirp};
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Entry, Frame};
use vswitch_core::sys::datagram::{self, Inbox};
use vswitch_core::sys::listen::{self, Received};

const ETH: usize = 14;
const HEADER: usize = 8;
/// Calls, or as many single datagrams as one takes, before others have their turn.
const CALLS: usize = 2;
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

/// Whose datagram it is; none if it can't be answered.
fn key_of(at: SocketAddr, got: &Received) -> Option<Key> {
    let own = match at.ip() {
        ip if ip.is_unspecified() => got.to.unwrap_or(ip),
        ip => ip,
    };
    // Nobody answers as a group, and to port 0 there is no answer.
    if own.is_multicast() || own.is_unspecified() || got.from.port() == 0 {
        return None;
    }
    Some(Key {
        proto: UDP,
        inside: (own, at.port()).into(),
        outside: plain(got.from),
    })
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

/// Datagrams of a client that follow each other, for one frame.
struct Run {
    key: Key,
    /// With its scope.
    peer: SocketAddr,
    joint: Joint,
}

impl Slirp {
    /// Receives what has come to a published port; true if there may be more.
    pub(super) fn receive_at(&mut self, now: Nanos, i: u32) -> bool {
        let mut inbox = std::mem::take(&mut self.inbox);
        let more = self.receive_by(now, i, &mut inbox);
        self.inbox = inbox;
        more
    }

    fn receive_by(&mut self, now: Nanos, i: u32, inbox: &mut Inbox) -> bool {
        for _ in 0..CALLS {
            let Some(l) = self.listeners.get(i) else {
                return false;
            };
            let more = match l.long {
                true => self.receive_long(now, i),
                false => self.receive_many(now, i, inbox),
            };
            match more {
                Ok(true) => {}
                Ok(false) => return false,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                // Of one datagram.
                Err(_) => {}
            }
        }
        true
    }

    /// By one call; what a client has sent at once becomes one frame, as far as sizes allow.
    fn receive_many(&mut self, now: Nanos, i: u32, inbox: &mut Inbox) -> io::Result<bool> {
        let l = self.listeners.get(i).ok_or(ErrorKind::WouldBlock)?;
        let full = inbox.receive_from(&l.fd)?;
        if full && !std::mem::replace(&mut l.bursts, true) {
            datagram::expect_bursts(&l.fd);
        }
        l.long = inbox.iter().any(|(bytes, _)| bytes.len() >= LONG);
        let at = l.port.at;
        let mut run: Option<Run> = None;
        for (bytes, got) in inbox.iter_from() {
            let Some(key) = key_of(at, &got) else {
                continue;
            };
            let (v6, size) = (at.is_ipv6(), got.size.map_or(got.bytes, usize::from));
            let goes_on = run.as_mut().filter(|r| r.key == key);
            if goes_on.is_some_and(|r| r.joint.add(v6, bytes, size)) {
                continue;
            }
            let next = Joint::new(v6, bytes, size).map(|joint| Run {
                key,
                peer: got.from,
                joint,
            });
            self.arrived(now, i, std::mem::replace(&mut run, next));
        }
        self.arrived(now, i, run);
        Ok(full)
    }

    fn arrived(&mut self, now: Nanos, by: u32, run: Option<Run>) {
        if let Some(Run { key, peer, joint }) = run
            && let Some(id) = self.client(now, by, key, peer, joint.count)
        {
            self.frames.extend(joint.finish(&key, id));
        }
    }

    /// One by one, each into its frame.
    fn receive_long(&mut self, now: Nanos, i: u32) -> io::Result<bool> {
        for _ in 0..datagram::AT_ONCE {
            let l = self.listeners.get(i).ok_or(ErrorKind::WouldBlock)?;
            let at = l.port.at;
            let (mut frame, got) = take(&l.fd, at.is_ipv6())?;
            l.long = got.bytes >= LONG;
            if let Some(key) = key_of(at, &got)
                && let Some(id) = self.client(now, i, key, got.from, SEGMENTS)
            {
                let (from, to) = (key.outside, key.inside);
                if finish(&mut frame, from, to, got.bytes, id, got.size).is_some() {
                    self.frames.push(frame);
                }
            }
        }
        Ok(true)
    }

    /// The identification of a client's next datagrams; it is taken up if it is new. None: there is no room.
    fn client(
        &mut self,
        now: Nanos,
        by: u32,
        key: Key,
        peer: SocketAddr,
        count: usize,
    ) -> Option<u16> {
        let known = self.table.find(&key);
        let n = known.or_else(|| self.serve(now, by, key, peer))?;
        let slot = self.table.get(n)?;
        slot.used = now;
        let Flow::Served(s) = &mut slot.flow else {
            return None;
        };
        s.id = s.id.wrapping_add(count as u16);
        Some(s.id)
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
        Some(self.table.insert(now, key, Flow::Served(served), true))
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
        let Some((parts, size)) = parts(e) else {
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
