//! Descriptors that a stage has watched: they share the worker's epoll with the ports.
//!
//! Events are edge triggered, and only hints: a stage may get one for a descriptor that it has closed since.

use super::{Stage, Worker};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

/// Tokens from here on are a stage's; those below are ports.
const FIRST: usize = 1 << 20;

/// What is asked of a stream.
const STREAM: Interest = Interest::READABLE
    .add(Interest::WRITABLE)
    .add(Interest::PRIORITY);

fn token(key: usize) -> Token {
    Token(FIRST.saturating_add(key))
}

/// Has descriptors watched; see [`Stage::watch`].
#[derive(Clone, Debug)]
pub struct Watch(Arc<Registry>);

impl Watch {
    /// Watches a descriptor for input, and for room to write if `writes`. Its events carry `key`, which is less than 2^32. Closing the
    /// descriptor ends it. Errors: as epoll_ctl(2).
    pub fn add(&self, fd: BorrowedFd<'_>, key: usize, writes: bool) -> io::Result<()> {
        let interest = if writes { STREAM } else { Interest::READABLE };
        let raw = fd.as_raw_fd();
        self.0.register(&mut SourceFd(&raw), token(key), interest)
    }

    /// Watches a stream that was added, with the same key, for nothing that its peer sends (`deaf`), or for that again. Room to write,
    /// errors and an end on both sides are told all the same; what was there to be read when it is to be heard again is told then. That the
    /// peer has sent its last only a read tells meanwhile. Errors: as epoll_ctl(2).
    pub fn set_deaf(&self, fd: BorrowedFd<'_>, key: usize, deaf: bool) -> io::Result<()> {
        // What wakes for input wakes for urgent data too (net/core/sock.c, `sock_def_readable`), so neither may be asked for.
        let interest = if deaf { Interest::WRITABLE } else { STREAM };
        let raw = fd.as_raw_fd();
        self.0.reregister(&mut SourceFd(&raw), token(key), interest)
    }
}

/// A descriptor of a stage is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// As given to [`Watch::add`].
    pub key: usize,
    /// There is something to read.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The peer has sent its last.
    pub closed: bool,
    /// An error waits.
    pub error: bool,
    /// There is urgent data.
    pub urgent: bool,
}

impl Ready {
    /// The event, if it is a stage's.
    pub(super) fn of(e: &Event) -> Option<Ready> {
        let token = e.token();
        if token == super::handle::WAKE_TOKEN {
            return None;
        }
        Some(Ready {
            key: token.0.checked_sub(FIRST)?,
            readable: e.is_readable(),
            writable: e.is_writable(),
            closed: e.is_read_closed(),
            error: e.is_error(),
            urgent: e.is_priority(),
        })
    }
}

impl<S: Stage> Worker<S> {
    /// Gives the stage what it needs to have descriptors watched.
    pub(super) fn offer_watch(&mut self) {
        // Without descriptors to duplicate nothing works; the stage does without.
        if let Ok(registry) = self.poll.registry().try_clone() {
            self.stage.watch(Watch(Arc::new(registry)));
        }
    }

    /// Tells the stage of its descriptors, or gives it the further turn it has asked for.
    pub(super) fn serve_watched(&mut self) {
        if self.ready.is_empty() && !self.cx.again {
            return;
        }
        self.cx.again = false;
        let mut ready = std::mem::take(&mut self.ready);
        self.stage.ready(&mut self.cx, &ready);
        ready.clear();
        // What a socket brings is as much a reason to look again soon as what a port does.
        let made: usize = self.cx.emits.iter().map(|(_, f, _)| f.len()).sum();
        if made > 0 {
            self.pace.worked(self.cx.now, made);
        }
        self.ready = ready;
        self.trimmed = false;
        self.last_work = self.cx.now;
        self.finish_call();
    }
}
