//! The ports of a worker, their transmit queues and the way out.

use super::Origin;
use crate::capture::Taps;
use crate::clock::Nanos;
use crate::frame::{DropReason, Frame, Offloads, gso};
use crate::port::{PortFault, PortId, PortIo, TxQueue};
use crate::stats::PortCounters;
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;

/// Link state of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Frames pass.
    Up,
    /// Set down by configuration.
    AdminDown,
    /// Down by itself, with the reason.
    Down(PortFault),
}

/// What a worker needs to serve a port.
#[derive(Debug)]
pub struct PortSetup {
    /// This worker's queue; `None` when another worker (`owner`) has the only one.
    pub io: Option<Box<dyn PortIo>>,
    /// Index of the worker that serves the port if we don't.
    pub owner: u16,
    /// Largest packet (L3 length) that may leave by it, in bytes.
    pub mtu: u32,
    /// Bound of the transmit queue in frames.
    pub tx_limit: usize,
    /// Whether frames may pass.
    pub admin_up: bool,
    /// This worker's counters of the port.
    pub counters: Arc<PortCounters>,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) io: Option<Box<dyn PortIo>>,
    pub(super) owner: u16,
    pub(super) mtu: u32,
    pub(super) offloads: Offloads,
    pub(super) txq: TxQueue,
    pub(super) counters: Arc<PortCounters>,
    pub(super) link: LinkState,
    pub(super) active: bool,
    pub(super) write_armed: bool,
    pub(super) next_tick: Option<Nanos>,
    /// Captures that look at what is received.
    pub(super) taps: Taps,
    dirty: bool,
    /// Frames received in this window, and whether other workers' queues of the port are attached (`share.rs`).
    pub(super) recent: u32,
    pub(super) helped: bool,
}

/// A frame or news on its way to another worker.
#[derive(Debug)]
pub(super) enum Inbound {
    Frame(PortId, Frame),
    /// A frame received by this port that is for the gateway.
    Gateway(PortId, Frame),
    News(super::Sync),
    /// The first worker asks for help with a port.
    Help(PortId),
    /// A helper has ended that.
    Helped(PortId),
}

/// The way to another worker: its inbox, and how to wake it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) inbox: Arc<ArrayQueue<Inbound>>,
    pub(super) waker: Arc<super::handle::SleepWaker>,
}

#[derive(Debug, Default)]
pub(super) struct Outputs {
    pub(super) slots: Vec<Option<Slot>>,
    pub(super) dirty: Vec<PortId>,
    pub(super) peers: Vec<Option<Peer>>,
}

impl Slot {
    pub(super) fn new(setup: PortSetup) -> Slot {
        let offloads = setup.io.as_ref().map_or(Offloads::ALL, |io| io.offloads());
        let mut txq = TxQueue::new(setup.tx_limit);
        txq.joins = setup.io.as_ref().is_some_and(|io| io.joins());
        Slot {
            io: setup.io,
            owner: setup.owner,
            mtu: setup.mtu,
            offloads,
            txq,
            counters: setup.counters,
            link: if setup.admin_up {
                LinkState::Up
            } else {
                LinkState::AdminDown
            },
            active: false,
            write_armed: false,
            next_tick: Some(Nanos(0)),
            taps: Taps::default(),
            dirty: false,
            recent: 0,
            helped: false,
        }
    }
}

impl Slot {
    /// Counts a frame that was to leave by this port dropped.
    pub(super) fn drop_leaving(&self, frame: &Frame, why: DropReason) {
        self.counters.count_drop(why, 1);
        if !self.txq.taps.is_empty() {
            self.txq.taps.dropped(frame, why);
        }
    }
}

impl Outputs {
    pub(super) fn slot(&mut self, port: PortId) -> Option<&mut Slot> {
        self.slots.get_mut(port.index()).and_then(Option::as_mut)
    }

    /// Queues a frame for a port, finished for what the port takes; counts it dropped if that can't be.
    pub(super) fn enqueue(&mut self, to: PortId, frame: Frame) {
        let Some(slot) = self.slots.get_mut(to.index()).and_then(Option::as_mut) else {
            return;
        };
        if slot.link != LinkState::Up {
            slot.drop_leaving(&frame, DropReason::PortDown);
            return;
        }
        if slot.io.is_none() {
            let owner = usize::from(slot.owner);
            return self.hand(owner, to, frame);
        }
        if gso::is_ready(&frame, slot.offloads, slot.mtu) {
            slot.txq.push(frame);
        } else {
            // What can't be finished is consumed all the same.
            let whole = slot.txq.taps.any_drops().then(|| frame.duplicate());
            let (txq, mut made) = (&mut slot.txq, 0u64);
            let r = gso::finish(frame, slot.offloads, slot.mtu, &mut |f| {
                made += 1;
                txq.push(f);
            });
            match r {
                Ok(()) => slot.counters.split.add(made.saturating_sub(1)),
                Err(why) => {
                    slot.counters.count_drop(why, 1);
                    if let Some(frame) = whole {
                        slot.txq.taps.dropped(&frame, why);
                    }
                }
            }
        }
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(to);
        }
    }

    /// Gives a frame to another worker to send.
    pub(super) fn hand(&mut self, worker: usize, to: PortId, frame: Frame) {
        let Some(slot) = self.slots.get(to.index()).and_then(Option::as_ref) else {
            return;
        };
        if let Some(Some(peer)) = self.peers.get(worker) {
            if let Err(Inbound::Frame(_, frame)) = peer.inbox.push(Inbound::Frame(to, frame)) {
                slot.drop_leaving(&frame, DropReason::HandoffFull);
            }
            peer.waker.wake();
        }
    }

    /// What [`Outputs::enqueue`] would queue, without queueing it.
    pub(super) fn finished(
        &self,
        to: PortId,
        frame: Frame,
        each: &mut dyn FnMut(Frame),
    ) -> Result<(), DropReason> {
        let slot = self.slots.get(to.index()).and_then(Option::as_ref);
        let slot = slot.ok_or(DropReason::NoPort)?;
        if slot.link != LinkState::Up {
            return Err(DropReason::PortDown);
        }
        if gso::is_ready(&frame, slot.offloads, slot.mtu) {
            each(frame);
            return Ok(());
        }
        gso::finish(frame, slot.offloads, slot.mtu, each)
    }

    /// Queues a frame that a stage made or copied.
    pub(super) fn emit(&mut self, to: PortId, frame: Frame, origin: Origin) {
        let Some(slot) = self.slot(to) else { return };
        match origin {
            Origin::Copy => slot.counters.copied.add(1),
            Origin::Switch => slot.counters.originated.add(1),
            Origin::Held => {}
        }
        self.enqueue(to, frame);
    }

    /// Sends what waits at one port; returns the fault if it went down.
    pub(super) fn flush(&mut self, port: PortId) -> Result<(), PortFault> {
        let Some(slot) = self.slot(port) else {
            return Ok(());
        };
        slot.dirty = false;
        let Some(io) = &mut slot.io else {
            return Ok(());
        };
        let r = io.send(&mut slot.txq);
        slot.counters.add_tx(&mut slot.txq.tally);
        slot.counters.held.set(slot.txq.len() as u64);
        r
    }
}
