//! Stream port: frames over a unix stream socket, each behind its length in 4 bytes, big-endian, as QEMU's
//! `-netdev stream` speaks (net/stream.c, net/net.c `net_fill_rstate`).
//!
//! # Theory of operation
//!
//! One peer at a time. A server leaves a second one waiting in its backlog until the first goes; a client reconnects
//! with back-off. Reads take as many frames as there are, writes gather up to 32 frames; both resume where the kernel stopped.
//! A frame of which the kernel took only a part is counted as sent and kept here, so that nothing else can get in between.
//! Frames are finished: no offloads. A length of 0 or above [`MAX_FRAME`] can't be resynchronised: the peer is dropped.

use super::unix::{self, Address, Backoff, SocketFile, UnixError};
use super::{PortFault, PortIo, RxState, TxQueue};
use crate::clock::Nanos;
use crate::frame::{Batch, DropReason, Frame, MAX_FRAME, Offloads};
use crate::stats::Tally;
use arrayvec::ArrayVec;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockType, sendmsg};
use std::io::{ErrorKind, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// Bytes of the length in front of a frame.
pub const LENGTH: usize = 4;
/// Receive buffer in bytes: the longest frame and its length, twice.
const BUFFER: usize = 2 * (LENGTH + MAX_FRAME);
/// Frames in one write.
const GATHER: usize = 32;

/// The peer broke the framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it announced a frame of {0} bytes (1 to {MAX_FRAME} are possible)")]
pub struct FramingError(pub u32);

/// A frame, and the bytes that follow it.
pub type Split<'a> = (&'a [u8], &'a [u8]);

/// Splits the first frame off what was received: the frame and what follows it, or `None` if it isn't complete.
/// Errors: a length that no frame has.
pub fn split_frame(bytes: &[u8]) -> Result<Option<Split<'_>>, FramingError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length);
    let n = length as usize;
    if n == 0 || n > MAX_FRAME {
        return Err(FramingError(length));
    }
    Ok(rest.split_at_checked(n))
}

#[derive(Debug)]
enum Role {
    Server(
        UnixListener,
        #[expect(dead_code, reason = "removes the file")] SocketFile,
    ),
    Client,
}

#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    /// Received bytes not yet taken: `buffer[start..end]`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// A frame that the kernel took in part, with its length in front, and how much of it.
    partial: Option<(Frame, usize)>,
}

/// A stream port.
#[derive(Debug)]
pub struct Stream {
    address: Address,
    users: Vec<u32>,
    role: Role,
    peer: Option<Peer>,
    backoff: Backoff,
    told: bool,
    changed: bool,
}

impl Stream {
    /// Listens at `address`. Only root and `users` (uids) may connect; an empty list leaves it to the file's mode (0600).
    pub fn server(address: Address, users: Vec<u32>) -> Result<Stream, UnixError> {
        let (fd, file) = unix::bind(&address, SockType::Stream)?;
        unix::listen(&fd, &address)?;
        Ok(Stream::new(address, users, Role::Server(fd.into(), file)))
    }

    /// Connects to `address`, and again whenever the connection ends. Only a server run by root or `users` is accepted; an
    /// empty list accepts any. Nobody need be there yet.
    pub fn client(address: Address, users: Vec<u32>) -> Result<Stream, UnixError> {
        address.to_nix()?;
        Ok(Stream::new(address, users, Role::Client))
    }

    fn new(address: Address, users: Vec<u32>, role: Role) -> Stream {
        Stream {
            address,
            users,
            role,
            peer: None,
            backoff: Backoff::new(),
            told: false,
            changed: false,
        }
    }

    fn disconnected(&mut self, why: impl std::fmt::Display) -> PortFault {
        self.peer = None;
        self.told = true;
        PortFault::Disconnected(format!("stream socket `{}`: {why}", self.address))
    }

    /// A new connection, if there is one.
    fn connection(&self) -> Option<UnixStream> {
        loop {
            let stream = match &self.role {
                Role::Server(listener, _) => listener.accept().ok()?.0,
                Role::Client => unix::connect(&self.address, SockType::Stream).ok()?.into(),
            };
            stream.set_nonblocking(true).ok()?;
            if unix::peer_allowed(&stream, &self.users) {
                return Some(stream);
            }
            // Behind one that isn't allowed another may wait in the backlog.
            if matches!(self.role, Role::Client) {
                return None;
            }
        }
    }
}

impl Peer {
    fn new(stream: UnixStream) -> Peer {
        Peer {
            stream,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            partial: None,
        }
    }

    /// Moves complete frames into the batch; what remains is less than a frame unless the batch is full.
    fn take(&mut self, rx: &mut Batch, tally: &mut Tally) -> Result<(), FramingError> {
        while !rx.is_full() {
            let Some((bytes, rest)) =
                split_frame(self.buffer.get(self.start..self.end).unwrap_or_default())?
            else {
                break;
            };
            tally.frame(bytes.len());
            match Frame::from_bytes(bytes) {
                Some(f) => drop(rx.push(f)),
                None => tally.count_drop(DropReason::Oversize),
            }
            self.start = self.end - rest.len();
        }
        Ok(())
    }

