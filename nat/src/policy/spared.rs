//! What rules don't stop: that without which a network isn't one, and names.

use super::compile::Compiled;
use super::rule::{Decision, Key};
use crate::conntrack::proto;
use std::net::IpAddr;

const IGMP: u8 = 2;
const DNS: u16 = 53;

/// Whether a message passes whatever the rules are: IGMP, DHCP, DHCPv6, MLD, neighbour and router discovery.
#[must_use]
pub fn is_exempt(key: &Key) -> bool {
    let v4 = matches!(key.dst, IpAddr::V4(_));
    match key.proto {
        IGMP => v4,
        proto::ICMP6 => is_exempt_icmp6(key.icmp.0),
        proto::UDP => is_exempt_udp(key.source_port, key.port),
        _ => false,
    }
}

/// MLD, neighbour and router discovery (RFC 2710, RFC 3810, RFC 4861) by type.
pub(crate) fn is_exempt_icmp6(kind: u8) -> bool {
    matches!(kind, 130..=137 | 143)
}

/// DHCP and DHCPv6 by ports.
pub(crate) fn is_exempt_udp(from: u16, to: u16) -> bool {
    matches!((from, to), (67 | 68, 67 | 68) | (546 | 547, 546 | 547))
}

impl Compiled {
    /// Whether this is a question to the gateway's DNS that passes all the same: without it no list of names allows anything, so
    /// only a rule that says which protocol or ports refuses it.
    #[must_use]
    pub fn spares_dns(&self, decision: &Decision, key: &Key) -> bool {
        let rule = decision.rule.and_then(|r| self.rule(r));
        let is_general = rule.is_none_or(|r| r.protocols.is_empty() && r.ports.is_empty());
        is_general && key.port == DNS && matches!(key.proto, proto::UDP | proto::TCP)
    }
}
