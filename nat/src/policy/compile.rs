//! From rules to vectors.

use super::counters::{Counts, Tally};
use super::dimension::{Number, Pieces, Table, Wild};
use super::names::Names;
use super::rows::{Row, Side, rows};
use super::rule::{Action, Decision, PolicyConfig, Rule, State};
use super::vectors::{Builder, Vectors};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use vswitch_core::bridge::NetworkId;
use vswitch_core::clock::Nanos;
use vswitch_core::port::PortId;

/// Most rules.
pub const MAX_RULES: usize = 16_384;

/// Why a policy can't be compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// More rules than [`MAX_RULES`].
    #[error("compiling the policy: more than {MAX_RULES} rules")]
    TooManyRules,
    /// Lists of several kinds in one rule multiply.
    #[error(
        "compiling the policy: the rules have too many alternatives; list ends of one kind in a rule"
    )]
    TooManyRows,
    /// Too many ranges overlap.
    #[error(
        "compiling the policy: its ranges and prefixes overlap too much; join rules of the same action"
    )]
    TooEntangled,
    /// More DNS names than [`super::MAX_PATTERNS`].
    #[error("compiling the policy: more than {} DNS names", super::MAX_PATTERNS)]
    TooManyNames,
}

/// Dimensions.
pub(super) const DIMENSIONS: usize = 10;

/// A policy ready to judge; see the module's head.
#[derive(Debug)]
pub struct Compiled {
    /// Which state of the policy it is; not 0.
    pub epoch: u32,
    pub(super) config: PolicyConfig,
    pub(super) rows: usize,
    pub(super) rule_of: Vec<u16>,
    /// Names that rows need; most need none.
    pub(super) names: HashMap<u32, RowNames>,
    pub(super) wild: [Wild; DIMENSIONS],
    /// Dimensions that some row cares about, in the order they are asked: what most rows care about tells them apart best.
    pub(super) order: Vec<usize>,
    pub(super) vectors: Vectors,
    pub(super) ports: [Table; 2],
    pub(super) networks: [Table; 2],
    pub(super) v4: [Pieces<u32>; 2],
    pub(super) v6: [Pieces<u128>; 2],
    pub(super) l4: [Pieces<u16>; 2],
    pub(super) protocols: Table,
    pub(super) states: Table,
    tallies: Vec<Arc<Tally>>,
    default: Arc<Tally>,
    bridged: Bridged,
    needs_port: bool,
}

/// Policies are the same if their epochs are: a switch never gives one out twice.
impl PartialEq for Compiled {
    fn eq(&self, other: &Compiled) -> bool {
        self.epoch == other.epoch
    }
}

impl Eq for Compiled {}

/// Names that the ends of a row need.
#[derive(Debug)]
pub(super) struct RowNames {
    pub(super) from: Vec<Vec<Arc<str>>>,
    pub(super) to: Vec<Vec<Arc<str>>>,
}

/// Networks in which frames between ports have to be judged.
#[derive(Debug, Default)]
struct Bridged {
    all: bool,
    networks: Vec<NetworkId>,
}

pub(super) mod dim {
    //! Places of the dimensions.
    pub(in super::super) const DST: usize = 0;
    pub(in super::super) const SRC: usize = 1;
    pub(in super::super) const TO_PORT: usize = 2;
    pub(in super::super) const PORT: usize = 3;
    pub(in super::super) const FROM_PORT: usize = 4;
    pub(in super::super) const PROTOCOL: usize = 5;
    pub(in super::super) const TO_NETWORK: usize = 6;
    pub(in super::super) const FROM_NETWORK: usize = 7;
    pub(in super::super) const SOURCE_PORT: usize = 8;
}

fn cares(row: &Row, dimension: usize) -> bool {
    match dimension {
        dim::DST => row.to.prefixes.is_some(),
        dim::SRC => row.from.prefixes.is_some(),
        dim::TO_PORT => row.to.ports.is_some(),
        dim::PORT => row.ports.is_some(),
        dim::FROM_PORT => row.from.ports.is_some(),
        dim::PROTOCOL => row.protocols.is_some(),
        dim::TO_NETWORK => row.to.networks.is_some(),
        dim::FROM_NETWORK => row.from.networks.is_some(),
        dim::SOURCE_PORT => row.source_ports.is_some(),
        // The last one: the state.
        _ => row.states != super::StateSet::ANY,
    }
}

/// First and last address of a prefix.
fn v4((ip, len): (Ipv4Addr, u8)) -> (u32, u32) {
    let host = u32::MAX.checked_shr(len.into()).unwrap_or(0);
    let ip = u32::from(ip);
    (ip & !host, ip | host)
}

fn v6((ip, len): (Ipv6Addr, u8)) -> (u128, u128) {
    let host = u128::MAX.checked_shr(len.into()).unwrap_or(0);
    let ip = u128::from(ip);
    (ip & !host, ip | host)
}

