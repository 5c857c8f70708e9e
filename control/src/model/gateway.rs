//! A network's gateway: the router's port in it, with addresses, routes and what it does to packets.

use super::check::Problem;
use super::host::HostUplink;
use super::services::{Advertise, Dhcp, Dns};
use super::{Network, Port, Topology};
use crate::units::{Cidr, Mac, Ports};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use utoipa::ToSchema;
use vswitch_core::bridge::NetworkId;
use vswitch_core::wire::MacAddr;
use vswitch_nat::gateway::{
    GatewayConfig, InterfaceConfig, MAX_ROUTES, Route, SnatConfig, contains,
};
use vswitch_nat::nptv6::Nptv6;
use vswitch_nat::portalloc::Filtering;

/// The gateway of a network. All gateways of a switch are interfaces of one router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Its addresses in the network, with the length of the prefix.
    #[serde(default)]
    pub addresses: Vec<Cidr>,
    /// Hosts of the network beside those of these prefixes. Where there are any, all other addresses are behind the gateway, which
    /// answers ARP and neighbour discovery for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub hosts: Vec<IpAddr>,
    /// Its MAC address; made of the network's name by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Its VLAN, in VLAN-aware networks; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Largest packet it sends into the network, in bytes.
    #[serde(default = "mtu")]
    pub mtu: u32,
    /// The network leads outside: what comes from it gets in only if it was asked for, or is published.
    #[serde(default)]
    pub uplink: bool,
    /// Connections to wherever no route leads leave by sockets of the host, as an ordinary process's do; takes no privilege.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_uplink: Option<HostUplink>,
    /// Source translation of connections that leave by this network; masquerade for an uplink, none for others by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<Nat>,
    /// Prefixes of IPv6 that are translated towards this network, one to one (NPTv6), instead of addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nptv6: Vec<PrefixPair>,
    /// What lies behind routers of this network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<StaticRoute>,
    /// DHCPv4; off by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<Dhcp>,
    /// Router advertisements; off by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ra: Option<Advertise>,
    /// DNS; off by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// Most hosts of a gateway.
const MAX_HOSTS: usize = 256;

/// Source translation (SNAT).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Nat {
    /// No translation.
    pub off: bool,
    /// External addresses; the gateway's own if there are none (masquerade).
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// External ports that may be used, such as `1024-65535`; all by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
    /// Who may send to an external port that is in use.
    pub filtering: NatFiltering,
}

/// Who may send to an external port that is in use (RFC 4787 5).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum NatFiltering {
    /// Anybody.
    EndpointIndependent,
    /// Hosts that were sent to.
    AddressDependent,
    /// Hosts and ports that were sent to.
    #[default]
    AddressAndPortDependent,
}

/// Two prefixes of the same length, of 64 bits at most, that stand for each other (RFC 6296).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PrefixPair {
    /// As hosts inside have it.
    pub internal: Cidr,
    /// As hosts outside see it; it has to be routed to the gateway.
    pub external: Cidr,
}

/// Most pairs of a gateway.
const MAX_PAIRS: usize = 64;

impl PrefixPair {
    fn to_nptv6(&self) -> Result<Nptv6, String> {
        let ((internal, len), (external, other)) = (self.internal.0, self.external.0);
        let (IpAddr::V6(internal), IpAddr::V6(external)) = (internal, external) else {
            let pair = format!("{} and {}", self.internal, self.external);
            return Err(format!("{pair} aren't IPv6 prefixes"));
        };
        if len != other {
            let pair = format!("{} and {}", self.internal, self.external);
            return Err(format!("{pair} are of different lengths"));
        }
        Nptv6::new(internal, external, len).map_err(|e| e.to_string())
    }
}

fn overlap(a: &Cidr, b: &Cidr) -> bool {
    contains((a.0.0, a.0.1.min(b.0.1)), b.0.0)
}

fn mtu() -> u32 {
    1500
}

/// A route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticRoute {
    /// The prefix that is reached; `0.0.0.0/0` and `::/0` are all others.
    pub to: Cidr,
    /// The router, in the network.
    #[schema(value_type = String)]
    pub via: IpAddr,
}

impl Gateway {
    /// Its MAC: the one configured, or a locally administered one of the network's name (FNV-1a).
    #[must_use]
    pub fn mac_in(&self, network: &str) -> MacAddr {
        if let Some(m) = &self.mac {
            return m.0;
        }
        let [.., a, b, c] = crate::fnv::hash(network.bytes()).to_be_bytes();
        MacAddr([0x02, b'v', b's', a, b, c])
    }

