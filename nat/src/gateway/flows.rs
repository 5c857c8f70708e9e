//! What the gateway keeps of connections: tracking, and beside each connection its translation and its ways.
//!
//! A [`Flow`] lies in a slab and is found by the number that its connection carries. It ends with its connection, which gives its
//! port lease back. In the slab it is 32 bytes ([`Kept`]), as addresses and ports are in its connection's tuples.

use super::fast::FastFlows;
use super::host::HOST;
use super::interface::InterfaceConfig;
use super::route::Routes;
use crate::Endpoint;
use crate::conntrack::{Config, Conn, Conntrack, Dir, EndReason};
use crate::portalloc::{
    Filtering, Internal, LeaseError, PoolConfig, PoolStats, PortLease, PortPool,
};
use crate::rewrite::{Change, Rewrite};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use vswitch_core::bridge::NetworkId;
use vswitch_core::clock::Nanos;
use vswitch_core::frame::DropReason;
use vswitch_core::sys::mem;

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

/// A way whose next hop is a router of the list, or ([`DIRECT`]) where the packet goes itself.
#[derive(Clone, Copy, Debug)]
struct KeptWay {
    network: NetworkId,
    router: u16,
}

const DIRECT: u16 = u16::MAX;

/// A lease whose remote end is in the tuple.
#[derive(Debug)]
struct KeptLease {
    /// One more than the pool's number.
    pool: NonZeroU16,
    epoch: u16,
    lease: PortLease,
}

/// A flow in the slab, never on two cache lines.
#[derive(Debug)]
#[repr(align(32))]
struct Kept {
    /// That of the original direction; meaningless if not `translated`.
    change: Change,
    ways: [KeptWay; 2],
    lease: Option<KeptLease>,
    /// As in [`Flow`]; of a free place the next free one.
    epoch: u32,
    live: bool,
    translated: bool,
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
#[derive(Debug)]
pub(crate) struct Flows {
    slab: Vec<Kept>,
    /// First of the free places, or [`NONE`].
    free: u32,
    /// Routers that are next hops of the present epoch's ways.
    routers: Vec<IpAddr>,
    /// Leases of mappings that flows came in by: few flows have one.
    inside: HashMap<u32, Leased, RandomState>,
    pub(crate) pools: Pools,
    /// Connections by the host's sockets that have ended since somebody looked.
    pub(crate) host_ended: Vec<Ended>,
}

/// Where the packets of a connection's directions really go.
fn targets(conn: &Conn) -> [IpAddr; 2] {
    let of = |dir| conn.tuple(dir).src();
    [of(Dir::Reply), of(Dir::Original)]
}

/// A connection by the host's sockets: protocol, the container's end, the other one as the host knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended(pub(crate) u8, pub(crate) SocketAddr, pub(crate) SocketAddr);

impl Flows {
    /// For at most so many. Memory is taken as it is used.
    pub(crate) fn new(most: u32) -> Flows {
        let slab = Vec::with_capacity(most as usize);
        // A few are backed page by page.
        mem::want_huge(&slab, 1);
        Flows {
            slab,
            free: NONE,
            routers: Vec::new(),
            inside: HashMap::default(),
            pools: Pools::default(),
            host_ended: Vec::new(),
        }
    }

    /// Routes have changed: no way of before is looked at again.
    pub(crate) fn reroute(&mut self) {
        self.routers.clear();
    }

    fn keep_way(&mut self, way: Way, to: IpAddr) -> KeptWay {
        let router = if way.hop == to {
            DIRECT
        } else {
            let known = self.routers.iter().position(|r| *r == way.hop);
            known.unwrap_or_else(|| {
                self.routers.push(way.hop);
                self.routers.len() - 1
            }) as u16
        };
        KeptWay {
            network: way.network,
            router,
        }
    }

    /// Enters the flow of a connection whose directions go to `to`.
    pub(crate) fn insert(&mut self, flow: Flow, to: [IpAddr; 2]) -> u32 {
        let [lease, inside] = flow.leases;
        let [there, back] = flow.ways;
        let change = flow.rewrites[0].map(|r| r.change());
        let kept = Kept {
            change: change.unwrap_or_default(),
            ways: [self.keep_way(there, to[0]), self.keep_way(back, to[1])],
            lease: lease.map(|l| KeptLease {
                pool: NonZeroU16::MIN.saturating_add(l.pool),
                epoch: l.epoch,
                lease: l.lease,
            }),
            epoch: flow.epoch,
            live: true,
            translated: change.is_some(),
        };
        let i = match self.slab.get_mut(self.free as usize) {
            Some(place) => {
                let i = self.free;
                self.free = place.epoch;
                *place = kept;
                i
            }
            None => {
                self.slab.push(kept);
                self.slab.len() as u32 - 1
            }
        };
        if let Some(inside) = inside {
            self.inside.insert(i, inside);
        }
        i
    }

