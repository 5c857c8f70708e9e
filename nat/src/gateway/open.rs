//! The first packet of a connection: where it leads, whether it may, and as what.
//!
//! In the order of netfilter's hooks: published ports and mappings in use say where it really goes (DNAT), the route says by which
//! network, policy whether, and the network whether its source is translated (SNAT, or by its prefix: [`super::prefix`]). A connection that comes back into
//! the network it came from (hairpin) gets the gateway's own address as its source, or else the answers would
//! take a short cut that doesn't translate them; one to another host's mapping has its own external endpoint (RFC 4787 REQ-9a).

use super::dry::Leads;
use super::flows::{Flow, Way, ZONE};
use super::forward::{Follow, Outcome};
use super::host::HOST;
use super::judge::Judged;
use super::prefix::Mapped;
use super::{Gateway, flows};
use crate::Endpoint;
use crate::conntrack::{ConfirmError, Dir, Pending, Tuple, User, proto};
use crate::portalloc::Internal;
use crate::reply::Cause;
use crate::rewrite::Rewrite;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::frame::{DropReason, Entry};
use vswitch_core::worker::{Cx, Event, Step};

/// Endpoints (source, destination) of a tuple. An ICMP identifier stands at the source of a request and the destination of an answer.
fn ends(t: &Tuple) -> (Endpoint, Endpoint) {
    (
        Endpoint::new(t.src(), t.src_port),
        Endpoint::new(t.dst(), t.dst_port),
    )
}

/// The tuple that packets of a connection have once they are translated to these ends.
pub(super) fn translated(original: &Tuple, to: (Endpoint, Endpoint)) -> Tuple {
    original
        .with_src(to.0.addr, to.0.port)
        .with_dst(to.1.addr, to.1.port)
}

/// The rewriting of both directions, if any is needed. `None`: it can't be done.
pub(super) fn compiled(original: &Tuple, to: (Endpoint, Endpoint)) -> Option<[Option<Rewrite>; 2]> {
    let from = ends(original);
    if from == to {
        return Some([None, None]);
    }
    let reply = translated(original, to).reversed();
    let back = (ends(&reply), ends(&original.reversed()));
    let there = Rewrite::new(original.proto, from, to).ok()?;
    let back = Rewrite::new(original.proto, back.0, back.1).ok()?;
    Some([Some(there), Some(back)])
}

/// Why what comes from outside may not.
const UNASKED: &str = "from an uplink only published ports and what a rule accepts";

/// Where a connection to one of our addresses leads, by which lease, through which network's mapping.
type Inbound = (Endpoint, Option<flows::Leased>, Option<NetworkId>);

impl Gateway {
    /// Judges the first packet of a connection, enters it and sends the packet on. Who began one that there is no room for is told
    /// (RFC 5508 REQ-8), if it is inside: outside isn't answered, or a flood would be.
    pub(super) fn open(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
        pending: Pending,
    ) -> Result<(Outcome, Follow), DropReason> {
        let opened = self.begin(cx, bridge, network, e, pending);
        if let Err(DropReason::NatExhausted | DropReason::ConntrackFull) = opened
            && !self.is_uplink(network)
        {
            self.answer(cx, bridge, network, e, Cause::Prohibited);
        }
        opened
    }

