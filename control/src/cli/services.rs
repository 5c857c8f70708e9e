//! Options of `vswitchctl gateway set` about what a gateway serves: DHCP, router advertisements, DNS.
//!
//! Each group is the merge patch of its table: naming any option of a group turns the service on. Lists are replaced as a whole;
//! `none` empties one.

use super::options::patch;
use crate::model::{AdvertisedPrefix, DnsRecord, DnsService, FixedLease};
use crate::units::{Mac, Span};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A member of a list, or the word that empties it; also a field, or the word that takes it away.
#[derive(Clone, Debug)]
pub(super) enum Member<T> {
    None,
    One(T),
}

impl<T: Serialize> Member<T> {
    /// As a field of a patch.
    pub(super) fn value(&self) -> Value {
        match self {
            Member::None => Value::Null,
            Member::One(m) => json!(m),
        }
    }
}

impl<T: FromStr> FromStr for Member<T> {
    type Err = T::Err;
    fn from_str(text: &str) -> Result<Self, T::Err> {
        match text {
            "none" => Ok(Member::None),
            _ => text.parse().map(Member::One),
        }
    }
}

pub(super) fn members<T: Clone>(all: &[Member<T>]) -> Vec<T> {
    let one = |m: &Member<T>| match m {
        Member::None => None,
        Member::One(m) => Some(m.clone()),
    };
    all.iter().filter_map(one).collect()
}

/// DHCPv4.
#[derive(Debug, Default, Args, Serialize)]
#[command(next_help_heading = "DHCP")]
pub(super) struct DhcpOptions {
    /// Serve DHCPv4 from these ranges; off ends it.
    #[arg(
        id = "dhcp",
        long = "dhcp",
        value_delimiter = ',',
        value_name = "FIRST-LAST|off"
    )]
    #[serde(skip)]
    pools: Option<Vec<String>>,
    /// DNS servers told to clients [default: the gateway, if it serves DNS].
    #[arg(
        id = "dhcp-dns",
        long = "dhcp-dns",
        value_delimiter = ',',
        value_name = "ADDRESS|none"
    )]
    #[serde(skip)]
    dns: Option<Vec<Member<Ipv4Addr>>>,
    /// Domain told to clients [default: that of the network's DNS].
    #[arg(id = "dhcp-domain", long = "dhcp-domain", value_name = "DOMAIN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    /// Lease time of DHCP [default: 12h].
    #[arg(id = "dhcp-lease", long = "dhcp-lease", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<Span>,
    /// MTU told to clients [default: the gateway's].
    #[arg(id = "dhcp-mtu", long = "dhcp-mtu", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    /// Default router told to clients [default: the gateway].
    #[arg(id = "dhcp-router", long = "dhcp-router", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    router: Option<Ipv4Addr>,
    /// Search list told to clients that ask for one [default: the domain].
    #[arg(
        id = "dhcp-search",
        long = "dhcp-search",
        value_delimiter = ',',
        value_name = "DOMAIN|none"
    )]
    #[serde(skip)]
    search: Option<Vec<Member<String>>>,
    /// Fixed addresses, as MAC=ADDRESS or PORT=ADDRESS, with =NAME behind it for a host name.
    #[arg(
        id = "dhcp-static",
        long = "dhcp-static",
        value_delimiter = ',',
        value_name = "MAC|PORT=ADDRESS|none"
    )]
    #[serde(skip)]
    fixed: Option<Vec<Member<Fixed>>>,
}

/// A fixed lease on the command line.
#[derive(Clone, Debug)]
struct Fixed(FixedLease);

