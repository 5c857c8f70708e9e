//! What the bridge does by time, by link changes and by news of other workers.

use super::fdb::Swept;
use super::loop_guard::ProbeKey;
use super::network::{Network, Share};
use super::port::BridgePort;
use super::snoop::general_query;
use super::{Bridge, LoopGuard, vlan};
use crate::clock::Nanos;
use crate::port::PortId;
use crate::worker::{Cx, Event, Origin, Sync};
use std::time::Duration;

/// Buckets of a table looked at per tick.
const SWEEP_BUDGET: usize = 4096;
/// Probes sent per tick.
const SEND_BUDGET: usize = 64;
/// Ports in VLANs queried per tick.
const QUERY_BUDGET: usize = 128;
/// Ports of a network that one worker probes alone.
const FEW: usize = 64;
/// Time between two ticks of a sweep, or of a round of probes, that isn't finished.
const PAUSE: Duration = Duration::from_millis(2);

fn at_sec(s: u32) -> Nanos {
    if s == u32::MAX {
        Nanos::MAX
    } else {
        Nanos(u64::from(s) * 1_000_000_000)
    }
}

/// When what came round a loop before it was cut has arrived.
const AFTER_LOOP: Duration = Duration::from_millis(300);

/// A probe of ours came back by `from`: shuts a port if that proves a loop.
pub(super) fn probe_returned(
    cx: &mut Cx,
    ports: &[Option<BridgePort>],
    net: &mut Network,
    from: PortId,
    sent: PortId,
    number: u32,
) {
    let get = |p: PortId| ports.get(p.index()).and_then(Option::as_ref);
    let (Some(by), Some(of)) = (get(from), get(sent)) else {
        return;
    };
    // Two networks, or two VLANs, that meet outside are no loop of one.
    let joined = by.config.network == of.config.network
        && (!net.config.vlan_aware || by.config.pvid == of.config.pvid);
    if !joined || !of.loop_state.is_fresh(number) {
        return;
    }
    let (high, low) = (from.max(sent), from.min(sent));
    let guarded = |p: PortId| get(p).filter(|b| b.config.loop_guard);
    let (shut, other, state) = match (guarded(high), guarded(low)) {
        (Some(b), _) => (high, low, &b.loop_state),
        (None, Some(b)) => (low, high, &b.loop_state),
        (None, None) => return,
    };
    if state.prove(cx.now, &net.config.loop_guard) {
        cx.event(Event::LoopDetected { port: shut, other });
        // What went round was learned where it came in again. Some of it is still on its way.
        net.looped = Some((cx.now.after(AFTER_LOOP), [shut, other]));
        forget_looped(cx, net, [shut, other]);
        cx.tick_by(cx.now.after(AFTER_LOOP));
    }
}

/// Forgets what was learned at the ends of a loop.
fn forget_looped(cx: &mut Cx, net: &mut Network, ends: [PortId; 2]) {
    for port in ends {
        net.unlearn(port);
        cx.tell(Sync::Unlearn { port });
    }
}

impl Bridge {
    /// Due work of all networks; returns when there is more.
    pub(super) fn timers(&mut self, cx: &mut Cx) -> Nanos {
        let mut next = Nanos::MAX;
        let mut changed = false;
        for (i, net) in self.networks.iter_mut().enumerate() {
            let Some(net) = net else { continue };
            let before = net.fdb.len();
            next = next.min(sweep(cx, i as u16, net));
            changed |= net.fdb.len() != before;
            let now = cx.now.secs();
            if net.next_expiry <= now {
                net.next_expiry = net.snoop.expire(now).max(now + 1);
            }
            next = next.min(at_sec(net.next_expiry));
            if net.config.querier && net.config.snooping {
                next = next.min(query(cx, net, &self.ports));
            }
            if let Some((due, ends)) = net.looped {
                if due > cx.now {
                    next = next.min(due);
                } else {
                    net.looped = None;
                    forget_looped(cx, net, ends);
                    changed = true;
                }
            }
            let key = &self.shared.probe_key;
            next = next.min(probe(cx, net, &self.ports, key));
        }
        if changed {
            self.invalidate();
        }
        next
    }

    /// A port came up or went down.
    pub(super) fn port_link(&mut self, cx: &mut Cx, port: PortId, up: bool) {
        if self.down.len() <= port.index() {
            self.down.resize(port.index() + 1, false);
        }
        self.down[port.index()] = !up;
        if !up {
            self.forget(port);
            cx.tell(Sync::PortDown { port });
        }
        self.invalidate();
        let Some(Some(p)) = self.ports.get(port.index()) else {
            return;
        };
        p.loop_state.reset();
        let network = p.config.network;
        self.refresh_members(network);
        if up && let Some(Some(net)) = self.networks.get_mut(usize::from(network.0)) {
            net.probe_soon(port, Share::Own);
            cx.tick_by(cx.now);
        }
    }

