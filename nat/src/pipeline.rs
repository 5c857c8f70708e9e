//! The stages of a worker, composed: bridge, then gateway.

use crate::gateway::Gateway;
use vswitch_core::bridge::Bridge;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{Batch, DropReason, Frame};
use vswitch_core::port::PortId;
use vswitch_core::wire::Meta;
use vswitch_core::worker::{Cx, Ready, Stage, Sync, Watch};

/// What a worker runs over every batch. The gateway isn't a stage beside the bridge but behind it, because what it routes goes
/// through the bridge once more.
#[derive(Debug, Default)]
pub struct Pipeline {
    /// Layer 2.
    pub bridge: Bridge,
    /// Layer 3, for networks that have a gateway.
    pub gateway: Gateway,
}

impl Stage for Pipeline {
    fn run(&mut self, cx: &mut Cx, batch: &mut Batch) {
        if self.bridge.is_accelerated() {
            let judged = self.gateway.judges(&self.bridge, batch.ingress);
            self.bridge.allow_fast(!judged);
        }
        self.bridge.run(cx, batch);
        self.gateway.screen(cx, &mut self.bridge, batch);
        if self.gateway.is_on() {
            self.gateway.run(cx, &mut self.bridge, batch);
        }
    }

    fn rehearse(&mut self, cx: &mut Cx, batch: &mut Batch) {
        let kept = self.gateway.begin_rehearsal();
        self.run(cx, batch);
        self.gateway.end_rehearsal(kept);
    }

    fn egress(
        &mut self,
        cx: &mut Cx,
        from: PortId,
        to: PortId,
        frame: &mut Frame,
        meta: &Meta,
    ) -> Result<(), DropReason> {
        self.bridge.egress(cx, from, to, frame, meta)
    }

    fn tick(&mut self, cx: &mut Cx) -> Nanos {
        let next = self.bridge.tick(cx);
        next.min(self.gateway.tick(cx, &mut self.bridge))
    }

    fn link_changed(&mut self, cx: &mut Cx, port: PortId, up: bool) {
        if !up {
            self.gateway.port_gone(&self.bridge, port);
        }
        self.bridge.link_changed(cx, port, up);
    }

    fn watch(&mut self, watch: Watch) {
        self.gateway.set_watch(watch);
    }

    fn ready(&mut self, cx: &mut Cx, events: &[Ready]) {
        self.gateway.host_ready(cx, &mut self.bridge, events);
    }

    fn port_watched(&mut self, port: PortId, watched: bool) {
        self.bridge.port_watched(port, watched);
    }

    fn sync(&mut self, cx: &mut Cx, news: &Sync) {
        if let Sync::PortDown { port } = *news {
            self.gateway.port_gone(&self.bridge, port);
        }
        self.bridge.sync(cx, news);
    }
}
