//! Published ports at sockets of the host: listening streams, and sockets that datagrams come to.
//!
//! # Theory of operation
//!
//! The sockets are opened outside, where failing can be told, and handed over ([`Slirp::listen`]). Each is known by protocol, address
//! and port; which container it stands for is the gateway's affair, which translates what comes from here as it does what comes
//! by an uplink. So a flow has the client's own address and port, and those that it has connected to.
//!
//! A connection is accepted before the container is asked ([`super::accept`]); at most [`WAITING`] of a socket wait for the container's
//! answer, and while there are as many, or no descriptor is left, the others wait in the kernel's backlog, which is bounded. Datagrams
//! of all clients share the socket ([`super::served`]).

use super::{Flow, Slirp, SplicePath};
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vswitch_core::clock::Nanos;
use vswitch_core::stats::Counter;
use vswitch_core::sys::listen::Interface;

/// Connections of a socket that wait for the container's answer.
pub(super) const WAITING: usize = 256;
/// Keys of events from here on are listening sockets'.
const FIRST_KEY: usize = 1 << 31;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// A port of the host: TCP or UDP, the address, which may be unspecified, and the interface that clients come by, if they may by one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// 6 or 17.
    pub proto: u8,
    /// Where it listens.
    pub at: SocketAddr,
    /// What it is bound to.
    pub interface: Option<Interface>,
}

/// What came to a port of the host.
#[derive(Debug, Default)]
pub struct HostPortCounters {
    /// Connections accepted; of UDP, clients.
    pub accepted: Counter,
    /// Of these, those that didn't reach the container: policy forbade them, it refused them or didn't answer.
    pub failed: Counter,
    /// Connections that went straight into the container's namespace.
    pub spliced: Counter,
    /// Of these, those that reached nobody there.
    pub unreached: Counter,
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) port: HostPort,
    pub(super) fd: OwnedFd,
    pub(super) counters: Arc<HostPortCounters>,
    /// Where connections from the host's loopback go.
    pub(super) splice: Option<SplicePath>,
    /// Connections that wait for the container's answer.
    pub(super) waiting: usize,
    /// Of datagrams the last that came was long; bursts have come.
    pub(super) long: bool,
    pub(super) bursts: bool,
    /// It has something to do, and waits for its turn.
    queued: bool,
    /// It has, and nothing can be done now.
    pub(super) stalled: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    slots: Vec<Option<Listener>>,
    index: HashMap<HostPort, u32, foldhash::fast::RandomState>,
    ready: VecDeque<u32>,
    /// Flows that wait for the container's answer, and by which socket they came.
    pub(super) opening: HashMap<u32, u32, foldhash::fast::RandomState>,
    any_stalled: bool,
    /// How many are for datagrams, and how many are bound to an interface.
    pub(super) datagrams: usize,
    bound: usize,
}

impl Listeners {
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn get(&mut self, i: u32) -> Option<&mut Listener> {
        self.slots.get_mut(i as usize)?.as_mut()
    }

