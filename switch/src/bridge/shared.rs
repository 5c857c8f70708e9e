//! What the bridges of all workers share: meters, loop guard state, the key of loop probes.
//!
//! The registry is locked when ports are configured; a turn only touches atomics.

use super::loop_guard::{LoopState, ProbeKey, ShutPorts};
use super::{PortConfig, Rate, StormLimits};
use crate::policy::meter::Meter;
use crate::port::PortId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The rates of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rates {
    ingress: Option<Rate>,
    egress: Option<Rate>,
    storm: StormLimits,
}

/// The meters of a port.
#[derive(Debug, Default)]
pub(super) struct Meters {
    rates: Rates,
    /// Bytes.
    pub(super) ingress: Option<Meter>,
    /// Bytes.
    pub(super) egress: Option<Meter>,
    /// Frames, like the next two.
    pub(super) broadcast: Option<Meter>,
    pub(super) multicast: Option<Meter>,
    pub(super) unknown: Option<Meter>,
}

impl Meters {
    fn new(rates: Rates) -> Meters {
        Meters {
            rates,
            ingress: rates.ingress.map(Meter::new),
            egress: rates.egress.map(Meter::new),
            broadcast: rates.storm.broadcast.map(Meter::new),
            multicast: rates.storm.multicast.map(Meter::new),
            unknown: rates.storm.unknown.map(Meter::new),
        }
    }
}

#[derive(Debug, Default)]
struct Registry {
    meters: HashMap<PortId, Weak<Meters>>,
    loops: HashMap<PortId, Weak<LoopState>>,
}

/// Shared by the bridges of one switch.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) probe_key: ProbeKey,
    pub(super) shut: Arc<ShutPorts>,
    registry: Mutex<Registry>,
}

impl Shared {
    /// The meters of a port with this configuration: those another worker's bridge has, if the rates are the same.
    pub(super) fn meters(&self, port: PortId, config: &PortConfig) -> Arc<Meters> {
        let rates = Rates {
            ingress: config.ingress_rate,
            egress: config.egress_rate,
            storm: config.storm,
        };
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.meters.retain(|_, m| m.strong_count() > 0);
        if let Some(m) = registry.meters.get(&port).and_then(Weak::upgrade)
            && m.rates == rates
        {
            return m;
        }
        let m = Arc::new(Meters::new(rates));
        registry.meters.insert(port, Arc::downgrade(&m));
        m
    }

    /// The loop guard state of a port.
    pub(super) fn loop_state(&self, port: PortId) -> Arc<LoopState> {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.loops.retain(|_, l| l.strong_count() > 0);
        if let Some(l) = registry.loops.get(&port).and_then(Weak::upgrade) {
            return l;
        }
        let l = Arc::new(LoopState::new(port, self.shut.clone()));
        registry.loops.insert(port, Arc::downgrade(&l));
        l
    }
}
