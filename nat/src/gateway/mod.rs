//! The gateway: a virtual router port in each network that has one.
//!
//! # Theory of operation
//!
//! The bridge pins the gateway's MAC of a network to a virtual port, so frames for it arrive with a verdict of their own; group frames
//! (ARP requests, ND) are looked at beside. ARP and ND for the gateway's addresses are answered ([`resolve`]), echo requests
//! too ([`local`]); everything else is routed: longest prefix ([`route`]), TTL, next hop's MAC ([`neigh`]), and
//! back to the bridge of the network it goes to. A packet whose next hop isn't known yet is held.
//!
//! The whole gateway belongs to one worker; others hand it what is for it.

mod forward;
mod interface;
mod local;
mod neigh;
mod resolve;
mod route;

pub use interface::InterfaceConfig;
pub use route::{MAX_ROUTES, Route, contains};

use interface::Interface;
use neigh::{Due, Neighbours};
use resolve::Message;
use route::Routes;
use std::net::IpAddr;
use std::sync::Arc;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{Batch, DropReason, Entry, Frame, Verdict};
use vswitch_core::stats::PortCounters;
use vswitch_core::wire::{L3, MacAddr, Meta};
use vswitch_core::worker::{Cx, Origin};

/// The router as it is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Where it stands.
    pub interfaces: Vec<InterfaceConfig>,
    /// Routes beside the connected ones.
    pub routes: Vec<Route>,
}

/// A neighbour, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourEntry {
    /// Its network.
    pub network: NetworkId,
    /// Address.
    pub ip: IpAddr,
    /// MAC; `None` while or because it doesn't answer.
    pub mac: Option<MacAddr>,
    /// Seconds until it is asked for again.
    pub fresh_for: u64,
}

/// The router; see the module's head.
#[derive(Debug, Default)]
pub struct Gateway {
    /// By network.
    interfaces: Vec<Option<Interface>>,
    routes: Routes,
    neighbours: Neighbours,
    /// What is held here, and dropped of it.
    counters: Arc<PortCounters>,
    held: u64,
    due: Vec<Due>,
}

impl Gateway {
    /// Whether any network has a gateway.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.interfaces.is_empty()
    }

    /// Takes up a configuration, and tells the bridge. What is known of neighbours of interfaces that stay, stays.
    pub fn configure(&mut self, bridge: &mut Bridge, config: &GatewayConfig) {
        for old in self.interfaces.drain(..).flatten() {
            let c = &old.config;
            let stays = config
                .interfaces
                .iter()
                .any(|n| n.network == c.network && n.vid == c.vid);
            if !stays {
                bridge.set_gateway(c.network, None);
                for frame in self.neighbours.forget(Some(c.network)) {
                    drop(frame);
                    self.held -= 1;
                    self.counters.count_drop(DropReason::Shutdown, 1);
                }
            }
        }
        self.counters.held.set(self.held);
        let mut routes = config.routes.clone();
        for c in &config.interfaces {
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
        self.routes = Routes::new(routes);
    }

    /// Counters of what the gateway holds and drops itself, beside what it drops at ingress ports.
    #[must_use]
    pub fn counters(&self) -> Arc<PortCounters> {
        self.counters.clone()
    }

    /// The neighbours it knows or asks for.
    #[must_use]
    pub fn neighbours(&self, now: Nanos) -> Vec<NeighbourEntry> {
        let entry = |(network, ip, mac, fresh_for)| NeighbourEntry {
            network,
            ip,
            mac,
            fresh_for,
        };
        self.neighbours.entries(now).map(entry).collect()
    }

    fn interface(&self, network: NetworkId) -> Option<&Interface> {
        self.interfaces.get(usize::from(network.0))?.as_ref()
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
        let ours = cx.worker.0 == 0;
        for e in &mut batch.entries {
            match e.verdict {
                Verdict::Gateway if ours => {
                    e.verdict = match self.for_us(cx, bridge, network, e) {
                        Ok(verdict) => verdict,
                        Err(why) => Verdict::Drop(why),
                    };
                }
                Verdict::Flood(_) if e.meta.dst.is_group() && e.meta.vid == vid => {
                    e.verdict = if !ours {
                        match self.asks_us(network, e) {
                            true => Verdict::Gateway,
                            false => e.verdict,
                        }
                    } else if self.overhear(cx, bridge, network, e) {
                        Verdict::Drop(DropReason::Consumed)
                    } else {
                        e.verdict
                    };
                }
                _ => {}
            }
        }
    }

    /// Timers: addresses to ask for again.
    pub fn tick(&mut self, cx: &mut Cx, bridge: &mut Bridge) -> Nanos {
        if !self.is_on() {
            return Nanos::MAX;
        }
        let mut due = std::mem::take(&mut self.due);
        let next = self.neighbours.tick(cx.now, &mut due);
        for d in due.drain(..) {
            match d {
                Due::Ask(network, ip, mac) => self.ask(cx, bridge, network, ip, mac),
                Due::Failed(network, ip, frames) => {
                    self.held -= frames.len() as u64;
                    for frame in frames {
                        self.counters.count_drop(DropReason::NoNeighbour, 1);
                        self.unreachable(cx, bridge, network, ip, frame);
                    }
                    self.counters.held.set(self.held);
                }
            }
        }
        self.due = due;
        next
    }

    /// A frame sent to the gateway's MAC.
    fn for_us(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
    ) -> Result<Verdict, DropReason> {
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
        resolve::read(e).is_some_and(|m| m.asks && own.is_some_and(|i| i.has(m.target)))
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
        let asks_us = m.asks && own.has(m.target);
        if let Some((ip, from)) = m.sender
            && own.on_link(ip)
            && !own.has(ip)
        {
            // Who asks for us will get packets of us.
            let waiting = self.neighbours.heard(cx.now, network, ip, from, asks_us);
            for frame in waiting {
                self.held -= 1;
                self.send_held(cx, bridge, network, from, frame);
            }
            self.counters.held.set(self.held);
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
        let source = match ip {
            IpAddr::V4(_) => own.source_for(ip),
            IpAddr::V6(_) => Some(own.link_local.into()),
        };
        let (vid, own_mac) = (own.config.vid, own.config.mac);
        if let Some(source) = source
            && let Some(frame) = resolve::ask((source, own_mac), ip, mac)
        {
            let _ = bridge.originate(cx, network, vid, frame, Origin::Switch);
        }
    }

    fn send_held(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        to: MacAddr,
        mut frame: Frame,
    ) {
        let Some(own) = self.interface(network) else {
            return self.counters.count_drop(DropReason::NoRoute, 1);
        };
        let (vid, mac) = (own.config.vid, own.config.mac);
        forward::address(&mut frame, to, mac);
        if let Err(why) = bridge.originate(cx, network, vid, frame, Origin::Held) {
            self.counters.count_drop(why, 1);
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

/// Source and destination of a packet that parsed.
fn addresses(head: &[u8], meta: &Meta) -> Option<(IpAddr, IpAddr)> {
    let ip = head.get(usize::from(meta.l3_off)..)?;
    Some(match meta.l3 {
        L3::V4 => (
            IpAddr::from(*ip.get(12..)?.first_chunk::<4>()?),
            IpAddr::from(*ip.get(16..)?.first_chunk::<4>()?),
        ),
        L3::V6 => (
            IpAddr::from(*ip.get(8..)?.first_chunk::<16>()?),
            IpAddr::from(*ip.get(24..)?.first_chunk::<16>()?),
        ),
        _ => return None,
    })
}
