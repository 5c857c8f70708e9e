//! Packets that are only asked about ([`Cx::is_dry`]): what keeps them from changing anything.
//!
//! Where a table is asked it has a question that changes nothing (`peek`, `rehearse`, `would_...`). Ports are really leased and given
//! back in the same call, and counters, which nothing reads meanwhile, are put back as they were at the end.

use super::forward::{Follow, Outcome};
use super::neigh::Resolved;
use super::services::{SOLICITATION, Services};
use super::{Gateway, datagram, flows};
use crate::Endpoint;
use crate::conntrack::{ConfirmError, Dir, Hint, Packet, Pending, Track, Tuple, proto};
use crate::policy::{Compiled, Decision, Key, State};
use crate::portalloc::PoolStats;
use crate::service::{dhcp4, dhcp6, dns};
use std::net::IpAddr;
use std::sync::Arc;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::frame::{DropReason, Entry};
use vswitch_core::stats::PortCounters;
use vswitch_core::wire::L3;
use vswitch_core::worker::{Cx, Step};

/// What is put back when a rehearsal ends.
#[derive(Debug)]
pub(crate) struct Kept {
    counters: Arc<PortCounters>,
    held: u64,
    draw: u64,
    pools: Vec<PoolStats>,
}

/// Where a new connection goes.
pub(super) struct Leads {
    pub(super) ends: (Endpoint, Endpoint),
    pub(super) way: flows::Way,
    pub(super) leases: [Option<flows::Leased>; 2],
}

impl Gateway {
    /// Frames are only asked about from now on.
    pub(crate) fn begin_rehearsal(&mut self) -> Kept {
        let pools = self.tracking.as_deref().map(|t| t.flows.pools.counted());
        Kept {
            counters: std::mem::take(&mut self.counters),
            held: self.held,
            draw: self.draw,
            pools: pools.unwrap_or_default(),
        }
    }

    /// The end of it.
    pub(crate) fn end_rehearsal(&mut self, kept: Kept) {
        (self.counters, self.held, self.draw) = (kept.counters, kept.held, kept.draw);
        if let Some(tracking) = self.tracking.as_deref_mut() {
            tracking.flows.pools.uncount(kept.pools);
        }
    }

    /// Tracks a packet.
    #[inline]
    pub(super) fn track(
        &mut self,
        cx: &mut Cx,
        packet: &Packet,
        hint: Option<Hint>,
    ) -> Option<Track> {
        let tracking = self.tracking.as_deref_mut()?;
        let now = cx.now;
        if !cx.is_dry() {
            return Some(tracking.with(now, |conns, ended| match hint {
                Some(hint) => conns.track_hinted(packet, hint, now, ended),
                None => conns.track(packet, now, ended),
            }));
        }
        let track = tracking.conns.rehearse(packet, now);
        let tuple = Ends(&packet.tuple);
        let step = match &track {
            Track::Hit(hit) => {
                let conn = tracking.conns.get(hit.id);
                let (state, original) = conn.map_or((hit.change, packet.tuple), |c| {
                    (hit.change.or(Some(c.state())), *c.tuple(Dir::Original))
                });
                let decision = match hit.dir {
                    Dir::Original => "known",
                    Dir::Reply => "reply",
                };
                let state = state.map_or_else(String::new, |s| format!(", {s:?}").to_lowercase());
                Step::new("conntrack", decision).detail(format_args!("{}{state}", Ends(&original)))
            }
            Track::New(_) => Step::new("conntrack", "new").detail(tuple),
            Track::Invalid(why) => {
                let why = why.name();
                Step::new("conntrack", "invalid").detail(format_args!("{tuple}: {why}"))
            }
        };
        cx.note(|| step);
        Some(track)
    }

    /// Looks up a neighbour to send to.
    pub(super) fn resolve(&mut self, cx: &Cx, network: NetworkId, hop: IpAddr) -> Resolved {
        match cx.is_dry() {
            false => self.neighbours.resolve(cx.now, network, hop),
            true => self.neighbours.peek(cx.now, network, hop),
        }
    }

    /// Whether an answer may be sent to a host; counts it if so.
    pub(super) fn may_answer(&self, cx: &Cx, to: IpAddr) -> bool {
        cx.is_dry() || self.limiter.admit(cx.now, to)
    }

    /// A fragment that is only asked about.
    #[cold]
    pub(super) fn fragment_asked_about(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
    ) -> Result<Outcome, DropReason> {
        use crate::frag::Tracked;
        let tracked = self
            .fragments
            .rehearse(cx.now, flows::ZONE, &e.frame, &e.meta);
        let (decision, detail) = match &tracked {
            Tracked::Whole => ("whole", String::new()),
            Tracked::First(_) => ("first", String::new()),
            Tracked::Follow(_) => ("follows", "the first of its datagram".into()),
            Tracked::Hold(_) => ("held", "its datagram's first hasn't come".into()),
            Tracked::Drop(why) => ("drop", why.to_string()),
        };
        cx.note(|| Step::new("fragments", decision).detail(detail));
        match tracked {
            Tracked::Whole | Tracked::First(_) => {
                self.whole(cx, bridge, network, e).map(|(o, _)| o)
            }
            Tracked::Follow(Some(follow)) => self.follow(cx, bridge, network, e, follow),
            Tracked::Follow(None) | Tracked::Drop(_) => Err(DropReason::Fragment),
            Tracked::Hold(_) => Ok(Outcome::Held),
        }
    }

