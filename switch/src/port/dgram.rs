//! Datagram port: one raw frame a datagram over a unix socket, as QEMU's `-netdev dgram` speaks (net/dgram.c).
//!
//! # Theory of operation
//!
//! The socket is bound to the local path and connected to the remote one, so the kernel takes datagrams from that peer
//! only. It doesn't tell when the peer goes; that shows when a datagram is refused, or when the remote path is another
//! file, which is looked at once a second. Then the port is disconnected and reconnects with back-off.
//! Frames are finished: no offloads.

use super::unix::{self, Address, Backoff, SocketFile, UnixError};
use super::{PortFault, PortIo, RxState, TxQueue};
use crate::clock::Nanos;
use crate::frame::{BATCH_SIZE, Batch, DropReason, Frame, Offloads};
use crate::stats::Tally;
use crate::sys::mmsg::{self, MAX_MESSAGES};
use arrayvec::ArrayVec;
use nix::errno::Errno;
use nix::sys::socket::{SockType, UnixAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// How often the remote path is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Frames offered to the kernel in one call.
const RECEIVE: usize = 8;

/// A datagram port.
#[derive(Debug)]
pub struct Dgram {
    fd: OwnedFd,
    _file: SocketFile,
    remote: Address,
    remote_addr: UnixAddr,
    /// Device and inode of the remote path when we connected; `None` while disconnected.
    connected: Option<Option<(u64, u64)>>,
    backoff: Backoff,
    told: bool,
    changed: bool,
}

impl Dgram {
    /// Binds `local` and exchanges frames with the process bound to `remote`, which need not be there yet.
    pub fn new(local: &Address, remote: Address) -> Result<Dgram, UnixError> {
        let remote_addr = remote.to_nix()?;
        let (fd, file) = unix::bind(local, SockType::Datagram)?;
        Ok(Dgram {
            fd,
            _file: file,
            remote,
            remote_addr,
            connected: None,
            backoff: Backoff::new(),
            told: false,
            changed: false,
        })
    }

    fn remote_file(&self) -> Option<(u64, u64)> {
        match &self.remote {
            Address::Path(p) => std::fs::metadata(p).ok().map(|m| (m.dev(), m.ino())),
            Address::Abstract(_) => None,
        }
    }

    fn disconnected(&mut self, why: impl std::fmt::Display) -> PortFault {
        self.connected = None;
        self.told = true;
        PortFault::Disconnected(format!("datagram socket `{}`: {why}", self.remote))
    }
}

impl PortIo for Dgram {
    fn recv(&mut self, rx: &mut Batch, tally: &mut Tally) -> Result<RxState, PortFault> {
        // The peer closed with datagrams of ours unread.
        receive(&self.fd, false, rx, tally).map_err(|e| self.disconnected(e))
    }

    fn send(&mut self, out: &mut TxQueue) -> Result<(), PortFault> {
        if self.connected.is_none() {
            out.clear(DropReason::PortDown);
            return Ok(());
        }
        let sent = transmit(&self.fd, out);
        sent.map_err(|e| self.disconnected(format_args!("sending failed: {e}")))
    }

    fn offloads(&self) -> Offloads {
        Offloads::NONE
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn tick(&mut self, now: Nanos) -> Result<Option<Nanos>, PortFault> {
        if let Some(file) = self.connected {
            if file == self.remote_file() {
                return Ok(Some(now.after(LOOK)));
            }
            self.backoff = Backoff::new();
            return Err(self.disconnected("the peer closed its socket"));
        }
        if let Some(due) = self.backoff.wait(now) {
            return Ok(Some(due));
        }
        let file = self.remote_file();
        match unix::connect_fd(&self.fd, &self.remote, &self.remote_addr) {
            Ok(()) => {
                self.connected = Some(file);
                self.backoff = Backoff::new();
                self.told = false;
                self.changed = true;
                Ok(Some(now.after(LOOK)))
            }
            Err(e) => {
                let due = self.backoff.failed(now);
                if self.told {
                    Ok(Some(due))
                } else {
                    Err(match e {
                        UnixError::Socket {
                            source: Errno::ENOENT | Errno::ECONNREFUSED,
                            ..
                        } => self.disconnected("no peer yet"),
                        e => self.disconnected(e),
                    })
                }
            }
        }
    }

    fn fd_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

/// Receives frames, one a packet; where `ends`, an empty one is the end (EPIPE).
pub(super) fn receive(
    fd: &OwnedFd,
    ends: bool,
    rx: &mut Batch,
    tally: &mut Tally,
) -> Result<RxState, Errno> {
    while !rx.is_full() {
        let n = RECEIVE.min(BATCH_SIZE - rx.len());
        let mut frames = ArrayVec::<Frame, MAX_MESSAGES>::new();
        (0..n).for_each(|_| frames.push(Frame::new()));
        let mut got = ArrayVec::new();
        let r = {
            let mut bufs: ArrayVec<_, MAX_MESSAGES> =
                frames.iter_mut().map(|f| f.recv_slices(0)).collect();
            mmsg::recvmmsg(fd, &mut bufs, &mut got, false)
        };
        match r {
            Ok(()) => {}
            Err(Errno::EAGAIN) => return Ok(RxState::Empty),
            Err(Errno::EINTR) => continue,
            Err(e) => {
                tally.errors += 1;
                return Err(e);
            }
        }
        for (mut frame, r) in frames.into_iter().zip(&got) {
            if ends && r.len == 0 {
                return Err(Errno::EPIPE);
            }
            tally.frame(r.len);
            if r.truncated {
                tally.count_drop(DropReason::Oversize);
            } else if frame.received(0, r.len).is_some() {
                // No more were asked for than there is room for.
                let _ = rx.push(frame);
            } else {
                tally.count_drop(DropReason::Runt);
            }
        }
    }
    Ok(RxState::More)
}

/// Sends as many frames as the peer takes, one a packet.
pub(super) fn transmit(fd: &OwnedFd, out: &mut TxQueue) -> Result<(), Errno> {
    while !out.is_empty() {
        let mut bufs = ArrayVec::<_, MAX_MESSAGES>::new();
        for frame in out.iter_mut().take(MAX_MESSAGES) {
            bufs.extend(frame.send_slices(&[]));
        }
        let r = mmsg::sendmmsg(fd, &bufs);
        drop(bufs);
        match r {
            Ok(n) => (0..n).for_each(|_| out.sent()),
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::EMSGSIZE) => out.reject(DropReason::Mtu),
            Err(Errno::ENOBUFS | Errno::ENOMEM) => out.reject(DropReason::QueueFull),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