    /// Source translation as the data path knows it.
    fn snat(&self) -> Option<SnatConfig> {
        let nat = match &self.nat {
            Some(n) if n.off => return None,
            Some(n) => n.clone(),
            None if self.uplink => Nat::default(),
            None => return None,
        };
        Some(SnatConfig {
            addresses: nat.addresses,
            ports: nat.ports.map_or((1, 65_535), |p| p.0),
            filtering: match nat.filtering {
                NatFiltering::EndpointIndependent => Filtering::EndpointIndependent,
                NatFiltering::AddressDependent => Filtering::AddressDependent,
                NatFiltering::AddressAndPortDependent => Filtering::AddressAndPortDependent,
            },
        })
    }

    fn nptv6(&self) -> Vec<Nptv6> {
        let pairs = self.nptv6.iter();
        pairs.filter_map(|p| p.to_nptv6().ok()).collect()
    }

    fn check_nptv6(&self) -> Result<(), (String, &'static str)> {
        if self.nptv6.len() > MAX_PAIRS {
            let reason = format!("{} pairs of prefixes are too many", self.nptv6.len());
            return Err((reason, "use 64 at most"));
        }
        for (i, p) in self.nptv6.iter().enumerate() {
            if let Err(reason) = p.to_nptv6() {
                return Err((reason, "write a pair like fd00:1:2::/48=2001:db8:1::/48"));
            }
            let earlier = self.nptv6.iter().take(i);
            let same = |o: &&PrefixPair| overlap(&o.internal, &p.internal);
            if let Some(other) = earlier.clone().find(same) {
                let reason = format!("{} overlaps with {}", p.internal, other.internal);
                return Err((reason, "translate each internal prefix once"));
            }
        }
        Ok(())
    }

    pub(super) fn check(&self, name: &str, network: &Network) -> Result<(), Problem> {
        let at = |field: &str, reason: String, remedy: &str| {
            let path = ["networks", name, "gateway", field];
            Err(Problem::at(&path, reason, remedy))
        };
        if self.addresses.is_empty() {
            let reason = "a gateway needs an address".to_owned();
            return at("addresses", reason, "set one like 192.0.2.1/24");
        }
        for c in &self.addresses {
            let (ip, len) = c.0;
            if ip.is_multicast() || ip.is_loopback() || ip.is_unspecified() {
                let reason = format!("{c} can't be a gateway's address");
                return at("addresses", reason, "use a unicast address");
            }
            if let IpAddr::V4(v4) = ip
                && (1..=30).contains(&len)
                && [0, u32::MAX >> len].contains(&(v4.to_bits() & (u32::MAX >> len)))
            {
                let reason = format!("{c} is the prefix itself or its broadcast address");
                return at(
                    "addresses",
                    reason,
                    "use the address of a host in it, such as the first",
                );
            }
            if len == 0 {
                let reason = format!("{c} has a prefix of everything");
                return at(
                    "addresses",
                    reason,
                    "use the length of the network's prefix, such as /24",
                );
            }
        }
        let unfit = |ip: &&IpAddr| ip.is_multicast() || ip.is_loopback() || ip.is_unspecified();
        if let Some(ip) = self.hosts.iter().find(unfit) {
            let reason = format!("{ip} can't be a host's address");
            return at("hosts", reason, "use unicast addresses");
        }
        if self.hosts.len() > MAX_HOSTS {
            let reason = format!("{} are too many", self.hosts.len());
            return at("hosts", reason, "use 256 at most, or a prefix");
        }
        if let Some(m) = &self.mac
            && m.0.is_group()
        {
            let reason = format!("{m} is a group address");
            return at(
                "mac",
                reason,
                "use a unicast address, such as 02:00:00:00:00:01",
            );
        }
        if !(576..=65_535).contains(&self.mtu) {
            let reason = format!("{} is out of range", self.mtu);
            return at("mtu", reason, "use 576 to 65535 bytes");
        }
        if let Some(Nat { ports: Some(p), .. }) = &self.nat
            && p.0.0 == 0
        {
            let reason = "0 is no port to translate to".to_owned();
            return at("nat", reason, "use ports like 1024-65535");
        }
        if self.uplink && self.host_uplink.is_some() {
            let reason = "an uplink's own connections don't leave by the host".to_owned();
            let remedy = "set either uplink or host_uplink";
            return at("host_uplink", reason, remedy);
        }
        if let Some(Err((reason, remedy))) = self.host_uplink.as_ref().map(HostUplink::check) {
            return at("host_uplink", reason, remedy);
        }
        match self.vlan {
            Some(v) if !network.vlan_aware || !(1..=4094).contains(&v) => {
                let reason = format!("VLAN {v} can't be");
                return at("vlan", reason, "use 1 to 4094, in a VLAN-aware network");
            }
            _ => {}
        }
        if let Err((reason, remedy)) = self.check_nptv6() {
            return at("nptv6", reason, remedy);
        }
        if self.routes.len() > MAX_ROUTES {
            let reason = format!("{} are too many", self.routes.len());
            return at("routes", reason, "use 4096 routes at most");
        }
        for r in &self.routes {
            if !self.addresses.iter().any(|a| contains(a.0, r.via)) {
                let reason = format!("{} isn't in a prefix of the gateway's addresses", r.via);
                return at("routes", reason, "name a router of this network");
            }
            if r.to.0.0.is_ipv4() != r.via.is_ipv4() {
                let reason = format!("{} and {} are of different families", r.to, r.via);
                return at("routes", reason, "use a router of the prefix's family");
            }
        }
        Ok(())
    }
}

