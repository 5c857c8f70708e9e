//! What the firewall shows: policies with their counters, and why something is judged as it is.

use super::Plane;
use crate::model::{Policy, rule_name};
use crate::refusal::{Kind, Refusal};
use crate::units::{IcmpTypes, Protocols, States};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use utoipa::{IntoParams, ToSchema};
use vswitch_core::bridge::NetworkId;
use vswitch_core::port::PortId;
use vswitch_core::worker::Worker;
use vswitch_nat::Pipeline;
use vswitch_nat::gateway::contains;
use vswitch_nat::policy::{Counts, Explanation, Key, State, is_exempt};

/// What a rule has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleCounts {
    /// Connections judged by it, and packets judged one by one.
    pub judged: u64,
    /// Of these, beyond its rate.
    pub over_rate: u64,
    /// Packets of its connections.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl From<Counts> for RuleCounts {
    fn from(c: Counts) -> Self {
        RuleCounts {
            judged: c.judged,
            over_rate: c.over_rate,
            packets: c.packets,
            bytes: c.bytes,
        }
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PolicyView {
    /// Its name.
    pub name: String,
    /// Its configuration.
    pub config: Policy,
    /// Counters of its rules in order, that of its default last if it has one.
    pub counts: Vec<RuleCounts>,
}

/// What is to be explained.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// Who begins: a port's name, an address, or `PORT=ADDRESS`.
    pub from: String,
    /// For whom: the same.
    pub to: String,
    /// Protocol, by name or number; tcp by default, icmp or icmp6 with an ICMP type.
    pub proto: Option<String>,
    /// Destination port.
    pub dport: Option<u16>,
    /// Source port.
    pub sport: Option<u16>,
    /// ICMP type: echo-request by default for icmp and icmp6.
    pub icmp: Option<String>,
    /// State: new by default.
    pub state: Option<String>,
}

/// An end, as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlaceView {
    /// The port it is at; none if that isn't known or is beyond a router.
    pub port: Option<String>,
    /// Labels of the port.
    pub labels: Vec<String>,
    /// Its network.
    pub network: Option<String>,
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
}

/// A rule that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsideredView {
    /// The rule, as `POLICY/NAME`.
    pub rule: String,
    /// The first field that doesn't match; none in the rule that decides.
    pub mismatch: Option<String>,
}

/// Why a connection is judged as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainView {
    /// `accept`, `drop` or `reject`.
    pub action: String,
    /// The rule that decides; none if no rule matches.
    pub rule: Option<String>,
    /// In words.
    pub reason: String,
    /// Who begins.
    pub from: PlaceView,
    /// For whom.
    pub to: PlaceView,
    /// Rules asked, in order.
    pub considered: Vec<ConsideredView>,
}

impl PolicyView {
    /// Names of its rules, as `POLICY/NAME`, that of its default last if it has one.
    #[must_use]
    pub fn rule_names(&self) -> Vec<String> {
        let rules = self.config.rules.iter().enumerate();
        let mut names: Vec<String> = rules.map(|(i, r)| rule_name(&self.name, i, r)).collect();
        let default = self
            .config
            .default
            .map(|_| format!("{}/default", self.name));
        names.extend(default);
        names
    }
}

struct Place {
    port: Option<PortId>,
    network: Option<NetworkId>,
    address: IpAddr,
}

fn wrong(what: &str, text: &str, reason: impl Into<String>, remedy: &str) -> Refusal {
    let thing = format!("{what} `{text}`");
    Refusal::new(Kind::Invalid, "explaining", thing, reason, remedy)
}

/// One value of a list.
fn single<T: Clone>(what: &str, text: &str, list: &[T]) -> Result<T, Refusal> {
    match list {
        [one] => Ok(one.clone()),
        _ => Err(wrong(what, text, "it is several", "name one")),
    }
}

impl Plane {
    /// A policy with its counters.
    pub fn policy(&self, name: &str) -> Result<PolicyView, Refusal> {
        self.collect_fast();
        self.policy_counted(name)
    }

    fn policy_counted(&self, name: &str) -> Result<PolicyView, Refusal> {
        let Some(config) = self.desired.policies.get(name) else {
            let known = self.desired.policies.keys();
            return Err(Refusal::missing("showing", "policy", name, known));
        };
        let by_name: BTreeMap<&str, u16> = self
            .policy
            .iter()
            .flat_map(|p| &p.config().rules)
            .zip(0..)
            .map(|(r, i)| (&*r.name, i))
            .collect();
        let counts = |rule: &String| -> RuleCounts {
            let (Some(p), Some(n)) = (&self.policy, by_name.get(rule.as_str())) else {
                return RuleCounts::default();
            };
            p.counts(Some(*n)).into()
        };
        let mut view = PolicyView {
            name: name.to_owned(),
            config: config.clone(),
            counts: Vec::new(),
        };
        view.counts = view.rule_names().iter().map(counts).collect();
        Ok(view)
    }

