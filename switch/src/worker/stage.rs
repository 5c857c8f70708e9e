//! What a worker does to batches: the stages.

use super::{Cx, Ready, Sync, Watch};
use crate::clock::Nanos;
use crate::frame::{Batch, DropReason, Frame};
use crate::port::PortId;
use crate::wire::Meta;

/// A stage of the pipeline. Stages compose as tuples, with static dispatch.
pub trait Stage: Send + 'static {
    /// Judges the frames of a batch; may rewrite them and emit others through `cx`.
    fn run(&mut self, cx: &mut Cx, batch: &mut Batch);

    /// As [`Stage::run`] for a frame that is only asked about ([`Cx::is_dry`]).
    fn rehearse(&mut self, cx: &mut Cx, batch: &mut Batch) {
        self.run(cx, batch);
    }

    /// Last word on a frame that leaves by `to`; may rewrite it (VLAN tag). An error drops it, counted at `to`.
    fn egress(
        &mut self,
        _cx: &mut Cx,
        _from: PortId,
        _to: PortId,
        _frame: &mut Frame,
        _meta: &Meta,
    ) -> Result<(), DropReason> {
        Ok(())
    }

    /// Bounded periodic work (ageing, probes); returns when it wants to be called again.
    fn tick(&mut self, _cx: &mut Cx) -> Nanos {
        Nanos::MAX
    }

    /// A port came up or went down.
    fn link_changed(&mut self, _cx: &mut Cx, _port: PortId, _up: bool) {}

    /// Once, when the worker begins: how to have descriptors of the stage's own watched.
    fn watch(&mut self, _watch: Watch) {}

    /// Descriptors that are watched are ready, or the stage has asked for another turn ([`Cx::again`]).
    fn ready(&mut self, _cx: &mut Cx, _events: &[Ready]) {}

    /// Captures look at a port, or don't any more.
    fn port_watched(&mut self, _port: PortId, _watched: bool) {}

    /// News from another worker.
    fn sync(&mut self, _cx: &mut Cx, _news: &Sync) {}
}

impl<A: Stage, B: Stage> Stage for (A, B) {
    fn run(&mut self, cx: &mut Cx, batch: &mut Batch) {
        self.0.run(cx, batch);
        self.1.run(cx, batch);
    }

    fn rehearse(&mut self, cx: &mut Cx, batch: &mut Batch) {
        self.0.rehearse(cx, batch);
        self.1.rehearse(cx, batch);
    }

    fn egress(
        &mut self,
        cx: &mut Cx,
        from: PortId,
        to: PortId,
        frame: &mut Frame,
        meta: &Meta,
    ) -> Result<(), DropReason> {
        self.1.egress(cx, from, to, frame, meta)?;
        self.0.egress(cx, from, to, frame, meta)
    }

    fn tick(&mut self, cx: &mut Cx) -> Nanos {
        self.0.tick(cx).min(self.1.tick(cx))
    }

    fn link_changed(&mut self, cx: &mut Cx, port: PortId, up: bool) {
        self.0.link_changed(cx, port, up);
        self.1.link_changed(cx, port, up);
    }

    fn port_watched(&mut self, port: PortId, watched: bool) {
        self.0.port_watched(port, watched);
        self.1.port_watched(port, watched);
    }

    fn sync(&mut self, cx: &mut Cx, news: &Sync) {
        self.0.sync(cx, news);
        self.1.sync(cx, news);
    }
}
