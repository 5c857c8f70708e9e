//! The way out by sockets of the host: a network of its own to the gateway, without a port.
//!
//! # Theory of operation
//!
//! Networks whose gateway has a host uplink reach by it whatever no other route leads to. [`HOST`] stands for it where a network is named: routes
//! lead there, and a packet that is to be sent there is given to the backend ([`Slirp`]), translated and judged as any other. What the
//! backend has for a container comes back as packets received from that network. A flow of the backend ends with its connection.
//!
//! The host's loopback is reached, where that is allowed, by the gateway's own address or others that stand for it, which are translated
//! to it. Nothing else can name it: such addresses are refused from containers.

use super::flows::Ended;
use super::forward::Outcome;
use super::interface::{Interface, InterfaceConfig};
use super::route::Route;
use super::{Gateway, GatewayConfig};
use crate::Endpoint;
use crate::reply::{self, Cause};
use crate::slirp::{self, HostAddresses, Out, Outbound, Slirp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Entry, Frame, Verdict};
use vswitch_core::port::PortId;
use vswitch_core::stats::PortCounters;
use vswitch_core::wire::{self, MacAddr};
use vswitch_core::worker::{Cx, Origin, Ready, Step, Watch};

/// What stands for the host's sockets where a network is named; no network has this index.
pub(super) const HOST: NetworkId = NetworkId(u16::MAX);
/// No packet is too long for a socket.
const MTU: u32 = 65_535;

/// The uplink, once a network has one.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) interface: Interface,
    pub(super) slirp: Slirp,
}

/// What the gateway keeps for it.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) uplink: Option<Box<Uplink>>,
    watch: Option<Watch>,
    counters: Arc<PortCounters>,
    /// Something was given to the backend since it was flushed.
    pub(super) given: bool,
    /// Connections that go straight into containers are to be judged again.
    pub(super) judges: bool,
}

/// Routes by it: all that no other leads to, and the host's loopback.
pub(super) fn routes(config: &GatewayConfig) -> Vec<Route> {
    if !config.interfaces.iter().any(|i| i.host.is_some()) {
        return Vec::new();
    }
    let all: [(IpAddr, u8); 4] = [
        (Ipv4Addr::UNSPECIFIED.into(), 0),
        (Ipv6Addr::UNSPECIFIED.into(), 0),
        (Ipv4Addr::new(127, 0, 0, 0).into(), 8),
        (Ipv6Addr::LOCALHOST.into(), 128),
    ];
    let route = |to| Route {
        to,
        via: None,
        network: HOST,
    };
    all.map(route).to_vec()
}

/// Where flows leave from, by the networks' prefixes and what lies behind their routers.
fn outbound(config: &GatewayConfig) -> Outbound {
    let mut all = Vec::new();
    for i in &config.interfaces {
        let Some(host) = &i.host else { continue };
        let behind = config.routes.iter().filter(|r| r.network == i.network);
        let hosts = i.hosts.iter().map(|ip| (*ip, 128));
        let prefixes = i.addresses.iter().copied().chain(hosts);
        let prefixes = prefixes.chain(behind.map(|r| r.to));
        all.extend(prefixes.map(|to| (to, host.source.clone())));
    }
    Outbound::new(all)
}

impl Gateway {
    /// Gives the gateway the means to have host sockets watched.
    pub fn set_watch(&mut self, watch: Watch) {
        self.host.watch = Some(watch);
    }

    /// Counters of what went to the host's sockets (sent) and came from them (received).
    #[must_use]
    pub fn host_counters(&self) -> Arc<PortCounters> {
        self.host.counters.clone()
    }

    /// Frames that went to the host's sockets.
    pub(super) fn host_taken(&self) -> u64 {
        self.host.counters.tx_frames.get()
    }

    /// One that did was made by the switch.
    pub(super) fn host_originated(&self) {
        self.host.counters.originated.add(1);
    }

    /// Flows of the host's sockets: TCP, UDP, echo.
    #[must_use]
    pub fn host_flows(&self) -> [usize; 3] {
        let uplink = self.host.uplink.as_deref();
        uplink.map_or([0; 3], |u| u.slirp.counts())
    }

