//! Rows: rules taken apart until each needs every one of its dimensions.
//!
//! An [`End`] lists alternatives of several kinds; a row has at most one list per kind, all of which must hold. Rules with lists of
//! one kind, as most are, become one row.

use super::CompileError;
use super::rule::{End, ICMP, PolicyConfig, Rule, StateSet, WITH_PORTS};
use crate::gateway::contains;
use std::net::IpAddr;
use std::sync::Arc;
use vswitch_core::bridge::NetworkId;
use vswitch_core::port::PortId;

/// Most rows of a policy.
const MAX_ROWS: usize = 32_768;

/// One end of a row: `None` is any.
#[derive(Clone, Debug, Default)]
pub(super) struct Side {
    pub(super) ports: Option<Vec<PortId>>,
    pub(super) networks: Option<Vec<NetworkId>>,
    pub(super) prefixes: Option<Vec<(IpAddr, u8)>>,
    /// The address must be of a name of each of these lists.
    pub(super) names: Vec<Vec<Arc<str>>>,
}

/// A row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) rule: u16,
    pub(super) from: Side,
    pub(super) to: Side,
    pub(super) protocols: Option<Vec<u8>>,
    pub(super) source_ports: Option<Vec<(u16, u16)>>,
    /// Destination ports, or types and codes of ICMP.
    pub(super) ports: Option<Vec<(u16, u16)>>,
    pub(super) states: StateSet,
}

fn both<T: Clone + PartialEq>(a: Option<Vec<T>>, b: Option<&Vec<T>>) -> Option<Vec<T>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.into_iter().filter(|x| b.contains(x)).collect()),
        (a, b) => a.or_else(|| b.cloned()),
    }
}

/// What two lists of prefixes have in common.
fn common(a: &[(IpAddr, u8)], b: &[(IpAddr, u8)]) -> Vec<(IpAddr, u8)> {
    let pair = |x: &(IpAddr, u8), y: &(IpAddr, u8)| {
        if x.1 >= y.1 && contains(*y, x.0) {
            Some(*x)
        } else if y.1 > x.1 && contains(*x, y.0) {
            Some(*y)
        } else {
            None
        }
    };
    let all = a.iter().flat_map(|x| b.iter().filter_map(|y| pair(x, y)));
    all.collect()
}

impl Side {
    fn and(&self, other: &Side) -> Side {
        let prefixes = match (&self.prefixes, &other.prefixes) {
            (Some(a), Some(b)) => Some(common(a, b)),
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        Side {
            ports: both(self.ports.clone(), other.ports.as_ref()),
            networks: both(self.networks.clone(), other.networks.as_ref()),
            prefixes,
            names: [&self.names[..], &other.names[..]].concat(),
        }
    }

    /// Whether nothing can be this end.
    fn is_nobody(&self) -> bool {
        self.ports.as_ref().is_some_and(Vec::is_empty)
            || self.networks.as_ref().is_some_and(Vec::is_empty)
            || self.prefixes.as_ref().is_some_and(Vec::is_empty)
    }
}

/// The alternatives of an end.
fn alternatives(end: &End, config: &PolicyConfig) -> Vec<Side> {
    if end.is_any() {
        return vec![Side::default()];
    }
    let mut sides = Vec::new();
    if !end.ports.is_empty() || !end.labels.is_empty() {
        let labelled = config
            .ports
            .iter()
            .filter(|p| p.labels.iter().any(|l| end.labels.contains(l)));
        let mut ports: Vec<PortId> = end.ports.clone();
        ports.extend(labelled.map(|p| p.port));
        ports.sort_unstable();
        ports.dedup();
        sides.push(Side {
            ports: Some(ports),
            ..Side::default()
        });
    }
    if !end.networks.is_empty() {
        sides.push(Side {
            networks: Some(end.networks.clone()),
            ..Side::default()
        });
    }
    if !end.prefixes.is_empty() {
        sides.push(Side {
            prefixes: Some(end.prefixes.clone()),
            ..Side::default()
        });
    }
    if !end.names.is_empty() {
        sides.push(Side {
            names: vec![end.names.clone()],
            ..Side::default()
        });
    }
    sides
}

fn sides(ends: &[End], config: &PolicyConfig) -> Vec<Side> {
    let mut all = vec![Side::default()];
    for end in ends {
        let here = alternatives(end, config);
        all = all
            .iter()
            .flat_map(|a| here.iter().map(|b| a.and(b)))
            .filter(|s| !s.is_nobody())
            .collect();
    }
    all
}

fn listed<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

fn take_apart(number: u16, rule: &Rule, config: &PolicyConfig, rows: &mut Vec<Row>) {
    let mut protocols = listed(&rule.protocols);
    let mut ports = listed(&rule.ports);
    if ports.is_some() || !rule.source_ports.is_empty() {
        protocols = both(protocols, Some(&WITH_PORTS.to_vec()));
    }
    if !rule.icmp.is_empty() {
        protocols = both(protocols, Some(&ICMP.to_vec()));
        let range = |(kind, code): &(u8, Option<u8>)| {
            let at = |code: u8| u16::from_be_bytes([*kind, code]);
            (at(code.unwrap_or(0)), at(code.unwrap_or(255)))
        };
        ports = Some(rule.icmp.iter().map(range).collect());
    }
    if protocols.as_ref().is_some_and(Vec::is_empty) {
        return;
    }
    let to = sides(&rule.to, config);
    for from in sides(&rule.from, config) {
        rows.extend(to.iter().map(|to| Row {
            rule: number,
            from: from.clone(),
            to: to.clone(),
            protocols: protocols.clone(),
            source_ports: listed(&rule.source_ports),
            ports: ports.clone(),
            states: rule.states,
        }));
    }
}

/// All rows in order.
pub(super) fn rows(config: &PolicyConfig) -> Result<Vec<Row>, CompileError> {
    let mut rows = Vec::new();
    for (i, rule) in config.rules.iter().enumerate() {
        take_apart(i as u16, rule, config, &mut rows);
        if rows.len() > MAX_ROWS {
            return Err(CompileError::TooManyRows);
        }
    }
    Ok(rows)
}
