//! Published ports: an address and port of a gateway, or of the host, that stand for a container's.
//!
//! Where a gateway has a host uplink, a port published for a container behind it is one of the host's too: a socket that listens there,
//! unless it is published at an address of a gateway or for a network alone.

use super::Topology;
use super::check::Problem;
use crate::units::{BackendAddress, Ports};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use utoipa::ToSchema;
use vswitch_core::bridge::NetworkId;
use vswitch_core::sys::listen::Interface;
use vswitch_nat::gateway::{Backend, MAX_BACKENDS, MAX_PORTS, Publish, contains};
use vswitch_nat::{Endpoint, HostPort};

/// Protocols with ports.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ToSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// A published port or range of ports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// Ports of the gateway, or of the host; 0 is one of the host's that is free, and then stays.
    pub ports: Ports,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Where they lead: `192.0.2.10:80`, or an address alone for the same port; of several one is chosen per connection,
    /// with a weight as in `192.0.2.10:80*3`.
    pub to: Vec<BackendAddress>,
    /// The gateway's address, or one of the host; every one by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The interface of the host that clients come by; every one by default. Takes no privilege from Linux 5.7 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The network it is reached from; every one by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Of the ports, only those that the container listens on and the host doesn't, as it is found once a second.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto: bool,
    /// TCP connections from the host's loopback go straight into the container's namespace, without crossing its network, where
    /// policy accepts them; takes that the daemon may enter it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub splice: bool,
    /// The container's network namespace, for these two: a path, a name under /run/netns, or `pid:NUMBER`. By default that of
    /// the port that has the address they lead to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
}

impl PublishedPort {
    /// Ports that lead to containers, with all else as it is by default.
    #[must_use]
    pub fn new(ports: Ports, to: Vec<BackendAddress>) -> PublishedPort {
        PublishedPort {
            ports,
            protocol: Protocol::Tcp,
            to,
            address: None,
            interface: None,
            network: None,
            auto: false,
            splice: false,
            netns: None,
        }
    }
}

impl PublishedPort {
    /// Whether both look for ports, and may find the same one for the same address of the host.
    pub(crate) fn competes(&self, other: &PublishedPort) -> bool {
        let ranges = self.ports.0.0 <= other.ports.0.1 && other.ports.0.0 <= self.ports.0.1;
        let any = |p: &PublishedPort| p.address.is_none_or(|ip| ip.is_unspecified());
        let at = self.address == other.address || any(self) || any(other);
        let apart = self.interface.is_some() && other.interface.is_some();
        let at = at && (!apart || self.interface == other.interface);
        let family = |b: &BackendAddress| {
            let mut others = other.to.iter();
            others.any(|c| b.0.address.is_ipv4() == c.0.address.is_ipv4())
        };
        let families = self.to.iter().any(family);
        self.auto && other.auto && self.protocol == other.protocol && ranges && at && families
    }

    /// Where a connection to one of the host's addresses leads, if that is one place.
    pub(crate) fn target(&self, at: SocketAddr) -> Option<SocketAddr> {
        let b = self
            .to
            .iter()
            .find(|b| b.0.address.is_ipv4() == at.is_ipv4())?;
        let (first, _) = self.ports.0;
        let port = b.0.port.unwrap_or(first);
        let port = port.checked_add(at.port().checked_sub(first)?)?;
        Some(SocketAddr::new(b.0.address, port))
    }
}

/// Ports that containers are found to listen on, by the name that they are published under.
pub(crate) type Found = BTreeMap<String, BTreeSet<u16>>;

