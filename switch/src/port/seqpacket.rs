//! Sequenced-packet port: one raw frame a packet over a connected unix socket (SOCK_SEQPACKET), as User-Mode Linux speaks by its transport
//! `bess` (arch/um/drivers/vector_user.c).
//!
//! # Theory of operation
//!
//! The socket is listened on until one peer has connected, which is the port then; when that goes, so does the port. Frames are finished: no
//! offloads.

use super::unix::{self, Address, SocketFile, UnixError};
use super::{PortFault, PortIo, RxState, TxQueue, dgram};
use crate::frame::{Batch, Offloads};
use crate::stats::Tally;
use nix::sys::socket::SockType;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// A socket that waits for its peer; its file goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    _file: SocketFile,
}

impl Listener {
    /// Listens at this path.
    pub fn bind(path: PathBuf) -> Result<Listener, UnixError> {
        let at = Address::Path(path);
        let (fd, file) = unix::bind(&at, SockType::SeqPacket)?;
        unix::listen(&fd, &at)?;
        Ok(Listener {
            socket: fd.into(),
            _file: file,
        })
    }

    /// The peer that has connected. Errors: EAGAIN when none has.
    pub fn accept(&self) -> io::Result<OwnedFd> {
        let (peer, _) = self.socket.accept()?;
        peer.set_nonblocking(true)?;
        Ok(peer.into())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A sequenced-packet port.
#[derive(Debug)]
pub struct Seqpacket(OwnedFd);

impl Seqpacket {
    /// Whether this is a socket of that kind.
    pub fn is(fd: &impl AsFd) -> bool {
        use nix::sys::socket::{getsockopt, sockopt};
        getsockopt(&fd.as_fd(), sockopt::SockType) == Ok(SockType::SeqPacket)
    }

    /// The port by a connected socket, which doesn't block.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Seqpacket {
        Seqpacket(fd)
    }
}

fn gone(why: impl std::fmt::Display) -> PortFault {
    PortFault::Gone(format!("the peer of its socket has ended: {why}"))
}

impl PortIo for Seqpacket {
    fn recv(&mut self, rx: &mut Batch, tally: &mut Tally) -> Result<RxState, PortFault> {
        dgram::receive(&self.0, true, rx, tally).map_err(|e| gone(e.desc()))
    }

    fn send(&mut self, out: &mut TxQueue) -> Result<(), PortFault> {
        dgram::transmit(&self.0, out).map_err(|e| gone(e.desc()))
    }

    fn offloads(&self) -> Offloads {
        Offloads::NONE
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}
