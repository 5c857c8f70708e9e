//! Captures at a worker's ports: see [`crate::capture`].

use super::{Stage, Worker};
use crate::capture::{Direction, Tap, Taps};
use crate::frame::{Batch, DropReason};
use crate::port::PortId;

impl<S: Stage> Worker<S> {
    /// Sets the captures that look at a port; they go with the port.
    pub fn set_taps(&mut self, id: PortId, taps: &[Tap]) {
        let clock = &self.taps_clock;
        let side = |side| Taps::of_side(taps, side, clock);
        if let Some(slot) = self.out.slot(id) {
            slot.taps = side(Direction::Ingress);
            slot.txq.taps = side(Direction::Egress);
            self.stage.port_watched(id, !taps.is_empty());
        }
    }

    /// Runs the stages over the batch. Frames are copied before, for the stages may rewrite them, and shown after, with
    /// what became of them. Of frames that another worker handed off, and showed, only the drops are shown.
    pub(super) fn run_stages(&mut self, batch: &mut Batch, fresh: bool) {
        if let Some(slot) = self.out.slot(batch.ingress)
            && !slot.taps.is_empty()
        {
            slot.taps.received(batch, fresh, &mut self.receipts);
        }
        self.stage.run(&mut self.cx, batch);
        if !self.receipts.is_empty()
            && let Some(slot) = self.out.slots.get_mut(batch.ingress.index())
            && let Some(slot) = slot
        {
            let has_gateway = self.cx.worker.0 == 0;
            let receipts = &mut self.receipts;
            slot.taps.settle(batch, fresh, has_gateway, receipts);
        }
    }

    /// Frames were received that no stage will see.
    #[inline]
    pub(super) fn show_refused(&mut self, batch: &Batch, why: DropReason) {
        if let Some(slot) = self.out.slot(batch.ingress)
            && !slot.taps.is_empty()
        {
            slot.taps.refused(batch, why);
        }
    }
}