    fn kept(&self, i: u32) -> Option<&Kept> {
        self.slab.get(i as usize).filter(|k| k.live)
    }

    /// Reads a flow, to have it in the cache.
    pub(crate) fn touch(&self, i: u32) -> u32 {
        self.slab.get(i as usize).map_or(0, |k| k.epoch)
    }

    /// Way and rewriting of a connection's direction; its ways are looked up anew if they are of another epoch.
    #[inline]
    pub(crate) fn follow(
        &mut self,
        conn: &Conn,
        dir: Dir,
        (epoch, routes): (u32, &Routes),
    ) -> Result<(Way, Option<Rewrite>), DropReason> {
        let (i, to) = (conn.user().nat, targets(conn));
        if self.kept(i).ok_or(DropReason::InvalidState)?.epoch != epoch {
            self.find_ways(i, to, (epoch, routes))?;
        }
        let kept = self.kept(i).ok_or(DropReason::InvalidState)?;
        let KeptWay { network, router } = kept.ways[index(dir)];
        let hop = match router {
            DIRECT => to[index(dir)],
            router => *self
                .routers
                .get(usize::from(router))
                .ok_or(DropReason::NoRoute)?,
        };
        let rewrite = kept.translated.then(|| {
            let change = match dir {
                Dir::Original => kept.change,
                Dir::Reply => kept.change.back(),
            };
            let to = conn.tuple(dir.flip()).reversed();
            Rewrite::again(conn.tuple(dir), &to, change)
        });
        Ok((Way { network, hop }, rewrite))
    }

    #[cold]
    fn find_ways(
        &mut self,
        i: u32,
        to: [IpAddr; 2],
        (epoch, routes): (u32, &Routes),
    ) -> Result<(), DropReason> {
        for (n, to) in to.into_iter().enumerate() {
            // A socket of the host is no way that can be changed.
            if self.kept(i).is_some_and(|k| k.ways[n].network == HOST) {
                continue;
            }
            let (route, hop) = routes.find(to).ok_or(DropReason::NoRoute)?;
            let network = route.network;
            let way = self.keep_way(Way { network, hop }, to);
            if let Some(kept) = self.slab.get_mut(i as usize) {
                kept.ways[n] = way;
            }
        }
        if let Some(kept) = self.slab.get_mut(i as usize) {
            kept.epoch = epoch;
        }
        Ok(())
    }

    /// Takes out a flow whose source port was leased for this far end.
    pub(crate) fn remove(&mut self, i: u32, now: Nanos, remote: IpAddr) {
        let Some(kept) = self.slab.get_mut(i as usize).filter(|k| k.live) else {
            return;
        };
        kept.live = false;
        kept.epoch = self.free;
        self.free = i;
        let lease = kept.lease.take().map(|l| Leased {
            pool: l.pool.get() - 1,
            epoch: l.epoch,
            lease: l.lease,
            remote,
        });
        for leased in lease.into_iter().chain(self.inside.remove(&i)) {
            self.pools.release(now, leased);
        }
    }

    /// A connection has ended.
    pub(crate) fn ended(&mut self, conn: &Conn, now: Nanos) {
        let i = conn.user().nat;
        if i != NONE {
            let (from, to) = (conn.tuple(Dir::Original), conn.tuple(Dir::Reply));
            let by_host = |n: usize| matches!(self.kept(i), Some(k) if k.ways[n].network == HOST);
            if by_host(0) {
                let inside = (from.src(), from.src_port).into();
                let outside = (to.src(), to.src_port).into();
                self.host_ended.push(Ended(from.proto, inside, outside));
            } else if by_host(1) {
                let inside = (from.dst(), from.dst_port).into();
                let outside = (from.src(), from.src_port).into();
                self.host_ended.push(Ended(from.proto, inside, outside));
            }
            self.remove(i, now, targets(conn)[0]);
        }
    }
}

/// Connections and flows.
#[derive(Debug)]
pub(crate) struct Tracking {
    pub(crate) conns: Conntrack,
    pub(crate) flows: Flows,
    /// Those of them that are on the fast path.
    pub(super) fast: FastFlows,
}

impl Tracking {
    pub(crate) fn new(config: Config, now: Nanos) -> Tracking {
        Tracking {
            flows: Flows::new(config.max_entries),
            conns: Conntrack::new(config, now),
            fast: FastFlows::default(),
        }
    }

    /// Runs `f` with the connections and what their ends do.
    pub(crate) fn with<R>(
        &mut self,
        now: Nanos,
        f: impl FnOnce(&mut Conntrack, &mut dyn FnMut(&Conn, EndReason)) -> R,
    ) -> R {
        let (flows, fast) = (&mut self.flows, &mut self.fast);
        f(&mut self.conns, &mut |conn, _| {
            fast.ended(conn);
            flows.ended(conn, now);
        })
    }
}

/// Index of a direction.
pub(crate) fn index(dir: Dir) -> usize {
    match dir {
        Dir::Original => 0,
        Dir::Reply => 1,
    }
}
