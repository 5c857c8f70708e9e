//! Configuring a bridge, and asking it.
//!
//! Everything here runs between turns, as a command; the same commands go to the bridges of all workers.

use super::fast::Fast;
use super::fdb::{Fdb, FdbCursor, FdbEntry, FlushFilter};
use super::mirror::{Mirrors, Side};
use super::network::{Member, Network, Share};
use super::port::BridgePort;
use super::shared::Shared;
use super::{MdbEntry, MirrorConfig, MirrorId, NetworkConfig, NetworkId, PortConfig};
use crate::clock::Nanos;
use crate::port::PortId;
use crate::wire::MacAddr;
use std::sync::Arc;
use std::time::Duration;

/// One worker's bridge.
#[derive(Debug, Default)]
pub struct Bridge {
    pub(super) networks: Vec<Option<Network>>,
    pub(super) ports: Vec<Option<BridgePort>>,
    /// Ports whose egress has something to do, by index: what every frame sent looks at is small.
    pub(super) finishes: Vec<bool>,
    /// Ports whose link is down, by index; known even before the port is configured here.
    pub(super) down: Vec<bool>,
    pub(super) mirrors: Mirrors,
    pub(super) shared: Arc<Shared>,
    pub(super) wanted: Vec<PortId>,
    pub(super) fast: Fast,
}

impl Bridge {
    /// A bridge without networks.
    #[must_use]
    pub fn new() -> Bridge {
        Bridge::default()
    }

    /// The bridge of a further worker of the same switch: without networks, but meters and loop guard state will be
    /// shared with this one.
    #[must_use]
    pub fn sibling(&self) -> Bridge {
        Bridge {
            shared: self.shared.clone(),
            ..Bridge::default()
        }
    }

    /// Adds a network, or changes its configuration.
    pub fn set_network(&mut self, id: NetworkId, config: NetworkConfig) {
        let i = usize::from(id.0);
        if self.networks.len() <= i {
            self.networks.resize_with(i + 1, || None);
        }
        match &mut self.networks[i] {
            Some(n) => n.configure(config),
            slot => *slot = Some(Network::new(config)),
        }
        self.compile();
        self.invalidate();
    }

    /// Removes a network; its ports must have been removed.
    pub fn remove_network(&mut self, id: NetworkId) {
        if let Some(slot) = self.networks.get_mut(usize::from(id.0)) {
            *slot = None;
        }
        self.invalidate();
    }

    /// Adds a port, or changes its configuration. What was learned at it stays unless it changes its network; so do
    /// static entries, until [`Bridge::remove_port`].
    pub fn set_port(&mut self, port: PortId, config: PortConfig) {
        if self.ports.len() <= port.index() {
            self.ports.resize_with(port.index() + 1, || None);
        }
        let new = BridgePort::new(port, config, &self.shared);
        let network = new.config.network;
        let was = self.ports[port.index()].replace(new).map(|p| p.config);
        match was {
            Some(was) if was.network == network => {
                if let Some(Some(n)) = self.networks.get_mut(usize::from(network.0)) {
                    n.probe_soon(port, Share::Own);
                }
                // Addresses learned in VLANs the port has left.
                if let Some(Some(n)) = self.networks.get_mut(usize::from(network.0))
                    && let Some(Some(p)) = self.ports.get(port.index())
                    && n.config.vlan_aware
                {
                    let c = &p.config;
                    let stays = |v: u16| {
                        c.pvid == Some(v) || c.tagged.contains(v) || c.untagged.contains(v)
                    };
                    n.fdb
                        .remove_if(|e| e.port == port && !e.is_static && !stays(e.vid()));
                }
            }
            Some(was) => {
                self.leave(port, was.network);
                self.join(port, network);
            }
            None => self.join(port, network),
        }
        self.compile_port(port);
        self.refresh_members(network);
        self.invalidate();
    }

    fn join(&mut self, port: PortId, network: NetworkId) {
        if let Some(Some(n)) = self.networks.get_mut(usize::from(network.0)) {
            n.members.push(Member {
                port,
                isolated: false,
                silent: false,
                down: false,
            });
            n.probe_soon(port, Share::Own);
        }
    }

    fn leave(&mut self, port: PortId, network: NetworkId) {
        if let Some(Some(n)) = self.networks.get_mut(usize::from(network.0)) {
            n.members.retain(|m| m.port != port);
            n.fresh.retain(|(p, _)| *p != port);
            n.fdb.remove_if(|e| e.port == port);
            n.snoop.remove_port(port);
        }
    }

    /// Removes a port and every entry of it.
    pub fn remove_port(&mut self, port: PortId) {
        if let Some(p) = self.ports.get_mut(port.index()).and_then(Option::take) {
            self.leave(port, p.config.network);
            self.finishes[port.index()] = false;
        }
        self.set_fast(port, None);
        self.watch_port(port, false);
    }