    /// Forgets what was learned at a port; static entries stay.
    fn forget(&mut self, port: PortId) {
        let Some(Some(p)) = self.ports.get(port.index()) else {
            return;
        };
        if let Some(Some(net)) = self.networks.get_mut(usize::from(p.config.network.0)) {
            net.unlearn(port);
            net.snoop.remove_port(port);
        }
    }

    /// News of another worker.
    pub(super) fn heard(&mut self, cx: &mut Cx, news: &Sync) {
        match *news {
            Sync::Learned {
                network,
                vid,
                mac,
                port,
                seen,
            } => {
                let Some(net) = self.network_if_in(network, port) else {
                    return;
                };
                let moves = net.fdb.lookup(vid, mac).is_some_and(|at| at != port);
                let later = net.fdb.learn_remote(vid, mac, port, seen);
                if let Some(due) = net.fdb.arm(cx.now.secs(), net.ageing) {
                    cx.tick_by(at_sec(due));
                }
                if let Some(e) = later {
                    cx.tell(Sync::Learned {
                        network,
                        vid,
                        mac,
                        port: e.port,
                        seen: e.seen,
                    });
                }
                if moves {
                    self.invalidate();
                }
            }
            Sync::Aged {
                network,
                vid,
                mac,
                port,
            } => {
                let Some(net) = self.network_mut(network) else {
                    return;
                };
                if let Some(e) = net.fdb.age_remote(vid, mac, port) {
                    cx.tell(Sync::Learned {
                        network,
                        vid,
                        mac,
                        port: e.port,
                        seen: e.seen,
                    });
                }
                self.invalidate();
            }
            Sync::PortDown { port } => {
                self.forget(port);
                self.invalidate();
            }
            Sync::Unlearn { port } => {
                let network = self.ports.get(port.index()).and_then(Option::as_ref);
                let network = network.map(|p| p.config.network.0);
                if let Some(net) = network.and_then(|n| self.network_mut(n)) {
                    net.unlearn(port);
                }
                self.invalidate();
            }
            Sync::Group {
                network,
                vid,
                group,
                port,
                until,
            } => {
                if let Some(net) = self.network_if_in(network, port) {
                    let limit = net.rules.limit;
                    let now = cx.now.secs();
                    net.snoop.set((vid, group), port, until, now, limit);
                    net.next_expiry = net.next_expiry.min(now + 1);
                    cx.tick_by(at_sec(now + 1));
                }
            }
            Sync::Router {
                network,
                vid,
                v6,
                port,
                until,
                querier,
            } => {
                if let Some(net) = self.network_if_in(network, port) {
                    net.snoop.router(vid, v6, port, until, querier);
                    net.next_expiry = net.next_expiry.min(until);
                    cx.tick_by(at_sec(until));
                }
            }
        }
    }

    /// The network, if the port is (still) in it: news may be older than our configuration, and port numbers are reused.
    fn network_if_in(&mut self, network: u16, port: PortId) -> Option<&mut Network> {
        let of = self.ports.get(port.index())?.as_ref()?.config.network;
        if of.0 == network {
            self.network_mut(network)
        } else {
            None
        }
    }

    fn network_mut(&mut self, network: u16) -> Option<&mut Network> {
        self.networks.get_mut(usize::from(network))?.as_mut()
    }
}

/// Ages a network's FDB a bit; renews at the other workers what is alive here.
fn sweep(cx: &mut Cx, network: u16, net: &mut Network) -> Nanos {
    let several = cx.worker.1 > 1;
    let due = net
        .fdb
        .sweep(cx.now.secs(), net.ageing, SWEEP_BUDGET, |e, what| {
            let (vid, mac, port) = (e.vid(), e.mac(), e.port);
            match what {
                Swept::Aged => {
                    if !e.remote {
                        cx.event(Event::MacAged {
                            network,
                            vid,
                            mac,
                            port,
                        });
                        cx.tell(Sync::Aged {
                            network,
                            vid,
                            mac,
                            port,
                        });
                    }
                }
                Swept::Alive if several => cx.tell(Sync::Learned {
                    network,
                    vid,
                    mac,
                    port,
                    seen: e.seen,
                }),
                Swept::Alive => {}
            }
            cx.can_tell()
        });
    if at_sec(due) <= cx.now {
        cx.now.after(PAUSE)
    } else {
        at_sec(due)
    }
}