    fn fill(&mut self) -> std::io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let n = self.stream.read(&mut self.buffer[self.end..])?;
        self.end += n;
        Ok(n)
    }

    fn write(&self, mut iov: &mut [IoSlice<'_>], skip: usize) -> Result<usize, Errno> {
        IoSlice::advance_slices(&mut iov, skip);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.stream.as_raw_fd(), iov, &[], flags, None)
    }

    /// Sends the rest of a frame begun; false while it doesn't all go.
    fn finish_partial(&mut self) -> Result<bool, Errno> {
        let Some((mut frame, done)) = self.partial.take() else {
            return Ok(true);
        };
        let total = frame.len() + LENGTH;
        let length = (frame.len() as u32).to_be_bytes();
        let r = match frame.send_slices(&length) {
            Some(mut iov) => self.write(&mut iov, done),
            None => return Err(Errno::EINVAL),
        };
        let done = match r {
            Ok(n) => done + n,
            Err(Errno::EAGAIN | Errno::EINTR) => done,
            Err(e) => return Err(e),
        };
        if done < total {
            self.partial = Some((frame, done));
        }
        Ok(done >= total)
    }

    /// Sends what goes without blocking. Errors: the connection is over.
    fn send(&mut self, out: &mut TxQueue) -> Result<(), Errno> {
        if !self.finish_partial()? {
            return Ok(());
        }
        while !out.is_empty() {
            let mut iov = ArrayVec::<IoSlice<'_>, { 2 * GATHER }>::new();
            for frame in out.iter_mut().take(GATHER) {
                let length = (frame.len() as u32).to_be_bytes();
                let Some(slices) = frame.send_slices(&length) else {
                    break;
                };
                iov.extend(slices);
            }
            if iov.is_empty() {
                drop(iov);
                out.reject(DropReason::TxError);
                continue;
            }
            let r = self.write(&mut iov, 0);
            drop(iov);
            match r {
                Ok(n) => {
                    if !self.account(out, n) {
                        return Ok(());
                    }
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Counts the frames of which the kernel took `n` bytes; false if it stopped within one.
    fn account(&mut self, out: &mut TxQueue, mut n: usize) -> bool {
        while n > 0 {
            let Some(total) = out.front().map(|f| f.len() + LENGTH) else {
                break;
            };
            if n < total {
                if let Some(frame) = out.take_front() {
                    out.tally.frame(frame.len());
                    self.partial = Some((frame, n));
                }
                return false;
            }
            out.sent();
            n -= total;
        }
        true
    }
}

impl PortIo for Stream {
    fn recv(&mut self, rx: &mut Batch, tally: &mut Tally) -> Result<RxState, PortFault> {
        let Some(peer) = &mut self.peer else {
            return Err(self.disconnected("no peer yet"));
        };
        loop {
            if let Err(e) = peer.take(rx, tally) {
                tally.errors += 1;
                return Err(self.disconnected(format_args!("the peer was dropped: {e}")));
            }
            if rx.is_full() {
                return Ok(RxState::More);
            }
            match peer.fill() {
                Ok(0) => return Err(self.disconnected("the peer closed the connection")),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(RxState::Empty),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.disconnected(e)),
            }
        }
    }

    fn send(&mut self, out: &mut TxQueue) -> Result<(), PortFault> {
        let Some(peer) = &mut self.peer else {
            out.clear(DropReason::PortDown);
            return Ok(());
        };
        peer.send(out)
            .map_err(|e| self.disconnected(format_args!("sending failed: {e}")))
    }

    fn offloads(&self) -> Offloads {
        Offloads::NONE
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        match (&self.peer, &self.role) {
            (Some(p), _) => Some(p.stream.as_fd()),
            (None, Role::Server(l, _)) => Some(l.as_fd()),
            (None, Role::Client) => None,
        }
    }

    fn tick(&mut self, now: Nanos) -> Result<Option<Nanos>, PortFault> {
        if self.peer.is_some() {
            return Ok(None);
        }
        if let (Role::Client, Some(due)) = (&self.role, self.backoff.wait(now)) {
            return Ok(Some(due));
        }
        if let Some(stream) = self.connection() {
            self.peer = Some(Peer::new(stream));
            self.backoff = Backoff::new();
            self.told = false;
            self.changed = true;
            return Ok(None);
        }
        let due = match self.role {
            Role::Client => Some(self.backoff.failed(now)),
            // The listener wakes us.
            Role::Server(..) => None,
        };
        if self.told {
            Ok(due)
        } else {
            Err(self.disconnected("no peer yet"))
        }
    }

    fn fd_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_split_and_impossible_lengths_refused() {
        assert_eq!(split_frame(&[0, 0, 0]), Ok(None));
        assert_eq!(split_frame(&[0, 0, 0, 2, 7]), Ok(None));
        assert_eq!(
            split_frame(&[0, 0, 0, 2, 7, 8, 9]),
            Ok(Some((&[7u8, 8][..], &[9u8][..])))
        );
        assert_eq!(split_frame(&[0, 0, 0, 0]), Err(FramingError(0)));
        assert_eq!(split_frame(&[255; 4]), Err(FramingError(u32::MAX)));
    }
}
