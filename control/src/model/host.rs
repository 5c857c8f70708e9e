//! The way out by sockets of the host: where they leave from, and what of the host itself containers reach.

use super::check::Problem;
use super::{Gateway, Topology};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use utoipa::ToSchema;
use vswitch_core::bridge::NetworkId;
use vswitch_nat::gateway::ServicesConfig;
use vswitch_nat::{HostConfig, Source};

/// Most addresses that stand for the host.
const MAX_HOST_ADDRESSES: usize = 8;
/// Names of the host's search list that clients are told of (the C library took six for long).
const MAX_SEARCH: usize = 6;
/// How Podman and Docker call the host.
const HOST_NAMES: [&str; 2] = ["host.containers.internal", "host.docker.internal"];

/// The way out by sockets of the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HostUplink {
    /// TCP and UDP to the gateway's own addresses reach the host's loopback (127.0.0.1, ::1), but for what the gateway serves itself. The
    /// gateway's DNS then knows the host as `host.containers.internal` and `host.docker.internal`.
    pub loopback: bool,
    /// Addresses that stand for the host's loopback, where that is reached, instead of the gateway's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// Addresses that stand for the host's own address outside: what it offers to all is reached there, its loopback isn't.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub own_addresses: Vec<IpAddr>,
    /// Link-local addresses of IPv4 are reached (169.254.0.0/16, where clouds have their metadata service).
    pub link_local: bool,
    /// Streams of containers that hand over a seccomp listener are sockets of the host from the beginning, where policy and routes
    /// allow it: they cross no switch.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub socket_switching: bool,
    /// Source address of IPv4, one of the host's; what its routes say by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub outbound_addr: Option<Ipv4Addr>,
    /// Source address of IPv6.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub outbound_addr6: Option<Ipv6Addr>,
    /// Interface of the host that everything leaves by, but for what is towards its loopback. Takes no privilege from Linux 5.7 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_interface: Option<String>,
}

impl HostUplink {
    /// Where its sockets leave from.
    #[must_use]
    pub fn source(&self) -> Source {
        Source {
            v4: self.outbound_addr,
            v6: self.outbound_addr6,
            interface: self.outbound_interface.clone(),
        }
    }

    /// Addresses that stand for the host, of either kind.
    fn stand_for_host(&self) -> impl Iterator<Item = &IpAddr> + Clone {
        self.addresses.iter().chain(&self.own_addresses)
    }

    /// As the data path knows it.
    pub(super) fn to_config(&self) -> HostConfig {
        HostConfig {
            loopback: self.loopback,
            addresses: self.addresses.clone(),
            own_addresses: self.own_addresses.clone(),
            link_local: self.link_local,
            source: self.source(),
        }
    }

    pub(super) fn check(&self) -> Result<(), (String, &'static str)> {
        let all = self.stand_for_host();
        let several = all.clone().count();
        if several > MAX_HOST_ADDRESSES {
            let reason = format!("{several} addresses of the host are too many");
            return Err((reason, "use 8 at most"));
        }
        let odd = |a: &&IpAddr| a.is_unspecified() || a.is_loopback() || a.is_multicast();
        if let Some(a) = all.clone().find(odd) {
            let reason = format!("{a} can't stand for the host");
            return Err((reason, "use a unicast address, such as 169.254.1.2"));
        }
        let v4 = self.outbound_addr.map(IpAddr::from);
        let v6 = self.outbound_addr6.map(IpAddr::from);
        let unfit = |a: &IpAddr| a.is_unspecified() || a.is_loopback() || a.is_multicast();
        if let Some(a) = v4.into_iter().chain(v6).find(unfit) {
            let reason = format!("{a} can't be a source address outside");
            return Err((reason, "use an address of the host"));
        }
        let name = self.outbound_interface.as_deref();
        let odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        if let Some(name) = name
            && (name.is_empty() || name.len() > 15 || name.contains(odd))
        {
            let reason = format!("`{name}` can't be the name of an interface");
            return Err((reason, "name one of the host's, such as eth0"));
        }
        Ok(())
    }
}

impl Gateway {
    /// Whether its clients' names are looked up as the host's are: by the host's resolvers, and outside by its sockets.
    fn resolves_as_host(&self) -> bool {
        let dns = self.dns.as_ref().filter(|d| d.upstream.is_empty());
        self.host_uplink.is_some() && dns.is_some()
    }

    /// Addresses that stand for the host's loopback.
    pub(crate) fn host_loopback(&self) -> Vec<IpAddr> {
        match &self.host_uplink {
            Some(h) if h.loopback && h.addresses.is_empty() => {
                self.addresses.iter().map(|c| c.0.0).collect()
            }
            Some(h) if h.loopback => h.addresses.clone(),
            _ => Vec::new(),
        }
    }

    /// Addresses that stand for the host's own address outside.
    pub(crate) fn host_own(&self) -> Vec<IpAddr> {
        let host = self.host_uplink.as_ref();
        host.map_or(Vec::new(), |h| h.own_addresses.clone())
    }

    /// Names of the host, where containers may reach it.
    pub(super) fn host_names(&self) -> Vec<(String, Vec<IpAddr>)> {
        let mut at = self.host_loopback();
        if at.is_empty() {
            at = self.host_own();
        }
        if at.is_empty() {
            return Vec::new();
        }
        HOST_NAMES.map(|n| (n.to_owned(), at.clone())).to_vec()
    }

    /// No container has an address that stands for the host.
    pub(super) fn check_host_addresses(&self, name: &str, all: &Topology) -> Result<(), Problem> {
        for a in self.host_uplink.iter().flat_map(HostUplink::stand_for_host) {
            let mut ports = all.ports.iter().filter(|(_, p)| p.network == name);
            if let Some((port, _)) = ports.find(|(_, p)| p.addresses.iter().any(|b| b.0.0 == *a)) {
                return Err(Problem::at(
                    &["networks", name, "gateway", "host_uplink"],
                    format!("port `{port}` has {a} already"),
                    "have another address stand for the host",
                ));
            }
        }
        Ok(())
    }
}

impl Topology {
    /// Adds the host's search list to what clients are told of, behind the network's domain, where no other list is configured and names are
    /// looked up as the host does.
    pub(crate) fn add_search(
        &self,
        config: &mut ServicesConfig,
        id: impl Fn(&str) -> Option<NetworkId>,
        search: &[String],
    ) {
        for (name, network) in &self.networks {
            let gateway = network.gateway.as_ref();
            let Some(gateway) = gateway.filter(|g| g.resolves_as_host()) else {
                continue;
            };
            let id = id(name);
            let of = config.networks.iter_mut();
            for s in of.filter(|s| Some(s.network) == id) {
                let add = |list: &mut Vec<String>| {
                    let new = search.iter().filter(|n| !list.contains(n));
                    let new: Vec<String> = new.take(MAX_SEARCH).cloned().collect();
                    list.extend(new);
                };
                let dhcp = gateway.dhcp.as_ref().filter(|d| d.search.is_empty());
                if let (Some(_), Some(told)) = (dhcp, &mut s.dhcp) {
                    add(&mut told.search);
                }
                if gateway.ra.as_ref().is_some_and(|r| r.search.is_empty()) {
                    s.ra.iter_mut().for_each(|told| add(&mut told.search));
                    s.dhcp6.iter_mut().for_each(|told| add(&mut told.search));
                }
            }
        }
    }
}
