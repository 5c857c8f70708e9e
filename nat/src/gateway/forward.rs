//! The way of a packet through the router.
//!
//! A packet of a known connection costs a look-up: its flow has the rewriting and the way of each direction. The first packet of a
//! connection is judged ([`super::open`]), ICMP errors go with the connection they are about ([`super::related`]), later
//! fragments with the first ([`super::fragments`]).

use super::flows::Way;
use super::host::HOST;
use super::neigh::Resolved;
use super::{Gateway, local};
use crate::conntrack::{ConnId, Dir, Packet, Track, Tuple, proto};
use crate::hop::{self, Ttl};
use crate::reply::{self, Cause};
use crate::rewrite::Rewrite;
use std::net::IpAddr;
use std::time::Duration;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::frame::{DropReason, Entry, Frame, GsoType, Offloads, gso};
use vswitch_core::policy::meter::wire_load;
use vswitch_core::wire::{L3, L4, MacAddr, Meta};
use vswitch_core::worker::{Cx, Origin, Step};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its Ethernet header is written: to be sent into this network.
    Send(NetworkId),
    /// The gateway keeps it, or has sent it already.
    Held,
}

/// The connection and direction that a packet was found to be of.
pub(super) type Follow = Option<(ConnId, Dir)>;

/// Writes the Ethernet addresses of a frame the gateway sends.
pub(super) fn address(frame: &mut Frame, to: MacAddr, from: MacAddr) {
    if let Some(h) = frame.head_mut().first_chunk_mut::<12>() {
        h[..6].copy_from_slice(&to.0);
        h[6..].copy_from_slice(&from.0);
    }
}

/// Whether IPv4's "don't fragment" is set, or the packet is IPv6.
fn unfragmentable(head: &[u8], meta: &Meta) -> bool {
    meta.l3 != L3::V4
        || head
            .get(usize::from(meta.l3_off) + 6)
            .is_none_or(|b| b & 0x40 != 0)
}

/// The packet as connection tracking sees it; a segmentation-offload frame counts for its segments.
pub(super) fn tracked(e: &Entry, zone: u16) -> Option<Packet> {
    let mut packet = Packet::of(e.frame.head(), &e.meta, zone)?;
    if e.frame.vnet.gso != GsoType::None {
        packet.packets = wire_load(&e.frame, &e.meta).0 as u32;
    }
    Some(packet)
}

impl Gateway {
    /// A packet for the gateway's MAC: for one of our addresses, or to be routed.
    pub(super) fn packet(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
    ) -> Result<Outcome, DropReason> {
        let (src, dst) = e
            .meta
            .addresses(e.frame.head())
            .ok_or(DropReason::BadPacket)?;
        self.check(network, src, dst)?;
        if e.meta.fragment {
            if cx.is_dry() {
                return self.fragment_asked_about(cx, bridge, network, e);
            }
            return self.fragment(cx, bridge, network, e);
        }
        if self.segment(cx, bridge, network, e, false) {
            return Err(DropReason::Consumed);
        }
        self.whole(cx, bridge, network, e)
            .map(|(outcome, _)| outcome)
    }

    /// A packet with its transport header.
    pub(super) fn whole(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
    ) -> Result<(Outcome, Follow), DropReason> {
        let (mut packet, hint) = match self.ahead.take() {
            Some((packet, hint)) => (packet, Some(hint)),
            None => match tracked(e, super::flows::ZONE) {
                Some(packet) => (packet, None),
                None => return self.untracked(cx, bridge, network, e).map(|o| (o, None)),
            },
        };
        if self.ignores_inbound && packet.tuple.proto == proto::UDP {
            packet.refreshes = !self.is_uplink(network);
        }
        match self.track(cx, &packet, hint).ok_or(DropReason::NoRoute)? {
            Track::Hit(hit) => {
                let outcome = self.follow(cx, bridge, network, e, (hit.id, hit.dir))?;
                Ok((outcome, Some((hit.id, hit.dir))))
            }
            Track::New(pending) => self.open(cx, bridge, network, e, pending),
            Track::Invalid(_) => Err(DropReason::InvalidState),
        }
    }