impl FromStr for Fixed {
    type Err = String;
    fn from_str(text: &str) -> Result<Fixed, String> {
        let wrong = || {
            format!(
                "`{text}` is not a fixed lease: write it like 02:00:00:00:00:07=192.0.2.7 or web=192.0.2.7"
            )
        };
        let (to, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (address, name) = match rest.split_once('=') {
            Some((address, name)) => (address, Some(name.to_owned())),
            None => (rest, None),
        };
        let mac: Option<Mac> = to.parse().ok();
        if to.is_empty() || mac.is_none() && to.contains(':') {
            return Err(wrong());
        }
        Ok(Fixed(FixedLease {
            port: mac.is_none().then(|| to.to_owned()),
            mac,
            address: address.parse().map_err(|_| wrong())?,
            name,
        }))
    }
}

/// Router advertisements.
#[derive(Debug, Default, Args, Serialize)]
#[command(next_help_heading = "Router advertisements")]
pub(super) struct RaOptions {
    /// Advertise the IPv6 prefixes (SLAAC), and the gateway as a router.
    #[arg(id = "ra", long = "ra", value_name = "on|off", value_parser = super::options::on_off)]
    #[serde(skip)]
    on: Option<bool>,
    /// DNS servers told to hosts [default: the gateway, if it serves DNS].
    #[arg(
        id = "ra-dns",
        long = "ra-dns",
        value_delimiter = ',',
        value_name = "ADDRESS|none"
    )]
    #[serde(skip)]
    dns: Option<Vec<Member<Ipv6Addr>>>,
    /// How long the gateway is a default router, up to 150m; 0s: it isn't [default: 30m].
    #[arg(id = "ra-lifetime", long = "ra-lifetime", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lifetime: Option<Span>,
    /// Flag M: addresses come by DHCPv6, from a server of somebody else [default: off].
    #[arg(id = "ra-managed", long = "ra-managed", value_name = "on|off", value_parser = super::options::on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    managed: Option<bool>,
    /// MTU told to hosts [default: the gateway's].
    #[arg(id = "ra-mtu", long = "ra-mtu", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    /// Flag O: other configuration comes by DHCPv6 [default: on, if the gateway serves DNS].
    #[arg(id = "ra-other", long = "ra-other", value_name = "on|off", value_parser = super::options::on_off)]
    #[serde(skip_serializing_if = "Option::is_none")]
    other: Option<bool>,
    /// Prefixes, as PREFIX or PREFIX=OPTION+OPTION: off-link, no-autonomous, valid:TIME, preferred:TIME [default: the gateway's].
    #[arg(
        id = "ra-prefix",
        long = "ra-prefix",
        value_delimiter = ',',
        value_name = "PREFIX|none"
    )]
    #[serde(skip)]
    prefixes: Option<Vec<Member<AdvertisedPrefix>>>,
    /// Search list told to hosts [default: the domain of the network's DNS].
    #[arg(
        id = "ra-search",
        long = "ra-search",
        value_delimiter = ',',
        value_name = "DOMAIN|none"
    )]
    #[serde(skip)]
    search: Option<Vec<Member<String>>>,
}

/// DNS.
#[derive(Debug, Default, Args, Serialize)]
#[command(next_help_heading = "DNS")]
pub(super) struct DnsOptions {
    /// Serve DNS: names of ports and of DHCP clients, the rest by resolvers.
    #[arg(id = "dns", long = "dns", value_name = "on|off", value_parser = super::options::on_off)]
    #[serde(skip)]
    on: Option<bool>,
    /// Further names, as NAME=ADDRESS or NAME=ADDRESS+ADDRESS, relative to the domain.
    #[arg(
        id = "dns-record",
        long = "dns-record",
        value_delimiter = ',',
        value_name = "NAME=ADDRESS|none"
    )]
    #[serde(skip)]
    records: Option<Vec<Member<Record>>>,
    /// Services (SRV) of those names, as _SERVICE._PROTOCOL.NAME=PORT, with :PRIORITY:WEIGHT behind it if they aren't 0.
    #[arg(
        id = "dns-service",
        long = "dns-service",
        value_delimiter = ',',
        value_name = "SERVICE=PORT",
        requires = "dns-record"
    )]
    #[serde(skip)]
    services: Vec<Service>,
    /// The gateway's addresses that DNS is served at, one of a family [default: the one of the client's prefix].
    #[arg(
        id = "dns-at",
        long = "dns-at",
        value_delimiter = ',',
        value_name = "ADDRESS|none"
    )]
    #[serde(skip)]
    at: Option<Vec<Member<IpAddr>>>,
    /// Resolvers to ask; host: those of the host's /etc/resolv.conf, as it changes [default: host].
    #[arg(
        id = "dns-upstream",
        long = "dns-upstream",
        value_delimiter = ',',
        value_name = "ADDRESS|host",
        value_parser = resolver
    )]
    #[serde(skip)]
    upstream: Option<Vec<Member<IpAddr>>>,
    /// Domain of the network's names; turns DNS on [default: NETWORK.internal].
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
}

/// A resolver; `host` names no other than the host's.
fn resolver(text: &str) -> Result<Member<IpAddr>, std::net::AddrParseError> {
    match text {
        "host" => Ok(Member::None),
        _ => text.parse(),
    }
}

