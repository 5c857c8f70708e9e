//! What goes the fast path ([`crate::accel`]): the bridge's side.
//!
//! A pair of addresses is approved when a frame of it is forwarded from one port on the fast path to another, and nothing would look at
//! the next one: no VLANs, guard, meter, mirror, capture, policy. The source has to be known where it came from, and the destination is
//! the address of the container's interface.
//!
//! Where policy judges, the bridge doesn't know what it allows: who judges asks for the pair ([`Bridge::approve_judged`]) and allows the
//! flow itself.
//!
//! Every change of the bridge calls [`Bridge::invalidate`], on each worker that carries it out: after the last has, nothing stands that was
//! approved before. Changes in quick succession (an address that two containers fight for) suspend approval for the rest of the second,
//! so that they can't make the switch enter all flows again and again.

use super::network::Network;
use super::port::BridgePort;
use super::shared::Shared;
use super::{Bridge, fdb};
use crate::accel::{Accelerator, Active, FastPort};
use crate::frame::{Entry, Verdict};
use crate::port::PortId;
use crate::wire::MacAddr;
use std::sync::Arc;

/// Pairs remembered as approved, so that frames that don't fit the fast path don't cause a system call each; a power of two.
const RECENT: usize = 256;
/// Changes per second from which nothing more is approved in it.
const CHANGES: u32 = 100;

/// Pair of addresses, and where it came in.
type Pair = (u64, u64, PortId);

/// The fast path of one worker's bridge.
#[derive(Debug, Default)]
pub(super) struct Fast {
    with: Option<Arc<Accelerator>>,
    ports: Vec<Option<FastPort>>,
    /// Ports that captures look at, by index.
    watched: Vec<bool>,
    /// No policy judges the batch.
    allowed: bool,
    /// Generation that approvals of the batch are of, judged or not.
    batch: Option<u64>,
    recent: Vec<(Pair, u32)>,
    /// Generation seen last, second, and changes in it.
    last: u64,
    second: u32,
    changes: u32,
}

impl Fast {
    fn port(&self, port: PortId) -> Option<&FastPort> {
        let watched = self.watched.get(port.index()).copied().unwrap_or(false);
        self.ports.get(port.index())?.as_ref().filter(|_| !watched)
    }

    /// A batch begins that may not be approved.
    #[inline]
    pub(super) fn forbid(&mut self) {
        self.batch = None;
    }

    /// Generation that approvals of a batch from this port are of; `None` if there can't be any by the bridge.
    #[inline]
    pub(super) fn begin(&mut self, from: PortId, port: &BridgePort, now: u32) -> Option<u64> {
        self.batch = self.generation(from, port, now);
        self.batch.filter(|_| self.allowed)
    }

    fn generation(&mut self, from: PortId, port: &BridgePort, now: u32) -> Option<u64> {
        let with = self.with.as_ref()?;
        if port.screens || self.port(from).is_none() {
            return None;
        }
        let generation = with.generation();
        if self.second != now {
            (self.second, self.changes) = (now, 0);
        }
        if generation != self.last {
            let changes = generation.wrapping_sub(self.last).min(CHANGES.into()) as u32;
            self.changes = self.changes.saturating_add(changes);
            self.last = generation;
            self.recent.clear();
        }
        (self.changes < CHANGES).then_some(generation)
    }

    /// Something has changed: ends what goes the fast path.
    #[cold]
    pub(super) fn change(&self) {
        if let Some(with) = &self.with {
            with.invalidate();
        }
    }

    /// Approves a pair; `src` came by `from`, `dst` is at `to`. Interfaces of both, if that can be.
    #[cold]
    pub(super) fn approve(
        &mut self,
        generation: u64,
        (from, src): (PortId, MacAddr),
        (to, dst): (PortId, MacAddr),
        now: u32,
    ) -> Option<(u32, u32)> {
        let (ingress, egress) = (self.port(from)?, self.port(to)?);
        if egress.mac != dst {
            return None;
        }
        let interfaces = (ingress.interface, egress.interface);
        let (ingress, egress) = (*ingress, *egress);
        let pair = (fdb::key(0, src), fdb::key(0, dst), from);
        let i = (src.to_u64() ^ dst.to_u64().rotate_left(3)) as usize % RECENT;
        if self.recent.is_empty() {
            self.recent
                .resize(RECENT, ((fdb::NO_KEY, fdb::NO_KEY, from), 0));
        }
        if let Some(place) = self.recent.get_mut(i) {
            if *place == (pair, now) {
                return Some(interfaces);
            }
            *place = (pair, now);
        }
        if let Some(with) = &self.with {
            let (from, to) = ((from, &ingress, src), (to, &egress, dst));
            with.approve(generation, from, to, !self.allowed);
        }
        Some(interfaces)
    }
}

