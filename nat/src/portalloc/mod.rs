//! External ports for SNAT and masquerade.
//!
//! A *mapping* ties an internal endpoint (zone, protocol, address, port) to an external one, whatever the destination: endpoint-
//! independent mapping (RFC 4787 REQ-1, RFC 5382 REQ-1; ICMP identifiers alike, RFC 5508 REQ-1). Flows from the same internal endpoint
//! share it, each by a [`PortLease`]; with the last lease it ends and the port is free, after [`PoolConfig::reuse_delay`] if one is set.
//!
//! The port: the internal one if free, else a random one of the same range, 0-1023 or 1024-65535 (REQ-3), with the same parity for UDP
//! (REQ-4) if there is one; a low port may get a high one, never the other way. The address: the one the internal host
//! has already ("paired", REQ-2), else a random one.
//!
//! A lease is an index and a generation, 8 bytes in a connection, given back by [`PortPool::release`], which consumes it. An RAII lease
//! would have to reach the pool by itself: an `Rc` makes a stage that can't be moved to its worker's thread, an `Arc<Mutex>` locks
//! per flow, and either is as long again. That none is lost shows in [`PortPool::leases`] beside the number of connections.
//!
//! Memory: 8 KiB per (address, protocol) in use, and bounded tables. Randomness and time are passed in.

mod mapping;
mod ports;

use crate::Endpoint;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use mapping::{Mapping, Mappings};
use ports::{Parity, Ports};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;
use vswitch_core::clock::Nanos;

/// From which remote hosts packets to an external endpoint reach the internal one (RFC 4787 REQ-8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// From any.
    EndpointIndependent,
    /// From addresses the internal endpoint has a flow to.
    AddressDependent,
    /// Only of flows that exist, which connection tracking knows.
    #[default]
    AddressAndPortDependent,
}

/// How a host's external address is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// The one it has already; exhausted with that one (RFC 4787 REQ-2).
    #[default]
    Paired,
    /// The one it has already, else any.
    Arbitrary,
}

/// A pool's settings.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// External addresses, of one family.
    pub addresses: Vec<IpAddr>,
    /// External ports that may be used. ICMP identifiers aren't bound by it.
    pub ports: RangeInclusive<u16>,
    /// Filtering of what comes from outside.
    pub filtering: Filtering,
    /// Choice of the address.
    pub pooling: Pooling,
    /// Mappings at most.
    pub mappings: usize,
    /// Mappings of one internal host at most.
    pub per_host: u32,
    /// How long a port isn't given out again.
    pub reuse_delay: Duration,
}

impl PoolConfig {
    /// A pool of these addresses, else with the defaults.
    #[must_use]
    pub fn new(addresses: Vec<IpAddr>) -> PoolConfig {
        PoolConfig {
            addresses,
            ports: 1..=65_535,
            filtering: Filtering::default(),
            pooling: Pooling::default(),
            mappings: 262_144,
            per_host: u32::MAX,
            reuse_delay: Duration::ZERO,
        }
    }
}

/// Why no port was leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// No free port.
    #[error(
        "lease an external port: none is free; add addresses to the pool or widen its port range"
    )]
    Exhausted,
    /// The internal host has as many as it may.
    #[error("lease an external port: the host has as many as it may")]
    HostLimit,
    /// The pool has as many mappings as it may.
    #[error("lease an external port: the pool has as many mappings as it may; raise its limit")]
    PoolLimit,
    /// The pool has no address of the host's family.
    #[error("lease an external port: the pool has no address of the host's family")]
    Family,
}

impl LeaseError {
    /// In a few words.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            LeaseError::Exhausted => "no external port is free",
            LeaseError::HostLimit => "the host has as many external ports as it may",
            LeaseError::PoolLimit => "the pool has as many mappings as it may",
            LeaseError::Family => "the pool has no address of the host's family",
        }
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Mappings made.
    pub made: u64,
    /// Of them, with the internal port.
    pub preserved: u64,
    /// [`LeaseError::Exhausted`].
    pub exhausted: u64,
    /// [`LeaseError::HostLimit`].
    pub host_limit: u64,
    /// [`LeaseError::PoolLimit`].
    pub pool_limit: u64,
}

