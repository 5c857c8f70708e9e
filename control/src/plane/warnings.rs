//! What is configured and does nothing as things stand: told by the views, so that who has asked for it sees it at once.
//!
//! None of it is refused, for the host's addresses, containers and their networks come and go.

use super::Plane;
use crate::model::{HostUplink, PublishedPort, Topology};
use std::io;
use std::net::{IpAddr, UdpSocket};
use vswitch_nat::gateway::contains;

/// Where sockets of the host are to leave from that it doesn't have.
pub(crate) fn lacking(uplink: &HostUplink) -> Vec<String> {
    let v4 = uplink.outbound_addr.map(IpAddr::from);
    let v6 = uplink.outbound_addr6.map(IpAddr::from);
    let is_missing = |ip: &IpAddr| {
        // The kernel itself says whether it is one of its own.
        let tried = UdpSocket::bind((*ip, 0));
        tried.is_err_and(|e| e.kind() == io::ErrorKind::AddrNotAvailable)
    };
    let addresses = v4.into_iter().chain(v6).filter(is_missing).map(|ip| {
        format!("the host has no address {ip} (yet): what is to leave from it leads nowhere; `ip address` shows those it has")
    });
    let interface = uplink.outbound_interface.as_deref();
    let interface = interface.filter(|n| nix::net::if_::if_nametoindex(*n).is_err());
    let interface = interface.map(|n| {
        format!("the host has no interface `{n}` (yet): what is to leave by it leads nowhere; `ip link` shows those it has")
    });
    addresses.chain(interface).collect()
}

impl Topology {
    /// Whether an address is behind some gateway, or a port has it.
    fn knows(&self, ip: IpAddr) -> bool {
        let gateways = self.networks.values().filter_map(|n| n.gateway.as_ref());
        let behind = |g: &crate::model::Gateway| {
            let mut reached = g.addresses.iter().chain(g.routes.iter().map(|r| &r.to));
            reached.any(|c| contains(c.0, ip)) || g.hosts.contains(&ip)
        };
        let has = |p: &crate::model::Port| p.addresses.iter().any(|a| a.0.0 == ip);
        gateways.into_iter().any(behind) || self.ports.values().any(has)
    }
}

impl Plane {
    /// What is to be known of a network.
    pub(super) fn network_warnings(&self, name: &str) -> Vec<String> {
        let network = self.desired.networks.get(name);
        let uplink = network.and_then(|n| n.gateway.as_ref()?.host_uplink.as_ref());
        uplink.map(lacking).unwrap_or_default()
    }

    /// What is to be known of a published port.
    pub(super) fn published_warnings(&self, name: &str, port: &PublishedPort) -> Vec<String> {
        let nowhere = port.to.iter().filter(|b| !self.desired.knows(b.0.address));
        let nowhere = nowhere.map(|b| {
            format!(
                "no network has {}: nothing gets there; `vswitchctl gateway show` and `port show` have the addresses there are",
                b.0.address
            )
        });
        let others = self.desired.publish.iter().filter(|(n, _)| *n != name);
        let others = others.filter(|(_, p)| port.competes(p)).map(|(n, p)| {
            let (from, to) = (port.ports.0.0.max(p.ports.0.0), port.ports.0.1.min(p.ports.0.1));
            let first = if name < n.as_str() { name } else { n };
            format!(
                "`{n}` looks for ports {from}-{to} too: of one that both containers listen on, `{first}` has the host's; give each a range of its own"
            )
        });
        nowhere.chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Ports;

    #[test]
    fn what_the_host_lacks_is_found() {
        let uplink = HostUplink {
            outbound_addr: Some([192, 0, 2, 77].into()),
            outbound_interface: Some("nowhere0".into()),
            ..HostUplink::default()
        };
        let told = lacking(&uplink);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("192.0.2.77") && told[1].contains("nowhere0"));
        let own = HostUplink {
            outbound_addr: Some([127, 0, 0, 1].into()),
            outbound_interface: Some("lo".into()),
            ..HostUplink::default()
        };
        assert!(lacking(&own).is_empty());
    }

    #[test]
    fn only_ranges_that_meet_compete() {
        let auto = |from, to| PublishedPort {
            auto: true,
            ..PublishedPort::new(Ports((from, to)), vec!["192.0.2.10".parse().unwrap()])
        };
        assert!(auto(1, 65_535).competes(&auto(80, 80)));
        assert!(!auto(1, 79).competes(&auto(80, 90)));
        let one = PublishedPort {
            address: Some([127, 0, 0, 1].into()),
            ..auto(80, 80)
        };
        assert!(one.competes(&auto(80, 80)));
    }
}
