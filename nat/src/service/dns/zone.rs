//! Names of the containers of a network.
//!
//! # Theory of operation
//! A name is kept relative to the network's domain, in lower-case wire form, and answers in full (`web.net1.example`) and
//! bare (`web`). Under the domain the zone is the authority: what isn't here doesn't exist. Bare names and the
//! reverse tree are only ours where there is something, or inside the network's own subnets; the rest is for the resolvers.
//!
//! A node of the tree may belong to several hosts (an alias that a group shares): their addresses come together and take turns
//! at the head. Host names that DHCP clients *claimed* only count where no configured name is, so a container can't take another's.
//! A *link* is an alias that one port alone sees.

use super::wire::{Question, kind};
use crate::service::name::{self, InvalidName};
use hashbrown::HashMap;
use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Most hosts of a zone, and most names, addresses and services of one host.
const MAX_HOSTS: usize = 65_536;
const MAX_NAMES: usize = 64;

type Map<K, V> = HashMap<K, V, foldhash::quality::RandomState>;
/// Who registered: a container's id.
type Owner = Arc<str>;

mod rr {
    pub(super) const A: u16 = 1;
    pub(super) const NS: u16 = 2;
    pub(super) const PTR: u16 = 12;
    pub(super) const AAAA: u16 = 28;
    pub(super) const SRV: u16 = 33;
}

/// What a zone is the authority for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneConfig {
    /// The network's domain.
    pub domain: String,
    /// The gateway's addresses, which the domain itself has.
    pub gateway: Vec<IpAddr>,
    /// Further names, in full, with their addresses; they come before all others.
    pub pinned: Vec<(String, Vec<IpAddr>)>,
    /// Subnets whose reverse names are ours: address and prefix length.
    pub subnets: Vec<(IpAddr, u8)>,
    /// TTL of answers in seconds.
    pub ttl: u32,
    /// How long "there is none" may be kept, in seconds.
    pub negative_ttl: u32,
}

/// A service of a host (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `_http`.
    pub service: String,
    /// `_tcp`.
    pub protocol: String,
    /// Port.
    pub port: u16,
    /// Lower is better.
    pub priority: u16,
    /// Share among those of one priority.
    pub weight: u16,
}

/// A container on the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its name, relative to the domain.
    pub name: String,
    /// Further names; several hosts may share one.
    pub aliases: Vec<String>,
    /// Its addresses on the network.
    pub addresses: Vec<IpAddr>,
    /// Its services, under each of its names.
    pub services: Vec<Service>,
    /// The name is a DHCP client's own wish.
    pub claimed: bool,
}

/// A registration that can't be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    #[error("register {0}: {1}")]
    Name(String, InvalidName),
    #[error(
        "register {0}: at most {MAX_HOSTS} hosts with {MAX_NAMES} names, addresses and services each; remove some first"
    )]
    Full(String),
}

/// The answer to a question.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// Data for the question, and addresses that go with it.
    Records(Vec<RData>, Vec<(Name, RData)>),
    /// The name exists, data of the type doesn't.
    NoData,
    NxDomain,
    /// Not ours to answer.
    Elsewhere,
}

#[derive(Debug, Default)]
struct Node {
    configured: Vec<Owner>,
    claimed: Vec<Owner>,
    services: Vec<(Owner, Service)>,
    /// Nodes below that exist.
    below: usize,
    turn: usize,
}

impl Node {
    fn owners(&self) -> &[Owner] {
        if self.configured.is_empty() {
            &self.claimed
        } else {
            &self.configured
        }
    }

    fn is_empty(&self) -> bool {
        self.owners().is_empty() && self.services.is_empty()
    }
}

#[derive(Debug)]
struct Registered {
    host: Host,
    /// Full name, target of SRV and PTR.
    name: Name,
    keys: Vec<Box<[u8]>>,
}

/// Names of a network.
#[derive(Debug)]
pub struct Zone {
    config: ZoneConfig,
    domain: Name,
    /// The domain in wire form.
    suffix: Vec<u8>,
    /// Pinned names in wire form.
    pinned: Vec<(Vec<u8>, Vec<IpAddr>)>,
    serial: u32,
    hosts: Map<Owner, Registered>,
    nodes: Map<Box<[u8]>, Node>,
    reverse: Map<IpAddr, Vec<Owner>>,
    links: Map<(u32, Box<[u8]>), Vec<Owner>>,
}

