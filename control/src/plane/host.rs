//! What of the host containers reach, as it is taken away: connections that have it end.

use super::Plane;
use crate::model::{Gateway, Topology};
use std::net::IpAddr;
use vswitch_nat::conntrack::{Conn, Dir};
use vswitch_nat::gateway::contains;

/// Addresses that no longer stand for the host, and who reached it by them.
#[derive(Clone, Debug, Default)]
struct Closed {
    /// Prefixes of the network.
    from: Vec<(IpAddr, u8)>,
    /// Addresses that stood for the host's loopback.
    loopback: Vec<IpAddr>,
    /// Addresses that stood for its own address outside.
    own: Vec<IpAddr>,
}

impl Closed {
    fn between(old: &Gateway, new: Option<&Gateway>) -> Closed {
        let gone = |of: fn(&Gateway) -> Vec<IpAddr>| {
            let kept = new.map(of).unwrap_or_default();
            let mut all = of(old);
            all.retain(|a| !kept.contains(a));
            all
        };
        Closed {
            from: old.addresses.iter().map(|c| c.0).collect(),
            loopback: gone(Gateway::host_loopback),
            own: gone(Gateway::host_own),
        }
    }

    fn is_empty(&self) -> bool {
        self.loopback.is_empty() && self.own.is_empty()
    }

    fn concerns(&self, conn: &Conn) -> bool {
        let (original, reply) = (conn.tuple(Dir::Original), conn.tuple(Dir::Reply));
        let (src, dst) = (original.src(), original.dst());
        let led = reply.src().is_loopback() && self.loopback.contains(&dst);
        (led || self.own.contains(&dst)) && self.from.iter().any(|p| contains(*p, src))
    }
}

impl Plane {
    /// Ends connections to the host that what is wanted doesn't allow any more.
    pub(super) fn close_host(&self, wanted: &Topology) {
        let gateways = self.desired.networks.iter();
        let gateways = gateways.filter_map(|(name, n)| Some((name, n.gateway.as_ref()?)));
        for (name, old) in gateways {
            let new = wanted.networks.get(name).and_then(|n| n.gateway.as_ref());
            let closed = Closed::between(old, new);
            if !closed.is_empty() {
                self.end_connections(move |c| closed.concerns(c));
            }
        }
    }
}
