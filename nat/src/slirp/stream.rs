//! Connections that containers open: their segments, and what their sockets tell.

use super::{Flow, HELD, Key, Out, Slirp, errors, tcp};
use crate::reply::Cause;
use std::io;
use std::os::fd::AsFd;
use tcp::segment::{RST, SYN, Segment};
use tcp::{Fate, Mirror};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Entry};
use vswitch_core::sys::datagram;
use vswitch_core::sys::sock::{self, Kind};
use vswitch_core::worker::Ready;

impl Slirp {
    /// A segment of a container.
    pub(super) fn tcp(&mut self, now: Nanos, key: Key, e: &mut Entry) -> Result<(), DropReason> {
        let s = Segment::read(&e.frame, &e.meta).ok_or(DropReason::BadPacket)?;
        let Some(i) = self.table.find(&key) else {
            return self.tcp_new(now, key, &s, errors::low_ttl(e));
        };
        let Some(slot) = self.table.get(i) else {
            return Ok(());
        };
        slot.used = now;
        if let Flow::Tcp(t) = &mut slot.flow {
            let (mirror, host) = &mut **t;
            let before = mirror.held();
            let was_opening = mirror.is_opening();
            let fate = mirror.input(now, &s, host, &mut self.frames);
            let answered = was_opening && !mirror.is_opening();
            if fate == Fate::Lives {
                mirror.keep(&mut e.frame, &e.meta, self.held < HELD);
            }
            self.held = (self.held + mirror.held()).saturating_sub(before);
            if answered {
                self.listeners.settled(i, true);
            }
            self.settle(i, fate);
        }
        Ok(())
    }

    /// `ttl`: that of the segment, if somebody traces a route by it.
    fn tcp_new(
        &mut self,
        now: Nanos,
        key: Key,
        s: &Segment<'_>,
        ttl: Option<u8>,
    ) -> Result<(), DropReason> {
        if s.has(RST) {
            return Ok(());
        }
        if !s.has(SYN) || s.has(tcp::segment::ACK) {
            // Of no connection that lives: as a closed port answers.
            let frame = tcp::refusal(key.inside, key.outside, s);
            self.out.extend(frame.map(Out::Packet));
            return Ok(());
        }
        let iss = self.random();
        let mirror = Mirror::new(key.inside, key.outside, s, iss);
        match self.open(now, Kind::Tcp, key, ttl) {
            Ok(fd) => {
                let host = tcp::Host::new(fd);
                let flow = Flow::Tcp(Box::new((mirror, host)));
                self.enter(now, key, flow)
            }
            // Not its destination's fault, and it may go the next time.
            Err(e) if e.raw_os_error() == Some(sock::TOO_MANY) => Err(DropReason::HostSocket),
            Err(e) => {
                self.refused(&mirror, &e, None);
                Ok(())
            }
        }
    }

    /// Tells a container that its connection couldn't be made.
    pub(super) fn refused(&mut self, mirror: &Mirror, e: &io::Error, told: Option<errors::Told>) {
        let (cause, from) = match (told, errors::cause_of(e)) {
            (Some(told), _) => told,
            // Whoever listens not, resets.
            (None, Cause::PortUnreachable) => {
                self.out.extend(mirror.refusal().map(Out::Packet));
                return;
            }
            (None, cause) => (cause, None),
        };
        let syn = mirror.syn();
        self.out.extend(syn.map(|f| Out::Error(f, cause, from)));
    }

    /// The socket of a connection is ready.
    pub(super) fn stream_ready(&mut self, now: Nanos, i: u32, event: &Ready) {
        let Some(slot) = self.table.get(i) else {
            return;
        };
        let v6 = slot.key.outside.is_ipv6();
        let Flow::Tcp(t) = &mut slot.flow else {
            return;
        };
        let (mirror, host) = &mut **t;
        // Also when it is connecting and has failed.
        let error = match event.error || mirror.is_connecting() {
            true => sock::take_error(&*host).err(),
            false => None,
        };
        match error {
            Some(e) if mirror.is_connecting() => {
                if let Some(Flow::Tcp(t)) = self.table.remove(i) {
                    let told = errors::why(t.1.as_fd(), v6);
                    self.refused(&t.0, &e, told);
                }
                return;
            }
            Some(_) => {
                let fate = mirror.reset(host, &mut self.frames);
                return self.settle(i, fate);
            }
            None => {}
        }
        if mirror.is_connecting() && event.writable {
            // From now on what ICMP says may be of a moment only.
            let _ = datagram::tell_errors(&*host, v6, false);
            mirror.connected(now);
        }
        if event.readable || event.closed {
            mirror.readable(event.closed);
        }
        if event.urgent {
            mirror.urgent();
        }
        let before = mirror.held();
        let fate = match event.writable {
            true => mirror.writable(host, &mut self.frames),
            false => Fate::Lives,
        };
        self.held = (self.held + mirror.held()).saturating_sub(before);
        self.settle(i, fate);
    }
}
