//! `vswitchctl gateway`: the router's ports in networks.

use super::options::{Unset, on_off, with_length};
use super::services::{DhcpOptions, DnsOptions, Member, RaOptions, members, table};
use super::{CtlError, Done, Session, show};
use crate::client::escape;
use crate::model::{NatFiltering, PrefixPair};
use crate::plane::{LeaseView, NeighbourView, NetworkView};
use crate::units::{Cidr, Mac, Ports};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

#[derive(Debug, Subcommand)]
#[command(next_display_order = None)]
pub(super) enum Gateway {
    /// Take the gateway of a network away.
    Del {
        /// The network.
        network: String,
    },
    /// Show the leases of the gateways' DHCP servers.
    Leases {
        /// Only of this network.
        network: Option<String>,
    },
    /// Show neighbours: which MAC address has an IP address.
    Neighbours {
        /// Only of this network.
        network: Option<String>,
    },
    /// Give a network a gateway, or change it.
    Set(Box<Set>),
    /// Show gateways.
    Show {
        /// Only that of this network.
        network: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// The network.
    network: String,
    /// Addresses with the length of the network's prefix.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS/LEN", value_parser = with_length)]
    addresses: Option<Vec<Cidr>>,
    /// With --host-loopback on: addresses that reach it, instead of the gateway's own.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS|none")]
    host_address: Option<Vec<Member<IpAddr>>>,
    /// With --host-uplink on: addresses that reach the host's own address outside, and not its loopback.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS|none")]
    host_own_address: Option<Vec<Member<IpAddr>>>,
    /// With --host-uplink on: 169.254.0.0/16 is reached, as for a cloud's metadata service [default: off].
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    host_link_local: Option<bool>,
    /// With --host-uplink on: the gateway's own addresses reach the host's loopback [default: off].
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    host_loopback: Option<bool>,
    /// What no route leads to leaves by sockets of the host, as from an ordinary process; takes no privilege.
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    host_uplink: Option<bool>,
    /// Hosts of the network beside those of the prefixes: then the gateway answers ARP and ND for all other addresses.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS|none")]
    hosts: Option<Vec<Member<IpAddr>>>,
    /// MAC address [default: made of the network's name].
    #[arg(long)]
    mac: Option<Mac>,
    /// Largest packet sent into the network, in bytes [default: 1500].
    #[arg(long)]
    mtu: Option<u32>,
    /// Routes by routers of the network, as PREFIX=ROUTER, such as 0.0.0.0/0=198.51.100.1.
    #[arg(long, value_delimiter = ',', value_name = "PREFIX=ROUTER")]
    route: Option<Vec<RouteArg>>,
    /// Source translation of what leaves by the network: on is masquerade [default: on for uplinks].
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    nat: Option<bool>,
    /// External addresses of source translation, instead of the gateway's own.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    nat_addresses: Option<Vec<IpAddr>>,
    /// Who may send to an external port that is in use.
    #[arg(long, value_enum)]
    nat_filtering: Option<NatFiltering>,
    /// External ports of source translation [default: 1-65535].
    #[arg(long, value_name = "PORTS")]
    nat_ports: Option<Ports>,
    /// IPv6 prefixes translated towards the network, one to one (NPTv6), as INTERNAL=EXTERNAL.
    #[arg(long, value_delimiter = ',', value_name = "PREFIX=PREFIX|none")]
    nptv6: Option<Vec<Member<PairArg>>>,
    /// The network leads outside: what comes from it gets in only if it was asked for, or is published.
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    uplink: Option<bool>,
    /// With --host-uplink on: source address outside, one of the host's [default: as its routes say].
    #[arg(long, value_name = "ADDRESS|none")]
    outbound_addr: Option<Member<Ipv4Addr>>,
    /// The same for IPv6.
    #[arg(long, value_name = "ADDRESS|none")]
    outbound_addr6: Option<Member<Ipv6Addr>>,
    /// With --host-uplink on: interface of the host that everything leaves by [default: as its routes say].
    #[arg(long, value_name = "INTERFACE|none")]
    outbound_interface: Option<Member<String>>,
    /// With --host-uplink on: connections of what `vswitchctl run` and OCI runtimes start are made by sockets of the host from the
    /// beginning, and cross no switch [default: off].
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    socket_switching: Option<bool>,
    /// VLAN of the gateway, in a VLAN-aware network [default: 1].
    #[arg(long)]
    vlan: Option<u16>,
    #[command(flatten)]
    unset: Unset,
    #[command(flatten)]
    dhcp: DhcpOptions,
    #[command(flatten)]
    ra: RaOptions,
    #[command(flatten)]
    dns: DnsOptions,
}

#[derive(Clone, Debug)]
struct RouteArg {
    to: Cidr,
    via: IpAddr,
}

impl FromStr for RouteArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a route: write it like 0.0.0.0/0=198.51.100.1");
        let (to, via) = text.split_once('=').ok_or_else(wrong)?;
        Ok(RouteArg {
            to: to.parse().map_err(|_| wrong())?,
            via: via.parse().map_err(|_| wrong())?,
        })
    }
}

