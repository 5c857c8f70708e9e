//! Policy for frames between ports of one network, which the bridge switches without the router.
//!
//! They are tracked like routed connections, in a zone of their network, so answers pass because the question did. Connections
//! belong to the worker that has the gateways: others hand it such frames. What goes to a group has no connection and is judged for each
//! port it would leave by, on every worker. ARP, neighbour discovery, MLD, IGMP and DHCP always pass: without them there is
//! no network to have a policy about.
//!
//! Later fragments have no ports and pass if their first one did and came before them, as it does from all that send in order
//! ([`Cleared`]).
//!
//! A zone is a network, not a VLAN: hosts with the same address in two VLANs of one network share their connections.

use super::Gateway;
use super::dry::charge;
use super::forward::tracked;
use super::judge::{echo, icmp, key, tell};
use crate::conntrack::{ConnId, Dir, Hit, Pending, Track, User, proto};
use crate::frag::FragmentHeader;
use crate::policy::{Action, Compiled, Decision, Key, Mark, State, is_exempt_icmp6, is_exempt_udp};
use crate::reply::{self, Cause};
use foldhash::fast::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{Batch, DropReason, Entry, Verdict};
use vswitch_core::port::PortId;
use vswitch_core::wire::{L3, L4, Meta};
use vswitch_core::worker::{Cx, Origin, Step};

/// Datagrams whose fragments may pass, remembered by hash.
const CLEARED: usize = 1024;
/// For how long; reassembly takes no longer (RFC 8200 4.5).
const REASSEMBLY: Duration = Duration::from_secs(60);

/// Which datagrams' first fragments have passed. A table of fixed size: a new one takes the place of another by a seeded hash.
#[derive(Debug, Default)]
pub(super) struct Cleared {
    places: Vec<(u64, Nanos)>,
    hasher: RandomState,
}

impl Cleared {
    fn hash(&self, network: NetworkId, e: &Entry, id: u32) -> u64 {
        let ends = e.meta.addresses(e.frame.head());
        self.hasher.hash_one((network.0, ends, e.meta.proto, id))
    }

    fn enter(&mut self, hash: u64, now: Nanos) {
        self.places.resize(CLEARED, (0, Nanos(0)));
        self.places[hash as usize % CLEARED] = (hash, now.after(REASSEMBLY));
    }

    fn has(&self, hash: u64, now: Nanos) -> bool {
        let place = self.places.get(hash as usize % CLEARED);
        place.is_some_and(|(h, until)| *h == hash && now < *until)
    }
}

/// The zone of connections within a network; 0 is that of routed ones.
fn zone(network: NetworkId) -> u16 {
    network.0.saturating_add(1)
}

/// What passes whatever the rules are; [`crate::policy::is_exempt`] of a frame.
pub(super) fn is_exempt(head: &[u8], meta: &Meta) -> bool {
    let l4 = usize::from(meta.l4_off);
    match (meta.l4, meta.proto) {
        // IGMP.
        (_, 2) => meta.l3 == L3::V4,
        (L4::Icmp6, _) => head.get(l4).is_some_and(|kind| is_exempt_icmp6(*kind)),
        (L4::Udp, _) => {
            let ports = head.get(l4..).and_then(|b| b.first_chunk::<4>());
            ports.is_some_and(|[s0, s1, d0, d1]| {
                is_exempt_udp(
                    u16::from_be_bytes([*s0, *s1]),
                    u16::from_be_bytes([*d0, *d1]),
                )
            })
        }
        _ => false,
    }
}

/// Where a frame would go.
enum Target {
    /// Out of this port.
    Port(PortId),
    /// Nobody knows: out of all.
    Anywhere,
}

impl Gateway {
    /// Whether a policy judges frames between the ports of this one's network.
    #[must_use]
    pub fn judges(&self, bridge: &Bridge, port: PortId) -> bool {
        let network = bridge.network_of(port);
        self.policy
            .as_ref()
            .is_some_and(|p| network.is_none_or(|n| p.judges_bridged(n)))
    }

