//! What a stage sees of its worker.

use super::Step;
use crate::clock::Nanos;
use crate::frame::{FloodSet, Frame};
use crate::port::PortId;
use crate::wire::MacAddr;
use std::net::IpAddr;
use std::sync::Arc;

/// Where a frame emitted by a stage comes from, for the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A copy of a frame that goes on by itself (mirror).
    Copy,
    /// Made by the switch (a probe, a reply).
    Switch,
    /// A received frame that a stage had held.
    Held,
}

/// Something that happened, for people and programs that watch the switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A port came up.
    PortUp {
        /// Which.
        port: PortId,
    },
    /// A port went down.
    PortDown {
        /// Which.
        port: PortId,
        /// Why, for people.
        reason: String,
        /// It won't come back by itself.
        is_final: bool,
    },
    /// A MAC address was learned for the first time.
    MacLearned {
        /// Network index.
        network: u16,
        /// VLAN.
        vid: u16,
        /// Address.
        mac: MacAddr,
        /// Where.
        port: PortId,
    },
    /// A MAC address moved to another port.
    MacMoved {
        /// Network index.
        network: u16,
        /// VLAN.
        vid: u16,
        /// Address.
        mac: MacAddr,
        /// Where it was.
        from: PortId,
        /// Where it is now.
        to: PortId,
    },
    /// A learned MAC address aged out.
    MacAged {
        /// Network index.
        network: u16,
        /// VLAN.
        vid: u16,
        /// Address.
        mac: MacAddr,
        /// Where it was.
        port: PortId,
    },
    /// A table or port limit was reached; sent at most once a second per port.
    LimitReached {
        /// Port at whose ingress it happened.
        port: PortId,
        /// Which limit, in words.
        limit: &'static str,
    },
    /// The loop guard shut a port, because a probe of ours came back.
    LoopDetected {
        /// The port shut.
        port: PortId,
        /// The other port of the loop; the same one if its far end reflects.
        other: PortId,
    },
    /// A rule of the firewall that tells of its matches has judged something; not all are told.
    Policy {
        /// Port it came from.
        port: PortId,
        /// Port it goes to, if that is known.
        to: Option<PortId>,
        /// The rule.
        rule: Arc<str>,
        /// What the rule did.
        action: &'static str,
        /// Protocol, source and destination.
        packet: String,
    },
    /// A connection got no external address and port; sent at most once a second per network.
    NatExhausted {
        /// Index of the network whose pool it is.
        network: u16,
        /// IP protocol of the connection.
        proto: u8,
        /// Why, in words.
        reason: &'static str,
    },
    /// Leases of a gateway's DHCP server have changed and can be taken; told once a turn, and never lost.
    LeasesChanged,
    /// The loop guard opened a port again.
    LoopCleared {
        /// The port.
        port: PortId,
    },
}

/// Receives events; must not block.
pub type EventSink = Arc<dyn Fn(Event) + Send + std::marker::Sync>;

/// News between workers that each keep a copy of the FDB.
#[derive(Clone, Debug)]
pub enum Sync {
    /// A MAC was learned (or moved).
    Learned {
        /// Network index.
        network: u16,
        /// VLAN.
        vid: u16,
        /// Address.
        mac: MacAddr,
        /// Where.
        port: PortId,
        /// Second it was last seen there: the latest sighting wins.
        seen: u32,
    },
    /// A learned MAC aged out at the worker that had learned it.
    Aged {
        /// Network index.
        network: u16,
        /// VLAN.
        vid: u16,
        /// Address.
        mac: MacAddr,
        /// Where it was.
        port: PortId,
    },
    /// A port went down: what was learned at it is void.
    PortDown {
        /// Which.
        port: PortId,
    },
    /// A loop went through a port: addresses learned at it are void.
    Unlearn {
        /// Which.
        port: PortId,
    },
    /// A multicast membership was heard, or ended.
    Group {
        /// Network index.
        network: u16,
        /// VLAN.
        vid: u16,
        /// IPv4 or IPv6 group.
        group: IpAddr,
        /// Member port.
        port: PortId,
        /// Second at which the membership ends; not in the future if it was left.
        until: u32,
    },
    /// A multicast router or querier was heard.
    Router {
        /// Network index.
        network: u16,
        /// VLAN.
        vid: u16,
        /// IPv6 (MLD) or IPv4 (IGMP).
        v6: bool,
        /// Where.
        port: PortId,
        /// Second at which it is forgotten.
        until: u32,
        /// It sends queries, so that memberships are known.
        querier: bool,
    },
}

/// A stage's view of its worker during one call.
#[derive(Debug, Default)]
pub struct Cx {
    /// Time of this turn.
    pub now: Nanos,
    /// Index of this worker and how many there are.
    pub worker: (u16, u16),
    pub(crate) flood: Vec<PortId>,
    pub(crate) emits: Vec<(PortId, Frame, Origin)>,
    pub(crate) events: Vec<Event>,
    pub(crate) news: Vec<Sync>,
    pub(crate) wake_at: Option<Nanos>,
    /// Decisions about a frame that is only asked about.
    pub(crate) trace: Option<Vec<Step>>,
    pub(crate) again: bool,
}

/// Most events and news gathered in a turn; more are lost (a flood of new MACs must not grow a list).
const TURN_LIMIT: usize = 256;

impl Cx {
    /// Makes a flood set of these ports, valid until the batch is dispatched.
    pub fn flood_set(&mut self, ports: impl IntoIterator<Item = PortId>) -> FloodSet {
        let start = self.flood.len();
        self.flood.extend(ports);
        FloodSet {
            start: start as u32,
            len: (self.flood.len() - start) as u32,
        }
    }

    /// The ports of a flood set that `keep` chooses, as another set.
    pub fn narrow(&mut self, set: FloodSet, mut keep: impl FnMut(PortId) -> bool) -> FloodSet {
        let start = self.flood.len();
        for i in set.start..set.start + set.len {
            let port = self.flood.get(i as usize).copied();
            self.flood.extend(port.filter(|p| keep(*p)));
        }
        FloodSet {
            start: start as u32,
            len: (self.flood.len() - start) as u32,
        }
    }

    /// Sends a frame out of a port as it is, past the egress stages.
    pub fn emit(&mut self, to: PortId, frame: Frame, origin: Origin) {
        self.emits.push((to, frame, origin));
    }

    /// Reports an event; lossy under a flood of events, but for [`Event::LeasesChanged`], which stands for whatever waits to be taken.
    pub fn event(&mut self, event: Event) {
        let room = match event {
            Event::LeasesChanged => !self.events.contains(&event),
            _ => self.events.len() < TURN_LIMIT,
        };
        if room {
            self.events.push(event);
        }
    }

    /// What was reported and isn't told yet.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Asks to be ticked at `due` or earlier; for a timer that begins outside of [`crate::worker::Stage::tick`].
    pub fn tick_by(&mut self, due: Nanos) {
        self.wake_at = Some(self.wake_at.map_or(due, |t| t.min(due)));
    }

    /// Asks for a call of [`crate::worker::Stage::ready`] in the next turn, which comes at once.
    pub fn again(&mut self) {
        self.again = true;
    }

    /// Whether a further piece of news would be told, not lost.
    #[must_use]
    pub fn can_tell(&self) -> bool {
        self.worker.1 <= 1 || self.news.len() < TURN_LIMIT
    }

    /// Tells the other workers; lossy under a flood of news. Free with a single worker.
    pub fn tell(&mut self, news: Sync) {
        if self.worker.1 > 1 && self.news.len() < TURN_LIMIT {
            self.news.push(news);
        }
    }
}
