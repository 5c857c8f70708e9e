//! DNS at the gateway: questions in datagrams and by TCP, what resolvers have answered, and names that rules have.
//!
//! # Theory of operation
//!
//! A datagram is answered at once, from the zone or the cache, or when the [`Forwarder`](crate::service::dns::Forwarder)'s thread has cast
//! [`Gateway::take_responses`]. A SYN to the same address begins a connection of the network's [`Listener`]; further segments
//! are taken by their endpoints before connections that pass the gateway are looked up, as they belong to none. Whatever goes
//! out as an answer is also told to [`Names`](crate::policy::Names), so that a rule about a name holds for the addresses that were given for it.

use super::Gateway;
use super::datagram::{self, Datagram};
use super::services::RESPONSES;
use crate::service::dns::{self, Client, Dns, Forwarder, Listener, Peer, TcpQuery, Transport};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{Entry, Frame};
use vswitch_core::wire::L4;
use vswitch_core::worker::{Cx, Origin};

const SYN: u8 = 2;
/// FIN, SYN, RST and ACK.
const FLAGS: u8 = 0x17;
/// Longest packet taken for a connection; its window is a quarter of that.
const LONGEST: usize = 16 * 1024;

/// Puts a question; the answers that are there at once.
fn put(
    dns: &mut Dns,
    forwarder: Option<&Arc<Forwarder>>,
    client: Client,
    payload: &[u8],
    now: Nanos,
) -> Option<Vec<(Client, Vec<u8>)>> {
    Some(match dns.query(client, payload, now) {
        dns::Verdict::Answer(answer) => vec![(client, answer)],
        dns::Verdict::Forward(question) => {
            let id = question.id;
            let refused = match forwarder {
                Some(f) => f.submit(question).err(),
                None => Some(dns::Response {
                    id,
                    outcome: Err(dns::Failure::Busy),
                }),
            };
            refused.map_or(vec![], |r| dns.respond(r, now))
        }
        dns::Verdict::Waiting => vec![],
        dns::Verdict::Drop => return None,
    })
}

impl Gateway {
    /// Whether DNS is served to `from` at `to`: hosts of the network, at the gateway's address that is for it.
    pub(super) fn asked_here(&self, network: NetworkId, from: IpAddr, to: IpAddr) -> bool {
        let own = self.interface(network);
        own.is_some_and(|own| own.on_link(from)) && self.dns_address(network, from) == Some(to)
    }

    /// The address that `client` is served DNS at: the one configured of its family, else the gateway's of its prefix.
    fn dns_address(&self, network: NetworkId, client: IpAddr) -> Option<IpAddr> {
        let at = self.services.dns_at(network);
        let configured = at.iter().find(|a| a.is_ipv4() == client.is_ipv4());
        let prefix = || self.interface(network)?.source_for(client);
        configured.copied().or_else(prefix)
    }

    /// A question in a datagram.
    pub(super) fn dns(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
    ) -> bool {
        let Some(Datagram { from, to, payload }) = datagram::read(e) else {
            // A damaged question isn't answered at all.
            return self.services.get(network).is_some_and(|s| s.dns.is_some());
        };
        let client = Client {
            port: u32::from(self.ingress.0),
            address: from,
            transport: Transport::Udp,
        };
        let asked_here = self.asked_here(network, from.ip(), to.ip());
        let served = self.services.get(network).filter(|_| asked_here);
        let Some((dns, forwarder)) = served.and_then(|s| Some((s.dns.as_mut()?, &s.forwarder)))
        else {
            return false;
        };
        let answers = put(dns, forwarder.as_ref(), client, &payload, cx.now);
        cx.tick_by(dns.next_deadline());
        match answers.as_deref() {
            Some([(_, answer)]) => {
                self.heard_answer(answer, cx.now);
                self.answer_to(cx, bridge, network, to, (e.meta.src, from), answer);
            }
            _ => self.answers(cx, bridge, network, answers.unwrap_or_default()),
        }
        true
    }

    /// Takes what resolvers have answered.
    pub fn take_responses(&mut self, cx: &mut Cx, bridge: &mut Bridge) {
        for forwarder in self.services.forwarders() {
            for _ in 0..RESPONSES {
                let Some(response) = forwarder.poll() else {
                    break;
                };
                let network = NetworkId(response.tag());
                let dns = self.services.get(network).and_then(|s| s.dns.as_mut());
                let answers = dns.map_or(vec![], |d| d.respond(response, cx.now));
                self.answers(cx, bridge, network, answers);
            }
            if !forwarder.responses().is_empty() {
                cx.tick_by(cx.now);
            }
        }
    }

    /// Answers that clients have waited for.
    pub(super) fn answers(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        answers: Vec<(Client, Vec<u8>)>,
    ) {
        let mut by_tcp = false;
        for (client, payload) in answers {
            self.heard_answer(&payload, cx.now);
            if let Transport::Tcp(connection) = client.transport {
                if let Some(listener) = self.listener(network) {
                    listener.answer(connection, &payload, cx.now);
                    by_tcp = true;
                }
                continue;
            }
            let hop = client.address.ip();
            let Some(from) = self.dns_address(network, hop) else {
                continue;
            };
            let from: SocketAddr = (from, dns::PORT).into();
            match self.neighbours.mac_of(network, hop) {
                Some(to) => {
                    let to = (to, client.address);
                    self.answer_to(cx, bridge, network, from, to, &payload);
                }
                // The client asks again, and gets it from the cache.
                None => self.ask(cx, bridge, network, hop, None),
            }
        }
        if by_tcp {
            self.serve_connections(cx, bridge, network);
        }
    }