    /// The socket at an address, or at all of its family.
    pub(super) fn find(&self, proto: u8, at: SocketAddr) -> Option<u32> {
        let any: IpAddr = match at {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let get = |at| {
            let interface = None;
            let port = HostPort {
                proto,
                at,
                interface,
            };
            self.index.get(&port).copied()
        };
        let any = SocketAddr::new(any, at.port());
        get(at).or_else(|| get(any)).or_else(|| {
            let bound = |p: &HostPort| p.proto == proto && (p.at == at || p.at == any);
            let all = self.index.iter().filter(|_| self.bound > 0);
            all.filter(|(p, _)| bound(p)).map(|(_, i)| *i).next()
        })
    }

    /// Whether one has something to do.
    pub(super) fn have_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Gives it a turn.
    pub(super) fn touch(&mut self, i: u32) {
        if let Some(l) = self.get(i) {
            l.stalled = false;
            if !std::mem::replace(&mut l.queued, true) {
                self.ready.push_back(i);
            }
        }
    }

    /// Nothing can be accepted until something has ended.
    pub(super) fn stall(&mut self, i: u32) {
        if let Some(l) = self.get(i) {
            l.stalled = true;
            self.any_stalled = true;
        }
    }

    /// Something has ended: who had to wait may go on.
    fn resume(&mut self) {
        if std::mem::take(&mut self.any_stalled) {
            for i in 0..self.slots.len() as u32 {
                if self.get(i).is_some_and(|l| l.stalled) {
                    self.touch(i);
                }
            }
        }
    }

    /// A flow waits no longer, whether or not the container has answered.
    pub(super) fn settled(&mut self, flow: u32, answered: bool) {
        if let Some(i) = self.opening.remove(&flow)
            && let Some(l) = self.get(i)
        {
            l.waiting = l.waiting.saturating_sub(1);
            l.counters.failed.add(u64::from(!answered));
        }
        self.resume();
    }
}

impl Slirp {
    /// Takes up a listening socket. Errors: it can't be watched.
    pub(crate) fn listen(
        &mut self,
        port: HostPort,
        fd: OwnedFd,
        counters: Arc<HostPortCounters>,
    ) -> io::Result<()> {
        self.unlisten(port);
        let all = &mut self.listeners;
        let free = all.slots.iter().position(Option::is_none);
        let i = free.unwrap_or(all.slots.len());
        if let Some(watch) = &self.watch {
            watch.add(fd.as_fd(), FIRST_KEY + i, false)?;
        }
        if i == all.slots.len() {
            all.slots.push(None);
        }
        if let Some(place) = all.slots.get_mut(i) {
            *place = Some(Listener {
                port,
                fd,
                counters,
                splice: None,
                waiting: 0,
                long: false,
                bursts: false,
                queued: false,
                stalled: false,
            });
        }
        all.index.insert(port, i as u32);
        all.datagrams += usize::from(port.proto == UDP);
        all.bound += usize::from(port.interface.is_some());
        // What has come before it was watched.
        all.touch(i as u32);
        self.table.set_aside(self.listeners.len());
        Ok(())
    }

    /// Has connections from the host's loopback take a way of their own, or no longer.
    pub(crate) fn set_splice(&mut self, port: HostPort, path: Option<SplicePath>) {
        let i = self.listeners.index.get(&port).copied();
        if let Some(path) = &path {
            self.spliced = Some(path.spliced());
        }
        if let Some(l) = i.and_then(|i| self.listeners.get(i)) {
            l.splice = path;
        }
    }

    /// Closes a listening socket. Its connections go on; datagrams have lost their way.
    pub(crate) fn unlisten(&mut self, port: HostPort) {
        let all = &mut self.listeners;
        let Some(i) = all.index.remove(&port) else {
            return;
        };
        if let Some(place) = all.slots.get_mut(i as usize) {
            *place = None;
        }
        all.bound -= usize::from(port.interface.is_some());
        all.opening.retain(|_, by| *by != i);
        all.ready.retain(|r| *r != i);
        self.table.set_aside(self.listeners.len());
        if port.proto == UDP {
            self.listeners.datagrams -= 1;
            let of = |(n, s): (u32, &super::table::Slot<Flow>)| match &s.flow {
                Flow::Served(s) if s.listener == i => Some(n),
                _ => None,
            };
            let gone: Vec<u32> = self.table.iter().filter_map(of).collect();
            for n in gone {
                self.close(n, false);
            }
        }
    }

    /// Takes an event, if it is a listening socket's.
    pub(super) fn listener_ready(&mut self, key: usize) -> bool {
        let Some(i) = key.checked_sub(FIRST_KEY) else {
            return false;
        };
        self.listeners.touch(i as u32);
        true
    }

    /// Serves the listening sockets that have something to do.
    pub(super) fn serve_listeners(&mut self, now: Nanos) {
        for _ in 0..self.listeners.ready.len() {
            let Some(i) = self.listeners.ready.pop_front() else {
                break;
            };
            let Some(l) = self.listeners.get(i) else {
                continue;
            };
            l.queued = false;
            let more = match l.port.proto {
                TCP => self.accept(now, i),
                _ => self.receive_at(now, i),
            };
            if more {
                self.listeners.touch(i);
            }
        }
    }
}
