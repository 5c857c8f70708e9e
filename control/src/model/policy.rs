//! Policies: the firewall's rules, in groups with a scope, an order and a default of their own.
//!
//! A policy says whom it is about (`from`, `to`: its scope) and has rules; its default decides about what is in its scope and matches
//! none of its rules. So `to = "label:db"` with `default = "drop"` and one accepting rule is an allow list for a label. Policies
//! are asked by `order`, then by name; what none of them decides is accepted, but for connections that come in from an uplink.

use super::Topology;
use super::check::{Problem, check_name};
use crate::units::{IcmpTypes, Peer, Peers, PortList, Protocols, States};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;
use vswitch_core::bridge::{NetworkId, Rate};
use vswitch_core::port::PortId;
use vswitch_nat::policy::{Action, Compiled, End, LabelId, PolicyConfig, PortInfo, Rule, StateSet};

/// Most labels of a port.
const MAX_LABELS: usize = 64;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PolicyAction {
    /// The connection may be.
    Accept,
    /// It may not.
    Drop,
    /// It may not, and who began it is told.
    Reject,
}

impl PolicyAction {
    fn action(self) -> Action {
        match self {
            PolicyAction::Accept => Action::Accept,
            PolicyAction::Drop => Action::Drop,
            PolicyAction::Reject => Action::Reject,
        }
    }
}

/// A rule. What is left out matches anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRule {
    /// A name; its number in the policy by default. Counters stay with a rule that keeps its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who begins the connection.
    #[serde(default, skip_serializing_if = "Peers::is_any")]
    pub from: Peers,
    /// Whom it is for; of a published port, the container behind it.
    #[serde(default, skip_serializing_if = "Peers::is_any")]
    pub to: Peers,
    /// Protocols.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<Protocols>,
    /// Destination ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<PortList>,
    /// Source ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_ports: Option<PortList>,
    /// ICMP types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpTypes>,
    /// States. A connection is judged when it is new, and when policy changes; so this is seldom needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<States>,
    /// What it does.
    pub action: PolicyAction,
    /// Matches told as events, at most this many per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<u32>,
    /// New connections accepted per second; more are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Policies with a lower number are asked first.
    pub order: u32,
    /// Who begins the connections that it is about.
    pub from: Peers,
    /// Whom they are for.
    pub to: Peers,
    /// Rules; the first that matches decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<PolicyRule>,
    /// What is done with what it is about when no rule matches; by default the next policy is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<PolicyAction>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            order: 100,
            from: Peers::default(),
            to: Peers::default(),
            rules: Vec::new(),
            default: None,
        }
    }
}

/// Numbers of names.
struct Ids<'a> {
    ports: &'a dyn Fn(&str) -> Option<PortId>,
    networks: &'a dyn Fn(&str) -> Option<NetworkId>,
    labels: BTreeMap<&'a str, LabelId>,
}

impl Ids<'_> {
    fn ends(&self, all: [&Peers; 2]) -> Vec<End> {
        let some = all.into_iter().filter(|p| !p.is_any());
        some.map(|p| self.end(p)).collect()
    }

    fn end(&self, peers: &Peers) -> End {
        let mut end = End::default();
        // What has no number (a port that isn't open) must not make the end match anything.
        let nobody = PortId::GATEWAY;
        for peer in &peers.0 {
            match peer {
                Peer::Port(n) => end.ports.push((self.ports)(n).unwrap_or(nobody)),
                Peer::Label(n) => match self.labels.get(n.as_str()) {
                    Some(label) => end.labels.push(*label),
                    None => end.ports.push(nobody),
                },
                Peer::Network(n) => match (self.networks)(n) {
                    Some(network) => end.networks.push(network),
                    None => end.ports.push(nobody),
                },
                Peer::Dns(n) => end.names.push(n.as_str().into()),
                Peer::Prefix(p) => end.prefixes.push(*p),
            }
        }
        end
    }
}