impl Topology {
    pub(super) fn check_publish(&self) -> Result<(), Problem> {
        let mut count = 0;
        let mut seen: Vec<(&String, &PublishedPort)> = Vec::new();
        for (name, p) in &self.publish {
            let at = |field: &str, reason: String, remedy: &str| {
                Err(Problem::at(&["publish", name, field], reason, remedy))
            };
            if let Some(network) = &p.network {
                self.known_network(network, &["publish", name, "network"])?;
            }
            if p.to.is_empty() {
                let reason = "it leads nowhere".to_owned();
                return at("to", reason, "set a back end such as 192.0.2.10:80");
            }
            if p.to.len() > MAX_BACKENDS {
                let reason = format!("{} back ends are too many", p.to.len());
                return at("to", reason, "name 64 at most");
            }
            let (from, to) = p.ports.0;
            if from == 0 && self.host_addresses(p).is_empty() {
                let reason = "0 is a port of the host's choice, and it isn't a port of the host's"
                    .to_owned();
                let remedy = "name a port, or give the container's gateway a host uplink";
                return at("ports", reason, remedy);
            }
            if let Some(name) = &p.interface {
                if Interface::new(name).is_none() {
                    let reason = format!("`{name}` can't be the name of an interface");
                    return at("interface", reason, "name one of the host's, such as eth0");
                }
                if self.host_addresses(p).is_empty() {
                    let reason = "it isn't a port of the host's".to_owned();
                    let remedy =
                        "leave interface out, or give the container's gateway a host uplink";
                    return at("interface", reason, remedy);
                }
            }
            if (p.auto || p.splice)
                && let Err((field, reason, remedy)) = self.check_inside(p)
            {
                return at(field, reason, remedy);
            }
            if !p.auto {
                count += usize::from(to - from) + 1;
            }
            if count > MAX_PORTS {
                let reason = format!("more than {MAX_PORTS} ports are published");
                return at("ports", reason, "publish smaller ranges");
            }
            for b in &p.to {
                let first = b.0.port.unwrap_or(from);
                if u32::from(first) + u32::from(to - from) > 65_535 {
                    let reason = format!("the range goes beyond port 65535 at {b}");
                    return at("to", reason, "use a lower port there, or a smaller range");
                }
                if p.address
                    .is_some_and(|a| a.is_ipv4() != b.0.address.is_ipv4())
                {
                    let reason = format!("{b} is of another family than the published address");
                    return at("to", reason, "use addresses of one family");
                }
            }
            // By which interface something has come the gateway doesn't know.
            let alike = |q: &PublishedPort| {
                q.interface.is_some()
                    && p.interface.is_some()
                    && q.interface != p.interface
                    && (&q.to, &q.ports) == (&p.to, &p.ports)
            };
            let clash = |q: &PublishedPort| {
                q.protocol == p.protocol
                    && !alike(q)
                    && q.address == p.address
                    && from != 0
                    && !p.auto
                    && !q.auto
                    && (q.network == p.network || q.network.is_none() || p.network.is_none())
                    && q.ports.0.0 <= to
                    && from <= q.ports.0.1
                    && q.to.iter().any(|b| {
                        p.to.iter()
                            .any(|c| b.0.address.is_ipv4() == c.0.address.is_ipv4())
                    })
            };
            if let Some((other, _)) = seen.iter().find(|(_, q)| clash(q)) {
                let reason = format!(
                    "`{other}` and `{name}` would both have ports of {}",
                    p.ports
                );
                return at(
                    "ports",
                    reason,
                    "publish other ports, or at another address",
                );
            }
            seen.push((name, p));
        }
        Ok(())
    }

    /// What is looked into, or connected to inside, is one container of which that can be done.
    fn check_inside(&self, p: &PublishedPort) -> Result<(), (&'static str, String, &'static str)> {
        let field = if p.auto { "auto" } else { "splice" };
        if self.host_addresses(p).is_empty() {
            let reason = "that is for ports of the host only, and it isn't one".to_owned();
            let remedy = "give the container's gateway a host uplink, and leave out network; or delete the published port first";
            return Err((field, reason, remedy));
        }
        if p.splice && p.protocol != Protocol::Tcp {
            let reason = "only connections of TCP are spliced".to_owned();
            return Err(("splice", reason, "leave it out"));
        }
        let four = p.to.iter().filter(|b| b.0.address.is_ipv4()).count();
        if four > 1 || p.to.len() - four > 1 {
            let reason = "several back ends aren't one container".to_owned();
            return Err(("to", reason, "name one address of each family"));
        }
        Ok(())
    }

    /// Why a published port that has to do with its container's namespace has nothing to do, and the remedy.
    pub(crate) fn lacks_namespace(
        &self,
        p: &PublishedPort,
    ) -> Option<(&'static str, &'static str)> {
        let lacks = (p.auto || p.splice) && self.namespace_of(p).is_none();
        lacks.then_some((
            "the container's namespace isn't known",
            "set netns, or the addresses and netns of the container's port",
        ))
    }

