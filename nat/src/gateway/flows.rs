//! What the gateway keeps of connections: tracking, and beside each connection its translation and its ways.
//!
//! A [`Flow`] lies in a slab and is found by the number that its connection carries. It ends with its connection, which gives its
//! port lease back.

use super::host::HOST;
use super::interface::InterfaceConfig;
use crate::Endpoint;
use crate::conntrack::{Config, Conn, Conntrack, Dir, EndReason};
use crate::portalloc::{
    Filtering, Internal, LeaseError, PoolConfig, PoolStats, PortLease, PortPool,
};
use crate::rewrite::Rewrite;
use std::net::{IpAddr, SocketAddr};
use vswitch_core::bridge::NetworkId;
use vswitch_core::clock::Nanos;

/// Zone of routed connections.
pub(crate) const ZONE: u16 = 0;
/// A connection without flow.
pub(crate) const NONE: u32 = u32::MAX;

/// Source translation of what leaves by an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnatConfig {
    /// External addresses; none is masquerade: the interface's own.
    pub addresses: Vec<IpAddr>,
    /// External ports that may be used.
    pub ports: (u16, u16),
    /// Who may send to an external port that is in use.
    pub filtering: Filtering,
}

/// Where packets of one direction go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) network: NetworkId,
    pub(crate) hop: IpAddr,
}

/// A lease, and from which pool.
#[derive(Debug)]
pub(crate) struct Leased {
    pool: u16,
    epoch: u16,
    lease: PortLease,
    remote: IpAddr,
}

/// What is done to the packets of a connection, by direction.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) rewrites: [Option<Rewrite>; 2],
    pub(crate) ways: [Way; 2],
    /// Of the source's external port, and of the mapping it came in by.
    pub(crate) leases: [Option<Leased>; 2],
    /// Epoch of the routes that its ways are from.
    pub(crate) epoch: u32,
}

/// The pools of external ports, by network.
#[derive(Debug, Default)]
pub(crate) struct Pools(Vec<Option<Pool>>);

#[derive(Debug)]
struct Pool {
    pool: PortPool,
    /// Whether it translates all that leaves, or hairpins only.
    snat: bool,
    config: SnatConfig,
    own: Vec<IpAddr>,
    epoch: u16,
    /// Second in which it was last told that no port was free.
    told: u32,
}

/// Ports of published services are taken out of the pools.
pub(crate) type Reserved = Vec<(u8, Option<IpAddr>, u16)>;

impl Pools {
    /// Takes up the interfaces; a pool whose settings stay keeps its mappings.
    pub(crate) fn configure(&mut self, interfaces: &[InterfaceConfig], reserved: &Reserved) {
        let mut old = std::mem::take(&mut self.0);
        for c in interfaces {
            let i = usize::from(c.network.0);
            if self.0.len() <= i {
                self.0.resize_with(i + 1, || None);
            }
            let own: Vec<IpAddr> = c.addresses.iter().map(|a| a.0).collect();
            let config = c.snat.clone().unwrap_or(SnatConfig {
                addresses: Vec::new(),
                ports: (1, 65_535),
                filtering: Filtering::default(),
            });
            let was = old.get_mut(i).and_then(Option::take);
            let epoch = was.as_ref().map_or(0, |p| p.epoch.wrapping_add(1));
            let kept = was.filter(|p| p.config == config && p.own == own);
            let mut pool = kept.unwrap_or_else(|| {
                let addresses = if config.addresses.is_empty() {
                    &own
                } else {
                    &config.addresses
                };
                Pool {
                    pool: PortPool::new(PoolConfig {
                        ports: config.ports.0..=config.ports.1,
                        filtering: config.filtering,
                        ..PoolConfig::new(addresses.clone())
                    }),
                    snat: false,
                    config: config.clone(),
                    own,
                    epoch,
                    told: 0,
                }
            });
            pool.snat = c.snat.is_some();
            for (proto, address, port) in reserved {
                let all = if pool.config.addresses.is_empty() {
                    &pool.own
                } else {
                    &pool.config.addresses
                };
                for a in all.clone() {
                    if address.is_none_or(|only| only == a) {
                        pool.pool.reserve(*proto, Endpoint::new(a, *port));
                    }
                }
            }
            self.0[i] = Some(pool);
        }
    }

    fn at(&mut self, network: NetworkId) -> Option<&mut Pool> {
        self.0.get_mut(usize::from(network.0))?.as_mut()
    }

    /// Whether what leaves by the network is translated.
    pub(crate) fn translates(&self, network: NetworkId) -> bool {
        matches!(self.0.get(usize::from(network.0)), Some(Some(p)) if p.snat)
    }

    /// An external endpoint in `network` for a flow from `internal` to `remote`.
    pub(crate) fn lease(
        &mut self,
        now: Nanos,
        network: NetworkId,
        internal: Internal,
        remote: IpAddr,
        random: u64,
    ) -> Result<(Leased, Endpoint), LeaseError> {
        let pool = self.at(network).ok_or(LeaseError::Family)?;
        let (lease, external) = pool.pool.lease(now, internal, remote, random)?;
        let leased = Leased {
            pool: network.0,
            epoch: pool.epoch,
            lease,
            remote,
        };
        Ok((leased, external))
    }