impl Zone {
    /// A zone without hosts.
    ///
    /// # Errors
    /// When the domain or a pinned name can't be one.
    pub fn new(config: ZoneConfig) -> Result<Zone, InvalidName> {
        let domain = name::domain(&config.domain)?;
        let wire = |name: &Name| [&labels(name)[..], &[0]].concat();
        let suffix = wire(&domain);
        let pinned = config.pinned.iter();
        let pinned = pinned.map(|(n, a)| Ok((wire(&name::domain(n)?), a.clone())));
        Ok(Zone {
            pinned: pinned.collect::<Result<_, InvalidName>>()?,
            config,
            domain,
            suffix,
            serial: 1,
            hosts: HashMap::default(),
            nodes: HashMap::default(),
            reverse: HashMap::default(),
            links: HashMap::default(),
        })
    }

    /// Registers a host under `owner` (a container's id, say), in place of what the owner had.
    ///
    /// # Errors
    /// When a name can't be one or there are too many; then the owner has what it had before.
    pub fn register(&mut self, owner: &str, host: Host) -> Result<(), RegisterError> {
        let most = host
            .aliases
            .len()
            .max(host.addresses.len())
            .max(host.services.len());
        let full = self.hosts.len() >= MAX_HOSTS && !self.hosts.contains_key(owner);
        if most > MAX_NAMES || full {
            return Err(RegisterError::Full(host.name));
        }
        let invalid = |e| RegisterError::Name(host.name.clone(), e);
        let mut keys: Vec<Box<[u8]>> = vec![];
        for text in [&host.name].into_iter().chain(&host.aliases) {
            let key = self.key(text).map_err(invalid)?.into();
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let mut services = vec![];
        for s in &host.services {
            for key in &keys {
                let text = format!("{}.{}", s.service, s.protocol);
                let head = labels(&name::domain(&text).map_err(invalid)?);
                services.push(([&head, &**key].concat().into_boxed_slice(), s.clone()));
            }
        }
        let full_name = name::domain(&host.name)
            .and_then(|n| {
                let joined = n.append_domain(&self.domain);
                joined.map_err(|_| InvalidName(host.name.clone()))
            })
            .map_err(invalid)?;
        self.unregister(owner);
        let owner: Owner = owner.into();
        for key in &keys {
            let node = self.node(key);
            let list = if host.claimed {
                &mut node.claimed
            } else {
                &mut node.configured
            };
            list.push(owner.clone());
        }
        for (key, service) in services {
            self.node(&key).services.push((owner.clone(), service));
            keys.push(key);
        }
        for address in &host.addresses {
            self.reverse
                .entry(*address)
                .or_default()
                .push(owner.clone());
        }
        self.serial = self.serial.wrapping_add(1);
        let registered = Registered {
            host,
            name: full_name,
            keys,
        };
        self.hosts.insert(owner, registered);
        Ok(())
    }

    /// Removes what an owner registered; whether there was anything.
    pub fn unregister(&mut self, owner: &str) -> bool {
        let Some(old) = self.hosts.remove(owner) else {
            return false;
        };
        for key in &old.keys {
            if let Some(node) = self.nodes.get_mut(key) {
                node.configured.retain(|o| &**o != owner);
                node.claimed.retain(|o| &**o != owner);
                node.services.retain(|(o, _)| &**o != owner);
            }
            self.prune(key);
        }
        for address in &old.host.addresses {
            if let Some(owners) = self.reverse.get_mut(address) {
                owners.retain(|o| &**o != owner);
                if owners.is_empty() {
                    self.reverse.remove(address);
                }
            }
        }
        self.serial = self.serial.wrapping_add(1);
        true
    }

    /// Has the port alone see `alias` as a name of `owner`.
    ///
    /// # Errors
    /// When the alias can't be a name or the port has too many.
    pub fn link(&mut self, port: u32, alias: &str, owner: &str) -> Result<(), RegisterError> {
        let key = self
            .key(alias)
            .map_err(|e| RegisterError::Name(alias.to_owned(), e))?;
        let owners = self.links.entry((port, key.into())).or_default();
        if owners.len() >= MAX_NAMES {
            return Err(RegisterError::Full(alias.to_owned()));
        }
        if owners.iter().all(|o| &**o != owner) {
            owners.push(owner.into());
        }
        Ok(())
    }

    /// Removes all links of a port.
    pub fn unlink(&mut self, port: u32) {
        self.links.retain(|(p, _), _| *p != port);
    }

    /// The registered hosts with their owners.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, &Host)> {
        self.hosts.iter().map(|(o, r)| (&**o, &r.host))
    }

    /// TTL of answers, in seconds.
    pub(super) fn ttl(&self) -> u32 {
        self.config.ttl
    }