    /// The rest of the way of a packet that would begin a connection.
    #[cold]
    pub(super) fn would_enter(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
        pending: &Pending,
        leads: Leads,
    ) -> Result<(Outcome, Follow), DropReason> {
        for leased in leads.leases {
            self.give_back(cx, leased);
        }
        let original = pending.tuple();
        let translated = super::open::translated(original, leads.ends);
        let there = super::open::compiled(original, leads.ends).ok_or(DropReason::BadPacket)?[0];
        let tracking = self.tracking.as_deref().ok_or(DropReason::NoRoute)?;
        if let Err(why) = tracking
            .conns
            .would_confirm(pending, &translated.reversed())
        {
            cx.note(|| Step::new("conntrack", "drop").detail(why));
            return Err(match why {
                ConfirmError::Clash => DropReason::NatExhausted,
                ConfirmError::SourceLimit | ConfirmError::Full => DropReason::ConntrackFull,
            });
        }
        let outcome = self.send_on(cx, bridge, network, e, (leads.way, there))?;
        Ok((outcome, None))
    }
}

/// Notes a translation.
pub(super) fn translated(cx: &mut Cx, before: Option<Tuple>, e: &Entry) {
    cx.note(|| {
        let after = Tuple::of(e.frame.head(), &e.meta, flows::ZONE);
        let detail = match (before, after) {
            (Some(before), Some(after)) => format!("{} becomes {}", Ends(&before), Ends(&after)),
            _ => String::new(),
        };
        Step::new("nat", "rewrite").detail(detail)
    });
}

impl Services {
    /// The service that [`Gateway::serve`] would give a packet to.
    pub(super) fn for_whom(
        &self,
        network: NetworkId,
        e: &Entry,
        asked_here: &dyn Fn(IpAddr, IpAddr) -> bool,
    ) -> Option<&'static str> {
        let s = self.networks.get(usize::from(network.0))?.as_deref()?;
        let here = || datagram::read(e).is_none_or(|d| asked_here(d.from.ip(), d.to.ip()));
        let (service, on) = match datagram::port_of(e) {
            Some(dhcp4::SERVER_PORT) => ("DHCP", e.meta.l3 == L3::V4 && s.dhcp.is_some()),
            Some(dhcp6::SERVER_PORT) => ("DHCPv6", e.meta.l3 == L3::V6 && s.dhcp6.is_some()),
            Some(dns::PORT) => ("DNS", s.dns.is_some() && here()),
            None => {
                let asks = datagram::icmp6_type(e) == Some(SOLICITATION);
                ("router advertisement", asks && s.ra.is_some())
            }
            _ => return None,
        };
        on.then_some(service)
    }
}

/// Whether a packet is for a service, which is noted.
pub(super) fn served(cx: &mut Cx, network: NetworkId, service: Option<&str>) -> bool {
    if let Some(service) = service {
        cx.note(|| {
            Step::new("gateway", "serves")
                .detail(format_args!("a request to its {service} service"))
                .network(network)
        });
    }
    service.is_some()
}

/// What was found of a next hop.
pub(super) fn neighbour(resolved: &Resolved, hop: IpAddr) -> Step {
    match resolved {
        Resolved::Known { mac, .. } => {
            Step::new("neighbour", "known").detail(format_args!("{hop} is {mac}"))
        }
        Resolved::Pending { .. } => {
            Step::new("neighbour", "held").detail(format_args!("until {hop} answers who it is"))
        }
        Resolved::Unreachable => {
            Step::new("neighbour", "drop").detail(format_args!("{hop} doesn't answer"))
        }
    }
}

/// Charges a decision to its rule, and tells people of it.
pub(super) fn charge(cx: &mut Cx, policy: &Compiled, decision: Decision, key: &Key) -> Decision {
    if !cx.is_dry() {
        let decision = policy.charge(decision, cx.now);
        super::judge::tell(cx, policy, decision, key);
        return decision;
    }
    let charged = policy.would_charge(decision, cx.now);
    noted(cx, policy, charged, charged != decision, key);
    charged
}

/// Notes a decision of policy.
pub(super) fn noted(cx: &mut Cx, policy: &Compiled, decision: Decision, over: bool, key: &Key) {
    cx.note(|| {
        let rule = decision.rule.and_then(|r| policy.rule(r));
        let why = match rule {
            Some(rule) if over => format!("`{}` matches, and is over its rate", rule.name),
            Some(rule) => format!("`{}` is the first rule that matches", rule.name),
            None => "no rule matches".into(),
        };
        let state = match key.state {
            State::New => "new",
            State::Established => "established",
            State::Related => "related",
        };
        let (from, to) = (
            Endpoint::new(key.src, key.source_port),
            Endpoint::new(key.dst, key.port),
        );
        let detail = format!("{why}: {state} {} {from} > {to}", Protocol(key.proto));
        let step = Step::new("policy", decision.action.as_str()).detail(detail);
        match key.to_port {
            Some(port) => step.port(port),
            None => step,
        }
    });
}

/// A protocol by name, if people have one for it.
struct Protocol(u8);

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            proto::TCP => f.write_str("tcp"),
            proto::UDP => f.write_str("udp"),
            proto::SCTP => f.write_str("sctp"),
            proto::ICMP => f.write_str("icmp"),
            proto::ICMP6 => f.write_str("icmp6"),
            n => write!(f, "proto {n}"),
        }
    }
}

/// Protocol and ends of a tuple, for people.
struct Ends<'a>(&'a Tuple);

impl std::fmt::Display for Ends<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let t = self.0;
        let (from, to) = (
            Endpoint::new(t.src(), t.src_port),
            Endpoint::new(t.dst(), t.dst_port),
        );
        write!(f, "{} {from} > {to}", Protocol(t.proto))
    }
}