    fn begin(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
        pending: Pending,
    ) -> Result<(Outcome, Follow), DropReason> {
        let now = cx.now;
        let original = *pending.tuple();
        let (src, asked) = ends(&original);
        let mut lease = None;
        let mut dst = asked;
        let addressed = self.is_own(asked.addr)
            || self.is_external(asked)
            || self.is_host_published(network, original.proto, asked)
            || self.stands_for_host(network, asked.addr);
        let (mut inside, mut through) = (None, None);
        if addressed {
            match self.inbound(cx, bridge, network, original.proto, src, asked) {
                Some(found) => (dst, inside, through) = found,
                None => match self.host_endpoint(network, original.proto, asked) {
                    Some(to) => {
                        // It is the gateway's address, whatever stands behind it.
                        self.judge_local(cx, bridge, network, e)?;
                        if self.serve(cx, bridge, network, e) {
                            return Err(DropReason::Consumed);
                        }
                        dst = to;
                    }
                    None => return self.local(cx, bridge, network, e).map(|o| (o, None)),
                },
            }
        }
        let mut towards = None;
        match self.inside_of(asked.addr) {
            _ if addressed => {}
            Mapped::Not => {}
            Mapped::To(inside, of) => {
                dst.addr = inside;
                towards = Some(of).filter(|of| *of != network);
            }
            Mapped::Nowhere => return Err(self.nowhere(cx, bridge, network, e)),
        }
        let tuple = original.with_dst(dst.addr, dst.port);
        let admitted = self.admit(cx, bridge, network, e, &tuple, addressed);
        let (out, judged) = match admitted {
            Ok(Some(admitted)) => admitted,
            Ok(None) => {
                self.give_back(cx, inside);
                return Ok((Outcome::Held, None));
            }
            Err(why) => {
                self.give_back(cx, inside);
                return Err(why);
            }
        };
        // The container may have the very address and port that its client has asked for.
        let hairpin = asked != dst && out.network == network
            || addressed && self.needs_our_address(network, src.addr);
        let mut source = src;
        let towards = towards.unwrap_or(out.network);
        let prefix = match through {
            None if towards != network => self.outside_of(towards, src.addr),
            _ => Mapped::Not,
        };
        if let Mapped::To(outside, _) = prefix {
            source.addr = outside;
        } else if prefix == Mapped::Nowhere {
            self.give_back(cx, inside);
            return Err(self.nowhere(cx, bridge, network, e));
        } else if through.is_some() || hairpin || self.snat(network, out.network) {
            let internal = Internal {
                zone: ZONE,
                proto: original.proto,
                end: src,
            };
            let random = self.random();
            let tracking = self.tracking.as_deref_mut().ok_or(DropReason::NoRoute)?;
            let pools = &mut tracking.flows.pools;
            let of = through.unwrap_or(out.network);
            match pools.lease(now, of, internal, dst.addr, random) {
                Ok((leased, external)) => (lease, source) = (Some(leased), external),
                Err(why) => {
                    if !cx.is_dry() && pools.is_news(of, now) {
                        cx.event(Event::NatExhausted {
                            network: of.0,
                            proto: original.proto,
                            reason: why.reason(),
                        });
                    }
                    cx.note(|| Step::new("nat", "drop").detail(why).network(of));
                    self.give_back(cx, inside);
                    return Err(DropReason::NatExhausted);
                }
            }
        }
        let back = self.back(network, src.addr);
        let leases = [lease, inside];
        if cx.is_dry() {
            let leads = Leads {
                ends: (source, dst),
                way: out,
                leases,
            };
            return self.would_enter(cx, bridge, network, e, &pending, leads);
        }
        let id = self.enter(cx, pending, (source, dst), [out, back], leases, judged)?;
        let outcome = self.follow(cx, bridge, network, e, (id, Dir::Original))?;
        Ok((outcome, Some((id, Dir::Original))))
    }

    /// The way out of a new connection, if it may be; `tuple` has its real destination. `None`: the packet waits for its judgement.
    fn admit(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
        tuple: &Tuple,
        addressed: bool,
    ) -> Result<Option<(Way, Judged)>, DropReason> {
        let host = self.has_host(network);
        let found = self.routes.find(tuple.dst());
        let Some((route, hop)) = found.filter(|(r, _)| host || r.network != HOST) else {
            cx.note(|| Step::new("route", "none").detail(tuple.dst()));
            self.answer(cx, bridge, network, e, Cause::NetUnreachable);
            return Err(DropReason::NoRoute);
        };
        let out = Way {
            network: route.network,
            hop,
        };
        cx.note(|| {
            let (to, len) = route.to;
            let how = match route.via {
                Some(via) => format!("{to}/{len} via {via}"),
                None => format!("{to}/{len} is on link"),
            };
            Step::new("route", "found").detail(how).network(out.network)
        });
        let from_outside = self.interface(network).is_some_and(|i| i.config.uplink);
        if from_outside && !addressed && self.policy.is_none() {
            cx.note(|| Step::new("policy", "drop").detail(UNASKED).network(network));
            return Err(DropReason::Policy);
        }
        self.may_pass(cx, bridge, network, e, out.network)?;
        let Some(judged) = self.judge(cx, bridge, network, e, tuple, out)? else {
            return Ok(None);
        };
        // From outside it takes a rule, if nothing is published.
        if from_outside && !addressed && !judged.by_rule {
            cx.note(|| Step::new("policy", "drop").detail(UNASKED).network(network));
            return Err(DropReason::Policy);
        }
        Ok(Some((out, judged)))
    }

    /// An address of a translated prefix that has no other side (RFC 6296 3.5).
    fn nowhere(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &Entry,
    ) -> DropReason {
        self.answer(cx, bridge, network, e, Cause::NetUnreachable);
        DropReason::NoRoute
    }

    pub(super) fn give_back(&mut self, cx: &Cx, leased: Option<flows::Leased>) {
        if let (Some(leased), Some(tracking)) = (leased, self.tracking.as_deref_mut()) {
            tracking.flows.pools.release(cx.now, leased);
        }
    }

    /// The way back to who began.
    fn back(&self, network: NetworkId, to: std::net::IpAddr) -> Way {
        match self.interface(network) {
            Some(i) if network == HOST || i.on_link(to) => Way { network, hop: to },
            _ => self
                .routes
                .find(to)
                .map_or(Way { network, hop: to }, |(r, hop)| Way {
                    network: r.network,
                    hop,
                }),
        }
    }

