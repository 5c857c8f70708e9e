//! The host's socket as the mirror sees it, and the peer behind it, which takes and gives at its own pace.
//!
//! It wakes as Linux does: readable when something has come, writable only after it was full and a third of it is free again.

use super::{pattern_down, pattern_up};
use std::io::{self, ErrorKind, IoSliceMut};
use vswitch_nat::slirp::tcp::Stream;

/// What the descriptor has told since it was asked last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Events {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) closed: bool,
    pub(crate) urgent: bool,
    pub(crate) error: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Host {
    /// Bytes taken of the container's stream.
    pub(crate) took: u32,
    /// Send buffer: how much the kernel counts as used, of how much; a share of what it keeps beside each byte.
    used: usize,
    size: usize,
    beside: usize,
    waits_for_room: bool,
    /// Bytes that the peer has given, where an urgent one is, and those that were taken away.
    pub(crate) given: u32,
    urgent: Option<u32>,
    pub(crate) discarded: u32,
    offset: u32,
    pub(crate) ended: bool,
    pub(crate) shut: bool,
    pub(crate) aborted: bool,
    broken: bool,
    /// Calls that a signal interrupts yet, and the most that the next sends take.
    pub(crate) interrupted: u8,
    pub(crate) takes: Option<usize>,
    pub(crate) reach: usize,
    pub(crate) events: Events,
}

impl Host {
    pub(crate) fn new(size: usize, beside: usize, reach: usize) -> Host {
        Host {
            size,
            beside,
            reach,
            ..Host::default()
        }
    }

    fn free(&self) -> usize {
        self.size.saturating_sub(self.used)
    }

    /// net/core/stream.c, `sk_stream_write_space`.
    fn wake(&mut self) {
        if self.waits_for_room && self.free() >= self.used / 2 {
            self.waits_for_room = false;
            self.events.writable = true;
        }
    }

    /// The peer takes bytes of what was sent.
    pub(crate) fn drain(&mut self, n: usize) {
        self.used = self.used.saturating_sub(n);
        self.wake();
    }

    /// The peer sends bytes, the last one urgent.
    pub(crate) fn give(&mut self, n: u32, urgent: bool) {
        if self.ended || self.broken {
            return;
        }
        self.given += n;
        self.events.readable = true;
        if urgent && n > 0 {
            self.urgent = Some(self.given - 1);
            self.events.urgent = true;
        }
    }

    pub(crate) fn end(&mut self) {
        self.ended = true;
        self.events.readable = true;
        self.events.closed = true;
    }

    /// The peer resets the connection.
    pub(crate) fn break_off(&mut self) {
        self.broken = true;
        self.events.error = true;
    }

    fn signal(&mut self) -> io::Result<()> {
        if self.interrupted > 0 {
            self.interrupted -= 1;
            return Err(ErrorKind::Interrupted.into());
        }
        Ok(())
    }
}

impl Stream for Host {
    fn send(&mut self, parts: [&[u8]; 2], _: bool) -> io::Result<usize> {
        assert!(!self.shut, "nothing comes after the end");
        assert!(!self.aborted);
        if self.broken {
            return Err(ErrorKind::ConnectionReset.into());
        }
        self.signal()?;
        let len = parts[0].len() + parts[1].len();
        assert!(len > 0);
        let mut n = len.min(self.free());
        if let Some(most) = self.takes.take() {
            n = n.min(most);
        }
        if n < len {
            self.waits_for_room = true;
            // As if what was refused had been in the way of something.
            self.used = self.used.max(self.size - n.min(self.size));
        }
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        for (i, byte) in (self.took..).zip(parts.iter().copied().flatten().take(n)) {
            assert_eq!(*byte, pattern_up(i), "byte {i} of the container's stream");
        }
        self.took += n as u32;
        self.used += n + n * self.beside / 8;
        Ok(n)
    }

    fn room(&mut self) -> usize {
        let free = self.free();
        // Asking whether it is writable has it tell when it is.
        if free <= self.size / 2 && free < self.used / 2 {
            self.waits_for_room = true;
        }
        free
    }

    fn seek(&mut self, offset: usize) -> io::Result<()> {
        assert!(
            offset as u32 <= self.given - self.discarded,
            "peeks what isn't there"
        );
        self.offset = offset as u32;
        Ok(())
    }

    fn reach(&self) -> usize {
        self.reach
    }

    fn peek(&mut self, into: &mut [IoSliceMut<'_>; 2]) -> io::Result<usize> {
        self.signal()?;
        let at = self.discarded + self.offset;
        let mut n = self.given - at;
        // net/ipv4/tcp.c, `tcp_recvmsg_locked`: no further than to an urgent byte.
        if let Some(mark) = self.urgent.filter(|u| *u > at) {
            n = n.min(mark - at);
        }
        let n = (n as usize).min(into[0].len() + into[1].len());
        assert!(
            self.offset as usize + n <= self.reach || n == 0,
            "further than it reaches"
        );
        for (i, place) in (at..).zip(into.iter_mut().flat_map(|b| b.iter_mut()).take(n)) {
            *place = pattern_down(i);
        }
        self.offset += n as u32;
        match n {
            0 if self.broken => Err(ErrorKind::ConnectionReset.into()),
            0 if !self.ended => Err(ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }

    fn discard(&mut self, n: usize) -> io::Result<()> {
        let n = n as u32;
        assert!(n <= self.given - self.discarded, "discards what never came");
        self.discarded += n;
        self.offset = self.offset.saturating_sub(n);
        Ok(())
    }

    fn shut(&mut self) {
        assert!(!self.shut, "ends once");
        self.shut = true;
    }

    fn abort(&mut self) {
        self.aborted = true;
    }
}