/// Sends what the switch asks members; one worker does it.
fn query(cx: &mut Cx, net: &mut Network, ports: &[Option<BridgePort>]) -> Nanos {
    if cx.worker.0 != 0 {
        return Nanos::MAX;
    }
    if net.next_query > cx.now {
        return net.next_query;
    }
    // Two queries and the time to answer one fit into a membership (RFC 3376 8.4).
    let interval = (net.rules.membership.saturating_sub(10) / 2).max(1);
    let vids = if net.config.vlan_aware {
        vlans_in_use(net, ports)
    } else {
        vec![0]
    };
    // VLAN by VLAN, so that a trunk isn't sent all of its queries in one burst.
    let all = vids.len() * net.members.len();
    let end = all.min(net.query_at + QUERY_BUDGET);
    while net.query_at < end {
        let (vid, member) = (
            net.query_at / net.members.len(),
            net.query_at % net.members.len(),
        );
        net.query_at += 1;
        if let (Some(vid), Some(m)) = (vids.get(vid), net.members.get(member))
            && !m.silent
            && let Some(Some(p)) = ports.get(m.port.index())
        {
            query_port(cx, m.port, p, *vid, interval);
        }
    }
    if net.query_at < all {
        return cx.now.after(PAUSE);
    }
    net.query_at = 0;
    net.next_query = cx.now.after(Duration::from_secs(u64::from(interval)));
    net.next_query
}

fn query_port(cx: &mut Cx, id: PortId, port: &BridgePort, vid: u16, interval: u32) {
    if port.loop_state.is_shut() {
        return;
    }
    for v6 in [false, true] {
        if let Some(mut f) = general_query(v6, interval)
            && (!port.vlan_aware || vlan::egress(&port.config, vid, &mut f).is_ok())
        {
            cx.emit(id, f, Origin::Switch);
        }
    }
}

/// VLANs that some port is in untagged, or that have members: a trunk of all VLANs isn't asked in all of them.
fn vlans_in_use(net: &Network, ports: &[Option<BridgePort>]) -> Vec<u16> {
    let of = |p: PortId| ports.get(p.index())?.as_ref()?.config.pvid;
    let mut vids: Vec<u16> = net.members.iter().filter_map(|m| of(m.port)).collect();
    vids.extend(net.snoop.vids());
    vids.sort_unstable();
    vids.dedup();
    vids
}

/// Sends the probes that are due, some at a time, and opens ports; every worker for its share of the ports.
fn probe(cx: &mut Cx, net: &mut Network, ports: &[Option<BridgePort>], key: &ProbeKey) -> Nanos {
    let timing = net.config.loop_guard;
    let mut left = SEND_BUDGET;
    while left > 0
        && let Some((port, share)) = net.fresh.pop()
    {
        let down = net.members.iter().any(|m| m.port == port && m.down);
        let ours = share == Share::Any || ours(port, net.members.len(), cx.worker);
        left -= usize::from(ours && !down && probe_port(cx, ports, key, &timing, port));
    }
    if net.next_probe == Nanos(0) {
        net.next_probe = next_round(cx, net, ports);
    }
    if net.next_probe > cx.now {
        return if net.fresh.is_empty() {
            net.next_probe
        } else {
            cx.now.after(PAUSE)
        };
    }
    while left > 0 {
        let Some(m) = net.members.get(net.probe_at) else {
            net.probe_at = 0;
            net.next_probe = next_round(cx, net, ports);
            return net.next_probe;
        };
        net.probe_at += 1;
        let ours = ours(m.port, net.members.len(), cx.worker);
        left -= usize::from(ours && !m.down && probe_port(cx, ports, key, &timing, m.port));
    }
    cx.now.after(PAUSE)
}

/// Whether this worker (which, of how many) probes a port that all were told of: the first does where they are few, so that the others
/// sleep on.
fn ours(port: PortId, members: usize, (worker, of): (u16, u16)) -> bool {
    let owner = if members <= FEW {
        0
    } else {
        port.0 % of.max(1)
    };
    owner == worker
}

/// Opens a port whose time is over, and probes it; false if it isn't guarded.
fn probe_port(
    cx: &mut Cx,
    ports: &[Option<BridgePort>],
    key: &ProbeKey,
    timing: &LoopGuard,
    port: PortId,
) -> bool {
    let Some(Some(p)) = ports.get(port.index()) else {
        return false;
    };
    if !p.config.loop_guard {
        return false;
    }
    if p.loop_state.recover(cx.now, timing) {
        cx.event(Event::LoopCleared { port });
    }
    if let Some(f) = key.probe(port, &p.loop_state) {
        cx.emit(port, f, Origin::Switch);
    }
    true
}

/// When the next round begins, if any port of ours is guarded: at a multiple of the interval, so that all networks wake us at once.
fn next_round(cx: &Cx, net: &Network, ports: &[Option<BridgePort>]) -> Nanos {
    let guarded = |p: PortId| matches!(ports.get(p.index()), Some(Some(p)) if p.config.loop_guard);
    let ours = |p: PortId| ours(p, net.members.len(), cx.worker);
    if !net.members.iter().any(|m| ours(m.port) && guarded(m.port)) {
        return Nanos::MAX;
    }
    let now = cx.now;
    let interval = net.config.loop_guard.interval.as_nanos();
    let interval = u64::try_from(interval).unwrap_or(u64::MAX).max(10_000_000);
    Nanos(
        (now.0 / interval)
            .saturating_add(1)
            .saturating_mul(interval),
    )
}