#[derive(Clone, Debug)]
struct PairArg(PrefixPair);

impl FromStr for PairArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a pair of prefixes: write it like fd00:1:2::/48=2001:db8:1::/48"
            )
        };
        let (internal, external) = text.split_once('=').ok_or_else(wrong)?;
        Ok(PairArg(PrefixPair {
            internal: internal.parse().map_err(|_| wrong())?,
            external: external.parse().map_err(|_| wrong())?,
        }))
    }
}

impl Set {
    /// What changes of its way out by the host.
    fn host(&self) -> Map<String, Value> {
        let addresses = self.host_address.as_deref().map(members);
        let own_addresses = self.host_own_address.as_deref().map(members);
        let outbound_interface = self.outbound_interface.as_ref();
        let named = [
            ("loopback", self.host_loopback.map(Value::from)),
            ("addresses", addresses.map(|a| json!(a))),
            ("own_addresses", own_addresses.map(|a| json!(a))),
            ("link_local", self.host_link_local.map(Value::from)),
            ("socket_switching", self.socket_switching.map(Value::from)),
            (
                "outbound_addr",
                self.outbound_addr.as_ref().map(Member::value),
            ),
            (
                "outbound_addr6",
                self.outbound_addr6.as_ref().map(Member::value),
            ),
            ("outbound_interface", outbound_interface.map(Member::value)),
        ];
        let named = named.into_iter();
        named
            .filter_map(|(key, value)| Some((key.to_owned(), value?)))
            .collect()
    }

    fn patch(&self) -> Result<Map<String, Value>, String> {
        let mut map = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(v) = value {
                map.insert(key.to_owned(), v);
            }
        };
        put("addresses", self.addresses.as_ref().map(|a| json!(a)));
        put("mac", self.mac.as_ref().map(|m| json!(m)));
        put("mtu", self.mtu.map(Value::from));
        put("vlan", self.vlan.map(Value::from));
        put("uplink", self.uplink.map(Value::from));
        put("hosts", self.hosts.as_deref().map(|h| json!(members(h))));
        put("host_uplink", table(self.host_uplink, self.host()));
        let mut nat = Map::new();
        nat.extend(self.nat.map(|on| ("off".to_owned(), Value::from(!on))));
        let addresses = self.nat_addresses.as_ref();
        nat.extend(addresses.map(|a| ("addresses".to_owned(), json!(a))));
        nat.extend(
            self.nat_filtering
                .map(|f| ("filtering".to_owned(), json!(f))),
        );
        nat.extend(
            self.nat_ports
                .as_ref()
                .map(|p| ("ports".to_owned(), json!(p))),
        );
        put("nat", (!nat.is_empty()).then_some(Value::Object(nat)));
        let pairs = self.nptv6.as_deref().map(members);
        let pairs = pairs.map(|p| p.into_iter().map(|p| json!(p.0)).collect());
        put("nptv6", pairs);
        put("dhcp", self.dhcp.patch());
        put("ra", self.ra.patch());
        put("dns", self.dns.patch()?);
        let route = |r: &RouteArg| json!({"to": r.to, "via": r.via});
        let routes = self.route.as_ref();
        put("routes", routes.map(|r| r.iter().map(route).collect()));
        self.unset.put(&mut map);
        Ok(map)
    }
}