    /// Where a packet to an external endpoint leads that belongs to no connection, by the pool's filtering.
    pub(crate) fn inbound(
        &mut self,
        network: NetworkId,
        proto: u8,
        external: Endpoint,
        remote: IpAddr,
    ) -> Option<(Leased, Endpoint)> {
        let pool = self.at(network).filter(|p| p.snat)?;
        let (lease, internal) = pool.pool.lease_inbound(proto, external, remote)?;
        let leased = Leased {
            pool: network.0,
            epoch: pool.epoch,
            lease,
            remote,
        };
        Some((leased, internal.end))
    }

    /// Where a packet from inside to an external endpoint leads, whatever the filtering, and the endpoint's network.
    pub(crate) fn hairpin(
        &mut self,
        proto: u8,
        external: Endpoint,
        remote: IpAddr,
    ) -> Option<(Leased, Endpoint, NetworkId)> {
        let pools = (0u16..).zip(&mut self.0);
        let mut pools = pools.filter_map(|(i, p)| Some((i, p.as_mut().filter(|p| p.snat)?)));
        pools.find_map(|(i, p)| {
            let (lease, internal) = p.pool.lease_hairpin(proto, external, remote)?;
            let leased = Leased {
                pool: i,
                epoch: p.epoch,
                lease,
                remote,
            };
            Some((leased, internal.end, NetworkId(i)))
        })
    }

    pub(crate) fn release(&mut self, now: Nanos, leased: Leased) {
        if let Some(pool) = self.at(NetworkId(leased.pool))
            && pool.epoch == leased.epoch
        {
            pool.pool.release(now, leased.lease, leased.remote);
        }
    }

    /// Whether people are to be told that the network's pool gave no port: once a second at most.
    pub(crate) fn is_news(&mut self, network: NetworkId, now: Nanos) -> bool {
        let now = now.secs();
        self.at(network)
            .is_some_and(|p| std::mem::replace(&mut p.told, now) != now)
    }

    /// Counters by pool.
    pub(crate) fn counted(&self) -> Vec<PoolStats> {
        let stats = |p: &Option<Pool>| p.as_ref().map(|p| p.pool.stats()).unwrap_or_default();
        self.0.iter().map(stats).collect()
    }

    /// Takes counters back to what they were.
    pub(crate) fn uncount(&mut self, stats: Vec<PoolStats>) {
        for (pool, stats) in self.0.iter_mut().zip(stats) {
            if let Some(p) = pool {
                p.pool.set_stats(stats);
            }
        }
    }

    /// Counters of all pools, and how many mappings there are.
    pub(crate) fn stats(&self) -> (PoolStats, usize) {
        let mut sum = PoolStats::default();
        let mut mappings = 0;
        for p in self.0.iter().flatten() {
            let s = p.pool.stats();
            sum.made += s.made;
            sum.preserved += s.preserved;
            sum.exhausted += s.exhausted;
            sum.host_limit += s.host_limit;
            sum.pool_limit += s.pool_limit;
            mappings += p.pool.mappings();
        }
        (sum, mappings)
    }
}

/// The flows, and the pools their leases come from.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    slab: Vec<Option<Flow>>,
    free: Vec<u32>,
    pub(crate) pools: Pools,
    /// Connections by the host's sockets that have ended since somebody looked.
    pub(crate) host_ended: Vec<Ended>,
}

/// A connection by the host's sockets: protocol, the container's end, the other one as the host knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended(pub(crate) u8, pub(crate) SocketAddr, pub(crate) SocketAddr);

impl Flows {
    pub(crate) fn insert(&mut self, flow: Flow) -> u32 {
        if let Some(i) = self.free.pop() {
            self.slab[i as usize] = Some(flow);
            return i;
        }
        self.slab.push(Some(flow));
        self.slab.len() as u32 - 1
    }

    pub(crate) fn get_mut(&mut self, i: u32) -> Option<&mut Flow> {
        self.slab.get_mut(i as usize)?.as_mut()
    }

    pub(crate) fn remove(&mut self, i: u32, now: Nanos) {
        let Some(flow) = self.slab.get_mut(i as usize).and_then(Option::take) else {
            return;
        };
        self.free.push(i);
        for leased in flow.leases.into_iter().flatten() {
            self.pools.release(now, leased);
        }
    }

    /// A connection has ended.
    pub(crate) fn ended(&mut self, conn: &Conn, now: Nanos) {
        let i = conn.user().nat;
        if i != NONE {
            if self.get_mut(i).is_some_and(|f| f.ways[0].network == HOST) {
                let (from, to) = (conn.tuple(Dir::Original), conn.tuple(Dir::Reply));
                let inside = (from.src(), from.src_port).into();
                let outside = (to.src(), to.src_port).into();
                self.host_ended.push(Ended(from.proto, inside, outside));
            }
            self.remove(i, now);
        }
    }
}

/// Connections and flows.
#[derive(Debug)]
pub(crate) struct Tracking {
    pub(crate) conns: Conntrack,
    pub(crate) flows: Flows,
}

impl Tracking {
    pub(crate) fn new(config: Config, now: Nanos) -> Tracking {
        Tracking {
            conns: Conntrack::new(config, now),
            flows: Flows::default(),
        }
    }

    /// Runs `f` with the connections and what their ends do.
    pub(crate) fn with<R>(
        &mut self,
        now: Nanos,
        f: impl FnOnce(&mut Conntrack, &mut dyn FnMut(&Conn, EndReason)) -> R,
    ) -> R {
        let flows = &mut self.flows;
        f(&mut self.conns, &mut |conn, _| flows.ended(conn, now))
    }
}

/// Index of a direction.
pub(crate) fn index(dir: Dir) -> usize {
    match dir {
        Dir::Original => 0,
        Dir::Reply => 1,
    }
}
