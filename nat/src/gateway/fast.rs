//! Connections that policy has allowed, on the fast path ([`vswitch_core::accel`]).
//!
//! # Theory of operation
//!
//! What [`super::screen`] lets pass of a known connection may be offered: TCP that is established, or UDP, when some packets of the
//! direction have come ([`WARM`]), so that short exchanges cost no system calls. Each direction has a *flow* of its own, allowed by a packet of
//! its own, in the generation that was in force before that packet was judged. Policy that changes, an address that moves, a port that goes
//! down: whatever makes pairs of addresses void makes flows void too. A packet that changes the connection's state, and its end, end its
//! flows at once, by a store.
//!
//! Once a second, before people are told and before policy changes, what flows have counted is credited to their connections and to the
//! rules that let them be ([`Gateway::collect_fast`]). A flow without packets for [`IDLE`] seconds gives its place up. It is ended then, and
//! only taken out when it has been for a second, for a program may just be using it.
//!
//! When all places are taken, or a port has more than its share, further connections go on by the workers.

use super::Gateway;
use super::flows::Tracking;
use crate::conntrack::{Conn, ConnId, Conntrack, Dir, State, User, proto};
use crate::policy::{Compiled, Mark};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use vswitch_core::accel::{Accelerator, FLOWS, Flow, FlowCounts, FlowKey};
use vswitch_core::bridge::{Bridge, Judgeable};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::Entry;
use vswitch_core::wire::{L3, L4};
use vswitch_core::worker::Cx;

/// Packets of a direction from which it may go the fast path.
const WARM: u64 = 8;
/// Seconds without packets after which a flow gives its place up.
const IDLE: u8 = 10;
/// Flows that come in by one interface, at most.
const SHARE: u16 = FLOWS / 2;
/// How often counters are collected.
const EVERY: Duration = Duration::from_secs(1);

/// What has a place.
#[derive(Debug)]
struct Place {
    key: FlowKey,
    /// Whose it is, while that lives.
    of: Option<(ConnId, Dir)>,
    interface: u32,
    /// Where it was allowed to go, in which generation.
    allowed: Option<(u64, u32)>,
    /// What has been credited of its counters.
    seen: FlowCounts,
    /// Looks since it last moved.
    idle: u8,
}

/// Flows on the fast path.
#[derive(Debug, Default)]
pub(crate) struct FastFlows {
    with: Option<Arc<Accelerator>>,
    /// By number; those without a flow are free.
    places: Vec<Option<Place>>,
    free: Vec<u16>,
    by_key: HashMap<FlowKey, u16, RandomState>,
    /// Flows by interface.
    shares: HashMap<u32, u16, RandomState>,
    due: Option<Nanos>,
    /// What was left of connections that have ended.
    left: Vec<(User, FlowCounts)>,
}

impl Drop for FastFlows {
    fn drop(&mut self) {
        let Some(with) = &self.with else { return };
        for (key, place) in &self.by_key {
            with.end_flow(*place);
            with.leave_flow(key);
        }
    }
}

impl FastFlows {
    fn place(&mut self, number: u16) -> Option<&mut Place> {
        self.places.get_mut(usize::from(number))?.as_mut()
    }

    /// Ends the flows of a connection, for now.
    fn stop(&mut self, conn: &Conn) {
        for dir in [Dir::Original, Dir::Reply] {
            let Some(number) = conn.fast(dir) else {
                continue;
            };
            if let Some(with) = &self.with {
                with.end_flow(number);
            }
            if let Some(place) = self.place(number) {
                place.allowed = None;
            }
        }
    }

    /// A connection has ended.
    pub(super) fn ended(&mut self, conn: &Conn) {
        self.stop(conn);
        for dir in [Dir::Original, Dir::Reply] {
            let Some(number) = conn.fast(dir) else {
                continue;
            };
            let counts = self.with.as_ref().map(|w| w.flow_counts(number));
            if let (Some(place), Some(counts)) = (self.place(number), counts) {
                let more = counts.since(place.seen);
                place.seen = counts;
                place.of = None;
                self.left.push((conn.user(), more));
            }
        }
    }

    /// A place for a flow, the one that it has or a new one.
    fn place_for(
        &mut self,
        with: &Arc<Accelerator>,
        flow: &Flow,
        of: (ConnId, Dir),
    ) -> Option<u16> {
        let key = flow.key();
        if let Some(number) = self.by_key.get(&key).copied() {
            // Another connection of this name had it.
            self.place(number)?.of = Some(of);
            return Some(number);
        }
        let share = self.shares.entry(flow.interface).or_default();
        if *share >= SHARE {
            return None;
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                let number = u16::try_from(self.places.len()).ok();
                let number = number.filter(|n| *n < FLOWS)?;
                self.places.push(None);
                number
            }
        };
        if !with.enter_flow(number, &key) {
            self.free.push(number);
            return None;
        }
        *share += 1;
        self.with.get_or_insert_with(|| with.clone());
        self.by_key.insert(key, number);
        *self.places.get_mut(usize::from(number))? = Some(Place {
            key,
            of: Some(of),
            interface: flow.interface,
            allowed: None,
            seen: with.flow_counts(number),
            idle: 0,
        });
        Some(number)
    }

    /// Credits what flows have counted, and frees the places of those that are over.
    fn collect(&mut self, conns: &mut Conntrack, policy: Option<&Compiled>, now: Nanos) {
        let Some(with) = self.with.clone() else {
            return;
        };
        for (user, more) in self.left.drain(..) {
            charge(policy, user, more);
        }
        let ticked = self.due.is_some_and(|due| due <= now);
        let generation = with.generation();
        let mut allowed = 0;
        for (number, slot) in (0..).zip(&mut self.places) {
            let Some(place) = slot else { continue };
            let counts = with.flow_counts(number);
            let more = counts.since(place.seen);
            place.seen = counts;
            let moved = more != FlowCounts::default();
            if let Some((id, dir)) = place.of.filter(|_| moved) {
                conns.credit(id, dir, (more.packets, more.ip_bytes), now);
                if let Some(conn) = conns.get(id) {
                    charge(policy, conn.user(), more);
                }
            }
            if moved {
                place.idle = 0;
            } else if ticked {
                place.idle = place.idle.saturating_add(1);
            }
            allowed += usize::from(place.allowed.is_some_and(|(g, _)| g == generation));
            // Ended at one look, taken out at the next one after a second.
            let over = place.of.is_none() || place.idle > IDLE;
            match place.allowed {
                Some(_) if over => {
                    with.end_flow(number);
                    place.allowed = None;
                }
                None if over && ticked && place.idle > 1 => {
                    if let Some((id, dir)) = place.of {
                        conns.set_fast(id, dir, None);
                    }
                    with.leave_flow(&place.key);
                    self.by_key.remove(&place.key);
                    if let Some(share) = self.shares.get_mut(&place.interface) {
                        *share = share.saturating_sub(1);
                    }
                    *slot = None;
                    self.free.push(number);
                }
                _ => {}
            }
        }
        self.shares.retain(|_, share| *share > 0);
        with.note_flows(allowed);
        if ticked {
            self.due = (!self.by_key.is_empty()).then(|| now.after(EVERY));
        }
    }
}

