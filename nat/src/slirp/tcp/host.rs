//! The host's stream of a connection.

use super::Stream;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vswitch_core::sys::sock::{self, PeekStream};

/// A socket that the kernel connects.
#[derive(Debug)]
pub(crate) struct Host(PeekStream);

impl Host {
    pub(crate) fn new(fd: OwnedFd) -> Host {
        Host(PeekStream::new(fd))
    }
}

impl AsFd for Host {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Stream for Host {
    fn send(&mut self, parts: [&[u8]; 2], more: bool) -> io::Result<usize> {
        match more {
            true => sock::send_on(&self.0, parts),
            false => sock::send(&self.0, parts),
        }
    }

    fn room(&mut self) -> usize {
        sock::room(&self.0)
    }

    fn seek(&mut self, offset: usize) -> io::Result<()> {
        self.0.seek(offset)
    }

    fn reach(&self) -> usize {
        self.0.reach()
    }

    fn peek(&mut self, into: &mut [IoSliceMut<'_>; 2]) -> io::Result<usize> {
        self.0.peek(into)
    }

    fn discard(&mut self, n: usize) -> io::Result<()> {
        self.0.discard(n)
    }

    fn shut(&mut self) {
        self.0.shut();
    }

    fn abort(&mut self) {
        self.0.abort();
    }
}