    /// Judges frames of a batch that the bridge would pass on within their network.
    pub fn screen(&mut self, cx: &mut Cx, bridge: &mut Bridge, batch: &mut Batch) {
        let Some(policy) = self.policy.clone() else {
            return;
        };
        let Some(network) = bridge.network_of(batch.ingress) else {
            return;
        };
        if !policy.judges_bridged(network) {
            return;
        }
        self.ingress = batch.ingress;
        let ours = cx.worker.0 == 0;
        for e in &mut batch.entries {
            if !matches!(e.meta.l3, L3::V4 | L3::V6) || is_exempt(e.frame.head(), &e.meta) {
                continue;
            }
            let target = match e.verdict {
                Verdict::Forward(to) => Target::Port(to),
                Verdict::Hairpin => Target::Port(batch.ingress),
                Verdict::Flood(_) => Target::Anywhere,
                _ => continue,
            };
            let group = e.meta.dst.is_group();
            if !ours && !group {
                e.verdict = Verdict::Gateway;
                continue;
            }
            let screened = if group {
                self.screen_group(cx, &policy, network, e)
            } else {
                self.screen_fragment(cx, bridge, &policy, network, e, &target)
            };
            if let Err(why) = screened {
                cx.note(|| Step::drop("policy", why).network(network));
                e.verdict = Verdict::Drop(why);
            }
        }
    }

    fn screen_fragment(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        policy: &Arc<Compiled>,
        network: NetworkId,
        e: &mut Entry,
        target: &Target,
    ) -> Result<(), DropReason> {
        let Some(fragment) = FragmentHeader::of(&e.frame, &e.meta) else {
            if e.meta.fragment && e.meta.l4 == L4::Other {
                return Err(DropReason::Fragment);
            }
            return self.screen_packet(cx, bridge, policy, network, e, target);
        };
        let hash = self.cleared.hash(network, e, fragment.id);
        if fragment.offset == 0 {
            self.screen_packet(cx, bridge, policy, network, e, target)?;
            if !cx.is_dry() {
                self.cleared.enter(hash, cx.now);
            }
            return Ok(());
        }
        match self.cleared.has(hash, cx.now) {
            true => Ok(()),
            false => Err(DropReason::Fragment),
        }
    }

    fn screen_packet(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        policy: &Arc<Compiled>,
        network: NetworkId,
        e: &mut Entry,
        target: &Target,
    ) -> Result<(), DropReason> {
        let Some(packet) = tracked(e, zone(network)) else {
            return self.screen_error(cx, policy, network, e, target);
        };
        let track = self.track(cx, &packet, None);
        if let Some(Track::Hit(hit)) = track
            && hit.change.is_some()
            && !cx.is_dry()
        {
            self.unoffer(hit.id);
        }
        match track.ok_or(DropReason::InvalidState)? {
            Track::Hit(hit) => self.screen_known(cx, bridge, policy, network, e, hit),
            Track::New(pending) => self.screen_new(cx, policy, network, e, (pending, target)),
            Track::Invalid(_) => Err(DropReason::InvalidState),
        }
    }

    /// A packet of a connection that is known.
    fn screen_known(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        policy: &Arc<Compiled>,
        network: NetworkId,
        e: &Entry,
        hit: Hit,
    ) -> Result<(), DropReason> {
        let mark = Mark::unpack(hit.user.rule);
        let moved = hit.dir == Dir::Original && mark.from != self.ingress;
        if hit.user.epoch != policy.epoch || moved {
            return self.screen_again(cx, bridge, policy, network, e, (hit.id, hit.dir));
        }
        self.count(cx, mark.rule, e);
        self.offer(cx, bridge, e, (hit.id, hit.dir));
        Ok(())
    }