struct Tables<'a> {
    rows: &'a [Row],
    builder: Builder,
}

impl Tables<'_> {
    fn table(&mut self, values: impl Fn(&Row) -> Option<Vec<u16>>) -> Result<Table, CompileError> {
        let mut by_value: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
        for (i, row) in self.rows.iter().enumerate() {
            for v in values(row).into_iter().flatten() {
                by_value.entry(v).or_default().push(i as u32);
            }
        }
        Table::new(&by_value, self.rows.len(), &mut self.builder)
    }

    fn pieces<T: Number>(
        &mut self,
        ranges: impl Fn(&Row) -> Vec<(T, T)>,
    ) -> Result<Pieces<T>, CompileError> {
        let mut all = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            all.extend(ranges(row).into_iter().map(|(a, b)| (i as u32, a, b)));
        }
        Pieces::new(all, self.rows.len(), &mut self.builder)
    }

    fn v4(&mut self, side: impl Fn(&Row) -> &Side) -> Result<Pieces<u32>, CompileError> {
        self.pieces(|row| {
            let prefixes = side(row).prefixes.iter().flatten();
            let of = |p: &(IpAddr, u8)| match p.0 {
                IpAddr::V4(ip) => Some(v4((ip, p.1))),
                IpAddr::V6(_) => None,
            };
            prefixes.filter_map(of).collect()
        })
    }

    fn v6(&mut self, side: impl Fn(&Row) -> &Side) -> Result<Pieces<u128>, CompileError> {
        self.pieces(|row| {
            let prefixes = side(row).prefixes.iter().flatten();
            let of = |p: &(IpAddr, u8)| match p.0 {
                IpAddr::V6(ip) => Some(v6((ip, p.1))),
                IpAddr::V4(_) => None,
            };
            prefixes.filter_map(of).collect()
        })
    }
}

fn port_numbers(side: &Side) -> Option<Vec<u16>> {
    let ports = side.ports.as_ref()?;
    Some(ports.iter().map(|p| p.0).collect())
}

fn network_numbers(side: &Side) -> Option<Vec<u16>> {
    let networks = side.networks.as_ref()?;
    Some(networks.iter().map(|n| n.0).collect())
}

impl Compiled {
    /// Compiles a policy. Counters and token buckets of rules that `old` has too stay.
    pub fn new(
        epoch: u32,
        config: PolicyConfig,
        old: Option<&Compiled>,
    ) -> Result<Compiled, CompileError> {
        if config.rules.len() > MAX_RULES {
            return Err(CompileError::TooManyRules);
        }
        let rows = rows(&config)?;
        Names::check(&config)?;
        let n = rows.len();
        let mut t = Tables {
            rows: &rows,
            builder: Builder::new(n),
        };
        let ports = [
            t.table(|r| port_numbers(&r.from))?,
            t.table(|r| port_numbers(&r.to))?,
        ];
        let networks = [
            t.table(|r| network_numbers(&r.from))?,
            t.table(|r| network_numbers(&r.to))?,
        ];
        let v4 = [t.v4(|r| &r.from)?, t.v4(|r| &r.to)?];
        let v6 = [t.v6(|r| &r.from)?, t.v6(|r| &r.to)?];
        let list = |l: &Option<Vec<(u16, u16)>>| l.clone().unwrap_or_default();
        let l4 = [
            t.pieces(|r| list(&r.source_ports))?,
            t.pieces(|r| list(&r.ports))?,
        ];
        let protocols = t.table(|r| {
            let all = r.protocols.as_ref()?;
            Some(all.iter().map(|p| u16::from(*p)).collect())
        })?;
        let states = t.table(|r| {
            let has = |s: &State| r.states.has(*s);
            let all = [State::New, State::Established, State::Related];
            Some(all.iter().filter(|s| has(s)).map(|s| *s as u16).collect())
        })?;
        let vectors = t.builder.finish();
        let named = rows.iter().enumerate().filter_map(|(i, r)| {
            let names = RowNames {
                from: r.from.names.clone(),
                to: r.to.names.clone(),
            };
            let any = !names.from.is_empty() || !names.to.is_empty();
            any.then_some((i as u32, names))
        });
        let wild: [Wild; DIMENSIONS] =
            std::array::from_fn(|d| Wild::new(n, |row| !cares(&rows[row], d)));
        let mut order: Vec<usize> = (0..DIMENSIONS).filter(|d| wild[*d].count < n).collect();
        order.sort_by_key(|d| wild[*d].count);
        Ok(Compiled {
            epoch,
            rows: n,
            rule_of: rows.iter().map(|r| r.rule).collect(),
            names: named.collect(),
            wild,
            order,
            vectors,
            ports,
            networks,
            v4,
            v6,
            l4,
            protocols,
            states,
            tallies: tallies(&config, old),
            default: old.map_or_else(
                || Arc::new(Tally::new(&Rule::new("", config.default))),
                |o| o.default.clone(),
            ),
            bridged: bridged(&rows, &config),
            needs_port: rows.iter().any(|r| r.to.ports.is_some()),
            config,
        })
    }