    /// What no connection can have: ND for us, ICMP errors.
    fn untracked(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
    ) -> Result<Outcome, DropReason> {
        if matches!(e.meta.l4, L4::Icmp | L4::Icmp6) {
            if self.overhear(cx, bridge, network, e) {
                return Err(DropReason::Consumed);
            }
            return self.related(cx, bridge, network, e);
        }
        Err(DropReason::BadPacket)
    }

    /// A packet of a known connection.
    pub(super) fn follow(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
        (id, dir): (ConnId, Dir),
    ) -> Result<Outcome, DropReason> {
        self.still_allowed(cx, bridge, network, e, (id, dir))?;
        let leads = self.way(id, dir)?;
        self.send_on(cx, bridge, network, e, leads)
    }

    /// Translates a packet and sends it to its next hop.
    pub(super) fn send_on(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
        (way, rewrite): (Way, Option<Rewrite>),
    ) -> Result<Outcome, DropReason> {
        self.may_pass(cx, bridge, network, e, way.network)?;
        if let Some(rewrite) = rewrite {
            let before = match cx.is_dry() {
                true => Tuple::of(e.frame.head(), &e.meta, super::flows::ZONE),
                false => None,
            };
            rewrite
                .apply(&mut e.frame, &e.meta)
                .map_err(|_| DropReason::BadPacket)?;
            super::dry::translated(cx, before, e);
        }
        if hop::decrement_ttl(&mut e.frame, &e.meta) == Ttl::Expired {
            return Err(DropReason::TtlExceeded);
        }
        self.clamp(network, way.network, e);
        self.transmit(cx, bridge, way, e)
    }

    /// Way and rewriting of a connection's direction; the way is looked up anew when routes have changed.
    pub(super) fn way(
        &mut self,
        id: ConnId,
        dir: Dir,
    ) -> Result<(Way, Option<Rewrite>), DropReason> {
        let tracking = self.tracking.as_deref_mut().ok_or(DropReason::NoRoute)?;
        let conn = tracking.conns.get(id).ok_or(DropReason::InvalidState)?;
        let routes = (self.epoch, &self.routes);
        tracking.flows.follow(conn, dir, routes)
    }

    /// Whether TTL and the MTU of the network it leaves by let the packet pass; who sent it is told if not.
    pub(super) fn may_pass(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
        out: NetworkId,
    ) -> Result<(), DropReason> {
        let at = usize::from(e.meta.l3_off) + if e.meta.l3 == L3::V4 { 8 } else { 7 };
        if e.frame.head().get(at).is_none_or(|ttl| *ttl <= 1) {
            cx.note(|| Step::new("gateway", "drop").detail("its TTL is used up"));
            self.answer(cx, bridge, network, e, Cause::TimeExceeded);
            return Err(DropReason::TtlExceeded);
        }
        let mtu = self.interface(out).ok_or(DropReason::NoRoute)?.config.mtu;
        // What came by the host's sockets has its source here.
        let uncut = network != HOST && unfragmentable(e.frame.head(), &e.meta);
        if uncut && !gso::fits(&e.frame, Offloads::ALL, mtu) {
            cx.note(|| {
                Step::new("gateway", "drop")
                    .detail(format_args!(
                        "longer than the MTU of {mtu}, and not to be fragmented"
                    ))
                    .network(out)
            });
            self.answer(cx, bridge, network, e, Cause::TooBig(mtu));
            return Err(DropReason::Mtu);
        }
        Ok(())
    }

    /// Lowers the MSS that a SYN between networks of different MTUs announces to what fits both.
    fn clamp(&self, from: NetworkId, to: NetworkId, e: &mut Entry) {
        if e.meta.l4 != L4::Tcp {
            return;
        }
        let mtu = |n| self.interface(n).map_or(u32::MAX, |i| i.config.mtu);
        let (a, b) = (mtu(from), mtu(to));
        if a != b {
            let headers = if e.meta.l3 == L3::V4 { 40 } else { 60 };
            let mss = a.min(b).saturating_sub(headers).min(0xffff) as u16;
            hop::clamp_mss(&mut e.frame, &e.meta, mss);
        }
    }

