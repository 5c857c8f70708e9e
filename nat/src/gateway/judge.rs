//! Policy for routed connections: the first packet is judged, and a packet of a connection that an older policy judged.
//!
//! A rule may be about the port that a connection goes to. That port is where the next hop's MAC was learned, so while the MAC isn't
//! known the packet waits for its judgement ([`Awaiting`]), few at a time and not for long.

use super::Gateway;
use super::dry::charge;
use super::flows::Way;
use super::neigh::Resolved;
use super::prefix::Mapped;
use crate::Endpoint;
use crate::conntrack::{ConnId, Dir, Tuple};
use crate::policy::{Action, Compiled, Decision, Key, Mark, State};
use crate::reply::{self, Cause};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Entry, Frame, Verdict};
use vswitch_core::policy::meter::wire_load;
use vswitch_core::port::PortId;
use vswitch_core::wire::{self, L4, Meta};
use vswitch_core::worker::{Cx, Event, Origin, Step};

/// Most packets that wait for their judgement.
const AWAITING: usize = 256;
/// How long one waits; a neighbour is given up before.
const PATIENCE: Duration = Duration::from_secs(4);

/// A packet that waits until the port it goes to is known.
#[derive(Debug)]
pub(super) struct Awaiting {
    hop: (NetworkId, IpAddr),
    ingress: PortId,
    frame: Frame,
    until: Nanos,
}

/// What a connection keeps of its judgement.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Judged {
    /// Epoch of the policy; 0 without one.
    pub(super) epoch: u32,
    /// See [`Mark`].
    pub(super) mark: u32,
    /// A rule says that it may be, not the default.
    pub(super) by_rule: bool,
}

/// The port that something goes to.
pub(super) enum To {
    /// It is this one, or it makes no difference.
    Known(Option<PortId>),
    /// The next hop was asked.
    Asked,
    /// The next hop doesn't answer.
    Nowhere,
}

/// Type and code of an ICMP message.
pub(super) fn icmp(head: &[u8], meta: &Meta) -> (u8, u8) {
    let message = match meta.l4 {
        L4::Icmp | L4::Icmp6 => head.get(usize::from(meta.l4_off)..),
        _ => None,
    };
    match message {
        Some([kind, code, ..]) => (*kind, *code),
        _ => (0, 0),
    }
}

/// The key of a tuple, without places.
pub(super) fn key(tuple: &Tuple, icmp: (u8, u8), state: State) -> Key {
    Key {
        from_port: None,
        from_network: None,
        to_port: None,
        to_network: None,
        src: tuple.src(),
        dst: tuple.dst(),
        proto: tuple.proto,
        source_port: tuple.src_port,
        port: tuple.dst_port,
        icmp,
        state,
    }
}

/// Tells people of a decision, if its rule wants that and not too often.
pub(super) fn tell(cx: &mut Cx, policy: &Compiled, decision: Decision, key: &Key) {
    if cx.is_dry() {
        return super::dry::noted(cx, policy, decision, false, key);
    }
    if !policy.is_told(decision, cx.now) {
        return;
    }
    let Some(rule) = decision.rule.and_then(|r| policy.rule(r)) else {
        return;
    };
    let end = |ip, port| Endpoint::new(ip, port).to_string();
    let (from, to) = (end(key.src, key.source_port), end(key.dst, key.port));
    cx.event(Event::Policy {
        port: key.from_port.unwrap_or_default(),
        to: key.to_port,
        rule: rule.name.clone(),
        action: decision.action.as_str(),
        packet: format!("proto {} {from} > {to}", key.proto),
    });
}

impl Gateway {
    /// The port that the next hop of a way is at.
    pub(super) fn port_of(&mut self, cx: &mut Cx, bridge: &mut Bridge, way: Way) -> To {
        if way.network == super::host::HOST {
            return To::Known(None);
        }
        let Some(vid) = self.interface(way.network).map(|i| i.config.vid) else {
            return To::Nowhere;
        };
        let (ask, known) = match self.resolve(cx, way.network, way.hop) {
            Resolved::Known { mac, ask } => {
                let fdb = bridge.fdb(way.network);
                match fdb.and_then(|f| f.lookup(vid, mac)) {
                    Some(port) if !ask => return To::Known(Some(port)),
                    Some(port) => (true, (Some(mac), To::Known(Some(port)))),
                    None => (true, (Some(mac), To::Asked)),
                }
            }
            Resolved::Pending { ask } => (ask, (None, To::Asked)),
            Resolved::Unreachable => return To::Nowhere,
        };
        if ask {
            self.ask(cx, bridge, way.network, way.hop, known.0);
            cx.tick_by(cx.now.after(Duration::from_secs(1)));
        }
        known.1
    }

