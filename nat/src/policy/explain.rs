//! Why a connection is judged as it is: the rules in order, each asked field by field.
//!
//! This reads the rules as they are configured, not the compiled vectors, so it is also what the vectors are tested against.

use super::compile::Compiled;
use super::names::Names;
use super::rule::{Action, Decision, End, ICMP, Key, PolicyConfig, Rule, WITH_PORTS};
use crate::gateway::contains;
use std::net::IpAddr;
use vswitch_core::bridge::NetworkId;
use vswitch_core::clock::Nanos;
use vswitch_core::port::PortId;

/// A field of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// Who begins the connection.
    From,
    /// Whom it is for.
    To,
    /// Protocol.
    Protocol,
    /// Source ports.
    SourcePorts,
    /// Destination ports.
    Ports,
    /// ICMP type or code.
    Icmp,
    /// State.
    State,
}

impl Field {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Field::From => "from",
            Field::To => "to",
            Field::Protocol => "proto",
            Field::SourcePorts => "source_ports",
            Field::Ports => "ports",
            Field::Icmp => "icmp",
            Field::State => "state",
        }
    }
}

/// A rule that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Considered {
    /// Its number.
    pub rule: u16,
    /// The first field that doesn't match; none in the rule that decides.
    pub mismatch: Option<Field>,
}

/// Why a connection is judged as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// The rules asked, in order; the last one decides, unless it is the default.
    pub considered: Vec<Considered>,
}

/// One end of a connection.
struct Place<'a> {
    port: Option<PortId>,
    network: Option<NetworkId>,
    address: IpAddr,
    config: &'a PolicyConfig,
    names: &'a Names,
    now: Nanos,
}

impl Place<'_> {
    fn is(&self, end: &End) -> bool {
        let labelled = |port: PortId| {
            let mut all = self.config.ports.iter().filter(|p| p.port == port);
            all.any(|p| p.labels.iter().any(|l| end.labels.contains(l)))
        };
        end.is_any()
            || self
                .port
                .is_some_and(|p| end.ports.contains(&p) || labelled(p))
            || self.network.is_some_and(|n| end.networks.contains(&n))
            || end.prefixes.iter().any(|p| contains(*p, self.address))
            || self.names.is_any_of(self.address, &end.names, self.now)
    }
}

fn in_ranges(ranges: &[(u16, u16)], port: u16) -> bool {
    ranges.iter().any(|(a, b)| (*a..=*b).contains(&port))
}

/// The first field of the rule that doesn't match.
fn mismatch(rule: &Rule, key: &Key, from: &Place<'_>, to: &Place<'_>) -> Option<Field> {
    let ports = WITH_PORTS.contains(&key.proto);
    let icmp = ICMP.contains(&key.proto);
    let is_type = |(kind, code): &(u8, Option<u8>)| {
        *kind == key.icmp.0 && code.is_none_or(|c| c == key.icmp.1)
    };
    let fields = [
        (Field::From, rule.from.iter().all(|e| from.is(e))),
        (Field::To, rule.to.iter().all(|e| to.is(e))),
        (
            Field::Protocol,
            rule.protocols.is_empty() || rule.protocols.contains(&key.proto),
        ),
        (
            Field::SourcePorts,
            rule.source_ports.is_empty() || ports && in_ranges(&rule.source_ports, key.source_port),
        ),
        (
            Field::Ports,
            rule.ports.is_empty() || ports && in_ranges(&rule.ports, key.port),
        ),
        (
            Field::Icmp,
            rule.icmp.is_empty() || icmp && rule.icmp.iter().any(is_type),
        ),
        (Field::State, rule.states.has(key.state)),
    ];
    let first = fields.into_iter().find(|(_, matches)| !matches);
    first.map(|(field, _)| field)
}

impl Compiled {
    /// Which rule decides, and which were asked before it. Takes time with the number of rules.
    #[must_use]
    pub fn explain(&self, key: &Key, names: &Names, now: Nanos) -> Explanation {
        let place = |port, network, address| Place {
            port,
            network,
            address,
            config: &self.config,
            names,
            now,
        };
        let from = place(key.from_port, key.from_network, key.src);
        let to = place(key.to_port, key.to_network, key.dst);
        let mut considered = Vec::new();
        for (i, rule) in self.config.rules.iter().enumerate() {
            let mismatch = mismatch(rule, key, &from, &to);
            considered.push(Considered {
                rule: i as u16,
                mismatch,
            });
            if mismatch.is_none() {
                let decision = decision(rule.action, Some(i as u16));
                return Explanation {
                    decision,
                    considered,
                };
            }
        }
        Explanation {
            decision: decision(self.config.default, None),
            considered,
        }
    }
}

fn decision(action: Action, rule: Option<u16>) -> Decision {
    Decision { action, rule }
}
