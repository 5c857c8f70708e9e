//! The gateway: a virtual router port in each network that has one.
//!
//! # Theory of operation
//!
//! The bridge pins the gateway's MAC of a network to a virtual port, so frames for it arrive with a verdict of their own; group frames
//! (ARP requests, ND) are looked at beside. ARP and ND for the gateway's addresses are answered ([`resolve`]), echo requests
//! too ([`local`]). Everything else belongs to a connection ([`flows`]): the first packet is judged ([`open`]: published ports, route
//! by longest prefix, source translation), the others follow it ([`forward`]): rewriting, TTL, the next hop's MAC ([`neigh`]), and
//! back to the bridge of the network it goes to. A packet whose next hop isn't known yet is held.
//!
//! Policy is asked about new connections, and about others when it changes ([`judge`]); it holds within a network too ([`screen`]).
//!
//! The whole gateway belongs to one worker; others hand it what is for it.

mod ahead;
mod datagram;
mod dns;
mod dry;
mod fast;
mod flows;
mod forward;
mod fragments;
mod host;
mod inbound;
mod interface;
mod judge;
mod local;
mod neigh;
mod open;
mod prefix;
mod publish;
mod related;
mod resolve;
mod route;
mod screen;
mod services;
mod show;
mod split;
mod straight;
mod switched;

pub use flows::SnatConfig;
pub use inbound::HostListener;
pub use interface::InterfaceConfig;
pub use publish::{Backend, MAX_BACKENDS, MAX_PORTS, Publish};
pub use route::{MAX_ROUTES, Route, contains};
pub use services::{NetworkServices, ServicesConfig};
pub use show::NeighbourEntry;
pub use switched::{Ends, Permit, Unswitched};

use crate::conntrack;
use crate::frag::{FragConfig, Fragments};
use crate::nptv6::Nptv6;
use crate::policy::{Compiled, Names};
use crate::reply::AnswerLimiter;
use flows::Tracking;
use forward::{Follow, Outcome};
use interface::Interface;
use neigh::{Due, Neighbours};
use publish::Published;
use resolve::Message;
use route::Routes;
use std::net::IpAddr;
use std::sync::Arc;
use vswitch_core::bridge::{Bridge, NetworkId, Rate};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{Batch, DropReason, Entry, Offloads, Verdict, gso};
use vswitch_core::port::PortId;
use vswitch_core::stats::PortCounters;
use vswitch_core::wire::{L3, MacAddr, Meta};
use vswitch_core::worker::{Cx, Origin, Step};

/// The router as it is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Where it stands.
    pub interfaces: Vec<InterfaceConfig>,
    /// Routes beside the connected ones.
    pub routes: Vec<Route>,
    /// Published ports.
    pub published: Vec<Publish>,
    /// Connection tracking; its seed is that of all randomness here.
    pub conntrack: conntrack::Config,
    /// What may be, if not everything.
    pub policy: Option<Arc<Compiled>>,
}

/// Answers (ICMP errors, resets) per second in all, and to one host.
const ANSWERS: Rate = Rate {
    per_second: 2000,
    burst: 500,
};
const ANSWERS_TO_HOST: Rate = Rate {
    per_second: 100,
    burst: 50,
};
/// Connections that age per tick.
const AGEING: usize = 1024;

/// The router; see the module's head.
#[derive(Debug)]
pub struct Gateway {
    /// By network.
    interfaces: Vec<Option<Interface>>,
    routes: Routes,
    /// Prefixes that are translated, and towards which network.
    prefixes: Vec<(NetworkId, Nptv6)>,
    neighbours: Neighbours,
    published: Published,
    /// Made with the first gateway, on the worker that has it.
    tracking: Option<Box<Tracking>>,
    fragments: Fragments<Follow>,
    limiter: AnswerLimiter,
    policy: Option<Arc<Compiled>>,
    /// Addresses of DNS names in rules.
    names: Names,
    /// Packets that wait for their judgement.
    awaiting: Vec<judge::Awaiting>,
    cleared: screen::Cleared,
    ahead: ahead::Ahead,
    /// Where the packet at hand came from.
    ingress: PortId,
    services: services::Services,
    /// UDP from uplinks doesn't keep its connections alive.
    ignores_inbound: bool,
    /// The way out by sockets of the host.
    host: host::Host,
    /// Goes up when routes change.
    epoch: u32,
    draw: u64,
    /// What is held here, and dropped of it.
    counters: Arc<PortCounters>,
    held: u64,
    due: Vec<Due>,
}

