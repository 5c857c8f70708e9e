//! The bridge as a stage: the way of a batch.

use super::fast::{Fast, View};
use super::fdb::{Learn, NO_KEY, key};
use super::loop_guard;
use super::network::{Network, Share};
use super::port::BridgePort;
use super::shared::Shared;
use super::snoop::{News, Way, group_query};
use super::{Bridge, ingress, vlan};
use crate::clock::Nanos;
use crate::frame::{Batch, DropReason, Entry, FloodSet, Frame, Verdict};
use crate::policy::meter::{Meter, wire_load};
use crate::port::PortId;
use crate::wire::{MacAddr, Meta};
use crate::worker::{Cx, Event, Origin, Stage, Step, Sync};
use arrayvec::ArrayVec;
use std::net::IpAddr;

/// Flood sets of a batch that are remembered.
const FLOODS: usize = 4;

/// The network and port a batch came from, and what was worked out for its earlier frames.
struct Pass<'a> {
    cx: &'a mut Cx,
    ports: &'a [Option<BridgePort>],
    net: &'a mut Network,
    port: &'a BridgePort,
    from: PortId,
    now: u32,
    network: u16,
    /// Another worker has put the frames through the port's meters.
    handed: bool,
    floods: ArrayVec<(u16, FloodSet), FLOODS>,
    /// Scratch for the ports of a multicast group.
    wanted: &'a mut Vec<PortId>,
    fast: &'a mut Fast,
    /// Of what may be approved for the fast path.
    generation: Option<u64>,
    down: &'a [bool],
    shared: &'a Shared,
    /// Addresses moved.
    moved: bool,
}

impl Stage for Bridge {
    fn run(&mut self, cx: &mut Cx, batch: &mut Batch) {
        let from = batch.ingress;
        self.fast.forbid();
        let Some(Some(port)) = self.ports.get(from.index()) else {
            return;
        };
        let network = port.config.network;
        let Some(Some(net)) = self.networks.get_mut(usize::from(network.0)) else {
            return;
        };
        let mut looped = false;
        for e in &mut batch.entries {
            if e.meta.ethertype == loop_guard::ETHERTYPE && e.verdict == Verdict::Next {
                let body = e.frame.head().get(usize::from(e.meta.l3_off)..);
                if let Some((sent, number)) = body.and_then(|b| self.shared.probe_key.read(b)) {
                    e.verdict = Verdict::Drop(DropReason::LoopProbe);
                    if cx.is_dry() {
                        cx.note(|| Step::drop("loop guard", DropReason::LoopProbe));
                        continue;
                    }
                    super::timers::probe_returned(cx, &self.ports, net, from, sent, number);
                    looped = true;
                }
            }
        }
        if looped {
            // A port may be shut, and addresses forgotten.
            self.fast.change();
        }
        // Before anything is looked up, so that what changes later on another worker makes void what is approved.
        let generation = self.fast.begin(from, port, cx.now.secs());
        if port.loop_state.is_shut() {
            cx.note(|| Step::drop("loop guard", DropReason::LoopGuard).port(from));
            for e in batch
                .entries
                .iter_mut()
                .filter(|e| e.verdict == Verdict::Next)
            {
                e.verdict = Verdict::Drop(DropReason::LoopGuard);
            }
            return;
        }
        if port.screens || !net.taps.is_empty() {
            ingress::screen(cx, port, net, batch);
        }
        let net_is_plain = net.taps.is_empty();
        if !net_is_plain {
            self.fast.forbid();
        }
        let mut pass = Pass {
            now: cx.now.secs(),
            cx,
            ports: &self.ports,
            net,
            port,
            from,
            network: network.0,
            handed: batch.handed,
            floods: ArrayVec::new(),
            wanted: &mut self.wanted,
            generation: generation.filter(|_| net_is_plain),
            fast: &mut self.fast,
            down: &self.down,
            shared: &self.shared,
            moved: false,
        };
        if pass.cx.is_dry() {
            pass.switch::<true>(batch);
        } else {
            pass.switch::<false>(batch);
            if pass.moved {
                self.fast.forbid();
                self.fast.change();
            }
        }
    }

