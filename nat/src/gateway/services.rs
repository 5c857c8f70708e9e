//! The services of a network, hooked into the gateway: DHCP, router advertisements and DNS (see [`super::dns`]).
//!
//! # Theory of operation
//!
//! What a container broadcasts to a server (DHCP, router solicitations) is taken off the flood; what it sends to one of the
//! gateway's addresses comes by [`Gateway::serve`] before anything else there answers.
//!
//! DNS is served to hosts of the network alone, at the gateway's address of their prefix, so it is no open resolver.
//! Leases put names into the zone: the address under the port's name, and the name that the client claims.

use super::datagram;
use super::{Gateway, Interface};
use crate::service::dhcp4::{self, Change};
use crate::service::dns::{self, Dns, Forwarder, Host, Listener, Zone, ZoneConfig};
use crate::service::{dhcp6, ra};
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::Entry;
use vswitch_core::port::PortId;
use vswitch_core::wire::{L3, L4, MacAddr};
use vswitch_core::worker::{Cx, Event, Origin};

pub(super) const SOLICITATION: u8 = 133;
/// Changes kept for who asks; older ones are lost to events, not to the table.
const CHANGES: usize = 4096;
/// DNS responses taken at once; the rest come with the next turn.
pub(super) const RESPONSES: usize = 256;

/// What is served where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicesConfig {
    /// By network.
    pub networks: Vec<NetworkServices>,
    /// Names of ports.
    pub ports: Vec<(PortId, String)>,
}

/// What is served in a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkServices {
    /// The network.
    pub network: NetworkId,
    /// MAC address of the gateway in it.
    pub mac: MacAddr,
    /// DHCPv4.
    pub dhcp: Option<dhcp4::Config>,
    /// Router advertisements.
    pub ra: Option<ra::Config>,
    /// Stateless DHCPv6.
    pub dhcp6: Option<dhcp6::Config>,
    /// Names.
    pub dns: Option<ZoneConfig>,
    /// The gateway's addresses that DNS is served at, one of a family at most; where there is none, the one of the client's prefix.
    pub dns_at: Vec<IpAddr>,
    /// Hosts of the zone by owner; a container's is its port's name.
    pub hosts: Vec<(String, Host)>,
}

#[derive(Debug)]
pub(super) struct Served {
    config: NetworkServices,
    pub(super) dhcp: Option<dhcp4::Server>,
    pub(super) ra: Option<ra::Advertiser>,
    pub(super) dhcp6: Option<dhcp6::Server>,
    pub(super) dns: Option<Dns>,
    /// DNS by TCP.
    pub(super) listener: Option<Listener>,
    pub(super) forwarder: Option<Arc<Forwarder>>,
}

/// All services; see the module's head.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// By network.
    pub(super) networks: Vec<Option<Box<Served>>>,
    ports: HashMap<PortId, Arc<str>, foldhash::quality::RandomState>,
    changes: VecDeque<(NetworkId, Change)>,
}

impl Services {
    pub(super) fn get(&mut self, network: NetworkId) -> Option<&mut Served> {
        self.networks
            .get_mut(usize::from(network.0))?
            .as_deref_mut()
    }

    /// Addresses that DNS is served at, as configured.
    pub(super) fn dns_at(&self, network: NetworkId) -> &[IpAddr] {
        let served = self.networks.get(usize::from(network.0));
        let served = served.and_then(Option::as_deref);
        served.map_or(&[], |s| &s.config.dns_at)
    }

    /// Who asks resolvers.
    pub(super) fn forwarders(&self) -> Vec<Arc<Forwarder>> {
        let all = self.networks.iter().flatten();
        all.filter_map(|s| s.forwarder.clone()).collect()
    }

    /// Whether a group frame asks a service.
    pub(super) fn wants(&self, network: NetworkId, e: &Entry) -> bool {
        let served = self.networks.get(usize::from(network.0));
        let Some(served) = served.and_then(Option::as_deref) else {
            return false;
        };
        match (e.meta.l3, datagram::port_of(e)) {
            (L3::V4, Some(dhcp4::SERVER_PORT)) => served.dhcp.is_some(),
            (L3::V6, Some(dhcp6::SERVER_PORT)) => served.dhcp6.is_some(),
            (L3::V6, None) => served.ra.is_some() && datagram::icmp6_type(e) == Some(SOLICITATION),
            _ => false,
        }
    }

    fn note(&mut self, cx: &mut Cx, network: NetworkId, changes: Vec<Change>) {
        // With each change, also where earlier ones still wait: whoever missed it then hears of it now.
        if !changes.is_empty() {
            cx.event(Event::LeasesChanged);
        }
        for change in changes {
            if let Some(served) = self.get(network) {
                served.follow(&change, cx.now);
            }
            if self.changes.len() >= CHANGES {
                self.changes.pop_front();
            }
            self.changes.push_back((network, change));
        }
    }
}