    /// Judges the first packet of a connection, whose tuple has the translated destination. `None`: the packet waits.
    pub(super) fn judge(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
        tuple: &Tuple,
        way: Way,
    ) -> Result<Option<Judged>, DropReason> {
        let from = self.ingress;
        let Some(policy) = self.policy.clone() else {
            let mark = Mark { rule: None, from }.pack();
            return Ok(Some(Judged {
                mark,
                ..Judged::default()
            }));
        };
        let to_port = if policy.needs_to_port() {
            match self.port_of(cx, bridge, way) {
                To::Known(port) => port,
                To::Asked if cx.is_dry() => {
                    let why = "policy asks for the port that it goes to";
                    let hop = way.hop;
                    cx.note(|| {
                        Step::new("neighbour", "held")
                            .detail(format_args!("until {hop} answers who it is: {why}"))
                            .network(way.network)
                    });
                    return Ok(None);
                }
                To::Asked => return self.wait(cx.now, e, way).map(|()| None),
                To::Nowhere => return Err(DropReason::NoNeighbour),
            }
        } else {
            None
        };
        let key = Key {
            from_port: Some(from),
            from_network: Some(network),
            to_port,
            to_network: Some(way.network),
            ..key(tuple, icmp(e.frame.head(), &e.meta), State::New)
        };
        let decision = policy.judge(&key, &self.names, cx.now);
        let decision = charge(cx, &policy, decision, &key);
        match decision.action {
            Action::Accept => {
                let rule = decision.rule;
                Ok(Some(Judged {
                    epoch: policy.epoch,
                    mark: Mark { rule, from }.pack(),
                    by_rule: rule.is_some(),
                }))
            }
            Action::Drop => Err(DropReason::Policy),
            Action::Reject => {
                self.refuse(cx, bridge, network, e);
                Err(DropReason::Policy)
            }
        }
    }

    /// Judges a packet for the gateway itself: each by itself, as new, for it has no connection. What a network needs to be one always
    /// passes ([`crate::policy::is_exempt`]), and so does most of DNS ([`Compiled::spares_dns`]).
    pub(super) fn judge_local(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
    ) -> Result<(), DropReason> {
        let Some(policy) = self.policy.clone() else {
            return Ok(());
        };
        if super::screen::is_exempt(e.frame.head(), &e.meta) {
            return Ok(());
        }
        let ends = e.meta.addresses(e.frame.head());
        let ends = ends.ok_or(DropReason::BadPacket)?;
        let mut own = self.interfaces.iter().flatten();
        let to = own.find(|i| i.has(ends.1)).map(|i| i.config.network);
        let key = Key {
            to_network: to.or(Some(network)),
            ..self.stateless(network, e, ends, State::New)
        };
        let decision = policy.judge(&key, &self.names, cx.now);
        if policy.spares_dns(&decision, &key) {
            cx.note(|| {
                Step::new("policy", "accept").detail("the gateway's DNS: no rule names its ports")
            });
            return Ok(());
        }
        let decision = charge(cx, &policy, decision, &key);
        match decision.action {
            Action::Accept => {
                let (packets, bytes) = wire_load(&e.frame, &e.meta);
                if !cx.is_dry() {
                    policy.count(decision.rule, packets, bytes);
                }
                return Ok(());
            }
            Action::Drop => {}
            Action::Reject => self.refuse(cx, bridge, network, e),
        }
        Err(DropReason::Policy)
    }

    /// Tells who began a routed connection that it may not.
    fn refuse(&mut self, cx: &mut Cx, bridge: &mut Bridge, network: NetworkId, e: &Entry) {
        if e.meta.l4 != L4::Tcp {
            return self.answer(cx, bridge, network, e, Cause::Prohibited);
        }
        let Some(own) = self.interface(network) else {
            return;
        };
        let (vid, mac) = (own.config.vid, own.config.mac);
        if let (Ok(reset), Some((src, _))) = (
            reply::tcp_reset(&e.frame, &e.meta, mac),
            e.meta.addresses(e.frame.head()),
        ) && self.may_answer(cx, src)
        {
            let _ = bridge.originate(cx, network, vid, reset, Origin::Switch);
        }
    }