    /// Takes up the configuration. Flows stay.
    pub(super) fn configure_host(&mut self, config: &GatewayConfig) {
        let mut wanted = config.interfaces.iter().filter_map(|i| i.host.as_ref());
        let Some(first) = wanted.next() else {
            self.host.uplink = None;
            return;
        };
        let mut merged = first.clone();
        for other in wanted {
            merged.loopback |= other.loopback;
            merged.own_addresses.extend_from_slice(&other.own_addresses);
        }
        let outbound = outbound(config);
        if let Some(uplink) = &mut self.host.uplink {
            uplink.slirp.configure(merged, outbound);
            return;
        }
        let seed = self.random();
        let interface = Interface::new(InterfaceConfig {
            network: HOST,
            vid: 0,
            mac: MacAddr::ZERO,
            addresses: Vec::new(),
            hosts: Vec::new(),
            mtu: MTU,
            uplink: true,
            host: None,
            snat: None,
            nptv6: Vec::new(),
        });
        let counters = self.host.counters.clone();
        let mut slirp = Slirp::new(merged.clone(), self.host.watch.clone(), seed, counters);
        slirp.configure(merged, outbound);
        self.host.uplink = Some(Box::new(Uplink { interface, slirp }));
    }

    /// Whether what comes from a network may go out by the host.
    pub(super) fn has_host(&self, network: NetworkId) -> bool {
        self.interface(network)
            .is_some_and(|i| i.config.host.is_some())
    }

    /// Whether the address stands for the host in a network.
    pub(super) fn stands_for_host(&self, network: NetworkId, ip: IpAddr) -> bool {
        let own = self.interface(network);
        own.is_some_and(|i| i.is_host(ip) || i.is_hosts_own(ip))
    }

