//! In-memory port pair for tests and benches: what one end sends the other receives.
//!
//! Two bounded queues and an eventfd each way, so that a worker sleeps and wakes on it as on any port.

use super::{PortFault, PortIo, RxState, TxQueue};
use crate::frame::{Batch, DropReason, Frame, Offloads};
use crate::stats::Tally;
use crossbeam_queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

#[derive(Debug)]
struct Lane {
    frames: ArrayQueue<Frame>,
    event: EventFd,
}

/// One end of the pair.
#[derive(Debug)]
pub struct Mem {
    rx: Arc<Lane>,
    tx: Arc<Lane>,
    offloads: Offloads,
}

/// Makes a pair whose queues hold `capacity` frames each way and whose ends take `offloads`.
/// Errors: no eventfd could be made.
pub fn pair(capacity: usize, offloads: Offloads) -> Result<(Mem, Mem), nix::Error> {
    let lane = || -> Result<Arc<Lane>, nix::Error> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(Lane {
            frames: ArrayQueue::new(capacity),
            event,
        }))
    };
    let (a, b) = (lane()?, lane()?);
    Ok((
        Mem {
            rx: a.clone(),
            tx: b.clone(),
            offloads,
        },
        Mem {
            rx: b,
            tx: a,
            offloads,
        },
    ))
}

impl Mem {
    /// Sends a frame to the other end; gives it back when the queue is full.
    pub fn push(&self, frame: Frame) -> Result<(), Frame> {
        self.tx.frames.push(frame)?;
        // Only overflow of the 64-bit count could fail.
        let _ = self.tx.event.write(1);
        Ok(())
    }

    /// Takes a frame that the other end sent.
    #[must_use]
    pub fn pop(&self) -> Option<Frame> {
        self.rx.frames.pop()
    }
}

impl PortIo for Mem {
    fn recv(&mut self, rx: &mut Batch, tally: &mut Tally) -> Result<RxState, PortFault> {
        // Clear first: what is pushed after this wakes us again.
        let _ = self.rx.event.read();
        while !rx.is_full() {
            let Some(frame) = self.rx.frames.pop() else {
                return Ok(RxState::Empty);
            };
            tally.frame(frame.len());
            let _ = rx.push(frame);
        }
        Ok(RxState::More)
    }

    fn send(&mut self, out: &mut TxQueue) -> Result<(), PortFault> {
        let mut any = false;
        while let Some(frame) = out.take_front() {
            any = true;
            let len = frame.len();
            match self.tx.frames.push(frame) {
                Ok(()) => out.tally.frame(len),
                Err(_) => out.tally.count_drop(DropReason::QueueFull),
            }
        }
        if any {
            let _ = self.tx.event.write(1);
        }
        Ok(())
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.rx.event.as_fd())
    }
}