/// Counts packets for the rule that lets their connection be.
fn charge(policy: Option<&Compiled>, user: User, more: FlowCounts) {
    if let Some(policy) = policy
        && policy.epoch == user.epoch
        && more.packets > 0
    {
        let rule = Mark::unpack(user.rule).rule;
        policy.count(rule, more.packets, more.wire_bytes);
    }
}

impl Gateway {
    /// Lets the next packets of a connection, of the direction of this one, go the fast path.
    pub(super) fn offer(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        e: &Entry,
        (id, dir): (ConnId, Dir),
    ) {
        if !bridge.takes_flows() || cx.is_dry() || !is_plain(e) {
            return;
        }
        let from = self.ingress;
        let Some(tracking) = self.tracking.as_deref_mut() else {
            return;
        };
        let Tracking { conns, fast, .. } = tracking;
        let Some(conn) = conns.get(id) else { return };
        let lasting = match conn.tuple(dir).proto {
            proto::TCP => conn.state() == State::Established && conn.replied(),
            _ => true,
        };
        if !lasting || conn.packets(dir) < WARM {
            return;
        }
        let tuple = *conn.tuple(dir);
        let had = conn.fast(dir);
        let Some(Judgeable {
            with,
            generation,
            ingress,
            egress,
        }) = bridge.approve_judged(e, from, cx.now.secs())
        else {
            return;
        };
        let flow = Flow {
            interface: ingress,
            proto: tuple.proto,
            src: (tuple.src(), tuple.src_port).into(),
            dst: (tuple.dst(), tuple.dst_port).into(),
        };
        let kept = had.filter(|n| {
            let place = fast.place(*n);
            place.is_some_and(|p| p.interface == ingress && p.of == Some((id, dir)))
        });
        let Some(number) = kept.or_else(|| fast.place_for(with, &flow, (id, dir))) else {
            return;
        };
        let Some(place) = fast.place(number) else {
            return;
        };
        if place.allowed == Some((generation, egress)) {
            return;
        }
        place.allowed = Some((generation, egress));
        place.idle = 0;
        if had != Some(number) {
            conns.set_fast(id, dir, Some((number, with)));
        }
        with.allow_flow(number, generation, egress);
        if fast.due.is_none() {
            let due = cx.now.after(EVERY);
            fast.due = Some(due);
            cx.tick_by(due);
        }
    }

    /// A packet changed the state of a connection: all of it comes to the workers.
    pub(super) fn unoffer(&mut self, id: ConnId) {
        if let Some(tracking) = self.tracking.as_deref_mut()
            && let Some(conn) = tracking.conns.get(id)
        {
            tracking.fast.stop(conn);
        }
    }

    /// Takes in what the fast path has counted of connections.
    pub fn collect_fast(&mut self, now: Nanos) {
        let policy = self.policy.as_deref();
        if let Some(Tracking { conns, fast, .. }) = self.tracking.as_deref_mut() {
            fast.collect(conns, policy, now);
        }
    }

    /// When it is due; returns when it is next.
    pub(super) fn tick_fast(&mut self, now: Nanos) -> Nanos {
        let due = |g: &Gateway| g.tracking.as_deref().and_then(|t| t.fast.due);
        if due(self).is_some_and(|due| due <= now) {
            self.collect_fast(now);
        }
        due(self).unwrap_or(Nanos::MAX)
    }
}

/// Whether the programs could know a packet's flow: what they refuse isn't offered for nothing.
fn is_plain(e: &Entry) -> bool {
    const ETH: u16 = 14;
    let m = &e.meta;
    let ip = match m.l3 {
        L3::V4 => 20,
        L3::V6 => 40,
        L3::Arp | L3::Other => return false,
    };
    let flags = e.frame.head().get(usize::from(m.l4_off) + 13);
    let open = match m.l4 {
        // ACK, and none of FIN, SYN, RST, URG.
        L4::Tcp => flags.is_some_and(|f| f & 0x37 == 0x10),
        L4::Udp => true,
        _ => false,
    };
    open && !m.fragment && m.tags == 0 && m.l3_off == ETH && m.l4_off == ETH + ip
}