impl Topology {
    /// No two gateways have an address or a prefix in common.
    pub(super) fn check_gateways(&self) -> Result<(), Problem> {
        let mut seen: Vec<(&String, &Cidr)> = Vec::new();
        for (name, network) in &self.networks {
            let Some(gateway) = &network.gateway else {
                continue;
            };
            gateway.check(name, network)?;
            gateway.check_services(name, self)?;
            gateway.check_host_addresses(name, self)?;
            for a in &gateway.addresses {
                let same =
                    |p: &Port| p.network == *name && p.addresses.iter().any(|b| b.0.0 == a.0.0);
                if let Some((port, _)) = self.ports.iter().find(|(_, p)| same(p)) {
                    return Err(Problem::at(
                        &["networks", name, "gateway", "addresses"],
                        format!("port `{port}` has {} already", a.0.0),
                        "give the gateway an address of its own",
                    ));
                }
                let taken = seen.iter().find(|(o, b)| *o != name && overlap(a, b));
                if let Some((other, b)) = taken {
                    return Err(Problem::at(
                        &["networks", name, "gateway", "addresses"],
                        format!("{a} overlaps with {b} of network `{other}`"),
                        "give each network a prefix of its own",
                    ));
                }
                seen.push((name, a));
            }
        }
        self.check_external_prefixes(&seen)
    }

    /// What is seen outside leads to one place only.
    fn check_external_prefixes(&self, addresses: &[(&String, &Cidr)]) -> Result<(), Problem> {
        let mut seen: Vec<(&String, &Cidr)> = addresses.to_vec();
        for (name, network) in &self.networks {
            for p in network.gateway.iter().flat_map(|g| &g.nptv6) {
                if let Some((other, taken)) = seen.iter().find(|(_, b)| overlap(&p.external, b)) {
                    return Err(Problem::at(
                        &["networks", name, "gateway", "nptv6"],
                        format!("{} overlaps with {taken} of network `{other}`", p.external),
                        "translate to a prefix that is routed to the gateway and used for nothing else",
                    ));
                }
                seen.push((name, &p.external));
            }
        }
        Ok(())
    }

    /// The router as the data path knows it.
    #[must_use]
    pub fn to_gateway(&self, id: impl Fn(&str) -> Option<NetworkId>) -> GatewayConfig {
        let mut config = GatewayConfig {
            published: self.published(&id),
            conntrack: self.conntrack.to_config(),
            ..GatewayConfig::default()
        };
        for (name, network) in &self.networks {
            let (Some(g), Some(network_id)) = (&network.gateway, id(name)) else {
                continue;
            };
            let vlan = if network.vlan_aware {
                g.vlan.unwrap_or(1)
            } else {
                0
            };
            config.interfaces.push(InterfaceConfig {
                network: network_id,
                vid: vlan,
                mac: g.mac_in(name),
                addresses: g.addresses.iter().map(|c| c.0).collect(),
                hosts: g.hosts.clone(),
                mtu: g.mtu,
                uplink: g.uplink,
                host: g.host_uplink.as_ref().map(HostUplink::to_config),
                snat: g.snat(),
                nptv6: g.nptv6(),
            });
            config.routes.extend(g.routes.iter().map(|r| Route {
                to: r.to.0,
                via: Some(r.via),
                network: network_id,
            }));
        }
        config
    }
}