    /// The namespace of the container that a published port leads to, as far as it is known.
    pub(crate) fn namespace_of<'a>(&'a self, p: &'a PublishedPort) -> Option<&'a str> {
        let has = |port: &&super::Port| {
            let mut own = port.addresses.iter();
            own.any(|a| p.to.iter().any(|b| b.0.address == a.0.0))
        };
        let port = || self.ports.values().find(has)?.netns.as_deref();
        p.netns.as_deref().or_else(port)
    }

    /// Published ports with each of those found in the place of what is to be looked for; named `NAME/PORT`. What is published otherwise
    /// comes first, and of several that have found the same the first by name.
    pub(crate) fn with_found(&self, found: &Found) -> Topology {
        let mut all = self.clone();
        all.publish.retain(|_, p| !p.auto);
        let taken: BTreeSet<(Protocol, u16)> = all
            .publish
            .values()
            .flat_map(|p| (p.ports.0.0..=p.ports.0.1).map(|n| (p.protocol, n)))
            .collect();
        let mut had: Vec<(&PublishedPort, u16)> = Vec::new();
        for (name, p) in self.publish.iter().filter(|(_, p)| p.auto) {
            let (from, to) = p.ports.0;
            let here = found.get(name).into_iter().flatten().copied();
            for n in here.filter(|n| (from..=to).contains(n) && !taken.contains(&(p.protocol, *n)))
            {
                let mut one = p.clone();
                one.ports = Ports((n, n));
                if had.iter().any(|(q, m)| n == *m && p.competes(q)) {
                    continue;
                }
                had.push((p, n));
                for b in &mut one.to {
                    b.0.port = b.0.port.and_then(|b| b.checked_add(n - from));
                }
                all.publish.insert(format!("{name}/{n}"), one);
            }
        }
        all
    }

    /// The addresses of the host that a published port is at; none if it isn't the host's.
    fn host_addresses(&self, p: &PublishedPort) -> Vec<IpAddr> {
        if p.network.is_some() || p.protocol == Protocol::Sctp {
            return Vec::new();
        }
        let gateways = || self.networks.values().filter_map(|n| n.gateway.as_ref());
        let is_gateways = |a: &IpAddr| {
            gateways().any(|g| {
                let own = g.addresses.iter().any(|c| c.0.0 == *a);
                own || g.nat.as_ref().is_some_and(|n| n.addresses.contains(a))
            })
        };
        if p.address.as_ref().is_some_and(is_gateways) {
            return Vec::new();
        }
        let behind = |b: &IpAddr| {
            gateways().filter(|g| g.host_uplink.is_some()).any(|g| {
                let mut reached = g.addresses.iter().chain(g.routes.iter().map(|r| &r.to));
                reached.any(|c| contains(c.0, *b)) || g.hosts.contains(b)
            })
        };
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        any.into_iter()
            .filter(|a| {
                let mut to = p.to.iter().map(|b| b.0.address);
                to.any(|b| b.is_ipv4() == a.is_ipv4() && behind(&b))
            })
            .map(|a| p.address.unwrap_or(a))
            .collect()
    }

    /// The ports of the host that stand for containers', and the names that they are published under.
    pub(crate) fn host_ports(&self) -> Vec<(&str, HostPort)> {
        let mut all = Vec::new();
        for (name, p) in &self.publish {
            let (from, to) = p.ports.0;
            let proto = p.protocol.number();
            for a in self.host_addresses(p) {
                let interface = p.interface.as_deref().and_then(Interface::new);
                let port = |n| HostPort {
                    proto,
                    at: SocketAddr::new(a, n),
                    interface,
                };
                all.extend((from..=to).map(|n| (name.as_str(), port(n))));
            }
        }
        all
    }

    pub(super) fn published(&self, id: impl Fn(&str) -> Option<NetworkId>) -> Vec<Publish> {
        let publish = |p: &PublishedPort| Publish {
            proto: p.protocol.number(),
            // The back ends tell the family.
            address: p.address.filter(|a| !a.is_unspecified()),
            network: p.network.as_deref().and_then(&id),
            ports: p.ports.0.0..=p.ports.0.1,
            backends: p
                .to
                .iter()
                .map(|b| Backend {
                    to: Endpoint::new(b.0.address, b.0.port.unwrap_or(p.ports.0.0)),
                    weight: b.0.weight,
                })
                .collect(),
        };
        self.publish.values().map(publish).collect()
    }
}