impl Served {
    fn new(
        config: NetworkServices,
        old: Option<Served>,
        own: &Interface,
        (now, random): (Nanos, u64),
    ) -> Served {
        let (mut was, mut leases, mut advertiser, mut dns, mut forwarder) =
            (None, vec![], None, None, None);
        let mut listener = None;
        if let Some(old) = old {
            leases = old.dhcp.as_ref().map_or(vec![], |d| d.leases(now));
            (advertiser, dns, forwarder) = (old.ra, old.dns, old.forwarder);
            listener = old.listener;
            was = Some((old.config, old.dhcp));
        }
        let same = |f: fn(&NetworkServices, &NetworkServices) -> bool| {
            was.as_ref().is_some_and(|(c, _)| f(c, &config))
        };
        let same_zone = same(|a, b| a.dns == b.dns);
        let same_router = same(|a, b| a.ra == b.ra && a.mac == b.mac);
        let same_dhcp = same(|a, b| a.dhcp == b.dhcp);
        // Control has checked what can be wrong; a service that can't be is off.
        let dhcp = match was.and_then(|(_, d)| d).filter(|_| same_dhcp) {
            Some(server) => Some(server),
            None => config.dhcp.clone().and_then(|c| {
                let mut server = dhcp4::Server::new(c).ok()?;
                server.restore(&leases, now);
                Some(server)
            }),
        };
        if !same_router {
            advertiser = config.ra.clone().and_then(|c| {
                let made = ra::Advertiser::new(c.clone(), config.mac, own.link_local, now);
                match advertiser.take() {
                    Some(mut kept) => kept.set_config(c, now).is_ok().then_some(kept),
                    None => made.ok(),
                }
            });
        }
        if !same_zone {
            let tag = config.network.0;
            dns = config.dns.clone().and_then(|z| {
                let limits = dns::Config {
                    tag,
                    ..dns::Config::default()
                };
                Some(Dns::new(limits, Zone::new(z).ok()?))
            });
        }
        if dns.is_none() {
            forwarder = None;
        }
        // Connections wait for answers of the service they asked.
        let kept = listener.filter(|l| same_zone && l.mtu() == own.config.mtu);
        let listen = || Listener::new(own.config.mtu, random, now);
        let listener = dns.as_ref().map(|_| kept.unwrap_or_else(listen));
        let dhcp6 = config.dhcp6.as_ref();
        let dhcp6 = dhcp6.and_then(|c| dhcp6::Server::new(c, config.mac).ok());
        let mut served = Served {
            dhcp,
            ra: advertiser,
            dhcp6,
            dns,
            listener,
            forwarder,
            config,
        };
        served.register_all(now);
        served
    }

    /// Puts every name into the zone anew.
    fn register_all(&mut self, now: Nanos) {
        let Some(dns) = &mut self.dns else { return };
        let zone = dns.zone_mut();
        let owners: Vec<String> = zone.hosts().map(|(o, _)| o.to_owned()).collect();
        for owner in owners {
            zone.unregister(&owner);
        }
        for (owner, host) in &self.config.hosts {
            // Control has checked the names; beyond the limit a host has none.
            let _ = zone.register(owner, host.clone());
        }
        let leases = self.dhcp.as_ref().map_or(vec![], |d| d.leases(now));
        for lease in leases {
            self.follow(&Change::Bound(lease), now);
        }
    }

    /// Has the zone follow a lease.
    fn follow(&mut self, change: &Change, now: Nanos) {
        let (Some(dns), Some(dhcp)) = (&mut self.dns, &self.dhcp) else {
            return;
        };
        let zone = dns.zone_mut();
        let (Change::Bound(lease) | Change::Ended(lease)) = change;
        let claim = format!("lease {}", lease.address);
        match (change, &lease.host_name) {
            (Change::Bound(_), Some(name)) => {
                let host = Host {
                    name: name.clone(),
                    addresses: vec![lease.address.into()],
                    claimed: true,
                    ..Host::default()
                };
                // A name that can't be one is the client's loss.
                let _ = zone.register(&claim, host);
            }
            _ => {
                zone.unregister(&claim);
            }
        }
        let hosts = &self.config.hosts;
        if let Some((owner, host)) = hosts.iter().find(|(o, _)| *o == lease.port) {
            let mut host = host.clone();
            for l in dhcp.leases(now).iter().filter(|l| l.port == lease.port) {
                if !host.addresses.contains(&l.address.into()) {
                    host.addresses.push(l.address.into());
                }
            }
            let _ = zone.register(owner, host);
        }
    }
}