    /// A container has been told of addresses of a name.
    fn heard_answer(&mut self, answer: &[u8], now: Nanos) {
        if self.names.is_on()
            && let Some(r) = dns::resolved(answer)
        {
            self.names.learn(&r.name, &r.addresses, r.ttl, now);
        }
    }

    fn listener(&mut self, network: NetworkId) -> Option<&mut Listener> {
        self.services.get(network)?.listener.as_mut()
    }

    /// A segment for a connection of a service. `begins`: it may begin one, as nothing else knows it.
    pub(super) fn segment(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
        begins: bool,
    ) -> bool {
        if e.meta.l4 != L4::Tcp || e.meta.fragment {
            return false;
        }
        let tcp = e.frame.head().get(usize::from(e.meta.l4_off)..);
        let Some([a, b, c, d, _, _, _, _, _, _, _, _, _, flags, ..]) = tcp else {
            return false;
        };
        let (from, to) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
        if to != dns::PORT || begins && flags & FLAGS != SYN {
            return false;
        }
        let Some((src, dst)) = e.meta.addresses(e.frame.head()) else {
            return false;
        };
        let (client, local) = (SocketAddr::new(src, from), SocketAddr::new(dst, to));
        if begins && !self.asked_here(network, src, dst) {
            return false;
        }
        let (mac, port) = (e.meta.src, u32::from(self.ingress.0));
        let Some(listener) = self.listener(network) else {
            return false;
        };
        if !begins && !listener.knows(client, local) {
            return false;
        }
        if cx.is_dry() {
            return super::dry::served(cx, network, Some("DNS"));
        }
        let (l3, end) = (usize::from(e.meta.l3_off), e.meta.l3_end as usize);
        let sound = end - l3.min(end) <= LONGEST
            && (e.frame.vnet.needs_csum || crate::verify::l4_sum_is_right(&e.frame, &e.meta));
        if sound && let Some(packet) = e.frame.to_vec().get(l3..end) {
            let peer = Peer {
                port,
                mac,
                client,
                local,
            };
            listener.packet(peer, packet.to_vec(), cx.now);
            self.serve_connections(cx, bridge, network);
        }
        true
    }

    /// Has the connections' queries answered, and sends what they have to send.
    fn serve_connections(&mut self, cx: &mut Cx, bridge: &mut Bridge, network: NetworkId) {
        let now = cx.now;
        loop {
            let Some(served) = self.services.get(network) else {
                return;
            };
            let (Some(listener), Some(dns)) = (&mut served.listener, &mut served.dns) else {
                return;
            };
            let Some(query) = listener.next_query(now) else {
                cx.tick_by(dns.next_deadline());
                break;
            };
            let TcpQuery {
                connection,
                peer,
                message,
            } = query;
            let client = Client {
                port: peer.port,
                address: peer.client,
                transport: Transport::Tcp(connection),
            };
            let answers = put(dns, served.forwarder.as_ref(), client, &message, now);
            let Some(answers) = answers else {
                listener.reset(connection);
                continue;
            };
            for (client, answer) in &answers {
                // All are of this connection: who has joined a question is only there while it is under way.
                if let Transport::Tcp(connection) = client.transport {
                    listener.answer(connection, answer, now);
                }
            }
            for (_, answer) in answers {
                self.heard_answer(&answer, now);
            }
        }
        self.send_segments(cx, bridge, network);
    }

    fn send_segments(&mut self, cx: &mut Cx, bridge: &mut Bridge, network: NetworkId) {
        let Some(own) = self.interface(network) else {
            return;
        };
        let (mac, vid) = (own.config.mac, own.config.vid);
        let Some(listener) = self.listener(network) else {
            return;
        };
        let mut frames = vec![];
        listener.flush(cx.now, &mut |peer, packet| {
            let ethertype: [u8; 2] = match peer.client {
                SocketAddr::V4(_) => [0x08, 0x00],
                SocketAddr::V6(_) => [0x86, 0xdd],
            };
            let mut frame = Frame::new();
            frame.append(&peer.mac.0);
            frame.append(&mac.0);
            frame.append(&ethertype);
            if frame.append(packet) {
                frames.push(frame);
            }
        });
        cx.tick_by(listener.next_deadline());
        for frame in frames {
            // A segment nobody can take is lost like any other.
            let _ = bridge.originate(cx, network, vid, frame, Origin::Switch);
        }
    }

    /// Timers of connections; when they are due next.
    pub(super) fn tick_connections(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
    ) -> Nanos {
        let now = cx.now;
        let Some(listener) = self.listener(network) else {
            return Nanos::MAX;
        };
        if listener.next_deadline() <= now {
            listener.tick(now);
            self.serve_connections(cx, bridge, network);
        }
        self.listener(network)
            .map_or(Nanos::MAX, |l| l.next_deadline())
    }
}
