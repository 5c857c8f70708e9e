//! TAP port: one queue of a TAP device, with virtio-net headers and offloads.
//!
//! The kernel hands over what a container sends before segmentation and checksumming (frames of up to 64 KiB)
//! and takes the same back, which is worth eight times the throughput of plain frames. The device may be in any network
//! namespace; only the queue's fd is used here.
//!
//! Errors of tun.c that matter: EBADFD when the device was deleted (the container's namespace died),
//! EIO when the interface is down, EINVAL for a frame it doesn't accept, ENOMEM/ENOBUFS under pressure.

use super::{PortFault, PortIo, RxState, TxQueue};
use crate::frame::{Batch, DropReason, Frame, Offloads, SpareTail, VNET_HDR_LEN, VnetHdr};
use crate::stats::Tally;
use crate::sys::tun::{self, TapInfo, TunError};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One TAP queue.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    info: TapInfo,
    offloads: Offloads,
    spare: Option<SpareTail>,
}

impl Tap {
    /// Takes an open TAP queue (our own, or one handed over), checks it and sets headers and offloads.
    pub fn new(fd: OwnedFd, offloads: Offloads) -> Result<Tap, TunError> {
        let info = tun::tap_info(&fd)?;
        if !info.vnet_hdr {
            return Err(TunError::NotTap("it has no virtio-net header"));
        }
        set_nonblocking(&fd)?;
        tun::set_vnet_hdr_len(&fd, VNET_HDR_LEN)?;
        let offloads = tun::set_offloads(&fd, offloads)?;
        Ok(Tap {
            fd,
            info,
            offloads,
            spare: None,
        })
    }

    /// Opens a queue of a device in the calling thread's network namespace, creating it if needed.
    pub fn open(name: &str, multi_queue: bool, offloads: Offloads) -> Result<Tap, TunError> {
        Tap::new(tun::open_tap(name, multi_queue)?, offloads)
    }

    /// Name and flags as they were when the queue was opened.
    #[must_use]
    pub fn info(&self) -> &TapInfo {
        &self.info
    }

    fn gone(&self) -> PortFault {
        PortFault::Gone(format!("TAP device `{}` was deleted", self.info.name))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_nonblocking(fd: &OwnedFd) -> Result<(), TunError> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let err = |source| TunError::Ioctl {
        act: "making it non-blocking",
        source,
    };
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(err)?;
    fcntl(
        fd,
        FcntlArg::F_SETFL(OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK),
    )
    .map_err(err)?;
    Ok(())
}

impl PortIo for Tap {
    fn recv(&mut self, rx: &mut Batch, tally: &mut Tally) -> Result<RxState, PortFault> {
        while !rx.is_full() {
            let mut frame = Frame::new();
            if let Some(t) = self.spare.take() {
                frame.offer_tail(t);
            }
            let n = match tun::readv(&self.fd, &mut frame.recv_slices(VNET_HDR_LEN)) {
                Ok(n) => n,
                Err(e) => {
                    frame.truncate(0);
                    self.spare = frame.take_spare_tail();
                    match e {
                        Errno::EAGAIN => return Ok(RxState::Empty),
                        Errno::EBADFD | Errno::ENODEV => return Err(self.gone()),
                        Errno::EINTR => continue,
                        _ => {
                            tally.errors += 1;
                            return Ok(RxState::Empty);
                        }
                    }
                }
            };
            let len = n.saturating_sub(VNET_HDR_LEN);
            let vnet = frame
                .received(VNET_HDR_LEN, n)
                .and_then(|h| VnetHdr::checked(h, len));
            self.spare = frame.take_spare_tail();
            tally.frame(len);
            match vnet {
                Some(v) => {
                    frame.vnet = v;
                    // The loop's condition leaves room.
                    let _ = rx.push(frame);
                }
                None => tally.count_drop(DropReason::BadOffload),
            }
        }
        Ok(RxState::More)
    }

    fn send(&mut self, out: &mut TxQueue) -> Result<(), PortFault> {
        while let Some(frame) = out.front() {
            let hdr = frame.vnet.to_bytes();
            let Some(slices) = frame.send_slices(&hdr) else {
                out.reject(DropReason::TxError);
                continue;
            };
            let slices = if slices[1].is_empty() {
                &slices[..1]
            } else {
                &slices[..]
            };
            match tun::writev(&self.fd, slices) {
                Ok(_) => out.sent(),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EBADFD | Errno::ENODEV) => return Err(self.gone()),
                Err(Errno::EIO) => out.reject(DropReason::PortDown),
                Err(Errno::ENOMEM | Errno::ENOBUFS) => out.reject(DropReason::QueueFull),
                Err(_) => out.reject(DropReason::TxError),
            }
        }
        Ok(())
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn joins(&self) -> bool {
        self.offloads.uso && self.offloads.csum
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn attaches(&self) -> bool {
        self.info.multi_queue
    }

    fn set_attached(&mut self, on: bool) -> bool {
        self.info.multi_queue && tun::set_attached(&self.fd, on).is_ok()
    }

    fn set_carrier(&mut self, up: bool) {
        let _ = tun::set_carrier(&self.fd, up);
    }
}