    /// The endpoint of the host that an address stands for, if it does: on its loopback, or at its own address outside.
    pub(super) fn host_endpoint(
        &self,
        network: NetworkId,
        proto: u8,
        to: Endpoint,
    ) -> Option<Endpoint> {
        const TCP: u8 = 6;
        const UDP: u8 = 17;
        if !self.stands_for_host(network, to.addr) || !matches!(proto, TCP | UDP) {
            return None;
        }
        let own = self.interface(network)?;
        let at: IpAddr = match to.addr {
            _ if !own.is_host(to.addr) => {
                let source = &own.config.host.as_ref()?.source;
                let at = slirp::own_address(source, to.addr.is_ipv4())?;
                // Where a container has the host's own address, its packets keep the one that stands for that; the backend knows.
                if own.config.hosts.contains(&at) {
                    to.addr
                } else {
                    at
                }
            }
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        Some(Endpoint::new(at, to.port))
    }

    /// Gives a packet to the host's sockets.
    pub(super) fn give_to_host(
        &mut self,
        cx: &mut Cx,
        e: &mut Entry,
    ) -> Result<Outcome, DropReason> {
        if cx.is_dry() {
            cx.note(|| Step::new("host", "send").detail("by a socket of the host"));
            return Ok(Outcome::Held);
        }
        self.end_host_flows(cx.now);
        let uplink = self.host.uplink.as_deref_mut();
        let uplink = uplink.ok_or(DropReason::NoRoute)?;
        // Also when it is refused: the container may be to be told.
        self.host.given = true;
        uplink.slirp.input(cx.now, e)?;
        Ok(Outcome::Held)
    }

    /// Ends the flows whose connections have.
    fn end_host_flows(&mut self, now: Nanos) {
        let Some(tracking) = self.tracking.as_deref_mut() else {
            return;
        };
        if tracking.flows.host_ended.is_empty() {
            return;
        }
        let ended = std::mem::take(&mut tracking.flows.host_ended);
        if let Some(uplink) = self.host.uplink.as_deref_mut() {
            for Ended(proto, inside, outside) in ended {
                uplink.slirp.end(now, proto, inside, outside);
            }
            self.host.given = true;
        }
    }

    /// Sockets are ready, or there was more to do.
    pub fn host_ready(&mut self, cx: &mut Cx, bridge: &mut Bridge, events: &[Ready]) {
        if let Some(uplink) = self.host.uplink.as_deref_mut() {
            uplink.slirp.ready(cx.now, events);
            self.host.given = true;
            self.flush_host(cx, bridge);
        }
    }

    /// The host's addresses or routes have changed: sockets follow, and names that couldn't be looked up are asked for again.
    pub fn host_changed(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        addresses: Arc<HostAddresses>,
    ) {
        self.forget_dns_failures();
        if let Some(uplink) = self.host.uplink.as_deref_mut() {
            uplink.slirp.host_changed(addresses);
            self.host.given = true;
            self.flush_host(cx, bridge);
        }
    }

    /// Sends what the backend has for containers, if anything can have changed.
    pub(super) fn flush_host(&mut self, cx: &mut Cx, bridge: &mut Bridge) {
        if cx.is_dry() || !std::mem::take(&mut self.host.given) {
            return;
        }
        let Some(uplink) = self.host.uplink.as_deref_mut() else {
            return;
        };
        if uplink.slirp.follow_host(cx.now) | uplink.slirp.flush(cx.now) {
            self.host.given = true;
            cx.again();
        }
        cx.tick_by(uplink.slirp.next());
        let straight = uplink.slirp.take_straight();
        if !straight.is_empty() {
            self.judge_straight(cx, bridge, straight);
        }
        let Some(uplink) = self.host.uplink.as_deref_mut() else {
            return;
        };
        let mut list = uplink.slirp.take();
        for out in list.drain(..) {
            match out {
                Out::Packet(frame) => self.host_packet(cx, bridge, frame),
                Out::Error(offender, cause, from) => {
                    self.host_error(cx, bridge, &offender, cause, from);
                }
            }
        }
        if let Some(uplink) = self.host.uplink.as_deref_mut() {
            uplink.slirp.give_back(list);
        }
    }

    /// Timers of the backend.
    pub(super) fn tick_host(&mut self, cx: &mut Cx, bridge: &mut Bridge) -> Nanos {
        self.end_host_flows(cx.now);
        if self.host.judges {
            self.judge_spliced(cx, bridge);
        }
        if let Some(uplink) = self.host.uplink.as_deref_mut()
            && uplink.slirp.next() <= cx.now
        {
            uplink.slirp.tick(cx.now);
            self.host.given = true;
        }
        self.flush_host(cx, bridge);
        let uplink = self.host.uplink.as_deref();
        uplink.map_or(Nanos::MAX, |u| u.slirp.next())
    }

    /// A packet for a container.
    fn host_packet(&mut self, cx: &mut Cx, bridge: &mut Bridge, frame: Frame) {
        let counters = &self.host.counters;
        counters.rx_frames.add(1);
        counters.rx_bytes.add(frame.len() as u64);
        let Some(meta) = wire::parse(frame.head(), frame.len()) else {
            return counters.count_drop(DropReason::BadPacket, 1);
        };
        let mut e = Entry {
            frame,
            meta,
            verdict: Verdict::Next,
        };
        self.ingress = PortId::GATEWAY;
        let begins = super::inbound::begins(&e);
        match self.whole(cx, bridge, HOST, &mut e) {
            Ok((Outcome::Send(out), _)) => self.send(cx, bridge, out, e.frame, Origin::Held),
            Ok((Outcome::Held, _)) => {}
            Err(why) => {
                self.host.counters.count_drop(why, 1);
                self.refused_inbound(begins, why);
            }
        }
    }

    /// Tells a container why its packet has gone nowhere, from the router that says so or the gateway.
    fn host_error(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        offender: &Frame,
        cause: Cause,
        from: Option<IpAddr>,
    ) {
        let Some(meta) = wire::parse(offender.head(), offender.len()) else {
            return;
        };
        let Some((src, _)) = meta.addresses(offender.head()) else {
            return;
        };
        let own = self.routes.find(src).map(|(r, _)| r.network);
        let own = own.and_then(|n| self.interface(n)?.source_for(src));
        let Some(from) = from.filter(|f| f.is_ipv4() == src.is_ipv4()).or(own) else {
            return;
        };
        let Ok(error) = reply::icmp_error(offender, &meta, cause, from, MacAddr::ZERO) else {
            return;
        };
        if !self.limiter.admit(cx.now, src) {
            return;
        }
        let Some(meta) = wire::parse(error.head(), error.len()) else {
            return;
        };
        let mut e = Entry {
            frame: error,
            meta,
            verdict: Verdict::Next,
        };
        if let Ok(Outcome::Send(out)) = self.related(cx, bridge, HOST, &mut e) {
            self.send(cx, bridge, out, e.frame, Origin::Switch);
        }
    }
}