/// What of the bridge says whether a frame would be looked at on its way.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) ports: &'a [Option<BridgePort>],
    pub(super) down: &'a [bool],
    pub(super) shared: &'a Shared,
    pub(super) net: &'a Network,
}

impl View<'_> {
    /// Whether nothing would look at a frame that goes from a port to another.
    pub(super) fn is_clear(self, e: &Entry, from: PortId, to: PortId) -> bool {
        let looks = match self.ports.get(to.index()) {
            Some(Some(p)) => p.finishes || p.loop_state.is_shut(),
            _ => true,
        };
        let down = self.down.get(to.index()).copied().unwrap_or(false);
        !looks
            && !down
            && !self.shared.shut.contains(to)
            && self.net.fdb.lookup(e.meta.vid, e.meta.src) == Some(from)
    }
}

/// A pair of addresses that has been approved for flows that policy allows.
#[derive(Clone, Copy, Debug)]
pub struct Judgeable<'a> {
    /// The fast path.
    pub with: &'a Arc<Accelerator>,
    /// Generation of whatever is allowed for the batch at hand.
    pub generation: u64,
    /// Index of the interface that the frame came in by.
    pub ingress: u32,
    /// Index of the interface that it leaves by.
    pub egress: u32,
}

impl Bridge {
    /// Whether frames of the batch at hand, the last that was switched, could go the fast path if policy allows their flows.
    #[inline]
    #[must_use]
    pub fn takes_flows(&self) -> bool {
        self.fast.batch.is_some()
    }

    /// Approves the addresses of a frame of the batch at hand, from a network that policy judges: those of its flows that are allowed may
    /// go the fast path. `None` if they can't.
    pub fn approve_judged(&mut self, e: &Entry, from: PortId, now: u32) -> Option<Judgeable<'_>> {
        let generation = self.fast.batch?;
        let Verdict::Forward(to) = e.verdict else {
            return None;
        };
        let port = self.ports.get(from.index())?.as_ref()?;
        let view = View {
            ports: &self.ports,
            down: &self.down,
            shared: &self.shared,
            net: self
                .networks
                .get(usize::from(port.config.network.0))?
                .as_ref()?,
        };
        if self.fast.allowed || !view.is_clear(e, from, to) {
            return None;
        }
        let pair = ((from, e.meta.src), (to, e.meta.dst));
        let (ingress, egress) = self.fast.approve(generation, pair.0, pair.1, now)?;
        Some(Judgeable {
            with: self.fast.with.as_ref()?,
            generation,
            ingress,
            egress,
        })
    }

    /// Has the bridge use a fast path.
    pub fn accelerate(&mut self, with: Arc<Accelerator>) {
        self.fast.last = with.generation();
        self.fast.with = Some(with);
    }

    /// Whether it has one.
    #[inline]
    #[must_use]
    pub fn is_accelerated(&self) -> bool {
        self.fast.with.is_some()
    }

    /// Whether the frames of the next batch that are forwarded could go the fast path: nothing behind the bridge judges them.
    #[inline]
    pub fn allow_fast(&mut self, allowed: bool) {
        self.fast.allowed = allowed;
    }

    /// Puts a port on the fast path, or takes it off.
    pub fn set_fast(&mut self, port: PortId, fast: Option<FastPort>) {
        if self.fast.with.is_none() {
            return;
        }
        if self.fast.ports.len() <= port.index() {
            self.fast.ports.resize(port.index() + 1, None);
        }
        if let Some(place) = self.fast.ports.get_mut(port.index()) {
            *place = fast;
        }
        self.invalidate();
    }

    /// Ends all that goes the fast path; what may go on is approved anew by its next frame.
    pub fn invalidate(&self) {
        self.fast.change();
    }

    /// Captures began or ended to look at a port.
    pub(super) fn watch_port(&mut self, port: PortId, watched: bool) {
        if self.fast.with.is_none() {
            return;
        }
        if self.fast.watched.len() <= port.index() {
            self.fast.watched.resize(port.index() + 1, false);
        }
        if let Some(place) = self.fast.watched.get_mut(port.index())
            && std::mem::replace(place, watched) != watched
        {
            self.invalidate();
        }
    }

    /// Frames went the fast path: their sources are alive. What doesn't fit the table (news of another worker were lost) ends it.
    pub fn seen_fast(&mut self, active: &[Active], now: u32) {
        for a in active {
            let port = self.ports.get(a.from.index()).and_then(Option::as_ref);
            let network = port.map(|p| usize::from(p.config.network.0));
            let net = network.and_then(|n| self.networks.get_mut(n)?.as_mut());
            let stands = net.is_some_and(|net| {
                let is_at = |mac, port| net.fdb.lookup(0, mac) == Some(port);
                is_at(a.src, a.from) && is_at(a.dst, a.to) && {
                    net.fdb.learn(0, a.src, a.from, now, u32::MAX);
                    true
                }
            });
            if !stands {
                return self.invalidate();
            }
        }
    }
}