/// The internal side of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Internal {
    /// Network or router the address belongs to.
    pub zone: u16,
    /// IP protocol.
    pub proto: u8,
    /// Address and port or identifier.
    pub end: Endpoint,
}

/// A share in a mapping. To be given back to the pool it came from.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the port is leased until PortPool::release"]
pub struct PortLease {
    mapping: u32,
    generation: u32,
}

/// What an external endpoint leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// The internal endpoint.
    To(Internal),
    /// There is a mapping, and the filter doesn't let this remote host pass.
    Filtered,
    /// There is no mapping.
    Unmapped,
}

/// ICMP and ICMPv6, whose identifiers are any.
fn is_icmp(proto: u8) -> bool {
    matches!(proto, 1 | 58)
}

#[derive(Debug, Default)]
struct Host {
    address: u16,
    mappings: u32,
}

/// External addresses and their ports.
#[derive(Debug)]
pub struct PortPool {
    config: PoolConfig,
    ports: HashMap<(u16, u8), Ports, RandomState>,
    mappings: Mappings,
    hosts: HashMap<(u16, IpAddr), Host, RandomState>,
    /// Flows of a mapping to a remote address; only for address-dependent filtering.
    remotes: HashMap<(u32, IpAddr), u32, RandomState>,
    /// Ports not to be given out before the time.
    resting: VecDeque<(Nanos, u16, u8, u16)>,
    leases: usize,
    stats: PoolStats,
}

/// Most ports that rest; beyond it the first to rest is given out early.
const MAX_RESTING: usize = 65_536;

impl PortPool {
    /// An empty pool.
    #[must_use]
    pub fn new(config: PoolConfig) -> PortPool {
        PortPool {
            config,
            ports: HashMap::default(),
            mappings: Mappings::default(),
            hosts: HashMap::default(),
            remotes: HashMap::default(),
            resting: VecDeque::new(),
            leases: 0,
            stats: PoolStats::default(),
        }
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.stats
    }

    /// Takes counters back to what they were.
    pub(crate) fn set_stats(&mut self, stats: PoolStats) {
        self.stats = stats;
    }