    /// Enters the connection with its translation. On an error nothing is left.
    fn enter(
        &mut self,
        cx: &mut Cx,
        pending: Pending,
        to: (Endpoint, Endpoint),
        ways: [Way; 2],
        leases: [Option<flows::Leased>; 2],
        judged: Judged,
    ) -> Result<crate::conntrack::ConnId, DropReason> {
        let (now, epoch) = (cx.now, self.epoch);
        let tracking = self.tracking.as_deref_mut().ok_or(DropReason::NoRoute)?;
        let original = *pending.tuple();
        let reply = translated(&original, to).reversed();
        let Some(rewrites) = compiled(&original, to) else {
            for leased in leases.into_iter().flatten() {
                tracking.flows.pools.release(now, leased);
            }
            return Err(DropReason::BadPacket);
        };
        let flow = Flow {
            rewrites,
            ways,
            leases,
            epoch,
        };
        let flow = tracking.flows.insert(flow, [to.1.addr, original.src()]);
        let user = User {
            nat: flow,
            epoch: judged.epoch,
            rule: judged.mark,
        };
        let confirmed = tracking.with(now, |conns, ended| {
            conns.confirm(pending, reply, user, now, ended)
        });
        confirmed.map_err(|why| {
            tracking.flows.remove(flow, now, to.1.addr);
            match why {
                ConfirmError::Clash => DropReason::NatExhausted,
                ConfirmError::SourceLimit | ConfirmError::Full => DropReason::ConntrackFull,
            }
        })
    }

    /// Whether an address that isn't an interface's is one of a network's external ones.
    pub(super) fn is_external(&self, to: Endpoint) -> bool {
        let mut snat = self.interfaces.iter().flatten();
        snat.any(|i| {
            let s = i.config.snat.as_ref();
            s.is_some_and(|s| s.addresses.contains(&to.addr))
        })
    }

    /// Where a connection to one of our addresses leads: a published port, or a mapping that lets it in; of a host inside
    /// also the network whose mapping it goes through.
    fn inbound(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        proto: u8,
        from: Endpoint,
        to: Endpoint,
    ) -> Option<Inbound> {
        if let Some(backend) = self.backend(cx, bridge, network, proto, from, to) {
            let found = || format!("{to} is published: {backend}");
            cx.note(|| Step::new("publish", "found").detail(found()));
            return Some((backend, None, None));
        }
        let outside = self.interface(network)?.config.uplink;
        let own = self.is_own(to.addr);
        let tracking = self.tracking.as_deref_mut()?;
        let pools = &mut tracking.flows.pools;
        if !outside {
            // A query has its identifier at the source; at an address that the gateway doesn't answer for itself it is whose it was
            // given to (RFC 5508 REQ-7).
            let query = matches!(proto, proto::ICMP | proto::ICMP6) && !own;
            let key = match query {
                true => Endpoint::new(to.addr, from.port),
                false => to,
            };
            let (leased, mut internal, of) = pools.hairpin(proto, key, from.addr)?;
            if query {
                internal.port = to.port;
            }
            return Some((internal, Some(leased), Some(of)));
        }
        let (leased, internal) = pools.inbound(network, proto, to, from.addr)?;
        Some((internal, Some(leased), None))
    }

    /// The back end of a published port.
    fn backend(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        proto: u8,
        from: Endpoint,
        to: Endpoint,
    ) -> Option<Endpoint> {
        let publish = self.published.find(proto, network, to)?;
        let (mut alive, mut ask) = (u64::MAX, Vec::new());
        if publish.backends.len() > 1 {
            for (i, b) in publish.backends.iter().enumerate() {
                let Some((route, hop)) = self.routes.find(b.to.addr) else {
                    alive &= !(1 << (i % 64));
                    continue;
                };
                if cx.is_dry() {
                    let alive_now = self.neighbours.is_alive(route.network, hop);
                    alive &= !(u64::from(!alive_now) << (i % 64));
                    continue;
                }
                let health = self.neighbours.health(cx.now, route.network, hop);
                if !health.alive {
                    alive &= !(1 << (i % 64));
                }
                if health.ask {
                    ask.push((route.network, hop, health.mac));
                }
            }
        }
        let chosen = publish.choose(to, self.published.hash(from, to), alive);
        for (network, hop, mac) in ask {
            self.ask(cx, bridge, network, hop, mac);
            cx.tick_by(cx.now.after(std::time::Duration::from_secs(1)));
        }
        chosen
    }

    /// Whether what goes from one network to another has its source translated.
    fn snat(&self, from: NetworkId, out: NetworkId) -> bool {
        from != out
            && self
                .tracking
                .as_deref()
                .is_some_and(|t| t.flows.pools.translates(out))
    }
}