    fn egress(
        &mut self,
        cx: &mut Cx,
        _from: PortId,
        to: PortId,
        frame: &mut Frame,
        meta: &Meta,
    ) -> Result<(), DropReason> {
        if self.shared.shut.contains(to) {
            cx.note(|| Step::drop("egress", DropReason::LoopGuard).port(to));
            return Err(DropReason::LoopGuard);
        }
        if !self.finishes.get(to.index()).is_some_and(|f| *f) {
            return Ok(());
        }
        self.finish(cx, to, frame, meta)
    }

    fn tick(&mut self, cx: &mut Cx) -> Nanos {
        self.timers(cx)
    }

    fn link_changed(&mut self, cx: &mut Cx, port: PortId, up: bool) {
        self.port_link(cx, port, up);
    }

    fn sync(&mut self, cx: &mut Cx, news: &Sync) {
        self.heard(cx, news);
    }

    fn port_watched(&mut self, port: PortId, watched: bool) {
        self.watch_port(port, watched);
    }
}

impl Bridge {
    /// Rate, tag and mirrors of a port that has any.
    fn finish(
        &self,
        cx: &mut Cx,
        to: PortId,
        frame: &mut Frame,
        meta: &Meta,
    ) -> Result<(), DropReason> {
        let Some(Some(port)) = self.ports.get(to.index()) else {
            return Ok(());
        };
        if let Some(meter) = &port.meters.egress
            && !meter.take(cx, wire_load(frame, meta).1)
        {
            cx.note(|| Step::drop("egress", DropReason::EgressRate).port(to));
            return Err(DropReason::EgressRate);
        }
        if port.vlan_aware {
            // Zero: made by the switch, for the port's own VLAN.
            let vid = if meta.vid == 0 {
                port.config.pvid.unwrap_or(0)
            } else {
                meta.vid
            };
            let tagged = vlan::egress(&port.config, vid, frame);
            cx.note(|| match tagged {
                Ok(()) => Step::new("egress", "vlan").detail(vid).port(to),
                Err(why) => Step::drop("egress", why).port(to),
            });
            tagged?;
        }
        for tap in &port.taps_out {
            tap.copy(cx, frame);
        }
        Ok(())
    }
}