impl Gateway {
    /// Takes up what is to be served; to be called after [`Gateway::configure`]. Leases, names learned and what was
    /// fetched stay where the service stays.
    pub fn configure_services(&mut self, cx: &mut Cx, config: &ServicesConfig) {
        let mut old = std::mem::take(&mut self.services.networks);
        for c in &config.networks {
            let i = usize::from(c.network.0);
            let random = self.random();
            let Some(own) = self.interfaces.get(i).and_then(Option::as_ref) else {
                continue;
            };
            let was = old.get_mut(i).and_then(Option::take).map(|b| *b);
            let served = Served::new(c.clone(), was, own, (cx.now, random));
            if self.services.networks.len() <= i {
                self.services.networks.resize_with(i + 1, || None);
            }
            self.services.networks[i] = Some(Box::new(served));
        }
        let ports = config.ports.iter();
        let ports: HashMap<PortId, Arc<str>, foldhash::quality::RandomState> =
            ports.map(|(p, n)| (*p, n.as_str().into())).collect();
        let was = std::mem::replace(&mut self.services.ports, ports);
        let now: Vec<Arc<str>> = self.services.ports.values().cloned().collect();
        for name in was.into_values().filter(|n| !now.contains(n)) {
            for i in 0..self.services.networks.len() {
                let network = NetworkId(i as u16);
                let dhcp = self.services.get(network).and_then(|s| s.dhcp.as_mut());
                let changes = dhcp.map_or(vec![], |d| d.port_gone(&name, cx.now));
                self.services.note(cx, network, changes);
            }
        }
        cx.tick_by(cx.now);
    }

    /// Who puts questions to resolvers for these networks.
    pub fn set_forwarders(&mut self, forwarders: Vec<(NetworkId, Arc<Forwarder>)>) {
        for (network, forwarder) in forwarders {
            if let Some(served) = self.services.get(network) {
                served.forwarder = Some(forwarder);
            }
        }
    }

    /// Forgets what was fetched, as when the resolvers change.
    pub fn clear_dns_caches(&mut self) {
        for served in self.services.networks.iter_mut().flatten() {
            if let Some(dns) = &mut served.dns {
                dns.clear_cache();
            }
        }
    }

    /// Forgets names that couldn't be looked up.
    pub(super) fn forget_dns_failures(&mut self) {
        for served in self.services.networks.iter_mut().flatten() {
            if let Some(dns) = &mut served.dns {
                dns.forget_failures();
            }
        }
    }

    /// Leases as they are, by network.
    #[must_use]
    pub fn leases(&self, now: Nanos) -> Vec<(NetworkId, dhcp4::Lease)> {
        let served = self.services.networks.iter().flatten();
        let of = |s: &Served| s.dhcp.as_ref().map_or(vec![], |d| d.leases(now));
        let all = served.flat_map(|s| of(s).into_iter().map(|l| (s.config.network, l)));
        all.collect()
    }

    /// Takes up saved leases.
    pub fn restore_leases(&mut self, network: NetworkId, leases: &[dhcp4::Lease], now: Nanos) {
        if let Some(served) = self.services.get(network) {
            if let Some(dhcp) = &mut served.dhcp {
                dhcp.restore(leases, now);
            }
            served.register_all(now);
        }
    }

    /// What happened to leases since the last call; [`Event::LeasesChanged`] says when there is something.
    pub fn take_lease_changes(&mut self) -> Vec<(NetworkId, Change)> {
        self.services.changes.drain(..).collect()
    }

    /// Serves a request for a service; whether it was one.
    pub(super) fn serve(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
    ) -> bool {
        if self.services.get(network).is_none() {
            return false;
        }
        if cx.is_dry() && e.meta.l4 != L4::Tcp {
            let service = self
                .services
                .for_whom(network, e, &|from, to| self.asked_here(network, from, to));
            return super::dry::served(cx, network, service);
        }
        match datagram::port_of(e) {
            Some(dhcp4::SERVER_PORT) if e.meta.l3 == L3::V4 => self.dhcp(cx, bridge, network, e),
            Some(dhcp6::SERVER_PORT) if e.meta.l3 == L3::V6 => self.dhcp6(cx, bridge, network, e),
            Some(dns::PORT) => self.dns(cx, bridge, network, e),
            None if datagram::icmp6_type(e) == Some(SOLICITATION) => {
                self.solicited(cx, bridge, network, e)
            }
            None => self.segment(cx, bridge, network, e, true),
            _ => false,
        }
    }

