//! Published ports: an address and port of a gateway that stand for a container's.

use super::Topology;
use super::check::Problem;
use crate::units::{BackendAddress, Ports};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use utoipa::ToSchema;
use vswitch_core::bridge::NetworkId;
use vswitch_nat::Endpoint;
use vswitch_nat::gateway::{Backend, MAX_BACKENDS, MAX_PORTS, Publish};

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
    /// Ports of the gateway.
    pub ports: Ports,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Where they lead: `192.0.2.10:80`, or an address alone for the same port; of several one is chosen per connection,
    /// with a weight as in `192.0.2.10:80*3`.
    pub to: Vec<BackendAddress>,
    /// The gateway's address; every one by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The network it is reached from; every one by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

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
            count += usize::from(to - from) + 1;
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
            let clash = |q: &PublishedPort| {
                q.protocol == p.protocol
                    && q.address == p.address
                    && (q.network == p.network || q.network.is_none() || p.network.is_none())
                    && q.ports.0.0 <= to
                    && from <= q.ports.0.1
                    && q.to.iter().any(|b| {
                        p.to.iter()
                            .any(|c| b.0.address.is_ipv4() == c.0.address.is_ipv4())
                    })
            };
            if let Some((other, _)) = seen.iter().find(|(_, q)| clash(q)) {
                let reason = format!("`{other}` has ports of {} already", p.ports);
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

    pub(super) fn published(&self, id: impl Fn(&str) -> Option<NetworkId>) -> Vec<Publish> {
        let publish = |p: &PublishedPort| Publish {
            proto: p.protocol.number(),
            address: p.address,
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