    /// Whether a known connection may still be: judged again if policy has changed since, and ended if not. Counts the packet.
    pub(super) fn still_allowed(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
        (id, dir): (ConnId, Dir),
    ) -> Result<(), DropReason> {
        let Some(epoch) = self.policy.as_ref().map(|p| p.epoch) else {
            return Ok(());
        };
        let conn = self.tracking.as_deref().and_then(|t| t.conns.get(id));
        let user = conn.ok_or(DropReason::InvalidState)?.user();
        let mark = Mark::unpack(user.rule);
        let from = match dir {
            Dir::Original => self.ingress,
            Dir::Reply => mark.from,
        };
        if user.epoch != epoch || from != mark.from {
            return self.judge_again(cx, bridge, network, e, (id, from));
        }
        self.count(cx, mark.rule, e);
        Ok(())
    }

    /// Counts a packet of a connection that a rule lets be.
    pub(super) fn count(&self, cx: &mut Cx, rule: Option<u16>, e: &Entry) {
        let Some(policy) = &self.policy else { return };
        if cx.is_dry() {
            cx.note(|| {
                let name = rule.and_then(|r| policy.rule(r)).map(|r| r.name.clone());
                let by = name.map_or("no rule matched".into(), |n| format!("by `{n}`"));
                Step::new("policy", "accept").detail(by)
            });
        } else {
            let (packets, bytes) = wire_load(&e.frame, &e.meta);
            policy.count(rule, packets, bytes);
        }
    }

    /// Policy has changed, or the packet comes from another port than the connection.
    #[cold]
    fn judge_again(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
        (id, from): (ConnId, PortId),
    ) -> Result<(), DropReason> {
        let (Some(policy), Some(tracking)) = (self.policy.clone(), self.tracking.as_deref_mut())
        else {
            return Ok(());
        };
        let conn = tracking.conns.get(id).ok_or(DropReason::InvalidState)?;
        let (user, replied) = (conn.user(), conn.replied());
        let (original, reply) = (*conn.tuple(Dir::Original), *conn.tuple(Dir::Reply));
        let (way, _) = self.way(id, Dir::Original)?;
        let to_port = if policy.needs_to_port() {
            match self.port_of(cx, bridge, way) {
                To::Known(port) => port,
                // Not now, but the connection isn't condemned by that.
                To::Asked | To::Nowhere => return Err(DropReason::NoNeighbour),
            }
        } else {
            None
        };
        let from_network = bridge.network_of(from);
        let state = if replied {
            State::Established
        } else {
            State::New
        };
        let tuple = original.with_dst(reply.src(), reply.src_port);
        let key = Key {
            from_port: Some(from),
            from_network,
            to_port,
            to_network: Some(way.network),
            // What is tracked of ICMP are queries, and of these echo is all that anybody has.
            ..key(&tuple, echo(&tuple), state)
        };
        let decision = policy.judge(&key, &self.names, cx.now);
        let uplink = from_network
            .and_then(|n| self.interface(n))
            .is_some_and(|i| i.config.uplink);
        let published = original.dst() != reply.src();
        let published = published && self.inside_of(original.dst()) == Mapped::Not;
        let uninvited = uplink && decision.rule.is_none() && !published;
        if decision.action == Action::Accept && !uninvited {
            self.note(cx, id, &policy, decision, from);
            self.count(cx, decision.rule, e);
            return Ok(());
        }
        tell(cx, &policy, decision, &key);
        // Who takes another's address doesn't end the other's connection.
        if from == Mark::unpack(user.rule).from {
            self.end(cx, id);
        }
        if decision.action == Action::Reject {
            self.refuse(cx, bridge, network, e);
        }
        Err(DropReason::Policy)
    }

    /// Notes with a connection that the present policy lets it be.
    pub(super) fn note(
        &mut self,
        cx: &Cx,
        id: ConnId,
        policy: &Compiled,
        d: Decision,
        from: PortId,
    ) {
        if cx.is_dry() {
            return;
        }
        let tracking = self.tracking.as_deref_mut();
        if let Some(user) = tracking.and_then(|t| t.conns.user_mut(id)) {
            user.epoch = policy.epoch;
            user.rule = Mark { rule: d.rule, from }.pack();
        }
    }