    /// Policy has changed, or the packet comes from another port than the connection.
    #[cold]
    fn screen_again(
        &mut self,
        cx: &mut Cx,
        bridge: &Bridge,
        policy: &Arc<Compiled>,
        network: NetworkId,
        e: &Entry,
        (id, dir): (ConnId, Dir),
    ) -> Result<(), DropReason> {
        let conn = self.tracking.as_deref().and_then(|t| t.conns.get(id));
        let conn = conn.ok_or(DropReason::InvalidState)?;
        let (known, replied) = (Mark::unpack(conn.user().rule).from, conn.replied());
        let from = match dir {
            Dir::Original => self.ingress,
            Dir::Reply => known,
        };
        let tuple = *conn.tuple(Dir::Original);
        let fdb = bridge.fdb(network);
        // Where who answers is, or who is asked.
        let to_port = match dir {
            Dir::Reply => Some(self.ingress),
            Dir::Original => fdb.and_then(|f| f.lookup(e.meta.vid, e.meta.dst)),
        };
        let state = if replied {
            State::Established
        } else {
            State::New
        };
        let key = Key {
            from_port: Some(from),
            from_network: Some(network),
            to_port,
            to_network: Some(network),
            ..key(&tuple, echo(&tuple), state)
        };
        let decision = policy.judge(&key, &self.names, cx.now);
        if decision.action == Action::Accept {
            self.note(cx, id, policy, decision, from);
            self.count(cx, decision.rule, e);
            return Ok(());
        }
        tell(cx, policy, decision, &key);
        // Who takes another's address doesn't end the other's connection.
        if from == known {
            self.end(cx, id);
        }
        self.deny(cx, network, e, decision)
    }

    /// The first packet of a connection.
    fn screen_new(
        &mut self,
        cx: &mut Cx,
        policy: &Arc<Compiled>,
        network: NetworkId,
        e: &mut Entry,
        (pending, target): (Pending, &Target),
    ) -> Result<(), DropReason> {
        let key = Key {
            from_port: Some(self.ingress),
            from_network: Some(network),
            to_network: Some(network),
            ..key(pending.tuple(), icmp(e.frame.head(), &e.meta), State::New)
        };
        let (decision, key) = self.screen_key(cx, policy, e, key, target);
        let decision = charge(cx, policy, decision, &key);
        if decision.action != Action::Accept {
            return self.deny(cx, network, e, decision);
        }
        let mark = Mark {
            rule: decision.rule,
            from: self.ingress,
        };
        let user = User {
            nat: super::flows::NONE,
            epoch: policy.epoch,
            rule: mark.pack(),
        };
        let (now, reply) = (cx.now, pending.tuple().reversed());
        let tracking = self.tracking.as_deref_mut();
        let tracking = tracking.ok_or(DropReason::InvalidState)?;
        if cx.is_dry() {
            let admitted = tracking.conns.would_confirm(&pending, &reply);
            return admitted.map_err(|why| {
                cx.note(|| Step::new("conntrack", "drop").detail(why));
                DropReason::ConntrackFull
            });
        }
        tracking
            .with(now, |conns, ended| {
                conns.confirm(pending, reply, user, now, ended)
            })
            .map_err(|_| DropReason::ConntrackFull)?;
        self.count(cx, decision.rule, e);
        Ok(())
    }

    /// Judges a key for where the frame goes; of several ports, those that may not get it are taken out.
    fn screen_key(
        &self,
        cx: &mut Cx,
        policy: &Compiled,
        e: &mut Entry,
        key: Key,
        target: &Target,
    ) -> (Decision, Key) {
        let now = cx.now;
        let judge = |to: PortId| {
            let key = Key {
                to_port: Some(to),
                ..key
            };
            (policy.judge(&key, &self.names, now), key)
        };
        let set = match (target, e.verdict) {
            (Target::Port(to), _) => return judge(*to),
            (Target::Anywhere, Verdict::Flood(set)) => set,
            (Target::Anywhere, _) => return (policy.judge(&key, &self.names, now), key),
        };
        let (mut allowed, mut denied) = (None, None);
        let narrowed = cx.narrow(set, |to| {
            let judged = judge(to);
            let passes = judged.0.action == Action::Accept;
            if passes { &mut allowed } else { &mut denied }.get_or_insert(judged);
            passes
        });
        if allowed.is_some() {
            e.verdict = Verdict::Flood(narrowed);
        }
        // To nobody at all: the bridge's own reason will do.
        let nobody = Decision {
            action: Action::Accept,
            rule: None,
        };
        allowed.or(denied).unwrap_or((nobody, key))
    }