    /// All policies, in the order they are asked.
    #[must_use]
    pub fn policy_views(&self) -> Vec<PolicyView> {
        self.collect_fast();
        let names = self.desired.policies.keys();
        let counted = |n: &String| self.policy_counted(n).ok();
        let mut all: Vec<PolicyView> = names.filter_map(counted).collect();
        all.sort_by_key(|p| p.config.order);
        all
    }

    /// Which rule decides about a connection, and why.
    pub fn explain(&self, q: &ExplainQuery) -> Result<ExplainView, Refusal> {
        // The family of one end is that of the other.
        let hint = address_of(&q.from).or_else(|| address_of(&q.to));
        let from = self.place("from", &q.from, hint)?;
        let to = self.place("to", &q.to, Some(from.address))?;
        if from.address.is_ipv4() != to.address.is_ipv4() {
            let reason = format!("{} is of another family", to.address);
            return Err(wrong("from", &q.from, reason, "name ends of one family"));
        }
        let key = key(q, &from, &to)?;
        // It takes time with the number of rules, so not the worker's.
        let why = self.policy.as_ref().and_then(|policy| {
            let names = |w: &mut Worker<Pipeline>| (w.stage.gateway.names().clone(), w.cx.now);
            let (names, now) = self.workers.first()?.call(names).ok()?;
            Some(policy.explain(&key, &names, now))
        });
        Ok(self.explained(why, &key, (&from, &to)))
    }

    fn explained(
        &self,
        why: Option<Explanation>,
        key: &Key,
        (from, to): (&Place, &Place),
    ) -> ExplainView {
        let mut view = ExplainView {
            action: "accept".into(),
            rule: None,
            reason: "no rule matches".into(),
            from: self.place_view(from),
            to: self.place_view(to),
            considered: Vec::new(),
        };
        if is_exempt(key) {
            view.reason = "a network needs it to be one: rules don't hold for it".into();
            return view;
        }
        let name = |rule: u16| {
            let rule = self.policy.as_ref().and_then(|p| p.rule(rule));
            rule.map_or_else(String::new, |r| r.name.to_string())
        };
        let considered = why.iter().flat_map(|w| &w.considered);
        view.considered = considered
            .map(|c| ConsideredView {
                rule: name(c.rule),
                mismatch: c.mismatch.map(|f| f.as_str().to_owned()),
            })
            .collect();
        let decision = why.map(|w| w.decision);
        let spared = self.policy.as_ref().zip(decision.as_ref());
        if spared.is_some_and(|(p, d)| p.spares_dns(d, key)) && self.is_gateway(to.address) {
            view.reason = "it asks the gateway's DNS, and no rule names its ports".into();
            return view;
        }
        view.rule = decision.and_then(|d| d.rule).map(name);
        let uplink = from.network != to.network && self.is_uplink(from.network);
        if let Some(rule) = &view.rule {
            view.reason = format!("`{rule}` is the first rule that matches");
        } else if uplink {
            view.action = "drop".into();
            view.reason = "no rule matches, and it comes from an uplink: only published ports \
                           are reached"
                .into();
            return view;
        }
        if let Some(decision) = decision {
            view.action = decision.action.as_str().into();
        }
        view
    }

    /// Whether a gateway has this address.
    fn is_gateway(&self, address: IpAddr) -> bool {
        let gateways = self
            .desired
            .networks
            .values()
            .filter_map(|n| n.gateway.as_ref());
        gateways
            .flat_map(|g| &g.addresses)
            .any(|a| a.0.0 == address)
    }

    fn is_uplink(&self, network: Option<NetworkId>) -> bool {
        let name = network.map(|n| self.network_name(n.0));
        let network = name.and_then(|n| self.desired.networks.get(&n));
        let gateway = network.and_then(|n| n.gateway.as_ref());
        gateway.is_some_and(|g| g.uplink)
    }

    fn place_view(&self, place: &Place) -> PlaceView {
        let port = place.port.map(|p| self.port_name(p));
        let config = port.as_ref().and_then(|p| self.desired.ports.get(p));
        PlaceView {
            labels: config.map_or_else(Vec::new, |c| c.labels.clone()),
            port,
            network: place.network.map(|n| self.network_name(n.0)),
            address: place.address,
        }
    }

    /// Where a port or an address is.
    fn place(&self, what: &str, text: &str, like: Option<IpAddr>) -> Result<Place, Refusal> {
        let (name, address) = match text.split_once('=') {
            Some((name, _)) => (Some(name), address_of(text)),
            None => match text.parse() {
                Ok(address) => (None, Some(address)),
                Err(_) => (Some(text), None),
            },
        };
        let Some(name) = name else {
            let address = address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
            return Ok(self.place_of(address));
        };
        let Some(port) = self.desired.ports.get(name) else {
            let known = self.desired.ports.keys();
            return Err(Refusal::missing("explaining", "port", name, known));
        };
        let id = self.ports.get(name).map(|l| l.id);
        let fits = |ip: &IpAddr| like.is_none_or(|l| l.is_ipv4() == ip.is_ipv4());
        let configured = port.addresses.iter().map(|c| c.0.0).find(fits);
        let heard = || {
            let seen = self.neighbour_places();
            let here = seen.iter().filter(|(_, p)| Some(*p) == id);
            here.map(|(ip, _)| *ip).find(fits)
        };
        let Some(address) = address.or(configured).or_else(heard) else {
            let reason = "the port's address isn't known";
            let remedy = "name it as in web=192.0.2.10";
            return Err(wrong(what, text, reason, remedy));
        };
        Ok(Place {
            port: id,
            network: self.networks.get(&port.network).copied(),
            address,
        })
    }