    /// Leases not yet given back.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.leases
    }

    /// Mappings that exist.
    #[must_use]
    pub fn mappings(&self) -> usize {
        self.mappings.len()
    }

    /// Takes a port (a published one) out of the pool until [`PortPool::unreserve`]. A mapping that has it keeps it; false then, or if
    /// the address isn't the pool's.
    pub fn reserve(&mut self, proto: u8, external: Endpoint) -> bool {
        let Some(address) = self.address_index(external.addr) else {
            return false;
        };
        ports_of(&mut self.ports, address, proto).reserve(external.port, true);
        self.mappings
            .outside(address, proto, external.port)
            .is_none()
    }

    /// Puts a reserved port back.
    pub fn unreserve(&mut self, proto: u8, external: Endpoint) {
        if let Some(address) = self.address_index(external.addr) {
            ports_of(&mut self.ports, address, proto).reserve(external.port, false);
        }
    }

    /// A lease for a flow from an internal endpoint to `remote`, and the external endpoint: that of the endpoint's other
    /// flows, or a new one.
    pub fn lease(
        &mut self,
        now: Nanos,
        internal: Internal,
        remote: IpAddr,
        random: u64,
    ) -> Result<(PortLease, Endpoint), LeaseError> {
        let index = match self.mappings.inside(&internal) {
            Some(index) => index,
            None => self.map(now, internal, random).inspect_err(|e| match e {
                LeaseError::Exhausted => self.stats.exhausted += 1,
                LeaseError::HostLimit => self.stats.host_limit += 1,
                LeaseError::PoolLimit => self.stats.pool_limit += 1,
                LeaseError::Family => {}
            })?,
        };
        Ok((self.share(index, remote), self.external(index)))
    }

    /// A lease for a flow that `remote` begins by a packet to an external endpoint, with the internal one.
    pub fn lease_inbound(
        &mut self,
        proto: u8,
        external: Endpoint,
        remote: IpAddr,
    ) -> Option<(PortLease, Internal)> {
        let Inbound::To(internal) = self.inbound(proto, external, remote) else {
            return None;
        };
        let index = self.mappings.inside(&internal)?;
        Some((self.share(index, remote), internal))
    }

    /// As [`PortPool::lease_inbound`], for a host inside: filtering is of what comes from outside.
    pub fn lease_hairpin(
        &mut self,
        proto: u8,
        external: Endpoint,
        remote: IpAddr,
    ) -> Option<(PortLease, Internal)> {
        let address = self.address_index(external.addr)?;
        let index = self.mappings.outside(address, proto, external.port)?;
        let internal = self.mappings.get(index).internal;
        Some((self.share(index, remote), internal))
    }

    /// Where a packet from `remote` to an external endpoint goes that belongs to no flow.
    #[must_use]
    pub fn inbound(&self, proto: u8, external: Endpoint, remote: IpAddr) -> Inbound {
        let index = self
            .address_index(external.addr)
            .and_then(|a| self.mappings.outside(a, proto, external.port));
        let Some(index) = index else {
            return Inbound::Unmapped;
        };
        let passes = match self.config.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => self.remotes.contains_key(&(index, remote)),
            Filtering::AddressAndPortDependent => false,
        };
        if passes {
            Inbound::To(self.mappings.get(index).internal)
        } else {
            Inbound::Filtered
        }
    }

    /// The external endpoint of a mapping that exists: for hairpinning, and to show.
    #[must_use]
    pub fn external_of(&self, internal: &Internal) -> Option<Endpoint> {
        self.mappings.inside(internal).map(|i| self.external(i))
    }

    /// Gives a flow's lease back; `remote` as it was leased. The last one ends the mapping.
    // By value, so that none is given back twice.
    #[allow(clippy::needless_pass_by_value)]
    pub fn release(&mut self, now: Nanos, lease: PortLease, remote: IpAddr) {
        let PortLease {
            mapping: index,
            generation,
        } = lease;
        if !self.mappings.is_live(index, generation) {
            return;
        }
        self.leases -= 1;
        if self.config.filtering == Filtering::AddressDependent
            && let Some(flows) = self.remotes.get_mut(&(index, remote))
        {
            *flows -= 1;
            if *flows == 0 {
                self.remotes.remove(&(index, remote));
            }
        }
        let m = self.mappings.get_mut(index);
        m.leases -= 1;
        if m.leases > 0 {
            return;
        }
        let Mapping {
            internal,
            address,
            port,
            ..
        } = self.mappings.remove(index);
        let host = (internal.zone, internal.end.addr);
        if let Some(h) = self.hosts.get_mut(&host) {
            h.mappings -= 1;
            if h.mappings == 0 {
                self.hosts.remove(&host);
            }
        }
        if self.config.reuse_delay.is_zero() {
            ports_of(&mut self.ports, address, internal.proto).free(port);
            return;
        }
        if self.resting.len() >= MAX_RESTING {
            self.wake_first();
        }
        let until = now.after(self.config.reuse_delay);
        self.resting
            .push_back((until, address, internal.proto, port));
    }

    fn map(&mut self, now: Nanos, internal: Internal, random: u64) -> Result<u32, LeaseError> {
        // Each lease wakes at least as many as it takes, and a little more.
        for _ in 0..16 {
            if self.resting.front().is_none_or(|r| r.0 > now) {
                break;
            }
            self.wake_first();
        }
        if self.mappings.len() >= self.config.mappings {
            return Err(LeaseError::PoolLimit);
        }
        let host = (internal.zone, internal.end.addr);
        let paired = self.hosts.get(&host);
        if paired.is_some_and(|h| h.mappings >= self.config.per_host) || self.config.per_host == 0 {
            return Err(LeaseError::HostLimit);
        }
        let count = self.config.addresses.len();
        let v6 = internal.end.addr.is_ipv6();
        if !self.config.addresses.iter().any(|a| a.is_ipv6() == v6) {
            return Err(LeaseError::Family);
        }
        // The high half chooses the address, the low half the port.
        let first = paired.map_or((random >> 32) as usize % count, |h| h.address.into());
        let tries = match (paired, self.config.pooling) {
            (Some(_), Pooling::Paired) => 1,
            _ => count,
        };
        let (address, port) = (0..tries)
            .map(|i| ((first + i) % count) as u16)
            .filter(|a| self.config.addresses[usize::from(*a)].is_ipv6() == v6)
            .find_map(|a| {
                let ports = ports_of(&mut self.ports, a, internal.proto);
                let port = choose(ports, &self.config.ports, &internal, random & 0xffff_ffff)?;
                Some((a, port))
            })
            .ok_or(LeaseError::Exhausted)?;
        ports_of(&mut self.ports, address, internal.proto).take(port);
        self.stats.made += 1;
        self.stats.preserved += u64::from(port == internal.end.port);
        self.hosts
            .entry(host)
            .or_insert(Host {
                address,
                mappings: 0,
            })
            .mappings += 1;
        Ok(self.mappings.insert(internal, address, port))
    }

    fn share(&mut self, index: u32, remote: IpAddr) -> PortLease {
        self.leases += 1;
        if self.config.filtering == Filtering::AddressDependent {
            *self.remotes.entry((index, remote)).or_insert(0) += 1;
        }
        let m = self.mappings.get_mut(index);
        m.leases += 1;
        PortLease {
            mapping: index,
            generation: m.generation,
        }
    }

    fn external(&self, index: u32) -> Endpoint {
        let m = self.mappings.get(index);
        Endpoint::new(self.config.addresses[usize::from(m.address)], m.port)
    }

    /// Pools are short.
    fn address_index(&self, addr: IpAddr) -> Option<u16> {
        let at = self.config.addresses.iter().position(|a| *a == addr)?;
        u16::try_from(at).ok()
    }

    fn wake_first(&mut self) {
        if let Some((_, address, proto, port)) = self.resting.pop_front() {
            ports_of(&mut self.ports, address, proto).free(port);
        }
    }
}