impl Policy {
    /// Its rules in the data path's terms, the default last.
    fn rules(&self, name: &str, ids: &Ids<'_>, rules: &mut Vec<Rule>) {
        for (i, r) in self.rules.iter().enumerate() {
            let numbers = |list: &Option<PortList>| list.clone().map_or_else(Vec::new, |p| p.0);
            let icmp = r.icmp.iter().flat_map(|t| &t.0);
            rules.push(Rule {
                from: ids.ends([&self.from, &r.from]),
                to: ids.ends([&self.to, &r.to]),
                protocols: r.proto.clone().map_or_else(Vec::new, |p| p.0),
                source_ports: numbers(&r.source_ports),
                ports: numbers(&r.ports),
                icmp: icmp.flat_map(|t| t.numbers()).collect(),
                states: match &r.state {
                    Some(s) => StateSet::of(&s.0),
                    None => StateSet::ANY,
                },
                log: r.log,
                limit: r.limit.map(|n| Rate {
                    per_second: n.into(),
                    burst: n.into(),
                }),
                ..Rule::new(&rule_name(name, i, r), r.action.action())
            });
        }
        if let Some(default) = self.default {
            rules.push(Rule {
                from: ids.ends([&self.from, &Peers::default()]),
                to: ids.ends([&self.to, &Peers::default()]),
                ..Rule::new(&format!("{name}/default"), default.action())
            });
        }
    }

    fn check(&self, name: &str, all: &Topology) -> Result<(), Problem> {
        for (field, peers) in [("from", &self.from), ("to", &self.to)] {
            check_peers(peers, &["policies", name, field], all)?;
        }
        let nameless = |from: &Peers, path: &[&str]| {
            if from.0.iter().any(|p| matches!(p, Peer::Dns(_))) {
                let reason = "who begins a connection is known by address, not by name";
                return Err(Problem::at(path, reason, "use DNS names in `to`"));
            }
            Ok(())
        };
        nameless(&self.from, &["policies", name, "from"])?;
        let mut names = BTreeSet::new();
        for (i, r) in self.rules.iter().enumerate() {
            let number = (i + 1).to_string();
            let path = |field| ["policies", name, "rules", number.as_str(), field];
            check_peers(&r.from, &path("from"), all)?;
            check_peers(&r.to, &path("to"), all)?;
            nameless(&r.from, &path("from"))?;
            let has = |of: &[u8]| match &r.proto {
                Some(p) => p.0.iter().any(|p| of.contains(p)),
                None => true,
            };
            if (r.ports.is_some() || r.source_ports.is_some()) && !has(&[6, 17, 132, 33, 136]) {
                let reason = "the rule has ports, and protocols that have none";
                return Err(Problem::at(
                    &path("proto"),
                    reason,
                    "use tcp, udp or sctp, or leave the ports out",
                ));
            }
            if r.icmp.is_some() && (!has(&[1, 58]) || r.ports.is_some()) {
                let reason = "ICMP types don't go with the rule's protocols or ports";
                return Err(Problem::at(
                    &path("icmp"),
                    reason,
                    "set proto to icmp or icmp6, without ports",
                ));
            }
            if r.log == Some(0) || r.limit == Some(0) {
                let field = if r.log == Some(0) { "log" } else { "limit" };
                return Err(Problem::at(
                    &path(field),
                    "0 per second is never",
                    "leave it out, or use 1 or more",
                ));
            }
            if let Some(n) = &r.name {
                check_name("rules", n, 64)?;
                if n == "default" || !names.insert(n) {
                    let reason = format!("another rule is named `{n}`");
                    return Err(Problem::at(&path("name"), reason, "take another name"));
                }
            }
        }
        Ok(())
    }
}

/// Name of a rule.
pub(crate) fn rule_name(policy: &str, at: usize, rule: &PolicyRule) -> String {
    match &rule.name {
        Some(name) => format!("{policy}/{name}"),
        None => format!("{policy}/{}", at + 1),
    }
}