    /// Addresses that the gateways know, and the ports they are at.
    fn neighbour_places(&self) -> Vec<(IpAddr, PortId)> {
        let Some(worker) = self.workers.first() else {
            return Vec::new();
        };
        let found = worker.call(|w| {
            let bridge = &w.stage.bridge;
            let place = |n: vswitch_nat::gateway::NeighbourEntry| {
                let mac = n.mac?;
                let fdb = bridge.fdb(n.network)?;
                let port = fdb.iter().find(|e| e.mac() == mac)?.port;
                Some((n.ip, port))
            };
            let all = w.stage.gateway.neighbours(w.cx.now);
            all.into_iter().filter_map(place).collect::<Vec<_>>()
        });
        found.unwrap_or_default()
    }

    /// Where an address is: at the port that has it, in the network that routes lead to.
    fn place_of(&self, address: IpAddr) -> Place {
        let has = |p: &&crate::model::Port| p.addresses.iter().any(|c| c.0.0 == address);
        let at = self.desired.ports.iter().find(|(_, p)| has(p));
        let configured = at.and_then(|(n, _)| self.ports.get(n)).map(|l| l.id);
        let heard = || {
            let all = self.neighbour_places();
            all.into_iter()
                .find(|(ip, _)| *ip == address)
                .map(|(_, p)| p)
        };
        let port = configured.or_else(heard);
        let prefixes = self.desired.networks.iter().flat_map(|(name, n)| {
            let gateway = n.gateway.iter();
            let all = gateway.flat_map(|g| {
                let routes = g.routes.iter().map(|r| r.to.0);
                g.addresses.iter().map(|a| a.0).chain(routes)
            });
            all.map(move |p| (name, p))
        });
        let routed = prefixes
            .filter(|(_, p)| contains(*p, address))
            .max_by_key(|(_, p)| p.1)
            .map(|(name, _)| name);
        let name = port.map(|p| self.port_name(p));
        let of_port = name
            .and_then(|n| self.desired.ports.get(&n))
            .map(|p| &p.network);
        let network = of_port.or(routed);
        Place {
            port,
            network: network.and_then(|n| self.networks.get(n)).copied(),
            address,
        }
    }
}

/// The address in `PORT=ADDRESS` or `ADDRESS`.
fn address_of(text: &str) -> Option<IpAddr> {
    text.rsplit('=').next().and_then(|a| a.parse().ok())
}

fn key(q: &ExplainQuery, from: &Place, to: &Place) -> Result<Key, Refusal> {
    let read = |e: crate::units::UnitError, what: &str, text: &str| {
        wrong(what, text, e.to_string(), "correct it")
    };
    let v4 = from.address.is_ipv4();
    let proto = match &q.proto {
        Some(text) => {
            let list: Protocols = text.parse().map_err(|e| read(e, "protocol", text))?;
            single("protocol", text, &list.0)?
        }
        None if q.icmp.is_some() => {
            if v4 {
                1
            } else {
                58
            }
        }
        None => 6,
    };
    let icmp = match (&q.icmp, proto) {
        (Some(text), _) => {
            let list: IcmpTypes = text.parse().map_err(|e| read(e, "ICMP type", text))?;
            let numbers = single("ICMP type", text, &list.0)?.numbers();
            let of_family = numbers.get(usize::from(proto == 58)).or(numbers.first());
            of_family.map_or((0, 0), |(kind, code)| (*kind, code.unwrap_or(0)))
        }
        (None, 1) => (8, 0),
        (None, 58) => (128, 0),
        _ => (0, 0),
    };
    let state = match &q.state {
        Some(text) => {
            let list: States = text.parse().map_err(|e| read(e, "state", text))?;
            single("state", text, &list.0)?
        }
        None => State::New,
    };
    if let Some(text) = &q.proto
        && q.dport.is_some()
        && !matches!(proto, 6 | 17 | 132 | 33 | 136)
    {
        let reason = "it has no ports";
        return Err(wrong("protocol", text, reason, "leave the port out"));
    }
    Ok(Key {
        from_port: from.port,
        from_network: from.network,
        to_port: to.port,
        to_network: to.network,
        src: from.address,
        dst: to.address,
        proto,
        source_port: q.sport.unwrap_or(49_152),
        port: q.dport.unwrap_or(0),
        icmp,
        state,
    })
}