    /// What goes to a group: no connection, each port by itself.
    fn screen_group(
        &mut self,
        cx: &mut Cx,
        policy: &Compiled,
        network: NetworkId,
        e: &mut Entry,
    ) -> Result<(), DropReason> {
        let (src, dst) = e
            .meta
            .addresses(e.frame.head())
            .ok_or(DropReason::BadPacket)?;
        let key = self.stateless(network, e, (src, dst), State::New);
        let (decision, key) = self.screen_key(cx, policy, e, key, &Target::Anywhere);
        let decision = charge(cx, policy, decision, &key);
        match decision.action {
            Action::Accept => {
                self.count(cx, decision.rule, e);
                Ok(())
            }
            _ => Err(DropReason::Policy),
        }
    }

    /// The key of a packet that has no connection.
    pub(super) fn stateless(
        &self,
        network: NetworkId,
        e: &Entry,
        (src, dst): (IpAddr, IpAddr),
        state: State,
    ) -> Key {
        let l4 = e.frame.head().get(usize::from(e.meta.l4_off)..);
        let ports = match e.meta.proto {
            proto::TCP | proto::UDP | proto::SCTP if e.meta.l4 != L4::Other => {
                l4.and_then(|b| b.first_chunk::<4>()).copied()
            }
            _ => None,
        };
        let [s0, s1, d0, d1] = ports.unwrap_or_default();
        Key {
            from_port: Some(self.ingress),
            from_network: Some(network),
            to_port: None,
            to_network: Some(network),
            src,
            dst,
            proto: e.meta.proto,
            source_port: u16::from_be_bytes([s0, s1]),
            port: u16::from_be_bytes([d0, d1]),
            icmp: icmp(e.frame.head(), &e.meta),
            state,
        }
    }

    /// An ICMP message that is no query: it passes with the connection it is about, else by the rules alone.
    fn screen_error(
        &mut self,
        cx: &mut Cx,
        policy: &Compiled,
        network: NetworkId,
        e: &mut Entry,
        target: &Target,
    ) -> Result<(), DropReason> {
        let ends = e
            .meta
            .addresses(e.frame.head())
            .ok_or(DropReason::BadPacket)?;
        let known = super::related::quoted(e, zone(network)).is_some_and(|tuple| {
            let tracking = self.tracking.as_deref();
            tracking.is_some_and(|t| t.conns.lookup_inner(&tuple).is_some())
        });
        if known {
            return Ok(());
        }
        let key = self.stateless(network, e, ends, State::Related);
        let (decision, key) = self.screen_key(cx, policy, e, key, target);
        let decision = charge(cx, policy, decision, &key);
        match decision.action {
            Action::Accept => {
                self.count(cx, decision.rule, e);
                Ok(())
            }
            _ => Err(DropReason::Policy),
        }
    }

    /// Drops, and tells who sent the packet if the rule says so: a reset from where it was going, or an ICMP error from the gateway
    /// if the network has one.
    fn deny(
        &mut self,
        cx: &mut Cx,
        network: NetworkId,
        e: &Entry,
        decision: Decision,
    ) -> Result<(), DropReason> {
        let to = e.meta.addresses(e.frame.head());
        if let (Action::Reject, Some((src, _))) = (decision.action, to) {
            let answer = if e.meta.l4 == L4::Tcp {
                reply::tcp_reset(&e.frame, &e.meta, e.meta.dst).ok()
            } else {
                self.interface(network).and_then(|own| {
                    let (from, mac) = (own.source_for(src)?, own.config.mac);
                    reply::icmp_error(&e.frame, &e.meta, Cause::Prohibited, from, mac).ok()
                })
            };
            if let Some(frame) = answer
                && self.may_answer(cx, src)
            {
                // It goes back with the tags it came with, so past the egress stages.
                cx.emit(self.ingress, frame, Origin::Switch);
            }
        }
        Err(DropReason::Policy)
    }
}