    /// Sends a packet to a neighbour; holds it while the neighbour's MAC isn't known.
    pub(super) fn transmit(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        way: Way,
        e: &mut Entry,
    ) -> Result<Outcome, DropReason> {
        let Way { network: out, hop } = way;
        if out == HOST {
            return self.give_to_host(cx, e);
        }
        let own = self.interface(out).ok_or(DropReason::NoRoute)?;
        let (vid, mac) = (own.config.vid, own.config.mac);
        let resolved = self.resolve(cx, out, hop);
        cx.note(|| super::dry::neighbour(&resolved, hop).network(out));
        match resolved {
            Resolved::Known { mac: to, ask } => {
                if ask {
                    self.ask(cx, bridge, out, hop, Some(to));
                    cx.tick_by(cx.now.after(Duration::from_secs(1)));
                }
                address(&mut e.frame, to, mac);
                (e.meta.dst, e.meta.src, e.meta.vid) = (to, mac, vid);
                Ok(Outcome::Send(out))
            }
            Resolved::Pending { ask } => {
                if ask {
                    self.ask(cx, bridge, out, hop, None);
                    cx.tick_by(cx.now.after(Duration::from_secs(1)));
                }
                if cx.is_dry() {
                    return Ok(Outcome::Held);
                }
                let frame = std::mem::take(&mut e.frame);
                self.neighbours.hold(out, hop, frame).map_err(|frame| {
                    e.frame = frame;
                    DropReason::NoNeighbour
                })?;
                self.hold(1);
                Ok(Outcome::Held)
            }
            Resolved::Unreachable => Err(DropReason::NoNeighbour),
        }
    }

    /// Sends a frame with its Ethernet header written, beside the batch; cut into fragments if it has to be.
    pub(super) fn send(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        frame: Frame,
        origin: Origin,
    ) {
        let Some(own) = self.interface(network) else {
            return self.counters.count_drop(DropReason::NoRoute, 1);
        };
        let (vid, mtu) = (own.config.vid, own.config.mtu);
        if gso::fits(&frame, Offloads::ALL, mtu) {
            if let Err(why) = bridge.originate(cx, network, vid, frame, origin)
                && origin == Origin::Held
            {
                self.counters.count_drop(why, 1);
            }
            return;
        }
        let (mut origin, id) = (origin, self.random() as u32);
        let cut = super::split::split(frame, mtu, id, &mut |piece| {
            let sent = bridge.originate(cx, network, vid, piece, origin);
            if origin == Origin::Held {
                if let Err(why) = sent {
                    self.counters.count_drop(why, 1);
                }
                // The first piece stands for the frame that came, the others are ours.
                origin = Origin::Switch;
            }
        });
        if let Err(why) = cut
            && origin == Origin::Held
        {
            self.counters.count_drop(why, 1);
        }
    }

    /// Tells who sent a packet why it isn't forwarded, within the rate of such answers.
    pub(super) fn answer(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
        cause: Cause,
    ) {
        let (Some(own), Some((src, _))) =
            (self.interface(network), e.meta.addresses(e.frame.head()))
        else {
            return;
        };
        let Some(from) = own.source_for(src) else {
            return;
        };
        let (mac, vid) = (own.config.mac, own.config.vid);
        if let Ok(frame) = reply::icmp_error(&e.frame, &e.meta, cause, from, mac)
            && self.may_answer(cx, src)
        {
            let _ = bridge.originate(cx, network, vid, frame, Origin::Switch);
        }
    }