fn ports_of(
    all: &mut HashMap<(u16, u8), Ports, RandomState>,
    address: u16,
    proto: u8,
) -> &mut Ports {
    all.entry((address, proto)).or_insert_with(Ports::new)
}

/// The external port for an internal one.
fn choose(
    ports: &mut Ports,
    allowed: &RangeInclusive<u16>,
    internal: &Internal,
    random: u64,
) -> Option<u16> {
    let wanted = internal.end.port;
    if is_icmp(internal.proto) {
        return if ports.is_taken(wanted) {
            ports.find(&(0..=u16::MAX), Parity::Any, random)
        } else {
            Some(wanted)
        };
    }
    // Port 0 is nobody's.
    let within = |low: u16, high: u16| low.max(*allowed.start()).max(1)..=high.min(*allowed.end());
    let (low, high) = (within(0, 1023), within(1024, u16::MAX));
    let own = if wanted < 1024 { &low } else { &high };
    if own.contains(&wanted) && !ports.is_taken(wanted) {
        return Some(wanted);
    }
    let parity = if internal.proto == 17 {
        Parity::Of(wanted)
    } else {
        Parity::Any
    };
    for range in [own, &high] {
        let found = ports
            .find(range, parity, random)
            .or_else(|| ports.find(range, Parity::Any, random));
        if found.is_some() {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests;