/// A name with addresses on the command line.
#[derive(Clone, Debug)]
struct Record(DnsRecord);

impl FromStr for Record {
    type Err = String;
    fn from_str(text: &str) -> Result<Record, String> {
        let wrong =
            || format!("`{text}` is not a DNS record: write it like www=192.0.2.10+2001:db8::10");
        let (name, addresses) = text.split_once('=').ok_or_else(wrong)?;
        let addresses = addresses.split('+').map(str::parse);
        Ok(Record(DnsRecord {
            name: name.to_owned(),
            addresses: addresses.collect::<Result<_, _>>().map_err(|_| wrong())?,
            services: Vec::new(),
        }))
    }
}

/// A service and its name on the command line.
#[derive(Clone, Debug)]
struct Service {
    name: String,
    service: DnsService,
}

impl FromStr for Service {
    type Err = String;
    fn from_str(text: &str) -> Result<Service, String> {
        let wrong = || format!("`{text}` is not a service: write it like _http._tcp.www=8080");
        let (full, target) = text.split_once('=').ok_or_else(wrong)?;
        let mut labels = full.splitn(3, '.').map(str::to_owned);
        let mut label = || labels.next().ok_or_else(wrong);
        let (service, protocol, name) = (label()?, label()?, label()?);
        let mut numbers = target
            .split(':')
            .map(|n| n.parse::<u16>().map_err(|_| wrong()));
        let port = numbers.next().ok_or_else(wrong)??;
        let priority = numbers.next().transpose()?.unwrap_or_default();
        let weight = numbers.next().transpose()?.unwrap_or_default();
        if numbers.next().is_some() {
            return Err(wrong());
        }
        Ok(Service {
            name,
            service: DnsService {
                service,
                protocol,
                port,
                priority,
                weight,
            },
        })
    }
}

/// Puts a list into a patch, if it was named.
fn put<T: Clone + Serialize>(
    map: &mut Map<String, Value>,
    key: &str,
    list: Option<&Vec<Member<T>>>,
) {
    map.extend(list.map(|l| (key.to_owned(), json!(members(l)))));
}

/// A table that is turned on or off, or only changed; `None` if nothing was named.
pub(super) fn table(on: Option<bool>, map: Map<String, Value>) -> Option<Value> {
    match on {
        Some(false) => Some(Value::Null),
        Some(true) => Some(Value::Object(map)),
        None => (!map.is_empty()).then_some(Value::Object(map)),
    }
}

impl DhcpOptions {
    pub(super) fn patch(&self) -> Option<Value> {
        let mut map = patch(self);
        let off = self
            .pools
            .as_deref()
            .is_some_and(|p| matches!(p, [one] if one == "off"));
        if let Some(pools) = &self.pools {
            map.insert("pools".into(), json!(pools));
        }
        put(&mut map, "dns", self.dns.as_ref());
        put(&mut map, "search", self.search.as_ref());
        let fixed = self.fixed.as_deref().map(members);
        let fixed = fixed.map(|f| f.into_iter().map(|f| f.0).collect::<Vec<_>>());
        map.extend(fixed.map(|f| ("static".to_owned(), json!(f))));
        table(off.then_some(false), map)
    }
}

impl RaOptions {
    pub(super) fn patch(&self) -> Option<Value> {
        let mut map = patch(self);
        put(&mut map, "dns", self.dns.as_ref());
        put(&mut map, "search", self.search.as_ref());
        put(&mut map, "prefixes", self.prefixes.as_ref());
        table(self.on, map)
    }
}

impl DnsOptions {
    /// An error names a service whose name isn't among the records.
    pub(super) fn patch(&self) -> Result<Option<Value>, String> {
        let mut map = patch(self);
        put(&mut map, "at", self.at.as_ref());
        put(&mut map, "upstream", self.upstream.as_ref());
        if let Some(records) = &self.records {
            let mut records: Vec<DnsRecord> = members(records).into_iter().map(|r| r.0).collect();
            for s in &self.services {
                let of = records.iter_mut().find(|r| r.name == s.name);
                let of = of.ok_or_else(|| {
                    format!("service {} has no name `{}`", s.service.service, s.name)
                })?;
                of.services.push(s.service.clone());
            }
            map.insert("records".into(), json!(records));
        }
        Ok(table(self.on, map))
    }
}
