//! What the gateway shows to people.

use super::Gateway;
use super::flows::Tracking;
use crate::conntrack::{Conn, Conntrack, Cursor, EndReason, Event, Record};
use crate::portalloc::PoolStats;
use std::net::IpAddr;
use vswitch_core::bridge::NetworkId;
use vswitch_core::clock::Nanos;
use vswitch_core::wire::MacAddr;

/// A neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourEntry {
    /// Its network.
    pub network: NetworkId,
    /// Address.
    pub ip: IpAddr,
    /// MAC; `None` while or because it doesn't answer.
    pub mac: Option<MacAddr>,
    /// Seconds until it is asked for again.
    pub fresh_for: u64,
}

impl Gateway {
    /// The neighbours it knows or asks for.
    #[must_use]
    pub fn neighbours(&self, now: Nanos) -> Vec<NeighbourEntry> {
        let entry = |(network, ip, mac, fresh_for)| NeighbourEntry {
            network,
            ip,
            mac,
            fresh_for,
        };
        self.neighbours.entries(now).map(entry).collect()
    }

    /// Connection tracking; none without gateways, or on a worker that doesn't have them.
    #[must_use]
    pub fn conntrack(&self) -> Option<&Conntrack> {
        self.tracking.as_deref().map(|t| &t.conns)
    }

    /// Some connections and the place to go on at; `budget` bounds the time, in places of the table.
    #[must_use]
    pub fn connections(
        &self,
        from: Cursor,
        budget: usize,
        now: Nanos,
    ) -> (Vec<Record>, Option<Cursor>) {
        self.conntrack()
            .map_or((Vec::new(), None), |c| c.dump(from, budget, now))
    }

    /// Ends connections that `which` chooses, from a place on; returns how many and where to go on.
    pub fn flush_connections(
        &mut self,
        from: Cursor,
        budget: usize,
        now: Nanos,
        which: &mut dyn FnMut(&Conn) -> bool,
    ) -> (usize, Option<Cursor>) {
        let Some(tracking) = self.tracking.as_deref_mut() else {
            return (0, None);
        };
        tracking.with(now, |conns, ended: &mut dyn FnMut(&Conn, EndReason)| {
            conns.flush(from, budget, now, which, ended)
        })
    }

    /// New and ended connections since the last call. Events are kept from the first call on.
    pub fn take_connection_events(&mut self, keep: usize) -> Vec<Event> {
        let Some(tracking) = self.tracking.as_deref_mut() else {
            return Vec::new();
        };
        let conns = &mut tracking.conns;
        if conns.config().events != keep {
            let mut config = conns.config().clone();
            config.events = keep;
            conns.configure(config);
        }
        std::iter::from_fn(|| conns.take_event()).collect()
    }

    /// Counters of address translation, and mappings that exist.
    #[must_use]
    pub fn nat_stats(&self) -> (PoolStats, usize) {
        let stats = |t: &Tracking| t.flows.pools.stats();
        self.tracking.as_deref().map(stats).unwrap_or_default()
    }
}
