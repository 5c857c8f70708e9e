//! Rules as they are configured, and what they are asked about.

use std::net::IpAddr;
use std::sync::Arc;
use vswitch_core::bridge::{NetworkId, Rate};
use vswitch_core::port::PortId;

/// A label: a name given to ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelId(pub u16);

/// What a rule does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Action {
    /// The connection may be.
    #[default]
    Accept,
    /// It may not.
    Drop,
    /// It may not, and who began it is told: by a reset (TCP) or an ICMP error "administratively prohibited".
    Reject,
}

impl Action {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Accept => "accept",
            Action::Drop => "drop",
            Action::Reject => "reject",
        }
    }
}

/// State of a packet's connection when it is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// It begins, or nothing has come back yet.
    #[default]
    New,
    /// Both ways, and judged again because policy changed.
    Established,
    /// Not a connection, but about one (ICMP errors).
    Related,
}

/// A set of states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateSet(u8);

impl StateSet {
    /// All states.
    pub const ANY: StateSet = StateSet(7);

    /// These states.
    #[must_use]
    pub fn of(states: &[State]) -> StateSet {
        StateSet(states.iter().fold(0, |set, s| set | 1 << *s as u8))
    }

    /// Whether the state is one of them.
    #[must_use]
    pub fn has(self, state: State) -> bool {
        self.0 & 1 << state as u8 != 0
    }
}

/// One end of a connection: what is listed are alternatives; nothing listed is any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct End {
    /// Ports.
    pub ports: Vec<PortId>,
    /// Labels of ports.
    pub labels: Vec<LabelId>,
    /// Networks.
    pub networks: Vec<NetworkId>,
    /// Prefixes of addresses.
    pub prefixes: Vec<(IpAddr, u8)>,
    /// DNS names, or `*.` and a domain for all names below it; their addresses are learned at run time.
    pub names: Vec<Arc<str>>,
}

impl End {
    /// Whether nothing is listed.
    #[must_use]
    pub fn is_any(&self) -> bool {
        let End {
            ports,
            labels,
            networks,
            prefixes,
            names,
        } = self;
        ports.is_empty()
            && labels.is_empty()
            && networks.is_empty()
            && prefixes.is_empty()
            && names.is_empty()
    }
}

/// A rule. Empty lists match anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, by which its counters stay with it.
    pub name: Arc<str>,
    /// Who begins the connection; all of these must match.
    pub from: Vec<End>,
    /// Whom it is for, after translation of the destination; all of these must match.
    pub to: Vec<End>,
    /// IP protocol numbers.
    pub protocols: Vec<u8>,
    /// Source ports, in ranges; only protocols that have ports match.
    pub source_ports: Vec<(u16, u16)>,
    /// Destination ports, in ranges.
    pub ports: Vec<(u16, u16)>,
    /// ICMP types, with a code if it matters; only ICMP and ICMPv6 match.
    pub icmp: Vec<(u8, Option<u8>)>,
    /// States.
    pub states: StateSet,
    /// What it does.
    pub action: Action,
    /// Events per second that tell of its matches; none if `None`.
    pub log: Option<u32>,
    /// New connections it lets pass per second; what is beyond is dropped.
    pub limit: Option<Rate>,
}

impl Rule {
    /// A rule that matches everything.
    #[must_use]
    pub fn new(name: &str, action: Action) -> Rule {
        Rule {
            name: name.into(),
            from: Vec::new(),
            to: Vec::new(),
            protocols: Vec::new(),
            source_ports: Vec::new(),
            ports: Vec::new(),
            icmp: Vec::new(),
            states: StateSet::ANY,
            action,
            log: None,
            limit: None,
        }
    }
}

/// A port of the switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Which.
    pub port: PortId,
    /// Its network.
    pub network: NetworkId,
    /// Its labels.
    pub labels: Vec<LabelId>,
}

/// A policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyConfig {
    /// Rules in the order they are asked.
    pub rules: Vec<Rule>,
    /// What is done when no rule matches.
    pub default: Action,
    /// Ports with their labels.
    pub ports: Vec<PortInfo>,
}

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Port that the connection comes from.
    pub from_port: Option<PortId>,
    /// Network that it comes from.
    pub from_network: Option<NetworkId>,
    /// Port that it goes to, if that is known.
    pub to_port: Option<PortId>,
    /// Network that it goes to.
    pub to_network: Option<NetworkId>,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol number.
    pub proto: u8,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub port: u16,
    /// Type and code of an ICMP or ICMPv6 message.
    pub icmp: (u8, u8),
    /// State of the connection.
    pub state: State,
}

/// ICMP and ICMPv6 have types in place of ports.
pub(super) const ICMP: [u8; 2] = [1, 58];
/// TCP, UDP, SCTP, DCCP and UDP-Lite have ports.
pub(super) const WITH_PORTS: [u8; 5] = [6, 17, 132, 33, 136];

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Number of the rule that says so; `None` is the default.
    pub rule: Option<u16>,
}
