//! Connections that clients of the host make to published ports.
//!
//! Each becomes a flow whose mirror opens the container's side ([`super::tcp`]). The client was answered by the kernel already, so it is
//! reset if the container isn't reached: when policy forbids it, the container refuses or says by ICMP that it can't be
//! reached, or when it doesn't answer at all.

use super::listen::TCP;
use super::spliced::Spliced;
use super::tcp::{self, Mirror};
use super::{Flow, Key, Slirp};
use crate::icmp_error::{ErrorKind as IcmpKind, QuotedError};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::Entry;
use vswitch_core::sys::{listen, sock};

/// Connections accepted before others have their turn.
const ACCEPTS: usize = 64;

/// An address without a scope, as packets have it.
pub(super) fn plain(a: SocketAddr) -> SocketAddr {
    (a.ip(), a.port()).into()
}

/// Whether a connection that was to be accepted has failed, and the next may not (accept(2), "Error handling").
fn is_its_own(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::NotConnected
            | ErrorKind::Interrupted
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::InvalidData
    )
}

/// A connection that may go straight into a container's namespace, once it is judged.
#[derive(Debug)]
pub(crate) struct Straight {
    by: u32,
    fd: OwnedFd,
    to: SocketAddr,
    /// Ours and the client's.
    ends: (SocketAddr, SocketAddr),
}

impl Straight {
    /// Where it comes from, and where it would go.
    pub(crate) fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.ends.1, self.to)
    }
}

/// How a connection may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Straight.
    Straight,
    /// By the network, where it is judged as all others are.
    Network,
    /// Not at all.
    Nowhere,
}

impl Slirp {
    /// Those that wait for their judgement.
    pub(crate) fn take_straight(&mut self) -> Vec<Straight> {
        std::mem::take(&mut self.straight)
    }

    /// One is judged. True if it goes by the network, with the next flush.
    pub(crate) fn go(&mut self, now: Nanos, s: Straight, how: Fit) -> bool {
        let Some(l) = self.listeners.get(s.by) else {
            return false;
        };
        let mut fd = s.fd;
        match (how, &l.splice) {
            (Fit::Nowhere, _) => {
                l.counters.failed.add(1);
                vswitch_core::sys::splice::abort(&fd);
                return false;
            }
            (Fit::Straight, Some(path)) => match path.hand_over(fd, s.ends.1, &l.counters) {
                Ok(()) => {
                    l.counters.spliced.add(1);
                    return false;
                }
                Err(back) => fd = back,
            },
            _ => {}
        }
        self.accepted(now, s.by, fd, s.ends);
        true
    }

    /// The connections that have gone straight.
    pub(crate) fn spliced(&self) -> Option<Spliced> {
        self.spliced.clone()
    }

    /// Accepts what waits at a listening socket, as far as there is room; true if there may be more.
    pub(super) fn accept(&mut self, now: Nanos, i: u32) -> bool {
        for _ in 0..ACCEPTS {
            let full = self.table.is_full() && !self.make_room(now);
            let Some(l) = self.listeners.get(i) else {
                return false;
            };
            if full || l.waiting >= super::listen::WAITING {
                self.listeners.stall(i);
                return false;
            }
            match listen::accept(&l.fd) {
                Ok((fd, peer)) => {
                    l.counters.accepted.add(1);
                    let own = match l.port.at {
                        at if at.ip().is_unspecified() => sock::local(&fd),
                        at => Ok(at),
                    };
                    let Ok(own) = own else { continue };
                    let ends = (plain(own), plain(peer));
                    match &l.splice {
                        Some(path) if peer.ip().is_loopback() => self.straight.push(Straight {
                            by: i,
                            to: path.to(),
                            fd,
                            ends,
                        }),
                        _ => self.accepted(now, i, fd, ends),
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Err(e) if is_its_own(&e) => {}
                Err(e) => {
                    let many = e.raw_os_error() == Some(sock::TOO_MANY);
                    if !many || !self.make_room(now) {
                        self.listeners.stall(i);
                        return false;
                    }
                }
            }
        }
        true
    }

    fn accepted(&mut self, now: Nanos, by: u32, fd: OwnedFd, ends: (SocketAddr, SocketAddr)) {
        let (inside, outside) = ends;
        let key = Key {
            proto: TCP,
            inside,
            outside,
        };
        if let Some(old) = self.table.find(&key) {
            // The client is done with it, and the container isn't yet.
            self.close(old, true);
        }
        let iss = self.random();
        let mirror = Mirror::opening(inside, outside, iss, now);
        let flow = Flow::Tcp(Box::new((mirror, tcp::Host::new(fd))));
        if self.enter(now, key, flow).is_err() {
            return;
        }
        if let (Some(i), Some(l)) = (self.table.find(&key), self.listeners.get(by)) {
            l.waiting += 1;
            self.listeners.opening.insert(i, by);
            self.touch(i);
        }
    }

    /// What was to begin a flow from outside was refused on its way to the container: whoever began it is told as far as can be.
    pub(crate) fn refused_inside(&mut self, proto: u8, inside: SocketAddr, outside: SocketAddr) {
        let key = Key {
            proto,
            inside,
            outside,
        };
        let Some(i) = self.table.find(&key) else {
            return;
        };
        self.end_refused(i);
    }

    /// Ends a flow that the container, or the way to it, refuses: a connection if it was to begin, and a client's of datagrams. No
    /// socket sends an ICMP error, and a raw one takes a privilege: that client isn't told, but it is counted.
    fn end_refused(&mut self, i: u32) {
        match self.table.get(i).map(|s| &s.flow) {
            Some(Flow::Tcp(t)) if t.0.is_opening() => self.close(i, true),
            Some(Flow::Served(s)) => {
                let by = s.listener;
                if let Some(l) = self.listeners.get(by) {
                    l.counters.failed.add(1);
                }
                self.close(i, false);
            }
            _ => {}
        }
    }

    /// Whether a packet is an ICMP error from inside about a flow of ours. One that was to begin, ends, and so does a client's of datagrams.
    pub(super) fn is_told(&mut self, e: &Entry) -> bool {
        let Ok(error) = QuotedError::parse(&e.frame, &e.meta) else {
            return false;
        };
        let q = &error.quoted;
        let key = Key {
            proto: q.proto,
            inside: (q.dst.addr, q.dst.port).into(),
            outside: (q.src.addr, q.src.port).into(),
        };
        let Some(i) = self.table.find(&key) else {
            return false;
        };
        if !matches!(error.kind, IcmpKind::Unreachable(_)) {
            return true;
        }
        self.end_refused(i);
        true
    }
}