    /// What it was compiled from.
    #[must_use]
    pub fn config(&self) -> &PolicyConfig {
        &self.config
    }

    /// A rule.
    #[must_use]
    pub fn rule(&self, number: u16) -> Option<&Rule> {
        self.config.rules.get(usize::from(number))
    }

    /// Whether frames between ports of the network have to be judged.
    #[must_use]
    pub fn judges_bridged(&self, network: NetworkId) -> bool {
        self.bridged.all || self.bridged.networks.contains(&network)
    }

    /// Whether frames between ports of any network have to be judged.
    #[must_use]
    pub fn judges_any_bridged(&self) -> bool {
        self.bridged.all || !self.bridged.networks.is_empty()
    }

    /// Whether a judgement needs to know the port that a connection goes to.
    #[must_use]
    pub fn needs_to_port(&self) -> bool {
        self.needs_port
    }

    /// Whether a rule asks for source ports.
    #[must_use]
    pub fn asks_source_ports(&self) -> bool {
        let mut all = self.config.rules.iter();
        all.any(|r| !r.source_ports.is_empty())
    }

    /// Bytes of memory of the tables.
    #[must_use]
    pub fn memory(&self) -> usize {
        let sum = |m: [usize; 2]| m[0] + m[1];
        self.vectors.memory()
            + sum([0, 1].map(|i| self.v4[i].memory() + self.v6[i].memory() + self.l4[i].memory()))
            + self.rule_of.len() * 2
    }

    fn tally(&self, rule: Option<u16>) -> &Tally {
        let found = rule.and_then(|r| self.tallies.get(usize::from(r)));
        found.unwrap_or(&self.default)
    }

    /// Counts a decision. One that is beyond its rule's rate becomes a drop.
    pub fn charge(&self, decision: Decision, now: Nanos) -> Decision {
        if self.tally(decision.rule).judged(now) {
            return decision;
        }
        Decision {
            action: Action::Drop,
            ..decision
        }
    }

    /// What [`Compiled::charge`] would make of a decision.
    #[must_use]
    pub fn would_charge(&self, decision: Decision, now: Nanos) -> Decision {
        if self.tally(decision.rule).is_within(now) {
            return decision;
        }
        Decision {
            action: Action::Drop,
            ..decision
        }
    }

    /// Counts packets of a connection that a rule has judged.
    pub fn count(&self, rule: Option<u16>, packets: u64, bytes: u64) {
        self.tally(rule).packets(packets, bytes);
    }

    /// Whether a decision is to be told to people now.
    #[must_use]
    pub fn is_told(&self, decision: Decision, now: Nanos) -> bool {
        self.tally(decision.rule).is_told(now)
    }

    /// What a rule has counted; `None` is the default.
    #[must_use]
    pub fn counts(&self, rule: Option<u16>) -> Counts {
        self.tally(rule).counts()
    }
}

/// Tallies by rule; those of rules that stay are taken over.
fn tallies(config: &PolicyConfig, old: Option<&Compiled>) -> Vec<Arc<Tally>> {
    let known: HashMap<&str, (&Rule, &Arc<Tally>)> = old
        .iter()
        .flat_map(|o| o.config.rules.iter().zip(&o.tallies))
        .map(|(rule, tally)| (&*rule.name, (rule, tally)))
        .collect();
    let tally = |rule: &Rule| match known.get(&*rule.name) {
        Some((was, tally)) if *was == rule => (*tally).clone(),
        _ => Arc::new(Tally::new(rule)),
    };
    config.rules.iter().map(tally).collect()
}

/// Where rows may match frames between ports of one network.
fn bridged(rows: &[Row], config: &PolicyConfig) -> Bridged {
    let network_of: HashMap<PortId, NetworkId> =
        config.ports.iter().map(|p| (p.port, p.network)).collect();
    let places = |side: &Side| -> Option<Vec<NetworkId>> {
        if let Some(ports) = &side.ports {
            let of = |p: &PortId| network_of.get(p).copied();
            let here: Vec<NetworkId> = ports.iter().filter_map(of).collect();
            return Some(match &side.networks {
                Some(networks) => here.into_iter().filter(|n| networks.contains(n)).collect(),
                None => here,
            });
        }
        side.networks.clone()
    };
    let mut bridged = Bridged::default();
    for row in rows {
        match (places(&row.from), places(&row.to)) {
            (None, None) => bridged.all = true,
            (Some(one), None) | (None, Some(one)) => bridged.networks.extend(one),
            (Some(a), Some(b)) => bridged.networks.extend(a.iter().filter(|n| b.contains(n))),
        }
    }
    bridged.networks.sort_unstable();
    bridged.networks.dedup();
    bridged
}