    /// Adds a mirror session, or changes it.
    pub fn set_mirror(&mut self, id: MirrorId, config: MirrorConfig) {
        self.mirrors.set(id, config);
        self.compile();
        self.invalidate();
    }

    /// Removes a mirror session; false if there is none.
    pub fn remove_mirror(&mut self, id: MirrorId) -> bool {
        let was = self.mirrors.remove(id);
        self.compile();
        self.invalidate();
        was
    }

    /// Works out anew what ports and networks have to look at.
    fn compile(&mut self) {
        for i in 0..self.ports.len() {
            self.compile_port(PortId(i as u16));
        }
        for i in 0..self.networks.len() {
            let id = NetworkId(i as u16);
            if let Some(Some(n)) = self.networks.get_mut(i) {
                n.taps = self.mirrors.of_network(id);
            }
            self.refresh_members(id);
        }
    }

    fn compile_port(&mut self, port: PortId) {
        let Some(Some(p)) = self.ports.get_mut(port.index()) else {
            return;
        };
        p.taps_in = self.mirrors.of_port(port, Side::Ingress);
        p.taps_out = self.mirrors.of_port(port, Side::Egress);
        p.vlan_aware = self
            .networks
            .get(usize::from(p.config.network.0))
            .and_then(Option::as_ref)
            .is_some_and(|n| n.config.vlan_aware);
        p.compile();
        let finishes = p.finishes;
        if self.finishes.len() <= port.index() {
            self.finishes.resize(port.index() + 1, false);
        }
        self.finishes[port.index()] = finishes;
    }

    /// Works out anew how flooding sees the members of a network.
    pub(super) fn refresh_members(&mut self, network: NetworkId) {
        let Some(Some(n)) = self.networks.get_mut(usize::from(network.0)) else {
            return;
        };
        for m in &mut n.members {
            let i = m.port.index();
            m.down = self.down.get(i).copied().unwrap_or(false);
            m.silent = m.down || self.mirrors.silences(m.port);
            m.isolated = matches!(self.ports.get(i), Some(Some(p)) if p.config.isolated);
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

    fn fdb_mut(&mut self, id: NetworkId) -> Option<&mut Fdb> {
        self.networks
            .get_mut(usize::from(id.0))?
            .as_mut()
            .map(|n| &mut n.fdb)
    }

    /// Pins an address to a port. False when there is no such network, the port isn't in it, or its table is full.
    pub fn add_static(&mut self, id: NetworkId, vid: u16, mac: MacAddr, port: PortId) -> bool {
        let inside =
            matches!(self.ports.get(port.index()), Some(Some(p)) if p.config.network == id);
        let added = inside
            && self
                .fdb_mut(id)
                .is_some_and(|f| f.add_static(vid, mac, port));
        self.invalidate();
        added
    }

    /// Removes an address, static or learned, but not the gateway's.
    pub fn remove_entry(&mut self, id: NetworkId, vid: u16, mac: MacAddr) -> Option<FdbEntry> {
        let fdb = self.fdb_mut(id)?;
        if fdb.lookup(vid, mac) == Some(PortId::GATEWAY) {
            return None;
        }
        let removed = fdb.remove(vid, mac);
        self.invalidate();
        removed
    }

    /// Removes entries; returns how many.
    pub fn flush(&mut self, id: NetworkId, filter: FlushFilter) -> usize {
        let flushed = self.fdb_mut(id).map_or(0, |f| f.flush(filter));
        self.invalidate();
        flushed
    }

    /// Some entries of a network's FDB and the place to go on at: `budget` bounds the time, in buckets.
    #[must_use]
    pub fn dump(
        &self,
        id: NetworkId,
        from: FdbCursor,
        budget: usize,
    ) -> (Vec<FdbEntry>, Option<FdbCursor>) {
        self.fdb(id)
            .map_or((Vec::new(), None), |f| f.dump(from, budget))
    }

    /// Multicast memberships and router ports of a network.
    #[must_use]
    pub fn mdb(&self, id: NetworkId, now: Nanos) -> Vec<MdbEntry> {
        match self.networks.get(usize::from(id.0)) {
            Some(Some(n)) => n.snoop.entries(now.secs()),
            _ => Vec::new(),
        }
    }

    /// How much longer the loop guard keeps a port shut, at least; `None` if the port is open.
    #[must_use]
    pub fn loop_shut(&self, port: PortId, now: Nanos) -> Option<Duration> {
        self.ports
            .get(port.index())?
            .as_ref()?
            .loop_state
            .remaining(now)
    }

    /// Opens a port that the loop guard shut; it is shut again if the loop is still there.
    pub fn loop_reset(&mut self, port: PortId) {
        if let Some(Some(p)) = self.ports.get(port.index()) {
            p.loop_state.reset();
        }
    }
}
