//! What a network's gateway serves: DHCP, router advertisements and DNS.
//!
//! Each is a table of the gateway; being there turns it on. What isn't said follows from the gateway: clients are told its
//! addresses as router and DNS server, its MTU, and the zone's domain. A port's configured address is its static lease.

use super::check::Problem;
use super::{Gateway, Topology};
use crate::units::{Cidr, Mac, Span};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;
use utoipa::ToSchema;
use vswitch_core::bridge::NetworkId;
use vswitch_core::clock::Nanos;
use vswitch_core::port::PortId;
use vswitch_core::wire::MacAddr;
use vswitch_nat::gateway::{NetworkServices, ServicesConfig, contains};
use vswitch_nat::service::dhcp4::{self, StaticFor, StaticLease};
use vswitch_nat::service::dns::{self, Host, Zone, ZoneConfig};
use vswitch_nat::service::{dhcp6, host_label, ra};

/// TTL of names of containers, and how long it may be kept that there is none.
const TTL: u32 = 5;
/// Most resolvers of a network.
const MAX_UPSTREAM: usize = 8;

/// A range of addresses, `192.0.2.100-192.0.2.200`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct Range(pub Ipv4Addr, pub Ipv4Addr);

impl FromStr for Range {
    type Err = String;
    fn from_str(text: &str) -> Result<Range, String> {
        let wrong = || format!("`{text}` is not a range: write it like 192.0.2.100-192.0.2.200");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let address = |t: &str| t.trim().parse().map_err(|_| wrong());
        Ok(Range(address(first)?, address(last)?))
    }
}

impl TryFrom<String> for Range {
    type Error = String;
    fn try_from(text: String) -> Result<Range, String> {
        text.parse()
    }
}

impl From<Range> for String {
    fn from(range: Range) -> String {
        range.to_string()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// DHCPv4.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dhcp {
    /// Ranges of addresses to give from.
    pub pools: Vec<Range>,
    /// Lease time.
    pub lease: Span,
    /// Fixed addresses, beside those that ports have by configuration.
    #[serde(rename = "static", skip_serializing_if = "Vec::is_empty")]
    pub fixed: Vec<FixedLease>,
    /// Default router told to clients; the gateway by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub router: Option<Ipv4Addr>,
    /// DNS servers told to clients; the gateway by default, if it serves DNS.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<Ipv4Addr>,
    /// Domain told to clients; that of the network's DNS by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search list told to clients that ask for one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// MTU told to clients; the gateway's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

impl Default for Dhcp {
    fn default() -> Dhcp {
        Dhcp {
            pools: Vec::new(),
            lease: Span(Duration::from_secs(12 * 3600)),
            fixed: Vec::new(),
            router: None,
            dns: Vec::new(),
            domain: None,
            search: Vec::new(),
            mtu: None,
        }
    }
}

/// A fixed address of a port or a MAC address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FixedLease {
    /// Whoever asks at this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The interface with this MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The address.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// Host name told to the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Router advertisements of the gateway's IPv6 prefixes, with stateless DHCPv6 where DNS is served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Advertise {
    /// The gateway isn't a default router.
    pub no_default_route: bool,
    /// How long the gateway is a default router, up to 150m; 30 minutes by default, 0s: it isn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Span>,
    /// MTU told to hosts; the gateway's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Prefixes told to hosts; those of the gateway's addresses by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<AdvertisedPrefix>,
    /// Flag M: addresses come by DHCPv6, from a server of somebody else.
    pub managed: bool,
    /// Flag O: other configuration comes by DHCPv6; set by default where DNS is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<bool>,
    /// DNS servers (RDNSS); the gateway by default, if it serves DNS.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<Ipv6Addr>,
    /// DNS search list (DNSSL); the domain of the network's DNS by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
}

/// A prefix in router advertisements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdvertisedPrefix {
    /// The prefix.
    pub prefix: Cidr,
    /// Flag L: its addresses are reached directly.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub on_link: bool,
    /// Flag A: hosts make addresses of it (SLAAC).
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub autonomous: bool,
    /// How long addresses of it are valid; 720h by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<Span>,
    /// How long they are preferred; 168h by default, or as long as they are valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred: Option<Span>,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_true(value: &bool) -> bool {
    *value
}

impl AdvertisedPrefix {
    fn to_ra(&self) -> Option<ra::Prefix> {
        let (IpAddr::V6(address), len) = self.prefix.0 else {
            return None;
        };
        let usual = ra::Prefix::new(address, len);
        let valid = self.valid.as_ref().map_or(usual.valid, |v| v.0);
        Some(ra::Prefix {
            on_link: self.on_link,
            autonomous: self.autonomous,
            valid,
            preferred: match &self.preferred {
                Some(p) => p.0,
                None => usual.preferred.min(valid),
            },
            ..usual
        })
    }
}