pub(super) async fn run(s: &Session, command: Gateway) -> Done {
    let path = |name: &str| format!("/v1/networks/{}", escape(name));
    match command {
        Gateway::Del { network } => {
            let none = json!({"gateway": null});
            s.client.call("PATCH", &path(&network), Some(&none)).await?;
            Ok(())
        }
        Gateway::Leases { network } => {
            let mut all: Vec<LeaseView> = s.client.get("/v1/gateway/leases").await?;
            if let Some(name) = network {
                must_exist(s, &name).await?;
                all.retain(|l| l.network == name);
            }
            if s.json {
                return show::json(&all);
            }
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let now = now.map_or(0, |d| d.as_secs());
            let row = |l: &LeaseView| {
                vec![
                    l.network.clone(),
                    l.address.to_string(),
                    l.mac.to_string(),
                    l.port.clone(),
                    l.name.clone().unwrap_or_else(|| "-".into()),
                    format!("{}s", l.ends.saturating_sub(now)),
                ]
            };
            let rows = all.iter().map(row).collect();
            let head = ["NETWORK", "ADDRESS", "MAC", "PORT", "NAME", "ENDS IN"];
            show::table(&head, rows, "no leases")
        }
        Gateway::Neighbours { network } => {
            let mut all: Vec<NeighbourView> = s.client.get("/v1/gateway/neighbours").await?;
            if let Some(name) = network {
                must_exist(s, &name).await?;
                all.retain(|n| n.network == name);
            }
            if s.json {
                return show::json(&all);
            }
            let row = |n: &NeighbourView| {
                let mac = n.mac.clone().unwrap_or_else(|| "no answer".into());
                vec![n.network.clone(), n.address.to_string(), mac]
            };
            let rows = all.iter().map(row).collect();
            show::table(&["NETWORK", "ADDRESS", "MAC"], rows, "no neighbours")
        }
        Gateway::Set(set) => {
            let wrong = |reason: String, remedy| CtlError::Usage {
                act: "changing",
                thing: format!("the gateway of `{}`", set.network),
                reason,
                remedy,
            };
            let patch = set.patch();
            let patch = patch.map_err(|why| wrong(why, "add its --dns-record"))?;
            if patch.is_empty() {
                let reason = "nothing is named that changes".to_owned();
                return Err(wrong(reason, "add --addresses or another option"));
            }
            let body = json!({"gateway": patch});
            // Merged into nothing, they would turn on what wasn't asked for.
            if set.host_uplink.is_none() && !set.host().is_empty() {
                let now: NetworkView = s.client.get(&path(&set.network)).await?;
                if now.config.gateway.is_none_or(|g| g.host_uplink.is_none()) {
                    let reason = "it has no way out by sockets of the host".to_owned();
                    return Err(wrong(reason, "add --host-uplink on"));
                }
            }
            let path = path(&set.network);
            let now: NetworkView = s.client.send("PATCH", &path, &body).await?;
            show::warn(&now.warnings);
            if s.json { show::json(&now) } else { Ok(()) }
        }
        Gateway::Show { network } => {
            let networks: Vec<NetworkView> = match network {
                Some(name) => vec![s.client.get(&path(&name)).await?],
                None => s.client.get("/v1/networks").await?,
            };
            let with = networks.into_iter().filter(|n| n.config.gateway.is_some());
            let with: Vec<NetworkView> = with.collect();
            if s.json {
                return show::json(&with);
            }
            for n in &with {
                let named = |w: &String| format!("gateway of `{}`: {w}", n.name);
                show::warn(&n.warnings.iter().map(named).collect::<Vec<_>>());
            }
            let rows = with.iter().filter_map(row).collect();
            let head = ["NETWORK", "ADDRESSES", "MAC", "MTU", "ROUTES", "OPTIONS"];
            show::table(&head, rows, "no gateways")
        }
    }
}

/// Of a network that isn't there nothing would be shown, as of one that has nothing.
async fn must_exist(s: &Session, network: &str) -> Done {
    let path = format!("/v1/networks/{}", escape(network));
    let _: NetworkView = s.client.get(&path).await?;
    Ok(())
}

fn row(n: &NetworkView) -> Option<Vec<String>> {
    let g = n.config.gateway.as_ref()?;
    let addresses: Vec<String> = g.addresses.iter().map(ToString::to_string).collect();
    let routes = g.routes.iter().map(|r| format!("{} by {}", r.to, r.via));
    Some(vec![
        n.name.clone(),
        addresses.join(","),
        g.mac_in(&n.name).to_string(),
        g.mtu.to_string(),
        routes.collect::<Vec<_>>().join(", "),
        options(g),
    ])
}

/// What it does besides routing.
fn options(g: &crate::model::Gateway) -> String {
    // An uplink translates if nothing is said.
    let nat = g.nat.as_ref().map_or(g.uplink, |n| !n.off);
    let on = [
        ("uplink", g.uplink),
        ("host-uplink", g.host_uplink.is_some()),
        ("nat", nat),
        ("dhcp", g.dhcp.is_some()),
        ("ra", g.ra.is_some()),
        ("dns", g.dns.is_some()),
    ];
    let names = on.iter().filter(|(_, on)| *on).map(|(name, _)| *name);
    names.collect::<Vec<_>>().join(",")
}