    /// The SOA that goes with "there is none": owner and data.
    pub(super) fn soa(&self, asked: &Name) -> (Name, RData) {
        let owner = if self.domain.zone_of(asked) {
            self.domain.clone()
        } else {
            asked.clone()
        };
        let mailbox = self.domain.prepend_label("hostmaster");
        let soa = SOA::new(
            self.domain.clone(),
            mailbox.unwrap_or_else(|_| self.domain.clone()),
            self.serial,
            3600,
            600,
            86_400,
            self.config.negative_ttl,
        );
        (owner, RData::SOA(soa))
    }

    pub(super) fn negative_ttl(&self) -> u32 {
        self.config.negative_ttl
    }

    /// Answers a question of class IN of a port.
    pub(super) fn look_up(&mut self, port: u32, question: &Question) -> Found {
        if let Some(found) = special(question) {
            return found;
        }
        if let Some((_, all)) = self.pinned.iter().find(|(n, _)| *n == *question.name) {
            return addresses_of(all, question.kind);
        }
        if let Some(address) = reverse_address(&question.name) {
            return self.look_up_reverse(address, question.kind);
        }
        let below = question
            .name
            .strip_suffix(&self.suffix[..])
            .filter(|head| ends_at_label(head));
        let bare = question.name.strip_suffix(&[0]).unwrap_or_default();
        let Some(key) = below else {
            return match self.data(port, bare, question.kind) {
                Some(Found::NxDomain) | None => Found::Elsewhere,
                Some(found) => found,
            };
        };
        if key.is_empty() {
            return self.apex(question.kind);
        }
        match self.data(port, key, question.kind) {
            Some(found) => found,
            None if self.nodes.contains_key(key) => Found::NoData,
            None => Found::NxDomain,
        }
    }

    /// Data at a node that has any.
    fn data(&mut self, port: u32, key: &[u8], kind: u16) -> Option<Found> {
        let link = self.links.get(&(port, key.into()));
        let mut services = vec![];
        let mut turn = 0;
        let mut owners: Vec<Owner> = link.cloned().unwrap_or_default();
        if let Some(node) = self.nodes.get_mut(key).filter(|n| !n.is_empty()) {
            node.turn = node.turn.wrapping_add(1);
            turn = node.turn;
            if owners.is_empty() {
                owners = node.owners().to_vec();
            }
            services.clone_from(&node.services);
        }
        if owners.is_empty() && services.is_empty() {
            return None;
        }
        let mut addresses: Vec<RData> = owners
            .iter()
            .filter_map(|o| self.hosts.get(o))
            .flat_map(|r| r.host.addresses.iter().map(|a| address_data(*a)))
            .collect();
        let any = kind == super::wire::kind::ANY;
        addresses.retain(|d| any || u16::from(d.record_type()) == kind);
        if any && let Some(first) = addresses.first().map(RData::record_type) {
            // One set of records answers ANY (RFC 8482 4.1).
            addresses.retain(|d| d.record_type() == first);
        }
        if !addresses.is_empty() {
            let by = turn % addresses.len();
            addresses.rotate_left(by);
            return Some(Found::Records(addresses, vec![]));
        }
        if (kind == rr::SRV || any) && !services.is_empty() {
            return Some(self.service_data(&services));
        }
        Some(Found::NoData)
    }

    fn service_data(&self, services: &[(Owner, Service)]) -> Found {
        let mut records = vec![];
        let mut more = vec![];
        for (owner, s) in services {
            let Some(target) = self.hosts.get(owner) else {
                continue;
            };
            let srv = SRV::new(s.priority, s.weight, s.port, target.name.clone());
            records.push(RData::SRV(srv));
            for address in &target.host.addresses {
                let additional = (target.name.clone(), address_data(*address));
                if !more.contains(&additional) {
                    more.push(additional);
                }
            }
        }
        Found::Records(records, more)
    }

    fn apex(&self, kind: u16) -> Found {
        let records = match kind {
            kind::SOA | kind::ANY => vec![self.soa(&self.domain).1],
            rr::NS => vec![RData::NS(NS(self.domain.clone()))],
            rr::A | rr::AAAA => return addresses_of(&self.config.gateway, kind),
            _ => vec![],
        };
        if records.is_empty() {
            Found::NoData
        } else {
            Found::Records(records, vec![])
        }
    }

    fn look_up_reverse(&self, address: IpAddr, kind: u16) -> Found {
        let Some(owners) = self.reverse.get(&address) else {
            let own = self.config.gateway.contains(&address);
            let ours = own || self.config.subnets.iter().any(|s| within(address, *s));
            return match (own, ours, kind) {
                (true, _, rr::PTR) => {
                    Found::Records(vec![RData::PTR(PTR(self.domain.clone()))], vec![])
                }
                (true, ..) => Found::NoData,
                (_, true, _) => Found::NxDomain,
                _ => Found::Elsewhere,
            };
        };
        if kind != rr::PTR && kind != kind::ANY {
            return Found::NoData;
        }
        let names = owners.iter().filter_map(|o| self.hosts.get(o));
        let names = names.map(|r| RData::PTR(PTR(r.name.clone())));
        Found::Records(names.collect(), vec![])
    }