/// As on a command line: `2001:db8::/64=no-autonomous+valid:1h`.
impl FromStr for AdvertisedPrefix {
    type Err = String;
    fn from_str(text: &str) -> Result<AdvertisedPrefix, String> {
        let wrong = || {
            format!("`{text}` is not a prefix: write it like 2001:db8::/64=no-autonomous+valid:1h")
        };
        let (prefix, options) = text.split_once('=').unwrap_or((text, ""));
        let mut read = AdvertisedPrefix {
            prefix: prefix.parse().map_err(|_| wrong())?,
            on_link: true,
            autonomous: true,
            valid: None,
            preferred: None,
        };
        for option in options.split('+').filter(|o| !o.is_empty()) {
            match option.split_once(':') {
                None if option == "off-link" => read.on_link = false,
                None if option == "no-autonomous" => read.autonomous = false,
                Some(("valid", t)) => read.valid = Some(t.parse().map_err(|_| wrong())?),
                Some(("preferred", t)) => read.preferred = Some(t.parse().map_err(|_| wrong())?),
                _ => return Err(wrong()),
            }
        }
        Ok(read)
    }
}

/// DNS: names of ports, their aliases and of DHCP clients; the rest is asked of resolvers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Domain of the names; `NETWORK.internal` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Resolvers; those of the daemon's /etc/resolv.conf by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub upstream: Vec<IpAddr>,
    /// Addresses of the gateway that DNS is served at, one of a family at most; by default the one of the client's prefix.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub at: Vec<IpAddr>,
    /// Further names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<DnsRecord>,
}

/// A name that isn't a port's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsRecord {
    /// The name, relative to the domain.
    pub name: String,
    /// Its addresses.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// Its services (SRV).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<DnsService>,
}

/// A service of a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsService {
    /// Such as `_http`.
    pub service: String,
    /// `_tcp` or `_udp`.
    pub protocol: String,
    /// The port.
    pub port: u16,
    /// Lower is better.
    #[serde(default)]
    pub priority: u16,
    /// Share among those of one priority.
    #[serde(default)]
    pub weight: u16,
}

impl Gateway {
    /// The domain of its names.
    fn domain_in(&self, network: &str) -> Option<String> {
        let dns = self.dns.as_ref()?;
        let given = dns.domain.clone();
        Some(given.unwrap_or_else(|| format!("{network}.internal").to_lowercase()))
    }

    fn v4(&self) -> Option<(Ipv4Addr, u8)> {
        self.addresses.iter().find_map(|c| match c.0 {
            (IpAddr::V4(a), len) => Some((a, len)),
            _ => None,
        })
    }

    fn v6(&self) -> impl Iterator<Item = (Ipv6Addr, u8)> {
        self.addresses.iter().filter_map(|c| match c.0 {
            (IpAddr::V6(a), len) => Some((a, len)),
            _ => None,
        })
    }

    /// DHCP as the data path knows it; `ports` are the network's with their addresses.
    fn dhcp_in(&self, network: &str, ports: &[(&str, Vec<IpAddr>)]) -> Option<dhcp4::Config> {
        let (dhcp, (own, len)) = (self.dhcp.as_ref()?, self.v4()?);
        let mut statics = Vec::new();
        for f in &dhcp.fixed {
            let to = match (&f.port, &f.mac) {
                (Some(p), _) => StaticFor::Port(p.clone()),
                (None, Some(m)) => StaticFor::Mac(m.0),
                (None, None) => continue,
            };
            statics.push(StaticLease {
                to,
                address: f.address,
                host_name: f.name.clone(),
            });
        }
        for (port, addresses) in ports {
            for a in addresses {
                let IpAddr::V4(address) = *a else { continue };
                let taken = statics.iter().any(|s: &StaticLease| s.address == address);
                if !taken && address != own && contains((own.into(), len), *a) {
                    statics.push(StaticLease {
                        to: StaticFor::Port((*port).to_owned()),
                        address,
                        host_name: host_label(port.as_bytes()),
                    });
                }
            }
        }
        let dns_at = |d: &Dns| {
            d.at.iter().find_map(|ip| match ip {
                IpAddr::V4(ip) => Some(*ip),
                IpAddr::V6(_) => None,
            })
        };
        let own_dns = self.dns.iter().map(|d| dns_at(d).unwrap_or(own));
        let domain = dhcp.domain.clone().or_else(|| self.domain_in(network));
        Some(dhcp4::Config {
            pools: dhcp.pools.iter().map(|r| (r.0, r.1)).collect(),
            statics,
            lease_time: dhcp.lease.0,
            router: Some(dhcp.router.unwrap_or(own)),
            dns: if dhcp.dns.is_empty() {
                own_dns.collect()
            } else {
                dhcp.dns.clone()
            },
            search: if dhcp.search.is_empty() {
                domain.iter().cloned().collect()
            } else {
                dhcp.search.clone()
            },
            domain,
            mtu: dhcp.mtu.or_else(|| u16::try_from(self.mtu).ok()),
            ..dhcp4::Config::new(own, len)
        })
    }