    /// Ends a connection.
    pub(super) fn end(&mut self, cx: &Cx, id: ConnId) {
        let now = cx.now;
        if cx.is_dry() {
            return;
        }
        if let Some(tracking) = self.tracking.as_deref_mut() {
            tracking.with(now, |conns, ended| conns.remove(id, now, ended));
        }
    }

    /// Keeps a packet until the port it goes to is known.
    fn wait(&mut self, now: Nanos, e: &mut Entry, way: Way) -> Result<(), DropReason> {
        if self.awaiting.len() >= AWAITING {
            return Err(DropReason::NoNeighbour);
        }
        self.awaiting.push(Awaiting {
            hop: (way.network, way.hop),
            ingress: self.ingress,
            frame: std::mem::take(&mut e.frame),
            until: now.after(PATIENCE),
        });
        self.hold(1);
        Ok(())
    }

    /// A neighbour has answered: what waits for it is looked at again.
    pub(super) fn resume(&mut self, cx: &mut Cx, bridge: &mut Bridge, hop: (NetworkId, IpAddr)) {
        if self.awaiting.iter().all(|a| a.hop != hop) {
            return;
        }
        let ingress = self.ingress;
        self.ahead.over();
        let (ready, still): (Vec<_>, Vec<_>) = std::mem::take(&mut self.awaiting)
            .into_iter()
            .partition(|a| a.hop == hop);
        self.awaiting = still;
        for Awaiting { ingress, frame, .. } in ready {
            self.hold(-1);
            self.ingress = ingress;
            let network = match ingress {
                PortId::GATEWAY => Some(super::host::HOST),
                port => bridge.network_of(port),
            };
            let meta = wire::parse(frame.head(), frame.len());
            let (Some(meta), Some(network)) = (meta, network) else {
                self.counters.count_drop(DropReason::NoPort, 1);
                continue;
            };
            let verdict = Verdict::Next;
            let mut e = Entry {
                frame,
                meta,
                verdict,
            };
            let begins = super::inbound::begins(&e);
            let done = match network == super::host::HOST {
                true => self.whole(cx, bridge, network, &mut e).map(|(o, _)| o),
                false => self.packet(cx, bridge, network, &mut e),
            };
            match done {
                Ok(super::forward::Outcome::Send(out)) => {
                    self.send(cx, bridge, out, e.frame, Origin::Held);
                }
                Ok(super::forward::Outcome::Held) => {}
                Err(why) => {
                    self.counters.count_drop(why, 1);
                    let begins = begins.filter(|_| network == super::host::HOST);
                    self.refused_inbound(begins, why);
                }
            }
        }
        self.ingress = ingress;
    }

    /// Gives up packets that have waited too long; returns when to look again.
    pub(super) fn age_awaiting(&mut self, now: Nanos) -> Nanos {
        let before = self.awaiting.len();
        self.awaiting.retain(|a| a.until > now);
        let lost = (before - self.awaiting.len()) as u64;
        if lost > 0 {
            self.hold(-(lost as i64));
            self.counters.count_drop(DropReason::NoNeighbour, lost);
        }
        let next = self.awaiting.iter().map(|a| a.until).min();
        next.unwrap_or(Nanos::MAX)
    }

    /// Takes up a policy.
    pub(super) fn take_policy(&mut self, policy: Option<Arc<Compiled>>) {
        match &policy {
            Some(p) => self.names.configure(p.config()),
            None => self.names = crate::policy::Names::default(),
        }
        self.policy = policy;
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> Option<&Arc<Compiled>> {
        self.policy.as_ref()
    }

    /// Addresses of DNS names in rules, for who hears answers of DNS.
    pub fn names_mut(&mut self) -> &mut crate::policy::Names {
        &mut self.names
    }

    /// Addresses of DNS names in rules.
    #[must_use]
    pub fn names(&self) -> &crate::policy::Names {
        &self.names
    }
}

/// The type that an echo request has.
pub(super) fn echo(tuple: &Tuple) -> (u8, u8) {
    match tuple.proto {
        crate::conntrack::proto::ICMP => (8, 0),
        crate::conntrack::proto::ICMP6 => (128, 0),
        _ => (0, 0),
    }
}