impl Default for Gateway {
    fn default() -> Gateway {
        Gateway {
            interfaces: Vec::new(),
            routes: Routes::default(),
            prefixes: Vec::new(),
            neighbours: Neighbours::default(),
            published: Published::default(),
            tracking: None,
            fragments: Fragments::new(FragConfig::default()),
            limiter: AnswerLimiter::new(ANSWERS, ANSWERS_TO_HOST),
            policy: None,
            names: Names::default(),
            awaiting: Vec::new(),
            cleared: screen::Cleared::default(),
            ahead: ahead::Ahead::default(),
            ingress: PortId::default(),
            services: services::Services::default(),
            ignores_inbound: false,
            host: host::Host::default(),
            epoch: 0,
            draw: 0,
            counters: Arc::default(),
            held: 0,
            due: Vec::new(),
        }
    }
}

impl Gateway {
    /// Whether any network has a gateway.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.interfaces.is_empty()
    }

    /// Takes up a configuration, and tells the bridge. What is known of neighbours and connections stays, but for a change of
    /// the size of the connection table, which begins anew.
    pub fn configure(&mut self, cx: &Cx, bridge: &mut Bridge, config: &GatewayConfig) {
        for old in self.interfaces.drain(..).flatten() {
            let c = &old.config;
            let stays = config
                .interfaces
                .iter()
                .any(|n| n.network == c.network && n.vid == c.vid);
            if !stays {
                bridge.set_gateway(c.network, None);
                let lost = self.neighbours.forget(Some(c.network)).len() as u64;
                self.held -= lost;
                self.counters.count_drop(DropReason::Shutdown, lost);
            }
        }
        self.counters.held.set(self.held);
        let mut routes = config.routes.clone();
        for c in &config.interfaces {
            routes.extend(c.hosts.iter().map(|ip| Route {
                to: (*ip, if ip.is_ipv4() { 32 } else { 128 }),
                via: None,
                network: c.network,
            }));
            routes.extend(c.addresses.iter().map(|to| Route {
                to: *to,
                via: None,
                network: c.network,
            }));
            let i = usize::from(c.network.0);
            if self.interfaces.len() <= i {
                self.interfaces.resize_with(i + 1, || None);
            }
            bridge.set_gateway(c.network, Some((c.vid, c.mac)));
            self.interfaces[i] = Some(Interface::new(c.clone()));
        }
        routes.extend(host::routes(config));
        self.routes = Routes::new(routes);
        self.epoch = self.epoch.wrapping_add(1);
        self.published = Published::new(&config.published);
        // What went by the old policy is its rules'.
        bridge.invalidate();
        self.collect_fast(cx.now);
        self.take_policy(config.policy.clone());
        self.configure_prefixes(cx.now, config);
        if cx.worker.0 == 0 {
            self.configure_tracking(cx.now, config);
            self.configure_host(config);
        }
        // What went the fast path may be judged now.
        bridge.invalidate();
    }

    fn configure_tracking(&mut self, now: Nanos, config: &GatewayConfig) {
        let screens = self.policy.as_ref().is_some_and(|p| p.judges_any_bridged());
        if !self.is_on() && !screens {
            self.tracking = None;
            return;
        }
        self.ignores_inbound = !config.conntrack.inbound_refresh;
        let same = |t: &Tracking| t.conns.config().max_entries == config.conntrack.max_entries;
        let tracking = match self.tracking.take().filter(|t| same(t)) {
            Some(mut old) => {
                let seed = old.conns.config().seed;
                old.conns.configure(conntrack::Config {
                    seed,
                    ..config.conntrack.clone()
                });
                old
            }
            None => {
                self.draw = config.conntrack.seed;
                Box::new(Tracking::new(config.conntrack.clone(), now))
            }
        };
        let tracking = self.tracking.insert(tracking);
        let reserved = config
            .published
            .iter()
            .flat_map(|p| p.ports.clone().map(|port| (p.proto, p.address, port)));
        tracking.flows.reroute();
        let pools = &mut tracking.flows.pools;
        pools.configure(&config.interfaces, &reserved.collect());
    }

    /// A random number (splitmix64; the seed is secret).
    fn random(&mut self) -> u64 {
        self.draw = self.draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.draw;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Frames more (or fewer) are held.
    fn hold(&mut self, by: i64) {
        self.held = self.held.saturating_add_signed(by);
        self.counters.held.set(self.held);
    }

    /// Counters of what the gateway holds and drops itself, beside what it drops at ingress ports.
    #[must_use]
    pub fn counters(&self) -> Arc<PortCounters> {
        self.counters.clone()
    }

    fn interface(&self, network: NetworkId) -> Option<&Interface> {
        if network == host::HOST {
            return self.host.uplink.as_deref().map(|u| &u.interface);
        }
        self.interfaces.get(usize::from(network.0))?.as_ref()
    }

    fn is_uplink(&self, network: NetworkId) -> bool {
        self.interface(network).is_some_and(|i| i.config.uplink)
    }

    /// Whether the address is one of ours, on whichever interface.
    fn is_own(&self, ip: IpAddr) -> bool {
        self.interfaces.iter().flatten().any(|i| i.has(ip))
    }

    /// Looks at the frames of a batch that the bridge has judged.
    pub fn run(&mut self, cx: &mut Cx, bridge: &mut Bridge, batch: &mut Batch) {
        let Some(network) = bridge.network_of(batch.ingress) else {
            return;
        };
        let Some(vid) = self.interface(network).map(|i| i.config.vid) else {
            return;
        };
        self.ingress = batch.ingress;
        let ours = cx.worker.0 == 0;
        if ours {
            self.look_ahead(batch);
        }
        for (i, e) in batch.entries.iter_mut().enumerate() {
            match e.verdict {
                Verdict::Gateway if ours => {
                    self.ahead.at(i);
                    e.verdict = match self.for_us(cx, bridge, network, e) {
                        Ok(outcome) => self.finish(cx, bridge, outcome, e),
                        Err(why) => {
                            cx.note(|| Step::drop("gateway", why).network(network));
                            Verdict::Drop(why)
                        }
                    };
                    self.ahead.over();
                }
                Verdict::Flood(_) if e.meta.dst.is_group() && e.meta.vid == vid => {
                    e.verdict = if !ours {
                        match self.asks_us(network, e) || self.services.wants(network, e) {
                            true => Verdict::Gateway,
                            false => e.verdict,
                        }
                    } else if self.overhear(cx, bridge, network, e)
                        || self.group_request(cx, bridge, network, e)
                    {
                        cx.note(|| {
                            Step::new("gateway", "answers")
                                .detail("it asks the gateway")
                                .network(network)
                        });
                        Verdict::Drop(DropReason::Consumed)
                    } else {
                        e.verdict
                    };
                }
                _ => {}
            }
        }
        self.flush_host(cx, bridge);
    }

    /// The verdict on a packet the gateway is done with.
    fn finish(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        outcome: Outcome,
        e: &mut Entry,
    ) -> Verdict {
        let Outcome::Send(out) = outcome else {
            return Verdict::Held;
        };
        let mtu = self.interface(out).map_or(0, |i| i.config.mtu);
        if gso::fits(&e.frame, Offloads::ALL, mtu) {
            let verdict = bridge.deliver(cx, out, e.meta.vid, e.meta.dst);
            let dst = e.meta.dst;
            cx.note(|| match verdict {
                Verdict::Forward(to) => Step::new("fdb", "found").detail(dst).port(to),
                Verdict::Flood(_) => {
                    Step::new("fdb", "flood").detail(format_args!("{dst}: unknown"))
                }
                _ => Step::new("fdb", "nowhere").detail(dst),
            });
            return verdict;
        }
        cx.note(|| Step::new("gateway", "fragments").detail(format_args!("to an MTU of {mtu}")));
        let frame = std::mem::take(&mut e.frame);
        self.send(cx, bridge, out, frame, Origin::Held);
        Verdict::Held
    }

    /// Timers: addresses to ask for again, connections and fragments that end.
    pub fn tick(&mut self, cx: &mut Cx, bridge: &mut Bridge) -> Nanos {
        if !self.is_on() && self.tracking.is_none() && self.awaiting.is_empty() {
            return Nanos::MAX;
        }
        let mut due = std::mem::take(&mut self.due);
        let next = self.neighbours.tick(cx.now, &mut due);
        for d in due.drain(..) {
            match d {
                Due::Ask(network, ip, mac) => self.ask(cx, bridge, network, ip, mac),
                Due::Failed(network, frames) => {
                    for frame in frames {
                        self.hold(-1);
                        self.counters.count_drop(DropReason::NoNeighbour, 1);
                        self.unreachable(cx, bridge, network, &frame);
                    }
                }
            }
        }
        self.due = due;
        let next = next.min(self.tick_services(cx, bridge));
        let next = next.min(self.tick_host(cx, bridge));
        let mut next = next.min(self.age_fragments(cx.now));
        next = next.min(self.age_awaiting(cx.now));
        // Before connections age.
        next = next.min(self.tick_fast(cx.now));
        if let Some(tracking) = self.tracking.as_deref_mut() {
            let now = cx.now;
            next = next.min(tracking.with(now, |conns, ended| conns.tick(now, AGEING, ended)));
        }
        next
    }

    /// A frame sent to the gateway's MAC.
    fn for_us(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
    ) -> Result<Outcome, DropReason> {
        if e.meta.dst.is_group() && self.group_request(cx, bridge, network, e) {
            return Err(DropReason::Consumed);
        }
        match e.meta.l3 {
            L3::Arp => {
                self.overhear(cx, bridge, network, e);
                Err(DropReason::Consumed)
            }
            L3::V4 | L3::V6 => {
                normalise(e)?;
                self.packet(cx, bridge, network, e)
            }
            L3::Other => Err(DropReason::BadPacket),
        }
    }

    /// Whether it is an ARP or ND request for one of our addresses.
    fn asks_us(&self, network: NetworkId, e: &Entry) -> bool {
        let own = self.interface(network);
        resolve::read(e).is_some_and(|m| {
            m.asks && own.is_some_and(|i| i.speaks_for(m.target, m.sender.is_none()))
        })
    }

    /// Learns from an ARP or ND message, and answers it; true if it was for us alone.
    fn overhear(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
    ) -> bool {
        resolve::read(e).is_some_and(|m| self.heard(cx, bridge, network, m, &e.meta))
    }

    /// A port goes: neighbours behind it aren't there any more. To be called while the bridge still knows who was there.
    pub(crate) fn port_gone(&mut self, bridge: &Bridge, port: PortId) {
        let Some(network) = bridge.network_of(port) else {
            return;
        };
        let (Some(own), Some(fdb)) = (self.interface(network), bridge.fdb(network)) else {
            return;
        };
        let vid = own.config.vid;
        let there = |mac| fdb.lookup(vid, mac) == Some(port);
        self.neighbours.forget_at(network, there);
    }

    fn heard(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        m: Message,
        meta: &Meta,
    ) -> bool {
        let Some(own) = self.interface(network) else {
            return false;
        };
        let (vid, mac) = (own.config.vid, own.config.mac);
        let asks_us = m.asks && own.speaks_for(m.target, m.sender.is_none());
        if let Some((ip, from)) = m.sender
            && own.on_link(ip)
            && !own.has(ip)
            && !cx.is_dry()
        {
            // Who asks for us will get packets of us.
            let waiting = self.neighbours.heard(cx.now, network, ip, from, asks_us);
            for mut frame in waiting {
                self.hold(-1);
                forward::address(&mut frame, from, mac);
                self.send(cx, bridge, network, frame, Origin::Held);
            }
            self.resume(cx, bridge, (network, ip));
        }
        if asks_us && let Some(frame) = resolve::answer((m.target, mac), m.sender, meta.src) {
            // A reply nobody can take is lost like any other.
            let _ = bridge.originate(cx, network, vid, frame, Origin::Switch);
        }
        asks_us
    }

    fn ask(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        ip: IpAddr,
        mac: Option<MacAddr>,
    ) {
        let Some(own) = self.interface(network) else {
            return;
        };
        // The address that answers are sent back to: who is asked then knows its MAC already (RFC 4861 7.2.2). A host that had to ask
        // for that first may send what waited meanwhile behind what came later.
        let source = own.source_for(ip);
        let (vid, own_mac) = (own.config.vid, own.config.mac);
        if let Some(source) = source
            && let Some(frame) = resolve::ask((source, own_mac), ip, mac)
        {
            let _ = bridge.originate(cx, network, vid, frame, Origin::Switch);
        }
    }
}

/// Takes VLAN tags and Ethernet padding away: what is left is 14 bytes of header and the packet.
fn normalise(e: &mut Entry) -> Result<(), DropReason> {
    const ETH: u16 = 14;
    e.frame.truncate(e.meta.l3_end as usize);
    let Some(tags) = e.meta.l3_off.checked_sub(ETH) else {
        return Err(DropReason::BadPacket);
    };
    if tags > 0 {
        if !e.frame.pull_front(tags.into()) {
            return Err(DropReason::BadPacket);
        }
        let m = &mut e.meta;
        m.l3_off = ETH;
        m.l4_off = m.l4_off.saturating_sub(tags);
        m.l3_end -= u32::from(tags);
        m.tag = None;
        m.tags = 0;
    }
    let ethertype = e.meta.ethertype.0.to_be_bytes();
    let field = e.frame.head_mut().get_mut(12..14);
    field
        .ok_or(DropReason::BadPacket)?
        .copy_from_slice(&ethertype);
    Ok(())
}