    /// Labels of a relative name, or of a full one under the domain, such that it still fits with the domain behind.
    fn key(&self, text: &str) -> Result<Vec<u8>, InvalidName> {
        let key = labels(&name::domain(text)?);
        if key.len() + self.suffix.len() > 255 {
            return Err(InvalidName(text.to_owned()));
        }
        Ok(key)
    }

    /// The node of a key, made with its ancestors where missing.
    fn node(&mut self, key: &[u8]) -> &mut Node {
        if !self.nodes.contains_key(key) {
            let parent = parent(key);
            if !parent.is_empty() {
                self.node(parent).below += 1;
            }
        }
        self.nodes.entry(key.into()).or_default()
    }

    /// Removes a node that holds nothing and leads to nothing, and then its parent.
    fn prune(&mut self, key: &[u8]) {
        let empty = |n: &Node| {
            n.configured.is_empty() && n.claimed.is_empty() && n.services.is_empty() && n.below == 0
        };
        if self.nodes.get(key).is_some_and(empty) {
            self.nodes.remove(key);
            let parent = parent(key);
            if let Some(node) = self.nodes.get_mut(parent) {
                node.below = node.below.saturating_sub(1);
                self.prune(parent);
            }
        }
    }
}

/// Labels in wire form without the root.
fn labels(name: &Name) -> Vec<u8> {
    let mut out = vec![];
    for label in name.iter() {
        out.push(label.len() as u8);
        out.extend(label);
    }
    out
}

fn parent(key: &[u8]) -> &[u8] {
    let first = key.first().copied().unwrap_or(0);
    key.get(1 + usize::from(first)..).unwrap_or_default()
}

/// Whether bytes are whole labels, so that what follows begins one.
fn ends_at_label(mut head: &[u8]) -> bool {
    while let Some(len) = head.first() {
        match head.get(1 + usize::from(*len)..) {
            Some(rest) => head = rest,
            None => return false,
        }
    }
    true
}

/// The addresses that a question asks for.
fn addresses_of(all: &[IpAddr], kind: u16) -> Found {
    let mut records: Vec<RData> = all.iter().map(|a| address_data(*a)).collect();
    records.retain(|d| u16::from(d.record_type()) == kind);
    match records.is_empty() {
        true => Found::NoData,
        false => Found::Records(records, vec![]),
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(a) => RData::A(A(a)),
        IpAddr::V6(a) => RData::AAAA(AAAA(a)),
    }
}

fn within(address: IpAddr, (net, len): (IpAddr, u8)) -> bool {
    let same = |a: u128, b: u128, bits: u32| {
        let host = bits.saturating_sub(len.into());
        a.checked_shr(host).unwrap_or(0) == b.checked_shr(host).unwrap_or(0)
    };
    match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
        _ => false,
    }
}

/// The address that a name of the reverse tree stands for (RFC 1035 3.5, RFC 3596 2.5).
fn reverse_address(name: &[u8]) -> Option<IpAddr> {
    let mut parts = vec![];
    let mut rest = name;
    while let [len @ 1..=63, tail @ ..] = rest {
        let (label, after) = tail.split_at_checked(usize::from(*len))?;
        parts.push(std::str::from_utf8(label).ok()?);
        rest = after;
    }
    match parts.as_slice() {
        [a, b, c, d, "in-addr", "arpa"] => {
            let text = [*d, *c, *b, *a].join(".");
            text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
        }
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let mut value = 0u128;
            for nibble in nibbles.iter().rev() {
                let [digit] = nibble.as_bytes() else {
                    return None;
                };
                value = (value << 4) | u128::from(char::from(*digit).to_digit(16)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(value)))
        }
        _ => None,
    }
}

/// Names that never leave the machine (RFC 6761 6.3, 6.4, RFC 7686).
fn special(question: &Question) -> Option<Found> {
    let under = |tail: &[u8]| {
        let head = question.name.strip_suffix(tail)?;
        ends_at_label(head).then_some(())
    };
    if under(b"\x09localhost\0").is_some() {
        let address = match question.kind {
            rr::A => IpAddr::V4(Ipv4Addr::LOCALHOST),
            rr::AAAA => IpAddr::V6(Ipv6Addr::LOCALHOST),
            _ => return Some(Found::NoData),
        };
        return Some(Found::Records(vec![address_data(address)], vec![]));
    }
    under(b"\x07invalid\0").or_else(|| under(b"\x05onion\0"))?;
    Some(Found::NxDomain)
}
