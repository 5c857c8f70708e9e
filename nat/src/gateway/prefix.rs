//! Prefix translation of IPv6 (NPTv6, RFC 6296) at the gateway.
//!
//! # Theory of operation
//!
//! A network towards which prefixes are translated has pairs of them. A connection that leaves by it from an internal prefix has the
//! external one as its source, whoever comes to an address of an external prefix is led to the internal one, and a host inside that
//! does so hairpins, with its own external address. The mapping is an algorithm: no
//! port or table entry is taken, and a connection that was forgotten goes on with the same addresses. Connections are tracked all the
//! same, so that policy holds and what is rewritten is compiled once; translation doesn't let anybody in.
//!
//! An address of a prefix that can't be mapped is answered with destination unreachable.

use super::{Gateway, GatewayConfig, InterfaceConfig};
use crate::conntrack::{Conn, Cursor, Dir};
use crate::nptv6::Nptv6;
use std::net::IpAddr;
use vswitch_core::bridge::NetworkId;
use vswitch_core::clock::Nanos;

/// What prefix translation makes of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapped {
    /// It isn't of a prefix.
    Not,
    /// The other side's address, and the network towards which it is translated.
    To(IpAddr, NetworkId),
    /// It is of a prefix, but no address of the other side.
    Nowhere,
}

type Pairs = Vec<(NetworkId, Nptv6)>;

fn pairs<'a>(interfaces: impl Iterator<Item = &'a InterfaceConfig>) -> Pairs {
    let of = |c: &'a InterfaceConfig| c.nptv6.iter().map(|n| (c.network, *n));
    interfaces.flat_map(of).collect()
}

impl Gateway {
    /// The internal address of an external destination.
    pub(super) fn inside_of(&self, dst: IpAddr) -> Mapped {
        let IpAddr::V6(dst) = dst else {
            return Mapped::Not;
        };
        let mut pairs = self.prefixes.iter();
        match pairs.find(|(_, n)| n.has_external(dst)) {
            None => Mapped::Not,
            Some((network, n)) => match n.inbound(dst).map(IpAddr::V6) {
                // The gateway's own addresses are those it has itself.
                Some(inside) if !self.is_own(inside) => Mapped::To(inside, *network),
                _ => Mapped::Nowhere,
            },
        }
    }

    /// The external address of an internal source that leaves by a network.
    pub(super) fn outside_of(&self, out: NetworkId, src: IpAddr) -> Mapped {
        let IpAddr::V6(src) = src else {
            return Mapped::Not;
        };
        let mut pairs = self.prefixes.iter();
        match pairs.find(|(network, n)| *network == out && n.has_internal(src)) {
            None => Mapped::Not,
            Some((network, n)) => {
                let outside = n.outbound(src);
                outside.map_or(Mapped::Nowhere, |a| Mapped::To(a.into(), *network))
            }
        }
    }

    /// Takes up the prefixes; connections by those that have gone end, for they would go on with addresses that lead nowhere.
    pub(super) fn configure_prefixes(&mut self, now: Nanos, config: &GatewayConfig) {
        let new = pairs(config.interfaces.iter());
        let old = std::mem::replace(&mut self.prefixes, new);
        let gone: Pairs = old
            .into_iter()
            .filter(|p| !self.prefixes.contains(p))
            .collect();
        if gone.is_empty() {
            return;
        }
        let external = |ip: IpAddr| match ip {
            IpAddr::V6(ip) => gone.iter().any(|(_, n)| n.has_external(ip)),
            IpAddr::V4(_) => false,
        };
        let mut by_them = |c: &Conn| {
            external(c.tuple(Dir::Original).dst()) || external(c.tuple(Dir::Reply).dst())
        };
        let mut from = Some(Cursor::default());
        while let Some(at) = from {
            from = self.flush_connections(at, usize::MAX, now, &mut by_them).1;
        }
    }
}
