//! The bridge as a stage.

use super::fdb::{Fdb, Learn};
use super::{NetworkConfig, NetworkId, PortConfig};
use crate::frame::{Batch, DropReason, Verdict};
use crate::port::PortId;
use crate::worker::{Cx, Event, Stage, Sync};

#[derive(Debug)]
struct Network {
    config: NetworkConfig,
    fdb: Fdb,
    members: Vec<PortId>,
}

/// One worker's bridge.
#[derive(Debug, Default)]
pub struct Bridge {
    networks: Vec<Option<Network>>,
    ports: Vec<Option<PortConfig>>,
}

impl Bridge {
    /// A bridge without networks.
    #[must_use]
    pub fn new() -> Bridge {
        Bridge::default()
    }

    /// Adds a network, or changes its configuration.
    pub fn set_network(&mut self, id: NetworkId, config: NetworkConfig) {
        let i = usize::from(id.0);
        if self.networks.len() <= i {
            self.networks.resize_with(i + 1, || None);
        }
        match &mut self.networks[i] {
            Some(n) => n.config = config,
            slot => {
                let fdb = Fdb::new(config.fdb_limit);
                *slot = Some(Network {
                    config,
                    fdb,
                    members: Vec::new(),
                });
            }
        }
    }

    /// Removes a network; its ports must have been removed.
    pub fn remove_network(&mut self, id: NetworkId) {
        if let Some(slot) = self.networks.get_mut(usize::from(id.0)) {
            *slot = None;
        }
    }

    /// Adds a port, or changes its configuration.
    pub fn set_port(&mut self, port: PortId, config: PortConfig) {
        self.remove_port(port);
        if self.ports.len() <= port.index() {
            self.ports.resize_with(port.index() + 1, || None);
        }
        if let Some(Some(n)) = self.networks.get_mut(usize::from(config.network.0)) {
            n.members.push(port);
        }
        self.ports[port.index()] = Some(config);
    }

    /// Removes a port and what was learned at it.
    pub fn remove_port(&mut self, port: PortId) {
        let Some(config) = self.ports.get_mut(port.index()).and_then(Option::take) else {
            return;
        };
        if let Some(Some(n)) = self.networks.get_mut(usize::from(config.network.0)) {
            n.members.retain(|p| *p != port);
            n.fdb.remove_if(|e| e.port == port);
        }
    }

    /// The FDB of a network.
    #[must_use]
    pub fn fdb(&self, id: NetworkId) -> Option<&Fdb> {
        self.networks
            .get(usize::from(id.0))?
            .as_ref()
            .map(|n| &n.fdb)
    }
}

impl Stage for Bridge {
    fn run(&mut self, cx: &mut Cx, batch: &mut Batch) {
        let from = batch.ingress;
        let Some(Some(port)) = self.ports.get(from.index()) else {
            return;
        };
        let Some(Some(net)) = self.networks.get_mut(usize::from(port.network.0)) else {
            return;
        };
        let now = cx.now.secs();
        let mut flood = None;
        for e in &mut batch.entries {
            if e.verdict != Verdict::Next {
                continue;
            }
            if e.meta.src.is_group() {
                e.verdict = Verdict::Drop(DropReason::BadSourceMac);
                continue;
            }
            if e.meta.dst.is_link_local() {
                e.verdict = Verdict::Drop(DropReason::LinkLocal);
                continue;
            }
            let network = port.network.0;
            match net.fdb.learn(0, e.meta.src, from, now, u32::MAX) {
                Learn::New => cx.tell(Sync::Learned {
                    network,
                    vid: 0,
                    mac: e.meta.src,
                    port: from,
                    seen: now,
                }),
                Learn::Moved(was) => {
                    cx.event(Event::MacMoved {
                        network,
                        vid: 0,
                        mac: e.meta.src,
                        from: was,
                        to: from,
                    });
                }
                _ => {}
            }
            let known = if e.meta.dst.is_group() {
                None
            } else {
                net.fdb.lookup(0, e.meta.dst)
            };
            e.verdict = match known {
                Some(p) if p == from => Verdict::Drop(DropReason::SamePort),
                Some(p) => Verdict::Forward(p),
                None => Verdict::Flood(*flood.get_or_insert_with(|| {
                    cx.flood_set(net.members.iter().copied().filter(|p| *p != from))
                })),
            };
        }
    }
}