    fn ra_in(&self, network: &str) -> Option<ra::Config> {
        let ra = self.ra.as_ref()?;
        let at = self.dns.iter().flat_map(|d| &d.at);
        let at = at.filter_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        });
        let own_dns = self
            .v6()
            .map(|(a, _)| a)
            .take(usize::from(self.dns.is_some()));
        let dns = match &ra.dns[..] {
            [] if at.clone().next().is_some() => at.collect(),
            [] => own_dns.collect(),
            given => given.to_vec(),
        };
        let search = match &ra.search[..] {
            [] => self.domain_in(network).into_iter().collect(),
            given => given.to_vec(),
        };
        let mut config = ra::Config {
            prefixes: match &ra.prefixes[..] {
                [] => self.v6().map(|(a, len)| ra::Prefix::new(a, len)).collect(),
                given => given.iter().filter_map(AdvertisedPrefix::to_ra).collect(),
            },
            managed: ra.managed,
            other: ra.other.unwrap_or(self.dns.is_some()),
            mtu: ra.mtu.or(Some(self.mtu).filter(|m| *m >= 1280)),
            dns,
            search,
            ..ra::Config::default()
        };
        if let Some(lifetime) = &ra.lifetime {
            config.router_lifetime = lifetime.0;
        }
        if ra.no_default_route {
            config.router_lifetime = Duration::ZERO;
        }
        Some(config)
    }

    fn zone_in(&self, network: &str) -> Option<ZoneConfig> {
        Some(ZoneConfig {
            domain: self.domain_in(network)?,
            gateway: self.addresses.iter().map(|c| c.0.0).collect(),
            pinned: self.host_names(),
            subnets: self.addresses.iter().map(|c| c.0).collect(),
            ttl: TTL,
            negative_ttl: TTL,
        })
    }

    /// The resolvers that the network's DNS asks; none says those of the daemon.
    #[must_use]
    pub fn resolvers(&self) -> Vec<SocketAddr> {
        let upstream = self.dns.iter().flat_map(|d| &d.upstream);
        upstream.map(|ip| (*ip, dns::PORT).into()).collect()
    }

    /// Whether all that is to be served can be.
    pub(super) fn check_services(&self, name: &str, topology: &Topology) -> Result<(), Problem> {
        let at = |field: &str, reason: String, remedy: &str| {
            let path = ["networks", name, "gateway", field];
            Err(Problem::at(&path, reason, remedy))
        };
        if let Some(dhcp) = &self.dhcp {
            if self.v4().is_none() {
                let reason = "the gateway has no IPv4 address".to_owned();
                return at("dhcp", reason, "give it one, such as 192.0.2.1/24");
            }
            if dhcp.lease.0 < Duration::from_secs(60) {
                let reason = format!("leases of {:?} are too short", dhcp.lease.0);
                return at("dhcp", reason, "use a minute or more");
            }
            if let Some(f) = dhcp
                .fixed
                .iter()
                .find(|f| f.port.is_some() == f.mac.is_some())
            {
                let reason = format!("who gets {} isn't clear", f.address);
                return at("dhcp", reason, "name its port or its mac");
            }
        }
        if self.ra.is_some() && self.v6().next().is_none() {
            let reason = "the gateway has no IPv6 address".to_owned();
            return at("ra", reason, "give it one, such as 2001:db8::1/64");
        }
        if let Some(ra) = &self.ra {
            let v4 = ra.prefixes.iter().find(|p| p.prefix.0.0.is_ipv4());
            if let Some(p) = v4 {
                let reason = format!("{} isn't an IPv6 prefix", p.prefix);
                return at("ra", reason, "write one like 2001:db8::/64");
            }
            if let Some(mtu) = ra.mtu.filter(|m| *m > self.mtu) {
                let reason = format!("MTU {mtu} is more than the gateway's {}", self.mtu);
                return at("ra", reason, "lower it, or raise the gateway's mtu");
            }
        }
        if let Some(dns) = &self.dns {
            if dns.upstream.len() > MAX_UPSTREAM {
                let reason = format!("{} resolvers are too many", dns.upstream.len());
                return at("dns", reason, "use 8 at most");
            }
            let own = |ip: &&IpAddr| self.addresses.iter().any(|a| a.0.0 == **ip);
            if let Some(ip) = dns.at.iter().find(|ip| !own(ip)) {
                let reason = format!("{ip} isn't an address of the gateway");
                return at("dns", reason, "add it to the gateway's addresses");
            }
            if let [a, b, ..] = &dns.at[..]
                && (a.is_ipv4() == b.is_ipv4() || dns.at.len() > 2)
            {
                let reason = format!("{a} and {b} are of one family, or there are more");
                return at("dns", reason, "serve DNS at one IPv4 and one IPv6 address");
            }
            if let Some(ip) = dns.upstream.iter().find(own) {
                let reason = format!("{ip} is the gateway itself");
                return at("dns", reason, "name another resolver");
            }
        }
        let services = self.services_in(name, NetworkId(0), topology);
        let now = Nanos(0);
        if let Some(c) = services.dhcp
            && let Err(e) = dhcp4::Server::new(c)
        {
            return at("dhcp", e.to_string(), "correct it");
        }
        if let Some(c) = services.ra
            && let Err(e) = ra::Advertiser::new(c, MacAddr::ZERO, Ipv6Addr::UNSPECIFIED, now)
        {
            return at("ra", e.to_string(), "correct it");
        }
        if let Some(c) = services.dns {
            let mut zone = match Zone::new(c) {
                Ok(zone) => zone,
                Err(e) => return at("dns", e.to_string(), "use a domain like lan.internal"),
            };
            for (owner, host) in services.hosts {
                if let Err(e) = zone.register(&owner, host) {
                    return at("dns", e.to_string(), "correct the name or alias");
                }
            }
        }
        Ok(())
    }

    fn services_in(&self, name: &str, network: NetworkId, topology: &Topology) -> NetworkServices {
        let ports = topology.ports.iter().filter(|(_, p)| p.network == name);
        let addresses = |p: &super::Port| p.addresses.iter().map(|c| c.0.0).collect();
        let with: Vec<(&str, Vec<IpAddr>)> = ports
            .clone()
            .map(|(n, p)| (n.as_str(), addresses(p)))
            .collect();
        let ra = self.ra_in(name);
        let dhcp6 = ra.as_ref().filter(|_| self.dns.is_some());
        let mut hosts = Vec::new();
        if let Some(dns) = &self.dns {
            hosts.extend(ports.filter_map(|(n, p)| {
                // A port whose name can't be a host's has only its aliases.
                let mut names = host_label(n.as_bytes())
                    .into_iter()
                    .chain(p.aliases.clone());
                let host = Host {
                    name: names.next()?,
                    aliases: names.collect(),
                    addresses: addresses(p),
                    ..Host::default()
                };
                Some((n.clone(), host))
            }));
            hosts.extend(dns.records.iter().enumerate().map(|(i, r)| {
                let service = |s: &DnsService| dns::Service {
                    service: s.service.clone(),
                    protocol: s.protocol.clone(),
                    port: s.port,
                    priority: s.priority,
                    weight: s.weight,
                };
                let host = Host {
                    name: r.name.clone(),
                    addresses: r.addresses.clone(),
                    services: r.services.iter().map(service).collect(),
                    ..Host::default()
                };
                (format!("record {i}"), host)
            }));
        }
        NetworkServices {
            network,
            mac: self.mac_in(name),
            dhcp: self.dhcp_in(name, &with),
            dhcp6: dhcp6.map(|r| dhcp6::Config {
                dns: r.dns.clone(),
                search: r.search.clone(),
                refresh: Duration::from_secs(3600),
            }),
            ra,
            dns: self.zone_in(name),
            dns_at: self.dns.iter().flat_map(|d| d.at.clone()).collect(),
            hosts,
        }
    }
}

impl Topology {
    /// The services of gateways as the data path knows them.
    #[must_use]
    pub fn to_services(
        &self,
        network: impl Fn(&str) -> Option<NetworkId>,
        port: impl Fn(&str) -> Option<PortId>,
    ) -> ServicesConfig {
        let mut config = ServicesConfig::default();
        for (name, n) in &self.networks {
            let Some((gateway, id)) = n.gateway.as_ref().zip(network(name)) else {
                continue;
            };
            if gateway.dhcp.is_some() || gateway.ra.is_some() || gateway.dns.is_some() {
                config.networks.push(gateway.services_in(name, id, self));
            }
        }
        if !config.networks.is_empty() {
            let ports = self.ports.keys();
            let ports = ports.filter_map(|n| Some((port(n)?, n.clone())));
            config.ports = ports.collect();
        }
        config
    }
}