impl Pass<'_> {
    /// Learns the sources and finds the ways of all frames not judged yet. Twice compiled, so that who is only asked about (`DRY`) costs
    /// the others nothing.
    #[inline]
    fn switch<const DRY: bool>(&mut self, batch: &mut Batch) {
        let (mut last_src, mut last_dst) = (NO_KEY, NO_KEY);
        let mut last_way = Verdict::Next;
        let learning = self.port.config.learning;
        for e in &mut batch.entries {
            if e.verdict != Verdict::Next {
                continue;
            }
            // Frames of a flow come together: what was found for the one before mostly holds.
            let src = key(e.meta.vid, e.meta.src);
            if src != last_src {
                let source = match DRY {
                    false => self.source(e, learning),
                    true => self.known_source(e, learning),
                };
                if let Err(why) = source {
                    e.verdict = Verdict::Drop(why);
                    continue;
                }
                last_src = src;
                // Learning may have moved what the last destination was.
                last_dst = NO_KEY;
            }
            if e.meta.dst.is_group() {
                e.verdict = self.group(e);
                if DRY {
                    self.tell_group(e);
                }
                continue;
            }
            let dst = key(e.meta.vid, e.meta.dst);
            if dst == last_dst {
                e.verdict = last_way;
                continue;
            }
            let known = match DRY && dst == src && learning {
                false => self.net.fdb.lookup_key(dst),
                true => self.own_source(e),
            };
            e.verdict = match known {
                Some(to) => self.unicast(to),
                None => self.unknown(e),
            };
            if DRY {
                self.tell_found(e, known);
            }
            if known.is_some() {
                if !DRY && self.generation.is_some() {
                    self.approve(e);
                }
                (last_dst, last_way) = (dst, e.verdict);
            }
        }
        if !DRY && let Some(due) = self.net.fdb.arm(self.now, self.net.ageing) {
            self.cx.tick_by(Nanos(u64::from(due) * 1_000_000_000));
        }
    }

    #[inline]
    fn source(&mut self, e: &Entry, learning: bool) -> Result<(), DropReason> {
        let mac = e.meta.src;
        if is_no_source(mac) {
            return Err(DropReason::BadSourceMac);
        }
        if !learning {
            return Ok(());
        }
        let (vid, limit) = (e.meta.vid, self.port.mac_limit);
        match self.net.fdb.learn(vid, mac, self.from, self.now, limit) {
            Learn::Refreshed => Ok(()),
            learned => self.learned(e, learned),
        }
    }

    /// As [`Pass::source`], for a frame that is only asked about.
    #[cold]
    fn known_source(&mut self, e: &Entry, learning: bool) -> Result<(), DropReason> {
        let (vid, mac, port) = (e.meta.vid, e.meta.src, self.from);
        if is_no_source(mac) {
            let why = DropReason::BadSourceMac;
            self.cx.note(|| Step::drop("learn", why));
            return Err(why);
        }
        if !learning {
            self.cx.note(|| Step::new("learn", "off").port(port));
            return Ok(());
        }
        let known = self
            .net
            .fdb
            .would_learn(vid, mac, port, self.port.mac_limit);
        let (decision, at) = match known {
            Learn::New => ("new", port),
            Learn::Refreshed => ("known", port),
            Learn::Moved(was) => ("moves from", was),
            Learn::Full => ("table full", port),
            Learn::Pinned(_) | Learn::PortFull => ("drop", port),
        };
        let why = refusal(known);
        self.cx.note(|| {
            let step = Step::new("learn", decision).port(at);
            match why {
                Some(why) => step.detail(format_args!("{mac}: {}", why.as_str())),
                None => step.detail(mac),
            }
        });
        why.map_or(Ok(()), Err)
    }

    /// Where a frame that is only asked about would find its own source.
    #[cold]
    fn own_source(&self, e: &Entry) -> Option<PortId> {
        let (vid, mac, limit) = (e.meta.vid, e.meta.src, self.port.mac_limit);
        let learn = self.net.fdb.would_learn(vid, mac, self.from, limit);
        (learn != Learn::Full).then_some(self.from)
    }

    /// Notes where a frame to a group that is asked about goes.
    #[cold]
    fn tell_group(&mut self, e: &Entry) {
        let (dst, verdict) = (e.meta.dst, e.verdict);
        self.cx.note(|| match verdict {
            Verdict::Drop(why) => Step::drop("group", why),
            Verdict::Flood(set) => {
                Step::new("group", "flood").detail(format_args!("{dst}: to {} ports", set.len))
            }
            _ => Step::new("group", "pass").detail(dst),
        });
    }

    /// Notes what the look-up of a frame that is asked about has found.
    #[cold]
    fn tell_found(&mut self, e: &Entry, known: Option<PortId>) {
        let (vid, dst, verdict) = (e.meta.vid, e.meta.dst, e.verdict);
        self.cx.note(|| {
            let decision = match (verdict, known) {
                (Verdict::Drop(_), _) => "drop",
                (_, Some(PortId::GATEWAY)) => "gateway",
                (_, Some(_)) => "found",
                (_, None) => "flood",
            };
            let mut detail = dst.to_string();
            if vid != 0 {
                detail += &format!(" in VLAN {vid}");
            }
            match verdict {
                Verdict::Drop(why) => detail += &format!(": {}", why.as_str()),
                Verdict::Flood(set) => detail += &format!(": unknown, to {} ports", set.len),
                _ => {}
            }
            let step = Step::new("fdb", decision).detail(detail);
            match known.filter(|p| *p != PortId::GATEWAY) {
                Some(to) => step.port(to),
                None => step,
            }
        });
    }

    #[cold]
    fn learned(&mut self, e: &Entry, learned: Learn) -> Result<(), DropReason> {
        let (network, port, vid, mac) = (self.network, self.from, e.meta.vid, e.meta.src);
        if let Some(why) = refusal(learned) {
            if learned == Learn::PortFull {
                self.port.tell_limit(self.cx, port, "MACs of the port");
            }
            return Err(why);
        }
        match learned {
            Learn::New => {
                let event = Event::MacLearned {
                    network,
                    vid,
                    mac,
                    port,
                };
                self.port.tell_address(self.cx, event);
            }
            Learn::Moved(from) => {
                self.moved = true;
                // What is approved now would be of a table that is about to be no more.
                self.generation = None;
                let event = Event::MacMoved {
                    network,
                    vid,
                    mac,
                    from,
                    to: port,
                };
                self.port.tell_address(self.cx, event);
                // In a loop addresses move all the time: don't wait for the next round of probes.
                if self.port.first_move(self.now) {
                    self.net.probe_soon(from, Share::Any);
                    self.net.probe_soon(port, Share::Any);
                    self.cx.tick_by(self.cx.now);
                }
            }
            // It passes, and what is for it will be flooded.
            Learn::Full => {
                self.port
                    .tell_limit(self.cx, port, "FDB entries of the network");
                return Ok(());
            }
            Learn::Refreshed | Learn::Pinned(_) | Learn::PortFull => return Ok(()),
        }
        self.cx.tell(Sync::Learned {
            network,
            vid,
            mac,
            port,
            seen: self.now,
        });
        Ok(())
    }

    /// Whether the frame is more than the meter, if there is one, lets pass.
    fn over(&self, meter: Option<&Meter>, e: &Entry) -> bool {
        let load = || wire_load(&e.frame, &e.meta).0;
        !self.handed && meter.is_some_and(|m| !m.take(self.cx, load()))
    }

    /// Lets the next frames of a pair that is forwarded go the fast path, if nothing looks at them.
    #[cold]
    fn approve(&mut self, e: &Entry) {
        let (Verdict::Forward(to), Some(generation)) = (e.verdict, self.generation) else {
            return;
        };
        let view = View {
            ports: self.ports,
            down: self.down,
            shared: self.shared,
            net: self.net,
        };
        if !view.is_clear(e, self.from, to) {
            return;
        }
        let (from, to) = ((self.from, e.meta.src), (to, e.meta.dst));
        let _ = self.fast.approve(generation, from, to, self.now);
    }

    fn unicast(&self, to: PortId) -> Verdict {
        if to == PortId::GATEWAY {
            return Verdict::Gateway;
        }
        if to == self.from {
            return if self.port.config.hairpin {
                Verdict::Hairpin
            } else {
                Verdict::Drop(DropReason::SamePort)
            };
        }
        if self.port.config.isolated
            && let Some(Some(other)) = self.ports.get(to.index())
            && other.config.isolated
        {
            return Verdict::Drop(DropReason::Isolated);
        }
        Verdict::Forward(to)
    }

    #[cold]
    fn unknown(&mut self, e: &Entry) -> Verdict {
        if self.over(self.port.meters.unknown.as_ref(), e) {
            return Verdict::Drop(DropReason::StormControl);
        }
        Verdict::Flood(self.flood(e.meta.vid))
    }

    fn group(&mut self, e: &Entry) -> Verdict {
        let dst = e.meta.dst;
        if dst.is_link_local() {
            return Verdict::Drop(DropReason::LinkLocal);
        }
        let meters = &self.port.meters;
        if dst.is_broadcast() {
            if self.over(meters.broadcast.as_ref(), e) {
                return Verdict::Drop(DropReason::StormControl);
            }
            return Verdict::Flood(self.flood(e.meta.vid));
        }
        if self.over(meters.multicast.as_ref(), e) {
            return Verdict::Drop(DropReason::StormControl);
        }
        if !self.net.config.snooping {
            return Verdict::Flood(self.flood(e.meta.vid));
        }
        self.snooped(e)
    }

    fn snooped(&mut self, e: &Entry) -> Verdict {
        let (vid, port, network, now) = (e.meta.vid, self.from, self.network, self.now);
        let (cx, limits) = (&mut *self.cx, self.port);
        let mut changed = false;
        let rules = self.net.rules;
        let snoop = &mut self.net.snoop;
        let way = if cx.is_dry() {
            snoop.way(&e.frame, &e.meta, &rules)
        } else {
            snoop.hear(&e.frame, &e.meta, port, now, &rules, &mut |news| {
                changed = true;
                match news {
                    News::Group { group, until } => cx.tell(Sync::Group {
                        network,
                        vid,
                        group,
                        port,
                        until,
                    }),
                    News::Router { v6, until, querier } => cx.tell(Sync::Router {
                        network,
                        vid,
                        v6,
                        port,
                        until,
                        querier,
                    }),
                    News::Ask(group) => ask(cx, limits, port, vid, group),
                    News::Full => {
                        limits.tell_limit(cx, port, "multicast memberships of the network");
                    }
                }
            })
        };
        if changed {
            // A second from now is early enough to look for what ends.
            self.net.next_expiry = self.net.next_expiry.min(now + 1);
            self.cx
                .tick_by(Nanos(u64::from(self.net.next_expiry) * 1_000_000_000));
        }
        let (group, v6) = match way {
            Way::Malformed => return Verdict::Drop(DropReason::BadMulticast),
            Way::Flood => return Verdict::Flood(self.flood(vid)),
            Way::Group(g) => (Some(g), g.is_ipv6()),
            Way::Routers { v6 } => (None, v6),
        };
        self.wanted.clear();
        self.wanted.extend(self.net.snoop.ports_of(vid, group, v6));
        self.wanted.sort_unstable();
        let set = self
            .cx
            .flood_set(self.net.some(port, self.port, self.ports, vid, self.wanted));
        if set.len == 0 && group.is_none() {
            // A report that no router waits for; the switch has read it.
            return Verdict::Drop(DropReason::Consumed);
        }
        Verdict::Flood(set)
    }

    /// All other ports of the VLAN.
    fn flood(&mut self, vid: u16) -> FloodSet {
        if let Some((_, set)) = self.floods.iter().find(|(v, _)| *v == vid) {
            return *set;
        }
        let all = self.net.everybody(self.from, self.port, self.ports, vid);
        let set = self.cx.flood_set(all);
        let _ = self.floods.try_push((vid, set));
        set
    }
}

/// Asks who else at the port is a member.
fn ask(cx: &mut Cx, to: &BridgePort, port: PortId, vid: u16, group: IpAddr) {
    let Some(mut frame) = group_query(group) else {
        return;
    };
    if !to.vlan_aware || vlan::egress(&to.config, vid, &mut frame).is_ok() {
        cx.emit(port, frame, Origin::Switch);
    }
}

/// Whether no frame may come from the address.
fn is_no_source(mac: MacAddr) -> bool {
    mac.is_group() || mac == MacAddr::ZERO
}

/// Why a frame is dropped whose source can't be learned.
fn refusal(learned: Learn) -> Option<DropReason> {
    match learned {
        Learn::Pinned(_) => Some(DropReason::StaticMac),
        Learn::PortFull => Some(DropReason::MacLimit),
        Learn::New | Learn::Refreshed | Learn::Moved(_) | Learn::Full => None,
    }
}