    /// A held packet, translated already, whose next hop doesn't answer: the error about it takes the way that one from outside
    /// would take.
    pub(super) fn unreachable(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        frame: &Frame,
    ) {
        let Some(meta) = vswitch_core::wire::parse(frame.head(), frame.len()) else {
            return;
        };
        let Some((src, _)) = meta.addresses(frame.head()) else {
            return;
        };
        let Some(own) = self.interface(network) else {
            return;
        };
        let Some(from) = own.source_for(src) else {
            return;
        };
        let cause = Cause::HostUnreachable;
        let Ok(error) = reply::icmp_error(frame, &meta, cause, from, own.config.mac) else {
            return;
        };
        if !self.may_answer(cx, src) {
            return;
        }
        let Some(meta) = vswitch_core::wire::parse(error.head(), error.len()) else {
            return;
        };
        let mut e = Entry {
            frame: error,
            meta,
            verdict: vswitch_core::frame::Verdict::Next,
        };
        let before = self.host_taken();
        match self.related(cx, bridge, network, &mut e) {
            Ok(Outcome::Send(out)) => self.send(cx, bridge, out, e.frame, Origin::Switch),
            Ok(Outcome::Held) if self.host_taken() > before => self.host_originated(),
            _ => {}
        }
    }

    /// A packet to one of our addresses that isn't translated: echo requests are answered. TCP from outside gets no reset: an end
    /// inside may be about to open the same connection (RFC 5382 REQ-4), or to have a forgotten one taken up again.
    pub(super) fn local(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
    ) -> Result<Outcome, DropReason> {
        self.judge_local(cx, bridge, network, e)?;
        if self.serve(cx, bridge, network, e) {
            return Err(DropReason::Consumed);
        }
        let (src, _) = e
            .meta
            .addresses(e.frame.head())
            .ok_or(DropReason::BadPacket)?;
        match local::echo(e) {
            Ok(()) => cx.note(|| Step::new("gateway", "answers").detail("the echo request")),
            Err(why) => {
                if e.meta.l4 == L4::Udp {
                    self.answer(cx, bridge, network, e, Cause::PortUnreachable);
                } else if let (L4::Tcp, Some(own)) = (e.meta.l4, self.interface(network))
                    && !own.config.uplink
                    && let Ok(reset) = reply::tcp_reset(&e.frame, &e.meta, own.config.mac)
                {
                    let vid = own.config.vid;
                    if self.may_answer(cx, src) {
                        let _ = bridge.originate(cx, network, vid, reset, Origin::Switch);
                    }
                }
                return Err(why);
            }
        }
        let (network, hop) = match self.interface(network) {
            Some(i) if i.on_link(src) => (network, src),
            _ => {
                let (route, hop) = self.routes.find(src).ok_or(DropReason::NoRoute)?;
                (route.network, hop)
            }
        };
        self.transmit(cx, bridge, Way { network, hop }, e)
    }

    /// Addresses that can't be forwarded (RFC 1812 5.3.7, RFC 4291 2.5, 2.7).
    pub(super) fn check(
        &self,
        network: NetworkId,
        src: IpAddr,
        dst: IpAddr,
    ) -> Result<(), DropReason> {
        let scoped = |ip: IpAddr| match ip {
            IpAddr::V4(a) => a.is_loopback() || a.octets()[0] >= 240 || a.octets()[0] == 0,
            IpAddr::V6(a) => a.is_loopback() || a.is_unspecified(),
        };
        let link_local = |ip: IpAddr| match ip {
            IpAddr::V4(a) => a.is_link_local(),
            IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
        };
        let here = self.interface(network).ok_or(DropReason::NoRoute)?;
        let martian = scoped(src)
            || scoped(dst)
            || src.is_multicast()
            || dst.is_multicast()
            || self.is_own(src)
            || here.is_broadcast(src)
            || here.is_broadcast(dst)
            || (link_local(src) || link_local(dst)) && !here.reaches_link_local(dst)
            // A source of another interface's prefix can't come from here (RFC 2827).
            || !here.on_link(src)
                && self.interfaces.iter().flatten().any(|i| i.on_link(src) && !link_local(src));
        if martian {
            Err(DropReason::Martian)
        } else {
            Ok(())
        }
    }
}