fn check_peers(peers: &Peers, path: &[&str], all: &Topology) -> Result<(), Problem> {
    for peer in &peers.0 {
        match peer {
            Peer::Port(n) => all.known_port(n, path)?,
            Peer::Network(n) => all.known_network(n, path)?,
            Peer::Label(n) => {
                // A label without ports is no fault, unless it looks like another one.
                let labels = all.labels();
                let near = crate::refusal::nearest(n, labels.iter().copied());
                if let (false, Some(near)) = (labels.contains(n.as_str()), near) {
                    let reason = format!("no port has the label `{n}`");
                    let remedy = format!("did you mean `{near}`? Or label a port first");
                    return Err(Problem::at(path, reason, remedy));
                }
            }
            Peer::Dns(n) => {
                let name = n.strip_prefix("*.").unwrap_or(n);
                let sound = name.len() <= 253
                    && name.split('.').all(|l| (1..=63).contains(&l.len()))
                    && !name.contains('*');
                if !sound {
                    let reason = format!("`{n}` is no DNS name");
                    let remedy = "write it like www.example.com or *.example.com";
                    return Err(Problem::at(path, reason, remedy));
                }
            }
            Peer::Prefix(_) => {}
        }
    }
    Ok(())
}

impl Topology {
    fn labels(&self) -> BTreeSet<&str> {
        let ports = self.ports.values();
        ports
            .flat_map(|p| p.labels.iter().map(String::as_str))
            .collect()
    }

    /// The policy that names a port or network (`what`), if any.
    pub(crate) fn policy_naming(&self, what: &str, name: &str) -> Option<&str> {
        let is = |p: &Peer| match p {
            Peer::Port(n) => what == "port" && n == name,
            Peer::Network(n) => what == "network" && n == name,
            _ => false,
        };
        let has = |peers: &Peers| peers.0.iter().any(is);
        let mut naming = self.policies.iter().filter(|(_, p)| {
            let rule = |r: &PolicyRule| has(&r.from) || has(&r.to);
            has(&p.from) || has(&p.to) || p.rules.iter().any(rule)
        });
        naming.next().map(|(n, _)| n.as_str())
    }

    pub(super) fn check_policies(&self) -> Result<(), Problem> {
        for (name, port) in &self.ports {
            if port.labels.len() > MAX_LABELS {
                let reason = format!("{} are too many", port.labels.len());
                let path = ["ports", name, "labels"];
                return Err(Problem::at(&path, reason, "use 64 labels at most"));
            }
            for label in &port.labels {
                check_name("labels", label, 64)?;
            }
        }
        for (name, policy) in &self.policies {
            check_name("policies", name, 64)?;
            policy.check(name, self)?;
        }
        if self.policies.is_empty() {
            return Ok(());
        }
        // Numbers aren't given yet; those of the order will do.
        let numbers = |names: Vec<&String>| -> BTreeMap<String, u16> {
            names.into_iter().cloned().zip(0..).collect()
        };
        let ports = numbers(self.ports.keys().collect());
        let networks = numbers(self.networks.keys().collect());
        let config = self.to_policy(&|n| ports.get(n).copied().map(PortId), &|n| {
            networks.get(n).copied().map(NetworkId)
        });
        Compiled::new(1, config, None)
            .map(|_| ())
            .map_err(|e| Problem::at(&["policies"], e.to_string(), "use fewer or simpler rules"))
    }

    /// The policy as the data path knows it.
    #[must_use]
    pub fn to_policy(
        &self,
        ports: &dyn Fn(&str) -> Option<PortId>,
        networks: &dyn Fn(&str) -> Option<NetworkId>,
    ) -> PolicyConfig {
        let labels = self.labels().into_iter().zip((0..).map(LabelId)).collect();
        let ids = Ids {
            ports,
            networks,
            labels,
        };
        let mut ordered: Vec<_> = self.policies.iter().collect();
        ordered.sort_by_key(|(name, p)| (p.order, *name));
        let mut rules = Vec::new();
        for (name, policy) in ordered {
            policy.rules(name, &ids, &mut rules);
        }
        let named: BTreeSet<&PortId> = rules
            .iter()
            .flat_map(|r| r.from.iter().chain(&r.to))
            .flat_map(|e| &e.ports)
            .collect();
        let mut infos = Vec::new();
        for (name, port) in &self.ports {
            let (Some(id), Some(network)) = (ports(name), networks(&port.network)) else {
                continue;
            };
            if port.labels.is_empty() && !named.contains(&id) {
                continue;
            }
            let of = |l: &String| ids.labels.get(l.as_str()).copied();
            infos.push(PortInfo {
                port: id,
                network,
                labels: port.labels.iter().filter_map(of).collect(),
            });
        }
        PolicyConfig {
            rules,
            default: Action::Accept,
            ports: infos,
        }
    }
}