    fn dhcp(&mut self, cx: &mut Cx, bridge: &mut Bridge, network: NetworkId, e: &Entry) -> bool {
        let (services, neighbours) = (&mut self.services, &self.neighbours);
        let ingress = self.ingress;
        let port = services.ports.get(&ingress).cloned();
        let Some(server) = services.get(network).and_then(|s| s.dhcp.as_mut()) else {
            return false;
        };
        let (Some(request), Some(port)) = (datagram::read(e), port) else {
            return true;
        };
        let src = e.meta.src;
        let context = dhcp4::Context {
            port: &port,
            src,
            now: cx.now,
        };
        let mut in_use = |a: std::net::Ipv4Addr| {
            let known = neighbours.mac_of(network, a.into());
            known.is_some_and(|mac| mac != src)
        };
        let outcome = server.handle(&request.payload, &context, &mut in_use);
        let (from, next) = (server.config().server, server.next_deadline());
        cx.tick_by(next);
        services.note(cx, network, outcome.changes);
        if let Some(reply) = outcome.reply {
            let to = (reply.ip, dhcp4::CLIENT_PORT).into();
            let from = (from, dhcp4::SERVER_PORT).into();
            self.answer_to(cx, bridge, network, from, (reply.mac, to), &reply.payload);
        }
        true
    }

    fn dhcp6(&mut self, cx: &mut Cx, bridge: &mut Bridge, network: NetworkId, e: &Entry) -> bool {
        let Some(own) = self.interface(network).map(|i| i.link_local) else {
            return false;
        };
        let server = self.services.get(network).and_then(|s| s.dhcp6.as_ref());
        let Some(server) = server else {
            return false;
        };
        if let Some(request) = datagram::read(e)
            && let Some(answer) = server.handle(&request.payload)
        {
            let from = (own, dhcp6::SERVER_PORT).into();
            let to = (e.meta.src, request.from);
            self.answer_to(cx, bridge, network, from, to, &answer);
        }
        true
    }

    fn solicited(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
    ) -> bool {
        let random = self.random() as u32;
        let Some(router) = self.services.get(network).and_then(|s| s.ra.as_mut()) else {
            return false;
        };
        if let Some((from, hop_limit, message)) = datagram::read_icmp6(e) {
            let answer = router.solicited(from, hop_limit, &message, cx.now, random);
            cx.tick_by(router.next());
            if let Some(m) = answer {
                self.advertise(cx, bridge, network, e.meta.src, m);
            }
        }
        true
    }

    fn advertise(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        to: MacAddr,
        message: ra::Message,
    ) {
        let Some(own) = self.interface(network) else {
            return;
        };
        let (from, vid) = ((own.config.mac, own.link_local), own.config.vid);
        if let Some(frame) = datagram::icmp6(from, (to, message.to), message.payload) {
            // Nobody there to hear it is no fault.
            let _ = bridge.originate(cx, network, vid, frame, Origin::Switch);
        }
    }

    pub(super) fn answer_to(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        from: SocketAddr,
        to: (MacAddr, SocketAddr),
        payload: &[u8],
    ) {
        let Some(own) = self.interface(network) else {
            return;
        };
        let (mac, vid) = (own.config.mac, own.config.vid);
        if let Some(frame) = datagram::udp((mac, from), to, payload) {
            // An answer nobody can take is lost like any other.
            let _ = bridge.originate(cx, network, vid, frame, Origin::Switch);
        }
    }

    /// Timers of the services: leases that end, advertisements that are due, questions nobody answered.
    pub(super) fn tick_services(&mut self, cx: &mut Cx, bridge: &mut Bridge) -> Nanos {
        let mut next = Nanos::MAX;
        if cx.worker.0 != 0 {
            return next;
        }
        self.take_responses(cx, bridge);
        for i in 0..self.services.networks.len() {
            let network = NetworkId(i as u16);
            let random = self.random() as u32;
            let Some(served) = self.services.get(network) else {
                continue;
            };
            let mut changes = vec![];
            if let Some(dhcp) = &mut served.dhcp {
                changes = dhcp.tick(cx.now);
                next = next.min(dhcp.next_deadline());
            }
            let mut message = None;
            if let Some(router) = &mut served.ra {
                message = router.poll(cx.now, random);
                next = next.min(router.next());
            }
            let mut answers = vec![];
            if let Some(dns) = &mut served.dns {
                answers = dns.tick(cx.now);
                next = next.min(dns.next_deadline());
            }
            self.services.note(cx, network, changes);
            if let Some(m) = message {
                let to = datagram::group_mac(m.to);
                self.advertise(cx, bridge, network, to, m);
            }
            self.answers(cx, bridge, network, answers);
            next = next.min(self.tick_connections(cx, bridge, network));
        }
        next
    }

    /// Serves a group frame that asks a service; whether it was one, which nobody else then needs.
    pub(super) fn group_request(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
    ) -> bool {
        self.services.wants(network, e) && self.serve(cx, bridge, network, e)
    }
}
