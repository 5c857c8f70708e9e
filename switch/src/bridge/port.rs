//! What the bridge keeps of a port: its configuration, compiled so that features that are off cost nothing.

use super::PortConfig;
use super::guard::Guard;
use super::loop_guard::LoopState;
use super::mirror::Tap;
use super::shared::{Meters, Shared};
use crate::port::PortId;
use crate::worker::{Cx, Event};
use std::cell::Cell;
use std::sync::Arc;

/// Most events of learned and moved addresses per port and second: who watches mustn't drown.
const ADDRESS_EVENTS: u16 = 100;

#[derive(Debug)]
pub(super) struct BridgePort {
    pub(super) config: PortConfig,
    pub(super) meters: Arc<Meters>,
    pub(super) loop_state: Arc<LoopState>,
    pub(super) guard: Option<Box<Guard>>,
    pub(super) taps_in: Vec<Tap>,
    pub(super) taps_out: Vec<Tap>,
    /// The network is VLAN aware.
    pub(super) vlan_aware: bool,
    /// Frames received have to be looked at one by one before they are switched.
    pub(super) screens: bool,
    /// Frames sent have to be looked at one by one.
    pub(super) finishes: bool,
    pub(super) mac_limit: u32,
    /// Second of the last limit event.
    told: Cell<u32>,
    /// Address events of a second.
    told_addresses: Cell<(u32, u16)>,
    /// Second in which an address last moved here.
    moved: Cell<u32>,
}

impl BridgePort {
    pub(super) fn new(id: PortId, config: PortConfig, shared: &Shared) -> BridgePort {
        BridgePort {
            meters: shared.meters(id, &config),
            loop_state: shared.loop_state(id),
            guard: Guard::new(&config).map(Box::new),
            taps_in: Vec::new(),
            taps_out: Vec::new(),
            vlan_aware: false,
            screens: false,
            finishes: false,
            mac_limit: config.mac_limit.unwrap_or(u32::MAX),
            told: Cell::new(0),
            told_addresses: Cell::new((0, 0)),
            moved: Cell::new(0),
            config,
        }
    }

    /// Sums up what costs; to be called after any change.
    pub(super) fn compile(&mut self) {
        self.screens = self.vlan_aware
            || self.guard.is_some()
            || self.meters.ingress.is_some()
            || !self.taps_in.is_empty();
        self.finishes =
            self.vlan_aware || self.meters.egress.is_some() || !self.taps_out.is_empty();
    }

    /// Reports an address learned or moved; under a flood of addresses only the first of a second.
    pub(super) fn tell_address(&self, cx: &mut Cx, event: Event) {
        let now = cx.now.secs();
        let (second, told) = self.told_addresses.get();
        let told = if second == now { told } else { 0 };
        if told < ADDRESS_EVENTS {
            self.told_addresses.set((now, told + 1));
            cx.event(event);
        }
    }

    /// An address moved here; true once a second.
    pub(super) fn first_move(&self, now: u32) -> bool {
        self.moved.replace(now) != now
    }

    /// Reports a limit, once a second at most.
    pub(super) fn tell_limit(&self, cx: &mut Cx, port: PortId, limit: &'static str) {
        let now = cx.now.secs();
        if self.told.replace(now) != now {
            cx.event(Event::LimitReached { port, limit });
        }
    }
}
